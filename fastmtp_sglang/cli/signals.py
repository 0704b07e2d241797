"""What ends a command that has started a server, or holds work that is worth a word."""

import signal


def ending_signals() -> list[signal.Signals]:
    """Return SIGTERM and SIGHUP, without those that this process was started to ignore.

    `nohup` and shells without job control ignore signals for what they start; a handler of ours
    would take that back.
    """
    return [
        number
        for number in (signal.SIGTERM, signal.SIGHUP)
        if signal.getsignal(number) is not signal.SIG_IGN
    ]

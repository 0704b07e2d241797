"""What this plugin is called in SGLang, and the line by which each process reports it."""

import logging

from fastmtp_sglang import __version__

logger = logging.getLogger(__name__)

ALGORITHM = "FASTMTP"
_announced = False


def is_ours(algorithm: str | None) -> bool:
    """Whether an argument of SGLang names our algorithm, in any spelling."""
    return (algorithm or "").upper() == ALGORITHM


def announce() -> None:
    """Log what is registered, once per process and as soon as the process shows its log.

    SGLang loads plugins before it configures logging; the algorithm calls this again when used.
    """
    global _announced
    if not _announced and logger.isEnabledFor(logging.INFO):
        _announced = True
        logger.info(
            "fastmtp-sglang %s: registered --speculative-algorithm fastmtp "
            "(draft heads: FastMTPHead, and the target's native MTP layer)",
            __version__,
        )

"""Run a configuration again and again, and kill it (SIGKILL) at seeded moments, until it is done.

    python killed_runs.py CONFIG SEED

A moment is the n-th time that the run opens, renames or removes something in its output folder:
where a kill could leave half of it, and the same on every machine. Each run is a fork of this
process, so that nothing is imported twice. Prints the moments as JSON.
"""

import json
import os
import random
import signal
import sys
import traceback
from pathlib import Path

from fastmtp_sglang.training.config import load_config
from fastmtp_sglang.training.run import train

EVENTS = {"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate"}
# Moments between two kills, at most: a run that saves a checkpoint has some 40.
LONGEST = 120


def run(config, moment):
    """In a child process: train, and die at the moment (0: live)."""
    left = moment
    place = str(config.output)

    def count(event, args):
        nonlocal left
        if left and event in EVENTS and place in str(args[0]):
            left -= 1
            if not left:
                print(f"killed at {event} {args[0]}", file=sys.stderr, flush=True)
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)
    train(config)


def main():
    config = load_config(Path(sys.argv[1]))
    draw = random.Random(int(sys.argv[2]))
    moments = []
    while not (config.output / "head").exists():
        moment = draw.randint(1, LONGEST)
        child = os.fork()
        if not child:
            try:
                run(config, moment)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status):
            moments.append(moment)
        elif status:
            sys.exit(1)
    print(json.dumps(moments))


main()

"""Trains the tiny task in child processes that are killed (SIGKILL) at random moments until one of them finishes.

Prints how many were killed. Arguments: the run's folder, the number of workers, the precision.
"""

import os
import random
import signal
import sys
import time
from pathlib import Path

from tiny_task import build, settings

from deocc.train import fit
from deocc.train.checkpoint import Checkpoints


def train(out: Path, **training: object) -> None:
    fit(build(settings(**training)), range(10), range(7), out, progress=False)


def watch(child: int, out: Path, draws: random.Random) -> int | None:
    """Kill the child at a random moment; its exit status if it ended before."""
    # Mostly after it got on by a checkpoint, so that the whole ends whatever the machine's speed; sometimes before.
    started, before = time.monotonic(), Checkpoints(out / "checkpoints").paths()
    early = started + draws.uniform(0, 0.1) if draws.random() < 0.3 else None
    late: float | None = None
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        if late is None and Checkpoints(out / "checkpoints").paths() != before:
            late = time.monotonic() + draws.uniform(0, 0.03)
        if any(moment is not None and time.monotonic() >= moment for moment in (early, late)):
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return None
        time.sleep(0.001)


if __name__ == "__main__":
    out, workers, precision, steps = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3], int(sys.argv[4])
    draws = random.Random(0)
    kills = 0
    # What is imported and loaded at the first use is so once here, not in every child.
    train(out.with_name("warm"), steps=1)
    while True:
        child = os.fork()
        if child == 0:
            try:
                train(out, steps=steps, workers=workers, precision=precision)
            except BaseException as error:
                print(repr(error), file=sys.stderr, flush=True)
                os._exit(1)
            os._exit(0)
        code = watch(child, out, draws)
        if code is not None:
            print(kills)
            sys.exit(code)
        kills += 1

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

if __name__ == "__main__":
    out, workers, precision = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    delays = random.Random(out.name)
    # What is imported and loaded at the first use is so once here, not in every child.
    fit(build(settings(steps=1)), range(10), range(7), out.with_name("warm"), progress=False)
    kills = 0
    while True:
        child = os.fork()
        if child == 0:
            try:
                fit(
                    build(settings(steps=30 if workers == 0 else 18, workers=workers, precision=precision)),
                    range(10),
                    range(7),
                    out,
                )
            except BaseException as error:
                print(repr(error), file=sys.stderr)
                os._exit(1)
            os._exit(0)
        # Longer after every kill, so that a slow machine gets to the end too.
        time.sleep(delays.uniform(0, 0.3 + 0.3 * workers) * (1 + kills / 4))
        os.kill(child, signal.SIGKILL)
        status = os.waitpid(child, 0)[1]
        if os.WIFEXITED(status):
            print(kills)
            sys.exit(os.WEXITSTATUS(status))
        kills += 1

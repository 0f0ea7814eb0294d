"""Trains the tiny task with Lightning Fabric on two processes of the CPU. Argument: the run's folder.

It stops after five steps and resumes; what each process saw is written beside the folder.
"""

import sys
from pathlib import Path

import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies import DDPStrategy
from tiny_task import TinyConfig, build

from deocc.train import fit

if __name__ == "__main__":
    torch.set_num_threads(1)
    fabric = Fabric(accelerator="cpu", devices=2, strategy=DDPStrategy(process_group_backend="gloo"))
    fabric.launch()
    out = Path(sys.argv[1])
    seen = []
    for stop_after in (5, None):
        task = build(TinyConfig(plain=True))
        fit(task, range(10), range(7), out, engine=fabric, progress=False, stop_after=stop_after)
        seen += task.seen
    (out.parent / f"seen-{fabric.global_rank}.txt").write_text(repr(seen))

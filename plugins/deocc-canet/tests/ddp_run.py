"""Trains the contrastive stage of canet with Lightning Fabric on two processes of the CPU. Arguments: a pack, a folder.

What each process holds afterwards is written to the folder.
"""

import sys
from pathlib import Path

import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies import DDPStrategy

from deocc import config, plugins
from deocc.data import PackedFaces
from deocc.train import fit

if __name__ == "__main__":
    torch.set_num_threads(1)
    fabric = Fabric(accelerator="cpu", devices=2, strategy=DDPStrategy(process_group_backend="gloo"))
    fabric.launch()
    pack, out = Path(sys.argv[1]), Path(sys.argv[2])
    method = plugins.get("canet")
    torch.manual_seed(0)
    task = method.resolve("siamese")(config.recipe(method, "smoke"))
    before = task.keys.queue.clone()
    fit(task, PackedFaces(pack), None, out / "run", engine=fabric, progress=False)
    held = {"before": before, **task.keys.state_dict(), **{f"key.{k}": v for k, v in task.key.state_dict().items()}}
    torch.save(held, out / f"{fabric.global_rank}.pt")

"""Several processes hold the same queue and the same key encoder."""

import os
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import pytest
import torch

from deocc.data import ImageFolder, pack

pytest.importorskip("lightning_fabric", reason="lightning-fabric is not installed (deocc[train])")


@pytest.mark.slow
def test_every_process_holds_the_same_queue_and_key_encoder(tmp_path: Path) -> None:
    pack(ImageFolder(str(files("deocc") / "portraits")), tmp_path / "pack")
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("ddp_run.py"), tmp_path / "pack", tmp_path],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    one, other = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name
    assert one["pointer"] == 3 * 2  # three steps of two faces, one from each process
    changed = (one["queue"] != one["before"]).any(dim=1)
    assert changed[:6].all()
    assert not changed[6:].any()
    assert len(one["queue"][:6].unique(dim=0)) == 6

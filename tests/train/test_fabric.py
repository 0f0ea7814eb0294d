"""A Lightning Fabric object as the engine: on one device, and on two processes of the CPU."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_task import TinyConfig, build, settings

from deocc.errors import UsageError
from deocc.train import SingleDevice, fit
from deocc.train.checkpoint import Checkpoints

fabric = pytest.importorskip("lightning_fabric", reason="lightning-fabric is not installed (deocc[train])")
HERE = Path(__file__).parent


@pytest.mark.parametrize("precision", ["32", "bf16-mixed"])
def test_on_one_device_it_gives_what_the_core_engine_gives(tmp_path: Path, precision: str) -> None:
    fit(build(settings(precision=precision)), range(10), range(7), tmp_path / "core", progress=False)
    name = {"32": "32-true"}.get(precision, precision)
    task = build(settings(precision=precision))
    engine = fabric.Fabric(accelerator="cpu", devices=1, precision=name)
    fit(task, range(10), range(7), tmp_path / "fabric", progress=False, engine=engine, stop_after=5)
    task = build(settings(precision=precision))
    fit(task, range(10), range(7), tmp_path / "fabric", progress=False, engine=engine)
    one, other = (Checkpoints(tmp_path / name / "checkpoints").latest() for name in ("core", "fabric"))
    assert one is not None
    assert other is not None
    for name, tensor in one["networks"]["network"].items():
        assert torch.equal(tensor, other["networks"]["network"][name])
    assert one["scores"] == other["scores"]


@pytest.mark.slow
def test_two_processes_share_each_batch_and_one_writes(tmp_path: Path) -> None:
    path = os.pathsep.join(filter(None, [str(HERE), str(HERE.parents[1]), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, HERE / "ddp_run.py", tmp_path / "two"],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    whole = build(TinyConfig(plain=True))
    fit(whole, range(10), range(7), tmp_path / "one", progress=False)
    seen = [ast.literal_eval((tmp_path / f"seen-{rank}.txt").read_text()) for rank in (0, 1)]
    assert seen == [whole.seen[0::2], whole.seen[1::2]]
    # The mean of the two shares' gradients is the gradient of the whole batch, up to rounding.
    one, two = (Checkpoints(tmp_path / name / "checkpoints").latest() for name in ("one", "two"))
    assert one is not None
    assert two is not None
    assert two["step"] == 12
    for name, tensor in one["networks"]["network"].items():
        torch.testing.assert_close(two["networks"]["network"][name], tensor, rtol=1e-3, atol=1e-4)
    steps = [line for line in (tmp_path / "two/log.jsonl").read_text().splitlines() if "evaluation" in line]
    assert len(steps) == 3


def test_a_batch_that_cannot_be_shared_is_refused(tmp_path: Path) -> None:
    class Three:
        world_size = 3

    with pytest.raises(UsageError, match=r"training\.batch must be divisible by the 3 processes, got 4"):
        fit(build(), range(10), None, tmp_path, progress=False, engine=Three())  # type: ignore[arg-type]


@pytest.mark.parametrize(("precision", "other"), [("32", "bf16-mixed"), ("bf16-mixed", "32-true"), ("32", "16-true")])
def test_an_engine_of_another_precision_is_refused(tmp_path: Path, precision: str, other: str) -> None:
    engine = fabric.Fabric(accelerator="cpu", devices=1, precision=other)
    with pytest.raises(UsageError, match=rf"which computes in '{other}', got '{precision}'"):
        fit(build(settings(precision=precision)), range(10), None, tmp_path, progress=False, engine=engine)


def test_so_is_a_single_device_of_another_precision(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"training\.precision must be that of the engine"):
        fit(build(), range(10), None, tmp_path, progress=False, engine=SingleDevice("cpu", "bf16-mixed"))

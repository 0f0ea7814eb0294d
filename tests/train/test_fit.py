from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_task import TinyConfig, TinyTask, build, settings
from torch import Tensor

from deocc import weights
from deocc.errors import InputError, PluginError, UsageError
from deocc.images import read_image
from deocc.train import SingleDevice, fit
from deocc.train.checkpoint import Checkpoints

HERE = Path(__file__).parent


def train(out: Path, config: TinyConfig | None = None, **options: Any) -> TinyTask:
    task = build(config)
    fit(task, range(10), range(7), out, progress=False, **options)
    return task


def lines(out: Path) -> list[dict[str, Any]]:
    """The log without what depends on the clock."""
    read = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("seconds", "images_per_second")} for line in read]


def assert_same(first: Any, second: Any) -> None:
    """Equal to the bit, all the way down."""
    assert type(first) is type(second)
    if isinstance(first, Tensor):
        assert first.stride() == second.stride()
        assert torch.equal(first, second)
    elif isinstance(first, dict):
        assert first.keys() == second.keys()
        for key in first:
            assert_same(first[key], second[key])
    elif isinstance(first, list | tuple):
        assert len(first) == len(second)
        for one, other in zip(first, second, strict=True):
            assert_same(one, other)
    else:
        assert first == second


def assert_same_end(one: Path, other: Path) -> None:
    """Two runs ended in the same networks, optimizers and exports."""
    first, second = Checkpoints(one / "checkpoints").latest(), Checkpoints(other / "checkpoints").latest()
    assert first is not None
    assert second is not None
    for key in ("networks", "optimizers", "step", "best", "scores"):
        assert_same(first[key], second[key])
    for path in ("last/restorer.safetensors", "best/restorer.safetensors"):
        assert (one / path).read_bytes() == (other / path).read_bytes()


def test_a_run_leaves_log_pictures_exports_and_two_checkpoints(tmp_path: Path) -> None:
    task = build()
    assert fit(task, range(10), range(7), tmp_path / "run", progress=False, card={"method": "tiny"}) == (
        tmp_path / "run/best"
    )
    log = lines(tmp_path / "run")
    assert [line["step"] for line in log if "train" in line] == [2, 3, 4, 6, 8, 9, 10, 12]
    assert [line["step"] for line in log if "evaluation" in line] == [4, 8, 12]
    assert log[-1]["epoch"] == 4.8
    raw = json.loads((tmp_path / "run/log.jsonl").read_text().splitlines()[0])
    assert raw["images_per_second"] > 0
    assert raw["seconds"] > 0
    assert [path.name for path in Checkpoints(tmp_path / "run/checkpoints").paths()] == [
        "step-00000012.safetensors",
        "step-00000009.safetensors",
    ]
    # Two rows of four pictures 8x8, shown at 64x64, with room for the labels.
    assert read_image(tmp_path / "run/previews/step-00000012.png").shape == (2 * 66, 110 + 4 * 64, 3)
    tensors, card = weights.read(tmp_path / "run/last/restorer.safetensors", method="tiny", part="restorer")
    assert_same(tensors["0.weight"], task.network.state_dict()["0.weight"].contiguous())
    assert card["steps"] == 12
    assert card["scores"] == log[-1]["evaluation"]
    assert card["config"]["training"]["steps"] == 12
    best = min((line["evaluation"]["error"], line["step"]) for line in log if "evaluation" in line)
    card = weights.read_card(tmp_path / "run/best/restorer.safetensors")
    assert (card["scores"]["error"], card["steps"]) == best


def test_every_epoch_sees_every_face_once_under_indices_that_never_repeat(tmp_path: Path) -> None:
    seen = train(tmp_path, settings(steps=10, batch=4)).seen
    for epoch in range(4):
        assert sorted(seen[10 * epoch : 10 * epoch + 10]) == list(range(10 * epoch, 10 * epoch + 10))
    assert [index % 10 for index in seen[:10]] != [index % 10 for index in seen[10:20]]


@pytest.mark.parametrize("stop", [1, 3, 5, 8])
def test_stopping_and_resuming_changes_nothing(tmp_path: Path, stop: int) -> None:
    whole = train(tmp_path / "whole")
    first = train(tmp_path / "parts", stop_after=stop)
    second = train(tmp_path / "parts")
    assert first.seen + second.seen == whole.seen
    assert len(first.seen) == 4 * stop
    assert_same_end(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(tmp_path: Path, workers: int) -> None:
    train(tmp_path / "none")
    train(tmp_path / "some", settings(workers=workers))
    assert_same_end(tmp_path / "none", tmp_path / "some")


def test_how_often_is_looked_changes_nothing(tmp_path: Path) -> None:
    one, other = train(tmp_path / "one"), train(tmp_path / "other", settings(evaluate_every=1, log_every=1))
    assert_same(one.network.state_dict(), other.network.state_dict())


def test_another_seed_changes_the_weights(tmp_path: Path) -> None:
    one, other = train(tmp_path / "one"), train(tmp_path / "other", settings(seed=1))
    assert not torch.equal(one.network[0].weight, other.network[0].weight)


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "precision"), [(0, "32"), (1, "bf16-mixed")])
def test_killed_at_random_moments_the_result_is_the_same(tmp_path: Path, workers: int, precision: str) -> None:
    steps = 36 if workers == 0 else 18
    path = os.pathsep.join(filter(None, [str(HERE), str(HERE.parents[1]), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    done = subprocess.run(
        [sys.executable, HERE / "kill_often.py", tmp_path / "killed", str(workers), precision, str(steps)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 3
    assert "damaged" not in done.stderr
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        train(tmp_path / "whole", settings(steps=steps, precision=precision))
    finally:
        torch.set_num_threads(threads)
    assert_same_end(tmp_path / "whole", tmp_path / "killed")
    assert lines(tmp_path / "whole") == lines(tmp_path / "killed")
    assert not [path for path in (tmp_path / "killed").rglob(".*") if path.name != ".lock"]


def test_lines_and_half_lines_after_the_checkpoint_are_dropped(tmp_path: Path) -> None:
    train(tmp_path / "whole")
    train(tmp_path / "run", stop_after=6)
    with (tmp_path / "run/log.jsonl").open("a") as log:
        log.write('{"step": 7, "train": {"loss": 1.0}}\n{"step": 8, "tr')
    train(tmp_path / "run")
    assert lines(tmp_path / "run") == lines(tmp_path / "whole")


def test_a_damaged_checkpoint_falls_back_to_the_one_before_with_a_warning(tmp_path: Path) -> None:
    train(tmp_path / "whole")
    train(tmp_path / "run", stop_after=6)
    newest = tmp_path / "run/checkpoints/step-00000006.safetensors"
    newest.write_bytes(newest.read_bytes()[:-100])
    with pytest.warns(RuntimeWarning, match=r"step-00000006\.safetensors is damaged.*trying the checkpoint before"):
        task = train(tmp_path / "run")
    assert len(task.seen) == 4 * 9
    assert_same_end(tmp_path / "whole", tmp_path / "run")
    assert (tmp_path / "run/checkpoints/step-00000006.safetensors.damaged").exists()


def test_all_checkpoints_damaged_is_an_error(tmp_path: Path) -> None:
    train(tmp_path, stop_after=3)
    (tmp_path / "checkpoints/step-00000003.safetensors").write_bytes(b"")
    for _ in range(2):  # again, as a scheduler does: the folder is no new run
        with pytest.warns(RuntimeWarning), pytest.raises(InputError, match=r"every checkpoint in .* is damaged"):
            train(tmp_path)


def test_a_run_of_other_settings_is_refused_by_name(tmp_path: Path) -> None:
    train(tmp_path, stop_after=3)
    before = (tmp_path / "checkpoints/step-00000003.safetensors").read_bytes()
    with pytest.raises(UsageError, match=r"config\.width is 4 in the checkpoint and 5 here"):
        train(tmp_path, TinyConfig(width=5))
    with pytest.raises(UsageError, match=r"training\.batch is 4 in the checkpoint and 2 here"):
        train(tmp_path, settings(batch=2))
    with pytest.raises(UsageError, match=r"method is 'tiny_task' in the checkpoint and 'other' here"):
        train(tmp_path, card={"method": "other"})
    with pytest.raises(UsageError, match="examples is 10 in the checkpoint and 11 here"):
        fit(build(), range(11), None, tmp_path, progress=False)
    with pytest.raises(UsageError, match="already holds a training run"):
        train(tmp_path, resume=False)
    with pytest.raises(UsageError, match=r"is at step 3, beyond training\.steps 2"):
        train(tmp_path, settings(steps=2))
    assert (tmp_path / "checkpoints/step-00000003.safetensors").read_bytes() == before


def test_a_run_can_be_lengthened(tmp_path: Path) -> None:
    train(tmp_path / "whole", settings(steps=15))
    train(tmp_path / "run")
    with pytest.warns(RuntimeWarning, match=r"training\.steps was 12 and is 15 now"):
        train(tmp_path / "run", settings(steps=15))
    assert_same(
        Checkpoints(tmp_path / "whole/checkpoints").latest()["networks"],  # type: ignore[index]
        Checkpoints(tmp_path / "run/checkpoints").latest()["networks"],  # type: ignore[index]
    )


def test_a_run_can_be_ended_where_it_stands(tmp_path: Path) -> None:
    train(tmp_path / "whole", settings(steps=7))
    train(tmp_path / "run", stop_after=7)
    assert weights.read_card(tmp_path / "run/last/restorer.safetensors")["steps"] < 7
    with pytest.warns(RuntimeWarning, match=r"training\.steps was 12 and is 7 now"):
        train(tmp_path / "run", settings(steps=7))
    card = weights.read_card(tmp_path / "run/last/restorer.safetensors")
    assert card["steps"] == 7
    assert card["scores"] == weights.read_card(tmp_path / "whole/last/restorer.safetensors")["scores"]
    with pytest.raises(UsageError, match=r"config\.width is 4 .* 5 here \(it is finished: --stages"):
        train(tmp_path / "run", TinyConfig(width=5, training=settings(steps=7).training))


def test_a_finished_run_is_not_trained_again(tmp_path: Path) -> None:
    train(tmp_path)
    before = (tmp_path / "log.jsonl").read_bytes()
    assert train(tmp_path).seen == []
    assert (tmp_path / "log.jsonl").read_bytes() == before


@pytest.mark.parametrize("poison", [0, 4])
def test_nan_stops_with_the_step_and_leaves_the_checkpoint(tmp_path: Path, poison: int) -> None:
    with pytest.raises(InputError, match=f"stopped at step {poison + 1}: loss is nan"):
        train(tmp_path, TinyConfig(poison=poison))
    state = Checkpoints(tmp_path / "checkpoints").latest()
    if poison == 0:
        assert state is None
    else:
        assert state is not None
        assert state["step"] == 3
        assert all(torch.isfinite(tensor).all() for tensor in state["networks"]["network"].values())


class Overflowing(TinyTask):
    """Its loss is fine; its weights are not."""

    def step(self, batch: Any, engine: Any, index: int) -> Mapping[str, Tensor | float]:
        logs = super().step(batch, engine, index)
        if index == 2:
            self.network[0].weight.data[0] = float("inf")
        return logs


def test_weights_that_are_not_finite_never_reach_a_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"stopped at step 3: parameter 0\.weight of network 'network'"):
        fit(Overflowing(settings(checkpoint_every=1)), range(10), None, tmp_path, progress=False)
    state = Checkpoints(tmp_path / "checkpoints").latest()
    assert state is not None
    assert state["step"] == 2


def test_weights_that_are_not_finite_replace_no_good_ones(tmp_path: Path) -> None:
    config = settings(evaluate_every=1, checkpoint_every=12)
    with pytest.raises(InputError, match="stopped at step 3"):
        fit(Overflowing(config), range(10), range(7), tmp_path, progress=False)
    assert weights.read_card(tmp_path / "last/restorer.safetensors")["steps"] == 2


class EasyAlone(TinyTask):
    """A single face is no measure."""

    def evaluate(self, batch: Any) -> Mapping[str, float]:
        return {"error": float(len(batch["image"]) > 1)}


def test_the_best_over_other_faces_is_no_measure(tmp_path: Path) -> None:
    for images, best in ((1, 0.0), (6, 1.0)):
        task = EasyAlone(settings(evaluate_images=images))
        fit(task, range(10), range(7), tmp_path, progress=False, stop_after=6)
        state = Checkpoints(tmp_path / "checkpoints").latest()
        assert state is not None
        assert state["best"] == best


class Rising(TinyTask):
    """Two figures; one grows with the steps."""

    best = "-error"

    def evaluate(self, batch: Any) -> Mapping[str, float]:
        self.looked = getattr(self, "looked", 0) + 1
        return {**super().evaluate(batch), "rising": 100.0 + self.looked}


def test_the_best_of_another_figure_is_no_measure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Rising, "best", "-rising")
    fit(Rising(settings(checkpoint_every=4)), range(10), range(7), tmp_path, progress=False, stop_after=8)
    assert weights.read_card(tmp_path / "best/restorer.safetensors")["steps"] == 4
    monkeypatch.setattr(Rising, "best", "rising")
    fit(Rising(settings(checkpoint_every=4)), range(10), range(7), tmp_path, progress=False)
    assert weights.read_card(tmp_path / "best/restorer.safetensors")["steps"] == 12


def test_without_evaluation_the_last_weights_are_exported(tmp_path: Path) -> None:
    assert fit(build(), range(10), None, tmp_path, progress=False) == tmp_path / "last"
    assert (tmp_path / "last/restorer.safetensors").exists()


def test_a_folder_is_trained_in_by_one_process_at_a_time(tmp_path: Path) -> None:
    lock = f"import fcntl, time; f = open({str(tmp_path / '.lock')!r}, 'w'); fcntl.lockf(f, fcntl.LOCK_EX); "
    with subprocess.Popen(
        [sys.executable, "-c", lock + "print('held', flush=True); time.sleep(60)"], stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        other.stdout.readline()
        with pytest.raises(UsageError, match="in use by another training process"):
            train(tmp_path)
        other.kill()
    train(tmp_path, stop_after=1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, r"training\.steps must be 1 or more, got 0"),
        ({"batch": 0}, r"training\.batch must be 1 or more, got 0"),
        ({"evaluate_every": 0}, r"training\.evaluate_every must be 1"),
        ({"workers": -1}, r"training\.workers must be 0 or more, got -1"),
        ({"precision": "16"}, "precision must be one of 32, bf16-mixed, got '16'"),
    ],
)
def test_settings_that_cannot_be_trained_with(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        train(tmp_path, settings(**change))


def test_no_faces_no_device_and_no_place_are_clear_errors(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no examples to train on"):
        fit(build(), range(0), None, tmp_path / "a", progress=False)
    with pytest.raises(UsageError, match="no examples to evaluate on"):
        fit(build(), range(1), range(0), tmp_path / "a", progress=False)
    with pytest.raises(UsageError, match="device 'cuda:99' cannot be used here"):
        train(tmp_path / "a", device="cuda:99")
    with pytest.raises(UsageError, match="device 'toaster' cannot be used here"):
        SingleDevice("toaster")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"file.*cannot be made"):
        train(tmp_path / "file/run")


def test_a_task_that_breaks_the_contract_is_told_how(tmp_path: Path) -> None:
    task = build()
    task.networks = lambda: {"generator": task.network}  # type: ignore[method-assign]
    with pytest.raises(PluginError, match="'generator' is not the attribute of that name"):
        fit(task, range(10), None, tmp_path / "a", progress=False)
    task = build()
    task.step = lambda batch, engine, index: {"loss": torch.ones(2)}  # type: ignore[method-assign]
    with pytest.raises(PluginError, match=r"logs loss of shape \(2,\), which is not a scalar"):
        fit(task, range(10), None, tmp_path / "b", progress=False)
    task = build()
    task.evaluate = lambda batch: {"other": 1.0}  # type: ignore[method-assign]
    with pytest.raises(PluginError, match=r"TinyTask\.best is '-error', but evaluate\(\) gives other"):
        fit(task, range(10), range(7), tmp_path / "c", progress=False)


def test_a_figure_without_a_value_is_null_and_never_the_best(tmp_path: Path) -> None:
    task = build()
    task.evaluate = lambda batch: {"error": float("nan")}  # type: ignore[method-assign]
    assert fit(task, range(10), range(7), tmp_path, progress=False) == tmp_path / "last"
    assert lines(tmp_path)[-1]["evaluation"] == {"error": None}


def test_evaluation_covers_the_faces_in_eval_mode_and_leaves_the_modes_alone(tmp_path: Path) -> None:
    task, seen = build(), []
    task.network[2].eval()

    def evaluate(batch: Any) -> dict[str, float]:
        assert not task.network.training
        assert not torch.is_grad_enabled()
        seen.append(batch["index"].tolist())
        return {"error": float(len(batch["index"]))}

    task.evaluate = evaluate  # type: ignore[method-assign]
    fit(task, range(10), range(13), tmp_path, progress=False, stop_after=4)
    # Six of thirteen, evenly spaced, in batches of four and two; the mean is over images.
    assert seen == [[0, 2, 5, 7], [10, 12]]
    assert lines(tmp_path)[-1]["evaluation"] == {"error": pytest.approx((4 * 4 + 2 * 2) / 6)}
    assert task.network.training
    assert not task.network[2].training


def test_progress_goes_to_standard_error_as_plain_lines(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    fit(build(), range(10), range(7), tmp_path, progress=True)
    out, error = capfd.readouterr()
    assert out == ""
    assert "12/12" in error
    assert "images/s" in error
    assert "min left" in error
    assert "step 12: error=" in error

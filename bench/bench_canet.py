"""How fast canet restores and trains: ``pytest bench/bench_canet.py [--device cuda] [--threads 2]``.

Every figure stands against the same network on the reference operators (``DEOCC_BACKEND=reference``), in the same run,
taking turns; restoring in bfloat16 stands against float32. ``of which convolutions`` is the share of the device's
time that the profiler finds in them: what no operator of ours could save. The paper states 0.248 s for an image of
256x256 on its CPU (section 4.8).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from deocc import config, plugins
from deocc.errors import DeoccError
from deocc.train import SingleDevice


def share_of_convolutions(function: Callable[[], object], device: str) -> float:
    """Of the device's time, as the profiler sees it; of ten calls, since the profiler's first events are slow."""
    on_cpu = device == "cpu"
    function()
    with profile(activities=[ProfilerActivity.CPU, *([] if on_cpu else [ProfilerActivity.CUDA])]) as run:
        for _ in range(10):
            function()
        if not on_cpu:
            torch.cuda.synchronize()
    field = "self_cpu_time_total" if on_cpu else "self_device_time_total"
    # On a GPU its kernels are events too, beside the operators that started them.
    events = [event for event in run.key_averages() if event.device_type == DeviceType.CPU]
    times = {event.key: getattr(event, field) for event in events}
    return sum(time for name, time in times.items() if "conv" in name) / sum(times.values())


def _method() -> Any:
    try:
        plugins.load("canet", "restorer")
    except DeoccError as error:
        pytest.skip(str(error))
    return plugins.get("canet")


def _drawn(device: str, size: int, batch: int) -> tuple[Any, torch.Tensor, torch.Tensor]:
    """The restorer, faces, and an occlusion of their lower middle."""
    _method()
    restorer = plugins.load("canet", "restorer", device=device)
    image = torch.rand(batch, 3, size, size, device=device)
    occlusion = torch.zeros(batch, 1, size, size, device=device)
    occlusion[:, :, size // 2 : size * 3 // 4, size // 4 : size * 3 // 4] = 1
    return restorer, image, occlusion


@pytest.mark.parametrize("occluded", ["given", "found"])
@pytest.mark.parametrize("batch", [1, 16])
@pytest.mark.parametrize("size", [128, 256])
def test_restoration(
    benchmark: Any, compare: Any, on_reference: Any, device: str, size: int, batch: int, occluded: str
) -> None:
    restorer, image, occlusion = _drawn(device, size, batch)

    def restore() -> object:
        return restorer(image, occlusion if occluded == "given" else None)

    compare(restore, on_reference(restore))
    benchmark.extra_info["images a second"] = round(batch / benchmark.stats["median"], 2)
    benchmark.extra_info["of which convolutions"] = round(share_of_convolutions(restore, device), 3)


@pytest.mark.parametrize("batch", [1, 16])
@pytest.mark.parametrize("size", [128, 256])
def test_restoration_in_bfloat16(benchmark: Any, compare: Any, device: str, size: int, batch: int) -> None:
    """Inside ``torch.autocast``, against the same in float32."""
    restorer, image, occlusion = _drawn(device, size, batch)

    def rounded() -> object:
        with torch.autocast(device, torch.bfloat16):
            return restorer(image, occlusion)

    compare(rounded, lambda: restorer(image, occlusion))
    benchmark.extra_info["images a second"] = round(batch / benchmark.stats["median"], 2)


@pytest.mark.parametrize("stage", ["siamese", "joint", "finder"])
@pytest.mark.parametrize("precision", ["32", "bf16-mixed"])
def test_training_step(
    benchmark: Any, compare: Any, on_reference: Any, device: str, stage: str, precision: str
) -> None:
    """Of the packaged architecture at 128x128, 16 faces a step, the whole queue of 65,536 keys; without VGG-16's style
    loss, whose weights are not packaged."""
    method = _method()
    settings = method.resolve("config")()
    settings = config.replace(settings, {"siamese.training.batch": 16, "joint.losses.adversarial": 0.01})
    torch.manual_seed(0)
    task = method.resolve(stage)(settings)
    for name, network in task.networks().items():
        setattr(task, name, network.to(device))
    drawn = {"image": 3, "occluded": 3, "other_occluded": 3, "occlusion": 1, "other_occlusion": 1, "dense_field": 2}
    batch = {
        name: torch.randint(256, (16, channels, 128, 128), dtype=torch.uint8, device=device)
        for name, channels in drawn.items()
    }
    engine = SingleDevice(device, precision)

    def step() -> object:
        return task.step(batch, engine, 1)

    compare(step, on_reference(step))
    benchmark.extra_info["steps a second"] = round(1 / benchmark.stats["median"], 3)
    benchmark.extra_info["of which convolutions"] = round(share_of_convolutions(step, device), 3)

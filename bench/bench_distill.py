"""How fast distill completes, recognizes and trains: ``pytest bench/bench_distill.py [--device cuda] [--threads 2]``.

The restorer stands against the same network on the reference operators (``DEOCC_BACKEND=reference``), and the whole
distillation step against the same step without the relational losses, in the same run, taking turns: a ratio just under
1 there means that all pairs and all triplets of 128 faces cost next to nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
import torch

from deocc import config, plugins
from deocc.ops import relational_distillation
from deocc.train import SingleDevice


def _method(*needed: str) -> Any:
    for name in ("distill", *needed):
        if name not in plugins.names():
            pytest.skip(f"{name} is not installed")
    return plugins.get("distill")


def _part(method: Any, part: str, recipe: str, device: str) -> Any:
    """Untrained: what its weights are makes no difference to its speed."""
    torch.manual_seed(0)
    built = method.resolve(part)(config.recipe(method, recipe))
    built.network.eval().requires_grad_(False)
    return built.to(device)


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("recipe", ["small", "paper"])
def test_restoration(benchmark: Any, compare: Any, on_reference: Any, device: str, recipe: str, batch: int) -> None:
    """At 256x256, a quarter of the image occluded."""
    restorer = _part(_method(), "restorer", recipe, device)
    image = torch.rand(batch, 3, 256, 256, device=device)
    occlusion = torch.zeros(batch, 1, 256, 256, device=device)
    occlusion[:, :, 128:, 64:192] = 1

    def restore() -> object:
        return restorer(image, occlusion)

    compare(restore, on_reference(restore))
    benchmark.extra_info["images a second"] = round(batch / benchmark.stats["median"], 2)


@pytest.mark.parametrize("recipe", ["small", "paper"])
@pytest.mark.parametrize("batch", [1, 32])
def test_embedding(benchmark: Any, device: str, recipe: str, batch: int) -> None:
    """By the student, at 112x112."""
    student = _part(_method(), "recognizer", recipe, device)
    faces = torch.rand(batch, 3, 112, 112, device=device)

    def embed() -> None:
        student(faces)
        if device == "cuda":
            torch.cuda.synchronize()

    embed()
    benchmark.pedantic(embed, rounds=5, iterations=1)
    benchmark.extra_info["embeddings a second"] = round(batch / benchmark.stats["median"], 2)


@pytest.mark.parametrize("precision", ["32", "bf16-mixed"])
def test_distillation_step(benchmark: Any, compare: Any, device: str, precision: str) -> None:
    """Of the small recipe at batch 128, its faces completed before: only teacher, student and losses are in it.

    ``share of the relational losses`` is of the same step's time, measured alone: forward and backward.
    """
    method = _method("mobilefacenet")
    changes = {
        "distillation.completion": "none",
        "distillation.cross_entropy": 0.0,
        "distillation.instance": "hard",
    }
    tasks = []
    for more in ({}, {"distillation.pair": 0.0, "distillation.triplet": 0.0}):
        torch.manual_seed(0)
        task = method.resolve("distillation")(config.replace(config.recipe(method, "small"), changes | more))
        task.student.to(device)
        tasks.append(task)
    batch = {
        name: torch.randint(256, (128, channels, 128, 128), dtype=torch.uint8, device=device)
        for name, channels in {"image": 3, "occluded": 3, "distance": 1}.items()
    }
    batch |= {"epoch": torch.zeros(128, dtype=torch.int64), "row": torch.zeros(128, dtype=torch.int64)}
    engine = SingleDevice(device, precision)
    whole, without = (lambda task=task: task.step(batch, engine, 1) for task in tasks)
    compare(whole, without)
    student = torch.randn(128, 128, device=device, requires_grad=True)
    teacher = torch.randn(128, 128, device=device)

    def relations() -> None:
        relational_distillation(student, teacher, distance=1.0, angle=2.0).backward()
        if device == "cuda":
            torch.cuda.synchronize()

    seconds = min(_time(relations) for _ in range(5))
    benchmark.extra_info["share of the relational losses"] = round(seconds / benchmark.stats["median"], 5)
    benchmark.extra_info["steps a second"] = round(1 / benchmark.stats["median"], 4)


def _time(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start

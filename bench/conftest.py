"""What every benchmark shares: ``pytest bench/ [--device cuda] [--benchmark-json=bench/baselines/cpu/NAME.json]``.

A benchmark measures ours and what people write today in one process, taking turns, and compares medians: only their
ratio is held against a floor, since absolute times belong to one machine. ``DEOCC_STRICT=1`` is set, so that the
reference is never taken for a kernel.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch

from deocc import ops

RATIOS: list[tuple[str, float, float, float, float]] = []


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", choices=["cpu", "cuda"], default="cpu", help="where tensors are; cpu by default")


def pytest_configure(config: pytest.Config) -> None:
    os.environ["DEOCC_STRICT"] = "1"
    os.environ.pop("DEOCC_BACKEND", None)


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> str:
    name: str = request.config.getoption("--device")
    if name == "cuda" and not torch.cuda.is_available():
        pytest.skip("torch finds no CUDA device")
    return name


@pytest.fixture
def compare(
    benchmark: Any, request: pytest.FixtureRequest, device: str
) -> Callable[[Callable[[], object], Callable[[], object], float], None]:
    """``compare(ours, theirs, floor)``: fails when ``median(theirs) / median(ours)`` is under the floor."""

    def timed(function: Callable[[], object]) -> Callable[[], None]:
        def call() -> None:
            function()
            if device == "cuda":
                torch.cuda.synchronize()

        return call

    def run(ours: Callable[[], object], theirs: Callable[[], object], floor: float) -> None:
        ours, theirs = timed(ours), timed(theirs)
        start = time.perf_counter()
        for function in (ours, theirs) * 2:
            function()
        rounds = min(max(int(4 * 0.5 / (time.perf_counter() - start)), 5), 200)  # about half a second of each
        rival: list[float] = []

        def turn() -> None:
            before = time.perf_counter()
            theirs()
            rival.append(time.perf_counter() - before)

        benchmark.pedantic(ours, setup=turn, rounds=rounds, iterations=1)
        mine, other = benchmark.stats["median"], statistics.median(rival)
        benchmark.extra_info.update(eager_median=other, ratio=other / mine, floor=floor, device=device)
        RATIOS.append((request.node.name, other, mine, other / mine, floor))
        assert other / mine >= floor, f"{other / mine:.2f} times eager, and {floor} is the floor"

    return run


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not RATIOS:
        return
    terminalreporter.section("ours against eager PyTorch, medians")
    width = max(len(row[0]) for row in RATIOS)
    terminalreporter.write_line(f"{'':<{width}} {'eager ms':>10} {'ours ms':>10} {'ratio':>7} {'floor':>6}")
    for name, other, mine, ratio, floor in RATIOS:
        terminalreporter.write_line(
            f"{name:<{width}} {other * 1e3:>10.3f} {mine * 1e3:>10.3f} {ratio:>7.2f} {floor:>6}"
        )


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    kept = {key: machine_info[key] for key in ("system", "release", "machine", "python_version")}
    kept["cpu"] = machine_info["cpu"].get("brand_raw", "unknown")
    machine_info.clear()
    machine_info.update(kept)
    machine_info["torch"] = torch.__version__
    machine_info["threads"] = torch.get_num_threads()
    machine_info["gpu"] = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    machine_info["build"] = {key: value for key, value in ops.build_info().items() if key != "file"}


def pytest_benchmark_update_json(config: pytest.Config, benchmarks: Any, output_json: dict[str, Any]) -> None:
    for entry in output_json["benchmarks"]:  # a baseline is read by people: the single times are not
        entry["stats"] = {key: entry["stats"][key] for key in ("median", "min", "iqr", "rounds")}
        for key in ("options", "params", "param", "group", "fullname"):
            entry.pop(key, None)

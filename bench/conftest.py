"""What every benchmark shares.

``pytest bench/ [--device cuda] [--threads 1] [--malloc tuned] [--benchmark-json=bench/baselines/cpu/NAME.json]``

A benchmark measures ours and what people write today in one process, taking turns, and compares medians: only their
ratio is held against a floor, since absolute times belong to one machine. Beside it stands the limit: the time that
the multiply-adds take at the rate of the fastest matrix product here, or the bytes at the rate of a copy, whichever is
longer. ``DEOCC_STRICT=1`` is set, so that the reference is never taken for a kernel. ``-m gate`` runs the ratios alone
that have to hold for a change to land.
"""

from __future__ import annotations

import ctypes
import functools
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import pytest
import torch

from deocc import ops


class Row(NamedTuple):
    name: str
    rival: float
    ours: float
    floor: float
    limit: float
    bound: str


ROWS: list[Row] = []
NOTES: list[tuple[str, str]] = []
"""Of what is no race: its name and what was found."""


class Compare(Protocol):
    """See :func:`compare`."""

    def __call__(
        self,
        ours: Callable[[], object],
        theirs: Callable[[], object],
        floor: float = 0.0,
        *,
        multiply_adds: float = 0.0,
        bytes_moved: float = 0.0,
        dtype: torch.dtype = torch.float32,
    ) -> float: ...


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", choices=["cpu", "cuda"], default="cpu", help="where tensors are; cpu by default")
    parser.addoption("--threads", type=int, default=1, help="torch.set_num_threads; 1 by default")
    parser.addoption(
        "--malloc",
        choices=["default", "tuned"],
        default="default",
        help="tuned: glibc keeps freed memory, so that no time goes into fresh pages (the eager code gains by it)",
    )


def pytest_configure(config: pytest.Config) -> None:
    os.environ["DEOCC_STRICT"] = "1"
    os.environ.pop("DEOCC_BACKEND", None)
    torch.set_num_threads(config.getoption("--threads"))
    torch.backends.cudnn.allow_tf32 = False  # as in matrix products: else convolutions alone would round float32
    if config.getoption("--malloc") == "tuned":
        keep_freed_memory()
    config.addinivalue_line("markers", "gate: its ratio has to hold for a change to land")


def keep_freed_memory() -> None:
    """Tell glibc's malloc to map no blocks and to give none back."""
    m_trim_threshold, m_mmap_max = -1, -4
    libc = ctypes.CDLL(None)
    if not (libc.mallopt(m_mmap_max, 0) and libc.mallopt(m_trim_threshold, 2**31 - 1)):
        raise RuntimeError("--malloc tuned: mallopt refused")


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> str:
    name: str = request.config.getoption("--device")
    if name == "cuda" and not torch.cuda.is_available():
        pytest.skip("torch finds no CUDA device")
    return name


@pytest.fixture(scope="session")
def floor_of(request: pytest.FixtureRequest, device: str) -> Callable[[Any, str], float]:
    """``floor_of(case, "forward")``: the least ratio that the case table accepts on this device and malloc, else 0.

    What bfloat16 gains over our own float32 has a floor where the processor multiplies it.
    """
    tuned = " tuned" if request.config.getoption("--malloc") == "tuned" else ""
    pairs = torch.cpu.get_capabilities().get("avx512_bf16", False) and "DEOCC_VECTOR" not in os.environ

    def find(case: Any, measure: str) -> float:
        if measure.startswith("bfloat16") and device == "cpu" and not pairs:
            return 0.0
        return float(case.floors.get(f"{device} {measure}{tuned}", 0.0))

    return find


def operator_of(request: pytest.FixtureRequest) -> str:
    return str(request.path.stem).removeprefix("bench_")


def name_of(request: pytest.FixtureRequest) -> str:
    operator = operator_of(request)
    return f"{operator} {request.node.name.removeprefix('test_').removeprefix(operator).removeprefix('_')}"


def finish(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def median_time(function: Callable[[], object], device: str, rounds: int = 9) -> float:
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        function()
        finish(device)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


@functools.cache
def multiply_rate(device: str, dtype: torch.dtype) -> float:
    """Multiply-adds a second of the fastest there is: torch.mm or, on AMD's processors, oneDNN's 3x3 convolution."""
    size = 1024 if device == "cpu" else 8192
    a = torch.ones(size, size, device=device, dtype=dtype)
    x = torch.ones(1, 256, 64, 64, device=device, dtype=dtype)
    weight = torch.ones(256, 256, 3, 3, device=device, dtype=dtype)
    with torch.no_grad():
        product = size**3 / median_time(lambda: a @ a, device)
        convolution = 9 * 256 * x.numel() / median_time(lambda: torch.conv2d(x, weight, padding=1), device)
    return max(product, convolution)


@functools.cache
def copy_rate(device: str) -> float:
    """Bytes a second, read and written, of copying what fits no cache."""
    a = torch.ones(2**26 if device == "cpu" else 2**29, device=device)
    b = torch.empty_like(a)
    return 2 * a.nbytes / median_time(lambda: b.copy_(a), device, 5)


@pytest.fixture
def compare(benchmark: Any, request: pytest.FixtureRequest, device: str) -> Compare:
    """``compare(ours, theirs, floor, multiply_adds=..., bytes_moved=...)`` -> the ratio of the medians.

    Fails when ``median(theirs) / median(ours)`` is under the floor. The multiply-adds and the bytes are what the
    operation cannot do without; ``dtype`` is what the multiply-adds are done in.
    """

    def run(
        ours: Callable[[], object],
        theirs: Callable[[], object],
        floor: float = 0.0,
        *,
        multiply_adds: float = 0.0,
        bytes_moved: float = 0.0,
        dtype: torch.dtype = torch.float32,
    ) -> float:
        def mine() -> None:
            ours()
            finish(device)

        rival: list[float] = []

        def turn() -> None:
            start = time.perf_counter()
            theirs()
            finish(device)
            rival.append(time.perf_counter() - start)

        mine()
        turn()  # compiles, and starts libraries
        start = time.perf_counter()
        for function in (mine, turn) * 2:
            function()
        rounds = min(max(int(4 * 0.5 / (time.perf_counter() - start)), 5), 200)  # about half a second of each
        rival.clear()
        benchmark.pedantic(mine, setup=turn, rounds=rounds, iterations=1)
        median, other = benchmark.stats["median"], statistics.median(rival)
        limits = {"arithmetic": 0.0, "memory": 0.0}
        if multiply_adds:
            limits["arithmetic"] = multiply_adds / multiply_rate(device, dtype)
        if bytes_moved:
            limits["memory"] = bytes_moved / copy_rate(device)
        bound = max(limits, key=lambda name: limits[name])
        limit = limits[bound]
        gate = request.node.get_closest_marker("gate") is not None
        benchmark.extra_info.update(operator=operator_of(request), device=device, gate=gate)
        benchmark.extra_info.update(eager_median=other, ratio=other / median, floor=floor)
        if limit:
            benchmark.extra_info.update(limit=limit, bound=bound, of_limit=median / limit)
        ROWS.append(Row(name_of(request), other, median, floor, limit, bound if limit else ""))
        assert other / median >= floor, f"{other / median:.2f} times the rival, and {floor} is the floor"
        return float(other / median)

    return run


@pytest.fixture
def on_reference(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], object]], Callable[[], object]]:
    """Makes of a function one that does the same on the reference operators (``DEOCC_BACKEND=reference``)."""

    def wrapped(function: Callable[[], object]) -> Callable[[], object]:
        def run() -> object:
            with monkeypatch.context() as patch:
                patch.setenv("DEOCC_BACKEND", "reference")
                patch.setenv("DEOCC_STRICT", "0")
                return function()

        return run

    return wrapped


@pytest.fixture
def thread_speedup(
    benchmark: Any, request: pytest.FixtureRequest, device: str
) -> Callable[[Callable[[], object], float], None]:
    """``thread_speedup(function, floor)``: the time on one thread over that on two, taking turns, is at least that.

    Floors are far below what is usual, since the second processor may be busy for others.
    """

    def run(function: Callable[[], object], floor: float) -> None:
        if device != "cpu" or (os.cpu_count() or 1) < 2:
            pytest.skip("threads are the CPU's, and there must be two")
        times: dict[int, list[float]] = {1: [], 2: []}
        before = torch.get_num_threads()
        try:
            for _ in range(9):
                for count, taken in times.items():
                    torch.set_num_threads(count)
                    start = time.perf_counter()
                    function()
                    taken.append(time.perf_counter() - start)
        finally:
            torch.set_num_threads(before)
        speedup = statistics.median(times[1]) / statistics.median(times[2])
        benchmark.extra_info["speedup"] = speedup
        benchmark.pedantic(lambda: None)
        NOTES.append((name_of(request), f"{speedup:.2f} times as fast"))
        assert speedup >= floor, f"two threads are {speedup:.2f} times as fast as one, and {floor} is the floor"

    return run


@pytest.fixture
def compare_memory(
    peak_mb: Callable[..., float], request: pytest.FixtureRequest, benchmark: Any
) -> Callable[..., None]:
    """``compare_memory("f", "g", measure, most, small=..., big=...)``: ours takes at most that many MiB, and no more
    than theirs.

    Functions and inputs are expressions as in :func:`peak_mb`. Training calls ``step(f, *inputs)``, or what ``step``
    names instead.
    """

    def run(ours: str, theirs: str, measure: str, most: float, *, step: str = "step", **inputs: str) -> None:
        calls = (f"{function}(*" if measure == "forward" else f"{step}({function}, *" for function in (ours, theirs))
        mine, other = (peak_mb(f"{call}small)", f"{call}big)", **inputs) for call in calls)
        benchmark.extra_info.update(ours_mb=mine, eager_mb=other)
        benchmark.pedantic(lambda: None)
        NOTES.append((name_of(request), f"{max(mine, 0):.1f} MiB, eager {max(other, 0):.1f}"))
        assert mine <= most, f"{mine:.1f} MiB above inputs and outputs, and {most} are allowed"
        assert mine <= other

    return run


@pytest.fixture
def peak_mb(request: pytest.FixtureRequest, device: str) -> Callable[..., float]:
    """``peak_mb("f(*small)", "f(*big)", small="...", big="...")``: MiB that the second adds to resident memory.

    All are expressions over the names in the benchmark's own file, evaluated on one thread in a process of its own,
    the inputs first. The first call runs the same code on little, so that what is loaded once is not counted; neither
    are the second one's results, tensors. What is added starts from what is resident then, not from an earlier peak.
    """

    def run(warm: str, call: str, **inputs: str) -> float:
        if device != "cpu":
            pytest.skip("the process's memory is the CPU's")
        # VmHWM and not ru_maxrss, which a process inherits from the one that starts it.
        script = f"""
import pathlib, re, runpy, torch
peak_kb = lambda: int(re.search(r"VmHWM:\\s*(\\d+)", pathlib.Path("/proc/self/status").read_text())[1])
torch.set_num_threads(1)
names = runpy.run_path({str(Path(request.path))!r})
names |= {{key: eval(value, names) for key, value in {inputs!r}.items()}}
eval({warm!r}, names)
pathlib.Path("/proc/self/clear_refs").write_text("5")  # the peak is what is resident now
before = peak_kb()
result = eval({call!r}, names)
after = peak_kb()
results = [result] if isinstance(result, torch.Tensor) else [r for r in result if r is not None]
print((after - before) / 1024 - sum(r.nbytes for r in results) / 2**20)
"""
        done = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return float(done.stdout)

    return run


@pytest.fixture
def scaling(
    benchmark: Any, request: pytest.FixtureRequest, device: str, peak_mb: Callable[..., float]
) -> Callable[..., None]:
    """``scaling("L", {1024: "inputs(32)", ...}, pair, small=..., ours="f(*big)", eager="g(*big)")``.

    For report.py: time and, on the CPU, memory of ours and of the eager code, at every value of what the operator
    scales with. ``pair`` makes two functions of a value: ours and theirs. The other arguments are what :func:`peak_mb`
    takes: expressions for small inputs, for those of each value, and for the calls on them, which are ``big``.
    """

    def run(
        variable: str,
        inputs: dict[int, str],
        pair: Callable[[int], tuple[Callable[[], object], Callable[[], object]]],
        *,
        small: str,
        ours: str,
        eager: str,
    ) -> None:
        curves: dict[str, list[float]] = {"ours_ms": [], "eager_ms": [], "ours_mb": [], "eager_mb": []}
        for value, expression in inputs.items():
            times: dict[str, list[float]] = {"ours": [], "eager": []}
            functions = dict(zip(times, pair(value), strict=True))
            for turn in range(6):
                for name, function in functions.items():
                    start = time.perf_counter()
                    function()
                    finish(device)
                    if turn:
                        times[name].append(time.perf_counter() - start)
            for name, call in (("ours", ours), ("eager", eager)):
                curves[f"{name}_ms"].append(statistics.median(times[name]) * 1e3)
                if device == "cpu":
                    warm = call.replace("*big", "*small")
                    curves[f"{name}_mb"].append(peak_mb(warm, call, small=small, big=expression))
        benchmark.extra_info["operator"] = operator_of(request)
        benchmark.extra_info["scaling"] = {"variable": variable, "values": list(inputs), **curves}
        benchmark.pedantic(lambda: None)

    return run


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if ROWS:
        terminalreporter.section("ours against eager PyTorch, medians")
        width = max(len(row.name) for row in ROWS)
        head = f"{'eager ms':>10} {'ours ms':>10} {'ratio':>7} {'floor':>6} {'limit ms':>9} {'/limit':>6}  bound"
        terminalreporter.write_line(f"{'':<{width}} {head}")
        for row in ROWS:
            limit = f"{row.limit * 1e3:>9.3f} {row.ours / row.limit:>6.2f}  {row.bound}" if row.limit else ""
            terminalreporter.write_line(
                f"{row.name:<{width}} {row.rival * 1e3:>10.3f} {row.ours * 1e3:>10.3f} {row.rival / row.ours:>7.2f} "
                f"{row.floor:>6} {limit}".rstrip()
            )
    if NOTES:
        terminalreporter.section("two threads against one, and memory above inputs and outputs")
        width = max(len(name) for name, _ in NOTES)
        for name, found in NOTES:
            terminalreporter.write_line(f"{name:<{width}}  {found}")


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    kept = {key: machine_info[key] for key in ("system", "release", "machine", "python_version")}
    kept["cpu"] = machine_info["cpu"].get("brand_raw", "unknown")
    machine_info.clear()
    machine_info.update(kept)
    machine_info["torch"] = torch.__version__
    machine_info["threads"] = torch.get_num_threads()
    machine_info["malloc"] = config.getoption("--malloc")
    machine_info["vector"] = os.environ.get("DEOCC_VECTOR", "widest")
    machine_info["gpu"] = torch.cuda.get_device_name() if config.getoption("--device") == "cuda" else None
    machine_info["build"] = {key: value for key, value in ops.build_info().items() if key != "file"}


def pytest_benchmark_update_json(config: pytest.Config, benchmarks: Any, output_json: dict[str, Any]) -> None:
    for entry in output_json["benchmarks"]:  # a baseline is read by people: the single times are not
        entry["stats"] = {key: entry["stats"][key] for key in ("median", "min", "iqr", "rounds")}
        for key in ("options", "params", "param", "group", "fullname"):
            entry.pop(key, None)

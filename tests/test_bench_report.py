"""bench/report.py draws what is in the repository."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from deocc.images import read_image

REPOSITORY = Path(__file__).resolve().parents[1]


def report(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(REPOSITORY / "bench" / "report.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_both_pictures(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    done = report(REPOSITORY / "bench" / "baselines" / "cpu", "-o", tmp_path)
    assert done.returncode == 0, done.stderr
    for name in ("speed.png", "scaling.png"):
        assert read_image(tmp_path / name).std() > 10


def test_nothing_to_draw(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    done = report(tmp_path)
    assert done.returncode == 2
    assert f"there are no results in {tmp_path}" in done.stderr


def test_the_machine_is_that_of_what_is_drawn(tmp_path: Path) -> None:
    """Not that of a newer file of which nothing is."""
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    spec = importlib.util.spec_from_file_location("bench_report", REPOSITORY / "bench" / "report.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name, day, threads, extra in (("old", 1, 1, {"operator": "f", "gate": True}), ("new", 2, 2, {})):
        content = {
            "datetime": f"2026-01-0{day}",
            "machine_info": {"gpu": "", "cpu": "a processor", "threads": threads, "torch": "2"},
            "benchmarks": [{"name": name, "extra_info": extra}],
        }
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    assert module.read(tmp_path)[1] == "a processor, 1 thread(s), torch 2"

"""bench/report.py draws what is in the repository."""

from __future__ import annotations

import importlib.util
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


def test_the_machine_is_that_of_what_is_drawn() -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    place = REPOSITORY / "bench" / "report.py"
    spec = importlib.util.spec_from_file_location("bench_report", place)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    _, machine = module.read(REPOSITORY / "bench" / "baselines" / "cpu-intel")
    assert "1 thread(s)" in machine, "gates.json is of one thread, and newer files hold no bars"

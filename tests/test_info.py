from __future__ import annotations

import subprocess
import sys

import pytest

import deocc.ops._registry as registry
from deocc import info, ops, plugins


def test_says_everything() -> None:
    printed = subprocess.run([sys.executable, "-m", "deocc.info"], capture_output=True, text=True, check=True).stdout
    assert [line for line in printed.splitlines() if line and not line.startswith(" ")] == [
        "versions", "build", "operators", "methods",
    ]  # fmt: skip
    assert str(ops.backends()).replace("\n", "\n  ") in printed
    for name in plugins.names():
        assert f"\n  {name} " in printed


def test_a_build_without_kernels_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "compiled", None)
    monkeypatch.setattr(registry, "_missing", lambda: "built with DEOCC_BUILD=none")
    assert "build\n  no compiled kernels: built with DEOCC_BUILD=none\n" in info.text()


def test_a_broken_method_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = plugins.Problem("deocc-broken", "1.0", "broken", "it cannot be imported (SyntaxError)")
    monkeypatch.setattr(plugins, "names", lambda: ("broken",))
    monkeypatch.setattr(plugins, "problems", lambda: [problem])
    assert "\n  broken  broken: method 'broken' of deocc-broken 1.0: it cannot be imported" in info.text()

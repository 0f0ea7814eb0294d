"""``new-plugin`` writes what installs into a clean environment and keeps the contract there."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

import deocc
from deocc.errors import InputError, UsageError
from deocc.scaffold import KINDS, new_plugin


def run(*command: str | Path, **environment: str) -> str:
    plain = {
        key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "PYTEST", "PIP_", "VIRTUAL"))
    }
    done = subprocess.run(
        [str(word) for word in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**plain, "OMP_NUM_THREADS": "1", **environment},
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.mark.slow
def test_generated_plugins_install_and_pass_their_tests(tmp_path):
    """A fresh virtual environment; torch and the like are lent to it by path, since installing them takes minutes."""
    plugins = [new_plugin(f"fresh-{kind}", kind, tmp_path) for kind in KINDS]
    venv = tmp_path / "venv"
    run(sys.executable, "-m", "venv", "--without-pip", venv)
    python = venv / "bin" / "python"
    site = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
    lent = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), str(Path(deocc.__file__).parents[1])}
    Path(site, "lent.pth").write_text("\n".join(sorted(lent)) + "\n")
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-deps", "--no-build-isolation"]
    run(*pip, "--disable-pip-version-check", *plugins)

    # From another folder, and with the sources gone from the path: what is tested is what was installed.
    tests = [plugin / "tests" for plugin in plugins]
    out = run(
        python, "-m", "pytest", "-q", "--import-mode=importlib", "-p", "no:cacheprovider", "--rootdir", venv, *tests
    )
    assert " passed" in out
    assert "failed" not in out
    assert "skipped" not in out
    listed = run(python, "-c", "from deocc import plugins; print(*plugins.names())")
    assert {f"fresh-{kind}" for kind in KINDS} <= set(listed.split())


@pytest.mark.parametrize("kind", KINDS)
def test_generated_code_is_clean(kind, tmp_path):
    plugin = new_plugin("3d-things", kind, tmp_path)
    for file in plugin.rglob("*"):
        if file.is_file():
            assert "$" not in file.read_text(), file
            assert "__package__" not in file.name
    rules = ["--isolated", "--line-length", "120", "--target-version", "py311"]
    run(sys.executable, "-m", "ruff", "check", *rules, "--select", "E,F,W,I,B,UP,SIM", plugin)
    run(sys.executable, "-m", "ruff", "format", *rules, "--check", plugin)


def test_nothing_is_overwritten(tmp_path):
    plugin = new_plugin("mine", "restorer", tmp_path)
    (plugin / "README.md").write_text("my own words")
    with pytest.raises(InputError, match="deocc-mine exists already and is not overwritten"):
        new_plugin("mine", "restorer", tmp_path)
    assert (plugin / "README.md").read_text() == "my own words"
    assert [path.name for path in tmp_path.iterdir()] == ["deocc-mine"]


@pytest.mark.parametrize("name", ["", "Mine", "my_method", "-mine", "mine-", "my--method", "../mine", "mine\n", "é"])
def test_names_that_cannot_be_used(name, tmp_path):
    with pytest.raises(UsageError, match="must be lower-case letters, digits and single hyphens"):
        new_plugin(name, "restorer", tmp_path)
    assert not list(tmp_path.iterdir())


def test_unknown_part(tmp_path):
    with pytest.raises(UsageError, match="did you mean 'restorer'"):
        new_plugin("mine", "restore", tmp_path)


def test_name_of_an_installed_method(tmp_path, monkeypatch):
    monkeypatch.setattr("deocc.plugins.names", lambda: ("mine",))
    with pytest.raises(UsageError, match="'mine' is installed already"):
        new_plugin("mine", "restorer", tmp_path)


def test_name_of_an_installed_package(tmp_path, monkeypatch):
    (tmp_path / "deocc_taken").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UsageError, match="a package 'deocc_taken' is installed already, which 'taken' would replace"):
        new_plugin("taken", out=tmp_path)


def test_unwritable_place(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        new_plugin("mine", "restorer", tmp_path / "file")

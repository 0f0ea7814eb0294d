"""Every code block of the README runs, typed as it stands, in one folder and in the order of the page."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
from importlib.resources import files
from pathlib import Path

import pytest

from deocc import plugins
from deocc.faces import Detector
from deocc.images import read_image, write_image
from deocc.occlude import occlude

REPOSITORY = Path(__file__).resolve().parent.parent
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", (REPOSITORY / "README.md").read_text(), re.MULTILINE | re.DOTALL)
NEEDED = {"canet", "mobilefacenet", "opencv-telea"}


def run(command: list[str], folder: Path, environment: dict[str, str]) -> str:
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A virtual environment of its own, since the README installs a plugin, that borrows what is installed here."""
    venv = tmp_path_factory.mktemp("venv")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True)
    site = next(venv.glob("lib/python*/site-packages"))
    (site / "borrowed.pth").write_text(f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n")
    for name in ("deocc", "pip"):
        script = venv / "bin" / name
        script.write_text(f'#!/bin/sh\nexec "{venv}/bin/python" -m {name} "$@"\n')
        script.chmod(0o755)
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("MAKE", "MFLAGS", "PYTHONPATH"))}
    return {**clean, "PATH": f"{venv / 'bin'}{os.pathsep}{os.environ['PATH']}", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}


def test_the_three_first_five_minutes(tmp_path: Path, environment: dict[str, str]) -> None:
    if missing := NEEDED - set(plugins.names()):
        pytest.skip(f"the README uses the plugins {', '.join(sorted(missing))}, which are not installed")
    portraits = sorted(Path(str(files("deocc") / "portraits")).glob("*.jpg"))
    for portrait in portraits:
        person = tmp_path / "people" / re.sub(r"-\d+$", "", portrait.stem)
        person.mkdir(parents=True, exist_ok=True)
        (person / portrait.name).write_bytes(portrait.read_bytes())
    photo = read_image(portraits[0])
    made = occlude(photo, Detector().detect(photo)[0].landmarks, 3, kinds=("surgical",))
    write_image(tmp_path / "photo.jpg", made.image)
    write_image(tmp_path / "occlusion.png", made.occlusion)
    (tmp_path / "photos").mkdir()
    write_image(tmp_path / "photos" / "photo.jpg", photo)
    number = 0
    for language, code in BLOCKS:
        if code.startswith("make "):
            continue
        number += 1
        if language == "sh":
            run(["bash", "-euo", "pipefail", "-c", code], tmp_path, environment)
        else:
            name = f"{'test_' if 'def test_' in code else ''}block{number}.py"
            (tmp_path / name).write_text(code)
            tool = ["-m", "pytest", "-q", "-p", "no:cacheprovider"] if name.startswith("test_") else []
            run(["python", *tool, name], tmp_path, environment)
    assert number >= 6
    written = ["restored/photo.png", "telea/photo.png", "restored.png", "report/report.json", "packs/photos/fields.npy"]
    for name in [*written, "deocc-my-method/pyproject.toml"]:
        assert (tmp_path / name).is_file()


def test_the_two_commands(environment: dict[str, str]) -> None:
    """``make demo`` for real where its environment stands; of ``make test``, which runs this test, what it would do."""
    commands = [code.strip() for language, code in BLOCKS if code.startswith("make ")]
    assert commands == ["make demo", "make test"]
    planned = run(["make", "-n", "test"], REPOSITORY, environment)
    for tool in ("ruff check", "mypy", "lint-imports", "pytest"):
        assert tool in planned
    assert "make test" in (REPOSITORY / ".ci" / "run").read_text()
    if (REPOSITORY / ".venv" / ".installed").exists():
        run(["make", "demo"], REPOSITORY, environment)
        assert (REPOSITORY / "demo" / "contact_sheet.png").is_file()
        assert (REPOSITORY / "demo" / "report.html").is_file()
    else:
        assert "deocc demo" in run(["make", "-n", "demo"], REPOSITORY, environment)

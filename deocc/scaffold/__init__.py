"""``deocc new-plugin``: a complete plugin that installs and keeps the contract, to be filled with a method.

The files are in ``template/``: ``common`` for every plugin, and one folder for each kind of part.
"""

from __future__ import annotations

import importlib.resources
import importlib.util
import re
import secrets
import shutil
import string
from pathlib import Path
from typing import Any

from deocc.errors import InputError, UsageError

__all__ = ["KINDS", "new_plugin"]

KINDS = ("restorer", "occluder", "recognizer", "task")
"""What a new plugin can offer; ``task`` is a restorer that learns, with the stage that trains it."""


def new_plugin(name: str, part: str = "restorer", out: str | Path = ".") -> Path:
    """Write the folder of a new plugin, ``deocc-<name>``, whole or not at all.

    Args:
        name: of the method: lower-case letters, digits and single hyphens.
        part: one of :data:`KINDS`.
        out: the folder to make it in; made too where it is missing.

    Returns:
        the folder that was written.

    Raises:
        UsageError: the name cannot be used or is taken by an installed method or package, or there is no such part.
        InputError: the folder is there already, or cannot be written.
    """
    from deocc.config import did_you_mean
    from deocc.plugins import names

    if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name):
        raise UsageError(f"a method's name must be lower-case letters, digits and single hyphens, got {name!r}")
    if part not in KINDS:
        raise UsageError(
            f"a new plugin's part must be one of {', '.join(KINDS)}, got {part!r}; {did_you_mean(part, KINDS)}"
        )
    if name in names():
        raise UsageError(f"a method named {name!r} is installed already; choose another name")
    package = f"deocc_{name.replace('-', '_')}"
    if importlib.util.find_spec(package) is not None:
        raise UsageError(
            f"a package {package!r} is installed already, which {name!r} would replace; choose another name"
        )
    target = Path(out) / f"deocc-{name}"
    if target.exists():
        raise InputError(f"{target} exists already and is not overwritten")
    title = "".join(word.capitalize() for word in name.split("-"))
    words = {
        "name": name,
        "package": package,
        "title": title if title[0].isalpha() else f"Method{title}",
    }
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(6)}")
    try:
        for folder in ("common", part):
            _write(importlib.resources.files("deocc.scaffold") / "template" / folder, temporary, words)
        temporary.replace(target)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise InputError(f"{target} cannot be written ({error.strerror})") from error
    return target


def _write(source: Any, target: Path, words: dict[str, str]) -> None:
    target.mkdir(parents=True, exist_ok=True)
    for item in source.iterdir():
        name = item.name.replace("__package__", words["package"]).removesuffix(".tmpl")
        if item.is_dir():
            _write(item, target / name, words)
        else:
            text = string.Template(item.read_text(encoding="utf-8")).substitute(words)
            (target / name).write_text(text, encoding="utf-8")

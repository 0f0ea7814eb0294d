"""Finding methods: the entry-point group ``deocc.methods``.

A plugin is any installed distribution with an entry point in that group, whose value leads to a
:class:`deocc.method.Method` of the same name. :func:`names` reads the metadata of what is installed and imports
nothing; :func:`get` imports the one module that holds the method, and none of its parts. A broken plugin breaks only
itself.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.resources
import json
import re
import sys
import uuid
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

from deocc.config import did_you_mean, from_dict, replace
from deocc.errors import PluginError, UsageError, WeightsError
from deocc.files import sha256

if TYPE_CHECKING:
    from deocc.method import Method, Occluder, Part, Recognizer, Restorer

__all__ = [
    "GROUP",
    "OLDEST_API",
    "Problem",
    "get",
    "load",
    "names",
    "packaged_weights",
    "parse",
    "problems",
    "source_digest",
]

GROUP = "deocc.methods"
"""The entry-point group that plugins declare."""

OLDEST_API = 1
"""The oldest ``Method(api=...)`` that still works; the newest is :data:`deocc.method.API`."""


@dataclass(frozen=True)
class Problem:
    """Why an installed plugin, or one of its methods, cannot be used.

    Attributes:
        distribution, version: the installed distribution that declares the entry point.
        entry_point: its name, which is the method's.
        reason: one sentence.
    """

    distribution: str
    version: str
    entry_point: str
    reason: str

    def __str__(self) -> str:
        return f"method {self.entry_point!r} of {self.distribution} {self.version}: {self.reason}"


def names() -> tuple[str, ...]:
    """The names of all installed methods, sorted; broken ones too, since nothing is imported to find out."""
    return tuple(sorted(_declared()))


def get(name: str) -> Method:
    """The method called ``name``; imports the module that holds it, and none of its parts.

    Args:
        name: an installed method; settings behind a colon (:func:`parse`) are left aside.

    Raises:
        UsageError: no such method is installed.
        PluginError: two distributions claim the name, or the plugin is broken.
    """
    name, declared = name.partition(":")[0], _declared()
    if name not in declared:
        if not declared:
            raise UsageError(f"there is no method {name!r}: no plugin with a method is installed")
        near = did_you_mean(name, declared)
        listed = f" (installed: {', '.join(sorted(declared))})" if near.startswith("did") else ""
        raise UsageError(f"there is no method {name!r}; {near}{listed}")
    method = _import(declared[name])
    if isinstance(method, Problem):
        raise PluginError(str(method))
    return method


def parse(text: str) -> tuple[str, dict[str, str]]:
    """A method as it is written on the command line: its name, and fields of its configuration to change.

    ``"onnx:model.onnx,layout=arcface.toml"`` is the method ``onnx`` with its field ``layout`` set, and what stands
    first without ``=`` is the value of the first field. So one method may be used twice, with two models.

    Returns:
        the name, and field -> text for :func:`deocc.config.replace`, empty where only a name was given.

    Raises:
        UsageError: a setting is not ``field=value``, or stands there twice, or there is no such method.
        PluginError: the plugin is broken.
    """
    name, _, settings = text.partition(":")
    method, found = get(name), {}
    # A comma ends a setting where another one begins; any other is part of a path or a list.
    for number, item in enumerate(re.split(r",(?=[A-Za-z_][\w.]*=)", settings) if settings else ()):
        key, given, value = item.partition("=") if re.match(r"[A-Za-z_][\w.]*=", item) else ("", "", item)
        if not given and number == 0:
            fields: Any = dataclasses.fields(method.resolve("config"))
            key = fields[0].name if fields else ""
        if not key or key in found:
            raise UsageError(f"{text!r}: settings of method {name!r} are written 'field=value', got {item!r}")
        found[key] = value
    return name, found


def problems() -> list[Problem]:
    """Everything that is wrong with the installed plugins; imports the module of each method to find out."""
    found = []
    for _, entries in sorted(_declared().items()):
        outcome = _import(entries)
        if isinstance(outcome, Problem):
            found.append(outcome)
    return found


def packaged_weights(method: Method, part: str) -> Path | None:
    """The weights file that comes with ``part`` of a method, or None when none is packaged.

    Raises:
        PluginError: the method names a file that is not in its package.
    """
    target = method.weights.get(part)
    if target is None:
        return None
    package, _, inside = target.partition(":")
    try:
        resource = importlib.resources.files(package).joinpath(inside)
    except Exception as error:
        raise PluginError(
            f"method {method.name!r}: the package of its weights {target!r} cannot be imported "
            f"({type(error).__name__}: {error})"
        ) from error
    if not inside or not isinstance(resource, Path) or not resource.is_file():
        raise PluginError(f"method {method.name!r}: its weights {target!r} are not a file of the installed package")
    return resource


@overload
def load(
    name: str,
    part: Literal["restorer"],
    *,
    weights: str | Path | None = None,
    device: str = "cpu",
    **overrides: Any,
) -> Restorer: ...
@overload
def load(
    name: str,
    part: Literal["occluder"],
    *,
    weights: str | Path | None = None,
    device: str = "cpu",
    **overrides: Any,
) -> Occluder: ...
@overload
def load(
    name: str,
    part: Literal["recognizer"],
    *,
    weights: str | Path | None = None,
    device: str = "cpu",
    **overrides: Any,
) -> Recognizer: ...
def load(name: str, part: str, *, weights: str | Path | None = None, device: str = "cpu", **overrides: Any) -> Part:
    """Build a part of a method, with its weights, frozen and in evaluation mode.

    The configuration is the one on the weights' card, else the defaults, with ``overrides`` applied.

    Args:
        name: an installed method, with settings of its own if need be: ``"onnx:model.onnx"``, see :func:`parse`.
        part: ``"restorer"``, ``"occluder"`` or ``"recognizer"``.
        weights: a safetensors file with its JSON card beside it; by default the file packaged with the method, if any.
        device: where to compute, such as ``"cpu"`` or ``"cuda:0"``.
        **overrides: fields of the configuration to change, as :func:`deocc.config.replace` takes them.

    Raises:
        UsageError: no such method, part, device or field.
        PluginError: the plugin is broken.
        WeightsError: the part needs weights and there are none, or they do not fit.
        InputError, MissingDependencyError: a file that the part reads does not fit, or a package that it needs is not
            installed.
    """
    from deocc import weights as files
    from deocc.method import PARTS

    name, settings = parse(name)
    method, overrides = get(name), settings | overrides
    if part not in PARTS:
        raise UsageError(f"a part must be one of {', '.join(PARTS)}, got {part!r}; {did_you_mean(part, PARTS)}")
    part_class: Any = method.resolve(part)
    config_class: type[Any] = method.resolve("config")
    target = _device(device)
    path = Path(weights) if weights is not None else packaged_weights(method, part)

    tensors, config = None, from_dict(config_class, {})
    if path is not None:
        tensors, card = files.read(path, method=name, part=part)
        try:
            config = from_dict(config_class, card["config"])
        except UsageError as error:
            raise WeightsError(
                f"{path}: the configuration on its card does not fit method {name!r}: {error}"
            ) from error
    elif part_class.needs_weights:
        raise WeightsError(
            f"the {part} of method {name!r} needs trained weights and has none packaged; pass weights=FILE "
            "(--weights FILE), a .safetensors file with its .json card beside it"
        )
    built: Part = part_class(replace(config, overrides))
    if tensors is not None:
        if built.network is None:
            raise WeightsError(f"{path}: weights were given, but the {part} of method {name!r} takes none")
        files.fill(built.network, tensors, source=str(path))
    if built.network is not None:
        built.network.eval().requires_grad_(False)
    return built.to(target)


def _device(name: str) -> Any:
    import torch

    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        have = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
        raise UsageError(f"device {name!r} cannot be used on this machine; it has {', '.join(have)}") from error
    return device


def _declared() -> dict[str, list[EntryPoint]]:
    declared: dict[str, list[EntryPoint]] = defaultdict(list)
    for entry in entry_points(group=GROUP):
        declared[entry.name].append(entry)
    return dict(declared)


def _origin(entry: EntryPoint) -> tuple[str, str]:
    # Metadata that lacks these fields is itself a broken plugin; it must not break the listing.
    if entry.dist is None:
        return "an unnamed distribution", "?"
    return entry.dist.metadata["Name"] or "an unnamed distribution", entry.dist.metadata["Version"] or "?"


def _import(entries: list[EntryPoint]) -> Method | Problem:
    """The method behind the entry points of one name, or why it cannot be had."""
    from deocc.method import API, Method

    entry = entries[0]
    distribution, version = _origin(entry)

    def problem(reason: str) -> Problem:
        return Problem(distribution, version, entry.name, reason)

    if len(entries) > 1:
        others = " and ".join(f"{other} {its_version}" for other, its_version in map(_origin, entries[1:]))
        return problem(f"{others} has a method of this name too; uninstall one of them")
    if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", entry.name):
        return problem("a method's name must be lower-case letters, digits and single hyphens")
    try:
        method = entry.load()
    except (Exception, SystemExit) as error:  # whatever a stranger's module does at import stays its own problem
        return problem(f"importing {entry.value!r} failed ({type(error).__name__}: {error})")
    if not isinstance(method, Method):
        return problem(f"{entry.value!r} must be a deocc.method.Method, got {type(method).__name__}")
    api: Any = method.api  # a plugin's own word
    if not isinstance(api, int):
        return problem(f"its api must be an integer, got {api!r}")
    if method.api > API:
        return problem(f"it is written for api {method.api} and this deocc has api {API}; upgrade deocc")
    if method.api < OLDEST_API:
        return problem(
            f"it is written for api {method.api} and this deocc takes {OLDEST_API} to {API}; upgrade {distribution}"
        )
    if wrong := _malformed(method):
        return problem(wrong)
    if method.name != entry.name:
        return problem(f"{entry.value!r} is named {method.name!r}, which must equal the entry point's name")
    return method


def source_digest(cls: type) -> str:
    """SHA-256 of the source of a class's package: whoever changes its code must not get what the old code computed.

    Of a class without a file, as in a notebook, it is another one every time.
    """
    names = cls.__module__.split(".")
    # The outermost package that has a file: namespace packages have none, and hold others' code.
    modules = (sys.modules.get(".".join(names[:depth])) for depth in range(1, len(names) + 1))
    found = (getattr(module, "__file__", None) for module in modules)
    path = Path(next((file for file in found if file), ""))
    if not path.is_file():
        return uuid.uuid4().hex
    sources = sorted(path.parent.rglob("*.py")) if path.name == "__init__.py" else [path]
    content = [[source.name, sha256(source)] for source in sources]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _malformed(method: Method) -> str:
    """What of a method's fields is not of the type that it must be; empty where all are."""
    for what in ("tasks", "weights"):
        if not isinstance(getattr(method, what), Mapping):
            return f"its {what} must be a mapping, got {getattr(method, what)!r}"
    targets = {"config": method.config, **{part: getattr(method, part) for part in method.parts()}}
    for name, target in [*targets.items(), *method.tasks.items(), *method.weights.items()]:
        if not isinstance(target, str) or ":" not in target:
            return f"its {name} must be a string of a package or module, a colon and what is in it, got {target!r}"
    return ""

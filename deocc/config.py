"""Configuration: frozen dataclasses <-> TOML, with every key and every type checked.

A configuration is a frozen dataclass with a default for every field. A field is a ``str``, ``int``, ``float``,
``bool``, ``Path``, ``Literal``, another such dataclass, a ``tuple`` or a ``Mapping[str, ...]`` of these, or one of
these ``| None``. A TOML recipe holds only what differs from the defaults. TOML has no null: where a field may be None,
the string ``"none"`` stands for it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import importlib.resources
import itertools
import json
import re
import sys
import tomllib
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar, Union, cast

from deocc.errors import InputError, UsageError

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable

__all__ = [
    "did_you_mean",
    "from_dict",
    "from_toml",
    "recipe",
    "recipes",
    "replace",
    "to_dict",
    "to_toml",
]

T = TypeVar("T")


class HasConfig(Protocol):
    """What :func:`recipe` needs of a method: :class:`deocc.method.Method` is one."""

    @property
    def name(self) -> str: ...

    def resolve(self, part: str) -> type: ...


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The end of an error sentence about an unknown ``word``: a suggestion if one is near, else what there is."""
    names = sorted(known)
    near = difflib.get_close_matches(word, names, n=1)
    if near:
        return f"did you mean {near[0]!r}?"
    return f"there is {', '.join(names)}" if names else "there is none"


def from_dict(cls: type[T], values: Mapping[str, Any], *, source: str = "") -> T:
    """Build ``cls`` from plain values: nested mappings, lists, strings, numbers; what is missing keeps its default.

    Args:
        cls: a dataclass with a default for every field.
        values: field name -> value.
        source: where the values come from, put in front of an error's sentence.

    Raises:
        UsageError: an unknown key, or a value of the wrong type; the sentence names the key in dotted form.
    """
    _require_dataclass(cls)
    return cast(T, _build(cls, values, "", f"{source}: " if source else ""))


def to_dict(config: Any) -> dict[str, Any]:
    """The configuration as plain JSON-able values, every field included; :func:`from_dict` reads it back."""
    _require_dataclass(type(config))
    return {field.name: _plain(getattr(config, field.name)) for field in dataclasses.fields(config) if field.init}


def from_toml(cls: type[T], source: Path | str) -> T:
    """Build ``cls`` from TOML.

    Args:
        cls: a dataclass with a default for every field.
        source: a ``Path`` is a file to read; a ``str`` is the TOML text itself.

    Raises:
        InputError: the file cannot be read, or the text is not TOML.
        UsageError: an unknown key, or a value of the wrong type.
    """
    if isinstance(source, str):
        return _from_text(cls, source, "")
    try:
        text = source.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise InputError(f"{source}: a TOML file was wanted, but it cannot be read: {reason}") from error
    return _from_text(cls, text, str(source))


def to_toml(config: Any) -> str:
    """The configuration as TOML, every field included; :func:`from_toml` reads it back to an equal object."""
    return "\n".join(_emit_table(to_dict(config), ())).lstrip("\n") + "\n"


def replace(config: T, changes: Mapping[str, Any]) -> T:
    """A copy of ``config`` with some fields changed, as ``--set key=value`` does.

    Args:
        config: a configuration; it is not modified.
        changes: dotted key (``"training.steps"``) -> value. A string is read as a TOML value (``"3"``, ``"[1, 2]"``,
            ``"true"``), or taken as it is where the field holds text. A mapping changes only the keys that it names.
            A dataclass sees all changes to it at once, so that what it refuses alone may be changed together.

    Raises:
        UsageError: an unknown key, or a value of the wrong type.
    """
    _require_dataclass(type(config))
    return cast(T, _replaced(config, type(config), [(key.split("."), value) for key, value in changes.items()], ""))


def recipes(method: HasConfig) -> tuple[str, ...]:
    """The names of the recipes packaged with a method: ``recipes/<name>.toml`` in its configuration's package."""
    folder = _recipe_folder(method)
    if folder is None:
        return ()
    return tuple(sorted(item.name.removesuffix(".toml") for item in folder.iterdir() if item.name.endswith(".toml")))


def recipe(method: HasConfig, name_or_path: str | Path | None = None) -> Any:
    """A method's configuration as a recipe sets it.

    Args:
        method: a :class:`deocc.method.Method`.
        name_or_path: the name of a packaged recipe (:func:`recipes`), a TOML file, or None for the defaults. A string
            that ends in ``.toml`` or holds a separator is a file.

    Raises:
        UsageError: there is no such recipe, or it has an unknown key or a value of the wrong type.
        InputError: the file cannot be read or is not TOML.
    """
    cls = method.resolve("config")
    if name_or_path is None:
        return from_dict(cls, {})
    if isinstance(name_or_path, Path) or name_or_path.endswith(".toml") or "/" in name_or_path or "\\" in name_or_path:
        return from_toml(cls, Path(name_or_path))
    folder, known = _recipe_folder(method), recipes(method)
    if folder is None or name_or_path not in known:
        raise UsageError(
            f"method {method.name!r} has no recipe {name_or_path!r}; {did_you_mean(name_or_path, known)}"
            " (a file is given as a path that ends in .toml)"
        )
    text = folder.joinpath(f"{name_or_path}.toml").read_text(encoding="utf-8")
    return _from_text(cls, text, f"recipe {name_or_path!r} of method {method.name!r}")


def _from_text(cls: type[T], text: str, source: str) -> T:
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{source or 'the text'} is not TOML: {error}") from error
    return from_dict(cls, values, source=source)


def _recipe_folder(method: HasConfig) -> Traversable | None:
    module = method.resolve("config").__module__
    for package in dict.fromkeys((sys.modules[module].__package__ or module, module.partition(".")[0])):
        # A single module has no folder.
        with contextlib.suppress(ModuleNotFoundError, TypeError):
            folder = importlib.resources.files(package).joinpath("recipes")
            if folder.is_dir():
                return folder
    return None


def _require_dataclass(cls: type) -> None:
    if not dataclasses.is_dataclass(cls):
        raise UsageError(f"a configuration must be a dataclass, got {cls.__name__}")


def _build(cls: Any, values: Any, prefix: str, source: str) -> Any:
    if isinstance(values, cls):
        return values
    if not isinstance(values, Mapping):
        raise UsageError(f"{source}{prefix.rstrip('.')!r} must be a table of {cls.__name__}, got {_shown(values)}")
    hints = _hints(cls)
    for key in values:
        if key not in hints:
            raise UsageError(f"{source}unknown key {prefix + str(key)!r}; {did_you_mean(str(key), hints)}")
    built = {key: _coerce(hints[key], value, prefix + key, source) for key, value in values.items()}
    try:
        return cls(**built)
    except UsageError:
        raise
    except (TypeError, ValueError) as error:
        raise UsageError(f"{source}{cls.__name__} refuses its values: {error}") from error


def _replaced(current: Any, hint: Any, changes: Sequence[tuple[list[str], Any]], prefix: str) -> Any:
    """``current`` with the values at several paths changed at once; dataclasses and mappings are walked into."""
    grouped: dict[str, list[tuple[list[str], Any]]] = {}
    for path, value in changes:
        grouped.setdefault(path[0], []).append((path[1:], value))
    new = {}
    if dataclasses.is_dataclass(current) and not isinstance(current, type):
        hints = _hints(type(current))
        for key, group in grouped.items():
            if key not in hints:
                raise UsageError(f"unknown key {prefix + key!r}; {did_you_mean(key, hints)}")
            new[key] = _changed(getattr(current, key), hints[key], group, prefix + key)
        try:
            return dataclasses.replace(current, **new)
        except UsageError:
            raise
        except (TypeError, ValueError) as error:
            names = ", ".join(repr(prefix + key) for key in new)
            raise UsageError(f"{type(current).__name__} refuses {names}: {error}") from error
    if isinstance(current, Mapping):
        for key, group in grouped.items():
            if group[0][0] and key not in current:
                raise UsageError(f"unknown key {prefix + key!r}; {did_you_mean(key, map(str, current))}")
            new[key] = _changed(current.get(key), _mapping_value(hint), group, prefix + key)
        return {**current, **new}
    raise UsageError(
        f"unknown key {prefix + next(iter(grouped))!r}: {prefix.rstrip('.')!r} is {_shown(current)} and has no keys"
    )


def _changed(old: Any, hint: Any, changes: Sequence[tuple[list[str], Any]], name: str) -> Any:
    """One value with changes inside it or of it as a whole, in their order."""
    for whole, group in itertools.groupby(changes, key=lambda change: not change[0]):
        if whole:
            for _, value in group:
                old = _merged(old, hint, value, name)
        else:
            old = _replaced(old, hint, list(group), name + ".")
    return old


def _merged(old: Any, hint: Any, value: Any, name: str) -> Any:
    if isinstance(value, str):
        value = _parse(value, hint)
    if isinstance(value, Mapping) and dataclasses.is_dataclass(old) and not isinstance(old, type):
        return _replaced(old, type(old), [([str(key)], item) for key, item in value.items()], name + ".")
    return _coerce(hint, value, name, "")


def _parse(text: str, hint: Any) -> Any:
    """Read text as a TOML value; where the field wants text, only a quoted one is unwrapped."""
    try:
        value = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    if set(value) != {"value"}:
        return text
    if _takes_text(hint) and not isinstance(value["value"], str) and not _is_option(hint, value["value"]):
        return text
    return value["value"]


def _takes_text(hint: Any) -> bool:
    origin = typing.get_origin(hint)
    if origin in (Union, types.UnionType):
        return any(_takes_text(option) for option in typing.get_args(hint))
    if origin is Literal:
        return any(isinstance(option, str) for option in typing.get_args(hint))
    return hint in (str, Path)


def _is_option(hint: Any, value: Any) -> bool:
    """Whether a Literal, also one in a union, names this very value."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        return any(_is_option(option, value) for option in args)
    return origin is Literal and any(value == option and type(value) is type(option) for option in args)


def _coerce(hint: Any, value: Any, name: str, source: str) -> Any:
    """``value`` as the type ``hint`` wants it, or a UsageError that names the key, the wanted and the given."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin in (Union, types.UnionType):
        if type(None) in args and (value is None or value == "none"):
            return None
        options = [option for option in args if option is not type(None)]
        if len(options) == 1 and (dataclasses.is_dataclass(options[0]) or typing.get_origin(options[0])):
            return _coerce(options[0], value, name, source)  # its error may be about a key inside
        for option in options:
            with contextlib.suppress(UsageError):
                return _coerce(option, value, name, source)
    elif origin is Literal:
        if _is_option(hint, value):
            return value
        wanted = " or ".join(repr(option) for option in args)
        raise UsageError(f"{source}{name!r} must be {wanted}, got {_shown(value)}")
    elif dataclasses.is_dataclass(hint):
        return _build(hint, value, name + ".", source)
    elif origin is tuple or hint is tuple:
        if isinstance(value, (list, tuple)):
            if len(args) == 2 and args[1] is Ellipsis:
                return tuple(_coerce(args[0], item, f"{name}[{i}]", source) for i, item in enumerate(value))
            if not args:
                return tuple(value)
            if len(args) == len(value):
                pairs = zip(args, value, strict=True)
                return tuple(_coerce(arg, item, f"{name}[{i}]", source) for i, (arg, item) in enumerate(pairs))
    elif origin is not None and isinstance(origin, type) and issubclass(origin, Mapping):
        if isinstance(value, Mapping):
            return {str(k): _coerce(args[1], item, f"{name}.{k}", source) for k, item in value.items()}
    elif hint is float:
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return float(value)
    elif hint is int:
        if isinstance(value, int) and not isinstance(value, bool):
            return value
    elif hint is Path:
        if isinstance(value, (str, Path)):
            return Path(value)
    elif hint in (str, bool):
        if isinstance(value, hint):
            return value
    else:
        raise UsageError(f"{source}{name!r} has the type {_named(hint)}, which a configuration cannot hold")
    raise UsageError(f"{source}{name!r} must be {_named(hint)}, got {_shown(value)}")


def _hints(cls: Any) -> dict[str, Any]:
    hints = typing.get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls) if field.init}


def _mapping_value(hint: Any) -> Any:
    for option in (hint, *typing.get_args(hint)):
        origin, args = typing.get_origin(option), typing.get_args(option)
        if isinstance(origin, type) and issubclass(origin, Mapping):
            return args[1]
    return Any


def _named(hint: Any) -> str:
    """A type as a reader of an error would write it."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join("none" if option is type(None) else _named(option) for option in args)
    if origin is tuple:
        if args[-1] is Ellipsis:
            return f"a list of {_named(args[0])}"
        return f"a list of {len(args)} values ({', '.join(map(_named, args))})"
    if origin is not None and args:
        return f"a table of {_named(args[-1])}"
    plain = {str: "text", int: "an integer", float: "a number", bool: "true or false", Path: "a path", tuple: "a list"}
    return plain.get(hint) or str(getattr(hint, "__name__", hint))


def _shown(value: Any) -> str:
    if value is None:
        return "none"
    shown = repr(value)
    return f"{shown if len(shown) <= 60 else shown[:57] + '...'} ({type(value).__name__})"


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return to_dict(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    if isinstance(value, Path):
        return value.as_posix()
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    raise UsageError(f"a configuration cannot hold {_shown(value)}")


def _emit_table(table: Mapping[str, Any], path: tuple[str, ...]) -> list[str]:
    nested = {key: value for key, value in table.items() if isinstance(value, Mapping)}
    lines = [f"{_emit_key(key)} = {_emit(value)}" for key, value in table.items() if key not in nested]
    if path and (lines or not nested):
        lines = ["", f"[{'.'.join(map(_emit_key, path))}]", *lines]
    for key, value in nested.items():
        lines += _emit_table(value, (*path, key))
    return lines


def _emit_key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else _emit(key)


def _emit(value: Any) -> str:
    if value is None:
        return '"none"'
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, list):
        return "[" + ", ".join(map(_emit, value)) + "]"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_emit_key(key)} = {_emit(item)}" for key, item in value.items()) + "}"
    return repr(value)

"""The errors deocc raises on purpose.

Each carries one sentence that says what was wrong, what was wanted and what came. The command line prints that
sentence without a traceback (unless ``--debug``) and exits with the class's ``exit_code``.
"""

from __future__ import annotations

import re

_CONTROL = re.compile(r"[\x00-\x1f\x7f\x85\u2028\u2029]")


class DeoccError(Exception):
    """Base of every error that deocc raises on purpose. What a file's name brings along stays on the one line."""

    exit_code = 1

    def __init__(self, sentence: str = "") -> None:
        super().__init__(_CONTROL.sub(lambda found: repr(found[0])[1:-1], sentence))


class UsageError(DeoccError, ValueError):
    """The call itself is wrong: an unknown name, an unknown key, arguments that do not fit together."""

    exit_code = 2


class InputError(DeoccError, ValueError):
    """A file or an array that was handed in cannot be used."""


class PluginError(DeoccError):
    """An installed plugin is broken, or two plugins claim one name."""


class WeightsError(InputError):
    """A weights file is missing, truncated, a pickle, or belongs to another method."""


class MissingDependencyError(DeoccError, ImportError):
    """An optional dependency is needed and is not installed."""

"""The errors deocc raises on purpose.

Each carries one sentence that says what was wrong, what was wanted and what came. The command line prints that
sentence without a traceback (unless ``--debug``) and exits with the class's ``exit_code``.
"""

from __future__ import annotations


class DeoccError(Exception):
    """Base of every error that deocc raises on purpose."""

    exit_code = 1


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

"""Which model pack."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Config:
    """Which model pack: the folder ``root/models/pack``, or, where there is none, ``pack`` itself.

    Attributes:
        pack: the pack's name, such as ``buffalo_l``, or its folder.
        root: where insightface keeps what its user downloads.
    """

    pack: str = "buffalo_l"
    root: Path = Path("~/.insightface")

    @property
    def folder(self) -> Path:
        """Where the pack's files are, whether or not they are there."""
        given, installed = Path(self.pack).expanduser(), self.root.expanduser() / "models" / self.pack
        return given if given.is_dir() and not installed.is_dir() else installed

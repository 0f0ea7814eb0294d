"""Which model pack."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Config:
    """Which model pack: the folder ``root/models/pack``, or ``pack`` itself where that is a folder.

    Attributes:
        pack: the pack's name, such as ``buffalo_l``, or its folder.
        root: where insightface keeps what its user downloads.
    """

    pack: str = "buffalo_l"
    root: Path = Path("~/.insightface")

    @property
    def folder(self) -> Path:
        """Where the pack's files are, whether or not they are there."""
        given = Path(self.pack).expanduser()
        return given if given.is_dir() else self.root.expanduser() / "models" / self.pack

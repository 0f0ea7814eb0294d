"""The configuration of MobileFaceNet."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Config:
    """Nothing to choose: the network is the one that the packaged weights were trained in.

    The weights file fixes every width, and the alignment (112x112, the five-point ArcFace template) is part of it too.
    """

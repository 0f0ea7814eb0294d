"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent


@pytest.fixture(scope="session")
def shared() -> Callable[[str], Path]:
    """``shared("faces/lfw")``: a path in the data folder, or a skip that says what is missing.

    The folder is ``$DEOCC_DATA``, else ``shared`` beside the repository.
    """
    root = Path(os.environ.get("DEOCC_DATA", REPOSITORY.parent / "shared"))

    def find(relative: str) -> Path:
        path = root / relative
        if not path.exists():
            pytest.skip(f"needs {relative} in the data folder (DEOCC_DATA or ../shared), which is not on this machine")
        return path

    return find

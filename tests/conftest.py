"""Plugins made for a test: the tests of the core need no plugin that is really installed."""

from __future__ import annotations

import importlib
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

Install = Callable[..., None]

METHOD = """
    from deocc.method import Method

    METHOD = Method(
        api={api},
        name="{name}",
        summary="made for a test",
        licence="Apache-2.0",
        config="{module}_parts:Config",
        {extra}
    )
"""

PARTS = """
    from dataclasses import dataclass, field

    import torch
    from torch import nn

    from deocc.method import Occluded, Occluder, Recognizer, Restored, Restorer, Task, Training


    @dataclass(frozen=True)
    class Config:
        width: int = 4
        gain: float = 1.0


    class Halve(Restorer):
        crop_size = 16

        def restore(self, image, occlusion):
            return Restored(image * 0.5 * self.config.gain, occlusion)


    class Learned(Restorer):
        needs_weights = True
        crop_size = 16

        def __init__(self, config):
            super().__init__(config)
            self.network = nn.Sequential(nn.Conv2d(3, config.width, 1), nn.BatchNorm2d(config.width))

        def restore(self, image, occlusion):
            return Restored(self.network(image)[:, :3].sigmoid(), occlusion)


    class Embed(Recognizer):
        crop_size = 16
        differentiable = True

        def embed(self, image):
            return image.flatten(1)


    class Grey(Occluder):
        crop_size = 16

        def occlude(self, image, seed):
            generator = torch.Generator().manual_seed(seed)
            occlusion = (torch.rand(1, 1, *image.shape[2:], generator=generator) < 0.5).float()
            occlusion = occlusion.expand(len(image), -1, -1, -1).clone()
            occluded = torch.where(occlusion == 1, torch.rand((), generator=generator), image)
            return Occluded(occluded, occlusion, ({"seed": seed},) * len(image))
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """``install("mine", version="1.0", api=1, extra="restorer=...", parts=..., method=...)`` installs a plugin.

    Modules and the metadata of the distribution ``fake-<name>`` (or ``distribution``) go to a folder on ``sys.path``,
    for the time of the test: ``fake_<name>`` with METHOD, and ``fake_<name>_parts``. In ``extra`` and ``method``,
    ``{module}`` stands for ``fake_<name>``. ``more`` is added to the parts, and ``edits`` (old, new) replaces pieces.
    """
    folder = tmp_path / "plugins"
    folder.mkdir()
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(folder))

    def install(
        name: str,
        *,
        distribution: str = "",
        version: str = "1.0",
        api: int = 1,
        named: str = "",
        extra: str = 'restorer="{module}_parts:Halve",',
        parts: str = PARTS,
        more: str = "",
        method: str = METHOD,
        edits: Sequence[tuple[str, str]] = (),
    ) -> None:
        distribution = distribution or f"fake-{name}"
        module = distribution.replace("-", "_")
        words = {"api": api, "name": named or name, "module": module, "extra": extra.format(module=module)}
        sources = [textwrap.dedent(method).format(**words), textwrap.dedent(parts) + textwrap.dedent(more)]
        for old, new in edits:
            assert any(old in source for source in sources), f"nothing to edit: {old}"
            sources = [source.replace(old, new) for source in sources]
        (folder / f"{module}.py").write_text(sources[0])
        (folder / f"{module}_parts.py").write_text(sources[1])
        info = folder / f"{module}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
        (info / "entry_points.txt").write_text(f"[deocc.methods]\n{name} = {module}:METHOD\n")

        importlib.invalidate_caches()

    yield install
    for name in set(sys.modules) - before:
        if name.startswith("fake_"):
            del sys.modules[name]

"""What a training run tells while it runs: log.jsonl, the progress bar, and the pictures of a fixed batch."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import cv2
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor

from deocc.errors import InputError
from deocc.files import atomic_write
from deocc.images import to_uint8, write_image

__all__ = ["Bar", "Log", "write_previews"]


class Log:
    """``log.jsonl``: one JSON object a line, in the order of the steps.

    Every line has ``step``, ``epoch`` and ``seconds`` (spent training, over all runs). A line of training adds
    ``images_per_second`` and ``train`` (the means of what the steps logged since the line before); a line of evaluation
    adds ``evaluation``.

    Args:
        path: the file. It is continued after ``step``: lines beyond that, which a killed run has left, are dropped.
        step: the step from which training goes on.
    """

    def __init__(self, path: Path, step: int) -> None:
        if path.exists():
            kept = [
                line
                for line in path.read_text(encoding="utf-8", errors="replace").splitlines()
                if _step_of(line) <= step
            ]
            with atomic_write(path) as file:
                file.write("".join(line + "\n" for line in kept).encode())
        try:
            self._file = path.open("a", encoding="utf-8")
        except OSError as error:
            raise InputError(f"{path} cannot be written ({error.strerror})") from error

    def write(self, **line: Any) -> None:
        """Append one line and hand it to the system, so that a kill of this process cannot take it back."""
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _step_of(line: str) -> float:
    """The step of a log line; infinite for one that a kill has cut off."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf


class Bar:
    """Progress on standard error: a bar with rate and remaining time, or plain lines where that is not a terminal."""

    def __init__(self, label: str, step: int, steps: int, *, shown: bool) -> None:
        self._console = Console(stderr=True, quiet=not shown)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]:.1f} images/s"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[figures]}"),
            console=self._console,
            disable=not (shown and self._console.is_terminal),
        )
        self._task = self._progress.add_task(label, total=steps, completed=step, rate=0.0, figures="")
        self._label, self._steps = label, steps

    def __enter__(self) -> Bar:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def advance(self, step: int) -> None:
        """Show that ``step`` steps are done."""
        self._progress.update(self._task, completed=step)

    def report(self, step: int, rate: float, figures: Mapping[str, float], left: float) -> None:
        """Show the rate (images a second), the newest figures and the seconds left."""
        text = " ".join(f"{name}={value:.4g}" for name, value in figures.items())
        self._progress.update(self._task, completed=step, rate=rate, figures=text[:80])
        if not self._console.is_terminal:
            done = f"{self._label} {step}/{self._steps}  {rate:.1f} images/s  {left / 60:.1f} min left"
            self._console.print(f"{done}  {text}", soft_wrap=True, markup=False, highlight=False)

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        self._console.print(text, soft_wrap=True, markup=False, highlight=False)


def write_previews(path: Path, rows: Mapping[str, Tensor]) -> None:
    """Write labelled rows of pictures as one PNG: one row for each label, its pictures side by side.

    Args:
        path: a ``.png`` file; it is replaced.
        rows: label -> (N, 3, H, W) or (N, 1, H, W) in [0, 1].
    """
    gutter, strips = 110, []
    for label, pictures in rows.items():
        pixels = to_uint8(pictures.detach().float().nan_to_num(0).clamp(0, 1).expand(-1, 3, -1, -1))
        enlarged = max(1, round(64 / pixels.shape[1]))
        pixels = pixels.repeat(enlarged, axis=1).repeat(enlarged, axis=2)
        margin = np.full((pixels.shape[1], gutter, 3), 255, np.uint8)
        cv2.putText(margin, label[:16], (4, 18), cv2.FONT_HERSHEY_SIMPLEX, 0.4, (0, 0, 0), 1, cv2.LINE_AA)
        strips.append(np.concatenate([margin, *pixels], axis=1))
    width = max(strip.shape[1] for strip in strips)
    strips = [np.pad(s, ((0, 2), (0, width - s.shape[1]), (0, 0)), constant_values=255) for s in strips]
    write_image(path, np.concatenate(strips), overwrite=True)

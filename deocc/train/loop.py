"""The training loop: data, steps, log, evaluation, pictures, checkpoints. What a step does is the task's business."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
import re
import time
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from deocc import config, weights
from deocc.data import PackedFaces
from deocc.errors import InputError, PluginError, UsageError
from deocc.files import locked, make_folder
from deocc.method import Task, Training
from deocc.train.checkpoint import Checkpoints
from deocc.train.engine import FitEngine, SingleDevice
from deocc.train.journal import Bar, Log, write_previews
from deocc.train.stream import BatchStream, loader, seed_everything

__all__ = ["fit"]

PREVIEWS = 8
"""Pictures in a row of the contact sheet."""

FREE = ("steps", "workers", "log_every", "evaluate_every", "evaluate_images", "checkpoint_every")
"""Fields of Training that a resumed run may change: what a step does is the same, there are only more of them."""

TEMPORARY = re.compile(r"\..+\.[0-9a-f]{12}\.\w+")
"""Names of the files that :func:`deocc.files.atomic_write` writes to before it renames them."""


def fit(
    task: Task,
    train_faces: Any,
    eval_faces: Any | None,
    out: Path,
    *,
    engine: FitEngine | None = None,
    device: str = "cpu",
    resume: bool = True,
    progress: bool = True,
    stop_after: int | None = None,
    card: Mapping[str, Any] | None = None,
    started: Mapping[str, str] | None = None,
) -> Path:
    """Train a task; killed at any moment and called again, go on from the last checkpoint to the very same weights.

    Before every step the global generators of Python, NumPy and torch are seeded from (seed, step, rank), and step
    number i sees the examples at places i * batch to (i + 1) * batch of a stream that (seed, epoch) shuffles. So a
    step depends on the networks, the optimizers and its number alone: these are what a checkpoint holds. On the CPU,
    with the same number of threads, a resumed run is bit-equal to one that was never interrupted.

    In ``out``: ``log.jsonl``, ``checkpoints/`` (the last two), ``previews/step-<n>.png``, and the exported parts with
    their cards in ``last/`` (at every evaluation and at the end) and ``best/`` (where ``Task.best`` names a figure).

    Args:
        task: what is trained; its ``training`` says how long.
        train_faces, eval_faces: packed faces for ``task.dataset``; ``eval_faces`` None skips evaluation.
        out: the run's folder; made if it is missing.
        engine: None for :class:`SingleDevice` on ``device`` in the task's precision, or a Lightning Fabric object
            (already launched, of the task's precision) for many processes; each then gets its share of a batch, and the
            first one evaluates and writes. The folder must be one that all of them see. Fabric rounds what a trained
            network is given to its precision, before anything is computed; :class:`SingleDevice` does not.
        device: for the default engine.
        resume: True goes on from the checkpoints in ``out``, if there are any; False refuses a folder that has some.
        progress: show a progress bar on standard error.
        stop_after: do at most so many steps in this call, write a checkpoint and return.
        card: what the exports' cards say beside figures and steps: ``method`` above all (default: the task's package).
        started: part -> SHA-256 of the weights that the task starts from, which a resumed run must start from too.

    Returns:
        The folder of the exports to use: ``out/best`` where there is one, else ``out/last``.

    Raises:
        UsageError: the settings cannot be trained with, ``out`` is in use by another process, or its checkpoints are of
            another method or configuration, of other faces, or of a run that started from other weights.
        InputError: every checkpoint is damaged, a loss is not finite (the sentence names the step; the last checkpoint
            stays as it was), or ``out`` cannot be written.
        PluginError: the task does not keep its contract: networks or optimizers that are not its attributes, a log that
            is no number, or no figure of the name in ``best``.
    """
    out = Path(out)
    training = task.training
    if engine is None:
        engine = SingleDevice(device, training.precision)
    check_training(training, engine)
    if engine.is_global_zero:
        make_folder(out)
    with locked(out, "training") if engine.is_global_zero else contextlib.nullcontext():
        run = _Run(
            task, train_faces, eval_faces, out, engine, resume=resume, card=dict(card or {}), started=started or {}
        )
        with Bar(out.name, run.step, training.steps, shown=progress and engine.is_global_zero) as bar:
            run.go(bar, training.steps if stop_after is None else min(training.steps, run.step + stop_after))
    return out / ("best" if task.best and (out / "best").is_dir() else "last")


class _Run:
    """One call of :func:`fit`: the task on its engine, the place in the stream, and what is written."""

    def __init__(
        self,
        task: Task,
        train_faces: Any,
        eval_faces: Any | None,
        out: Path,
        engine: FitEngine,
        *,
        resume: bool,
        card: dict[str, Any],
        started: Mapping[str, str],
    ) -> None:
        self.task, self.out, self.engine, self.training = task, out, engine, task.training
        self.card = {
            "method": type(task).__module__.partition(".")[0],
            "config": config.to_dict(task.config) if dataclasses.is_dataclass(task.config) else {},
            **card,
        }
        # Any: a map-style data set has a length, which torch's Dataset does not declare.
        dataset: Any = task.dataset(train_faces, train=True)
        held_out: Any = None if eval_faces is None else task.dataset(eval_faces, train=False)
        for what, examples in (("train", dataset), ("evaluate", held_out)):
            if examples is not None and len(examples) == 0:
                raise UsageError(f"{out}: there are no examples to {what} on")
        self.dataset, self.held_out = dataset, held_out
        self.networks, self.optimizers = _named(task, task.networks()), _named(task, task.optimizers())
        self.identity = {
            "method": self.card["method"],
            "task": f"{type(task).__module__}:{type(task).__qualname__}",
            "training": _identity(self.training),
            "config": _identity(task.config),
            "examples": len(self.dataset),
            "training faces": _content(train_faces),
            "evaluation faces": _content(eval_faces),
            "training labels": _labels(train_faces),
            "start": dict(started),
        }
        self.step = 0
        self.seconds = 0.0
        self.best: float | None = None
        self.scores: dict[str, float | None] = {}
        self.checkpoints = Checkpoints(out / "checkpoints")
        self.wrapped: dict[str, Any] = {}
        self._restore(resume)
        self.log = Log(out / "log.jsonl", self.step) if engine.is_global_zero else None

    def go(self, bar: Bar, stop: int) -> None:
        """Train up to step ``stop``."""
        with contextlib.closing(self.log) if self.log is not None else contextlib.nullcontext():
            self._go(bar, stop)

    def _go(self, bar: Bar, stop: int) -> None:
        training, engine, first = self.training, self.engine, self.step
        rank, world = engine.global_rank, engine.world_size
        stream = BatchStream(len(self.dataset), training.batch, training.seed, first, stop, rank=rank, world=world)
        batches = iter(loader(self.dataset, stream, workers=training.workers, device=engine.device))
        pending: list[Mapping[str, Tensor | float]] = []
        if first == training.steps:
            if engine.is_global_zero and not self._exported():  # training.steps was lowered to where the run stood
                if self.held_out is not None:
                    self._evaluate(bar)
                self._export("last")
            engine.barrier()
        started = since = time.monotonic()
        while self.step < stop:
            batch = engine.to_device(next(batches))
            seed_everything(training.seed, self.step, rank)
            pending.append(self.task.step(batch, engine, self.step))
            self.step += 1
            bar.advance(self.step)
            if engine.device.type == "cpu":
                # Elsewhere looking at a value would make the host wait for the device after every step.
                _figures(pending[-1], self.step)
            final = self.step == training.steps
            evaluate = self.held_out is not None and (final or self.step % training.evaluate_every == 0)
            save = self.step == stop or self.step % training.checkpoint_every == 0
            if evaluate or save or self.step % training.log_every == 0:
                means = _means(pending, self.step)
                now = time.monotonic()
                rate = len(pending) * training.batch / max(now - since, 1e-9)
                self.seconds += now - since
                self._line(images_per_second=round(rate, 2), train=means)
                left = (now - started) / (self.step - first) * (training.steps - self.step)
                bar.report(self.step, rate, means, left)
                pending, since = [], now
            if evaluate or final or save:
                self._check_finite()
            if evaluate:
                self._evaluate(bar)
            if evaluate or final:
                self._export("last")
            if save:
                self._save()
            if evaluate or save:
                engine.barrier()
                # Evaluation and writing are not training: neither the rate nor the seconds count them.
                since = time.monotonic()

    def _line(self, **content: Any) -> None:
        if self.log is not None:
            epoch = round(self.step * self.training.batch / len(self.dataset), 4)
            self.log.write(step=self.step, epoch=epoch, seconds=round(self.seconds, 3), **content)

    def _restore(self, resume: bool) -> None:
        """Put the task on the engine's device and give it the newest checkpoint's state."""
        state = None
        if self.engine.is_global_zero:
            for path in self.out.rglob(".*"):
                if TEMPORARY.fullmatch(path.name):
                    path.unlink()  # a killed run was writing it
            if not resume and self.checkpoints.paths():
                raise UsageError(f"{self.out} already holds a training run; resume it or choose another folder")
            state = self.checkpoints.latest()
        self.engine.barrier()
        if not self.engine.is_global_zero:
            state = self.checkpoints.latest()
        if state is not None:
            # What an earlier version did not write down is not asked for.
            difference = _difference({**self.identity, **state["identity"]}, self.identity)
            if difference:
                finished = state["step"] >= self.training.steps
                hint = " (it is finished: --stages with the names of the later ones leaves it as it is)"
                raise UsageError(
                    f"{self.out} holds another training run, which cannot be resumed: {difference}"
                    f"{hint if finished else ''}"
                )
            if state["step"] > self.training.steps:
                raise UsageError(f"{self.out} is at step {state['step']}, beyond training.steps {self.training.steps}")
            if state["steps"] != self.training.steps:
                message = f"{self.out}: training.steps was {state['steps']} and is {self.training.steps} now"
                warnings.warn(f"{message}; schedules follow the new number from here on", RuntimeWarning, stacklevel=4)
        for name, network in self.networks.items():
            if state is not None:
                self._load(network, name, state["networks"])
            # A network without trainable parameters has nothing to synchronise, and DDP refuses it.
            if any(parameter.requires_grad for parameter in network.parameters()):
                self.wrapped[name] = self.engine.setup_module(network)
            else:
                self.wrapped[name] = network.to(self.engine.device)
        for name, optimizer in self.optimizers.items():
            # Before wrapping: an engine's wrapper may hold on to the state as it finds it.
            if state is not None:
                self._load(optimizer, name, state["optimizers"])
            self.wrapped[name] = self.engine.setup_optimizers(optimizer)
        for name, wrapped in self.wrapped.items():
            setattr(self.task, name, wrapped)
        if state is not None:
            self.step, self.seconds = state["step"], state["seconds"]
            self.scores = state["scores"]
            # The best of another figure, or over other faces, is no measure for this one.
            measured = state.get("best of", self.task.best), state.get("best over", self.training.evaluate_images)
            self.best = state["best"] if measured == (self.task.best, self.training.evaluate_images) else None

    def _load(self, thing: Any, name: str, states: Mapping[str, Any]) -> None:
        try:
            thing.load_state_dict(states[name])
        except (RuntimeError, ValueError, KeyError) as error:
            reason = " ".join(str(error).split())
            raise UsageError(f"{self.out}: its checkpoint does not fit {name!r} of the task ({reason})") from error

    def _check_finite(self) -> None:
        """Before anything is written over what is good."""
        for name, network in self.networks.items():
            whole = [("parameter", key, torch.isfinite(value)) for key, value in network.named_parameters()]
            # A buffer may be a mask, which holds infinities.
            whole += [("buffer", key, ~torch.isnan(value)) for key, value in network.named_buffers()]
            for kind, key, good in whole:
                if not bool(good.all()):
                    what = f"{kind} {key} of network {name!r} is no longer finite"
                    raise InputError(f"training stopped at step {self.step}: {what} (the last checkpoint is good)")

    def _save(self) -> None:
        if not self.engine.is_global_zero:
            return
        self.checkpoints.save(
            self.step,
            {
                "identity": self.identity,
                "step": self.step,
                "steps": self.training.steps,
                "seconds": self.seconds,
                "best": self.best,
                "best of": self.task.best,
                "best over": self.training.evaluate_images,
                "scores": self.scores,
                "networks": {name: network.state_dict() for name, network in self.networks.items()},
                "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()},
            },
        )

    def _evaluate(self, bar: Bar) -> None:
        """Evaluate on the first process alone; the others wait at the barrier after it."""
        if not self.engine.is_global_zero:
            return
        training = self.training
        count = min(training.evaluate_images, len(self.held_out))
        indices = np.linspace(0, len(self.held_out) - 1, count).round().astype(int).tolist()
        groups = [indices[at : at + training.batch] for at in range(0, count, training.batch)]
        values: dict[str, list[tuple[int, float]]] = {}
        previews: Mapping[str, Tensor] = {}
        with self._plain():
            seed_everything("evaluation", training.seed)
            batches = loader(self.held_out, groups, workers=training.workers, device=self.engine.device)
            for number, (group, batch) in enumerate(zip(groups, batches, strict=True)):
                batch = self.engine.to_device(batch)
                for name, value in self.task.evaluate(batch).items():
                    values.setdefault(name, []).append((len(group), float(value)))
                if number == 0:
                    previews = {label: rows[:PREVIEWS] for label, rows in self.task.preview(batch).items()}
        self.scores = {}
        for name, pairs in values.items():
            mean = sum(images * value for images, value in pairs) / sum(images for images, _ in pairs)
            # JSON has no NaN and no infinity.
            self.scores[name] = mean if math.isfinite(mean) else None
        self._line(evaluation=self.scores)
        shown = (f"{name}={'nan' if value is None else format(value, '.4g')}" for name, value in self.scores.items())
        bar.say(f"step {self.step}: {' '.join(shown)}")
        if previews:
            folder = self.out / "previews"
            folder.mkdir(exist_ok=True)
            write_previews(folder / f"step-{self.step:08d}.png", previews)
        if self.task.best:
            name, sign = self.task.best.removeprefix("-"), -1 if self.task.best.startswith("-") else 1
            if name not in self.scores:
                given = ", ".join(self.scores) or "nothing"
                raise PluginError(
                    f"{type(self.task).__name__}.best is {self.task.best!r}, but evaluate() gives {given}"
                )
            score = self.scores[name]
            if score is not None and (self.best is None or sign * score > sign * self.best):
                self.best = score
                self._export("best")

    def _exported(self) -> bool:
        """Whether ``last`` holds the parts as they are at this step."""
        paths = sorted((self.out / "last").glob("*.safetensors"))
        return bool(paths) and all(weights.read_card(path).get("steps") == self.step for path in paths)

    def _export(self, folder: str) -> None:
        if not self.engine.is_global_zero:
            return
        with self._plain():
            exports = self.task.exports()
            (self.out / folder).mkdir(exist_ok=True)
            for part, tensors in exports.items():
                details = {"part": part, "steps": self.step, "scores": self.scores}
                weights.save(self.out / folder / f"{part}.safetensors", tensors, {**self.card, **details})

    @contextlib.contextmanager
    def _plain(self) -> Iterator[None]:
        """The task with its networks as they were before the engine wrapped them, in eval mode, without gradients."""
        modules = [module for network in self.networks.values() for module in network.modules()]
        modes = [module.training for module in modules]
        for name, network in self.networks.items():
            setattr(self.task, name, network.eval())
        try:
            with torch.no_grad():
                yield
        finally:
            for module, mode in zip(modules, modes, strict=True):
                module.training = mode
            for name in self.networks:
                setattr(self.task, name, self.wrapped[name])


def check_training(training: Training, engine: FitEngine) -> None:
    """Raise a UsageError unless a task can be trained so on that engine."""
    for name in ("steps", "batch", "log_every", "evaluate_every", "evaluate_images", "checkpoint_every"):
        if getattr(training, name) < 1:
            raise UsageError(f"training.{name} must be 1 or more, got {getattr(training, name)}")
    if training.workers < 0:
        raise UsageError(f"training.workers must be 0 or more, got {training.workers}")
    if training.batch % engine.world_size:
        raise UsageError(f"training.batch must be divisible by the {engine.world_size} processes, got {training.batch}")
    # Checkpoints and cards say training.precision; and gradients that a scaler holds scaled would be clipped so.
    plugin = getattr(getattr(engine, "strategy", None), "precision", engine)  # Fabric's, or SingleDevice itself
    computes = getattr(plugin, "precision", training.precision)
    if computes not in (training.precision, f"{training.precision}-true"):
        raise UsageError(
            f"training.precision must be that of the engine, which computes in {computes!r}, got {training.precision!r}"
        )


def _named(task: Task, things: Mapping[str, Any]) -> dict[str, Any]:
    """The networks or optimizers of a task, each of which must be the attribute of its name."""
    for name, thing in things.items():
        if getattr(task, name, None) is not thing:
            raise PluginError(f"{type(task).__name__}: {name!r} is not the attribute of that name, which it must be")
    return dict(things)


def _identity(value: Any) -> Any:
    """A configuration as plain values, without what a resumed run may change."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        skipped = FREE if isinstance(value, Training) else ()
        names = (field.name for field in dataclasses.fields(value) if field.name not in skipped)
        return {name: _identity(getattr(value, name)) for name in names}
    if isinstance(value, Mapping):
        return {str(key): _identity(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_identity(item) for item in value]
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def _content(faces: Any) -> str | None:
    """Which faces these are, in a few words; None of what is not packed faces."""
    if not isinstance(faces, PackedFaces):
        return None
    digest = hashlib.sha256(json.dumps([faces.digests, faces.names]).encode()).hexdigest()
    return f"{faces.title}, {len(faces)} faces, {digest[:12]}"


def _labels(faces: Any) -> str | None:
    """Whose faces these are, and what made their dense fields; None of what is not packed faces."""
    if not isinstance(faces, PackedFaces):
        return None
    content = [faces.field_model, faces.identity_names, faces.identities.tolist()]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:12]


def _difference(old: Any, new: Any, where: str = "") -> str:
    """Where two identities differ first, in words; empty where they do not."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in (*old, *(key for key in new if key not in old)):
            name = f"{where}.{key}".lstrip(".")
            if key not in new or key not in old:
                return f"{name} is only {'in the checkpoint' if key in old else 'here'}"
            if difference := _difference(old[key], new[key], name):
                return difference
        return ""
    return "" if old == new else f"{where} is {old!r} in the checkpoint and {new!r} here"


def _figures(logs: Mapping[str, Tensor | float], step: int) -> dict[str, float]:
    """What a step returned, as numbers, all of which must be finite."""
    figures = {}
    for name, value in logs.items():
        if isinstance(value, Tensor) and value.numel() != 1:
            raise PluginError(f"step {step}: the task logs {name} of shape {tuple(value.shape)}, which is not a scalar")
        figures[name] = float(value)
        if not math.isfinite(figures[name]):
            raise InputError(
                f"training stopped at step {step}: {name} is {figures[name]} (the last checkpoint is good)"
            )
    return figures


def _means(pending: list[Mapping[str, Tensor | float]], step: int) -> dict[str, float]:
    """The mean of each figure over the last steps, those that logged it."""
    values: dict[str, list[float]] = {}
    for number, logs in enumerate(pending, step - len(pending) + 1):
        for name, value in _figures(logs, number).items():
            values.setdefault(name, []).append(value)
    return {name: sum(these) / len(these) for name, these in values.items()}

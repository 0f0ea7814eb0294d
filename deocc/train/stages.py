"""A method's whole training: its stages one after the other, from names and paths to weights with a card."""

from __future__ import annotations

import contextlib
import dataclasses
import subprocess
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, entry_points, version
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from deocc import config as configuration
from deocc import plugins, weights
from deocc.data import PackedFaces, concatenate
from deocc.data.people import People, identity_digests, merged, read_people, training_people
from deocc.errors import InputError, UsageError, WeightsError
from deocc.files import atomic_write
from deocc.method import Method, Task, Training
from deocc.train.checkpoint import Checkpoints, read
from deocc.train.engine import FitEngine, SingleDevice
from deocc.train.loop import check_training, fit
from deocc.train.stream import seed_everything

__all__ = ["run", "train"]


def train(
    method: str,
    *,
    data: Sequence[Path | str],
    out: Path | str,
    eval_data: Sequence[Path | str] = (),
    hold_out: float = 0.0,
    recipe: str | Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    stages: Sequence[str] | None = None,
    start_from: Sequence[Path | str] = (),
    engine: FitEngine | None = None,
    device: str = "cpu",
    resume: bool = True,
    progress: bool = True,
) -> dict[str, Path]:
    """Train an installed method, as ``deocc train`` does.

    Args:
        method: its name, and settings of its configuration as :func:`deocc.plugins.parse` reads them.
        data, eval_data: folders written by ``deocc data pack``, to train on and to evaluate on (none: no evaluation).
        hold_out: share of the identities in ``data``, evenly spaced among them, to evaluate on and not to train on;
            instead of ``eval_data``.
        out: the run's folder; every stage has a folder in it, and the weights and ``config.toml`` are written to it.
        recipe: the name of a recipe packaged with the method, a TOML file, or None for the defaults.
        overrides: dotted configuration key -> value (text is read as TOML), applied after the recipe.
        stages: names of the stages to run; None runs all. A stage starts from those before it that ``out`` holds.
        start_from: weights of this method, one file for each part, that the first stage starts from; such as those of
            an earlier run, or the packaged ones, to be trained on other faces.
        engine: None computes in this process; a launched Lightning Fabric object, of the task's precision, in many.
        device: where to compute, without an engine.
        resume: True goes on where a run in ``out`` stopped; False refuses a folder that holds one.
        progress: show a progress bar on standard error.

    Returns:
        part -> its weights file, with its card beside it.

    Raises:
        UsageError: an unknown method, recipe, key, stage or device, no data, both ``eval_data`` and ``hold_out``, a
            share outside [0, 0.5], or another run in ``out``.
        InputError: data or checkpoints that cannot be read, or a loss that is not finite.
    """
    name, changes = plugins.parse(method)
    changes = {**changes, **(overrides or {})}
    found = plugins.get(name)
    settings = configuration.replace(configuration.recipe(found, recipe), changes)
    if not data:
        raise UsageError(f"training {name} needs at least one folder of packed faces, got none")
    train_faces = concatenate([PackedFaces(path) for path in data])
    eval_faces = concatenate([PackedFaces(path) for path in eval_data]) if eval_data else None
    title = f"{train_faces.title}: {len(train_faces)} faces"
    if hold_out:
        if eval_data:
            raise UsageError("give faces to evaluate on or a share to hold out, got both")
        train_faces, eval_faces = _hold_out(train_faces, hold_out)
        title = f"{title}, {len(eval_faces)} of them held out"
    trained = [training_people(faces) for faces in (train_faces, eval_faces) if faces]
    if eval_data:
        _warn_known(*trained)
    changed = "".join(f" {key}={value}" for key, value in sorted(changes.items()))
    return run(
        found,
        settings,
        train_faces,
        eval_faces,
        Path(out),
        stages=stages,
        start_from=start_from,
        engine=engine,
        device=device,
        resume=resume,
        progress=progress,
        card={
            "data": title,
            # Of a path only the name: a card says nothing about the machine.
            "recipe": f"{Path(recipe).name if recipe else 'defaults'}{changed}",
            # Those evaluated on too: the best weights were chosen by them.
            "people": None if None in trained else [one.to_card() for people in trained if people for one in people],
        },
    )


def run(
    method: Method,
    config: Any,
    train_faces: Any,
    eval_faces: Any | None,
    out: Path,
    *,
    stages: Sequence[str] | None = None,
    start_from: Sequence[Path | str] = (),
    engine: FitEngine | None = None,
    device: str = "cpu",
    resume: bool = True,
    progress: bool = True,
    card: Mapping[str, Any] | None = None,
) -> dict[str, Path]:
    """Run a method's stages in order, each in ``out/<stage>``, and write ``out/<part>.safetensors`` with cards.

    A stage starts from what the stages before it have exported, in this call or in an earlier one. A finished stage is
    not trained again. The global random generators are seeded from the configuration's seeds before a stage's networks
    are built. What a later stage needs is asked for before the first one is trained.

    Args:
        method: the method.
        config: its configuration.
        train_faces, eval_faces, engine, device, resume, progress: as in :func:`deocc.train.fit`.
        out: the run's folder.
        stages: names of the stages to run, in the method's order; None runs all.
        start_from: as in :func:`train`; the cards name their sha256.
        card: what the cards say beside what is known here (method, config, commit, versions, steps, scores): ``data``,
            ``recipe``, ``licence``, ``notes``.

    Returns:
        part -> its weights file.

    Raises:
        WeightsError: weights to start from that cannot be read or are another method's.
        UsageError: the method has no such stage, or none at all; otherwise as in :func:`deocc.train.fit`.
    """
    chosen = list(method.tasks) if stages is None else [name for name in method.tasks if name in stages]
    unknown = [name for name in stages or () if name not in method.tasks]
    if unknown or not chosen:
        named = f"stage {unknown[0]!r}" if unknown else "stage to train"
        raise UsageError(f"method {method.name!r} has no {named}; its stages are: {', '.join(method.tasks) or 'none'}")
    details = {
        "method": method.name,
        "config": configuration.to_dict(config),
        "commit": _commit(method),
        "versions": _versions(method),
        **(card or {}),
    }
    exports: dict[str, dict[str, Tensor]] = {}
    cards: dict[str, dict[str, Any]] = {}
    digests: dict[str, str] = {}
    for start in start_from:
        part = weights.read_card(start)["part"]
        exports[part], found = weights.read(start, method=method.name, part=part)
        digests[part] = found["sha256"]
        details["started_from"] = {**details.get("started_from", {}), part: found["sha256"]}
        _add_people(details, found, start)
    given = set(exports)
    for stage in chosen[1:]:
        # Else a file that is missing, faces without what it learns from or a wrong setting would be found after hours.
        task = method.resolve(stage)(config)
        check_training(task.training, SingleDevice(device, task.training.precision) if engine is None else engine)
        for faces, learns in ((train_faces, True), (eval_faces, False)):
            if faces is not None:
                task.dataset(faces, train=learns)
    writes = engine is None or engine.is_global_zero
    seeds = [training.seed for training in _trainings(config)]
    last = max(list(method.tasks).index(stage) for stage in chosen)
    for stage in list(method.tasks)[: last + 1]:
        if stage in chosen:
            seed_everything("networks", stage, *seeds)
            task = method.resolve(stage)(config)
            if exports:
                _start(task, exports, f"stage {stage!r} of {method.name}")
            folder = fit(
                task,
                train_faces,
                eval_faces,
                out / stage,
                engine=engine if engine is not None else SingleDevice(device, task.training.precision),
                resume=resume,
                progress=progress,
                card={**details, "stage": stage},
                started=digests,
            )
            given.clear()
            found_here = sorted(folder.glob("*.safetensors"))
        else:
            found_here = _exported(out / stage)
            _warn_unfinished(out / stage)
        for path in found_here:
            if path.stem in given:
                continue  # weights that are given go before those of an earlier stage
            exports[path.stem], card_of = weights.read(path, method=method.name, part=path.stem)
            cards[path.stem], digests[path.stem] = card_of, card_of["sha256"]
            if stage not in chosen:
                _add_people(details, card_of, path)
                details["started_from"] = {**card_of.get("started_from", {}), **details.get("started_from", {})}
    if not cards:
        raise InputError(f"{out}: the stages of method {method.name!r} have exported nothing")
    paths = {part: out / f"{part}.safetensors" for part in cards}
    if writes:
        for part, path in paths.items():
            weights.save(path, exports[part], cards[part])
        with atomic_write(out / "config.toml") as file:
            file.write(configuration.to_toml(config).encode())
    if engine is not None:
        engine.barrier()
    return paths


def _start(task: Task, exports: Mapping[str, Mapping[str, Tensor]], what: str) -> None:
    try:
        task.start_from(exports)
    except (KeyError, RuntimeError) as error:  # of load_state_dict, with a line for each tensor
        reason = " ".join(str(error).split())[:300]
        raise WeightsError(f"{what} cannot start from these weights: {reason}") from error


def _exported(stage: Path) -> list[Path]:
    """The weights in a stage's folder: the best ones where there are any, else the last."""
    return sorted((stage / "best").glob("*.safetensors")) or sorted((stage / "last").glob("*.safetensors"))


def _warn_unfinished(stage: Path) -> None:
    newest = next(iter(Checkpoints(stage / "checkpoints").paths()), None)
    if newest is None:
        return
    try:
        state = read(newest)
    except InputError:  # of a damaged one nothing is needed but what it exported
        return
    if state["step"] < state["steps"]:
        warnings.warn(
            f"{stage} stands at step {state['step']} of {state['steps']}: what it last exported is gone on from",
            RuntimeWarning,
            stacklevel=3,
        )


def _add_people(details: dict[str, Any], card: dict[str, Any], path: Path | str) -> None:
    """What earlier weights were trained on, these are too; where that is not known, theirs is not either."""
    earlier, ours = read_people(card, path), read_people(details, path)
    if earlier is None or ours is None:
        details["people"] = None
    elif not set(earlier) <= set(ours):
        details["people"] = [people.to_card() for people in merged([*ours, *earlier])]


def _hold_out(faces: PackedFaces, share: float) -> tuple[PackedFaces, PackedFaces]:
    """Everybody but a share of the identities, evenly spaced from the first one on, and those."""
    if not 0 < share <= 0.5:
        raise UsageError(f"the share of the identities to hold out must be above 0 and at most 0.5, got {share:g}")
    if (np.asarray(faces.identities) < 0).any():
        raise UsageError(
            f"a share of the people can only be held out where every face is somebody's, and {faces.title} does not "
            "say whose its faces are; pack a folder for each person with --kind identities, or give --eval-data"
        )
    place = np.asarray(faces.identities) * share + 1e-9  # a multiple may come out just below a whole number
    held = np.floor(place) > np.floor(place - share)
    # Somebody who is in two packs is two identities, and is held out of both.
    digests = np.array(identity_digests(faces))[np.asarray(faces.identities)]
    held = np.isin(digests, digests[held])
    if held.all() or not held.any():
        raise UsageError(f"{faces.title} has too few identities to hold out {share:g} of them")
    return faces.subset(~held), faces.subset(held)


def _warn_known(trained: Sequence[People] | None, evaluated: Sequence[People] | None) -> None:
    """Warn of people who are evaluated on and trained on, as far as either is known."""
    known, asked = ({digest for one in people or () for digest in one.digests} for people in (trained, evaluated))
    if known & asked:
        warnings.warn(
            f"{len(known & asked)} of the {len(asked)} people evaluated on are trained on too: the figures and the "
            "best weights are those of faces that are known",
            RuntimeWarning,
            stacklevel=3,
        )


def _trainings(config: Any) -> Iterator[Training]:
    """Every Training inside a configuration, in the order of its fields."""
    if isinstance(config, Training):
        yield config
    elif dataclasses.is_dataclass(config) and not isinstance(config, type):
        for field in dataclasses.fields(config):
            yield from _trainings(getattr(config, field.name))
    elif isinstance(config, Mapping):
        for value in config.values():
            yield from _trainings(value)


def _versions(method: Method) -> dict[str, str]:
    """The versions of deocc, torch and the method's distribution, as far as these are installed."""
    names = ["deocc", "torch"]
    names += [entry.dist.name for entry in entry_points(group="deocc.methods", name=method.name) if entry.dist]
    found = {}
    for name in names:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def _commit(method: Method) -> str:
    """The git commit of the method's source, with ``-dirty`` where it has changed since; empty outside of git."""
    source = getattr(sys.modules[method.resolve("config").__module__], "__file__", None)
    if source is None:
        return ""
    folder = str(Path(source).parent)
    tracked = _git(folder, "ls-files", "--error-unmatch", source)
    if not tracked:
        return ""
    commit = _git(folder, "rev-parse", "HEAD")
    return f"{commit}-dirty" if _git(folder, "status", "--porcelain", "--untracked-files=no", ".") else commit


def _git(folder: str, *arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", "-C", folder, *arguments], capture_output=True, text=True, timeout=30, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""

"""The contract of a method as runnable checks, for a plugin's tests and for ``deocc check``.

In a plugin's tests (needs pytest)::

    from deocc.testing import method_checks

    @method_checks("my-method")
    def test_contract(check):
        check()

Each check looks at one promise and fails with one sentence. Which checks there are depends on the parts that the method
offers. They run on the CPU, on drawn faces, and need no data; a part without packaged weights is checked untrained.
"""

from __future__ import annotations

import ast
import contextlib
import copy
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar, cast

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from deocc import config, plugins, weights
from deocc.errors import DeoccError, InputError, PluginError, UsageError
from deocc.faces import Crop
from deocc.images import to_tensor, write_image
from deocc.method import PARTS, Method, Occluder, Part, Recognizer, Restorer, Task
from deocc.train import checkpoint

__all__ = ["Check", "ContractError", "checks", "method_checks", "run_checks"]

T = TypeVar("T")


class ContractError(AssertionError):
    """A method does not keep a promise; the message is one sentence."""


@dataclasses.dataclass(frozen=True)
class Check:
    """One promise of one method; calling it returns None or raises.

    Attributes:
        name: what is checked, such as ``"restorer: visible pixels stay"``.
    """

    name: str
    _run: Callable[[], None] = dataclasses.field(repr=False)

    def __call__(self) -> None:
        """Run the check.

        Raises:
            ContractError, DeoccError: the promise is not kept.
        """
        self._run()


def checks(name: str) -> list[Check]:
    """All checks that apply to the method called ``name``; imports the module of the method, and none of its parts.

    A method that does nothing without a file of the user's is checked with one: ``"onnx:model.onnx"``, as
    :func:`deocc.plugins.parse` reads it. A broken plugin has one check, which fails.

    Raises:
        UsageError: no such method is installed.
    """
    try:
        found, (_, settings) = plugins.get(name), plugins.parse(name)
    except PluginError as error:
        return [Check("the method is found", _raiser(ContractError(str(error))))]
    method = _Configured(**vars(found), settings=settings)
    offered = ("method", *method.parts(), *(["task"] if method.tasks else []))
    return [
        Check(text if what == "method" else f"{what}: {text}", partial(function, method))
        for what in offered
        for text, function in _CHECKS[what].items()
    ]


def method_checks(name: str) -> Any:
    """A pytest decorator: run the test once for each check of the method, as its argument ``check``.

    Raises:
        UsageError: no such method is installed.
    """
    import pytest

    return pytest.mark.parametrize("check", [pytest.param(check, id=check.name) for check in checks(name)])


def run_checks(name: str) -> Iterator[tuple[str, bool, str]]:
    """Run the checks one by one and yield (name of the check, whether it passed, the sentence if it did not).

    Raises:
        UsageError: no such method is installed.
    """
    for check in checks(name):
        try:
            check()
        except (ContractError, DeoccError) as error:
            yield check.name, False, str(error)
        except Exception as error:  # a stranger's code may raise anything, and the other checks still run
            yield check.name, False, f"it raised {type(error).__name__}: {error}"
        else:
            yield check.name, True, ""


# The method itself -------------------------------------------------------------------------------------------------


def _is_described(method: Method) -> None:
    _require(bool(method.parts()), "it offers no part: at least one of restorer, occluder, recognizer is needed")
    _require(bool(method.licence), "its licence is empty: name the licence of the code")
    _require(bool(method.summary) and "\n" not in method.summary, "its summary must be one line of text")
    clash = sorted(set(method.tasks) & {*PARTS, "config"})
    _require(not clash, f"its tasks may not be named like a part: {', '.join(clash)}")
    stray = sorted(set(method.weights) - set(method.parts()))
    _require(not stray, f"it packages weights for parts that it does not offer: {', '.join(stray)}")


def _parts_are_imported_late(method: Method) -> None:
    (entry,) = (entry for entry in entry_points(group=plugins.GROUP) if entry.name == method.name)
    targets = sorted({target.partition(":")[0] for target in _targets(method)})
    code = (
        "import importlib, sys; importlib.import_module(sys.argv[1]); "
        "print(*[name for name in sys.argv[2:] if name in sys.modules])"
    )
    path = os.pathsep.join(entry or "." for entry in sys.path)
    done = subprocess.run(
        [sys.executable, "-c", code, entry.module, *targets],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    last = (done.stderr.strip().splitlines() or ["no message"])[-1]
    _require(done.returncode == 0, f"importing {entry.module!r} in a fresh interpreter failed: {last}")
    early = done.stdout.split()
    _require(
        not early, f"importing {entry.module!r} imports {', '.join(early)} too: parts are imported when first used"
    )


def _parts_are_classes(method: Method) -> None:
    kinds: dict[str, type] = {"restorer": Restorer, "occluder": Occluder, "recognizer": Recognizer}
    for name, wanted in [*((part, kinds[part]) for part in method.parts()), *((task, Task) for task in method.tasks)]:
        cls = method.resolve(name)
        _require(
            issubclass(cls, wanted), f"its {name} {cls.__name__} is not a subclass of deocc.method.{wanted.__name__}"
        )
        missing = sorted(getattr(cls, "__abstractmethods__", ()))
        _require(not missing, f"its {name} {cls.__name__} lacks the methods {', '.join(missing)}")


def _config_is_plain(method: Method) -> None:
    cls: type[Any] = method.resolve("config")
    params = getattr(cls, "__dataclass_params__", None)
    _require(params is not None and params.frozen, f"its config {cls.__name__} is not a frozen dataclass")
    try:
        default = cls()
    except TypeError as error:
        raise ContractError(f"its config {cls.__name__} needs a default for every field ({error})") from error
    _require(config.from_dict(cls, config.to_dict(default)) == default, "its default config changes in a dict and back")
    text = config.to_toml(default)
    _require(config.from_toml(cls, text) == default, "its default config changes when it is written as TOML and read")


def _recipes_load(method: Method) -> None:
    for name in config.recipes(method):
        config.recipe(method, name)


def _weights_are_whole(method: Method) -> None:
    for part in method.weights:
        path = plugins.packaged_weights(method, part)
        if path is None:
            continue
        tensors, card = weights.read(path, method=method.name, part=part)
        for key in ("data", "licence"):
            _require(bool(card[key]), f"{weights.card_path(path).name}: the card's {key} is empty")
        for name, tensor in tensors.items():
            _require(bool(torch.isfinite(tensor).all()), f"{path.name}: tensor {name!r} is not finite")
        plugins.load(method.name, cast(Any, part), **_settings(method))


def _untrained_parts_say_so(method: Method) -> None:
    for part in method.parts():
        cls: Any = method.resolve(part)
        if part in method.weights or cls.needs_weights or cls.lacks():
            continue
        built: list[Part] = [_seeded(seed, partial(cls, _changed_defaults(method))) for seed in (0, 1)]
        if built[0].network is not None and built[1].network is not None:
            same = _same(built[0].network.state_dict(), built[1].network.state_dict())
            _require(same, f"its {part} {cls.__name__} starts with random weights: set needs_weights = True")


def _uses_public_names(method: Method) -> None:
    packages = {target.partition(":")[0].partition(".")[0] for target in _targets(method)}
    others = {
        entry.module.partition(".")[0] for entry in entry_points(group=plugins.GROUP) if entry.name != method.name
    } - packages
    for package in sorted(packages):
        spec = find_spec(package)
        places = [Path(place) for place in (spec.submodule_search_locations or ())] if spec else []
        files = [file for place in places for file in sorted(place.rglob("*.py"))]
        if spec and spec.origin and not places:
            files = [Path(spec.origin)]
        for file in files:
            for line, name in _imported(ast.parse(file.read_bytes(), str(file))):
                top, *rest = name.split(".")
                private = top == "deocc" and any(word.startswith("_") and not word.endswith("__") for word in rest)
                _require(not private, f"{file.name}:{line} uses the private name {name}")
                _require(top not in others, f"{file.name}:{line} imports {name}, which belongs to another plugin")


# Restorer ----------------------------------------------------------------------------------------------------------


def _restores(method: Method) -> None:
    restorer, image, occlusion = _restorer(method)
    with torch.no_grad():
        restored = restorer(image, occlusion)
    _check_image("restored image", restored.image, image)
    _check_occlusion("returned occlusion", restored.occlusion, image)
    _require(isinstance(restored.extras, Mapping), "its extras must be a mapping of name to tensor")
    for name, extra in restored.extras.items():
        fits = isinstance(extra, Tensor) and extra.ndim == 4 and len(extra) == len(image)
        _require(fits, f"its extra {name!r} must be a tensor (N, C, h, w) with the N of the images")


def _keeps_visible_pixels(method: Method) -> None:
    restorer, image, occlusion = _restorer(method)
    if restorer.redraws_face:
        return
    with torch.no_grad():
        restored = restorer(image, occlusion)
        _require(torch.equal(restored.occlusion, occlusion), "it does not return the occlusion that it was given")
        visible = (occlusion == 0).expand_as(image)
        changed = int((restored.image != image)[visible].sum())
        _require(changed == 0, f"{changed} visible values changed: they must come back bit for bit")
        nothing = restorer(image, torch.zeros_like(occlusion)).image
    _require(torch.equal(nothing, image), "with nothing occluded the image changed")


def _restores_everything(method: Method) -> None:
    restorer, image, occlusion = _restorer(method)
    with torch.no_grad():
        _check_image("image restored from nothing visible", restorer(image, torch.ones_like(occlusion)).image, image)


def _occlusion_is_optional_or_refused(method: Method) -> None:
    restorer, image, occlusion = _restorer(method)
    occluded = torch.where(occlusion == 1, torch.full((), 0.7), image)
    with torch.no_grad():
        if restorer.finds_occlusion:
            restored = restorer(occluded)
            _check_image("restored image", restored.image, image)
            _check_occlusion("found occlusion", restored.occlusion, image)
            return
        try:
            restorer(occluded)
        except UsageError:
            return
    raise ContractError("without an occlusion it must raise UsageError, since it does not claim finds_occlusion")


def _restorer_batches(method: Method) -> None:
    restorer, image, occlusion = _restorer(method)
    with torch.no_grad():
        together = restorer(image, occlusion).image
        alone = restorer(image[1:2], occlusion[1:2]).image
        none = restorer(image[:0], occlusion[:0])
    _check_close("a face restored alone and in a batch", alone, together[1:2])
    _check_image("image restored from a batch of 0", none.image, image[:0])


def _restorer_sizes(method: Method) -> None:
    restorer, image, occlusion = _restorer(method)
    size = restorer.crop_size
    for height, width in ((size + 1, size - 1), (size // 2 + 1, size // 2), (1, 1)):
        small = nn.functional.interpolate(image, size=(height, width), mode="bilinear")
        hole = nn.functional.interpolate(occlusion, size=(height, width))
        try:
            with torch.no_grad():
                restored = restorer(small, hole)
        except InputError:
            continue
        except Exception as error:
            raise ContractError(
                f"images of {height}x{width} must be restored or refused with InputError, "
                f"got {type(error).__name__}: {error}"
            ) from error
        _check_image(f"restored image of {height}x{width}", restored.image, small)


def _restorer_repeats(method: Method) -> None:
    restorer, image, occlusion = _restorer(method)
    with torch.no_grad():
        one, two = restorer(image, occlusion).image, restorer(image, occlusion).image
    _require(torch.equal(one, two), "the same input gave two different images")


def _restorer_refuses(method: Method) -> None:
    restorer, image, occlusion = _restorer(method)
    _check_refusals(lambda bad: restorer(bad, occlusion), image)
    for what, bad in (
        ("of another size", occlusion[..., :-1]),
        ("with values above 1", occlusion * 2),
        ("that is boolean", occlusion == 1),
    ):
        _check_refused(f"an occlusion {what}", partial(restorer, image, bad))


def _restorer_leaves_inputs(method: Method) -> None:
    restorer, image, occlusion = _restorer(method)
    before = image.clone(), occlusion.clone()
    with torch.no_grad():
        restorer(image, occlusion)
    _require(torch.equal(image, before[0]) and torch.equal(occlusion, before[1]), "it changed its inputs in place")


# Occluder ----------------------------------------------------------------------------------------------------------


def _occludes(method: Method) -> None:
    occluder, image = _occluder(method)
    with torch.no_grad():
        occluded = occluder(image, 0)
    _check_image("occluded image", occluded.image, image)
    _check_occlusion("occlusion", occluded.occlusion, image)
    count = len(occluded.parameters)
    _require(count == len(image), f"there must be parameters for each of {len(image)} images, got {count}")
    try:
        json.dumps([dict(parameters) for parameters in occluded.parameters])
    except (TypeError, ValueError) as error:
        raise ContractError(f"its parameters cannot be written as JSON ({error})") from error


def _occluder_repeats(method: Method) -> None:
    occluder, image = _occluder(method)
    with torch.no_grad():
        results = [occluder(image, seed) for seed in (7, 7, 8, 9)]
        again = cast(Occluder, _build(method, "occluder"))(image, 7)
    for other in (results[1], again):
        same = torch.equal(results[0].image, other.image) and torch.equal(results[0].occlusion, other.occlusion)
        _require(same, "the same seed gave two different results")
    differ = any(not torch.equal(results[0].image, other.image) for other in results[2:])
    _require(differ, "three different seeds gave the same image")


def _occluder_batches(method: Method) -> None:
    occluder, image = _occluder(method)
    with torch.no_grad():
        _check_image("image occluded alone", occluder(image[:1], 0).image, image[:1])
        empty = occluder(image[:0], 0)
    _check_image("occluded batch of 0", empty.image, image[:0])
    _check_occlusion("occlusion of a batch of 0", empty.occlusion, image[:0])


def _occluder_refuses(method: Method) -> None:
    occluder, image = _occluder(method)
    _check_refusals(lambda bad: occluder(bad, 0), image)


def _occluder_leaves_inputs(method: Method) -> None:
    occluder, image = _occluder(method)
    before = image.clone()
    with torch.no_grad():
        occluder(image, 0)
    _require(torch.equal(image, before), "it changed its input in place")


# Recognizer --------------------------------------------------------------------------------------------------------


def _embeds(method: Method) -> None:
    recognizer, image = _recognizer(method)
    with torch.no_grad():
        embedding = recognizer(image)
    fits = embedding.ndim == 2 and len(embedding) == len(image) and embedding.is_floating_point()
    _require(fits, f"embeddings must be floating point (N, D), got {embedding.dtype} {tuple(embedding.shape)}")
    worst = float((embedding.double().norm(dim=1) - 1).abs().max())
    _require(worst < 1e-4, f"embeddings must have length 1, and one is off by {worst:.2g}")
    spread = float((embedding[0] - embedding[1]).abs().max())
    _require(spread > 1e-6, "two different faces have the same embedding")


def _recognizer_batches(method: Method) -> None:
    recognizer, image = _recognizer(method)
    with torch.no_grad():
        together, alone, none = recognizer(image), recognizer(image[1:2]), recognizer(image[:0])
    _check_close("the embedding of a face alone and in a batch", alone, together[1:2])
    wanted = (0, together.shape[1])
    _require(tuple(none.shape) == wanted, f"a batch of 0 must give embeddings {wanted}, got {tuple(none.shape)}")


def _recognizer_repeats(method: Method) -> None:
    recognizer, image = _recognizer(method)
    before = image.clone()
    with torch.no_grad():
        one, two = recognizer(image), recognizer(image)
    _require(torch.equal(one, two), "the same faces gave two different embeddings")
    _require(torch.equal(image, before), "it changed its input in place")


def _recognizer_differentiates(method: Method) -> None:
    recognizer, image = _recognizer(method)
    if not recognizer.differentiable:
        return
    with torch.no_grad():
        wanted = recognizer(image.flip(0))
    leaf = image.clone().requires_grad_(True)
    embedding = recognizer(leaf)
    _require(embedding.requires_grad, "it claims to be differentiable and its embedding has no graph")
    torch.autograd.backward((embedding * wanted).sum())
    gradient = leaf.grad
    usable = gradient is not None and bool(torch.isfinite(gradient).all()) and bool((gradient != 0).any())
    _require(usable, "it claims to be differentiable and the gradient to the image is missing, zero or not finite")


def _recognizer_refuses(method: Method) -> None:
    recognizer, image = _recognizer(method)
    _check_refusals(recognizer, image)
    _check_refused("a face of another size", lambda: recognizer(image[..., :-1]))


# Tasks -------------------------------------------------------------------------------------------------------------


def _tasks_train(method: Method) -> None:
    for name, task, faces, _ in _tasks(method):
        training, networks, optimizers = task.training, task.networks(), task.optimizers()
        positive = min(training.steps, training.batch, training.evaluate_every, training.checkpoint_every) > 0
        _require(positive, f"task {name!r}: steps, batch, evaluate_every and checkpoint_every must be positive")
        for what, things in (("networks", networks), ("optimizers", optimizers)):
            _require(bool(things), f"task {name!r}: it has no {what}")
            for key in things:
                _require(hasattr(task, key), f"task {name!r}: {what} has the key {key!r}, which is no attribute of it")
        before = {key: copy.deepcopy(network.state_dict()) for key, network in networks.items()}
        logs = _step(task, _batch(task, faces), 0)
        _require(bool(logs), f"task {name!r}: its step logs nothing")
        for key, value in logs.items():
            graph = isinstance(value, Tensor) and value.requires_grad
            _require(not graph, f"task {name!r}: the log {key!r} still has its graph; detach it")
            finite = bool(np.isfinite(float(value)))
            _require(finite, f"task {name!r}: the log {key!r} is not finite after one step")
        moved = any(not _same(before[key], network.state_dict()) for key, network in task.networks().items())
        _require(moved, f"task {name!r}: a step changed no network")


def _tasks_resume(method: Method) -> None:
    for name, task, faces, start in _tasks(method):
        batch = _batch(task, faces)
        for index in range(3):
            _step(task, batch, index)
        other = start()
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "state.safetensors"
            checkpoint.write(
                path,
                {
                    what: {key: thing.state_dict() for key, thing in things.items()}
                    for what, things in (("networks", task.networks()), ("optimizers", task.optimizers()))
                },
            )
            state = checkpoint.read(path)
        for what, things in (("networks", other.networks()), ("optimizers", other.optimizers())):
            for key, thing in things.items():
                thing.load_state_dict(state[what][key])
        # The first step's learning rate is in the optimizer's state; what schedules the next ones may not be.
        for index in range(3, 6):
            for each in (task, other):
                _step(each, batch, index)
        for mine, others in ((task.networks(), other.networks()), (task.optimizers(), other.optimizers())):
            for key, thing in mine.items():
                same = _same(thing.state_dict(), others[key].state_dict())
                _require(same, f"task {name!r}: after resuming, steps give another {key!r}: some state is not in it")


def _tasks_read_faces(method: Method) -> None:
    for name, task, faces, _ in _tasks(method):
        for train in (True, False):
            dataset: Any = task.dataset(faces, train=train)
            count = len(dataset)
            _require(count > 0, f"task {name!r}: its dataset (train={train}) makes no example of {len(faces)} faces")
            for index in (0, 2 * count + 1) if train else (0,):
                ask = partial(dataset.__getitem__, index)
                same = _same(_seeded(1, ask), _seeded(2, ask))
                _require(same, f"task {name!r}: example {index} (train={train}) differs when it is asked for again")


def _tasks_show(method: Method) -> None:
    for name, task, faces, _ in _tasks(method):
        batch = _batch(task, faces, train=False)
        for network in task.networks().values():
            network.eval()
        with torch.no_grad():
            figures = _seeded(0, partial(task.evaluate, batch))
            pictures = _seeded(0, partial(task.preview, batch))
        best = task.best.removeprefix("-")
        _require(
            not best or best in figures,
            f"task {name!r}: its best is {task.best!r}, but evaluate() gives {', '.join(figures) or 'nothing'}",
        )
        for key, figure in figures.items():
            number = isinstance(figure, float | int)
            _require(number, f"task {name!r}: the figure {key!r} of evaluate() is not a number")
        for key, picture in pictures.items():
            fits = isinstance(picture, Tensor) and picture.ndim == 4 and picture.shape[1] == 3
            _require(fits, f"task {name!r}: the picture {key!r} of preview() must be a tensor (N, 3, H, W)")
            _check_range(f"task {name!r}: the picture {key!r} of preview()", picture)


def _tasks_export(method: Method) -> None:
    settings = _task_config(method)
    for name, task, _, _ in _tasks(method):
        for part, tensors in task.exports().items():
            _require(part in method.parts(), f"task {name!r}: it exports {part!r}, which the method does not offer")
            built: Part = cast(Any, method.resolve(part))(settings)
            _require(built.network is not None, f"task {name!r}: it exports weights for {part!r}, which has no network")
            weights.fill(cast(nn.Module, built.network), tensors, source=f"what task {name!r} exports for {part!r}")


_Function = Callable[[Method], None]

_CHECKS: dict[str, dict[str, _Function]] = {
    "method": {
        "the method is described": _is_described,
        "parts are imported late": _parts_are_imported_late,
        "parts are classes of their kind": _parts_are_classes,
        "the configuration is plain": _config_is_plain,
        "packaged recipes load": _recipes_load,
        "packaged weights are whole": _weights_are_whole,
        "what needs weights says so": _untrained_parts_say_so,
        "only public names are used": _uses_public_names,
    },
    "restorer": {
        "shape, dtype and range": _restores,
        "visible pixels stay": _keeps_visible_pixels,
        "nothing visible": _restores_everything,
        "the occlusion is found or asked for": _occlusion_is_optional_or_refused,
        "batches of 0, 1 and 3": _restorer_batches,
        "odd sizes": _restorer_sizes,
        "same input, same output": _restorer_repeats,
        "bad input is refused": _restorer_refuses,
        "inputs are left alone": _restorer_leaves_inputs,
    },
    "occluder": {
        "shape, range and parameters": _occludes,
        "the seed decides": _occluder_repeats,
        "batches of 0 and 1": _occluder_batches,
        "bad input is refused": _occluder_refuses,
        "inputs are left alone": _occluder_leaves_inputs,
    },
    "recognizer": {
        "unit embeddings": _embeds,
        "batches of 0, 1 and 3": _recognizer_batches,
        "same input, same output": _recognizer_repeats,
        "gradients reach the image": _recognizer_differentiates,
        "bad input is refused": _recognizer_refuses,
    },
    "task": {
        "examples depend on their index alone": _tasks_read_faces,
        "a step trains": _tasks_train,
        "a resumed step is the same": _tasks_resume,
        "figures and pictures": _tasks_show,
        "exports fit the parts": _tasks_export,
    },
}


# What the checks share ---------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Configured(Method):
    """A method and the fields of its configuration that are changed for the checks."""

    settings: Mapping[str, str]


def _raiser(error: Exception) -> Callable[[], None]:
    def fail() -> None:
        raise error

    return fail


def _require(kept: bool, sentence: str) -> None:
    if not kept:
        raise ContractError(sentence)


def _targets(method: Method) -> list[str]:
    offered = [getattr(method, part) for part in method.parts()]
    return [method.config, *offered, *method.tasks.values()]


def _seeded(seed: int, make: Callable[[], T]) -> T:
    """What ``make`` returns under a seed, leaving the caller's generator as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()


def _settings(method: Method) -> Mapping[str, Any]:
    return method.settings if isinstance(method, _Configured) else {}


def _changed_defaults(method: Method) -> Any:
    return config.replace(config.recipe(method), _settings(method))


def _build(method: Method, part: str) -> Part:
    if part in method.weights:
        loaded: Part = plugins.load(method.name, cast(Any, part), **_settings(method))
        return loaded
    cls: Any = method.resolve(part)
    built: Part = _seeded(0, partial(cls, _changed_defaults(method)))
    if built.network is not None:
        built.network.eval().requires_grad_(False)
    return built


def _restorer(method: Method) -> tuple[Restorer, Tensor, Tensor]:
    """The restorer, three faces for it and an occlusion of the lower half, narrower for each face."""
    restorer = cast(Restorer, _build(method, "restorer"))
    image = to_tensor(_draw(3, Crop(restorer.crop_size, restorer.crop_zoom)))
    occlusion = torch.zeros(3, 1, *image.shape[2:])
    size = restorer.crop_size
    for index in range(3):
        margin = size * (index + 1) // 10
        occlusion[index, :, size // 2 : size - margin, margin : size - margin] = 1
    return restorer, image, occlusion


def _occluder(method: Method) -> tuple[Occluder, Tensor]:
    occluder = cast(Occluder, _build(method, "occluder"))
    return occluder, to_tensor(_draw(3, Crop(occluder.crop_size, occluder.crop_zoom)))


def _recognizer(method: Method) -> tuple[Recognizer, Tensor]:
    recognizer = cast(Recognizer, _build(method, "recognizer"))
    return recognizer, to_tensor(_draw(3, Crop(recognizer.crop_size, recognizer.crop_zoom)))


def _draw(count: int, crop: Crop) -> npt.NDArray[np.uint8]:
    """Drawn faces, uint8 RGB (count, S, S, 3): enough of a face to have a shape, features and shading."""
    random = np.random.default_rng(0)
    points = crop.template().astype(np.float64)
    between = float(np.linalg.norm(points[1] - points[0]))
    middle = points.mean(0)
    faces = np.empty((count, crop.size, crop.size, 3), np.uint8)
    for face in faces:
        canvas = np.empty_like(face)
        canvas[:] = random.integers(30, 220, 3)
        skin, dark, lips = (
            [int(v) for v in random.integers(low, high, 3)] for low, high in ((120, 240), (0, 80), (90, 200))
        )
        _ellipse(canvas, middle, (1.05 * between, 1.45 * between), skin)
        for eye in points[:2]:
            _ellipse(canvas, eye, (0.22 * between, 0.12 * between), [245, 245, 245])
            _ellipse(canvas, eye, (0.1 * between, 0.1 * between), dark)
        _ellipse(canvas, points[2], (0.13 * between, 0.2 * between), [max(0, v - 25) for v in skin])
        _ellipse(canvas, points[3:].mean(0), (0.45 * between, random.uniform(0.08, 0.2) * between), lips)
        shade = np.linspace(random.uniform(0.6, 1.2), random.uniform(0.6, 1.2), crop.size)[None, :, None]
        noise = random.normal(0, 3, face.shape)
        face[:] = np.clip(canvas * shade + noise, 0, 255)
    return faces


def _ellipse(canvas: npt.NDArray[np.uint8], centre: Any, axes: tuple[float, float], colour: list[int]) -> None:
    cv2.ellipse(canvas, (tuple(map(float, centre)), (2 * axes[0], 2 * axes[1]), 0.0), colour, -1, cv2.LINE_AA)


def _check_image(what: str, image: Any, like: Tensor) -> None:
    _require(isinstance(image, Tensor), f"the {what} must be a tensor, got {type(image).__name__}")
    fits = image.shape == like.shape and image.dtype == like.dtype
    _require(fits, f"the {what} must be {like.dtype} {tuple(like.shape)}, got {image.dtype} {tuple(image.shape)}")
    _check_range(f"the {what}", image)


def _check_occlusion(what: str, occlusion: Any, image: Tensor) -> None:
    _check_image(what, occlusion, image[:, :1])


def _check_range(what: str, values: Tensor) -> None:
    if values.numel():
        low, high = (float(value) for value in values.detach().aminmax())
        _require(low >= 0 and high <= 1, f"{what} must lie in [0, 1], got values from {low:g} to {high:g}")


def _check_close(what: str, one: Tensor, two: Tensor) -> None:
    apart = float((one - two).abs().max())
    _require(apart < 1e-3, f"{what} must be equal, and they differ by {apart:.2g}")


def _check_refusals(call: Callable[[Any], Any], image: Tensor) -> None:
    broken = image.clone()
    broken[0, 0, 0, 0] = float("nan")
    for what, bad in (
        ("an image with NaN", broken),
        ("an image with values above 1", image + 1),
        ("a uint8 image", (image * 255).to(torch.uint8)),
        ("a grey image", image[:, :1]),
        ("an image without a batch", image[0]),
        ("a NumPy array", image.numpy()),
    ):
        _check_refused(what, partial(call, bad))


def _check_refused(what: str, call: Callable[[], Any]) -> None:
    try:
        with torch.no_grad():
            call()
    except InputError:
        return
    except Exception as error:
        raise ContractError(f"{what} must raise InputError, got {type(error).__name__}: {error}") from error
    raise ContractError(f"{what} must raise InputError, and was taken")


def _task_config(method: Method) -> Any:
    """The recipe ``smoke``, which is made for this, or the defaults."""
    settings = config.recipe(method, "smoke" if "smoke" in config.recipes(method) else None)
    return config.replace(settings, _settings(method))


def _tasks(method: Method) -> Iterator[tuple[str, Task, Any, Callable[[], Task]]]:
    """(name, task, packed faces, a function that makes the task again) for each stage, started from the one before."""
    settings = _task_config(method)
    crop = Crop(128, 0.75)
    for part in method.parts():
        built: Part = cast(Any, method.resolve(part))(settings)
        crop = Crop(built.crop_size, built.crop_zoom)
        break
    exports: Mapping[str, Mapping[str, Tensor]] = {}
    with _packed(crop) as faces:
        for number, name in enumerate(method.tasks):
            cls: Any = method.resolve(name)

            # All stages are asked whether they can use the faces before the first one is trained.
            for train in (True, False):
                _seeded(0, partial(cls, settings)).dataset(faces, train=train)

            def start(cls: Any = cls, number: int = number, exports: Any = exports) -> Task:
                task: Task = _seeded(0, partial(cls, settings))
                if number:
                    task.start_from(exports)
                return task

            task = start()
            yield name, task, faces, start
            exports = {**exports, **copy.deepcopy(dict(task.exports()))}


@contextlib.contextmanager
def _packed(crop: Crop) -> Iterator[Any]:
    """Eight drawn faces of four people as ``deocc.data.PackedFaces``."""
    from deocc.data import PackedFaces, Source, pack

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        names = [f"person{index // 2}_{index % 2}.png" for index in range(8)]
        (root / "faces").mkdir()
        for name, face in zip(names, _draw(8, crop), strict=True):
            write_image(root / "faces" / name, face)
        source = Source(
            root / "faces",
            names,
            identity=lambda name: name.partition("_")[0],
            landmarks=dict.fromkeys(names, crop.template()),
        )
        pack(source, root / "packed", crop=crop)
        yield PackedFaces(root / "packed")


def _batch(task: Task, faces: Any, *, train: bool = True) -> Any:
    dataset: Any = task.dataset(faces, train=train)
    count = task.training.batch if train else min(2, len(dataset))
    examples = torch.utils.data.Subset(dataset, range(count))
    return _seeded(0, lambda: next(iter(torch.utils.data.DataLoader(examples, batch_size=count))))


def _step(task: Task, batch: Any, index: int) -> Mapping[str, Tensor | float]:
    from deocc.train import SingleDevice

    engine = SingleDevice()
    return _seeded(index, partial(task.step, copy.deepcopy(batch), engine, index))


def _same(one: Any, two: Any) -> bool:
    if isinstance(one, Tensor):
        return isinstance(two, Tensor) and torch.equal(one, two)
    if isinstance(one, np.ndarray):
        return np.array_equal(one, two)
    if isinstance(one, Mapping):
        return one.keys() == two.keys() and all(_same(one[key], two[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(two) and all(map(_same, one, two))
    return bool(one == two)


def _imported(tree: ast.AST) -> Iterable[tuple[int, str]]:
    """(line, dotted name) of everything that a module imports, and of every dotted name that starts with ``deocc``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Attribute):
            words, inner = [node.attr], node.value
            while isinstance(inner, ast.Attribute):
                words.append(inner.attr)
                inner = inner.value
            if isinstance(inner, ast.Name) and inner.id == "deocc":
                yield node.lineno, ".".join(["deocc", *reversed(words)])

"""The contract's checks pass on a sound method, and each fault is caught by the check that is about it."""

from __future__ import annotations

import pytest

from deocc.errors import UsageError
from deocc.testing import checks, method_checks, run_checks

FULL = (
    'restorer="{module}_parts:Halve", recognizer="{module}_parts:Embed", occluder="{module}_parts:Grey",'
    'tasks={{"fit": "{module}_parts:Fit"}},'
)

TASK = """


    class Faces(torch.utils.data.Dataset):
        def __init__(self, faces):
            self.faces = faces

        def __len__(self):
            return len(self.faces)

        def __getitem__(self, index):
            return torch.from_numpy(self.faces.images[index % len(self)].copy()).permute(2, 0, 1).float() / 255


    class Fit(Task):
        def __init__(self, config):
            super().__init__(config)
            self.network = nn.Conv2d(3, 3, 1)
            self.optimizer = torch.optim.Adam(self.network.parameters(), lr=0.1)
            self.steps = 0

        @property
        def training(self):
            return Training(steps=10, batch=2)

        def networks(self):
            return {"network": self.network}

        def optimizers(self):
            return {"optimizer": self.optimizer}

        def dataset(self, faces, *, train):
            return Faces(faces)

        def step(self, batch, engine, index):
            self.steps += 1
            noise = torch.rand(())
            loss = (self.network(batch) - noise).square().mean()
            self.optimizer.zero_grad()
            engine.backward(loss)
            self.optimizer.step()
            return {"loss": loss.detach()}

        def evaluate(self, batch):
            return {"mean": float(batch.mean())}

        def preview(self, batch):
            return {"faces": batch}
"""


@pytest.fixture
def failures(install):
    """``failures((old, new), ...)`` installs the sound method with pieces of its source replaced and checks it."""

    def run(*edits: tuple[str, str], **changes: str) -> dict[str, str]:
        install("mine", **{"extra": FULL, "more": TASK, "edits": edits, **changes})
        return {name: message for name, passed, message in run_checks("mine") if not passed}

    return run


def test_sound_method_passes(failures):
    assert failures() == {}
    assert len(checks("mine")) == 8 + 9 + 5 + 5 + 5


RESTORE = "return Restored(image * 0.5 * self.config.gain, occlusion)"
EMBED = "return image.flatten(1)"
LEARN = "self.optimizer.step()"

FAULTS = {
    "no licence": ("the method is described", "licence is empty", [('"Apache-2.0"', '""')]),
    "two lines": ("the method is described", "must be one line", [("made for a test", "made\\nfor a test")]),
    "stray weights": (
        "the method is described",
        "does not offer: other",
        [("tasks=", 'weights={"other": "a:b"}, tasks=')],
    ),
    "eager parts": (
        "parts are imported late",
        "imports fake_mine_parts too",
        [("METHOD =", "import fake_mine_parts\nMETHOD =")],
    ),
    "wrong kind": (
        "parts are classes of their kind",
        "its restorer Embed is not a subclass of deocc.method.Restorer",
        [("_parts:Halve", "_parts:Embed")],
    ),
    "abstract": ("parts are classes of their kind", "lacks the methods embed", [("def embed(", "def embeds(")]),
    "thawed": ("the configuration is plain", "not a frozen dataclass", [("(frozen=True)", "")]),
    "no default": ("the configuration is plain", "needs a default", [("width: int = 4", "width: int")]),
    "odd field": ("the configuration is plain", "cannot hold", [("gain: float = 1.0", "gain: complex = 1j")]),
    "private": (
        "only public names are used",
        "fake_mine_parts.py:5 uses the private name deocc._C.info",
        [("import torch\n", "import torch\nfrom deocc._C import info\n")],
    ),
    "private attribute": (
        "only public names are used",
        "uses the private name deocc.ops._registry",
        [(EMBED, "import deocc; deocc.ops._registry; " + EMBED)],
    ),
    "range": (
        "restorer: shape, dtype and range",
        "image must lie in [0, 1]",
        [
            (RESTORE, "return Restored(image + 1, occlusion)"),
            ("class Halve(Restorer):", "class Halve(Restorer):\n    redraws_face = True"),
        ],
    ),
    "dtype": (
        "restorer: shape, dtype and range",
        "must be torch.float32 (3, 3, 16, 16), got torch.float64",
        [("image * 0.5", "image.double() * 0.5")],
    ),
    "extras": (
        "restorer: shape, dtype and range",
        "extra 'a' must be",
        [(RESTORE, RESTORE[:-1] + ", {'a': image[0]})")],
    ),
    "other occlusion": (
        "restorer: visible pixels stay",
        "does not return the occlusion",
        [("gain, occlusion)", "gain, 0 * occlusion)")],
    ),
    "visible": (
        "restorer: visible pixels stay",
        "must come back bit for bit",
        [
            (
                RESTORE,
                "pass\n\n    def __call__(self, image, occlusion=None):\n        return Restored(image / 2, occlusion)",
            )
        ],
    ),
    "false claim": (
        "restorer: the occlusion is found or asked for",
        "TypeError",
        [
            ("class Halve(Restorer):", "class Halve(Restorer):\n    finds_occlusion = True"),
            (RESTORE, RESTORE.replace("occlusion)", "occlusion + 0)")),
        ],
    ),
    "batch": (
        "restorer: batches of 0, 1 and 3",
        "differ by",
        [(RESTORE, RESTORE.replace("image", "image.mean(0, keepdim=True) + 0 * image"))],
    ),
    "fixed size": (
        "restorer: odd sizes",
        "images of 17x15 must be restored or refused with InputError, got RuntimeError",
        [(RESTORE, "image = image + torch.zeros(16, 16); " + RESTORE)],
    ),
    "chance": (
        "restorer: same input, same output",
        "two different images",
        [(RESTORE, RESTORE.replace("0.5", "torch.rand(())"))],
    ),
    "in place": ("restorer: inputs are left alone", "changed its inputs", [(RESTORE, "image *= 0.5; " + RESTORE)]),
    "takes NaN": (
        "restorer: bad input is refused",
        "an image with NaN must raise InputError, and was taken",
        [
            (
                RESTORE,
                RESTORE
                + "\n\n    def __call__(self, image, occlusion=None):\n        return self.restore(image, occlusion)",
            )
        ],
    ),
    "seed ignored": (
        "occluder: the seed decides",
        "three different seeds gave the same",
        [("manual_seed(seed)", "manual_seed(0)")],
    ),
    "seed not kept": (
        "occluder: the seed decides",
        "same seed gave two different",
        [
            ("manual_seed(seed)", "seed() and torch.Generator()"),
            ("generator = torch.Generator().seed() and torch.Generator()", "generator = None"),
        ],
    ),
    "not JSON": (
        "occluder: shape, range and parameters",
        "cannot be written as JSON",
        [('{"seed": seed}', '{"seed": image}')],
    ),
    "too few parameters": (
        "occluder: shape, range and parameters",
        "each of 3 images, got 1",
        [("* len(image))", ")")],
    ),
    "occluder in place": (
        "occluder: inputs are left alone",
        "changed its input",
        [("generator = torch", "image *= 0.5; generator = torch")],
    ),
    "no gradient": (
        "recognizer: gradients reach the image",
        "its embedding has no graph",
        [(EMBED, EMBED.replace("image", "image.detach()"))],
    ),
    "one embedding": (
        "recognizer: unit embeddings",
        "two different faces have the same",
        [(EMBED, "return torch.ones_like(image.flatten(1)) + 0 * image.flatten(1)")],
    ),
    "batch embedding": (
        "recognizer: batches of 0, 1 and 3",
        "differ by",
        [(EMBED, "return image.flatten(1) - 0.5 * image.flatten(1).mean(0)")],
    ),
    "graph in logs": ("task: a step trains", "still has its graph", [("loss.detach()", "loss")]),
    "nothing learned": ("task: a step trains", "a step changed no network", [(LEARN, "pass")]),
    "no optimizer": ("task: a step trains", "it has no optimizers", [('{"optimizer": self.optimizer}', "{}")]),
    "key is no attribute": (
        "task: a step trains",
        "'net', which is no attribute",
        [('{"network": self.network}', '{"net": self.network}')],
    ),
    "hidden state": (
        "task: a resumed step is the same",
        "after resuming, steps give another 'network'",
        [("noise = torch.rand(())", "noise = torch.rand(()) * self.steps")],
    ),
    "hidden schedule": (
        "task: a resumed step is the same",
        "after resuming, steps give another 'network'",
        [
            (
                "self.steps = 0",
                "self.steps = 0; self.schedule = torch.optim.lr_scheduler.StepLR(self.optimizer, 2, 0.5)",
            ),
            (LEARN, f"{LEARN}; self.schedule.step()"),
        ],
    ),
    "rate that no checkpoint holds": (
        "task: a resumed step is the same",
        "a checkpoint cannot hold",
        [(LEARN, f"{LEARN}; self.optimizer.param_groups[0]['lr'] = __import__('numpy').float32(0.1)")],
    ),
    "best of nothing": (
        "task: figures and pictures",
        "its best is '-mena', but evaluate() gives mean",
        [("def evaluate(", "best = '-mena'\n\n    def evaluate(")],
    ),
    "random weights": (
        "what needs weights says so",
        "its restorer Halve starts with random weights: set needs_weights = True",
        [
            (
                "    def restore(self, image, occlusion):\n        return Restored(image * 0.5",
                "    def __init__(self, config):\n        super().__init__(config)\n"
                "        self.network = nn.Conv2d(3, 3, 1)\n\n"
                "    def restore(self, image, occlusion):\n        return Restored(image * 0.5",
            )
        ],
    ),
    "random example": (
        "task: examples depend on their index alone",
        "differs when it is asked for again",
        [
            (
                "index % len(self)].copy()).permute(2, 0, 1).float()",
                "index % len(self)].copy()).permute(2, 0, 1) * torch.rand(())",
            )
        ],
    ),
    "finite examples": ("task: examples depend on their index alone", "IndexError", [("index % len(self)", "index")]),
    "no number": ("task: figures and pictures", "is not a number", [("float(batch.mean())", "batch.mean()")]),
    "no picture": (
        "task: figures and pictures",
        "must be a tensor (N, 3, H, W)",
        [('{"faces": batch}', '{"faces": batch[0]}')],
    ),
    "foreign export": (
        "task: exports fit the parts",
        "exports weights for 'restorer', which has no network",
        [("def evaluate(", "def exports(self):\n        return {'restorer': {}}\n\n    def evaluate(")],
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_fault_is_caught_by_its_check(fault, install):
    name, sentence, edits = FAULTS[fault]
    install("mine", extra=FULL, more=TASK, edits=edits)
    (check,) = [check for check in checks("mine") if check.name == name]
    with pytest.raises(Exception) as error:  # noqa: PT011 (a faulty method may raise anything)
        check()
    message = f"{type(error.value).__name__}: {error.value}"
    assert sentence in message
    assert "\n" not in message


def test_weights_are_checked(install, failures, tmp_path):
    import torch
    from torch import nn

    from deocc import weights

    package = tmp_path / "plugins" / "fake_mine_files"
    package.mkdir()
    (package / "__init__.py").write_text("")
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    card = {"method": "mine", "part": "restorer", "config": {}, "licence": "CC0-1.0"}
    weights.save(package / "w.safetensors", network.state_dict(), card)
    extra = 'restorer="{module}_parts:Learned", weights={{"restorer": "fake_mine_files:w.safetensors"}},'
    assert failures(extra=extra) == {"packaged weights are whole": "w.json: the card's data is empty"}
    weights.save(package / "w.safetensors", network.state_dict(), {**card, "data": "none: random"})
    assert not [name for name, passed, _ in run_checks("mine") if not passed]
    network[0].weight.data[0] = torch.nan
    weights.save(package / "w.safetensors", network.state_dict(), {**card, "data": "none: random"})
    found = {name: message for name, passed, message in run_checks("mine") if not passed}
    assert found["packaged weights are whole"] == "w.safetensors: tensor '0.weight' is not finite"


def test_another_plugin_may_not_be_imported(install, failures):
    install("yours")
    found = failures(("import torch\n", "import torch\nimport fake_yours\n"))
    assert found.keys() == {"only public names are used"}
    assert "imports fake_yours, which belongs to another plugin" in found["only public names are used"]


def test_broken_plugin_has_one_check_that_fails(install):
    install("mine", method="raise RuntimeError('on purpose')")
    ((name, passed, message),) = run_checks("mine")
    assert (name, passed) == ("the method is found", False)
    assert "on purpose" in message


def test_checks_with_settings(install):
    more = """
    from deocc.errors import UsageError


    class Choosy(Halve):
        def __init__(self, config):
            super().__init__(config)
            if config.width != 7:
                raise UsageError("it needs a width of 7")
    """
    install("choosy", extra='restorer="{module}_parts:Choosy",', more=more)
    assert {message for _, passed, message in run_checks("choosy") if not passed} == {"it needs a width of 7"}
    assert all(passed for _, passed, _ in run_checks("choosy:7"))


def test_unknown_method(install):
    with pytest.raises(UsageError, match="there is no method 'nobody'"):
        method_checks("nobody")


def test_decorator_makes_one_test_for_each_check(install):
    install("mine")
    mark = method_checks("mine").mark
    assert mark.name == "parametrize"
    assert [param.id for param in mark.args[1]] == [check.name for check in checks("mine")]


def test_checks_leave_the_random_generator_alone(install):
    import torch

    install("mine", extra=FULL, more=TASK)
    before = torch.get_rng_state()
    assert all(passed for _, passed, _ in run_checks("mine"))
    assert torch.equal(torch.get_rng_state(), before)

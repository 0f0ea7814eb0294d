"""Finding methods imports nothing, a broken plugin breaks only itself, and loading is strict."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

import deocc
from deocc import plugins, weights
from deocc.errors import PluginError, UsageError, WeightsError


def reason(name):
    (problem,) = [problem for problem in plugins.problems() if problem.entry_point == name]
    return problem


def test_names_are_read_without_importing_anything(install):
    install("mine")
    install("yours", method="raise RuntimeError('imported')")
    assert {"mine", "yours"} <= set(plugins.names())
    assert list(plugins.names()) == sorted(plugins.names())
    assert not {"fake_mine", "fake_mine_parts", "fake_yours"} & set(sys.modules)


def test_listing_needs_no_torch():
    """In a fresh interpreter."""
    code = (
        "import sys, deocc; from deocc import plugins; plugins.names(); deocc.__version__; "
        "print(*{'torch', 'cv2', 'numpy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_get_imports_no_part(install):
    install("mine")
    method = plugins.get("mine")
    assert method.name == "mine"
    assert method.parts() == ("restorer",)
    assert "fake_mine" in sys.modules
    assert "fake_mine_parts" not in sys.modules
    assert not any(problem.entry_point == "mine" for problem in plugins.problems())


def test_unknown_name_gets_a_suggestion(install):
    install("mine")
    with pytest.raises(UsageError, match=r"there is no method 'mien'; did you mean 'mine'\? \(installed: .*mine"):
        plugins.get("mien")
    with pytest.raises(UsageError, match=r"there is no method 'zzzzzz'; there is .*mine"):
        plugins.get("zzzzzz")


def test_nothing_installed(monkeypatch):
    monkeypatch.setattr(plugins, "entry_points", lambda group: [])
    assert plugins.names() == ()
    assert plugins.problems() == []
    with pytest.raises(UsageError, match="no plugin with a method is installed"):
        plugins.get("mine")


BROKEN = {
    "raises": ({"method": "raise RuntimeError('on purpose')"}, "failed (RuntimeError: on purpose)"),
    "exits": ({"method": "raise SystemExit(3)"}, "failed (SystemExit: 3)"),
    "syntax": ({"method": "def"}, "failed (SyntaxError: "),
    "lacks": ({"method": "OTHER = 1"}, "failed (AttributeError: "),
    "needs": (
        {"method": "import surely_not_installed"},
        "failed (ModuleNotFoundError: No module named 'surely_not_inst",
    ),
    "wrong-kind": ({"method": "METHOD = 3"}, "must be a deocc.method.Method, got int"),
    "named-else": ({"named": "else"}, "is named 'else', which must equal the entry point's name"),
    "newer": ({"api": 2}, "it is written for api 2 and this deocc has api 1; upgrade deocc"),
    "older": ({"api": 0}, "it is written for api 0 and this deocc takes 1 to 1; upgrade fake-older"),
    "api-as-text": ({"api": "'1'"}, "its api must be an integer, got '1'"),
    "class-as-part": ({"extra": "occluder=int,"}, "its occluder must be a string of a package or module, a colon"),
    "no-colon": ({"extra": "tasks={{'fit': 'mine'}},"}, "its fit must be a string of a package or module, a colon"),
    "no-weights": ({"extra": "weights=None,"}, "its weights must be a mapping, got None"),
    "Big_Name": ({}, "must be lower-case letters, digits and single hyphens"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_plugin_breaks_only_itself(name, install):
    changes, sentence = BROKEN[name]
    install(name, version="1.2.3", **changes)
    install("mine")
    problem = reason(name)
    assert (problem.distribution, problem.version) == (f"fake-{name}", "1.2.3")
    assert sentence in problem.reason
    assert "\n" not in str(problem)
    with pytest.raises(PluginError) as error:
        plugins.get(name)
    assert str(error.value) == str(problem)
    assert str(error.value).startswith(f"method {name!r} of fake-{name} 1.2.3: ")
    assert plugins.get("mine").name == "mine"


def test_two_plugins_with_one_name(install):
    install("mine", distribution="fake-one", version="1.0")
    install("mine", distribution="fake-two", version="2.0")
    with pytest.raises(PluginError) as error:
        plugins.get("mine")
    assert "fake-one 1.0" in str(error.value)
    assert "fake-two 2.0" in str(error.value)
    assert plugins.names().count("mine") == 1
    assert "fake_one" not in sys.modules


def test_metadata_without_a_name(install, tmp_path):
    install("mine")
    (tmp_path / "plugins" / "fake_mine-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\n")
    assert "mine" in plugins.names()
    plugins.problems()


def test_part_that_cannot_be_imported(install):
    install("mine", parts="raise RuntimeError('on purpose')")
    assert plugins.get("mine").parts() == ("restorer",)
    with pytest.raises(PluginError, match=r"its restorer 'fake_mine_parts:Halve' cannot be imported \(RuntimeError"):
        plugins.load("mine", "restorer")


def test_load(install):
    install("mine")
    restorer = deocc.restorer("mine", gain=0.5)
    image, occlusion = torch.full((1, 3, 16, 16), 0.8), torch.zeros(1, 1, 16, 16)
    occlusion[..., 8:] = 1
    restored = restorer(image, occlusion).image
    assert torch.equal(restored[..., :8], image[..., :8])
    assert torch.allclose(restored[..., 8:], torch.tensor(0.2))


@pytest.mark.parametrize(
    ("part", "options", "sentence"),
    [
        ("recognizer", {}, "method 'mine' has no 'recognizer'; it offers restorer"),
        (
            "restoer",
            {},
            "a part must be one of restorer, occluder, recognizer, got 'restoer'; did you mean 'restorer'?",
        ),
        ("restorer", {"gian": 1}, "unknown key 'gian'; did you mean 'gain'?"),
        ("restorer", {"gain": "much"}, "'gain' must be a number, got 'much' (str)"),
        ("restorer", {"device": "abacus"}, "device 'abacus' cannot be used on this machine; it has cpu"),
        ("restorer", {"device": "cuda:99"}, "device 'cuda:99' cannot be used on this machine; it has cpu"),
    ],
)
def test_load_refuses(part, options, sentence, install):
    install("mine")
    with pytest.raises(UsageError) as error:
        plugins.load("mine", part, **options)
    assert sentence in str(error.value)


@pytest.mark.parametrize(
    ("text", "settings"),
    [
        ("mine", {}),
        ("mine:gain=0.5", {"gain": "0.5"}),
        ("mine:7", {"width": "7"}),
        ("mine:a/b,c.onnx,gain=[1, 2]", {"width": "a/b,c.onnx", "gain": "[1, 2]"}),
        ("mine:7,gain=x=y, z", {"width": "7", "gain": "x=y, z"}),
    ],
)
def test_settings_behind_a_name(text, settings, install):
    install("mine")
    assert plugins.parse(text) == ("mine", settings)
    assert plugins.get(text).name == "mine"


def test_settings_are_applied(install):
    install("mine")
    assert deocc.restorer("mine:7,gain=0.25").config == plugins.get("mine").resolve("config")(7, 0.25)
    assert deocc.restorer("mine:gain=0.25", gain=0.5).config.gain == 0.5
    with pytest.raises(UsageError, match="unknown key 'gian'; did you mean 'gain'"):
        deocc.restorer("mine:gian=1")


@pytest.mark.parametrize("text", ["mine:gain=1,gain=2", "mine:7,width=3"])
def test_settings_are_refused(text, install):
    install("mine")
    with pytest.raises(UsageError, match="settings of method 'mine' are written 'field=value', got"):
        plugins.parse(text)


LEARNED = 'restorer="{module}_parts:Learned",'


def save(path, width=4, **card):
    from torch import nn

    network = nn.Sequential(nn.Conv2d(3, width, 1), nn.BatchNorm2d(width))
    tensors = {key: value.half() if value.is_floating_point() else value for key, value in network.state_dict().items()}
    weights.save(path, tensors, {"method": "mine", "part": "restorer", "config": {"width": width}, **card})
    return tensors


def test_weights_are_asked_for(install):
    install("mine", extra=LEARNED)
    with pytest.raises(
        WeightsError, match=r"needs trained weights and has none packaged; pass weights=FILE \(--weights"
    ):
        plugins.load("mine", "restorer")


def test_weights_bring_their_configuration(install, tmp_path):
    install("mine", extra=LEARNED)
    tensors = save(tmp_path / "w.safetensors", width=7)
    restorer = plugins.load("mine", "restorer", weights=str(tmp_path / "w.safetensors"))
    assert restorer.config.width == 7
    assert not restorer.network.training
    assert not any(parameter.requires_grad for parameter in restorer.network.parameters())
    assert restorer.network[0].weight.dtype == torch.float32
    assert torch.equal(restorer.network[0].weight, tensors["0.weight"].float())


def test_weights_that_do_not_fit(install, tmp_path):
    install("mine", extra=LEARNED)
    path = tmp_path / "w.safetensors"
    save(path)
    with pytest.raises(WeightsError, match=r"w\.safetensors: tensor '.*' should have shape \(9,"):
        plugins.load("mine", "restorer", weights=path, width=9)
    save(path, config={"widht": 4})
    with pytest.raises(WeightsError, match="on its card does not fit method 'mine': unknown key 'widht'; did you mean"):
        plugins.load("mine", "restorer", weights=path)
    save(path, method="yours")
    with pytest.raises(WeightsError, match="these are weights of the restorer of method 'yours'"):
        plugins.load("mine", "restorer", weights=path)


def test_weights_for_a_part_that_takes_none(install, tmp_path):
    install("mine")
    save(tmp_path / "w.safetensors")
    with pytest.raises(WeightsError, match="the restorer of method 'mine' takes none"):
        plugins.load("mine", "restorer", weights=tmp_path / "w.safetensors")


def test_packaged_weights(install, tmp_path):
    install("mine", extra=LEARNED + 'weights={{"restorer": "fake_package:weights/w.safetensors"}},')
    with pytest.raises(PluginError, match=r"'fake_package:weights/w\.safetensors' cannot be imported"):
        plugins.load("mine", "restorer")
    package = tmp_path / "plugins" / "fake_package"
    (package / "weights").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    import importlib

    importlib.invalidate_caches()
    with pytest.raises(PluginError, match="are not a file of the installed package"):
        plugins.load("mine", "restorer")
    save(package / "weights" / "w.safetensors", width=5)
    assert plugins.load("mine", "restorer").config.width == 5
    assert plugins.packaged_weights(plugins.get("mine"), "restorer") == package / "weights" / "w.safetensors"
    assert plugins.packaged_weights(plugins.get("mine"), "recognizer") is None


def test_recipes(install, tmp_path):
    from deocc import config

    method = (
        '"""A package."""\n'
        + "from deocc.method import Method\nMETHOD = Method(api=1, name='mine', config='{module}.c:C')"
    )
    install("mine", method=method)
    folder = tmp_path / "plugins"
    (folder / "fake_mine.py").rename(folder / "x.py")
    (folder / "fake_mine" / "recipes").mkdir(parents=True)
    (folder / "x.py").rename(folder / "fake_mine" / "__init__.py")
    (folder / "fake_mine" / "c.py").write_text(
        "from dataclasses import dataclass\n@dataclass(frozen=True)\nclass C:\n    width: int = 4\n"
    )
    (folder / "fake_mine" / "recipes" / "small.toml").write_text("width = 2\n")
    (folder / "fake_mine" / "recipes" / "wrong.toml").write_text("wdth = 2\n")
    (tmp_path / "own.toml").write_text("width = 3\n")
    found = plugins.get("mine")
    assert config.recipes(found) == ("small", "wrong")
    assert config.recipe(found).width == 4
    assert config.recipe(found, "small").width == 2
    assert config.recipe(found, str(tmp_path / "own.toml")).width == 3
    assert config.recipe(found, tmp_path / "own.toml").width == 3
    with pytest.raises(UsageError, match=r"has no recipe 'smal'; did you mean 'small'?"):
        config.recipe(found, "smal")
    with pytest.raises(UsageError, match=r"recipe 'wrong'.*: unknown key 'wdth'; did you mean 'width'?"):
        config.recipe(found, "wrong")


def test_recipes_lie_beside_the_configuration(install, tmp_path):
    from deocc import config

    method = "from deocc.method import Method\nMETHOD = Method(api=1, name='mine', config='{module}.one.c:C')"
    install("mine", method=method)
    folder = tmp_path / "plugins"
    package = folder / "fake_mine" / "one"
    (package / "recipes").mkdir(parents=True)
    (folder / "fake_mine.py").rename(folder / "fake_mine" / "__init__.py")
    (package / "__init__.py").write_text("")
    (package / "c.py").write_text(
        "from dataclasses import dataclass\n@dataclass(frozen=True)\nclass C:\n    width: int = 4\n"
    )
    (package / "recipes" / "small.toml").write_text("width = 2\n")
    assert config.recipe(plugins.get("mine"), "small").width == 2


def test_code_is_known_by_its_source(install, monkeypatch, tmp_path):
    from importlib import import_module

    install("mine")
    cls = import_module("fake_mine_parts").Halve
    before = plugins.source_digest(cls)
    assert plugins.source_digest(cls) == before
    file = tmp_path / "plugins" / "fake_mine_parts.py"
    file.write_text(file.read_text() + "\n# changed\n")
    assert plugins.source_digest(cls) != before
    nowhere = type("Mine", (), {"__module__": "nowhere"})
    monkeypatch.setitem(sys.modules, "nowhere", type(sys)("nowhere"))
    assert plugins.source_digest(nowhere) != plugins.source_digest(nowhere)
    monkeypatch.setattr(sys.modules["nowhere"], "__file__", "<stdin>", raising=False)
    assert plugins.source_digest(nowhere) != plugins.source_digest(nowhere)

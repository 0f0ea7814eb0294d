"""The command line, with a method made for the test: what it writes, says and returns."""

from __future__ import annotations

import dataclasses
import inspect
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from deocc import cli, jobs
from deocc.cli import main
from deocc.images import read_image, write_image

ROOT = Path(__file__).resolve().parents[1]
PORTRAITS = ROOT / "deocc" / "portraits"

PARTS = """
    from dataclasses import dataclass

    import torch

    from deocc.method import Restored, Restorer


    @dataclass(frozen=True)
    class Config:
        level: float = 0.5


    class Find(Restorer):
        finds_occlusion = True
        crop_size = 64

        def restore(self, image, occlusion):
            if occlusion is None:
                occlusion = torch.zeros_like(image[:, :1])
                occlusion[:, :, 32:] = 1
            painted = torch.full_like(image, self.config.level)
            extras = {"map": occlusion, "raw": -image[:, :2], "field": image[:, :2, ::2, ::2]}
            return Restored(painted, occlusion, extras)


    class Told(Find):
        finds_occlusion = False


    class Crash(Find):
        def restore(self, image, occlusion):
            raise RuntimeError("on purpose\\nsecond line")
"""


@pytest.fixture
def method(install) -> str:
    install("finder", extra='restorer="{module}_parts:Find",', parts=PARTS)
    return "finder"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two photos, one of them in a folder below."""
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    one = read_image(PORTRAITS / "eileen-collins.jpg")
    write_image(folder / "a.png", one[::2, ::2].copy())
    write_image(folder / "more" / "b.png", one[::2, ::-2].copy())
    return folder


def files_of(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def unmask(*arguments: object) -> int:
    return main(["unmask", *map(str, arguments)])


def test_help_of_every_verb(capsys):
    """Each page shows each option with its description."""

    def text(*verb: str) -> str:
        with pytest.raises(SystemExit) as stop:
            main([*verb, "--help"])
        assert stop.value.code == 0
        plain = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)
        return " ".join(re.sub("[│|╭╮╰╯─]", " ", plain).split())

    verbs = {
        "unmask": cli.Unmask, "occlude": cli.Occlude, "train": cli.Train, "data pack": cli.Pack,
        "data check": cli.CheckData, "methods": cli.Methods, "info": cli.Info, "new-plugin": cli.NewPlugin,
        "check": cli.Check, "demo": cli.Demo, "judge diff": cli.JudgeDiff,
    }  # fmt: skip
    front = text()
    for verb, options in verbs.items():
        page = text(*verb.split())
        assert verb.split()[0] in front
        described = dict(re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", inspect.getdoc(options) or "", re.MULTILINE))
        for field in dataclasses.fields(options):
            if field.name != "debug":
                words = " ".join(described[field.name].split())
                assert words[:30] in page, (verb, field.name)
        assert "--debug" in page


def test_help_is_fast_and_light():
    code = "import sys; from deocc.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass\n"
    code += "print(*{'torch', 'cv2', 'numpy'} & set(sys.modules), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stderr.split() == []


def test_version_and_module():
    done = subprocess.run([sys.executable, "-m", "deocc", "--version"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0
    assert done.stdout.startswith("deocc ")


def test_unmask_folder(method, photos, tmp_path, capsys):
    out = tmp_path / "out"
    assert unmask(photos, "-o", out, "--method", method, "--report", "--extras") == 0
    said = capsys.readouterr()
    assert said.err == ""
    assert "2 of 2 photos unmasked" in said.out
    faces = ["1-after.png", "1-before.png", "1-field-u.png", "1-field-v.png", "1-field.npy", "1-map.png"]
    faces += ["1-occlusion.png", "1-raw.npy", "1-row.png", "faces.json"]
    assert files_of(out) == sorted(
        ["a.png", "more/b.png", "deocc-unmask.jsonl", "report.html"]
        + [f"{name}.faces/{file}" for name in ("a", "more/b") for file in faces]
    )
    before, after = read_image(photos / "a.png"), read_image(out / "a.png")
    assert before.shape == after.shape
    assert (before != after).any()
    assert (before[:20] == after[:20]).all()
    assert np.load(out / "a.faces" / "1-raw.npy").shape == (2, 64, 64)
    assert np.load(out / "a.faces" / "1-field.npy").shape == (2, 32, 32)
    assert read_image(out / "a.faces" / "1-field-u.png").shape == (32, 32, 3)
    row = read_image(out / "a.faces" / "1-row.png")
    assert row.shape[1] >= 6 * 64  # before, occlusion, map, u, v, after
    (face,) = json.loads((out / "a.faces" / "faces.json").read_text())
    assert np.shape(face["landmarks"]) == (5, 2)
    report = (out / "report.html").read_text()
    assert report.count("<img") == 10
    assert "Restored pixels are invented." in report


def test_unmask_resumes_and_never_overwrites(method, photos, tmp_path, capsys):
    out = tmp_path / "out"
    assert unmask(photos / "a.png", "-o", out, "--method", method) == 0
    first = (out / "a.png").stat()
    assert unmask(photos, "-o", out, "--method", method) == 0
    assert "done before, skipped" in capsys.readouterr().out
    assert (out / "a.png").stat().st_ino == first.st_ino
    assert (out / "more" / "b.png").exists()

    # Other settings, another photo of that name, a file of somebody else: none of them is replaced.
    data = (out / "a.png").read_bytes()
    assert unmask(photos / "a.png", "-o", out, "--method", method, "--faces", "largest") == 1
    assert "a.png is there already" in capsys.readouterr().err
    write_image(photos / "a.png", read_image(photos / "more" / "b.png"), overwrite=True)
    assert unmask(photos / "a.png", "-o", out, "--method", method) == 1
    (out / "more" / "b.png").unlink()
    (out / "more" / "b.png").write_text("mine")
    capsys.readouterr()
    assert unmask(photos / "more", "-o", out / "more", "--method", method) == 1
    assert (out / "more" / "b.png").read_text() == "mine"
    assert (out / "a.png").read_bytes() == data

    assert unmask(photos, "-o", out, "--method", method, "--overwrite") == 0
    assert (out / "a.png").read_bytes() != data
    assert unmask(photos, "-o", out, "--method", method) == 0
    assert capsys.readouterr().out.count("skipped") == 2


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_run_that_was_killed_goes_on(method, photos, tmp_path, monkeypatch, moment):
    """Killed right before or right after a result appears, which is when the journal could be wrong about it."""
    import deocc.images

    write, out = deocc.images.write_image, tmp_path / "out"

    def kill(*arguments, **options):
        if moment == "after":
            write(*arguments, **options)
        raise KeyboardInterrupt

    for overwrite in ([], ["--overwrite"]):
        monkeypatch.setattr(deocc.images, "write_image", kill)
        assert unmask(photos, "-o", out, "--method", method, *overwrite) == 130
        monkeypatch.setattr(deocc.images, "write_image", write)
        with (out / "deocc-unmask.jsonl").open("a") as journal:
            journal.write('{"output": "more/b.p')
        assert unmask(photos, "-o", out, "--method", method, *overwrite) == 0
        assert {"a.png", "more/b.png"} <= set(files_of(out))


def test_journal_tells_a_replaced_file_from_the_one_before(tmp_path):
    """--overwrite, killed before the new file took the place of the old one: the old one is not taken for done."""
    journal = jobs._Journal(tmp_path, "test")
    (tmp_path / "x.png").write_text("old")
    journal.begin([Path("x.png")], "key")
    assert not jobs._Journal(tmp_path, "test").made(Path("x.png"), "key")
    (tmp_path / "new").write_text("new")
    (tmp_path / "new").replace(tmp_path / "x.png")
    assert jobs._Journal(tmp_path, "test").made(Path("x.png"), "key")
    assert not jobs._Journal(tmp_path, "test").made(Path("x.png"), "other key")
    with journal.path.open("a") as file:
        file.write('{"output": "y.p')
    jobs._Journal(tmp_path, "test").begin([Path("y.png")], "key")
    assert jobs._Journal(tmp_path, "test").begun.keys() == {"x.png", "y.png"}


def test_many_pictures_of_a_face_are_in_rows_of_six():
    pictures = {f"layer-{number}": np.full((8, 8, 3), number, np.uint8) for number in range(14)}
    few, many = jobs._in_rows({name: pictures[name] for name in [*pictures][:6]}), jobs._in_rows(pictures)
    assert many.shape[1] == few.shape[1]
    assert 2.5 * len(few) < len(many) < 3 * len(few)


def test_failed_files_are_listed_and_the_run_goes_on(method, photos, tmp_path, capsys):
    (photos / "broken.jpg").write_bytes(b"\xff\xd8no image")
    write_image(photos / "nobody.png", np.full((64, 64, 3), 90, np.uint8))
    out = tmp_path / "out"
    assert unmask(photos, tmp_path / "missing", photos / "*.gif", "-o", out, "--method", method) == 1
    said = capsys.readouterr()
    listed = said.err.split("deocc: 4 failed:")[1]
    for name in ("broken.jpg", "nobody.png: no face was found", "missing", "*.gif"):
        assert name in listed
    assert "Traceback" not in said.err
    assert "2 of 6 photos unmasked" in said.out
    assert [name for name in files_of(out) if name.endswith(".png")] == ["a.png", "more/b.png"]


def test_a_method_that_crashes_fails_its_photo_only(install, photos, tmp_path, capsys):
    install("crash", extra='restorer="{module}_parts:Crash",', parts=PARTS)
    assert unmask(photos, "-o", tmp_path / "out", "--method", "crash") == 1
    said = capsys.readouterr().err
    assert re.search(r"a\.png: RuntimeError: on purpose$", said, re.MULTILINE)
    assert "Traceback" not in said
    assert not (tmp_path / "out").exists(), "nothing was made, so nothing is left"
    assert unmask(photos, "-o", tmp_path / "out", "--method", "crash", "--debug") == 1
    assert "Traceback" in capsys.readouterr().err


def test_two_photos_for_one_result(method, photos, tmp_path, capsys):
    assert unmask(photos / "a.png", photos / "a.png", "-o", tmp_path / "out", "--method", method) == 0
    write_image(photos / "more" / "a.jpg", read_image(photos / "a.png"))
    assert unmask(photos / "a.png", photos / "more" / "a.jpg", "-o", tmp_path / "out2", "--method", method) == 1
    assert "would both be written to" in capsys.readouterr().err


def test_photos_are_never_the_target(method, photos, capsys):
    data = (photos / "a.png").read_bytes()
    assert unmask(photos, "-o", photos, "--method", method) == 2
    assert "the results need a folder of their own" in capsys.readouterr().err
    assert files_of(photos) == ["a.png", "more/b.png"]
    assert unmask(photos / "a.png", "-o", photos, "--method", method) == 1
    assert unmask(photos / "a.png", "-o", photos, "--method", method, "--overwrite") == 1
    assert "is one of the photos" in capsys.readouterr().err
    assert (photos / "a.png").read_bytes() == data


def test_results_inside_the_folder_of_photos_are_not_photos(method, photos, capsys):
    for _ in range(2):
        assert unmask(photos, "-o", photos / "out", "--method", method) == 0
        assert "2 of 2 photos" in capsys.readouterr().out


def test_occlude_then_unmask_with_the_occlusions(install, photos, tmp_path, capsys):
    install("told", extra='restorer="{module}_parts:Told",', parts=PARTS)
    masked = tmp_path / "masked"
    arguments = ["occlude", str(photos), "--kinds", "surgical", "cloth", "--seed", "3", "-o"]
    assert main([*arguments, str(masked)]) == 0
    assert [name for name in files_of(masked) if "deocc" not in name] == [
        "images/a.png", "images/more/b.png", "occlusions/a.png", "occlusions/more/b.png", "parameters/a.json",
        "parameters/more/b.json",
    ]  # fmt: skip
    parameters = json.loads((masked / "parameters" / "a.json").read_text())
    assert parameters["seed"] == 3
    assert parameters["faces"][0]["parameters"]["kind"] in ("surgical", "cloth")
    image, photo = read_image(masked / "images" / "a.png"), read_image(photos / "a.png")
    occlusion = read_image(masked / "occlusions" / "a.png")[..., 0]
    assert (image[occlusion == 0] == photo[occlusion == 0]).all()

    with_a_comma = ["occlude", str(photos), "--kinds", "surgical,cloth", "--seed", "3", "-o"]
    assert main([*with_a_comma, str(tmp_path / "again")]) == 0
    assert (tmp_path / "again" / "images" / "a.png").read_bytes() == (masked / "images" / "a.png").read_bytes()
    assert main([*arguments, str(masked)]) == 0
    assert capsys.readouterr().out.count("skipped") == 2

    out = tmp_path / "out"
    assert unmask(masked / "images", "-o", out, "--occlusion", masked / "occlusions", "--method", "told") == 0
    restored = read_image(out / "a.png")
    assert (restored[occlusion < 128] == image[occlusion < 128]).all()
    assert (restored[occlusion > 250] != image[occlusion > 250]).any(axis=1).mean() > 0.9
    (masked / "occlusions" / "a.png").unlink()
    capsys.readouterr()
    assert unmask(masked / "images", "-o", out, "--occlusion", masked / "occlusions", "--method", "told") == 1
    assert re.search(r"a\.png: its occlusion .*a\.png is missing", capsys.readouterr().err)
    assert unmask(masked / "images", "-o", out, "--method", "told") == 2
    assert "--occlusion" in capsys.readouterr().err


def test_methods(method, install, capsys):
    install("other", method="raise RuntimeError('on purpose')")
    assert main(["methods"]) == 1
    said = capsys.readouterr()
    assert re.search(r"^finder +restorer +made for a test +- +ready$", said.out, re.MULTILINE)
    assert "other" not in said.out
    assert "method 'other' of fake-other 1.0" in said.err


def test_methods_that_need_weights(install, capsys):
    install("learned", extra='restorer="{module}_parts:Learned",')
    main(["methods"])
    assert re.search(r"^learned .* restorer needs --weights$", capsys.readouterr().out, re.MULTILINE)


def test_methods_that_lack_something_else(install, capsys):
    more = """
    class Asking(Halve):
        @classmethod
        def lacks(cls):
            return "a model"
    """
    install("asking", extra='restorer="{module}_parts:Asking",', more=more)
    main(["methods"])
    assert re.search(r"^asking .* restorer needs a model$", capsys.readouterr().out, re.MULTILINE)


def test_a_part_that_is_none_breaks_only_itself(install, capsys):
    install("odd", extra='restorer="collections:OrderedDict",')
    install("mine")
    main(["methods"])
    said = capsys.readouterr().out
    assert re.search(r"^odd .* broken: its restorer is no part \(AttributeError: ", said, re.MULTILINE)
    assert re.search(r"^mine .* ready$", said, re.MULTILINE)


def test_data_pack_and_check(photos, tmp_path, capsys):
    pack = tmp_path / "packs" / "one"
    write_image(photos / "nobody.png", np.full((64, 64, 3), 90, np.uint8))
    assert main(["data", "pack", str(photos), "-o", str(pack), "--size", "64", "--zoom", "1"]) == 0
    said = capsys.readouterr()
    assert "2 faces, 1 images skipped" in said.out
    assert "nobody.png: skipped: no face was found" in said.err
    assert main(["data", "check", str(pack)]) == 0
    images = pack / "images.npy"
    images.write_bytes(images.read_bytes()[:-1])
    assert main(["data", "check", str(pack)]) == 1
    assert "images.npy" in capsys.readouterr().err


def test_data_pack_with_fields(photos, tmp_path, capsys):
    pack = tmp_path / "packs" / "one"
    assert main(["data", "pack", str(photos), "-o", str(pack), "--size", "64", "--dense-field", "facemesh"]) == 0
    assert "2 faces, 0 without a field, 0 images skipped" in capsys.readouterr().out
    fields = np.load(pack / "fields.npy")
    assert fields.shape == (2, 64, 64, 3)
    assert (fields.reshape(2, -1, 3).max(axis=1) > 200).all()
    assert main(["data", "check", str(pack)]) == 0
    (pack / "fields.npy").unlink()
    assert main(["data", "check", str(pack)]) == 1
    assert "fields.npy" in capsys.readouterr().err


def test_new_plugin_and_check(method, tmp_path, capsys):
    assert main(["new-plugin", "blur", "-o", str(tmp_path)]) == 0
    assert (tmp_path / "deocc-blur" / "pyproject.toml").exists()
    assert main(["new-plugin", "blur", "-o", str(tmp_path)]) == 1
    capsys.readouterr()
    code = main(["check", method])
    lines = capsys.readouterr().out.splitlines()
    assert all(line.startswith(("ok  ", "FAIL")) for line in lines[:-1])
    assert re.fullmatch(r"finder: \d+ passed, \d+ failed", lines[-1])
    assert code == (0 if lines[-1].endswith(" 0 failed") else 1)


def test_a_reader_that_goes_away(method):
    """``deocc methods | head -0``"""
    code = "import sys; from deocc.cli import main; sys.exit(main(['methods']))"
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([sys.executable, "-c", code], stdout=writer, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    os.close(writer)
    assert "Traceback" not in done.stderr
    assert done.returncode in (0, 1)


def test_names_between_commas() -> None:
    assert cli._names(["a,b", "c"]) == ["a", "b", "c"]
    assert cli._names(["onnx:m.onnx,layout=x.toml,other,d:e.onnx"]) == [
        "onnx:m.onnx,layout=x.toml",
        "other",
        "d:e.onnx",
    ]

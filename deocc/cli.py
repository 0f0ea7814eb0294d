"""The command line: ``deocc <verb>``.

The verbs are dataclasses, from which tyro makes the parser and ``--help``. What a verb needs is imported when it runs,
so that ``deocc --help`` does not wait for torch.
"""

from __future__ import annotations

import abc
import inspect
import io
import os
import re
import sys
import traceback
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from tyro.conf import FlagCreatePairsOff, Positional, UseAppendAction, arg, subcommand

from deocc.errors import DeoccError, UsageError

if TYPE_CHECKING:
    from deocc.jobs import Outcome

Folder = Annotated[Path, arg(aliases=["-o"], metavar="FOLDER")]
Photos = Annotated[Positional[tuple[Path, ...]], arg(name="in", metavar="IN...", help_behavior_hint="(required)")]
MethodName = Annotated[str, arg(metavar="METHOD")]
Flag = FlagCreatePairsOff[bool]


@dataclass(frozen=True, kw_only=True)
class Verb(abc.ABC):
    """What all verbs share.

    Attributes:
        debug: Show the traceback of an error.
    """

    debug: Flag = False

    @abc.abstractmethod
    def run(self) -> int:
        """Do it and return the exit code."""


@dataclass(frozen=True, kw_only=True)
class Unmask(Verb):
    """Restore the occluded faces of photos. Restored pixels are invented.

    Every face of a photo is found, restored and pasted back; the rest of the photo stays as it is, to the bit. A photo
    NAME.jpg becomes OUT/NAME.png, in 8-bit RGB, what is transparent on white; a photo below a folder keeps its place
    below OUT. A run that was stopped is taken up where it stopped by the same command. Photos that fail are listed at
    the end, and the exit code is 1.

    Attributes:
        photos: Image files (JPEG, PNG, WebP, BMP, TIFF), folders (searched with all folders below), or quoted patterns
            such as 'photos/*.jpg'.
        out: Folder for the results, not that of the photos; made if need be.
        method: Method that restores, as listed by 'deocc methods'.
        occlusion: What is occluded, for methods that cannot find it: a grey image as large as the photo, brighter than
            half = occluded; or a folder with one for each photo, of the same name but for the suffix. By default the
            method finds it.
        weights: Weights, a .safetensors file with its .json card beside it. By default those packaged with the method.
        device: Where to compute: cpu, cuda, cuda:1.
        faces: Restore all faces of a photo, or its largest alone.
        report: Write OUT/report.html too, one file with the pictures of the first 100 photos in it.
        extras: Write each face's crop before and after, its occlusion and what else the method returns to
            OUT/NAME.faces.
        overwrite: Do every photo again and replace what is in OUT. Otherwise no file is ever replaced.
    """

    photos: Photos = ()
    out: Folder
    method: MethodName = "canet"
    occlusion: Annotated[Path | None, arg(metavar="FILE|FOLDER")] = None
    weights: Annotated[Path | None, arg(metavar="FILE")] = None
    device: str = "cpu"
    faces: Literal["all", "largest"] = "all"
    report: Flag = False
    extras: Flag = False
    overwrite: Flag = False

    def run(self) -> int:
        """Unmask the photos."""
        from deocc.jobs import unmask

        return _outcome(
            unmask(
                self.photos,
                self.out,
                method=self.method,
                occlusion=self.occlusion,
                weights=self.weights,
                device=self.device,
                faces=self.faces,
                report=self.report,
                extras=self.extras,
                overwrite=self.overwrite,
                debug=self.debug,
            ),
            "unmasked",
        )


@dataclass(frozen=True, kw_only=True)
class Occlude(Verb):
    """Put a mask, sunglasses, a hand or the like over the faces of photos, by a seed.

    For a photo NAME.jpg this writes OUT/images/NAME.png, OUT/occlusions/NAME.png (grey, 255 = occluded) and
    OUT/parameters/NAME.json. To restore them: deocc unmask OUT/images -o RESTORED [--occlusion OUT/occlusions].

    Attributes:
        photos: Image files, folders, or quoted patterns such as 'photos/*.jpg'.
        out: Folder for the results, not that of the photos; made if need be.
        kinds: Choose among these kinds of occlusion only, with commas or spaces between (surgical, n95, cloth,
            sunglasses, ...; an unknown one lists them). By default all but the nine 'template-...' kinds.
        seed: The same seed gives the same bytes for a photo of the same name.
        overwrite: Do every photo again and replace what is in OUT. Otherwise no file is ever replaced.
    """

    photos: Photos = ()
    out: Folder
    kinds: Annotated[tuple[str, ...], arg(metavar="KIND...", help_behavior_hint="")] = ()
    seed: int = 0
    overwrite: Flag = False

    def run(self) -> int:
        """Occlude the photos."""
        from deocc.jobs import occlude

        return _outcome(
            occlude(
                self.photos,
                self.out,
                kinds=_names(self.kinds) or None,
                seed=self.seed,
                overwrite=self.overwrite,
                debug=self.debug,
            ),
            "occluded",
        )


@dataclass(frozen=True, kw_only=True)
class Train(Verb):
    """Train a method and write its weights, each with its card.

    The data are folders written by 'deocc data pack'. A run that was stopped goes on where it stopped. An example, of
    faces packed with --dense-field facemesh: deocc train canet --recipe small --data packs/train --hold-out 0.02 -o
    runs/canet --set joint.losses.perceptual=0 --set joint.training.steps=2000

    Attributes:
        method: Method to train, as listed by 'deocc methods'.
        data: Packed faces to train on.
        out: Folder of the run: checkpoints, log, pictures, weights.
        recipe: A recipe packaged with the method (paper, small, smoke), or a TOML file. By default the configuration's
            defaults.
        eval_data: Packed faces to evaluate on, whose people are not in --data. By default there is no evaluation.
        hold_out: Share of the people in --data to evaluate on and not to train on, instead of --eval-data.
        overrides: A setting to change after the recipe, such as training.steps=2000 (the value is read as TOML).
        stages: Stages to run. By default all, in the method's order.
        start_from: Weights of this method to start from: those of an earlier run, to train on.
        resume: Go on where a run in the folder stopped; --no-resume refuses a folder that holds one.
        device: Where to compute: cpu, cuda, cuda:1.
    """

    method: Annotated[Positional[str], arg(metavar="METHOD")]
    data: Annotated[tuple[Path, ...], arg(metavar="PACK...")]
    out: Folder
    recipe: Annotated[str | None, arg(metavar="NAME|FILE")] = None
    eval_data: Annotated[tuple[Path, ...], arg(metavar="PACK...", help_behavior_hint="")] = ()
    hold_out: float = 0.0
    overrides: Annotated[UseAppendAction[tuple[str, ...]], arg(name="set", metavar="KEY=VALUE")] = ()
    stages: Annotated[tuple[str, ...], arg(metavar="STAGE...", help_behavior_hint="")] = ()
    start_from: Annotated[tuple[Path, ...], arg(metavar="WEIGHTS...", help_behavior_hint="")] = ()
    resume: bool = True
    device: str = "cpu"

    def run(self) -> int:
        """Train."""
        overrides = {}
        for text in self.overrides:
            key, equals, value = text.partition("=")
            if not equals or not key:
                raise UsageError(f"--set wants KEY=VALUE, got {text!r}")
            overrides[key.strip()] = value.strip()
        from deocc.train import train

        paths = train(
            self.method,
            data=self.data,
            eval_data=self.eval_data,
            hold_out=self.hold_out,
            out=self.out,
            recipe=self.recipe,
            overrides=overrides,
            stages=self.stages or None,
            start_from=self.start_from,
            device=self.device,
            resume=self.resume,
        )
        for part, path in paths.items():
            print(f"{part}: {path}")
        return 0


@dataclass(frozen=True, kw_only=True)
class Pack(Verb):
    """Align the faces of a data set and write them to one folder that training reads without decoding.

    A run that was stopped goes on where it stopped.

    Attributes:
        source: Folder of the data set.
        out: Folder to write: a uint8 memory map, landmarks, identities, checksums.
        kind: How the data set is laid out: folder (any images), identities (a folder for each person), or the name of a
            public data set (an unknown one lists them). What is missing is said with where to get it.
        split: Part of the data set to pack, where it has parts. By default all of it.
        size: Side of the aligned crops, in pixels.
        zoom: Scale of the ArcFace template in the crop: 1 is the face from brows to chin, 0.75 has hair and chin
            inside.
        dense_field: Pack each face's dense correspondence field too, for methods that learn it: facemesh (packaged), or
            a morphable model's file. By default there are no fields.
        limit: Pack the first so many images only.
        workers: Processes that decode and align; 0 does it in this one. The result is the same.
    """

    source: Annotated[Positional[Path], arg(metavar="SOURCE")]
    out: Folder
    kind: str = "folder"
    split: str | None = None
    size: int = 128
    zoom: float = 0.75
    dense_field: Annotated[str | None, arg(metavar="facemesh|FILE")] = None
    limit: int | None = None
    workers: int = 0

    def run(self) -> int:
        """Pack."""
        from deocc.data import pack
        from deocc.faces import Crop, face_model
        from deocc.files import make_folder

        crop = Crop(self.size, self.zoom)
        model = None if self.dense_field is None else face_model(self.dense_field)
        source = _source(self.kind, self.source, self.split)
        make_folder(self.out.parent)
        with _progress(f"packing {self.source}") as progress:
            report = pack(
                source,
                self.out,
                crop=crop,
                dense_field=model,
                limit=self.limit,
                workers=self.workers,
                progress=progress,
            )
        for name, note in report.notes.items():
            print(f"{name}: {note}", file=sys.stderr)
        for name, reason in report.skipped.items():
            print(f"{name}: skipped: {reason}", file=sys.stderr)
        for name in report.without_field:
            print(f"{name}: the face model sees no face, its field is empty", file=sys.stderr)
        counts = [f"{report.faces} faces", f"{len(report.skipped)} images skipped", f"{report.seconds:.1f} s"]
        if model is not None:
            counts.insert(1, f"{len(report.without_field)} without a field")
        print(f"{report.path}: {', '.join(counts)}")
        return 0


@dataclass(frozen=True, kw_only=True)
class CheckData(Verb):
    """Read packed faces through and say what is wrong with them: sizes, checksums, indices.

    Attributes:
        packs: Folders written by 'deocc data pack'.
    """

    packs: Annotated[Positional[tuple[Path, ...]], arg(metavar="PACK...", help_behavior_hint="")] = ()

    def run(self) -> int:
        """Check."""
        from deocc.data import check

        if not self.packs:
            raise UsageError("give at least one folder of packed faces, got none")
        bad = 0
        for pack in self.packs:
            problems = check(pack)
            bad += bool(problems)
            for problem in problems:
                _complain(problem)
            if not problems:
                print(f"{pack}: well")
        return 1 if bad else 0


@dataclass(frozen=True, kw_only=True)
class Data:
    """Pack data sets for training, and check what was packed."""

    verb: Annotated[Pack, subcommand("pack")] | Annotated[CheckData, subcommand("check")]

    @property
    def debug(self) -> bool:
        """Show the traceback of an error."""
        return self.verb.debug

    def run(self) -> int:
        """Run the verb below."""
        return self.verb.run()


@dataclass(frozen=True, kw_only=True)
class JudgeTask(Verb):
    """What the verbs below 'deocc judge' share.

    Attributes:
        data: The faces: a folder written by 'deocc data pack'; KIND:FOLDER or KIND:FOLDER:SPLIT, such as
            lfw:data/lfw:test; or any folder of images, with a folder for each person.
        out: Folder for report.html, report.json, the pictures that it names, and the cache.
        restorer: Methods that restore, with commas or spaces between.
        recognizer: Methods that match faces, with commas or spaces between.
        given: Restorers among these that are judged a second time with the true occlusion given to them. Those that
            cannot find one are always given it.
        weights: Weights of a method, instead of the packaged ones; may be repeated, also for both parts of a method:
            each file says which it belongs to.
        occluder: Installed method that occludes, instead of deocc.occlude; or 'real': the probes wear real masks.
        kinds: Kinds of occlusion of deocc.occlude to choose among, with commas or spaces between. By default all but
            the nine 'template-...' kinds.
        seed: Of the occlusions, each decided by it and the name of the image, and of all that is drawn.
        limit: At most so many pairs, probes and faces, evenly spaced.
        resamples: Bootstrap samples behind each interval; 0 for none.
        allow_overlap: Judge though people of the test were in a restorer's training.
        cache: Folder for embeddings and figures, to share between reports. By default OUT/cache.
        device: Where to compute: cpu, cuda, cuda:1.
    """

    data: Annotated[str, arg(metavar="DATA")]
    out: Folder
    restorer: Annotated[tuple[str, ...], arg(metavar="METHOD...")]
    recognizer: Annotated[tuple[str, ...], arg(metavar="METHOD...")] = ("mobilefacenet",)
    given: Annotated[tuple[str, ...], arg(metavar="METHOD...", help_behavior_hint="")] = ()
    weights: Annotated[UseAppendAction[tuple[str, ...]], arg(metavar="METHOD=FILE")] = ()
    occluder: Annotated[str | None, arg(metavar="METHOD|real")] = None
    kinds: Annotated[tuple[str, ...], arg(metavar="KIND...", help_behavior_hint="")] = ()
    seed: int = 0
    limit: int | None = None
    resamples: int = 1000
    allow_overlap: Flag = False
    cache: Annotated[Path | None, arg(metavar="FOLDER")] = None
    device: str = "cpu"

    def judged(self, *tasks: str, **options: Any) -> int:
        """Judge, and print the tables."""
        from deocc.judge import judge
        from deocc.judge.table import print_report

        weights: dict[str, list[str]] = {}
        for text in self.weights:
            judged = (*_names(self.restorer), *_names(self.recognizer))
            # A path may have such a mark too.
            name = next((one for one in judged if text.startswith(f"{one}=")), text.rpartition("=")[0])
            file = text[len(name) + 1 :]
            if not name or not file:
                raise UsageError(f"--weights wants METHOD=FILE, got {text!r}")
            weights.setdefault(name, []).append(file)
        with _progress(f"judging on {self.data}") as progress:
            report = judge(
                self.data,
                tasks=tasks,
                out=self.out,
                restorers=_names(self.restorer),
                recognizers=_names(self.recognizer),
                given=_names(self.given),
                weight_files=weights,
                occluder=self.occluder,
                kinds=_names(self.kinds) or None,
                seed=self.seed,
                limit=self.limit,
                resamples=self.resamples,
                allow_overlap=self.allow_overlap,
                cache=self.cache,
                device=self.device,
                progress=progress,
                **options,
            )
        print_report(report)
        print(f"report: {self.out / 'report.json'}")
        return 0


@dataclass(frozen=True, kw_only=True)
class JudgeVerification(JudgeTask):
    """Verify pairs of faces in five states: of true, masked and restored ones.

    The letters are the probe's and the gallery's: T true, M masked, U unmasked (restored). TT, MT, UT, MM, UU.

    Attributes:
        pairs: List of pairs, in the format of LFW or with lines 'image image 1|0 [fold]'. By default that of the data
            set, or pairs that are made by the seed.
        impostors: Pairs of two people to add, at most, drawn by the seed among the images of the list: small false
            positive rates are then told from chance. Accuracy leaves them out.
    """

    pairs: Annotated[Path | None, arg(metavar="FILE")] = None
    impostors: int = 0

    def run(self) -> int:
        """Verify."""
        return self.judged("verification", pairs=self.pairs, impostors=self.impostors)


@dataclass(frozen=True, kw_only=True)
class JudgeRetrieval(JudgeTask):
    """Look for masked and restored faces in a gallery of full faces: CMC, mAP, and ten sets of pairs."""

    def run(self) -> int:
        """Look for them."""
        return self.judged("retrieval")


@dataclass(frozen=True, kw_only=True)
class JudgeQuality(JudgeTask):
    """Compare restored faces with the true ones: PSNR, SSIM, LPIPS, occlusion IoU, and distances between sets.

    Attributes:
        features: Feature networks: .safetensors files of LPIPS, or .onnx files for RGB 0..255 (FILE.onnx:SIDE, 299
            pixels by default). The recognizers' embeddings are used in any case.
    """

    features: Annotated[tuple[str, ...], arg(metavar="FILE...", help_behavior_hint="")] = ()

    def run(self) -> int:
        """Compare them."""
        return self.judged("quality", features=self.features)


@dataclass(frozen=True, kw_only=True)
class JudgeAll(JudgeTask):
    """Verification, retrieval and quality in one pass over the images.

    Attributes:
        pairs: List of pairs; see 'deocc judge verification'.
        impostors: Pairs of two people to add; see there.
        features: Feature networks; see 'deocc judge quality'.
    """

    pairs: Annotated[Path | None, arg(metavar="FILE")] = None
    impostors: int = 0
    features: Annotated[tuple[str, ...], arg(metavar="FILE...", help_behavior_hint="")] = ()

    def run(self) -> int:
        """All of it."""
        tasks = "verification", "retrieval", "quality"
        return self.judged(*tasks, pairs=self.pairs, impostors=self.impostors, features=self.features)


@dataclass(frozen=True, kw_only=True)
class JudgeDiff(Verb):
    """Compare two reports: each figure of both, the difference, and whether it is more than chance.

    Differences are B minus A. Over the same pairs they are tested pair by pair (p, won, lost); without p, the interval
    takes the two reports for independent. Reports on other faces, masks or matchers are refused.

    Attributes:
        a: Folder of a report, or its report.json.
        b: Folder of the other one.
        anyway: Compare them though faces, masks or matchers differ; what differs is printed.
        by_kind: Print the figures of each kind of occlusion too.
    """

    a: Annotated[Positional[Path], arg(metavar="A")]
    b: Annotated[Positional[Path], arg(metavar="B")]
    anyway: Flag = False
    by_kind: Flag = False

    def run(self) -> int:
        """Compare them."""
        from deocc.judge.diff import diff_folders, print_diff

        print_diff(diff_folders(self.a, self.b, anyway=self.anyway), by_kind=self.by_kind)
        return 0


@dataclass(frozen=True, kw_only=True)
class Judge:
    """Measure whether restoring faces helps a matcher, and what it invents."""

    verb: (
        Annotated[JudgeVerification, subcommand("verification")]
        | Annotated[JudgeRetrieval, subcommand("retrieval")]
        | Annotated[JudgeQuality, subcommand("quality")]
        | Annotated[JudgeAll, subcommand("all")]
        | Annotated[JudgeDiff, subcommand("diff")]
    )

    @property
    def debug(self) -> bool:
        """Show the traceback of an error."""
        return self.verb.debug

    def run(self) -> int:
        """Run the verb below."""
        return self.verb.run()


@dataclass(frozen=True, kw_only=True)
class Methods(Verb):
    """List the installed methods: name, parts, paper, state; what is broken at the end, with exit code 1."""

    def run(self) -> int:
        """List them."""
        from deocc.plugins import get, names, problems
        from deocc.report import print_table

        broken = problems()
        methods = [get(name) for name in names() if name not in {problem.entry_point for problem in broken}]
        rows = [
            (
                method.name,
                ", ".join([*method.parts(), *(f"task {task}" for task in method.tasks)]),
                method.summary,
                method.paper or "-",
                _state(method),
            )
            for method in methods
        ]
        if rows:
            print_table(("name", "parts", "what it is", "paper", "state"), rows, left=5)
        elif not broken:
            print("no plugin with a method is installed")
        for problem in broken:
            _complain(str(problem))
        return 1 if broken else 0


@dataclass(frozen=True, kw_only=True)
class Info(Verb):
    """Print versions, the build, each operator's backends with the reason for any that is missing, and each method."""

    def run(self) -> int:
        """Print it."""
        from deocc.info import main as info

        info()
        return 0


@dataclass(frozen=True, kw_only=True)
class NewPlugin(Verb):
    """Write a complete plugin that can be installed, passes its tests, and does nothing clever yet.

    Attributes:
        name: Name of the method: lower-case letters, digits and hyphens.
        part: What the method offers; task is a restorer that learns, with the stage that trains it.
        out: Folder in which to make the plugin's folder.
    """

    name: Annotated[Positional[str], arg(metavar="NAME")]
    part: Literal["restorer", "occluder", "recognizer", "task"] = "restorer"
    out: Annotated[Path, arg(aliases=["-o"], metavar="FOLDER")] = Path()

    def run(self) -> int:
        """Write it."""
        from deocc.scaffold import new_plugin

        path = new_plugin(self.name, part=self.part, out=self.out)
        print(f"wrote {path}; install it with: pip install --no-deps --no-build-isolation -e {path}")
        return 0


@dataclass(frozen=True, kw_only=True)
class Check(Verb):
    """Run the contract on an installed method and print one line a check; exit code 1 if one fails.

    Attributes:
        name: Method to check, as listed by 'deocc methods'.
    """

    name: Annotated[Positional[str], arg(metavar="NAME")]

    def run(self) -> int:
        """Check it."""
        from deocc.testing import run_checks

        passed, failed = 0, 0
        for name, well, sentence in run_checks(self.name):
            print(f"{'ok  ' if well else 'FAIL'}  {name}{'' if well else f': {sentence}'}", flush=True)
            passed, failed = passed + well, failed + (not well)
        print(f"{self.name}: {passed} passed, {failed} failed")
        return 1 if failed else 0


@dataclass(frozen=True, kw_only=True)
class Demo(Verb):
    """Mask the packaged portraits with a fixed seed, unmask them, and show how well that went.

    Writes contact_sheet.png and report.html to the folder, replacing those of an earlier demo, and prints the table.
    Restored pixels are invented.

    Attributes:
        photo: Photos of your own to show too: image files, folders or patterns; the largest face of each is masked.
        out: Folder for the results; made if need be.
        method: Method that restores.
        device: Where to compute: cpu, cuda, cuda:1.
        seed: Seed of the masks.
    """

    photo: Annotated[tuple[Path, ...], arg(metavar="PHOTO...", help_behavior_hint="")] = ()
    out: Annotated[Path, arg(aliases=["-o"], metavar="FOLDER")] = Path("demo")
    method: MethodName = "canet"
    device: str = "cpu"
    seed: int = 0

    def run(self) -> int:
        """Run the demo."""
        from deocc.demo import demo

        failures = demo(self.photo, self.out, method=self.method, device=self.device, seed=self.seed)
        for failure in failures:
            _complain(failure)
        return 1 if failures else 0


Command = (
    Annotated[Unmask, subcommand("unmask")]
    | Annotated[Occlude, subcommand("occlude")]
    | Annotated[Train, subcommand("train")]
    | Annotated[Data, subcommand("data")]
    | Annotated[Judge, subcommand("judge")]
    | Annotated[Methods, subcommand("methods")]
    | Annotated[Info, subcommand("info")]
    | Annotated[NewPlugin, subcommand("new-plugin")]
    | Annotated[Check, subcommand("check")]
    | Annotated[Demo, subcommand("demo")]
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    0: done; 1: something failed, and a sentence on standard error says what; 2: the call is wrong; 130: interrupted.

    Args:
        argv: the arguments; None takes those of the process.

    Raises:
        SystemExit: after ``--help``, or with code 2 where the arguments cannot be parsed.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments == ["--version"]:
        import deocc

        print(f"deocc {deocc.__version__}")
        return 0
    debug = resumes = False
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a file's name may be no text, and is to be printed even so
            stream.reconfigure(errors="backslashreplace")
    shown = warnings.showwarning
    warnings.showwarning = _warn
    try:
        command: Any = tyro.cli(
            Command,
            prog="deocc",
            args=arguments,
            description="Restore occluded faces, and measure whether that helped. Restored pixels are invented.",
            config=(tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes),
        )
        debug, resumes = command.debug, _resumes(getattr(command, "verb", command))
        return int(command.run())
    except KeyboardInterrupt:
        _complain("interrupted" + ("; the same command goes on where it stopped" if resumes else ""))
        return 130
    except BrokenPipeError:
        # The reader has gone, as with "deocc methods | head": nothing more can be said, at exit either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1
    except Exception as error:
        if debug:
            traceback.print_exc()
        _complain(_sentence(error))
        return error.exit_code if isinstance(error, DeoccError) else 1
    finally:
        warnings.showwarning = shown


def _resumes(verb: Verb) -> bool:
    """Whether the same command goes on where it was interrupted."""
    if isinstance(verb, Train):
        return verb.resume
    return isinstance(verb, (Unmask, Occlude, Pack, JudgeTask))


def _names(texts: Sequence[str]) -> list[str]:
    """Names with commas or spaces between: each text is one, or several with commas.

    A comma before ``field=value`` belongs to the settings of the method before it (:func:`deocc.plugins.load`).
    """
    return [name for text in texts for name in re.split(r",(?![A-Za-z_][\w.]*=)", text) if name]


def _sentence(error: Exception) -> str:
    """What is said of an error: one sentence."""
    if isinstance(error, DeoccError):
        return str(error)
    if isinstance(error, OSError):
        return f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror or error)
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's, of a GPU
        return "there is not enough memory for this"
    text = " ".join(str(error).split())
    return f"this should not have happened: {type(error).__name__}: {text} (--debug shows where)"


def _source(kind: str, root: Path, split: str | None) -> Any:
    """The reader of a data set, by its name on the command line."""
    from deocc.config import did_you_mean
    from deocc.data import READERS

    if kind not in READERS:
        raise UsageError(
            f"there is no kind of data set {kind!r}; {did_you_mean(kind, READERS)} (kinds: {', '.join(READERS)})"
        )
    reader = READERS[kind]
    if split is None:
        return reader(root)
    if "split" not in inspect.signature(reader).parameters:
        raise UsageError(f"a data set of kind {kind!r} has no parts, got --split {split}")
    return reader(root, split=split)


def _state(method: Any) -> str:
    """Whether a method can be used as it is: with packaged weights or none needed, and nothing else lacking."""
    from deocc.plugins import packaged_weights

    lacking = []
    for part in method.parts():
        try:
            cls = method.resolve(part)
            if packaged_weights(method, part) is None and cls.needs_weights:
                lacking.append(f"{part} needs --weights")
            if what := cls.lacks():
                lacking.append(f"{part} needs {what}")
        except DeoccError as error:
            return f"broken: {error}"
        except Exception as error:  # whatever a stranger's part does breaks that part alone
            return f"broken: its {part} is no part ({type(error).__name__}: {error})"
    return ", ".join(lacking) or "ready"


def _outcome(outcome: Outcome, verb: str) -> int:
    total = len(outcome.done) + len(outcome.skipped) + len(outcome.failures)
    before = f" ({len(outcome.skipped)} of them before)" if outcome.skipped else ""
    print(f"{len(outcome.done) + len(outcome.skipped)} of {total} photos {verb}{before}")
    if outcome.failures:
        _complain(f"{len(outcome.failures)} failed:")
        for failure in outcome.failures:
            print(f"  {failure}", file=sys.stderr)
    return 1 if outcome.failures else 0


def _progress(label: str) -> Any:
    """A context that yields a function of (done, all) and shows a bar with it, if standard error is a terminal."""
    from contextlib import contextmanager

    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    @contextmanager
    def bar() -> Any:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        console = Console(stderr=True)
        with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
            task = progress.add_task(label, total=None)
            yield lambda done, total: progress.update(task, completed=done, total=total)

    return bar()


def _complain(sentence: str) -> None:
    sys.stdout.flush()
    print(f"deocc: {sentence}", file=sys.stderr)


def _warn(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    _complain(f"warning: {message}")

"""``report.html``: everything of a report is in it, and a browser shows it without a network."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import subprocess
from html import escape
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from deocc import judge
from deocc.data import PackedFaces
from deocc.errors import InputError
from deocc.judge.page import page, write_page
from deocc.judge.result import Data, Figure, Overlap, Part, QualityRow, Report, read, write
from deocc.judge.table import print_report
from deocc.report import INVENTED


@pytest.fixture(scope="module")
def browser() -> str:
    """Chromium, or a skip."""
    found = next(
        (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
    )
    if found is None:
        pytest.skip("needs Chromium to look at the page, which is not installed")
    return found


@pytest.fixture
def report(packed: PackedFaces, oracle: Any, nothing: Any, pixels: Any, tmp_path: Path) -> Report:
    """All tasks, two restorers; its folder is ``tmp_path``."""
    pytest.importorskip("torchmetrics", reason="quality needs torchmetrics, which is not installed")
    kinds = ("surgical", "cloth", "n95")
    return judge.judge(
        packed, restorers=[oracle, nothing], recognizers=[pixels], kinds=kinds, resamples=20, out=tmp_path
    )


def shown(browser: str, path: Path, *options: str, width: int = 1200, height: int = 2000) -> str:
    """Open a page without a network and return what the browser says."""
    command = [
        browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
        "--host-resolver-rules=MAP * 0.0.0.0",
        f"--user-data-dir={path.parent / 'profile'}", f"--window-size={width},{height}", *options, path.as_uri(),
    ]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout


def test_the_tables_are_in_markdown(report: Report, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = (tmp_path / "report.md").read_text()
    print_report(report)
    printed = capsys.readouterr().out
    titles = re.findall(r"^\*\*(.*)\*\*$", text, re.MULTILINE)
    assert len(titles) == 7
    assert all(f"\n{title}\n" in printed for title in titles)
    tables = [block.splitlines() for block in text.split("\n\n") if block.startswith("|")]
    assert len(tables) == len(titles)
    for table in tables:
        assert len({line.count(" | ") for line in table}) == 1, table[0]
        assert len(table) > 2
    assert text.endswith(f"\n{INVENTED}\n")


def test_the_whole_report_is_in_it(report: Report, tmp_path: Path) -> None:
    text = (tmp_path / "report.html").read_text()
    assert text == page(report, tmp_path), "the judge has written it"
    assert not re.search(r"https?://|<script|<link|@import|url\(|\son\w+=", text)
    assert text.count(INVENTED) > 5
    for plot in (
        "the probe is occluded",
        "both are occluded",
        "cumulative match characteristic",
        "each kind of occlusion",
    ):
        assert plot in text
    assert text.count('<svg viewBox="0 0 480') == 6, "ROC twice, two histograms, kinds, CMC"
    assert report.verification is not None
    assert report.quality is not None
    changes = (*report.verification.gains, *report.verification.losses)
    assert changes
    assert text.count("<img") == 4 * (len(changes) + len(report.quality.examples))
    for fact in (
        report.data.digest,
        report.masks.fingerprint,
        report.resampling,
        *(part.config for part in report.restorers),
    ):
        assert escape(fact) in text
    for row in report.verification.rows:
        assert f"{row.auc.value:.3f}" in text
    gained, lost = text.index("What restoring gained"), text.find("What restoring lost")
    assert lost == -1 or gained < lost


def test_what_a_reader_must_know_comes_first(report: Report, tmp_path: Path) -> None:
    overlap = Overlap("unknown", (), "Nobody knows <whom> it was trained on.")
    part = Part(
        key="x", method="x", weights="x.safetensors", sha256="f" * 64, overlap=overlap, trained_with=("Pixels",)
    )
    warned = dataclasses.replace(report, warnings=("Mind <this>.",), restorers=(part,))
    text = page(warned, tmp_path)
    assert text.index("Mind &lt;this&gt;.") < text.index("Is it the same person?")
    assert "Nobody knows &lt;whom&gt; it was trained on" in text
    assert "f" * 64 in text
    assert "trained to please Pixels" in text


def test_a_report_with_little_in_it(tmp_path: Path) -> None:
    assert "<h1>" in page(Report(data=Data(title="x")), tmp_path)
    quality = judge.result.Quality(faces=1, rows=(QualityRow("r", "all", 1, psnr=Figure(20.0)),))
    text = page(Report(invented=INVENTED, data=Data(title="x"), quality=quality), tmp_path)
    assert "20.00" in text
    assert "ROC" not in text


def test_pictures_that_cannot_be_shown(report: Report, tmp_path: Path) -> None:
    name = report.verification.gains[0].pictures["restored"]  # type: ignore[union-attr]
    (tmp_path / name).unlink()
    with pytest.raises(InputError, match=r"there is no file .*\.png"):
        write_page(tmp_path)
    values = json.loads((tmp_path / "report.json").read_text())
    values["verification"]["gains"][0]["pictures"]["restored"] = "../secret.png"
    cv2.imwrite(str(tmp_path.parent / "secret.png"), np.zeros((4, 4, 3), np.uint8))
    (tmp_path / "report.json").write_text(json.dumps(values))
    with pytest.raises(InputError, match=r"names the picture '\.\./secret\.png', which is not in its folder"):
        write_page(tmp_path)


def test_write_page_reads_what_was_written(report: Report, tmp_path: Path) -> None:
    before = (tmp_path / "report.html").read_bytes()
    write(tmp_path / "report.json", read(tmp_path / "report.json"))
    assert write_page(tmp_path).read_bytes() == before


MEASURE = """<script>
const overlaps = [];
document.querySelectorAll('.plot > svg').forEach(plot => {
  const frame = plot.getBoundingClientRect();
  const all = [...plot.querySelectorAll('text')].map(text => [text.textContent, text.getBoundingClientRect()]);
  all.forEach(([word, a], i) => {
    const cut = a.left < frame.left - 1 || a.right > frame.right + 1 || a.bottom > frame.bottom + 1;
    if (cut) overlaps.push('cut: ' + word);
    all.slice(i + 1).forEach(([other, b]) => {
      if (a.left < b.right && b.left < a.right && a.top + 2 < b.bottom && b.top + 2 < a.bottom)
        overlaps.push(word + ' / ' + other);
    });
  });
});
const wide = document.documentElement.scrollWidth - document.documentElement.clientWidth;
const blind = [...document.images].filter(image => !image.naturalWidth).length;
const found = {overlaps, wide, blind, images: document.images.length};
document.body.innerHTML = '<p id="found">' + JSON.stringify(found) + '</p>';
</script>"""


@pytest.mark.slow
@pytest.mark.parametrize("width", [500, 1200])
def test_no_label_covers_another(browser: str, report: Report, tmp_path: Path, width: int) -> None:
    """Measured by the browser, on a narrow screen and a wide one: nothing overlaps, is cut or sticks out."""
    copy = tmp_path / "measured.html"
    copy.write_text((tmp_path / "report.html").read_text().replace("</body>", f"{MEASURE}</body>"))
    found = re.search(r'<p id="found">(.*?)</p>', shown(browser, copy, "--dump-dom", width=width))
    assert found is not None
    measured = json.loads(found[1].replace("&amp;", "&"))
    assert measured["overlaps"] == []
    assert measured["wide"] <= 0
    assert measured["blind"] == 0
    assert measured["images"] > 20


@pytest.mark.slow
@pytest.mark.parametrize(("scheme", "dark"), [("1", False), ("0", True)])
def test_a_browser_shows_it(browser: str, report: Report, tmp_path: Path, scheme: str, dark: bool) -> None:
    """In light and in dark, with every colour of the curves on the screen."""
    target = tmp_path / "screen.png"
    shown(
        browser, tmp_path / "report.html", f"--screenshot={target}", f"--blink-settings=preferredColorScheme={scheme}"
    )
    pixels = cv2.imread(str(target))[..., ::-1]
    assert pixels.shape == (2000, 1200, 3)
    assert (np.median(pixels.reshape(-1, 3), axis=0) < 60).all() == dark
    style = (tmp_path / "report.html").read_text()
    schemes = re.findall(r"--c1: (#\w{6});.*?--c2: (#\w{6}).*?--c3: (#\w{6})", style, re.DOTALL)
    for colour in schemes[dark]:
        wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
        assert (np.abs(pixels.astype(int) - wanted).max(axis=2) < 8).sum() > 100, colour

"""Draw what ``pytest bench/ --benchmark-json=...`` has written: ``python bench/report.py [FOLDER] [-o docs]``.

Writes speed.png, the ratios to eager PyTorch as bars, and scaling.png, time and memory against what each operator
scales with. Where a folder of the same name with ``-tuned`` behind it exists (``--malloc tuned``), its ratios stand
beside the others. Needs matplotlib (``pip install deocc[eval]``).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt

OURS, OTHER, EAGER = "#1b6ca8", "#9dc3e0", "#c0562f"


def read(folder: Path) -> tuple[list[dict[str, Any]], str]:
    """What is to be drawn of all files, the newest of every name, and the machine of the newest that is drawn."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    info: dict[str, Any] = {}
    files = [json.loads(path.read_text()) for path in folder.glob("*.json")]
    for content in sorted(files, key=lambda content: content["datetime"]):
        for entry in content["benchmarks"]:
            extra = entry["extra_info"]
            if "operator" in extra and (extra.get("gate") or "scaling" in extra):
                found[extra["operator"], entry["name"]] = {"name": entry["name"], **extra}
                info = content["machine_info"]
    if not found:
        return [], ""
    machine = f"{info['gpu'] or info['cpu']}, {info['threads']} thread(s), torch {info['torch']}"
    return sorted(found.values(), key=lambda entry: entry["operator"]), machine


def bars(entries: list[dict[str, Any]], others: list[dict[str, Any]], machine: str, path: Path) -> None:
    """The ratios that a change is held to; beside them those of the same name among the others."""
    chosen = [entry for entry in entries if entry.get("gate")]
    tuned = {(entry["operator"], entry["name"]): entry["ratio"] for entry in others if entry.get("gate")}
    figure, axes = plt.subplots(figsize=(9, 0.36 * len(chosen) + 1.2), layout="constrained")
    labels = []
    for row, entry in enumerate(chosen):
        shape = " x ".join(map(str, entry.get("shape", [])))
        name = entry["name"].removeprefix("test_").removeprefix(entry["operator"])
        labels.append(f"{entry['operator']} {name}  {shape}")
        other = tuned.get((entry["operator"], entry["name"]))
        for ratio, colour, offset in ((entry["ratio"], OURS, -0.2), (other, OTHER, 0.2)):
            if ratio is None:
                continue
            place = row + (offset if other is not None else 0)
            axes.barh(place, ratio, 0.38 if other is not None else 0.6, color=colour)
            axes.text(ratio * 1.05, place, f"{ratio:.3g}", va="center", fontsize=7)
    axes.set_yticks(range(len(labels)), labels, fontsize=8)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xlim(left=0.5, right=axes.get_xlim()[1] * 1.5)
    axes.set_xlabel("times as fast as eager PyTorch" + (" (light: malloc keeps memory)" if tuned else ""))
    axes.set_title(machine, fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def curves(entries: list[dict[str, Any]], machine: str, path: Path) -> None:
    """Time above, memory below, one column for each operator."""
    chosen = [entry for entry in entries if "scaling" in entry]
    figure, grid = plt.subplots(2, len(chosen), figsize=(3.3 * len(chosen), 5.6), squeeze=False, layout="constrained")
    for column, entry in enumerate(chosen):
        curve = entry["scaling"]
        for axes, unit, what in zip(grid[:, column], ("ms", "mb"), ("time, ms", "memory, MiB"), strict=True):
            for name, colour in (("eager", EAGER), ("ours", OURS)):
                # A logarithm has no zero: what is below the page size counts as that.
                values = [max(value, 0.01) for value in curve[f"{name}_{unit}"]]
                if values:
                    axes.plot(curve["values"], values, "o-", color=colour, label=name, markersize=4)
            axes.set(xscale="log", yscale="log", xlabel=curve["variable"], ylabel=what)
            axes.set_xticks(curve["values"], [f"{value:,}" for value in curve["values"]], fontsize=7, rotation=30)
            axes.minorticks_off()
            axes.grid(alpha=0.3)
        grid[0, column].set_title(entry["operator"], fontsize=9)
    grid[0, 0].legend(fontsize=8)
    figure.suptitle(f"forward and backward; {machine}", fontsize=9)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    """Draw both, the second where there is something for it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=Path(__file__).parent / "baselines" / "cpu")
    parser.add_argument("-o", "--out", type=Path, default=Path(__file__).parents[1] / "docs")
    arguments = parser.parse_args()
    entries, machine = read(arguments.folder)
    if not entries:
        parser.error(f"there are no results in {arguments.folder}: pytest bench/ --benchmark-json=FILE writes some")
    tuned, _ = read(Path(f"{arguments.folder}-tuned"))
    bars(entries, tuned, machine, arguments.out / "speed.png")
    if any("scaling" in entry for entry in entries):
        curves(entries, machine, arguments.out / "scaling.png")


if __name__ == "__main__":
    main()

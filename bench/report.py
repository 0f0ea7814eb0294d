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


def entries(folder: Path) -> list[dict[str, Any]]:
    """Every benchmark of every file, with the operator that the file is named after."""
    found = []
    for path in sorted(folder.glob("*.json")):
        for entry in json.loads(path.read_text())["benchmarks"]:
            found.append({"operator": path.stem, "name": entry["name"], **entry["extra_info"]})
    return found


def machine(folder: Path) -> str:
    """What the first file says of the machine."""
    info = json.loads(next(iter(sorted(folder.glob("*.json")))).read_text())["machine_info"]
    return f"{info['gpu'] or info['cpu']}, {info['threads']} thread(s), torch {info['torch']}"


def bars(folder: Path, path: Path) -> None:
    """The ratios that a change is held to, and those of the same kind in the folder with -tuned."""
    chosen = [entry for entry in entries(folder) if entry.get("gate")]
    tuned = {(entry["operator"], entry["name"]): entry["ratio"] for entry in entries(Path(f"{folder}-tuned"))
             if "ratio" in entry}  # fmt: skip
    figure, axes = plt.subplots(figsize=(9, 0.36 * len(chosen) + 1.2), layout="constrained")
    labels = []
    for row, entry in enumerate(chosen):
        shape = " x ".join(map(str, entry.get("shape", [])))
        labels.append(f"{entry['name'].removeprefix('test_')}  {shape}")
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
    axes.set_title(machine(folder), fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def curves(folder: Path, path: Path) -> None:
    """Time above, memory below, one column for each operator."""
    chosen = [entry for entry in entries(folder) if "scaling" in entry]
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
    figure.suptitle(f"forward and backward; {machine(folder)}", fontsize=9)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    """Draw both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=Path(__file__).parent / "baselines" / "cpu")
    parser.add_argument("-o", "--out", type=Path, default=Path(__file__).parents[1] / "docs")
    arguments = parser.parse_args()
    if not sorted(arguments.folder.glob("*.json")):
        parser.error(f"there are no results in {arguments.folder}: pytest bench/ --benchmark-json=FILE writes some")
    bars(arguments.folder, arguments.out / "speed.png")
    curves(arguments.folder, arguments.out / "scaling.png")


if __name__ == "__main__":
    main()

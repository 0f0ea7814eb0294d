"""What restorers draw for faces that nobody selected: ``python examples/contact_sheet.py PACK -o sheet.png``.

PACK is a folder of ``deocc data pack``; its first faces are shown in their order. With ``--occlude`` each gets an
occlusion of these kinds first and is shown as it was too; otherwise faces are taken in the masks that they wear.
"""

from __future__ import annotations

import argparse
from itertools import chain
from pathlib import Path

import deocc
from deocc.data import PackedFaces
from deocc.faces import Crop
from deocc.images import to_tensor, to_uint8, write_image
from deocc.occlude import occlude
from deocc.report import contact_sheet


def main() -> None:
    """Draw the sheet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pack", type=Path)
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--restorer", nargs="+", default=["canet"], help="methods that find occlusions themselves")
    parser.add_argument(
        "--occlude", nargs="*", default=[], metavar="KIND", help="kinds of occlusion to put over the faces"
    )
    parser.add_argument("--first", type=int, default=24, help="so many faces")
    parser.add_argument("--across", type=int, default=3, help="faces side by side")
    arguments = parser.parse_args()

    if arguments.out.exists():
        parser.error(f"{arguments.out} exists already and is not replaced; name another file, or remove it")
    faces = PackedFaces(arguments.pack)
    restorers = {name: deocc.restorer(name) for name in arguments.restorer}
    for name, restorer in restorers.items():
        wanted = Crop(restorer.crop_size, restorer.crop_zoom)
        if wanted != faces.crop:
            parser.error(
                f"{name} restores crops of {wanted.size} pixels and zoom {wanted.zoom:g}, but {faces.title} was packed "
                f"with {faces.crop.size} and {faces.crop.zoom:g}"
            )
    cells = []
    for position in range(min(arguments.first, len(faces))):
        shown = [faces.images[position]]
        if arguments.occlude:
            shown.append(occlude(shown[0], faces.landmarks[position], position, kinds=arguments.occlude).image)
        image = to_tensor(shown[-1])
        shown += [to_uint8(restorer(image).image)[0] for restorer in restorers.values()]
        cells.append(shown)
    names = ["true", "occluded"] if arguments.occlude else ["masked"]
    rows = [list(chain(*cells[at : at + arguments.across])) for at in range(0, len(cells), arguments.across)]
    columns = [*names, *restorers] * min(arguments.across, len(cells))
    write_image(arguments.out, contact_sheet(rows, columns=columns, cell=128, title=faces.title))


if __name__ == "__main__":
    main()

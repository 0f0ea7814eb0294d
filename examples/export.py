"""Export of a network with deocc's operators: ``python examples/export.py [FILE.pt2]``.

``torch.export`` keeps each operator as one node, with the batch's size left open; the file runs wherever
``import deocc.ops`` comes before. Where it does not, loading fails, and what torch says then is printed here. For such
a place export with ``DEOCC_BACKEND=reference``: the graph is then made of torch's own operators, slower.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn

from deocc.ops import composite, contextual_attention


class Network(nn.Module):
    """(N, 3, 32, 32) and (N, 1, 32, 32) -> (N, 3, 32, 32)."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Conv2d(4, 16, 3, padding=1)
        self.leave = nn.Conv2d(16, 3, 3, padding=1)

    def forward(self, image: Tensor, occlusion: Tensor) -> Tensor:
        """Draw the hole out of patches of its surroundings."""
        features = self.enter(torch.cat((image * (1 - occlusion), occlusion), 1)).relu()
        drawn = self.leave(contextual_attention(features, features, occlusion)).sigmoid()
        return composite(image, drawn, occlusion)


def export(network: nn.Module, path: Path) -> list[str]:
    """Write the network with any batch size; returns its operators."""
    example = (torch.rand(2, 3, 32, 32), (torch.rand(2, 1, 32, 32) < 0.1).float())
    batch = torch.export.Dim("batch", min=1)
    program = torch.export.export(network, example, dynamic_shapes=({0: batch}, {0: batch}))
    torch.export.save(program, path)
    return [str(node.target) for node in program.graph.nodes if node.op == "call_function"]


def load_without_deocc(path: Path) -> str:
    """What a process says that has never imported deocc.ops: nothing, or torch's complaint."""
    program = f"import torch; torch.export.load({str(path)!r})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    line = next((line for line in done.stderr.splitlines() if "torch.ops.deocc" in line), done.stderr)
    return line.rpartition("SerializeError: ")[2].partition(". ")[0] if done.returncode else ""


def main() -> None:
    """Export, load again, compare; then load where the operators are not known, both ways."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("file", nargs="?", type=Path, help="where to write; by default nothing stays")
    with tempfile.TemporaryDirectory() as folder:
        path = parser.parse_args().file or Path(folder, "network.pt2")
        torch.manual_seed(0)
        network = Network().eval()
        operators = [name for name in export(network, path) if "deocc" in name]
        inputs = (torch.rand(5, 3, 32, 32), (torch.rand(5, 1, 32, 32) < 0.1).float())
        with torch.no_grad():
            torch.testing.assert_close(torch.export.load(path).module()(*inputs), network(*inputs))
        print(f"exported with {', '.join(operators)}; another batch size gives what the network gives")
        print(f"loaded without deocc.ops: {load_without_deocc(path) or 'works'}")

        os.environ["DEOCC_BACKEND"] = "reference"
        os.environ.pop("DEOCC_STRICT", None)  # which forbids just that
        plain = Path(folder, "plain.pt2")
        operators = [name for name in export(network, plain) if "deocc" in name]
        print(f"exported from the reference with {len(operators)} operators of deocc")
        print(f"loaded without deocc.ops: {load_without_deocc(plain) or 'works'}")


if __name__ == "__main__":
    main()

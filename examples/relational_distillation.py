"""Relational distillation of one embedding network into another: ``python examples/relational_distillation.py``.

The student is a seventh of the teacher's size and embeds into fewer dimensions, so it cannot copy the teacher's
vectors; it learns the distances and angles among them instead (Park et al. 2019), over all pairs and all triplets of a
batch. Printed is how well the student's distances follow the teacher's on new inputs, before and after.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor, nn

from deocc.ops import relational_distillation


def network(width: int, dim: int) -> nn.Module:
    """(N, 16) -> (N, dim)."""
    return nn.Sequential(nn.Linear(16, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, dim))


@torch.no_grad()
def agreement(student: nn.Module, teacher: nn.Module) -> float:
    """Correlation of all distances between 256 new inputs."""
    inputs = torch.randn(256, 16, generator=torch.Generator().manual_seed(2))
    distances = torch.stack([nn.functional.pdist(net(inputs)) for net in (student, teacher)])
    return float(torch.corrcoef(distances)[0, 1])


def main() -> None:
    """Train, and print the loss and both correlations."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--steps", type=int, default=400)
    steps = parser.parse_args().steps
    torch.manual_seed(0)
    teacher = network(256, 128).requires_grad_(False)
    with torch.no_grad():
        for layer in (teacher[0], teacher[2]):
            layer.weight.mul_(4)  # far from linear, as a trained network is
    student = network(96, 32)
    optimizer = torch.optim.Adam(student.parameters(), 2e-3)
    generator = torch.Generator().manual_seed(1)
    print(f"before: correlation {agreement(student, teacher):.3f}")
    for step in range(steps):
        inputs = torch.randn(128, 16, generator=generator)
        wanted: Tensor = teacher(inputs)
        loss = relational_distillation(student(inputs), wanted, distance=1.0, angle=2.0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 100 == 0 or step == steps - 1:
            print(f"step {step}: loss {float(loss.detach()):.4f}", flush=True)
    print(f"after: correlation {agreement(student, teacher):.3f}")


if __name__ == "__main__":
    main()

"""Checks that compare derivatives with differences, and what they show: forces, stress, Hessian,
training, smoothness.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import product

import numpy as np
import torch
from ase import Atoms
from torch import Tensor

from nnpcalc.neighbors import neighbor_list
from nnpcalc.potential import inputs
from nnpcalc.testing.probe import AT_ONCE, FloatArray, Probe, array
from nnpcalc.testing.tolerances import tolerance

#: Central differences of fourth order: displacements in steps and their weights.
STENCIL = ((-2, 1.0 / 12.0), (-1, -2.0 / 3.0), (1, 2.0 / 3.0), (2, -1.0 / 12.0))
STEP = 1e-3


def _difference(p: Probe, change: Callable[[Atoms, float], None], atoms: Atoms) -> list[Atoms]:
    displaced = []
    for steps, _ in STENCIL:
        copied = atoms.copy()
        change(copied, steps * STEP)
        displaced.append(copied)
    return displaced


def _slopes(energies: FloatArray) -> FloatArray:
    """Energies of consecutive stencils -> derivatives."""
    weights = np.array([weight for _, weight in STENCIL])
    slopes: FloatArray = energies.reshape(-1, len(STENCIL)) @ weights / STEP
    return slopes


def check_forces(p: Probe) -> None:
    """Forces are minus the derivatives of the energy."""
    for name in ("molecule", "ion", "crystal", "layer"):
        if name not in p.structures:
            continue
        atoms = p.structures[name]
        displaced = []
        for k, a in product(range(len(atoms)), range(3)):

            def move(copied: Atoms, h: float, k: int = k, a: int = a) -> None:
                copied.positions[k, a] += h

            displaced += _difference(p, move, atoms)
        expected = -_slopes(p.energies(displaced)).reshape(-1, 3)
        p.close(f"forces of the {name} against differences of the energy",
                p.results(atoms).forces, expected, "forces")  # fmt: skip


def check_stress(p: Probe) -> None:
    """The stress is the derivative of the energy by strain over the volume, and symmetric."""
    for name in ("crystal", "layer"):
        if name not in p.structures:
            continue
        atoms = p.structures[name]
        expected = np.zeros((3, 3))
        for a, b in ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1)):

            def strain(copied: Atoms, h: float, a: int = a, b: int = b) -> None:
                matrix = np.eye(3)
                matrix[a, b] += 0.5 * h
                matrix[b, a] += 0.5 * h
                copied.set_cell(copied.cell.array @ matrix, scale_atoms=False)
                copied.positions = copied.positions @ matrix

            (slope,) = _slopes(p.energies(_difference(p, strain, atoms)))
            expected[a, b] = expected[b, a] = slope / atoms.cell.volume
        found = p.results(atoms, stress=True).stress
        assert found is not None, f"no stress of the {name}"
        p.close(f"stress of the {name} against differences of the energy",
                found[0], expected, "stress")  # fmt: skip


def check_second_derivatives(p: Probe) -> None:
    """The Hessian is the derivative of the forces, and training sees forces' derivatives."""
    atoms = p.structures["molecule"]
    n = len(atoms)
    displaced = []
    for k, a in product(range(n), range(3)):

        def move(copied: Atoms, h: float, k: int = k, a: int = a) -> None:
            copied.positions[k, a] += h

        displaced += _difference(p, move, atoms)
    forces = [array(p.results(*displaced[b : b + AT_ONCE]).forces).reshape(-1, 3 * n)
              for b in range(0, len(displaced), AT_ONCE)]  # fmt: skip
    weights = np.array([weight for _, weight in STENCIL])
    stacked = np.concatenate(forces).reshape(3 * n, len(STENCIL), 3 * n)
    expected = -np.einsum("s,ksl->kl", weights, stacked) / STEP
    p.close("Hessian of the molecule against differences of the forces",
            p.potential.hessian(p.batch(atoms)), expected, "hessian")  # fmt: skip
    _check_training(p, atoms)


def _check_training(p: Probe, atoms: Atoms) -> None:
    """Derivative of a loss on forces along one direction in parameter space."""
    potential = copy.deepcopy(p.potential)
    batch = p.batch(atoms)
    arguments = inputs(batch, neighbor_list(batch, potential.cutoff))
    parameters = [parameter.requires_grad_(True) for parameter in potential.core.parameters()]
    generator = torch.Generator().manual_seed(p.seed)
    direction = [torch.randn(x.shape, generator=generator).to(x) for x in parameters]

    def loss(create_graph: bool) -> Tensor:
        output: dict[str, Tensor] = potential(
            *arguments, compute_forces=True, compute_stress=False, create_graph=create_graph
        )
        return output["forces"].square().sum()

    gradients = torch.autograd.grad(loss(True), parameters, allow_unused=True)
    found = sum(
        (float((g * d).sum()) for g, d in zip(gradients, direction, strict=True) if g is not None),
        0.0,
    )
    expected, h = 0.0, 2e-6  # the whole direction is some hundred times as long
    with torch.no_grad():
        for offset, weight in STENCIL:
            for x, d in zip(parameters, direction, strict=True):
                x.add_(d, alpha=offset * h)
            with torch.enable_grad():
                expected += weight * float(loss(False)) / h
            for x, d in zip(parameters, direction, strict=True):
                x.add_(d, alpha=-offset * h)
    p.close("derivative of a loss on forces by the parameters", found, expected, "forces")


def check_cutoff(p: Probe) -> None:
    """Energy and forces stay smooth while a neighbour crosses every cutoff."""
    a, b = (list(p.structures["molecule"].numbers) * 2)[:2]
    cutoff = p.potential.cutoff

    def approach(distances: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Energies and the force on an atom at these distances from a diatomic."""
        energies, forces = [], []
        for begin in range(0, len(distances), AT_ONCE):
            systems = [
                Atoms([a, b, a], [(0, 0, 0), (-1.1, 0.6, 0.2), (d, 0, 0)])
                for d in distances[begin : begin + AT_ONCE]
            ]
            for atoms in systems:
                atoms.arrays["partial_charges"] = np.array([0.2, -0.3, 0.1])
                atoms.info["charge"] = sum(atoms.numbers) % 2
            results = p.results(*systems)
            energies.append(array(results.energy))
            forces.append(array(results.forces).reshape(-1, 3, 3)[:, 2, 0])
        return np.concatenate(energies), np.concatenate(forces)

    h = 1e-4
    energy, force = approach(cutoff + h * np.array([-2.0, -1.0, 1.0]))
    scale = max(1.0, abs(energy[2])) if p.dtype == torch.float32 else 1.0
    allowed = tolerance("cutoff", p.dtype) * scale
    jump = abs(energy[1] - energy[2])
    assert jump <= allowed, (
        f"the energy jumps by {jump:.2e} eV at the cutoff, {allowed:.0e} allowed"
    )
    at_cutoff = abs(2.0 * force[1] - force[0] - force[2])
    assert at_cutoff <= allowed, (
        f"the force jumps by {at_cutoff:.2e} eV/Å at the cutoff, {allowed:.0e} allowed"
    )
    distances = np.linspace(0.3 * cutoff, cutoff + 0.1, 401)
    energy, force = approach(distances)
    step = distances[1] - distances[0]
    work = -step / 3.0 * (force[:-2:2] + 4.0 * force[1:-1:2] + force[2::2])
    defect = np.abs(energy[2::2] - energy[:-2:2] - work)
    k = int(defect.argmax())
    assert defect[k] <= 100.0 * allowed, (
        f"energy and force do not belong together near {distances[2 * k]:.2f} Å: their difference "
        f"over {2 * step:.3f} Å is {defect[k]:.2e} eV, {100.0 * allowed:.0e} allowed"
    )

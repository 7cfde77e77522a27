"""nnpcalc.testing: every architecture passes, and every check fails on what it is there to find."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nnpcalc.batch import AtomsBatch
from nnpcalc.models import ARCHITECTURES, build_core
from nnpcalc.neighbors import neighbor_list
from nnpcalc.potential import Potential, Results
from nnpcalc.terms import ZBL, AtomicEnergies
from nnpcalc.testing import POTENTIAL_CHECKS, TOLERANCES, check_potential, sample_structures

#: Small sizes for whatever options of these names an architecture has.
SMALL = {
    "channels": 8,
    "layers": 2,
    "radial_functions": 8,
    "cutoff": 4.0,
    "elements": (1, 6, 8),
    "attributes": ("charge", "unpaired_electrons", "partial_charges"),
    "attribute_weights": (0.5, 0.7, 0.9),
    "state_embedding": ("charge", "unpaired_electrons"),
    "activation": "silu",  # differences need smooth functions
}
STATES = {"attributes": ("charge", "unpaired_electrons"), "attribute_weights": (0.5, 0.7)}


def small_core(architecture: str, **options: Any) -> nn.Module:
    names = {field.name for field in fields(ARCHITECTURES[architecture].Config)}
    config = {key: value for key, value in SMALL.items() if key in names}
    return build_core(architecture, {**config, **options})


@pytest.fixture
def healthy() -> Potential:
    core = small_core("tensornet", **STATES)
    return Potential(core, (AtomicEnergies({1: -13.6, 6: -1030.0, 8: -2041.0}), ZBL()), scale=2.0)


@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
def test_architectures_satisfy_the_contract(architecture: str) -> None:
    core = small_core(architecture)
    check_potential(Potential(core, (AtomicEnergies({1: -13.6, 6: -1030.0}), ZBL()), scale=1.7))


@pytest.mark.parametrize(
    "options",
    [
        {"layers": 0},
        {"equivariance": "SO(3)"},
        {"state_embedding": ("charge", "unpaired_electrons")},
    ],
)
def test_variants_of_tensornet_satisfy_the_contract(options: dict[str, Any]) -> None:
    core = small_core("tensornet", **{**STATES, **options})
    checks = set(POTENTIAL_CHECKS) - {"torchscript"}  # slow, and covered above
    check_potential(Potential(core), checks=checks)


class Core(nn.Module):
    """Hands everything on to a healthy network; what the mutants below derive from."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.cutoff = float(inner.cutoff)
        self.elements: tuple[int, ...] = inner.elements
        self.conditions_on: tuple[str, ...] = inner.conditions_on
        self.config = inner.config

    def forward(
        self,
        numbers: Tensor,
        pairs: Tensor,
        vectors: Tensor,
        distances: Tensor,
        system: Tensor,
        charge: Tensor,
        multiplicity: Tensor,
        partial_charges: Tensor | None = None,
    ) -> dict[str, Tensor]:
        arguments = (numbers, pairs, vectors, distances, system, charge, multiplicity)
        energies = self.inner(*arguments, partial_charges)["energies"]
        return {"energies": self.change(energies, *arguments)}

    def change(self, energies: Tensor, *arguments: Tensor) -> Tensor:
        raise NotImplementedError


def pair_sum(energies: Tensor, pairs: Tensor, values: Tensor) -> Tensor:
    return energies.index_add(0, pairs[0], values)


class PrefersAxis(Core):
    def change(self, energies, numbers, pairs, vectors, *_):
        return pair_sum(energies, pairs, 1e-3 * vectors[:, 2] ** 2)


class CountsIndices(Core):
    def change(self, energies, *_):
        return energies * (1.0 + 1e-3 * torch.arange(len(energies)).to(energies))


class MeanOfBatch(Core):
    def change(self, energies, *_):
        return energies - energies.mean()


class LeaksBetweenSystems(Core):
    def change(self, energies, numbers, pairs, vectors, distances, *_):
        return energies + 1e-11 * distances.sum()


class NotExtensive(Core):
    def change(self, energies, numbers, pairs, vectors, distances, system, *_):
        return energies + 1e-6 * torch.bincount(system)[system]


class HardCutoff(Core):
    def change(self, energies, numbers, pairs, vectors, distances, *_):
        return pair_sum(energies, pairs, 1e-4 / distances)


class RampToCutoff(Core):
    def change(self, energies, numbers, pairs, vectors, distances, *_):
        return pair_sum(energies, pairs, 1e-3 * (self.cutoff - distances))


class InnerJump(Core):
    def change(self, energies, numbers, pairs, vectors, distances, *_):
        return pair_sum(energies, pairs, 1e-3 * (distances < 0.6 * self.cutoff).to(energies))


class CannotBeEmpty(Core):
    def change(self, energies, numbers, *_):
        return energies + numbers.max()


class BlindToElements(Core):
    def forward(self, numbers, *rest):
        return self.inner(torch.full_like(numbers, 6), *rest)


class IgnoresCharge(Core):
    def forward(self, numbers, pairs, vectors, distances, system, charge, *rest):
        zero = torch.zeros_like(charge)
        return self.inner(numbers, pairs, vectors, distances, system, zero, *rest)


class HidesMultiplicity(Core):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__(inner)
        self.conditions_on = ("charge",)

    def change(self, energies, *_):
        return energies


class FrozenParameters(Core):
    def forward(self, *arguments):
        detached = {name: value.detach() for name, value in self.inner.named_parameters()}
        return torch.func.functional_call(self.inner, detached, arguments)


class ChangedByCompiling(nn.Module):
    """Scriptable, hence without the indirection of `Core`."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.cutoff = float(inner.cutoff)
        self.elements: tuple[int, ...] = inner.elements
        self.conditions_on: tuple[str, ...] = inner.conditions_on
        self.config = inner.config

    def forward(
        self,
        numbers: Tensor,
        pairs: Tensor,
        vectors: Tensor,
        distances: Tensor,
        system: Tensor,
        charge: Tensor,
        multiplicity: Tensor,
        partial_charges: Tensor | None = None,
    ) -> dict[str, Tensor]:
        output = self.inner(
            numbers, pairs, vectors, distances, system, charge, multiplicity, partial_charges
        )
        if torch.jit.is_scripting():
            output["energies"] = output["energies"] * (1.0 + 1e-6)
        return output


def wrong_output(change: Callable[[dict[str, Tensor], Tensor], None]) -> type[Potential]:
    """A Potential whose output is changed after the fact, given the positions."""

    class Changed(Potential):
        def forward(self, numbers, positions, *arguments, **keywords):
            output = super().forward(numbers, positions, *arguments, **keywords)
            change(output, positions)
            return output

    return Changed


def _field(output: dict[str, Tensor], positions: Tensor) -> None:
    output["energies"] = output["energies"] + 1e-6 * positions[:, 0].to(torch.float64)


def _push(output: dict[str, Tensor], positions: Tensor) -> None:
    if "forces" in output:
        output["forces"] = output["forces"] + 1e-6


def _scale_forces(output: dict[str, Tensor], positions: Tensor) -> None:
    if "forces" in output:
        output["forces"] = output["forces"] * 1.001


def _scale_stress(output: dict[str, Tensor], positions: Tensor) -> None:
    if "stress" in output:
        output["stress"] = output["stress"] * 1.01


def _single_precision(output: dict[str, Tensor], positions: Tensor) -> None:
    if "forces" in output:
        output["forces"] = output["forces"].to(torch.float32)


class RoughHessian(Potential):
    def hessian(self, batch: AtomsBatch) -> Tensor:
        return 1.01 * super().hessian(batch)


class MinimumImage(Potential):
    """Forgets that an atom has images within the cutoff, as some programs do."""

    def evaluate(self, batch: AtomsBatch, neighbors: Any = None, **keywords: Any) -> Results:
        found = neighbor_list(batch, self.cutoff)
        kept = (found.pairs[0] != found.pairs[1]).nonzero()[:, 0]
        fewer = replace(
            found,
            pairs=found.pairs[:, kept],
            shifts=found.shifts[kept],
            vectors=found.vectors[kept],
            distances=found.distances[kept],
        )
        return super().evaluate(batch, fewer, **keywords)


CORE_MUTANTS = [
    ("rotation", PrefersAxis, "after a rotation"),
    ("permutation", CountsIndices, "reordered"),
    ("batch", MeanOfBatch, "in a batch deviates"),
    ("isolation", LeaksBetweenSystems, "must not change at all"),
    ("size consistency", NotExtensive, "far apart"),
    ("atom", CannotBeEmpty, "raised"),
    ("cutoff", HardCutoff, "energy jumps"),
    ("cutoff", RampToCutoff, "force jumps"),
    ("cutoff", InnerJump, "do not belong together near 2.39"),
    ("elements", BlindToElements, "the same beside Z="),
    ("conditions", IgnoresCharge, "charge is declared"),
    ("conditions", HidesMultiplicity, "multiplicity changes the energy"),
    ("second derivatives", FrozenParameters, "loss on forces"),
    ("torchscript", ChangedByCompiling, "in TorchScript"),
]
POTENTIAL_MUTANTS = [
    ("translation", wrong_output(_field), "after a translation"),
    ("momentum", wrong_output(_push), "sum of the forces"),
    ("atom", wrong_output(_push), "a lone atom has the force"),
    ("forces", wrong_output(_scale_forces), "against differences"),
    ("stress", wrong_output(_scale_stress), "against differences"),
    ("second derivatives", RoughHessian, "Hessian"),
    ("supercell", MinimumImage, "repeated"),
    ("precision", wrong_output(_single_precision), "returns torch.float32"),
]


def test_every_check_has_a_mutant() -> None:
    assert {name for name, _, _ in CORE_MUTANTS + POTENTIAL_MUTANTS} == set(POTENTIAL_CHECKS)


@pytest.mark.parametrize(("check", "mutant", "text"), CORE_MUTANTS)
def test_broken_networks_are_found(
    healthy: Potential, check: str, mutant: type[nn.Module], text: str
) -> None:
    broken = Potential(mutant(healthy.core), tuple(healthy.terms), healthy.scale)
    with pytest.raises(AssertionError, match=text) as caught:
        check_potential(broken, checks=[check])
    assert f"  {check}: " in str(caught.value)


@pytest.mark.parametrize(("check", "mutant", "text"), POTENTIAL_MUTANTS)
def test_broken_potentials_are_found(
    healthy: Potential, check: str, mutant: type[Potential], text: str
) -> None:
    broken = mutant(healthy.core, tuple(healthy.terms), healthy.scale)
    with pytest.raises(AssertionError, match=text) as caught:
        check_potential(broken, checks=[check])
    assert f"  {check}: " in str(caught.value)


def test_a_chiral_network_that_claims_to_be_o3_is_found(healthy: Potential) -> None:
    core = small_core("tensornet", equivariance="SO(3)", **STATES)
    core.config = replace(core.config, equivariance="O(3)")
    with pytest.raises(AssertionError, match="after a reflection") as caught:
        check_potential(Potential(core), checks=["rotation"])
    assert "after a rotation" not in str(caught.value)


def test_all_violations_are_listed(healthy: Potential) -> None:
    broken = Potential(PrefersAxis(CountsIndices(healthy.core)))
    with pytest.raises(AssertionError, match="violates") as caught:
        check_potential(broken, checks=["rotation", "permutation", "elements"])
    text = str(caught.value)
    assert "rotation: " in text
    assert "permutation: " in text
    assert "elements: " not in text
    assert "allowed is 1.0e-08 (torch.float64)" in text


def test_the_potential_is_left_as_it_was(healthy: Potential) -> None:
    before = copy.deepcopy(healthy.state_dict())
    check_potential(healthy, checks=["rotation", "second derivatives"])
    assert healthy.dtype == torch.float32
    assert all(parameter.requires_grad for parameter in healthy.core.embedding.parameters())
    for name, value in healthy.state_dict().items():
        assert torch.equal(value, before[name])


def test_an_unknown_check_is_an_error(healthy: Potential) -> None:
    with pytest.raises(ValueError, match="no check is called 'rotations'"):
        check_potential(healthy, checks=["rotations"])


@pytest.mark.parametrize("elements", [(1,), (6,), (1, 6, 7, 8, 9, 16, 17), (3, 11), (53, 35)])
def test_sample_structures_exist_for_any_elements(elements: tuple[int, ...]) -> None:
    for name, atoms in sample_structures(elements, seed=1).items():
        assert set(atoms.numbers) <= set(elements)
        charge = atoms.info.get("charge", 0)
        assert (atoms.numbers.sum() - charge) % 2 == 0, name
        AtomsBatch.from_atoms(atoms)


def test_float32_tolerances_are_never_tighter() -> None:
    assert all(double <= single for double, single in TOLERANCES.values())

"""Several models as one: the mean is the result, how far they disagree its uncertainty.

    atoms.calc = NNPCalculator(["tensornet-spice", "tensornet-spice-2"])
    atoms.get_potential_energy()
    atoms.calc.results["forces_uncertainty"]

The members were trained apart, from other random weights. Where they disagree none of them has
learnt what the right answer is; where they agree they may still be wrong together, so the spread is
a lower bound (Seung, Opper and Sompolinsky, COLT 1992; Schran, Brezina and Marsalek, J. Chem. Phys.
153, 104105 (2020)).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nnpcalc.batch import AtomsBatch

#: Means over the members; what not all of them return is left out.
MEANS = ("energy", "energies", "forces", "stress", "charges", "dipole")


class CommitteeError(ValueError):
    """Models that cannot answer together; the text says why."""


class Committee(nn.Module):
    """Members with the signature of `nnpcalc.potential.Potential`, called one after the other.

    Args:
        members: two or more `Potential`, or what computes them.
        potentials: the members as `Potential`, where `members` are something else.

    Attributes:
        card: what all members' cards say together; states and elements that all of them know.

    Raises:
        CommitteeError: fewer than two members, one of them twice, or members of different cutoffs
            or labels.
    """

    def __init__(self, members: Sequence[nn.Module], potentials: Sequence[Any] = ()) -> None:
        super().__init__()
        self.members = nn.ModuleList(list(members))
        known: list[Any] = list(potentials or members)
        if len(known) < 2:
            raise CommitteeError(f"a committee needs two models or more, not {len(known)}")
        for name, meaning in (("cutoff", "the cutoffs"), ("core_cutoff", "the networks' cutoffs")):
            values = [getattr(p, name, p.cutoff) for p in known]
            if len(set(values)) > 1:
                raise CommitteeError(f"{meaning} of a committee's members differ: {values} Å")
        for k, potential in enumerate(known):
            if any(_same_parameters(potential, other) for other in known[:k]):
                raise CommitteeError(
                    f"member {k} of the committee is listed twice: it has the parameters of an "
                    "earlier one and would always agree with it"
                )
        self.cutoff: float = known[0].cutoff
        self.core_cutoff: float = getattr(known[0], "core_cutoff", self.cutoff)
        self.full_periodicity = any(p.full_periodicity for p in known)
        self.elements = tuple(z for z in known[0].elements if all(z in p.elements for p in known))
        self.dtype: torch.dtype = known[0].dtype
        self.device: torch.device = known[0].device
        self.card = common_card(known)

    @property
    def core(self) -> Any:
        """The first member's network, None if there is none to be seen."""
        return getattr(self.members[0], "core", None)

    def forward(self, *inputs: Any, **options: Any) -> dict[str, Tensor]:
        """As `Potential.forward`, with two more results.

        Returns:
            The means; energy_uncertainty [B] in eV, the standard deviation of the members'
            energies; and, if there are forces, forces_uncertainty [N] in eV/Å, the standard
            deviation of the members' forces, as the length of a vector. Both float64 and from
            n members with n - 1 in the denominator.
        """
        outputs = [member(*inputs, **options) for member in self.members]
        shared = [key for key in MEANS if all(key in output for output in outputs)]
        stacked = {key: torch.stack([output[key] for output in outputs]) for key in shared}
        results = {key: values.mean(0) for key, values in stacked.items()}
        results["energy_uncertainty"] = stacked["energy"].std(0)
        if "forces" in stacked:
            variance = stacked["forces"].to(torch.float64).var(0).sum(-1)
            results["forces_uncertainty"] = variance.sqrt()
        return results

    def hessian(self, batch: AtomsBatch) -> Tensor:
        """Mean of the members' second derivatives [3N, 3N], eV/Å^2."""
        members: list[Any] = list(self.members)
        return torch.stack([member.hessian(batch) for member in members]).mean(0)


def _same_parameters(first: nn.Module, second: nn.Module) -> bool:
    """Whether two models are one, whatever the names and paths they were loaded by."""
    a, b = first.state_dict(), second.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def common_card(members: Sequence[Any]) -> dict[str, Any]:
    """Name, labels and the states that all members know; empty if none of them has a card.

    Raises:
        CommitteeError: the members were trained on labels of different methods.
    """
    told = [card for card in (getattr(member, "card", None) for member in members) if card]
    methods = sorted({str(card.get("reference_method", "")) for card in told})
    if len(methods) > 1:
        raise CommitteeError(
            "the members of a committee must have learnt the same labels, these are of "
            + " and of ".join(repr(method) for method in methods)
        )
    card: dict[str, Any] = {}
    for key in ("charges", "multiplicities"):
        cores = [getattr(member, "core", None) for member in members]
        listed = [c[key] for c in told if c.get(key)]
        listed += [getattr(core, key) for core in cores if getattr(core, key, ())]
        if listed:
            card[key] = sorted(set.intersection(*map(set, listed)))
            if not card[key]:
                raise CommitteeError(f"the members of the committee have no {key} in common")
    if told:
        card["name"] = " + ".join(str(c.get("name", "?")) for c in told)
    return card

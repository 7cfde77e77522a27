"""D3: the London dispersion energy that density functionals lack."""

from importlib import import_module
from typing import NamedTuple, Optional, Sequence, Tuple

import torch
from torch import Tensor, nn

from nnpcalc.terms.inputs import TermInputs, pair_to_atoms
from nnpcalc.units import BOHR, HARTREE


class D3Tables(NamedTuple):
    """Reference data of E elements, atomic units; Grimme et al., J. Chem. Phys. 132, 154104 (2010).

    Attributes:
        c6: dispersion coefficients of the reference systems a, b of two elements [E, E, 5, 5]; 0
            where there are fewer than five.
        coordination: coordination numbers of the reference systems [E, 5]; -1 where there is none.
        r4r2: square roots of half sqrt(Z) <r^4> / <r^2> [E].
        radii: covalent radii times 4/3 [E].
    """

    c6: Tensor
    coordination: Tensor
    r4r2: Tensor
    radii: Tensor


def reference_tables(elements: Sequence[int]) -> D3Tables:
    """The published data of some elements, float64, out of the optional package tad-dftd3.

    Args:
        elements: atomic numbers, up to 88.

    Raises:
        ImportError: tad-dftd3 is not installed.
        ValueError: an element without data.
    """
    if not elements or any(not 1 <= z <= 88 for z in elements):
        raise ValueError(f"D3 knows the elements 1..88 here, not all of {tuple(elements)}")
    try:
        data, radii_of = (import_module(name) for name in ("tad_dftd3", "tad_mctc.data"))
    except ImportError as error:
        raise ImportError(
            "the reference data of D3 come from tad-dftd3: pip install tad-dftd3"
        ) from error
    z = torch.tensor(list(elements))
    reference = data.reference.Reference(dtype=torch.float64)
    coordination = reference.cn[z][:, :5]
    c6 = reference.c6[z][:, z][:, :, :5, :5]
    known = coordination >= 0.0
    c6 = c6 * (known[:, None, :, None] & known[None, :, None, :])
    r4r2, radii = (f(dtype=torch.float64)[z] for f in (data.data.R4R2, radii_of.COV_D3))
    return D3Tables(c6, torch.where(known, coordination, -1.0), r4r2, radii)


class D3(nn.Module):
    """Pairwise D3 with rational (Becke-Johnson) damping.

    E = -1/2 sum_ij (s6 C6 / (d^6 + R^6) + s8 C8 / (d^8 + R^8)) with C8 = 3 C6 Q_i Q_j and
    R = a1 sqrt(C8 / C6) + a2: Grimme, Ehrlich and Goerigk, J. Comput. Chem. 32, 1456 (2011). C6
    is an average over reference systems by the coordination numbers of the two atoms (J. Chem.
    Phys. 132, 154104 (2010), eqs. 15 and 16). No three-body term. Everything is switched off
    smoothly between 0.8 and 1 times the cutoff, coordination numbers too.

    The parameters belong to the functional of the network's labels: wB97M-D3(BJ) has s8 0.3908, a1
    0.5660, a2 3.1280.

    Args:
        elements: atomic numbers, in the order of the tables.
        s8, a1, a2: parameters of the damping, a2 in bohr.
        s6: weight of the leading term.
        cutoff: Å; how far pairs have to be found.
        tables: the reference data, e.g. `reference_tables(elements)`. Saved with the model. Without
            them every energy is NaN until they are loaded.
    """

    element_index: Tensor
    c6: Tensor
    coordination: Tensor
    r4r2: Tensor
    radii: Tensor

    def __init__(
        self,
        elements: Sequence[int],
        s8: float,
        a1: float,
        a2: float,
        s6: float = 1.0,
        cutoff: float = 15.0,
        tables: Optional[D3Tables] = None,
    ) -> None:
        super().__init__()
        self.elements: Tuple[int, ...] = tuple(int(z) for z in elements)
        known = self.elements and all(1 <= z <= 118 for z in self.elements)
        if not known or len(set(self.elements)) < len(self.elements):
            raise ValueError(f"elements of D3 must be distinct atomic numbers, got {elements}")
        if not (cutoff > 0.0 and a1 >= 0.0 and a2 >= 0.0 and a1 + a2 > 0.0):
            raise ValueError(
                f"cutoff, a1 and a2 of D3 must be positive, got {cutoff} Å, {a1} and {a2} bohr"
            )
        self.s6, self.s8, self.a1, self.a2 = float(s6), float(s8), float(a1), float(a2)
        self.cutoff = float(cutoff)
        self.bohr, self.hartree = BOHR, HARTREE
        index = torch.full((119,), -1, dtype=torch.int64)
        index[torch.tensor(self.elements)] = torch.arange(len(self.elements))
        self.register_buffer("element_index", index, persistent=False)
        n = len(self.elements)
        for name, shape in (
            ("c6", (n, n, 5, 5)),
            ("coordination", (n, 5)),
            ("r4r2", (n,)),
            ("radii", (n,)),
        ):
            values = torch.full(shape, float("nan"))
            if tables is not None:
                given = getattr(tables, name)
                if tuple(given.shape) != shape or not bool(torch.isfinite(given).all()):
                    raise ValueError(f"{name} of the D3 tables must be {shape} finite numbers")
                values = given.detach().clone()
            self.register_buffer(name, values)

    def switch(self, distances: Tensor) -> Tensor:
        """1 up to 0.8 cutoffs, 0 at the cutoff, with two continuous derivatives: [P] -> [P]."""
        x = ((distances / self.cutoff - 0.8) / 0.2).clamp(0.0, 1.0)
        return 1.0 - x * x * x * (10.0 + x * (6.0 * x - 15.0))

    def coordination_numbers(self, inputs: TermInputs) -> Tensor:
        """Number of neighbours within about a bond length, counted smoothly [N]."""
        element = self.element_index[inputs.numbers]
        radii = self.radii[element] * self.bohr
        i, j = inputs.pairs[0], inputs.pairs[1]
        ratio = (radii.index_select(0, i) + radii.index_select(0, j)) / inputs.distances
        counted = torch.sigmoid(16.0 * (ratio - 1.0)) * self.switch(inputs.distances)
        return pair_to_atoms(counted, i, inputs.numbers.shape[0])

    def c6_coefficients(self, inputs: TermInputs) -> Tensor:
        """C6 of each pair [P], hartree bohr^6."""
        element = self.element_index[inputs.numbers]
        reference = self.coordination[element]
        gaps = self.coordination_numbers(inputs).unsqueeze(-1) - reference
        score = (-4.0 * gaps * gaps).masked_fill(reference < 0.0, -float("inf"))
        weights = torch.softmax(score, dim=1)  # of the reference systems [N, 5]
        # what an atom brings to a pair with each element and reference system: [N, E, 5]
        half = torch.einsum("na,neab->neb", weights, self.c6[element])
        i, j = inputs.pairs[0], inputs.pairs[1]
        row = i * len(self.elements) + element.index_select(0, j)
        return (half.flatten(0, 1).index_select(0, row) * weights.index_select(0, j)).sum(1)

    def forward(self, inputs: TermInputs) -> Tensor:
        """Energies of the atoms [N] in eV."""
        i, j = inputs.pairs[0], inputs.pairs[1]
        r4r2 = self.r4r2[self.element_index[inputs.numbers]]
        ratio = 3.0 * r4r2.index_select(0, i) * r4r2.index_select(0, j)
        radius = self.a1 * torch.sqrt(ratio) + self.a2
        d2, radius2 = (inputs.distances / self.bohr).square(), radius * radius
        d6, radius6 = d2 * d2 * d2, radius2 * radius2 * radius2
        damped = self.s6 / (d6 + radius6) + self.s8 * ratio / (d6 * d2 + radius6 * radius2)
        energy = self.c6_coefficients(inputs) * damped * self.switch(inputs.distances)
        return pair_to_atoms(-0.5 * self.hartree * energy, i, inputs.numbers.shape[0])

"""A potential: core network + energy terms -> energy, forces and stress of a batch of systems.

The only place where a derivative with respect to positions or strain is taken.
"""

from dataclasses import dataclass, replace
from typing import Any, Dict, List, Optional, Tuple

import torch
from torch import Tensor, nn

from nnpcalc.batch import AtomsBatch
from nnpcalc.neighbors import NeighborList, neighbor_list, pair_vectors
from nnpcalc.terms.inputs import TermInputs, with_charges, within


@dataclass(frozen=True)
class Results:
    """What a potential says of a batch.

    Attributes:
        energy: energy of each system [B], eV, float64.
        energies: energy of each atom [N], eV, float64.
        forces: [N, 3], eV/Å, or None if not asked for.
        stress: (dE/d strain) / volume [B, 3, 3], eV/Å^3, or None if not asked for; NaN for a
            system whose cell has no volume.
        charges: the core's partial charges [N], e, or None if it has none.
        dipole: moment of these charges about the centre of nuclear charge [B, 3], e Å, float64, or
            None; NaN for a periodic system. Only that of an ion depends on the origin.
    """

    energy: Tensor
    energies: Tensor
    forces: Optional[Tensor] = None
    stress: Optional[Tensor] = None
    charges: Optional[Tensor] = None
    dipole: Optional[Tensor] = None


class Potential(nn.Module):
    """A core network and the energy terms added to it.

    ``E = sum_i (scale * core_i + sum_terms term_i)``; the sum runs in float64, everything before
    it in the dtype of the model.

    Args:
        core: one of `nnpcalc.models.ARCHITECTURES`, built.
        terms: modules of `nnpcalc.terms`.
        scale: eV per unit of the core's output.

    Attributes:
        cutoff: the largest of the core's and the terms', Å: how far pairs have to be given.
        full_periodicity: True if a term cannot compute systems with one or two periodic directions.
    """

    term_cutoffs: List[float]
    __jit_unused_properties__ = ("elements", "dtype", "device")

    def __init__(self, core: nn.Module, terms: Tuple[nn.Module, ...] = (), scale: float = 1.0):
        super().__init__()
        self.core = core
        self.terms = nn.ModuleList(list(terms))
        self.scale = float(scale)
        elements: Any = core.elements
        for term in terms:
            lacking = sorted(set(elements) - set(getattr(term, "elements", elements)))
            if lacking:
                raise ValueError(f"{type(term).__name__} lacks the elements Z = {lacking}")
        self.core_cutoff: float = float(core.cutoff)  # type: ignore[arg-type]
        reaches = [float(getattr(term, "cutoff", 0.0)) for term in terms]
        self.term_cutoffs = [reach if reach > 0.0 else self.core_cutoff for reach in reaches]
        self.cutoff: float = max([self.core_cutoff, *self.term_cutoffs])
        self.full_periodicity: bool = any(getattr(t, "full_periodicity", False) for t in terms)

    @property
    def elements(self) -> Tuple[int, ...]:
        """Atomic numbers the core network knows."""
        return tuple(self.core.elements)  # type: ignore[arg-type]

    @property
    def dtype(self) -> torch.dtype:
        """Floating-point type of the parameters."""
        return next(self.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """Device of the parameters."""
        return next(self.parameters()).device

    def atom_energies(
        self, inputs: TermInputs, partial_charges: Optional[Tensor]
    ) -> Dict[str, Tensor]:
        """Energies of the atoms [N] in eV, float64, and whatever else the core returns."""
        near = within(inputs, self.core_cutoff) if self.core_cutoff < self.cutoff else inputs
        output = self.core(
            near.numbers,
            near.pairs,
            near.vectors,
            near.distances,
            near.system,
            near.charge,
            near.multiplicity,
            partial_charges,
        )
        if "charges" in output:
            near = with_charges(near, output["charges"])
            inputs = with_charges(inputs, output["charges"])
        energies = output["energies"].to(torch.float64) * self.scale
        for k, term in enumerate(self.terms):
            reach = self.term_cutoffs[k]
            if reach == self.core_cutoff:
                energies = energies + term(near)
            elif reach == self.cutoff:
                energies = energies + term(inputs)
            else:
                energies = energies + term(within(inputs, reach))
        output["energies"] = energies
        return output

    def forward(
        self,
        numbers: Tensor,
        positions: Tensor,
        cell: Tensor,
        system: Tensor,
        pairs: Tensor,
        shifts: Tensor,
        charge: Tensor,
        multiplicity: Tensor,
        partial_charges: Optional[Tensor] = None,
        compute_forces: bool = True,
        compute_stress: bool = True,
        create_graph: bool = False,
    ) -> Dict[str, Tensor]:
        """Energies and derivatives of a batch; the exported TorchScript file has this signature.

        Args:
            numbers: atomic numbers [N], int64.
            positions: [N, 3], Å, in the dtype of the model.
            cell: row vectors of each system's cell [B, 3, 3], Å; zeros where there is none.
            system: index of each atom's system [N], int64, ascending.
            pairs: receiver i and sender j of each pair [2, P], int64: all (i, j) and (j, i)
                with |r_j - r_i + shift @ cell| < cutoff.
            shifts: whole cell vectors added to r_j - r_i [P, 3], int64.
            charge: total charge of each system [B], int64, e.
            multiplicity: 2S + 1 of each system [B], int64.
            partial_charges: given charges [N], e, for models that use them.
            compute_forces: also return forces.
            compute_stress: also return stress.
            create_graph: keep the graph of the derivatives (training, second derivatives).

        Returns:
            energy [B] and energies [N] (eV, float64); forces [N, 3] (eV/Å); stress [B, 3, 3]
            (eV/Å^3; NaN for a cell without volume); where the model has them, charges [N] (e) and
            dipole [B, 3] (e Å, float64, as in `Results`).
        """
        if compute_forces or compute_stress:
            assert torch.is_grad_enabled(), (
                "forces and stress are derivatives: call the model outside torch.no_grad()"
            )
        keep_graph = create_graph or positions.requires_grad
        if compute_forces and not positions.requires_grad:
            positions = positions.detach().requires_grad_(True)
        vectors = pair_vectors(positions, cell, system, pairs, shifts)
        strain = torch.zeros_like(cell)
        strained_positions, strained_cell = positions, cell
        if compute_stress:
            # Vectors are strained themselves, not made of strained positions: far from the origin
            # the terms of the virial would be large and cancel.
            strain = strain.requires_grad_(True)
            pair_strain = strain.index_select(0, system.index_select(0, pairs[0]))
            vectors = vectors + torch.matmul(vectors.unsqueeze(1), pair_strain).squeeze(1)
            atom_strain = strain.index_select(0, system)
            strained_positions = positions + torch.matmul(positions[:, None], atom_strain)[:, 0]
            strained_cell = cell + torch.matmul(cell, strain)
        seen = TermInputs(
            numbers,
            strained_positions,
            strained_cell,
            system,
            pairs,
            shifts,
            vectors,
            torch.sqrt((vectors * vectors).sum(-1)),
            charge.to(vectors.dtype),
            multiplicity.to(vectors.dtype),
            None,
        )
        output = self.atom_energies(seen, partial_charges)
        energies = output["energies"]
        energy = torch.zeros(cell.shape[0], dtype=torch.float64, device=cell.device).index_add(
            0, system, energies
        )
        results = {"energy": energy, "energies": energies}
        if "charges" in output:
            results["charges"] = output["charges"]
            results["dipole"] = dipole_moments(numbers, positions, cell, system, output["charges"])
        wanted: List[Tensor] = []
        if compute_forces:
            wanted.append(positions)
        if compute_stress:
            wanted.append(strain)
        if len(wanted) > 0:
            gradients = _gradients(energy.sum(), wanted, keep_graph)
            if compute_forces:
                results["forces"] = -gradients[0]
            if compute_stress:
                results["stress"] = stress_of_virial(gradients[-1], cell)
        if not keep_graph:
            results = {key: value.detach() for key, value in results.items()}
        return results

    @torch.jit.unused
    def evaluate(
        self,
        batch: AtomsBatch,
        neighbors: Optional[NeighborList] = None,
        *,
        forces: bool = True,
        stress: bool = False,
    ) -> Results:
        """Evaluate a batch, which must have the dtype and device of the model.

        Args:
            batch: the systems.
            neighbors: their pairs within the cutoff; found here if not given.
            forces: compute forces.
            stress: compute the stress.

        Raises:
            ValueError: the batch has another dtype or device, or lacks what the model needs.
        """
        check_inputs(self, batch)
        if neighbors is None:
            neighbors = neighbor_list(batch, self.cutoff)
        with torch.enable_grad():
            output = self(*inputs(batch, neighbors), compute_forces=forces, compute_stress=stress)
        return Results(**{key: value.detach() for key, value in output.items()})

    @torch.jit.unused
    def hessian(self, batch: AtomsBatch) -> Tensor:
        """Second derivatives of the energy of one system [3N, 3N], eV/Å^2, by double backward.

        Raises:
            ValueError: the batch holds more than one system.
        """
        check_inputs(self, batch)
        if batch.n_systems != 1:
            raise ValueError(f"a Hessian needs a batch of one system, got {batch.n_systems}")
        neighbors = neighbor_list(batch, self.cutoff)
        positions = batch.positions.detach().requires_grad_(True)
        batch = replace(batch, positions=positions)
        with torch.enable_grad():
            output = self(
                *inputs(batch, neighbors), compute_forces=True, compute_stress=False,
                create_graph=True,
            )  # fmt: skip
        gradient = -output["forces"].reshape(-1)
        rows = torch.zeros(
            (gradient.shape[0], gradient.shape[0]), dtype=positions.dtype, device=positions.device
        )
        if not gradient.requires_grad:  # atoms without neighbours: the energy is a constant
            return rows
        for k in range(gradient.shape[0]):
            (row,) = torch.autograd.grad(gradient[k], positions, retain_graph=True)
            rows[k] = row.reshape(-1)
        return 0.5 * (rows + rows.t())


def _gradients(energy: Tensor, wanted: List[Tensor], create_graph: bool) -> List[Tensor]:
    """Derivatives of the energy; zeros where it does not depend on an input (no pairs)."""
    if not energy.requires_grad:
        return [torch.zeros_like(x) for x in wanted]
    gradients = torch.autograd.grad([energy], wanted, create_graph=create_graph, allow_unused=True)
    filled: List[Tensor] = []
    for k, gradient in enumerate(gradients):
        filled.append(torch.zeros_like(wanted[k]) if gradient is None else gradient)
    return filled


def stress_of_virial(virial: Tensor, cell: Tensor) -> Tensor:
    """Derivatives of the energies by a strain [B, 3, 3] per volume; NaN where there is none."""
    virial = 0.5 * (virial + virial.transpose(1, 2))
    volume = torch.linalg.det(cell).abs()[:, None, None]
    return torch.where(volume > 0.0, virial / volume, torch.full_like(virial, float("nan")))


def dipole_moments(
    numbers: Tensor, positions: Tensor, cell: Tensor, system: Tensor, charges: Tensor
) -> Tensor:
    """sum_i q_i (r_i - o) of each system [B, 3], e Å, float64; NaN where there is a cell.

    The origin o is the centre of nuclear charge, sum_i Z_i r_i / sum_i Z_i. It matters for ions
    only, whose moment about another point p is larger by Q (o - p).
    """
    r = positions.to(torch.float64)
    z = numbers.to(torch.float64).unsqueeze(1)
    sums = torch.zeros((cell.shape[0], 4), dtype=torch.float64, device=cell.device).index_add(
        0, system, torch.cat([z * r, z], dim=1)
    )
    centre = sums[:, :3] / sums[:, 3:].clamp(min=1.0)
    moments = charges.to(torch.float64).unsqueeze(1) * (r - centre.index_select(0, system))
    dipole = torch.zeros_like(centre).index_add(0, system, moments)
    return dipole.masked_fill((cell != 0.0).flatten(1).any(dim=1, keepdim=True), float("nan"))


def inputs(batch: AtomsBatch, neighbors: NeighborList) -> Tuple[Optional[Tensor], ...]:
    """The tensor arguments of `Potential.forward`, in its order."""
    return (
        batch.numbers,
        batch.positions,
        batch.lattices,
        batch.system,
        neighbors.pairs,
        neighbors.shifts,
        batch.charge,
        batch.multiplicity,
        batch.partial_charges,
    )


def check_inputs(potential: Any, batch: AtomsBatch) -> None:
    """Refuse a batch whose dtype, device or contents the potential cannot take."""
    if batch.positions.dtype != potential.dtype:
        raise ValueError(
            f"the batch is {batch.positions.dtype}, the model {potential.dtype}: "
            "convert one with .to(...)"
        )
    if batch.positions.device.type != potential.device.type:
        raise ValueError(
            f"the batch is on {batch.positions.device}, the model on {potential.device}: "
            "move one with .to(...)"
        )
    if batch.positions.device.type == "cpu":  # elsewhere the look-up would wait for the device
        known = torch.tensor(potential.elements)
        unknown = torch.isin(batch.numbers, known, invert=True).nonzero()
        if unknown.shape[0]:
            k = int(unknown[0])
            raise ValueError(
                f"atom {k} (system {int(batch.system[k])}) is element Z={int(batch.numbers[k])}, "
                f"which this model does not know; it knows Z = {sorted(potential.elements)}"
            )
    if potential.full_periodicity:
        partly = (batch.pbc.any(dim=1) & ~batch.pbc.all(dim=1)).nonzero()
        if partly.shape[0]:
            k = int(partly[0])
            raise ValueError(
                f"system {k} is periodic in some directions only (pbc {batch.pbc[k].tolist()}), "
                "which the Ewald sum of this model cannot compute: make all of them periodic, with "
                "vacuum between the images, or none"
            )
    given = batch.partial_charges is not None or batch.n_atoms == 0
    if "partial_charges" in potential.core.conditions_on and not given:
        raise ValueError(
            "this model needs given partial charges: set atoms.arrays['partial_charges'] (e)"
        )

"""The limited-memory BFGS method with a line search by backtracking, for many molecules at once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nnpcalc.batch import AtomsBatch
from nnpcalc.optimizer.search import Search, Variables, dot, shortened, spread


@dataclass(frozen=True)
class LBFGS:
    """Nocedal and Wright, Numerical Optimization, 2nd edition (2006), algorithms 7.4 and 3.1.

    The direction is p = -H g, where the inverse Hessian H is built by the two-loop recursion from
    the last steps s and changes y of the gradient g, on top of gamma = s.y / y.y of the newest pair
    (their eq. 7.20). Pairs without curvature, s.y <= 0, are left out, so that p points downhill.

    Each step is tried in full length first. It is accepted if the energy does not rise:

        E(x + a p) <= E(x) + c a g.p                                   (their eq. 3.4), or
        E(x + a p) <= E(x) + noise  and  g(x + a p).p <= (2 c - 1) g.p

    the second being the "approximate Wolfe condition" of Hager and Zhang, SIAM J. Optim. 16, 170
    (2005), which asks the forces where the energies differ by rounding only. Otherwise a becomes
    the zero of the slope between the two points, or where there is none a quarter; and after
    `patience` such failures the history is dropped and the molecule goes along its forces.

    Attributes:
        max_step: Å that an atom may move in one step.
        memory: pairs s, y that are kept. Molecules have stiff and soft directions and need many:
            with 20, twenty-atom molecules take a quarter more evaluations than with 100.
        inverse_curvature: Å^2/eV, gamma before the first pair.
        noise: eV per atom by which energies may be wrong.
        patience: failures of one direction before the history is dropped; after three times as
            many the molecule is given up.
    """

    max_step: float = 0.2
    memory: int = 100
    inverse_curvature: float = 1.0 / 70.0
    noise: float = 1e-6
    patience: int = 4

    def begin(self, atoms: AtomsBatch) -> tuple[Variables, Variables]:
        """No history yet; the first evaluation is accepted whatever it says."""
        x, b = atoms.positions, atoms.n_systems
        whole = torch.zeros(b, dtype=torch.int64, device=x.device)
        system = {
            "pairs": whole,  # accepted pairs so far
            "failures": whole,
            "length": x.new_ones(b),  # a
            "slope": x.new_zeros(b),  # g.p
            "curvature": x.new_zeros(b, self.memory),  # s.y of each pair
            "scale": x.new_full((b,), self.inverse_curvature),  # gamma
        }
        history = x.new_zeros(atoms.n_atoms, self.memory, 3)
        return system, {"direction": torch.zeros_like(x), "s": history, "y": history}

    def step(self, search: Search, energy: Tensor, raw_forces: Tensor) -> tuple[Search, Tensor]:
        """Judge the geometry tried last, and propose another."""
        forces = raw_forces * search.mobile
        good, slope_here = self._accepts(search, energy, forces)
        search = self._remember(search, good, energy, forces, raw_forces)
        old, counts = search.system_variables, search.counts
        failures = torch.where(good, 0, old["failures"] + 1)

        # a new direction after a success, or without the history after many failures
        forget = failures == self.patience
        pairs = torch.where(forget, 0, old["pairs"])
        fresh = good | forget
        direction, slope = search.atom_variables["direction"], old["slope"]
        if bool(fresh.any()):
            proposed = self._direction(search, pairs)
            down = -dot(search.forces, proposed, counts)
            direction = torch.where(spread(fresh, search), proposed, direction)
            slope = torch.where(fresh, down, slope)
        shorter = _zero_of_slope(old["length"], old["slope"], slope_here)
        length = torch.where(good, 1.0, torch.where(forget, 0.1, shorter))

        variables = {**old, "pairs": pairs, "failures": failures, "length": length, "slope": slope}
        after = search.trying(
            search.positions + spread(length, search) * direction,
            system_variables=variables,
            atom_variables={**search.atom_variables, "direction": direction},
        )
        return after, failures >= 3 * self.patience

    def _accepts(self, search: Search, energy: Tensor, forces: Tensor) -> tuple[Tensor, Tensor]:
        """Which molecules [B] take the step, and the slopes [B] at its end along p, eV."""
        c, old, counts = 1e-4, search.system_variables, search.counts
        start = old["slope"]
        end = -dot(forces, search.atom_variables["direction"], counts)
        rise = energy - search.energy
        falls = rise <= c * old["length"] * start
        flat = (rise <= self.noise * counts) & (end <= (2 * c - 1.0) * start)
        return falls | flat, end

    def _remember(
        self, search: Search, good: Tensor, energy: Tensor, forces: Tensor, raw_forces: Tensor
    ) -> Search:
        """Make the steps that were good the present geometry, and their pairs part of history."""
        old, atoms = search.system_variables, search.atom_variables
        counts, row = search.counts, spread(good, search)
        s = search.atoms.positions - search.positions
        y = search.forces - forces
        sy = dot(s, y, counts)
        first = torch.isinf(search.energy)
        bends = sy > 1e-8 * torch.sqrt(dot(s, s, counts) * dot(y, y, counts))
        keep = good & ~first & bends
        slot = old["pairs"] % self.memory
        atom_slot = slot.index_select(0, search.atoms.system)
        atom_rows = torch.arange(len(s), device=s.device)
        system_rows = torch.arange(len(slot), device=s.device)
        atom_keep, history = spread(keep, search), {}
        for name, new in (("s", s), ("y", y)):
            history[name] = atoms[name].clone()
            kept = torch.where(atom_keep, new, history[name][atom_rows, atom_slot])
            history[name][atom_rows, atom_slot] = kept
        curvature = old["curvature"].clone()
        curvature[system_rows, slot] = torch.where(keep, sy, curvature[system_rows, slot])
        return search.trying(
            search.atoms.positions,
            positions=torch.where(row, search.atoms.positions, search.positions),
            energy=torch.where(good, energy, search.energy),
            forces=torch.where(row, forces, search.forces),
            raw_forces=torch.where(row, raw_forces, search.raw_forces),
            system_variables={
                **old,
                "pairs": old["pairs"] + keep,
                "curvature": curvature,
                "scale": torch.where(keep, sy / dot(y, y, counts), old["scale"]),
            },
            atom_variables={**atoms, **history},
        )

    def _direction(self, search: Search, pairs: Tensor) -> Tensor:
        """p = -H g [N, 3], no atom longer than the limit: algorithm 7.4."""
        counts, system = search.counts, search.atoms.system
        history, curvature = search.atom_variables, search.system_variables["curvature"]
        kept = torch.clamp(pairs, max=self.memory)
        atom_rows = torch.arange(len(system), device=system.device)
        q, coefficients = search.forces, []  # with the sign of p
        newest_first = range(int(kept.max()))
        for k in newest_first:
            slot = (pairs - 1 - k) % self.memory
            sy = torch.gather(curvature, 1, slot[:, None])[:, 0]
            inverse = torch.where(k < kept, 1.0 / sy, 0.0)  # 0 makes a pair do nothing
            rows = slot.index_select(0, system)
            s, y = history["s"][atom_rows, rows], history["y"][atom_rows, rows]
            a = inverse * dot(s, q, counts)
            q = q - spread(a, search) * y
            coefficients.append((a, inverse, s, y))
        p = q * spread(search.system_variables["scale"], search)
        for a, inverse, s, y in reversed(coefficients):
            b = inverse * dot(y, p, counts)
            p = p + spread(a - b, search) * s
        return shortened(p, self.max_step, search)


def _zero_of_slope(length: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """Where a slope that is linear between 0 and `length` is zero, 0.1 to 0.5 of the way."""
    fraction = torch.where(end > start, start / (start - end), 0.25)
    return length * torch.where(end > 0, fraction, 0.25).clamp(0.1, 0.5)

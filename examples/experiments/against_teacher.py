"""How far a model is from the network that labelled its training set, on molecules it never saw.

    python against_teacher.py MODEL --teacher aimnet2_wb97m_ens_f.jpt --corpus DIRECTORY --out plots

Three parts (`--parts geometry torsions dimers`), each with a table, a JSON file and a plot:

- geometry: validation molecules optimised by both from the same conformer; root-mean-square
  distance of the two minima after superposition.
- torsions: relaxed profiles of ten rotors from 0 to 180 degrees (all are symmetric), each program
  relaxing its own geometries.
- dimers: binding curves of water dimer, ammonium-water and formate-water, rigid monomers, against
  the separate monomers.

The teacher is the AIMNet2 wB97M-D3 ensemble that the package Auto3D 2.3.1 carries as a TorchScript
file (MIT licence): `pip download --no-deps Auto3D==2.3.1`, unpack, `Auto3D/models/`. In place of
MODEL its aimnet2_wb97m-d3_0.jpt says how far one member is from all four. The corpus is the one of
`examples/datasets/README.md`. Needs rdkit and matplotlib.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from ase import Atoms
from ase.build import minimize_rotation_and_translation
from ase.calculators.calculator import Calculator, all_changes
from ase.constraints import FixInternals
from ase.data import covalent_radii
from ase.optimize import BFGS

from nnpcalc import NNPCalculator
from nnpcalc.units import KCAL_PER_MOL

#: SMILES of a molecule, and of the four atoms (in its own order) whose dihedral is turned.
ROTORS = {
    "butane": ("CCCC", (0, 1, 2, 3)),
    "methyl formate": ("O=COC", (0, 1, 2, 3)),
    "N-methylacetamide": ("CC(=O)NC", (0, 1, 3, 4)),
    "ethylene glycol": ("OCCO", (0, 1, 2, 3)),
    "biphenyl": ("c1ccccc1-c1ccccc1", (0, 5, 6, 7)),
    "styrene": ("C=Cc1ccccc1", (0, 1, 2, 3)),
    "anisole": ("COc1ccccc1", (0, 1, 2, 3)),
    "dimethyl disulfide": ("CSSC", (0, 1, 2, 3)),
    "glyoxal": ("O=CC=O", (0, 1, 2, 3)),
    "1,2-difluoroethane": ("FCCF", (0, 1, 2, 3)),
}


class Teacher(Calculator):
    """The TorchScript ensemble or one member of it as an ASE calculator.

    The charge is read from `Atoms.info`.
    """

    implemented_properties = ("energy", "forces")

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.model = torch.jit.load(str(path), map_location="cpu")

    def check_state(self, atoms, tol=1e-15):
        changes = super().check_state(atoms, tol)
        charge = atoms.info.get("charge", 0)
        return changes + (["info"] if charge != getattr(self, "charge", None) else [])

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        self.charge = atoms.info.get("charge", 0)
        coord = torch.tensor(atoms.positions[None], dtype=torch.float32, requires_grad=True)
        numbers, charge = torch.tensor(atoms.numbers[None]), torch.tensor([float(self.charge)])
        output = self.model({"coord": coord, "numbers": numbers, "charge": charge})
        forces = output.get("forces")
        if forces is None:  # of one member
            forces = -torch.autograd.grad(output["energy"].sum(), coord)[0]
        self.results = {
            "energy": float(output["energy"][0]),
            "forces": forces[0].detach().double().numpy(),
        }


def optimised(atoms: Atoms, calculator: Calculator, fmax: float, steps: int = 400) -> Atoms:
    """A copy at its nearest minimum, and whether it got there in `info["converged"]`."""
    atoms = atoms.copy()
    atoms.calc = calculator
    atoms.info["converged"] = bool(BFGS(atoms, logfile=None).run(fmax=fmax, steps=steps))
    atoms.info["energy"] = atoms.get_potential_energy()
    atoms.calc = None
    return atoms


def from_smiles(smiles: str) -> Atoms:
    """A conformer by ETKDG; heavy atoms in the order of the SMILES, hydrogens after them."""
    from rdkit import Chem
    from rdkit.Chem import AllChem

    molecule = Chem.AddHs(Chem.MolFromSmiles(smiles))
    AllChem.EmbedMolecule(molecule, randomSeed=1)
    AllChem.MMFFOptimizeMolecule(molecule)
    numbers = [atom.GetAtomicNum() for atom in molecule.GetAtoms()]
    charge = Chem.GetFormalCharge(molecule)
    return Atoms(numbers, molecule.GetConformer().GetPositions(), info={"charge": charge})


def validation_molecules(corpus: Path, count: int, seed: int) -> list[Atoms]:
    """The quietest conformer of random validation molecules of 6 to 40 atoms, no clusters."""
    found: dict[int, tuple[float, Atoms]] = {}
    for path in sorted(corpus.glob("*.npz")):
        with np.load(path) as data:
            offsets = np.concatenate([[0], np.cumsum(data["n_atoms"])])
            arrays = {name: data[name] for name in ("numbers", "positions", "forces")}
            molecule, charge, size = data["molecule"], data["charge"], data["n_atoms"]
            for k in np.flatnonzero((data["split"] == 1) & (size >= 6) & (size <= 40)):
                rows = slice(offsets[k], offsets[k + 1])
                force = float(np.abs(arrays["forces"][rows].astype(np.float32)).max())
                if force < found.get(int(molecule[k]), (np.inf,))[0]:
                    positions = arrays["positions"][rows].astype(np.float64)
                    info = {"charge": int(charge[k]), "molecule": int(molecule[k])}
                    atoms = Atoms(arrays["numbers"][rows], positions, info=info)
                    found[int(molecule[k])] = (force, atoms)
    names = sorted(k for k, (_, atoms) in found.items() if in_one_piece(atoms))
    chosen = np.random.default_rng(seed).choice(len(names), min(count, len(names)), replace=False)
    return [found[names[k]][1] for k in chosen]


def in_one_piece(atoms: Atoms) -> bool:
    """Whether bonds hold all atoms together."""
    radii = covalent_radii[atoms.numbers]
    near = atoms.get_all_distances() < 1.25 * (radii[:, None] + radii)
    reached = near[0]
    for _ in atoms:
        reached = near[reached].any(0)
    return bool(reached.all())


def rmsd(one: Atoms, other: Atoms) -> float:
    """Root-mean-square distance of the atoms after superposition, Å."""
    other = other.copy()
    minimize_rotation_and_translation(one, other)
    return float(np.sqrt(((one.positions - other.positions) ** 2).sum(1).mean()))


def geometry(args: argparse.Namespace, model: Calculator, teacher: Calculator) -> dict:
    rows = []
    for k, atoms in enumerate(validation_molecules(args.corpus, args.molecules, args.seed)):
        reference = optimised(atoms, teacher, 0.01)
        ours = optimised(atoms, model, 0.01)
        near = optimised(reference, model, 0.01)  # from the teacher's minimum
        row = {
            "molecule": atoms.info["molecule"],
            "formula": atoms.get_chemical_formula(),
            "charge": atoms.info["charge"],
            "rmsd": rmsd(reference, ours),
            "rmsd_from_minimum": rmsd(reference, near),
            "converged": [reference.info["converged"], ours.info["converged"]],
        }
        rows.append(row)
        print(f"{k + 1:3d} {row['formula']:<16}{row['charge']:+d} {row['rmsd']:.3f} "
              f"{row['rmsd_from_minimum']:.3f} Å {row['converged']}", flush=True)  # fmt: skip
    summary = {}
    for key in ("rmsd", "rmsd_from_minimum"):
        values = np.array([row[key] for row in rows])
        summary[key] = {
            "median": float(np.median(values)),
            "mean": float(values.mean()),
            "share_below_0.05": float((values < 0.05).mean()),
            "largest": float(values.max()),
        }
    return {"summary": summary, "molecules": rows}


def profile(atoms: Atoms, atoms_of_bond: tuple, calculator: Calculator, angles) -> np.ndarray:
    """Relaxed energies (kcal/mol, from the lowest) along a dihedral, each started at the last."""
    atoms = atoms.copy()
    atoms.calc = calculator
    energies = []
    for angle in angles:
        atoms.set_constraint()
        mask = moving_side(atoms, atoms_of_bond)
        atoms.set_dihedral(*atoms_of_bond, angle, indices=mask)
        held = [[angle, list(atoms_of_bond)]]
        atoms.set_constraint(FixInternals(dihedrals_deg=held, epsilon=1e-5))
        BFGS(atoms, logfile=None).run(fmax=0.05, steps=60)
        energies.append(atoms.get_potential_energy())
    return (np.array(energies) - min(energies)) / KCAL_PER_MOL


def moving_side(atoms: Atoms, atoms_of_bond: tuple) -> list[int]:
    """The atoms beyond the turned bond."""
    from ase.neighborlist import build_neighbor_list

    near = build_neighbor_list(atoms, self_interaction=False)
    _, j, k, _ = atoms_of_bond
    seen, queue = {j, k}, [k]
    while queue:
        for n in near.get_neighbors(queue.pop())[0].tolist():
            if n not in seen:
                seen.add(n)
                queue.append(n)
    return sorted(seen - {j})


def torsions(args: argparse.Namespace, model: Calculator, teacher: Calculator) -> dict:
    angles = np.arange(0.0, 181.0, 15.0)
    result: dict = {"angles": angles.tolist(), "rotors": {}}
    for name, (smiles, bond) in ROTORS.items():
        start = optimised(from_smiles(smiles), teacher, 0.02)
        reference = profile(start, bond, teacher, angles)
        ours = profile(start, bond, model, angles)
        error = float(np.abs(ours - reference).mean())
        result["rotors"][name] = {
            "teacher": reference.tolist(), "model": ours.tolist(), "mae": error,
            "barrier": [float(reference.max()), float(ours.max())],
        }  # fmt: skip
        print(f"{name:<20} MAE {error:.2f} kcal/mol, barrier {reference.max():.2f} by the "
              f"teacher, {ours.max():.2f} by the model", flush=True)  # fmt: skip
    result["mae"] = float(np.mean([r["mae"] for r in result["rotors"].values()]))
    return result


def hydrogen_bonded(donor: Atoms, acceptor: Atoms, teacher: Calculator) -> Atoms:
    """The teacher's minimum of a donor's hydrogen at the first oxygen of an acceptor."""
    hydrogen = int(np.flatnonzero(donor.numbers == 1)[0])
    axis = donor.positions[hydrogen] - donor.positions[0]
    axis /= np.linalg.norm(axis)
    acceptor = acceptor.copy()
    oxygen = int(np.flatnonzero(acceptor.numbers == 8)[0])
    others = np.delete(acceptor.positions, oxygen, axis=0).mean(0)
    acceptor.rotate(others - acceptor.positions[oxygen], axis)
    acceptor.rotate(50.0, np.cross(axis, (0.3, 0.5, 0.8)))  # no bond is linear at the acceptor
    acceptor.translate(donor.positions[hydrogen] + 1.8 * axis - acceptor.positions[oxygen])
    both = donor + acceptor
    both.info = {"charge": donor.info["charge"] + acceptor.info["charge"]}
    return optimised(both, teacher, 0.01)


def dimers(args: argparse.Namespace, model: Calculator, teacher: Calculator) -> dict:
    """The acceptor is moved along the line from the donor's heavy atom to its oxygen."""
    names = {"water": "O", "ammonium": "[NH4+]", "formate": "[O-]C=O"}
    monomers = {k: optimised(from_smiles(v), teacher, 0.005) for k, v in names.items()}
    result: dict = {}
    for first, second in (("water", "water"), ("ammonium", "water"), ("water", "formate")):
        both = hydrogen_bonded(monomers[first], monomers[second], teacher)
        n = len(monomers[first])
        oxygen = n + int(np.flatnonzero(both.numbers[n:] == 8)[0])
        line = both.positions[oxygen] - both.positions[0]
        bottom = float(np.linalg.norm(line))
        steps = (np.arange(-0.4, 1.5, 0.1), np.arange(1.5, 6.5, 0.25))
        distances = bottom + np.concatenate(steps)
        curves = {}
        for who, calculator in (("teacher", teacher), ("model", model)):
            alone = 0.0
            for part, name in ((both[:n], first), (both[n:], second)):
                part.info = {"charge": monomers[name].info["charge"]}
                part.calc = calculator
                alone += part.get_potential_energy()
            energy = []
            for distance in distances:
                moved = both.copy()
                moved.positions[n:] += (distance / bottom - 1.0) * line
                moved.calc = calculator
                energy.append((moved.get_potential_energy() - alone) / KCAL_PER_MOL)
            curves[who] = energy
        difference = float(np.abs(np.subtract(curves["model"], curves["teacher"])).mean())
        depth = [min(curves["teacher"]), min(curves["model"])]
        result[f"{first}-{second}"] = {
            "distance": distances.tolist(), **curves, "mae": difference, "depth": depth,
        }  # fmt: skip
        print(f"{first}-{second:<10} depth {depth[0]:.2f} by the teacher, {depth[1]:.2f} kcal/mol "
              f"by the model; MAE along the curve {difference:.2f}", flush=True)  # fmt: skip
    return result


def plot(part: str, result: dict, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    if part == "geometry":
        figure, axes = plt.subplots(figsize=(5, 4))
        values = [[m[key] for m in result["molecules"]] for key in ("rmsd", "rmsd_from_minimum")]
        axes.hist(values, bins=np.arange(0.0, 1.0, 0.025),
                  label=["from a common conformer", "from the teacher's minimum"])  # fmt: skip
        axes.set(xlabel="RMSD / Å", ylabel="molecules")
        axes.legend()
    else:
        curves = result["rotors"] if part == "torsions" else result
        columns = 5 if part == "torsions" else 3
        rows = -(-len(curves) // columns)
        figure, grid = plt.subplots(rows, columns, figsize=(3.2 * columns, 2.8 * rows))
        for axes, (name, curve) in zip(np.ravel(grid), curves.items(), strict=False):
            x = curve.get("distance", result.get("angles"))
            axes.plot(x, curve["teacher"], label="teacher")
            axes.plot(x, curve["model"], "--", label="model")
            axes.set_title(name, fontsize=9)
            axes.set(xlabel="angle / °" if part == "torsions" else "distance / Å",
                     ylabel="kcal/mol")  # fmt: skip
        np.ravel(grid)[0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("model", help="name or path of a model, or a .jpt of the teacher's kind")
    parser.add_argument("--teacher", type=Path, required=True)
    parser.add_argument(
        "--corpus", type=Path, help="directory of the npz files, for the geometries"
    )
    parser.add_argument("--parts", nargs="+", default=["geometry", "torsions", "dimers"])
    parser.add_argument("--molecules", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("against-teacher"))
    args = parser.parse_args()
    if "geometry" in args.parts and args.corpus is None:
        parser.error("the geometries need --corpus, the directory with the validation conformers")
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    teacher, member = Teacher(args.teacher), args.model.endswith(".jpt")
    model = Teacher(Path(args.model)) if member else NNPCalculator(args.model, dtype="float64")
    parts = {"geometry": geometry, "torsions": torsions, "dimers": dimers}
    for part in args.parts:
        begin = time.monotonic()
        result = parts[part](args, model, teacher)
        (args.out / f"{part}.json").write_text(json.dumps(result, indent=1))
        plot(part, result, args.out / f"{part}.png")
        summary = result.get("summary", result.get("mae", {}))
        print(f"{part}: {summary} in {time.monotonic() - begin:.0f} s", flush=True)


if __name__ == "__main__":
    main()

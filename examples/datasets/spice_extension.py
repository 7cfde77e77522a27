"""Label conformers of molecules, or given structures, with the AIMNet2 wB97M-D3 ensemble.

    python spice_extension.py --teacher aimnet2_wb97m_ens_f.jpt --smiles molecules.smi \\
        --ionise --charges=-2:8000,-1:14000,1:14000,2:8000 --exclude validation.smi --out extension

makes ions of the molecules in ``molecules.smi``, five conformers of each by RDKit, and labels them.
With ``--structures FILE.xyz`` every frame of an extended XYZ file is labelled as it is; its charge
is read from ``charge`` in its comment line. ``README.md`` beside this file tells what to install.

The output is a directory of shards ``part-0000.npz`` in the format that ``nnpcalc train`` reads,
``molecules.txt`` (SMILES; the array ``molecule`` counts its lines from ``--first-molecule`` on) and
``run.json``. A shard is whole or absent and depends on the options only, so a run that was stopped
goes on with the next one when it is started again. ``part-0000.json`` counts what was left out.

The labels are those of a neural network, not of quantum chemistry: say so where you use them.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rdkit import Chem, RDLogger
from run_record import begin, write
from spice_extension_conformers import Failed, conformers
from spice_extension_ions import ionise, read, skeletons, unseen
from spice_extension_labels import ELEMENTS, Progress, Structure, Teacher, label

IONS, GIVEN = 1, 8  # values of the array ``source``


def parse_charges(text: str) -> dict[int, int | None]:
    """``-1:5000,1`` as {-1: 5000, 1: None}: conformers wanted of each charge, None for all."""
    wanted: dict[int, int | None] = {}
    for part in text.split(","):
        charge, _, count = part.partition(":")
        try:
            wanted[int(charge)] = int(count) if count else None
        except ValueError:
            raise argparse.ArgumentTypeError(
                f"{part!r} is not CHARGE or CHARGE:CONFORMERS, for example -1:5000"
            ) from None
    return wanted


def read_smiles(path: Path) -> list[str]:
    """The first word of every line that has one."""
    return [line.split()[0] for line in path.read_text().splitlines() if line.strip()]


def rare_first(
    molecules: list[Chem.Mol], probable: list[float], generator: np.random.Generator
) -> np.ndarray:
    """A random order in which molecules with rare elements and probable ions come early.

    A weighted shuffle (Efraimidis and Spirakis 2006) with the weight
    sqrt(probable / share of the rarest element).
    """
    elements = [{atom.GetAtomicNum() for atom in mol.GetAtoms()} for mol in molecules]
    share = Counter(z for found in elements for z in found)
    rarest = np.array([min(share[z] for z in found) for found in elements])
    weights = np.sqrt(np.array(probable) / rarest * rarest.min(initial=len(elements)))
    return np.argsort(-(generator.random(len(molecules)) ** (1.0 / weights)))


def teachable(mol: Chem.Mol) -> bool:
    """Whether the teacher knows all elements and the shells are closed."""
    return all(
        atom.GetAtomicNum() in ELEMENTS and not atom.GetNumRadicalElectrons()
        for atom in mol.GetAtoms()
    )


def choose_molecules(args: argparse.Namespace, lines: list[str]) -> list[str]:
    """The SMILES to label: ionised, unseen, of the wanted charges and sizes, in random order."""
    excluded = skeletons(read_smiles(args.exclude)) if args.exclude else set()
    allowed = list(unseen(lines, excluded))
    print(f"{len(allowed)} of {len(lines)} molecules can be read and are not excluded", flush=True)
    chosen: list[str] = []
    for charge, conformers_wanted in args.charges.items():
        found: dict[str, tuple[Chem.Mol, float]] = {}
        for row, smiles in enumerate(allowed):
            if args.ionise:
                generator = np.random.default_rng([args.seed, row, charge + 100])
                ion, weight = ionise(smiles, charge, generator)
            else:
                ion, weight = Chem.MolToSmiles(read(smiles)), 1.0
            mol = Chem.MolFromSmiles(ion) if ion else None
            if mol is None or Chem.GetFormalCharge(mol) != charge or not teachable(mol):
                continue
            size = Chem.AddHs(mol).GetNumAtoms()
            if args.min_atoms <= size <= args.max_atoms:
                found[ion] = (mol, weight)
        generator = np.random.default_rng([args.seed, charge + 100])
        order = rare_first(
            [mol for mol, _ in found.values()], [weight for _, weight in found.values()], generator
        )
        if conformers_wanted is not None:
            order = order[: -(-conformers_wanted // args.per_molecule)]
        names = list(found)
        chosen += [names[k] for k in order]
        print(f"charge {charge:+d}: {len(order)} of {len(found)} molecules", flush=True)
    # An ion has the skeleton of its parent, yet what is written is what must be checked.
    chosen = list(unseen(chosen, excluded))
    return [chosen[k] for k in np.random.default_rng(args.seed).permutation(len(chosen))]


def make_conformers(
    smiles: Sequence[str], first: int, args: argparse.Namespace, rejected: Counter[str]
) -> Iterator[Structure]:
    """Conformers of the molecules ``first``, ``first`` + 1, ...; each has its own seed."""
    progress = Progress("molecules with conformers", len(smiles))
    for row, text in enumerate(smiles, first):
        progress(row - first)
        charge = Chem.GetFormalCharge(Chem.MolFromSmiles(text))
        generator = np.random.default_rng([args.seed, row])
        try:
            numbers, frames = conformers(text, args.per_molecule, generator)
        except Failed as reason:
            rejected[str(reason)] += args.per_molecule
            continue
        rejected["torn by UFF"] += args.per_molecule - len(frames)
        for positions in frames:
            yield Structure(row, numbers, positions.astype(np.float32), charge)


def read_structures(args: argparse.Namespace) -> tuple[list[str], list[Structure]]:
    """Names (SMILES of ``smiles`` in the comment line, else the formula) and frames of the file.

    Raises:
        ValueError: a frame is not a closed-shell molecule of known elements and whole charge, or
            cannot be compared with the molecules to exclude.
    """
    from ase.io import iread

    excluded = skeletons(read_smiles(args.exclude)) if args.exclude else set()
    names: dict[str, int] = {}
    structures = []
    for frame, atoms in enumerate(iread(args.structures, index=":")):
        if atoms.pbc.any():
            raise ValueError(f"frame {frame} is periodic: the teacher knows molecules only")
        name = atoms.info.get("smiles", atoms.get_chemical_formula())
        if excluded and "smiles" not in atoms.info:
            raise ValueError(f"frame {frame} has no smiles=... to compare with --exclude")
        if excluded and not list(unseen([name], excluded)):
            continue
        charge = atoms.info.get("charge", 0)
        if int(charge) != charge:
            raise ValueError(f"frame {frame} has the charge {charge}: give a whole number")
        unknown = [k for k, z in enumerate(atoms.numbers) if z not in ELEMENTS]
        if unknown:
            raise ValueError(
                f"frame {frame}: the teacher does not know {atoms.symbols[unknown[0]]} "
                f"(atom {unknown[0]}); leave the frame out"
            )
        if (int(atoms.numbers.sum()) - int(charge)) % 2:
            raise ValueError(
                f"frame {frame} has an odd number of electrons at the charge {int(charge):+d}: the "
                f"teacher knows closed shells only; correct charge=... or leave the frame out"
            )
        if atoms.info.get("spin", 1) != 1:
            raise ValueError(
                f"frame {frame} has spin={atoms.info['spin']}: the teacher knows closed shells "
                "only; leave the frame out"
            )
        row = names.setdefault(name, len(names))
        positions = atoms.positions.astype(np.float32)
        structures.append(Structure(row, atoms.numbers.astype(np.uint8), positions, int(charge)))
    return list(names), structures


def settings_of(args: argparse.Namespace, structures: list[Structure]) -> dict[str, Any]:
    """All that the shards depend on, beside the molecules."""
    digest = hashlib.sha256()
    for structure in structures:
        digest.update(
            structure.positions.tobytes() + structure.charge.to_bytes(4, "big", signed=True)
        )
    # Not the paths: what was read from them is in the sums.
    options = {
        name: getattr(args, name)
        for name in ("ionise", "per_molecule", "seed", "shard", "source", "first_molecule", "held")
    }
    return {
        "labels": "mean of the AIMNet2 wB97M-D3 ensemble (a neural network)",
        "teacher_sha256": hashlib.sha256(args.teacher.read_bytes()).hexdigest(),
        "structures_sha256": digest.hexdigest(),
        "options": options,
    }


def run(args: argparse.Namespace) -> None:
    """Make all shards that are not there yet."""
    if args.structures and args.ionise:
        raise ValueError("--ionise makes ions of --smiles; --structures are labelled as they are")
    if min(args.per_molecule, args.shard) < 1:
        raise ValueError("--per-molecule and --shard must be at least 1")
    teacher = Teacher(args.teacher, args.device)
    if args.structures:
        names, structures = read_structures(args)
        total, step = len(structures), args.shard
    else:
        names, structures = choose_molecules(args, read_smiles(args.smiles)), []
        total, step = len(names), max(1, args.shard // args.per_molecule)
    if not total:
        raise ValueError("nothing to label: no molecule has the wanted charges and sizes")
    begin(args.out, settings_of(args, structures), names)
    source = args.source if args.source is not None else IONS if args.ionise else GIVEN
    done, began = 0, time.monotonic()
    for part, first in enumerate(range(0, total, step)):
        path = args.out / f"part-{part:04d}.npz"
        if path.exists():
            continue
        rejected: Counter[str] = Counter()
        start = time.monotonic()
        if args.structures:
            batch = structures[first : first + step]
        else:
            batch = list(make_conformers(names[first : first + step], first, args, rejected))
        made = time.monotonic()
        arrays = label(batch, teacher, source, rejected)
        labelled = time.monotonic()
        arrays["molecule"] += args.first_molecule
        arrays["split"] += args.held  # 0 for training, 1 for validation
        n = len(arrays["n_atoms"])
        summary = {
            "conformers": n,
            "rejected": {reason: count for reason, count in sorted(rejected.items()) if count},
            "seconds_conformers": round(made - start, 1),
            "seconds_labels": round(labelled - made, 1),
        }
        write(path.with_suffix(".json"), json.dumps(summary).encode())
        packed = io.BytesIO()
        np.savez_compressed(packed, **arrays)
        write(path, packed.getvalue())
        done += n
        rate = done / (time.monotonic() - began)
        print(f"{path.name} of {-(-total // step)}: {summary}, {rate:.1f} conformers/s", flush=True)


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    add = result.add_argument
    add("--teacher", type=Path, required=True, help="aimnet2_wb97m_ens_f.jpt of Auto3D")
    what = result.add_mutually_exclusive_group(required=True)
    what.add_argument("--smiles", type=Path, help="one molecule a line")
    what.add_argument("--structures", type=Path, help="extended XYZ: label these frames")
    add("--out", type=Path, required=True, help="directory of the shards")
    add("--ionise", action="store_true", help="make ions of the wanted charges")
    add("--charges", type=parse_charges, default=parse_charges("-2,-1,0,1,2"),
        help="charges, and numbers of conformers if limited: --charges=-1:5000,1")  # fmt: skip
    add("--exclude", type=Path, help="SMILES whose heavy-atom skeletons must not occur")
    add("--per-molecule", type=int, default=5, help="conformers of a molecule (%(default)s)")
    add("--min-atoms", type=int, default=2, help="(%(default)s)")
    add("--max-atoms", type=int, default=48, help="(%(default)s)")
    add("--seed", type=int, default=0, help="(%(default)s)")
    add("--shard", type=int, default=5000, help="conformers of a shard (%(default)s)")
    add("--source", type=int, help=f"number to write as source ({IONS} for ions, else {GIVEN})")
    add("--first-molecule", type=int, default=0,
        help="number of the first line of molecules.txt (%(default)s)")  # fmt: skip
    add("--held", action="store_true", help="keep them from training: for validation")
    add("--device", default="cpu", help="of the teacher (%(default)s)")
    return result


def main(arguments: Sequence[str] | None = None) -> None:
    RDLogger.DisableLog("rdApp.*")
    run(parser().parse_args(arguments))


if __name__ == "__main__":
    main()

"""Do molecules hold together in long dynamics? Share of unseen molecules whose bonds survive.

    python survival.py MODEL --corpus DIRECTORY --runs molecules-300 molecules-600 water

- molecules-300: 20 validation molecules, half of them charged, 100 ps of Langevin dynamics at 300 K
- molecules-600: the same molecules, 20 ps at 600 K
- water: a droplet of 64 molecules, packed at random and relaxed, 100 ps at 300 K

All molecules of a run are replicas of one batch. A molecule fails when its bond
graph changes, an atom pair comes too close, a force passes 100 eV/Å or anything is not finite; the
watchdog of `nnpcalc.md` sees to that. Checkpoints make the run restartable: start the same command
again. Prints a table and writes OUT/RUN.json.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from pathlib import Path

import h5py
import numpy as np
import torch
from against_teacher import validation_molecules
from ase import Atoms
from ase.build import molecule

from nnpcalc import md, optimize


def unseen_molecules(corpus: Path, count: int, seed: int) -> list[Atoms]:
    """As many charged as neutral validation molecules of 6 to 40 atoms."""
    single = validation_molecules(corpus, 10**6, seed)
    order = np.random.default_rng(seed).permutation(len(single))
    charged = [k for k in order if single[k].info["charge"]]
    neutral = [k for k in order if not single[k].info["charge"]]
    chosen = charged[: count // 2] + neutral[: count - count // 2]
    return [single[k] for k in chosen]


def droplet(count: int, seed: int) -> Atoms:
    """Water molecules at the density of the liquid in a ball, turned at random."""
    rng = np.random.default_rng(seed)
    spacing = 3.1
    grid = np.stack(np.meshgrid(*[np.arange(-6, 7)] * 3), axis=-1).reshape(-1, 3) * spacing
    sites = grid[np.argsort((grid**2).sum(1), kind="stable")][:count]
    water = Atoms()
    for site in sites:
        one = molecule("H2O")
        one.euler_rotate(*rng.uniform(0.0, 360.0, 3))
        one.positions += site - one.positions[0]
        water += one
    water.info["charge"] = 0
    return water


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("model", help="name or path of a model")
    parser.add_argument("--corpus", type=Path, required=True, help="directory of the npz files")
    parser.add_argument("--runs", nargs="+", default=["molecules-300", "molecules-600", "water"])
    parser.add_argument("--molecules", type=int, default=20)
    parser.add_argument("--timestep", type=float, default=0.5, help="fs")
    parser.add_argument("--scale", type=float, default=1.0, help="of the length of the runs")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("survival"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    for name in args.runs:
        if name == "water":
            (relaxed,) = optimize([droplet(64, args.seed)], args.model, fmax=0.1, steps=500)
            structures, temperature, picoseconds = [relaxed.atoms], 300.0, 100.0
        else:
            structures = unseen_molecules(args.corpus, args.molecules, args.seed)
            hot = name == "molecules-600"
            temperature, picoseconds = (600.0, 20.0) if hot else (300.0, 100.0)
        steps = round(args.scale * picoseconds * 1000.0 / args.timestep)
        watchdog = md.Watchdog(max_force=100.0, max_temperature=None, fixed_bonds=True)
        begin = time.monotonic()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", md.MDWarning)
            run = md.run(
                structures, args.model, md.Langevin(args.timestep, temperature=temperature), steps,
                seed=args.seed, watchdog=watchdog, checkpoint=args.out / f"{name}.checkpoint",
                trajectory=args.out / f"{name}.h5", interval=2000, checkpoint_interval=5000,
                resume=True,
            )  # fmt: skip
        with h5py.File(args.out / f"{name}.h5") as file:
            temperatures = file["temperature"][:][file["step"][:] >= 0].mean(axis=1)
        failed = [str(incident) for incident in run.incidents]
        survived = len(structures) - len({i.replica for i in run.incidents})
        charges = [atoms.info["charge"] for atoms in structures]
        length = steps * args.timestep / 1000
        kelvin = np.mean(temperatures[len(temperatures) // 10 :])
        print(f"{name}: {survived} of {len(structures)} survived {length:g} ps at "
              f"{temperature:g} K in steps of {args.timestep:g} fs (charges {charges}); mean "
              f"temperature {kelvin:.0f} K; {time.monotonic() - begin:.0f} s",
              *failed, sep="\n  ", flush=True)  # fmt: skip
        result = {"steps": steps, "timestep": args.timestep, "survived": survived,
                  "of": len(structures), "failed": failed,
                  "formulas": [a.get_chemical_formula() for a in structures],
                  "charges": charges}  # fmt: skip
        (args.out / f"{name}.json").write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()

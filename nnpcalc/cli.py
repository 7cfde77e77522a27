"""The command `nnpcalc`: look at models, verify them, compute energies, train, convert.

What a user can get wrong is told in one line, with exit status 2; a defect of ours is a traceback.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any

from ase import Atoms
from ase.data import chemical_symbols

from nnpcalc import __version__
from nnpcalc.state import CHARGE_KEYS, MULTIPLICITY_KEYS, resolve_state


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status.

    Status 0: done; 1: `verify` found differences; 2: the input is wrong, said in one line.
    """
    options = _parser().parse_args(arguments)
    try:
        status: int = options.run(options)
    except (ValueError, OSError, ImportError) as error:
        text = " ".join(str(error).split())
        print(f"nnpcalc: error: {text}", file=sys.stderr)
        return 2
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="nnpcalc", description="Neural network potentials that know charge and spin."
    )
    parser.add_argument("--version", action="version", version=f"nnpcalc {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    models = commands.add_parser("models", help="list the models, or print the card of one")
    models.add_argument("name", nargs="?", help="name or path of a model")
    models.set_defaults(run=_models)

    verify = commands.add_parser("verify", help="recompute a model's golden values here")
    verify.add_argument("name", help="name or path of a model")
    verify.add_argument("--backend", default="eager", help="eager (default), fused or torchscript")
    verify.add_argument("--trust", action="store_true", help="run TorchScript that is not shipped")
    _add_machine(verify)
    verify.set_defaults(run=_verify)

    energy = commands.add_parser("energy", help="energy and forces of the structures in a file")
    energy.add_argument("file", help="any structure file that ASE reads")
    energy.add_argument("--model", required=True, help="name or path of a model")
    energy.add_argument("--charge", type=int, help="total charge, whatever the file says")
    energy.add_argument("--multiplicity", type=int, help="2S + 1, whatever the file says")
    energy.add_argument("--index", default=":", help="structures to take, as in ASE (default all)")
    energy.add_argument("--forces", action="store_true", help="print the forces of all atoms")
    energy.add_argument("--json", action="store_true", help="print one JSON object per structure")
    _add_machine(energy)
    energy.set_defaults(run=_energy)

    train = commands.add_parser("train", help="train a model, or go on with a stopped run")
    train.add_argument("config", help="the training configuration, TOML")
    train.add_argument("--data", default=".", help="directory of the data files it names")
    train.add_argument("--output", default="runs", help="directory of the run (default runs)")
    train.add_argument("--init", help="name or path of a model whose weights to start from")
    train.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    train.add_argument("--threads", type=int, help="CPU threads")
    train.add_argument("--minutes", type=float, help="stop with a checkpoint after this long")
    train.set_defaults(run=_train)

    evaluate = commands.add_parser("evaluate", help="errors of a model on labelled structures")
    evaluate.add_argument("model", help="name or path of a model")
    evaluate.add_argument("files", nargs="+", help="npz, extended XYZ, SPICE or ModelForge HDF5")
    evaluate.add_argument(
        "--split",
        choices=["training", "validation", "test", "all"],
        help="which conformers (default: validation, or all if the files have no split)",
    )
    evaluate.add_argument("--label", action="append", default=[], metavar="WHAT=KEY",
                          help="key of the energy, forces or charges in the files")  # fmt: skip
    evaluate.add_argument("--plots", help="directory for parity.png")
    evaluate.add_argument("--json", help="write the table to this file")
    evaluate.add_argument("--threads", type=int, help="CPU threads")
    _add_machine(evaluate)
    evaluate.set_defaults(run=_evaluate)

    convert = commands.add_parser("convert", help="write another program's model as one of ours")
    convert.add_argument(
        "source",
        help="torchmd-net checkpoint, SchNetPack or TorchANI state dict, AIMNet2 file of Auto3D or "
        "aimnet, or NeuroChem's directory",
    )
    convert.add_argument("--to", required=True, help="name or directory of the new model")
    convert.add_argument("--format", help="torchmd-net, schnetpack, aimnet2 or ani (found out)")
    convert.add_argument("--trust", action="store_true", help="open TorchScript, which is code")
    convert.add_argument("--elements", nargs="+", help="that it was trained on, e.g. H C N O")
    convert.add_argument("--charges", nargs="+", type=int, help="that it was trained on")
    convert.add_argument("--multiplicities", nargs="+", type=int, help="that it was trained on")
    convert.add_argument("--energy-unit", help="eV, Hartree, kcal/mol, kJ/mol or a number of eV")
    convert.add_argument("--option", action="append", default=[], metavar="NAME=VALUE",
                         help="argument of the format's reader, e.g. member=1")  # fmt: skip
    convert.add_argument("--licence", help="of the weights, for the card")
    convert.add_argument("--citation", help="for the card")
    convert.add_argument("--method", help="what computed the training labels, for the card")
    convert.add_argument("--data", help="the training data, for the card")
    convert.add_argument("--dtype", default="float32", choices=["float32", "float64"])
    convert.set_defaults(run=_convert)
    return parser


def _add_machine(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dtype", default="float32", choices=["float32", "float64"])
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda, cuda:1, ...")


def _models(options: argparse.Namespace) -> int:
    from nnpcalc.weights import list_models, load_card

    if options.name is not None:
        card = load_card(options.name)
        golden = card.pop("golden", [])
        print(json.dumps({**card, "golden": f"{len(golden)} structures"}, indent=2))
        return 0
    rows = [("name", "architecture", "cutoff/Å", "charges", "multiplicities", "elements")]
    for name in list_models():
        card = load_card(name)
        rows.append(
            (
                name,
                card["architecture"],
                f"{card['cutoff']:g}",
                _span(card["charges"]),
                _span(card["multiplicities"]),
                " ".join(chemical_symbols[number] for number in sorted(card["elements"])),
            )
        )
    _print_table(rows)
    if len(rows) == 1:
        print("no models are installed", file=sys.stderr)
    return 0


def _signed(charge: int) -> str:
    return f"{charge:+d}" if charge else "0"


def _span(values: list[int]) -> str:
    ordered = sorted(values)
    if len(ordered) > 2 and ordered == list(range(ordered[0], ordered[-1] + 1)):
        return f"{ordered[0]}..{ordered[-1]}"
    return ",".join(map(str, ordered))


def _verify(options: argparse.Namespace) -> int:
    from nnpcalc.verify import verify

    checks = verify(
        options.name,
        device=options.device,
        dtype=options.dtype,
        backend=options.backend,
        trust=options.trust,
    )
    rows = [("molecule", "charge", "mult.", "dE/meV", "max |dF|/(meV/Å)", "")]
    for check in checks:
        rows.append(
            (
                check.label,
                _signed(check.charge),
                str(check.multiplicity),
                f"{1e3 * check.energy_difference:.1e}",
                f"{1e3 * check.force_difference:.1e}",
                "ok" if check.passed else "DIFFERS",
            )
        )
    _print_table(rows)
    failed = sum(not check.passed for check in checks)
    print(
        f"{options.name}: {len(checks) - failed} of {len(checks)} golden values reproduced "
        f"({options.dtype}, {options.backend}, {options.device})"
    )
    return 1 if failed else 0


def _energy(options: argparse.Namespace) -> int:
    from nnpcalc.calculator import NNPCalculator

    structures = _read_structures(options.file, options.index)
    for atoms in structures:
        _override(atoms, CHARGE_KEYS, options.charge)
        _override(atoms, MULTIPLICITY_KEYS, options.multiplicity)
    calculator = NNPCalculator(options.model, device=options.device, dtype=options.dtype)
    rows: list[tuple[str, ...]] = [
        ("structure", "formula", "charge", "mult.", "energy/eV", "max |F|/(eV/Å)")
    ]
    force_rows: list[tuple[str, ...]] = [("structure", "atom", "Fx/(eV/Å)", "Fy", "Fz")]
    for k, atoms in enumerate(structures):
        atoms.calc = calculator
        energy, forces = float(atoms.get_potential_energy()), atoms.get_forces()
        state = resolve_state(atoms)
        formula = atoms.get_chemical_formula()
        if options.json:
            record = {
                "structure": k,
                "formula": formula,
                "charge": state.charge,
                "multiplicity": state.multiplicity,
                "energy": energy,
                "forces": forces.tolist(),
            }
            print(json.dumps(record))
            continue
        largest = float((forces**2).sum(axis=1).max() ** 0.5) if len(atoms) else 0.0
        rows.append(
            (
                str(k),
                formula,
                _signed(state.charge),
                str(state.multiplicity),
                f"{energy:.6f}",
                f"{largest:.6f}",
            )
        )
        if options.forces:
            for symbol, force in zip(atoms.symbols, forces, strict=True):
                force_rows.append((str(k), symbol, *(f"{component:.6f}" for component in force)))
    if not options.json:
        _print_table(rows)
    if options.forces and not options.json:
        print()
        _print_table(force_rows)
    return 0


def _read_structures(file: str, index: str) -> list[Atoms]:
    from ase.io import read

    try:
        found: Any = read(file, index=index)
    except Exception as error:  # every format of ASE has errors of its own
        if isinstance(error, OSError) and error.filename is not None:
            raise
        raise ValueError(
            f"{file} cannot be read as a structure: {type(error).__name__}: {error}"
        ) from error
    return [found] if isinstance(found, Atoms) else list(found)


def _override(atoms: Atoms, keys: tuple[str, ...], value: int | None) -> None:
    if value is not None:
        for key in keys:
            atoms.info.pop(key, None)
        atoms.info[keys[0]] = value


def _evaluate(options: argparse.Namespace) -> int:
    import torch

    from nnpcalc.train import evaluate_model
    from nnpcalc.train.report import format_table

    labels = dict(part.partition("=")[::2] for part in options.label)
    rows = evaluate_model(
        options.model,
        options.files,
        device=options.device,
        dtype=getattr(torch, options.dtype),
        threads=options.threads,
        split=options.split,
        labels=labels,
        plots=options.plots,
        json_file=options.json,
    )
    print(format_table(rows))
    return 0


def _convert(options: argparse.Namespace) -> int:
    from nnpcalc.convert import run

    return run(options)


def _train(options: argparse.Namespace) -> int:
    from nnpcalc.train import train

    train(
        options.config,
        data=options.data,
        output=options.output,
        device=options.device,
        threads=options.threads,
        minutes=options.minutes,
        initial=options.init,
    )
    return 0


def _print_table(rows: Sequence[tuple[str, ...]]) -> None:
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print("  ".join(cells).rstrip())


if __name__ == "__main__":
    sys.exit(main())

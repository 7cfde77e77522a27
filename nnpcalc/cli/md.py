"""`nnpcalc md`: molecular dynamics; a thin layer on `nnpcalc.md.run`."""

from __future__ import annotations

import argparse
import errno
import json
import os
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnpcalc.cli.common import (
    add_distances,
    add_machine,
    add_model,
    add_structures,
    model_name,
    model_options,
    print_table,
    read_structures,
)
from nnpcalc.cli.progress import CSVLog, Progress, coloured, display_mode, incident_record

if TYPE_CHECKING:
    from ase import Atoms

    from nnpcalc.md import Frame, Integrator, Run, Watchdog

#: The options that each ensemble has a use for; the others are refused.
ENSEMBLES = {
    "nve": (),
    "langevin": ("friction",),
    "bussi": ("relaxation",),
    "nose-hoover": ("relaxation", "chain"),
    "npt": ("relaxation", "pressure", "pressure_relaxation", "compressibility", "anisotropic"),
}

EPILOG = """\
A run that was stopped goes on with the same command and --restart, on a CPU bit for bit.
SIGTERM and SIGINT (Ctrl-C) write a checkpoint; the exit status is then 143 or 130.
Exit status 1: the watchdog stopped a replica. On a terminal there is a bar; in a pipe, JSON lines.

examples:
  nnpcalc md aspirin.xyz --model tensornet-spice --time 10 --trajectory run.xyz
  nnpcalc md --smiles "C[NH3+]" --model tensornet-spice --steps 1000 --trajectory run.xyz \\
      --report run.html --distance 0 1
  nnpcalc md box.xyz --model tensornet-spice --ensemble npt --pressure 0.0001 --time 50
  nnpcalc md aspirin.xyz --model tensornet-spice --model my-own --max-uncertainty 1 --time 10
"""


def _limit(text: str) -> float | None:
    """A number, or None for "none"."""
    return None if text.lower() == "none" else float(text)


_limit.__name__ = "limit"  # argparse says it in errors


def add_parser(commands: Any) -> None:
    """Add the command to the parser's commands."""
    parser = commands.add_parser(
        "md",
        help="molecular dynamics",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_structures(parser, index="-1")
    parser.set_defaults(index=None)  # the last one, unless said otherwise
    add_model(parser)
    length = parser.add_mutually_exclusive_group(required=True)
    length.add_argument("--steps", type=int, help="time steps in all, also where a run goes on")
    length.add_argument("--time", type=float, metavar="PS", help="the same in ps")
    parser.add_argument("--timestep", type=float, default=0.5, metavar="FS", help="(default 0.5)")
    parser.add_argument("--replicas", type=int, default=1, help="copies of each structure")
    parser.add_argument("--seed", type=int, help="of all random numbers (default: drawn, and said)")
    parser.add_argument(
        "--hmr",
        type=float,
        metavar="AMU",
        help="mass of hydrogen, taken from the atoms it is bound to, e.g. 3",
    )
    _add_ensemble(parser.add_argument_group("ensemble"))
    _add_files(parser.add_argument_group("files"))
    _add_watchdog(parser.add_argument_group("watchdog", "limits beyond which a replica is stopped"))
    add_machine(parser)
    parser.set_defaults(run=run)


def _add_ensemble(group: Any) -> None:
    group.add_argument(
        "--ensemble", default="langevin", choices=list(ENSEMBLES), help="(default langevin)"
    )
    group.add_argument(
        "--temperature",
        type=float,
        metavar="K",
        help="of the ensemble (default 300); in nve, of the momenta drawn at the start",
    )
    group.add_argument("--friction", type=float, metavar="1/PS", help="langevin (default 2)")
    group.add_argument(
        "--relaxation",
        type=float,
        metavar="FS",
        help="of the temperature; bussi, nose-hoover, npt (default 100)",
    )
    group.add_argument("--chain", type=int, help="thermostats of nose-hoover (default 3)")
    group.add_argument(
        "--pressure", type=float, metavar="GPA", help="npt (default 0.0001, which is 1 bar)"
    )
    group.add_argument("--pressure-relaxation", type=float, metavar="FS", help="(default 1000)")
    group.add_argument(
        "--compressibility",
        type=float,
        metavar="1/GPA",
        help="npt; only its ratio to the relaxation counts (default 0.45, water)",
    )
    group.add_argument(
        "--anisotropic",
        action="store_true",
        default=None,
        help="npt: let the shape of the cell change; not for liquids",
    )


def _add_files(group: Any) -> None:
    group.add_argument("--trajectory", metavar="FILE", help=".xyz, .traj or .h5")
    group.add_argument(
        "--interval",
        type=int,
        default=100,
        metavar="STEPS",
        help="between two frames, and two reports of progress (default 100)",
    )
    group.add_argument(
        "--checkpoint",
        metavar="FILE",
        help="(default: beside the trajectory, ending in .checkpoint)",
    )
    group.add_argument(
        "--checkpoint-interval", type=int, default=1000, metavar="STEPS", help="(default 1000)"
    )
    group.add_argument(
        "--restart",
        action="store_true",
        help="go on from the checkpoint; begin anew if there is none",
    )
    group.add_argument("--log", metavar="FILE", help="CSV of the energies and temperatures")
    group.add_argument("--report", metavar="FILE", help="one HTML page with trajectory and plots")
    add_distances(group)
    group.add_argument("--json", action="store_true", help="JSON lines also on a terminal")


def _add_watchdog(group: Any) -> None:
    for name, what in (
        ("max-force", "eV/Å, on any atom (default 300)"),
        ("max-temperature", "K (default 10000)"),
        ("max-energy-jump", "eV per atom between two checks (default 0.1)"),
        ("min-distance", "in sums of covalent radii (default 0.5)"),
        ("max-uncertainty", "eV/Å, of the force on any atom, with two --model or more"),
    ):
        group.add_argument(
            f"--{name}",
            type=_limit,
            metavar="X",
            default=argparse.SUPPRESS,
            help=f"{what}; none: no limit",
        )
    group.add_argument(
        "--fixed-bonds", action="store_true", help="stop when a bond breaks or forms"
    )
    group.add_argument("--check-interval", type=int, default=100, metavar="STEPS",
                       help="between two full checks (default 100)")  # fmt: skip


def run(options: argparse.Namespace) -> int:
    """Simulate; 0 if all replicas reach the end, 1 if the watchdog stopped some or all."""
    from nnpcalc import md

    steps = _steps(options)
    files = _files(options)
    integrator, watchdog = _integrator(options), _watchdog(options)
    structures = _structures(options)
    limit = getattr(options, "max_uncertainty", None)
    if limit is not None and not isinstance(options.model, list):
        raise ValueError("--max-uncertainty is for committees: give --model twice or more")
    force_field = md.ModelForceField(options.model, **model_options(options))
    mode = display_mode(sys.stdout, options.json, os.environ)
    out = sys.stderr if mode == "bar" else sys.stdout
    progress = Progress(mode, steps, options.timestep, out, coloured(os.environ))
    log = None
    if files["log"] is not None:
        log = CSVLog(files["log"], _last_step(options, files["checkpoint"]))

    def report(frame: Frame) -> None:
        progress(frame)
        if log is not None:
            log(frame)

    def warn(message: Warning | str, *_: Any) -> None:
        progress.say(f"nnpcalc: warning: {message}")

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always", md.MDWarning)
            warnings.showwarning = warn  # type: ignore[assignment]
            result = md.run(
                structures, force_field, integrator, steps,
                temperature=options.temperature if options.ensemble == "nve" else None,
                seed=options.seed, hydrogen_mass=options.hmr,
                trajectory=files["trajectory"], interval=options.interval,
                checkpoint=files["checkpoint"], checkpoint_interval=options.checkpoint_interval,
                resume=options.restart, watchdog=watchdog, report=report,
            )  # fmt: skip
    except md.SimulationDiverged as error:
        progress.say(f"nnpcalc: no replica is left: {' '.join(str(error).split())}")
        return 1
    except md.Interrupted as stop:
        progress.say(f"nnpcalc: {stop}; --restart goes on")
        return int(stop.code or 0)
    finally:
        progress.close()
        if log is not None:
            log.close()
    _finish(result, files, options, mode)
    return 1 if result.incidents else 0


# --- options to objects --------------------------------------------------------------------------


def _steps(options: argparse.Namespace) -> int:
    if options.time is None:
        return int(options.steps)
    if not options.timestep > 0 or not options.time >= 0:
        raise ValueError("--timestep must be above 0 and --time not negative")
    return round(options.time * 1000.0 / options.timestep)


def _integrator(options: argparse.Namespace) -> Integrator:
    from nnpcalc import md

    wanted = ENSEMBLES[options.ensemble]
    given: dict[str, Any] = {}
    for name in sorted({name for names in ENSEMBLES.values() for name in names}):
        value = getattr(options, name)
        if value is None:
            continue
        if name not in wanted:
            fitting = [ensemble for ensemble, names in ENSEMBLES.items() if name in names]
            raise ValueError(
                f"--{name.replace('_', '-')} says nothing to --ensemble {options.ensemble}; it is "
                f"for {', '.join(fitting)}"
            )
        given[name] = value
    kelvin = 300.0 if options.temperature is None else options.temperature
    if options.ensemble == "nve":
        return md.NVE(options.timestep)
    if options.ensemble == "langevin":
        friction = given.get("friction", 2.0) / 1000.0
        return md.Langevin(options.timestep, kelvin, friction=friction)
    if options.ensemble == "bussi":
        return md.Bussi(options.timestep, kelvin, **given)
    if options.ensemble == "nose-hoover":
        return md.NoseHoover(options.timestep, kelvin, **given)
    return md.CellRescaling(options.timestep, kelvin, given.pop("pressure", 0.0001), **given)


def _watchdog(options: argparse.Namespace) -> Watchdog:
    from nnpcalc import md

    names = ("max_force", "max_temperature", "max_energy_jump", "min_distance", "max_uncertainty")
    limits = {name: getattr(options, name) for name in names if hasattr(options, name)}
    if limits.get("max_force", 0.0) is None:
        limits["max_force"] = float("inf")  # forces that are no numbers still stop a replica
    return md.Watchdog(**limits, fixed_bonds=options.fixed_bonds, interval=options.check_interval)


def _structures(options: argparse.Namespace) -> list[Atoms]:
    """All replicas, copies of a structure one after the other."""
    if options.replicas < 1:
        raise ValueError(f"--replicas must be 1 or more, not {options.replicas}")
    default = {"index": ":"} if options.index is None else {}
    read = read_structures(argparse.Namespace(**{**vars(options), **default}))
    if default and options.file is not None:
        if len(read) > 1:
            said = f"nnpcalc: {len(read)} structures, the last is run; --index : for all"
            print(said, file=sys.stderr)
        read = read[-1:]
    for i, j in options.distance:
        for k, atoms in enumerate(read):
            if not (0 <= i < len(atoms) and 0 <= j < len(atoms) and i != j):
                raise ValueError(
                    f"--distance {i} {j}: structure {k} has atoms 0 to {len(atoms) - 1}; give two "
                    "different ones"
                )
    moving = any(atoms.get_momenta().any() for atoms in read)
    if options.ensemble == "nve" and options.temperature is None and not moving:
        raise ValueError(
            "the structures have no momenta: give --temperature for momenta drawn at the start"
        )
    return [atoms.copy() for atoms in read for _ in range(options.replicas)]


def _files(options: argparse.Namespace) -> dict[str, Path | None]:
    """Paths of what is written; none of them is overwritten unless a run goes on."""
    names = ("trajectory", "checkpoint", "log", "report")
    files = {name: Path(getattr(options, name)) if getattr(options, name) else None
             for name in names}  # fmt: skip
    trajectory = files["trajectory"]
    if files["checkpoint"] is None and trajectory is not None:
        files["checkpoint"] = trajectory.with_suffix(".checkpoint")
    if options.restart and files["checkpoint"] is None:
        raise ValueError("--restart goes on from a checkpoint: give --checkpoint or --trajectory")
    if files["report"] is not None and trajectory is None:
        raise ValueError("--report shows the trajectory: give --trajectory as well")
    if files["report"] is not None:
        from nnpcalc.report.viewer import load_viewer

        load_viewer()  # better now than after the run
    goes_on = options.restart and files["checkpoint"] is not None and files["checkpoint"].exists()
    for path in files.values():
        if path is None:
            continue
        if not path.parent.is_dir():
            raise FileNotFoundError(errno.ENOENT, "there is no such directory", str(path.parent))
        if path.exists() and not goes_on:
            raise FileExistsError(
                errno.EEXIST,
                "there is a file of this name: remove it, take another name, or go on with "
                "--restart where it was stopped",
                str(path),
            )
    return files


def _last_step(options: argparse.Namespace, checkpoint: Path | None) -> int | None:
    """Step of the checkpoint that a run goes on from; None if it begins."""
    from nnpcalc import md

    if not options.restart or checkpoint is None or not checkpoint.exists():
        return None
    return md.Checkpoint.load(checkpoint).state.step


# --- the end -------------------------------------------------------------------------------------


def _finish(
    result: Run, files: dict[str, Path | None], options: argparse.Namespace, mode: str
) -> None:
    """Write the report, and say what there is."""
    trajectory, page = files["trajectory"], files["report"]
    if page is not None and trajectory is not None:
        from nnpcalc.md import read_trajectory
        from nnpcalc.report import write_report

        notes = [f"replica {i.replica} stopped at step {i.step}: {i.reason}"
                 for i in result.incidents]  # fmt: skip
        write_report(
            page, read_trajectory(trajectory), title=f"{trajectory.name}, {options.ensemble}",
            distances=[(i, j) for i, j in options.distance],
            facts={"model": model_name(options.model), "time step": f"{options.timestep:g} fs",
                   "seed": str(result.seed)},
            notes=notes,
        )  # fmt: skip
    written = {name: str(path) for name, path in files.items() if path is not None}
    if mode == "json":
        last = {
            "finished": True, "step": result.state.step, "seed": result.seed, "files": written,
            "incidents": [incident_record(incident) for incident in result.incidents],
        }  # fmt: skip
        print(json.dumps(last))
        return
    many = result.state.n_systems
    stopped = f", {len(result.frozen)} stopped by the watchdog" if result.frozen else ""
    print(
        f"{many} replica{'s' if many != 1 else ''} reached step {result.state.step}{stopped}; "
        f"seed {result.seed}"
    )
    if written:
        print_table(list(written.items()))

"""Time of an energy with forces of TensorNet on a GPU: eager, fused (Triton), and what others do.

Aspirin (21 atoms) and periodic water of 648, 5,184 and 98,304 atoms at about the density of the
liquid; random weights, float32, no terms. Contestants take turns; medians of CUDA events. Ours are
given their pairs (`list` is the time of finding them); torchmd-net and aimnet, where they are
installed, find theirs within the call. "fused, graph" is what dynamics of small systems run: copies
into the buffers of a CUDA graph, its replay and copies of the results; here whatever the number of
atoms, to see up to how many it is faster (`MOST_ATOMS` in `nnpcalc.kernels.triton_capture`).
`--variants` adds the fused path with other values of the constants in
`nnpcalc.kernels.triton_tensornet`, which say what a program does.

Beside each time stand the largest force error against eager float64 on the same device (up to
`--exact-up-to` atoms), and for the fused path two rates as fractions of a copy's, measured in the
same run: of the bytes that have to pass through memory (every array once per kernel) and of the
bytes that the kernels ask for (with the gathers and table rows, which the caches serve).

Run: python tests/benchmarks/gpu.py [--atoms 21 648] [--rounds 20] [--profile]
     [--variants CHANNELS=128 CHANNELS=16 CHANNELS=32,MOST_WARPS=1 BLOCK=128]
Neither ase nor a network connection is needed. It starts without a GPU as well, to be tried out:
TRITON_INTERPRET=1 python tests/benchmarks/gpu.py --device cpu --atoms 6 --channels 8 --rounds 1
Prints a table, writes JSON.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import platform
import statistics
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
if importlib.util.find_spec("ase") is None:  # a machine for measuring: tensors need no ase
    for name in ("ase", "ase.data"):
        sys.modules[name] = types.ModuleType(name)
    sys.modules["ase"].Atoms = type("Atoms", (), {})  # type: ignore[attr-defined]
    sys.modules["ase.data"].chemical_symbols = [str(z) for z in range(119)]  # type: ignore

from nnpcalc.batch import AtomsBatch
from nnpcalc.models.tensornet import TensorNet, TensorNetConfig
from nnpcalc.neighbors import NeighborList, neighbor_list
from nnpcalc.potential import Potential, inputs

Call = Callable[[], Any]
ELEMENTS = (1, 6, 7, 8)
SPACING = 3.1  # Å between the oxygen atoms of the water, on a cubic grid
ASPIRIN_NUMBERS = [6, 6, 8, 8, 6, 6, 6, 6, 6, 6, 6, 8, 8, 1, 1, 1, 1, 1, 1, 1, 1]
ASPIRIN = [
    (3.08, 1.18, -0.84), (2.03, 0.46, -0.04), (2.1, 0.25, 1.16), (1.01, 0.07, -0.9),
    (-0.06, -0.53, -0.22), (-0.1, -1.93, -0.24), (-1.15, -2.59, 0.4), (-2.16, -1.86, 1.03),
    (-2.12, -0.46, 1.03), (-1.07, 0.22, 0.4), (-1.03, 1.71, 0.37), (-0.23, 2.41, -0.21),
    (-2.04, 2.26, 1.08), (2.63, 2.04, -1.35), (3.53, 0.5, -1.56), (3.86, 1.55, -0.17),
    (0.68, -2.5, -0.73), (-1.19, -3.68, 0.4), (-2.97, -2.38, 1.53), (-2.92, 0.08, 1.53),
    (-1.88, 3.22, 0.98),
]  # fmt: skip


def structure(n_atoms: int) -> tuple[np.ndarray, np.ndarray, float]:
    """Atomic numbers, positions and the edge of the periodic box (0 for aspirin).

    Water has the nearest number of molecules that fills a cube, turned at random.
    """
    if n_atoms == len(ASPIRIN):
        return np.array(ASPIRIN_NUMBERS), np.array(ASPIRIN), 0.0
    per_edge = max(round((n_atoms / 3) ** (1 / 3)), 1)
    rng = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(*[np.arange(per_edge)] * 3, indexing="ij"), -1).reshape(-1, 3)
    first = rng.normal(size=(len(grid), 3))
    first /= np.linalg.norm(first, axis=1, keepdims=True)
    second = np.cross(first, rng.normal(size=first.shape))
    second /= np.linalg.norm(second, axis=1, keepdims=True)
    angle = np.deg2rad(104.5)
    hydrogens = (0.96 * first, 0.96 * (np.cos(angle) * first + np.sin(angle) * second))
    oxygen = SPACING * grid + rng.normal(scale=0.05, size=grid.shape)
    positions = np.stack([oxygen, oxygen + hydrogens[0], oxygen + hydrogens[1]], 1).reshape(-1, 3)
    return np.tile([8, 1, 1], len(grid)), positions, SPACING * per_edge


def make_batch(n_atoms: int, dtype: torch.dtype, device: str) -> AtomsBatch:
    numbers, positions, edge = structure(n_atoms)
    return AtomsBatch(
        numbers=torch.tensor(numbers, device=device),
        positions=torch.tensor(positions, dtype=dtype, device=device),
        cell=edge * torch.eye(3, dtype=dtype, device=device)[None],
        pbc=torch.full((1, 3), edge > 0.0, device=device),
        system=torch.zeros(len(numbers), dtype=torch.int64, device=device),
        charge=torch.zeros(1, dtype=torch.int64, device=device),
        multiplicity=torch.ones(1, dtype=torch.int64, device=device),
    )


# --- ours ----------------------------------------------------------------------------------------


def make_core(options: argparse.Namespace, dtype: torch.dtype) -> TensorNet:
    torch.manual_seed(1)
    config = TensorNetConfig(
        channels=options.channels, layers=options.layers, cutoff=options.cutoff, elements=ELEMENTS
    )
    return TensorNet(config).to(options.device, dtype).eval().requires_grad_(False)


def step(potential: Potential, arguments: tuple[Any, ...]) -> Call:
    return lambda: potential(*arguments, compute_forces=True, compute_stress=False)


def replayed(core: TensorNet, arguments: tuple[Any, ...]) -> Call:
    """The fused path as a CUDA graph, recorded, for any number of atoms."""
    from nnpcalc.kernels import triton_capture
    from nnpcalc.kernels.triton_tensornet import TritonTensorNet

    triton_capture.MOST_ATOMS = max(triton_capture.MOST_ATOMS, arguments[0].shape[0])
    call = step(triton_capture.CapturedPotential(TritonTensorNet(core)), arguments)
    for _ in range(2):
        call()
    return call


def varied(call: Call, settings: str) -> Call:
    """The call with other constants, "CHANNELS=128,MOST_WARPS=1"."""
    from nnpcalc.kernels import triton_tensornet

    changed = {k: int(v) for k, v in (item.split("=") for item in settings.split(","))}
    usual = {name: getattr(triton_tensornet, name) for name in changed}

    def run() -> Any:
        vars(triton_tensornet).update(changed)
        try:
            return call()
        finally:
            vars(triton_tensornet).update(usual)

    return run


def memory_traffic(n_atoms: int, n_pairs: int, channels: int, layers: int) -> tuple[float, float]:
    """Bytes of one fused evaluation in float32: through memory, and asked for by the kernels.

    The count follows the kernels and matrix products of `nnpcalc.kernels.triton_tensornet`; the
    small perceptrons on norms are left out.
    """
    row = 4.0 * channels
    tensor = 9 * row * n_atoms
    matrix_products = 2 * tensor
    # arrays [9, N, F] read and written: embedding, scale; their reverse
    once = tensor * (1 + 2 + 3 + 1) + 2 * matrix_products
    once_per_layer = (
        tensor
        * (
            3  # interact: y; message, reacted
            + 3  # update: normal, change; the next normal
            + 6  # update_reverse: normal, two upstream, change; by_x, by_change
            + 6  # react_reverse: y, message, reacted, upstream; by_y, by_message
            + 4  # message_reverse: y, by_message, by_y; by_y
        )
        + 4 * matrix_products
    )
    from nnpcalc.kernels.triton_tensornet import CHANNELS

    # every block of channels reads sender and distance in each kernel over pairs, and vectors in
    # two; it writes slopes and the gradient, which are read to be added
    blocks = -(-channels // CHANNELS)
    per_pair = (8 + 4) * (2 + 2 * layers) + 2 * 12 + 2 * 4 * layers + 2 * 12
    indices = float(n_pairs * blocks * per_pair)
    through = once + layers * once_per_layer + indices
    rows = 12  # of the table: four rows of three radial functions
    gathered = n_pairs * row * (2 * (rows + 1) + layers * (rows + 9 + rows + 18))
    return through, through + gathered


# --- others --------------------------------------------------------------------------------------


def torchmdnet(batch: AtomsBatch, options: argparse.Namespace) -> Call:
    """TensorNet of torchmd-net with its default kernels and its own pair search."""
    from torchmdnet.models.model import create_model

    box = batch.cell[0].cpu() if bool(batch.pbc.any()) else None
    arguments: dict[str, Any] = {
        "model": "tensornet", "embedding_dimension": options.channels,
        "num_layers": options.layers, "num_rbf": 32, "rbf_type": "expnorm", "trainable_rbf": False,
        "activation": "silu", "cutoff_lower": 0.0, "cutoff_upper": options.cutoff, "max_z": 100,
        "max_num_neighbors": 96, "equivariance_invariance_group": "O(3)", "reduce_op": "add",
        "output_model": "Scalar", "derivative": True, "atom_filter": -1, "prior_model": None,
        "precision": 32, "box_vecs": box, "static_shapes": False,
    }  # fmt: skip
    model = create_model(arguments).eval().to(options.device)
    charge = torch.zeros(1, device=options.device)
    return lambda: model(batch.numbers, batch.positions, batch.system, q=charge)


def aimnet(batch: AtomsBatch, options: argparse.Namespace) -> Call:
    """AIMNet2 in its own calculator, with the weights that it finds on this machine."""
    from aimnet.calculators import AIMNet2Calculator

    calculator = AIMNet2Calculator("aimnet2", device=options.device)
    data = {"coord": batch.positions, "numbers": batch.numbers, "charge": torch.zeros(1)}
    if bool(batch.pbc.any()):
        data["cell"] = batch.cell[0]
    return lambda: calculator.eval(data, forces=True)


OTHERS = {"torchmdnet": torchmdnet, "aimnet": aimnet}


# --- measuring -----------------------------------------------------------------------------------


def seconds(call: Call, device: str) -> float:
    if device == "cpu":
        start = time.perf_counter()
        call()
        return time.perf_counter() - start
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    begin.record()
    call()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) / 1000.0


def copy_rate(device: str) -> float:
    """Bytes per second that a copy within the device's memory reads and writes."""
    size = 1 << (31 if device != "cpu" else 24)
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    target.copy_(source)
    times = [seconds(lambda: target.copy_(source), device) for _ in range(5)]
    return 2.0 * size / statistics.median(times)


def contestants(
    batch: AtomsBatch, pairs: NeighborList, options: argparse.Namespace
) -> tuple[dict[str, Call], dict[str, str]]:
    """Calls by name, and why others are missing."""
    from nnpcalc.kernels.triton_tensornet import TritonTensorNet

    arguments = inputs(batch, pairs)
    core = make_core(options, torch.float32)
    fused = step(Potential(TritonTensorNet(core)), arguments)
    calls = {"fused": fused}
    missing: dict[str, str] = {}
    for settings in options.variants:
        calls[f"fused, {settings}"] = varied(fused, settings)
    if batch.n_atoms <= options.eager_up_to:
        calls["eager"] = step(Potential(core), arguments)
    if options.device != "cpu":
        try:
            calls["fused, graph"] = replayed(core, arguments)
        except Exception as error:  # out of memory
            missing["fused, graph"] = f"{type(error).__name__}: {error}"
    for name, build in OTHERS.items():
        if importlib.util.find_spec(name) is None:
            missing[name] = "not installed"
            continue
        try:
            calls[name] = build(batch, options)
            calls[name]()
        except Exception as error:  # out of memory, no weights: say so and go on
            calls.pop(name, None)
            missing[name] = f"{type(error).__name__}: {error}"[:300]
    return calls, missing


def measure(n_atoms: int, options: argparse.Namespace, rate: float) -> dict[str, Any]:
    """One system: times by contestant and what belongs to them."""
    batch = make_batch(n_atoms, torch.float32, options.device)
    pairs = neighbor_list(batch, options.cutoff)
    on_gpu = options.device != "cpu"
    calls, missing = contestants(batch, pairs, options)
    calls["list"] = lambda: neighbor_list(batch, options.cutoff)
    exact: Tensor | None = None
    if batch.n_atoms <= options.exact_up_to:
        there = batch.to(dtype=torch.float64)
        # weights rounded to float32 as theirs are; the pairs are the same ones
        core = make_core(options, torch.float32).to(torch.float64)
        exact = step(Potential(core), inputs(there, pairs))()["forces"]
    warm = {name: seconds(call, options.device) for name, call in calls.items()}
    for call in calls.values():
        call()
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(options.rounds):
        for name, call in calls.items():
            times[name].append(seconds(call, options.device))
    record: dict[str, Any] = {
        "atoms": batch.n_atoms, "pairs": pairs.n_pairs, "missing": missing, "first_call_s": warm,
        "ms": {name: 1e3 * statistics.median(values) for name, values in times.items()},
        "ms_fastest": {name: 1e3 * min(values) for name, values in times.items()},
        "max_force_error": {}, "peak_gib": {},
    }  # fmt: skip
    for name in calls:
        if name != "eager" and not name.startswith("fused"):
            continue
        if on_gpu:
            torch.cuda.reset_peak_memory_stats()
        forces = calls[name]()["forces"]
        if on_gpu:
            record["peak_gib"][name] = torch.cuda.max_memory_allocated() / 2**30
        if exact is not None:
            record["max_force_error"][name] = float((forces.double() - exact).abs().max())
            record["largest_force"] = float(exact.abs().max())
    through, asked = memory_traffic(batch.n_atoms, pairs.n_pairs, options.channels, options.layers)
    used = 1e-3 * min(record["ms"][name] for name in ("fused", "fused, graph") if name in calls)
    record["bytes_through_memory"], record["bytes_asked_for"] = through, asked
    record["fraction_of_copy_rate"] = {
        "memory": through / used / rate,
        "asked": asked / used / rate,
    }
    if options.profile and on_gpu:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            calls["fused"]()
            torch.cuda.synchronize()
        table = profile.key_averages().table(sort_by="device_time_total", row_limit=25)
        record["profile"] = table
        print(table)
    return record


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--atoms", type=int, nargs="+", default=[21, 648, 5184, 98304])
    parser.add_argument("--channels", type=int, default=128)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--cutoff", type=float, default=5.0, help="Å")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--eager-up-to", type=int, default=20000, help="atoms; 67 kB per pair")
    parser.add_argument("--exact-up-to", type=int, default=6000, help="atoms of the float64 check")
    parser.add_argument("--variants", nargs="*", default=[], help="CONSTANT=NUMBER,...")
    parser.add_argument("--profile", action="store_true", help="kernels of one fused evaluation")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    options = parser.parse_args()
    on_gpu = options.device != "cpu"
    rate = copy_rate(options.device)
    report: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if on_gpu else platform.processor(),
        "torch": torch.__version__, "copy_GB_per_s": rate / 1e9, "channels": options.channels,
        "layers": options.layers, "cutoff": options.cutoff, "rounds": options.rounds, "systems": [],
    }  # fmt: skip
    print(f"{report['device']}, torch {torch.__version__}, copy {rate / 1e9:.0f} GB/s")
    for n_atoms in options.atoms:
        record = measure(n_atoms, options, rate)
        report["systems"].append(record)
        print(f"\n{record['atoms']} atoms, {record['pairs']} pairs")
        for name, value in sorted(record["ms"].items(), key=lambda item: item[1]):
            error = record["max_force_error"].get(name)
            peak = record["peak_gib"].get(name)
            print(
                f"  {name:30s} {value:10.3f} ms"
                + (f"   error {error:.1e} of {record['largest_force']:.1e}" if error else "")
                + (f"   {peak:.2f} GiB" if peak else "")
            )
        fractions = record["fraction_of_copy_rate"]
        print(
            f"  of the copy rate: {fractions['memory']:.2f} memory, {fractions['asked']:.2f} asked"
        )
        for name, reason in record["missing"].items():
            print(f"  without {name}: {reason}")
        options.output.write_text(json.dumps(report, indent=1) + "\n")  # kept if the next one fails


if __name__ == "__main__":
    main()

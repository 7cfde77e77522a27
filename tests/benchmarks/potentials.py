"""Time of an energy with forces: the eight architectures beside the programs of others.

Aspirin (21 atoms) and a cube of 64 water molecules (192 atoms, not periodic: PyTorch Geometric has
no cells). Default sizes, random weights, float32. Contestants take turns; medians of the processor
time, which a busy machine does not change, and of the time on the clock.

Run: python tests/benchmarks/potentials.py [--only painn schnet] [--rounds 7] [--threads 1]

Others take part where they are installed, with the same sizes as ours: schnetpack (SchNet, PaiNN),
PyTorch Geometric (SchNet, DimeNet++), torchmd-net (TensorNet), torchani and aimnet. Ours finds its
pairs in every call, and so do torchmd-net, torchani and aimnet; schnetpack and PyTorch Geometric
are given their pairs and triplets. AIMNet2 is the network alone, without Coulomb energy and D3, on
both sides. Prints a table, writes JSON.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.build import molecule
from torch import Tensor

from nnpcalc import build_potential
from nnpcalc.batch import AtomsBatch
from nnpcalc.kernels.fused import FUSED, fused_for_inference
from nnpcalc.models import ARCHITECTURES
from nnpcalc.neighbors import NeighborList, neighbor_list
from nnpcalc.potential import Potential

Call = Callable[[], object]
ELEMENTS = (1, 6, 7, 8)
ASPIRIN = [
    (3.08, 1.18, -0.84), (2.03, 0.46, -0.04), (2.1, 0.25, 1.16), (1.01, 0.07, -0.9),
    (-0.06, -0.53, -0.22), (-0.1, -1.93, -0.24), (-1.15, -2.59, 0.4), (-2.16, -1.86, 1.03),
    (-2.12, -0.46, 1.03), (-1.07, 0.22, 0.4), (-1.03, 1.71, 0.37), (-0.23, 2.41, -0.21),
    (-2.04, 2.26, 1.08), (2.63, 2.04, -1.35), (3.53, 0.5, -1.56), (3.86, 1.55, -0.17),
    (0.68, -2.5, -0.73), (-1.19, -3.68, 0.4), (-2.97, -2.38, 1.53), (-2.92, 0.08, 1.53),
    (-1.88, 3.22, 0.98),
]  # fmt: skip


def structures() -> dict[str, Atoms]:
    """Aspirin, and water at about the density of the liquid, turned at random."""
    rng = np.random.default_rng(0)
    water = Atoms()
    for site in np.stack(np.meshgrid(*[np.arange(4) * 3.1] * 3), -1).reshape(-1, 3):
        one = molecule("H2O")
        one.euler_rotate(*rng.uniform(0.0, 360.0, 3))
        one.positions += site - one.positions[0]
        water += one
    return {"aspirin": Atoms("CCOOCCCCCCCOOHHHHHHHH", ASPIRIN), "water": water}


def forces_of(energy: Tensor, positions: Tensor) -> Tensor:
    return -torch.autograd.grad(energy.sum(), positions)[0]


# --- ours ----------------------------------------------------------------------------------------


def ours(architecture: str, atoms: Atoms) -> dict[str, Call]:
    """Our network, eager and, where it has one, on the fast path."""
    potential = build_potential(architecture, ELEMENTS, seed=1).eval().requires_grad_(False)
    batch = AtomsBatch.from_atoms(atoms, dtype=torch.float32)
    calls: dict[str, Call] = {"nnpcalc": lambda: potential.evaluate(batch)}
    if type(potential.core) in FUSED:
        fused = Potential(fused_for_inference(potential.core, 512))
        calls["nnpcalc, fused"] = lambda: fused.evaluate(batch)
    return calls


# --- others --------------------------------------------------------------------------------------


def found_pairs(atoms: Atoms, cutoff: float) -> tuple[AtomsBatch, NeighborList]:
    batch = AtomsBatch.from_atoms(atoms, dtype=torch.float32)
    return batch, neighbor_list(batch, cutoff)


def schnetpack(architecture: str, atoms: Atoms, config: Any) -> Call:
    """The authors' SchNet or PaiNN."""
    import schnetpack as spk

    network = {"schnet": spk.representation.SchNet, "painn": spk.representation.PaiNN}[architecture]
    basis = spk.nn.GaussianRBF if architecture == "schnet" else spk.nn.BesselRBF
    model = spk.model.NeuralNetworkPotential(
        network(
            n_atom_basis=config.channels, n_interactions=config.layers,
            radial_basis=basis(config.radial_functions, config.cutoff),
            cutoff_fn=spk.nn.CosineCutoff(config.cutoff),
        ),
        input_modules=[spk.atomistic.PairwiseDistances()],
        output_modules=[
            spk.atomistic.Atomwise(n_in=config.channels, output_key="energy"),
            spk.atomistic.Forces(),
        ],
    ).eval()  # fmt: skip
    batch, pairs = found_pairs(atoms, config.cutoff)

    def call() -> Any:
        return model(
            {
                "_atomic_numbers": batch.numbers,
                "_positions": batch.positions.clone(),
                "_idx_i": pairs.pairs[0],
                "_idx_j": pairs.pairs[1],
                "_offsets": torch.zeros_like(pairs.vectors),
                "_idx_m": batch.system,
                "_n_atoms": torch.tensor([len(atoms)]),
            }
        )

    return call


def geometric_schnet(_: str, atoms: Atoms, config: Any) -> Call:
    """SchNet of PyTorch Geometric."""
    from torch_geometric.nn.models import SchNet

    batch, pairs = found_pairs(atoms, config.cutoff)
    i, j = pairs.pairs

    def graph(positions: Tensor, _: Tensor) -> tuple[Tensor, Tensor]:
        return torch.stack([j, i]), (positions[i] - positions[j]).norm(dim=-1)

    model = SchNet(
        config.channels, config.channels, config.layers, config.radial_functions, config.cutoff,
        graph,
    ).eval()  # fmt: skip

    def call() -> Tensor:
        positions = batch.positions.clone().requires_grad_(True)
        return forces_of(model(batch.numbers, positions), positions)

    return call


def geometric_dimenet(_: str, atoms: Atoms, config: Any) -> Call:
    """DimeNet++ of PyTorch Geometric."""
    from torch_geometric.nn.models import dimenet

    batch, pairs = found_pairs(atoms, config.cutoff)
    i, j = pairs.pairs  # a message j -> i; ours are sorted by i
    first = torch.searchsorted(i, torch.arange(len(atoms)))
    counts = torch.bincount(i, minlength=len(atoms))
    ji = torch.repeat_interleave(torch.arange(i.shape[0]), counts[j])
    rank = torch.arange(ji.shape[0]) - (counts[j].cumsum(0) - counts[j])[ji]
    kj = first[j[ji]] + rank
    kept = j[kj] != i[ji]
    kj, ji = kj[kept], ji[kept]
    columns = (i, j, i[ji], j[ji], j[kj], kj, ji)
    model = dimenet.DimeNetPlusPlus(
        config.channels, 1, config.layers, config.triplet_channels, config.basis_channels,
        config.output_channels, config.angular_functions, config.radial_functions, config.cutoff,
        output_initializer="glorot_orthogonal",
    ).eval()  # fmt: skip

    def call() -> Tensor:
        dimenet.radius_graph = lambda *_, **__: torch.stack([j, i])
        dimenet.triplets = lambda *_, **__: columns
        positions = batch.positions.clone().requires_grad_(True)
        return forces_of(model(batch.numbers, positions), positions)

    return call


def torchmdnet(_: str, atoms: Atoms, config: Any) -> Call:
    """TensorNet of torchmd-net with its default, Warp kernels."""
    from torchmdnet.models.model import create_model

    arguments: dict[str, Any] = {
        "model": "tensornet", "embedding_dimension": config.channels, "num_layers": config.layers,
        "num_rbf": config.radial_functions, "rbf_type": "expnorm", "trainable_rbf": False,
        "activation": "silu", "cutoff_lower": 0.0, "cutoff_upper": config.cutoff, "max_z": 100,
        "max_num_neighbors": 128, "equivariance_invariance_group": "O(3)", "reduce_op": "add",
        "output_model": "Scalar", "derivative": True, "atom_filter": -1, "prior_model": None,
        "precision": 32, "box_vecs": None, "static_shapes": False,
    }  # fmt: skip
    model = create_model(arguments).eval()
    batch = AtomsBatch.from_atoms(atoms, dtype=torch.float32)
    charge = torch.zeros(1)
    return lambda: model(batch.numbers, batch.positions, batch.system, q=charge)


def torchani(_: str, atoms: Atoms, config: Any) -> Call:
    """One member of ANI-2x; its compiled symmetry functions where it has them."""
    from torchani.arch import Assembler

    assembler = Assembler(periodic_table_index=True)
    assembler.set_symbols("H C N O S F Cl".split())
    assembler.set_atomic_networks(ctor="ani2x")
    assembler.set_global_cutoff_fn("cosine")
    assembler.set_aev_computer(angular="ani2x", radial="ani2x", strategy="pyaev")
    assembler.set_neighborlist("all_pairs")
    assembler.set_gsaes_as_self_energies("wb97x-631gd")
    model = assembler.assemble(config.members)
    batch = AtomsBatch.from_atoms(atoms, dtype=torch.float32)

    def call() -> Tensor:
        positions = batch.positions.clone()[None].requires_grad_(True)
        return forces_of(model((batch.numbers[None], positions)).energies, positions)

    return call


def aimnet(_: str, atoms: Atoms, config: Any) -> Call:
    """AIMNet2 of aimnet in its own calculator."""
    from aimnet.calculators import AIMNet2Calculator
    from aimnet.config import build_module

    def module(name: str, **options: Any) -> dict[str, Any]:
        return {"class": f"aimnet.modules.{name}", "kwargs": options}

    mlp = {"activation_fn": "torch.nn.GELU", "last_linear": True, "hidden": list(config.readout)}
    passes = [list(config.hidden)] * (config.layers - 1) + [list(config.last_hidden)]
    options = {
        "nfeature": config.channels, "d2features": True, "ncomb_v": config.vector_combinations,
        "hidden": passes, "aim_size": config.features,
        "aev": {"rc_s": config.cutoff, "nshifts_s": config.radial_functions},
        "outputs": {
            "energy_mlp": module(
                "Output", n_in=config.features, n_out=1, key_in="aim", key_out="energy", mlp=mlp
            ),
            "atomic_sum": module("AtomicSum", key_in="energy", key_out="energy"),
        },
    }  # fmt: skip
    model = build_module({"class": "aimnet.models.AIMNet2", "kwargs": options}).eval()
    calculator = AIMNet2Calculator(model, device="cpu", needs_coulomb=False, needs_dispersion=False)
    data = {
        "coord": torch.tensor(atoms.positions, dtype=torch.float32),
        "numbers": torch.tensor(atoms.numbers),
        "charge": torch.zeros(1),
    }
    return lambda: calculator.eval(data, forces=True, validate_species=False)


#: By architecture: distribution to be installed, and what builds the call.
OTHERS: dict[str, list[tuple[str, Callable[[str, Atoms, Any], Call]]]] = {
    "schnet": [("schnetpack", schnetpack), ("torch-geometric", geometric_schnet)],
    "painn": [("schnetpack", schnetpack)],
    "dimenetpp": [("torch-geometric", geometric_dimenet)],
    "tensornet": [("torchmd-net", torchmdnet)],
    "ani2x": [("torchani", torchani)],
    "aimnet2": [("aimnet", aimnet)],
}


# --- timing --------------------------------------------------------------------------------------


def contestants(architecture: str, atoms: Atoms) -> dict[str, Call]:
    """All that can be run here, by name."""
    calls = ours(architecture, atoms)
    config = ARCHITECTURES[architecture].Config()
    for distribution, make in OTHERS.get(architecture, []):
        try:
            name = f"{distribution} {version(distribution)}"
            calls[name] = make(architecture, atoms, config)
        except ImportError as error:  # also of a distribution that is not there
            print(f"{architecture}: without {distribution}: {error}", file=sys.stderr)
    return calls


def measure(calls: dict[str, Call], rounds: int, seconds: float) -> dict[str, dict[str, float]]:
    """Medians of the calls in turns; those that take long get fewer, at least three."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    for call in calls.values():
        call()  # what is compiled or tabulated once
        call()
    begin = time.monotonic()
    for k in range(rounds):
        if k >= 3 and time.monotonic() - begin > seconds:
            break
        for name, call in calls.items():
            clock, processor = time.perf_counter(), time.process_time()
            call()
            times[name].append((time.perf_counter() - clock, time.process_time() - processor))
    return {
        name: {
            "clock_ms": 1e3 * statistics.median(clock for clock, _ in values),
            "cpu_ms": 1e3 * statistics.median(processor for _, processor in values),
            "calls": len(values),
        }
        for name, values in times.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--only", nargs="+", choices=sorted(ARCHITECTURES))
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument(
        "--seconds", type=float, default=20.0, help="per structure and architecture"
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", default="potentials.json")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.filterwarnings("ignore")
    result: dict[str, Any] = {
        "options": vars(options), "torch": torch.__version__, "machine": platform.machine(),
    }  # fmt: skip
    table: dict[str, Any] = {}
    print(f"{'':<12}{'':<26}{'structure':<10}{'CPU ms':>9}{'ms':>9}{'calls':>7}")
    for architecture in options.only or sorted(ARCHITECTURES):
        for name, atoms in structures().items():
            torch.manual_seed(1)
            rows = measure(contestants(architecture, atoms), options.rounds, options.seconds)
            table.setdefault(architecture, {})[name] = rows
            for who, row in rows.items():
                print(
                    f"{architecture:<12}{who:<26}{name:<10}{row['cpu_ms']:>9.1f}"
                    f"{row['clock_ms']:>9.1f}{row['calls']:>7d}",
                    flush=True,
                )
    Path(options.json).write_text(json.dumps({**result, "results": table}, indent=1) + "\n")


if __name__ == "__main__":
    main()

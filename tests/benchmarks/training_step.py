"""A whole training step: ours, fused and eager, beside that of torchmd-net's own trainer.

A step is the making of the batch, the forward pass, the loss on energies and forces, its gradient
and AdamW; ours also clips the gradient and averages the weights, torchmd-net's also finds the
neighbours, which ours finds once for all epochs (printed). TensorNet of the same size, the same
batch, absolute errors as loss, float32, the contestants' steps alternating; medians. On a busy
machine the processor time tells more than the time on the clock; both are printed.

Run: python tests/benchmarks/training_step.py [--threads 1] [--channels 64] [--copies 6]

torchmd-net takes part where it and torch-geometric are installed; on a CPU both with its default
Warp kernels and with its plain torch operations. Prints a table, writes JSON.
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase.io import read

from nnpcalc.train import Config, Trainer
from nnpcalc.train.config import DataConfig, ModelConfig, TrainingConfig
from nnpcalc.train.data import Dataset, index_pairs

STRUCTURES = Path(__file__).parents[1] / "data" / "unseen.xyz"
Step = Callable[[np.ndarray], None]


def corpus(file: Path, copies: int) -> None:
    """Distorted copies of ten molecules with made-up labels; the first copy is for validation."""
    rng = np.random.default_rng(0)
    listed = read(STRUCTURES, ":") * (copies + 1)
    n_atoms = np.array([len(atoms) for atoms in listed])
    numbers = np.concatenate([atoms.numbers for atoms in listed])
    positions = np.concatenate([atoms.positions for atoms in listed])
    system = np.repeat(np.arange(len(listed)), n_atoms)
    np.savez(
        file,
        n_atoms=n_atoms,
        numbers=numbers,
        positions=positions + rng.normal(0.0, 0.03, positions.shape),
        energy=np.bincount(system, -30.0 * numbers) + rng.normal(size=len(listed)),
        forces=rng.normal(size=positions.shape),
        charge=np.array([atoms.info.get("charge", 0) for atoms in listed]),
        molecule=np.arange(len(listed)),
        source=np.zeros(len(listed), int),
        split=(np.arange(len(listed)) < len(listed) // (copies + 1)).astype(int),
    )


def ours(file: Path, directory: Path, options: argparse.Namespace, knots: int) -> Trainer:
    """Our trainer on the corpus."""
    model = {"channels": options.channels, "layers": options.layers, "radial_functions": 32}
    config = Config(
        name="benchmark",
        model=ModelConfig(zbl_reach=0.0, options={**model, "cutoff": 5.0}),
        data=DataConfig(files=(str(file),)),
        training=TrainingConfig(knots=knots, epochs=1000, warmup_steps=0),
    )
    return Trainer(config, directory)


@contextmanager
def torch_operations(wanted: bool) -> Iterator[None]:
    """What torchmd-net does by itself where Warp cannot be imported."""
    from torchmdnet.models import tensornet as module

    names = ("compose_tensor", "decompose_tensor", "tensor_matmul_o3", "tensor_matmul_so3")
    kept = {name: getattr(module, name) for name in ("OPT", *names)}
    if not wanted and not kept["OPT"]:
        raise ImportError("Warp is not installed")
    if wanted:
        module.OPT = False
        for name in names:
            setattr(module, name, getattr(module, f"_{name}"))
    try:
        yield
    finally:
        for name, value in kept.items():
            setattr(module, name, value)


def torchmdnet_step(
    dataset: Dataset, energies: np.ndarray, options: argparse.Namespace, warp: bool
) -> tuple[Step, int]:
    """A step of `torchmdnet.module.LNNP`, and its number of parameters."""
    from torch_geometric.data import Batch, Data
    from torchmdnet.module import LNNP

    arguments: dict[str, Any] = {
        "load_model": None, "remove_ref_energy": False, "precision": 32, "model": "tensornet",
        "embedding_dimension": options.channels, "num_layers": options.layers, "num_rbf": 32,
        "rbf_type": "expnorm", "trainable_rbf": False, "activation": "silu", "cutoff_lower": 0.0,
        "cutoff_upper": 5.0, "max_z": 100, "max_num_neighbors": 64, "output_model": "Scalar",
        "equivariance_invariance_group": "O(3)", "reduce_op": "add", "derivative": True,
        "atom_filter": -1, "prior_model": None, "charge": True, "spin": False,
        "train_loss": "l1_loss", "lr": 1e-3, "weight_decay": 0.0, "lr_factor": 0.8,
        "lr_patience": 10, "lr_min": 1e-7, "lr_warmup_steps": 0, "y_weight": 1.0,
        "neg_dy_weight": 1.0, "ema_alpha_y": 1.0, "ema_alpha_neg_dy": 1.0,
    }  # fmt: skip
    with torch_operations(not warp):
        lnnp = LNNP(arguments)
    (optimiser,), _ = lnnp.configure_optimizers()
    offsets = dataset.offsets
    listed = [
        Data(
            z=torch.from_numpy(dataset.numbers[a:b].astype(np.int64)),
            pos=torch.from_numpy(dataset.positions[a:b]),
            neg_dy=torch.from_numpy(dataset.forces[a:b]),
            y=torch.tensor([[energies[k]]], dtype=torch.float32),
            q=torch.tensor([float(dataset.charge[k])]),
        )
        for k, (a, b) in enumerate(itertools.pairwise(offsets))
    ]

    def step(rows: np.ndarray) -> None:
        with torch_operations(not warp):
            batch = Batch.from_data_list([listed[k] for k in rows])
            loss = lnnp.training_step(batch, 0)
            loss.backward()
            optimiser.step()
            optimiser.zero_grad()

    return step, sum(p.numel() for p in lnnp.parameters() if p.requires_grad)


def contestants(
    directory: Path, options: argparse.Namespace
) -> tuple[dict[str, Step], dict[str, int], Trainer]:
    """The steps by name, their numbers of parameters, and one of our trainers."""
    file = directory / "corpus.npz"
    corpus(file, options.copies)
    steps: dict[str, Step] = {}
    sizes: dict[str, int] = {}
    for name, knots in (("nnpcalc, fused", 256), ("nnpcalc, eager", 0)):
        trainer = ours(file, directory / name, options, knots)
        steps[name] = trainer.update  # type: ignore[assignment]
        sizes[name] = sum(p.numel() for p in trainer.parameters)
    energies = trainer.train.energy - trainer.baseline.of(trainer.train)
    for name, warp in (("torchmd-net, Warp", True), ("torchmd-net, torch", False)):
        try:
            steps[name], sizes[name] = torchmdnet_step(trainer.train, energies, options, warp)
        except ImportError as error:
            print(f"{name}: left out, {error}", file=sys.stderr)
    return steps, sizes, trainer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--channels", type=int, default=64)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--copies", type=int, default=6, help="copies of ten molecules in a batch")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--json", default="training_step.json", help="file to write")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore")  # torch-geometric, Lightning and Warp give many
    with tempfile.TemporaryDirectory() as directory:
        steps, sizes, trainer = contestants(Path(directory), options)
        rows = np.arange(len(trainer.train))
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in steps}
        for repeat in range(options.repeats + 2):
            for name, step in steps.items():
                clock, processor = time.perf_counter(), time.process_time()
                step(rows)
                used = time.perf_counter() - clock, time.process_time() - processor
                if repeat >= 2:  # the first ones compile
                    times[name].append(used)
        start = time.perf_counter()
        index_pairs(trainer.train, 5.0)
        pairs_seconds = time.perf_counter() - start
    atoms, pairs = int(trainer.train.n_atoms.sum()), trainer.train_pairs.i.size
    print(
        f"batch of {rows.size} structures, {atoms} atoms, {pairs} pairs; {options.channels} "
        f"channels, {options.layers} layers; {options.threads} thread(s), torch "
        f"{torch.__version__}, {platform.machine()}"
    )
    print(f"pairs found once in {1e3 * pairs_seconds:.0f} ms (nnpcalc)")
    print(
        f"{'':<20}{'parameters':>11}{'ms/step':>9}{'CPU ms':>9}{'struct./s':>11}{'atoms/s':>9}"
        f"{'struct./CPU s':>15}{'atoms/CPU s':>13}"
    )
    table: dict[str, dict[str, Any]] = {}
    for name, values in times.items():
        clock, processor = (statistics.median(column) for column in zip(*values, strict=True))
        table[name] = {
            "parameters": sizes[name],
            "seconds_per_step": clock,
            "cpu_seconds_per_step": processor,
            "structures_per_second": rows.size / clock,
            "atoms_per_second": atoms / clock,
            "times": values,
        }
        print(
            f"{name:<20}{sizes[name]:>11d}{1e3 * clock:>9.1f}{1e3 * processor:>9.1f}"
            f"{rows.size / clock:>11.1f}{atoms / clock:>9.0f}{rows.size / processor:>15.1f}"
            f"{atoms / processor:>13.0f}"
        )
    first = table["nnpcalc, fused"]
    for name in list(table)[1:]:
        clock, processor = (
            table[name][key] / first[key] for key in ("seconds_per_step", "cpu_seconds_per_step")
        )
        print(f"nnpcalc, fused: {clock:.2f} times as fast as {name} ({processor:.2f} in CPU time)")
    result = {
        "options": vars(options), "structures": rows.size, "atoms": atoms, "pairs": pairs,
        "pairs_seconds": pairs_seconds, "torch": torch.__version__, "results": table,
    }  # fmt: skip
    Path(options.json).write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()

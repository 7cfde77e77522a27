"""Time of one training step, fused against eager, same parameters: prints a table, writes JSON.

Run: python tests/benchmarks/training_step.py [--threads 1] [--channels 64] [--copies 6]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import torch
from ase.io import read

from nnpcalc.batch import AtomsBatch
from nnpcalc.kernels import forms
from nnpcalc.kernels.tensornet import FusedTensorNet
from nnpcalc.models.tensornet import TensorNet, TensorNetConfig
from nnpcalc.neighbors import neighbor_list
from nnpcalc.potential import Potential, inputs

STRUCTURES = Path(__file__).parents[1] / "data" / "unseen.xyz"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--channels", type=int, default=64)
    parser.add_argument("--copies", type=int, default=6, help="copies of ten molecules in a batch")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    batch = AtomsBatch.from_atoms(read(STRUCTURES, ":") * options.copies, dtype=torch.float32)
    core = TensorNet(TensorNetConfig(channels=options.channels))
    neighbors = neighbor_list(batch, core.cutoff)
    parameters = [p for p in core.parameters() if p.requires_grad]
    potentials = {"eager": Potential(core), "fused": Potential(FusedTensorNet(core, 256))}

    def step(potential: Potential) -> None:
        with forms.without(forms.PARAMETERS):
            out = potential(*inputs(batch, neighbors), compute_stress=False, create_graph=True)
        loss = out["energy"].square().mean() + out["forces"].square().mean()
        with forms.without(forms.GEOMETRY):
            torch.autograd.grad(loss, parameters)

    times: dict[str, list[float]] = {name: [] for name in potentials}
    for repeat in range(options.repeats + 1):
        for name, potential in potentials.items():
            start = time.perf_counter()
            step(potential)
            if repeat:  # the first one compiles
                times[name].append(time.perf_counter() - start)
    median = {name: statistics.median(values) for name, values in times.items()}
    print(f"{batch} {neighbors.pairs.shape[1]} pairs, {options.threads} thread(s)")
    for name, value in median.items():
        print(f"{name}: {1e3 * value:8.1f} ms  {batch.n_systems / value:8.0f} structures/s")
    print(f"ratio {median['eager'] / median['fused']:.1f}")
    result = {"options": vars(options), "times": times, "median": median}
    Path("training_step.json").write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()

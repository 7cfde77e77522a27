"""SAKE against the authors' program (github.com/choderalab/sake, version of 2023) in JAX.

The same random weights, energies and forces in float64. Its package must be importable, with jax
and flax: ``PYTHONPATH=sake python -m pytest -m oracle tests/test_oracle_sake.py``.

The program sees all pairs of atoms and has no cutoff, so the option for that is compared, not the
default, on molecules smaller than the cutoff.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from ase.build import molecule
from torch import Tensor

from nnpcalc.batch import AtomsBatch
from nnpcalc.models.sake import SAKE, SAKEConfig
from nnpcalc.potential import Potential

pytestmark = [pytest.mark.oracle, pytest.mark.filterwarnings("ignore")]
jax: Any = pytest.importorskip("jax")
models: Any = pytest.importorskip("sake.models")

TOLERANCE = 1e-8  # eV and eV/Å, of the largest force if that exceeds 1
ELEMENTS = (1, 6, 7, 8, 14)
MOLECULES = ("CH3CHO", "H3CNH2", "C3H4_C3v")  # of the same size, so that JAX compiles once


def renamed(theirs: dict[str, Any], core: SAKE) -> dict[str, Tensor]:
    """The program's parameters by the names of ours; what never enters an energy is left out."""
    ours: dict[str, Tensor] = {}

    def put(name: str, layer: dict[str, Any]) -> None:
        for key, value in layer.items():
            kind, tensor = ("weight", value.T) if key == "kernel" else ("bias", value)
            ours[f"{name}.{kind}"] = torch.tensor(np.array(tensor))

    rows = theirs["embedding_in"]["kernel"] + theirs["embedding_in"]["bias"]
    ours["embedding.element.weight"] = torch.tensor(np.array(rows))
    for k, layer in enumerate(core.layers):
        block, name = theirs[f"d{k}"], f"layers.{k}"
        for kind in ("means", "betas"):
            values = np.array(block["edge_model"]["kernel"][kind])
            ours[f"{name}.edge.{kind}"] = torch.tensor(values)
        put(f"{name}.edge.filter", block["edge_model"]["mlp_in"])
        put(f"{name}.score.0", block["semantic_attention_mlp"]["layers_0"])
        put(f"{name}.coefficients.0", block["x_mixing"]["layers_0"])
        for place in (0, 2):
            put(f"{name}.edge.out.{place}", block["edge_model"]["mlp_out"][f"layers_{place}"])
            put(f"{name}.spatial.{place}", block["post_norm_mlp"][f"layers_{place}"])
            put(f"{name}.node.{place}", block["node_mlp"][f"layers_{place}"])
        if layer.moves:
            put(f"{name}.direction", block["v_mixing"])
            if "velocity_mlp" in block:  # not where atoms move for the first time
                put(f"{name}.damping.0", block["velocity_mlp"]["layers_0"])
                put(f"{name}.damping.2", block["velocity_mlp"]["layers_2"])
    for place in (0, 2):
        put(f"readout.{place}", theirs["embedding_out"][f"layers_{place}"])
    return ours


@pytest.mark.parametrize(("channels", "layers", "moving"), [(6, 3, 3), (8, 3, 2), (64, 6, 6)])
def test_the_authors_program(channels: int, layers: int, moving: int) -> None:
    jax.config.update("jax_enable_x64", True)
    update = [k >= layers - moving for k in range(layers)]
    theirs = models.DenseSAKEModel(
        hidden_features=channels, out_features=1, depth=layers, update=update
    )
    rng = np.random.default_rng(3)
    # shapes alone: compiling the program's initialisation takes longer than all the rest
    shapes = jax.eval_shape(theirs.init, jax.random.PRNGKey(1), np.eye(5)[:4], np.zeros((4, 3)))
    parameters = jax.tree_util.tree_map(
        lambda x: rng.normal(size=x.shape) * (1.2 / x.shape[0] ** 0.5), shapes
    )
    for k in range(layers):  # the radial basis is trained, but cannot be anything
        basis = parameters["params"][f"d{k}"]["edge_model"]["kernel"]
        basis["means"] = np.linspace(0.0, 1.0, 50) + 0.01 * basis["means"]
        basis["betas"] = 600.0 * (1.0 + 0.1 * basis["betas"])
    if (channels, moving) == (64, 6):
        elements = 852_213 - 5 * 64  # counted with 10 elements
        assert sum(x.size for x in jax.tree_util.tree_leaves(parameters)) == elements
    config = SAKEConfig(
        channels, layers, 50, 5.0, ELEMENTS, moving_layers=moving, normalisation="published"
    )
    core = SAKE(config).double()
    state = renamed(parameters["params"], core)
    missing, unexpected = core.load_state_dict(state, strict=False)
    assert not unexpected
    assert all(".damping." in name for name in missing)  # of the first layer that moves

    def energy_of(positions: Any, kinds: Any) -> Any:
        return theirs.apply(parameters, kinds, positions)[0].sum()

    gradient_of = jax.jit(jax.value_and_grad(energy_of))  # else every operation compiles
    worst = np.zeros(3)
    for k, name in enumerate(MOLECULES):
        atoms = molecule(name)
        atoms.rattle(0.05, seed=k)
        assert atoms.get_all_distances().max() < config.cutoff
        results = Potential(core).evaluate(AtomsBatch.from_atoms(atoms))
        assert results.forces is not None
        kinds = np.eye(5)[[ELEMENTS.index(z) for z in atoms.numbers]]
        energy, gradient = gradient_of(jax.numpy.asarray(atoms.positions), jax.numpy.asarray(kinds))
        gradient = np.array(gradient)
        found = [
            abs(float(results.energy) - float(energy)),
            float(np.abs(results.forces.numpy() + gradient).max()),
            float(np.abs(gradient).max()),
        ]
        assert found[2] > 1e-2, "these weights give no forces"
        assert max(found[:2]) < TOLERANCE * max(1.0, found[2]), f"{name}: {found}"
        worst = np.maximum(worst, found)
    print(f"\nSAKE {channels} x {layers}, {moving} moving: max |dE| {worst[0]:.1e} eV, max |dF| "
          f"{worst[1]:.1e} eV/Å of max |F| {worst[2]:.2f} eV/Å")  # fmt: skip

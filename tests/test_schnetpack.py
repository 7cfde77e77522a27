"""interop/schnetpack.py: state dicts written here after SchNetPack 2's format, and what is refused.

That the numbers are SchNetPack's own is shown in test_oracle_schnet_painn.py.
"""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from ase.build import molecule
from torch import Tensor

from nnpcalc.batch import AtomsBatch
from nnpcalc.interop.schnetpack import CheckpointError, load_checkpoint
from nnpcalc.models.painn import PaiNN
from nnpcalc.models.schnet import SchNet

F, K, CUTOFF, LAYERS = 6, 5, 4.2, 2


def random_state(kind: str = "painn", basis: str = "gaussian") -> dict[str, Tensor]:
    """What `NeuralNetworkPotential.state_dict()` holds, with 20 elements."""
    shapes = {"embedding.weight": (20, F)}
    for n in range(LAYERS):
        block = f"interactions.{n}."
        if kind == "painn":
            mixing = f"mixing.{n}."
            shapes[f"{block}interatomic_context_net.0.weight"] = (F, F)
            shapes[f"{block}interatomic_context_net.0.bias"] = (F,)
            shapes[f"{block}interatomic_context_net.1.weight"] = (3 * F, F)
            shapes[f"{block}interatomic_context_net.1.bias"] = (3 * F,)
            shapes[f"{mixing}intraatomic_context_net.0.weight"] = (F, 2 * F)
            shapes[f"{mixing}intraatomic_context_net.0.bias"] = (F,)
            shapes[f"{mixing}intraatomic_context_net.1.weight"] = (3 * F, F)
            shapes[f"{mixing}intraatomic_context_net.1.bias"] = (3 * F,)
            shapes[f"{mixing}mu_channel_mix.weight"] = (2 * F, F)
        else:
            shapes[f"{block}in2f.weight"] = (F, F)
            shapes[f"{block}filter_network.0.weight"] = (F, K)
            shapes[f"{block}filter_network.1.weight"] = (F, F)
            for part in ("f2out.0", "f2out.1"):
                shapes[f"{block}{part}.weight"] = (F, F)
            for part in ("f2out.0", "f2out.1", "filter_network.0", "filter_network.1"):
                shapes[f"{block}{part}.bias"] = (F,)
    if kind == "painn":
        shapes |= {"filter_net.weight": (3 * LAYERS * F, K), "filter_net.bias": (3 * LAYERS * F,)}
    state = {f"representation.{name}": torch.randn(shape) for name, shape in shapes.items()}
    state["representation.cutoff_fn.cutoff"] = torch.tensor([CUTOFF])
    if basis == "gaussian":
        state["representation.radial_basis.offsets"] = torch.linspace(0.0, CUTOFF, K)
        state["representation.radial_basis.widths"] = torch.full((K,), CUTOFF / (K - 1))
    else:
        state["representation.radial_basis.freqs"] = torch.arange(1, K + 1) * math.pi / CUTOFF
    for k, shape in enumerate([(F // 2, F), (1, F // 2)]):
        state[f"output_modules.0.outnet.{k}.weight"] = torch.randn(shape)
        state[f"output_modules.0.outnet.{k}.bias"] = torch.randn(shape[0])
    return state


@pytest.mark.parametrize(("kind", "core"), [("painn", PaiNN), ("schnet", SchNet)])
def test_sizes_and_parameters_come_from_the_state_dict(kind: str, core: type) -> None:
    state = random_state(kind)
    potential = load_checkpoint(state, elements=[8, 1], dtype=torch.float64)
    assert type(potential.core) is core
    config = potential.core.config
    assert (config.channels, config.layers, config.radial_functions) == (F, LAYERS, K)
    assert config.cutoff == CUTOFF and config.elements == (1, 8)
    rows = state["representation.embedding.weight"][[1, 8]].double()
    assert torch.equal(potential.core.embedding.element.weight, rows)
    if kind == "painn":
        filters = state["representation.filter_net.weight"].double()
        assert torch.equal(potential.core.messages[1].filter.weight, filters[3 * F :])
    last = state["output_modules.0.outnet.1.weight"].double()
    assert torch.equal(potential.core.readout[2].weight, last)
    assert potential.evaluate(AtomsBatch.from_atoms(molecule("H2O"))).energy.isfinite().all()


def test_a_checkpoint_of_lightning_and_its_prefix(tmp_path: Path) -> None:
    state = random_state()
    prefixed = {f"model.{name}": tensor for name, tensor in state.items()}
    torch.save({"state_dict": prefixed, "epoch": 3}, tmp_path / "last.ckpt")
    found = load_checkpoint(tmp_path / "last.ckpt")
    expected = load_checkpoint(state)
    assert found.elements == tuple(range(1, 20))
    batch = AtomsBatch.from_atoms(molecule("CH3OH"), dtype=torch.float32)
    assert torch.equal(found.evaluate(batch).energy, expected.evaluate(batch).energy)


def test_offsets_become_atomic_energies() -> None:
    state = random_state("schnet")
    batch = AtomsBatch.from_atoms(molecule("H2O"))
    bare = load_checkpoint(state, energy_unit=0.1, dtype=torch.float64)
    assert len(bare.terms) == 0
    state["postprocessors.1.mean"] = torch.tensor(-3.0)
    state["postprocessors.1.atomref"] = torch.arange(100.0)
    full = load_checkpoint(state, energy_unit=0.1, dtype=torch.float64)
    shift = full.evaluate(batch).energy - bare.evaluate(batch).energy
    assert float(shift) == pytest.approx(0.1 * (3 * -3.0 + 1 + 1 + 8), abs=1e-9)
    state["postprocessors.1.atomref"] = torch.arange(5.0)
    with pytest.raises(CheckpointError, match="ends at Z = 4: pass elements"):
        load_checkpoint(state)


def test_a_shared_filter_is_repeated() -> None:
    state = random_state("painn", "bessel")
    for kind in ("weight", "bias"):
        name = f"representation.filter_net.{kind}"
        state[name] = state[name][: 3 * F]
    core = load_checkpoint(state).core
    assert core.config.radial_basis == "bessel"
    assert torch.equal(core.messages[0].filter.weight, core.messages[1].filter.weight)


def test_one_of_several_output_modules() -> None:
    state = random_state()
    for name in [name for name in state if name.startswith("output_modules.0.")]:
        state[name.replace("modules.0", "modules.2")] = torch.zeros_like(state[name])
    with pytest.raises(CheckpointError, match=r"has 2 output modules .*\[0, 2\].*output_module"):
        load_checkpoint(state)
    core = load_checkpoint(state, output_module=2).core
    assert not core.readout[0].weight.any()
    with pytest.raises(CheckpointError, match="output_module 1 is not one of"):
        load_checkpoint(state, output_module=1)


def without(name: str):
    return lambda state: state.pop(name)


def changed(name: str, value: Tensor):
    return lambda state: state.update({name: value})


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (without("representation.embedding.weight"), "plain nuclear embedding"),
        (without("representation.cutoff_fn.cutoff"), "radius of its cutoff"),
        (without("representation.interactions.1.in2f.weight"), "lacks layers.1.linear.weight"),
        (changed("representation.cutoff_fn.eps", torch.ones(1)), "unexpected .*cutoff_fn.eps"),
        (changed("postprocessors.0.scale", torch.ones(1)), "unexpected postprocessors.0.scale"),
        (changed("representation.radial_basis.widths", torch.ones(K)), "neither the GaussianRBF"),
        (changed("representation.interactions.0.in2f.weight", torch.ones(9, F)), r"\[9, 6\]"),
        (changed("output_modules.0.outnet.0.bias", torch.full((3,), math.nan)), "not finite"),
        (changed("step", 3), "'step' is no named tensor"),  # type: ignore[arg-type]
    ],
)
def test_what_has_no_counterpart_is_named(change, text: str) -> None:
    state = random_state("schnet")
    change(state)
    with pytest.raises(CheckpointError, match=text):
        load_checkpoint(state)


def test_wrong_arguments() -> None:
    state = random_state()
    for options, text in [
        ({"dtype": torch.float16}, "float32 or torch.float64"),
        ({"energy_unit": 0.0}, "positive energy"),
        ({"elements": [1, 20]}, r"among the atomic numbers 1 .. 19"),
        ({"norm_offset": 0.0}, "norm_offset must be above 0"),
    ]:
        with pytest.raises(CheckpointError, match=text):
            load_checkpoint(state, **options)


class Whole(torch.nn.Module):
    """Stands for a model that is pickled as a whole."""


def test_files_that_are_no_state_dict(tmp_path: Path) -> None:
    torch.save(Whole(), tmp_path / "best_model")
    with pytest.raises(CheckpointError, match=r"without running its code.*state_dict\(\)"):
        load_checkpoint(tmp_path / "best_model")
    with pytest.raises(CheckpointError, match=r"cannot read .*No such file"):
        load_checkpoint(tmp_path / "missing.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(CheckpointError, match="holds a list"):
        load_checkpoint(tmp_path / "list.pt")

"""interop/torchmdnet.py without torchmd-net: a tiny checkpoint written by hand, and refusals.

The golden numbers are what torchmd-net 3.1.0 (torch 2.13.0, CPU, float64) computes from the same
file: `load_model(path, derivative=True)`, its plain torch operations (its Warp kernels round
constants such as 1/3 to float32: 6e-9 eV off), the charges passed as ``q`` in float64. Where
torchmd-net is installed, tests/test_oracle_torchmdnet.py computes them again.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from ase.build import molecule
from torch import Tensor

from nnpcalc.batch import AtomsBatch
from nnpcalc.interop.torchmdnet import (
    CheckpointError,
    load_checkpoint,
    save_checkpoint,
    to_state_dict,
)
from nnpcalc.models.tensornet import TensorNet, TensorNetConfig
from nnpcalc.potential import Potential
from nnpcalc.terms import ZBL, AtomicEnergies
from nnpcalc.units import HARTREE

F, K, MAX_Z, CUTOFF = 4, 5, 10, 3.5
CHARGES = (-1, 0, 2)

#: Energies in eV of water in the charge states CHARGES, and its forces in eV/Å in the first.
GOLDEN_ENERGIES = (-10.89794565398543, -10.92276600989094, -10.972755271507955)
GOLDEN_FORCES = (
    (0.0, 0.0, 0.7426264797631477),
    (0.0, -0.05181377104228384, -0.3713132398815736),
    (0.0, 0.05181377104228384, -0.3713132398815736),
)


def numbers(shape: tuple[int, ...], seed: int) -> Tensor:
    """Reproducible values of order 1/sqrt(inputs) that no random generator can change."""
    count = math.prod(shape)
    values = torch.sin(1.7 * torch.arange(count, dtype=torch.float64) ** 1.1 + seed)
    return 1.6 * values.reshape(shape) / math.sqrt(shape[-1])


def tiny_checkpoint(layers: int = 1) -> dict[str, Any]:
    """A checkpoint in torchmd-net 3's layout, spelled out here without nnpcalc's help."""
    shapes: dict[str, tuple[int, ...]] = {}

    def linear(name: str, outputs: int, inputs: int, bias: bool = True) -> None:
        shapes[f"{name}.weight"] = (outputs, inputs)
        if bias:
            shapes[f"{name}.bias"] = (outputs,)

    embedding = "representation_model.tensor_embedding"
    shapes[f"{embedding}.emb.weight"] = (MAX_Z, F)
    linear(f"{embedding}.emb2", F, 2 * F)
    for k in (1, 2, 3):
        linear(f"{embedding}.distance_proj{k}", F, K)
    for k in range(3):
        linear(f"{embedding}.linears_tensor.{k}", F, F, bias=False)
    linear(f"{embedding}.linears_scalar.0", 2 * F, F)
    linear(f"{embedding}.linears_scalar.1", 3 * F, 2 * F)
    for kind in ("weight", "bias"):
        shapes[f"{embedding}.init_norm.{kind}"] = (F,)
        shapes[f"representation_model.out_norm.{kind}"] = (3 * F,)
    for layer in range(layers):
        name = f"representation_model.layers.{layer}"
        for k, (outputs, inputs) in enumerate([(F, K), (2 * F, F), (3 * F, 2 * F)]):
            linear(f"{name}.linears_scalar.{k}", outputs, inputs)
        for k in range(6):
            linear(f"{name}.linears_tensor.{k}", F, F, bias=False)
    linear("representation_model.linear", F, 3 * F)
    linear("output_model.output_network.layers.0", F // 2, F)
    linear("output_model.output_network.layers.2", 1, F // 2)
    state = {name: numbers(shape, seed) for seed, (name, shape) in enumerate(shapes.items())}

    start = math.exp(-CUTOFF)
    beta = (2.0 / K * (1.0 - start)) ** -2
    state |= {
        "representation_model.distance_expansion.means": torch.linspace(
            start, 1.0, K, dtype=torch.float64
        ),
        "representation_model.distance_expansion.betas": torch.full(
            (K,), beta, dtype=torch.float64
        ),
        "representation_model.distance.box": torch.zeros(3, 3),
        "prior_model.0.initial_atomref": numbers((MAX_Z, 1), 90),
        "prior_model.0.atomref.weight": numbers((MAX_Z, 1), 90),
        "mean": torch.tensor(-2.5, dtype=torch.float64),
        "std": torch.tensor(1.3, dtype=torch.float64),
    }
    options = {
        "model": "tensornet",
        "precision": 64,
        "embedding_dimension": F,
        "num_layers": layers,
        "num_rbf": K,
        "rbf_type": "expnorm",
        "trainable_rbf": False,
        "activation": "silu",
        "cutoff_lower": 0.0,
        "cutoff_upper": CUTOFF,
        "max_z": MAX_Z,
        "max_num_neighbors": 32,
        "equivariance_invariance_group": "O(3)",
        "static_shapes": False,
        "output_model": "Scalar",
        "reduce_op": "add",
        "atom_filter": -1,
        "derivative": True,
        "prior_model": [{"Atomref": {"max_z": MAX_Z}}],
        "prior_args": [{"max_z": MAX_Z, "trainable": False, "enable": True}],
        "charge": True,
        "spin": False,
    }
    named = {f"model.{name}": tensor for name, tensor in state.items()}
    return {"epoch": 3, "hyper_parameters": options, "state_dict": named}


def in_layout_2(checkpoint: dict[str, Any], layers: int = 1) -> dict[str, Any]:
    """The same network as torchmd-net 2.4 would have saved it."""
    state = dict(checkpoint["state_dict"])
    turned = ["tensor_embedding.linears_scalar.1"]
    turned += [f"layers.{layer}.linears_scalar.2" for layer in range(layers)]
    for name in turned:
        for kind in ("weight", "bias"):
            key = f"model.representation_model.{name}.{kind}"
            blocks = state[key].reshape(3, F, -1)  # row c F + f becomes row 3 f + c
            state[key] = torch.stack([b for f in range(F) for b in blocks[:, f]]).reshape(
                state[key].shape
            )
    return {
        "hyper_parameters": {**checkpoint["hyper_parameters"], "check_errors": True},
        "state_dict": state,
    }


def water() -> AtomsBatch:
    """Water three times, in the charge states CHARGES."""
    structures = [molecule("H2O") for _ in CHARGES]
    for atoms, charge in zip(structures, CHARGES, strict=True):
        atoms.info["charge"] = charge
    return AtomsBatch.from_atoms(structures)


def write(path: Path, checkpoint: dict[str, Any]) -> Path:
    torch.save(checkpoint, path)
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "tiny.ckpt"


def check_golden(path: Path, **options: Any) -> None:
    results = load_checkpoint(path, dtype=torch.float64, **options).evaluate(water())
    assert results.energy.tolist() == pytest.approx(GOLDEN_ENERGIES, abs=1e-11)
    assert results.forces is not None
    torch.testing.assert_close(
        results.forces[:3], torch.tensor(GOLDEN_FORCES, dtype=torch.float64), rtol=0, atol=1e-11
    )


# --- what it reads -------------------------------------------------------------------------------


def test_layout_3(path: Path) -> None:
    check_golden(write(path, tiny_checkpoint()))


def test_layout_2_is_recognised_by_an_option_of_its_time(path: Path) -> None:
    checkpoint = in_layout_2(tiny_checkpoint())
    check_golden(write(path, checkpoint))
    # before 0.13 there was neither option
    for option in ("check_errors", "static_shapes"):
        del checkpoint["hyper_parameters"][option]
    check_golden(write(path, checkpoint))


def test_layout_2_of_release_2_6_2_has_to_be_named(path: Path) -> None:
    checkpoint = in_layout_2(tiny_checkpoint())
    del checkpoint["hyper_parameters"]["check_errors"]
    write(path, checkpoint)
    check_golden(path, layout="2")
    energy = load_checkpoint(path, dtype=torch.float64).evaluate(water()).energy
    assert abs(float(energy[0]) - GOLDEN_ENERGIES[0]) > 1e-3  # the test would see a wrong layout


def test_names_of_old_releases(path: Path) -> None:
    checkpoint = in_layout_2(tiny_checkpoint())
    checkpoint["state_dict"] = {
        name.replace("output_network.layers.", "output_network.").replace(
            "prior_model.0.", "prior_model."
        ): tensor
        for name, tensor in checkpoint["state_dict"].items()
        if not name.endswith("distance.box")
    }
    options = checkpoint["hyper_parameters"]
    options["prior_model"] = "Atomref"
    options["prior_args"] = {"max_z": MAX_Z}
    check_golden(write(path, checkpoint))


def test_so3_files_of_either_layout_have_the_handedness_of_their_time(path: Path) -> None:
    checkpoint = tiny_checkpoint()
    checkpoint["hyper_parameters"]["equivariance_invariance_group"] = "SO(3)"
    left, right = molecule("H2O2"), molecule("H2O2")
    left.positions[2] += [0.1, 0.2, 0.5]  # four atoms out of a plane
    right.positions = -left.positions
    batch = AtomsBatch.from_atoms([left, right])
    new = load_checkpoint(write(path, checkpoint), dtype=torch.float64)
    old = load_checkpoint(write(path, in_layout_2(checkpoint)), dtype=torch.float64)
    energies = new.evaluate(batch).energy
    assert abs(float(energies[0] - energies[1])) > 1e-6
    torch.testing.assert_close(energies, old.evaluate(batch).energy.flip(0), rtol=0, atol=1e-12)
    state = to_state_dict(new)
    name = "representation_model.tensor_embedding.distance_proj2.weight"
    torch.testing.assert_close(state[name], checkpoint["state_dict"][f"model.{name}"])


def test_is_float32_by_default(path: Path) -> None:
    potential = load_checkpoint(write(path, tiny_checkpoint()))
    assert potential.dtype == torch.float32
    assert not potential.training
    energy = potential.evaluate(water().to(dtype=torch.float32)).energy
    assert energy.tolist() == pytest.approx(GOLDEN_ENERGIES, abs=1e-5)


def test_units_scale_everything(path: Path) -> None:
    potential = load_checkpoint(
        write(path, tiny_checkpoint()), energy_unit=HARTREE, dtype=torch.float64
    )
    expected = [HARTREE * energy for energy in GOLDEN_ENERGIES]
    assert potential.evaluate(water()).energy.tolist() == pytest.approx(expected, abs=1e-9)


def test_without_charge_nothing_depends_on_it(path: Path) -> None:
    checkpoint = tiny_checkpoint()
    checkpoint["hyper_parameters"]["charge"] = False
    potential = load_checkpoint(write(path, checkpoint), dtype=torch.float64)
    assert potential.core.conditions_on == ()
    energy = potential.evaluate(water()).energy
    assert energy.tolist() == pytest.approx([GOLDEN_ENERGIES[1]] * 3, abs=1e-11)


def test_reference_energies_are_added_only_on_request(path: Path) -> None:
    checkpoint = tiny_checkpoint()
    checkpoint["hyper_parameters"]["prior_args"][0]["enable"] = False
    write(path, checkpoint)
    check_golden(path, total_energy=True)
    energy = load_checkpoint(path, dtype=torch.float64).evaluate(water()).energy
    table = checkpoint["state_dict"]["model.prior_model.0.atomref.weight"][:, 0]
    references = float(table[8] + 2 * table[1])
    assert float(energy[0]) == pytest.approx(GOLDEN_ENERGIES[0] - references, abs=1e-11)


def test_no_prior_and_no_scale(path: Path) -> None:
    checkpoint = tiny_checkpoint(layers=0)
    options, state = checkpoint["hyper_parameters"], checkpoint["state_dict"]
    options["prior_model"] = options["prior_args"] = None
    for name in ("prior_model.0.initial_atomref", "prior_model.0.atomref.weight", "mean", "std"):
        del state[f"model.{name}"]
    potential = load_checkpoint(write(path, checkpoint))
    assert len(potential.terms) == 0
    assert potential.scale == 1.0


def test_elements_restrict_the_model(path: Path) -> None:
    write(path, tiny_checkpoint())
    assert load_checkpoint(path).elements == tuple(range(1, MAX_Z))
    check_golden(path, elements=[8, 1])
    potential = load_checkpoint(path, elements=[8, 1], dtype=torch.float64)
    assert potential.elements == (1, 8)
    with pytest.raises(ValueError, match="Z=6"):
        potential.evaluate(AtomsBatch.from_atoms(molecule("CH4")))
    with pytest.raises(CheckpointError, match=r"1 \.\. 9"):
        load_checkpoint(path, elements=[1, 10])


def test_a_default_cell_is_announced_not_used(path: Path) -> None:
    checkpoint = tiny_checkpoint()
    checkpoint["hyper_parameters"]["box_vecs"] = [[9.0, 0, 0], [0, 9.0, 0], [0, 0, 9.0]]
    write(path, checkpoint)
    with pytest.warns(UserWarning, match="box_vecs"):
        check_golden(path)


# --- what it refuses -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("model", "tensornet2"),
        ("model", "equivariant-transformer"),
        ("output_model", "DipoleMoment"),
        ("rbf_type", "gauss"),
        ("trainable_rbf", True),
        ("activation", "ssp"),
        ("cutoff_lower", 0.5),
        ("reduce_op", "mean"),
        ("atom_filter", 1),
        ("equivariance_invariance_group", "SU(2)"),
        ("repulsion", True),
        ("prior_model", ["ZBL"]),
        ("prior_model", [{"Coulomb": {"max_num_neighbors": 9}}]),
        ("prior_args", [{}, {}]),
        ("embedding_dimension", "4"),
        ("cutoff_upper", None),
        ("max_z", None),
    ],
)
def test_options_without_counterpart_are_named(path: Path, option: str, value: Any) -> None:
    checkpoint = tiny_checkpoint()
    checkpoint["hyper_parameters"][option] = value
    with pytest.raises(CheckpointError, match=option):
        load_checkpoint(write(path, checkpoint))


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("representation_model.linear.bias", None, "lacks representation_model.linear.bias"),
        ("representation_model.layers.0.w1", torch.ones(1), "unexpected representation_model.*w1"),
        ("output_model.output_network.layers.4.bias", torch.ones(1), "hidden layers"),
        ("representation_model.linear.bias", torch.ones(F + 1), r"torch.float32 \[5\]"),
        ("representation_model.linear.bias", torch.ones(F, dtype=torch.int64), "int64"),
        ("representation_model.linear.bias", torch.full((F,), math.nan), "linear.bias is not fin"),
        ("representation_model.tensor_embedding.emb.weight", torch.ones(9, F), r"\[10, 4\]"),
        ("representation_model.distance_expansion.means", torch.ones(K), "means differs"),
        ("prior_model.0.atomref.weight", torch.ones(4, 1), "ends at Z = 3"),
        ("prior_model.0.atomref.weight", None, "atomref.weight is not a table"),
        ("std", torch.ones(2), "std has 2 values"),
    ],
)
def test_parameters_that_do_not_fit(
    path: Path, name: str, tensor: Tensor | None, message: str
) -> None:
    checkpoint = tiny_checkpoint()
    checkpoint["state_dict"][f"model.{name}"] = tensor
    if tensor is None:
        del checkpoint["state_dict"][f"model.{name}"]
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(write(path, checkpoint))


class Payload:
    def __reduce__(self) -> tuple[Any, ...]:
        return pytest.fail, ("code in the checkpoint was run",)


def test_runs_no_code_of_the_file(path: Path) -> None:
    checkpoint = tiny_checkpoint()
    checkpoint["hyper_parameters"]["dataset_arg"] = Payload()
    with pytest.raises(CheckpointError, match="without running its code"):
        load_checkpoint(write(path, checkpoint))


def test_files_that_are_no_checkpoint(path: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="No such file"):
        load_checkpoint(tmp_path / "none.ckpt")
    path.write_bytes(b"not a checkpoint")
    with pytest.raises(CheckpointError, match="not a checkpoint"):
        load_checkpoint(path)
    with pytest.raises(CheckpointError, match="lacks 'hyper_parameters'"):
        load_checkpoint(write(path, {"state_dict": {}}))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"length_unit": 0.529}, "length_unit"),
        ({"energy_unit": 0.0}, "energy_unit"),
        ({"layout": "4"}, "layout"),
        ({"dtype": torch.float16}, "float16"),
        ({"total_energy": True}, "remove_ref_energy"),
    ],
)
def test_arguments(path: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(write(path, tiny_checkpoint()), **arguments)


# --- what it writes ------------------------------------------------------------------------------


def test_a_file_survives_reading_and_writing(path: Path) -> None:
    checkpoint = tiny_checkpoint()
    potential = load_checkpoint(write(path, checkpoint), dtype=torch.float64)
    state = to_state_dict(potential, max_z=MAX_Z)
    for name, tensor in checkpoint["state_dict"].items():
        found = state[name.removeprefix("model.")]
        expected = tensor.clone()
        if "emb.weight" in name or "atomref" in name:
            expected[0] = 0.0  # the row of no element
        torch.testing.assert_close(found, expected, rtol=0, atol=2e-12)
    assert len(state) == len(checkpoint["state_dict"])

    save_checkpoint(potential, path, energy_unit=HARTREE)
    options = torch.load(path, weights_only=True)["hyper_parameters"]
    original = checkpoint["hyper_parameters"]
    assert {key: options[key] for key in original if key not in _FREE} == {
        key: value for key, value in original.items() if key not in _FREE
    }
    check_golden(path, energy_unit=HARTREE)


#: Options in which two equal models may differ.
_FREE = ("max_num_neighbors", "prior_model")


def small(**options: Any) -> TensorNet:
    return TensorNet(
        TensorNetConfig(channels=4, layers=1, radial_functions=4, elements=(1, 8), **options)
    )


def test_what_torchmdnet_has_no_place_for() -> None:
    with pytest.raises(CheckpointError, match="ZBL"):
        to_state_dict(Potential(small(), (ZBL(),)))
    with pytest.raises(CheckpointError, match=r"0\.1, layers\.0\.attribute_weights"):
        to_state_dict(Potential(small(attribute_weights=(0.4,))))
    with pytest.raises(CheckpointError, match="unpaired_electrons"):
        to_state_dict(Potential(small(attributes=("unpaired_electrons",))))
    with pytest.raises(CheckpointError, match="max_z must be at least 9"):
        to_state_dict(Potential(small()), max_z=8)
    potential = Potential(small(attributes=(), attribute_weights=()), (AtomicEnergies({8: -2.0}),))
    state = to_state_dict(potential)
    assert state["prior_model.0.atomref.weight"][:, 0].tolist() == [0.0] * 8 + [-2.0]

"""Write a TensorNet potential as a checkpoint of torchmd-net 3."""

from __future__ import annotations

import os

import torch
from torch import Tensor

from nnpcalc.interop.torchmdnet_format import (
    BASIS,
    BOX,
    CHARGE_WEIGHT,
    CheckpointError,
    mirror,
    parameter_names,
    radial_basis,
)
from nnpcalc.models.tensornet import TensorNet
from nnpcalc.potential import Potential
from nnpcalc.terms import AtomicEnergies
from nnpcalc.terms.system_energy import SystemEnergy


def to_state_dict(
    potential: Potential, *, energy_unit: float = 1.0, max_z: int | None = None
) -> dict[str, Tensor]:
    """The parameters of a TensorNet potential under torchmd-net 3's names (layout "3").

    Args:
        potential: a TensorNet that depends on no attribute or on the charge with lambda = 0.1,
            with no terms but AtomicEnergies and SystemEnergy.
        energy_unit: eV per unit of energy that the other program shall give.
        max_z: rows of the embedding; rows of elements the model does not know are zero.

    Returns:
        Tensors in the dtype of the potential, on the CPU.

    Raises:
        CheckpointError: torchmd-net has no counterpart for the core or a term.
    """
    core = potential.core
    if not isinstance(core, TensorNet):
        raise CheckpointError(f"torchmd-net's format holds a TensorNet, not {type(core).__name__}")
    _check_attributes(core)
    rows = _rows(core, max_z)
    own = {name: tensor.detach().cpu() for name, tensor in core.state_dict().items()}
    dtype = potential.dtype
    table = torch.zeros(rows, core.config.channels, dtype=dtype)
    table[torch.tensor(core.config.elements)] = own["embedding.element.weight"]
    own["embedding.element.weight"] = table
    result: dict[str, Tensor] = {}
    for name, group in parameter_names(core.config).items():
        parts = own[name].unbind() if ".mix" in name else own[name].chunk(len(group))
        result |= {theirs: part.clone() for theirs, part in zip(group, parts, strict=True)}
    result = mirror(result, core.config)
    means, betas = radial_basis(core.config)
    result[f"{BASIS}means"], result[f"{BASIS}betas"] = means.to(dtype), betas.to(dtype)
    result[BOX] = torch.zeros(3, 3)
    references, mean = _references(potential, rows)
    if references is not None:
        references = (references / energy_unit).to(dtype)[:, None]
        result["prior_model.0.initial_atomref"] = references
        result["prior_model.0.atomref.weight"] = references.clone()
    result["mean"] = torch.tensor(mean / energy_unit, dtype=dtype)
    result["std"] = torch.tensor(potential.scale / energy_unit, dtype=dtype)
    return result


def save_checkpoint(
    potential: Potential,
    path: str | os.PathLike[str],
    *,
    energy_unit: float = 1.0,
    max_z: int | None = None,
    max_num_neighbors: int = 128,
) -> None:
    """Write a TensorNet potential as a checkpoint that torchmd-net 3 and `load_checkpoint` read.

    Args:
        potential, energy_unit, max_z: as for `to_state_dict`.
        path: the `.ckpt` file.
        max_num_neighbors: pairs per atom on average for which torchmd-net sets memory aside; it
            stops with an error where there are more.

    Raises:
        CheckpointError: as `to_state_dict`.
    """
    state = to_state_dict(potential, energy_unit=energy_unit, max_z=max_z)
    core = potential.core
    assert isinstance(core, TensorNet)
    config, rows = core.config, _rows(core, max_z)
    prior = "prior_model.0.atomref.weight" in state
    options = {
        "model": "tensornet",
        "embedding_dimension": config.channels,
        "num_layers": config.layers,
        "num_rbf": config.radial_functions,
        "rbf_type": "expnorm",
        "trainable_rbf": False,
        "activation": "silu",
        "cutoff_lower": 0.0,
        "cutoff_upper": config.cutoff,
        "equivariance_invariance_group": config.equivariance,
        "max_z": rows,
        "max_num_neighbors": max_num_neighbors,
        "static_shapes": False,
        "output_model": "Scalar",
        "output_mlp_num_layers": 0,
        "reduce_op": "add",
        "atom_filter": -1,
        "derivative": True,
        "precision": 64 if potential.dtype == torch.float64 else 32,
        "prior_model": "Atomref" if prior else None,
        "prior_args": [{"max_z": rows, "trainable": False, "enable": True}] if prior else None,
        "charge": "charge" in core.conditions_on,
        "spin": False,
    }
    named = {f"model.{name}": tensor for name, tensor in state.items()}
    torch.save({"hyper_parameters": options, "state_dict": named}, path)


def _check_attributes(core: TensorNet) -> None:
    if not core.conditions_on:
        return
    if core.config.attributes != ("charge",) or core.config.state_embedding:
        raise CheckpointError(
            "torchmd-net's TensorNet knows the total charge only, in the prefactor alone, not "
            f"{core.config.attributes} and a state embedding of {core.config.state_embedding}"
        )
    for name, weights in core.named_parameters():
        if name.endswith("attribute_weights") and abs(float(weights) - CHARGE_WEIGHT) > 1e-7:
            raise CheckpointError(
                f"torchmd-net fixes lambda of the charge to {CHARGE_WEIGHT}, {name} is "
                f"{float(weights)}"
            )


def _rows(core: TensorNet, max_z: int | None) -> int:
    least = max(core.config.elements) + 1
    if max_z is not None and max_z < least:
        raise CheckpointError(f"max_z must be at least {least} for the model's elements: {max_z}")
    return least if max_z is None else max_z


def _references(potential: Potential, rows: int) -> tuple[Tensor | None, float]:
    """Atomic energies [rows], or None if there are none, and the energy per system, in eV."""
    table, mean = None, 0.0
    numbers = torch.arange(min(rows, 119), device=potential.device)
    for term in potential.terms:
        if isinstance(term, AtomicEnergies):
            energies = (term.picoelectronvolts[numbers].to(torch.float64) * term.unit).cpu()
            table = torch.zeros(rows, dtype=torch.float64) if table is None else table
            table[: len(energies)] += energies
        elif isinstance(term, SystemEnergy):
            mean += term.energy
        else:
            raise CheckpointError(f"torchmd-net's format has no place for {type(term).__name__}")
    return table, mean

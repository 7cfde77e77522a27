"""TorchMD-Net: read its TensorNet checkpoints, and write ours as its checkpoints.

`load_checkpoint` needs nothing of torchmd-net and runs no code of the file (``weights_only``). The
facts of the format were read in torchmd-net's releases up to 3.1.0, the numbers checked against
3.1.0.

A `.ckpt` is a dictionary with ``hyper_parameters`` (the training options) and ``state_dict`` (the
parameters, each name behind ``model.``). One network, two layouts of its parameters:

    "3"   since 3.0.0: tensors [N, 3, 3, F]; the last scalar layer of the embedding and of each
          interaction gives [3, F]
    "2"   before, also the AceFF-1 files: tensors [N, F, 3, 3]; the same layers give [F, 3]

A file does not name its layout, but its options tell: ``static_shapes`` is in every file since
0.13, ``check_errors`` in every one from 0.13 to 2.6.1. So a file with ``check_errors`` or without
``static_shapes`` has layout "2" and any other counts as "3". That is wrong for files that 2.6.2
wrote, which look like those of 3.0: they need ``layout="2"``. torchmd-net before 3.0 and since also
disagree about the handedness of SO(3) networks (`torchmdnet_format.mirror`); each file is read
with that of its time, so that chiral molecules are not mixed up.

What torchmd-net does not say in a checkpoint: its units, and the elements and charges that were
trained. Its data sets mostly are in eV and Å, which is assumed unless told otherwise.
"""

from __future__ import annotations

import math
import os
import re
import warnings
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from nnpcalc.interop.torchmdnet_format import (
    BASIS,
    BODY,
    BOX,
    CHARGE_WEIGHT,
    EMBEDDING,
    HEAD,
    CheckpointError,
    mirror,
    parameter_names,
    radial_basis,
)
from nnpcalc.interop.torchmdnet_write import save_checkpoint, to_state_dict
from nnpcalc.models.tensornet import TensorNet, TensorNetConfig
from nnpcalc.potential import Potential
from nnpcalc.terms import AtomicEnergies
from nnpcalc.terms.system_energy import SystemEnergy

__all__ = ["CheckpointError", "load_checkpoint", "save_checkpoint", "to_state_dict"]

LAYOUTS = ("auto", "2", "3")
#: Options with the only values that nnpcalc has the same function for; None: the option is absent.
SUPPORTED: dict[str, tuple[Any, ...]] = {
    "model": ("tensornet",),
    "output_model": ("Scalar",),
    "rbf_type": ("expnorm",),
    "trainable_rbf": (False, None),
    "activation": ("silu",),
    "cutoff_lower": (0,),
    "reduce_op": ("add", "sum"),
    "atom_filter": (-1, None),
    "equivariance_invariance_group": ("O(3)", "SO(3)"),
    "repulsion": (False, None),
}


def load_checkpoint(
    path: str | os.PathLike[str],
    *,
    energy_unit: float = 1.0,
    length_unit: float = 1.0,
    layout: str = "auto",
    elements: Iterable[int] | None = None,
    total_energy: bool = False,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Potential:
    """Read a TensorNet that torchmd-net trained.

    The scale (``std``), the mean and Atomref priors become the potential's scale and terms. A
    model trained with ``charge`` depends on the total charge with lambda = 0.1, one trained
    without it on no attribute. torchmd-net keeps the centres of the radial basis in float32; here
    they are exact, which changes energies by about 1e-7 of their size.

    Args:
        path: the `.ckpt` file.
        energy_unit: eV per unit of energy of the checkpoint, e.g. `nnpcalc.units.HARTREE`.
            Checkpoints do not state it; the default is eV.
        length_unit: Å per unit of length of the checkpoint. Only 1.0: the first radial centre of
            TensorNet is exp(-r_c) of the bare number r_c, so another unit is another function.
        layout: "2", "3" or "auto", see the module.
        elements: atomic numbers that the model was trained on; others are then refused. By
            default all that its embedding has a row for, trained or not.
        total_energy: of a model trained with ``remove_ref_energy``, give total energies, with the
            reference energies that training took off the labels.
        device: where the parameters go.
        dtype: torch.float32 or torch.float64, for the parameters and the computation.

    Returns:
        The potential, in evaluation mode.

    Raises:
        CheckpointError: not such a file, an option that has no counterpart here (it is named), or
            parameters that do not fit the options.
    """
    if dtype not in (torch.float32, torch.float64):
        raise CheckpointError(f"models run in torch.float32 or torch.float64, not {dtype}")
    if layout not in LAYOUTS:
        raise CheckpointError(f"layout must be one of {', '.join(LAYOUTS)}, not {layout!r}")
    if not 0.0 < energy_unit < math.inf:
        raise CheckpointError(f"energy_unit must be a positive energy in eV, not {energy_unit}")
    if length_unit != 1.0:
        raise CheckpointError(
            f"length_unit is {length_unit} Å: only checkpoints in Å can be read, because the first "
            "radial centre exp(-r_c) of TensorNet depends on the unit of r_c"
        )
    origin = os.fspath(path)
    options, tensors = _read(origin)
    _check_options(options, origin)
    max_z = _integer(options, "max_z", origin)
    known = range(1, min(max_z, 119)) if elements is None else sorted({int(z) for z in elements})
    if not known or not 1 <= known[0] <= known[-1] < min(max_z, 119):
        raise CheckpointError(
            f"elements {list(known)} are not all among the atomic numbers 1 .. {max_z - 1} that "
            f"the embedding of {origin} has rows for (its option max_z is {max_z})"
        )
    config = _config(options, tuple(known), origin)
    if layout == "2" or (layout == "auto" and _is_layout_2(options)):
        tensors = _to_layout_3(tensors, config)
    else:
        tensors = mirror(tensors, config)
    terms = _take_terms(tensors, options, energy_unit, total_energy, tuple(known), origin)
    scale = _take_scalar(tensors, "std", 1.0, origin) * energy_unit
    _check_basis(tensors, config, origin)
    potential = Potential(_fill(config, tensors, max_z, dtype, origin), tuple(terms), scale=scale)
    return potential.eval().to(device=device, dtype=dtype)


# --- reading -------------------------------------------------------------------------------------


def _read(origin: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Options and parameters, the latter under torchmd-net 3's names without ``model.``."""
    try:
        checkpoint = torch.load(origin, map_location="cpu", weights_only=True)
    except OSError as error:
        raise CheckpointError(f"cannot read {origin}: {error.strerror}") from error
    except Exception as error:  # the unpickler raises many kinds
        raise CheckpointError(
            f"{origin} is not a checkpoint that can be read without running its code: "
            f"{str(error).splitlines()[0] if str(error) else type(error).__name__}. Whoever trusts "
            "it can load it once with weights_only=False and save its 'hyper_parameters' (as a "
            "dict of plain values) and 'state_dict' anew"
        ) from error
    options = checkpoint.get("hyper_parameters") if isinstance(checkpoint, dict) else None
    state = checkpoint.get("state_dict") if isinstance(checkpoint, dict) else None
    if not isinstance(options, dict) or not isinstance(state, dict):
        raise CheckpointError(
            f"{origin} lacks 'hyper_parameters' or 'state_dict': not a torchmd-net checkpoint"
        )
    tensors: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise CheckpointError(f"{origin}: {name!r} in state_dict is no named tensor")
        name = name.removeprefix("model.")
        # until 2.1 the head was a bare list of layers, until 0.2.4 there was only one prior
        name = re.sub(r"^(output_model\.output_network)\.(\d)", r"\1.layers.\2", name)
        name = re.sub(r"^prior_model\.(initial_atomref|atomref\.)", r"prior_model.0.\1", name)
        if name != BOX:
            if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                raise CheckpointError(f"{origin}: {name} is not finite; the model is broken")
            tensors[name] = tensor
    return options, tensors


def _check_options(options: dict[str, Any], origin: str) -> None:
    for option, values in SUPPORTED.items():
        value = options.get(option)
        if value not in values:
            wanted = " or ".join(repr(v) for v in values if v is not None)
            hint = "; TensorNet2 (AceFF-2) is another network" if option == "model" else ""
            raise CheckpointError(
                f"{origin}: the option {option} is {value!r}, nnpcalc reads {wanted}{hint}"
            )
    if options.get("box_vecs") is not None:
        warnings.warn(
            f"{origin}: the option box_vecs, a cell for structures without one, is not used; "
            "the cell and pbc of the atoms count",
            stacklevel=3,
        )


def _integer(options: dict[str, Any], option: str, origin: str) -> int:
    value = options.get(option)
    if type(value) is not int:
        raise CheckpointError(f"{origin}: the option {option} must be a whole number: {value!r}")
    return value


def _config(options: dict[str, Any], elements: tuple[int, ...], origin: str) -> TensorNetConfig:
    cutoff = options.get("cutoff_upper")
    if not isinstance(cutoff, (int, float)):
        raise CheckpointError(f"{origin}: the option cutoff_upper must be a length: {cutoff!r}")
    charge = bool(options.get("charge"))
    try:
        return TensorNetConfig(
            channels=_integer(options, "embedding_dimension", origin),
            layers=_integer(options, "num_layers", origin),
            radial_functions=_integer(options, "num_rbf", origin),
            cutoff=float(cutoff),
            elements=elements,
            equivariance=options["equivariance_invariance_group"],
            attributes=("charge",) if charge else (),
            attribute_weights=(CHARGE_WEIGHT,) if charge else (),
        )
    except CheckpointError:
        raise
    except ValueError as error:
        raise CheckpointError(f"{origin}: {error}") from error


def _is_layout_2(options: dict[str, Any]) -> bool:
    return "check_errors" in options or "static_shapes" not in options


def _to_layout_3(tensors: dict[str, Tensor], config: TensorNetConfig) -> dict[str, Tensor]:
    """Reorder the outputs of the layers that end in [F, 3] so that they end in [3, F]."""
    turned = {f"{EMBEDDING}linears_scalar.1."}
    turned |= {f"{BODY}layers.{k}.linears_scalar.2." for k in range(config.layers)}
    result = dict(tensors)
    for name, tensor in tensors.items():
        if name.rpartition(".")[0] + "." in turned and tensor.shape[0] == 3 * config.channels:
            parts = tensor.reshape(config.channels, 3, *tensor.shape[1:])
            result[name] = parts.transpose(0, 1).reshape(tensor.shape)
    return result


def _take_scalar(tensors: dict[str, Tensor], name: str, default: float, origin: str) -> float:
    if name not in tensors:
        return default
    tensor = tensors.pop(name)
    if tensor.numel() != 1:
        raise CheckpointError(
            f"{origin}: {name} has {tensor.numel()} values, a model of an energy has one"
        )
    return float(tensor)


def _take_terms(
    tensors: dict[str, Tensor],
    options: dict[str, Any],
    energy_unit: float,
    total_energy: bool,
    elements: tuple[int, ...],
    origin: str,
) -> list[nn.Module]:
    """Priors and mean as terms; their tensors are taken out of `tensors`."""
    terms: list[nn.Module] = []
    removed = False
    for k, (name, settings) in enumerate(_priors(options, origin)):
        if name not in ("Atomref", "LearnableAtomref"):
            raise CheckpointError(
                f"{origin}: the option prior_model has {name!r}, nnpcalc reads Atomref only; it "
                "has D2, ZBL and Coulomb of other forms, which would change the energies"
            )
        tensors.pop(f"prior_model.{k}.initial_atomref", None)
        table = tensors.pop(f"prior_model.{k}.atomref.weight", None)
        if table is None or table.dim() != 2 or table.shape[1] != 1:
            raise CheckpointError(f"{origin}: prior_model.{k}.atomref.weight is not a table [Z, 1]")
        enabled = bool(settings.get("enable", True))
        removed = removed or not enabled
        if not enabled and not total_energy:
            continue
        if len(table) <= elements[-1] and table.any():
            covered = [z for z in elements if z < len(table)]
            raise CheckpointError(
                f"{origin}: its Atomref prior ends at Z = {len(table) - 1}: pass elements, at most "
                f"{covered}"
            )
        if table.any():
            values = {z: float(table[z, 0]) * energy_unit for z in elements}
            terms.append(AtomicEnergies(values))
    if total_energy and not removed:
        raise CheckpointError(
            f"{origin} was not trained with remove_ref_energy: there are no reference energies "
            "to add, leave total_energy out"
        )
    mean = _take_scalar(tensors, "mean", 0.0, origin) * energy_unit
    if mean != 0.0:
        terms.append(SystemEnergy(mean))
    return terms


def _priors(options: dict[str, Any], origin: str) -> list[tuple[str, dict[str, Any]]]:
    """Names and settings of the priors: a name, {name: settings}, or a list of either."""
    given = options.get("prior_model") or []
    priors: list[tuple[str, dict[str, Any]]] = []
    for entry in given if isinstance(given, (list, tuple)) else [given]:
        if isinstance(entry, dict):
            priors += [(str(name), settings or {}) for name, settings in entry.items()]
        else:
            priors.append((str(entry), {}))
    settings = options.get("prior_args")
    if settings is not None:
        settings = list(settings) if isinstance(settings, (list, tuple)) else [settings]
        if len(settings) != len(priors):
            raise CheckpointError(
                f"{origin}: {len(priors)} priors in prior_model, {len(settings)} in prior_args"
            )
        priors = [(name, own or {}) for (name, _), own in zip(priors, settings, strict=True)]
    return priors


# --- parameters ----------------------------------------------------------------------------------


def _fill(
    config: TensorNetConfig, tensors: dict[str, Tensor], max_z: int, dtype: torch.dtype, origin: str
) -> TensorNet:
    """The core with the checkpoint's parameters, all of which must be used up and fit."""
    names = parameter_names(config)
    wanted = {theirs for group in names.values() for theirs in group}
    for problem, found in (
        ("lacks", sorted(wanted - set(tensors))),
        ("has the unexpected", sorted(set(tensors) - wanted)),
    ):
        if found:
            hint = " (a head with hidden layers?)" if any(HEAD in name for name in found) else ""
            raise CheckpointError(
                f"{origin} {problem} {', '.join(found[:5])}{hint}: not the network of its options"
            )
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        core = TensorNet(config).to(dtype)
    state = core.state_dict()
    for name, group in names.items():
        parts = [tensors[theirs] for theirs in group]
        # stacked along a new axis for the three matrices of a TensorLinear, else along the first
        stacked = torch.stack(parts) if ".mix" in name else torch.cat(parts)
        expected = tuple(state[name].shape)
        if name == "embedding.element.weight":
            expected = (max_z, config.channels)
        if tuple(stacked.shape) != expected or not stacked.is_floating_point():
            raise CheckpointError(
                f"{origin}: {' + '.join(group)} is {stacked.dtype} {list(stacked.shape)}, "
                f"its options need numbers {list(expected)}"
            )
        if name == "embedding.element.weight":
            stacked = stacked[torch.tensor(config.elements)]
        state[name] = stacked.to(dtype)
    for name in state:  # set here too: the constructor rounds it to the default dtype
        if name.endswith("attribute_weights"):
            state[name] = torch.tensor(config.attribute_weights, dtype=dtype)
    core.load_state_dict(state, strict=True)
    return core


def _check_basis(tensors: dict[str, Tensor], config: TensorNetConfig, origin: str) -> None:
    """The radial basis must be the one that the options stand for; taken out of `tensors`."""
    for name, expected in zip(("means", "betas"), radial_basis(config), strict=True):
        found = tensors.pop(f"{BASIS}{name}", expected).to(torch.float64)
        if found.shape != expected.shape or not torch.allclose(found, expected, 1e-5, 1e-6):
            raise CheckpointError(
                f"{origin}: {BASIS}{name} differs from the values of num_rbf and cutoff_upper: "
                "trained radial functions cannot be read"
            )

"""SchNetPack 2: read its SchNet and PaiNN models.

`load_checkpoint` needs nothing of SchNetPack and runs no code of the file (``weights_only``). The
facts of the format were read in SchNetPack's releases 2.0 to 2.2, the numbers checked against
2.2.0.

SchNetPack saves `best_model` as a pickled Python object, which is a program: it cannot be read
without running it. Whoever trusts the file exports its parameters once, where SchNetPack is
installed::

    import torch
    model = torch.load("best_model", map_location="cpu", weights_only=False)
    torch.save(model.state_dict(), "parameters.pt")

The sizes, the cutoff and the radial basis are in the names and shapes of the parameters. What is
not there: units (SchNetPack's data sets have several), the activation functions and the elements
that were trained.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from nnpcalc.interop.torchmdnet_format import CheckpointError
from nnpcalc.models.painn import PaiNN, PaiNNConfig
from nnpcalc.models.schnet import SchNet, SchNetConfig
from nnpcalc.potential import Potential
from nnpcalc.terms import AtomicEnergies

__all__ = ["CheckpointError", "load_checkpoint"]

BODY = "representation."
EMBEDDING = f"{BODY}embedding.weight"
FILTERS = f"{BODY}filter_net."
OFFSETS = re.compile(r"postprocessors\.\d+\.(atomref|mean)")
BLOCK = re.compile(rf"{BODY}interactions\.(\d+)\.")
OUTPUT = re.compile(r"output_modules\.(\d+)\.outnet\.")


def load_checkpoint(
    source: str | os.PathLike[str] | Mapping[str, Any],
    *,
    energy_unit: float = 1.0,
    elements: Iterable[int] | None = None,
    readout_activation: str = "silu",
    norm_offset: float = 1e-8,
    output_module: int | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Potential:
    """Read a SchNet or PaiNN that SchNetPack 2 trained on energies.

    Offsets (`AddOffsets`: the mean energy per atom and the atomic references) become atomic
    energies. SchNetPack keeps the radial basis in float32; here it is exact, which changes energies
    by about 1e-7 of their size. Positions are in Å; activation functions other than those of
    `SchNet` and `PaiNN` cannot be noticed.

    Args:
        source: a file with the parameters of a `NeuralNetworkPotential`, that is its
            ``state_dict()`` or a dictionary that has one under "state_dict"; or that dictionary.
        energy_unit: eV per unit of energy of the model, e.g. `nnpcalc.units.KCAL_PER_MOL`; the
            file does not state it, the default is eV.
        elements: atomic numbers that the model was trained on; others are then refused. By
            default all that its embedding has a row for, trained or not.
        readout_activation: of a SchNet's `Atomwise`: "silu" (SchNetPack's default) or
            "shifted_softplus".
        norm_offset: `epsilon` of a PaiNN.
        output_module: number of the `Atomwise` of the energy where there are several.
        device: where the parameters go.
        dtype: torch.float32 or torch.float64, for the parameters and the computation.

    Returns:
        The potential, in evaluation mode.

    Raises:
        CheckpointError: not such a file, or a model with parts that have no counterpart here
            (they are named).
    """
    if dtype not in (torch.float32, torch.float64):
        raise CheckpointError(f"models run in torch.float32 or torch.float64, not {dtype}")
    if not 0.0 < energy_unit < math.inf:
        raise CheckpointError(f"energy_unit must be a positive energy in eV, not {energy_unit}")
    origin = "the given state dict" if isinstance(source, Mapping) else os.fspath(source)
    content = source if isinstance(source, Mapping) else _read(origin)
    tensors = _tensors(content, origin)
    rows = tensors[EMBEDDING].shape[0]
    known = range(1, min(rows, 119)) if elements is None else sorted({int(z) for z in elements})
    if not known or not 1 <= known[0] <= known[-1] < min(rows, 119):
        raise CheckpointError(
            f"elements {list(known)} are not all among the atomic numbers 1 .. {rows - 1} that the "
            f"embedding of {origin} has rows for"
        )
    offsets = _take_offsets(tensors, tuple(known), energy_unit, origin)
    _name_readout(tensors, output_module, origin)
    basis, k, cutoff = _take_basis(tensors, origin)
    layers = len({m.group(1) for m in map(BLOCK.match, tensors) if m})
    sizes: dict[str, Any] = {
        "channels": tensors[EMBEDDING].shape[1],
        "layers": layers,
        "radial_functions": k,
        "cutoff": cutoff,
        "elements": tuple(known),
    }
    try:
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            if f"{FILTERS}weight" in tensors:
                _split_filters(tensors, layers, origin)
                config = PaiNNConfig(**sizes, radial_basis=basis, norm_offset=norm_offset)
                core: nn.Module = PaiNN(config).to(dtype)
            elif basis == "gaussian":
                options = SchNetConfig(**sizes, readout_activation=readout_activation)
                core = SchNet(options).to(dtype)
            else:
                raise CheckpointError(f"{origin}: a SchNet with a {basis} basis cannot be read")
    except CheckpointError:
        raise
    except ValueError as error:
        raise CheckpointError(f"{origin}: {error}") from error
    _fill(core, tensors, torch.tensor(known), dtype, origin)
    return Potential(core, offsets, scale=energy_unit).eval().to(device=device, dtype=dtype)


# --- reading -------------------------------------------------------------------------------------


def _read(origin: str) -> Any:
    try:
        return torch.load(origin, map_location="cpu", weights_only=True)
    except OSError as error:
        raise CheckpointError(f"cannot read {origin}: {error.strerror}") from error
    except Exception as error:  # the unpickler raises many kinds
        raise CheckpointError(
            f"{origin} cannot be read without running its code: it is no dictionary of tensors, "
            "perhaps a whole model as SchNetPack saves it. Whoever trusts it can export the "
            "parameters where SchNetPack is installed: torch.save(torch.load(FILE, "
            "map_location='cpu', weights_only=False).state_dict(), 'parameters.pt')"
        ) from error


def _tensors(content: Any, origin: str) -> dict[str, Tensor]:
    """The parameters by SchNetPack's names, without the ``model.`` of Lightning's checkpoints."""
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{origin} holds a {type(content).__name__}, not a state dict")
    tensors: dict[str, Tensor] = {}
    for name, tensor in content.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise CheckpointError(f"{origin}: {name!r} is no named tensor, so it is no state dict")
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(f"{origin}: {name} is not finite; the model is broken")
        tensors[name.removeprefix("model.")] = tensor.detach().cpu()
    if EMBEDDING not in tensors or tensors[EMBEDDING].dim() != 2:
        raise CheckpointError(
            f"{origin} lacks {EMBEDDING}: not a SchNetPack 2 model with a plain nuclear embedding"
        )
    return tensors


def _take_offsets(
    tensors: dict[str, Tensor], elements: tuple[int, ...], energy_unit: float, origin: str
) -> tuple[nn.Module, ...]:
    """Means and atomic references as atomic energies; their tensors are taken out."""
    energies = dict.fromkeys(elements, 0.0)
    for name in [name for name in tensors if OFFSETS.fullmatch(name)]:
        tensor = tensors.pop(name).to(torch.float64).flatten()
        if not tensor.any():
            continue
        if name.endswith("mean"):
            tensor = tensor[:1].expand(elements[-1] + 1)
        elif len(tensor) <= elements[-1]:
            raise CheckpointError(
                f"{origin}: {name} ends at Z = {len(tensor) - 1}: pass elements, at most "
                f"{[z for z in elements if z < len(tensor)]}"
            )
        for z in elements:
            energies[z] += float(tensor[z]) * energy_unit
    return (AtomicEnergies(energies),) if any(energies.values()) else ()


def _name_readout(tensors: dict[str, Tensor], wanted: int | None, origin: str) -> None:
    """Rename the layers of the energy's output module; those of others are taken out."""
    found = {int(m.group(1)) for m in map(OUTPUT.match, tensors) if m}
    if wanted is None and len(found) != 1:
        raise CheckpointError(
            f"{origin} has {len(found)} output modules with a network ({sorted(found)}): "
            "output_module must say which one gives the energy"
        )
    number = next(iter(found)) if wanted is None else wanted
    if number not in found:
        raise CheckpointError(f"{origin}: output_module {number} is not one of {sorted(found)}")
    for name in [name for name in tensors if name.startswith("output_modules.")]:
        tensor = tensors.pop(name)
        if name.startswith(f"output_modules.{number}.outnet."):
            tensors[name.replace(f"output_modules.{number}.outnet.", f"{BODY}outnet.")] = tensor


def _take_basis(tensors: dict[str, Tensor], origin: str) -> tuple[str, int, float]:
    """Kind, size and cutoff of the radial basis, which must be the regular one; taken out."""
    cutoff = tensors.pop(f"{BODY}cutoff_fn.cutoff", None)
    offsets = tensors.pop(f"{BODY}radial_basis.offsets", None)
    widths = tensors.pop(f"{BODY}radial_basis.widths", None)
    frequencies = tensors.pop(f"{BODY}radial_basis.freqs", None)
    if cutoff is None or cutoff.numel() != 1:
        raise CheckpointError(f"{origin} lacks {BODY}cutoff_fn.cutoff, the radius of its cutoff")
    # written in float32: 5.2 must not become 5.19999980926...
    radius = float(f"{float(cutoff):.7g}")
    regular, kind, k = False, "bessel", 0
    if offsets is not None and widths is not None and offsets.dim() == 1 and len(offsets) > 1:
        kind, k = "gaussian", len(offsets)
        expected = torch.linspace(0.0, radius, k, dtype=torch.float64)
        regular = widths.shape == offsets.shape
        regular = regular and torch.allclose(offsets.double(), expected, 1e-5, 1e-5)
        regular = regular and torch.allclose(widths.double(), expected[1].expand(k), 1e-5, 1e-5)
    elif frequencies is not None and frequencies.dim() == 1:
        k = len(frequencies)
        expected = torch.arange(1, k + 1, dtype=torch.float64) * (math.pi / radius)
        regular = torch.allclose(frequencies.double(), expected, 1e-5, 1e-5)
    if not regular:
        raise CheckpointError(
            f"{origin}: {BODY}radial_basis is neither the GaussianRBF from 0 to the cutoff of "
            f"{radius} Å nor its BesselRBF; trained or shifted radial functions cannot be read"
        )
    return kind, k, radius


# --- parameters ----------------------------------------------------------------------------------

#: SchNetPack's name of a layer -> ours; the two-layer networks are numbered 0, 1 and 0, 2.
NAMES = (
    (rf"{BODY}embedding\.", "embedding.element."),
    (rf"{BODY}outnet\.", "readout."),
    (rf"{BODY}interactions\.(\d+)\.in2f\.", r"layers.\1.linear."),
    (rf"{BODY}interactions\.(\d+)\.f2out\.", r"layers.\1.update."),
    (rf"{BODY}interactions\.(\d+)\.filter_network\.", r"layers.\1.filter."),
    (rf"{BODY}interactions\.(\d+)\.interatomic_context_net\.", r"messages.\1.atoms."),
    (rf"{BODY}mixing\.(\d+)\.intraatomic_context_net\.", r"updates.\1.atoms."),
    (rf"{BODY}mixing\.(\d+)\.mu_channel_mix\.", r"updates.\1.mix."),
)


def _renamed(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Our name of each parameter -> SchNetPack's; unknown ones keep theirs."""
    names = {}
    for theirs in tensors:
        ours = theirs
        for pattern, replacement in NAMES:
            ours, count = re.subn(f"^{pattern}", replacement, ours)
            if count:
                break
        names[re.sub(r"\.1\.(weight|bias)$", r".2.\1", ours)] = theirs
    return names


def _split_filters(tensors: dict[str, Tensor], layers: int, origin: str) -> None:
    """One filter of all PaiNN blocks together -> one for each; a shared one is repeated."""
    width = 3 * tensors[EMBEDDING].shape[1]
    for kind in ("weight", "bias"):
        joint = tensors.pop(f"{FILTERS}{kind}", None)
        if joint is None or joint.shape[0] not in (width, layers * width):
            raise CheckpointError(f"{origin}: {FILTERS}{kind} does not fit {layers} blocks")
        for n in range(layers):
            start = n * width if joint.shape[0] > width else 0
            tensors[f"messages.{n}.filter.{kind}"] = joint[start : start + width]


def _fill(
    core: nn.Module, tensors: dict[str, Tensor], elements: Tensor, dtype: torch.dtype, origin: str
) -> None:
    """Give the core the checkpoint's parameters, all of which must be used up and fit."""
    names, state = _renamed(tensors), core.state_dict()
    for problem, found in (
        ("lacks", sorted(set(state) - set(names))),
        ("has the unexpected", sorted(names[ours] for ours in set(names) - set(state))),
    ):
        if found:
            raise CheckpointError(
                f"{origin} {problem} {', '.join(found[:5])}: not a {type(core).__name__} with an "
                "energy from two dense layers"
            )
    for ours, expected in state.items():
        tensor = tensors[names[ours]]
        if ours == "embedding.element.weight":
            tensor = tensor[elements]
        if tensor.shape != expected.shape or not tensor.is_floating_point():
            raise CheckpointError(
                f"{origin}: {names[ours]} is {tensor.dtype} {list(tensor.shape)}, a "
                f"{type(core).__name__} of its size needs numbers {list(expected.shape)}"
            )
        state[ours] = tensor.to(dtype)
    core.load_state_dict(state)

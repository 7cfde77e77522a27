"""ANI: read its published networks (ANI-1x, ANI-1ccx, ANI-2x) and TorchANI's state dicts.

    potential = load("ani-2x_8x")                  # NeuroChem's directory
    potential = load("ani2x_state_dict.pt")        # torch.save(model.state_dict(), ...)

Neither needs TorchANI nor runs code of the files (``weights_only``). The facts of the formats were
read in the files themselves and in TorchANI's releases 2.2 and 2.9, the numbers checked against
2.9.0. Two formats:

- NeuroChem's directory: one `.params` file with the constants of the symmetry functions, atomic
  energies in `sae_linfit.dat`, and each member in `train<k>/networks/`, an `ANN-<element>.nnf`
  (bzip2 behind a line with its length) that names the files of float32 weights and biases.
- TorchANI's state dict. The cutoffs are not in it but follow from the even spacing of the centres.
  Not in it either, hence taken for granted: CELU(0.1) and the cosine cutoff.

TorchANI rounds atomic energies and the constants of the symmetry functions to float32; here they
are those of the `.params` and `.dat` files, which changes energies by up to 4e-6 Hartree for each
atom of some element and forces by about 1e-7 Hartree/Å.
"""

from __future__ import annotations

import bz2
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from ase.data import atomic_numbers, chemical_symbols
from torch import Tensor

from nnpcalc.interop.torchmdnet_format import CheckpointError
from nnpcalc.models.ani2x import ANI2x, ANI2xConfig
from nnpcalc.potential import Potential
from nnpcalc.terms import AtomicEnergies
from nnpcalc.units import HARTREE

__all__ = ["CheckpointError", "load"]

MAX_TEXT_BYTES = 1_000_000
CELU, LINEAR = 9, 6  # NeuroChem's numbers of activation functions
#: Names of the constants in a `.params` file and, behind "radial." or "angular.", in TorchANI.
CONSTANTS = {
    "EtaR": "radial.eta",
    "ShfR": "radial.shifts",
    "EtaA": "angular.eta",
    "Zeta": "angular.zeta",
    "ShfA": "angular.shifts",
    "ShfZ": "angular.sections",
}
CONSTANT = re.compile(r"(?:.*\.)?aev_computer\.(?:\w+\.)*?((?:radial|angular)\.\w+|[ESZ]\w+)")
#: neural_networks.[members.]3.[atomics.]Cl.[layers.]0.weight; a single network has no number.
WEIGHT = re.compile(
    r"(?:.*\.)?neural_networks\.(?:members\.)?(?:(\d+)\.)?(?:atomics\.)?([A-Z][a-z]?)\."
    r"(?:layers\.)?(\d+|final_layer)\.(weight|bias)"
)
#: Tables that follow from the rest.
IGNORED = re.compile(
    r"(?:.*\.)?(triu_index|conv_tensor|atomic_numbers|default_cell|default_shifts)"
)

Layers = list[tuple[Tensor, Tensor]]  # weight [out, in] and bias [out] of each layer


@dataclass(frozen=True)
class _File:
    """What a directory or file says.

    Attributes:
        constants: by the names in `CONSTANTS`, float64.
        cutoffs: radial and angular, Å; None where they follow from the spacing.
        elements: atomic numbers in the order of the symmetry functions.
        energies: of the atoms, Hartree, in that order.
        members: the layers of every element's network, for each member of the ensemble.
    """

    constants: dict[str, Tensor]
    cutoffs: tuple[float, float] | None
    elements: tuple[int, ...]
    energies: tuple[float, ...]
    members: list[dict[int, Layers]]


def load(
    source: str | os.PathLike[str] | Mapping[str, Any],
    *,
    member: int | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Potential:
    """Read an ANI network or ensemble.

    Args:
        source: NeuroChem's directory, which holds the `.params` file; a file with a TorchANI
            model's ``state_dict()``; or that dictionary.
        member: only this one of an ensemble, from 0. By default the mean of all.
        device: where the parameters go.
        dtype: torch.float32 or torch.float64, for the parameters and the computation.

    Returns:
        The potential, in evaluation mode, energies in eV. Neutral closed-shell systems only.

    Raises:
        CheckpointError: not such a source, or something in it that has no counterpart here; the
            text names it.
    """
    if dtype not in (torch.float32, torch.float64):
        raise CheckpointError(f"models run in torch.float32 or torch.float64, not {dtype}")
    origin = "the given state dict" if isinstance(source, Mapping) else os.fspath(source)
    if isinstance(source, Mapping):
        file = _from_state_dict(source, origin)
    elif Path(source).is_dir():
        file = _from_directory(Path(source))
    else:
        file = _from_state_dict(_read(origin), origin)
    members = file.members
    if member is not None:
        if not 0 <= member < len(members):
            raise CheckpointError(f"{origin} holds {len(members)} networks: no member {member}")
        members = members[member : member + 1]
    config = _config(file, members, origin)
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        core = ANI2x(config).to(torch.float64)
    core.load_state_dict(_state(core, config, members, origin))
    energies = {z: e * HARTREE for z, e in zip(file.elements, file.energies, strict=True)}
    potential = Potential(core, (AtomicEnergies(energies),), scale=HARTREE)
    return potential.eval().to(device=device, dtype=dtype)


# --- NeuroChem's directory -----------------------------------------------------------------------


def _from_directory(directory: Path) -> _File:
    params = sorted(directory.glob("*.params"))
    if len(params) != 1:
        raise CheckpointError(
            f"{directory} holds {len(params)} .params files; NeuroChem's directory of an ensemble "
            "has one, with sae_linfit.dat and train0, train1, ... beside it"
        )
    origin = str(params[0])
    settings = dict(re.findall(r"^\s*(\w+)\s*=\s*(.*?)\s*$", _text(params[0]), re.MULTILINE))
    lacking = sorted({"Rcr", "Rca", "Atyp", *CONSTANTS} - set(settings))
    if lacking:
        raise CheckpointError(f"{origin} lacks {', '.join(lacking)}")
    elements = _elements(settings["Atyp"].strip("[] ").split(","), origin)
    constants = {
        name: torch.tensor(_numbers(settings[name], origin), dtype=torch.float64)
        for name in CONSTANTS
    }
    networks = sorted(directory.glob("train*/networks"), key=_number)
    networks = networks or [path for path in [directory / "networks"] if path.is_dir()]
    if not networks:
        raise CheckpointError(f"{directory} holds no train0/networks with the weights")
    members = []
    for place in networks:
        members.append({z: _network(place / f"ANN-{chemical_symbols[z]}.nnf") for z in elements})
    cutoffs = (_numbers(settings["Rcr"], origin)[0], _numbers(settings["Rca"], origin)[0])
    energies = _atomic_energies(directory / "sae_linfit.dat", elements)
    return _File(constants, cutoffs, elements, energies, members)


def _number(path: Path) -> tuple[int, str]:
    name = path.parent.name.removeprefix("train")
    return (int(name) if name.isdecimal() else -1, name)


def _text(path: Path) -> str:
    return _bytes(path, MAX_TEXT_BYTES).decode("utf-8", errors="replace")


def _bytes(path: Path, limit: int) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from error
    if len(data) > limit:
        raise CheckpointError(f"{path} has more than {limit} bytes, more than it should")
    return data


def _numbers(text: str, origin: str) -> list[float]:
    try:
        values = [float(part) for part in text.strip("[] ").split(",")]
    except ValueError:
        values = [math.nan]
    if not all(map(math.isfinite, values)):
        raise CheckpointError(f"{origin}: {text!r} is no list of numbers")
    return values


def _elements(symbols: Sequence[str], origin: str) -> tuple[int, ...]:
    names = [symbol.strip() for symbol in symbols]
    unknown = [name for name in names if atomic_numbers.get(name, 0) < 1]
    if unknown:
        raise CheckpointError(f"{origin}: {unknown[0]!r} is no element")
    return tuple(atomic_numbers[name] for name in names)


def _atomic_energies(path: Path, elements: tuple[int, ...]) -> tuple[float, ...]:
    """Lines ``H,0=-0.59...`` in any order."""
    found = {
        symbol: _numbers(value, str(path))[0]
        for symbol, value in re.findall(
            r"^\s*([A-Z][a-z]?)\s*,\s*\d+\s*=\s*(\S+)", _text(path), re.M
        )
    }
    missing = [chemical_symbols[z] for z in elements if chemical_symbols[z] not in found]
    if missing:
        raise CheckpointError(f"{path} has no energy of {', '.join(missing)}")
    return tuple(found[chemical_symbols[z]] for z in elements)


def _network(path: Path) -> Layers:
    """The layers that an `.nnf` file describes, from the files it names."""
    data = _bytes(path, MAX_TEXT_BYTES)
    begin = data.find(b"BZh")
    try:
        text = bz2.BZ2Decompressor().decompress(data[begin:], MAX_TEXT_BYTES).decode()
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is not NeuroChem's: {error}") from error
    layers: Layers = []
    blocks = re.findall(r"layer\s*\[(.*?)\n\s*\]", text, re.DOTALL)
    for k, block in enumerate(blocks):
        said = dict(re.findall(r"(\w+)\s*=\s*([^;]*);", block))
        wanted = LINEAR if k == len(blocks) - 1 else CELU
        if said.get("activation") != str(wanted):
            raise CheckpointError(
                f"{path}: layer {k + 1} has the activation function {said.get('activation')}; "
                f"only CELU ({CELU}), and none ({LINEAR}) in the last layer, can be read"
            )
        try:
            outputs, inputs = int(said["nodes"]), int(said["blocksize"])
            files = [
                re.fullmatch(r"FILE:([\w.-]+)\[\d+\]", said[key]) for key in ("weights", "biases")
            ]
        except (KeyError, ValueError) as error:
            raise CheckpointError(f"{path}: layer {k + 1} is incomplete: {error}") from error
        if files[0] is None or files[1] is None:
            raise CheckpointError(f"{path}: layer {k + 1} names no files of weights and biases")
        weight = _floats(path.parent / files[0].group(1), (outputs, inputs))
        layers.append((weight, _floats(path.parent / files[1].group(1), (outputs,))))
    return layers


def _floats(path: Path, shape: tuple[int, ...]) -> Tensor:
    size = 4 * math.prod(shape)
    data = _bytes(path, size)
    if len(data) != size:
        raise CheckpointError(f"{path} has {len(data)} bytes, {list(shape)} float32 take {size}")
    return torch.frombuffer(bytearray(data), dtype=torch.float32).reshape(shape)


# --- TorchANI's state dict -----------------------------------------------------------------------


def _read(origin: str) -> Any:
    try:
        return torch.load(origin, map_location="cpu", weights_only=True)
    except OSError as error:
        raise CheckpointError(f"cannot read {origin}: {error.strerror}") from error
    except Exception as error:  # the unpickler raises many kinds
        raise CheckpointError(
            f"{origin} is neither NeuroChem's directory nor a dictionary of tensors; where "
            "TorchANI is installed, torch.save(model.state_dict(), 'parameters.pt') makes one"
        ) from error


def _from_state_dict(content: Any, origin: str) -> _File:
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{origin} holds a {type(content).__name__}, not a state dict")
    by_theirs = {theirs: ours for ours, theirs in CONSTANTS.items()}
    constants: dict[str, Tensor] = {}
    found: dict[int, dict[str, dict[tuple[int, str], Tensor]]] = {}
    energies: Tensor | None = None
    for name, tensor in content.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise CheckpointError(f"{origin}: {name!r} is no named tensor, so it is no state dict")
        constant, weight = CONSTANT.fullmatch(name), WEIGHT.fullmatch(name)
        if weight is not None:
            number, symbol, layer, kind = weight.groups()
            place = 10_000 if layer == "final_layer" else int(layer)
            member = found.setdefault(int(number or 0), {})
            member.setdefault(symbol, {})[place, kind] = tensor.detach().cpu()
        elif constant is not None and by_theirs.get(constant[1], constant[1]) in CONSTANTS:
            values = tensor.detach().cpu().to(torch.float64).flatten()
            constants[by_theirs.get(constant[1], constant[1])] = values
        elif name.endswith("energy_shifter.self_energies"):
            energies = tensor.detach().cpu().to(torch.float64).flatten()
        elif not IGNORED.fullmatch(name):
            raise CheckpointError(
                f"{origin} has {name}, which has no counterpart here: only plain ANI networks with "
                "CELU and cosine cutoffs can be read, no repulsion, dispersion or charges"
            )
    lacking = sorted(set(CONSTANTS) - set(constants))
    if lacking or not found or energies is None:
        raise CheckpointError(
            f"{origin} lacks {', '.join([*lacking, *([] if found else ['neural_networks'])])}"
            f"{'' if energies is not None else ' energy_shifter.self_energies'}: not the state "
            "dict of a TorchANI model"
        )
    symbols = list(next(iter(found.values())))
    elements = _ordered(_elements(symbols, origin), content, origin)
    if len(energies) != len(elements):
        raise CheckpointError(f"{origin}: {len(energies)} self energies for {symbols}")
    members = []
    for number in sorted(found):
        networks = {}
        for symbol, parts in found[number].items():
            places = sorted({place for place, _ in parts})
            if any((place, kind) not in parts for place in places for kind in ("weight", "bias")):
                raise CheckpointError(f"{origin}: a layer of {symbol} lacks its weight or bias")
            layers = [(parts[place, "weight"], parts[place, "bias"]) for place in places]
            networks[atomic_numbers[symbol]] = layers
        members.append(networks)
    return _File(constants, None, elements, tuple(energies.tolist()), members)


def _ordered(found: tuple[int, ...], content: Mapping[str, Any], origin: str) -> tuple[int, ...]:
    """The elements in the order of the symmetry functions, which tables say if they are there."""
    order = found
    for name, tensor in content.items():
        if name.endswith("atomic_numbers"):
            order = tuple(tensor.flatten().tolist())
        elif name.endswith("species_converter.conv_tensor"):
            known = [z for z in range(1, len(tensor)) if int(tensor[z]) >= 0]
            order = tuple(sorted(known, key=lambda z: int(tensor[z])))
        if set(order) != set(found) or len(order) != len(found):
            raise CheckpointError(f"{origin}: {name} has the elements {order}, not {found}")
    return order


# --- the network ---------------------------------------------------------------------------------


def _config(file: _File, members: list[dict[int, Layers]], origin: str) -> ANI2xConfig:
    """Options from the constants, which must be as regular as the published ones."""
    c = file.constants
    for name in ("EtaR", "EtaA", "Zeta"):
        if c[name].numel() != 1:
            raise CheckpointError(f"{origin}: {name} has {c[name].numel()} values, not one")
    shifts = {name: _spacing(c[name], name, origin) for name in ("ShfR", "ShfA", "ShfZ")}
    (first, step_r), (first_a, step_a), (first_z, step_z) = shifts.values()
    ends = (first + step_r * len(c["ShfR"]), first_a + step_a * len(c["ShfA"]))
    radial, angular = file.cutoffs or (round(ends[0], 5), round(ends[1], 5))
    part = math.pi / len(c["ShfZ"])
    regular = abs(step_z - part) < 1e-5 and abs(first_z - 0.5 * part) < 1e-5
    if (
        not regular
        or max(abs(ends[0] - radial), abs(ends[1] - angular), abs(first - first_a)) > 1e-4
    ):
        raise CheckpointError(
            f"{origin}: the symmetry functions are not centred evenly from one distance to the "
            "cutoffs and over all angles, as the published ones are"
        )
    try:
        return ANI2xConfig(
            cutoff=radial,
            elements=file.elements,
            radial_functions=len(c["ShfR"]),
            radial_width=_short(c["EtaR"]),
            angular_cutoff=angular,
            angular_functions=len(c["ShfA"]),
            angular_width=_short(c["EtaA"]),
            angles=len(c["ShfZ"]),
            angle_exponent=_short(c["Zeta"]),
            first_shift=round(first, 5),
            hidden=tuple(tuple(len(b) for _, b in members[0][z][:-1]) for z in file.elements),
            members=len(members),
        )
    except (ValueError, KeyError) as error:
        raise CheckpointError(f"{origin}: {error}") from error


def _short(value: Tensor) -> float:
    """Written in float32: 19.7 must not become 19.700000762939453."""
    return float(f"{float(value):.7g}")


def _spacing(values: Tensor, name: str, origin: str) -> tuple[float, float]:
    """First of evenly spaced values and the spacing."""
    n = len(values)
    step = float(values[-1] - values[0]) / max(n - 1, 1)
    even = float(values[0]) + step * torch.arange(n, dtype=torch.float64)
    if n < 2 or not torch.allclose(values.to(torch.float64), even, 0.0, 1e-5):
        raise CheckpointError(f"{origin}: {name} is not evenly spaced: {values.tolist()}")
    return float(values[0]), step


def _state(
    core: ANI2x, config: ANI2xConfig, members: list[dict[int, Layers]], origin: str
) -> dict[str, Tensor]:
    """The members' layers stacked, under the core's names."""
    state = core.state_dict()
    for k, z in enumerate(config.elements):
        depth = len(config.hidden[k]) + 1
        for n in range(depth):
            for part, kind in enumerate(("weight", "bias")):
                name = f"networks.{k}.{2 * n}.{kind}"
                tensors = [
                    networks[z][n][part]
                    for networks in members
                    if len(networks.get(z, ())) == depth
                ]
                shapes = {tuple(tensor.shape) for tensor in tensors}
                if shapes != {tuple(state[name].shape[1:])} or len(tensors) != len(members):
                    raise CheckpointError(
                        f"{origin}: {kind} {n + 1} of {chemical_symbols[z]} is {sorted(shapes)} in "
                        f"{len(tensors)} of {len(members)} members, the symmetry functions and the "
                        f"first member make it {list(state[name].shape[1:])}"
                    )
                stacked = torch.stack(tensors).to(torch.float64)
                if not bool(torch.isfinite(stacked).all()):
                    raise CheckpointError(f"{origin}: {name} is not finite; the model is broken")
                state[name] = stacked
    return state

"""AIMNet2: read its published files as a `Potential`, Coulomb energy and D3 included.

    potential = load("aimnet2_wb97m-d3_0.jpt", trust=True)

Two formats, told apart by their contents:

- TorchScript (`.jpt`), as Auto3D carries it: one network, or an ensemble of which `member` chooses
  one. The reference data of D3 are inside. Opening TorchScript can run code of the file, so
  ``trust=True`` is needed; after that only its parameters are looked at.
- the dictionary (`.pt`) that aimnet 0.2 exports. No code in it is run. The reference data of D3 are
  not in it and come from the optional package tad-dftd3.

What differs from the files' own programs, on purpose:

- charges add up to the total charge exactly, not to 1e-7 e, which moves forces by up to 1e-5 eV/Å;
- D3 gives no weight to reference systems that an element does not have (theirs does: nothing in
  molecules, some percent to lone atoms), and is switched off at `dispersion_cutoff`;
- atomic energies are added in float64 (theirs in float32, to 1e-3 eV);
- periodic systems have a Coulomb energy, computed as `periodic` says.
"""

from __future__ import annotations

import io
import os
import warnings
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nnpcalc.interop.torchmdnet_format import CheckpointError
from nnpcalc.models.aimnet2 import AIMNet2, AIMNet2Config
from nnpcalc.potential import Potential
from nnpcalc.terms import D3, AtomicEnergies, Coulomb, D3Tables, reference_tables

__all__ = ["CheckpointError", "load"]

#: Modules of `outputs` that there is a counterpart for; sums and multipoles have no parameters.
OUTPUTS = ("energy_mlp", "atomic_shift", "lrcoulomb", "srcoulomb", "d3bj", "dftd3")
MEMBER = "models."


@dataclass(frozen=True)
class _File:
    """What a file says, whatever its format.

    Attributes:
        tensors: parameters by their names in the file.
        elements: atomic numbers that were trained.
        radius: below which the Coulomb energy is damped, Å; None if there is none.
        dispersion: s6, s8, a1 and a2 of D3; None if there is none.
        tables: reference data of D3 for these elements; None if not in the file.
    """

    tensors: dict[str, Tensor]
    elements: tuple[int, ...]
    radius: float | None
    dispersion: dict[str, float] | None
    tables: D3Tables | None


def load(
    path: str | os.PathLike[str],
    *,
    trust: bool = False,
    member: int = 0,
    periodic: str = "dsf",
    coulomb_cutoff: float = 15.0,
    dispersion_cutoff: float = 15.0,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Potential:
    """Read an AIMNet2 file.

    Args:
        path: a `.jpt` or `.pt` file.
        trust: open a TorchScript file. TorchScript is code.
        member: which network of an ensemble, from 0.
        periodic: how the Coulomb energy of periodic systems is computed, "dsf", "ewald" or "none"
            (`nnpcalc.terms.Coulomb`).
        coulomb_cutoff: of "dsf" and of the real half of "ewald", Å.
        dispersion_cutoff: of D3, Å.
        device: where the parameters go.
        dtype: torch.float32 or torch.float64, for the parameters and the computation.

    Returns:
        The potential, in evaluation mode. The files do not say what charges were trained; the
        calculator refuses other multiplicities than 1 unless the model has open shells.

    Raises:
        CheckpointError: not such a file, not trusted, or something in it that has no counterpart
            here; the text names it.
        ImportError: a `.pt` file with D3, and no tad-dftd3.
    """
    if dtype not in (torch.float32, torch.float64):
        raise CheckpointError(f"models run in torch.float32 or torch.float64, not {dtype}")
    origin = os.fspath(path)
    data = Path(path).read_bytes()
    if _is_torchscript(data):
        if not trust:
            raise CheckpointError(
                f"{origin} is TorchScript, and opening it can run code of whoever made it: pass "
                "trust=True if you know where it comes from"
            )
        file = _read_torchscript(data, member, origin)
    else:
        if member != 0:
            raise CheckpointError(f"{origin} is not an ensemble: member {member} is not in it")
        file = _read_dictionary(data, origin)
    core, energies = _core(file, origin)
    terms: list[nn.Module] = [AtomicEnergies(energies)]
    if file.radius is not None:
        terms.append(Coulomb("exponential", file.radius, periodic=periodic, cutoff=coulomb_cutoff))
    if file.dispersion is not None:
        tables = reference_tables(file.elements) if file.tables is None else file.tables
        terms.append(D3(file.elements, **file.dispersion, cutoff=dispersion_cutoff, tables=tables))
    potential = Potential(core, tuple(terms)).eval().to(device=device, dtype=dtype)
    # a network of closed shells would take a triplet without a word
    card = {"name": Path(path).stem, "multiplicities": [1]}
    potential.card = {"name": card["name"]} if core.open_shell else card  # type: ignore[assignment]
    return potential


# --- reading -------------------------------------------------------------------------------------


def _is_torchscript(data: bytes) -> bool:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            return any("/code/" in name for name in archive.namelist())
    except zipfile.BadZipFile:
        return False


def _read_torchscript(data: bytes, member: int, origin: str) -> _File:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        try:
            program: Any = torch.jit.load(io.BytesIO(data), map_location="cpu")
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[0]
            raise CheckpointError(f"{origin} cannot be opened: {reason}") from error
    members = getattr(program, "models", None)
    count = 1 if members is None else len(list(members.children()))
    if not 0 <= member < count:
        raise CheckpointError(f"{origin} holds {count} networks: there is no member {member}")
    if members is not None:
        program = getattr(members, str(member))
    program = getattr(program, "module", program)  # a wrapper that adds forces
    tensors = {name: value.detach() for name, value in _state(program).items()}
    elements = _elements(tensors, origin)
    outputs = dict(program.outputs.named_children()) if hasattr(program, "outputs") else {}
    radius = None
    if "lrcoulomb" in outputs:
        radius = _number(tensors, "outputs.lrcoulomb.rc", origin)
    dispersion, tables = None, None
    for name in ("d3bj", "dftd3"):
        if name in outputs:
            module = outputs[name]
            dispersion = {key: float(getattr(module, key)) for key in ("s6", "s8", "a1", "a2")}
            tables = _tables(tensors, f"outputs.{name}.", elements, origin)
    return _File(tensors, elements, radius, dispersion, tables)


def _state(program: nn.Module) -> dict[str, Tensor]:
    return {**dict(program.named_parameters()), **dict(program.named_buffers())}


def _read_dictionary(data: bytes, origin: str) -> _File:
    try:
        content = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises whatever its parts raise
        raise CheckpointError(f"{origin} cannot be read: {error}") from error
    needed = ("state_dict", "coulomb_mode", "implemented_species")
    if not isinstance(content, dict) or any(key not in content for key in needed):
        raise CheckpointError(
            f"{origin} is no model that aimnet exported: it lacks some of {', '.join(needed)}"
        )
    if content.get("has_embedded_d3ts"):
        raise CheckpointError(f"{origin} has a learned dispersion energy, which is not supported")
    radius, mode = None, content["coulomb_mode"]
    if mode == "sr_embedded":
        envelope = content.get("coulomb_sr_envelope")
        if envelope != "exp":
            raise CheckpointError(f"{origin}: the Coulomb envelope {envelope!r} is not supported")
        radius = float(content["coulomb_sr_rc"])
    elif mode != "none":
        raise CheckpointError(f"{origin}: the Coulomb energy {mode!r} is not supported")
    dispersion = None
    if content.get("needs_dispersion"):
        parameters = content.get("d3_params") or {}
        missing = [key for key in ("s8", "a1", "a2") if key not in parameters]
        if missing:
            raise CheckpointError(f"{origin} needs D3 but lacks its {', '.join(missing)}")
        dispersion = {key: float(parameters.get(key, 1.0)) for key in ("s6", "s8", "a1", "a2")}
    elements = tuple(sorted(int(z) for z in content["implemented_species"]))
    return _File(dict(content["state_dict"]), elements, radius, dispersion, None)


def _elements(tensors: dict[str, Tensor], origin: str) -> tuple[int, ...]:
    """Elements with an atomic energy, which are those that were trained."""
    shifts = _take(tensors, "outputs.atomic_shift.shifts.weight", origin).flatten()
    trained = (torch.isfinite(shifts) & (shifts != 0.0)).nonzero().flatten()
    return tuple(trained.tolist())


def _tables(
    tensors: dict[str, Tensor], prefix: str, elements: tuple[int, ...], origin: str
) -> D3Tables:
    """The reference data of D3, kept as C6 and both coordination numbers [95, 95, 5, 5, 3]."""
    z = torch.tensor(elements)
    table = _take(tensors, f"{prefix}c6ab", origin)
    if tuple(table.shape[2:]) != (5, 5, 3) or table.shape[0] <= int(z.max()):
        raise CheckpointError(f"{origin}: {prefix}c6ab is {list(table.shape)}, not as known")
    table = table[z][:, z]
    # the coordination number of a reference system does not depend on the other atom
    coordination = table[:, :, :, :, 1].amax(dim=(1, 3))
    known = coordination >= 0.0
    c6 = table[..., 0] * (known[:, None, :, None] & known[None, :, None, :])
    r4r2, radii = (_take(tensors, f"{prefix}{name}", origin)[z] for name in ("r4r2", "rcov"))
    return D3Tables(c6, coordination, r4r2, radii)


# --- the network ---------------------------------------------------------------------------------


def _core(file: _File, origin: str) -> tuple[AIMNet2, dict[int, float]]:
    """The network with its weights, and the energies of the atoms in eV."""
    tensors = file.tensors
    unknown = {
        name.split(".")[1]
        for name in tensors
        if name.startswith("outputs.") and name.split(".")[1] not in OUTPUTS
    }
    if unknown:
        raise CheckpointError(f"{origin}: there is no counterpart of {', '.join(sorted(unknown))}")
    config = _config(tensors, file.elements, origin)
    core = AIMNet2(config)
    state = {
        "feature_convolution.mix": _take(tensors, "conv_a.agh", origin),
        "charge_convolution.mix": _take(tensors, "conv_q.agh", origin),
    }
    z = torch.tensor(config.elements)
    table = _take(tensors, "afv.weight", origin)
    state["element"] = table[z].unflatten(1, (config.channels, config.radial_functions))
    for theirs, ours in (("mlps.", "passes."), ("outputs.energy_mlp.mlp.", "readout.")):
        for name, value in tensors.items():
            if name.startswith(theirs):
                state[ours + name.removeprefix(theirs)] = value
    expected = {name: tuple(value.shape) for name, value in core.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in state.items()}
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            raise CheckpointError(
                f"{origin}: {name} is {found.get(name)} where the other parameters make it "
                f"{expected.get(name)}"
            )
        if not bool(torch.isfinite(state[name]).all()):
            raise CheckpointError(f"{origin}: {name} is not finite; the model is broken")
    core.to(torch.float64).load_state_dict(state)
    shifts = _take(tensors, "outputs.atomic_shift.shifts.weight", origin).flatten()
    return core, {number: float(shifts[number]) for number in config.elements}


def _config(tensors: dict[str, Tensor], elements: tuple[int, ...], origin: str) -> AIMNet2Config:
    """The sizes follow from the shapes, the radial functions from their centres and width."""
    mix = _take(tensors, "conv_a.agh", origin)
    table = _take(tensors, "afv.weight", origin)
    if not elements or max(elements) >= len(table):
        raise CheckpointError(f"{origin}: elements {elements} are not in its embedding")
    channels, g, h = mix.shape
    if table.shape[1] != channels * g:
        raise CheckpointError(
            f"{origin}: features of {table.shape[1]} numbers for {channels} channels and {g} "
            "radial functions; models without features per radial function cannot be read"
        )
    centres = _take(tensors, "aev.shifts_s", origin).to(torch.float64)
    cutoff, eta = (_number(tensors, f"aev.{name}", origin) for name in ("rc_s", "eta_s"))
    for name in ("rc", "eta", "shifts"):
        scalar, vector = (_take(tensors, f"aev.{name}_{kind}", origin) for kind in "sv")
        if scalar.shape != vector.shape or not torch.allclose(scalar, vector):
            raise CheckpointError(f"{origin}: vectors have radial functions of their own")
    first = float(centres[0])
    step = (cutoff - first) / g
    even = first + step * torch.arange(g, dtype=torch.float64)
    if len(centres) != g or not torch.allclose(centres, even, 0.0, 1e-5):
        raise CheckpointError(f"{origin}: the radial functions are not evenly spaced")
    if abs(eta * step * step - 1.0) > 1e-4:
        raise CheckpointError(f"{origin}: the radial functions' width is not their spacing")
    depth = 1 + max((int(n.split(".")[1]) for n in tensors if n.startswith("mlps.")), default=-1)
    hidden = [_sizes(tensors, f"mlps.{k}.", origin) for k in range(depth)]
    if depth < 2 or any(sizes[:-1] != hidden[0][:-1] for sizes in hidden[:-1]):
        raise CheckpointError(f"{origin}: {depth} passes with layers of {hidden} are not supported")
    readout = _sizes(tensors, "outputs.energy_mlp.mlp.", origin)
    return AIMNet2Config(
        channels=channels,
        layers=depth,
        radial_functions=g,
        cutoff=round(cutoff, 6),
        elements=elements,
        first_shift=round(first, 6),
        vector_combinations=h,
        hidden=tuple(hidden[0][:-1]),
        last_hidden=tuple(hidden[-1][:-1]),
        features=hidden[-1][-1],
        readout=tuple(readout[:-1]),
        open_shell=_take(tensors, "conv_q.agh", origin).shape[0] == 2,
    )


def _sizes(tensors: dict[str, Tensor], prefix: str, origin: str) -> list[int]:
    """Outputs of the linear layers of a perceptron, in order."""
    found = {
        int(name.removeprefix(prefix).split(".")[0]): value.shape[0]
        for name, value in tensors.items()
        if name.startswith(prefix) and name.endswith(".weight")
    }
    if not found:
        raise CheckpointError(f"{origin} lacks {prefix}*.weight, which every AIMNet2 has")
    return [found[k] for k in sorted(found)]


def _take(tensors: dict[str, Tensor], name: str, origin: str) -> Tensor:
    if name not in tensors:
        raise CheckpointError(f"{origin} lacks {name}, which every AIMNet2 has")
    return tensors[name]


def _number(tensors: dict[str, Tensor], name: str, origin: str) -> float:
    return float(_take(tensors, name, origin))

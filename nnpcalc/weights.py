"""Names and paths -> potentials: where models live, how they are checked, loaded and saved.

A model is a directory::

    weights/<name>/model.safetensors   the parameters; no code in it
                   card.json           what it is (`nnpcalc.cards`), and the others' sha256
                   model.pt            the same as TorchScript (`nnpcalc.torchscript`)

Shipped models come with the package; the directories in the environment variable NNPCALC_WEIGHTS
(separated as in PATH) are searched as well. Nothing is ever downloaded.

Every file is read once; what is hashed is what is loaded. Sizes, names, shapes and dtypes are
compared with the configuration before a tensor is allocated. TorchScript is code and runs only if
its hash is in a shipped card or the caller says ``trust=True``.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from nnpcalc.cards import (
    MAX_JSON_BYTES,
    WeightsError,
    build_from_card,
    check_card,
    describe,
    parse_json,
)
from nnpcalc.golden import make_golden
from nnpcalc.potential import Potential
from nnpcalc.torchscript import (
    CARD_FILE,
    MAX_MODEL_BYTES,
    TorchScriptPotential,
    torchscript_bytes,
    torchscript_from_bytes,
)

__all__ = [
    "WeightsError",
    "export_torchscript",
    "find_model",
    "list_models",
    "load_card",
    "load_potential",
    "locate",
    "make_golden",
    "save_potential",
    "shipped_directory",
    "weight_directories",
]

SAFETENSORS_FILE = "model.safetensors"
TORCHSCRIPT_FILE = "model.pt"
NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")
_SAFETENSORS_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.bool: "BOOL",
}


# --- where models are ---------------------------------------------------------------------------


def shipped_directory() -> Path:
    """The directory of the models that come with the package.

    Raises:
        WeightsError: the installation lacks it.
    """
    package = Path(__file__).resolve().parent
    inside_wheel = package / "_weights"
    if inside_wheel.is_dir():
        return inside_wheel
    source_tree = package.parent
    if (source_tree / "pyproject.toml").is_file() and (source_tree / "weights").is_dir():
        return source_tree / "weights"
    raise WeightsError(f"no weights beside {package}: the installation is incomplete, reinstall it")


def weight_directories() -> list[Path]:
    """The shipped directory and those of NNPCALC_WEIGHTS, in the order they are searched.

    Raises:
        WeightsError: one of NNPCALC_WEIGHTS is not a directory.
    """
    added = [Path(part) for part in os.environ.get("NNPCALC_WEIGHTS", "").split(os.pathsep) if part]
    for directory in added:
        if not directory.is_dir():
            raise WeightsError(f"NNPCALC_WEIGHTS names {directory}, which is not a directory")
    return [shipped_directory(), *added]


def list_models() -> list[str]:
    """Names of all models that `load_potential` finds, sorted."""
    return sorted(
        {
            card.parent.name
            for directory in weight_directories()
            for card in directory.glob(f"*/{CARD_FILE}")
            if _is_name(card.parent.name)
        }
    )


def _is_name(text: str) -> bool:
    return NAME.fullmatch(text) is not None and ".." not in text


def find_model(name: str) -> Path:
    """The directory of a model from its name.

    Raises:
        WeightsError: not a name, unknown, in two directories, or a link that leads elsewhere.
    """
    if not _is_name(name):
        raise WeightsError(
            f"{name!r} is not the name of a model: lower-case letters, digits, '.', '_' and '-'; "
            "a path needs a separator"
        )
    found = [d / name for d in weight_directories() if (d / name / CARD_FILE).is_file()]
    if not found:
        known = ", ".join(list_models()) or "none"
        raise WeightsError(
            f"no model is called {name!r}; known: {known}. A file or directory needs a separator "
            f"(./{name}); NNPCALC_WEIGHTS adds a directory of models"
        )
    if len(found) > 1:
        raise WeightsError(
            f"two models are called {name!r}: {' and '.join(map(str, found))}; give the path"
        )
    for file in (CARD_FILE, SAFETENSORS_FILE, TORCHSCRIPT_FILE):
        if not (found[0] / file).resolve().is_relative_to(found[0].parent.resolve()):
            raise WeightsError(f"{found[0] / file} is a link out of {found[0].parent}: refused")
    return found[0]


def locate(name_or_path: str | os.PathLike[str]) -> Path:
    """A model's directory or file, from a name (see `find_model`) or a path.

    Raises:
        WeightsError: an unknown name, or a path that is neither a directory nor a model's file.
    """
    text = os.fspath(name_or_path)
    if "\0" in text:
        raise WeightsError(f"{text!r} holds a zero byte: neither a name nor a path")
    is_path = isinstance(name_or_path, os.PathLike) or any(mark in text for mark in "/\\")
    if not is_path and not text.endswith((".pt", ".safetensors")):
        return find_model(text)
    path = Path(text).expanduser()
    if path.is_dir() or path.suffix in (".pt", ".safetensors"):
        return path
    raise WeightsError(f"{text!r} is neither a directory nor a .safetensors or .pt file")


def _read(path: Path, limit: int) -> bytes:
    """The whole of a regular file of at most `limit` bytes."""
    if not path.is_file():
        raise WeightsError(f"{path} does not exist or is not a file")
    with path.open("rb") as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise WeightsError(f"{path} has more than {limit} bytes, the most that is read")
    return data


def _check_hash(data: bytes, card: dict[str, Any], path: Path) -> None:
    hashes = card.get("sha256")
    expected = hashes.get(path.name) if isinstance(hashes, dict) else None
    if not isinstance(expected, str) or re.fullmatch(r"[0-9a-f]{64}", expected) is None:
        raise WeightsError(f"{path.parent / CARD_FILE} has no sha256 of {path.name}: save it anew")
    found = hashlib.sha256(data).hexdigest()
    if found != expected:
        raise WeightsError(
            f"{path} has the sha256 {found[:16]}..., its card says {expected[:16]}...: the file is "
            "damaged or not the card's; copy or save the model anew"
        )


# --- loading -------------------------------------------------------------------------------------


def load_card(name_or_path: str | os.PathLike[str]) -> dict[str, Any]:
    """The card of a model directory, checked; README of the weights directory explains its keys.

    Raises:
        WeightsError: not found, not valid JSON, or a key missing or malformed.
    """
    path = locate(name_or_path)
    if path.suffix == ".pt" and not path.is_dir():
        raise WeightsError(f"{path} carries its card inside: load_potential({str(path)!r}).card")
    file = (path if path.is_dir() else path.parent) / CARD_FILE
    card = parse_json(_read(file, MAX_JSON_BYTES), str(file))
    check_card(card, str(file))
    return card


def load_potential(
    name_or_path: str | os.PathLike[str],
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    trust: bool = False,
) -> Potential:
    """Load a model by name or path, in evaluation mode, with its card as `potential.card`.

    Args:
        name_or_path: a name of `list_models`; or the path of a model directory, of its
            .safetensors file, or of a TorchScript .pt file.
        device: where the parameters go.
        dtype: torch.float32 or torch.float64, for the parameters and the computation.
        trust: run a TorchScript file that no shipped card vouches for. TorchScript is code.

    Raises:
        WeightsError: not found, damaged, not what its card says, not finite, or not trusted.
    """
    if dtype not in (torch.float32, torch.float64):
        raise WeightsError(f"models run in torch.float32 or torch.float64, not {dtype}")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise WeightsError(f"no device {device!r} here: {str(error).splitlines()[0]}") from error
    path = locate(name_or_path)
    if path.suffix == ".pt" and not path.is_dir():
        return _load_torchscript(path, trust).to(device=device, dtype=dtype)
    card = load_card(path)
    file = path / SAFETENSORS_FILE if path.is_dir() else path
    data = _read(file, MAX_MODEL_BYTES)
    _check_hash(data, card, file)
    _check_tensors(data, build_from_card(card, str(file), device="meta"), str(file))
    try:
        state = safetensors.torch.load(data)
    except safetensors.SafetensorError as error:
        raise WeightsError(f"{file} is not a sound safetensors file: {error}") from error
    _check_finite(state, str(file))
    potential = build_from_card(card, str(file))
    potential.load_state_dict(state, strict=True)
    potential.card = card  # type: ignore[assignment]
    return potential.eval().to(device=device, dtype=dtype)


def _load_torchscript(path: Path, trust: bool) -> TorchScriptPotential:
    data = _read(path, MAX_MODEL_BYTES)
    digest = hashlib.sha256(data).hexdigest()
    if not trust and digest not in _shipped_hashes():
        raise WeightsError(
            f"{path} is TorchScript, which runs code, and no shipped card vouches for it (sha256 "
            f"{digest[:16]}...): load the .safetensors file, or pass trust=True if you know "
            "its maker"
        )
    potential = torchscript_from_bytes(data, str(path))
    _check_finite(dict(potential.program.state_dict()), str(path))
    return potential


def _shipped_hashes() -> set[str]:
    # Only the package's own cards count: whoever writes a file can write a card beside it.
    cards = (load_card(card.parent) for card in shipped_directory().glob(f"*/{CARD_FILE}"))
    return {card.get("sha256", {}).get(TORCHSCRIPT_FILE, "") for card in cards} - {""}


def _check_tensors(data: bytes, expected: Potential, origin: str) -> None:
    """Compare a safetensors header with the names, shapes and dtypes of a model on "meta"."""
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or length > min(MAX_JSON_BYTES, len(data) - 8):
        raise WeightsError(f"{origin} is not a safetensors file, or is cut off")
    header = parse_json(data[8 : 8 + length], f"the header of {origin}")
    header.pop("__metadata__", None)
    tensors = expected.state_dict()
    for problem, names in (
        ("lacks", sorted(set(tensors) - set(header))),
        ("has the unexpected", sorted(set(header) - set(tensors))),
    ):
        if names:
            raise WeightsError(f"{origin} {problem} {', '.join(names[:5])}: not the card's model")
    total = 0
    for name, tensor in tensors.items():
        entry = header[name]
        wanted = [_SAFETENSORS_DTYPES[tensor.dtype], list(tensor.shape)]
        found = [entry.get("dtype"), entry.get("shape")] if isinstance(entry, dict) else entry
        if found != wanted:
            raise WeightsError(f"{origin}: {name} is {found}, its configuration needs {wanted}")
        total += tensor.numel() * tensor.element_size()
    if total != len(data) - 8 - length:
        raise WeightsError(f"{origin} has {len(data) - 8 - length} bytes of tensors, not {total}")
    memory = sum(b.numel() * b.element_size() for b in expected.buffers())
    if memory > MAX_MODEL_BYTES:
        raise WeightsError(f"{origin}: its configuration needs {memory} bytes of tables")


def _check_finite(state: dict[str, Tensor], origin: str) -> None:
    for name, tensor in state.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise WeightsError(f"{origin}: the parameter {name} is not finite; the model is broken")


# --- saving --------------------------------------------------------------------------------------


def save_potential(
    potential: Potential,
    directory: str | os.PathLike[str],
    card: dict[str, Any],
    *,
    torchscript: bool = True,
) -> dict[str, Any]:
    """Write model.safetensors, model.pt and, last, card.json; each appears whole or not at all.

    Args:
        potential: the model.
        directory: made if missing; its last part is the model's name.
        card: what only its maker knows: charges, multiplicities, reference method, training data,
            accuracy, golden (`make_golden`), licence, citation. The rest is the potential's own.
        torchscript: also write model.pt, in float32.

    Returns:
        The card as written.

    Raises:
        WeightsError: a card that lacks a key or contradicts the potential, a name that is none, a
            parameter that is not finite.
    """
    directory = Path(directory)
    name = directory.resolve().name
    full = check_model_card(potential, name, card)
    # safetensors refuses views of one storage, which expanded or tied tensors are
    state = {key: value.detach().cpu().clone() for key, value in potential.state_dict().items()}
    _check_finite(state, name)
    files = {SAFETENSORS_FILE: safetensors.torch.save(state)}
    if torchscript:
        files[TORCHSCRIPT_FILE] = torchscript_bytes(potential, full)
    full["sha256"] = {file: hashlib.sha256(data).hexdigest() for file, data in files.items()}
    text = json.dumps(full, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    files[CARD_FILE] = text.encode()
    parse_json(files[CARD_FILE], f"the card of {name}")
    directory.mkdir(parents=True, exist_ok=True)
    for file, data in files.items():
        _write(directory / file, data)
    return full


def export_torchscript(
    potential: Potential,
    path: str | os.PathLike[str],
    *,
    card: dict[str, Any] | None = None,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write a potential as a TorchScript file; `nnpcalc.torchscript` documents how to call it.

    Args:
        potential: the model; it stays as it is.
        path: the file, by convention ending in ".pt".
        card: as for `save_potential`; not needed for a loaded potential, which has its own.
        dtype: type the program computes in, torch.float32 or torch.float64.

    Raises:
        WeightsError: the card lacks what the file must carry, or a parameter is not finite.
    """
    _check_finite(potential.state_dict(), "the potential")
    given = card if card is not None else getattr(potential, "card", None) or {}
    # The card's dtype is that of the safetensors file; the potential may have been cast since.
    given = {key: value for key, value in given.items() if key != "dtype"}
    _write(Path(path), torchscript_bytes(potential, _complete_card(potential, given), dtype))


def check_model_card(potential: Potential, name: str, card: dict[str, Any]) -> dict[str, Any]:
    """The whole card that `save_potential` would write, but for the hashes of the files.

    Raises:
        WeightsError: `name` is none of a model; a card that lacks a key, contradicts the potential
            or holds what JSON cannot.
    """
    if not _is_name(name):
        raise WeightsError(f"{name!r} is no model name: use a-z, 0-9, '.', '_', '-'")
    full = _complete_card(potential, {**card, "name": name})
    try:
        json.dumps(full, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise WeightsError(f"the card of {name} cannot be written as JSON: {error}") from error
    return full


def _complete_card(potential: Potential, card: dict[str, Any]) -> dict[str, Any]:
    described = describe(potential)
    for key in sorted(set(card) & set(described)):
        if card[key] != described[key]:
            raise WeightsError(
                f"the card says {key} = {card[key]!r}, the potential {described[key]!r}: "
                "leave it out"
            )
    units = {"energy": "eV", "length": "Å", "forces": "eV/Å", "stress": "eV/Å^3", "charge": "e"}
    full = {**described, "units": units, **card}
    check_card(full, "the card")
    return full


def _write(path: Path, data: bytes) -> None:
    """Replace a file at once: a reader sees the old bytes or the new ones."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise

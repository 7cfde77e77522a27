"""TorchScript files: a potential as one program that runs without this package.

The program is `Potential.forward`, derivatives included, for engines that embed TorchScript
(GROMACS, OpenMM, LAMMPS, C++). In any process with torch and nothing else::

    extra = {"card.json": ""}
    model = torch.jit.load("model.pt", _extra_files=extra)
    out = model(numbers, positions, cell, system, pairs, shifts, charge, multiplicity)
    out["energy"], out["forces"], out["stress"]

Arguments, in this order (N atoms, B systems, P pairs; lengths in Å; all on one device):

==================  =================  ==========================================================
numbers             int64 [N]          atomic numbers
positions           float [N, 3]       in the dtype of the program (float32 as exported)
cell                float [B, 3, 3]    row vectors; zeros where there is no cell, also for a
                                       molecule in a box: with charges, a cell means periodicity
system              int64 [N]          system of each atom, ascending from 0
pairs               int64 [2, P]       i and j of every |r_j - r_i + shift @ cell| < cutoff:
                                       both (i, j) and (j, i), all images, never an atom itself
shifts              int64 [P, 3]       whole cell vectors added to r_j - r_i
charge              int64 [B]          total charge, e
multiplicity        int64 [B]          2S + 1
partial_charges     float [N] or None  only for models trained with given charges
compute_forces      bool, True
compute_stress      bool, True
create_graph        bool, False        keep the graph, for second derivatives
==================  =================  ==========================================================

It returns a dictionary of tensors: "energy" [B] and "energies" [N] in eV, float64; "forces" [N, 3]
in eV/Å; "stress" [B, 3, 3] in eV/Å^3 (NaN for a cell without volume); if the model has them,
"charges" [N] in e and "dipole" [B, 3] in e Å (NaN for a system with a cell). The cutoff is
`model.cutoff`; everything else about the model is in the extra file "card.json".
`model.to(torch.float64)` gives the same program in double precision.

TorchScript is code. Run a file only if you trust who made it; `nnpcalc.weights` asks.
"""

from __future__ import annotations

import copy
import io
import json
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nnpcalc.cards import MAX_JSON_BYTES, WeightsError, parse_json
from nnpcalc.potential import Potential

#: Largest model read, packed or unpacked.
MAX_MODEL_BYTES = 512 * 1024**2
CARD_FILE = "card.json"
#: Keys of the card a TorchScript file must carry; the rest is inside the program.
CARD_KEYS = ("cutoff", "elements", "charges", "multiplicities")
ARGUMENTS = (
    "numbers",
    "positions",
    "cell",
    "system",
    "pairs",
    "shifts",
    "charge",
    "multiplicity",
    "partial_charges",
    "compute_forces",
    "compute_stress",
    "create_graph",
)


@contextmanager
def _without_deprecation() -> Iterator[None]:
    # torch 2.13 deprecates TorchScript, which is still the format that the engines embed.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning, message=".*torch.jit.*")
        warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"torch\.jit.*")
        yield


@dataclass(frozen=True)
class CompiledCore:
    """What a card says of the core inside a program, which itself cannot be taken out.

    Attributes:
        cutoff: r_c in Å.
        elements: atomic numbers it knows.
        conditions_on: which of "charge", "multiplicity", "partial_charges" the energy depends on.
    """

    cutoff: float
    elements: tuple[int, ...]
    conditions_on: tuple[str, ...]


class TorchScriptPotential(Potential):
    """A compiled program behind the interface of `Potential`.

    It has `evaluate`, `hessian`, `cutoff`, `elements`, `dtype`, `device` and `card`. Its core is a
    `CompiledCore`; the energy terms are inside the program.

    Args:
        program: a scripted module with the signature of this file's docstring.
        card: at least cutoff, elements, charges and multiplicities.
    """

    def __init__(self, program: torch.jit.ScriptModule, card: dict[str, Any]) -> None:
        nn.Module.__init__(self)
        self.program = program
        self.cutoff = float(card["cutoff"])
        self.full_periodicity = bool(getattr(program, "full_periodicity", False))
        self.card = card
        self.core = CompiledCore(
            self.cutoff, tuple(card["elements"]), tuple(card.get("conditions_on", ()))
        )  # type: ignore[assignment]

    @property
    def dtype(self) -> torch.dtype:
        """Floating-point type of the program's parameters."""
        return _first_float(self.program).dtype

    @property
    def device(self) -> torch.device:
        """Device of the program's parameters."""
        return _first_float(self.program).device

    def forward(self, *arguments: Any, **keywords: Any) -> dict[str, Tensor]:
        """The program; its arguments are in this file's docstring."""
        output: dict[str, Tensor] = self.program(*arguments, **keywords)
        return output


def _first_float(module: nn.Module) -> Tensor:
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.is_floating_point():
            return tensor
    raise WeightsError("the TorchScript program has no floating-point parameter")


def torchscript_bytes(
    potential: Potential, card: dict[str, Any], dtype: torch.dtype = torch.float32
) -> bytes:
    """Compile a potential and pack it with its card; see this file's docstring for the signature.

    The potential itself is left as it is.

    Args:
        potential: the model; on any device, in any dtype.
        card: what the file carries as its extra file "card.json".
        dtype: type of the program's parameters, torch.float32 or torch.float64.

    Raises:
        WeightsError: the card lacks a key that the file needs.
    """
    _check_keys(card, "the card")
    if dtype not in (torch.float32, torch.float64):
        raise WeightsError(f"TorchScript is exported in float32 or float64, not {dtype}")
    if isinstance(potential, TorchScriptPotential):
        raise WeightsError("this potential is TorchScript already: copy its file")
    # A hash of the file inside the file cannot be.
    card = {key: value for key, value in card.items() if key != "sha256"}
    card["dtype"] = str(dtype).removeprefix("torch.")
    text = json.dumps(card, ensure_ascii=False)
    plain = copy.deepcopy(potential).to(device="cpu", dtype=dtype).eval().requires_grad_(False)
    buffer = io.BytesIO()
    with _without_deprecation():
        program = torch.jit.script(plain)
        torch.jit.save(program, buffer, _extra_files={CARD_FILE: text.encode()})
    return buffer.getvalue()


def torchscript_from_bytes(data: bytes, origin: str) -> TorchScriptPotential:
    """Open a TorchScript file that the caller trusts: this runs code from it.

    Args:
        data: the whole file.
        origin: what to call it in an error.

    Raises:
        WeightsError: not TorchScript, too large when unpacked, without a card, or with another
            signature than this file's docstring gives.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            unpacked = sum(item.file_size for item in archive.infolist())
            cards = [
                item for item in archive.infolist() if item.filename.endswith(f"/extra/{CARD_FILE}")
            ]
    except zipfile.BadZipFile as error:
        raise WeightsError(f"{origin} is not a TorchScript file: {error}") from error
    if unpacked > MAX_MODEL_BYTES:
        raise WeightsError(f"{origin} unpacks to {unpacked} bytes, more than {MAX_MODEL_BYTES}")
    if len(cards) != 1 or cards[0].file_size > MAX_JSON_BYTES:
        raise WeightsError(
            f"{origin} carries no usable {CARD_FILE}: write it with "
            "nnpcalc.weights.export_torchscript, or pass torch.jit.save(..., "
            f"_extra_files={{'{CARD_FILE}': ...}}) a JSON object with {', '.join(CARD_KEYS)}"
        )
    extra: dict[str, Any] = {CARD_FILE: ""}
    with _without_deprecation():
        try:
            program = torch.jit.load(io.BytesIO(data), map_location="cpu", _extra_files=extra)
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[0]
            raise WeightsError(f"{origin} is not a TorchScript file: {reason}") from error
    text = extra[CARD_FILE]
    card = parse_json(text if isinstance(text, bytes) else text.encode(), f"the card of {origin}")
    _check_keys(card, f"the card of {origin}")
    names = tuple(argument.name for argument in program.forward.schema.arguments[1:])
    if names != ARGUMENTS:
        raise WeightsError(
            f"{origin} takes ({', '.join(names)}), not ({', '.join(ARGUMENTS)}); "
            "the signature is documented in nnpcalc.torchscript"
        )
    _first_float(program)
    return TorchScriptPotential(program.eval(), card)


def _check_keys(card: dict[str, Any], origin: str) -> None:
    missing = [key for key in CARD_KEYS if key not in card]
    if missing:
        raise WeightsError(f"{origin} lacks {', '.join(missing)}, which a TorchScript file carries")
    for key in CARD_KEYS[1:]:
        values = card[key]
        if not isinstance(values, list) or any(type(value) is not int for value in values):
            raise WeightsError(f"{origin}: {key} must be a list of whole numbers: {values!r}")
    cutoff = card["cutoff"]
    if not isinstance(cutoff, (int, float)) or isinstance(cutoff, bool) or not cutoff > 0:
        raise WeightsError(f"{origin}: cutoff must be a positive length in Å: {cutoff!r}")

"""Structures in, numbers out: range checks, batches of bounded size, results per structure.

What `NNPCalculator` does with one structure and with a thousand is the same three steps:
`checked_batch` turns structures into tensors after all checks, `Engine.run` computes, and
`unpack` brings everything back in one copy and refuses what is not a number.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from ase import Atoms
from numpy.typing import NDArray
from torch import Tensor

from nnpcalc.backends import Engine
from nnpcalc.batch import AtomsBatch
from nnpcalc.neighbors import neighbor_list
from nnpcalc.state import (
    CHARGE_KEYS,
    MULTIPLICITY_KEYS,
    State,
    element_symbol,
    says,
    system_label,
)

FloatArray = NDArray[np.float64]

#: Atoms per Å^3 of the densest matter assumed when pairs of molecules are estimated (diamond 0.18).
DENSEST = 0.18

#: Memory of a pass with forces in float32, per pair and channel, rounded up from measurements of
#: two-layer TensorNets on molecules. The fused kernels keep tensors of atoms only. A core may say
#: it better: `pair_bytes`, per pair, of the eager back end.
BYTES_PER_PAIR_AND_CHANNEL = {"eager": 700, "torchscript": 700, "fused": 110}

#: Bytes of one pass. On the CPU small passes stay in the cache: 3.9 ms per molecule of ten atoms in
#: passes of 90 MB, 8 ms in passes of 600 MB. A device gets as much as it has free.
CPU_BUDGET = 1 << 27
FREE_SHARE = 0.5

#: Systems, and reasons, that an error tells of if several systems cannot be computed.
MOST_TOLD = 10

_KEYS = (
    "energy", "energies", "forces", "stress", "charges", "dipole", "energy_uncertainty",
    "forces_uncertainty",
)  # fmt: skip
_VOIGT = [0, 4, 8, 5, 2, 1]


class ExtrapolationError(ValueError):
    """A structure outside of what the model was trained on; the text says in what."""


class ExtrapolationWarning(UserWarning):
    """The same as a warning, with `on_extrapolation="warn"`."""


class NonFiniteError(ValueError):
    """The model returned an energy, force, charge or stress that is not a number."""


@dataclass(frozen=True)
class Evaluation:
    """What a model says of one structure.

    Attributes:
        state: the charge and multiplicity that were used.
        energy: eV.
        energies: of each atom [n], eV.
        forces: [n, 3], eV/Å, or None if not asked for.
        stress: xx, yy, zz, yz, xz, xy [6], eV/Å^3, or None if not asked for or the structure has no
            periodic cell with a volume.
        charges: partial charges [n], e, or None if the model has none.
        dipole: moment of these charges about the centre of nuclear charge [3], e Å, or None if the
            model has none or the structure is periodic.
        energy_uncertainty: standard deviation over a committee, eV, or None if there is one model.
        forces_uncertainty: of each atom [n], eV/Å, the length of the vector of the components'
            standard deviations, or None.
    """

    state: State
    energy: float
    energies: FloatArray
    forces: FloatArray | None = None
    stress: FloatArray | None = None
    charges: FloatArray | None = None
    dipole: FloatArray | None = None
    energy_uncertainty: float | None = None
    forces_uncertainty: FloatArray | None = None


def has_volume(atoms: Atoms) -> bool:
    """Whether the stress of a structure is defined: some periodicity and a cell with a volume."""
    return bool(atoms.pbc.any()) and bool(atoms.cell.volume > 0.0)


# --- structures -> tensors ---------------------------------------------------------------------


def checked_batch(
    engine: Engine,
    structures: Sequence[Atoms],
    *,
    device: torch.device,
    charge: int,
    multiplicity: int | None,
    on_extrapolation: str,
) -> tuple[AtomsBatch, list[State]]:
    """Structures as one batch, after all checks of their contents and of the model's range.

    Args:
        engine: the model, whose dtype the batch gets.
        structures: any number.
        device: where the tensors go.
        charge, multiplicity: defaults for structures whose `info` does not say.
        on_extrapolation: "raise" or "warn" about charges and multiplicities not in the card.

    Raises:
        InputError, StateError: as `AtomsBatch.from_atoms`.
        ExtrapolationError: an element, charge or multiplicity outside of the model's range, no
            electrons, or missing partial charges.
        If several structures cannot be computed, the error tells of all.
    """

    def check(part: Sequence[Atoms], alone: bool) -> tuple[AtomsBatch, list[State]]:
        batch = AtomsBatch.from_atoms(
            part, dtype=engine.dtype, charge=charge, multiplicity=multiplicity
        )
        charges, multiplicities = batch.charge.tolist(), batch.multiplicity.tolist()
        states = [State(q, m) for q, m in zip(charges, multiplicities, strict=True)]
        for k, (atoms, state) in enumerate(zip(part, states, strict=True)):
            chosen = multiplicity is None and not says(atoms, MULTIPLICITY_KEYS)
            _check_range(
                engine, atoms, state, None if alone else k, on_extrapolation, lowest=chosen
            )
        return batch, states

    try:
        batch, states = check(structures, alone=len(structures) == 1)
    except ValueError as error:
        refused = _refusals(structures, lambda atoms: check([atoms], alone=False))
        count = sum(map(len, refused.values()))
        if count < 2:
            raise
        told = [
            f"{before}system{'s' * (len(places) > 1)} {_few(places)}{after}"
            for (before, after), places in refused.items()
        ]
        more = f"; and {len(told) - MOST_TOLD} other reasons" if len(told) > MOST_TOLD else ""
        raise type(error)(
            f"{count} of {len(structures)} systems cannot be computed: "
            f"{'; '.join(told[:MOST_TOLD])}{more}"
        ) from error
    if "partial_charges" not in engine.conditions:
        batch = replace(batch, partial_charges=None)
    elif batch.partial_charges is None:
        if batch.n_atoms:
            raise ExtrapolationError(
                f"{engine.name} needs given partial charges: set atoms.arrays['partial_charges'], "
                "in elementary charges"
            )
        batch = replace(batch, partial_charges=batch.positions.new_zeros(0))
    return (batch if device.type == "cpu" else batch.to(device)), states


def _refusals(
    structures: Sequence[Atoms], check: Callable[[Atoms], Any]
) -> dict[tuple[str, str], list[int]]:
    """What `check` says before and after "system 0" of structures alone, and of which ones."""
    told: dict[tuple[str, str], list[int]] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExtrapolationWarning)  # all were warned of before
        for k, atoms in enumerate(structures):
            try:
                check(atoms)
            except ValueError as error:
                before, _, after = str(error).partition("system 0")
                told.setdefault((before, after), []).append(k)
    return told


def _few(places: list[int]) -> str:
    more = len(places) - MOST_TOLD
    return ", ".join(map(str, places[:MOST_TOLD])) + (f" and {more} more" if more > 0 else "")


def _check_range(
    engine: Engine,
    atoms: Atoms,
    state: State,
    system: int | None,
    on_extrapolation: str,
    lowest: bool,
) -> None:
    """Elements the model knows, charges and multiplicities its card lists.

    `lowest`: nobody gave the multiplicity, it is the lowest of this number of electrons.
    """
    unknown = ~engine.knows[atoms.numbers]
    if unknown.any():
        k = int(unknown.argmax())
        known = ", ".join(element_symbol(z) for z in engine.elements.tolist())
        raise ExtrapolationError(
            f"{system_label(atoms, system)}: atom {k} is {element_symbol(int(atoms.numbers[k]))}, "
            f"an element that {engine.name} does not know; it knows {known}. Use another model"
        )
    if engine.potential.full_periodicity and atoms.pbc.any() and not atoms.pbc.all():
        raise ExtrapolationError(
            f"{system_label(atoms, system)}: periodic in some directions only, pbc "
            f"{atoms.pbc.tolist()}, which the Ewald sum of {engine.name} cannot compute: make all "
            "of them periodic, with vacuum between the images, or none"
        )
    if not len(atoms):
        return
    electrons = int(atoms.numbers.sum()) - state.charge
    if not electrons:
        _refuse(
            f"{system_label(atoms, system)} with charge {state.charge} has no electrons and "
            "therefore no electronic energy",
            "count it as 0, correct its charge",
            on_extrapolation,
        )
    for name, value, listed, key in (
        ("charge", state.charge, "charges", "charge"),
        ("multiplicity", state.multiplicity, "multiplicities", "spin"),
    ):
        # a network that knows no states says so itself, whatever card it has
        core: Any = getattr(engine.potential, "core", None)
        limits = [
            set(states) for states in (engine.card.get(listed), getattr(core, listed, ())) if states
        ]
        trained = set.intersection(*limits) if limits else {value}
        if value in trained:
            continue
        text = (
            f"{name} {value} is outside of what {engine.name} was trained on, {name} "
            f"{', '.join(map(str, sorted(trained)))}"
        )
        if name == "multiplicity" and lowest and electrons % 2 and all(m % 2 for m in trained):
            nobody = state.charge == 0 and not says(atoms, CHARGE_KEYS)
            doubt = ", which nobody set: is its charge missing?" if nobody else ": is this right?"
            text = f" has {electrons} electrons with charge {state.charge}{doubt} The lowest {text}"
            advice = "set atoms.info['charge'] (on the command line --charge), use another model"
        else:
            text = f": {text}"
            advice = f"correct atoms.info[{key!r}] (on the command line --{key}), use another model"
        _refuse(f"{system_label(atoms, system)}{text}", advice, on_extrapolation)


def _refuse(text: str, advice: str, on_extrapolation: str) -> None:
    """An error with advice, or a warning."""
    if on_extrapolation == "raise":
        raise ExtrapolationError(
            f"{text}; {advice}, or on_extrapolation='warn' (--on-extrapolation warn) to compute it "
            "all the same"
        )
    warnings.warn(text, ExtrapolationWarning, stacklevel=3)


# --- tensors -> numbers ------------------------------------------------------------------------


def unpack(
    output: dict[str, Tensor],
    structures: Sequence[Atoms],
    states: Sequence[State],
    first: int | None,
) -> list[Evaluation]:
    """Results per structure, brought from the device in one copy.

    Args:
        output: of `Engine.run`.
        structures: those of the batch.
        states: their charges and multiplicities.
        first: place of the first one in the caller's list, named in errors; None if it is alone.

    Raises:
        NonFiniteError: something is not a number; names the first structure and atom.
    """
    parts = _arrays({key: output[key].detach() for key in _KEYS if key in output})
    results, row = [], 0
    for k, (atoms, state) in enumerate(zip(structures, states, strict=True)):
        rows = slice(row, row + len(atoms))
        row += len(atoms)
        defined = "stress" in parts and has_volume(atoms)
        spread, spreads = parts.get("energy_uncertainty"), parts.get("forces_uncertainty")
        results.append(
            Evaluation(
                state=state,
                energy=float(parts["energy"][k]),
                energies=parts["energies"][rows],
                forces=parts["forces"][rows] if "forces" in parts else None,
                stress=parts["stress"][k].reshape(9)[_VOIGT] if defined else None,
                charges=parts["charges"][rows] if "charges" in parts else None,
                dipole=parts["dipole"][k] if "dipole" in parts and not atoms.pbc.any() else None,
                energy_uncertainty=None if spread is None else float(spread[k]),
                forces_uncertainty=None if spreads is None else spreads[rows],
            )
        )
    # a sum is finite if all its terms are; if it is not, they are looked at, or nobody gets them
    if not all(math.isfinite(np.add.reduce(values, axis=None)) for values in parts.values()):
        for k, result in enumerate(results):
            _check_finite(result, structures[k], None if first is None else first + k)
    return results


def _arrays(output: dict[str, Tensor]) -> dict[str, FloatArray]:
    """The same on the CPU as float64, in new memory, all copied in one go if they are elsewhere."""
    if output["energy"].device.type == "cpu":
        return {key: values.numpy().astype(np.float64) for key, values in output.items()}
    packed = torch.cat([values.reshape(-1).to(torch.float64) for values in output.values()])
    sizes = np.cumsum([values.numel() for values in output.values()])[:-1]
    pieces = np.split(packed.cpu().numpy(), sizes)
    shapes = [tuple(values.shape) for values in output.values()]
    return {
        key: piece.reshape(shape) for key, piece, shape in zip(output, pieces, shapes, strict=True)
    }


def _check_finite(result: Evaluation, atoms: Atoms, system: int | None) -> None:
    for name in ("energies", "forces", "charges", "dipole", "stress"):
        values = getattr(result, name)
        if values is None or np.isfinite(values).all():
            continue
        where = f"the {name} is not finite"
        if name not in ("dipole", "stress"):
            bad = ~np.isfinite(values).reshape(len(values), -1).all(axis=1)
            k = int(bad.argmax())
            symbol = element_symbol(int(atoms.numbers[k]))
            where = f"the {name} are not finite, first that of atom {k} ({symbol})"
        raise NonFiniteError(
            f"{system_label(atoms, system)}: {where}; the structure is far from anything the model "
            "was trained on, or the model is broken (see nnpcalc verify)"
        )


# --- many structures -----------------------------------------------------------------------------


def evaluate_in_chunks(
    engine: Engine,
    batch: AtomsBatch,
    structures: Sequence[Atoms],
    states: Sequence[State],
    max_pairs: int | None,
    *,
    forces: bool,
    stress: bool,
) -> Iterator[Evaluation]:
    """Evaluate a batch on the CPU in passes of about `max_pairs` pairs on the engine's device.

    A pass that does not fit into memory is halved.

    Raises:
        ValueError: overlapping atoms, results that are not finite.
        MemoryError: a single structure does not fit.
    """
    limit = pair_budget(engine) if max_pairs is None else max_pairs
    # the network keeps far more per pair than the terms, which may look farther
    cutoff = getattr(engine.potential, "core_cutoff", engine.potential.cutoff)
    pending = chunks(estimate_pairs(structures, cutoff), limit)[::-1]
    offsets = np.cumsum([0] + [len(atoms) for atoms in structures]).tolist()
    while pending:
        begin, end = pending.pop()
        part = _slice(batch, begin, end, offsets).to(engine.device)
        try:
            neighbors = neighbor_list(part, engine.potential.cutoff)
            output = engine.run(part, neighbors, forces=forces, stress=stress)
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if not _out_of_memory(error):
                raise
            if end - begin == 1:
                raise MemoryError(
                    f"{system_label(structures[begin], begin)} does not fit into the memory of "
                    f"{engine.backend.device}: use a larger device or device='cpu'"
                ) from error
            middle = (begin + end) // 2
            pending += [(middle, end), (begin, middle)]
            continue
        except ValueError as error:
            raise _with_place(error, engine, batch, structures, (begin, end), offsets) from error
        yield from unpack(output, structures[begin:end], states[begin:end], begin)


def estimate_pairs(structures: Sequence[Atoms], cutoff: float) -> list[int]:
    """Rough upper bounds on the pairs within the cutoff (Å) of each structure."""
    sphere = 4.0 / 3.0 * math.pi * cutoff**3
    estimates = []
    for atoms in structures:
        n = len(atoms)
        if atoms.pbc.all() and atoms.cell.volume > 0.0:
            each = n / atoms.cell.volume * sphere
        elif atoms.pbc.any():
            each = DENSEST * sphere
        else:
            each = min(n - 1.0, DENSEST * sphere)
        estimates.append(math.ceil(n * max(each, 1.0)))
    return estimates


def chunks(costs: Sequence[int], limit: int) -> list[tuple[int, int]]:
    """Consecutive ranges whose summed cost stays within the limit; at least one item each."""
    if limit < 1:
        raise ValueError(f"max_pairs must be at least 1, not {limit}")
    ranges, begin, total = [], 0, 0
    for k, cost in enumerate(costs):
        if k > begin and total + cost > limit:
            ranges.append((begin, k))
            begin, total = k, 0
        total += cost
    if begin < len(costs):
        ranges.append((begin, len(costs)))
    return ranges


def pair_budget(engine: Engine) -> int:
    """Pairs in one pass that the memory surely holds."""
    device = engine.device
    memory = float(CPU_BUDGET)
    if device.type == "cuda":
        memory = FREE_SHARE * torch.cuda.mem_get_info(device)[0]
    core: Any = getattr(engine.potential, "core", None)
    channels = getattr(getattr(core, "config", None), "channels", 128)
    size = BYTES_PER_PAIR_AND_CHANNEL[engine.backend.name] * channels
    size = getattr(core, "pair_bytes", size)
    return max(1, int(memory / (size * engine.dtype.itemsize / 4)))


def _slice(batch: AtomsBatch, begin: int, end: int, offsets: list[int]) -> AtomsBatch:
    """The systems begin .. end - 1 as a batch of views; `offsets` [B + 1] of their atoms."""
    if begin == 0 and end == batch.n_systems:
        return batch
    rows = slice(offsets[begin], offsets[end])
    charges = batch.partial_charges
    return AtomsBatch(
        numbers=batch.numbers[rows],
        positions=batch.positions[rows],
        cell=batch.cell[begin:end],
        pbc=batch.pbc[begin:end],
        system=batch.system[rows] - begin,
        charge=batch.charge[begin:end],
        multiplicity=batch.multiplicity[begin:end],
        partial_charges=None if charges is None else charges[rows],
    )


def _out_of_memory(error: Exception) -> bool:
    # torch's allocator on the CPU has no exception of its own; numpy's is a MemoryError
    kinds = (torch.OutOfMemoryError, MemoryError)
    return isinstance(error, kinds) or "can't allocate memory" in str(error)


def _with_place(
    error: ValueError,
    engine: Engine,
    batch: AtomsBatch,
    structures: Sequence[Atoms],
    chunk: tuple[int, int],
    offsets: list[int],
) -> ValueError:
    """The error with the place of the structure in the caller's list instead of in the pass."""
    for k in range(*chunk):
        try:
            part = _slice(batch, k, k + 1, offsets).to(engine.device)
            neighbor_list(part, engine.potential.cutoff)
        except ValueError as found:
            return type(error)(f"{system_label(structures[k], k)}: {found}")
    return error

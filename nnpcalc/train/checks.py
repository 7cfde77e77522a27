"""What the arrays of a corpus have to be: their shapes, whole numbers, states that can exist."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from nnpcalc.state import element_symbol

PER_CONFORMER = ("n_atoms", "charge", "energy", "molecule", "source", "multiplicity", "split")
#: What comes after the first axis of the arrays over all atoms.
SHAPES_PER_ATOM: dict[str, tuple[int, ...]] = {
    "numbers": (), "positions": (3,), "forces": (3,), "partial_charges": (), "given_charges": (),
}  # fmt: skip
NAMES_OR_NUMBERS = ("molecule", "source")
WHOLE = ("n_atoms", "numbers", "charge", "multiplicity", "split")
#: What a file may leave out; NaN then.
OPTIONAL = ("partial_charges", "given_charges")
#: Arrays that have another name in a file.
IN_FILES = {"partial_charges": "charges"}


def check_arrays(part: dict[str, np.ndarray], path: str | Path) -> None:
    """Refuse arrays that do not belong together or whose values mean nothing.

    Args:
        part: what `nnpcalc.train.data.read_npz` returns.
        path: the file, for the message.

    Raises:
        ValueError: a shape, a kind of number or a value is wrong; it names the file, the array and
            the first conformer or atom of such a kind.
    """
    m, a = part["n_atoms"].size, part["numbers"].size
    expected: dict[str, tuple[int, ...]] = {name: (m,) for name in PER_CONFORMER}
    expected |= {name: (a, *rest) for name, rest in SHAPES_PER_ATOM.items()}
    if "soft_modes" in part:
        modes = part["soft_modes"].shape
        expected["soft_modes"] = (a, modes[1] if len(modes) == 3 else 0, 3)
    expected = {name: shape for name, shape in expected.items() if name in part}
    for name, shape in expected.items():
        if part[name].shape != shape:
            wanted = f"[{a}, K, 3]" if name == "soft_modes" else list(shape)
            raise ValueError(
                f"{path}: {IN_FILES.get(name, name)} is of shape {list(part[name].shape)}, not "
                f"{wanted}: n_atoms counts {m} conformers, numbers {a} atoms"
            )
    for name in expected:
        _check_values(name, part[name], path)
    few = np.flatnonzero(part["n_atoms"] < 1)
    if few.size:
        raise ValueError(f"{path}: conformer {few[0]} has {part['n_atoms'][few[0]]} atoms")
    if part["n_atoms"].sum() != a:
        raise ValueError(f"{path}: n_atoms adds up to {part['n_atoms'].sum()}, numbers holds {a}")
    unknown = np.flatnonzero((part["numbers"] < 1) | (part["numbers"] > 118))
    if unknown.size:
        raise ValueError(
            f"{path}: atom {unknown[0]} has the atomic number {part['numbers'][unknown[0]]}"
        )


def _check_values(name: str, values: np.ndarray, path: str | Path) -> None:
    if name in NAMES_OR_NUMBERS and values.dtype.kind == "U":
        return
    shown = IN_FILES.get(name, name)
    if values.dtype.kind not in "fiu":
        raise ValueError(f"{path}: {shown} holds {values.dtype}, not numbers")
    if name not in OPTIONAL and not np.isfinite(values).all():
        raise ValueError(f"{path}: {shown} holds values that are not finite")
    if name in WHOLE + NAMES_OR_NUMBERS and (values != np.round(values)).any():
        first = int(np.flatnonzero(values != np.round(values))[0])
        raise ValueError(f"{path}: {name}[{first}] is {values[first]}, not a whole number")


def electrons(part: dict[str, np.ndarray]) -> np.ndarray:
    """Number of electrons of every conformer, of its `n_atoms`, `numbers` and `charge`: [M]."""
    first = np.cumsum(part["n_atoms"].astype(np.int64)) - part["n_atoms"]
    protons = np.add.reduceat(part["numbers"].astype(np.int64), first.astype(np.int64))
    return np.asarray(protons - part["charge"].astype(np.int64))


def check_multiplicity(part: dict[str, np.ndarray], path: str | Path) -> None:
    """Refuse conformers whose number of electrons cannot have their multiplicity.

    Raises:
        ValueError: names the file and the first such conformer.
    """
    count, multiplicity = electrons(part), part["multiplicity"].astype(np.int64)
    unpaired = multiplicity - 1
    wrong = (count < 0) | (unpaired < 0) | (unpaired > count) | ((count - unpaired) % 2 != 0)
    if not wrong.any():
        return
    row = int(np.flatnonzero(wrong)[0])
    first = int(part["n_atoms"][:row].sum())
    name = formula(part["numbers"][first : first + int(part["n_atoms"][row])])
    raise ValueError(
        f"{path}: {wrong.sum()} of {wrong.size} conformers are in states that do not exist, the "
        f"first is number {row}, {name} with charge {int(part['charge'][row]):+d}: {count[row]} "
        f"electrons with multiplicity {multiplicity[row]}"
    )


def formula(numbers: np.ndarray) -> str:
    """Elements and how many of them, by atomic number: [6, 1, 1, 1, 1] is "H4C"."""
    elements, counts = np.unique(numbers, return_counts=True)
    parts = zip(map(element_symbol, elements.tolist()), counts.tolist(), strict=True)
    return "".join(symbol + (str(n) if n > 1 else "") for symbol, n in parts)

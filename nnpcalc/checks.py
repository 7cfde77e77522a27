"""What is checked about the atoms of a batch before anything is computed with them.

The functions take the concatenated numpy arrays of a batch, look at all atoms at once and raise an
`InputError` that names the first offending atom or system and says what to do. They cost O(N): two
atoms on top of each other are found where the pairs are, by the neighbor list.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from nnpcalc.state import element_symbol

#: Largest known atomic number, oganesson.
HIGHEST_ATOMIC_NUMBER = 118

#: Coarsest grid of representable coordinates that is accepted, Å. Rounding then moves an atom by at
#: most half of it, which changes the force in a stiff bond (50 eV/Å^2) by 0.025 eV/Å. It is reached
#: at 16,384 Å in float32 and at 8.8e12 Å in float64.
COARSEST_SPACING = 1.0e-3

#: Smallest distance between neighbouring lattice planes along a periodic direction, Å.
SMALLEST_HEIGHT = 0.01

#: Largest number of periodic images of the cell that may touch a sphere of IMAGE_RADIUS: a cube of
#: 0.46 Å.
MOST_IMAGES = 100_000
IMAGE_RADIUS = 10.0  # Å, longer than the cutoffs of the shipped models

#: det of the Gram matrix of the unit vectors along the periodic directions below which they count
#: as dependent.
DEGENERATE = 1.0e-12


class InputError(ValueError):
    """A structure that cannot be computed: which atom or system, why, and what to do about it."""


def largest_coordinate(dtype: np.dtype) -> float:
    """Coordinate in Å from which on the spacing of `dtype` exceeds COARSEST_SPACING."""
    digits = np.finfo(dtype).nmant  # the spacing between 2^e and 2^(e+1) is 2^(e - digits)
    return float(2.0 ** (np.floor(np.log2(COARSEST_SPACING)) + digits + 1))


def check_numbers(numbers: NDArray[np.int64], counts: NDArray[np.int64]) -> None:
    """Every atomic number [N] is that of an element, 1 to 118; `counts` [B] atoms per system."""
    bad = (numbers < 1) | (numbers > HIGHEST_ATOMIC_NUMBER)
    if not bad.any():
        return
    atom = int(bad.argmax())
    number = int(numbers[atom])
    what = "is a dummy atom X (Z=0)" if number == 0 else f"has the unknown atomic number {number}"
    raise InputError(
        f"{_where(atom, counts)} {what}{_others(bad)}; remove it or give it an element, 1 to "
        f"{HIGHEST_ATOMIC_NUMBER}"
    )


def check_positions(
    positions: NDArray[np.float64],
    numbers: NDArray[np.int64],
    counts: NDArray[np.int64],
    dtype: np.dtype,
) -> None:
    """Every position [N, 3] (Å) is finite and small enough for `dtype` to resolve it."""
    limit = largest_coordinate(dtype)
    # one pass decides the usual case: NaN fails every comparison, infinity exceeds the limit
    good = np.abs(positions) < limit
    if good.all():
        return
    finite = np.isfinite(positions)
    bad: NDArray[np.bool_] = ~np.all(good if finite.all() else finite, axis=1)
    atom = int(bad.argmax())
    name = f"{_where(atom, counts)} ({element_symbol(int(numbers[atom]))})"
    at = f"position {positions[atom].tolist()} Å{_others(bad)}"
    if not finite.all():
        raise InputError(
            f"{name} has the non-finite {at}; look at the file or the simulation step it came from"
        )
    # not np.spacing, which overflows where the coordinate does not fit the type at all
    spacing = 2.0 ** (np.floor(np.log2(np.abs(positions[atom]).max())) - np.finfo(dtype).nmant)
    raise InputError(
        f"{name} has the {at}, where {dtype} resolves only {spacing:.2g} Å; coordinates must stay "
        f"below {limit:.6g} Å. Centre the structure (atoms.center()), wrap it if it is periodic "
        f"(atoms.wrap())" + ("" if dtype == np.float64 else ", or use dtype=torch.float64")
    )


def check_partial_charges(
    charges: NDArray[np.float64], numbers: NDArray[np.int64], counts: NDArray[np.int64]
) -> None:
    """Every partial charge [N] (elementary charges) is finite."""
    bad = ~np.isfinite(charges)
    if bad.any():
        atom = int(bad.argmax())
        raise InputError(
            f"{_where(atom, counts)} ({element_symbol(int(numbers[atom]))}) has the partial charge "
            f"{charges[atom]}{_others(bad)}; give every atom a finite one or delete "
            f"atoms.arrays['partial_charges']"
        )


def check_cells(cells: NDArray[np.float64], pbc: NDArray[np.bool_], dtype: np.dtype) -> None:
    """Cells [B, 3, 3] (Å, rows are vectors) are a lattice along the periodic directions pbc [B, 3].

    All rows are finite. Those of the periodic directions are not zero, linearly independent, small
    enough for `dtype` to resolve and not so thin that the number of periodic images explodes.
    Nothing else is asked of the rows of non-periodic directions; left-handed cells are fine.
    """
    bad = ~(np.abs(cells) < np.finfo(dtype).max).all(axis=(1, 2))
    if bad.any():
        system = int(bad.argmax())
        raise InputError(
            f"system {system} has the cell {cells[system].tolist()} Å, not finite in {dtype}; set "
            f"a finite one, or none with atoms.set_cell(None) and atoms.pbc = False"
        )
    if not pbc.any():
        return
    _check_periodic_cells(cells, pbc, dtype)


def _check_periodic_cells(
    cells: NDArray[np.float64], pbc: NDArray[np.bool_], dtype: np.dtype
) -> None:
    limit = largest_coordinate(dtype)
    bad = ((np.abs(cells) >= limit).any(axis=2) & pbc).any(axis=1)
    if bad.any():
        system = int(bad.argmax())
        raise InputError(
            f"{_cell_text(system, cells, pbc)}: vectors of periodic directions must stay below "
            f"{limit:.6g} Å in {dtype}; set pbc=False if the cell is only a large box"
            + ("" if dtype == np.float64 else ", or use dtype=torch.float64")
        )
    lengths = np.where(pbc, np.linalg.norm(np.where(pbc[:, :, None], cells, 0.0), axis=2), 1.0)
    zero = lengths == 0.0
    if zero.any():
        system = int(zero.any(axis=1).argmax())
        direction = "abc"[int(zero[system].argmax())]
        raise InputError(
            f"{_cell_text(system, cells, pbc)}: periodic direction {direction} has a zero cell "
            f"vector; set the cell or atoms.pbc = False"
        )
    heights, degenerate = _heights(cells, pbc, lengths)
    if degenerate.any():
        system = int(degenerate.argmax())
        raise InputError(
            f"{_cell_text(system, cells, pbc)}: the vectors of the periodic directions are "
            f"linearly dependent (zero volume); set independent ones or atoms.pbc = False"
        )
    # the smallest divisor keeps the product of three finite
    reach = np.ceil(IMAGE_RADIUS / np.maximum(heights, 1.0e-50))
    images = np.where(pbc, 2.0 * reach + 1.0, 1.0).prod(axis=1)
    thin = (heights < SMALLEST_HEIGHT).any(axis=1) | (images > MOST_IMAGES)
    if thin.any():
        system = int(thin.argmax())
        shown = ", ".join(f"{h:.3g}" for h in heights[system][pbc[system]])
        raise InputError(
            f"{_cell_text(system, cells, pbc)} is too thin: heights {shown} Å along the periodic "
            f"directions mean {images[system]:.3g} periodic images within {IMAGE_RADIUS:g} Å; the "
            f"limits are a height of {SMALLEST_HEIGHT} Å and {MOST_IMAGES} images. Check the unit "
            f"(Å), or reduce a strongly skewed cell (ase.build.niggli_reduce)"
        )


def _heights(
    cells: NDArray[np.float64], pbc: NDArray[np.bool_], lengths: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Distances [B, 3] between lattice planes, and which cells [B] are degenerate.

    With unit vectors u_k along the periodic directions and their Gram matrix G_kl = u_k . u_l, the
    height is |a_k| / sqrt((G^-1)_kk). A non-periodic direction gets the row and column of the unit
    matrix, which leaves the block of the others alone; its height is infinite.
    """
    both = pbc[:, :, None] & pbc[:, None, :]
    unit = np.where(pbc[:, :, None], cells, 0.0) / lengths[:, :, None]
    gram = np.where(both, unit @ unit.transpose(0, 2, 1), np.eye(3))
    degenerate = np.linalg.det(gram) < DEGENERATE
    inverse = np.linalg.inv(np.where(degenerate[:, None, None], np.eye(3), gram))
    diagonal = np.diagonal(inverse, axis1=1, axis2=2)
    return np.where(pbc, lengths / np.sqrt(diagonal), np.inf), degenerate


def _where(atom: int, counts: NDArray[np.int64]) -> str:
    """'system 2, atom 5' of an index into the concatenated atoms."""
    ends = np.cumsum(counts)
    system = int(np.searchsorted(ends, atom, side="right"))
    return f"system {system}, atom {atom - int(ends[system] - counts[system])}"


def _others(bad: NDArray[np.bool_]) -> str:
    more = int(bad.sum()) - 1
    return "" if more == 0 else f" (and {more} more {'atom' if more == 1 else 'atoms'} like it)"


def _cell_text(system: int, cells: NDArray[np.float64], pbc: NDArray[np.bool_]) -> str:
    return f"system {system}: cell {cells[system].tolist()} Å with pbc {pbc[system].tolist()}"

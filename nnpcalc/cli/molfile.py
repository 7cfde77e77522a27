"""MDL's molfile and SDF, V2000 and V3000: elements, places, formal charges and radicals.

The format is that of "CTfile Formats" (BIOVIA, 2020). Bonds, isotopes and everything else are not
read. Nothing here needs rdkit.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import takewhile

from ase.data import atomic_numbers

#: Charge of the codes in an atom line of V2000; 4 is a doublet radical.
_CHARGES = {0: 0, 1: 3, 2: 2, 3: 1, 4: 0, 5: -1, 6: -2, 7: -3}
#: Unpaired electrons of the codes of M  RAD: none, singlet, doublet, triplet.
_UNPAIRED = {0: 0, 1: 0, 2: 1, 3: 2}
_VERSION = re.compile(r"V[23]000")
_FIELD = re.compile(r">.*?<([^>]*)>")


@dataclass(frozen=True)
class Molfile:
    """One record.

    Attributes:
        symbols: of the elements [n].
        positions: [n] times x, y, z, Å.
        charge: sum of the formal charges, e.
        multiplicity: 2S + 1 with the unpaired electrons of all radicals parallel; None if the
            record has no radicals.
        fields: the data that follow the molecule in an SDF, by their names.
    """

    symbols: list[str]
    positions: list[tuple[float, float, float]]
    charge: int
    multiplicity: int | None
    fields: dict[str, str]


def split_sdf(text: str) -> list[str]:
    """The records of an SDF; a molfile is one record."""
    records = re.split(r"(?m)^\$\$\$\$.*\n?", text)
    return records if records[-1].strip() else records[:-1]


def read_molfile(record: str) -> Molfile:
    """Read one record.

    Raises:
        ValueError: no molfile, a line that cannot be read, or an atom that is no element.
    """
    lines = record.splitlines()
    # the fourth line counts the atoms; some programs forget one of the three before it
    head = next((k for k, line in enumerate(lines[:6]) if _VERSION.search(line)), 3)
    if len(lines) <= head:
        raise ValueError("no molfile: the line that counts the atoms is missing")
    body = lines[head + 1 :]
    ends = (k for k, line in enumerate(body) if line.split()[:2] == ["M", "END"] or line[:1] == ">")
    end = next(ends, len(body))
    rest = takewhile(lambda line: line[:1] != ">", body[end:])
    if any(_VERSION.search(line) for line in rest):
        raise ValueError("another molecule follows: put a line $$$$ before it")
    if "V3000" in lines[head]:
        atoms, charges, radicals = _read_v3000(body[:end])
    else:
        atoms, charges, radicals = _read_v2000(lines[head], body[:end])
    for k, (symbol, *_) in enumerate(atoms, 1):
        if atomic_numbers.get(symbol, 0) == 0:
            raise ValueError(f"atom {k} is {symbol!r}: put an element in its place (H for D and T)")
    wrong = sorted(set(radicals.values()) - set(_UNPAIRED))
    if wrong:
        raise ValueError(f"{wrong[0]} is no code of a radical; M  RAD has 0 to 3")
    unpaired = sum(_UNPAIRED[code] for code in radicals.values())
    return Molfile(
        [symbol for symbol, *_ in atoms],
        [(x, y, z) for _, x, y, z in atoms],
        sum(charges.values()),
        1 + unpaired if any(radicals.values()) else None,
        _fields(body[end:]),
    )


_Atom = tuple[str, float, float, float]
_Read = tuple[list[_Atom], dict[int, int], dict[int, int]]


def _read_v2000(counts: str, body: list[str]) -> _Read:
    """Atoms, and charges and radical codes by the atom's number from 1."""
    try:
        count = int(counts[:3])
    except ValueError:
        raise ValueError(f"{counts!r} does not begin with the number of atoms") from None
    if count > len(body):
        raise ValueError(f"it ends after {len(body)} of {count} atoms")
    atoms: list[_Atom] = []
    codes: dict[int, int] = {}
    for k, line in enumerate(body[:count], 1):
        atom, codes[k] = _atom_line(k, line)
        atoms.append(atom)
    listed = [words for line in body[count:] if (words := line.split())[:1] == ["M"]]
    if any(words[1:2] in (["CHG"], ["RAD"]) for words in listed):  # instead of the atoms' codes
        return atoms, _property(listed, "CHG", count), _property(listed, "RAD", count)
    wrong = [k for k, code in codes.items() if code not in _CHARGES]
    if wrong:
        raise ValueError(f"atom {wrong[0]}: {codes[wrong[0]]} is no code of a charge, 0 to 7")
    charges = {k: _CHARGES[code] for k, code in codes.items()}
    return atoms, charges, {k: 2 for k, code in codes.items() if code == 4}


def _atom_line(k: int, line: str) -> tuple[_Atom, int]:
    """Element and place, and the code of the charge."""
    words = line.split()
    columns = (line[31:34].strip(), line[:10], line[10:20], line[20:30], line[36:39].strip())
    loose = (*words[3:4], *words[:3], *words[5:6])  # as programs write that do not count columns
    for parts in (columns, loose, (*loose, "")):
        try:
            symbol, x, y, z, code = parts
            if parts is columns and symbol not in atomic_numbers:
                continue
            return (symbol, float(x), float(y), float(z)), int(code or 0)
        except ValueError:
            continue
    raise ValueError(f"atom {k} cannot be read: {line.strip()!r}")


def _property(listed: list[list[str]], name: str, count: int) -> dict[int, int]:
    """Values of the lines ``M  NAME n atom value atom value ...`` by atom."""
    values: dict[int, int] = {}
    for words in listed:
        if words[1:2] != [name]:
            continue
        try:
            numbers = [int(word) for word in words[2:]]
        except ValueError:
            numbers = []
        if not numbers or len(numbers) != 1 + 2 * numbers[0]:
            raise ValueError(f"{' '.join(words)!r} cannot be read")
        values.update(zip(numbers[1::2], numbers[2::2], strict=True))
    beyond = sorted(k for k in values if not 1 <= k <= count)
    if beyond:
        raise ValueError(f"M  {name} names atom {beyond[0]}, but there are {count}")
    return values


def _read_v3000(body: list[str]) -> _Read:
    """As `_read_v2000`."""
    lines: list[list[str]] = [[]]
    for line in body:
        words = line.split()
        if words[:2] == ["M", "V30"]:
            goes_on = words[-1] == "-"
            lines[-1] += words[2:-1] if goes_on else words[2:]
            lines += [] if goes_on else [[]]
    try:
        count = next(int(words[1]) for words in lines if words[:1] == ["COUNTS"])
        first = lines.index(["BEGIN", "ATOM"]) + 1
        rows = lines[first : lines.index(["END", "ATOM"])]
    except (StopIteration, ValueError, IndexError):
        raise ValueError("V3000 without COUNTS and a block of atoms") from None
    if len(rows) != count:
        raise ValueError(f"it counts {count} atoms and has {len(rows)}")
    atoms: list[_Atom] = []
    charges, radicals = {}, {}
    for k, words in enumerate(rows, 1):
        options = dict(word.split("=", 1) for word in words[6:] if "=" in word)
        try:
            atoms.append((words[1], float(words[2]), float(words[3]), float(words[4])))
            charges[k] = int(options.get("CHG", 0))
            radicals[k] = int(options.get("RAD", 0))
        except (ValueError, IndexError):
            raise ValueError(f"atom {k} cannot be read: {' '.join(words)!r}") from None
    return atoms, charges, radicals


def _fields(lines: Iterable[str]) -> dict[str, str]:
    """Data of an SDF: a line ``>  <NAME>``, the value, an empty line."""
    fields: dict[str, str] = {}
    name = ""
    for line in lines:
        if header := _FIELD.match(line):
            name = header[1]
            fields[name] = ""
        elif name:
            fields[name] = f"{fields[name]}\n{line}".strip()
    return fields

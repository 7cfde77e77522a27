"""What an earlier run left in an output directory: taken up only by a run of the same kind."""

from __future__ import annotations

import json
from collections.abc import Sequence
from hashlib import file_digest
from pathlib import Path
from typing import Any


def sums(files: Sequence[str | Path]) -> list[str]:
    """The SHA-256 of each file's content."""
    found = []
    for path in files:
        with open(path, "rb") as file:
            found.append(file_digest(file, "sha256").hexdigest())
    return found


def is_made(record: Path, made_of: dict[str, Any]) -> bool:
    """Whether the corpus that an experiment draws for itself is there, whole.

    Args:
        record: JSON file that is written after the corpus, with what this was made of.
        made_of: all that the corpus depends on, as JSON can hold it.

    Raises:
        ValueError: it was made of something else.
    """
    if not record.exists():
        return False
    if json.loads(record.read_text()) != made_of:
        raise ValueError(
            f"{record} is of a corpus made of other data or with other options: give another "
            f"output directory, or remove {record.parent}"
        )
    return True


def earlier(path: Path, asked: dict[str, Any]) -> dict[str, Any] | None:
    """The result of a finished run; None if there is none.

    Args:
        path: the file of the result, which holds what was asked as well.
        asked: all that the result depends on, as JSON can hold it.

    Raises:
        ValueError: it is the result of something else.
    """
    if not path.exists():
        return None
    found: dict[str, Any] = json.loads(path.read_text())
    if {key: found.get(key) for key in asked} != asked:
        raise ValueError(
            f"{path} was made with other settings or data: give another output directory, or "
            f"remove {path.parent}"
        )
    return found

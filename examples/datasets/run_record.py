"""run.json: what the shards of a directory are made with, so that no other run adds to them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any


def write(path: Path, content: bytes) -> None:
    """Write to a temporary name, then rename: ``path`` is whole or absent."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_bytes(content)
    temporary.replace(path)


def begin(directory: Path, settings: dict[str, Any], molecules: Sequence[str] = ()) -> None:
    """Write run.json and molecules.txt, or check that the run in the directory is this one.

    Args:
        directory: of the shards; made if it is not there.
        settings: all that the shards depend on, as JSON can hold it.
        molecules: lines of molecules.txt; none: there is no such file.

    Raises:
        ValueError: the directory holds a run with other settings or molecules, or shards without a
            run.json.
    """
    lines = "".join(f"{name}\n" for name in molecules).encode()
    if molecules:
        settings = {**settings, "molecules_sha256": sha256(lines).hexdigest()}
    text = json.dumps(settings, indent=1)
    record = directory / "run.json"
    if record.exists():
        if json.loads(record.read_text()) != json.loads(text):
            raise ValueError(
                f"{record} belongs to a run with other options: name another directory for this "
                "one, or remove that one"
            )
        return
    if next(directory.glob("*.npz"), None):
        raise ValueError(
            f"{directory} holds npz files, but no run.json that tells how they were made: name "
            "another directory, or remove them"
        )
    directory.mkdir(parents=True, exist_ok=True)
    if molecules:
        write(directory / "molecules.txt", lines)
    write(record, text.encode())

"""Files that are whole or absent."""

from __future__ import annotations

import errno
import os
from pathlib import Path


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file under another name, bring it to the disk, and rename it.

    Whatever happens in between, `path` is either what it was before or complete.

    Raises:
        OSError: nothing could be written; names `path`. What was there before is still there.
    """
    temporary = path.with_name(f".{path.name}.new")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise named(error, path) from error
    sync_directory(path.parent)


def sync_directory(directory: Path) -> None:
    """Bring the names in a directory to the disk; not all systems can."""
    try:
        descriptor = os.open(directory, os.O_RDONLY)
    except OSError:  # Windows opens no directories
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_fully(descriptor: int, content: bytes, path: Path, offset: int) -> None:
    """Write all of `content` at an offset.

    Raises:
        OSError: not everything could be written; names `path`.
    """
    view = memoryview(content)
    try:
        os.lseek(descriptor, offset, os.SEEK_SET)
        while view:
            view = view[os.write(descriptor, view) :]
    except OSError as error:
        raise named(error, path) from error


def named(error: OSError, path: Path) -> OSError:
    """The error with the name of the file in it."""
    return OSError(error.errno or errno.EIO, error.strerror or str(error), str(path))

"""3Dmol.js, the viewer library of the pages: fetched once, checked, and kept in the user's cache.

Rego and Koes, Bioinformatics 31, 1322 (2015); BSD-3-Clause. It is the unchanged npm package, so a
page can be traced back to what its authors published.
"""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
import tempfile
import urllib.request
from pathlib import Path

VERSION = "2.5.5"
SOURCE = f"https://registry.npmjs.org/3dmol/-/3dmol-{VERSION}.tgz"
SHA256 = "26d91c5036d4efe78fc032c22cb692fea92bbb3cb1e65d20bf3869673fb3d8f5"
LIBRARY, LICENCE = "package/build/3Dmol-min.js", "package/LICENSE"
TIMEOUT = 60.0  # seconds


def cache_file() -> Path:
    """Where the package is kept: below $XDG_CACHE_HOME, or ~/.cache."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "nnpcalc" / f"3dmol-{VERSION}.tgz"


def load_viewer() -> tuple[str, str]:
    """Text of the library and of its licence, from the cache or, the first time, the network.

    Raises:
        OSError: it is not in the cache and cannot be fetched; says what to do without a network.
        ValueError: the file in the cache is not the published one.
    """
    path = cache_file()
    if not path.exists():
        _fetch(path)
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != SHA256:
        raise ValueError(f"{path} is not what {SOURCE} holds: delete it")
    with tarfile.open(fileobj=io.BytesIO(content)) as package:
        texts = []
        for name in (LIBRARY, LICENCE):
            member = package.extractfile(name)
            assert member is not None, name  # the checksum vouches for it
            texts.append(member.read().decode("utf-8"))
    return texts[0], texts[1]


def _fetch(path: Path) -> None:
    """Download the package to a temporary name, check it, rename it."""
    try:
        with urllib.request.urlopen(SOURCE, timeout=TIMEOUT) as answer:
            content = answer.read()
    except OSError as error:
        raise OSError(
            f"a report needs 3Dmol.js, which is not in {path} and cannot be fetched ({error}): "
            f"bring {SOURCE} there from a machine with a network"
        ) from error
    if hashlib.sha256(content).hexdigest() != SHA256:
        raise OSError(f"{SOURCE} is not the file it was when this was written: not used")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
        file.write(content)
    Path(file.name).replace(path)

"""Scripts of examples/datasets and examples/experiments as modules."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

EXAMPLES = Path(__file__).parents[1] / "examples"
sys.path[:0] = [str(EXAMPLES / "datasets"), str(EXAMPLES / "experiments")]


def load(name: str, script: str) -> Any:
    """A script by its path: the two named carbenes.py cannot both be imported by name."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / script)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module

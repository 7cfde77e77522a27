"""Where tests of Triton kernels run: on a GPU (marked gpu), or in Triton's interpreter.

The interpreter has to be asked for before triton is imported: one test of a file starts a process
that does so and runs the others of the file in it.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

#: In the interpreter, or on a GPU if one is asked for.
run_here = pytest.mark.skipif(not INTERPRETED, reason="runs in a process of its own")
on_gpu = [
    pytest.mark.gpu,
    pytest.mark.skipif(INTERPRETED or not torch.cuda.is_available(), reason="no GPU"),
]
places = pytest.mark.parametrize(
    "device", [pytest.param("cpu", marks=run_here), pytest.param("cuda", marks=on_gpu)]
)


def run_in_interpreter(file: str) -> None:
    """Run the tests of a file in the interpreter; skip if this triton's does not work."""
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", file]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    if "only 0-dimensional arrays can be converted to Python scalars" in done.stdout:
        pytest.skip("the interpreter of this triton does not run with this numpy")
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert " passed" in done.stdout

"""What a CUDA graph does, on the CPU and in Triton's interpreter.

`record` keeps the operations on tensors and the kernels of a call, and repeats them with the very
same tensors and numbers: whatever Python would do otherwise the next time is not done. It refuses
what would make the host wait or copy from it, which cannot be recorded, fills uninitialised memory
with garbage at each repetition, and like a graph has no results before the first.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

#: Parts of names of operations that need the host: sizes or numbers from the device, libraries
#: that may synchronise, tensors of Python's numbers.
REFUSED = ("nonzero", "local_scalar", "unique", "masked_select", "linalg_det", "linalg_lu", "lift")

Step = Callable[[], object]


def _tensors(values: object) -> list[Tensor]:
    return [x for x in tree_leaves(values) if isinstance(x, Tensor)]


def _spoil(tensors: list[Tensor]) -> None:
    for x in tensors:
        x.fill_(float("nan") if x.is_floating_point() else 1 << 40)


class Tape(TorchDispatchMode):
    """The operations done while it is entered."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[Step] = []

    def __enter__(self) -> Tape:
        from triton.runtime.interpreter import GridExecutor

        launch = self._launch = GridExecutor.__call__

        def kept(executor: Any, *arguments: Any, **options: Any) -> None:
            self._do(lambda: launch(executor, *arguments, **options))

        GridExecutor.__call__ = kept
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        from triton.runtime.interpreter import GridExecutor

        GridExecutor.__call__ = self._launch
        super().__exit__(*error)

    def _do(self, step: Step) -> None:
        with _disable_current_modes():
            step()
        self.steps.append(step)

    def __torch_dispatch__(
        self, operation: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        name, options = str(operation), kwargs or {}
        masks = "aten.index" in name and any(x.dtype == torch.bool for x in _tensors(args))
        if masks or any(part in name for part in REFUSED):
            raise AssertionError(f"a graph cannot record {name}")
        results = operation(*args, **options)
        kept = _tensors(results)
        if "empty" in name:
            self._do(lambda: _spoil(kept))
            return results

        def again() -> None:
            for old, new in zip(kept, _tensors(operation(*args, **options)), strict=True):
                if old.data_ptr() != new.data_ptr():  # neither a view nor in place
                    old.copy_(new)

        self.steps.append(again)
        return results

    @torch.no_grad()
    def replay(self) -> None:
        for step in self.steps:
            step()


def record(call: Callable[[], dict[str, Tensor]]) -> tuple[Step, dict[str, Tensor]]:
    """As `nnpcalc.kernels.triton_capture.cuda_graph`."""
    with Tape() as tape:
        outputs = call()
    _spoil(list(outputs.values()))
    return tape.replay, outputs

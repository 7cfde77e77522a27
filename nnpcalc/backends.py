"""Which program computes a potential: eager PyTorch, fused kernels or TorchScript, and why.

All three take the arguments of `Potential.forward` and return what it returns. The eager one is the
reference; the others give the same numbers faster, and are never chosen silently: `Backend` says
what runs and for what reason, and asking for one that cannot run is an error with the remedy.
"""

from __future__ import annotations

import copy
import os
import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from nnpcalc.batch import AtomsBatch
from nnpcalc.checks import HIGHEST_ATOMIC_NUMBER
from nnpcalc.committee import Committee, CommitteeError
from nnpcalc.kernels.table import TableError
from nnpcalc.neighbors import NeighborList
from nnpcalc.potential import Potential, inputs
from nnpcalc.torchscript import TorchScriptPotential, torchscript_bytes, torchscript_from_bytes
from nnpcalc.weights import load_potential

BACKENDS = ("auto", "eager", "fused", "torchscript")
DTYPES = {"float32": torch.float32, "float64": torch.float64}

if hasattr(os, "register_at_fork"):  # not on Windows
    # a forked process has none of the threads of torch and numba, and would wait for them forever
    os.register_at_fork(after_in_child=lambda: torch.set_num_threads(1))


class BackendError(ValueError):
    """A back end, device or dtype that cannot run this model here; the text says what can."""


Model: TypeAlias = "str | os.PathLike[str] | Potential"


@dataclass(frozen=True)
class Backend:
    """What computes a potential.

    Attributes:
        name: "eager", "fused" or "torchscript".
        requested: what the caller asked for, perhaps "auto".
        reason: why this one.
        device: where it runs, e.g. "cpu" or "cuda:0".
        dtype: "float32" or "float64", of the network; energies are summed in float64.
    """

    name: str
    requested: str
    reason: str
    device: str
    dtype: str


@dataclass(frozen=True)
class Engine:
    """A potential ready for inference and the program that computes it.

    Attributes:
        potential: the readable model, without gradients of parameters; makes the Hessian.
        program: a module with the signature of `Potential.forward`.
        backend: what the program is.

    A pickle holds bytes and no tensor: what multiprocessing pickles has all tensors in sight moved
    to shared memory, which would leave sender and receivers with one set of parameters.
    """

    potential: Potential | Committee
    program: nn.Module
    backend: Backend

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpickled, (pickle.dumps((self.potential, self.program, self.backend)),)

    def __deepcopy__(self, memo: dict[int, Any]) -> Engine:
        return Engine(*copy.deepcopy((self.potential, self.program, self.backend), memo))

    @cached_property
    def card(self) -> dict[str, Any]:
        """The model's card; empty for a Potential without one."""
        return getattr(self.potential, "card", None) or {}

    @cached_property
    def name(self) -> str:
        """The model's name in its card, else the class of its core network."""
        core = getattr(self.potential, "core", self.potential)
        return str(self.card.get("name", type(core).__name__))

    @cached_property
    def elements(self) -> NDArray[np.int64]:
        """Atomic numbers the model knows, ascending."""
        return np.array(sorted(self.potential.elements), dtype=np.int64)

    @cached_property
    def knows(self) -> NDArray[np.bool_]:
        """Whether the model knows an element, by atomic number [119]."""
        table = np.zeros(HIGHEST_ATOMIC_NUMBER + 1, dtype=bool)
        table[self.elements] = True
        return table

    @cached_property
    def dtype(self) -> torch.dtype:
        """Floating-point type of the parameters; asking them takes as long as a neighbor list."""
        return self.potential.dtype

    @cached_property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.potential.device

    @cached_property
    def conditions(self) -> tuple[str, ...]:
        """What the energy depends on besides the geometry: "charge", "multiplicity", ..."""
        whole = self.potential
        members: Any = whole.members if isinstance(whole, Committee) else [whole]
        found: list[str] = []
        for member in members:
            scripted = isinstance(member, TorchScriptPotential)
            core: Any = member.program.core if scripted else getattr(member, "core", None)
            found += [name for name in getattr(core, "conditions_on", ()) if name not in found]
        return tuple(found)

    def run(
        self, batch: AtomsBatch, neighbors: NeighborList, *, forces: bool, stress: bool
    ) -> dict[str, Tensor]:
        """Energies and derivatives of a checked batch, as `Potential.forward` returns them."""
        output: dict[str, Tensor] = self.program(
            *inputs(batch, neighbors), compute_forces=forces, compute_stress=stress
        )
        return output


def _unpickled(data: bytes) -> Engine:
    with torch.inference_mode(False):  # tables are made with derivatives
        return Engine(*pickle.loads(data))


def prepare(
    model: Model | Sequence[Model],
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | str = "float32",
    backend: str = "auto",
    trust: bool = False,
) -> Engine:
    """Load a model and choose what computes it.

    Args:
        model: a shipped name, a path (see `nnpcalc.weights.load_potential`) or a Potential, which
            is copied; or a list of them, which becomes a `Committee`.
        device: None means "cuda" where there is one, else "cpu".
        dtype: "float32", "float64" or the torch.dtype, of the parameters and the computation.
        backend: one of `BACKENDS`; "auto" takes the fused kernels where there are some for the
            architecture on the CPU, TorchScript for a TorchScript file, else the eager model. The
            kernels for CUDA, so far of TensorNet alone, have to be asked for: "fused".
        trust: run a TorchScript file that no shipped card vouches for.

    Raises:
        BackendError: an unknown back end, device or dtype, or one that cannot run this model.
        WeightsError: the model cannot be found, read or trusted.
        CommitteeError: models that cannot answer together.
    """
    if backend not in BACKENDS:
        raise BackendError(f"backend must be one of {', '.join(BACKENDS)}, not {backend!r}")
    if isinstance(model, (list, tuple)):
        return _committee(model, device=device, dtype=dtype, backend=backend, trust=trust)
    kind = _dtype(dtype)
    place = _device(device)
    if isinstance(model, Potential):
        potential = copy.deepcopy(model).to(device=place, dtype=kind).eval()
    elif isinstance(model, (str, os.PathLike)):
        potential = load_potential(model, device=place, dtype=kind, trust=trust)
    else:
        raise BackendError(
            f"the model must be a name, a path or a Potential, not {type(model).__name__}; "
            "wrap a bare core network: Potential(core)"
        )
    potential.requires_grad_(False)  # forces need no gradient of a parameter
    name, reason = _choose(potential, backend, place)
    try:
        program = _program(potential, name, place, kind)
    except TableError as error:
        if backend == "fused":
            raise BackendError(f"backend='fused' cannot run: {error}; use 'eager'") from error
        name, reason, program = "eager", str(error), potential
    record = Backend(name, backend, reason, str(place), str(kind).removeprefix("torch."))
    return Engine(potential, program, record)


def _committee(models: Sequence[Model], **options: Any) -> Engine:
    """Engines of all members as one."""
    engines = [prepare(model, **options) for model in models]
    potentials = [engine.potential for engine in engines]
    whole = Committee(potentials)
    kinds = {engine.backend.name for engine in engines}
    if len(kinds) > 1:
        raise CommitteeError(
            f"the members run on different back ends, {', '.join(sorted(kinds))}: ask for one"
        )
    program = Committee([engine.program for engine in engines], potentials)
    return Engine(whole, program, engines[0].backend)


def _dtype(dtype: torch.dtype | str) -> torch.dtype:
    kind = DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if kind is None or kind not in DTYPES.values():
        raise BackendError(f"dtype must be 'float32' or 'float64', not {dtype!r}")
    return kind


def _device(device: torch.device | str | None) -> torch.device:
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        # through a tensor, because "cuda" alone does not say which one is current
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise BackendError(f"no device {device!r} here ({reason}); use device='cpu'") from error


def _choose(potential: Potential, wanted: str, device: torch.device) -> tuple[str, str]:
    """Name of the back end and the reason for it."""
    if isinstance(potential, TorchScriptPotential):
        if wanted not in ("auto", "torchscript"):
            raise BackendError(
                f"backend={wanted!r} needs the model itself, but a TorchScript file holds a "
                "compiled program: give the model's name or directory, or backend='torchscript'"
            )
        return "torchscript", "the model is a TorchScript file"
    if wanted in ("eager", "torchscript"):
        return wanted, "asked for"
    obstacle, remedy = _obstacle_to_fused(potential, device)
    if wanted == "fused":
        if obstacle:
            raise BackendError(f"backend='fused' cannot run: {obstacle}; {remedy}")
        return "fused", "asked for" if device.type == "cpu" else _on_cuda(potential, device)
    if obstacle:
        return "eager", obstacle
    if device.type == "cuda":  # compiled and compared in the interpreter, but not measured
        return "eager", f"the Triton kernels on {device} have to be asked for: backend='fused'"
    return "fused", f"{type(potential.core).__name__} on the CPU"


def _on_cuda(potential: Potential, device: torch.device) -> str:
    """The reason of a fused back end that was asked for, with what it does on a CUDA device."""
    from nnpcalc.kernels.direct import simple

    replayed = ", small systems as CUDA graphs" if simple(potential.terms) else ""
    return f"asked for: Triton on {device}{replayed}"


def _obstacle_to_fused(potential: Potential, device: torch.device) -> tuple[str, str]:
    """What keeps the fused kernels from running, and what to do; two empty texts if nothing."""
    from nnpcalc.kernels.fused import FUSED, ON_CUDA

    name = type(potential.core).__name__
    if type(potential.core) not in FUSED:
        return f"there are no fused kernels for {name}", "use backend='eager' or 'auto'"
    if device.type == "cpu":
        return "", ""
    elsewhere = "use device='cpu' or backend='eager'"
    if device.type != "cuda" or type(potential.core) not in ON_CUDA:
        return f"the fused kernels for {name} do not run on {device}", elsewhere
    if find_spec("triton") is None:
        return f"the fused kernels for {device} need triton", f"pip install triton, or {elsewhere}"
    return "", ""


def _program(
    potential: Potential, name: str, device: torch.device, dtype: torch.dtype
) -> nn.Module:
    if name == "eager":
        return potential
    if isinstance(potential, TorchScriptPotential):
        return potential.program
    if name == "torchscript":
        # Compiled anew from checked parameters: no foreign code that would have to be trusted.
        card: dict[str, Any] = {
            "cutoff": potential.cutoff,
            "elements": list(potential.elements),
            "charges": [],
            "multiplicities": [],
            **(getattr(potential, "card", None) or {}),
        }
        data = torchscript_bytes(potential, card, dtype)
        return torchscript_from_bytes(data, "the compiled model").program.to(device)
    from nnpcalc.kernels.direct import DirectPotential
    from nnpcalc.kernels.fused import fused_for_inference

    fused = fused_for_inference(potential.core)
    terms: Any = tuple(potential.terms)
    kind: type[Potential] = Potential
    if DirectPotential.serves(fused, terms):
        kind = DirectPotential
    elif device.type == "cuda":
        from nnpcalc.kernels.triton_capture import CapturedPotential  # needs triton

        kind = CapturedPotential if CapturedPotential.serves(fused, terms) else Potential
    return kind(fused, terms, potential.scale).eval().requires_grad_(False)

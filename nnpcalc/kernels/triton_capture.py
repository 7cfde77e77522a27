"""Small systems on a GPU as CUDA graphs: a step is one replay and not seventy launches from Python.

A graph repeats what was launched while it was recorded, with the same memory. So what changes from
step to step (positions, cells, pairs) is copied into buffers of fixed size before a replay, and the
results are copied out of it. A list of pairs is shorter than its buffer: the rest are pairs of the
receiver N, which is no atom. The kernels' walks end before them, and what is computed of them
elsewhere is replaced before it is added to anything.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from nnpcalc.kernels.direct import OF_DISTANCES, constant_energies, simple, versions
from nnpcalc.kernels.triton_tensornet import TritonTensorNet
from nnpcalc.neighbors import pair_vectors
from nnpcalc.potential import Potential
from nnpcalc.terms.inputs import TermInputs

#: Atoms up to which evaluations are recorded; 0 records none. Beyond, the GPU and not the launches
#: takes the time; a recording keeps 0.1 MB per atom with 128 channels. Estimated, not measured.
MOST_ATOMS = 4096
#: A buffer of pairs is larger than the list it is made for by this factor, and a multiple of that.
HEADROOM, GRANULE = 1.25, 64
#: Å, of each component of the vectors of pairs that are not there: out of reach of every term.
FAR = 1e3
#: How far a first replay may be from what launches gave: this times the largest value, or times
#: 1 eV, 1 eV/Å and 1 eV/Å^3 if that is more. Sums that are atomic take their summands in any order.
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-9}

Call: TypeAlias = Callable[[], dict[str, Tensor]]
#: Runs a call and returns what repeats it, and the tensors that hold the results after each time.
Recorder: TypeAlias = Callable[[Call], tuple[Callable[[], object], dict[str, Tensor]]]


@cache
def _side_stream(device: int) -> torch.cuda.Stream:
    """One per device, for cuBLAS keeps a workspace for each stream that it has seen."""
    return torch.cuda.Stream(device)


def cuda_graph(call: Call) -> tuple[Callable[[], object], dict[str, Tensor]]:
    """A `Recorder`: the call as a CUDA graph, after three calls that compile and set up."""
    stream, current = _side_stream(torch.cuda.current_device()), torch.cuda.current_stream()
    stream.wait_stream(current)
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    current.wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        outputs = call()
    return graph.replay, outputs


class _Moving(NamedTuple):
    """What changes from step to step, as given or as buffers.

    Attributes:
        positions: [N, 3], Å.
        cell: [B, 3, 3], Å.
        pairs: receivers and senders [2, P], sorted by receiver; in a buffer those of the rest are N
            and anything from 0 to N - 1.
        shifts: [P, 3], anything for the rest.
    """

    positions: Tensor
    cell: Tensor
    pairs: Tensor
    shifts: Tensor

    def buffers(self) -> _Moving:
        """Room for these and for a somewhat longer list, of which no pair is there yet."""
        n_atoms, n_pairs = self.positions.shape[0], self.pairs.shape[1]
        room = max(-(-int(HEADROOM * n_pairs) // GRANULE), 1) * GRANULE
        # any atoms will do, but sums are slow where many summands go to one
        senders = torch.arange(room, device=self.pairs.device) % n_atoms
        return _Moving(
            torch.zeros_like(self.positions),
            torch.zeros_like(self.cell),
            torch.stack((torch.full_like(senders, n_atoms), senders)),
            self.shifts.new_zeros(room, 3),
        )

    def have_room_for(self, given: _Moving) -> bool:
        """Whether these buffers hold something else of this kind."""
        kind = [(x.shape, x.dtype, x.device) for x in (given.positions, given.cell)]
        return (
            kind == [(x.shape, x.dtype, x.device) for x in (self.positions, self.cell)]
            and given.pairs.shape[1] <= self.pairs.shape[1]
        )

    def fill(self, given: _Moving) -> None:
        """Copy into these buffers; nothing is asked of the device."""
        n_pairs = given.pairs.shape[1]
        self.positions.copy_(given.positions)
        self.cell.copy_(given.cell.detach())
        self.pairs[:, :n_pairs].copy_(given.pairs)
        self.pairs[0, n_pairs:].fill_(self.positions.shape[0])
        self.shifts[:n_pairs].copy_(given.shifts)


@dataclass(frozen=True, eq=False)
class _Evaluation:
    """What is recorded: a function of the buffers; all else that it reads stays as it is.

    Attributes:
        core, scale: of the potential.
        terms: those that depend on the distances.
        numbers, system: as for `Potential.forward`.
        charge, multiplicity: in the dtype of the model [B].
        atoms: what the network makes of them.
        constants: energies of the atoms from the other terms [N], eV, float64.
        buffers: see `_Moving`.
        forces, stress: whether they are wanted.
    """

    core: TritonTensorNet
    scale: float
    terms: tuple[nn.Module, ...]
    numbers: Tensor
    system: Tensor
    charge: Tensor
    multiplicity: Tensor
    atoms: tuple[Tensor, Tensor, Tensor]
    constants: Tensor
    buffers: _Moving
    forces: bool
    stress: bool

    @torch.no_grad()
    def __call__(self) -> dict[str, Tensor]:
        """energy, energies and, if wanted, forces and stress, as of `Potential.forward`."""
        positions, cell, pairs, shifts = self.buffers
        wanted = self.forces or self.stress
        absent = pairs[0] >= positions.shape[0]
        inside = torch.stack((torch.where(absent, pairs[1], pairs[0]), pairs[1]))
        vectors = pair_vectors(positions, cell, self.system, inside, shifts)
        vectors = vectors.masked_fill(absent[:, None], FAR)
        distances = torch.sqrt((vectors * vectors).sum(-1))
        values, gradient = self.core.evaluate(pairs, vectors, distances, self.atoms, wanted)
        energies = values.to(torch.float64) * self.scale + self.constants
        if gradient is not None:
            gradient = gradient.masked_fill(absent[:, None], 0.0) * self.scale
        if self.terms:
            more, slopes = self._of_distances(inside, vectors, distances, wanted)
            energies = energies + more
            if gradient is not None and slopes is not None:
                gradient = gradient + (slopes / distances)[:, None] * vectors
        energy = torch.zeros(cell.shape[0], dtype=torch.float64, device=cell.device)
        results = {"energy": energy.index_add(0, self.system, energies), "energies": energies}
        if gradient is not None and self.forces:
            forces = torch.zeros_like(positions).index_add(0, inside[0], gradient)
            results["forces"] = forces.index_add(0, inside[1], gradient, alpha=-1)
        if gradient is not None and self.stress:
            results["stress"] = self._stress(inside[0], vectors, gradient)
        return results

    def _of_distances(
        self, inside: Tensor, vectors: Tensor, distances: Tensor, wanted: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Energies of the atoms [N] from the terms, eV, float64, and their sum's derivative by the
        distances [P], eV/Å; None if that is not wanted, or zero."""
        positions, cell, _, shifts = self.buffers
        with torch.enable_grad():
            distances = distances.detach().requires_grad_(wanted)
            seen = TermInputs(
                self.numbers, positions, cell, self.system, inside, shifts, vectors, distances,
                self.charge, self.multiplicity, None,
            )  # fmt: skip
            energies = torch.zeros_like(self.constants)
            for term in self.terms:
                energies = energies + term(seen)
            if not energies.requires_grad:
                return energies, None
            (slopes,) = torch.autograd.grad(energies.sum(), distances)
        return energies.detach(), slopes

    def _stress(self, receiver: Tensor, vectors: Tensor, gradient: Tensor) -> Tensor:
        """Of each system [B, 3, 3], eV/Å^3, by the derivative of the energy by the vectors.

        By way of the atoms, since all summands of a system go to one place. The determinant is
        written out: a library's may not allow to be recorded.
        """
        cell, n_atoms = self.buffers.cell, self.numbers.shape[0]
        products = (vectors[:, :, None] * gradient[:, None, :]).flatten(1)
        of_atoms = products.new_zeros(n_atoms, 9).index_add(0, receiver, products)
        virial = products.new_zeros(cell.shape[0], 9).index_add(0, self.system, of_atoms)
        virial = virial.unflatten(1, (3, 3))
        virial = 0.5 * (virial + virial.transpose(1, 2))
        a, b, c = cell.unbind(1)
        volume = (a * torch.linalg.cross(b, c)).sum(1).abs()[:, None, None]
        return (virial / volume).masked_fill(volume <= 0.0, float("nan"))


class _Recording(NamedTuple):
    """A recorded evaluation, whose tensors a replay reads, and where it leaves the results."""

    evaluation: _Evaluation
    replay: Callable[[], object]
    outputs: dict[str, Tensor]


@dataclass(frozen=True, eq=False)
class _Subject:
    """Atoms that move.

    Attributes:
        made_of: numbers, system, charge, multiplicity and partial charges; None where there are
            none.
        versions: of these, which count what was written into them.
        recordings: by whether forces and stress are wanted; None after the first such call.
    """

    made_of: tuple[Tensor | None, ...]
    versions: list[int]
    recordings: dict[tuple[bool, bool], _Recording | None] = field(default_factory=dict)

    def is_of(self, made_of: tuple[Tensor | None, ...]) -> bool:
        """Whether these are the very same tensors, not written into since."""
        same = all(a is b for a, b in zip(self.made_of, made_of, strict=True))
        return same and self.versions == versions(made_of)


class CapturedPotential(Potential):
    """`Potential` of a `TritonTensorNet` that replays CUDA graphs in dynamics of small systems.

    The second call with the very same numbers, system, charge, multiplicity and partial charges
    (and with the same results wanted) is recorded, so that one alone costs nothing; later ones are
    replays. Other tensors, also the same ones written into, begin anew; a list of pairs that has
    outgrown its buffer is recorded anew. Results are the caller's own and differ from those of
    `Potential` by rounding.

    Kernels are launched as `Potential` does where positions have a graph or `create_graph` is set,
    for more than `MOST_ATOMS` atoms or none, and for tensors made in inference mode, which do not
    tell whether they were written into.

    Copies and pickles have no recordings, and moving the module drops them. One potential is to be
    called from one thread and on one stream at a time.

    Args:
        core, terms, scale: as for `Potential`; see `serves`.
        record: what records.

    Raises:
        RuntimeError: by the call that is recorded: it cannot be, or a replay does not give what
            launches do.
    """

    core: TritonTensorNet

    def __init__(
        self,
        core: nn.Module,
        terms: tuple[nn.Module, ...] = (),
        scale: float = 1.0,
        record: Recorder = cuda_graph,
    ) -> None:
        super().__init__(core, terms, scale)
        self._record = record
        self._subject: _Subject | None = None

    @staticmethod
    def serves(core: nn.Module, terms: tuple[nn.Module, ...]) -> bool:
        """Whether core and terms are such that it can be built of them."""
        return simple(terms) and isinstance(core, TritonTensorNet)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_subject": None}

    def _apply(self, *arguments: Any, **options: Any) -> Any:
        self._subject = None
        return super()._apply(*arguments, **options)

    def forward(
        self,
        numbers: Tensor,
        positions: Tensor,
        cell: Tensor,
        system: Tensor,
        pairs: Tensor,
        shifts: Tensor,
        charge: Tensor,
        multiplicity: Tensor,
        partial_charges: Tensor | None = None,
        compute_forces: bool = True,
        compute_stress: bool = True,
        create_graph: bool = False,
    ) -> dict[str, Tensor]:
        """As `Potential.forward`."""
        launch = super().forward
        arguments = (
            numbers, positions, cell, system, pairs, shifts, charge, multiplicity,
            partial_charges, compute_forces, compute_stress, create_graph,
        )  # fmt: skip
        if create_graph or positions.requires_grad or not 0 < numbers.shape[0] <= MOST_ATOMS:
            return launch(*arguments)
        made_of = (numbers, system, charge, multiplicity, partial_charges)
        subject, wanted = self._subject_of(made_of), (compute_forces, compute_stress)
        if subject is None:
            return launch(*arguments)
        if wanted not in subject.recordings:
            subject.recordings[wanted] = None
            return launch(*arguments)
        enabled = torch.is_grad_enabled() or wanted == (False, False)
        assert enabled, "call the model outside torch.no_grad()"
        given, recording = _Moving(positions, cell, pairs, shifts), subject.recordings[wanted]
        if recording is None or not recording.evaluation.buffers.have_room_for(given):
            recording = subject.recordings[wanted] = None  # gives its memory back
            expected = launch(*arguments)
            subject.recordings[wanted] = self._recorded(made_of, given, wanted, expected)
            return expected
        recording.evaluation.buffers.fill(given)
        recording.replay()
        return {name: value.clone() for name, value in recording.outputs.items()}

    def _subject_of(self, made_of: tuple[Tensor | None, ...]) -> _Subject | None:
        """The one of the last call if it is the same; None if nobody can tell."""
        if self._subject is None or not self._subject.is_of(made_of):
            untold = any(tensor is not None and tensor.is_inference() for tensor in made_of)
            self._subject = None if untold else _Subject(made_of, versions(made_of))
        return self._subject

    def _recorded(
        self,
        made_of: tuple[Tensor | None, ...],
        given: _Moving,
        wanted: tuple[bool, bool],
        expected: dict[str, Tensor],
    ) -> _Recording:
        """A recording, whose first replay was compared with what launches gave."""
        with torch.inference_mode(False), torch.no_grad(), torch.cuda.device_of(given.positions):
            evaluation = self._evaluation(made_of, given, wanted)
            evaluation.buffers.fill(given)
            try:
                replay, outputs = self._record(evaluation)
            except RuntimeError as error:
                error.add_note("recording a CUDA graph; backend='eager' makes none")
                raise
            replay()
        _compare(outputs, expected, evaluation)
        return _Recording(evaluation, replay, outputs)

    def _evaluation(
        self, made_of: tuple[Any, ...], given: _Moving, wanted: tuple[bool, bool]
    ) -> _Evaluation:
        numbers, system, charge, multiplicity, partial_charges = made_of
        kind = given.positions.dtype
        q, m = charge.to(kind), multiplicity.to(kind)
        return _Evaluation(
            self.core, self.scale, tuple(t for t in self.terms if isinstance(t, OF_DISTANCES)),
            numbers, system, q, m, self.core.of_atoms(numbers, system, q, m, partial_charges),
            constant_energies(self.terms, numbers, system, q, m), given.buffers(), *wanted,
        )  # fmt: skip


def _compare(
    found: dict[str, Tensor], expected: dict[str, Tensor], evaluation: _Evaluation
) -> None:
    """Refuse a recording that gives other results than launches do. This waits for the device.

    Raises:
        RuntimeError: it does; the text has the remedy.
    """
    n_atoms, dtype = evaluation.numbers.shape[0], evaluation.buffers.positions.dtype
    for name in ("energies", "forces", "stress"):
        if name not in expected:
            continue
        value = expected[name]
        moving = value - evaluation.constants if name == "energies" else value
        largest = float(moving.nan_to_num(0.0, 0.0, 0.0).abs().max())
        bound = TOLERANCE[dtype] * max(1.0, largest)
        if not torch.isclose(found[name], value, rtol=0.0, atol=bound, equal_nan=True).all():
            difference = float((found[name] - value).abs().max())
            raise RuntimeError(
                f"a CUDA graph of {n_atoms} atoms gives {name} that differ by {difference:.1e} "
                f"from those of launched kernels (allowed: {bound:.1e}): a bug, please report it, "
                f"and use backend='eager' meanwhile"
            )

"""Other programs beside ours: each in its own interpreter, asked over a pipe.

`inference.py` makes a `Peer` of each, and that starts

    PYTHON tests/benchmarks/inference_peers.py PROGRAM

which needs the program, ASE and PyTorch, not nnpcalc. A request is a line of JSON, and so is the
answer: an object, which has an "error" where the request failed. `timed` is the stopwatch of all,
ours included.

Programs:
    torchmd-net Warp   TensorNet in its ASE calculator, with the Warp kernels that are its default
    torchmd-net torch  the same with PyTorch operations in place of these kernels
    AIMNet2            aimnet's calculator, one member, without Coulomb energy and D3
    MACE               random weights, the sizes of MACE-OFF23 small
    ANI-2x             torchani, 8 members, random weights
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes


def timed(calculator: Any, atoms: Atoms, threads: int) -> dict[str, Any]:
    """Seconds on the clock and of the processor, energy (eV) and forces (eV/Å).

    The forces come first: some calculators get the energy along with them, none the other way.
    """
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)
    atoms.calc = calculator
    clock, cpu = time.perf_counter(), time.process_time()
    forces, energy = atoms.get_forces(), atoms.get_potential_energy()
    clock, cpu = time.perf_counter() - clock, time.process_time() - cpu
    return {"clock": clock, "cpu": cpu, "energy": float(energy), "forces": np.array(forces, float)}


# --- the side that asks --------------------------------------------------------------------------


class PeerError(RuntimeError):
    """The program is not there, or failed."""


class Peer:
    """A program in another process.

    Args:
        program: one of `PROGRAMS`.
        python: the interpreter that has it.

    Attributes:
        versions: of the program and of its PyTorch.

    Raises:
        PeerError: the interpreter or the program is not there.
    """

    def __init__(self, program: str, python: str) -> None:
        self._log = tempfile.TemporaryFile("w+")
        try:
            self._process = subprocess.Popen(
                [python, __file__, program], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                stderr=self._log, text=True,
            )  # fmt: skip
        except OSError as error:
            raise PeerError(f"{python}: {error.strerror}") from error
        try:
            self.versions = self._answer()
        except PeerError:
            self.close()
            raise

    def build(self, key: str, atoms: Atoms, **arguments: Any) -> None:
        """Make the calculator that `call` then names by the key; an older one is dropped."""
        self._ask(atoms, build=key, arguments=arguments)

    def call(self, key: str, atoms: Atoms, threads: int) -> dict[str, Any]:
        """What `timed` finds in the other process."""
        answer = self._ask(atoms, call=key, threads=threads)
        return {**answer, "forces": np.array(answer["forces"])}

    def close(self) -> None:
        self._process.communicate()  # closes its input, which ends it
        self._log.close()

    def _ask(self, atoms: Atoms, **request: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        for name in ("numbers", "positions", "cell", "pbc"):
            request[name] = np.asarray(getattr(atoms, name)).tolist()
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # the answer says how it ended
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            status = self._process.wait()
            self._log.seek(0)
            last = (self._log.read().splitlines() or ["no message"])[-1]
            raise PeerError(f"its process ended with status {status}: {last}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise PeerError(answer["error"])
        return answer


# --- the side that answers -----------------------------------------------------------------------


class TorchmdnetBatch(Calculator):
    """torchmd-net's network for equal molecules, not periodic, that come as one structure."""

    implemented_properties = ["energy", "forces"]  # noqa: RUF012 (ASE declares it)

    def __init__(self, network: Any, molecules: int) -> None:
        super().__init__()
        self.network, self.molecules = network, molecules

    def calculate(
        self, atoms: Any = None, properties: Any = None, system_changes: Any = all_changes
    ) -> None:
        super().calculate(atoms, properties, system_changes)
        numbers = torch.tensor(atoms.numbers)
        positions = torch.tensor(atoms.positions, dtype=torch.float32, requires_grad=True)
        batch = torch.arange(self.molecules).repeat_interleave(len(atoms) // self.molecules)
        energies, _ = self.network(numbers, positions, batch, q=torch.zeros(self.molecules))
        (gradient,) = torch.autograd.grad(energies.sum(), positions)
        self.results = {"energy": energies.sum().item(), "forces": -gradient.numpy()}


def torchmdnet(checkpoint: str, neighbors: int, molecules: int) -> Any:
    """Their calculator; with a number of molecules, one that takes so many at once."""
    from torchmdnet.calculators import TMDNETCalculator

    calculator = TMDNETCalculator(checkpoint, max_num_neighbors=neighbors)
    return TorchmdnetBatch(calculator.model, molecules) if molecules else calculator


def torchmdnet_warp(atoms: Atoms, checkpoint: str, neighbors: int, molecules: int) -> Any:
    from torchmdnet.models import tensornet

    if not tensornet.OPT:
        raise ImportError("Warp is not installed")
    return torchmdnet(checkpoint, neighbors, molecules)


def torchmdnet_torch(atoms: Atoms, checkpoint: str, neighbors: int, molecules: int) -> Any:
    """The operations that torchmd-net falls back to by itself where Warp's cannot be imported."""
    from torchmdnet.models import tensornet

    tensornet.OPT = False
    for name in ("compose_tensor", "decompose_tensor", "tensor_matmul_o3", "tensor_matmul_so3"):
        setattr(tensornet, name, getattr(tensornet, f"_{name}"))
    return torchmdnet(checkpoint, neighbors, molecules)


def aimnet2(atoms: Atoms, weights: str) -> Any:
    """The network alone, since the calculator would add Coulomb energy and D3 outside of it."""
    import yaml
    from aimnet import models
    from aimnet.calculators import AIMNet2ASE, AIMNet2Calculator
    from aimnet.config import build_module

    recipe = Path(str(models.__file__)).with_name("aimnet2_dftd3_wb97m.yaml")
    options = yaml.safe_load(recipe.read_text())
    outside = ("lrcoulomb", "dftd3", "d3bj")
    options["kwargs"]["outputs"] = {
        name: part for name, part in options["kwargs"]["outputs"].items() if name not in outside
    }
    network: Any = build_module(options)
    network.load_state_dict(
        {
            name: value
            for name, value in torch.jit.load(weights).state_dict().items()
            if not name.startswith(tuple(f"outputs.{part}" for part in outside))
        }
    )
    calculator = AIMNet2Calculator(
        network.eval().requires_grad_(False), device="cpu", needs_coulomb=False,
        needs_dispersion=False,
    )  # fmt: skip
    return AIMNet2ASE(calculator, validate_species=False)


def mace(atoms: Atoms) -> Any:
    """Sizes by Kovács et al., J. Am. Chem. Soc. 147, 17598 (2025)."""
    torch.serialization.add_safe_globals([slice])  # of the tables that e3nn 0.4 reads on import
    from e3nn import o3
    from mace.calculators import MACECalculator
    from mace.modules import ScaleShiftMACE, gate_dict, interaction_classes

    block = interaction_classes["RealAgnosticResidualInteractionBlock"]
    model = ScaleShiftMACE(
        r_max=4.5, num_bessel=8, num_polynomial_cutoff=5, max_ell=3, interaction_cls=block,
        interaction_cls_first=block, num_interactions=2, num_elements=10,
        hidden_irreps=o3.Irreps("96x0e"), MLP_irreps=o3.Irreps("16x0e"), gate=gate_dict["silu"],
        atomic_energies=np.zeros(10), avg_num_neighbors=18.0,
        atomic_numbers=[1, 6, 7, 8, 9, 15, 16, 17, 35, 53], correlation=3,
        atomic_inter_scale=1.0, atomic_inter_shift=0.0,
    ).to(torch.float32)  # fmt: skip
    return MACECalculator(models=[model], device="cpu", default_dtype="float32")


def ani2x(atoms: Atoms) -> Any:
    from torchani.arch import Assembler

    assembler = Assembler(periodic_table_index=True)
    assembler.set_symbols("H C N O S F Cl".split())
    assembler.set_atomic_networks(ctor="ani2x")
    assembler.set_global_cutoff_fn("cosine")
    assembler.set_aev_computer(angular="ani2x", radial="ani2x", strategy="pyaev")
    assembler.set_neighborlist("cell_list" if atoms.pbc.any() else "all_pairs")
    assembler.set_gsaes_as_self_energies("wb97x-631gd")
    return assembler.assemble(8).requires_grad_(False).ase()


#: By name: the distribution that has it, and what makes its calculator.
PROGRAMS: dict[str, tuple[str, Callable[..., Any]]] = {
    "torchmd-net Warp": ("torchmd-net", torchmdnet_warp),
    "torchmd-net torch": ("torchmd-net", torchmdnet_torch),
    "AIMNet2": ("aimnet", aimnet2),
    "MACE": ("mace-torch", mace),
    "ANI-2x": ("torchani", ani2x),
}


def structure(request: dict[str, Any]) -> Atoms:
    """The Atoms of a request; torchmd-net's calculator wants a charge."""
    return Atoms(
        request["numbers"], positions=request["positions"], cell=request["cell"],
        pbc=request["pbc"], info={"charge": 0},
    )  # fmt: skip


def serve(program: str, answers: Any) -> None:
    """Answer the requests of the standard input, a line each."""

    def answer(**content: Any) -> None:
        print(json.dumps(content), file=answers, flush=True)

    distribution, make = PROGRAMS[program]
    try:
        answer(version=version(distribution), torch=torch.__version__)
    except ImportError:
        answer(error=f"{distribution} is not installed for {sys.executable}")
        return
    calculators: dict[str, Any] = {}
    for line in sys.stdin:
        request = json.loads(line)
        try:
            atoms = structure(request)
            if "build" in request:
                calculators[request["build"]] = make(atoms, **request["arguments"])
                answer()
            else:
                found = timed(calculators[request["call"]], atoms, request["threads"])
                answer(**{**found, "forces": found["forces"].tolist()})
        except Exception as error:
            answer(error=f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    torch.manual_seed(1)
    pipe = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the programs print is no answer
    serve(sys.argv[1], pipe)

"""Small ANI networks with random weights as the files that NeuroChem and TorchANI write."""

from __future__ import annotations

import bz2
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

SYMBOLS = ("H", "C", "O")
ENERGIES = {"H": -0.6, "C": -38.1, "O": -75.2}  # Hartree
HIDDEN = {"H": (6, 5), "C": (7, 4), "O": (5,)}
RADIAL, ANGULAR, ANGLES = 5, 3, 2
ENVIRONMENT = 3 * RADIAL + 6 * ANGULAR * ANGLES  # three elements, six pairs of them

PARAMS = """DESC = ANI_NORMAL
Rcr = 4.8000e+00
Rca = 3.2000e+00
EtaR = [1.6000000e+01]
ShfR = [8.0000000e-01,1.6000000e+00,2.4000000e+00,3.2000000e+00,4.0000000e+00]
Zeta = [1.4100000e+01]
ShfZ = [7.8539816e-01,2.3561945e+00]
EtaA = [8.0000000e+00]
ShfA = [8.0000000e-01,1.6000000e+00,2.4000000e+00]
Atyp = [H,C,O]
"""


def layers(symbol: str, member: int) -> list[tuple[Tensor, Tensor]]:
    """Weights and biases of a network, float32."""
    generator = torch.Generator().manual_seed(100 * member + SYMBOLS.index(symbol))
    sizes = (ENVIRONMENT, *HIDDEN[symbol], 1)
    return [
        (
            torch.randn(sizes[k + 1], sizes[k], generator=generator) * 2.0 * sizes[k] ** -0.5,
            torch.randn(sizes[k + 1], generator=generator) * 0.3,
        )
        for k in range(len(sizes) - 1)
    ]


def write_directory(directory: Path, members: int = 2, activation: int = 9) -> Path:
    """What NeuroChem leaves behind."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "rHCO-4.8R_5-3.2A_a3-2.params").write_text(PARAMS)
    energies = [f"{symbol},{k}={ENERGIES[symbol]}" for k, symbol in enumerate(SYMBOLS)]
    (directory / "sae_linfit.dat").write_text("\n".join(energies) + "\n")
    for member in range(members):
        networks = directory / f"train{member}" / "networks"
        networks.mkdir(parents=True, exist_ok=True)
        for symbol in SYMBOLS:
            _write_network(networks, symbol, member, activation)
    return directory


def _write_network(networks: Path, symbol: str, member: int, activation: int) -> None:
    name = f"ANN-{symbol}.nnf"
    text = f"inputsize={ENVIRONMENT};\natom_net {symbol} $\n"
    parameters = layers(symbol, member)
    for k, (weight, bias) in enumerate(parameters, start=1):
        function = 6 if k == len(parameters) else activation
        text += (
            f"layer [\nnodes={len(bias)};\nactivation={function};\ntype=0;\n"
            f"blocksize={weight.shape[1]};\n"
            "dropout=0;\ndropset=0.0;\nmaskupdate=0.0;\nmaxnorm=0;\nnorm=0.0;\nnormupdate=0.0;\n"
            "l2norm=0;\nl2valu=0.0;\nbtchnorm=0;\n"
            f"weights=FILE:{name}-l{k}.wparam[{weight.numel()}];\n"
            f"biases=FILE:{name}-l{k}.bparam[{bias.numel()}];\n]\n"
        )
        for kind, tensor in (("wparam", weight), ("bparam", bias)):
            tensor.numpy().astype("<f4").tofile(networks / f"{name}-l{k}.{kind}")
    packed = bz2.compress((text + "\n $ \n").encode())
    (networks / name).write_bytes(f"{len(packed)}=\n".encode() + packed)


def state_dict(members: int = 2, old: bool = False) -> dict[str, Any]:
    """The same networks under the names of TorchANI 2.9, or of 2.2."""
    radial = torch.tensor([0.8 + 0.8 * k for k in range(RADIAL)])
    angular = torch.tensor([0.8 + 0.8 * k for k in range(ANGULAR)])
    angles = torch.tensor([np.pi * (k + 0.5) / ANGLES for k in range(ANGLES)], dtype=torch.float32)
    constants = {
        ("radial.eta", "EtaR"): torch.tensor([16.0]),
        ("radial.shifts", "ShfR"): radial,
        ("angular.eta", "EtaA"): torch.tensor([8.0]),
        ("angular.zeta", "Zeta"): torch.tensor([14.1]),
        ("angular.shifts", "ShfA"): angular,
        ("angular.sections", "ShfZ"): angles,
    }
    front = "" if old else "potentials.nnp."
    state: dict[str, Any] = {} if old else {"atomic_numbers": torch.tensor([1, 6, 8])}
    state["energy_shifter.self_energies"] = torch.tensor(
        [ENERGIES[symbol] for symbol in SYMBOLS], dtype=torch.float64
    )
    if old:
        converter = torch.full((120,), -1)
        converter[torch.tensor([1, 6, 8])] = torch.arange(3)
        state["species_converter.conv_tensor"] = converter
        state["aev_computer.default_cell"] = torch.eye(3)
    state[f"{front}aev_computer.triu_index"] = torch.zeros((3, 3), dtype=torch.int64)
    for names, value in constants.items():
        state[f"{front}aev_computer.{names[old]}"] = value
    for member in range(members):
        for symbol in SYMBOLS:
            parameters = layers(symbol, member)
            for k, (weight, bias) in enumerate(parameters):
                if old:  # activations have numbers too
                    name = f"neural_networks.{member}.{symbol}.{2 * k}"
                else:
                    layer = "final_layer" if k == len(parameters) - 1 else f"layers.{k}"
                    name = f"{front}neural_networks.members.{member}.atomics.{symbol}.{layer}"
                state[f"{name}.weight"], state[f"{name}.bias"] = weight, bias
    return state

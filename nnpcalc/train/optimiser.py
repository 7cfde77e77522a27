"""What turns gradients into steps: AdamW, or Muon for the matrices and AdamW for the rest."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from nnpcalc.train.config import TrainingConfig


def is_matrix(owner: nn.Module, parameter: Tensor) -> bool:
    """Whether a parameter maps features to features: [F, G] of a linear layer, or several.

    Tables of elements and states are no maps, and a row or a column has no directions to balance.
    """
    several = parameter.dim() == 3 or (parameter.dim() == 2 and isinstance(owner, nn.Linear))
    return several and min(parameter.shape[-2:]) > 1


class MuonAndAdamW:
    """Muon (K. Jordan et al., 2024; arXiv 2502.16982 for the size of its steps) beside AdamW.

    Muon steps along the orthogonal factor of a matrix's averaged gradient, so that all directions
    are learned at one pace. Its steps have the root mean square of AdamW's: one learning rate is
    for both.

    Args:
        module: whose parameters that require a gradient are optimised; the matrices of a stack
            one by one.
        learning_rate, weight_decay: of both.
    """

    def __init__(self, module: nn.Module, learning_rate: float, weight_decay: float) -> None:
        self.stacks: list[tuple[nn.Parameter, list[Tensor]]] = []
        others = []
        for owner in module.modules():
            for parameter in owner.parameters(recurse=False):
                if not parameter.requires_grad:
                    continue
                if is_matrix(owner, parameter):
                    whole = parameter.detach()  # on the same memory
                    pieces = list(whole.unbind()) if whole.dim() == 3 else [whole]
                    self.stacks.append((parameter, pieces))
                else:
                    others.append(parameter)
        matrices = [piece for _, pieces in self.stacks for piece in pieces]
        settings: dict[str, Any] = {"lr": learning_rate, "weight_decay": weight_decay}
        self.parts: dict[str, torch.optim.Optimizer] = {}
        if matrices:
            self.parts["muon"] = torch.optim.Muon(
                matrices, adjust_lr_fn="match_rms_adamw", **settings
            )
        if others:
            self.parts["adamw"] = torch.optim.AdamW(others, **settings)

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """As of a torch optimiser."""
        return [group for part in self.parts.values() for group in part.param_groups]

    def step(self) -> None:
        """As of a torch optimiser."""
        for parameter, pieces in self.stacks:
            gradient = parameter.grad
            assert gradient is not None
            gradients = gradient.unbind() if gradient.dim() == 3 else [gradient]
            for piece, one in zip(pieces, gradients, strict=True):
                piece.grad = one
        for part in self.parts.values():
            part.step()

    def state_dict(self) -> dict[str, Any]:
        """Of both."""
        return {name: part.state_dict() for name, part in self.parts.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """What `state_dict` returned."""
        for name, part in self.parts.items():
            part.load_state_dict(state[name])


def optimiser(module: nn.Module, options: TrainingConfig) -> torch.optim.AdamW | MuonAndAdamW:
    """The optimiser that a configuration asks for, of the parameters that require a gradient."""
    if options.optimizer == "muon":
        return MuonAndAdamW(module, options.learning_rate, options.weight_decay)
    return torch.optim.AdamW(
        [p for p in module.parameters() if p.requires_grad],
        lr=options.learning_rate,
        weight_decay=options.weight_decay,
    )

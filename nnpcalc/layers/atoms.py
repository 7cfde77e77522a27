"""What an atom starts with: its element and, if wanted, the electronic state of its system."""

from typing import List, Sequence, Tuple

import torch
from torch import Tensor, nn

from nnpcalc.layers.state_embedding import StateEmbedding

#: Whole numbers of a system that its atoms can carry as features.
STATES: Tuple[str, ...] = ("charge", "unpaired_electrons")

#: The elements of the SPICE data set without ions of metals.
DEFAULT_ELEMENTS: Tuple[int, ...] = (1, 5, 6, 7, 8, 9, 14, 15, 16, 17, 35, 53)


def check_system(
    elements: Sequence[int], cutoff: float, state_embedding: Sequence[str] = ()
) -> None:
    """Refuse impossible elements, cutoffs and states of a configuration."""
    if not cutoff > 0.0:
        raise ValueError(f"cutoff must be a positive length in Å, got {cutoff}")
    if not elements or any(not 1 <= z <= 118 for z in elements):
        raise ValueError(f"elements must be atomic numbers 1..118, got {elements}")
    if len(set(elements)) != len(elements):
        raise ValueError(f"elements are listed twice in {elements}")
    unknown = [name for name in state_embedding if name not in STATES]
    if unknown or len(set(state_embedding)) != len(state_embedding):
        raise ValueError(f"state_embedding must be distinct and of {STATES}: {state_embedding}")


def check_sizes(**sizes: int) -> None:
    """Refuse sizes below 1, by name."""
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} must be at least 1, got {size}")


def conditions(attributes: Sequence[str]) -> Tuple[str, ...]:
    """What a core declares in `conditions_on` for attributes it uses."""
    return tuple("multiplicity" if name == "unpaired_electrons" else name for name in attributes)


def element_table(elements: Sequence[int]) -> Tensor:
    """Row of each atomic number in a network's tables, -1 for unknown elements: [119], int64."""
    index = torch.full((119,), -1, dtype=torch.int64)
    index[torch.tensor(elements)] = torch.arange(len(elements))
    return index


def state_columns(order: List[int], charge: Tensor, multiplicity: Tensor) -> Tensor:
    """The states of systems that a network embeds: [B, len(order)].

    Args:
        order: places in `STATES`.
        charge: [B], e.
        multiplicity: 2S + 1 [B].
    """
    columns: List[Tensor] = []
    for k in order:
        columns.append(charge if k == 0 else multiplicity - 1.0)
    if len(columns) == 0:
        return torch.zeros((charge.shape[0], 0), dtype=charge.dtype, device=charge.device)
    return torch.stack(columns, dim=1)


class AtomEmbedding(nn.Module):
    """Learned features of the element, plus those of the electronic state (`StateEmbedding`).

    Args:
        elements: atomic numbers.
        channels: F.
        state_embedding: which of `STATES` enter.
    """

    element_index: Tensor
    order: List[int]

    def __init__(
        self, elements: Sequence[int], channels: int, state_embedding: Sequence[str] = ()
    ) -> None:
        super().__init__()
        self.order = [STATES.index(name) for name in state_embedding]
        self.register_buffer("element_index", element_table(elements), persistent=False)
        self.element = nn.Embedding(len(elements), channels)
        self.state = nn.ModuleList([StateEmbedding(channels) for _ in state_embedding])

    def forward(
        self, numbers: Tensor, charge: Tensor, multiplicity: Tensor, system: Tensor
    ) -> Tensor:
        """Atomic numbers [N], charges [B], multiplicities [B], systems [N] -> features [N, F]."""
        element = self.element(self.element_index[numbers])
        state = state_columns(self.order, charge, multiplicity)
        features = element
        for k, embedding in enumerate(self.state):
            features = features + embedding(element, state[:, k], system)
        return features

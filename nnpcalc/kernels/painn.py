"""PaiNN on the fast path: tabulated filters, pair sums that store nothing per pair."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from nnpcalc.kernels.filters import DIRECTION, FILTER
from nnpcalc.kernels.forms import partial
from nnpcalc.kernels.schnet import KNOTS_PER_FUNCTION, filter_table, interpolation
from nnpcalc.models.painn import PaiNN


class FusedPaiNN(nn.Module):
    """The same function as the `PaiNN` it shares its parameters with; see `FusedTensorNet`.

    Args:
        core: the network; parameters are shared, not copied.
        n_knots: size of the table; more are taken for more than 21 radial functions.
    """

    def __init__(self, core: PaiNN, n_knots: int = 512) -> None:
        super().__init__()
        self.core = core
        self.cutoff = core.cutoff
        self.elements = core.elements
        self.conditions_on = core.conditions_on
        self.n_knots = max(n_knots, KNOTS_PER_FUNCTION * core.config.radial_functions)
        self.step = self.cutoff / (self.n_knots - 1)
        self._tables: list[tuple[Tensor, ...]] | None = None

    def tables(self) -> list[tuple[Tensor, ...]]:
        """Three tables [2 K, F] for each layer: of scalars, directions and vectors passed on."""
        if self._tables is not None:
            return self._tables
        f = self.core.config.channels
        return [
            filter_table(self.core, message.filter, self.n_knots, self.step).split(f, dim=1)  # type: ignore[arg-type]
            for message in self.core.messages
        ]

    def freeze(self) -> FusedPaiNN:
        """Build the tables now and keep them; the parameters must not change afterwards."""
        self._tables = [
            tuple(table.detach().contiguous() for table in tables) for tables in self.tables()
        ]
        return self

    def forward(
        self,
        numbers: Tensor,
        pairs: Tensor,
        vectors: Tensor,
        distances: Tensor,
        system: Tensor,
        charge: Tensor,
        multiplicity: Tensor,
        partial_charges: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """As `PaiNN.forward`; pairs must be sorted by receiver."""
        core: Any = self.core
        s = core.embedding(numbers, charge, multiplicity, system)
        v: Tensor | None = None  # zeros before the first message
        w, topology = interpolation(distances, pairs, s.shape[0], self.step, self.n_knots)
        units = vectors / distances.unsqueeze(-1)
        for message, update, tables in zip(core.messages, core.updates, self.tables(), strict=True):
            scalar, radial, passed = message.atoms(s).split(s.shape[1], dim=-1)
            s = s + partial(FILTER, "g", topology, w, tables[0], scalar.unsqueeze(1), None).squeeze(
                1
            )
            arrived = partial(DIRECTION, "g", topology, w, tables[1], radial, units, None)
            if v is not None:
                moved = passed.unsqueeze(1) * v
                arrived = arrived + v + partial(FILTER, "g", topology, w, tables[2], moved, None)
            s, v = update(s, arrived)
        return {"energies": core.readout(s).squeeze(-1)}

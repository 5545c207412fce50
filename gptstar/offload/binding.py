"""How a layer's tensors, as they lie in files, become the weights of a block, without a copy of anything large.

What a family's mapping does to a tensor (split it, turn it over, put the rows of heads in another order) is found out
once, by giving it row numbers in the place of weights. From then on a layer is bound to a block by handing over views.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from gptstar.errors import UserError
from gptstar.model.meta import on_meta
from gptstar.offload.layers import Piece
from gptstar.offload.matrix import StoredMatrix
from gptstar.quantization.layers import Home


@dataclass(frozen=True)
class _Source:
    """Part of a matrix that comes out of one piece. number: which of the views that the mapping makes, or None: the
    piece's tensors as they are, of which row `order[n]` is row n."""

    ours: tuple[str, ...]
    start: int
    number: int | None
    side_by_side: bool = False
    order: Tensor | None = None
    n_row: int = 0


class StoredBinding:
    """Of the layers of a model to a block prepared by `prepare_stored`. All layers have the same names and shapes."""

    def __init__(self, block: nn.Module, pieces: list[Piece]) -> None:
        """pieces: any layer's. Raises UserError for a mapping of which no views can be made."""
        self._targets = block.state_dict()
        self._sources: dict[StoredMatrix, list[_Source]] = {}
        for piece in pieces:
            homes = [self._targets[name] for name in piece.ours]
            if isinstance(homes[0], Home):
                for matrix, source in _sources(piece, cast(list[Home], homes)):
                    self._sources.setdefault(matrix, []).append(source)
        device = next(block.parameters()).device
        self._orders = {matrix: _order(sources, device) for matrix, sources in self._sources.items()}

    @torch.no_grad()
    def bind(self, layer: int, pieces: list[Piece], tensors: list[list[Tensor]], first: bool) -> None:
        """As `Layers` wants it: matrices are given views, the rest is copied. Raises UserError for damaged weights."""
        views: dict[tuple[str, ...], list[Tensor]] = {}
        made: dict[tuple[str, ...], list[Tensor]] = {}
        for piece, own in zip(pieces, tensors, strict=True):
            if first:
                piece.check(own)
            if isinstance(self._targets[piece.ours[0]], Home):
                views[piece.ours], made[piece.ours] = own, []
            else:
                piece.fill(own, self._targets, check=False)
        merges = {piece.ours: piece.merge for piece in pieces}
        for matrix, sources in self._sources.items():
            parts: list[Tensor] = []
            for source in sources:
                if source.number is None:
                    parts += views[source.ours]
                    continue
                made[source.ours] = made[source.ours] or list(merges[source.ours](views[source.ours]))
                parts.append(made[source.ours][source.number])
            matrix.bind(parts, sources[0].side_by_side, self._orders[matrix])


def _sources(piece: Piece, homes: list[Home]) -> Iterator[tuple[StoredMatrix, _Source]]:
    with on_meta():
        theirs = [torch.empty(place.shape, dtype=place.dtype) for place in piece.places]
        made = list(piece.merge(theirs))
    storages = {tensor.untyped_storage()._cdata for tensor in theirs}
    if all(tensor.untyped_storage()._cdata in storages for tensor in made):
        for number, home in enumerate(homes):
            yield cast(StoredMatrix, home.matrix), _Source(piece.ours, home.start, number, n_row=len(made[number]))
        return
    heights = [place.shape[0] for place in piece.places]
    numbers = [torch.arange(sum(heights[:i]), sum(heights[: i + 1]))[:, None] for i in range(len(heights))]
    rows = list(piece.merge(numbers))
    matrix = cast(StoredMatrix, homes[0].matrix)
    if len(homes) == 1 and rows[0].shape == (heights[0], len(heights)):  # side by side
        order = rows[0][:, 0]
        if torch.equal(rows[0], torch.stack([order + sum(heights[:i]) for i in range(len(heights))], 1)):
            yield matrix, _Source(piece.ours, homes[0].start, None, True, order, len(order))
            return
    order = torch.cat(rows) if all(row.shape[1:] == (1,) for row in rows) else torch.empty(0)
    ends = [home.start + len(own) for home, own in zip(homes, rows, strict=True)]
    together = all(home.matrix is homes[0].matrix for home in homes)
    together = together and [home.start for home in homes[1:]] == ends[:-1]
    if len(order) != sum(heights) or not together:
        raise UserError(f"{piece.name} cannot be read in place: leave memory_budget out")
    yield matrix, _Source(piece.ours, homes[0].start, None, False, order[:, 0], len(order))


def _order(sources: list[_Source], device: torch.device) -> Tensor | None:
    """Where each row of a matrix is among those of all its parts; None where that is the same place."""
    sources.sort(key=lambda source: source.start)
    before, orders = 0, []
    for source in sources:
        own = torch.arange(source.n_row) if source.order is None else source.order
        orders.append(own + before)
        before += source.n_row
    order = torch.cat(orders)
    return None if torch.equal(order, torch.arange(len(order))) else order.to(device)

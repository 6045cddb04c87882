"""The K best items of each target, ties by catalogue row, collected tile by tile.

torch.topk alone may take any of the items that share the K-th score, another one on another machine.
Shapes: T targets, C items of a tile, K length of the lists.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from components.metrics import compare, count_true


@dataclass(frozen=True)
class Tops:
    """The best so far, best first; fewer than K columns before K items were seen."""

    size: int  # K
    scores: Tensor  # (T, <= K)
    rows: Tensor  # (T, <= K) int64

    @classmethod
    def nothing(cls, num_targets: int, size: int) -> Tops:
        """Return empty lists."""
        return cls(size, torch.zeros(num_targets, 0), torch.zeros(num_targets, 0, dtype=torch.int64))

    def merge(self, scores_TC: Tensor, first_item: int) -> Tops:
        """Return the best with those of a tile among them; tiles come in ascending order of their items."""
        rows = best_rows(scores_TC, min(self.size, scores_TC.shape[1]))
        # Lower rows come first, in the lists so far and in the tile's, and a stable sort leaves equals where they are.
        scores = torch.cat([self.scores, scores_TC.gather(1, rows).cpu()], dim=1)
        rows = torch.cat([self.rows, rows.cpu() + first_item], dim=1)
        order = scores.sort(dim=1, descending=True, stable=True).indices[:, : self.size]
        return Tops(self.size, scores.gather(1, order), rows.gather(1, order))

    def items(self) -> Tensor:
        """Return (T, K) int64, -1 where fewer items may be ranked: those have the score -inf."""
        rows = self.rows.where(self.scores > -torch.inf, -1)
        return torch.nn.functional.pad(rows, (0, self.size - rows.shape[1]), value=-1)


def best_rows(scores_TC: Tensor, k: int) -> Tensor:
    """Return (T, k) int64: the best items of each row in ascending order; of equals the lower ones."""
    values, rows = scores_TC.topk(k, dim=1)
    kth_T1 = values[:, -1:]
    _, is_kth_TC = compare(scores_TC, kth_T1)
    num_taken = (values == kth_T1).sum(1)
    for t in (count_true(is_kth_TC) > num_taken).nonzero().flatten().tolist():
        better = (~(scores_TC[t] <= kth_T1[t])).nonzero().flatten()  # also what is no number
        rows[t] = torch.cat([better, is_kth_TC[t].nonzero().flatten()[: k - len(better)]])
    return rows.sort(dim=1).values

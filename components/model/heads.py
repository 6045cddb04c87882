"""The way out of a model: how encoded histories and items become scores. `settings.head` says which.

    dot        <u, i>                                        the cosine: both come as unit vectors
    mixture    sum over p, q of pi_pq(u, i) <f_p(u), g_q(i)>    mixture of logits: a mean of P Q cosines

Mixture after RAILS (arXiv 2407.15462): f_p(u) and g_q(i) are unit vectors, and the gate is

    pi = softmax over the K = P Q pairs of silu(a(u) * b(i) + c(cosines / T))

with a, b, c of two linear layers and a SiLU each. In training `dropout` of pi is dropped and the rest scaled to sum 1
again. Left out of RAILS: embeddings of users (a new user has none) and the balancing loss. A score lies in [-1, 1].

    items = model.item_side()          # what depends on items only, once
    scores_TX = model.score(y_TD, items)

Shapes: T histories, X items, R rows, C columns, D width, P and Q vectors of a history and of an item, K = P Q.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from components.model.embedding import InputEmbedding, l2_normalize
from kernels import dropout

if TYPE_CHECKING:
    from components.settings import TrainSettings

Side = tuple[Tensor, ...]
"""What a head makes of histories, or of items, alone: tensors whose rows are those of what it was made from."""

_EPS = 1e-6
_GATE_WIDTH = 128  # of a and b, as in RAILS; they see a history or an item once
_FLOATS_PER_BLOCK = 2**20  # of one (K, R, C) tensor: 4 MB, so that the handful alive stays near the cache


class DotHead(nn.Module):
    """The cosine of history and item. Has no weights."""

    floats_per_score = 1

    def split_queries(self, y_TD: Tensor) -> Side:
        """Return (y,): nothing to prepare."""
        return (y_TD,)

    def split_items(self, items_XD: Tensor) -> Side:
        """Return (items,): nothing to prepare."""
        return (items_XD,)

    def score_all(self, queries: Side, items: Side) -> Tensor:
        """Return (T, X): every history with every item."""
        return queries[0] @ items[0].T

    def score_pairs(self, queries: Side, items: Side) -> Tensor:
        """Return (R, 1): row i of the histories with row i of the items."""
        return (queries[0] * items[0]).sum(1, keepdim=True)

    def score_catalogue(self, y_TD: Tensor, items: Side) -> Tensor:
        """Return (T, X)."""
        return self.score_all((y_TD,), items)

    def pair_weights(self) -> list[nn.Parameter]:
        """Return the weights that scoring itself uses: none."""
        return []


class MixtureHead(nn.Module):
    """A mean of P Q cosines of parts of history and item, weighted by a gate that sees both and the cosines.

    The parts are linear maps: the encoder before them is deep, and an item's vector is free anyway.
    """

    def __init__(self, settings: TrainSettings) -> None:
        super().__init__()
        dim, self.temperature = settings.dim, settings.temperature
        self.num_query_vectors, self.num_item_vectors = settings.mixture_query_vectors, settings.mixture_item_vectors
        self.dropout, self.backend = settings.dropout, settings.backend
        num_pairs = self.num_query_vectors * self.num_item_vectors
        self.floats_per_score = 2 * num_pairs
        self.query = nn.Linear(dim, self.num_query_vectors * dim)
        self.item = nn.Linear(dim, self.num_item_vectors * dim)
        self.query_gate = _two_layers(dim, _GATE_WIDTH, num_pairs)
        self.item_gate = _two_layers(dim, _GATE_WIDTH, num_pairs)
        self.pair_in = nn.Linear(num_pairs, 2 * num_pairs)
        self.pair_out = nn.Linear(2 * num_pairs, num_pairs)

    def split_queries(self, y_TD: Tensor) -> Side:
        """Return the unit vectors (T, P, D) and a (T, K)."""
        x_TD = y_TD * y_TD.shape[1] ** 0.5  # entries of size 1, as linear layers like them
        return _split(self.query(x_TD), self.num_query_vectors), self.query_gate(x_TD)

    def split_items(self, items_XD: Tensor) -> Side:
        """Return the unit vectors (X, Q, D) and b (X, K)."""
        x_XD = items_XD * items_XD.shape[1] ** 0.5
        return _split(self.item(x_XD), self.num_item_vectors), self.item_gate(x_XD)

    def score_all(self, queries: Side, items: Side) -> Tensor:
        """Return (R, C): every history with every item; holds several (2 K, R, C) tensors."""
        (f_RPD, a_RK), (g_CQD, b_CK) = queries, items
        cosines_PQRC = f_RPD.transpose(0, 1)[:, None] @ g_CQD.permute(1, 2, 0)
        return self._mix(cosines_PQRC.flatten(0, 1), a_RK.T[:, :, None], b_CK.T[:, None, :])

    def score_pairs(self, queries: Side, items: Side) -> Tensor:
        """Return (R, 1): row i of the histories with row i of the items."""
        (f_RPD, a_RK), (g_RQD, b_RK) = queries, items
        cosines_RPQ = f_RPD @ g_RQD.transpose(1, 2)
        return self._mix(cosines_RPQ.flatten(1).T[:, :, None], a_RK.T[:, :, None], b_RK.T[:, :, None])

    def score_catalogue(self, y_TD: Tensor, items: Side) -> Tensor:
        """Return (T, X), computed in blocks of histories and items of bounded memory; for inference."""
        queries, num_items = self.split_queries(y_TD), len(items[0])
        scores_TX = y_TD.new_empty(len(y_TD), num_items)
        cells = max(1, _FLOATS_PER_BLOCK // self.floats_per_score)
        width = max(1, min(num_items, cells))
        for rows in _blocks(len(y_TD), max(1, cells // width)):
            some = tuple(part[rows] for part in queries)
            for columns in _blocks(num_items, width):
                scores_TX[rows, columns] = self.score_all(some, tuple(part[columns] for part in items))
        return scores_TX

    def pair_weights(self) -> list[nn.Parameter]:
        """Return the weights that scoring itself uses, beside those behind the two sides."""
        return [*self.pair_in.parameters(), *self.pair_out.parameters()]

    def _mix(self, cosines_KRC: Tensor, a_KR1: Tensor, b: Tensor) -> Tensor:
        """Return (R, C); b is (K, 1, C), or (K, R, 1) for pairs. K first: whole vectors in all that is elementwise."""
        # Constants and quotients stay off the (K, R, C) tensors: 0.95 us a score, forward and backward, became 0.77.
        weight_in = self.pair_in.weight / self.temperature
        hidden = silu(torch.addmm(self.pair_in.bias[:, None], weight_in, cosines_KRC.flatten(1)))
        c_KRC = torch.addmm(self.pair_out.bias[:, None], self.pair_out.weight, hidden).view_as(cosines_KRC)
        pi_KRC = torch.softmax(silu(torch.addcmul(c_KRC, a_KR1, b)), dim=0)
        if not self.training or self.dropout == 0:
            return (pi_KRC * cosines_KRC).sum(0)
        kept_KRC = dropout(pi_KRC.flatten(1), self.dropout, training=True, backend=self.backend).view_as(pi_KRC)
        return (kept_KRC * cosines_KRC).sum(0) / kept_KRC.sum(0).clamp(min=_EPS)


class Retriever(nn.Module):
    """What HSTU and SASRec share at their way out."""

    embedding: InputEmbedding
    head: DotHead | MixtureHead

    def item_vectors(self) -> Tensor:
        """Return (X, D), rows of length 1."""
        return self.embedding.item_vectors()

    def item_side(self) -> Side:
        """Return what of the scores depends on items only, for as long as the weights stay as they are."""
        return self.head.split_items(self.item_vectors())

    def score(self, y_TD: Tensor, items: Side | None = None) -> Tensor:
        """Return (T, X): encoded histories with the whole catalogue. `items`: a kept `item_side()`."""
        return self.head.score_catalogue(y_TD, self.item_side() if items is None else items)


def make_head(settings: TrainSettings) -> DotHead | MixtureHead:
    """Return the head that `settings` names, freshly initialised."""
    return MixtureHead(settings) if settings.head == "mixture" else DotHead()


def _two_layers(width_in: int, width: int, width_out: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width_in, width), nn.SiLU(), nn.Linear(width, width_out))


def _split(x: Tensor, num_vectors: int) -> Tensor:
    return l2_normalize(torch.unflatten(x, 1, (num_vectors, -1)))


def _blocks(length: int, size: int) -> list[slice]:
    return [slice(start, start + size) for start in range(0, length, size)]

"""Beyond accuracy: what the filtered top K of all targets with known items look like, and who profits.

    coverage      share of the catalogue that is in any list
    gini          inequality of how often items are in lists: 0 all equally often, (X - 1) / X one item in all
                  G = sum_i (2 i - X - 1) c_(i) / (X sum_i c_i), c_(1) <= ... <= c_(X)
    novelty       mean of -log2 p(i), p(i) the item's share of the training events (Zhou et al. 2010, PNAS 107)
    diversity     mean over the pairs of a list of 1 - |genres in both| / |genres in either| (Jaccard); pairs with an
                  item without genres are left out, and without any genres it is null
    ndcg_debiased NDCG with each target weighted by 1 / its chance of having been observed:
                  sum_t w_t ndcg_t / sum_t w_t,  w_t = a_t min(1 / theta_t, MAX_WEIGHT),  theta = sqrt(n_i / max n)
                  n_i the item's training events, as in Saito et al. 2020 (WSDM, arXiv 1909.03601); self-normalised as
                  in Swaminathan & Joachims 2015 (NeurIPS); a_t = 1 / the user's number of targets. Cold targets weigh
                  MAX_WEIGHT and are misses.

Novelty and diversity are averaged per user, then over users, as every metric is.
Shapes: T targets, X catalogue size, K length of the lists, G genres.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from components.dataset import iterate_in_blocks
from components.metrics import average_by_user, expected_ndcg
from components.ranking.blocks import Ranking
from components.ranking.targets import Targets

TOP = 10  # K
MAX_WEIGHT = 10.0  # items with less than a hundredth of the most frequent one's events all weigh the same
_LISTS_A_BLOCK = 4_096  # 4,096 * 10 * 10 pairs

Beyond = dict[str, float | None]


def measure_beyond(targets: Targets, ranking: Ranking, counts_X: np.ndarray, genres: Sequence[str | None]) -> Beyond:
    """Return the five figures of one scorer. `counts_X`: training events; `genres`: of each item, joined by `|`."""
    known = torch.from_numpy(targets.items >= 0)
    lists_TK, users_T = ranking["top"][known], torch.from_numpy(targets.users)[known]
    times_X = torch.bincount(lists_TK[lists_TK >= 0], minlength=len(counts_X))
    gains_T = expected_ndcg(ranking["filtered"], TOP)
    found = {
        "coverage": float((times_X > 0).double().mean()),
        "gini": gini(times_X),
        "novelty": _mean_by_user(novelty(lists_TK, counts_X), users_T),
        "diversity": _mean_by_user(diversity(lists_TK, mark_genres(genres)), users_T),
        "ndcg_debiased": debias(gains_T, targets, counts_X),
    }
    return {f"{name}@{TOP}": None if np.isnan(value) else round(value, 6) for name, value in found.items()}


def gini(times_X: Tensor) -> float:
    """Return the Gini coefficient of non-negative numbers, NaN where all are 0."""
    ascending = times_X.double().sort().values
    signs = 2 * torch.arange(1, len(ascending) + 1, dtype=torch.float64) - len(ascending) - 1
    return float((signs * ascending).sum() / (len(ascending) * ascending.sum()))


def novelty(lists_TK: Tensor, counts_X: np.ndarray) -> Tensor:
    """Return (T,): the mean surprise of a list's items in bits; NaN for an empty list."""
    bits_X = -torch.log2(torch.from_numpy(counts_X) / counts_X.sum())
    return bits_X[lists_TK.clamp(min=0)].where(lists_TK >= 0, torch.nan).nanmean(1)


def diversity(lists_TK: Tensor, has_genre_XG: Tensor) -> Tensor:
    """Return (T,): the mean distance of a list's pairs; NaN for a list without a pair of items with genres."""
    num_items = len(has_genre_XG)
    padded_XG = torch.cat([has_genre_XG, has_genre_XG.new_zeros(1, has_genre_XG.shape[1])])
    is_pair_KK = torch.ones(lists_TK.shape[1], lists_TK.shape[1]).triu(1) > 0
    means = [torch.zeros(0)]
    for block in iterate_in_blocks(len(lists_TK), _LISTS_A_BLOCK):
        genres_TKG = padded_XG[lists_TK[block].where(lists_TK[block] >= 0, num_items)]
        both_TKK = genres_TKG @ genres_TKG.mT
        sizes_TK = genres_TKG.sum(2)
        either_TKK = sizes_TK[:, :, None] + sizes_TK[:, None, :] - both_TKK
        counts_TKK = is_pair_KK & (sizes_TK[:, :, None] > 0) & (sizes_TK[:, None, :] > 0)
        means.append((1 - both_TKK / either_TKK).where(counts_TKK, torch.nan).flatten(1).nanmean(1))
    return torch.cat(means)


def mark_genres(genres: Sequence[str | None]) -> Tensor:
    """Return (X, G) float: 1 where the item is of the genre; without any genres G is 0."""
    sets = [set(filter(None, (text or "").split("|"))) for text in genres]
    names = {name: number for number, name in enumerate(sorted(set().union(*sets)))}
    has_genre_XG = torch.zeros(len(sets), len(names))
    for row, own in enumerate(sets):
        has_genre_XG[row, [names[name] for name in own]] = 1
    return has_genre_XG


def debias(gains_T: Tensor, targets: Targets, counts_X: np.ndarray) -> float:
    """Return the self-normalised, clipped inverse-propensity mean of each target's gain (T,)."""
    counts_T = np.where(targets.items >= 0, counts_X[targets.items], 0)
    with np.errstate(divide="ignore"):
        weights_T = np.minimum(1 / np.sqrt(counts_T / counts_X.max()), MAX_WEIGHT)
    _, user_of_T, num_targets_U = np.unique(targets.users, return_inverse=True, return_counts=True)
    weights_T = torch.from_numpy(weights_T / num_targets_U[user_of_T])
    return float((weights_T * gains_T).sum() / weights_T.sum())


def _mean_by_user(values_T: Tensor, users_T: Tensor) -> float:
    """Average per user, then over users, what is a number; NaN where nothing is."""
    is_number = ~values_T.isnan()
    _, means_U = average_by_user(values_T[is_number].double(), users_T[is_number])
    return float(means_U.mean())

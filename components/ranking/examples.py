"""What the service would have answered some users of the test part, beside what they really took next.

Shapes: T targets.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from components.ranking.targets import Targets
from components.recommender import Recommender

NUM_RECOMMENDED, NUM_HISTORY_TITLES = 5, 5


def make_examples(targets: Targets, recommender: Recommender, user_ids: np.ndarray, count: int) -> list[dict[str, Any]]:
    """Recommend for the last known target of `count` users, evenly spaced over all, none picked by hand.

    `user_ids` (U,): the log's. Each example is {user, history: [titles], recommended: [{title, score}], actual: title}.
    """
    known = targets.take(targets.items >= 0)
    last = known.take(np.diff(known.users, append=-1) != 0)
    places = (np.arange(count) + 0.5) / max(count, 1) * len(last)
    chosen = last.take(np.unique(places.astype(np.int64))) if len(last) else last
    return [_make_example(chosen, index, recommender, user_ids) for index in range(len(chosen))]


def _make_example(targets: Targets, index: int, recommender: Recommender, user_ids: np.ndarray) -> dict[str, Any]:
    catalogue, history = recommender.catalogue, slice(targets.firsts[index], targets.positions[index])
    rows, times = targets.known_items[history].tolist(), targets.known_timestamps[history].tolist()
    answer = recommender.recommend(
        [(catalogue.item_ids[row], time) for row, time in zip(rows, times, strict=True)],
        NUM_RECOMMENDED,
        request_time=int(targets.request_times[index]),
    )
    return {
        "user": int(user_ids[targets.users[index]]),
        "history": [catalogue.titles[row] for row in rows[-NUM_HISTORY_TITLES:]],
        "recommended": [
            {"title": item.title, "score": None if item.score is None else round(item.score, 4)}
            for item in answer.items
        ],
        "actual": catalogue.titles[targets.items[index]],
    }

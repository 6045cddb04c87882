"""What a model must beat, in every evaluation: popularity, recent popularity, item-item co-occurrence, context.

    choose_baselines    their few parameters, on the validation part
    fit_baselines       the scorers, fitted at the start of the window that is judged

popularity         all events before the window                      (popularity.py)
popularity_recent  those of the last days before it                  (popularity.py)
item_item          co-occurrence with the last items of the history  (item_item.py)
contextual         popularity, freshness and age at the request time (contextual.py)

Each is a `Scorer` of components/ranking/blocks.py, so all are ranked by the code that ranks a model.
Training imports this package for `popularity` on a bare GPU machine as well: scipy comes with item_item, when needed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from components.baselines.contextual import ContextualChoice, ContextualScorer, fit_choices
from components.baselines.popularity import PopularityScorer, fit_popularity
from components.baselines.timeline import build_timeline

if TYPE_CHECKING:
    from components.baselines.item_item import ItemItemChoice
    from components.dataset import Sequences
    from components.ranking.blocks import Scorer

BASELINES = ("popularity", "popularity_recent", "item_item", "contextual")

__all__ = ["BASELINES", "Chosen", "Measure", "choose_baselines", "fit_baselines"]

_Choice = TypeVar("_Choice")
Measure = Callable[[Mapping[str, "Scorer"]], Mapping[str, float]]


@dataclass(frozen=True)
class Chosen:
    """What validation chose; `dataclasses.asdict` makes JSON of it."""

    recent_days: int
    item_item: ItemItemChoice
    contextual: ContextualChoice


def choose_baselines(sequences: Sequences, measure: Measure, recent_days: Sequence[int]) -> Chosen:
    """Choose among `recent_days` and the grids of the other baselines; the first of equals wins.

    `measure` gives the headline metric of each scorer on the validation part.
    """
    from components.baselines.item_item import ITEM_ITEM_GRID, ItemItemScorer, fit_item_item

    item_item = fit_item_item(sequences, "valid")
    recent = {days: PopularityScorer(fit_popularity(sequences, "valid", days=days)) for days in recent_days}
    near = {choice: ItemItemScorer(item_item, choice) for choice in ITEM_ITEM_GRID}
    timeline = build_timeline(sequences)
    context = {choice: ContextualScorer(timeline, choice) for choice in fit_choices(sequences)}
    return Chosen(_best(recent, measure), _best(near, measure), _best(context, measure))


def fit_baselines(sequences: Sequences, part: str, chosen: Chosen) -> dict[str, Scorer]:
    """Fit every baseline at the start of the window of `part`, 'valid' or 'test', in the order of BASELINES."""
    from components.baselines.item_item import ItemItemScorer, fit_item_item

    return {
        "popularity": PopularityScorer(fit_popularity(sequences, part)),
        "popularity_recent": PopularityScorer(fit_popularity(sequences, part, days=chosen.recent_days)),
        "item_item": ItemItemScorer(fit_item_item(sequences, part), chosen.item_item),
        "contextual": ContextualScorer(build_timeline(sequences), chosen.contextual),
    }


def _best(scorers: Mapping[_Choice, Scorer], measure: Measure) -> _Choice:
    """Return the choice whose scorer measures best, the first of equals."""
    values = measure({str(number): scorer for number, scorer in enumerate(scorers.values())})
    best = max(range(len(scorers)), key=lambda number: values[str(number)])
    return list(scorers)[best]

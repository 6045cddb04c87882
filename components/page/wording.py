"""What the page calls things, and the one sentence that says what each of them means."""

from __future__ import annotations

MODELS = {  # trained models, then the baselines: the order of every table
    "hstu": "HSTU",
    "sasrec": "SASRec",
    "popularity": "popularity",
    "popularity_recent": "popularity, last {recent_days} days",
    "item_item": "item-item",
    "contextual": "contextual",
}
COLOURS = {model: f"series-{place}" for place, model in enumerate(MODELS)}
BASELINES = {
    "popularity": "all events before the judged part, counted by item",
    "popularity_recent": "the same over the last days only",
    "item_item": "items that the same users took as those at the end of the history",
    "contextual": "popularity, freshness and age of an item at the moment of the request; nothing about the user",
}
OUTCOMES = {  # verdict -> (headline, what follows)
    "accepted": ("{model} beats the best baseline, {baseline}.", "It is packaged and promoted."),
    "inconclusive": (
        "{model} cannot be told from the best baseline, {baseline}.",
        "It is packaged with the label inconclusive.",
    ),
    "refused": ("{model} loses to the best baseline, {baseline}.", "It is built as a candidate and never promoted."),
}
PROTOCOLS = {"time_split": "global time split", "leave_one_out": "leave-one-out"}
CONDITIONS = {  # suffix -> (short name, what it assumes)
    "": ("headline", "every held-out event with a history; what the user had is not ranked; the request time is known"),
    ".unknown_time": ("time unknown", "the model is told the time of the user's last event, not that of the request"),
    ".untied": ("untied only", "only targets that share their time with no other event of the user"),
    ".unfiltered": ("unfiltered", "what the user already had stays in the ranking"),
    ".first": ("first event", "only each user's first event of the test part that has a history"),
    ".last": ("last event", "only each user's last event of the test part"),
    ".valid": ("validation", "the part before the test: it chose the epoch, the baselines' parameters and the verdict"),
}
SLICES = {  # key of facts.json -> (title, what the rows are)
    "history": ("Length of the history", "known events before the target"),
    "item_age": ("Age of the item", "days since anybody's first event with it; cold: train never saw it"),
    "item_popularity": ("Popularity of the item", "tenths of all training events, 1: the few most frequent items"),
    "activity": ("Activity of the user", "events before the target per day with any"),
}
BEYOND = {  # metric -> (column, format, what is good)
    "coverage@10": ("Coverage", "{:.0%}", "share of the catalogue that anybody was shown: higher opens more of it"),
    "gini@10": ("Gini", "{:.2f}", "how unequally items are shown, 0 to 1: lower spreads attention"),
    "novelty@10": (
        "Novelty",
        "{:.1f}",
        "bits of surprise, minus log2 of an item's share of train: higher is less obvious",
    ),
    "diversity@10": ("Diversity", "{:.2f}", "how little the genres of one list overlap, 0 to 1: higher is more varied"),
    "ndcg_debiased@10": (
        "Debiased",
        "{:.3f}",
        "NDCG@10 in which rare targets weigh more: higher finds more than what is popular anyway",
    ),
}


def metric_name(metric: str) -> str:
    """Return a metric as it is written in prose.

    >>> metric_name("ndcg@10")
    'NDCG@10'
    """
    return metric.upper()


def list_words(words: list[str]) -> str:
    """Join words as prose does.

    >>> list_words(["a", "b", "c"])
    'a, b and c'
    """
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))

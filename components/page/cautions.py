"""What a reader should know before relying on the verdict: loud alarms, and quieter reasons to look twice.

Alarms say that a number may not mean what it seems to mean; they come from the evaluations, but for the one about
repeats. Cautions are computed from the paired differences. Nothing here changes the verdict.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from components.page.results import Result
from components.page.view import Page
from components.page.wording import CONDITIONS, list_words

# MovieLens has no repeats, music and grocery logs half and more; at a fifth the headline is visibly lifted.
MAX_REPEATS = 0.2
FEW_USERS = 100  # with fewer an interval is so wide that only large differences show
WORDS = {"ahead": "is ahead of", "behind": "is behind", "undecided": "cannot be told from"}
OUTCOMES = {"accepted": "ahead", "inconclusive": "undecided", "refused": "behind"}


def find_alarms(results: Iterable[Result]) -> list[str]:
    """Return every cell's alarms, each once, with the protocol and the models that it is about."""
    found: dict[tuple[str, str], list[str]] = {}
    for result in results:
        for sentence in [*result.facts["alarms"], *_many_repeats(result.protocol, result.facts["test"])]:
            found.setdefault((result.protocol, sentence), []).append(result.model)
    return [f"{protocol}, {list_words(models)}: {sentence}" for (protocol, sentence), models in found.items()]


def find_cautions(page: Page) -> list[str]:
    """Return what speaks against relying on the verdict, the gravest first."""
    return [
        *_test_disagrees(page),
        *_others_ahead(page),
        *_other_answers(page),
        *_few_users(page.lead.facts["test"]["users"]),
        *_one_seed(page.lead.checkpoint["settings"]),
    ]


def find_other_answers(page: Page) -> list[str]:
    """Return the suffixes of the conditions under which the comparison with the best baseline there ends otherwise.

    Validation is none of them: it is the verdict itself, beside which the page puts the test part.
    """
    usual = page.against_best_baseline("").outcome
    suffixes = [suffix for suffix in page.conditions if suffix != ".valid"]
    return [suffix for suffix in suffixes if page.against_best_baseline(suffix).outcome != usual]


def _many_repeats(protocol: str, test: Mapping[str, Any]) -> list[str]:
    if test["repeat_share"] <= MAX_REPEATS:
        return []
    return [
        f"{test['repeat_share']:.0%} of the test targets are items that the user already had, expected at most "
        f"{MAX_REPEATS:.0%}. Filtering takes away all else that the user had and keeps the target, so the headline is "
        f"far too high for every model. Read {protocol}.unfiltered instead."
    ]


def _test_disagrees(page: Page) -> list[str]:
    gate = page.lead.gate
    test = page.compare("", gate["baseline"])
    if test.outcome == OUTCOMES[gate["verdict"]]:
        return []
    return [f"On the test part it {WORDS[test.outcome]} {page.name(gate['baseline'])}: the verdict is validation's."]


def _others_ahead(page: Page) -> list[str]:
    """Name the models that are better or as good, but for the verdict's baseline."""
    others = [page.compare("", other) for other in page.models[1:] if other != page.lead.gate["baseline"]]
    return [
        f"On the test part it {WORDS[outcome]} {list_words(names)}."
        for outcome in ("behind", "undecided")
        if (names := [page.name(one.other) for one in others if one.outcome == outcome])
    ]


def _other_answers(page: Page) -> list[str]:
    return [
        f"Under “{CONDITIONS[suffix][0]}” it {WORDS[one.outcome]} {page.name(one.other)}."
        for suffix in find_other_answers(page)
        for one in [page.against_best_baseline(suffix)]
    ]


def _few_users(users: int) -> list[str]:
    return [f"Only {users} users are judged: small differences cannot show."] if users < FEW_USERS else []


def _one_seed(settings: Mapping[str, Any]) -> list[str]:
    return [
        f"One training, seed {settings['seed']}: another seed gives other numbers, and the intervals do not know that."
    ]

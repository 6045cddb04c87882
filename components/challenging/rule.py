"""The promotion rule: from what was measured to checks, each with its limit, and a verdict. Pure functions.

    passed      every check holds: `promote` promotes the candidate
    failed      one does not: the champion stays, and the reasons say why
    undecided   nothing else speaks against it, but fewer than `min_users` users have events that neither has seen
    champion    the candidate is the champion already

Not to be worse is enough (decision 0022): a challenger that is only as good knows newer items. So the lower end of the
paired interval has to lie above -max_loss. A slice counts against it where it is worse beyond chance *and* by more than
max_slice_loss: two seeds of one recipe differed by -.037 [-.059, -.014] in one of 26 slices of ML-100K.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from components.settings import PromoteSettings

Sense = Literal["at least", "at most", "above"]
Verdict = Literal["passed", "failed", "undecided", "champion"]
Measured = Mapping[str, Any]


@dataclass(frozen=True)
class Check:
    """One line of the rule."""

    name: str
    observed: float
    sense: Sense
    limit: float
    about: str = ""  # what the number is of, or which slices

    @property
    def passed(self) -> bool:
        """Whether the limit is kept; never by NaN."""
        kept = {
            "at least": self.observed >= self.limit,
            "at most": self.observed <= self.limit,
            "above": self.observed > self.limit,
        }
        return kept[self.sense]

    def describe(self) -> dict[str, Any]:
        """Return the check as it is written down."""
        return asdict(self) | {"passed": self.passed}

    def __str__(self) -> str:
        about = f" ({self.about})" if self.about else ""
        return f"{self.name}{about} is {self.observed:g}, {self.sense} {self.limit:g} is asked for"


def apply_rule(measured: Measured, limits: PromoteSettings) -> list[Check]:
    """Return the checks that what was measured allows: `contest` (contest.py), `package` (packaged.py), or both."""
    checks = []
    if measured.get("contest") is not None:
        checks += _check_contest(measured["contest"], limits)
    if measured.get("package") is not None:
        package = measured["package"]
        checks += [
            Check("latency, ms", package["latency_ms"], "at most", limits.max_latency_ms, "one answer, 200 events"),
            Check("export, MB", package["megabytes"], "at most", limits.max_megabytes),
            Check("score difference", package["score_difference"], "at most", limits.max_score_difference, "packaged"),
        ]
    return checks


def decide(checks: Sequence[Check]) -> Verdict:
    """Return what the checks mean."""
    failed = [check for check in checks if not check.passed]
    if not failed:
        return "passed"
    return "undecided" if all(check.name == "users" for check in failed) else "failed"


def explain(checks: Sequence[Check]) -> list[str]:
    """Say in a sentence each what failed; where nothing did, what the newest window showed."""
    failed = [str(check) for check in checks if not check.passed]
    return failed or ["every check of the challenge holds", *map(str, checks[:1])]


def find_worse_slices(slices: Sequence[Mapping[str, Any]], limits: PromoteSettings) -> list[Mapping[str, Any]]:
    """Return the slices of enough users in which the challenger is worse beyond chance and by more than its limit."""
    counted = [one for one in slices if one["users"] >= limits.min_slice_users]
    return [one for one in counted if one["high"] < 0 and one["difference"] < -limits.max_slice_loss]


def _check_contest(contest: Mapping[str, Any], limits: PromoteSettings) -> list[Check]:
    metric, checks = contest["metric"], []
    if contest["paired"] is not None:
        about = "lower end, challenger - champion"
        checks.append(Check(metric, contest["paired"]["low"], "at least", -limits.max_loss, about))
    if contest["has_champion"]:
        checks.append(_check_users(contest, limits))
    if contest["baselines"]:
        best = min(contest["baselines"], key=lambda name: contest["baselines"][name]["difference"])
        margin = contest["baselines"][best]["difference"]
        checks.append(Check(f"{metric} gain", margin, "above", 0.0, f"over {best}, the best baseline"))
    if contest["paired"] is not None:
        worse = find_worse_slices(contest["slices"], limits)
        names = ", ".join(f"{one['kind']} {one['name']} {one['difference']:+.4f}" for one in worse)
        checks.append(Check("worse slices", len(worse), "at most", 0, names))
    return checks


def _check_users(contest: Mapping[str, Any], limits: PromoteSettings) -> Check:
    """Ask for enough users; where enough have events but none was scored beside the champion, there is none."""
    users, about = contest["window"]["users"], "whom neither has seen"
    if contest["paired"] is None and users >= limits.min_users:
        users, about = 0, f"scored, of {users} whom neither has seen"
    return Check("users", users, "at least", limits.min_users, about)

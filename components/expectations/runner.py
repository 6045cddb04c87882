"""Runs expectation suites with Great Expectations, in memory, and renders its result tables. Nothing else imports it.

    runner = SuiteRunner()
    judgements = runner.run("rows", frame, suite)      # one Judgement per expectation, in the suite's order
    html = render_table("rows", judgements)

Great Expectations takes 6 to 12 s to import, so it is imported when a runner is made.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from markupsafe import Markup

from components.errors import ValidationFailedError
from components.expectations.suites import Expectation

if TYPE_CHECKING:
    from great_expectations.core import ExpectationValidationResult

# COMPLETE lists the index of every bad row. With unexpected_index_column_names=[partition, row] it would name them
# itself, in 28 s instead of 2 s for 600k bad rows of 1M; the index is the row's position, from which both follow.
RESULT_FORMAT = {
    "result_format": "COMPLETE",
    "exclude_unexpected_values": True,
    "return_unexpected_index_query": False,
}


@dataclass(frozen=True)
class Judgement:
    """The outcome of one expectation.

    observed: the fact itself, or how many rows break the expectation
    rows:     positions of those rows, ascending int64
    """

    suite: str
    expectation: Expectation
    success: bool
    observed: float
    rows: np.ndarray
    result: ExpectationValidationResult


class SuiteRunner:
    """Great Expectations without a project folder, network or progress bars."""

    def __init__(self) -> None:
        os.environ["GX_ANALYTICS_ENABLED"] = "false"  # read at import
        import great_expectations as gx
        from great_expectations.data_context.types.base import ProgressBarsConfig

        # set to INFO at import; it announces a temporary folder for the site that we do not build
        logging.getLogger("great_expectations.data_context.types.base").setLevel(logging.WARNING)
        self._gx = gx
        self._context = gx.get_context(mode="ephemeral")
        self._context.variables.progress_bars = ProgressBarsConfig(globally=False)
        self._source = self._context.data_sources.add_pandas("log")

    def run(self, name: str, frame: pd.DataFrame, suite: list[Expectation]) -> list[Judgement]:
        """Judge `frame` (index 0..n-1) by `suite`; a name can be used once.

        Raises:
            ValidationFailedError: an expectation could not be evaluated, which Great Expectations reports as a failure.
        """
        gx = self._gx
        built = [
            getattr(gx.expectations, e.kind)(column=e.column, description=e.claim, meta={"name": e.name}, **e.options)
            for e in suite
        ]
        definition = gx.ValidationDefinition(
            name=name,
            data=self._source.add_dataframe_asset(name).add_batch_definition_whole_dataframe("all"),
            suite=self._context.suites.add(gx.ExpectationSuite(name=name, expectations=built)),
        )
        outcome = self._context.validation_definitions.add(definition).run(
            batch_parameters={"dataframe": frame}, result_format=RESULT_FORMAT
        )
        # results come grouped by column: found again by the name that each expectation carries
        results = {result.expectation_config.meta["name"]: result for result in outcome.results}  # type: ignore[union-attr]
        return [_judgement(name, expectation, results[expectation.name]) for expectation in suite]


def restate(judgement: Judgement, num_rows: int, num_missing: int, rows: np.ndarray) -> Judgement:
    """Return `judgement` of a row expectation as it would be over `num_rows` rows of which those at `rows` break it.

    But for `unexpected_percent`: Great Expectations takes it of the rows that are not null, renders it as one of all,
    and as "--" where all are null. Here it is of all.
    """
    counts = {
        "element_count": num_rows,
        "missing_count": num_missing,
        "missing_percent": _percent(num_missing, num_rows),
        "unexpected_count": len(rows),
        "unexpected_percent": _percent(len(rows), num_rows),
        "unexpected_percent_nonmissing": _percent(len(rows), num_rows - num_missing),
        "unexpected_percent_total": _percent(len(rows), num_rows),
    }
    judgement.result.result = {name: counts[name] for name in judgement.result.result}
    judgement.result.success = not len(rows)
    return replace(judgement, success=not len(rows), observed=len(rows), rows=rows)


def _percent(part: int, whole: int) -> float | None:
    return part / whole * 100 if whole else None


def render_table(suite: str, judgements: list[Judgement]) -> Markup:
    """Let Great Expectations render its results as an HTML table; `suite` makes the ids in it distinct."""
    from great_expectations.render.renderer.content_block import (  # type: ignore[attr-defined]
        ValidationResultsTableContentBlockRenderer,
    )
    from great_expectations.render.view import DefaultJinjaComponentView  # type: ignore[attr-defined]

    block: Any = ValidationResultsTableContentBlockRenderer.render([judgement.result for judgement in judgements])
    view: Any = DefaultJinjaComponentView()
    html = view.render(
        {"content_block": block.to_json_dict()}, section_loop={"index": suite}, content_block_loop={"index": 1}
    )
    return Markup(html)  # noqa: S704 - claims are ours and values are numbers


def version() -> str:
    """Return the version of Great Expectations."""
    import great_expectations as gx

    return str(gx.__version__)


def _judgement(suite: str, expectation: Expectation, result: ExpectationValidationResult) -> Judgement:
    _raise_exception(expectation, result)
    found = result.result
    is_fact = "observed_value" in found
    observed = np.asarray(found["observed_value" if is_fact else "unexpected_count"]).item()
    rows = np.sort(np.asarray(found.get("unexpected_index_list") or [], dtype=np.int64))
    # kept for the data docs: no lists of a million rows, no numpy scalars (the renderer fails on np.float64(0.2))
    result.result = {key: value for key, value in found.items() if not isinstance(value, list)}
    if is_fact:
        result.result["observed_value"] = observed
    return Judgement(suite, expectation, bool(result.success), observed, rows, result)


def _raise_exception(expectation: Expectation, result: ExpectationValidationResult) -> None:
    """Raise what happened inside an expectation; `exception_info` holds it as is, or once per metric."""
    info = result.exception_info
    for facts in [info] if "raised_exception" in info else info.values():
        if facts["raised_exception"]:
            raise ValidationFailedError(
                f"the expectation {expectation.name} could not be evaluated",
                where=f"column {expectation.column}",
                observed=facts["exception_message"],
                expected=expectation.claim,
            )

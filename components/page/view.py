"""All evaluations as the page looks at them: one packaged model on the headline protocol, everything else beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from components.page.comparisons import Comparison
from components.page.results import Metrics, Result
from components.page.wording import CONDITIONS, MODELS


@dataclass(frozen=True)
class Page:
    """All that the page is made of; `lead` is the packaged model on the headline protocol."""

    lead: Result
    results: Mapping[tuple[str, str], Result]
    metrics: Metrics
    comparisons: Sequence[Comparison]
    validation: Mapping[str, Any]  # reports/validation.json

    @property
    def metric(self) -> str:
        """The headline metric."""
        return str(self.lead.gate["metric"])

    @property
    def models(self) -> list[str]:
        """Trained models, the packaged one first, then the baselines."""
        return order_models(self.lead, self.metrics)

    @property
    def trained(self) -> list[str]:
        """The models that were trained, the packaged one first."""
        cells = {model for _, model in self.results}
        return [model for model in self.models if model in cells]

    @property
    def baselines(self) -> list[str]:
        """The models that were not."""
        return [model for model in self.models if model not in self.trained]

    @property
    def protocols(self) -> list[str]:
        """The headline protocol, then the others."""
        return list(dict.fromkeys([self.lead.protocol, *(protocol for protocol, _ in self.results)]))

    @property
    def conditions(self) -> list[str]:
        """Suffixes of the headline protocol's conditions, the headline's first."""
        return [suffix for suffix in CONDITIONS if self.lead.protocol + suffix in self.metrics]

    def name(self, model: str, protocol: str | None = None) -> str:
        """How a model is called on the page; each protocol has its own recent window (default: the headline's)."""
        facts = self.results[protocol or self.lead.protocol, self.lead.model].facts
        return MODELS.get(model, model).format(recent_days=facts["recent_days"])

    def value(self, suffix: str, model: str) -> Mapping[str, float]:
        """Return the headline metric of a model under a condition of the headline protocol: {value, low, high}."""
        return self.metrics[self.lead.protocol + suffix][model][self.metric]

    def compare(self, suffix: str, other: str) -> Comparison:
        """Return the packaged model minus `other` under a condition of the headline protocol."""
        names = (self.lead.protocol + suffix, self.lead.model, other)
        return next(one for one in self.comparisons if (one.condition, one.model, one.other) == names)

    def compare_all(self, protocol: str) -> list[Comparison]:
        """Return every pair under the headline condition of a protocol."""
        return [one for one in self.comparisons if one.condition == protocol]

    def against_best_baseline(self, suffix: str) -> Comparison:
        """Return the packaged model minus the best baseline of a condition; so chosen, the baseline is favoured."""
        return self.compare(suffix, max(self.baselines, key=lambda model: self.value(suffix, model)["value"]))

    def beyond(self, model: str) -> Mapping[str, float | None]:
        """Return a model's numbers beyond accuracy; each trained model's are in its own cell."""
        cell = model if (self.lead.protocol, model) in self.results else self.lead.model
        found: Mapping[str, float | None] = self.results[self.lead.protocol, cell].facts["beyond"][model]
        return found

    def slices(self, key: str, model: str) -> list[dict[str, Any]]:
        """Return a slicing of the headline protocol in which `model` stands."""
        cell = model if (self.lead.protocol, model) in self.results else self.lead.model
        found: list[dict[str, Any]] = self.results[self.lead.protocol, cell].facts["slices"][key]
        return found


def order_models(lead: Result, metrics: Metrics) -> list[str]:
    """Order the models of the headline protocol: the packaged one, then as in wording.MODELS, then any others."""
    known = [lead.model, *(model for model in MODELS if model in metrics[lead.protocol])]
    return list(dict.fromkeys([*known, *metrics[lead.protocol]]))

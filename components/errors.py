"""Every error a person can cause, as one sentence that says what to do next.

One root, few leaves. The command line prints the sentence and exits with `exit_status`; the service answers it with
`http_status`.
"""

from __future__ import annotations


class HstuflowError(Exception):
    """Root of all errors that hstuflow raises on purpose.

    The message reads: what, at where: observed X, expected Y. What to do.
    """

    http_status = 500
    exit_status = 2

    def __init__(
        self,
        what: str,
        *,
        where: str | None = None,
        observed: object = None,
        expected: object = None,
        todo: str | None = None,
    ) -> None:
        self.what, self.where, self.observed, self.expected, self.todo = what, where, observed, expected, todo
        super().__init__(self._sentence())

    def inside(self, place: str) -> None:
        """Say that `where` lies in `place`: k becomes requests.3.k."""
        self.where = f"{place}.{self.where}" if self.where else place
        self.args = (self._sentence(),)

    def _sentence(self) -> str:
        facts = [f"observed {self.observed}"] if self.observed is not None else []
        facts += [f"expected {self.expected}"] if self.expected is not None else []
        sentence = f"{self.where}: {self.what}" if self.where else self.what
        sentence += ": " + ", ".join(facts) if facts else ""
        sentence += f". {self.todo}" if self.todo else ""
        return " ".join(sentence.split())


class InputError(HstuflowError):
    """A file, a setting or a request from outside cannot be used as it is."""

    http_status = 400


class SettingsError(InputError):
    """params.yaml, a recipe or a command-line option is wrong."""


class SourceUnreachableError(HstuflowError):
    """A log that lives elsewhere could not be fetched; trying again later may help."""

    http_status = 503
    exit_status = 75  # EX_TEMPFAIL of sysexits.h: the flow tries again


class ValidationFailedError(HstuflowError):
    """The log as a whole breaks an expectation, so nothing after validation may run."""


class StateError(HstuflowError):
    """Something an earlier step should have made is missing, stale or in use."""

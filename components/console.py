"""What a person sees: log lines, progress with ETA, closing tables. On a terminal and in a log file alike.

rich is imported inside the functions: kernels and training also run where it is not installed.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Mapping, Sequence
from types import TracebackType

log = logging.getLogger("hstuflow")

_SECONDS_BETWEEN_LINES = 5.0


def setup_logging(level: int = logging.INFO) -> None:
    """Send log lines to stderr, one line each, time first."""
    logging.basicConfig(
        level=level, stream=sys.stderr, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", force=True
    )
    for noisy in ("great_expectations", "fsspec", "matplotlib", "urllib3", "bentoml"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


class Progress:
    """Progress of a loop with ETA: a bar on a terminal, else one fixed-width line every few seconds.

    with Progress("epoch 3", total=60) as progress:
        for batch in batches:
            progress.advance(loss=f"{loss:.3f}")
    """

    def __init__(self, what: str, total: int) -> None:
        self.what, self.total, self.done = what, max(total, 1), 0
        self._start = self._last_line = time.monotonic()
        self._terminal = sys.stderr.isatty()

    def __enter__(self) -> Progress:
        return self

    def advance(self, steps: int = 1, **facts: object) -> None:
        """Count `steps` as done and show `facts` (loss=..., rate=...) beside them."""
        self.done += steps
        now = time.monotonic()
        if now - self._last_line < (0.1 if self._terminal else _SECONDS_BETWEEN_LINES):
            return
        self._last_line = now
        line = self._line(now, facts)
        if self._terminal:
            sys.stderr.write(f"\r\x1b[K{line}")
            sys.stderr.flush()
        else:
            log.info("%s", line)

    def _line(self, now: float, facts: Mapping[str, object]) -> str:
        left = (now - self._start) / max(self.done, 1) * (self.total - self.done)
        shown = "  ".join(f"{name} {value}" for name, value in facts.items())
        bar = ""
        if self._terminal:
            filled = 24 * self.done // self.total
            bar = "━" * filled + "╌" * (24 - filled) + " "
        return f"{self.what:<24} {bar}{self.done:>7,}/{self.total:,}  ETA {left:4.0f} s  {shown}"

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._terminal:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()


def percent(share: float) -> str:
    """Return a share as people write it.

    >>> percent(0.95), percent(0.995)
    ('95%', '99.5%')
    """
    return f"{100 * share:.6g}%"


def print_header(title: str, facts: Mapping[str, str]) -> None:
    """Log what was chosen and why, one aligned line per fact."""
    log.info("%s", title)
    width = max(map(len, facts), default=0)
    for name, value in facts.items():
        log.info("  %s  %s", name.ljust(width), value)


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table to stdout; the first column is text, the others are right-aligned."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right", overflow="fold")
    for row in rows:
        table.add_row(*(str(cell) for cell in row))
    Console(width=None if sys.stdout.isatty() else 120, highlight=False).print(table)

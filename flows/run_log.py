"""How a flow's log reads: one line for one thing, on the terminal and in Prefect's UI.

Imports no prefect, because Prefect reads the formats when it is imported.
"""

from __future__ import annotations

import logging
import os

from components.errors import HstuflowError

_FORMATS = {
    "FMT": "%(asctime)s  %(message)s",
    "FLOW_RUN_FMT": "%(asctime)s  %(message)s",
    "TASK_RUN_FMT": "%(asctime)s  %(task_run_name)-24s  %(message)s",
}


def use_short_lines() -> None:
    """Let Prefect's console lines be time, stage and message; call it before prefect is imported."""
    for name, line in _FORMATS.items():
        os.environ.setdefault(f"PREFECT_LOGGING_FORMATTERS_STANDARD_{name}", line)


def hide_expected_tracebacks() -> None:
    """Log an error that hstuflow raised on purpose as its sentence, without 100 lines of Prefect's own stack."""
    for name in ("prefect.flow_runs", "prefect.task_runs"):
        logger = logging.getLogger(name)
        if _drop_expected_traceback not in logger.filters:
            logger.addFilter(_drop_expected_traceback)


def _drop_expected_traceback(record: logging.LogRecord) -> bool:
    if record.exc_info and isinstance(record.exc_info[1], HstuflowError):
        record.exc_info = None
    return True

import logging
import sys

import pytest

from components import console
from components.console import Progress, print_header, print_table


class _Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> _Clock:
    clock = _Clock()
    monkeypatch.setattr(console, "time", clock)
    return clock


def test_outside_a_terminal_progress_is_a_line_every_few_seconds(clock, caplog):
    caplog.set_level(logging.INFO, logger="hstuflow")
    with Progress("epoch 1", total=100) as progress:
        for _ in range(100):
            clock.now += 0.25
            progress.advance(loss="1.5")
    assert [record.message.split("ETA")[0].split() for record in caplog.records] == [
        ["epoch", "1", f"{done}/100"] for done in (20, 40, 60, 80, 100)
    ]
    assert "ETA   20 s  loss 1.5" in caplog.records[0].message


def test_on_a_terminal_progress_is_a_bar_that_goes_away(clock, monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with Progress("epoch 1", total=4) as progress:
        clock.now += 1
        progress.advance(2)
    shown = capsys.readouterr().err
    assert "━" * 12 + "╌" * 12 in shown
    assert shown.endswith("\r\x1b[K")


def test_tables_and_headers_show_every_cell(capsys, caplog):
    caplog.set_level(logging.INFO, logger="hstuflow")
    print_header("training", {"device": "cpu (no GPU found)"})
    print_table("result", ["metric", "hstu"], [["ndcg@10", 0.1]])
    assert "device  cpu (no GPU found)" in caplog.text
    table = capsys.readouterr().out
    assert all(cell in table for cell in ("metric", "hstu", "ndcg@10", "0.1"))

"""The merged numbers and the closing table, and that the report takes what the evaluation really writes."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from made_evaluations import make_results, run_evaluation
from made_pages import BASELINES, make_pages, report_settings

from components.errors import SettingsError, StateError
from components.files import read_json, write_json
from components.page.results import sort_metrics
from components.report import print_summary, write_report

ROOT = Path(__file__).parent.parent


@pytest.fixture
def root(tmp_path):
    return make_pages(tmp_path)


def write(root, **settings):
    write_report(report_settings(**settings), artifacts=root / "artifacts", reports=root / "reports")
    return (root / "reports" / "report.html").read_text(encoding="utf-8")


def summarise(root, capsys, **settings):
    capsys.readouterr()
    folders = {name: root / name for name in ("artifacts", "reports", "registry")}
    print_summary(report_settings(**settings), **folders)
    return capsys.readouterr().out


def change_gate(root, **changes):
    file = root / "artifacts" / "evaluation" / "time_split" / "hstu" / "gate.json"
    write_json(file, read_json(file) | changes)


def test_what_the_evaluation_writes_can_be_reported(tmp_path, capsys):
    root = make_results(tmp_path)
    page = write(root)
    metrics = read_json(root / "reports" / "metrics.json")
    for model, values in metrics["time_split"].items():
        assert f"{values['ndcg@10']['value']:.4f}".removeprefix("0") in page, model
        assert model in summarise(root, capsys)
    for one in read_json(root / "reports" / "comparisons.json"):
        means = [metrics[one["condition"]][model]["ndcg@10"]["value"] for model in (one["model"], one["other"])]
        assert one["difference"] == pytest.approx(means[0] - means[1], abs=2e-6)


def test_one_cutoff_is_enough(tmp_path):
    root = make_results(tmp_path)
    shutil.rmtree(root / "artifacts" / "evaluation")
    run_evaluation(root, cutoffs=(10,))
    page = write(root)
    assert "Hit rate among the first k" not in page


def test_a_closing_table_of_an_older_report_is_refused(root, capsys):
    write(root)
    summarise(root, capsys)
    change_gate(root, difference=0.5)
    with pytest.raises(StateError, match=r"is older than the evaluations.*components report"):
        summarise(root, capsys)


def test_all_cells_are_merged(tmp_path):
    protocols, models = ("time_split", "leave_one_out"), ("hstu", "sasrec")
    root = make_pages(tmp_path, protocols=protocols, models=models)
    write(root, protocols=protocols, models=models)
    merged = read_json(root / "reports" / "metrics.json")
    assert {condition.split(".")[0] for condition in merged} == set(protocols)
    assert all(set(found) == {*models, *BASELINES} for found in merged.values())
    for protocol in protocols:
        for model in models:
            cell = read_json(root / "artifacts" / "evaluation" / protocol / model / "metrics.json")
            assert all(merged[condition][model] == cell[condition][model] for condition in cell)


def test_the_gate_is_that_of_the_packaged_model_on_the_headline_protocol(root):
    write(root)
    cell = root / "artifacts" / "evaluation" / "time_split" / "hstu" / "gate.json"
    assert read_json(root / "reports" / "gate.json") == read_json(cell)


def test_what_an_older_run_left_behind_is_not_reported(root):
    old = root / "artifacts" / "evaluation" / "leave_one_out" / "sasrec"
    write_json(old / "metrics.json", {"leave_one_out": {"sasrec": {}}})
    write(root)
    assert all(condition.startswith("time_split") for condition in read_json(root / "reports" / "metrics.json"))


def test_a_cell_that_was_not_evaluated_is_named(root):
    with pytest.raises(StateError, match=r"evaluation/time_split/sasrec/metrics\.json.*dvc repro"):
        write(root, models=("hstu", "sasrec"))


def test_baselines_that_differ_between_models_are_an_error(tmp_path):
    root = make_pages(tmp_path, models=("hstu", "sasrec"))
    file = root / "artifacts" / "evaluation" / "time_split" / "sasrec" / "metrics.json"
    metrics = read_json(file)
    metrics["time_split"]["popularity"]["mrr"]["low"] += 1e-6
    write_json(file, metrics)
    with pytest.raises(StateError, match=r"popularity on time_split.* differs between the models' evaluations"):
        write(root, models=("hstu", "sasrec"))


def test_models_that_were_judged_on_different_users_are_not_compared(tmp_path):
    root = make_pages(tmp_path, models=("hstu", "sasrec"))
    file = root / "artifacts" / "evaluation" / "time_split" / "sasrec" / "per_user.parquet"
    table = pq.read_table(file)
    pq.write_table(table.set_column(2, "user_id", pc.add(table["user_id"], 1)), file)
    with pytest.raises(StateError, match=r"hstu and \w+ were judged on different users of time_split"):
        write(root, models=("hstu", "sasrec"))


def test_the_order_of_the_users_in_a_file_is_of_no_consequence(root):
    write(root)
    before = read_json(root / "reports" / "comparisons.json")
    file = root / "artifacts" / "evaluation" / "time_split" / "hstu" / "per_user.parquet"
    table = pq.read_table(file)
    pq.write_table(table.take(np.random.default_rng(0).permutation(len(table))), file)
    write(root)
    assert read_json(root / "reports" / "comparisons.json") == before


def test_values_per_user_that_are_missing_are_named(root):
    (root / "artifacts" / "evaluation" / "time_split" / "hstu" / "per_user.parquet").unlink()
    with pytest.raises(StateError, match=r"time_split/hstu/per_user\.parquet: is missing.*dvc repro"):
        write(root)


def test_a_headline_that_is_not_evaluated_is_refused(root):
    with pytest.raises(SettingsError, match=r"report\.headline_protocol is not among protocols"):
        write(root, protocols=("leave_one_out",))
    with pytest.raises(SettingsError, match=r"package\.model is not among models"):
        write(root, models=("sasrec",))


def test_the_closing_table_shows_metrics_verdict_titles_paths_and_the_next_command(root, capsys):
    change_gate(root, verdict="accepted", reasons=["because"])
    write(root)
    shown = summarise(root, capsys)
    values = read_json(root / "reports" / "metrics.json")["time_split"]["hstu"]["ndcg@10"]
    assert f"{values['value']:.4f} [{values['low']:.4f}, {values['high']:.4f}]" in shown
    assert "accepted: because" in shown
    assert "warning" not in shown
    example = read_json(root / "artifacts" / "evaluation" / "time_split" / "hstu" / "examples.json")[0]
    assert all(f"{n}. {item['title']} " in shown for n, item in enumerate(example["recommended"][:3], start=1))
    assert str(root / "reports" / "report.html") in shown
    assert str(root / "reports" / "data_docs" / "index.html") in shown
    assert "Bento" not in shown
    assert shown.rstrip().endswith("make serve")


@pytest.mark.parametrize(("verdict", "words"), [("inconclusive", "with this label"), ("refused", "not promoted")])
def test_a_verdict_that_is_not_accepted_ends_in_a_warning(root, capsys, verdict, words):
    change_gate(root, verdict=verdict)
    write(root)
    assert re.search(f"warning: .*{words}", summarise(root, capsys))


def test_after_a_refused_first_run_the_next_step_is_the_report_and_the_candidate_by_hand(root, capsys):
    change_gate(root, verdict="refused")
    write(root)
    report = f"open {root / 'reports' / 'report.html'}"
    assert summarise(root, capsys).splitlines()[-1].split(maxsplit=1) == ["next", report]

    write_json(root / "artifacts" / "package.json", {"tag": "hstuflow-candidate:abc"})
    shown = summarise(root, capsys)
    assert shown.splitlines()[-1].split(maxsplit=1)[1] == (
        f"{report}; to look at the candidate anyway: bentoml import {root / 'artifacts' / 'hstuflow.bento'},"
        " then bentoml serve hstuflow-candidate:abc"
    )
    assert "make serve" not in shown


def test_after_a_refused_run_the_champion_so_far_can_be_served(root, capsys):
    change_gate(root, verdict="refused")
    write(root)
    write_json(root / "registry" / "champion.json", {})
    assert summarise(root, capsys).rstrip().endswith("make serve  (the champion so far)")


def test_the_closing_table_names_the_bento_where_there_is_one(root, capsys):
    write(root)
    write_json(root / "artifacts" / "package.json", {"tag": "hstuflow:abc"})
    assert re.search(r"Bento +\S*hstuflow\.bento +hstuflow:abc", summarise(root, capsys))


def test_a_title_cannot_move_the_terminal_s_cursor(tmp_path, capsys):
    root = make_pages(tmp_path, titles=["\x1b[2JHeat\n1 [red]"])
    write(root)
    shown = summarise(root, capsys)
    assert "\x1b" not in shown
    assert re.search(r"1\. \ufffd\[2JHeat\ufffd\d+ \[red\]", shown)


def test_the_closing_table_needs_neither_torch_nor_matplotlib(root):
    """They take seconds to import, and `make run` ends with this table even when nothing was stale."""
    write(root)
    program = (
        "import sys; sys.modules['torch'] = sys.modules['matplotlib'] = None; from pathlib import Path;"
        "from components.report import print_summary; from components.settings import load_settings;"
        "root = Path(sys.argv[1]);"
        "settings = load_settings().model_copy(update={'models': ('hstu',), 'protocols': ('time_split',)});"
        "print_summary(settings, artifacts=root / 'artifacts', reports=root / 'reports')"
    )
    done = subprocess.run([sys.executable, "-c", program, root], cwd=ROOT, capture_output=True, text=True)
    assert "time_split, test part: 1,200 events" in done.stdout, done.stderr


def test_metrics_are_read_in_the_order_of_their_cutoffs():
    names = json.loads('["hr@10", "hr@200", "hr@50", "mrr", "ndcg@10", "ndcg@200", "ndcg@50"]')
    assert sort_metrics(names) == ["ndcg@10", "ndcg@50", "ndcg@200", "hr@10", "hr@50", "hr@200", "mrr"]

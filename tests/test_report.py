"""What people read: the page, the merged numbers, the closing table. Nothing here may need a network."""

import json
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
from made_evaluations import make_results, report_settings, run_evaluation

from components.errors import SettingsError, StateError
from components.files import read_json, write_json
from components.page.results import sort_metrics
from components.report import print_summary, write_report

EVIL = '<script>alert("1")</script> [bold] & Söhne'
TITLES = dict.fromkeys(range(1, 26), EVIL)


@pytest.fixture
def root(tmp_path):
    return make_results(tmp_path)


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


class Outline(HTMLParser):
    """Tags and ids of a page, whether every element is closed, and every address it mentions."""

    VOID = ("meta", "br", "path", "use", "line", "rect")

    def __init__(self, page):
        super().__init__()
        self.tags, self.ids, self.addresses, self.open = [], [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.ids += [value for name, value in attrs if name == "id"]
        self.addresses += [value for name, value in attrs if name in ("src", "href", "xlink:href", "srcset", "data")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag


def test_the_page_is_whole_and_refers_to_nothing_outside_its_folder(root):
    page = write(root)
    outline = Outline(page)
    assert outline.open == []
    assert not {"script", "link", "iframe", "img", "object"} & set(outline.tags)
    relative = [address for address in outline.addresses if not address.startswith("#")]
    assert set(relative) == {"data_docs/index.html", "metrics.json", "gate.json"}
    assert "@import" not in page
    assert not re.search(r"url\((?!#)", page)
    assert len(outline.ids) == len(set(outline.ids))
    assert {address[1:] for address in outline.addresses if address.startswith("#")} <= set(outline.ids)


def test_the_page_leads_with_the_verdict_then_the_headline_table(root):
    page = write(root)
    gate = read_json(root / "reports" / "gate.json")
    assert page.index(f">{gate['verdict']}<") < page.index("<h1>") < page.index("Test part") < page.index("<svg")
    assert f"{gate['difference']:+.4f}" in page
    for model, values in read_json(root / "reports" / "metrics.json")["time_split"].items():
        assert f"{values['ndcg@10']['value']:.4f}" in page, model


@pytest.mark.parametrize("verdict", ["accepted", "inconclusive", "refused"])
def test_each_verdict_has_its_sentence(root, verdict):
    change_gate(root, verdict=verdict)
    words = {"accepted": "HSTU beats", "inconclusive": "HSTU cannot be told from", "refused": "HSTU loses to"}
    assert f"<h1>{words[verdict]} the best popularity baseline.</h1>" in write(root)


def test_titles_are_text_and_never_markup(tmp_path):
    page = write(make_results(tmp_path, titles=TITLES))
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(&#34;1&#34;)&lt;/script&gt; [bold] &amp; Söhne" in page


def test_the_same_results_give_the_same_bytes(root):
    first = write(root)
    plots = {path.name: path.read_bytes() for path in (root / "reports" / "plots").iterdir()}
    assert write(root) == first
    assert {path.name: path.read_bytes() for path in (root / "reports" / "plots").iterdir()} == plots


def test_plots_are_svg_files_that_bring_their_own_colours(root):
    write(root)
    plots = {path.stem: path.read_text(encoding="utf-8") for path in (root / "reports" / "plots").iterdir()}
    assert set(plots) == {"conditions", "learning", "hit_rate", "history"}
    for svg in plots.values():
        assert ElementTree.fromstring(svg).tag.endswith("svg")  # noqa: S314 - our own file
        used = set(re.findall(r"var\(--([\w-]+)\)", svg))
        assert used
        assert used <= set(re.findall(r"--([\w-]+):#", svg))
        assert "#0000" not in svg  # a colour that stands for a CSS one


def test_all_cells_are_merged_and_leave_one_out_is_labelled(tmp_path, capsys):
    protocols, models = ("time_split", "leave_one_out"), ("hstu", "sasrec")
    root = make_results(tmp_path, protocols=protocols, models=models)
    page = write(root, protocols=protocols, models=models)
    merged = read_json(root / "reports" / "metrics.json")
    assert {condition.split(".")[0] for condition in merged} == set(protocols)
    assert all(set(found) == {*models, "popularity", "popularity_recent"} for found in merged.values())
    for protocol in protocols:
        for model in models:
            cell = read_json(root / "artifacts" / "evaluation" / protocol / model / "metrics.json")
            assert all(merged[condition][model] == cell[condition][model] for condition in cell)
    assert "Leaks the future: for comparison with the literature only" in page
    assert "SASRec" in page
    assert "sasrec" in summarise(root, capsys, protocols=protocols, models=models)


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
    root = make_results(tmp_path, models=("hstu", "sasrec"))
    run_evaluation(root, "sasrec", bootstrap_samples=200)
    with pytest.raises(StateError, match=r"popularity on time_split.* differs between the models' evaluations"):
        write(root, models=("hstu", "sasrec"))


def test_a_headline_that_is_not_evaluated_is_refused(root):
    with pytest.raises(SettingsError, match=r"report\.headline_protocol is not among protocols"):
        write(root, protocols=("leave_one_out",))
    with pytest.raises(SettingsError, match=r"package\.model is not among models"):
        write(root, models=("sasrec",))


def test_the_closing_table_shows_metrics_verdict_titles_paths_and_the_next_command(root, capsys):
    write(root)
    change_gate(root, verdict="accepted", reasons=["because"])
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
    write(root)
    change_gate(root, verdict=verdict)
    assert re.search(f"warning: .*{words}", summarise(root, capsys))


def test_after_a_refused_first_run_the_next_step_is_the_report_and_the_candidate_by_hand(root, capsys):
    write(root)
    change_gate(root, verdict="refused")
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
    write(root)
    change_gate(root, verdict="refused")
    write_json(root / "registry" / "champion.json", {})
    assert summarise(root, capsys).rstrip().endswith("make serve  (the champion so far)")


def test_the_closing_table_names_the_bento_where_there_is_one(root, capsys):
    write(root)
    write_json(root / "artifacts" / "package.json", {"tag": "hstuflow:abc"})
    assert re.search(r"Bento +\S*hstuflow\.bento +hstuflow:abc", summarise(root, capsys))


def test_a_title_cannot_move_the_terminal_s_cursor(tmp_path, capsys):
    root = make_results(tmp_path, titles={item: f"\x1b[2JHeat\n{item} [red]" for item in range(1, 26)})
    write(root)
    shown = summarise(root, capsys)
    assert "\x1b" not in shown
    assert re.search(r"1\. \ufffd\[2JHeat\ufffd\d+ \[red\]", shown)


def test_metrics_are_read_in_the_order_of_their_cutoffs():
    names = json.loads('["hr@10", "hr@200", "hr@50", "mrr", "ndcg@10", "ndcg@200", "ndcg@50"]')
    assert sort_metrics(names) == ["ndcg@10", "ndcg@50", "ndcg@200", "hr@10", "hr@50", "hr@200", "mrr"]

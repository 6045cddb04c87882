"""What the report's page says of known numbers: verdict, warnings, differences, slices; and that all can read it."""

import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
from made_pages import BASELINES, COUNTS, SKILL, make_pages, report_settings

from components.files import read_json
from components.report import print_summary, write_report

BOTH = {"protocols": ("time_split", "leave_one_out"), "models": ("hstu", "sasrec")}
SVG = "{http://www.w3.org/2000/svg}"


def write(root, **settings):
    write_report(report_settings(**settings), artifacts=root / "artifacts", reports=root / "reports")
    return (root / "reports" / "report.html").read_text(encoding="utf-8")


def comparisons(root):
    return read_json(root / "reports" / "comparisons.json")


def section(page, heading):
    """The text of one section, tags taken out."""
    found = re.search(rf"<section[^>]*>\s*<h2>{heading}.*?</section>", page, flags=re.DOTALL)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", found[0]))


class Outline(HTMLParser):
    """Tags in order, ids, addresses, headings; asserts that every element is closed."""

    VOID = ("meta", "br", "path", "use", "line", "rect")

    def __init__(self, page):
        super().__init__()
        self.tags, self.ids, self.addresses, self.open, self.headings = [], [], [], [], []
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

    def handle_data(self, data):
        if self.open[-1:] in (["h1"], ["h2"]):
            self.headings.append(data.strip())


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    """Both models on both protocols, with something of everything: the root and its page."""
    root = make_pages(
        tmp_path_factory.mktemp("full"),
        **BOTH,
        skill={"contextual.first": 0.6, "sasrec": 0.4},
        facts={"alarms": ["validation is far above test"]},
    )
    return root, write(root, **BOTH)


def test_the_page_is_whole_and_refers_to_nothing_outside_its_folder(full):
    _, page = full
    outline = Outline(page)
    assert outline.open == []
    assert not {"script", "link", "iframe", "img", "object"} & set(outline.tags)
    relative = [address for address in outline.addresses if not address.startswith("#")]
    assert set(relative) == {"data_docs/index.html", "metrics.json", "comparisons.json", "gate.json"}
    assert "@import" not in page
    assert not re.search(r"url\((?!#)|https?://(?!www\.w3\.org/)", page)
    assert len(outline.ids) == len(set(outline.ids))
    assert {address[1:] for address in outline.addresses if address.startswith("#")} <= set(outline.ids)


def test_the_page_answers_in_the_order_of_a_decision(full):
    assert Outline(full[1]).headings == [
        "HSTU beats the best baseline, popularity, last 30 days.",
        "2 alarms",
        "Before you rely on it",
        "How good: test part, global time split",
        "Better than what",
        "Which assumption changes the result",
        "For whom and for what",
        "Beyond accuracy",
        "Leave-one-out",
        "Learning",
        "What it recommends",
        "How it was measured",
    ]


def test_every_plot_has_a_title_and_its_numbers_in_words(full):
    root, page = full
    plots = {path.stem: path.read_text(encoding="utf-8") for path in (root / "reports" / "plots").iterdir()}
    slices = {f"slices_{key}" for key in ("history", "item_age", "item_popularity", "activity")}
    assert (
        set(plots)
        == {"differences", "conditions", "hit_rate", "learning_time_split", "learning_leave_one_out"} | slices
    )
    for name, text in plots.items():
        svg = ElementTree.fromstring(text)  # noqa: S314 - our own file
        labels = [svg.find(f"{SVG}{tag}") for tag in ("title", "desc")]
        assert all(label.text.strip() for label in labels), name
        assert svg.get("aria-labelledby").split() == [label.get("id") for label in labels]
        assert svg.get("role") == "img"
        assert re.search(r"\d\.\d{4}", labels[1].text)
    assert page.count("<svg") == len(plots)


def test_plots_bring_their_own_colours_where_they_stand_alone(full):
    root, page = full
    style = page[: page.index("</style>")]
    for path in (root / "reports" / "plots").iterdir():
        svg = path.read_text(encoding="utf-8")
        used = set(re.findall(r"var\(--([\w-]+)\)", svg))
        assert used
        assert used <= set(re.findall(r"--([\w-]+):#", svg))
        assert used <= set(re.findall(r"--([\w-]+): #", style))
        assert "#0000" not in svg  # a colour that stands for a CSS one


def test_titles_and_alarms_are_text_and_never_markup(tmp_path):
    evil = '<script>alert("1")</script> [bold] & Söhne'
    page = write(make_pages(tmp_path, titles=[evil], facts={"alarms": [evil]}))
    assert "<script>alert" not in page
    assert page.count("&lt;script&gt;alert(&#34;1&#34;)&lt;/script&gt; [bold] &amp; Söhne") == 4


def test_the_same_results_give_the_same_bytes(full):
    root, first = full
    plots = {path.name: path.read_bytes() for path in (root / "reports" / "plots").iterdir()}
    assert write(root, **BOTH) == first
    assert {path.name: path.read_bytes() for path in (root / "reports" / "plots").iterdir()} == plots


@pytest.mark.parametrize(
    ("verdict", "words"),
    [("accepted", "HSTU beats"), ("inconclusive", "HSTU cannot be told from"), ("refused", "HSTU loses to")],
)
def test_each_verdict_has_its_sentence(tmp_path, verdict, words):
    page = write(make_pages(tmp_path, verdict=verdict))
    assert f"<h1>{words} the best baseline, popularity, last 30 days.</h1>" in page
    assert f'<span class="label">{verdict}</span>' in page


def test_every_pair_of_models_is_compared_on_the_same_users(full):
    root, _ = full
    found = comparisons(root)
    names = ["hstu", "sasrec", *BASELINES]
    for protocol in BOTH["protocols"]:
        pairs = [(one["model"], one["other"]) for one in found if one["condition"] == protocol]
        assert pairs == [(a, b) for place, a in enumerate(names) for b in names[place + 1 :]]
    others = [one for one in found if one["condition"] not in BOTH["protocols"]]
    assert {one["model"] for one in others} == {"hstu"}
    assert {one["condition"].partition(".")[2] for one in others} == {
        "unfiltered", "unknown_time", "untied", "first", "last", "valid",
    }  # fmt: skip
    assert all(one["users"] == COUNTS["users"] and one["metric"] == "ndcg@10" for one in found)


def test_a_difference_is_that_of_the_means_with_its_interval_and_p(full):
    root, page = full
    found = {
        one["other"]: one for one in comparisons(root) if (one["condition"], one["model"]) == ("time_split", "hstu")
    }
    ahead = found["popularity"]
    assert ahead["difference"] == pytest.approx(SKILL["hstu"] - SKILL["popularity"], abs=1e-6)
    assert 0 < ahead["low"] < ahead["difference"] < ahead["high"]
    assert (ahead["outcome"], found["sasrec"]["outcome"]) == ("ahead", "undecided")
    assert ahead["p_value"] < 0.01 < found["sasrec"]["p_value"]
    shown = section(page, "Better than what")
    assert "popularity +.3000 " in shown
    assert "look for p below 0.01 (Bonferroni)" in shown
    assert "SASRec minus popularity +.3000" in shown  # every other pair


def test_alarms_are_loud_and_only_there_when_something_is_wrong(full, tmp_path, capsys):
    root, page = full
    assert "time_split, hstu and sasrec: validation is far above test" in section(page, "2 alarms")
    assert page.index("</header>") < page.index("2 alarms") < page.index("Before you rely on it")
    capsys.readouterr()
    print_summary(report_settings(**BOTH), artifacts=root / "artifacts", reports=root / "reports")
    assert "warning: time_split, hstu and sasrec: validation is far above test" in capsys.readouterr().out
    assert 'role="alert"' not in write(make_pages(tmp_path))


@pytest.mark.parametrize(("share", "is_told"), [(0.2, False), (0.31, True)])
def test_many_repeats_are_an_alarm_that_points_to_the_unfiltered_ranking(tmp_path, capsys, share, is_told):
    root = make_pages(tmp_path, facts={"test": COUNTS | {"repeat_share": share}})
    alarm = "31% of the test targets are items that the user already had, expected at most 20%"
    assert (alarm in write(root)) == is_told
    print_summary(report_settings(), artifacts=root / "artifacts", reports=root / "reports")
    shown = capsys.readouterr().out
    assert (alarm in shown) == ("Read time_split.unfiltered instead" in shown) == is_told


def test_a_test_part_that_disagrees_with_the_verdict_is_told_first(tmp_path):
    page = write(make_pages(tmp_path, skill={"popularity_recent": 0.5}))
    assert re.search(r"<ul><li>On the test part it is behind popularity, last 30 days", page)


def test_models_that_are_better_or_as_good_are_named(tmp_path):
    skill = {"sasrec": 0.401, "item_item": 0.5, "contextual": 0.6}
    settings = {"models": ("hstu", "sasrec")}
    told = section(write(make_pages(tmp_path, skill=skill, **settings), **settings), "Before you rely on it")
    assert "On the test part it is behind item-item and contextual." in told
    assert "On the test part it cannot be told from SASRec." in told


def test_a_condition_that_turns_the_result_is_named_with_who_wins_there(full, tmp_path):
    _, page = full
    assert "Under “first event” it is behind contextual." in section(page, "Before you rely on it")
    told = section(page, "Which assumption changes the result")
    assert "ends otherwise under first event . Do not quote the headline without it." in told
    assert "time unknown" in told
    assert "600 of 1,200 targets, evenly thinned" in told
    assert "None of these" in section(write(make_pages(tmp_path)), "Which assumption changes the result")


def test_slices_and_figures_beyond_accuracy_come_from_each_model_s_own_cell(full):
    _, page = full
    assert "300+ 400 .1333 " in section(page, "For whom and for what")
    beyond = section(page, "Beyond accuracy")
    assert "HSTU 40% 0.60 4.0 – 0.200" in beyond  # noqa: RUF001 - no genres, no diversity
    assert "SASRec 38% 0.62 3.8" in beyond


def test_leave_one_out_is_labelled_wherever_it_is_shown(full, tmp_path):
    _, page = full
    assert "Leaks the future: for comparison with the literature only" in section(page, "Leave-one-out")
    settings = {"protocols": ("leave_one_out",)}
    settings["report"] = report_settings().report.model_copy(update={"headline_protocol": "leave_one_out"})
    alone = write(make_pages(tmp_path, protocols=("leave_one_out",)), **settings)
    assert alone.index("</header>") < alone.index("Leaks the future") < alone.index("Before you rely on it")


def test_one_seed_is_said_to_be_one_seed(full):
    _, page = full
    assert "One training, seed 1" in section(page, "Before you rely on it")
    assert "at least three seeds" in section(page, "How it was measured")


def test_the_baselines_parameters_are_those_that_validation_chose(full):
    assert "end of the history; decay 0.9, last items 20" in section(full[1], "How it was measured")

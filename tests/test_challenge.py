"""Challenger and champion on the same unseen events, the package read back, and what `promote` makes of the answer."""

import shutil

import pytest
import torch
from made_comparisons import checkpoint, compare_in, reseed
from made_evaluations import evaluate_settings, make_results, report_settings
from made_logs import DAY, walking_log

from components import packaging, registry
from components.challenge import challenge
from components.challenging.packaged import find_score_difference
from components.challenging.window import begin_test_at
from components.dataset import load_sequences
from components.decisions import read_decisions
from components.errors import StateError
from components.files import read_json, write_json
from components.ranking.blocks import ModelScorer
from components.ranking.targets import find_targets
from components.recommender import Recommender
from components.settings import PackageSettings, PromoteSettings

LIMITS = {
    "max_loss": 1.0,
    "min_users": 5,
    "max_slice_loss": 1.0,
    "min_slice_users": 5,
    "max_latency_ms": 1e6,
    "max_megabytes": 100.0,
    "max_score_difference": 1e-4,
}


class Workspace:
    """A made root whose model is judged, packaged, challenged and promoted into a store of its own."""

    def __init__(self, root):
        self.root = root
        self.folders = {name: root / name for name in ("artifacts", "reports", "registry")}

    def package(self, seed, verdict="inconclusive", item_table="float32"):
        """Put a model of this seed into the checkpoint's place and package it, as the gate would judge it."""
        original = self.root / "original"
        if not original.exists():
            shutil.copytree(checkpoint(self.root), original)
        shutil.rmtree(checkpoint(self.root))
        reseed(original, checkpoint(self.root), seed)
        gate = {"verdict": verdict, "model": "hstu", "protocol": "time_split", "reasons": [f"the gate says {verdict}"]}
        write_json(self.folders["reports"] / "gate.json", gate)
        write_json(self.folders["reports"] / "metrics.json", {"time_split": {"hstu": {}}})
        write_json(self.folders["reports"] / "validation.json", {"success": True, "profile": {"events": 1}})
        settings = PackageSettings(model="hstu", name="hstuflow", item_table=item_table)
        packaging.package(settings, artifacts=self.folders["artifacts"], reports=self.folders["reports"])

    def challenge(self, **limits):
        settings = report_settings(evaluate=evaluate_settings(), promote=PromoteSettings(**(LIMITS | limits)))
        answer = challenge(settings, **self.folders)
        assert answer == read_json(self.folders["reports"] / "challenge.json")
        return answer

    def promote(self):
        return registry.promote(**self.folders)

    @property
    def champion(self):
        return read_json(self.folders["registry"] / "champion.json")

    @property
    def decisions(self):
        return read_decisions(self.folders["registry"])


def build_small(scratch, candidate, version):
    """Leave what a Bento of this candidate unpacks to, without BentoML's five seconds."""
    model = scratch / "bento" / "models" / candidate.name / candidate.model_version
    shutil.copytree(candidate.checkpoint, model)
    (scratch / "bento" / "bento.yaml").write_text(
        f"name: {candidate.name}\nmodels:\n- tag: {candidate.name}:{candidate.model_version}\n  alias: checkpoint\n"
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make_results(tmp_path_factory.mktemp("made"))


@pytest.fixture
def workspace(made, tmp_path, monkeypatch):
    monkeypatch.setenv("BENTOML_HOME", str(tmp_path / "bentoml"))
    monkeypatch.setattr(packaging, "build_bento", build_small)
    return Workspace(shutil.copytree(made, tmp_path / "root"))


@pytest.fixture(scope="module")
def prepared(made, tmp_path_factory):
    """A folder with root/ and bentoml/: the champion has seed 1, the candidate seed 2."""
    folder = tmp_path_factory.mktemp("prepared")
    workspace = Workspace(shutil.copytree(made, folder / "root"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BENTOML_HOME", str(folder / "bentoml"))
        patch.setattr(packaging, "build_bento", build_small)
        workspace.package(1)
        workspace.challenge()
        workspace.promote()
        workspace.package(2)
    return folder


@pytest.fixture
def contested(prepared, tmp_path, monkeypatch):
    """A copy of what is prepared."""
    folder = shutil.copytree(prepared, tmp_path / "copy")
    monkeypatch.setenv("BENTOML_HOME", str(folder / "bentoml"))
    monkeypatch.setattr(packaging, "build_bento", build_small)
    return Workspace(folder / "root")


def of(answer, name):
    [check] = [check for check in answer["checks"] if check["name"] == name]
    return check


def test_the_first_model_has_nobody_to_beat_but_the_baselines_and_its_own_budget(workspace):
    workspace.package(1)
    answer = workspace.challenge()
    assert [check["name"] for check in answer["checks"]] == [
        "ndcg@10 gain",
        "latency, ms",
        "export, MB",
        "score difference",
    ]
    margins = [one["difference"] for one in answer["contest"]["baselines"].values()]
    assert of(answer, "ndcg@10 gain")["observed"] == min(margins)
    assert answer["verdict"] == ("passed" if min(margins) > 0 else "failed")
    assert answer["contest"]["paired"] is None


def test_both_get_the_numbers_that_compare_gives_them_where_the_window_is_the_test_part(contested):
    answer = contested.challenge()
    row = compare_in(contested.root, checkpoint(contested.root), contested.champion["tag"]).rows[0]
    paired = answer["contest"]["paired"]
    assert (paired["difference"], paired["low"], paired["high"]) == (
        row.paired.difference,
        row.paired.low,
        row.paired.high,
    )
    assert answer["contest"]["values"]["challenger"]["value"] == row.a
    assert answer["contest"]["values"]["champion"]["value"] == row.b


def test_a_worse_challenger_is_kept_out_and_its_numbers_are_written_down(contested):
    low = contested.challenge()["contest"]["paired"]["low"]
    answer = contested.challenge(max_loss=max(-low - 1e-6, 0.0))
    assert answer["verdict"] == "failed"
    assert not of(answer, "ndcg@10")["passed"]
    before = contested.champion
    assert not contested.promote()
    assert contested.champion == before
    last = contested.decisions[-1]
    assert (last["what"], last["tag"]) == ("refused", answer["candidate"]["tag"])
    assert last["reasons"][0] == "challenge failed"
    assert "ndcg@10 (lower end, challenger - champion) is -" in last["reasons"][1]
    assert last["challenge"]["contest"] == answer["contest"]
    contested.promote()
    assert contested.decisions[-1] == last  # the same night once more decides nothing new


def test_a_challenger_that_is_not_worse_is_promoted_with_its_numbers(contested):
    contested.package(1, verdict="accepted")  # the same weights under another tag
    answer = contested.challenge()
    assert answer["verdict"] == "passed"
    assert contested.promote()
    assert contested.champion["tag"] == answer["candidate"]["tag"]
    assert contested.decisions[-1]["challenge"]["checks"] == answer["checks"]
    assert contested.challenge()["verdict"] == "champion"
    assert contested.promote()  # which changes nothing


def test_the_window_is_looked_at_once_for_a_decision_and_only_the_limits_apply_anew(contested, monkeypatch):
    first = contested.challenge()
    monkeypatch.setattr("components.challenge.meet", lambda *_, **__: pytest.fail("a second look"))
    again = contested.challenge(max_megabytes=1e-6)
    assert (first["reused"], again["reused"]) == (False, True)
    assert again["contest"] == first["contest"]
    assert not of(again, "export, MB")["passed"]
    contested.promote()
    (contested.folders["reports"] / "challenge.json").unlink()
    assert contested.challenge()["contest"] == first["contest"]  # as the decision has it


def test_a_package_that_was_slow_in_a_busy_minute_is_measured_again(contested, monkeypatch):
    contested.package(1, verdict="accepted")  # the champion's weights under another tag
    monkeypatch.setattr("components.challenging.packaged.measure_latency", lambda _: 80.0)
    slow = contested.challenge(max_latency_ms=50)
    assert slow["verdict"] == "failed"
    assert not contested.promote()
    monkeypatch.setattr("components.challenging.packaged.measure_latency", lambda _: 5.0)
    answer = contested.challenge(max_latency_ms=50)
    assert answer["reused"]
    assert answer["contest"] == slow["contest"]
    assert (answer["package"]["latency_ms"], answer["verdict"]) == (5.0, "passed")
    assert contested.promote()


def test_another_latency_by_itself_is_no_new_decision(contested, monkeypatch):
    for latency in (5.0, 6.0):
        monkeypatch.setattr("components.challenging.packaged.measure_latency", lambda _, latency=latency: latency)
        contested.challenge(max_megabytes=1e-6)
        assert not contested.promote()
    assert [one["what"] for one in contested.decisions] == ["promoted", "refused"]


def test_of_too_few_users_nobody_is_scored_and_the_champion_stays(contested, monkeypatch):
    monkeypatch.setattr("components.challenging.contest._judge", lambda *_: pytest.fail("a look"))
    answer = contested.challenge(min_users=1_000)
    assert answer["verdict"] == "undecided"
    assert answer["contest"]["values"] == {}
    assert not of(answer, "users")["passed"]
    assert not contested.promote()
    assert contested.decisions[-1]["reasons"][0] == "challenge undecided"


def test_a_window_that_was_too_small_is_looked_at_once_fewer_users_are_asked_for(contested):
    assert contested.challenge(min_users=1_000)["verdict"] == "undecided"
    assert not contested.promote()
    answer = contested.challenge()
    assert not answer["reused"]
    assert answer["contest"]["paired"] is not None
    assert of(answer, "ndcg@10")["observed"] == answer["contest"]["paired"]["low"]
    (contested.folders["reports"] / "challenge.json").unlink()
    assert contested.challenge()["contest"] == answer["contest"]  # not the empty one that the decision has


def test_more_users_may_be_asked_for_after_the_look(contested):
    contested.package(1, verdict="accepted")  # the champion's weights under another tag
    scored = contested.challenge()
    answer = contested.challenge(min_users=1_000)
    assert answer["reused"]
    assert answer["contest"] == scored["contest"]
    assert (scored["verdict"], answer["verdict"]) == ("passed", "undecided")
    assert not contested.promote()
    assert contested.challenge()["verdict"] == "passed"


def test_the_window_begins_where_the_later_of_both_stopped_to_look(contested):
    sequences = load_sequences(contested.root / "artifacts" / "sequences" / "time_split")
    later = sequences.split["valid_end"] + 3 * DAY
    [facts] = (contested.root.parent / "bentoml" / "models").rglob("checkpoint.json")
    seen = read_json(facts)
    write_json(facts, seen | {"split": seen["split"] | {"train_end": later - DAY, "valid_end": later}})
    window = contested.challenge()["contest"]["window"]
    targets = find_targets(sequences, "test")
    expected = targets.take(sequences.timestamps[targets.rows] >= later)
    assert 0 < len(expected) < len(targets)
    assert (window["from"], window["targets"]) == (later, len(expected))
    moved = find_targets(begin_test_at(sequences, later), "test")
    assert moved.rows.tolist() == expected.rows.tolist()
    assert moved.positions.tolist() == expected.positions.tolist()


@pytest.mark.parametrize("lost", ["the store", "weights.safetensors", "catalogue.parquet"])
def test_a_champion_that_cannot_be_read_is_said_and_the_candidate_judged_without_it(contested, lost):
    store = contested.root.parent / "bentoml"
    if lost == "the store":
        store.rename(contested.root.parent / "lost")
    else:
        next((store / "models").rglob(lost)).write_bytes(b"damaged")
    answer = contested.challenge()
    assert answer["note"].startswith("not compared, it cannot be read: ")
    assert answer["contest"]["paired"] is None
    assert answer["champion"]["tag"] == contested.champion["tag"]
    assert not contested.challenge()["reused"]  # it may be back


def test_what_the_gate_refused_never_sees_the_window(contested, monkeypatch):
    contested.package(3, verdict="refused")
    monkeypatch.setattr("components.challenge.meet", lambda *_, **__: pytest.fail("a look"))
    answer = contested.challenge()
    assert (answer["verdict"], answer["reasons"]) == ("failed", ["the gate says refused"])
    assert not contested.promote()


@pytest.mark.parametrize("item_table", ["float32", "int8", "int4"])
def test_the_packaged_model_gives_the_evaluated_scores_whatever_its_table(workspace, item_table):
    workspace.package(1, item_table=item_table)
    assert workspace.challenge()["package"]["score_difference"] < 1e-5


def test_a_packaged_model_that_scores_otherwise_is_kept_out(workspace, made):
    other = reseed(checkpoint(made), workspace.root / "other", 4)
    recommender, sequences = Recommender.load(other), load_sequences(made / "artifacts" / "sequences" / "time_split")
    evaluated = Recommender.load(checkpoint(made))
    targets = find_targets(sequences, "valid")
    targets = targets.take(targets.items >= 0)
    scorer = ModelScorer(evaluated.model, evaluated.max_len)
    assert find_score_difference(recommender, scorer, targets) > 0.01
    with pytest.raises(StateError, match="not finite"):
        find_score_difference(recommender, lambda targets: scorer(targets) * torch.nan, targets)


def test_a_checkpoint_that_was_trained_since_the_packaging_is_refused(contested):
    shutil.rmtree(checkpoint(contested.root))
    reseed(contested.root / "original", checkpoint(contested.root), 7)
    with pytest.raises(StateError, match=r"is not the checkpoint that was packaged.*Run `dvc repro package`"):
        contested.challenge()


def test_a_challenge_of_another_candidate_or_champion_is_refused_by_promote(contested):
    contested.challenge()
    contested.package(3)
    with pytest.raises(StateError, match=r"is about another candidate or another champion.*components challenge"):
        contested.promote()


def test_the_answer_is_printed_with_window_values_checks_and_what_comes_next(contested, capsys):
    answer = contested.challenge()
    printed = capsys.readouterr().out
    window = answer["contest"]["window"]
    assert f"{window['targets']:,} targets of {window['users']:,} users" in printed
    for words in (answer["champion"]["tag"], "item_item", "challenger minus it", "score difference", "checks"):
        assert words in printed
    assert printed.splitlines()[-1] == "next  python -m components promote"


def test_an_item_that_the_champion_does_not_know_is_a_miss_for_it(tmp_path, monkeypatch):
    log = [(user, item + (100 if time > 36 * DAY and item % 5 == 0 else 0), time) for user, item, time in walking_log()]
    monkeypatch.setenv("BENTOML_HOME", str(tmp_path / "bentoml"))
    monkeypatch.setattr(packaging, "build_bento", build_small)
    then = Workspace(make_results(tmp_path / "then", events=[event for event in log if event[2] < 36 * DAY]))
    now = Workspace(make_results(tmp_path / "now", events=log))
    then.package(1)
    write_json(then.folders["reports"] / "challenge.json", then.challenge() | {"verdict": "passed"})
    then.promote()
    shutil.copytree(then.folders["registry"], now.folders["registry"])
    now.package(2)
    contest = now.challenge()["contest"]
    assert 0 < contest["unknown_share"]["champion"] < 1
    assert contest["unknown_share"]["challenger"] == 0

from pathlib import Path

import pytest

from components import __main__ as command_line
from components.errors import SettingsError
from components.settings import load_settings, use_recipe

PARAMS = Path(__file__).parent.parent / "params.yaml"


@pytest.fixture
def params(tmp_path: Path) -> Path:
    copy = tmp_path / "params.yaml"
    copy.write_text(PARAMS.read_text())
    return copy


def test_the_committed_params_are_valid_and_immutable():
    settings = load_settings(PARAMS)
    assert settings.train["hstu"].max_len >= 2
    with pytest.raises(ValueError, match="frozen"):
        settings.train["hstu"].max_len = 3


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("  hstu:\n    max_len: 200", "  hstu:\n    maxlen: 200", "train.hstu.max_len"),
        ("max_bad_fraction: 0.01", "max_bad_fraction: 1.5", "validate.max_bad_fraction"),
        ("source: movielens-100k", "source: movielens", "ingest.source"),
        ("models: [hstu, sasrec]", "models: [transformer]", "models.0"),
        ("report:", "reports:", "report"),
        ("learning_rate: 0.0015", "learning_rate: .inf", "train.hstu.learning_rate"),
        ("confidence: 0.95", "confidence: 0.9999", "evaluate"),
        ("seed: 1", "seed: 18446744073709551616", "train.hstu.seed"),
    ],
)
def test_a_wrong_key_is_named_in_full(params: Path, old: str, new: str, named: str):
    text = params.read_text()
    assert old in text
    params.write_text(text.replace(old, new))
    with pytest.raises(SettingsError, match=rf"{named} is wrong"):
        load_settings(params)


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("  sasrec:\n", "  hstu2:\n", "train.hstu2"),
        ("models: [hstu, sasrec]", "models: [sasrec]", "package.model is hstu, but models does not list it"),
        (
            "protocols: [time_split]",
            "protocols: [leave_one_out]",
            "report.headline_protocol is time_split, but protocols",
        ),
    ],
)
def test_sections_that_do_not_fit_together_are_said(params: Path, old: str, new: str, sentence: str):
    params.write_text(params.read_text().replace(old, new))
    with pytest.raises(SettingsError, match=sentence):
        load_settings(params)


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ("{loss: in_batch, stochastic_length: 1.6}", "loss in_batch counts targets of whole windows"),
        ("{head: mixture, loss: sampled}", "head mixture has no loss sampled"),
        ('{warm_start: "hstuflow:1", refit: true}', "warm_start needs refit: false"),
    ],
)
def test_settings_of_a_training_that_do_not_go_together_are_said(params: Path, tmp_path: Path, keys, sentence):
    (tmp_path / "recipe.yaml").write_text(f"train: {{hstu: {keys}}}\n")
    with pytest.raises(SettingsError, match=sentence):
        use_recipe(tmp_path / "recipe.yaml", params)


def test_a_missing_or_broken_file_says_so(tmp_path: Path):
    with pytest.raises(SettingsError, match="no such file"):
        load_settings(tmp_path / "params.yaml")
    (tmp_path / "params.yaml").write_text("a: [")
    with pytest.raises(SettingsError, match="is not YAML"):
        load_settings(tmp_path / "params.yaml")


def test_a_recipe_changes_its_keys_and_keeps_the_comments(params: Path, tmp_path: Path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("protocols: [time_split, leave_one_out]\ntrain: {hstu: {dim: 64}}\n")
    before = params.read_text()
    assert use_recipe(recipe, params) == ["protocols", "train.hstu.dim"]
    settings = load_settings(params)
    assert (settings.train["hstu"].dim, settings.train["sasrec"].dim) == (64, 50)
    comments = [line for line in before.splitlines() if line.startswith("#")]
    assert [line for line in params.read_text().splitlines() if line.startswith("#")] == comments
    changed = set(params.read_text().splitlines()) - set(before.splitlines())
    assert {line.split("#")[0].strip() for line in changed} == {"protocols: [time_split, leave_one_out]", "dim: 64"}
    assert use_recipe(recipe, params) == []


def test_a_wrong_recipe_leaves_the_params_as_they_were(params: Path, tmp_path: Path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("train: {hstu: {dims: 64}}\n")
    before = params.read_bytes()
    with pytest.raises(SettingsError, match=r"train\.hstu\.dims is wrong"):
        use_recipe(recipe, params)
    assert params.read_bytes() == before


@pytest.mark.parametrize("content", [b"", b"# nothing yet\n", b"- dim\n", b"dim\n", b"dim: \xff\n"])
def test_a_recipe_or_params_without_keys_is_named(params: Path, tmp_path: Path, content: bytes):
    wrong = tmp_path / "wrong.yaml"
    wrong.write_bytes(content)
    before = params.read_bytes()
    with pytest.raises(SettingsError, match=r"wrong\.yaml: (holds no keys|is not YAML)"):
        use_recipe(wrong, params)
    assert params.read_bytes() == before
    with pytest.raises(SettingsError, match=r"wrong\.yaml: (holds no keys|is not YAML)"):
        use_recipe(PARAMS.parent / "recipes" / "ml-1m.yaml", wrong)
    assert wrong.read_bytes() == content


def test_a_folder_is_no_recipe(params: Path, tmp_path: Path):
    with pytest.raises(SettingsError, match="cannot be read: observed Is a directory"):
        use_recipe(tmp_path, params)


def test_a_model_without_a_section_cannot_be_trained(params: Path, monkeypatch: pytest.MonkeyPatch):
    text = params.read_text().replace("models: [hstu, sasrec]", "models: [hstu]")
    start, end = text.index("  sasrec:\n"), text.index("\nevaluate:")
    params.write_text(text[:start] + text[end:])
    monkeypatch.chdir(params.parent)
    monkeypatch.setattr(command_line, "_end_with_starter", lambda: None)  # this process is pytest's
    assert list(load_settings().train) == ["hstu"]
    with pytest.raises(SettingsError, match="train: has no section for this model: observed hstu, expected sasrec"):
        command_line.train(model="sasrec")


@pytest.mark.parametrize("recipe", sorted((PARAMS.parent / "recipes").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_fits_the_committed_params(params: Path, recipe: Path):
    use_recipe(recipe, params)
    assert load_settings(params)

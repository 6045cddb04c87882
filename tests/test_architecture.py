"""The house rules of docs/architecture.md: who imports whom, and one name per stage everywhere."""

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from typer.main import get_command

from components.__main__ import app
from components.settings import Settings
from flows.nightly import POOL
from flows.pools import STORE, Kind

ROOT = Path(__file__).parent.parent
PACKAGES = ("flows", "components", "kernels")
STEPS = {
    "ingestion",
    "validation",
    "sequences",
    "training",
    "evaluation",
    "report",
    "packaging",
    "service",
    "monitoring",
}
# A command is a verb, a file a noun; where the command is a noun already, they are the same.
FILE_OF = {
    "ingest": "ingestion",
    "validate": "validation",
    "train": "training",
    "evaluate": "evaluation",
    "package": "packaging",
    "promote": "registry",
    "monitor": "monitoring",
}
SECTIONS_WITHOUT_A_STAGE = {"ingest", "promote", "monitor"}  # what they read or write lives outside DVC
ALSO_COMMANDS = {  # not stages
    "backtest",
    "challenge",
    "compare",
    "forget-user",
    "lineage",
    "rollback",
    "score",
    "serve",
    "summary",
    "use",
    "warm-start",
}
# Messages, logging, atomic writes, checked settings (whose values are parameters of the stages).
WITHOUT_EFFECT = (
    "components/__init__.py",
    "components/console.py",
    "components/errors.py",
    "components/files.py",
    "components/settings.py",
)
HEAVY = {"torch", "great_expectations", "bentoml", "prefect", "dvc", "pandas", "matplotlib", "triton", "rich"}
ON_A_BARE_GPU_MACHINE = (
    "kernels",
    "components.model",
    "components.dataset",
    "components.training",
    "components.recommender",
    "components.metrics",
)
NOT_ON_A_BARE_GPU_MACHINE = (
    "pydantic",
    "pyarrow",
    "rich",
    "prefect",
    "dvc",
    "bentoml",
    "great_expectations",
    "typer",
    "psutil",
    "pandas",
)


def sources(package):
    return sorted((ROOT / package).rglob("*.py"))


def imports(file, *, top_level=False):
    """Modules a file imports, in full; `from components import report` counts as components.report."""
    tree = ast.parse(file.read_text())
    nodes = runtime_nodes(tree.body) if top_level else ast.walk(tree)
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def runtime_nodes(body):
    """Statements that run at import: not those inside functions or below `if TYPE_CHECKING`."""
    for node in body:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        yield node
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from runtime_nodes([child for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt)])


def roots(modules):
    return {module.split(".")[0] for module in modules}


def stages():
    return yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]


def short(file):
    return str(file.relative_to(ROOT))


@pytest.mark.parametrize("file", [file for package in PACKAGES for file in sources(package)], ids=short)
def test_imports_never_point_upward(file):
    package = file.relative_to(ROOT).parts[0]
    above = PACKAGES[: PACKAGES.index(package)]
    assert not roots(imports(file)) & set(above)


@pytest.mark.parametrize("file", sources("kernels"), ids=short)
def test_kernels_import_torch_and_the_standard_library_only(file):
    others = roots(imports(file)) - set(sys.stdlib_module_names) - {"kernels", "torch", "triton", "__future__"}
    assert not others
    is_for_gpus = file.stem.endswith("triton") or file.parent.name == "gpu"
    assert is_for_gpus or "triton" not in roots(imports(file, top_level=True))


@pytest.mark.parametrize("file", sources("components"), ids=short)
def test_components_know_nothing_of_orchestration(file):
    assert not roots(imports(file)) & {"prefect", "dvc"}


@pytest.mark.parametrize(
    ("name", "users"),
    [
        ("great_expectations", ["components/expectations/runner.py"]),
        ("bentoml", ["components/bento_builder.py", "components/service.py"]),
    ],
)
def test_great_expectations_and_bentoml_have_their_own_files(name, users):
    assert [short(file) for file in sources("components") if name in roots(imports(file))] == users


@pytest.mark.parametrize("file", [f for f in sources("components") if f.stem != "__main__"], ids=short)
def test_steps_are_imported_by_the_command_line_only(file):
    assert not {f"components.{step}" for step in STEPS} & set(imports(file))


def test_the_service_reaches_what_a_bento_needs_and_no_step():
    ours = {m for m in imports(ROOT / "components" / "service.py") if re.fullmatch(r"components\.\w+", m)}
    assert ours <= {"components.recommender", "components.settings", "components.errors", "components.files"}


@pytest.mark.parametrize("file", [ROOT / "components" / "__main__.py", ROOT / "flows" / "__main__.py"], ids=short)
def test_the_command_lines_import_nothing_heavy_at_the_top(file):
    assert not roots(imports(file, top_level=True)) & HEAVY


def test_steps_that_need_no_torch_do_not_import_it():
    blocked = "import sys; sys.modules['torch'] = None; import components.ingestion, components.validation"
    assert run_python(blocked) == ""


def test_model_training_and_kernels_import_on_a_bare_gpu_machine():
    blocker = f"""
import importlib, sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {NOT_ON_A_BARE_GPU_MACHINE!r}:
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Absent())
for module in {ON_A_BARE_GPU_MACHINE!r}:
    importlib.import_module(module)
"""
    assert run_python(blocker) == ""


def run_python(program):
    """Run a program in a fresh interpreter in the repository root; return what it printed, which is its traceback."""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    return done.stdout


@pytest.mark.parametrize("package", PACKAGES)
def test_the_packages_resolve_inside_the_repository(package):
    """`kernels` is also the name of a package on the index."""
    where = run_python(f"import {package}; print({package}.__file__)").strip()
    assert Path(where) == ROOT / package / "__init__.py"


def test_no_installed_distribution_is_called_kernels():
    pinned = {line.split("==")[0] for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line}
    assert {"torch", "triton", "prefect", "dvc", "great-expectations", "pyarrow", "bentoml", "pip", "uv"} <= pinned
    assert "kernels" not in pinned


def test_stage_section_subcommand_and_file_share_a_name():
    commands = set(get_command(app).commands)
    sections = {field.alias or name for name, field in Settings.model_fields.items()} - {"models", "protocols"}
    assert sections == set(stages()) | SECTIONS_WITHOUT_A_STAGE
    assert commands == sections | ALSO_COMMANDS
    for command in sections:
        assert (ROOT / "components" / f"{FILE_OF.get(command, command)}.py").is_file()


@pytest.mark.parametrize("name", stages())
def test_a_stage_runs_its_own_subcommand_and_depends_on_its_own_file_and_section(name):
    stage = stages()[name]
    assert stage["cmd"].startswith(f"python -m components {name}")
    assert f"components/{FILE_OF.get(name, name)}.py" in stage["deps"]
    assert any(str(parameter).split(".")[0] == name for parameter in stage["params"])


@pytest.mark.parametrize("name", stages())
def test_a_stage_is_stale_once_any_code_it_runs_changes(name):
    """What a step imports, and what that imports, is a dependency of its stage, but for what no output depends on."""
    dependencies = [ROOT / d for d in stages()[name]["deps"] if d.startswith(("components", "kernels", "bentofile"))]
    assert [file for file in dependencies if not file.exists()] == []
    reached = closure(ROOT / "components" / f"{FILE_OF.get(name, name)}.py") - {ROOT / file for file in WITHOUT_EFFECT}
    missing = [file for file in reached if not any(file.is_relative_to(dependency) for dependency in dependencies)]
    assert sorted(map(short, missing)) == []


def closure(file):
    """A file of this repository and all that it imports from it, directly or not."""
    found, waiting = set(), [file]
    while waiting:
        file = waiting.pop()
        found.add(file)
        for module in imports(file):
            stem = ROOT / module.replace(".", "/")
            waiting += [f for f in (stem.with_suffix(".py"), stem / "__init__.py") if f.is_file() and f not in found]
    return found


def test_all_that_a_stage_leaves_reaches_another_machine_by_dvc_pull():
    for name, stage in stages().items():
        kept = [out for kind in ("outs", "metrics", "plots") for out in stage.get(kind, [])]
        assert kept, name
        assert all(isinstance(out, str) or next(iter(out.values())).get("cache", True) for out in kept), name


@pytest.mark.parametrize("deployment", yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"])
def test_prefect_yaml_names_what_exists_and_no_absolute_path(deployment):
    module, function = deployment["entrypoint"].rsplit(".", 1)
    assert callable(getattr(importlib.import_module(module), function))
    assert deployment["work_pool"]["name"] in (POOL, *(f"{POOL}-{kind}" for kind in Kind))
    assert all("timezone" in schedule for schedule in deployment["schedules"])
    text = (ROOT / "prefect.yaml").read_text().replace(f"BENTOML_HOME: {STORE}\n", "")  # inside a container
    assert not re.search(r"(^|[\s:\"'])/", text)


def test_no_file_is_called_by_a_word_that_means_nothing():
    banned = {"utils", "helpers", "common", "manager", "base", "misc"}
    assert not {file.stem for package in PACKAGES for file in sources(package)} & banned

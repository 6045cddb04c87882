"""kill -9 at every moment at which a step changes a name; then the same command: as undisturbed, nothing half-written.

Each step of a night starts from what the night before and the steps before it left, is killed at its first moment,
repeated and killed at the second, and so on (tests/made_kills.py says what a moment is); at last it is let go on. After
each kill every file, and every folder that is replaced as one, is as before the step or as after it; at the end
everything is as in an undisturbed night, without leftovers. At all of their moments: ingest, sequences, evaluate,
challenge, promote, score, monitor, rollback, and forget-user without DVC (with it: tests/test_forgetting.py). At some,
because a run takes seconds of CPU: validate, report, package. Training: tests/test_faults.py.
"""

import json
import re
import shutil

import pytest
from made_kills import END, run_step
from made_repository import Repository, ingest_options, write_table

pytestmark = pytest.mark.slow

HSTU = ("--model", "hstu", "--protocol", "time_split")
NIGHT = {
    "ingest": [],  # its options name files of the fixture
    "validate": [],
    "sequences": [],
    "train": HSTU,
    "evaluate": HSTU,
    "report": [],
    "package": [],
    "challenge": [],
    "promote": [],
    "score": ["--k", "5", "--users-a-part", "25", "--replace"],
    "monitor": ["--requests", "requests"],
    "rollback": ["--why", "slow"],
    "forget-user": ["--user", "u7"],
}
# Of the steps whose runs take more than a second of CPU: what leaves the most varied states behind.
SOME = {
    "validate": r"to .*validated/|quarantine",
    "report": r"gate|exchange|html|the end",
    "package": r"package\.json",
}
STATE = ("data", "artifacts", "reports", "registry")
# Folders that are replaced as one; everything else is a file.
UNIT = re.compile(
    r"repository/(data|artifacts/(sequences|scores)|artifacts/evaluation/\w+/\w+|reports/data_docs|reports/plots)(?=/|$)"
    r"|bentoml/(bentos|models)/\w+/\w+|.+"
)
MEASURED = re.compile(
    rb'"time": "[^"]*"|"latency_ms": [\d.]+|"name": "latency, ms",\s*"observed": [\d.]+|"reused": \w+'
)


class Night:
    """The steps of a night, undisturbed: what each started from, and what it left."""

    def __init__(self, finished, folder):
        self.folder, self.starts, self.ends, self.moments = folder, {}, {}, {}
        repository = copy(finished, folder / "night")
        tolerant = {"max_loss": 1.0, "min_users": 2, "max_slice_loss": 1.0, "max_latency_ms": 10_000}
        # params.yaml alone is read here: the code is that of the working tree.
        finished.copy(folder / "with params").use(models=["hstu"], promote=tolerant)
        shutil.copy(folder / "with params" / "repository" / "params.yaml", repository.root)
        run_step(repository, ["score", *NIGHT["score"]])  # so that the night's own has something to replace
        write_requests(repository)
        self.words = {step: [step, *options] for step, options in NIGHT.items()}
        self.words["ingest"] += [*ingest_options(*write_table(folder, events=60)), "--replace"]
        for step, words in self.words.items():
            self.starts[step] = copy(repository, folder / step)
            self.moments[step] = run_step(repository, words)
            self.ends[step] = state(repository)


def copy(repository, folder):
    """Copy params.yaml, what steps make, and the store beside it."""
    (folder / "repository").mkdir(parents=True)
    for name in (*STATE, "requests"):
        if (repository.root / name).exists():
            shutil.copytree(repository.root / name, folder / "repository" / name)
    shutil.copy(repository.root / "params.yaml", folder / "repository")
    shutil.copytree(repository.root.parent / "bentoml", folder / "bentoml")
    return Repository(folder / "repository")


def write_requests(repository):
    """Write a log of requests as the service does, of the items of the champion of the night before."""
    row = {"route": "/recommend", "request_time": 1_710_000_000, "num_events": 9, "num_read": 9, "num_unknown": 0}
    row |= {"last_item": "i3", "source": "model", "k": 3, "items": ["i4", "i5", "i6"], "scores": [3.0, 2.0, 1.0]}
    rows = [row | {"time": 1.71e9 + n, "request_id": f"{n}", "user_id": f"u{n}", "model": "m:1"} for n in range(60)]
    file = repository.root / "requests" / "2024-03-09" / "160000-1-00000000.jsonl"
    file.parent.mkdir(parents=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def state(repository):
    """Path -> bytes, None for a folder, of all there is but locks; what a clock said is left out."""
    places = [repository.root.parent / "bentoml", *(repository.root / name for name in STATE)]
    paths = [path for place in places for path in place.rglob("*") if path.suffix != ".lock" and path.name != ".lock"]
    paths += repository.root.glob(".*")
    return {
        str(path.relative_to(repository.root.parent)): MEASURED.sub(b"", path.read_bytes()) if path.is_file() else None
        for path in paths
    }


def units(found):
    """Unit -> its files, temporaries apart."""
    split = {}
    for path, content in found.items():
        if content is not None and "/." not in path:
            split.setdefault(UNIT.match(path)[0], {})[path] = content
    return split


def is_torn(found, old, new):
    """Whether a unit is neither as before nor as afterwards, and does not say itself that it is unfinished."""
    return found not in (old, new) and not any(b'"finished": false' in content for content in found.values())


def moments_of(night, step):
    """The moments at which a step is killed; after its end a rollback is over, and repeated it is another one."""
    moments = [moment for moment in night.moments[step] if (step, moment) != ("rollback", END)]
    kinds = {re.sub(r"[0-9a-f]{32}", "", moment): moment for moment in reversed(moments)}
    return [moment for moment in reversed(kinds.values()) if re.search(SOME.get(step, ""), moment)]


@pytest.fixture(scope="module")
def night(finished, tmp_path_factory):
    return Night(finished[0], tmp_path_factory.mktemp("steps"))


@pytest.mark.parametrize("step", [step for step in NIGHT if step != "train"])
def test_killed_at_each_moment_and_repeated_a_step_ends_as_undisturbed_and_nothing_was_half_written(
    night, tmp_path, step
):
    repository, after = copy(night.starts[step], tmp_path), night.ends[step]
    old, new = units(state(repository)), units(after)
    assert old != new
    for moment in moments_of(night, step):
        if moment not in run_step(repository, night.words[step], kill_at=moment):  # too much was done already
            shutil.rmtree(tmp_path / "again", ignore_errors=True)
            repository = copy(night.starts[step], tmp_path / "again")
            assert moment in run_step(repository, night.words[step], kill_at=moment)
        found = units(state(repository))
        names = {*old, *new, *found}
        assert [name for name in names if is_torn(found.get(name, {}), old.get(name, {}), new.get(name, {}))] == []
    run_step(repository, night.words[step])
    left = state(repository)
    assert [path for path in {*left, *after} if left.get(path, "missing") != after.get(path, "missing")] == []

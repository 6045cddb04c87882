"""What several test files share: the one thing that takes long to make, and what is told of the disk."""

import os

import pytest
from hypothesis import settings
from made_repository import FLOW, ingest_options, make_repository, write_table

# The same examples in every run, and no limit to the time that one takes: a busy machine is no failure.
settings.register_profile("hstuflow", deadline=None, derandomize=True)
settings.load_profile("hstuflow")
# What a person has set for git (signatures, hooks) is not for scratch repositories.
os.environ["GIT_CONFIG_GLOBAL"] = os.devnull


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """A scratch repository on which the flow has run once, by the command `make run` uses, and what it printed.

    Shared by all tests: copy it before you change it.
    """
    folder = tmp_path_factory.mktemp("finished")
    repository = make_repository(folder)
    done = repository.run(*FLOW, *ingest_options(*write_table(folder)))
    assert done.returncode == 0, done.stdout
    return repository, done.stdout


@pytest.fixture
def record_syncs(monkeypatch):
    """A function: from now on each os.fsync is one more entry (inode, look()) of the list that it returns."""

    def record(look=lambda: None):
        entries, sync = [], os.fsync

        def recording(descriptor):
            sync(descriptor)
            entries.append((os.fstat(descriptor).st_ino, look()))

        monkeypatch.setattr(os, "fsync", recording)
        return entries

    return record

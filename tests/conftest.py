"""The one thing that several test files share and that takes long to make."""

import pytest
from made_repository import FLOW, ingest_options, make_repository, write_table


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

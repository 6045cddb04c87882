"""Two services on one store, driven at random: what was acknowledged is there, who was forgotten is gone.

And an answer never depends on what came before: it is that of a service that has just started.
"""

import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from made_checkpoints import write_checkpoint
from made_histories import Model

from components.recommender import Recommender
from components.serving.engine import Engine
from components.serving.history_store import KEEP, StoredEvent

KEYS = [f"item-{number}" for number in range(12)]
LATE = 10**6
USERS = ("ann", "ben")
new_events = st.lists(
    st.builds(
        StoredEvent,
        st.integers(0, 30).map("e{}".format),
        st.sampled_from([*KEYS, "elsewhere"]),
        st.integers(0, 50),
    ),
    max_size=4,
)


class Services(RuleBasedStateMachine):
    """Two engines on one SQLite file beside lists that say what has to be in it."""

    recommender: Recommender

    @initialize()
    def start(self):
        self.folder = Path(tempfile.mkdtemp())
        self.engines = [self.open() for _ in range(2)]
        self.expected = {user: Model(KEEP) for user in USERS}

    def open(self):
        return Engine(self.recommender, store_url=f"sqlite:///{self.folder / 'histories.db'}")

    @rule(service=st.integers(0, 1), user=st.sampled_from(USERS), events=new_events)
    def append(self, service, user, events):
        appended = self.engines[service].append(user, events)
        assert appended.new == self.expected[user].append(events)
        assert sum(appended) == len(events)

    @rule(service=st.integers(0, 1), user=st.sampled_from(USERS), data=st.data())
    def repeat(self, service, user, data):
        if known := self.expected[user].events:
            events = data.draw(st.lists(st.sampled_from(known), min_size=1, max_size=3))
            assert self.engines[service].append(user, events) == (0, len(events))

    @rule(service=st.integers(0, 1), user=st.sampled_from(USERS))
    def forget(self, service, user):
        assert self.engines[service].forget(user) == self.expected[user].forget()

    @rule(service=st.integers(0, 1))
    def restart(self, service):
        self.engines[service].close()
        self.engines[service] = self.open()

    @rule(service=st.integers(0, 1), user=st.sampled_from(USERS), wait=st.sampled_from([0, 60, LATE]))
    def ask(self, service, user, wait):
        fresh = self.open()
        warm, cold = (e.look(user_id=user, request_time=LATE + wait) for e in (self.engines[service], fresh))
        fresh.close()
        assert (warm.y_1D is None) == (cold.y_1D is None)
        if warm.y_1D is not None:
            torch.testing.assert_close(warm.y_1D, cold.y_1D, rtol=0, atol=1e-6)
        rows = [self.recommender.catalogue.find(event.item_id) for event in self.expected[user].events]
        assert set(np.asarray(warm.seen_rows).tolist()) == set(rows)

    @invariant()
    def what_was_acknowledged_is_there_and_nothing_else(self):
        for engine in getattr(self, "engines", ()):
            for user, expected in self.expected.items():
                assert engine.store.read(user, 1_000).events == expected.events

    def teardown(self):
        for engine in getattr(self, "engines", ()):
            engine.close()
        if hasattr(self, "folder"):
            shutil.rmtree(self.folder)


@pytest.fixture(scope="module")
def recommender(tmp_path_factory):
    return Recommender.load(write_checkpoint(tmp_path_factory.mktemp("machine") / "checkpoint", KEYS))


def test_two_services_on_one_store_answer_as_fresh_ones_do(recommender):
    machine = type("Services", (Services,), {"recommender": recommender})
    checks = [HealthCheck.too_slow, HealthCheck.filter_too_much]
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=25, stateful_step_count=25, deadline=None, derandomize=True, suppress_health_check=checks
        ),
    )

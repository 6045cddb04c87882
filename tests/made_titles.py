"""A service over a small catalogue of titles, awkward ones among them, for tests of the page and of what it asks."""

from contextlib import contextmanager

from made_checkpoints import write_checkpoint

from components.recommender import Recommender
from components.serving.answers import ModelFacts
from components.serving.app import Served, build_app
from components.serving.engine import Engine
from components.serving.guard import RequestGuard

HOSTILE = '<img src=x onerror="window.hacked = true">'
NAMED = ["Star Wars (1977)", "Wars of the Stars", "Amélie (2001)", "Heat (1995)", HOSTILE, "Fargo  (1996)", "Wars"]
TITLES = NAMED + [f"Film {number}" for number in range(len(NAMED), 40)]
KEYS = [f"item:{number}" for number in range(40)]
GENRES = ["Action|Comedy", "Comedy", "Drama", None] * 10
FACTS = {
    "bento": "hstuflow:b",
    "tag": "hstuflow:m",
    "name": "hstuflow",
    "protocol": "time_split",
    "verdict": "refused",
    "data_hash": "d" * 64,
    "git_commit": "c" * 40,
}
METRICS = {"ndcg@10": {"value": 0.1141, "low": 0.1, "high": 0.13}}
HISTORY = [{"item_id": KEYS[number], "timestamp": 1_000 + number} for number in (3, 7, 11)]
TOKEN = "s3cret"


@contextmanager
def open_titles(folder):
    """An engine of these titles, its checkpoint and its store in `folder`."""
    recommender = Recommender.load(write_checkpoint(folder / "checkpoint", KEYS, titles=TITLES, genres=GENRES))
    engine = Engine(recommender, store_url=f"sqlite:///{folder / 'histories.db'}")
    yield engine
    engine.close()


def make_app(engine, token=None):
    served = Served(engine, ModelFacts(**FACTS), METRICS)
    return RequestGuard(build_app(lambda: served), token=token)


def explain(client, **request):
    response = client.post("/explain", json=request)
    assert response.status_code == 200, response.text
    return response.json()

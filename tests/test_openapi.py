"""The OpenAPI document is true: whatever it allows is served, whatever it forbids is refused, all as it says."""

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from made_items import KEYS, load_with_map
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import positive_data_acceptance
from starlette.testclient import TestClient

from components.serving.answers import ModelFacts
from components.serving.app import Served, build_app
from components.serving.engine import Engine
from components.serving.guard import RequestGuard

FACTS = dict.fromkeys(("bento", "tag", "name", "protocol", "verdict", "data_hash", "git_commit"), "x")


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    folder = tmp_path_factory.mktemp("openapi")
    recommender, item_map = load_with_map(folder / "checkpoint", keys=[*KEYS[:58], "0", "1"])
    engine = Engine(recommender, store_url=f"sqlite:///{folder / 'histories.db'}", item_map=item_map)
    served = Served(engine, ModelFacts(**FACTS), {"ndcg@10": {"value": 0.1, "low": 0.0, "high": 0.2}})
    yield RequestGuard(build_app(lambda: served))
    engine.close()


@pytest.fixture(scope="module")
def document(app):
    return schemathesis.openapi.from_asgi("/docs.json", app)


ROUTES = [
    ("/recommend", "post"),
    ("/recommend_batch", "post"),
    ("/rank", "post"),
    ("/similar", "post"),
    ("/events", "post"),
    ("/users/{user_id}", "delete"),
    ("/info", "get"),
    ("/items", "get"),
    ("/items", "post"),
    ("/items/{item_id}", "delete"),
    ("/explain", "post"),
]


# What no document can say: which attributes the catalogue has, what its map has learned, that one number may not be
# below another, that ids may not repeat.
BEYOND = (
    "no attribute of this name",
    "no item has this value",
    "lies before the last event",
    "tells the item from others",
    "an item comes twice",
)
MODES = [
    (*route, mode) for route in ROUTES for mode in GenerationMode if (route[0], mode.value) != ("/info", "negative")
]


@pytest.mark.parametrize(("path", "method", "mode"), MODES)
def test_every_route_answers_as_the_document_says(document, path, method, mode):
    """Positive: what the document allows. Negative: what it forbids, in every place; GET /info forbids nothing."""

    @settings(
        max_examples=40,
        deadline=None,
        derandomize=True,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
    )
    @given(document[path][method].as_strategy(generation_mode=mode))
    def check(case):
        response = case.call()
        is_beyond = response.status_code == 400 and any(words in response.text for words in BEYOND)
        case.validate_response(response, excluded_checks=[positive_data_acceptance] if is_beyond else [])

    check()


def test_every_route_and_status_is_in_the_document(app):
    document = TestClient(app).get("/docs.json").json()
    routes = {(path, method) for path, operations in document["paths"].items() for method in operations}
    assert routes == set(ROUTES)
    for path in ("/recommend", "/recommend_batch", "/rank", "/events"):
        statuses = set(document["paths"][path]["post"]["responses"])
        assert statuses == {"200", "400", "401", "413", "415", "429", "503", "504"}

"""The page at / and what it asks: its routes in this process, the page itself in a real browser."""

import re
import shutil
import threading

import pytest
import uvicorn
from made_checkpoints import write_checkpoint
from playwright.sync_api import expect, sync_playwright
from starlette.testclient import TestClient

from components.recommender import Recommender
from components.serving.answers import ModelFacts
from components.serving.app import Served, build_app
from components.serving.engine import Engine
from components.serving.guard import RequestGuard
from components.serving.pages import PAGE_FILES, TitleFinder

expect.set_options(timeout=60_000)  # ms: how long a condition is polled; 5 s are too few where other tests run beside
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
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
HISTORY = [{"item_id": KEYS[number], "timestamp": 1_000 + number} for number in (3, 7, 11)]
TOKEN = "s3cret"
LINK = "#e=1003:item:3&e=1007:item:7&e=1011:item:11"


@pytest.fixture(scope="module")
def recommender(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page") / "checkpoint"
    return Recommender.load(write_checkpoint(folder, KEYS, titles=TITLES, genres=GENRES))


@pytest.fixture(scope="module")
def engine(recommender, tmp_path_factory):
    engine = Engine(recommender, store_url=f"sqlite:///{tmp_path_factory.mktemp('page') / 'histories.db'}")
    yield engine
    engine.close()


METRICS = {"ndcg@10": {"value": 0.1141, "low": 0.1, "high": 0.13}}


def make_app(engine, token=None):
    served = Served(engine, ModelFacts(**FACTS), METRICS)
    return RequestGuard(build_app(lambda: served), token=token)


@pytest.fixture(scope="module")
def client(engine):
    return TestClient(make_app(engine), raise_server_exceptions=False)


def titles(client, **query):
    response = client.get("/items", params=query)
    assert response.status_code == 200, response.text
    return [item["title"] for item in response.json()["items"]]


# GET /items


def test_titles_that_hold_all_words_come_back_those_that_begin_with_them_first(client):
    assert titles(client, query="wars") == ["Wars of the Stars", "Wars", "Star Wars (1977)"]
    assert titles(client, query="WARS  star") == ["Star Wars (1977)", "Wars of the Stars"]
    assert titles(client, query="star wars") == ["Star Wars (1977)", "Wars of the Stars"]
    assert titles(client, query="wars heat") == []


def test_case_accents_and_spaces_do_not_matter(client):
    for query in ("amelie", "AMÉLIE", "Ame\u0301lie", " amelie  (2001) "):
        assert titles(client, query=query) == ["Amélie (2001)"]
    assert titles(client, query="fargo (1996)") == ["Fargo  (1996)"]


def test_without_words_the_popular_titles_come_back(client):
    assert titles(client, limit=3) == TITLES[:3]
    assert titles(client, query="  ", limit=3) == TITLES[:3]
    assert titles(client) == TITLES[:20]
    assert titles(client, limit=100) == TITLES


def test_values_of_attributes_come_only_when_asked_for(client):
    assert client.get("/items").json().keys() == {"items"}
    answer = client.get("/items", params={"with_attributes": "true", "limit": 1}).json()
    assert answer["attributes"] == {"genres": ["Action", "Comedy", "Drama"]}


def test_of_an_attribute_with_many_values_the_commonest_come_back(tmp_path):
    genres = ["zebra|common"] * 20 + [f"rare {number:03}" for number in range(200)] + ["zebra"] * 20
    keys = [str(number) for number in range(240)]
    catalogue = Recommender.load(write_checkpoint(tmp_path / "checkpoint", keys, genres=genres)).catalogue
    values = TitleFinder(catalogue).values["genres"]
    assert values == ["common", *(f"rare {number:03}" for number in range(98)), "zebra"]


@pytest.mark.parametrize(
    ("query", "sentence"),
    [
        ({"limit": 0}, "query.limit: Input should be greater than or equal to 1"),
        ({"limit": 101}, "query.limit: Input should be less than or equal to 100"),
        ({"limit": "many"}, "query.limit: Input should be a valid integer"),
        ({"query": "x" * 201}, "query.query: String should have at most 200 characters"),
        ({"words": "x"}, "query.words: unknown key"),
    ],
)
def test_a_wrong_search_gets_400_and_one_sentence(client, query, sentence):
    response = client.get("/items", params=query)
    assert response.status_code == 400
    assert response.json()["error"].startswith(sentence)


# POST /explain


def explain(client, **request):
    response = client.post("/explain", json=request)
    assert response.status_code == 200, response.text
    return response.json()


def test_explained_scores_are_those_of_rank_in_the_order_asked(client):
    asked = ["item:9", "elsewhere", "item:5"]
    answer = explain(client, history=HISTORY, request_time=5_000, item_ids=asked)
    ranked = client.post("/rank", json={"history": HISTORY, "request_time": 5_000, "candidates": asked}).json()
    scores = {item["item_id"]: item["score"] for item in ranked["items"]}
    assert [item["item_id"] for item in answer["items"]] == asked
    for item in answer["items"]:
        assert item["score"] == (None if item["item_id"] == "elsewhere" else pytest.approx(scores[item["item_id"]]))
    assert answer["items"][1]["reasons"] == []
    assert (answer["unknown_items"], answer["source"], answer["history_from"]) == (["elsewhere"], "model", "request")
    assert answer["model"] == FACTS


def test_a_reason_is_the_score_with_an_event_minus_the_score_without_it(client):
    (item,) = explain(client, history=HISTORY, request_time=5_000, item_ids=["item:9"])["items"]
    assert {reason["item_id"] for reason in item["reasons"]} == {"item:3", "item:7", "item:11"}
    effects = [abs(reason["effect"]) for reason in item["reasons"]]
    assert effects == sorted(effects, reverse=True)
    for reason in item["reasons"]:
        kept = [event for event in HISTORY if event["item_id"] != reason["item_id"]]
        without = client.post("/rank", json={"history": kept, "request_time": 5_000, "candidates": ["item:9"]}).json()
        assert reason["effect"] == pytest.approx(item["score"] - without["items"][0]["score"], abs=1e-6)
        assert reason["title"] == TITLES[KEYS.index(reason["item_id"])]


def test_a_stored_history_is_explained_as_it_is_served(client):
    events = [{"item_id": KEYS[n % 9], "timestamp": 1_000 * n, "event_id": str(n)} for n in range(1, 20)]
    client.post("/events", json={"user_id": "ann", "events": events})
    for request_time in (10**6, None):
        asked = {"user_id": "ann", "request_time": request_time}
        answer = explain(client, **asked, item_ids=KEYS[:20])
        served = client.post("/rank", json=asked | {"candidates": KEYS[:20]}).json()
        scores = {item["item_id"]: item["score"] for item in served["items"]}
        assert answer["history_from"] == "store"
        for item in answer["items"]:
            assert item["score"] == pytest.approx(scores[item["item_id"]], abs=1e-5)


def test_without_its_store_the_history_of_the_request_is_explained(recommender, tmp_path):
    (tmp_path / "histories.db").write_text("no database at all, and long enough to be taken for one" * 100)
    client = TestClient(make_app(Engine(recommender, store_url=f"sqlite:///{tmp_path / 'histories.db'}")))
    answer = explain(client, user_id="ann", history=HISTORY, request_time=5_000, item_ids=["item:9"])
    assert answer["history_from"] == "request, store unreachable"
    assert answer["items"] == explain(client, history=HISTORY, request_time=5_000, item_ids=["item:9"])["items"]
    nothing = explain(client, user_id="ann", item_ids=["item:9"])
    assert (nothing["source"], nothing["history_from"]) == ("none", "nowhere, store unreachable")


def test_without_a_known_event_nothing_is_explained(client):
    answer = explain(client, history=[{"item_id": "elsewhere", "timestamp": 5}], item_ids=["item:9"])
    assert answer["items"] == [{"item_id": "item:9", "score": None, "reasons": []}]
    assert (answer["source"], answer["unknown_items"]) == ("none", ["elsewhere"])


@pytest.mark.parametrize(
    ("request_", "sentence"),
    [
        ({"history": HISTORY, "item_ids": []}, "item_ids: List should have at least 1 item"),
        ({"history": HISTORY, "item_ids": KEYS[:21]}, "item_ids: should have at most 20 entries, observed 21"),
        ({"item_ids": ["item:9"]}, "the body: give a history or a user_id"),
        ({"history": HISTORY, "request_time": 5, "item_ids": ["item:9"]}, "request_time lies before the last event"),
    ],
)
def test_what_cannot_be_explained_gets_400_and_one_sentence(client, request_, sentence):
    response = client.post("/explain", json=request_)
    assert response.status_code == 400
    assert response.json()["error"].startswith(sentence)


# The files of the page


@pytest.mark.parametrize(("path", "media_type"), [(path, file[1]) for path, file in PAGE_FILES.items()])
def test_the_page_loads_without_a_token_and_lets_nothing_in_from_elsewhere(engine, path, media_type):
    client = TestClient(make_app(engine, token=TOKEN))
    response = client.get(path)
    assert response.status_code == 200
    assert response.headers["Content-Type"].split(";")[0] == media_type
    assert response.headers["Cache-Control"] == "no-cache"
    assert response.headers["Content-Security-Policy"].startswith("default-src 'self';")
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", response.text)
    assert client.post(path, json={}).status_code == 405


def test_every_file_of_the_page_is_served_and_what_it_asks_is_not_open(engine):
    from components.serving.pages import _FOLDER

    assert {file.name for file in _FOLDER.iterdir()} == {name for name, _ in PAGE_FILES.values()}
    client = TestClient(make_app(engine, token=TOKEN))
    assert (client.get("/items").status_code, client.post("/explain", json={}).status_code) == (401, 401)


# The page in a browser

in_a_browser = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on PATH")
slow = pytest.mark.slow


@pytest.fixture(scope="module")
def serve(engine):
    """Start the service on a free port; return its address."""
    started = []

    def start(token=None, app=None):
        server = uvicorn.Server(uvicorn.Config(app or make_app(engine, token), port=0, log_level="warning"))
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        started.append((server, thread))
        while not server.started:
            thread.join(0.05)
            assert thread.is_alive()
        return f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"

    yield start
    for server, thread in started:
        server.should_exit = True
        thread.join(10)


@pytest.fixture(scope="module")
def address(serve):
    return serve()


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        # A container's root has no sandbox.
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def complaints():
    """What the browser complained about; a test that provokes some takes them out."""
    return []


@pytest.fixture
def page(browser, complaints):
    """A page of its own, which must not complain and must ask this machine only."""
    asked = []
    context = browser.new_context(viewport={"width": 1200, "height": 900}, timezone_id="UTC")
    context.set_default_timeout(20_000)
    page = context.new_page()
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    yield page
    context.close()
    assert complaints == []
    assert [url for url in asked if not url.startswith("http://127.0.0.1:")] == []


def visit(page, address, link=""):
    page.goto(f"{address}/{link}")
    expect(page.locator("#items .item").first).to_be_visible()


def add(page, query, title):
    page.get_by_label("Search the catalogue").fill(query)
    page.locator("#found").get_by_role("button", name=f"Add {title}", exact=True).click()


def shown(page):
    return page.locator("#items .item .title").all_inner_texts()


def settle(page):
    expect(page.locator("#items")).not_to_have_attribute("aria-busy", "true")


@slow
@in_a_browser
def test_before_anything_is_added_popular_items_are_marked_as_such(page, address):
    visit(page, address)
    expect(page.get_by_text("Popular items, nothing personal.")).to_be_visible()
    assert shown(page)[:2] == [TITLES[2], TITLES[0]]
    assert page.get_by_role("button", name=re.compile("^Why")).count() == 0
    for text in ("hstuflow", "refused", "d" * 8, "0.114", "interval 0.100 to 0.130"):
        expect(page.locator("#model").get_by_text(text, exact=True)).to_be_visible()


@slow
@in_a_browser
def test_titles_that_are_added_give_recommendations_of_the_model(page, address, recommender):
    visit(page, address)
    add(page, "star wars", "Star Wars (1977)")
    add(page, "amelie", "Amélie (2001)")
    expect(page.get_by_text("From 2 events")).to_be_visible()
    expect(page.get_by_text("Popular items, nothing personal.")).to_be_hidden()
    assert page.locator("#events .title").all_inner_texts() == ["Amélie (2001)", "Star Wars (1977)"]
    times = [int(time) for time in re.findall(r"e=(\d+)%3A", page.url)]
    assert times[1] - times[0] == 60
    expected = recommender.recommend([("item:0", times[0]), ("item:2", times[1])], 10)
    assert shown(page) == [" ".join(item.title.split()) for item in expected.items]
    scores = [f"{item.score:.3f}".replace("-", "\u2212") for item in expected.items]
    assert page.locator("#items .score").all_inner_texts() == scores


@slow
@in_a_browser
def test_rules_change_the_answer_and_say_what_they_removed(page, address):
    visit(page, address, LINK)
    drama = page.get_by_role("button", name="Drama: no demand")
    drama.click()
    expect(page.locator("#removed")).to_contain_text("27 by genres")
    assert all(TITLES.index(title) % 4 == 2 for title in shown(page) if title in TITLES)
    page.get_by_role("button", name="Drama: one of these").click()
    expect(page.locator("#removed")).to_contain_text("10 by genres")
    page.get_by_label("Titles that share one of the genres, at most").select_option("2")
    expect(page.locator("#removed")).to_contain_text("over the limit on genres")
    page.get_by_label("leave out titles of the history").uncheck()
    expect(page.locator("#removed")).not_to_contain_text("in the history")
    page.get_by_label("How many").select_option("5")
    expect(page.locator("#items .item")).to_have_count(5)


@slow
@in_a_browser
def test_the_time_asked_at_changes_the_scores(page, address):
    visit(page, address, LINK)
    before = page.locator("#items .score").all_inner_texts()
    page.get_by_label("a year").check(force=True)
    expect(page.get_by_text("asked a year after the last")).to_be_visible()
    assert page.locator("#items .score").all_inner_texts() != before


@slow
@in_a_browser
def test_reasons_are_told_in_words(page, address, client):
    visit(page, address, LINK)
    why = page.get_by_role("button", name=re.compile("^Why")).first
    why.click()
    expect(why).to_have_attribute("aria-expanded", "true")
    body = {"history": HISTORY, "request_time": 1_011}
    best = client.post("/recommend", json=body | {"k": 1}).json()["items"][0]
    (explained,) = explain(client, **body, item_ids=[best["item_id"]])["items"]
    reasons = page.locator("#items .reasons").first
    expect(reasons).to_have_text(re.compile("^(because of|despite) "))  # they are asked for when the button is pressed
    text = reasons.inner_text()
    for reason in explained["reasons"]:
        sign = "\u2212" if reason["effect"] < 0 else "+"
        assert f"{reason['title']} ({sign}{abs(reason['effect']):.3f})" in text
    why.click()
    expect(page.locator("#items .reasons").first).to_be_hidden()


@slow
@in_a_browser
def test_a_link_shows_the_same_again(page, address):
    visit(page, address)
    add(page, "heat", "Heat (1995)")
    add(page, "wars", "Wars")
    page.get_by_label("a day", exact=True).check(force=True)
    page.get_by_role("button", name="Comedy: no demand").click()
    expect(page.get_by_text("asked a day after")).to_be_visible()
    settle(page)
    page.get_by_role("button", name=re.compile("^Why")).nth(1).click()
    before = seen(page)
    page.reload()
    assert seen(page) == before


def seen(page):
    """All there is to see, but for what depends on when a field was left; with one reason and what was found."""
    expect(page.locator("#items .reasons:visible")).to_have_count(1)
    expect(page.locator("#found button")).to_have_count(3)
    fields = page.locator("input, select").evaluate_all("all => all.map((one) => [one.value, one.checked])")
    parts = ("#found", "#events", "#rules-count", "#answer")
    return page.url, fields, [page.locator(part).inner_text() for part in parts]


@slow
@in_a_browser
def test_a_time_that_is_changed_moves_its_event(page, address):
    visit(page, address, LINK)
    page.get_by_label("When: Heat (1995)").fill("1970-01-01T01:00:00")
    page.get_by_label("Search the catalogue").focus()
    expect(page.locator("#events .title").first).to_have_text("Heat (1995)")
    assert re.findall(r"e=(\d+)", page.url) == ["1007", "1011", "3600"]
    page.get_by_role("button", name="Remove Heat (1995)").click()
    expect(page.get_by_text("From 2 events")).to_be_visible()
    page.get_by_role("button", name="Clear").click()
    expect(page.get_by_text("Popular items, nothing personal.")).to_be_visible()


@slow
@in_a_browser
def test_a_title_that_is_markup_is_shown_as_text_wherever_it_comes(page, address):
    visit(page, address, "#e=1003:item:4&e=1007:item:5&seen=keep&k=20&q=img")
    expect(page.locator("#found").get_by_text(HOSTILE)).to_be_visible()
    expect(page.locator("#events").get_by_text(HOSTILE)).to_be_visible()
    for why in page.get_by_role("button", name=re.compile("^Why")).all():
        why.click()
    expect(page.locator("#items .reasons").get_by_text(HOSTILE).first).to_be_visible()
    assert page.locator("img").count() == 0
    assert page.evaluate("window.hacked") is None


@slow
@in_a_browser
@pytest.mark.parametrize("width", [320, 390, 1200])
def test_nothing_is_wider_than_the_screen(page, address, width):
    page.set_viewport_size({"width": width, "height": 844})
    visit(page, address, LINK + "&e=1012:item:4&seen=keep&k=20&q=img")
    for why in page.get_by_role("button", name=re.compile("^Why")).all():
        why.click()
    page.locator("summary").last.click()
    expect(page.locator("#items .reasons:visible")).to_have_count(20)
    assert page.evaluate("document.documentElement.scrollWidth") == width


@slow
@in_a_browser
def test_everything_can_be_done_from_the_keyboard(page, address):
    visit(page, address)
    page.get_by_label("Search the catalogue").focus()
    page.keyboard.type("heat")
    expect(page.locator("#found button")).to_have_count(1)
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    expect(page.locator("#found-status")).to_have_text("Added Heat (1995).")
    expect(page.get_by_text("From 1 event,")).to_be_visible()
    page.keyboard.press("ArrowUp")
    expect(page.get_by_label("Search the catalogue")).to_be_focused()
    page.get_by_label("right after", exact=True).focus()
    page.keyboard.press("ArrowRight")
    expect(page.get_by_text("asked an hour after")).to_be_visible()
    page.get_by_role("button", name=re.compile("^Why")).first.focus()
    page.keyboard.press("Space")
    expect(page.get_by_text("because of Heat (1995), the only event").first).to_be_visible()


@slow
@in_a_browser
def test_what_the_service_refuses_is_shown_as_its_sentence(page, address, complaints):
    page.goto(f"{address}/{LINK}&any.genres=comedy")
    expect(page.get_by_role("alert")).to_have_text(
        "no item has this value of genres: observed 'comedy', expected one of 3, such as 'Comedy'"
    )
    expect(page.locator("#items .item")).to_have_count(0)
    page.get_by_role("button", name="comedy: one of these").click()
    page.get_by_role("button", name="comedy: none of these").click()
    expect(page.locator("#items .item")).to_have_count(10)
    expect(page.get_by_role("alert")).to_have_count(0)
    assert [text for text in complaints if "400 (Bad Request)" not in text] == []
    complaints.clear()


@slow
@in_a_browser
def test_what_of_an_address_is_no_event_is_said(page, address):
    visit(page, address, "#e=soon:item:3&e=1003:item:3&k=7")
    expect(page.get_by_role("alert")).to_have_text("Not understood of the address: e=soon:item:3, k=7")
    expect(page.locator("#events .title")).to_have_text(["Heat (1995)"])


@slow
@in_a_browser
def test_a_token_is_asked_for_once_and_again_where_it_is_wrong(page, serve, complaints):
    page.goto(f"{serve(token=TOKEN)}/{LINK}")
    for why, token in (("This service wants a token.", "wrong"), (re.compile("wrong"), TOKEN)):
        expect(page.get_by_role("alert")).to_have_text(why)  # the field is emptied for the next try when this is there
        expect(page.get_by_label("Token of this service")).to_be_focused()
        page.keyboard.type(token)
        page.keyboard.press("Enter")
    expect(page.get_by_text("From 3 events")).to_be_visible()
    expect(page.get_by_label("Token of this service")).to_be_hidden()
    page.reload()
    expect(page.get_by_text("From 3 events")).to_be_visible()
    expect(page.get_by_label("Token of this service")).to_be_hidden()
    page.locator("summary").last.click()
    expect(page.get_by_label("Command")).to_contain_text("Bearer $HSTUFLOW_TOKEN")
    assert TOKEN not in page.get_by_label("Command").inner_text()
    assert complaints
    assert [text for text in complaints if "401 (Unauthorized)" not in text] == []
    complaints.clear()


def fail_once(page, path, complaints):
    """Let the next request to a route be refused, and the browser not complain of that."""

    def refuse(route):
        route.fulfill(status=429, json={"error": f"too many requests for {path}"})
        complaints.append("429")

    page.route(f"**/{path}", refuse, times=1)


def forgive(complaints):
    assert complaints
    assert [text for text in complaints if "429" not in text] == []
    complaints.clear()


@slow
@in_a_browser
def test_reasons_that_could_not_be_had_are_asked_for_at_the_next_press(page, address, complaints):
    visit(page, address, LINK)
    fail_once(page, "explain", complaints)
    why = page.get_by_role("button", name=re.compile("^Why")).first
    why.click()
    expect(page.get_by_role("alert")).to_have_text("too many requests for explain")
    expect(why).to_have_attribute("aria-expanded", "false")
    why.click()
    expect(page.locator("#items .reasons").first).to_have_text(re.compile("^(because of|despite) "))
    expect(page.get_by_role("alert")).to_have_count(0)
    forgive(complaints)


@slow
@in_a_browser
def test_what_failed_is_said_until_it_succeeds_and_can_be_tried_again(page, address, complaints):
    visit(page, address, LINK)
    fail_once(page, "recommend", complaints)
    page.get_by_label("a year").check(force=True)
    expect(page.get_by_role("alert")).to_have_text("too many requests for recommend")
    expect(page.locator("#items .item")).to_have_count(0)
    page.get_by_label("Search the catalogue").fill("heat")  # succeeds, and is another thing
    expect(page.locator("#found button")).to_have_count(1)
    expect(page.get_by_role("alert")).to_have_text("too many requests for recommend")
    page.get_by_role("button", name="Try again").click()
    expect(page.get_by_text("asked a year after the last")).to_be_visible()
    expect(page.get_by_role("alert")).to_have_count(0)
    assert page.get_by_label("Search the catalogue").input_value() == "heat"
    forgive(complaints)


@slow
@in_a_browser
def test_a_page_that_could_not_learn_of_its_model_asks_again(page, address, complaints):
    fail_once(page, "info", complaints)
    visit(page, address)
    expect(page.locator("#model").get_by_text("refused", exact=True)).to_be_visible()
    expect(page.get_by_role("button", name="Drama: no demand")).to_be_visible()
    expect(page.get_by_role("alert")).to_have_count(0)
    forgive(complaints)


@slow
@in_a_browser
def test_what_is_typed_before_the_service_answers_takes_nothing_from_the_link(page, address):
    asked = []
    page.route("**/info", lambda route: asked.append(route))
    page.goto(f"{address}/{LINK}")
    while not asked:
        page.wait_for_timeout(20)
    page.get_by_label("Search the catalogue").fill("he")
    expect(page).to_have_url(re.compile("q=he"))
    asked[0].continue_()
    expect(page.get_by_text("From 3 events")).to_be_visible()
    assert page.get_by_label("Search the catalogue").input_value() == "he"


@slow
@in_a_browser
def test_an_answer_looks_old_until_the_last_one_asked_for_has_come(page, address):
    visit(page, address, LINK)
    asked = []
    page.route("**/recommend", lambda route: asked.append(route))
    for label in ("a year", "a day"):
        page.get_by_label(label).check(force=True)
    while len(asked) < 2:
        page.wait_for_timeout(20)
    page.wait_for_timeout(100)  # the first was given up by now
    expect(page.locator("#items")).to_have_attribute("aria-busy", "true")
    asked[1].continue_()
    expect(page.get_by_text("asked a day after the last")).to_be_visible()
    settle(page)


@slow
@in_a_browser
def test_a_row_of_an_earlier_address_removes_nothing_of_the_next(page, address):
    visit(page, address, LINK)
    asked = []
    page.route(
        "**/recommend", lambda route: asked.append(route) if "allow" in route.request.post_data else route.continue_()
    )
    page.evaluate("location.hash = '#e=1:item:1&e=2:item:2&e=3:item:5'")
    while not asked:
        page.wait_for_timeout(20)
    page.get_by_role("button", name="Remove Heat (1995)").click()
    asked[0].continue_()
    expect(page.locator("#events .title")).to_have_text([TITLES[5], TITLES[2], TITLES[1]])


@slow
@in_a_browser
def test_another_model_is_described_as_soon_as_it_answers(page, serve, engine, tmp_path):
    first = Served(engine, ModelFacts(**FACTS), METRICS)
    other = Recommender.load(write_checkpoint(tmp_path / "other", KEYS, titles=TITLES, genres=["Western"] * 40))
    second = Engine(other, store_url=f"sqlite:///{tmp_path / 'histories.db'}")
    now = [first]
    page.goto(f"{serve(app=build_app(lambda: now[0]))}/{LINK}")
    expect(page.get_by_text("From 3 events")).to_be_visible()
    now[0] = Served(second, ModelFacts(**FACTS | {"tag": "hstuflow:other", "verdict": "accepted"}), METRICS)
    page.get_by_role("button", name=re.compile("^Why")).first.click()
    expect(page.get_by_role("alert")).to_have_text("The service has another model since these answers.")
    page.get_by_role("button", name="Try again").click()
    expect(page.locator("#model").get_by_text("hstuflow:other", exact=True)).to_be_visible()
    expect(page.get_by_role("button", name="Western: no demand")).to_be_visible()
    expect(page.locator("#items .reasons:visible")).to_have_count(1)
    expect(page.get_by_role("alert")).to_have_count(0)
    second.close()


@slow
@in_a_browser
def test_ids_that_are_no_javascript_numbers_and_titles_from_right_to_left(page, serve, tmp_path):
    keys = [str(1_234_567_890_123_456_700 + 7 * number) for number in range(6)]
    names = [f"\u05e1\u05e8\u05d8 {number}" for number in range(6)]
    folder = write_checkpoint(tmp_path / "checkpoint", keys, titles=names, genres=GENRES[:6], key_type="int")
    engine = Engine(Recommender.load(folder), store_url=f"sqlite:///{tmp_path / 'histories.db'}")
    visit(page, serve(app=make_app(engine)))
    for number in (1, 3):
        add(page, names[number], names[number])
    expect(page.get_by_text("From 2 events")).to_be_visible()
    assert re.findall(r"e=\d+%3A(\d+)", page.url) == [keys[1], keys[3]]
    expect(page.locator("#unknown")).to_be_empty()
    page.get_by_role("button", name=re.compile("^Why")).first.click()
    titles = page.locator("#items .reasons .title")
    expect(titles).to_have_count(2)
    # Else the number after a title is drawn beside the next one.
    assert titles.evaluate_all("all => all.map((one) => getComputedStyle(one).unicodeBidi)") == ["isolate"] * 2
    engine.close()


@slow
@in_a_browser
def test_an_attribute_may_have_the_name_of_what_javascript_objects_have(page, address, complaints):
    page.goto(f"{address}/#any.constructor=x&cap.__proto__=2")
    expect(page.get_by_role("alert")).to_contain_text("items have no attribute of this name")
    page.get_by_label("Titles that share one of the __proto__, at most").select_option("any number")
    page.get_by_role("button", name="x: one of these").click()
    page.get_by_role("button", name="x: none of these").click()
    expect(page.locator("#items .item")).to_have_count(10)
    assert [text for text in complaints if "400 (Bad Request)" not in text] == []
    complaints.clear()

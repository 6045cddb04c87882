"""The page at / in a real browser: what a person sees and does, also where the service is slow, fails or changes."""

import re
import shutil
import threading

import pytest
import uvicorn
from made_checkpoints import write_checkpoint
from made_titles import FACTS, GENRES, HISTORY, HOSTILE, KEYS, METRICS, TITLES, TOKEN, explain, make_app, open_titles
from playwright.sync_api import expect, sync_playwright
from starlette.testclient import TestClient

from components.recommender import Recommender
from components.serving.answers import ModelFacts
from components.serving.app import Served, build_app
from components.serving.engine import Engine

expect.set_options(timeout=60_000)  # ms: how long a condition is polled; 5 s are too few where other tests run beside
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
LINK = "#e=1003:item:3&e=1007:item:7&e=1011:item:11"

in_a_browser = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on PATH")
slow = pytest.mark.slow


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    with open_titles(tmp_path_factory.mktemp("page")) as engine:
        yield engine


@pytest.fixture(scope="module")
def client(engine):
    return TestClient(make_app(engine), raise_server_exceptions=False)


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
def test_titles_that_are_added_give_recommendations_of_the_model(page, address, engine):
    visit(page, address)
    add(page, "star wars", "Star Wars (1977)")
    add(page, "amelie", "Amélie (2001)")
    expect(page.get_by_text("From 2 events")).to_be_visible()
    expect(page.get_by_text("Popular items, nothing personal.")).to_be_hidden()
    assert page.locator("#events .title").all_inner_texts() == ["Amélie (2001)", "Star Wars (1977)"]
    times = [int(time) for time in re.findall(r"e=(\d+)%3A", page.url)]
    assert times[1] - times[0] == 60
    expected = engine.recommender.recommend([("item:0", times[0]), ("item:2", times[1])], 10)
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

// The page: what a person does changes `state`; `state` is written to the address and asked of the service.
//
// All text from the catalogue and the service is set as text, never as HTML.

import { AFTER, emptyState, readAddress, writeAddress } from "./address.js";
import { call, hasToken, ServiceError } from "./service.js";
import { commandInWords, fromLocal, modelFacts, reasonsInWords, removedInWords, toLocal } from "./words.js";

const MINUTE = 60;
const MAX_EXPLAINED = 20; // as POST /explain has it
const WIDE = window.matchMedia("(min-width: 60rem)");
const FOUND = WIDE.matches ? 8 : 5;

const byId = (id) => document.getElementById(id);
let state = emptyState();
let attributes = {}; // name -> values
let described = null; // tag of the model that the page describes; a service may follow the champion to another one
let answer = null; // of POST /recommend, and what was `asked`
let reasons = null; // promise of Map(item id -> what POST /explain says), of that answer
const rows = new WeakMap(); // event -> its row, which keeps the focus when the order changes
const running = {}; // kind of request -> AbortController: a newer one ends an older one
const errors = new Map(); // what failed -> sentence, until it succeeds

// ---- asking

async function ask(kind, path, body) {
  running[kind]?.abort();
  running[kind] = new AbortController();
  return await call(askForToken, path, body, running[kind].signal);
}

// Run what talks to the service; show what goes wrong. Being overtaken by a newer request is nothing wrong.
async function guarded(kind, work, otherwise = () => {}) {
  try {
    await work();
    showError(kind, "");
  } catch (error) {
    if (error.name === "AbortError") return;
    otherwise();
    if (!(error instanceof ServiceError)) console.error(error);
    showError(kind, error instanceof ServiceError ? error.message : `The page failed: ${error.message}`);
  }
}

function askForToken(why) {
  const form = byId("token");
  form.hidden = false;
  byId("token-why").textContent = why;
  byId("token-text").value = "";
  byId("token-text").focus();
  return new Promise((resolve) => {
    form.onsubmit = (event) => {
      event.preventDefault();
      form.hidden = true;
      resolve(byId("token-text").value.trim());
    };
  });
}

function showError(kind, sentence) {
  if (sentence) errors.set(kind, sentence);
  else errors.delete(kind);
  byId("error").textContent = [...new Set(errors.values())].join(" ");
  byId("failed").hidden = !errors.size;
  byId("again").hidden = [...errors.keys()].every((one) => one === "address");
}

// ---- what is asked for

function history() {
  return state.events.map((event) => ({ item_id: event.id, timestamp: event.time }));
}

function whose() {
  const last = state.events.at(-1);
  return last ? { history: history(), request_time: last.time + AFTER[state.after] } : { history: [] };
}

function recommendBody() {
  const body = { ...whose(), k: state.k };
  if (!state.excludeSeen) body.exclude_seen = false;
  const filters = { __proto__: null }; // attributes may have any name
  for (const name of new Set([...Object.keys(state.any), ...Object.keys(state.none)])) {
    filters[name] = { any_of: state.any[name] ?? [], none_of: state.none[name] ?? [] };
  }
  if (Object.keys(filters).length) body.attributes = filters;
  if (Object.keys(state.caps).length) body.caps = state.caps;
  return body;
}

function remember() {
  window.history.replaceState(null, "", writeAddress(state) || location.pathname + location.search);
}

async function recommend() {
  remember();
  const body = recommendBody();
  byId("items").setAttribute("aria-busy", "true");
  const asking = guarded("recommend", async () => {
    const found = await ask("recommend", "recommend", body);
    answer = { ...found, asked: body };
    reasons = null;
    showError("explain", "");
    showAnswer();
    if (found.model.tag !== described) describe();
  }, hideAnswer);
  const mine = running.recommend;
  await asking;
  if (running.recommend === mine) byId("items").removeAttribute("aria-busy"); // else a newer answer is on its way
}

function askForReasons() {
  if (!reasons) {
    const mine = reasons = explain(answer);
    mine.catch(() => { if (reasons === mine) reasons = null; }); // the next press asks again
  }
  return reasons;
}

async function explain({ asked, items, model }) {
  const ids = items.slice(0, MAX_EXPLAINED).map((item) => String(item.item_id));
  const body = { history: asked.history, request_time: asked.request_time, item_ids: ids };
  const explained = await ask("explain", "explain", body);
  if (explained.model.tag !== model.tag) throw new ServiceError("The service has another model since these answers.");
  return new Map(explained.items.map((item) => [String(item.item_id), item]));
}

// ---- searching

async function search() {
  await guarded("search", async () => {
    const query = new URLSearchParams({ query: state.query, limit: FOUND });
    const found = await ask("search", `items?${query}`);
    byId("found").replaceChildren(...found.items.map(foundRow));
    byId("found-status").textContent = searchInWords(found.items.length);
  });
}

function searchInWords(count) {
  if (!state.query.trim()) return "The most popular titles:";
  if (!count) return "No title holds all these words.";
  return count < FOUND ? `${count} ${count === 1 ? "title" : "titles"} found:` : `The ${FOUND} best matches:`;
}

function foundRow(item) {
  const row = fromTemplate("found-row");
  row.querySelector(".title").textContent = item.new ? `${item.title} \u00b7 new` : item.title;
  const button = row.querySelector("button");
  button.setAttribute("aria-label", `Add ${item.title}`);
  button.addEventListener("click", () => addEvent(item));
  return row;
}

// Up and down move through what was found, from the field and back to it.
function walk(event) {
  const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  if (!step) return;
  const stops = [byId("query"), ...byId("found").querySelectorAll("button")];
  const next = stops[stops.indexOf(document.activeElement) + step];
  if (!next) return;
  event.preventDefault();
  next.focus();
}

// ---- the history

// A new event happens now. Those before it move back where they would come less than a minute earlier.
function addEvent(item) {
  const now = Math.floor(Date.now() / 1000);
  const last = state.events.at(-1);
  const shift = last ? Math.max(0, last.time + MINUTE - now) : 0;
  for (const event of state.events) event.time = Math.max(0, event.time - shift);
  state.events.push({ id: String(item.item_id), time: now, title: item.title });
  byId("found-status").textContent = `Added ${item.title}.`;
  showEvents();
  recommend();
}

function removeEvent(event) {
  const place = state.events.indexOf(event);
  if (place < 0) return; // a row of the address before this one
  state.events.splice(place, 1);
  showEvents();
  const buttons = byId("events").querySelectorAll("button");
  (buttons[Math.min(buttons.length - 1, state.events.length - place)] ?? byId("query")).focus();
  recommend();
}

function showEvents() {
  byId("no-events").hidden = state.events.length > 0;
  for (const id of ["clear", "onward"]) byId(id).hidden = state.events.length === 0;
  const focused = document.activeElement;
  byId("events").replaceChildren(...state.events.toReversed().map(eventRow));
  if (focused.isConnected) focused.focus();
}

function eventRow(event) {
  if (!rows.has(event)) rows.set(event, newEventRow(event));
  const row = rows.get(event);
  const title = event.title ?? `item ${event.id}`; // the title may come later than the row
  const time = row.querySelector("input");
  row.querySelector(".title").textContent = title;
  row.querySelector("button").setAttribute("aria-label", `Remove ${title}`);
  time.setAttribute("aria-label", `When: ${title}`);
  time.value = toLocal(event.time);
  return row;
}

function newEventRow(event) {
  const row = fromTemplate("event-row");
  const time = row.querySelector("input");
  time.addEventListener("change", () => changeTime(event, time.value));
  time.addEventListener("blur", showEventsInOrder); // not at every change: the field would be gone while it is typed in
  row.querySelector("button").addEventListener("click", () => removeEvent(event));
  return row;
}

function changeTime(event, text) {
  const time = fromLocal(text);
  if (!(time >= 0)) return; // an unfinished one; leaving the field shows the old one again
  event.time = time;
  state.events.sort((a, b) => a.time - b.time);
  recommend();
}

function showEventsInOrder() {
  const shown = [...byId("events").querySelectorAll("input")].map((input) => input.value);
  const inOrder = state.events.toReversed().map((event) => toLocal(event.time));
  if (shown.join() !== inOrder.join()) setTimeout(showEvents); // after the click that took the focus
}

// Titles of the events that the address names. Of a catalogue's items the service tells the title of what it recommends.
async function findTitles() {
  const untitled = state.events.filter((event) => event.title === null);
  if (!untitled.length) return;
  const ids = [...new Set(untitled.map((event) => event.id))].slice(0, 1000);
  const found = await ask("titles", "recommend", { history: [], allow: ids, exclude_seen: false, k: ids.length });
  const titles = new Map(found.items.map((item) => [String(item.item_id), item.title]));
  for (const event of untitled) event.title = titles.get(event.id) ?? null;
}

// ---- the answer

function showAnswer() {
  const isPopular = answer.source === "popular";
  byId("popular").hidden = !isPopular;
  byId("popular-why").textContent = state.events.length
    ? "The model knows none of the titles in the history."
    : "The history is empty, so this is what was popular at the end of the training data.";
  byId("answer-status").textContent = answerInWords(isPopular);
  const shown = new Set(answer.items.map((item) => String(item.item_id)));
  for (const id of state.open) if (isPopular || !shown.has(id)) state.open.delete(id);
  remember();
  const best = Math.max(...answer.items.map((item) => item.score ?? 0), 1e-9);
  byId("items").replaceChildren(...answer.items.map((item) => itemRow(item, best)));
  byId("removed").textContent = removedInWords(answer.removed);
  byId("unknown").textContent = answer.unknown_items.length ? `The model does not know: ${answer.unknown_items.join(", ")}.` : "";
  byId("about-reasons").hidden = isPopular || !answer.items.length;
  byId("request").textContent = commandInWords(new URL("recommend", location.href), answer.asked, hasToken());
}

// What is shown would be the answer to something else.
function hideAnswer() {
  for (const id of ["items", "answer-status", "removed", "unknown", "request"]) byId(id).replaceChildren();
  for (const id of ["popular", "about-reasons"]) byId(id).hidden = true;
}

function answerInWords(isPopular) {
  if (!answer.items.length) return "Nothing is left that the rules allow.";
  if (isPopular) return "";
  const events = state.events.length === 1 ? "1 event" : `${state.events.length} events`;
  const after = { now: "right after", hour: "an hour after", day: "a day after", month: "a month after", year: "a year after" };
  return `From ${events}, asked ${after[state.after]} the last. Scores lie between \u22121 and 1; bars begin at 0.`;
}

function itemRow(item, best) {
  const row = fromTemplate("item-row");
  row.querySelector(".title").textContent = item.new ? `${item.title} \u00b7 new` : item.title;
  const add = row.querySelector(".add");
  add.setAttribute("aria-label", `Add ${item.title}`);
  add.addEventListener("click", () => { byId("answer-title").focus({ preventScroll: true }); addEvent(item); });
  const why = row.querySelector(".why");
  const isScored = item.score !== null;
  why.hidden = !isScored;
  row.classList.toggle("plain", !isScored);
  if (!isScored) return row;
  row.querySelector(".score").textContent = item.score.toFixed(3).replace("-", "\u2212");
  row.querySelector(".bar span").style.width = `${Math.max(0, item.score / best) * 100}%`;
  why.setAttribute("aria-label", `Why ${item.title}`);
  why.addEventListener("click", () => toggleReasons(row, item));
  if (state.open.has(String(item.item_id))) showReasons(row, item);
  return row;
}

function toggleReasons(row, item) {
  const id = String(item.item_id);
  const [box, why] = [row.querySelector(".reasons"), row.querySelector(".why")];
  if (why.getAttribute("aria-expanded") === "true") {
    state.open.delete(id);
    box.hidden = true;
    why.setAttribute("aria-expanded", "false");
  } else {
    state.open.add(id);
    showReasons(row, item);
  }
  remember();
}

function showReasons(row, item) {
  const id = String(item.item_id);
  const [box, why] = [row.querySelector(".reasons"), row.querySelector(".why")];
  why.setAttribute("aria-expanded", "true");
  return guarded("explain", async () => {
    const found = await askForReasons();
    box.replaceChildren(...reasonsInWords(found.get(id)).map(toned));
    box.hidden = !state.open.has(id);
  }, () => why.setAttribute("aria-expanded", "false"));
}

function toned([text, tone]) {
  const part = document.createElement("span");
  part.className = tone;
  if (tone === "title") part.dir = "auto";
  part.textContent = text;
  return part;
}

// ---- rules

// What the address asks for has its place even where the catalogue lacks it: how else to take it back?
function showRules() {
  const named = [state.any, state.none, state.caps].flatMap(Object.keys);
  const names = [...new Set([...Object.keys(attributes).filter((name) => attributes[name].length), ...named])];
  byId("attributes").replaceChildren(...names.map(attributeBox));
  byId("seen").checked = state.excludeSeen;
  byId("k").value = String(state.k);
  for (const radio of document.querySelectorAll("input[name=after]")) radio.checked = radio.value === state.after;
  countRules();
}

function countRules() {
  const lists = [...Object.values(state.any), ...Object.values(state.none)];
  const count = lists.flat().length + Object.keys(state.caps).length + (state.excludeSeen ? 0 : 1);
  byId("rules-count").textContent = count ? `: ${count} set` : "";
}

function changeRules() {
  countRules();
  recommend();
}

function attributeBox(name) {
  const values = new Set([...(attributes[name] ?? []), ...(state.any[name] ?? []), ...(state.none[name] ?? [])]);
  const box = fromTemplate("attribute-box");
  box.querySelector("legend").textContent = name;
  box.querySelector(".chips").append(...[...values].map((value) => chip(name, value)));
  const [label, select] = [box.querySelector("label"), box.querySelector("select")];
  [label.htmlFor, select.id] = [`cap-${name}`, `cap-${name}`];
  label.textContent = `Titles that share one of the ${name}, at most`;
  for (const cap of new Set(["", 1, 2, 3, 5, state.caps[name] ?? ""])) select.add(new Option(cap || "any number", cap));
  select.value = state.caps[name] ?? "";
  select.addEventListener("change", () => {
    if (select.value) state.caps[name] = Number(select.value);
    else delete state.caps[name];
    changeRules();
  });
  return box;
}

function chip(name, value) {
  const button = document.createElement("button");
  button.type = "button";
  const show = () => {
    const wish = wishOf(name, value);
    button.className = `chip ${wish}`;
    button.textContent = value;
    button.setAttribute("aria-label", `${value}: ${{ any: "one of these", none: "none of these", "": "no demand" }[wish]}`);
  };
  button.addEventListener("click", () => {
    setWish(name, value, { "": "any", any: "none", none: "" }[wishOf(name, value)]);
    show();
    changeRules();
  });
  show();
  return button;
}

function wishOf(name, value) {
  return ["any", "none"].find((kind) => state[kind][name]?.includes(value)) ?? "";
}

function setWish(name, value, wish) {
  for (const kind of ["any", "none"]) {
    const values = (state[kind][name] ?? []).filter((other) => other !== value);
    if (kind === wish) values.push(value);
    if (values.length) state[kind][name] = values;
    else delete state[kind][name];
  }
}

// ---- the model

// Show which model answers, and what its catalogue's attributes are.
function describe() {
  return guarded("model", async () => {
    const [info, found] = await Promise.all([
      ask("info", "info"), ask("attributes", "items?limit=1&with_attributes=true"),
    ]);
    attributes = { __proto__: null, ...found.attributes };
    described = info.model.tag;
    showModel(info);
    showRules();
  });
}

function showModel(info) {
  byId("model").replaceChildren(...modelFacts(info).map(([name, value, more]) => {
    const fact = fromTemplate("fact");
    fact.querySelector("dt").textContent = name;
    fact.querySelector("dd span").textContent = value;
    fact.querySelector("small").textContent = more;
    if (["accepted", "inconclusive", "refused"].includes(value)) fact.querySelector("dd span").className = `tone ${value}`;
    return fact;
  }));
}

// ---- the beginning

function fromTemplate(id) {
  return byId(id).content.firstElementChild.cloneNode(true);
}

function makeSegments() {
  const words = { now: "right after", hour: "an hour", day: "a day", month: "a month", year: "a year" };
  byId("after").replaceChildren(...Object.keys(AFTER).map((after) => {
    const label = fromTemplate("segment");
    const radio = label.querySelector("input");
    radio.value = after;
    label.querySelector("span").textContent = words[after];
    radio.addEventListener("change", () => { state.after = after; recommend(); });
    return label;
  }));
}

function listen() {
  let waiting = 0;
  byId("query").addEventListener("input", (event) => {
    state.query = event.target.value;
    clearTimeout(waiting);
    waiting = setTimeout(() => {
      remember();
      search();
    }, 120);
  });
  document.querySelector("[role=search]").addEventListener("keydown", walk);
  byId("clear").addEventListener("click", () => { state.events = []; showEvents(); byId("query").focus(); recommend(); });
  byId("seen").addEventListener("change", (event) => { state.excludeSeen = event.target.checked; changeRules(); });
  byId("k").addEventListener("change", (event) => { state.k = Number(event.target.value); recommend(); });
  byId("onward").addEventListener("click", () => { byId("answer").scrollIntoView(); byId("answer-title").focus({ preventScroll: true }); });
  byId("again").addEventListener("click", show);
  window.addEventListener("hashchange", show);
}

// Show what the address says.
async function show() {
  let problem;
  [state, problem] = readAddress(location.hash);
  const shown = state;
  byId("query").value = state.query;
  showRules();
  await guarded("titles", findTitles);
  if (state !== shown) return; // the address has changed meanwhile
  showEvents();
  showError("address", problem);
  await Promise.all([search(), recommend()]);
}

async function start() {
  [state] = readAddress(location.hash); // what is typed before the service has answered is written beside it
  makeSegments();
  listen();
  byId("rules").open = WIDE.matches;
  await describe();
  await show();
}

start();

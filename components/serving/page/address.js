// What is seen, as the part of the address after #: a link reproduces it.
//
//     #e=881250949:50&e=881251009:172&after=day&any.genres=Comedy&none.genres=Horror&cap.genres=2&seen=keep&k=5

export const AFTER = { now: 0, hour: 3600, day: 86400, month: 30 * 86400, year: 365 * 86400 }; // seconds

const COUNTS = [5, 10, 20];
const MAX_SECONDS = 253402300799; // as the service has it: the end of year 9999

export function emptyState() {
  const [any, none, caps] = [{ __proto__: null }, { __proto__: null }, { __proto__: null }]; // attributes may have any name
  return { events: [], after: "now", k: 10, excludeSeen: true, any, none, caps, query: "", open: new Set() };
}

// Return the state and, as a sentence, what of the address was not understood ("" if nothing).
export function readAddress(hash) {
  const state = emptyState();
  const wrong = [];
  for (const [key, value] of new URLSearchParams(hash.replace(/^#/, ""))) {
    if (!readOne(state, key, value)) wrong.push(`${key}=${value}`);
  }
  state.events.sort((a, b) => a.time - b.time);
  return [state, wrong.length ? `Not understood of the address: ${wrong.join(", ")}` : ""];
}

export function writeAddress(state) {
  const parts = new URLSearchParams();
  for (const event of state.events) parts.append("e", `${event.time}:${event.id}`);
  if (state.after !== "now") parts.set("after", state.after);
  for (const kind of ["any", "none"]) {
    for (const [name, values] of Object.entries(state[kind])) {
      for (const value of values) parts.append(`${kind}.${name}`, value);
    }
  }
  for (const [name, cap] of Object.entries(state.caps)) parts.set(`cap.${name}`, cap);
  if (!state.excludeSeen) parts.set("seen", "keep");
  if (state.k !== 10) parts.set("k", state.k);
  if (state.query) parts.set("q", state.query);
  for (const id of state.open) parts.append("why", id);
  return parts.toString() ? `#${parts}` : "";
}

function readOne(state, key, value) {
  const [kind, name] = cut(key, ".");
  if (key === "e") return readEvent(state, value);
  if (key === "after" && Object.hasOwn(AFTER, value)) state.after = value;
  else if (key === "k" && COUNTS.includes(Number(value))) state.k = Number(value);
  else if (key === "seen" && value === "keep") state.excludeSeen = false;
  else if (key === "q") state.query = value.slice(0, 200);
  else if (key === "why") state.open.add(value);
  else if (name && (kind === "any" || kind === "none")) (state[kind][name] ??= []).push(value);
  else if (name && kind === "cap" && /^[1-9]\d{0,2}$/.test(value)) state.caps[name] = Number(value);
  else return false;
  return true;
}

function readEvent(state, value) {
  const [time, id] = cut(value, ":");
  if (!/^\d{1,12}$/.test(time) || Number(time) > MAX_SECONDS || !id) return false;
  state.events.push({ id, time: Number(time), title: null });
  return true;
}

function cut(text, mark) {
  const place = text.indexOf(mark);
  return place < 0 ? [text, ""] : [text.slice(0, place), text.slice(place + 1)];
}

// Asking the service: the token, and errors as the sentence they carry.

const KEY = "hstuflow-token";
let asking = null; // several requests that are refused at once ask the person once

export const hasToken = () => sessionStorage.getItem(KEY) !== null;

export class ServiceError extends Error {}

// Return the answer's JSON. `askForToken(sentence)` is called where the service wants a token, or another one.
export async function call(askForToken, path, body, signal) {
  for (;;) {
    const token = sessionStorage.getItem(KEY);
    const response = await send(path, body, token, signal);
    if (response.status !== 401) return await read(response);
    if (sessionStorage.getItem(KEY) === token) await newToken(askForToken, token ? await sentence(response) : "This service wants a token.");
  }
}

async function send(path, body, token, signal) {
  const headers = body ? { "Content-Type": "application/json" } : {};
  if (token) headers.Authorization = `Bearer ${token}`;
  try {
    return await fetch(path, { method: body ? "POST" : "GET", headers, body: body && JSON.stringify(body), signal });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServiceError("The service cannot be reached. Is it running?");
  }
}

async function read(response) {
  if (response.ok) return JSON.parse(await response.text(), exact);
  throw new ServiceError(await sentence(response));
}

// Ids beyond 2^53 stay as they are written: a JavaScript number would be another item's.
function exact(_, value, context) {
  return Number.isInteger(value) && !Number.isSafeInteger(value) ? (context?.source ?? value) : value;
}

async function sentence(response) {
  const text = await response.text();
  try {
    return JSON.parse(text).error ?? text;
  } catch {
    return `The service answered with status ${response.status}.`; // a proxy's own page, say
  }
}

async function newToken(askForToken, why) {
  asking ??= askForToken(why).finally(() => { asking = null; });
  sessionStorage.setItem(KEY, await asking);
}

// Numbers and facts as a person reads them.

const RULES = { seen: "in the history", exclude: "excluded", allow: "not allowed", first_seen: "too old" };

// Signed, with the minus sign that is as wide as the plus; what rounds to nothing has none.
export function signed(effect) {
  const text = Math.abs(effect).toFixed(3);
  return Number(text) ? `${effect < 0 ? "\u2212" : "+"}${text}` : text;
}

// Return [text, tone] parts of the sentence: tone is "title", "up", "down" or "".
export function reasonsInWords({ score, reasons }) {
  if (score === null) return [["The model does not know it any more.", ""]];
  if (!reasons.length) return [["No event of the history moved it.", ""]];
  if (reasons[0].effect === null) return [["because of ", ""], [reasons[0].title, "title"], [", the only event", ""]];
  const up = reasons.filter((reason) => reason.effect >= 0);
  const down = reasons.filter((reason) => reason.effect < 0);
  const parts = up.length ? [["because of ", ""], ...listed(up, "up")] : [];
  if (down.length) parts.push([up.length ? "; despite " : "despite ", ""], ...listed(down, "down"));
  return parts;
}

function listed(reasons, tone) {
  return reasons.flatMap((reason, n) => [
    [n ? ", " : "", ""], [reason.title, "title"], [" (", ""], [signed(reason.effect), tone], [")", ""],
  ]);
}

export function removedInWords(removed) {
  const kept = Object.entries(removed).filter(([, count]) => count > 0);
  if (!kept.length) return "";
  return `Kept out by the rules: ${kept.map(([rule, count]) => `${count.toLocaleString("en")} ${ruleInWords(rule)}`).join(", ")}.`;
}

function ruleInWords(rule) {
  const place = rule.indexOf(".");
  if (place < 0) return RULES[rule] ?? rule;
  const name = rule.slice(place + 1);
  return rule.startsWith("caps.") ? `over the limit on ${name}` : `by ${name}`;
}

// The local time that <input type="datetime-local"> shows, and back (NaN where it is none).
export function toLocal(seconds) {
  const date = new Date(seconds * 1000);
  return new Date(date - date.getTimezoneOffset() * 60000).toISOString().slice(0, 19);
}

export function fromLocal(text) {
  return Math.floor(new Date(text).getTime() / 1000);
}

export function modelFacts(info) {
  const { model } = info;
  const ndcg = info.metrics["ndcg@10"];
  const until = info.train_until && new Date(info.train_until * 1000).toISOString().slice(0, 10);
  return [
    ["Model", model.name, model.tag],
    ["Verdict of the gate", model.verdict, model.protocol],
    ["NDCG@10 on test", ndcg ? ndcg.value.toFixed(3) : "unknown", ndcg ? `interval ${ndcg.low.toFixed(3)} to ${ndcg.high.toFixed(3)}` : ""],
    ["Hash of the data", model.data_hash.slice(0, 8), until ? `nothing later than ${until}` : ""],
    ["Catalogue", info.num_items.toLocaleString("en"), `items; reads the last ${info.max_len} events`],
  ];
}

// The request as a command line; a quote in the body would end the shell's own.
export function commandInWords(url, body, isTokenNeeded) {
  const data = JSON.stringify(body).replaceAll("'", "'\\''");
  const token = isTokenNeeded ? ' -H "Authorization: Bearer $HSTUFLOW_TOKEN"' : "";
  return `curl -s ${url}${token} -H 'Content-Type: application/json' -d '${data}'`;
}

"use strict";
// Everything that a model or a run wrote is put on the page as text, never as markup.

const ROW = 50; // height of a row of the list, pixels; report.css says the same
const NAMES = { c: "correct", i: "incorrect", u: "unanswered" };
const $ = (id) => document.getElementById(id);
const number = (n) => n.toLocaleString("en");
const state = { runs: [], run: 0, against: -1, rows: [], chosen: -1, hits: null };
const opened = new Map(); // chunk number -> promise of its questions

function make(tag, name, text) {
  const element = document.createElement(tag);
  if (name) element.className = name;
  if (text !== undefined) element.textContent = text;
  return element;
}

async function unpack(id) {
  const text = atob($(id).textContent);
  const bytes = Uint8Array.from(text, (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return JSON.parse(await new Response(stream).text());
}

function chunk(n) {
  if (!opened.has(n)) {
    if (opened.size > 40) opened.delete(opened.keys().next().value);
    opened.set(n, unpack("chunk-" + n));
  }
  return opened.get(n);
}

// The other run's place of a question, or -1 where it has none.
function there(q) {
  if (state.against < 0) return -1;
  const other = state.runs[state.against];
  if (!other.place) other.place = new Map(other.ids.map((id, n) => [id, n]));
  return other.place.get(state.runs[state.run].ids[q]) ?? -1;
}

function keeps(q) {
  const run = state.runs[state.run];
  const other = there(q);
  const solvedThere = other >= 0 && state.runs[state.against].solved[other] > 0;
  switch ($("show").value) {
    case "solved": return run.solved[q] > 0;
    case "unsolved": return run.solved[q] === 0;
    case "late": return run.solved[q] > 1;
    case "unanswered": return run.verdicts[q].includes("u");
    case "only": return other >= 0 && run.solved[q] > 0 && !solvedThere;
    case "lost": return run.solved[q] === 0 && solvedThere;
    default: return true;
  }
}

function filter() {
  const run = state.runs[state.run];
  const text = $("find").value.trim().toLowerCase();
  state.rows = [];
  for (let q = 0; q < run.ids.length; q++) {
    const found = !text || run.ids[q].toLowerCase().includes(text) || (state.hits && state.hits.has(q));
    if (found && keeps(q)) state.rows.push(q);
  }
  const by = {
    trials: (a, b) => (run.solved[a] || Infinity) - (run.solved[b] || Infinity) || a - b,
    tokens: (a, b) => run.tokens[b] - run.tokens[a],
    id: (a, b) => run.ids[a].localeCompare(run.ids[b], "en", { numeric: true }),
  }[$("order").value];
  if (by) state.rows.sort((a, b) => by(a, b) || a - b);
  $("tally").textContent = `${number(state.rows.length)} of ${number(run.ids.length)} questions`;
  $("rows").style.height = state.rows.length * ROW + "px";
  // The chosen question stays in sight where it is still listed.
  $("list").scrollTop = Math.max(0, state.rows.indexOf(state.chosen) - 2) * ROW;
  draw();
}

function strip(letters, name) {
  const cells = make("div", name);
  for (const letter of letters) cells.append(make("i", "cell " + letter));
  return cells;
}

function row(place) {
  const q = state.rows[place];
  const run = state.runs[state.run];
  const element = make("div", "row");
  element.style.top = place * ROW + "px";
  element.setAttribute("role", "option");
  element.setAttribute("aria-selected", String(q === state.chosen));
  const line = make("div", "line");
  line.append(make("span", "id", run.ids[q]));
  const end = run.solved[q] ? `solved at ${run.solved[q]}` : "unsolved";
  line.append(make("span", "end", `${end} · ${number(run.tokens[q])} tokens`));
  element.append(line, strip(run.verdicts[q], "strip"));
  const other = there(q);
  if (other >= 0) element.append(strip(state.runs[state.against].verdicts[other], "strip there"));
  element.addEventListener("click", () => choose(q));
  return element;
}

// Only the rows in sight exist.
function draw() {
  const list = $("list");
  const first = Math.max(0, Math.floor(list.scrollTop / ROW) - 4);
  const last = Math.min(state.rows.length, Math.ceil((list.scrollTop + list.clientHeight) / ROW) + 4);
  const rows = [];
  for (let place = first; place < last; place++) rows.push(row(place));
  $("rows").replaceChildren(...rows);
}

function trial(fields, run) {
  const [n, verdict, finish, extracted, detail, loss, prompt, generated, trained, seconds, text, critiques, score, divergence] = fields;
  const element = make("div", "trial " + verdict);
  const head = make("div", "head");
  head.append(make("b", "", `Trial ${n}: ${NAMES[verdict]}`));
  if (extracted !== null) head.append(make("span", "", `answer ${extracted}`));
  const facts = [`${number(generated)} tokens`, `${seconds.toFixed(1)} s`];
  if (score !== null) facts.unshift(score);
  if (prompt) facts.push(`${number(prompt)} prompt tokens`);
  if (trained) facts.push(`${number(trained)} trained`);
  if (loss !== null) facts.push(`loss ${loss.toPrecision(4)}`);
  if (divergence !== null) facts.push(divergence);
  if (finish === "length") facts.push("cut off at the length limit");
  head.append(make("span", "soft", facts.join(" · ")));
  element.append(head);
  if (detail) element.append(make("div", "why", detail));
  element.append(make("pre", "", text));
  if (loss !== null && run.feedback) element.append(make("div", "said", `Told and trained on: “${run.feedback}”`));
  for (const critique of critiques) element.append(make("div", "said", run.beside), make("pre", "", critique));
  return element;
}

async function texts(run, q) {
  const [n, place] = run.places[q];
  return (await chunk(n))[place];
}

async function choose(q) {
  state.chosen = q;
  remember();
  draw();
  const parts = [];
  for (const [which, place] of [[state.run, q], [state.against, there(q)]]) {
    if (which < 0 || place < 0) continue;
    const run = state.runs[which];
    const [prompt, gold, trials] = await texts(run, place);
    if (!parts.length) {
      parts.push(make("h4", "", run.ids[place]), make("pre", "", prompt));
      if (gold !== null) {
        const answer = make("details");
        answer.append(make("summary", "", "Gold answer"), make("pre", "", gold));
        parts.push(answer);
      }
    }
    if (state.against >= 0) parts.push(make("h3", "", name(run)));
    if (!trials.length) parts.push(make("p", "soft", "No trial was made."));
    parts.push(...trials.map((fields) => trial(fields, run)));
  }
  if (state.chosen !== q) return; // another was chosen while this one was opened
  $("detail").replaceChildren(...parts);
  $("detail").scrollTop = 0;
}

async function searchTexts() {
  const text = $("find").value.trim().toLowerCase();
  const run = state.runs[state.run];
  const hits = new Set();
  $("tally").textContent = "searching …";
  for (let q = 0; text && q < run.ids.length; q++) {
    const [prompt, , trials] = await texts(run, q);
    if (prompt.toLowerCase().includes(text) || trials.some((t) => [t[10], ...t[11]].some((written) => written.toLowerCase().includes(text)))) hits.add(q);
  }
  state.hits = hits;
  filter();
}

function move(step) {
  const place = Math.max(0, Math.min(state.rows.length - 1, state.rows.indexOf(state.chosen) + step));
  if (!state.rows.length) return;
  const list = $("list");
  if (place * ROW < list.scrollTop) list.scrollTop = place * ROW;
  if ((place + 1) * ROW > list.scrollTop + list.clientHeight) list.scrollTop = (place + 1) * ROW - list.clientHeight;
  choose(state.rows[place]);
}

// The choice is kept in the address, so that a question can be linked to.
function remember() {
  const facts = new URLSearchParams({ run: state.run, q: state.chosen, show: $("show").value, order: $("order").value });
  if (state.against >= 0) facts.set("against", state.against);
  if ($("find").value) facts.set("find", $("find").value);
  history.replaceState(null, "", "#" + facts);
}

function recall() {
  const facts = new URLSearchParams(location.hash.slice(1));
  const among = (key) => {
    const n = Number.parseInt(facts.get(key) ?? "-1", 10);
    return n >= 0 && n < state.runs.length ? n : -1;
  };
  const most = state.runs.map((run) => run.verdicts.join("").length);
  state.run = among("run") >= 0 ? among("run") : most.indexOf(Math.max(...most));
  state.against = among("against");
  for (const id of ["show", "order"]) if ([...$(id).options].some((o) => o.value === facts.get(id))) $(id).value = facts.get(id);
  $("find").value = facts.get("find") ?? "";
  const q = Number.parseInt(facts.get("q") ?? "-1", 10);
  return q >= 0 && q < state.runs[state.run].ids.length ? q : -1;
}

const name = (run) => `${run.label}, seed ${run.seed}` + (state.many ? ` · ${run.task}` : "");

function theme() {
  const next = { auto: "light", light: "dark", dark: "auto" };
  const button = $("theme");
  let now = "auto";
  button.addEventListener("click", () => {
    now = next[now];
    button.textContent = "Theme: " + now;
    if (now === "auto") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = now;
  });
}

async function start() {
  theme();
  state.runs = (await unpack("index")).runs;
  state.many = new Set(state.runs.map((run) => run.task)).size > 1;
  $("against").append(new Option("no other run", "-1"));
  state.runs.forEach((run, n) => {
    $("run").append(new Option(name(run), n));
    $("against").append(new Option(name(run), n));
  });
  const q = recall();
  $("run").value = state.run;
  $("against").value = state.against;
  $("run").addEventListener("change", () => { state.run = Number($("run").value); state.chosen = -1; state.hits = null; filter(); });
  $("against").addEventListener("change", () => { state.against = Number($("against").value); filter(); if (state.chosen >= 0) choose(state.chosen); });
  for (const id of ["show", "order"]) $(id).addEventListener("change", () => { filter(); remember(); });
  $("find").addEventListener("input", () => { state.hits = null; filter(); });
  $("find").addEventListener("keydown", (event) => { if (event.key === "Enter") searchTexts(); });
  $("list").addEventListener("scroll", draw, { passive: true });
  $("list").addEventListener("keydown", (event) => {
    const step = { ArrowDown: 1, ArrowUp: -1, PageDown: 10, PageUp: -10 }[event.key];
    if (step) { event.preventDefault(); move(step); }
  });
  new ResizeObserver(draw).observe($("list"));
  state.chosen = q;
  filter();
  if (q >= 0) await choose(q);
  else if (state.rows.length) await choose(state.rows[0]);
  document.documentElement.dataset.ready = Math.round(performance.now());
}

start().catch((error) => {
  $("detail").replaceChildren(make("p", "note", `The trials cannot be shown by this browser: ${error}`));
});

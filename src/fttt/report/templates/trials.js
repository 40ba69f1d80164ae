"use strict";
// The trials of runs, browsed: a list of questions and the one that is open. The report and the live
// page share it; `page` is where they differ. Everything that a model or a run wrote is put on the
// page as text, never as markup.

const NAMES = { c: "correct", i: "incorrect", u: "unanswered" };
const $ = (id) => document.getElementById(id);
const number = (n) => n.toLocaleString("en");
const name = (run) => run.label + (state.many ? ` · ${run.task}` : "");
const state = { runs: [], run: 0, against: -1, rows: [], chosen: -1, hits: null };
const page = {
  row: 50, // height of a question in the list, pixels
  tile: 0, // least width of a question where they form a wall, pixels; 0: one a line
  texts: null, // (run, question) => promise of its prompt, gold answer and trials
  remember: () => {}, // keeps what is chosen in the address
};

function make(tag, name, text) {
  const element = document.createElement(tag);
  if (name) element.className = name;
  if (text !== undefined) element.textContent = text;
  return element;
}

// Give an element these children, and leave alone those that it has already.
function settle(parent, parts) {
  const wanted = new Set(parts);
  let here = parent.firstElementChild;
  for (const part of parts) {
    if (here === part) here = here.nextElementSibling;
    else if (here && !wanted.has(here)) {
      const next = here.nextElementSibling;
      here.replaceWith(part);
      here = next;
    } else parent.insertBefore(part, here);
  }
  while (here) {
    const next = here.nextElementSibling;
    here.remove();
    here = next;
  }
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

// The questions that are listed, in their order.
function sift() {
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
  draw();
}

function filter() {
  sift();
  // The chosen question stays in sight where it is still listed.
  const line = Math.floor(state.rows.indexOf(state.chosen) / columns());
  $("list").scrollTop = Math.max(0, line - 2) * page.row;
  draw();
}

const columns = () => (page.tile ? Math.max(1, Math.floor($("list").clientWidth / page.tile)) : 1);

// One cell a trial: its colour and height say the verdict, and of a wrong one how close it came.
function strip(run, q, name) {
  const cells = make("div", name);
  if (page.tile && run.budget) cells.style.setProperty("--of", run.budget); // as wide as its budget
  const scores = run.scores ? run.scores[q] : null;
  [...run.verdicts[q]].forEach((letter, n) => {
    const cell = make("i", "cell " + letter);
    if (letter === "i" && scores && scores[n] !== null) cell.style.height = 25 + 60 * share(run, scores[n]) + "%";
    cells.append(cell);
  });
  return cells;
}

// Where a score lies between the least and the highest of its run.
function share(run, score) {
  if (!run.span) {
    const all = run.scores.flat().filter((one) => one !== null);
    run.span = [all.reduce((a, b) => Math.min(a, b)), all.reduce((a, b) => Math.max(a, b))];
  }
  const [low, high] = run.span;
  return high > low ? Math.min(1, Math.max(0, (score - low) / (high - low))) : 0;
}

// What became of a question, in words and for a tile.
function end(run, q) {
  const made = run.verdicts[q].length;
  if (run.solved[q]) return [`solved at ${run.solved[q]}`, `✓ ${run.solved[q]}`];
  if (!run.done || run.done[q]) return ["unsolved", "unsolved"];
  if (!made) return ["no trial yet", ""];
  return [`${made} trials so far`, run.budget ? `${made} of ${run.budget}` : String(made)];
}

function row(place, wide) {
  const q = state.rows[place];
  const run = state.runs[state.run];
  const element = make("div", "row");
  const width = 100 / wide;
  element.style.top = Math.floor(place / wide) * page.row + "px";
  element.style.height = page.row + "px";
  element.style.left = (place % wide) * width + "%";
  element.style.width = width + "%";
  element.setAttribute("role", "option");
  element.setAttribute("aria-selected", String(q === state.chosen));
  const line = make("div", "line");
  const [words, short] = end(run, q);
  const facts = `${words} · ${number(run.tokens[q])} tokens`;
  line.append(make("span", "id", page.tile ? brief(run, q) : run.ids[q]));
  line.append(make("span", "end", page.tile ? short : facts));
  element.title = `${run.ids[q]}: ${facts}`;
  element.append(line, strip(run, q, "strip"));
  const other = there(q);
  if (other >= 0) element.append(strip(state.runs[state.against], other, "strip there"));
  element.addEventListener("click", () => choose(q));
  return element;
}

// A question's id without what all of the run's ids begin with.
function brief(run, q) {
  if (run.common === undefined) {
    let common = run.ids[0] ?? "";
    for (const id of run.ids) while (!id.startsWith(common)) common = common.slice(0, -1);
    run.common = run.ids.length > 1 ? common.replace(/[^/:\-_ ]*$/, "").length : 0;
  }
  return run.ids[q].slice(run.common);
}

let rows = new Map(); // question -> its row, and what the row was made of

// Only the rows in sight exist, and only those that have changed are made anew.
function draw() {
  const list = $("list");
  const wide = columns();
  const first = Math.max(0, Math.floor(list.scrollTop / page.row) - 4) * wide;
  const last = (Math.ceil((list.scrollTop + list.clientHeight) / page.row) + 4) * wide;
  const drawn = new Map();
  const run = state.runs[state.run];
  const other = state.runs[state.against];
  for (let place = first; place < Math.min(state.rows.length, last); place++) {
    const q = state.rows[place];
    const beside = there(q);
    const facts = [place, wide, page.row, run.ids[q], run.verdicts[q], run.solved[q], run.tokens[q], run.done?.[q], run.span, q === state.chosen, beside >= 0 && other.verdicts[beside]].join();
    const old = rows.get(q);
    drawn.set(q, old?.facts === facts ? old : { facts, element: row(place, wide) });
  }
  rows = drawn;
  $("rows").style.height = Math.ceil(state.rows.length / wide) * page.row + "px";
  settle($("rows"), [...drawn.values()].map((one) => one.element));
}

function trial(fields, run) {
  const [n, verdict, finish, extracted, detail, loss, prompt, generated, trained, seconds, text, critiques, score, divergence, thought, told] = fields;
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
  if (thought !== null) {
    const folded = make("details");
    folded.append(make("summary", "", `Thought (${number(thought.length)} characters)`), make("pre", "", thought));
    element.append(folded);
  }
  element.append(make("pre", "", text));
  if (told !== null) element.append(make("div", "said", `${loss !== null ? "Told and trained on" : "Told"}: “${told}”`));
  for (const critique of critiques) element.append(make("div", "said", run.beside), make("pre", "", critique));
  return element;
}

const shown = new Map(); // what is on the page of the open question -> its element

// The element of these facts: the one that is shown already where they are the same.
function keyed(facts, build) {
  const key = JSON.stringify(facts);
  if (!shown.has(key)) shown.set(key, build());
  return shown.get(key);
}

// Open a question, or bring the open one up to date.
async function choose(q) {
  const again = state.chosen === q;
  const { runs, run: chosenRun, against } = state;
  state.chosen = q;
  if (!again) shown.clear();
  page.remember();
  draw();
  const parts = [];
  for (const [which, place] of [[chosenRun, q], [against, there(q)]]) {
    if (which < 0 || place < 0) continue;
    const run = runs[which];
    const [prompt, gold, trials] = await page.texts(run, place);
    if (!parts.length) {
      parts.push(keyed(["id", run.ids[place]], () => make("h4", "", run.ids[place])));
      parts.push(keyed(["prompt", prompt], () => make("pre", "", prompt)));
      if (gold !== null) parts.push(keyed(["gold", gold], () => {
        const answer = make("details");
        answer.append(make("summary", "", "Gold answer"), make("pre", "", gold));
        return answer;
      }));
    }
    if (against >= 0) parts.push(keyed(["run", which], () => make("h3", "", name(run))));
    if (!trials.length) parts.push(keyed(["none", which], () => make("p", "soft", run.done && !run.done[place] ? "No trial has ended yet." : "No trial was made.")));
    parts.push(...trials.map((fields) => keyed([which, fields], () => trial(fields, run))));
  }
  if (state.chosen !== q || state.runs !== runs || state.against !== against) return; // another was chosen while this one was opened
  settle($("detail"), parts);
  if (!again) $("detail").scrollTop = 0;
}

async function searchTexts() {
  const text = $("find").value.trim().toLowerCase();
  const run = state.runs[state.run];
  const hits = new Set();
  $("tally").textContent = "searching …";
  for (let q = 0; text && q < run.ids.length; q++) {
    const [prompt, , trials] = await page.texts(run, q);
    if (state.runs[state.run] !== run || $("find").value.trim().toLowerCase() !== text) return;
    if (prompt.toLowerCase().includes(text) || trials.some((t) => [t[10], t[14] ?? "", ...t[11]].some((written) => written.toLowerCase().includes(text)))) hits.add(q);
  }
  state.hits = hits;
  filter();
}

function move(step) {
  const place = Math.max(0, Math.min(state.rows.length - 1, state.rows.indexOf(state.chosen) + step));
  if (!state.rows.length) return;
  const list = $("list");
  const top = Math.floor(place / columns()) * page.row;
  if (top < list.scrollTop) list.scrollTop = top;
  if (top + page.row > list.scrollTop + list.clientHeight) list.scrollTop = top + page.row - list.clientHeight;
  choose(state.rows[place]);
}

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

// What the list of questions and the controls above it answer to.
function listen() {
  for (const id of ["show", "order"]) $(id).addEventListener("change", () => { filter(); page.remember(); });
  $("find").addEventListener("input", () => { state.hits = null; filter(); });
  $("find").addEventListener("keydown", (event) => { if (event.key === "Enter") searchTexts(); });
  $("list").addEventListener("scroll", draw, { passive: true });
  $("list").addEventListener("keydown", (event) => {
    const wide = columns();
    const step = { ArrowDown: wide, ArrowUp: -wide, ArrowRight: 1, ArrowLeft: -1, PageDown: 10 * wide, PageUp: -10 * wide }[event.key];
    if (step) { event.preventDefault(); move(step); }
  });
  new ResizeObserver(draw).observe($("list"));
}

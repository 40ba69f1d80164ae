// The live page: what the service tells of the runs is kept here and drawn when it has changed.

const STEP = 40; // runs that are added to the list when its end comes into sight
const live = { rows: new Map(), order: [], run: "", against: "", stream: null, curves: 0, memory: "", follows: true, limit: STEP };
const entries = new Map(); // key -> the trials of a run, as trials.js reads them
page.tile = 118;

const ask = async (path) => {
  const answer = await fetch(path);
  if (!answer.ok) throw new Error((await answer.json()).detail);
  return answer.json();
};
page.texts = (run, q) => ask(`runs/${run.key}/questions/${q}`);

// The choice is kept in the address, so that a page can be loaded again and linked to.
page.remember = () => {
  const facts = new URLSearchParams({ run: live.run, show: $("show").value, order: $("order").value });
  if (live.against) facts.set("against", live.against);
  if (state.chosen >= 0) facts.set("q", state.chosen);
  if ($("find").value) facts.set("find", $("find").value);
  history.replaceState(null, "", "#" + facts);
};

// --- the list of runs

const elements = new Map(); // key -> its row of the table, of those that were in sight
const STATES = { running: "running", stopped: "stopped", finished: "finished" };

function runRow(row) {
  const element = make("tr", row.state);
  const head = make("th");
  head.scope = "row";
  const open = make("button", "open", row.method);
  open.type = "button";
  open.title = row.name;
  open.addEventListener("click", () => pick(row.key, live.against));
  head.append(make("span", "state", STATES[row.state]), open, make("span", "where", `seed ${row.seed} · ${row.name}`));
  element.append(head);
  const progress = make("span", "progress");
  progress.append(make("i"));
  progress.firstChild.style.width = (row.total ? (100 * row.done) / row.total : 0) + "%";
  const done = make("td", "n");
  done.dataset.name = "Questions";
  done.append(make("span", "", `${number(row.done)} of ${number(row.total)}`), progress);
  const solved = row.done ? `${number(row.solved)}` : "";
  const cells = [["Task", row.task, ""], ["Model", row.model, ""], done, ["Solved", solved, "n strong"], ["Trials", row.trials, "n"], ["Tokens/s", row.rate, "n"], ["Time", row.time, "n"], ["Left", row.left, "n"], ["Written", row.written, "n"]];
  for (const cell of cells) {
    if (cell instanceof Node) { element.append(cell); continue; }
    const made = make("td", cell[2], cell[1]);
    made.dataset.name = cell[0];
    element.append(made);
  }
  element.addEventListener("click", (event) => { if (event.target !== open) open.click(); });
  return element;
}

function drawRuns() {
  const text = $("sift").value.trim().toLowerCase();
  const found = live.order.filter((key) => {
    const row = live.rows.get(key);
    return !text || [row.method, row.task, row.model, row.name, row.state].join(" ").toLowerCase().includes(text);
  });
  const inSight = found.slice(0, live.limit);
  for (const key of inSight) if (!elements.has(key)) elements.set(key, runRow(live.rows.get(key)));
  settle($("list-of-runs"), inSight.map((key) => elements.get(key)));
  for (const [key, element] of elements) element.setAttribute("aria-selected", String(key === live.run));
  const running = live.order.filter((key) => live.rows.get(key).state === "running").length;
  $("head").textContent = [`${number(live.order.length)} run${live.order.length === 1 ? "" : "s"}`, `${running} running`, ...(live.memory ? [`GPU memory ${live.memory}`] : [])].join(" · ");
  $("empty").hidden = live.order.length > 0;
  $("runs").querySelector(".wide").hidden = !live.order.length;
  $("sieve").hidden = live.order.length < 8;
  $("count").textContent = text ? `${number(found.length)} of ${number(live.order.length)}` : "";
}

function onRuns({ rows, order }) {
  for (const row of rows) {
    live.rows.set(row.key, row);
    const old = elements.get(row.key);
    if (!old) continue;
    const made = runRow(row);
    const focused = old.contains(document.activeElement);
    old.replaceWith(made); // in its place, so that the other rows stay as they are
    if (focused) made.querySelector("button").focus();
    elements.set(row.key, made);
  }
  for (const key of [...live.rows.keys()]) if (!order.includes(key)) { live.rows.delete(key); elements.delete(key); entries.delete(key); }
  const same = order.length === live.order.length && order.every((key) => live.order.includes(key));
  live.order = order;
  drawRuns();
  if (!same) fillChoices();
  const latest = order.find((key) => live.rows.get(key).state === "running") ?? order[0];
  const stale = live.rows.get(live.run)?.state !== "running" && live.rows.get(latest)?.state === "running";
  if (!live.rows.has(live.run) || (live.follows && stale)) { // until a run is chosen, the one that works is shown
    if (latest) select(latest, "");
    else { live.run = ""; $("run-shown").hidden = true; document.documentElement.dataset.ready = 1; }
  }
  drawFacts();
  document.documentElement.dataset.listed ??= Math.round(performance.now());
}

// The two selects over the wall.
function fillChoices() {
  const options = () => live.order.map((key) => new Option(live.rows.get(key).name, key));
  $("run").replaceChildren(...options());
  $("against").replaceChildren(new Option("no other run", ""), ...options());
  $("run").value = live.run;
  $("against").value = live.against;
}

// --- the run that is shown

function drawFacts() {
  const row = live.rows.get(live.run);
  if (!row) return;
  $("title").textContent = `${row.method} · ${row.task} · ${row.model}`;
  const facts = [row.state, `${number(row.done)} of ${number(row.total)} questions done`, `${number(row.solved)} solved${row.share ? ` (${row.share})` : ""}`, `${row.trials} trials`];
  if (row.rate) facts.push(`${row.rate} tokens/s`);
  if (row.state === "running" && live.memory) facts.push(`GPU memory ${live.memory}`);
  facts.push(row.left ? `${row.left} left` : `worked ${row.time}`);
  facts.push(`written ${row.written}`);
  $("facts").textContent = facts.join(" · ");
  $("resume").hidden = row.state !== "stopped";
  $("command").textContent = row.resume;
}

// What a person has chosen stays.
function pick(run, against) {
  live.follows = false;
  select(run, against === run ? "" : against);
}

function select(run, against) {
  if (run === live.run && against === live.against && live.stream) return;
  if (run !== live.run) { state.chosen = -1; state.hits = null; }
  Object.assign(live, { run, against });
  Object.assign(state, { runs: [], run: 0, against: -1 });
  $("run").value = run;
  $("against").value = against;
  $("run-shown").hidden = false;
  $("rows").replaceChildren();
  $("detail").replaceChildren(make("p", "soft", "Choose a question to read its trials."));
  $("settings").open = false;
  for (const id of ["curves", "score-curves", "legend"]) $(id).replaceChildren();
  $("said").textContent = "";
  for (const element of document.querySelectorAll("#list-of-runs tr")) element.setAttribute("aria-selected", "false");
  drawRuns();
  drawFacts();
  page.remember();
  connect();
}

function onRun(entry) {
  const first = !entries.has(entry.key);
  entries.set(entry.key, entry);
  const main = entries.get(live.run);
  if (!main) return;
  const beside = entries.get(live.against);
  state.runs = beside ? [main, beside] : [main];
  state.against = beside ? 1 : -1;
  page.row = beside ? 46 : 38;
  if (first && state.chosen < 0) sift();
  else filter();
  openWanted();
  if (!live.curves) drawCurves();
  if (main.ids.length) document.documentElement.dataset.ready = Math.round(performance.now());
}

// The question of the address, or the first.
function openWanted() {
  const wanted = state.chosen >= 0 ? state.chosen : live.wanted ?? state.rows[0];
  delete live.wanted;
  if (wanted !== undefined && wanted < state.runs[0].ids.length) show(wanted);
}

function onTrials({ key, questions }) {
  const run = entries.get(key);
  if (!run) return;
  for (const [q, verdicts, solved, tokens, scores, done] of questions) {
    Object.assign(run.verdicts, { [q]: verdicts });
    Object.assign(run.solved, { [q]: solved });
    Object.assign(run.tokens, { [q]: tokens });
    Object.assign(run.scores, { [q]: scores });
    Object.assign(run.done, { [q]: done });
    if (scores) delete run.span;
  }
  if (!state.runs.includes(run)) return;
  sift();
  const chosen = run === state.runs[0] ? state.chosen : there(state.chosen);
  if (state.chosen >= 0 && questions.some(([q]) => q === chosen)) show(state.chosen);
  if (!live.curves) drawCurves();
}

function show(q) {
  choose(q).catch((error) => $("detail").replaceChildren(make("p", "note", error.message)));
}

// --- the curves: drawn by the service, and asked for again when it says

// A document that is parsed so runs nothing.
const svg = (text) => new DOMParser().parseFromString(text, "text/html").body.firstElementChild;

async function drawCurves() {
  const { run, against } = live;
  live.curves = -1; // being drawn
  let again = 4;
  try {
    const drawn = await ask(`runs/${run}/curves?against=${against}`);
    if (run !== live.run || against !== live.against) return;
    const figures = (texts) => texts.map((text) => { const figure = make("figure"); figure.append(svg(text)); return figure; });
    if (drawn.stamp !== live.stamp) {
      $("curves").replaceChildren(...figures(drawn.figures));
      $("score-curves").replaceChildren(...figures(drawn.scores));
      $("legend").replaceChildren(...drawn.legend.map((entry) => {
        const mark = make("span", "mark");
        mark.append(svg(entry.mark));
        const side = make("span");
        side.append(mark, document.createTextNode(entry.label));
        return side;
      }));
      $("said").textContent = drawn.said;
      live.stamp = drawn.stamp;
    }
    again = drawn.figures.length ? drawn.again : 1;
    if (drawn.figures.length) document.documentElement.dataset.curves = drawn.stamp;
  } catch (error) {
    $("said").textContent = `The curves cannot be drawn: ${error.message}`;
  }
  live.again = again;
  live.curves = setTimeout(drawCurves, again * 1000);
}

// --- the stream

function connect() {
  live.stream?.close();
  entries.clear();
  clearTimeout(live.curves);
  live.curves = 0;
  live.stamp = undefined;
  live.stream = new EventSource(`stream?${new URLSearchParams({ run: live.run, against: live.against })}`);
  const on = (name, act) => live.stream.addEventListener(name, (event) => act(JSON.parse(event.data)));
  on("runs", onRuns);
  on("run", onRun);
  on("trials", onTrials);
  on("head", ({ memory, broken }) => {
    live.memory = memory;
    $("broken").replaceChildren(...broken.map((sentence) => make("p", "note", sentence)));
    drawRuns();
    drawFacts();
  });
  live.stream.onopen = () => { $("lost").hidden = true; };
  live.stream.onerror = () => { $("lost").hidden = false; };
}

function start() {
  theme();
  const facts = new URLSearchParams(location.hash.slice(1));
  for (const id of ["show", "order"]) if ([...$(id).options].some((o) => o.value === facts.get(id))) $(id).value = facts.get(id);
  $("find").value = facts.get("find") ?? "";
  live.run = facts.get("run") ?? "";
  live.against = facts.get("against") ?? "";
  live.follows = !live.run;
  $("list").addEventListener("click", () => { live.follows = false; });
  const q = Number.parseInt(facts.get("q") ?? "-1", 10);
  if (q >= 0) live.wanted = q;
  $("run").addEventListener("change", () => pick($("run").value, live.against));
  $("against").addEventListener("change", () => pick(live.run, $("against").value));
  $("sift").addEventListener("input", drawRuns);
  const list = $("runs").querySelector(".runs");
  list.addEventListener("scroll", () => {
    if (live.limit < live.order.length && list.scrollTop + 2 * list.clientHeight > list.scrollHeight) {
      live.limit += STEP;
      drawRuns();
    }
  }, { passive: true });
  $("settings").addEventListener("toggle", async () => {
    if ($("settings").open) $("settings").querySelector("pre").textContent = await ask(`runs/${live.run}/settings`);
  });
  listen();
  if (live.run) $("run-shown").hidden = false;
  connect();
}

start();

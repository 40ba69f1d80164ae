// The report: all that it shows is in the page, an index and compressed chunks of texts.

const opened = new Map(); // chunk number -> promise of its questions

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

page.texts = async (run, q) => {
  const [n, place] = run.places[q];
  return (await chunk(n))[place];
};

// The choice is kept in the address, so that a question can be linked to.
page.remember = () => {
  const facts = new URLSearchParams({ run: state.run, q: state.chosen, show: $("show").value, order: $("order").value });
  if (state.against >= 0) facts.set("against", state.against);
  if ($("find").value) facts.set("find", $("find").value);
  history.replaceState(null, "", "#" + facts);
};

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
  listen();
  state.chosen = q;
  filter();
  if (q >= 0) await choose(q);
  else if (state.rows.length) await choose(state.rows[0]);
  document.documentElement.dataset.ready = Math.round(performance.now());
}

start().catch((error) => {
  $("detail").replaceChildren(make("p", "note", `The trials cannot be shown by this browser: ${error}`));
});

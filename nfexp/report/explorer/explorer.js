// The wiring of the explorer: from controls to a state, from the state to chart, clouds, table and address.
// All text reaches the page as text (textContent); charts are Vega-Lite's, the table is DataTables'.
const page = JSON.parse(document.getElementById("data").textContent);
const charts = JSON.parse(document.getElementById("charts").textContent);
const at = (id) => document.getElementById(id);
const columnOf = Object.fromEntries(page.columns.map((column, i) => [column.key, i]));
const valueOf = (run, key) => page.rows[run][columnOf[key]];
const hasSamples = (run) => Object.hasOwn(page.samples.runs, run);
const counted = (n, noun) => `${n} ${noun}${n === 1 ? "" : "s"}`;
const ALL = "all targets";

// ---- the state of the view, and the address that holds it ----
const start = {
  axis: page.axes[0]?.name ?? "", target: ALL, measure: Object.keys(page.measures)[0] ?? "", scale: "linear",
  claim: "", left: -1, right: -1, step: -1, scope: "", group: "", search: "", order: "", filter: "",
};
const allowed = {
  axis: page.axes.map((axis) => axis.name),
  target: [ALL, ...page.targets],
  measure: Object.keys(page.measures),
  scale: ["linear", "log"],
  claim: ["", ...page.claims.map((claim) => claim.claim)],
  scope: ["", "chart", "claim"],
  group: ["", ...page.columns.map((column) => column.key)],
};
const state = { ...start, ...fromAddress() };

function fromAddress() {
  const found = {};
  for (const [key, text] of new URLSearchParams(location.hash.slice(1))) {
    if (!Object.hasOwn(start, key)) continue;
    if (key in allowed && !allowed[key].includes(text)) continue;
    if (typeof start[key] !== "number") found[key] = text;
    else if (/^\d{1,9}$/.test(text) && (key === "step" || text < page.rows.length)) found[key] = Number(text);
  }
  return found;
}

function keep() {
  const words = new URLSearchParams();
  for (const key in start) if (state[key] !== start[key]) words.set(key, state[key]);
  history.replaceState(null, "", `#${words}`);
}

function say(text) { at("said").textContent = text; }

// ---- small builders ----
function element(tag, text = "", attributes = {}) {
  const made = document.createElement(tag);
  made.textContent = text;
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

function fillRows(table, rows) {
  const body = table.tBodies[0];
  body.replaceChildren(...rows.map(({ cells, marked }) => {
    const row = element("tr", "", marked ? { class: marked } : {});
    cells.forEach((cell, i) => {
      const own = element(i ? "td" : "th", "", i ? {} : { scope: "row" });
      own.append(...[cell].flat());
      row.append(own);
    });
    return row;
  }));
}

function fillSelect(id, options, chosen) {
  at(id).replaceChildren(...options.map(([value, text]) => {
    const option = element("option", text, { value });
    option.selected = String(value) === String(chosen);
    return option;
  }));
}

const shown = (value) => (value === null ? "–" : String(value));
const jobOf = (run) => `${shown(valueOf(run, "job"))} (${shown(valueOf(run, "data.name"))}, seed ${shown(valueOf(run, "seed"))})`;

function interval([mean, low, high]) {
  const round = (x) => String(Number(x.toPrecision(3)));
  if (mean === null) return "–";
  return low === null ? round(mean) : `${round(mean)} [${round(low)}, ${round(high)}]`;
}

// ---- charts ----
const dark = matchMedia("(prefers-color-scheme: dark)");

function embed(place, spec, fresh) {
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const text = { labelColor: colour("--ink"), titleColor: colour("--ink"), labelFontSize: 12, titleFontSize: 13 };
  const config = {
    background: null, view: { stroke: colour("--line") }, legend: text, font: "system-ui, sans-serif",
    axis: { ...text, gridColor: colour("--line"), domainColor: colour("--soft"), tickColor: colour("--soft") },
  };
  // ast: expressions are interpreted, not compiled by eval, which the content policy forbids
  const options = { mode: "vega-lite", renderer: "svg", actions: false, ast: true, defaultStyle: false, config,
    tooltip: { disableDefaultStyle: true }, logLevel: 1 };
  return window.vegaEmbed(place, spec, options).then((result) => (fresh() ? result.view : result.finalize()));
}

const axisNow = () => page.axes.find((axis) => axis.name === state.axis);
const claimNow = () => page.claims.find((claim) => claim.claim === state.claim);
const cellsNow = () => (axisNow()?.cells ?? []).filter((cell) => state.target === ALL || cell.target === state.target);

function cellRows() {
  const decided = new Set(claimNow()?.runs ?? []);
  return cellsNow().map((cell) => {
    const series = [...(state.target === ALL ? [cell.target] : []), ...cell.values.slice(1)].join(" · ");
    const [mean, low, high] = cell[state.measure];
    const said = interval(cell[state.measure]);
    return { x: cell.values[0], series: series || cell.target, mean, low, high, said, n: cell.n, runs: cell.runs,
      troubles: cell.troubles.join(", ") || "–", centre: cell.centre,
      decided: cell.runs.some((run) => decided.has(run)),
      description: `${cell.target}, ${axisNow().columns[0]} ${cell.values.join(", ")}: ${said}, ${counted(cell.n, "run")}` };
  });
}

function runRows(cells) {
  if (!(state.measure in columnOf)) return [];
  const rows = [];
  for (const cell of cells) for (const run of cell.runs) {
    const y = valueOf(run, state.measure);
    if (y === null || valueOf(run, "status") !== "completed") continue;
    rows.push({ x: cell.x, series: cell.series, y, run, job: shown(valueOf(run, "job")), seed: shown(valueOf(run, "seed")),
      side: run === state.left ? "left" : run === state.right ? "right" : "",
      description: `run ${jobOf(run)}: ${y}` });
  }
  return rows;
}

let ablationView = null;
let drawing = 0;

async function drawAblation() {
  const own = ++drawing;
  const axis = axisNow();
  const cells = cellRows().filter((cell) => cell.mean !== null && (state.scale === "linear" || cell.mean > 0));
  if (!cells.length) {
    ablationView?.finalize();
    ablationView = null;
    at("ablation").replaceChildren(element("p", axis ? "Nothing is known of this measure on this axis and target."
      : "No run of this sweep differs from the centre in one or two settings."));
    fillRows(at("cells"), []);
    return;
  }
  const isNumeric = axis.cells.every((cell) => !isNaN(cell.values[0]));
  const positive = (value) => (state.scale === "linear" || value > 0 ? value : null);
  const known = cells.map((cell) => ({ ...cell, low: positive(cell.low ?? cell.mean), high: cell.high ?? cell.mean }));
  const spec = structuredClone(charts.ablation);
  const order = [...new Set(known.map((cell) => cell.x))];
  if (isNumeric) order.sort((a, b) => a - b);
  const series = [...new Set(known.map((cell) => cell.series))];
  spec.height = 360;
  spec.datasets = { cells: known, runs: runRows(known).filter((run) => positive(run.y) !== null) };
  spec.description = `Ablation of ${axis.columns.join(" and ")}`;
  for (const layer of spec.layer) {
    const channels = layer.encoding;
    channels.x.scale = { domain: order };
    channels.x.axis.title = axis.columns[0];
    channels.xOffset.scale = { domain: series };
    channels.y.scale.type = state.scale;
    channels.y.axis = { title: page.measures[state.measure] };
    if (channels.color) channels.color.scale.domain = series;
  }
  const view = await embed(at("ablation"), spec, () => own === drawing);
  if (!view) return;
  ablationView?.finalize();
  ablationView = view;
  view.addEventListener("click", (event, item) => {
    if (Number.isInteger(item?.datum?.run)) choose(event.shiftKey ? "right" : "left", item.datum.run);
  });
  at("ablation").setAttribute("aria-label", `${page.measures[state.measure]} by ${axis.columns.join(" and ")}, ${state.target}: ${known.length} cells`);
  fillRows(at("cells"), known.map((cell) => ({
    marked: cell.decided ? "decided" : "",
    cells: [cell.x + (cell.centre ? " (centre)" : ""), cell.series, `${cell.said}${cell.troubles === "–" ? "" : `; ${cell.troubles}`}`,
      cell.runs.slice(0, 12).map((run) => runButton("left", run, shown(valueOf(run, "job"))))],
  })));
}

// ---- claims ----
function fillClaims() {
  at("no-claims").hidden = page.claims.length > 0;
  fillRows(at("claims"), page.claims.map((claim) => {
    const button = element("button", claim.claim, { type: "button", "aria-pressed": "false", "aria-label": `Highlight the cells of claim ${claim.claim}` });
    button.addEventListener("click", () => change({ claim: state.claim === claim.claim ? "" : claim.claim }, true));
    button.dataset.claim = claim.claim;
    return { cells: [button, claim.sentence, element("span", claim.verdict, { class: `badge ${claim.verdict}` })] };
  }));
}

function showClaim() {
  for (const button of at("claims").querySelectorAll("button")) {
    button.setAttribute("aria-pressed", String(button.dataset.claim === state.claim));
  }
  const claim = claimNow();
  at("judged").replaceChildren();
  if (!claim) return;
  const list = element("ul");
  for (const own of claim.targets) {
    list.append(element("li", `${own.target}: ${own.verdict}, ${own.estimate}, n = ${own.n}${own.note ? `; ${own.note}` : ""}`));
  }
  at("judged").append(
    element("p", `${claim.claim}: ${claim.estimand}; margin ${claim.margin}. It rests on ${counted(claim.runs.length, "run")}.`),
    element("p", `Cells: ${claim.rows || "–"}`, { class: "small" }),
    list,
  );
}

function axisOf(claim) {
  const decided = new Set(claim.runs);
  const count = (axis) => axis.cells.filter((cell) => !cell.centre && cell.runs.some((run) => decided.has(run))).length;
  const best = page.axes.filter((axis) => count(axis)).sort((a, b) => count(b) / b.cells.length - count(a) / a.cells.length);
  return best[0]?.name ?? state.axis;
}

// ---- samples ----
const clouds = { left: { view: null, target: null, drawing: 0 }, right: { view: null, target: null, drawing: 0 } };

function points(text, first, count, target) {
  const bytes = atob(text);
  const [x0, x1, y0, y1] = page.samples.limits[target];
  const found = [];
  for (let i = first; i < first + count; i++) {
    const [a, b] = [bytes.charCodeAt(2 * i), bytes.charCodeAt(2 * i + 1)];
    if (a === page.samples.outside) continue;
    const scale = page.samples.levels - 1;
    found.push({ x: x0 + (a / scale) * (x1 - x0), y: y0 + (b / scale) * (y1 - y0) });
  }
  return found;
}

const sides = () => ["left", "right"].filter((side) => hasSamples(state[side]));

function steps() {
  const known = new Set();
  for (const side of sides()) for (const step of page.samples.runs[state[side]].steps) known.add(step);
  known.delete(page.samples.kept);
  return [...known].sort((a, b) => a - b);
}

const stepName = (step) => (step === page.samples.kept ? "kept weights" : `step ${step}`);

async function drawClouds() {
  const known = steps();
  at("step").max = known.length;
  const place = state.step < 0 ? known.length : Math.min(state.step, known.length);
  at("step").value = place;
  const name = place === known.length ? stepName(page.samples.kept) : stepName(known[place]);
  at("at").textContent = name;
  at("step").setAttribute("aria-valuetext", name);
  for (const side of ["left", "right"]) await drawCloud(side, place === known.length ? null : known[place]);
  showBoth();
}

async function drawCloud(side, step) {
  const run = state[side];
  const own = clouds[side];
  const turn = ++own.drawing;
  const known = page.samples.runs[run];
  if (!known) {
    at(`${side}-title`).textContent = run < 0 ? `${side}: no run chosen` : `${side}: run ${jobOf(run)}, without samples`;
    at(`${side}-note`).textContent = "";
    own.view?.finalize();
    own.view = own.target = null;
    at(`${side}-cloud`).replaceChildren();
    return;
  }
  const target = String(valueOf(run, "data.name"));
  let frame = known.steps.length - 1;
  if (step !== null) {
    const before = known.steps.slice(0, -1).filter((recorded) => recorded <= step);
    frame = Math.max(before.length - 1, 0);
  }
  const cloud = points(known.clouds, frame * known.n, known.n, target);
  if (own.target !== target) {
    const spec = structuredClone(charts.samples);
    const [x0, x1, y0, y1] = page.samples.limits[target];
    const text = page.samples.draws[target];
    spec.height = Math.max(at(`${side}-cloud`).clientWidth, 200);
    spec.datasets = { draws: points(text, 0, atob(text).length / 2, target), cloud };
    for (const layer of spec.layer) {
      layer.encoding.x.scale.domain = [x0, x1];
      layer.encoding.y.scale.domain = [y0, y1];
    }
    const view = await embed(at(`${side}-cloud`), spec, () => turn === own.drawing);
    if (!view) return;
    own.view?.finalize();
    own.view = view;
    own.target = target;
  } else {
    own.view.data("cloud", cloud);
    await own.view.runAsync();
  }
  const outside = known.n - cloud.length;
  at(`${side}-title`).textContent = `${side}: run ${jobOf(run)}, ${stepName(known.steps[frame])}`;
  at(`${side}-note`).textContent = `${known.n} samples (blue) over training points (grey)${outside ? `; ${outside} outside of the frame` : ""}`;
}

function showBoth() {
  const value = (side, i) => (state[side] < 0 ? "–" : shown(page.rows[state[side]][i]));
  fillRows(at("both"), page.columns.map((column, i) => ({
    marked: value("left", i) === value("right", i) ? "" : "differs",
    cells: [column.key, value("left", i), value("right", i)],
  })));
}

function choose(side, run) {
  change({ [side]: run });
  say(`Run ${jobOf(run)} is on the ${side}.`);
}

function runButton(side, run, text) {
  const button = element("button", text, { type: "button", "aria-label": `Show run ${jobOf(run)} on the ${side}` });
  button.addEventListener("click", () => choose(side, run));
  return button;
}

// ---- the table of runs: the first value of a row is its number ----
const isOrder = /^(\d+):(asc|desc)$/;

function orderOf(text) {
  const found = isOrder.exec(text);
  return found && found[1] <= page.columns.length ? [[Number(found[1]), found[2]]] : [[1, "asc"]];
}

function filterOf(text) {
  try {
    const found = JSON.parse(text);
    return Array.isArray(found.criteria) ? found : undefined;
  } catch { return undefined; }
}

const scopeRuns = { chart: () => cellsNow().flatMap((cell) => cell.runs), claim: () => claimNow()?.runs ?? [] };
let inScope = null;

function makeTable() {
  const columns = page.columns.map((column, i) => ({
    title: column.key, data: i + 1, type: column.number ? "num" : "string", defaultContent: "–",
    className: column.number ? "number" : "", render: window.DataTable.render.text(),
  }));
  const buttons = (data, type, row) => {
    if (type !== "display") return "";
    const both = element("span");
    both.append(runButton("left", row[0], "L"), runButton("right", row[0], "R"));
    return both;
  };
  const made = new window.DataTable(at("runs"), {
    data: page.rows.map((row, number) => [number, ...row]),
    columns: [{ title: "Show", data: null, orderable: false, searchable: false, className: "show", render: buttons }, ...columns],
    order: orderOf(state.order), search: { search: state.search }, pageLength: 25, deferRender: true, autoWidth: false,
    searchBuilder: { columns: page.columns.map((_, i) => i + 1), preDefined: filterOf(state.filter) },
    rowGroup: { enable: state.group !== "", dataSrc: columnOf[state.group] + 1 || 1,
      startRender: (rows, group) => element("span", `${state.group} = ${shown(group)}: ${rows.count()} on this page`) },
    layout: { topStart: "searchBuilder", topEnd: "search", bottomStart: "info", bottomEnd: "paging" },
    createdRow: (row, data) => { row.dataset.run = data[0]; },
    drawCallback: () => markRows(),
    language: { searchBuilder: { title: { 0: "Filter", _: "Filter (%d)" } }, info: "_START_ to _END_ of _TOTAL_ runs", infoEmpty: "no run" },
  });
  made.search.fixed("scope", (text, row) => inScope === null || inScope.has(row[0]));
  made.on("draw", () => {
    const [column, way] = made.order()[0] ?? [1, "asc"];
    const details = made.searchBuilder.getDetails(true);
    const order = `${column}:${way}`;
    Object.assign(state, { search: made.search(), order: order === "1:asc" ? "" : order,
      filter: details?.criteria?.length ? JSON.stringify(details) : "" });
    keep();
  });
  return made;
}

function markRows() {
  const decided = new Set(claimNow()?.runs ?? []);
  for (const row of at("runs").querySelectorAll("tr[data-run]")) {
    row.classList.toggle("decided", decided.has(Number(row.dataset.run)));
  }
}

function drawTable(regroup = false) {
  inScope = state.scope ? new Set(scopeRuns[state.scope]()) : null;
  if (regroup) {
    const column = state.group ? columnOf[state.group] + 1 : 1;
    table.rowGroup().enable(state.group !== "");
    table.rowGroup().dataSrc(column);
    table.order([[column, "asc"]]);
  }
  table.draw();
}

// ---- controls ----
async function change(news, findAxis = false) {
  Object.assign(state, news);
  if (findAxis && claimNow()) state.axis = axisOf(claimNow());
  keep();
  const drawn = [];
  const moved = Object.keys(news);
  if (moved.some((key) => ["left", "right", "step"].includes(key))) drawn.push(drawClouds());
  if (moved.some((key) => key !== "step" && key !== "scope" && key !== "group")) drawn.push(drawAblation());
  fillControls();
  showClaim();
  if (moved.some((key) => !["left", "right", "step"].includes(key))) drawTable("group" in news);
  await Promise.all(drawn);
}

function fillControls() {
  for (const id of ["axis", "target", "measure", "scale", "scope", "group", "left", "right"]) at(id).value = state[id];
}

function begin() {
  fillSelect("axis", page.axes.map((axis) => [axis.name, axis.columns.join(" × ")]), state.axis);
  fillSelect("target", allowed.target.map((target) => [target, target]), state.target);
  fillSelect("measure", Object.entries(page.measures), state.measure);
  fillSelect("group", [["", "nothing"], ...page.columns.map((column) => [column.key, column.key])], state.group);
  const withSamples = Object.keys(page.samples.runs).map(Number);
  const options = [[-1, "none"], ...withSamples.map((run) => [run, jobOf(run)])];
  Object.assign(start, { left: withSamples[0] ?? -1, right: withSamples.at(-1) ?? -1 });
  if (state.left < 0) state.left = start.left;
  if (state.right < 0) state.right = start.right;
  for (const side of ["left", "right"]) fillSelect(side, options, state[side]);
  fillRows(at("same"), page.same.map(([key, value]) => ({ cells: [key, value] })));
  for (const id of ["axis", "target", "measure", "scale", "scope", "group"]) {
    at(id).addEventListener("change", (event) => change({ [id]: event.target.value }));
  }
  for (const side of ["left", "right"]) at(side).addEventListener("change", (event) => choose(side, Number(event.target.value)));
  at("step").addEventListener("input", (event) => change({ step: Number(event.target.value) }));
  at("copy").addEventListener("click", () => {
    const done = () => say("The link is copied.");
    const failed = () => say("This browser does not let the page copy: take the link from the address bar.");
    navigator.clipboard ? navigator.clipboard.writeText(location.href).then(done, failed) : failed();
  });
  dark.addEventListener("change", () => { look(); clouds.left.target = clouds.right.target = null; drawAblation(); drawClouds(); });
  addEventListener("hashchange", () => location.reload());
}

const look = () => document.documentElement.classList.toggle("dark", dark.matches);

look();
begin();
fillClaims();
showClaim();
fillControls();
const table = makeTable();
if (state.scope || state.group) drawTable(state.group !== ""); // it was drawn when it was made
await Promise.all([drawAblation(), drawClouds()]);
document.documentElement.dataset.ready = "yes";

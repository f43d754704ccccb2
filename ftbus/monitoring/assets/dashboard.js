// The page: asks for the statistics once a second and shows what came of them.

import { LineChart, drawStrip, el, sparkNode, sparkline } from "./charts.js";
import * as format from "./format.js";
import { History, KINDS, PERCENTILES } from "./history.js";
import { Table, write } from "./tables.js";

const INTERVAL_MS = 1000;
const PATIENCE_MS = 8000;
const STRIP_SLOTS = 60;

const byId = (id) => document.getElementById(id);
const token = new URLSearchParams(location.hash.slice(1)).get("token") ?? "";
const history = new History();
const state = { window: 60, kind: "handler", isPaused: false, announced: {} };

// What is shown

const tiles = [
  { id: "events", label: "Events", unit: "/s", colour: "blue",
    value: (s) => s.emitted + s.delivered, text: (v) => [format.rate(v), "/s"],
    detail: (stats) => `${format.count(stats.emitted + stats.posted)} in total` },
  { id: "calls", label: "Handler calls", colour: "violet",
    value: (s) => s.handled, text: (v) => [format.rate(v), "/s"],
    detail: (stats) => `${format.count(stats.handled)} in total` },
  { id: "p99", label: "Handler time, p99", colour: "amber",
    value: (s) => s.times.handler[2], text: (v) => format.durationParts(v),
    detail: (stats) => `median ${format.duration(stats.times.handler.count ? stats.times.handler.p50_ns : null)}` },
  { id: "pending", label: "Pending", colour: "teal",
    value: (s) => s.pending, text: (v) => [format.count(v), ""],
    detail: (stats) => `of ${format.count(stats.queue_size)}, most ${format.count(stats.queued_max)}`,
    mood: (v, stats) => v > stats.queue_size * 0.9 ? "bad" : v > stats.queue_size / 2 ? "warn" : "" },
  { id: "busy", label: "Workers busy", colour: "blue",
    value: (s) => s.workers.length ? s.workers.reduce((a, b) => a + b, 0) / s.workers.length : null,
    text: (v) => v === null ? ["–", ""] : [String(Math.round(v * 100)), "%"],
    detail: (stats, s) => `${stats.workers.length} workers, ${s ? s.cores.toFixed(2) : "–"} cores` },
  { id: "problems", label: "Failed and dropped", colour: "rose",
    value: (s) => s.failed + s.dropped + s.rejected, text: (v) => [format.rate(v), "/s"],
    detail: (stats) => `${format.count(stats.failed)} failed, ${format.count(stats.dropped + stats.rejected)} dropped`,
    mood: (v) => v > 0 ? "bad" : "" },
];
for (const tile of tiles) {
  tile.number = el("span");
  tile.unitNode = el("span", { class: "unit" });
  tile.about = el("dd", { class: "detail" });
  tile.spark = sparkNode();
  tile.node = el("div", { class: `tile c-${tile.colour}` }, el("dt", {}, tile.label),
    el("dd", { class: "value" }, tile.number, tile.unitNode), tile.about, tile.spark);
  byId("tiles").append(tile.node);
}

const throughput = new LineChart(byId("throughput"), { label: "Throughput", format: format.rate, series: [
  { id: "emitted", label: "Emitted", colour: "blue", area: true },
  { id: "delivered", label: "Delivered", colour: "teal", area: true },
  { id: "handled", label: "Handler calls", colour: "violet" },
] });
const latency = new LineChart(byId("latency"), { label: "Latency", format: format.duration, logarithmic: true,
  series: PERCENTILES.map((q, place) => (
    { id: place, label: `p${q}`, colour: ["teal", "blue", "amber", "rose"][place] })) });
const queue = new LineChart(byId("queue"), { label: "Pending events", format: format.count,
  limit: () => history.last?.stats.queue_size ?? null,
  series: [{ id: "pending", label: "Pending", colour: "teal", area: true }] });
const problems = new LineChart(byId("problems"), { label: "Drops and errors", format: format.rate, series: [
  { id: "failed", label: "Failed", colour: "rose", bars: true },
  { id: "dropped", label: "Dropped", colour: "amber", bars: true },
  { id: "rejected", label: "Rejected", colour: "violet", bars: true },
] });

const number = (id, label, value, text, mark = () => ({})) => ({ id, label, value,
  cell: (cell, row) => write(cell, text(value(row)), { isZero: !value(row), ...mark(value(row)) }) });
const bad = (value) => ({ isBad: value > 0 });

const handlers = new Table(byId("handlers"), { label: "Handlers", sortBy: "load",
  name: (row) => row.serial, empty: "No handler is subscribed.", columns: [
    { id: "name", label: "Handler", text: true, value: (row) => row.name,
      cell: (cell, row) => nameCell(cell, ...handlerName(row), row.name) },
    { id: "load", label: "Heat", text: true, value: (row) => row.load, cell: heatCell },
    number("calls", "Calls/s", (row) => row.rate, format.rate),
    number("mean", "Mean", (row) => row.mean, (v) => format.duration(v || null)),
    number("p99", "p99", (row) => row.time.p99_ns, (v) => format.duration(v || null)),
    number("max", "Max", (row) => row.time.max_ns, (v) => format.duration(v || null)),
    number("failed", "Failed", (row) => row.failed, format.count, bad),
  ] });
const keys = new Table(byId("keys"), { label: "Keys", sortBy: "handled",
  name: (row) => row.key, empty: "No event has had a key yet.", columns: [
    { id: "key", label: "Key", text: true, value: (row) => row.key,
      cell: (cell, row) => nameCell(cell, row.key, `${row.handlers} handler${row.handlers === 1 ? "" : "s"}`, row.key) },
    ...["emitted", "posted", "delivered", "handled"].map((id) =>
      number(id, `${id[0].toUpperCase()}${id.slice(1)}/s`, (row) => row.rates?.[id] ?? 0, format.rate)),
    number("p99", "Handler p99", (row) => row.times.handler.p99_ns, (v) => format.duration(v || null)),
    number("failed", "Failed", (row) => row.failed, format.count, bad),
    number("dropped", "Dropped", (row) => row.dropped + row.rejected, format.count, bad),
  ] });

/** "game.server.apply_input" of "player.input" -> what to call it, and what is under. */
function handlerName({ name, key }) {
  const words = name.split(".");
  const own = words.splice(words.at(-1).startsWith("<") ? -3 : -1).join(".").replace("<locals>.", "");
  return [own, words.length ? `${key} · ${words.join(".")}` : key];
}

function nameCell(cell, name, under, title) {
  if (cell.dataset.name === name && cell.dataset.under === under) return;
  Object.assign(cell.dataset, { name, under });
  cell.title = title;
  cell.replaceChildren(name, el("span", { class: "under" }, under));
}

function heatCell(cell, row) {
  cell.classList.add("heat");
  if (!cell.firstChild) {
    cell.append(el("canvas", { class: "strip", "aria-hidden": "true" }), el("span", { class: "hidden" }));
  }
  const values = strip((sample) => sample.handlers?.get(row.serial)?.load ?? null);
  cell.lastChild.textContent = `${format.share(row.load)} of a core`;
  cell.title = cell.lastChild.textContent;
  requestAnimationFrame(() => drawStrip(cell.firstChild, values, STRIP_SLOTS));
}

/** The values of the time shown in 60 steps, each the mean of what falls into it. */
function strip(value) {
  const width = state.window / STRIP_SLOTS;
  const newest = history.samples.at(-1)?.at ?? 0;
  const sums = Array.from({ length: STRIP_SLOTS }, () => [0, 0]);
  for (const sample of history.recent(state.window)) {
    const known = value(sample);
    if (known === null) continue;
    const end = STRIP_SLOTS - (newest - sample.at) / width;
    const start = Math.max(0, end - sample.seconds / width);
    for (let slot = Math.floor(start); slot < Math.min(end, STRIP_SLOTS); slot += 1) {
      const part = Math.min(end, slot + 1) - Math.max(start, slot);
      sums[slot][0] += known * part;
      sums[slot][1] += part;
    }
  }
  return sums.map(([sum, part]) => part > 0.05 ? sum / part : null);
}

// Drawing

function draw() {
  const message = history.last;
  if (!message) return;
  const { stats } = message;
  const samples = history.recent(state.window);
  const newest = samples.at(-1)?.isGap ? null : samples.at(-1) ?? null;
  for (const tile of tiles) drawTile(tile, stats, samples, newest);
  const chart = (read) => samples.map((sample) => ({ at: sample.at, values: sample.isGap ? {} : read(sample) }));
  throughput.update(chart((sample) => sample), state.window);
  latency.update(chart((sample) => sample.times[state.kind]), state.window);
  queue.update(chart((sample) => sample), state.window);
  problems.update(chart((sample) => sample), state.window);
  handlers.update(stats.handlers.map((row) => {
    const now = newest?.handlers.get(row.serial);
    return { ...row, rate: now?.calls ?? 0, load: now?.load ?? 0, mean: now?.mean ?? row.time.mean_ns };
  }));
  keys.update(stats.topics.map((row) => ({ ...row, rates: newest?.topics.get(row.key) })));
  drawWorkers(stats.workers, newest);
  drawWorkerFacts(stats);
  drawErrors(stats.errors);
  drawFacts(message);
}

function drawTile(tile, stats, samples, newest) {
  const value = newest ? tile.value(newest) : null;
  const [number, unit] = value === null ? ["–", ""] : tile.text(value);
  tile.number.textContent = number;
  tile.unitNode.textContent = unit;
  tile.about.textContent = tile.detail(stats, newest);
  tile.node.dataset.mood = value === null ? "" : tile.mood?.(value, stats) ?? "";
  const points = samples.map((sample) => ({ at: sample.at, value: sample.isGap ? null : tile.value(sample) }));
  sparkline(tile.spark, points, state.window);
}

function drawWorkers(workers, newest) {
  const place = byId("worker-rows");
  while (place.children.length > Math.max(1, workers.length)) place.lastChild.remove();
  if (!workers.length) {
    place.replaceChildren(el("p", { class: "empty" }, "Workers start with the first post."));
    return;
  }
  place.querySelector(".empty")?.remove();
  workers.forEach((worker, index) => {
    const node = place.children[index] ?? place.appendChild(el("div", { class: "worker" },
      el("span", { class: "name" }, `Worker ${index}`),
      el("canvas", { class: "strip", "aria-hidden": "true" }),
      el("span", { class: "share" }), el("span", { class: "detail" })));
    const values = strip((sample) => sample.workers?.[index] ?? null);
    node.children[2].textContent = format.share(newest?.workers[index] ?? null);
    node.children[3].textContent = `${format.count(worker.taken)} events, `
      + `${format.share(worker.taken ? worker.stolen / worker.taken : 0)} stolen, ${format.count(worker.parks)} naps`;
    requestAnimationFrame(() => drawStrip(node.children[1], values, STRIP_SLOTS));
  });
}

function drawWorkerFacts({ partitions, lookups, timing, times, handled, encoded, shared, emitted, buffers }) {
  const facts = {
    "Wait in the queue, p50 · p99": timing !== "off" && times.wait.count
      ? `${format.duration(times.wait.p50_ns)} · ${format.duration(times.wait.p99_ns)}` : null,
    "Partitions with events": partitions.posted
      ? `${format.count(partitions.busy)} of ${format.count(partitions.groups)}` : null,
    "Look-ups avoided": emitted && lookups.hits + lookups.misses + lookups.avoided
      ? format.share(lookups.avoided / emitted) : null,
    "Encoded, shared": encoded ? `${format.count(encoded)}, ${format.count(shared)}` : null,
    "Calls that failed": handled ? format.share(history.last.stats.failed / handled) : null,
    "Buffers in use": buffers?.live ? `${format.count(buffers.live)}, ${format.bytes(buffers.live_bytes)}` : null,
  };
  byId("worker-facts").replaceChildren(...Object.entries(facts).filter(([, text]) => text !== null)
    .flatMap(([name, text]) => [el("dt", {}, name), el("dd", {}, text)]));
}

function drawErrors(errors) {
  const place = byId("error-rows");
  const known = new Map([...place.querySelectorAll(".error")].map((node) => [node.dataset.type, node]));
  if (!errors.length) {
    place.replaceChildren(el("p", { class: "empty" }, "No handler has failed."));
    return;
  }
  const nodes = errors.map((error, index) => {
    const node = known.get(error.type) ?? el("div", { class: "error", "data-type": error.type },
      el("div", { class: "row" }, el("span", { class: "type" }, error.type), el("span", { class: "count" })),
      el("p", { class: "where" }),
      el("details", { open: index === 0 && !known.size }, el("summary", {}, "Last traceback"), el("pre", { tabindex: "0" })));
    node.querySelector(".count").textContent = format.count(error.count);
    node.querySelector(".where").textContent = `last in ${error.handler} for ${error.key}`;
    const trace = node.querySelector("pre");
    if (trace.textContent !== error.traceback) trace.textContent = error.traceback;
    return node;
  });
  const isSame = nodes.length === place.children.length && nodes.every((node, at) => place.children[at] === node);
  if (!isSame) place.replaceChildren(...nodes);
}

function drawFacts({ process, stats }) {
  byId("bus-name").textContent = stats.name;
  byId("process").textContent = `${process.program}, process ${process.pid}`;
  document.title = `${stats.name} · ftbus`;
  const timing = stats.timing === "sampled" ? `one event in ${stats.timing_interval} timed`
    : stats.timing === "all" ? "every event timed" : "timing off";
  byId("facts").textContent = [`up ${format.span(stats.uptime_s)}`, `Python ${process.python}`,
    `GIL ${process.gil ? "on" : "off"}`, `ftbus ${process.ftbus}`, timing,
    stats.buffers && `buffers ${format.bytes(stats.buffers.live_bytes)} in use`].filter(Boolean).join(" · ");
}

// Asking

async function ask() {
  if (state.isPaused) return;
  const patience = AbortSignal.timeout(PATIENCE_MS);
  try {
    const reply = await fetch("api/stats", { headers: { Authorization: `Bearer ${token}` }, signal: patience, cache: "no-store" });
    if (reply.status === 401) return refuse();
    if (!reply.ok) throw new Error(`status ${reply.status}`);
    const message = await reply.json();
    if (state.isPaused) return;
    setStatus("live", "Live");
    notice("");
    history.add(message);
    announce(message.stats);
    draw();
  } catch {
    history.addGap();
    setStatus("lost", "No answer");
    notice("The process does not answer. It may have ended; this page goes on asking.");
  }
}

function refuse() {
  setStatus("lost", "No access");
  notice("This page needs the whole address that bus.serve_dashboard() returned, with the part after #.");
}

function notice(text) {
  const node = byId("notice");
  if (node.textContent !== text) node.textContent = text;
  node.hidden = !text;
}

function setStatus(name, text) {
  byId("status").dataset.state = name;
  if (byId("status-text").textContent !== text) byId("status-text").textContent = text;
}

/** Say aloud what changes the picture, once, and nothing else. */
function announce(stats) {
  const full = stats.pending > stats.queue_size * 0.9;
  const failing = (history.samples.at(-1)?.failed ?? 0) > 0;
  const said = [];
  if (full && !state.announced.full) said.push("The queue is nearly full.");
  if (failing && !state.announced.failing) said.push("Handlers are failing.");
  if (!failing && state.announced.failing) said.push("No handler fails any more.");
  state.announced = { full, failing };
  if (said.length) byId("announcer").textContent = said.join(" ");
}

// Controls

function setPaused(isPaused) {
  state.isPaused = isPaused;
  byId("pause").setAttribute("aria-pressed", String(isPaused));
  byId("pause").textContent = isPaused ? "Resume" : "Pause";
  if (isPaused) setStatus("paused", "Paused");
  else ask();
}

function setWindow(seconds) {
  state.window = seconds;
  draw();
}

const dark = matchMedia("(prefers-color-scheme: dark)");
let chosen = null;
try {
  chosen = localStorage.getItem("ftbus-theme");
} catch { /* storage is off: the choice lasts as long as the page */ }

function applyTheme() {
  const theme = chosen ?? (dark.matches ? "dark" : "light");
  document.documentElement.dataset.theme = theme;
  byId("theme-text").textContent = `Theme: ${theme}${chosen ? "" : ", as the system"}`;
  byId("theme").title = byId("theme-text").textContent;
  draw();
}

function nextTheme() {
  const now = document.documentElement.dataset.theme;
  const other = now === "dark" ? "light" : "dark";
  chosen = other === (dark.matches ? "dark" : "light") ? null : other;
  try {
    if (chosen) localStorage.setItem("ftbus-theme", chosen);
    else localStorage.removeItem("ftbus-theme");
  } catch { /* as above */ }
  applyTheme();
}

for (const kind of KINDS) {
  const label = { emit: "Emit", wait: "Wait", handler: "Handler", encode: "Encode" }[kind];
  const input = el("input", { type: "radio", name: "kind", value: kind, checked: kind === state.kind,
    onchange: () => { state.kind = kind; draw(); } });
  byId("latency-kind").append(el("label", {}, input, el("span", {}, label)));
}
for (const input of document.querySelectorAll("input[name=window]")) {
  input.addEventListener("change", () => setWindow(Number(input.value)));
}
byId("pause").addEventListener("click", () => setPaused(!state.isPaused));
byId("theme").addEventListener("click", nextTheme);
dark.addEventListener("change", applyTheme);
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("input[type=text]")) return;
  const windows = [...document.querySelectorAll("input[name=window]")];
  if (event.key === "p") setPaused(!state.isPaused);
  else if (event.key === "t") nextTheme();
  else if (["1", "2", "3"].includes(event.key)) windows[Number(event.key) - 1].click();
});

applyTheme();
(async function run() {
  for (;;) {
    const pause = new Promise((resolve) => { setTimeout(resolve, INTERVAL_MS); });
    await ask();
    await pause;
  }
}());

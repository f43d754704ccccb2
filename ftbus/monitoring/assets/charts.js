// Line charts in SVG, and strips of heat on a canvas. No chart moves by itself.

import { span } from "./format.js";

const SVG = "http://www.w3.org/2000/svg";
const MARGIN = { left: 46, right: 10, top: 8, bottom: 20 };
const HEAT_STEPS = 6;

/** Make an element; text is text, never markup. */
export function el(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

function svg(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === false || value === null) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children);
  return node;
}

/**
 * A chart of several series over time, with a legend that shows the values at the
 * cursor, and the same as a table.
 *
 * options: label; series: [{ id, label, colour, area, bars }]; format(value) -> text;
 * logarithmic; limit() -> a value to draw a line at, or null; least: what the top
 * of the axis is at the least.
 */
export class LineChart {
  constructor(card, options) {
    this.options = { least: 1, ...options };
    this.hidden = new Set();
    this.cursor = null; // a time, or null for the newest
    this.samples = [];
    this.readings = new Map();
    this.box = el("div", {
      class: "chart",
      tabindex: "0",
      role: "img",
      onpointermove: (event) => this.point(event),
      onpointerleave: () => this.moveTo(null),
      onkeydown: (event) => this.walk(event),
      onblur: () => this.moveTo(null),
    });
    this.legend = el("div", { class: "legend" });
    this.when = el("span", { class: "when" });
    for (const series of options.series) this.legend.append(this.legendEntry(series));
    this.legend.append(this.when);
    this.spoken = el("div", { class: "hidden", "aria-live": "polite" });
    this.table = el("div", { class: "scroll", tabindex: "0", role: "region", hidden: true,
      "aria-label": `${options.label}, as a table` });
    this.switch = el("button", { type: "button", class: "link", "aria-pressed": "false",
      onclick: () => this.showTable(this.table.hidden) }, "Table");
    this.switch.append(el("span", { class: "hidden" }, ` of ${options.label.toLowerCase()}`));
    tools(card).append(this.switch);
    card.append(this.box, this.table, this.legend, this.spoken);
    new ResizeObserver(() => this.draw()).observe(this.box);
  }

  legendEntry(series) {
    const value = el("b", {}, "–");
    this.readings.set(series.id, value);
    const button = el("button", { type: "button", "aria-pressed": "true",
      class: `c-${series.colour}`,
      onclick: () => {
        const isShown = this.hidden.has(series.id);
        if (isShown) this.hidden.delete(series.id);
        else this.hidden.add(series.id);
        button.setAttribute("aria-pressed", String(isShown));
        this.draw();
      } }, el("span", { class: "swatch", "aria-hidden": "true" }), series.label, value);
    return button;
  }

  showTable(isWanted) {
    this.table.hidden = !isWanted;
    this.box.hidden = isWanted;
    this.switch.setAttribute("aria-pressed", String(isWanted));
    this.draw();
  }

  /** Show samples: [{ at, values: { id: number or null } }], the newest last. */
  update(samples, seconds) {
    this.samples = samples;
    this.seconds = seconds;
    this.draw();
  }

  draw() {
    const { width, height } = this.box.getBoundingClientRect();
    this.read();
    if (!this.table.hidden) this.drawTable();
    if (width < 80 || height < 40) return;
    const area = { left: MARGIN.left, top: MARGIN.top,
      width: width - MARGIN.left - MARGIN.right, height: height - MARGIN.top - MARGIN.bottom };
    this.area = area;
    const shown = this.options.series.filter((series) => !this.hidden.has(series.id));
    const scale = this.options.logarithmic ? logScale : linearScale;
    const values = this.samples.flatMap((sample) => shown.map((series) => sample.values[series.id]))
      .filter((value) => value !== null && value !== undefined);
    const limit = this.options.limit?.() ?? null;
    const top = Math.max(this.options.least, ...values);
    const { y, ticks } = scale(values, limit !== null && limit < top * 4 ? Math.max(top, limit) : top, area);
    const drawn = svg("svg", { viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true" });
    for (const tick of ticks) {
      drawn.append(svg("line", { class: "rule", x1: area.left, x2: area.left + area.width,
        y1: Math.round(y(tick)), y2: Math.round(y(tick)) }));
      drawn.append(svg("text", { class: "axis", x: area.left - 8, y: y(tick) + 4,
        "text-anchor": "end" }, trimmed(this.options.format(tick))));
    }
    this.drawTimes(drawn, height);
    const limitY = limit === null ? -1 : y(limit);
    if (limitY >= area.top) {
      drawn.append(svg("line", { class: "limit", x1: area.left, x2: area.left + area.width, y1: limitY, y2: limitY }));
    }
    for (const series of shown) this.drawSeries(drawn, series, y);
    this.drawCursor(drawn, shown, y);
    this.box.replaceChildren(drawn);
  }

  drawTimes(drawn, height) {
    const steps = this.area.width < 320 ? 3 : 6;
    for (let step = 0; step <= steps; step += 1) {
      const ago = Math.round((this.seconds ?? 60) * (1 - step / steps));
      const anchor = step === steps ? "end" : step === 0 ? "start" : "middle";
      drawn.append(svg("text", { class: "axis", x: this.area.left + (this.area.width * step) / steps,
        y: height - 4, "text-anchor": anchor }, ago ? `−${span(ago)}` : "now"));
    }
  }

  drawSeries(drawn, series, y) {
    const { top, height } = this.area;
    const floor = top + height;
    if (series.bars) {
      const width = Math.max(1, this.area.width / (this.seconds ?? 60) - 1);
      const bars = this.samples.filter((sample) => sample.values[series.id] > 0)
        .map((sample) => {
          const up = Math.max(2, floor - y(sample.values[series.id]));
          return `M${f(this.x(sample) - width)} ${f(floor)}h${f(width)}v${f(-up)}h${f(-width)}z`;
        });
      drawn.append(svg("path", { class: `bars c-${series.colour}`, d: bars.join("") }));
      return;
    }
    for (const run of this.runs(series.id)) {
      const points = run.map((sample) => `${f(this.x(sample))} ${f(y(sample.values[series.id]))}`);
      if (series.area) {
        drawn.append(svg("path", { class: `area c-${series.colour}`,
          d: `M${f(this.x(run[0]))} ${f(floor)}L${points.join("L")}L${f(this.x(run.at(-1)))} ${f(floor)}z` }));
      }
      drawn.append(svg("path", { class: `curve c-${series.colour}`,
        d: run.length > 1 ? `M${points.join("L")}` : `M${points[0]}h0.01` }));
    }
  }

  /** The stretches in which a series has values. */
  runs(id) {
    const runs = [[]];
    for (const sample of this.samples) {
      const value = sample.values[id];
      if (value === null || value === undefined) runs.push([]);
      else runs.at(-1).push(sample);
    }
    return runs.filter((run) => run.length);
  }

  x(sample) {
    const ago = (this.samples.at(-1).at - sample.at) / (this.seconds ?? 60);
    return this.area.left + this.area.width * Math.max(0, 1 - ago);
  }

  // The cursor

  current() {
    if (!this.samples.length) return null;
    if (this.cursor === null) return this.samples.at(-1);
    return this.samples.reduce((one, two) =>
      Math.abs(two.at - this.cursor) < Math.abs(one.at - this.cursor) ? two : one);
  }

  point(event) {
    if (!this.area || !this.samples.length) return;
    const { left } = this.box.getBoundingClientRect();
    const part = (event.clientX - left - this.area.left) / this.area.width;
    this.moveTo(this.samples.at(-1).at - (1 - part) * this.seconds);
  }

  walk(event) {
    const place = this.samples.indexOf(this.current());
    const last = this.samples.length - 1;
    const wanted = { ArrowLeft: place - 1, ArrowRight: place + 1, Home: 0, End: last,
      PageUp: place - 10, PageDown: place + 10 }[event.key];
    if (event.key === "Escape") this.moveTo(null);
    if (wanted === undefined || last < 0) return;
    event.preventDefault();
    this.moveTo(this.samples[Math.min(last, Math.max(0, wanted))].at);
    this.spoken.textContent = `${this.when.textContent}: ${this.summary()}`;
  }

  moveTo(time) {
    if (time === this.cursor) return;
    this.cursor = time;
    this.draw();
  }

  drawCursor(drawn, shown, y) {
    const sample = this.current();
    if (sample === null || this.cursor === null) return;
    const x = this.x(sample);
    drawn.append(svg("line", { class: "cursor", x1: x, x2: x, y1: this.area.top,
      y2: this.area.top + this.area.height }));
    for (const series of shown) {
      const value = sample.values[series.id];
      if (value === null || value === undefined || series.bars) continue;
      drawn.append(svg("circle", { class: `point c-${series.colour}`, cx: x, cy: y(value), r: 4 }));
    }
  }

  /** Write the values at the cursor into the legend, and into the chart's name. */
  read() {
    const sample = this.current();
    for (const series of this.options.series) {
      this.readings.get(series.id).textContent = this.options.format(sample?.values[series.id] ?? null);
    }
    const ago = sample && this.cursor !== null ? this.samples.at(-1).at - sample.at : 0;
    this.when.textContent = this.cursor === null ? "" : ago < 1 ? "now" : `${span(ago)} ago`;
    this.box.setAttribute("aria-label", `${this.options.label}, line chart. Now ${this.summary()}. `
      + "Arrow keys walk along it.");
  }

  summary() {
    const sample = this.current();
    return this.options.series.map((series) =>
      `${series.label} ${this.options.format(sample?.values[series.id] ?? null)}`).join(", ");
  }

  drawTable() {
    const newest = this.samples.at(-1)?.at ?? 0;
    const step = Math.max(1, Math.floor(this.samples.length / 12));
    const rows = this.samples.filter((_, place) => (this.samples.length - 1 - place) % step === 0).reverse();
    this.table.replaceChildren(el("table", {},
      el("thead", {}, el("tr", {}, el("th", { scope: "col", class: "text" }, "Time"),
        ...this.options.series.map((series) => el("th", { scope: "col" }, series.label)))),
      el("tbody", {}, ...rows.map((sample) => el("tr", {},
        el("th", { scope: "row", class: "text" }, newest - sample.at < 1 ? "now" : `${span(newest - sample.at)} ago`),
        ...this.options.series.map((series) => el("td", {}, this.options.format(sample.values[series.id] ?? null))))))));
  }
}

/** The place of a card for its buttons. */
export function tools(card) {
  const head = card.querySelector(".head");
  return head.querySelector(".tools") ?? head.appendChild(el("div", { class: "tools" }));
}

function linearScale(values, top, area) {
  const step = niceStep(top / 3.5);
  const highest = Math.ceil(top / step - 1e-9) * step;
  const y = (value) => area.top + area.height * (1 - value / highest);
  const ticks = [];
  for (let tick = 0; tick <= highest + step / 2; tick += step) ticks.push(tick);
  return { y, ticks };
}

function niceStep(step) {
  const power = 10 ** Math.floor(Math.log10(step));
  const times = [1, 2, 2.5, 5, 10].find((each) => each * power >= step * 0.999);
  return times * power;
}

function logScale(values, top, area) {
  const positive = values.filter((value) => value > 0);
  const lowest = Math.floor(Math.log10(positive.length ? Math.min(...positive) : 1000));
  const highest = Math.max(lowest + 1, Math.ceil(Math.log10(positive.length ? top : 1e6)));
  const y = (value) => area.top + area.height
    * (1 - (Math.log10(Math.max(value, 10 ** lowest)) - lowest) / (highest - lowest));
  const every = Math.ceil((highest - lowest) / Math.max(2, Math.floor(area.height / 34)));
  const ticks = [];
  for (let power = lowest; power <= highest; power += every) ticks.push(10 ** power);
  return { y, ticks };
}

/** "5.00k" -> "5k": an axis has round numbers. */
function trimmed(text) {
  return text.replace(/\.0+(?!\d)|(\.\d*[1-9])0+(?!\d)/, "$1");
}

function f(number) {
  return number.toFixed(1);
}

/** A small line without axes: [{ at, value }], the newest last, null where unknown. */
export function sparkline(node, points, seconds) {
  const known = points.filter((point) => point.value !== null);
  const top = Math.max(1e-9, ...known.map((point) => point.value)) * 1.15;
  const newest = points.at(-1)?.at ?? 0;
  const x = (point) => f(Math.max(0, 100 - ((newest - point.at) * 100) / seconds));
  const line = known.map((point) => `${x(point)} ${f(33 - (31 * point.value) / top)}`).join("L");
  const isFlat = known.every((point) => point.value === 0);
  node.replaceChildren(...(known.length < 2 || isFlat ? [] : [
    svg("path", { class: "area", d: `M${x(known[0])} 34L${line}L${x(known.at(-1))} 34z` }),
    svg("path", { class: "sparkline", d: `M${line}` }),
  ]));
}

export function sparkNode() {
  return svg("svg", { class: "spark", viewBox: "0 0 100 34", preserveAspectRatio: "none", "aria-hidden": "true" });
}

/** Draw shares (0 to 1, null where unknown) as a strip of heat, the newest at the right. */
export function drawStrip(canvas, values, slots) {
  const ratio = Math.min(2, window.devicePixelRatio || 1);
  const width = Math.max(1, Math.round(canvas.clientWidth * ratio));
  const height = Math.max(1, Math.round(canvas.clientHeight * ratio));
  if (canvas.width !== width) canvas.width = width;
  if (canvas.height !== height) canvas.height = height;
  const context = canvas.getContext("2d");
  const colours = heatColours();
  context.fillStyle = colours[0];
  context.fillRect(0, 0, width, height);
  const first = slots - values.length;
  values.forEach((value, place) => {
    if (!value) return;
    const step = Math.min(HEAT_STEPS - 1, 1 + Math.floor(Math.sqrt(value) * (HEAT_STEPS - 1)));
    const from = Math.round((width * (first + place)) / slots);
    const to = Math.round((width * (first + place + 1)) / slots);
    context.fillStyle = colours[step];
    context.fillRect(from, 0, Math.max(1, to - from), height);
  });
}

function heatColours() {
  const style = getComputedStyle(document.documentElement);
  return Array.from({ length: HEAT_STEPS }, (_, step) => style.getPropertyValue(`--heat-${step}`).trim());
}

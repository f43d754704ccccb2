// Tables that are sorted by their headings, and keep their rows (and the focus in them).

import { el } from "./charts.js";

/**
 * columns: [{ id, label, text, value(row) -> to sort by, cell(td, row) -> draw it }],
 * the first of which names the row. name(row) tells rows apart.
 */
export class Table {
  constructor(card, { label, columns, sortBy, name, empty }) {
    this.columns = columns;
    this.sortBy = sortBy;
    this.ascending = false;
    this.name = name;
    this.rows = new Map();
    this.headings = new Map();
    this.head = el("tr");
    for (const column of columns) this.head.append(this.heading(column));
    this.body = el("tbody");
    this.table = el("table", {}, el("thead", {}, this.head), this.body);
    this.scroll = el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": label }, this.table);
    this.empty = el("p", { class: "empty" }, empty);
    card.append(this.scroll, this.empty);
    this.mark();
  }

  heading(column) {
    const heading = el("th", { scope: "col", class: column.text ? "text" : null },
      column.value ? el("button", { type: "button", onclick: () => this.sort(column.id) }, column.label)
        : column.label);
    this.headings.set(column.id, heading);
    return heading;
  }

  sort(id) {
    this.ascending = this.sortBy === id && !this.ascending;
    this.sortBy = id;
    this.mark();
    this.place();
  }

  mark() {
    for (const [id, heading] of this.headings) {
      if (id === this.sortBy) heading.setAttribute("aria-sort", this.ascending ? "ascending" : "descending");
      else heading.removeAttribute("aria-sort");
    }
  }

  update(data) {
    const names = new Set();
    for (const row of data) {
      const name = this.name(row);
      names.add(name);
      const known = this.rows.get(name) ?? this.add(name);
      known.row = row;
      this.columns.forEach((column, place) => column.cell(known.cells[place], row));
    }
    for (const [name, known] of this.rows) {
      if (names.has(name)) continue;
      known.node.remove();
      this.rows.delete(name);
    }
    this.empty.hidden = this.rows.size > 0;
    this.scroll.hidden = this.rows.size === 0;
    this.place();
  }

  add(name) {
    const cells = this.columns.map((column, place) =>
      el(place ? "td" : "th", { scope: place ? null : "row", class: column.text ? "text" : null }));
    const known = { node: el("tr", {}, ...cells), cells, row: null };
    this.rows.set(name, known);
    return known;
  }

  /** Put the rows in order; those that are there already do not move in the document. */
  place() {
    const { value } = this.columns.find((column) => column.id === this.sortBy);
    const sign = this.ascending ? 1 : -1;
    const order = [...this.rows.values()].sort((one, two) => {
      const [a, b] = [value(one.row), value(two.row)];
      return sign * (typeof a === "string" ? b.localeCompare(a) : a - b);
    });
    order.forEach((known, place) => {
      const there = this.body.children[place];
      if (there !== known.node) this.body.insertBefore(known.node, there ?? null);
    });
  }
}

/** Write text into a cell, and mark what is nothing and what is bad. */
export function write(cell, text, { isZero = false, isBad = false } = {}) {
  if (cell.textContent !== text) cell.textContent = text;
  cell.classList.toggle("zero", isZero);
  cell.classList.toggle("bad", isBad);
}

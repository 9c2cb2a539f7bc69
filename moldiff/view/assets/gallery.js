"use strict";
// Searching, filtering, sorting, selecting and exporting the cards, which are in the page from the start.

class Gallery {
  constructor(data) {
    this.data = data;
    this.list = byId("gallery");
    this.cards = [...this.list.children];
    this.column = Object.fromEntries(data.columns.map((column, k) => [(column.field ? "field " : "") + column.key, k]));
    this.values = data.rows.map((row) => row.map((value, k) => typed(value, data.columns[k])));
    this.picked = new Set();
    this.filters = [];
    this.shown = this.cards.map((_, k) => k);
    this.descending = false;
    this.detail = new Detail(data, this);
    this.fillMenus();
    this.fillStatuses();
    this.listen();
    this.update();
  }

  fillMenus() {
    this.data.columns.forEach((column, k) => {
      if (column.constant || column.hidden) return;
      byId("sort").add(new Option(column.label, k));
      byId("filter-column").add(new Option(column.label, k));
    });
    byId("filter-column").value = this.column.num_heavy_atoms ?? 0;
    this.fillFilterValue();
  }

  fillStatuses() {
    const counts = new Map();
    for (const row of this.values) counts.set(row[this.column.status], (counts.get(row[this.column.status]) ?? 0) + 1);
    const order = [...counts].sort((a, b) => (b[0] === "ok") - (a[0] === "ok") || b[1] - a[1]);
    byId("statuses").hidden = counts.size < 2; // nothing to choose
    for (const [status, count] of order) {
      const box = labelled("checkbox", `${status} (${count})`);
      Object.assign(box.input, { checked: true, value: status });
      box.input.addEventListener("change", () => this.update());
      byId("statuses").append(box.label);
    }
  }

  // The input that fits the kind of the chosen column.
  fillFilterValue() {
    const column = this.data.columns[byId("filter-column").value];
    const make = (type, text, name) => {
      const { label, input } = labelled(type, text, name);
      if (type === "number") input.step = "any";
      return label;
    };
    const inputs = {
      number: () => [make("number", "from", "low"), make("number", "to", "high")],
      text: () => [make("text", "contains", "text")],
      bool: () => [make("checkbox", "is true", "truth")],
    };
    byId("filter-value").replaceChildren(...inputs[column.kind]());
    const truth = byId("filter-value").querySelector("[name=truth]");
    if (truth) truth.checked = true;
  }

  listen() {
    let waiting = 0;
    byId("search").addEventListener("input", () => {
      clearTimeout(waiting);
      waiting = setTimeout(() => this.update(), 80);
    });
    byId("sort").addEventListener("change", () => this.update());
    byId("direction").addEventListener("click", () => {
      this.descending = !this.descending;
      byId("direction").textContent = this.descending ? "↓" : "↑";
      byId("direction").setAttribute("aria-label", `Sort order: ${this.descending ? "descending" : "ascending"}`);
      this.update();
    });
    byId("filter-column").addEventListener("change", () => this.fillFilterValue());
    byId("filter").addEventListener("submit", (event) => {
      event.preventDefault();
      this.addFilter(new FormData(event.target));
    });
    byId("only-selected").addEventListener("change", () => this.update());
    byId("select-shown").addEventListener("click", () => this.pick(this.shown, true));
    byId("select-none").addEventListener("click", () => this.pick([...this.picked], false));
    byId("export").addEventListener("click", () => this.exportSdf([...this.picked].sort((a, b) => a - b)));
    this.list.addEventListener("change", (event) => {
      if (event.target.matches(".pick")) this.pick([Number(event.target.dataset.i)], event.target.checked);
    });
    this.list.addEventListener("click", (event) => {
      const button = event.target.closest(".open, .pic");
      if (button) this.detail.open(Number(button.closest(".card").id.slice(1)));
    });
    document.addEventListener("keydown", (event) => {
      if (event.key !== "/" || this.detail.dialog.open || event.target.matches("input, select")) return;
      event.preventDefault();
      byId("search").focus();
    });
  }

  addFilter(form) {
    const k = Number(byId("filter-column").value);
    const { kind, label } = this.data.columns[k];
    const bound = (name, missing) => (form.get(name) ? Number(form.get(name)) : missing);
    const [low, high] = [bound("low", -Infinity), bound("high", Infinity)];
    const [text, truth] = [(form.get("text") ?? "").trim(), form.get("truth") !== null];
    if ((kind === "number" && low === -Infinity && high === Infinity) || (kind === "text" && !text)) return;
    const kinds = {
      number: [`${label}: ${low === -Infinity ? "" : low} … ${high === Infinity ? "" : high}`, (v) => v !== null && v >= low && v <= high],
      text: [`${label} contains “${text}”`, (v) => v !== null && contains(v, text, this.data.columns[k])],
      bool: [`${label}: ${truth ? "yes" : "no"}`, (v) => v === truth],
    };
    const [name, test] = kinds[kind];
    this.filters.push({ name, matches: (row) => test(row[k]) });
    this.drawFilters();
    this.update();
  }

  drawFilters() {
    byId("filters").replaceChildren(...this.filters.map((filter) => {
      const [item, button] = [document.createElement("li"), document.createElement("button")];
      button.type = "button";
      button.textContent = `${filter.name} ✕`;
      button.setAttribute("aria-label", `Remove filter ${filter.name}`);
      button.addEventListener("click", () => {
        this.filters = this.filters.filter((other) => other !== filter);
        this.drawFilters();
        this.update();
        byId("filter-column").focus();
      });
      item.append(button);
      return item;
    }));
  }

  // Show what matches, in order.
  update() {
    const statuses = new Set([...byId("statuses").querySelectorAll("input:checked")].map((box) => box.value));
    const [query, only] = [byId("search").value.trim(), byId("only-selected").checked];
    this.shown = this.sorted([...this.values.keys()]).filter((i) => {
      const row = this.values[i];
      return statuses.has(row[this.column.status]) && (!only || this.picked.has(i)) && this.filters.every((filter) => filter.matches(row)) && (!query || this.found(row, query));
    });
    const visible = new Set(this.shown);
    this.cards.forEach((card, i) => { card.hidden = !visible.has(i); });
    const order = this.shown.map((i) => this.cards[i]);
    const present = [...this.list.children].filter((card) => !card.hidden);
    if (order.some((card, k) => card !== present[k])) this.list.append(...order);
    byId("nothing").hidden = this.shown.length > 0;
    this.say();
  }

  sorted(indices) {
    const k = Number(byId("sort").value);
    const sign = this.descending ? -1 : 1;
    return indices.sort((a, b) => {
      const [x, y] = [this.values[a][k], this.values[b][k]];
      if (x === null || y === null) return (x === null) - (y === null) || a - b; // what is not known comes last
      return sign * (typeof x === "string" ? x.localeCompare(y, undefined, { numeric: true }) : x - y) || a - b;
    });
  }

  found(row, query) {
    return row.some((value, k) => value !== null && contains(String(value), query, this.data.columns[k]));
  }

  pick(indices, on) {
    for (const i of indices) {
      if (this.data.blocks[i] === null) continue;
      if (on) this.picked.add(i);
      else this.picked.delete(i);
      this.cards[i].querySelector(".pick").checked = on;
      this.cards[i].classList.toggle("picked", on);
    }
    if (byId("only-selected").checked) this.update();
    else this.say();
  }

  say() {
    byId("count").textContent = `${this.shown.length} of ${this.cards.length} shown, ${this.picked.size} selected`;
    byId("export").disabled = byId("select-none").disabled = this.picked.size === 0;
    byId("export").textContent = this.picked.size ? `Export SDF (${this.picked.size})` : "Export SDF";
  }

  // The records as they were read, data fields included.
  exportSdf(indices) {
    const record = (i) => {
      const fields = this.data.columns.map((column, k) => {
        const value = this.data.rows[i][k];
        return column.field && value !== null ? `>  <${column.key}>\n${value}\n\n` : "";
      });
      return `${this.data.blocks[i]}${fields.join("")}$$$$\n`;
    };
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob(indices.map(record), { type: "chemical/x-mdl-sdfile" }));
    link.download = `${this.data.name.replace(/(\.[a-z]+)?(\.gz)?$/i, "")}-selected.sdf`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  }
}

function labelled(type, text, name = "") {
  const [label, input] = [document.createElement("label"), document.createElement("input")];
  Object.assign(input, { type, name });
  label.append(...(type === "checkbox" ? [input, ` ${text}`] : [`${text} `, input]));
  return { label, input };
}

// Data fields come as the text of the file.
function typed(value, column) {
  if (value === null || !column.field) return value;
  if (column.kind === "number") return Number(value);
  return column.kind === "bool" ? value === "true" : value;
}

// Capitals matter in a SMILES, where c and C are different atoms.
function contains(value, text, column) {
  return /smiles/i.test(column.label) ? value.includes(text) : value.toLowerCase().includes(text.toLowerCase());
}

const gallery = new Gallery(JSON.parse(byId("data").textContent));

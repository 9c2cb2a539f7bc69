"use strict";
// Searching, filtering, sorting and selecting the cards, which are in the page from the start.

const NARROWEST = 236; // pixels of a card

class Gallery {
  constructor(data) {
    this.data = data;
    this.list = byId("gallery");
    this.cards = [...this.list.children];
    this.column = Object.fromEntries(data.columns.map((column, k) => [(column.field ? "field " : "") + column.key, k]));
    this.values = data.rows.map((row) => row.map((value, k) => typed(value, data.columns[k])));
    this.picked = new Set();
    this.filters = [];
    this.hits = null; // matches of the SMARTS that is searched for, by card
    this.shown = this.cards.map((_, k) => k);
    this.descending = false;
    this.chemistry = new Chemistry(this.cards);
    this.exporter = new Exporter(data, this.cards, this.chemistry);
    this.detail = new Detail(data, this);
    this.fillMenus();
    this.fillBoxes("statuses", this.values.map((row) => row[this.column.status]), (a, b) => (b[0] === "ok") - (a[0] === "ok") || b[1] - a[1]);
    this.fillBoxes("files", data.file.map((file) => data.files[file]));
    this.listen();
    this.plot = new Plot(this);
    this.update();
  }

  fillMenus() {
    const chosen = byId("sort").value;
    for (const id of ["sort", "filter-column"]) byId(id).replaceChildren();
    this.data.columns.forEach((column, k) => {
      if (column.constant || column.hidden) return;
      byId("sort").add(new Option(column.label, k));
      byId("filter-column").add(new Option(column.label, k));
    });
    byId("sort").value = chosen || (this.column.number ?? 0);
    byId("filter-column").value = this.column.num_heavy_atoms ?? 0;
    this.fillFilterValue();
  }

  // A box for each of several values; one alone leaves nothing to choose.
  fillBoxes(id, values, order = () => 0) {
    const counts = new Map();
    for (const value of values) counts.set(value, (counts.get(value) ?? 0) + 1);
    byId(id).hidden = counts.size < 2;
    for (const [value, count] of [...counts].sort(order)) {
      const box = labelled("checkbox", `${value} (${count})`);
      Object.assign(box.input, { checked: true, value });
      box.input.addEventListener("change", () => this.update());
      if (id === "files") box.input.after(Object.assign(document.createElement("i"), { className: `dot f${this.data.files.indexOf(value) % 6}` }));
      byId(id).append(box.label);
    }
  }

  // A lead beside the cards, and columns of cards for each of a few files.
  layOut() {
    byId("pinned").hidden = !byId("pinned").querySelector("figure:not([hidden])");
    const number = this.data.files.length;
    byId("beside-label").hidden = number < 2 || number > 4;
    this.list.classList.toggle("beside", !byId("beside-label").hidden && byId("beside").checked);
    const wide = Math.max(1, Math.floor(this.list.clientWidth / (number * NARROWEST)));
    const ranks = this.data.files.map(() => 0);
    for (const i of this.shown) this.cards[i].style.setProperty("--column", this.data.file[i] * wide + (ranks[this.data.file[i]]++ % wide) + 1);
    this.list.style.setProperty("--columns", number * wide);
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
    const search = () => {
      clearTimeout(waiting);
      waiting = setTimeout(() => this.search(), 80);
    };
    byId("search").addEventListener("input", search);
    byId("mode").addEventListener("change", () => {
      byId("search").placeholder = byId("mode").value === "smarts" ? "c1ccccc1[NX3]" : "name, SMILES, any value";
      this.search();
    });
    byId("sort").addEventListener("change", () => this.update());
    byId("direction").addEventListener("click", () => {
      this.turn(!this.descending);
      this.update();
    });
    byId("filter-column").addEventListener("change", () => this.fillFilterValue());
    byId("filter").addEventListener("submit", (event) => {
      event.preventDefault();
      this.addFilter(new FormData(event.target));
    });
    byId("only-selected").addEventListener("change", () => this.update());
    byId("beside").addEventListener("change", () => this.layOut());
    byId("select-shown").addEventListener("click", () => this.pick(this.shown, true));
    byId("select-none").addEventListener("click", () => this.pick([...this.picked], false));
    byId("export").addEventListener("click", () => this.save(byId("format").value, this.chosen()));
    let width = innerWidth;
    window.addEventListener("resize", () => {
      if (width === innerWidth) return; // a phone's address bar comes and goes
      width = innerWidth;
      this.layOut();
      this.plot.draw();
    });
    byId("unpin").addEventListener("click", () => this.unpin());
    this.list.addEventListener("change", (event) => {
      if (event.target.matches(".pick")) this.pick([Number(event.target.dataset.i)], event.target.checked);
    });
    this.list.addEventListener("click", (event) => {
      const button = event.target.closest(".open, .pic, .like");
      if (!button) return;
      const index = Number(button.closest(".card").id.slice(1));
      if (button.matches(".like")) this.pin(index);
      else this.detail.open(index);
    });
    for (const kind of ["pointerover", "focusin"]) this.list.addEventListener(kind, (event) => this.showLead(event.target.closest(".card")));
    document.addEventListener("keydown", (event) => {
      if (event.key !== "/" || this.detail.dialog.open || event.target.matches("input, select")) return;
      event.preventDefault();
      byId("search").focus();
    });
  }

  turn(descending) {
    this.descending = descending;
    byId("direction").textContent = descending ? "↓" : "↑";
    byId("direction").setAttribute("aria-label", `Sort order: ${descending ? "descending" : "ascending"}`);
  }

  // Of several leads, the one of the card that is looked at.
  showLead(card) {
    const lead = card && this.data.leads[Number(card.id.slice(1))];
    for (const figure of byId("pinned").querySelectorAll(".lead")) figure.classList.toggle("current", figure.id === `lead${lead}`);
    const figure = card && lead !== null && byId(`lead${lead}`);
    if (figure) byId("pinned").scrollTo({ top: figure.offsetTop - 8, left: figure.offsetLeft - 8 });
  }

  // Look a SMARTS up by RDKit, or take the text as it is.
  async search() {
    const query = byId("search").value.trim();
    const smarts = byId("mode").value === "smarts" && query;
    const asked = (this.asked = {});
    const note = (text) => {
      byId("search-note").hidden = !text;
      byId("search-note").textContent = text;
    };
    const found = smarts ? await this.chemistry.matches(query).catch(() => undefined) : null;
    if (asked !== this.asked) return; // something else has been typed since
    note(found === undefined ? "This browser cannot run RDKit (WebAssembly is switched off or missing)." : smarts && !found ? `“${query}” is no SMARTS.` : "");
    this.hits?.forEach((_, i) => this.chemistry.mark(i, []));
    this.hits = found ?? null;
    this.hits?.forEach((matches, i) => this.chemistry.mark(i, matches));
    this.update();
  }

  // Sort by similarity to a card, which stays in view; a column like any other.
  async pin(index) {
    const name = this.exporter.name(index);
    const found = await this.chemistry.similarities(index).catch(() => null);
    if (!found) return;
    this.column.similarity_chosen ??= this.data.columns.push({ key: "similarity_chosen", label: "", kind: "number" }) - 1;
    const k = this.column.similarity_chosen;
    this.data.columns[k].label = `similarity to ${name}`;
    found.forEach((value, i) => {
      this.data.rows[i][k] = this.values[i][k] = value === null ? null : Number(value.toFixed(3));
      const facts = this.cards[i].querySelector(".facts");
      facts.querySelector(".alike")?.remove();
      if (value !== null) facts.prepend(Object.assign(document.createElement("li"), { className: "alike", textContent: `similarity ${value.toFixed(2)}` }));
    });
    byId("chosen").hidden = false;
    byId("chosen").firstElementChild.replaceChildren(this.cards[index].querySelector("svg.mol").cloneNode(true));
    byId("chosen").querySelector("figcaption").textContent = `similar to ${name}`;
    this.fillMenus();
    this.plot.fillMenus();
    byId("sort").value = k;
    this.turn(true);
    this.update();
  }

  unpin() {
    byId("chosen").hidden = true;
    for (const fact of this.list.querySelectorAll(".alike")) fact.remove();
    byId("sort").value = this.column.number ?? 0;
    this.turn(false);
    this.update();
    this.list.focus();
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

  // What was drawn over in the plot, instead of what was before.
  choose(ranges) {
    const name = ranges.map(([k, low, high]) => `${this.data.columns[k].label}: ${short(low)} … ${short(high)}`).join(", ");
    const inside = (row) => ranges.every(([k, low, high]) => row[k] !== null && row[k] >= low && row[k] <= high);
    this.filters = this.filters.filter((filter) => !filter.drawn).concat({ name, matches: inside, drawn: true });
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
        byId("search").focus();
      });
      item.append(button);
      return item;
    }));
  }

  // Show what matches, in order.
  update() {
    const ticked = (id) => new Set([...byId(id).querySelectorAll("input:checked")].map((box) => box.value));
    const [statuses, files] = [ticked("statuses"), ticked("files")];
    const [query, only] = [byId("mode").value === "text" ? byId("search").value.trim() : "", byId("only-selected").checked];
    this.shown = this.sorted([...this.values.keys()]).filter((i) => {
      const row = this.values[i];
      return statuses.has(row[this.column.status]) && files.has(this.data.files[this.data.file[i]]) && (!only || this.picked.has(i)) && (!this.hits || this.hits[i].length > 0)
        && this.filters.every((filter) => filter.matches(row)) && (!query || this.found(row, query));
    });
    const visible = new Set(this.shown);
    this.cards.forEach((card, i) => { card.hidden = !visible.has(i); });
    const order = this.shown.map((i) => this.cards[i]);
    const present = [...this.list.children].filter((card) => !card.hidden);
    if (order.some((card, k) => card !== present[k])) this.list.append(...order);
    byId("nothing").hidden = this.shown.length > 0;
    this.layOut();
    this.say();
    this.plot.draw();
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

  usable(i) {
    return !this.cards[i].querySelector(".pick").disabled;
  }

  pick(indices, on) {
    for (const i of indices) {
      if (!this.usable(i)) continue;
      if (on) this.picked.add(i);
      else this.picked.delete(i);
      this.cards[i].querySelector(".pick").checked = on;
      this.cards[i].classList.toggle("picked", on);
    }
    if (byId("only-selected").checked) this.update();
    else this.say();
  }

  // What an export takes: the selected ones or, without any, all that are shown.
  chosen() {
    return this.picked.size ? [...this.picked].sort((a, b) => a - b) : this.shown.filter((i) => this.usable(i));
  }

  save(kind, indices) {
    return this.exporter.save(kind, indices);
  }

  say() {
    byId("count").textContent = `${this.shown.length} of ${this.cards.length} shown, ${this.picked.size} selected`;
    const number = this.chosen().length;
    byId("select-none").disabled = this.picked.size === 0;
    byId("export").disabled = number === 0;
    byId("export").textContent = `Export ${number}`;
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

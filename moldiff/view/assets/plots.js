"use strict";
// A histogram of one number or a scatter of two, on which the range to be shown is chosen.

const PLOT = { width: 640, height: 300, left: 46, right: 12, top: 12, bottom: 40 };

class Plot {
  constructor(gallery) {
    this.gallery = gallery;
    this.svg = byId("plot");
    this.start = null;
    this.fillMenus();
    for (const id of ["plot-x", "plot-y"]) byId(id).addEventListener("change", () => this.draw());
    byId("refine").addEventListener("toggle", () => this.draw());
    this.svg.addEventListener("pointerdown", (event) => this.begin(event));
    this.svg.addEventListener("pointermove", (event) => this.stretch(event));
    this.svg.addEventListener("pointerup", (event) => this.end(event));
    this.svg.addEventListener("pointercancel", () => this.clear());
  }

  fillMenus() {
    const { columns } = this.gallery.data;
    const chosen = [byId("plot-x").value, byId("plot-y").value];
    byId("plot-x").replaceChildren();
    byId("plot-y").replaceChildren(new Option("how many", ""));
    columns.forEach((column, k) => {
      if (column.kind !== "number" || column.constant || column.hidden) return;
      byId("plot-x").add(new Option(column.label, k));
      byId("plot-y").add(new Option(column.label, k));
    });
    const { column } = this.gallery;
    byId("plot-x").value = chosen[0] || (column.druglike_logp ?? column.num_heavy_atoms ?? 0);
    byId("plot-y").value = chosen[0] ? chosen[1] : (column.druglike_qed ?? "");
  }

  draw() {
    if (!byId("refine").open) return;
    const [x, y] = [byId("plot-x").value, byId("plot-y").value];
    if (x === "") return;
    PLOT.width = Math.max(300, this.svg.clientWidth);
    this.svg.setAttribute("viewBox", `0 0 ${PLOT.width} ${PLOT.height}`);
    const { values, data } = this.gallery;
    const shown = new Set(this.gallery.shown);
    const known = [...values.keys()].filter((i) => values[i][x] !== null && (y === "" || values[i][y] !== null));
    this.x = scale(known.map((i) => values[i][x]), PLOT.left, PLOT.width - PLOT.right);
    const marks = y === "" ? this.bars(known, x, shown) : this.points(known, x, y, shown);
    const labels = [data.columns[x].label, y === "" ? "molecules" : data.columns[y].label];
    this.svg.replaceChildren(...this.axes(labels), ...marks);
    const kind = y === "" ? `Histogram of ${labels[0]}` : `Scatter of ${labels[1]} against ${labels[0]}`;
    this.svg.setAttribute("aria-label", `${kind}: ${known.length} molecules, ${labels[0]} from ${short(this.x.low)} to ${short(this.x.high)}`);
  }

  points(known, x, y, shown) {
    const { values, data, cards } = this.gallery;
    this.y = scale(known.map((i) => values[i][y]), PLOT.height - PLOT.bottom, PLOT.top);
    return known.map((i) => {
      const point = shape("circle", { cx: this.x.at(values[i][x]), cy: this.y.at(values[i][y]), r: 4.5, class: `mark f${data.file[i] % 6}${shown.has(i) ? "" : " out"}`, "data-i": i });
      const title = shape("title", {});
      title.textContent = `${cards[i].querySelector("h2").textContent}: ${short(values[i][x])}, ${short(values[i][y])}`;
      point.append(title);
      return point;
    });
  }

  // Bars for all molecules of a file, and in full colour for those that are shown.
  bars(known, x, shown) {
    const { values, data } = this.gallery;
    const whole = known.every((i) => Number.isInteger(values[i][x])) && this.x.high - this.x.low <= 40;
    const count = whole ? this.x.high - this.x.low + 1 : Math.min(24, Math.max(6, Math.ceil(2 * Math.cbrt(known.length))));
    if (whole) this.x = scale([], PLOT.left, PLOT.width - PLOT.right, this.x.low - 0.5, this.x.high + 0.5);
    const step = (this.x.high - this.x.low) / count;
    const bin = (value) => Math.min(count - 1, Math.floor((value - this.x.low) / step));
    const files = data.files.length;
    const counts = data.files.map(() => [new Array(count).fill(0), new Array(count).fill(0)]);
    for (const i of known) {
      counts[data.file[i]][0][bin(values[i][x])]++;
      if (shown.has(i)) counts[data.file[i]][1][bin(values[i][x])]++;
    }
    const top = Math.max(1, ...counts.flatMap(([all]) => all));
    this.y = scale([], PLOT.height - PLOT.bottom, PLOT.top, 0, top);
    const width = (this.x.at(this.x.low + step) - this.x.at(this.x.low)) / files;
    return counts.flatMap(([all, some], file) => [all, some].flatMap((side, part) => side.map((number, k) => {
      const left = this.x.at(this.x.low + k * step) + file * width;
      const bar = shape("rect", { x: left + 0.5, y: this.y.at(number), width: Math.max(1, width - 1), height: this.y.at(0) - this.y.at(number), class: `mark f${file % 6}${part ? "" : " out"}` });
      const title = shape("title", {});
      title.textContent = `${number} from ${short(this.x.low + k * step)} to ${short(this.x.low + (k + 1) * step)}`;
      bar.append(title);
      return bar;
    })));
  }

  axes([across, up]) {
    const floor = PLOT.height - PLOT.bottom;
    const text = (content, attributes) => { const label = shape("text", attributes); label.textContent = content; return label; };
    const parts = [shape("path", { class: "axis", d: `M${PLOT.left},${PLOT.top}V${floor}H${PLOT.width - PLOT.right}` })];
    for (const tick of this.x.ticks) parts.push(text(short(tick), { x: this.x.at(tick), y: floor + 16 }));
    for (const tick of this.y.ticks) parts.push(text(short(tick), { x: PLOT.left - 6, y: this.y.at(tick) + 4, class: "up" }));
    parts.push(text(across, { x: (PLOT.left + PLOT.width) / 2, y: PLOT.height - 6, class: "name" }));
    parts.push(text(up, { x: 12, y: floor / 2, class: "name", transform: `rotate(-90 12 ${floor / 2})` }));
    return parts;
  }

  place(event) {
    const spot = new DOMPoint(event.clientX, event.clientY).matrixTransform(this.svg.getScreenCTM().inverse());
    return [Math.min(PLOT.width, Math.max(0, spot.x)), Math.min(PLOT.height, Math.max(0, spot.y))];
  }

  begin(event) {
    if (!this.x) return;
    this.start = this.place(event);
    this.svg.setPointerCapture(event.pointerId);
  }

  stretch(event) {
    if (!this.start) return;
    const area = this.area(event);
    this.brush ??= this.svg.appendChild(shape("rect", { class: "brush" }));
    for (const [key, value] of Object.entries({ x: area.left, y: area.top, width: area.right - area.left, height: area.bottom - area.top })) this.brush.setAttribute(key, value);
  }

  area(event) {
    const [[x0, y0], [x1, y1]] = [this.start, this.place(event)];
    const flat = byId("plot-y").value === ""; // a histogram has one range
    return { left: Math.min(x0, x1), right: Math.max(x0, x1), top: flat ? PLOT.top : Math.min(y0, y1), bottom: flat ? PLOT.height - PLOT.bottom : Math.max(y0, y1) };
  }

  end(event) {
    if (!this.start) return;
    const area = this.area(event);
    const moved = area.right - area.left > 5;
    const under = document.elementsFromPoint(event.clientX, event.clientY).find((element) => element.dataset?.i !== undefined && this.svg.contains(element));
    this.clear();
    if (!moved) {
      if (under) this.gallery.detail.open(Number(under.dataset.i));
      return;
    }
    const [x, y] = [byId("plot-x").value, byId("plot-y").value];
    const ranges = [[x, this.x.from(area.left), this.x.from(area.right)]];
    if (y !== "") ranges.push([y, this.y.from(area.bottom), this.y.from(area.top)]);
    this.gallery.choose(ranges);
  }

  clear() {
    this.brush?.remove();
    this.start = this.brush = null;
  }
}

function shape(name, attributes) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  return element;
}

// From numbers to places between two ends and back, with ticks at round numbers.
function scale(numbers, from, to, least = null, most = null) {
  let low = least ?? numbers.reduce((one, other) => Math.min(one, other), Infinity);
  let high = most ?? numbers.reduce((one, other) => Math.max(one, other), -Infinity);
  if (!(low < high)) [low, high] = Number.isFinite(low) ? [low - 0.5, low + 0.5] : [0, 1];
  const rough = (high - low) / 5;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((one) => one >= rough);
  const ticks = [];
  for (let tick = Math.ceil(low / step) * step; tick <= high + step * 1e-9; tick += step) ticks.push(tick);
  const inset = least === null ? Math.sign(to - from) * 8 : 0; // so that no point lies on an axis
  const [a, b] = [from + inset, to - inset];
  return { low, high, ticks, at: (value) => a + ((value - low) / (high - low)) * (b - a), from: (place) => low + ((place - a) / (b - a)) * (high - low) };
}

function short(value) {
  return String(Number(value.toPrecision(3)));
}

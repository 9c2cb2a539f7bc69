"use strict";
// The dialog with one molecule: 3D by a single shared viewer, the film from noise to molecule, all values.

const STYLES = {
  ball: { stick: { radius: 0.12 }, sphere: { scale: 0.24 } },
  stick: { stick: { radius: 0.14 } },
  space: { sphere: {} },
};
const FRAME_TIME = 90; // ms

class Stage {
  // The 3D viewer, made when it is first needed.
  constructor(element) {
    this.element = element;
    this.viewer = null;
    this.model = null; // the molecule
    this.pocket = null; // what is known of the protein around it
    this.protein = null; // and its model
    this.core = []; // atoms that the molecule has in common with its lead
    this.dark = matchMedia("(prefers-color-scheme: dark)");
    this.dark.addEventListener("change", () => this.viewer && this.viewer.setBackgroundColor(this.background()));
    element.addEventListener("keydown", (event) => this.onKey(event));
  }

  background() {
    return getComputedStyle(document.documentElement).getPropertyValue("--stage").trim();
  }

  // Whether 3D can be shown at all; browsers without WebGL cannot.
  async start() {
    if (this.viewer) return true;
    try {
      this.loaded ??= runPacked("stage");
      await this.loaded;
      if (this.viewer) return true;
      if (!document.createElement("canvas").getContext("webgl2") && !document.createElement("canvas").getContext("webgl")) return false;
      this.viewer = $3Dmol.createViewer(this.element, { backgroundColor: this.background(), antialias: true });
      $3Dmol.setSyncSurface(true); // the page's policy allows no workers
    } catch {
      this.viewer = null;
    }
    return Boolean(this.viewer);
  }

  // content: the text of a MOL block, or a frame of a film.
  show(content) {
    if (this.model) this.viewer.removeModel(this.model);
    if (typeof content === "string") this.model = this.viewer.addModel(hasBonds(content) ? content : toXyz(content), hasBonds(content) ? "sdf" : "xyz");
    else (this.model = this.viewer.addModel()).addAtoms(atomsOf(content));
    this.restyle();
  }

  // The protein around the molecule, or none (undefined).
  surround(pocket) {
    if (pocket === this.pocket) return;
    if (this.protein) this.viewer.removeModel(this.protein);
    this.pocket = pocket;
    this.protein = pocket ? this.viewer.addModel(pocket.xyz, "xyz") : null;
    this.restylePocket();
  }

  restylePocket() {
    this.viewer.removeAllSurfaces();
    if (!this.protein) return;
    const shown = byId("pocket").value;
    this.viewer.setStyle({ model: this.protein }, shown === "none" ? {} : { stick: { radius: 0.07, colorscheme: "whiteCarbon" } });
    if (shown === "surface") this.viewer.addSurface($3Dmol.SurfaceType.VDW, { opacity: 0.55, color: "white" }, { model: this.protein });
    this.restyle();
  }

  // All in view; quaternion: the rotation that turns the molecule's broadest side to the viewer.
  face(quaternion) {
    this.viewer.zoomTo({ model: this.model });
    this.viewer.zoom(Math.min(1, this.element.clientWidth / this.element.clientHeight) * (this.protein ? 0.8 : 1)); // it fits the height alone
    if (quaternion) this.viewer.setView([...this.viewer.getView().slice(0, 4), ...quaternion]);
    this.viewer.render();
  }

  restyle() {
    if (!this.model) return;
    this.viewer.setStyle({ model: this.model }, STYLES[byId("style").value]);
    const tone = getComputedStyle(document.documentElement).getPropertyValue("--core-3d").trim();
    if (this.core.length) this.viewer.setStyle({ model: this.model, index: this.core, elem: "C" }, colored(STYLES[byId("style").value], tone));
    this.viewer.removeAllLabels();
    if (byId("labels").checked) {
      const look = { fontSize: 12, backgroundOpacity: 0.55, backgroundColor: "black", fontColor: "white", inFront: true, alignment: "center" };
      for (const atom of this.viewer.selectedAtoms({ model: this.model })) this.viewer.addLabel(`${atom.elem}${atom.index + 1}`, { ...look, position: atom });
      const residues = this.pocket && byId("pocket").value !== "none" ? this.pocket.residues : [];
      for (const [name, x, y, z] of residues) this.viewer.addLabel(name, { ...look, backgroundOpacity: 0, fontColor: "gray", position: { x, y, z } });
    }
    this.viewer.render();
  }

  onKey(event) {
    const turns = { ArrowLeft: [-10, "y"], ArrowRight: [10, "y"], ArrowUp: [-10, "x"], ArrowDown: [10, "x"] };
    const zooms = { "+": 1.15, "=": 1.15, "-": 0.87 };
    if (!this.viewer || event.ctrlKey || event.metaKey || event.altKey) return;
    if (turns[event.key]) this.viewer.rotate(...turns[event.key]);
    else if (zooms[event.key]) this.viewer.zoom(zooms[event.key]);
    else return;
    event.preventDefault();
    event.stopPropagation();
  }
}

function colored(style, color) {
  return Object.fromEntries(Object.entries(style).map(([kind, look]) => [kind, { ...look, color }]));
}

function hasBonds(block) {
  const counts = block.split("\n", 4)[3];
  return counts.includes("V3000") || Number(counts.slice(0, 3)) < 2 || Number(counts.slice(3, 6)) > 0;
}

// A file of coordinates alone has no bonds; as XYZ, 3Dmol joins neighbours for the eye.
function toXyz(block) {
  const lines = block.split("\n");
  const number = Number(lines[3].slice(0, 3));
  const atoms = lines.slice(4, 4 + number).map((line) => line.slice(31, 34) + line.slice(0, 30));
  return [number, "", ...atoms].join("\n");
}

function atomsOf(frame) {
  const atoms = frame.e.split(" ").map((elem, k) => ({
    elem, index: k, serial: k, bonds: [], bondOrder: [], x: frame.x[3 * k] / 100, y: frame.x[3 * k + 1] / 100, z: frame.x[3 * k + 2] / 100,
  }));
  for (let k = 0; k < frame.b.length; k += 3) {
    const [i, j, order] = frame.b.slice(k, k + 3);
    atoms[i].bonds.push(j); atoms[i].bondOrder.push(order);
    atoms[j].bonds.push(i); atoms[j].bondOrder.push(order);
  }
  return atoms;
}

class Detail {
  constructor(data, gallery) {
    this.data = data;
    this.gallery = gallery;
    this.dialog = byId("detail");
    this.stage = new Stage(byId("stage"));
    this.index = -1;
    this.timer = 0;
    this.listen();
  }

  listen() {
    byId("close").addEventListener("click", () => this.dialog.close());
    this.dialog.addEventListener("close", () => this.onClose());
    this.dialog.addEventListener("click", (event) => event.target === this.dialog && this.dialog.close());
    byId("previous").addEventListener("click", () => this.move(-1));
    byId("next").addEventListener("click", () => this.move(1));
    byId("style").addEventListener("change", () => this.stage.viewer && this.stage.restyle());
    byId("pocket").addEventListener("change", () => this.stage.viewer && this.stage.restylePocket());
    byId("labels").addEventListener("change", () => this.stage.viewer && this.stage.restyle());
    byId("spin").addEventListener("change", () => this.stage.viewer && this.stage.viewer.spin(byId("spin").checked ? "y" : false));
    byId("reset").addEventListener("click", () => this.stage.viewer && this.stage.face(this.data.views[this.index]));
    byId("frame").addEventListener("input", () => { this.pause(); this.showFrame(); });
    byId("play").addEventListener("click", () => (this.timer ? this.pause() : this.play()));
    byId("detail-pick").addEventListener("change", (event) => this.gallery.pick([this.index], event.target.checked));
    byId("detail-export").addEventListener("click", () => this.gallery.save("SDF", [this.index]));
    this.dialog.addEventListener("keydown", (event) => {
      if (event.target.matches("input, select") || event.altKey || event.ctrlKey || event.metaKey) return;
      if (event.key === "ArrowLeft") this.move(-1);
      if (event.key === "ArrowRight") this.move(1);
    });
  }

  open(index) {
    this.show(index);
    if (!this.dialog.open) this.dialog.showModal();
    this.draw();
  }

  move(step) {
    const shown = this.gallery.shown;
    const next = shown[shown.indexOf(this.index) + step];
    if (next === undefined) return;
    this.show(next);
    this.draw();
  }

  onClose() {
    this.pause();
    if (this.stage.viewer) this.stage.viewer.spin(false);
    byId("spin").checked = false;
    const button = document.querySelector(`#m${this.index} .open`);
    if (button) button.focus();
  }

  // Everything but 3D.
  show(index) {
    this.pause();
    this.index = index;
    const card = byId(`m${index}`);
    const position = this.gallery.shown.indexOf(index);
    byId("detail-name").textContent = card.querySelector("h2").textContent;
    byId("detail-pic").replaceChildren(...[...card.querySelectorAll(".pic > *")].map((node) => node.cloneNode(true)));
    const lead = this.data.leads[index];
    byId("detail-lead").hidden = lead === null;
    if (lead !== null) byId("detail-lead").replaceChildren(...[...byId(`lead${lead}`).children].map((node) => node.cloneNode(true)));
    byId("detail-status").replaceChildren(...[...card.querySelectorAll(".status > :not(.film)")].map((node) => node.cloneNode(true)));
    byId("previous").disabled = position <= 0;
    byId("next").disabled = position === this.gallery.shown.length - 1;
    byId("detail-pick").checked = this.gallery.picked.has(index);
    byId("detail-pick").disabled = byId("detail-export").disabled = !this.gallery.usable(index);
    byId("detail-values").replaceChildren(...this.valueRows(index));
  }

  valueRows(index) {
    const rows = [];
    this.data.columns.forEach((column, k) => {
      const value = this.data.rows[index][k];
      if (value === null || value === "" || column.hidden) return;
      const row = document.createElement("tr");
      const head = document.createElement("th");
      head.scope = "row";
      head.textContent = column.label;
      const cell = document.createElement("td");
      cell.textContent = String(value);
      row.append(head, cell);
      rows.push(row);
    });
    return rows;
  }

  // 3D of the molecule shown, at the end of its film if it has one.
  async draw() {
    const index = this.index;
    const block = this.data.blocks[index];
    const film = this.data.films[index];
    const solid = this.data.views[index] !== null;
    if (solid) byId("stage").hidden = false; // so that the viewer finds out how large it is
    const works = solid && (await this.stage.start());
    if (index !== this.index || !this.dialog.open) return;
    byId("stage").hidden = !works;
    byId("no-stage").hidden = works;
    byId("no-stage").textContent = !solid ? "No 3D coordinates in this record." : "This browser shows no 3D (WebGL is switched off or missing).";
    byId("film").hidden = !works || !film;
    byId("pocket-label").hidden = this.data.pocket[index] === null;
    if (!works) return;
    byId("stage").setAttribute("aria-label", `3D model of ${byId("detail-name").textContent}: drag or arrow keys turn it, wheel or plus and minus zoom`);
    this.stage.viewer.resize();
    this.stage.core = this.data.cores[index];
    this.stage.surround(this.data.pockets[this.data.pocket[index]]);
    this.stage.show(film ? film[0] : block);
    this.stage.face(this.data.views[this.index]);
    if (film) {
      byId("frame").max = film.length - 1;
      byId("frame").value = film.length - 1;
      this.showFrame();
    } else {
      this.stage.viewer.render();
    }
  }

  showFrame() {
    const film = this.data.films[this.index];
    const frame = Number(byId("frame").value);
    const last = film.length - 1;
    const text = frame === last ? "molecule" : `frame ${frame + 1} of ${last + 1}`;
    byId("frame-number").textContent = text;
    byId("frame").setAttribute("aria-valuetext", text);
    this.stage.show(frame === last ? this.data.blocks[this.index] : film[frame]);
  }

  play() {
    const slider = byId("frame");
    if (slider.value === slider.max) slider.value = 0;
    byId("play").textContent = "❚❚ Pause";
    this.showFrame();
    this.timer = setInterval(() => {
      slider.value = Number(slider.value) + 1;
      this.showFrame();
      if (slider.value === slider.max) this.pause();
    }, FRAME_TIME);
  }

  pause() {
    clearInterval(this.timer);
    this.timer = 0;
    byId("play").textContent = "▶ Play";
  }
}

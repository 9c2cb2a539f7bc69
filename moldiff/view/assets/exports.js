"use strict";
// The chosen molecules as a file: records as they were read, tables, or a picture.

const COLUMNS = 4; // of the picture
const CELL = { width: 240, height: 192 };
const LARGEST = 16000; // pixels of a side of it that browsers draw

class Exporter {
  constructor(data, cards, chemistry) {
    Object.assign(this, { data, cards, chemistry });
    this.kinds = {
      SDF: ["sdf", (indices) => this.sdf(indices)],
      CSV: ["csv", (indices) => new Blob([this.csv(indices)], { type: "text/csv" })],
      SMILES: ["smi", (indices) => new Blob([this.smiles(indices)], { type: "chemical/x-daylight-smiles" })],
      PNG: ["png", (indices) => this.png(indices)],
    };
  }

  name(i) {
    return this.cards[i].querySelector("h2").textContent;
  }

  async save(kind, indices) {
    const [suffix, make] = this.kinds[kind];
    const link = document.createElement("a");
    link.href = URL.createObjectURL(await make(indices));
    link.download = `${this.data.name.replace(/(\.[a-z0-9]+)?(\.gz)?$/i, "")}-selected.${suffix}`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  }

  // The records as they were read, data fields included.
  async sdf(indices) {
    const parts = [];
    for (const i of indices) {
      const block = this.data.blocks[i] ?? (await this.chemistry.block(i, this.name(i)));
      if (block === null) continue;
      const fields = this.data.columns.map((column, k) => {
        const value = this.data.rows[i][k];
        return column.field && value !== null ? `>  <${column.key}>\n${value}\n\n` : "";
      });
      parts.push(block, ...fields, "$$$$\n");
    }
    return new Blob(parts, { type: "chemical/x-mdl-sdfile" });
  }

  csv(indices) {
    const columns = [...this.data.columns.keys()].filter((k) => !this.data.columns[k].hidden);
    // What a spreadsheet would take for a formula is text.
    const safe = (text, k) => (this.data.columns[k].kind === "text" && /^[=+@\t-]/.test(text) ? `'${text}` : text);
    const quoted = (text) => (/[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);
    const line = (row) => columns.map((k) => quoted(safe(String(row[k] ?? ""), k))).join(",");
    const head = columns.map((k) => quoted(this.data.columns[k].label)).join(",");
    return [head, ...indices.map((i) => line(this.data.rows[i]))].join("\n") + "\n";
  }

  smiles(indices) {
    const lines = indices.map((i) => {
      const smiles = this.cards[i].querySelector(".smiles code").textContent;
      return smiles && `${smiles} ${this.name(i).replace(/\s+/g, " ")}\n`;
    });
    return lines.join("");
  }

  async png(indices) {
    const canvas = document.createElement("canvas");
    const across = Math.min(indices.length, Math.max(COLUMNS, Math.ceil(Math.sqrt(indices.length))));
    const [width, height] = [across * CELL.width, Math.ceil(indices.length / across) * CELL.height];
    const sharp = Math.min(2, LARGEST / Math.max(width, height));
    canvas.width = width * sharp;
    canvas.height = height * sharp;
    const pen = canvas.getContext("2d");
    pen.scale(sharp, sharp);
    pen.fillStyle = "#ffffff";
    pen.fillRect(0, 0, width, height);
    pen.fillStyle = "#1b2430";
    pen.font = "12px sans-serif";
    pen.textAlign = "center";
    for (const [place, i] of indices.entries()) {
      const [x, y] = [(place % across) * CELL.width, Math.floor(place / across) * CELL.height];
      const svg = this.cards[i].querySelector("svg.mol");
      if (svg) pen.drawImage(await pictureOf(svg), x, y);
      pen.fillText(this.name(i).slice(0, 36), x + CELL.width / 2, y + CELL.height - 8, CELL.width - 12);
    }
    return new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
  }
}

// A drawing in the colours of the light page, by itself.
function pictureOf(svg) {
  const rules = [...document.styleSheets[0].cssRules].map((rule) => rule.cssText);
  const style = shape("style", {});
  style.textContent = rules.filter((text) => /^(:root|\.mol|\.c[0-9A-F]{6})/.test(text)).join("\n").replace("light dark", "light");
  const copy = svg.cloneNode(true);
  copy.setAttribute("xmlns", "http://www.w3.org/2000/svg");
  copy.setAttribute("width", CELL.width);
  copy.setAttribute("height", CELL.height - 22);
  copy.prepend(style);
  const image = new Image();
  image.src = `data:image/svg+xml,${encodeURIComponent(new XMLSerializer().serializeToString(copy))}`;
  return image.decode().then(() => image);
}

"use strict";
// RDKit within the page, unpacked when it is first needed: substructures, similarity, MOL blocks of SMILES.

const byId = (id) => document.getElementById(id);
const unpacked = (id) => Uint8Array.from(atob(byId(`${id}-packed`).textContent.trim()), (letter) => letter.charCodeAt(0));

// Run a compressed script of the page, whose hash the page's policy knows.
async function runPacked(id) {
  const stream = new Blob([unpacked(id)]).stream().pipeThrough(new DecompressionStream("gzip"));
  const script = document.createElement("script");
  script.textContent = await new Response(stream).text();
  document.head.append(script);
}

class Chemistry {
  constructor(cards) {
    this.drawings = cards.map((card) => card.querySelector("svg.mol"));
    this.ready = null;
  }

  load() {
    this.ready ??= this.start();
    return this.ready;
  }

  async start() {
    await runPacked("rdkit");
    const program = await WebAssembly.compile(fzstd.decompress(unpacked("wasm")));
    const silent = () => {};
    this.rdkit = await initRDKitModule({
      instantiateWasm: (imports, receive) => WebAssembly.instantiate(program, imports).then(receive),
      print: silent,
      printErr: silent,
    });
    // Hydrogens stay where a drawing shows them, so that its atoms keep their numbers.
    this.mols = this.drawings.map((svg) => svg && this.rdkit.get_mol(svg.dataset.smiles, '{"removeHs":false}'));
    this.prints = this.mols.map((mol) => mol && mol.get_morgan_fp_as_uint8array('{"radius":2,"nBits":2048}'));
  }

  // The matches of a SMARTS by molecule, each a list of atoms; null if it is none.
  async matches(smarts) {
    await this.load();
    const query = this.rdkit.get_qmol(smarts);
    if (!query) return null;
    const found = this.mols.map((mol) => {
      const text = mol ? mol.get_substruct_matches(query) : "{}";
      return text === "{}" ? [] : JSON.parse(text).map((match) => match.atoms);
    });
    query.delete();
    return found;
  }

  // Tanimoto similarities of all molecules to one; null where there is none.
  async similarities(index) {
    await this.load();
    const bits = (value) => { let count = 0; for (let rest = value; rest; rest &= rest - 1) count++; return count; };
    const one = this.prints[index];
    return this.prints.map((other) => {
      if (!one || !other) return null;
      let [both, any] = [0, 0];
      one.forEach((byte, k) => { both += bits(byte & other[k]); any += bits(byte | other[k]); });
      return any ? both / any : 0;
    });
  }

  // Put a ground behind the atoms of matches, or take it away.
  mark(index, matches) {
    const svg = this.drawings[index];
    if (!svg) return;
    svg.querySelectorAll(".hit").forEach((path) => path.remove());
    if (!matches.length) return;
    const places = svg.dataset.places.split(" ").map(Number);
    const at = (atom) => `${places[2 * atom]},${places[2 * atom + 1]}`;
    const bonds = (JSON.parse(this.mols[index].get_json()).molecules[0].bonds ?? []).map((bond) => bond.atoms);
    const lines = matches.flatMap((atoms) => {
      const inside = new Set(atoms);
      return [...atoms.map((atom) => `M${at(atom)}h.1`), ...bonds.filter((ends) => ends.every((end) => inside.has(end))).map(([i, j]) => `M${at(i)}L${at(j)}`)];
    });
    const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
    path.setAttribute("class", "hit");
    path.setAttribute("d", lines.join(""));
    svg.prepend(path);
  }

  // A MOL block in 2D of a record that came without coordinates.
  async block(index, name) {
    await this.load();
    const mol = this.mols[index];
    return mol && name.replace(/\s+/g, " ") + mol.get_molblock().replace(/^[^\n]*/, "");
  }
}

"""How molecules look in a notebook: a grid of drawings with their main numbers, and one molecule in 3D."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from importlib import resources
from typing import TYPE_CHECKING

from rdkit import Chem
from rdkit.Chem.Draw import rdMolDraw2D

from moldiff.molecules.descriptors import DESCRIPTORS
from moldiff.molecules.formats.sdf import sdf_text
from moldiff.molecules.molecule import Molecule, Status

if TYPE_CHECKING:
    from moldiff.sampling.sample import Sample

SHOWN = 24
"""Molecules of a grid at most."""

_NUMBERS = ("qed", "sa", "logp")
_WIDTH, _HEIGHT = 200, 150
_CELL = "display:inline-block;width:{width}px;margin:4px;padding:4px;border:1px solid #8884;border-radius:6px"
_SMALL = "font:12px sans-serif;overflow-wrap:anywhere"


def grid(samples: Sequence[Sample]) -> str:
    """The first molecules as HTML, each with its drawing, name, SMILES and numbers."""
    cells = "".join(f'<div style="{_CELL.format(width=_WIDTH)}">{_cell(one)}</div>' for one in samples[:SHOWN])
    more = len(samples) - SHOWN
    return f"<div>{cells}</div>" + (f'<div style="{_SMALL}">and {more} more</div>' if more > 0 else "")


def _cell(sample: Sample) -> str:
    lines = [sample.molecule.name, sample.smiles or f"{sample.status}: {sample.reason}", numbers(sample)]
    return drawing(sample.mol) + "".join(f'<div style="{_SMALL}">{escape(line)}</div>' for line in lines if line)


def numbers(sample: Sample) -> str:
    """The main numbers of a valid molecule in one line, with what relaxing it cost."""
    if sample.status is not Status.OK:
        return ""
    flat = Chem.RemoveHs(sample.mol)
    found = [f"{name} {DESCRIPTORS[name].of(flat):.2f}" for name in _NUMBERS]
    lost = sample.task.get("energy_lost")
    return ", ".join([*found, *([] if lost is None else [f"energy lost {float(lost):.1f} kcal/mol"])])


def drawing(mol: Chem.Mol) -> str:
    """A molecule in 2D as SVG on a light ground; "" where RDKit cannot draw it."""
    canvas = rdMolDraw2D.MolDraw2DSVG(_WIDTH, _HEIGHT)
    try:
        rdMolDraw2D.PrepareAndDrawMolecule(canvas, Chem.RemoveHs(mol, sanitize=False))
    except (RuntimeError, ValueError):
        return ""
    canvas.FinishDrawing()
    return str(canvas.GetDrawingText()).partition("?>")[2]


def solid(molecule: Molecule) -> str:
    """A molecule in 3D, to be turned with the mouse; nothing is loaded from elsewhere."""
    script = resources.files("moldiff").joinpath("view", "assets", "3Dmol-min.js").read_text(encoding="utf-8")
    block = sdf_text(molecule, {}).replace("\\", "\\\\").replace("`", "\\`").replace("<", "\\x3c")
    page = (
        '<body style="margin:0"><div id="m" style="width:100vw;height:100vh"></div>'
        f"<script>{script}</script><script>"
        'const viewer = $3Dmol.createViewer("m", {backgroundColor: "white"});'
        f'viewer.addModel(`{block}`, "sdf");'
        "viewer.setStyle({}, {stick: {radius: 0.12}, sphere: {scale: 0.22}}); viewer.zoomTo(); viewer.render();"
        "</script></body>"
    )
    return framed(page, "width:420px;height:320px")


def framed(page: str, size: str) -> str:
    """A page, of a `size` in CSS, within a notebook, which it cannot reach."""
    look = f"{size};border:1px solid #8884;border-radius:6px"
    return f'<iframe style="{look}" sandbox="allow-scripts allow-downloads" srcdoc="{escape(page)}"></iframe>'

"""How molecules look: drawings in 2D, and in a notebook a grid of them with main numbers, and one molecule in 3D."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from html import escape
from importlib import resources
from importlib.util import find_spec
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from rdkit import Chem, rdBase
from rdkit.Chem.Draw import rdMolDraw2D
from rdkit.Chem.rdDepictor import Compute2DCoords
from rdkit.Geometry import Point2D

from moldiff.molecules.convert import stereo_of_coordinates
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
    with rdBase.BlockLogs():
        try:
            canvas = canvas_of(flat(mol), _WIDTH, _HEIGHT, ground=True)
        except (RuntimeError, ValueError):
            return ""
    canvas.FinishDrawing()
    return str(canvas.GetDrawingText()).partition("?>")[2]


def canvas_of(drawn: Chem.Mol, width: int, height: int, *, ground: bool = False) -> rdMolDraw2D.MolDraw2DSVG:
    """The drawing of what `flat` made; raises ValueError or RuntimeError where RDKit cannot draw it."""
    canvas = rdMolDraw2D.MolDraw2DSVG(width, height, -1, -1, True)
    options: Any = canvas.drawOptions()  # RDKit's type stubs hold it for something else
    options.prepareMolsBeforeDrawing = False
    options.fixedBondLength = 34
    options.minFontSize = 10
    options.clearBackground = ground
    options.dummiesAreAttachments = True
    canvas.DrawMolecule(drawn)
    return canvas


def flat(mol: Chem.Mol, fault: int | None = None, core: Mapping[int, Point2D] = MappingProxyType({})) -> Chem.Mol:
    """A copy in 2D without the hydrogens, prepared as far as its valences allow; `_index` of an atom is its number."""
    drawn = Chem.Mol(mol)
    for atom in drawn.GetAtoms():
        atom.SetIntProp("_index", atom.GetIdx())
    if fault is not None and fault < drawn.GetNumAtoms():
        drawn.GetAtomWithIdx(fault).SetBoolProp("_fault", True)
    drawn.UpdatePropertyCache(strict=False)
    Chem.FastFindRings(drawn)
    if drawn.GetNumConformers() and drawn.GetConformer().Is3D():
        stereo_of_coordinates(drawn)
    if any(atom.GetAtomicNum() != 1 for atom in drawn.GetAtoms()):
        drawn = _without_hydrogens(drawn)
    drawn.RemoveAllConformers()
    rows = {atom.GetIntProp("_index"): atom.GetIdx() for atom in drawn.GetAtoms()}
    places = {rows[index]: place for index, place in core.items() if index in rows}
    Compute2DCoords(drawn, coordMap=places, canonOrient=not places)
    try:
        return rdMolDraw2D.PrepareMolForDrawing(drawn, addChiralHs=False)
    except (RuntimeError, ValueError):
        return rdMolDraw2D.PrepareMolForDrawing(drawn, kekulize=False, addChiralHs=False, wedgeBonds=False)


def _without_hydrogens(mol: Chem.Mol) -> Chem.Mol:
    """Hydrogens as numbers on their atoms: those that are there, none that RDKit would add to a broken graph."""
    are_explicit = any(atom.GetAtomicNum() == 1 for atom in mol.GetAtoms())
    for atom in mol.GetAtoms():
        atom.SetIntProp("_hydrogens", _hydrogens_on(atom) if are_explicit else atom.GetTotalNumHs())
    heavy = Chem.RemoveHs(mol, sanitize=False)
    for atom in heavy.GetAtoms():
        atom.SetNoImplicit(True)
        atom.SetNumExplicitHs(max(0, atom.GetIntProp("_hydrogens") - _hydrogens_on(atom)))
    heavy.UpdatePropertyCache(strict=False)
    return heavy


def _hydrogens_on(atom: Chem.Atom) -> int:
    return sum(other.GetAtomicNum() == 1 for other in atom.GetNeighbors())


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


@contextmanager
def bar(total: int) -> Iterator[Callable[[float], None] | None]:
    """A bar that is called with how many molecules are done, in a notebook with ipywidgets; None elsewhere."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console()
    if not console.is_jupyter or find_spec("ipywidgets") is None:
        yield None
        return
    with Progress(console=console, redirect_stdout=False, redirect_stderr=False) as progress:
        task = progress.add_task("sampling", total=total)
        yield lambda done: progress.update(task, completed=done)


def framed(page: str, size: str) -> str:
    """A page, of a `size` in CSS, within a notebook, which it cannot reach."""
    look = f"{size};border:1px solid #8884;border-radius:6px"
    return f'<iframe style="{look}" sandbox="allow-scripts allow-downloads" srcdoc="{escape(page)}"></iframe>'

"""2D drawings as compact inline SVG.

RDKit lays the molecule out and draws it; its SVG is then written anew from the coordinates, colours and atom labels
that it holds, a fifth as long and with nothing else in it. Colours are classes, which the page's style turns into
colours that can be seen on its light or dark ground.
"""

from __future__ import annotations

import re
from collections import defaultdict
from typing import Any
from xml.etree import ElementTree

from markupsafe import Markup
from rdkit import Chem, rdBase
from rdkit.Chem.Draw import rdMolDraw2D
from rdkit.Chem.rdDepictor import Compute2DCoords

from moldiff.molecules.convert import stereo_of_coordinates
from moldiff.view.depict import render

WIDTH, HEIGHT = 240, 170
_SVG = "{http://www.w3.org/2000/svg}"
_BOND_LENGTH = 34
_MAX_HEAVY = 250
"""Heavy atoms of a drawing at most: no one can read a larger one, and laying out takes minutes from 1,000 atoms on."""
_PATH = re.compile(r"[MLQCZ0-9.,\s-]+")
_COLOR = re.compile(r"#[0-9A-F]{6}")


def draw(mol: Chem.Mol, label: str, fault: int | None = None) -> Markup | None:
    """The drawing of a molecule as an `<svg>` element; None when it has no bonds to draw or RDKit cannot draw it.

    Args:
        mol: sanitised or not.
        label: what a screen reader says; any text.
        fault: index of an atom to put a ring around.
    """
    if (mol.GetNumAtoms() > 1 and mol.GetNumBonds() == 0) or mol.GetNumHeavyAtoms() > _MAX_HEAVY:
        return None
    with rdBase.BlockLogs():
        try:
            flat = _flat(mol, fault)
            canvas = rdMolDraw2D.MolDraw2DSVG(WIDTH, HEIGHT, -1, -1, True)
            options: Any = canvas.drawOptions()  # RDKit's type stubs hold it for something else
            options.prepareMolsBeforeDrawing = False
            options.fixedBondLength = _BOND_LENGTH
            options.minFontSize = 10
            options.clearBackground = False
            canvas.DrawMolecule(flat)
        except (RuntimeError, ValueError):  # RDKit's own errors, e.g. a graph that cannot be laid out
            return None
    rings = [canvas.GetDrawCoords(atom.GetIdx()) for atom in flat.GetAtoms() if atom.HasProp("_fault")]
    canvas.FinishDrawing()
    try:
        svg = ElementTree.fromstring(canvas.GetDrawingText().encode("latin-1", "replace"))
    except ElementTree.ParseError:  # a label in the record that is no XML
        return None
    return render(
        "molecule.svg",
        label=label,
        width=WIDTH,
        height=HEIGHT,
        rings=[(ring.x, ring.y) for ring in rings],
        paths=_paths(svg),
        texts=[_text(element) for element in svg.iter(f"{_SVG}text")],
    )


def _flat(mol: Chem.Mol, fault: int | None) -> Chem.Mol:
    """A copy in 2D without the hydrogens, prepared as far as its valences allow."""
    flat = Chem.Mol(mol)
    if fault is not None and fault < flat.GetNumAtoms():
        flat.GetAtomWithIdx(fault).SetBoolProp("_fault", True)
    flat.UpdatePropertyCache(strict=False)
    Chem.FastFindRings(flat)
    if flat.GetNumConformers() and flat.GetConformer().Is3D():
        stereo_of_coordinates(flat)
    if any(atom.GetAtomicNum() != 1 for atom in flat.GetAtoms()):
        flat = _without_hydrogens(flat)
    flat.RemoveAllConformers()
    Compute2DCoords(flat)
    try:
        return rdMolDraw2D.PrepareMolForDrawing(flat, addChiralHs=False)
    except (RuntimeError, ValueError):
        return rdMolDraw2D.PrepareMolForDrawing(flat, kekulize=False, addChiralHs=False, wedgeBonds=False)


def _without_hydrogens(mol: Chem.Mol) -> Chem.Mol:
    """Hydrogens as numbers on their atoms: those that are there, none that RDKit would add to a broken graph."""
    hydrogens = [atom for atom in mol.GetAtoms() if atom.GetAtomicNum() == 1]
    for atom in mol.GetAtoms():
        count = sum(other.GetAtomicNum() == 1 for other in atom.GetNeighbors()) if hydrogens else atom.GetTotalNumHs()
        atom.SetIntProp("_hydrogens", count)
    heavy = Chem.RemoveHs(mol, sanitize=False)
    for atom in heavy.GetAtoms():
        left = sum(other.GetAtomicNum() == 1 for other in atom.GetNeighbors())
        atom.SetNoImplicit(True)
        atom.SetNumExplicitHs(max(0, atom.GetIntProp("_hydrogens") - left))
    heavy.UpdatePropertyCache(strict=False)
    return heavy


def _paths(svg: ElementTree.Element) -> list[tuple[tuple[str, str], str]]:
    """Lines ("l") and areas ("a"), one path for each kind and colour."""
    paths: dict[tuple[str, str], str] = defaultdict(str)
    for path in svg.iter(f"{_SVG}path"):
        style, points = _style(path), path.get("d", "")
        is_line = style.get("fill", "none") == "none"
        if _PATH.fullmatch(points):
            kind = ("l", _color(style.get("stroke", ""))) if is_line else ("a", _color(style["fill"]))
            paths[kind] += re.sub(r"\s*([MLQCZ])\s*", r"\1", points).strip()
    return list(paths.items())


def _text(element: ElementTree.Element) -> dict[str, str | float]:
    """A label: its place, size, colour and content."""
    style = _style(element)
    return {
        "x": float(element.get("x", "0")),
        "y": float(element.get("y", "0")),
        "size": re.sub(r"[^0-9.]", "", style.get("font-size", "")),
        "color": _color(style.get("fill", "")),
        "content": "".join(element.itertext()),
    }


def _style(element: ElementTree.Element) -> dict[str, str]:
    pairs = (entry.partition(":") for entry in element.get("style", "").split(";"))
    return {key.strip(): value.strip() for key, _, value in pairs}


def _color(value: str) -> str:
    """The six digits of a colour; black for anything else."""
    return value[1:] if _COLOR.fullmatch(value) else "000000"

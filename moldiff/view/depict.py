"""How a record is shown: 2D drawings as compact inline SVG, coordinates for the 3D viewer, films.

RDKit's SVG is written anew from the coordinates, colours and atom labels that it holds, a fifth as long. Colours are
classes, which the page's style turns into colours that can be seen on its light or dark ground.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any
from xml.etree import ElementTree

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from rdkit import Chem, rdBase
from rdkit.Geometry import Point2D
from scipy.spatial.transform import Rotation

from moldiff.evaluation.molecule_set import is_placed
from moldiff.molecules.formats.reader import records
from moldiff.molecules.formats.record import Record
from moldiff.sampling.notebook import canvas_of, flat
from moldiff.sampling.sample import trajectory_path

WIDTH, HEIGHT = 240, 170
_SVG = "{http://www.w3.org/2000/svg}"
MAX_HEAVY = 250  # atoms of a drawing: no one can read a larger one, and laying out takes minutes from 1,000 on


_ENVIRONMENT = Environment(
    loader=PackageLoader("moldiff.view"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
# `tojson` escapes what could end a script element.
_JSON = {"ensure_ascii": False, "allow_nan": False, "separators": (",", ":"), "default": str}
_ENVIRONMENT.policies["json.dumps_kwargs"] = _JSON


def render(template: str, **values: Any) -> Markup:
    """A file of `templates/` with values put in, which are escaped unless they were rendered by one of them."""
    return Markup(_ENVIRONMENT.get_template(template).render(values))


def draw(
    mol: Chem.Mol, label: str, fault: int | None = None, core: Mapping[int, Point2D] = MappingProxyType({})
) -> Markup | None:
    """The drawing of a molecule as an `<svg>` element; None when it has no bonds to draw or RDKit cannot draw it.

    A screen reader says the label, which is any text; a ring is put around the atom `fault`; the atoms of `core`, by
    number, lie at these places and have a ground of their own. With it come a SMILES of what is drawn and the places of
    its atoms, by which the page searches and marks what it finds.
    """
    if (mol.GetNumAtoms() > 1 and mol.GetNumBonds() == 0) or mol.GetNumHeavyAtoms() > MAX_HEAVY:
        return None
    with rdBase.BlockLogs():
        try:
            drawn = flat(mol, fault, core)
            canvas = canvas_of(drawn, WIDTH, HEIGHT)
            smiles = str(Chem.MolToSmiles(drawn))
        except (RuntimeError, ValueError):  # RDKit's own errors, e.g. a graph that cannot be laid out
            return None
    places = [canvas.GetDrawCoords(k) for k in range(drawn.GetNumAtoms())]
    inside = {
        atom.GetIdx() for atom in drawn.GetAtoms() if atom.HasProp("_index") and atom.GetIntProp("_index") in core
    }
    ends = [(bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()) for bond in drawn.GetBonds()]
    order = drawn.GetPropsAsDict(True, True)["_smilesAtomOutputOrder"]
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
        smiles=smiles,
        places=" ".join(f"{places[k].x:.0f} {places[k].y:.0f}" for k in order),
        core=[(places[i], places[j]) for i, j in ends if {i, j} <= inside],
        rings=[places[atom.GetIdx()] for atom in drawn.GetAtoms() if atom.HasProp("_fault")],
        paths=_paths(svg),
        texts=[_text(element) for element in svg.iter(f"{_SVG}text")],
    )


def _paths(svg: ElementTree.Element) -> list[tuple[tuple[str, str], str]]:
    """Lines ("l") and areas ("a"), one path for each kind and colour."""
    paths: dict[tuple[str, str], str] = defaultdict(str)
    for path in svg.iter(f"{_SVG}path"):
        style, points = _style(path), path.get("d", "")
        is_line = style.get("fill", "none") == "none"
        if re.fullmatch(r"[MLQCZ0-9.,\s-]+", points):
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
    return value[1:] if re.fullmatch(r"#[0-9A-F]{6}", value) else "000000"


def molblock(record: Record) -> str | None:
    """The record's MOL block, wedges of a drawing included; None when it has no coordinates or could not be parsed."""
    if record.mol is None or not record.mol.GetNumConformers():
        return None
    mol = Chem.Mol(record.mol)
    large = max(mol.GetNumAtoms(), mol.GetNumBonds()) > 999
    written = partial(Chem.MolToMolBlock, mol, includeStereo=not is_placed(mol), forceV3000=large)
    with rdBase.BlockLogs():
        mol.UpdatePropertyCache(strict=False)
        try:
            return str(written())
        except Chem.KekulizeException:
            return str(written(kekulize=False))


def facing(record: Record) -> list[float] | None:
    """The quaternion (x, y, z, w) that turns the molecule's broadest side to the viewer; None = nothing in 3D."""
    if record.mol is None or not is_placed(record.mol):
        return None
    pos = record.mol.GetConformer().GetPositions()
    if len(pos) < 3 or not np.isfinite(pos).all():
        return [0.0, 0.0, 0.0, 1.0]
    axes = np.linalg.svd(pos - pos.mean(0), full_matrices=False)[2]
    axes[2] *= np.linalg.det(axes)  # a rotation, not a mirror
    return [round(float(number), 4) for number in Rotation.from_matrix(axes).as_quat()]


def films(path: str | Path, molecules: Sequence[Record]) -> dict[int, list[dict[str, Any]]]:
    """The films of the molecules that have one in the file of trajectories beside `path`, by index; found by name."""
    beside = trajectory_path(path)
    if not beside.is_file():
        return {}
    wanted = {record.name: index for index, record in enumerate(molecules)}
    found: dict[int, list[dict[str, Any]]] = {}
    for record in records(beside):
        index = wanted.get(record.name)
        if index is None or record.mol is None or not record.mol.GetNumConformers():
            continue
        if record.mol.HasProp("frame") and record.mol.GetProp("frame") == "0":
            found[index] = []
        found.setdefault(index, []).append(_frame(record.mol))
    return {index: film for index, film in found.items() if _ends_in(film[-1], molecules[index].mol)}


def _ends_in(last: Mapping[str, Any], mol: Chem.Mol | None) -> bool:
    """Whether a film leads to this molecule, and not to one of the same name that an earlier run has left behind."""
    if mol is None or not mol.GetNumConformers():
        return False
    frame = _frame(mol)
    return frame["e"] == last["e"] and np.allclose(frame["x"], last["x"], atol=2)


def _frame(mol: Chem.Mol) -> dict[str, Any]:
    """Symbols `e`, coordinates `x` in hundredths of an Å, and bonds `b` as flat triples (i, j, order)."""
    pos = np.nan_to_num(mol.GetConformer().GetPositions() * 100).round().astype(int)
    bonds: list[int] = []
    for bond in mol.GetBonds():
        bonds += [bond.GetBeginAtomIdx(), bond.GetEndAtomIdx(), max(1, int(bond.GetBondTypeAsDouble()))]
    return {"e": " ".join(atom.GetSymbol() for atom in mol.GetAtoms()), "x": pos.ravel().tolist(), "b": bonds}

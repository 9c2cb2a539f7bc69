"""Data fields of a record: names and text, with a remark on what cannot be taken as it stands.

The rules are the same for an SDF, a table and extended XYZ: of a field given more than once the last value that is
not empty counts, and one without a name is left out. Both are said of the record unless nothing is lost by them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

SMILES_NAMES = ("smiles", "canonical_smiles", "isomeric_smiles", "smi", "cansmiles", "isosmiles")
"""Names, as `plain` gives them, of a column or field that holds a SMILES."""

NAMELESS = "data field without a name, left out"

_HEADER = re.compile(r">[^<]*<(.*)>")
_SHOWN = 40


class Fields(NamedTuple):
    """Text by name, and what is odd about them, each remark once."""

    values: dict[str, str]
    remarks: tuple[str, ...] = ()


def plain(name: str) -> str:
    """A name in lower case, its words joined by underscores."""
    return re.sub(r"[\s_-]+", "_", name.lower())


def gathered(pairs: Iterable[tuple[str, str]]) -> Fields:
    """Fields in the order in which they are given."""
    values: dict[str, str] = {}
    remarks: dict[str, None] = {}
    for name, text in pairs:
        if not name:
            remarks |= {NAMELESS: None} if text.strip() else {}
            continue
        if name in values and not text.strip():
            continue
        if values.get(name, text) not in (text, ""):
            remarks[f"data field {name[:_SHOWN]} given twice, the last counts"] = None
        values[name] = text
    return Fields(values, tuple(remarks))


def sdf_fields(lines: Sequence[str]) -> Fields:
    """The data fields of an SDF record; a line of spaces ends a value like an empty one does.

    The name is what stands between the first `<` of the header and its last `>`, so that it may hold a `>` itself.

    Example:
        >>> sdf_fields(["> <a>b>", "7", "", "> 25 <gap> (MD-1)", "0.3"]).values
        {'a>b': '7', 'gap': '0.3'}
    """
    pairs: list[tuple[str, list[str]]] = []
    value: list[str] | None = None
    for line in lines:
        header = _HEADER.match(line)
        if header or (value is None and line.startswith(">")):
            value = []
            pairs.append((header[1] if header else "", value))
        elif not line.strip():
            value = None
        elif value is not None:
            value.append(line)
    return gathered((name, "\n".join(text)) for name, text in pairs)

"""Filters of medicinal chemists, each by one word: structural alerts, rules of thumb, and bounds such as `sa<4.5`."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from operator import ge, gt, le, lt
from typing import NamedTuple

from rdkit import Chem, rdBase
from rdkit.Chem import rdMolDescriptors

from moldiff.errors import MoldiffError
from moldiff.evaluation.metrics.druglike import first_alert
from moldiff.molecules import identity
from moldiff.molecules.descriptors import DESCRIPTORS, Descriptor
from moldiff.molecules.formats.record import Value
from moldiff.molecules.molecule import Molecule

_FORM = re.compile(r"\s*(\w+)\s*(?:(<=|>=|<|>)\s*(\S+?))?\s*")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_COMPARE: Mapping[str, Callable[[float, float], bool]] = {"<": lt, "<=": le, ">": gt, ">=": ge}

QUANTITIES: Mapping[str, Descriptor] = {
    **{name: DESCRIPTORS[name] for name in ("qed", "sa", "logp", "tpsa", "mw")},  # what is asked for most comes first
    **DESCRIPTORS,
    "fsp3": Descriptor(rdMolDescriptors.CalcFractionCSP3, "share of sp3 among the carbons"),
    "nh_oh": Descriptor(rdMolDescriptors.CalcNumLipinskiHBD, "hydrogens on N and O, Lipinski's donors"),
    "n_o": Descriptor(rdMolDescriptors.CalcNumLipinskiHBA, "atoms of N and O, Lipinski's acceptors"),
}
"""What can be compared with a number."""

CATALOGUES = {
    "pains": "no alert of PAINS (Baell and Holloway 2010)",
    "nibr": "no alert that Novartis marks EXCLUDE (Schuffenhauer et al. 2020)",
    "brenk": "no alert of Brenk et al. (2008)",
    "stable": "no group that falls apart or that nobody makes (metrics/unstable.tsv)",
    "hazard": "no group of the Chemical Weapons Convention's schedules or of common explosives (metrics/hazard.tsv)",
}
"""Lists of unwanted substructures."""


class Rule(NamedTuple):
    """Bounds that most good molecules keep."""

    bounds: Mapping[str, float]  # the largest value of each quantity
    forgiven: int  # how many of them may be broken
    definition: str  # with its source


RULES: Mapping[str, Rule] = {
    "lipinski": Rule(
        {"mw": 500, "logp": 5, "nh_oh": 5, "n_o": 10},
        1,
        "at most one of mw > 500, logp > 5, nh_oh > 5, n_o > 10 (Lipinski et al. 1997)",
    ),
    "veber": Rule({"rotatable_bonds": 10, "tpsa": 140}, 0, "rotatable_bonds <= 10, tpsa <= 140 (Veber et al. 2002)"),
    "ro3": Rule(
        {"mw": 300, "logp": 3, "donors": 3, "acceptors": 3, "rotatable_bonds": 3},
        0,
        "fragments: mw <= 300; logp, donors, acceptors, rotatable_bonds <= 3 (Congreve et al. 2003)",
    ),
}
"""Rules of thumb."""


@dataclass(frozen=True)
class Filter:
    """A catalogue, a rule, or the comparison of a quantity with a bound."""

    name: str
    sign: str = ""  # of a comparison
    bound: float = 0.0

    def __str__(self) -> str:
        return f"{self.name}{self.sign}{self.bound:g}" if self.sign else self.name

    @property
    def definition(self) -> str:
        """What a molecule that passes has."""
        words = CATALOGUES | {name: rule.definition for name, rule in RULES.items()}
        return words[self.name] if self.name in words else f"{self}: {QUANTITIES[self.name].meaning}"

    def judge(self, mol: Chem.Mol) -> tuple[bool, dict[str, Value]]:
        """Whether a valid molecule without stereo marks (`sa` sees them) passes, and the values it was decided on."""
        if self.name in CATALOGUES:
            alert = first_alert("UNSTABLE" if self.name == "stable" else self.name.upper(), mol)
            return alert is None, {self.name: alert or "none"}
        rule = RULES.get(self.name)
        with rdBase.BlockLogs():
            values = {name: QUANTITIES[name].of(mol) for name in ((self.name,) if rule is None else rule.bounds)}
        if rule is None:
            return _COMPARE[self.sign](values[self.name], self.bound), {**values}
        return sum(values[name] > bound for name, bound in rule.bounds.items()) <= rule.forgiven, {**values}


@dataclass(frozen=True)
class Substructure:
    """A part that a molecule has to have, or to lack."""

    word: str  # "has" or "lacks"
    smarts: str

    def __str__(self) -> str:
        return f"{self.word} {self.smarts}"

    @property
    def definition(self) -> str:
        """What a molecule that passes has."""
        return f"{'a' if self.word == 'has' else 'no'} match of {self.smarts}"

    def judge(self, mol: Chem.Mol) -> tuple[bool, dict[str, Value]]:
        """Whether a valid molecule passes."""
        pattern = _pattern(self.smarts)
        return (pattern is not None and mol.HasSubstructMatch(pattern)) == (self.word == "has"), {}


@cache
def _pattern(smarts: str) -> Chem.Mol | None:
    with rdBase.BlockLogs():
        return Chem.MolFromSmarts(smarts)


AnyFilter = Filter | Substructure


def parse_parts(has: Sequence[str], lacks: Sequence[str]) -> tuple[Substructure, ...]:
    """Parts that molecules have to have and to lack; what is no SMARTS is refused."""
    parts = [Substructure(word, text) for word, texts in (("has", has), ("lacks", lacks)) for text in texts]
    for part in parts:
        if not (isinstance(part.smarts, str) and part.smarts and _pattern(part.smarts)):
            raise MoldiffError(f"{part.word}: got {part.smarts!r}, expected a SMARTS")
    return tuple(dict.fromkeys(parts))


def parse_filters(texts: Sequence[str]) -> tuple[Filter, ...]:
    """Filters by their words; one that is named twice counts once, and a word that means nothing is refused.

    Example:
        >>> [str(one) for one in parse_filters(["PAINS", "sa < 4.50"])]
        ['pains', 'sa<4.5']
    """
    return tuple(dict.fromkeys(_parsed(text) for text in texts))


def _parsed(text: str) -> Filter:
    words = [*CATALOGUES, *RULES]
    expected = f"expected any of {', '.join(words)}, or a bound such as sa<4.5 on {', '.join(QUANTITIES)}"
    found = _FORM.fullmatch(text) if isinstance(text, str) else None
    if found is None:
        raise MoldiffError(f"filters: got {text!r}, {expected}")
    name, sign, number = found[1].lower(), found[2] or "", found[3] or ""
    if name in QUANTITIES:
        if not _NUMBER.fullmatch(number):
            raise MoldiffError(f"filters: got {text!r}, expected a bound on {name}, such as {name}<4.5")
        return Filter(name, sign, float(number))
    if name in words:
        if not sign:
            return Filter(name)
        raise MoldiffError(f"filters: got {text!r}, expected {name} alone, without a number")
    close = get_close_matches(name, [*words, *QUANTITIES], n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    raise MoldiffError(f"filters: got {text!r}; {hint}{expected}")


def apply_filters(molecule: Molecule, filters: Sequence[AnyFilter]) -> tuple[list[str], dict[str, Value]]:
    """The filters that a molecule fails, and the values that they decided on; what has no SMILES fails all."""
    try:
        mol = Chem.MolFromSmiles(identity.smiles(molecule))
    except MoldiffError:
        return [str(each) for each in filters], {}
    outcomes = {str(each): each.judge(mol) for each in filters}
    values = {name: value for _, found in outcomes.values() for name, value in found.items()}
    return [text for text, (passes, _) in outcomes.items() if not passes], values

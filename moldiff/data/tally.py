"""The account of a preparation: what was kept, and what was rejected for which reason."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.markup import escape
from rich.table import Table

from moldiff.results import InvalidMolecule

_SHOWN = 15


@dataclass(frozen=True)
class Rejected:
    """A record that is not in the set.

    Attributes:
        place: position in the whole source, from 0.
        number: position in its file, from 1.
        name: its title.
        problem: why it is not in the set.
        file: the file it comes from, "" where the source has no files.
    """

    place: int
    number: int
    name: str
    problem: InvalidMolecule
    file: str = ""


def reason_kind(reason: str) -> str:
    """A reason without what differs from record to record: numbers of atoms, quoted text, counts.

    Example:
        >>> reason_kind("atom 12 (N): bond orders sum to 4, expected 3")
        'N: bond orders sum to 4, expected 3'
        >>> reason_kind("truncated at record 17")
        'truncated at record #'
    """
    kind = re.sub(r"^atom \d+ \(([\w*]+)\)", r"\1", reason)
    if kind == reason:
        kind = re.sub(r"^(atoms?|bond) [\d-]+( and \d+)?: ", "", reason)
        kind = re.sub(r"'[^']*'", "'...'", kind)
        kind = re.sub(r"\b\d+(\.\d+)?\b( \d+\b)*", "#", kind)
    return kind[:100]


def reason_counts(rejected: Sequence[Rejected]) -> dict[str, int]:
    """How many records were rejected for each kind of reason, the commonest first."""
    return dict(Counter(reason_kind(record.problem.reason) for record in rejected).most_common())


def account_table(name: str, counts: Mapping[str, int | Mapping[str, int]]) -> Table:
    """Records seen = kept + rejected by reason, and what was done to those kept, as a table for a terminal.

    Args:
        name: name of the set.
        counts: `counts` of a prepared set's description.
    """
    table = Table(title=escape(f"{name}: records"), title_justify="left", show_header=False)
    table.add_column("", overflow="fold")
    table.add_column("", justify="right")
    reasons, notes = counts["rejected_by_reason"], counts["notes"]
    assert isinstance(reasons, Mapping)
    assert isinstance(notes, Mapping)
    table.add_row("seen", str(counts["seen"]))
    table.add_row("kept", str(counts["kept"]), end_section=not notes)
    for k, (note, count) in enumerate(notes.items(), start=1):
        table.add_row(escape(f"  {note}"), str(count), style="dim", end_section=k == len(notes))
    table.add_row("rejected", str(counts["rejected"]))
    for reason, count in list(reasons.items())[:_SHOWN]:
        table.add_row(escape(f"  {reason}"), str(count))
    if len(reasons) > _SHOWN:
        table.add_row("  other reasons, see rejected.csv", str(sum(list(reasons.values())[_SHOWN:])))
    return table

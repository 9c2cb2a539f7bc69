"""Whatever bytes a file holds: every record is kept or has a reason, or the file is refused in one line."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from own_files import own_files
from test_cases_read import ETHANOL
from test_files import EXTXYZ, MOL2
from test_io import V3000, water

from moldiff.errors import MoldiffError
from moldiff.molecules.formats.reader import read
from moldiff.molecules.molecule import Molecule

SEEDS = {
    ".sdf": water + V3000 + ETHANOL,
    ".mol2": MOL2,
    ".xyz": EXTXYZ + "3\nwater\nO 0 0 0.1\nH 0 0.76 -0.47\nH 0 -0.76 -0.47\n",
    ".smi": "CCO ethanol\nc1ccccc1 benzene\n[NH4+].[Cl-]\n",
    ".csv": 'id;smiles;gap\n1;CCO;0.5\n2;"C;C";x\n',
    ".tsv": "smiles\tname\nCCO\tNA\n",
}
EDITS = st.lists(
    st.tuples(st.integers(0, 2000), st.integers(0, 40), st.binary(max_size=6) | st.sampled_from([b"\n", b"$$$$\n"])),
    min_size=1,
    max_size=4,
)
SETTINGS = settings(deadline=None, max_examples=40, suppress_health_check=list(HealthCheck), derandomize=True)


def edited(text: str, edits: list[tuple[int, int, bytes]]) -> bytes:
    raw = text.encode()
    for place, length, new in edits:
        place %= len(raw) + 1
        raw = raw[:place] + new + raw[place + length :]
    return raw


def refusal_or(function: Callable[[], list[Any]]) -> list[Any] | str:
    """What the function gives, or the line in which it refuses the file."""
    try:
        return function()
    except MoldiffError as error:
        return str(error)


def check(suffix: str, raw: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"a{suffix}"
        path.write_bytes(raw)
        found = refusal_or(lambda: list(own_files(path, conformers="reject").records()))
        again = refusal_or(lambda: read(path).records)
    if isinstance(found, str) or isinstance(again, str):
        assert isinstance(found, str)
        assert "\n" not in found
        return
    assert [record.number for record in found] == [record.number for record in again]
    problems = [record.outcome for record in found if not isinstance(record.outcome, Molecule)]
    for problem in problems + [record.problem for record in again if record.problem is not None]:
        assert problem.reason
        assert "\n" not in problem.reason
        assert not problem.reason.startswith("unexpected"), problem.reason


FOUND = {
    "superscript that is a digit but no number": (".xyz", "²\nx\nO 0 0 0\n".encode()),
    "number too long to be converted": (".mol2", MOL2.replace("3 2 0 0 0", "9" * 5000).encode()),
    "valence that the bonds exceed": (".sdf", water.replace("O   0  0  0  0  0  0", "O   0  0  0  0  0999").encode()),
}
"""What broke a reader once; tests/fuzz/readers.py looks for more."""


@pytest.mark.parametrize("name", FOUND)
def test_what_broke_a_reader_once(name: str) -> None:
    check(*FOUND[name])


@pytest.mark.parametrize("suffix", SEEDS)
@SETTINGS
@given(edits=EDITS)
def test_damaged_files(suffix: str, edits: list[tuple[int, int, bytes]]) -> None:
    check(suffix, edited(SEEDS[suffix], edits))


@pytest.mark.parametrize("suffix", [*SEEDS, ".sdf.gz", ".parquet", ".txt"])
@SETTINGS
@given(raw=st.binary(max_size=200))
def test_files_of_anything(suffix: str, raw: bytes) -> None:
    check(suffix, raw)

"""Rejected records on disk: in the order of the source, and unchanged."""

from pathlib import Path

import pytest

from moldiff.data import writer
from moldiff.data.writer import Rejected, Rejects
from moldiff.molecules.molecule import InvalidMolecule, Status


def record(place: int, name: str = "x", atom: int | None = None) -> Rejected:
    problem = InvalidMolecule(Status.VALENCE, f'at "{place}"\tor\nso \xe9', atom)
    return Rejected(place, place + 1, name, problem, "a\tb.sdf")


@pytest.mark.parametrize("chunk", [2, 100])
def test_records_come_back_in_the_order_of_the_source(
    chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "_CHUNK", chunk)
    found = Rejects(tmp_path / "set")
    assert list(found) == []
    assert list(tmp_path.iterdir()) == []
    for place in (3, 7, 12):
        found.append(record(place, name="caf\ufffd", atom=place))
    assert list(found)[-1] == record(12, name="caf\ufffd", atom=12)
    found.append(record(5))  # of a class that turned out to be too rare
    assert [one.place for one in found] == [3, 5, 7, 12]
    assert list(found)[1] == record(5)
    assert list(found)[1].problem.status is Status.VALENCE
    assert len(found) == 4
    found.close()
    assert list(tmp_path.iterdir()) == []

"""Rejected records on disk: in the order of the source, and unchanged."""

from pathlib import Path

from moldiff.data.writer import Rejected, Rejects
from moldiff.molecules.molecule import Status


def record(place: int, name: str = "x", atom: int | None = None) -> Rejected:
    return Rejected(place, place + 1, name, "a\tb.sdf", Status.VALENCE, f'at "{place}"\tor\nso \xe9', atom)


def test_records_come_back_in_the_order_of_the_source(tmp_path: Path) -> None:
    found = Rejects(tmp_path / "set")
    assert list(found) == []
    assert list(tmp_path.iterdir()) == []
    for place in (3, 7, 12):
        found.append(record(place, name="caf\ufffd", atom=place))
    assert list(found)[-1] == record(12, name="caf\ufffd", atom=12)
    found.append(record(5))  # of a class that turned out to be too rare
    assert [one.place for one in found] == [3, 5, 7, 12]
    assert list(found)[1] == record(5)
    assert list(found)[1].status == Status.VALENCE
    assert len(found) == 4
    found.close()
    assert list(tmp_path.iterdir()) == []

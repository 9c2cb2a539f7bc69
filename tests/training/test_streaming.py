"""Files that grow record by record: whole at any moment, and continued behind their last whole record."""

from __future__ import annotations

import gzip
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from moldiff.errors import MoldiffError
from moldiff.molecules.formats.reader import read
from moldiff.molecules.formats.writer import Writer, finished_records
from moldiff.molecules.molecule import Molecule


def molecule(number: int) -> Molecule:
    """Methane, a little further away each time."""
    offsets = np.array([[[0.6, 0.6, 0.6], [-0.6, -0.6, 0.6], [-0.6, 0.6, -0.6], [0.6, -0.6, -0.6]]])
    pos = np.array([[0.1 * number, 0, 0]])
    nothing = np.zeros((0, 3), dtype=np.int64)
    return Molecule(pos, np.array([6]), np.array([0]), np.array([4]), offsets, nothing, name=f"methane {number}")


def fill(writer: Writer, numbers: range) -> None:
    for number in numbers:
        writer.write(molecule(number), {"index": number})


@pytest.mark.parametrize("suffix", [".sdf", ".xyz", ".smi"])
def test_every_record_is_in_the_file_at_once(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a{suffix}"
    with Writer(path, streamed=True) as writer:
        for number in range(5):
            fill(writer, range(number, number + 1))
            assert len(read(path).records) == number + 1
    with Writer(tmp_path / f"b{suffix}") as whole:
        fill(whole, range(5))
    assert path.read_bytes() == (tmp_path / f"b{suffix}").read_bytes()
    assert {entry.name for entry in tmp_path.iterdir()} == {path.name, f"b{suffix}"}


def test_an_older_file_stays_until_there_is_a_record(tmp_path: Path) -> None:
    path = tmp_path / "a.sdf"
    path.write_text("older")
    with suppress(RuntimeError), Writer(path, streamed=True):
        raise RuntimeError
    assert path.read_text() == "older"
    with suppress(RuntimeError), Writer(path, streamed=True) as writer:
        fill(writer, range(2))
        raise RuntimeError
    assert len(read(path).records) == 2
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.sdf"]


def test_a_compressed_file_grows_by_members(tmp_path: Path) -> None:
    path = tmp_path / "a.sdf.gz"
    with Writer(path, streamed=True) as writer:
        fill(writer, range(63))
        assert not path.exists()
        fill(writer, range(63, 130))
        assert len(read(path).records) == 128
        assert len(finished_records(path)) == 128
    with Writer(tmp_path / "a.sdf") as plain:
        fill(plain, range(130))
    assert gzip.decompress(path.read_bytes()) == (tmp_path / "a.sdf").read_bytes()
    assert len(finished_records(path)) == 128, "the last member is not full"


def test_a_table_has_the_columns_of_all_its_rows(tmp_path: Path) -> None:
    with Writer(tmp_path / "a.csv", streamed=True) as writer:
        writer.write(molecule(0), {"first": 1})
        writer.write(molecule(1), {"second": "x, y"})
    expected = 'smiles,name,first,second\nC,methane 0,1,\nC,methane 1,,"x, y"\n'
    assert (tmp_path / "a.csv").read_text() == expected


@pytest.mark.parametrize("name", ["a.sdf", "a.sdf.gz"])
def test_a_file_cut_anywhere_is_continued_to_the_same_bytes(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    with Writer(path, streamed=True) as writer:
        fill(writer, range(150))
    whole = path.read_bytes()
    random, continued = np.random.default_rng(0), 0
    for cut in [0, 1, len(whole) - 1, len(whole), *random.integers(len(whole), size=20).tolist()]:
        path.write_bytes(whole[:cut])
        try:
            found = finished_records(path)
        except MoldiffError:  # it holds no whole record, and is left as it is
            assert path.read_bytes() == whole[:cut]
            continue
        continued += 1
        assert [fields["index"] for fields in found.fields] == [str(number) for number in range(len(found))]
        assert found.size <= cut
        with Writer.behind(path, found.size, len(found)) as writer:
            fill(writer, range(len(found), 150))
        assert path.read_bytes() == whole
        assert writer.count == 150
    assert continued >= 2


def test_only_sdf_is_continued(tmp_path: Path) -> None:
    with pytest.raises(MoldiffError, match=r"a\.xyz: only \.sdf, \.sdf\.gz, \.csv, .* can be continued"):
        finished_records(tmp_path / "a.xyz")


def test_a_full_disk_leaves_whole_records(tmp_path: Path) -> None:
    path = tmp_path / "a.sdf"
    with Writer(path, streamed=True) as writer:
        fill(writer, range(3))
        raw = writer._raw

        class Full:
            """Takes the greater part of a record, then no more."""

            def write(self, data: bytes) -> int:
                if len(data) == 300:
                    raise OSError(28, "No space left on device")
                return raw.write(data[:-300])

            def __getattr__(self, name: str) -> object:
                return getattr(raw, name)

        writer._raw = Full()  # type: ignore[assignment]
        with pytest.raises(OSError, match="No space"):
            writer.write(molecule(3))
    assert len(read(path).records) == 3
    assert path.read_bytes().endswith(b"$$$$\n")

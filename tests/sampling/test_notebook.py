"""What a notebook and a REPL show of a run, and tables and files of its molecules."""

from __future__ import annotations

import re
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import pytest
from models import needs_weights
from rdkit import Chem
from read_back import findings

import moldiff
from moldiff.sampling.notebook import SHOWN
from moldiff.sampling.sample import Samples
from moldiff.view import view

pytestmark = [pytest.mark.usefixtures("one_thread"), needs_weights]


@pytest.fixture(scope="module")
def samples() -> Samples:
    return moldiff.load("qm9").sample(3, steps=15, workers=0, relax="mmff94s")


def text_of(html: str) -> str:
    """What a reader sees of HTML, whose elements have to be closed in order."""
    shown: list[str] = []
    opened: list[str] = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            opened.append(tag)

        def handle_endtag(self, tag: str) -> None:
            assert opened.pop() == tag

        def handle_data(self, data: str) -> None:
            shown.append(data)

    Reader(convert_charrefs=True).feed(html)
    assert not opened
    return " ".join(shown)


def test_everything_says_in_one_line_what_it_is(samples: Samples) -> None:
    generator = moldiff.load("qm9")
    lines = {
        repr(generator): r"<Generator qm9: weights [0-9a-f]{12}, 3\.5 million parameters, on \w+>",
        repr(generator.stream(7)): r"<SamplingRun of qm9: 0 of 7 kept, 0 drawn>",
        repr(samples): r"<Samples: 3 of 3 asked for, \d+ drawn>",
        repr(samples[0]): rf"<Sample qm9-0-\d+: {re.escape(samples[0].smiles or '')}, ok>",
        repr(moldiff.evaluate(samples)): r"<Report on 3 molecules: 100.00 % valid, [\d.]+ % unique, \d+ numbers>",
    }
    for line, expected in lines.items():
        assert re.fullmatch(expected, line)


def test_a_grid_has_a_drawing_and_the_numbers_of_each(samples: Samples) -> None:
    html = samples._repr_html_()
    assert html.count("<svg") == 3
    shown = text_of(html)
    for one in samples:
        assert one.smiles is not None
        assert one.smiles in shown
        assert f"energy lost {one.task['energy_lost']:.1f} kcal/mol" in shown
    assert len(re.findall(r"qed \d\.\d\d, sa \d\.\d\d, logp -?\d\.\d\d", shown)) == 3
    many = Samples([*samples] * 10, asked=30, drawn=30, results=(), complete=True)
    assert f"and {30 - SHOWN} more" in text_of(many._repr_html_())


def test_a_molecule_is_shown_in_3d_without_loading_anything(samples: Samples) -> None:
    html = samples[0]._repr_html_()
    (page,) = re.findall(r'srcdoc="([^"]*)"', html)
    assert "3Dmol" in page
    assert not re.search(r"src=|href=&quot;http|@import", page.replace("&quot;", '"').split("createViewer")[1])
    assert samples[0].smiles in text_of(html)


def test_a_file_and_a_table_hold_what_a_run_writes(samples: Samples, tmp_path: Path) -> None:
    assert samples.to_sdf(tmp_path / "a.sdf") == 3
    assert findings(tmp_path / "a.sdf") == []
    pytest.importorskip("pandas")
    table = samples.to_dataframe()
    assert table["SMILES"].tolist() == [one.smiles for one in samples]
    assert [Chem.MolToSmiles(Chem.RemoveHs(mol)) for mol in table["mol"]] == table["SMILES"].tolist()
    written = [mol.GetPropsAsDict() for mol in Chem.SDMolSupplier(str(tmp_path / "a.sdf"))]
    assert [one["energy_lost"] for one in written] == pytest.approx(table["energy_lost"].tolist())
    assert {"version", "model", "weights", "seed", "index", "relaxed"} <= set(table.columns)


def test_a_page_is_shown_where_no_file_is_asked_for(samples: Samples, tmp_path: Path) -> None:
    page = view(samples)
    assert re.fullmatch(r"<Page of \d\.\d MB; .*>", repr(page))
    (shown,) = re.findall(r'srcdoc="([^"]*)"', page._repr_html_())
    assert unescape(shown) == page
    assert all(one.molecule.name in page for one in samples)
    written = view(samples, tmp_path / "page.html")
    assert abs(len(written.read_text()) - len(page)) < 200

"""The HTML page: a card for every record, nothing that runs or loads but its own scripts, and films."""

import base64
import gzip
import hashlib
import json
import re
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lead_files import CORE, GROWN, OTHERS, grown_file
from models import MODEL_CONFIG, small_model
from rdkit import Chem

import moldiff
from moldiff.cli.main import main
from moldiff.data.dataset import MoleculeDataset
from moldiff.diffusion.pretrained import PretrainedModel, save_pretrained
from moldiff.diffusion.sampler import PowerSampler
from moldiff.errors import MoldiffError
from moldiff.evaluation.evaluate import evaluate
from moldiff.molecules.molecule import Molecule
from moldiff.sampling.batch import MAX_FRAMES
from moldiff.sampling.generator import Generator
from moldiff.sampling.sample import Samples, trajectory_path, write_trajectories
from moldiff.view import view
from moldiff.view.depict import draw
from moldiff.view.histograms import Distributions, plots

SAMPLE = resources.files("moldiff.example_data") / "sample"
HOSTILE = """<script>window.ran=1</script>"'&"""
BREAKOUT = """</script><img src=x onerror="window.ran=1"><!-- \u2028"""
UNREADABLE = "broken\n\n\n  2  1  0  0  0  0  0  0  0  0999 V2000\nM  END\n$$$$\n"


class Page(HTMLParser):
    """What a browser makes of the page: elements with their attributes, scripts and visible text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.text: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data: str) -> None:
        if self.cdata_elem == "script":
            self.scripts[-1] += data
        elif self.cdata_elem is None:
            self.text.append(data)

    def having(self, name: str) -> list[tuple[str, dict[str, str | None]]]:
        """Elements of a class."""
        return [(tag, attrs) for tag, attrs in self.elements if name in (attrs.get("class") or "").split()]

    @property
    def data(self) -> dict[str, Any]:
        return json.loads(self.scripts[0])

    @property
    def runs(self) -> list[str]:
        """The scripts that run, at once or once they are unpacked."""
        return self.scripts[4:] + [gzip.decompress(base64.b64decode(packed)).decode() for packed in self.scripts[1:3]]

    def column(self, label: str) -> list[Any]:
        """The cells of a column."""
        labels = [column["label"] for column in self.data["columns"]]
        return [row[labels.index(label)] for row in self.data["rows"]]


@pytest.fixture(scope="module")
def molecules() -> list[Molecule]:
    prepared = MoleculeDataset.load(str(SAMPLE))
    return [prepared.molecule(index) for index in range(40, 46)]


@pytest.fixture(scope="module")
def samples() -> Samples:
    checkpoint = PretrainedModel(small_model().float(), Path("nowhere"), "small", "0123456789ab", {})
    generator = Generator(checkpoint, torch.device("cpu"))
    return generator.sample(3, sampler=PowerSampler(num_steps=6), keep=(), trajectory=True)


@pytest.fixture
def mixed(tmp_path: Path, molecules: list[Molecule]) -> Path:
    """Four sound molecules, one with a hydrogen too many, and a record that cannot be read; hostile texts."""
    path = tmp_path / "mixed.sdf"
    crowded = replace(molecules[4], num_hydrogens=molecules[4].num_hydrogens + 1, name="crowded")
    with moldiff.molecules.formats.writer.Writer(path) as writer:
        writer.write(replace(molecules[0], name=HOSTILE, properties={}), {"note": BREAKOUT, "good": True})
        for molecule in (*molecules[1:4], crowded):
            writer.write(molecule, {"good": False})
    path.write_text(path.read_text(encoding="utf-8") + UNREADABLE, encoding="utf-8")
    return path


def test_a_card_for_every_record(mixed: Path, molecules: list[Molecule]) -> None:
    target = view(mixed)
    assert target == mixed.with_suffix(".html")
    page = Page(target)
    assert [attrs["id"] for _, attrs in page.having("card")] == [f"m{k}" for k in range(6)]
    titles = [attrs["title"] for tag, attrs in page.elements if tag == "h2" and "title" in attrs]
    assert titles == [HOSTILE, *(molecule.name for molecule in molecules[1:4]), "crowded", "broken"]
    assert page.column("status") == ["ok", "ok", "ok", "ok", "valence", "unreadable"]
    assert [len(page.having(name)) for name in ("ok", "bad", "mol")] == [4, 2, 5]
    assert "6 records, 1 of them unreadable" in page.text
    assert "bond orders sum to" in " ".join(page.text)
    assert "4/6" in page.text


def test_molecules_arrive_whole(mixed: Path, molecules: list[Molecule]) -> None:
    data = Page(view(mixed)).data
    assert data["blocks"][5] is None
    for block, molecule in zip(data["blocks"][1:4], molecules[1:4], strict=True):
        read = Chem.MolFromMolBlock(block, removeHs=False)
        again = moldiff.molecules.convert.from_rdkit(read)
        assert isinstance(again, Molecule)
        assert moldiff.molecules.identity.strict_key(again) == moldiff.molecules.identity.strict_key(molecule)
        np.testing.assert_allclose(read.GetConformer().GetPositions()[: len(molecule.pos)], molecule.pos, atol=1e-4)


def test_columns_have_the_kind_of_their_values(mixed: Path) -> None:
    page = Page(view(mixed))
    kinds = {column["label"]: column["kind"] for column in page.data["columns"]}
    assert {kinds["heavy atoms"], kinds["mu"]} == {"number"}
    assert {kinds["unique"], kinds["good"]} == {"bool"}
    assert {kinds["name"], kinds["SMILES"], kinds["note"]} == {"text"}


def test_texts_of_the_file_stay_texts(mixed: Path) -> None:
    target = view(mixed)
    page = Page(target)
    assert [tag for tag, _ in page.elements].count("script") == 4 + 6
    assert "img" not in {tag for tag, _ in page.elements}
    assert page.column("note")[0] == " ".join(BREAKOUT.split())
    assert page.column("name")[0] == HOSTILE
    assert not [name for _, attrs in page.elements for name in attrs if name.startswith("on")]


def test_nothing_is_loaded_from_elsewhere(mixed: Path) -> None:
    page = Page(view(mixed))
    places = {attrs[name] for _, attrs in page.elements for name in ("src", "href", "data", "action") if name in attrs}
    assert places <= {"#gallery", "data:,"}
    style = resources.files("moldiff.view").joinpath("assets", "page.css").read_text()
    assert "url(" not in style
    assert "@import" not in style
    policy = next(attrs["content"] for tag, attrs in page.elements if tag == "meta" and "http-equiv" in attrs) or ""
    assert policy.startswith("default-src 'none'")
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in page.runs]
    assert re.findall(r"'sha256-([^']+)'", policy) == hashes
    assert "'unsafe-eval'" not in policy
    assert not re.search(r"[^.\w]eval\(|new Function\(", "".join(page.runs[:-2]) + page.runs[-1])
    assert len(target_text(mixed)) < 3_000_000


def target_text(path: Path) -> str:
    return path.with_suffix(".html").read_text(encoding="utf-8")


def test_numbers_that_are_none_are_no_numbers(mixed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = evaluate(mixed)
    odd = [np.nan, np.inf, np.float32(0.5), np.int64(3), None, 1.5]
    rows = [{**row, "odd": value} for row, value in zip(report.rows, odd, strict=True)]
    monkeypatch.setattr("moldiff.view.page.evaluate", lambda *_, **__: replace(report, rows=rows))
    assert Page(view(mixed)).column("odd") == [None, None, 0.5, 3, None, 1.5]


def test_controls_are_labelled(mixed: Path) -> None:
    page = Page(view(mixed))
    for tag, attrs in page.elements:
        if tag == "svg":
            assert attrs["role"] == "img"
            assert attrs["aria-label"]
    picks = page.having("pick")
    assert len({attrs["aria-label"] for _, attrs in picks}) == 6
    assert ["disabled" in attrs for _, attrs in picks] == [False] * 5 + [True]
    assert ("html", {"lang": "en"}) in page.elements


@pytest.mark.parametrize("suffix", ["xyz", "smi"])
def test_files_without_bonds_or_coordinates(tmp_path: Path, molecules: list[Molecule], suffix: str) -> None:
    moldiff.write(tmp_path / f"a.{suffix}", molecules)
    page = Page(view(tmp_path / f"a.{suffix}"))
    assert len(page.having("card")) == 6
    assert len(page.having("mol")) == 6
    assert ("bonds looked up from distances" in page.text) == (suffix == "xyz")
    assert {block is None for block in page.data["blocks"]} == {suffix == "smi"}


def test_one_record_alone_unreadable(tmp_path: Path) -> None:
    (tmp_path / "a.sdf").write_text(UNREADABLE)
    page = Page(view(tmp_path / "a.sdf"))
    assert len(page.having("card")) == 1
    assert page.column("status") == ["unreadable"]


@pytest.mark.parametrize("kind", ["prepared", "file", "model"])
def test_reference_is_drawn_over_the_plots(tmp_path: Path, molecules: list[Molecule], kind: str) -> None:
    moldiff.write(tmp_path / "a.sdf", molecules)
    reference = {"prepared": str(SAMPLE), "file": tmp_path / "b.smi", "model": tmp_path / "model"}[kind]
    moldiff.write(tmp_path / "b.smi", molecules)
    save_pretrained(tmp_path / "model", small_model(), MODEL_CONFIG, dtype=torch.float32)
    (tmp_path / "model" / "novelty.safetensors").write_bytes((SAMPLE / "novelty.safetensors").read_bytes())
    page = Page(view(tmp_path / "a.sdf", reference=reference))
    assert [tag for tag, _ in page.elements].count("figcaption") == 3 + 1  # with that of a molecule chosen later
    assert sum(tag == "path" for tag, _ in page.having("ref")) == {"prepared": 3, "file": 2, "model": 2}[kind]
    assert page.column("novel") == [False] * 6
    assert not [tag for tag, _ in Page(view(tmp_path / "a.sdf")).having("ref")]


def test_wide_ranges_of_sizes_share_bars() -> None:
    wide = Distributions(sizes=Counter({1: 3, 200: 1}), elements=Counter("C"))
    assert plots(wide, None).count("<rect") == 51 + 1
    narrow = Distributions(sizes=Counter({8: 1, 9: 3}), elements=Counter("C"))
    assert plots(narrow, None).count("<rect") == 2 + 1
    assert "75.0%" in plots(narrow, narrow)
    assert plots(Distributions(), None) == ""


def test_molecules_from_python(tmp_path: Path, molecules: list[Molecule]) -> None:
    page = Page(view(molecules, tmp_path / "python.html"))
    assert page.column("name") == [molecule.name for molecule in molecules]
    assert page.data["films"] == {}
    assert f"{len(molecules)} molecules" in str(view(molecules))  # without a file, for a notebook


def core_places(page: Page) -> dict[str, np.ndarray]:
    """Where the atoms of the core lie in each drawing, one unit apart on average from their middle."""
    names = [attrs["title"] or "" for tag, attrs in page.elements if tag == "h2" and "title" in attrs]
    drawings = [attrs for _, attrs in page.having("mol")]
    core, found = Chem.MolFromSmiles(CORE.replace("*", "")), {}
    for name, attrs in zip(["lead"] * (len(drawings) - len(names)) + names, drawings, strict=True):
        mol = Chem.MolFromSmiles(attrs["data-smiles"] or "")
        places = np.array((attrs["data-places"] or "").split(), dtype=float).reshape(-1, 2)
        assert len(places) == mol.GetNumAtoms()
        part = places[list(mol.GetSubstructMatch(core))]
        part = part - part.mean(0)
        found[name] = part / np.linalg.norm(part, axis=1).mean()
    return found


@pytest.mark.parametrize("known", [True, False])
def test_a_kept_core_lies_the_same_way_in_all_drawings(tmp_path: Path, known: bool) -> None:
    path = grown_file(tmp_path / "a.sdf")
    if not known:  # a file that is there no more
        path.write_text(path.read_text().replace(json.dumps({"name": "grow", "core": CORE}), '{"core": "/no.sdf"}'))
    page = Page(view(path))
    places = core_places(page)
    assert list(places) == ["lead"] * known + list(GROWN)
    for name in GROWN:
        np.testing.assert_allclose(places[name], places["amide"], atol=0.06)
    if known:
        np.testing.assert_allclose(places["lead"], places["amide"], atol=0.06)
    assert len(page.having("core")) == len(GROWN)
    assert page.data["leads"] == [0 if known else None] * len(GROWN)
    block = Chem.MolFromMolBlock(page.data["blocks"][1], removeHs=False)
    assert "".join(sorted(block.GetAtomWithIdx(k).GetSymbol() for k in page.data["cores"][1])) == "C" * 10 + "N"


def test_a_lead_of_ones_own_colours_what_is_common(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = grown_file(tmp_path / "a.sdf", {**GROWN, **OTHERS}, core=None)
    assert Page(view(path)).data["leads"] == [None] * 9
    assert main(["view", f"input={path}", "lead='CNCCc1c[nH]c2ccccc12'"]) == 0
    page = Page(path.with_suffix(".html"))
    assert page.data["leads"] == [0] * 9
    assert [len(core) for core in page.data["cores"][:3]] == [13, 11, 11]
    assert page.data["cores"][7] == []  # caffeine
    assert main(["view", f"input={path}", "lead=nothing.sdf"]) == 2
    assert "nothing.sdf" in capsys.readouterr().err


@pytest.mark.parametrize("task", ["[]", "{", '{"core": 3}', '{"of": "SECRET", "of_sha256": "0123456789abcdef"}'])
def test_a_record_cannot_name_a_file_to_be_shown(tmp_path: Path, task: str) -> None:
    secret = grown_file(tmp_path / "secret.sdf", OTHERS, core=None)
    path = grown_file(tmp_path / "a.sdf", OTHERS, core=None)
    asked = task.replace("SECRET", str(secret))
    path.write_text(
        path.read_text().replace(
            "$$$$", f">  <task>\n{asked}\n\n>  <kept>\n999 -1 x {'9' * 5000}\n\n>  <kept_from>\n1 2 3 4\n\n$$$$"
        )
    )
    page = Page(view(path))
    assert page.data["leads"] == [None] * 3
    assert page.column("status") == ["ok"] * 3


def test_each_kind_of_molecule_has_its_numbers(tmp_path: Path, mixed: Path) -> None:
    drugs = Page(view(grown_file(tmp_path / "a.sdf", OTHERS, core=None)))
    shown = " ".join(drugs.text)
    assert "QED" in shown
    assert "logP" in shown
    np.testing.assert_allclose(drugs.column("QED"), [0.5501, 0.5385, 0.8216], atol=1e-3)
    assert not [text for text in drugs.text if text in ("P1 stable", "not P1 stable", "stable (P1)")]
    small = Page(view(mixed))
    assert "stable (P1)" in small.text
    assert "QED" not in [column["label"] for column in small.data["columns"]]


def test_facts_are_neutral_and_only_warnings_are_coloured(tmp_path: Path) -> None:
    path = grown_file(tmp_path / "a.sdf", OTHERS, core=None)
    path.write_text(path.read_text().replace("$$$$", ">  <confidence>\n0.5\n\n>  <hazard>\nphosgene\n\n$$$$"))
    (tmp_path / "known.smi").write_text(OTHERS["aspirin"])
    page = Page(view(path, reference=tmp_path / "known.smi"))
    facts = re.findall(r"<li( class=\"alert\")?>(.*?)</li>", target_text(path))
    assert {text for kind, text in facts if kind} == {"hazard: phosgene"}
    assert {"not novel", "QED <b>0.55</b>"} <= {text for kind, text in facts if not kind}
    assert page.column("confidence") == ["0.5"] * 3  # a number of the file, by which the page sorts
    assert next(column for column in page.data["columns"] if column["label"] == "confidence")["kind"] == "number"


def test_several_files_side_by_side(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    grown_file(Path("a.sdf"))
    grown_file(Path("b.sdf"), OTHERS, core=None)
    assert main(["view", "input=[a.sdf,b.sdf]"]) == 0
    page = Page(tmp_path / "a_and_1_more.html")
    assert page.column("file") == ["a.sdf"] * 6 + ["b.sdf"] * 3
    assert page.column("record") == [1, 2, 3, 4, 5, 6, 1, 2, 3]
    assert page.data["file"] == [0] * 6 + [1] * 3
    assert page.data["leads"] == [0] * 6 + [None] * 3
    assert "100.00 % 3/3" in page.text  # a column for each file
    Path("other").mkdir()
    grown_file(Path("other/a.sdf"), OTHERS, core=None)
    again = Page(view(["a.sdf", "other/a.sdf"], "both.html"))
    assert again.data["files"] == ["a.sdf", "other/a.sdf"]
    assert main(["view", "input=[a.sdf,nothing.sdf]"]) == 2
    assert "nothing.sdf: no such file" in capsys.readouterr().err
    assert main(["evaluate", "input=[a.sdf,b.sdf]", "metrics=[]"]) == 0


def test_impossible_pages(tmp_path: Path, mixed: Path) -> None:
    with pytest.raises(MoldiffError, match="expected a name that ends in"):
        view(mixed, tmp_path / "page.pdf")
    with pytest.raises(MoldiffError, match="does not exist"):
        view(mixed, tmp_path / "nowhere" / "page.html")


def test_drawings_show_the_hydrogens_that_are_there() -> None:
    methyl = Chem.AddHs(Chem.MolFromSmiles("C"))
    broken = Chem.RWMol(methyl)
    broken.RemoveAtom(4)
    labels = [re.findall(r"<text[^>]*>(\w+)</text>", draw(mol, "") or "") for mol in (methyl, broken)]
    assert ["".join(label) for label in labels] == ["CH4", "CH3"]
    amine = draw(Chem.AddHs(Chem.MolFromSmiles("C1CN1")), "", fault=2) or ""
    assert re.findall(r">(\w+)</text>", amine) == ["N", "H"] or re.findall(r">(\w+)</text>", amine) == ["H", "N"]
    assert amine.count("<circle") == 1


def test_drawings_hold_no_markup_of_the_file() -> None:
    mol = Chem.MolFromSmiles("CCO")
    mol.GetAtomWithIdx(2).SetProp("_displayLabel", "<b onload=x>&</b>")
    mol.GetAtomWithIdx(0).SetProp("atomNote", "</svg><script>")
    drawn = draw(mol, '"><script>')
    assert drawn is None or not re.findall(r"<(?!/?(svg|path|text|circle)\b)", drawn)


def test_trajectory_leads_to_the_molecule_and_changes_nothing(samples: Samples) -> None:
    checkpoint = PretrainedModel(small_model().float(), Path("nowhere"), "small", "0123456789ab", {})
    generator = Generator(checkpoint, torch.device("cpu"))
    plain = generator.sample(3, sampler=PowerSampler(num_steps=6), keep=())
    for one, other in zip(samples, plain, strict=True):
        assert other.trajectory is None
        np.testing.assert_array_equal(one.molecule.pos, other.molecule.pos)
        assert one.trajectory is not None
        assert len(one.trajectory) == 6 + 2 * one.restarts  # each of which takes 0.4 of the calls
        assert {frame.num_heavy_atoms for frame in one.trajectory} == {one.molecule.num_heavy_atoms}
    long = generator.sample(
        1, sampler=PowerSampler(num_steps=2 * MAX_FRAMES + 1), keep=(), decode="raw", trajectory=True
    )
    assert long[0].trajectory is not None
    assert len(long[0].trajectory) == 34


def test_films_are_found_by_name_and_end_in_their_molecule(tmp_path: Path, samples: Samples) -> None:
    page = Page(view(samples, tmp_path / "a.html"))
    assert sorted(page.data["films"]) == ["0", "1", "2"]
    assert len(page.having("film")) == 3
    film = page.data["films"]["1"]
    assert len(film) == 7 + 2 * samples[1].restarts
    block = Chem.MolFromMolBlock(page.data["blocks"][1], removeHs=False, sanitize=False)
    np.testing.assert_allclose(np.array(film[-1]["x"]) / 100, block.GetConformer().GetPositions().ravel(), atol=0.006)
    assert film[-1]["e"].split() == [atom.GetSymbol() for atom in block.GetAtoms()]


def test_a_film_of_another_run_is_not_shown(tmp_path: Path, samples: Samples) -> None:
    path = tmp_path / "a.sdf"
    write_trajectories(trajectory_path(path), samples)
    moved = [replace(sample.molecule, pos=sample.molecule.pos + 1.0) for sample in samples]
    moldiff.write(path, [moved[0], samples[1], moved[2]])
    assert list(Page(view(path)).data["films"]) == ["1"]


def test_from_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    save_pretrained(tmp_path / "tiny", small_model(), MODEL_CONFIG, dtype=torch.float32)
    assert main(["sample", "model=tiny", "n=2", "steps=3", "keep=[]", "trajectory=true", "out=a.sdf.gz"]) == 0
    assert {path.name for path in tmp_path.glob("a.*")} == {"a.sdf.gz", "a.trajectory.sdf.gz"}
    frames = moldiff.read("a.trajectory.sdf.gz")
    assert [record.mol and record.mol.GetProp("frame") for record in frames.records] == list("01230123")
    assert main(["view", "input=a.sdf.gz", "metrics=[p3]"]) == 0
    assert "page in a.html" in capsys.readouterr().out
    assert sorted(Page(tmp_path / "a.html").data["films"]) == ["0", "1"]

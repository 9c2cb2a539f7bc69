"""What is left out of a run: the lead itself, other structures, and what lacks or has a part; read back by RDKit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from models import needs_weights
from rdkit import Chem, DataStructs
from rdkit.Chem import rdFingerprintGenerator
from read_back import findings

import moldiff
from moldiff.cli.main import main
from moldiff.errors import MoldiffError
from moldiff.tasks import Analogues, Replace

pytestmark = [pytest.mark.usefixtures("one_thread"), needs_weights]

LEAD = "CC(C)CO"


def plain(path: Path) -> list[str]:
    """Canonical SMILES without stereo of a file's records."""
    return [Chem.MolToSmiles(mol, isomericSmiles=False) for mol in Chem.SDMolSupplier(str(path))]


def sample(tmp_path: Path, *options: str, code: int = 0) -> Path:
    out = tmp_path / "out.sdf"
    assert main(["sample", "steps=15", "workers=0", f"out={out}", "overwrite=true", *options]) == code
    return out


@pytest.mark.parametrize("task", [f"task=analogues of={LEAD} noise=0.3", f"task=replace core={LEAD} remove=[0]"])
def test_the_lead_itself_is_left_out_and_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str], task: str) -> None:
    options = [text.replace(LEAD, f'"{LEAD}"') for text in task.split()]
    out = sample(tmp_path, "n=3", *options)
    assert LEAD not in plain(out)
    assert findings(out) == []
    assert "rejected: the lead itself" in capsys.readouterr().out
    assert LEAD in plain(sample(tmp_path, "n=3", *options, "exclude=[]"))
    assert LEAD in plain(sample(tmp_path, "n=3", *options, "keep=[]"))


def test_where_all_is_the_lead_a_line_says_what_draws_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["task=replace", 'core="CC(=O)NC"', 'remove="C(=O)"', "n=1", "max_draws=8"]
    assert not sample(tmp_path, *options, code=2).exists()
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.endswith("8 the lead itself; other new_atoms, or more noise, draw others, and exclude=[] lets it in")
    assert len(plain(sample(tmp_path, *options, "new_atoms=1..3"))) == 1


def test_structures_are_excluded_by_smiles_and_file(tmp_path: Path) -> None:
    every = plain(sample(tmp_path, "n=6", "size=4"))
    (tmp_path / "known.smi").write_text(f"{every[1]}\n{every[2]}\n")
    out = sample(tmp_path, "n=6", "size=4", f'exclude=["{every[0]}",{tmp_path / "known.smi"}]')
    assert not set(every[:3]) & set(plain(out))


def test_parts_are_demanded_and_refused(tmp_path: Path) -> None:
    out = sample(tmp_path, "n=4", "size=5", 'has=["[OX2H]"]', 'lacks=["[#7]","*#*"]', "max_draws=400")
    for smiles in plain(out):
        mol = Chem.MolFromSmiles(smiles)
        assert mol.HasSubstructMatch(Chem.MolFromSmarts("[OX2H]"))
        assert not mol.HasSubstructMatch(Chem.MolFromSmarts("[#7]"))
        assert not mol.HasSubstructMatch(Chem.MolFromSmarts("*#*"))


def test_similarity_to_the_lead_is_bounded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = sample(tmp_path, "n=4", "task=analogues", f'of="{LEAD}"', "noise=0.5", "similarity=0.2..0.6")
    generator = rdFingerprintGenerator.GetMorganGenerator(radius=2, fpSize=2048)
    lead = generator.GetFingerprint(Chem.MolFromSmiles(LEAD))
    for mol in Chem.SDMolSupplier(str(out)):
        found = DataStructs.TanimotoSimilarity(lead, generator.GetFingerprint(mol))
        assert 0.2 <= found <= 0.6
        assert float(mol.GetProp("similarity")) == pytest.approx(found, abs=1e-3)
    assert "rejected: similarity" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "noise"),
    [("", "0.6"), ("similarity=0.4..0.84", "0.2"), ("similarity=0.2..0.5", "0.3"), ("noise=0.5", "0.5")],
)
def test_the_noise_is_what_the_similarity_needs(tmp_path: Path, options: str, noise: str) -> None:
    out = sample(tmp_path, "n=1", "task=analogues", f'of="{LEAD}"', *options.split())
    (mol,) = Chem.SDMolSupplier(str(out))
    assert mol.GetProp("noise") == noise
    assert json.loads(mol.GetProp("task"))["noise"] == float(noise)


def test_from_python_leads_are_molecules() -> None:
    samples = moldiff.load("qm9").sample(2, task=Analogues(of=LEAD, noise=0.3), steps=10, workers=0)
    again = moldiff.load("qm9").sample(
        2, task=Analogues(of=LEAD, noise=0.3), steps=10, workers=0, exclude=["lead", *samples.mols]
    )
    assert not {one.smiles for one in samples} & {one.smiles for one in again}
    replaced = moldiff.load("qm9").sample(2, task=Replace(core=LEAD, remove=[0]), steps=10, workers=0)
    assert all(one.verdict.canonical != LEAD for one in replaced)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"similarity": "0.9..0.4"}, "similarity: got '0.9..0.4', expected the least and the largest, from 0 to 1"),
        ({"similarity": "high"}, "similarity: got 'high', expected the least"),
        ({"similarity": (0.4, 0.9)}, "similarity: got .* with nothing to be similar to, expected a task"),
        ({"has": ["C(("]}, r"has: got 'C\(\(', expected a SMARTS"),
        ({"lacks": [""]}, "lacks: got '', expected a SMARTS"),
        ({"exclude": ["nothing.sdf"]}, "nothing.sdf: no such file"),
        ({"exclude": ["C1CC"]}, "exclude: "),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(options: dict[str, object], message: str) -> None:
    with pytest.raises(MoldiffError, match=message) as error:
        moldiff.load("qm9").stream(2, **options)
    assert "\n" not in str(error.value)

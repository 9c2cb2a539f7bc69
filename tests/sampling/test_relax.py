"""`relax=`: what the files hold, read by RDKit alone."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from models import needs_weights
from rdkit import Chem
from rdkit.Chem import rdForceFieldHelpers
from read_back import findings

import moldiff
from moldiff.cli.main import main
from moldiff.errors import MoldiffError
from moldiff.evaluation.metrics import relaxation
from moldiff.evaluation.metrics.relaxation import Relaxed
from moldiff.sampling import postprocess as relax_module
from moldiff.tasks import Bonds

pytestmark = [pytest.mark.usefixtures("one_thread"), needs_weights]


def records(path: Path) -> list[Chem.Mol]:
    return list(Chem.SDMolSupplier(str(path), removeHs=False))


def energy_and_force(mol: Chem.Mol) -> tuple[float, np.ndarray]:
    """Energy (kcal/mol) and the length of the gradient on each atom [a] (kcal/mol/Å)."""
    properties = rdForceFieldHelpers.MMFFGetMoleculeProperties(mol, mmffVariant="MMFF94s")
    field = rdForceFieldHelpers.MMFFGetMoleculeForceField(mol, properties)
    return field.CalcEnergy(), np.linalg.norm(np.reshape(field.CalcGrad(), (-1, 3)), axis=1)


def sample(tmp_path: Path, *options: str) -> Path:
    out = tmp_path / "out.sdf"
    assert main(["sample", "model=qm9", "steps=20", "workers=0", f"out={out}", *options]) == 0
    return out


def test_molecules_lie_at_a_minimum_and_say_what_they_lost(tmp_path: Path) -> None:
    out = sample(tmp_path, "n=8", "relax=mmff94s", "unrelaxed=true")
    assert findings(out) == []
    after, before = records(out), records(tmp_path / "out.unrelaxed.sdf")
    assert len(after) == len(before) == 8
    for relaxed, drawn in zip(after, before, strict=True):
        assert relaxed.GetProp("relaxed") == "ok"
        assert relaxed.GetProp("relax") == "mmff94s"
        assert not drawn.HasProp("relaxed")
        (low, force), (high, _) = energy_and_force(relaxed), energy_and_force(drawn)
        assert force.max() < 0.5  # the file has four digits
        lost = float(relaxed.GetProp("energy_lost"))
        assert lost == pytest.approx(high - low, abs=0.2)
        assert float(relaxed.GetProp("strain")) == pytest.approx(lost / int(relaxed.GetProp("size")), abs=1e-3)
        assert Chem.MolToSmiles(relaxed) == Chem.MolToSmiles(drawn)
        moved = np.square(relaxed.GetConformer().GetPositions() - drawn.GetConformer().GetPositions()).sum(axis=1)
        assert np.sqrt(moved.mean()) == pytest.approx(float(relaxed.GetProp("relax_rmsd")), abs=1e-3)  # it stays there


def test_the_same_molecules_are_drawn_as_without(tmp_path: Path) -> None:
    drawn = [record.GetConformer().GetPositions() for record in records(sample(tmp_path, "n=4"))]
    sample(tmp_path, "n=4", "relax=mmff94s", "unrelaxed=true", "overwrite=true")
    for pos, record in zip(drawn, records(tmp_path / "out.unrelaxed.sdf"), strict=True):
        np.testing.assert_array_equal(pos, record.GetConformer().GetPositions())


def test_kept_atoms_stay_where_they_are(tmp_path: Path) -> None:
    out = sample(tmp_path, "n=3", "task=grow", "core=data/ligands/histamine.sdf", "new_atoms=1", "relax=mmff94s")
    (core,) = records(Path("data/ligands/histamine.sdf"))
    for record in records(out):
        kept, source = ([int(number) for number in record.GetProp(name).split()] for name in ("kept", "kept_from"))
        pos = record.GetConformer().GetPositions()
        np.testing.assert_allclose(pos[kept], core.GetConformer().GetPositions()[source], atol=1e-4)
        new = [a.GetIdx() for a in record.GetAtoms() if a.GetAtomicNum() > 1 and a.GetIdx() not in kept]
        assert energy_and_force(record)[1][new].max() < 0.5


def test_xtb_goes_lower_than_the_force_field(tmp_path: Path) -> None:
    pytest.importorskip("tblite")
    out = sample(tmp_path, "n=2", "size=4", "relax=xtb")
    assert findings(out) == []
    assert all(record.GetProp("relaxed") == "ok" for record in records(out))
    assert main(["evaluate", f"input={out}", "metrics=xtb", f"out={tmp_path / 'report'}"]) == 0
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    drop = next(one for one in report["results"] if one["name"] == "xtb_energy_drop_mean")
    assert drop["value"] < 0.05
    assert report["remarks"] == {"not as drawn but relaxed by xtb": 2}


def test_a_run_that_goes_on_has_to_relax_alike(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = sample(tmp_path, "n=2", "relax=mmff94s")
    whole = out.read_bytes()
    options = ["sample", "model=qm9", "steps=20", "workers=0", f"out={out}", "n=2", "resume=true"]
    out.write_bytes(whole[: whole.index(b"$$$$\n") + 5])
    assert main([*options, "relax=none"]) == 2
    assert "drawn with relax" in capsys.readouterr().err
    assert main([*options, "relax=mmff94s"]) == 0
    assert out.read_bytes() == whole


@pytest.mark.parametrize(
    ("limit", "mirrored", "reason"),
    [(0.0, False, "not relaxed in 0 s"), (60.0, True, "the minimum has another stereo")],
)
def test_a_molecule_that_takes_too_long_or_turns_over_stays_as_it_was_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: float, mirrored: bool, reason: str
) -> None:
    """A minimizer that mirrors stands for a centre that turns over, which no force field does on demand."""
    real = relax_module.relax_by_force_field

    def other(mol: Chem.Mol, **options: object) -> Relaxed:
        found = real(mol, **options)
        return found._replace(pos=found.pos * [1, 1, -1]) if mirrored else found

    monkeypatch.setattr(relax_module, "LIMIT", limit)
    monkeypatch.setattr(relax_module, "relax_by_force_field", other)
    monkeypatch.setattr(relaxation, "_BLOCK", 1)
    options = ["task=conformers", "smiles='C[C@H](O)[C@@H](F)CN'", "n=2"]
    drawn = [record.GetConformer().GetPositions() for record in records(sample(tmp_path, *options))]
    found = records(sample(tmp_path, *options, "relax=mmff94s", "overwrite=true"))
    assert [record.GetProp("relaxed") for record in found] == [reason] * 2
    assert not any(record.HasProp("energy_lost") for record in found)
    for pos, record in zip(drawn, found, strict=True):
        np.testing.assert_array_equal(pos, record.GetConformer().GetPositions())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["relax=uff"], "relax: got 'uff', expected none or mmff94s or xtb"),
        (["unrelaxed=true"], "unrelaxed: got true without relax, expected relax=mmff94s or relax=xtb"),
        (
            ["relax=xtb", "unrelaxed=true", "resume=true"],
            "resume: a second file cannot be continued, expected unrelaxed=false",
        ),
    ],
)
def test_what_cannot_be_is_refused(capsys: pytest.CaptureFixture[str], options: list[str], message: str) -> None:
    assert main(["sample", *options]) == 2
    assert message in capsys.readouterr().err


def test_given_coordinates_are_not_relaxed() -> None:
    task = Bonds(input="data/ligands/histamine.sdf")
    with pytest.raises(MoldiffError, match="relax: got 'mmff94s' with coordinates that are given, expected relax=none"):
        moldiff.load("qm9").sample(1, task=task, relax="mmff94s")

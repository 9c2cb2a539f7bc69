"""The README does what it says: its commands run, its options exist, its links lead somewhere."""

import json
import re
import shlex
from pathlib import Path

import pytest
from models import needs_weights

from moldiff.cli.compose import compose_options
from moldiff.cli.main import main
from moldiff.diffusion.shipped import shipped_models
from moldiff.evaluation.metric import MetricResult
from moldiff.evaluation.report import MISSING, format_value

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", TEXT, flags=re.DOTALL | re.MULTILINE)
COMMANDS = [
    part.strip()
    for language, block in BLOCKS
    if language == "bash"
    for line in block.splitlines()
    for part in line.split("&&")
]
OURS = [command for command in COMMANDS if command.startswith("moldiff ")]
HOURS = ("moldiff prepare data=qm9", "moldiff train experiment=qm9")
"""Commands that take too long to be run here."""

OF_DRUGS = {
    "valid and connected": "p2_valid",
    "unique of these": "p2_unique",
    "novel of these": "p2_novel",
    "PoseBusters-valid": "posebusters_valid",
    "energy lost by relaxing with MMFF94s, median": "mmff_energy_drop_median",
    "energy lost by relaxing with GFN2-xTB, median": "xtb_energy_drop_median",
    "QED, mean": "druglike_qed_mean",
    "synthetic accessibility, mean": "druglike_sa_mean",
    "Fréchet ChemNet Distance": "fcd_distance",
}
"""Metrics of the card, by their name in the table of `drugs`."""


def card_columns(model: str) -> list[dict[str, MetricResult]]:
    """The results of a shipped model's card by name: raw, delivered, real test molecules."""
    results = json.loads((ROOT / f"moldiff/weights/{model}/card.json").read_text(encoding="utf-8"))["results"]
    return [{row["name"]: MetricResult.from_dict(row) for row in column} for column in results.values()]


def test_first_two_commands() -> None:
    assert COMMANDS[:2] == ["pip install .", "moldiff sample"]
    assert 'pip install ".[test]" && pytest\n' in TEXT


@needs_weights
def test_figures_are_those_of_the_model_card() -> None:
    columns = card_columns("qm9")
    labels = {"valid and connected": "valid"}
    rows = re.findall(r"^\| (P[12]) ([^|]+) \| (.+) \|$", TEXT, flags=re.MULTILINE)
    assert len(rows) == 6
    for protocol, label, figures in rows:
        name = f"{protocol.lower()}_{labels.get(label, label.replace(' × ', '_').replace(' ', '_'))}"
        assert figures == " | ".join(f"{100 * column[name].value:.2f} %" for column in columns)


@needs_weights
def test_figures_of_drugs_are_those_of_its_card() -> None:
    columns = card_columns("drugs")
    table = re.search(r"^\| [\d,]+ molecules of `drugs`.*\n\|[-|]+\n((?:\|.*\n)+)", TEXT, flags=re.MULTILINE)
    assert table is not None
    shown = dict(row.strip("| ").split(" | ", 1) for row in table[1].splitlines())
    assert shown == {
        label: " | ".join(format_value(column[name]) if name in column else MISSING for column in columns)
        for label, name in OF_DRUGS.items()
    }


@pytest.mark.parametrize("command", OURS)
def test_commands_compose(command: str) -> None:
    _, name, *arguments = shlex.split(command)
    assert compose_options(name, arguments)


def test_table_of_groups_is_that_of_the_configs() -> None:
    table = re.findall(r"^\| `(\w+)` \| ((?:`\w+`,? ?)+)\|", TEXT.partition("## Train")[2], flags=re.MULTILINE)
    assert len(table) == 7
    for group, choices in table:
        files = {path.stem for path in (ROOT / "conf" / group).glob("*.yaml")}
        assert set(re.findall(r"\w+", choices)) == files


@needs_weights
def test_links_lead_somewhere() -> None:
    links = [link for link in re.findall(r"\]\(([^)]+)\)", TEXT) if "://" not in link]
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


@needs_weights
def test_python_example(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    for language, block in BLOCKS:
        if language == "python":
            exec(compile(block, "README.md", "exec"), {})
    assert len(capsys.readouterr().out.splitlines()) == 5 + 2 + 4


@needs_weights
@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_commands_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for command in OURS:
        if command not in HOURS:
            assert main(shlex.split(command)[1:]) == 0, command
    assert {path.name for path in tmp_path.glob("*.sdf")} == {
        f"{name}.sdf"
        for name in (
            *("molecules", "small", "chosen", "alike", "regrown", "quick"),
            *("grown", "replaced", "conformers", "isomers", "bonds", "analogues"),
        )
    }


def test_first_line_says_that_it_is_another_program() -> None:
    assert "Not the MolDiff of Peng et al." in TEXT.partition("```")[0]


@needs_weights
def test_figures_of_fewer_calls_are_those_of_the_curve() -> None:
    folder = ROOT / "moldiff/weights/qm9"
    default = json.loads((folder / "config.json").read_text(encoding="utf-8"))["steps"]
    assert f"molecules, {default} network calls each | raw" in TEXT  # the table is of the default
    points = json.loads((folder / "steps.json").read_text(encoding="utf-8"))["points"]
    (point,) = [point for point in points if point["steps"] == 20]
    stable, valid = (
        next(result["value"] for result in point["results"][form] if result["name"] == name)
        for form, name in (("raw", "p1_molecule_stable"), ("raw", "p2_valid"))
    )
    assert re.search(rf"raw P1 molecule\s+stable is {100 * stable:.1f} %", TEXT)
    assert re.search(rf"P2 valid and connected\s+{100 * valid:.1f} %", TEXT)


def test_the_sizes_of_drugs_are_those_that_it_has_learnt() -> None:
    (drugs,) = (model for model in shipped_models() if model.name == "drugs")
    assert f"molecules of {drugs.sizes[0]} to {drugs.sizes[1]} heavy atoms" in TEXT

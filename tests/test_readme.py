"""The README and the pages of docs/ do what they say: commands run, options exist, links lead somewhere."""

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
PAGES = {
    name: (ROOT / name).read_text(encoding="utf-8")
    for name in (
        "README.md",
        *(f"docs/{name}.md" for name in ("sampling", "tasks", "evaluation", "training", "figures")),
    )
}
README, FIGURES = PAGES["README.md"], PAGES["docs/figures.md"]


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGES[page], flags=re.DOTALL | re.MULTILINE)


def commands(page: str) -> list[str]:
    lines = [line for block in blocks(page, "bash") for line in block.splitlines()]
    return [part.strip() for line in lines for part in line.split("&&")]


def ours(page: str) -> list[str]:
    return [command for command in commands(page) if command.startswith("moldiff ")]


HOURS = {f"moldiff {command}={name}" for command in ("prepare data", "train experiment") for name in ("qm9", "drugs")}
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

IN_README = {
    "valid and in one piece": ("p2_valid", 100, " %"),
    "different from each other": ("p2_unique", 100, " %"),
    "new to the model": ("p2_novel", 100, " %"),
    "pass PoseBusters": ("posebusters_valid", 100, " %"),
    "energy lost by relaxing with GFN2-xTB, median (kcal/mol)": ("xtb_energy_drop_median", 1, ""),
}
"""The same in the README's table: metric, scale and unit."""


def card_columns(model: str) -> list[dict[str, MetricResult]]:
    """The results of a shipped model's card by name: raw, delivered, real test molecules."""
    results = json.loads((ROOT / f"moldiff/weights/{model}/card.json").read_text(encoding="utf-8"))["results"]
    return [{row["name"]: MetricResult.from_dict(row) for row in column} for column in results.values()]


def test_first_two_commands() -> None:
    assert commands("README.md")[:2] == ["pip install .", "moldiff sample"]
    assert 'pip install ".[test]" && pytest\n' in README


@needs_weights
def test_figures_are_those_of_the_model_card() -> None:
    columns = card_columns("qm9")
    labels = {"valid and connected": "valid"}
    rows = re.findall(r"^\| (P[12]) ([^|]+) \| (.+) \|$", FIGURES, flags=re.MULTILINE)
    assert len(rows) == 6
    for protocol, label, figures in rows:
        name = f"{protocol.lower()}_{labels.get(label, label.replace(' × ', '_').replace(' ', '_'))}"
        assert figures == " | ".join(f"{100 * column[name].value:.2f} %" for column in columns)


@needs_weights
def test_figures_of_drugs_are_those_of_its_card() -> None:
    columns = card_columns("drugs")
    table = re.search(r"^\| [\d,]+ molecules of `drugs`.*\n\|[-|]+\n((?:\|.*\n)+)", FIGURES, flags=re.MULTILINE)
    assert table is not None
    shown = dict(row.strip("| ").split(" | ", 1) for row in table[1].splitlines())
    assert shown == {
        label: " | ".join(format_value(column[name]) if name in column else MISSING for column in columns)
        for label, name in OF_DRUGS.items()
    }


@needs_weights
def test_figures_of_the_readme_are_those_of_the_cards() -> None:
    columns = [column for model in ("qm9", "drugs") for column in card_columns(model)]
    table = README.partition("## How good they are")[2].split("\n\n")[1].splitlines()[2:]
    assert [row.split(" | ")[0] for row in table] == [f"| {label}" for label in IN_README]
    for row, (name, scale, unit) in zip(table, IN_README.values(), strict=True):
        shown = row.strip("| ").split(" | ")[1:]
        assert shown == [f"{scale * column[name].value:.1f}{unit}" if name in column else MISSING for column in columns]


@pytest.mark.parametrize("command", [command for page in PAGES for command in ours(page)])
def test_commands_compose(command: str) -> None:
    _, name, *arguments = shlex.split(command)
    assert compose_options(name, arguments)


def test_table_of_groups_is_that_of_the_configs() -> None:
    table = re.findall(r"^\| `(\w+)` \| ((?:`\w+`,? ?)+)\|", PAGES["docs/training.md"], flags=re.MULTILINE)
    assert len(table) == 7
    for group, choices in table:
        files = {path.stem for path in (ROOT / "conf" / group).glob("*.yaml")}
        assert set(re.findall(r"\w+", choices)) == files


@needs_weights
@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    links = [link for link in re.findall(r"\]\(([^)]+)\)", PAGES[page]) if "://" not in link]
    assert [link for link in links if not ((ROOT / page).parent / link).exists()] == []


@needs_weights
@pytest.mark.parametrize(("page", "lines"), [("README.md", 5), ("docs/tasks.md", 2), ("docs/sampling.md", 5)])
def test_python_examples(
    page: str, lines: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for block in blocks(page, "python"):
        exec(compile(block, page, "exec"), {})
    assert len(capsys.readouterr().out.splitlines()) == lines


@needs_weights
@pytest.mark.slow
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("page", PAGES)
def test_commands_run(page: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for command in ours(page):
        if command not in HOURS:
            assert main(shlex.split(command)[1:]) == 0, command
    named = {name for command in ours(page) for name in re.findall(r"out=(\w+\.sdf)", command)}
    assert {path.name for path in tmp_path.glob("*.sdf")} - {"molecules.sdf"} == named


def test_it_says_at_once_that_it_is_another_program() -> None:
    assert "Not the MolDiff of Peng et al." in README.partition("## Which model")[0]


@needs_weights
def test_figures_of_fewer_calls_are_those_of_the_curve() -> None:
    folder = ROOT / "moldiff/weights/qm9"
    default = json.loads((folder / "config.json").read_text(encoding="utf-8"))["steps"]
    assert f"molecules, {default} network calls each | raw" in FIGURES  # the table is of the default
    points = json.loads((folder / "steps.json").read_text(encoding="utf-8"))["points"]
    (point,) = [point for point in points if point["steps"] == 20]
    stable, valid = (
        next(result["value"] for result in point["results"][form] if result["name"] == name)
        for form, name in (("raw", "p1_molecule_stable"), ("raw", "p2_valid"))
    )
    assert re.search(rf"raw P1 molecule\s+stable is {100 * stable:.1f} %", FIGURES)
    assert re.search(rf"P2 valid and connected\s+{100 * valid:.1f} %", FIGURES)


def test_the_sizes_of_drugs_are_those_that_it_has_learnt() -> None:
    (drugs,) = (model for model in shipped_models() if model.name == "drugs")
    assert f"{drugs.sizes[0]} to {drugs.sizes[1]} heavy atoms" in README
    assert f"molecules of {drugs.sizes[0]} to {drugs.sizes[1]} heavy atoms" in PAGES["docs/sampling.md"]

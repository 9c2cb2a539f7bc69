"""Every option of every config group composes and builds; values arrive as they were typed."""

import re
import shlex
from collections.abc import Iterator, Sequence
from importlib import resources, util
from inspect import signature
from pathlib import Path
from typing import Any

import pytest
import torch
from models import NUM_CLASSES, STATISTICS, small_denoiser
from omegaconf import OmegaConf

from moldiff.cli.compose import _flatten, as_yaml, compose_options
from moldiff.cli.options import CHOICE, SCREENS, TASKS
from moldiff.diffusion.batch import MolBatch
from moldiff.diffusion.instantiate import instantiate
from moldiff.errors import MoldiffError
from moldiff.evaluation.suite import SETS, SUITE

CONF = Path(str(resources.files("moldiff.conf")))
CHOICES = sorted((path.parent.name, path.stem) for path in CONF.glob("*/*.yaml"))
SMILES = (
    "[CH3]",
    "[NH4+]",
    "C=C",
    "CC(=O)[O-]",
    "[Na+].[Cl-]",
    "C#N",
    "C[C@@H](N)C(=O)O",
    r"F/C=C\F",
    "C%10CC%10",
    "1",
)


GROUPS_APART = ("data", "experiment", "logger", "task")
"""Groups whose choices are built in other ways, or not by every training."""


def built(name: str, config: dict[str, Any]) -> Any:
    """What a part of the train config stands for, built as the training builds it."""
    if name == "denoiser":
        return instantiate(config[name], None, num_atom_classes=NUM_CLASSES)
    if name == "process":
        frequencies = torch.tensor(STATISTICS.atom_marginal), torch.tensor(STATISTICS.bond_marginal)
        return instantiate(config[name], None).build(*frequencies)
    if name == "optimizer":
        named = list(small_denoiser().named_parameters())
        takes_names = "named_parameters" in signature(instantiate(config[name], None).func).parameters
        return instantiate(config[name], None)(named if takes_names else [parameter for _, parameter in named])
    return instantiate(config[name], None)


def test_every_group_is_a_folder_of_the_package() -> None:
    assert {group for group, _ in CHOICES} == {
        "condition",
        "data",
        "denoiser",
        "experiment",
        "logger",
        "optimizer",
        "prior",
        "process",
        "sampler",
        "task",
    }
    assert not list(CONF.glob("*/*/*")), "groups are one folder deep"
    assert {path.stem for path in CONF.glob("*.yaml")} == set(SCREENS)


@pytest.mark.parametrize(("group", "choice"), [pair for pair in CHOICES if pair[0] not in GROUPS_APART])
def test_every_choice_builds(group: str, choice: str) -> None:
    config = compose_options("train", [f"{group}={choice}"])
    for name in {group, "process"}:
        assert built(name, config) is not None


@pytest.mark.parametrize("choice", [*SETS, *SUITE])
def test_every_metric_builds_with_the_defaults_of_python(choice: str) -> None:
    for name, config in compose_options("evaluate", [f"metrics={choice}"])["metrics"].items():
        metric = instantiate(config, None)
        assert metric.name == name
        optional = {"skip_if_missing": True} if choice == "full" and getattr(metric, "package", None) else {}
        assert metric == type(metric)(**optional)


def test_metrics_are_chosen_one_by_one() -> None:
    options = compose_options("evaluate", ["metrics=[p3,xtb]", "metrics.xtb.limit=60", "metrics.p3.charge=null"])
    assert list(options["metrics"]) == ["p3", "xtb"]
    assert (options["metrics"]["xtb"]["limit"], options["metrics"]["p3"]["charge"]) == (60, None)
    assert not compose_options("evaluate", ["metrics=[]"]).get("metrics")
    with pytest.raises(MoldiffError, match="metrics: got 'p4', expected one of: distribution"):
        compose_options("evaluate", ["metrics=[p3,p4]"])


def test_loggers_are_chosen_one_by_one(tmp_path: Path) -> None:
    assert list(compose_options("train", [])["logger"]) == ["csv"]
    options = compose_options("train", ["logger=[csv,tensorboard]"])["logger"]
    assert list(options) == ["csv", "tensorboard"]
    assert instantiate(options["csv"], None, folder=tmp_path, step=0).name == "csv"
    assert not compose_options("train", ["logger=[]"]).get("logger")


@pytest.mark.parametrize("name", ["schedule", "times", "quality"])
def test_parts_of_the_training_build(name: str) -> None:
    assert callable(built(name, compose_options("train", [])))


@pytest.mark.parametrize("choice", [choice for group, choice in CHOICES if group == "experiment"])
def test_every_experiment_builds(choice: str) -> None:
    config = compose_options("train", [f"experiment={choice}"])
    for name in ("denoiser", "process", "optimizer", "schedule", "times", "quality"):
        built(name, config)


def test_every_source_builds() -> None:
    if util.find_spec("qm9pack") is None:
        pytest.skip("qm9pack is not installed")
    config = compose_options("prepare", ["data=qm9", "limit=7", "num_workers=1"])
    assert len(instantiate(config["data"]["source"], None)) == 7


def test_shipped_sample_is_found() -> None:
    config = compose_options("train", ["data=sample"])
    assert (Path(config["data"]["folder"]) / "meta.json").is_file()


def test_denoiser_of_the_config_runs() -> None:
    network = built("denoiser", compose_options("train", ["denoiser=small"]))
    mask = torch.ones(1, 2, dtype=torch.bool)
    batch = MolBatch(
        pos=torch.randn(1, 2, 3),
        hydrogen=torch.zeros(1, 2, 4, 3),
        atom_type=torch.zeros(1, 2, dtype=torch.long),
        bond=torch.zeros(1, 2, 2, dtype=torch.long),
        node_mask=mask,
    )
    from moldiff.diffusion.batch import NoiseLevel

    assert network(batch, NoiseLevel.uniform(torch.ones(1), mask)).pos.shape == (1, 2, 3)


@pytest.mark.parametrize("prior", ["marginal", "uniform", "absorbing"])
def test_prior_reaches_both_class_processes(prior: str) -> None:
    process = compose_options("train", [f"prior={prior}"])["process"]
    assert process["atom_prior"] == process["bond_prior"]
    assert process["atom_prior"]["_target_"].endswith(f"{prior}_prior")


@pytest.mark.parametrize("smiles", SMILES)
@pytest.mark.parametrize("option", ["out", "model"])
def test_quoted_text_arrives_exactly(smiles: str, option: str) -> None:
    assert compose_options("sample", [f'{option}="{smiles}"'])[option] == smiles


@pytest.mark.parametrize("smiles", SMILES)
def test_unquoted_text_arrives_exactly_or_is_refused_with_the_quoted_form(smiles: str) -> None:
    try:
        value = compose_options("sample", [f"model={smiles}"])["model"]
    except MoldiffError as error:
        shown = str(error).rpartition("quotes: ")[2]
        assert compose_options("sample", shlex.split(shown))["model"] == smiles
    else:
        assert value == smiles
        assert isinstance(value, str)


@pytest.mark.parametrize("text", ["a'b", 'a"b', "a b", "ä", "~x", "a,b", "true", "null", "3.0", "{a:1}"])
def test_the_suggested_quotes_work_for_any_text(text: str) -> None:
    try:
        value = compose_options("evaluate", [f"reference={text}"])["reference"]
    except MoldiffError as error:
        shown = shlex.split(str(error).rpartition(" text " if "several" in str(error) else "quotes: ")[2])
        value = compose_options("evaluate", shown)["reference"]
    if text != "null":
        assert value == text


def test_lists_and_ranges() -> None:
    options = compose_options("sample", ["keep=[valid,unique]", "size=7..9", "n=3"])
    assert (options["keep"], options["size"], options["n"]) == (["valid", "unique"], "7..9", 3)


def test_own_config_dir_and_command_order(tmp_path: Path) -> None:
    (tmp_path / "denoiser").mkdir()
    (tmp_path / "denoiser" / "mine.yaml").write_text("_target_: my.Network\nwidth: 3\n")
    options = compose_options("train", ["denoiser.width=5", "denoiser=mine"], [str(tmp_path)])
    assert options["denoiser"] == {"_target_": "my.Network", "width": 5}
    with pytest.raises(MoldiffError, match="expected one of: egnn, mine, pair_transformer, small"):
        compose_options("train", ["denoiser=yours"], [str(tmp_path)])


def test_out_follows_the_data() -> None:
    assert compose_options("train", ["data=sample"])["out"] == "runs/sample"
    assert compose_options("prepare", ["data.folder=elsewhere"])["out"] == "elsewhere"


def test_home_is_expanded() -> None:
    assert compose_options("sample", ['out="~/a.sdf"'])["out"] == str(Path("~/a.sdf").expanduser())


def test_printed_options_are_yaml_again() -> None:
    options = compose_options("train", ["experiment=quick"])
    assert OmegaConf.to_container(OmegaConf.create(as_yaml(options))) == options


@pytest.mark.parametrize("command", sorted(SCREENS))
def test_help_names_every_option(command: str) -> None:
    options = compose_options(command, [])
    missing = [name for name in options if name not in SCREENS[command]]
    assert not missing


PLACEHOLDERS = ("FILE", "NAME", "FILE|SMILES", "SMILES", "ATOMS", "COLUMN", "TASK", "DIR", "K")
EXAMPLES = {
    "filters=...",
    "columns=...",
    "like=...",
    "debug=true",
    "formula=C7H10N2O",
    "data.num_moses=300000",
    "experiment=NAME",
    "condition=properties",
    "trainer.max_time=00:08:00:00",
    "condition.gap=0.25",
    "metrics.xtb.limit=60",
    "smiles=-",
    "process.geometry={_target_:",
    "data=drugs",
    "resume=true",
    "quiet=true",
}
"""What stands in the help as one value among many, or as what another option brings."""


def stated(text: str) -> Iterator[tuple[str, str]]:
    """Every `key=value` that a help text states before its examples; `.key` is of the group named last."""
    group = ""
    for word in text.partition("\nexamples:")[0].split():
        found = re.fullmatch(r"(\.?[a-z_][\w.]*)=(\S+?)[;,]?", word.strip("'"))
        if found is None:
            continue
        key = f"{group}{found[1]}" if found[1].startswith(".") else found[1]
        group = key.rpartition(".")[0]
        if found[2] not in PLACEHOLDERS and f"{key}={found[2]}" not in EXAMPLES:
            yield key, found[2]


def composed(command: str, arguments: Sequence[str]) -> dict[str, Any]:
    """Defaults of all options by their dotted names, those of the groups as they are chosen included."""
    root = OmegaConf.to_container(OmegaConf.load(CONF / f"{command}.yaml"))
    groups = {name: value for entry in root["defaults"] if isinstance(entry, dict) for name, value in entry.items()}
    flat = dict(_flatten(compose_options(command, arguments)))
    return flat | {name: value for name, value in groups.items() if not name.startswith("optional")}


def as_shown(value: Any) -> str:
    """A default as the help writes it."""
    if value is None:
        return "null"
    return str(value).lower().replace("'", "").replace(", ", ",")


HELPS = [
    *((command, (), text) for command, text in SCREENS.items() if command not in ("prepare", "merge")),
    ("prepare", (), SCREENS["prepare"].partition("\nwith data.path:")[0]),
    ("prepare", ("data.path=x.smi",), SCREENS["prepare"].partition("\nwith data.path:")[2]),
    ("sample", (), CHOICE),
]


@pytest.mark.parametrize(("command", "arguments", "text"), HELPS)
def test_help_shows_the_true_defaults(command: str, arguments: Sequence[str], text: str) -> None:
    options = composed(command, arguments)
    found = list(stated(text))
    assert found
    for key, shown in found:
        assert key in options, f"{command}: {key} is no option"
        assert shown == as_shown(options[key]), f"{command}: {key}={shown}, the config says {options[key]}"


@pytest.mark.parametrize("task", [choice for group, choice in CHOICES if group == "task"])
def test_help_of_the_tasks_shows_the_true_defaults(task: str) -> None:
    blocks = re.split(r"^(?=\w)", TASKS, flags=re.MULTILINE)
    text = next(block for block in blocks if block.startswith(f"{task} "))
    options = compose_options("sample", [f"task={task}"])["task"]
    found = list(stated(text))
    for key, shown in found:
        assert shown == as_shown(options[key]), f"{task}: {key}={shown}, the config says {options[key]}"
    if task in ("grow", "conformers", "bonds", "analogues"):
        assert found

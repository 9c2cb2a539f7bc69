"""Options of the commands, each defined once, as a field of a dataclass with its type, default and one line of help.

The configs of Hydra, the checks of what is typed, the help (by the screens in `screens/`) and (by a test)
docs/sampling.md are made of them. Also what the exit codes are.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from pathlib import Path
from textwrap import fill
from typing import Any, NamedTuple

from moldiff.errors import MoldiffError, check_at_least
from moldiff.sampling.config import Likeness, SamplingConfig, option


@dataclass(frozen=True, kw_only=True)
class SampleTarget:
    """What `moldiff sample` delivers, by which model."""

    n: int = option(100, "molecules to deliver", least=1)
    out: str = option(
        "molecules.sdf",
        "also .xyz .smi .csv .parquet .xlsx .pdbqt; - = stdout",
        full="`.sdf`, `.xyz`, `.extxyz`, `.smi` or `.csv`, each also with `.gz`, `.parquet`, `.xlsx` or `.pdbqt` (a "
        "folder for docking); `-` = SDF to standard output, `-.smi` = another type",
    )
    model: str = option(
        "qm9",
        "a model of the package, or a trained one's folder; ? lists",
        full="a model of the package (`qm9`, `drugs` for drug-like molecules, or `qm9_properties`), or the folder of a "
        "trained one",
    )


(_LIKE,) = (one for one in fields(SamplingConfig) if one.name == "like")


SHARDS = option(
    None,
    "K jobs",
    full="`K` = split into so many jobs, which a launcher such as `hydra/launcher=joblib` runs, and merge their parts; "
    "`3/8` = the third of eight parts alone",
    typed="shards=K",
    beside=True,
)


@dataclass(frozen=True, kw_only=True)
class SampleOptions:
    """What `moldiff sample` has beside the options of a run from Python, or has in another form."""

    arithmetic: None = option(None, "", group=True, hidden=True)  # here it is chosen by `precision`
    workers: int | str = option(
        "auto", "processes, or 0", full="processes that share the work; `auto` = where that pays, `0` = none"
    )
    device: str = option("auto", "`auto`, `cpu`, `cuda`, ...", beside=True)
    precision: str = option(
        "auto",
        "float32, compiled if a trial says so; bfloat16 = coarser",
        full="`auto` = float32, compiled where a trial at the start of a long run found that to pay; `float32` = "
        "without a trial; `bfloat16` = faster where the hardware has it, but molecule k of a seed then depends on its "
        "batch",
        choices=("auto", "float32", "bfloat16"),
    )
    like: Likeness = option(Likeness(), **_LIKE.metadata)  # which is one where it has a reference
    unrelaxed: bool = option(
        False,
        "as drawn, too",
        hidden=True,
        full="with `relax`: `true` = also write the molecules as they were drawn, to `molecules.unrelaxed.sdf`",
    )
    summary: str | None = option(
        None,
        "NAME.json: the table at the end for programs",
        full="`NAME.json`: also write what the table at the end says, for programs; an older one is replaced",
    )
    sort: str = option(
        "index",
        "confidence or score = best first, all written at the end",
        full="order in the file: `index`, each molecule as soon as it is drawn, or, all written at the end, "
        "`confidence`, the surest first, or `score`, the lowest first",
        choices=("index", "confidence", "score"),
    )
    overwrite: bool = option(
        False, "replace the older", full="`true` = replace an older file; `false` = it gets a number"
    )
    resume: bool = option(
        False,
        "go on",
        full="`true` = go on with the SDF or table (.csv, .parquet, .xlsx) of a run that was ended or killed, to the "
        "same file as without the break",
        beside=True,
    )
    shards: int | str | None = SHARDS


@dataclass(frozen=True, kw_only=True)
class InputOptions:
    """Molecules that a command reads."""

    input: str | Sequence[str] | None = option(
        None,
        "with hydrogens: .sdf, .mol, .xyz, .smi (also .gz) or .parquet; a folder, a pattern, [a.sdf,b.sdf], or - = "
        "standard input",
        typed="input=FILE",
    )
    hydrogens: str = option("keep", "add = first add those that a 3D structure lacks", choices=("keep", "add"))


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """What `moldiff evaluate` compares with, and what it writes."""

    reference: str | None = option(
        None,
        "known molecules to compare with: as input, or a prepared folder; for novelty alone, a model's name or folder",
    )
    reference_size: int = option(10000, "molecules of the reference at most", least=1)
    metrics: Mapping[str, Any] = option(
        {},
        "beside P1, P2, uniqueness and novelty: fast, full, or any of p3, geometry, diversity, distribution, "
        'neighbours, druglike, posebusters, fcd, mmff, xtb; metrics.xtb.limit=60; some need "moldiff[eval]"',
        typed="metrics=fast",
        group=True,
    )
    out: str | None = option(
        None, "folder for report.json, report.md and molecules.csv, or NAME.json; older ones are replaced"
    )


@dataclass(frozen=True, kw_only=True)
class ViewOptions:
    """What `moldiff view` shows beside the molecules, and where."""

    reference: str | None = option(
        None,
        "known molecules for novelty and to compare distributions with: a model's name or folder, a prepared folder, "
        "or a file, folder or pattern as input",
    )
    lead: str | None = option(
        None,
        "a file or a SMILES: the molecule that all others are laid out after; null = what each was made from",
    )
    receptor: str | None = option(
        None, "PDB or mmCIF: the protein to show around molecules; null = the one that each was drawn into"
    )
    metrics: Mapping[str, Any] = option(
        {}, "numbers to show, as in `moldiff evaluate`: fast, full ...", typed="metrics=fast", group=True
    )
    out: str | None = option(None, "the page; null = the name of the input with .html; an older one is replaced")


@dataclass(frozen=True, kw_only=True)
class VerifyOptions:
    """What `moldiff verify` looks at, and what it writes."""

    input: str | None = option(None, "an SDF file, whoever had it in between", typed="input=FILE")
    out: str | None = option(None, "NAME.json: what each record is; an older one is replaced")
    device: str = option("auto", "auto, cpu, cuda, ...")


@dataclass(frozen=True, kw_only=True)
class PrepareOptions:
    """What `moldiff prepare` makes, whatever the source."""

    out: str | None = option(
        "${data.folder}",
        "the folder to make; for data.path: prepared/ and its name. Made anew only after a change of content or "
        "options",
        typed="out=prepared/qm9",
    )
    limit: int | None = option(None, "only so many records; null = all", least=1)
    num_workers: int = option(2, "processes", least=1)
    strict: bool = option(False, "true = a rejected record is an error")
    shards: int | str | None = SHARDS


@dataclass(frozen=True, kw_only=True)
class MergeOptions:
    """What `moldiff merge` puts together."""

    input: str | None = option(None, "the folder NAME.shards of a command with shards=K", typed="input=FOLDER")


@dataclass(frozen=True, kw_only=True)
class FieldWeights:
    """Weights of the parts of the loss."""

    pos: float = option(1.0, "coordinates of heavy atoms", hidden=True)
    hydrogen: float = option(0.5, "coordinates of hydrogens", hidden=True)
    atom_type: float = option(0.3, "elements, charges and numbers of hydrogens", hidden=True)
    bond: float = option(2.0, "bonds", hidden=True)
    geometry: float = option(1.0, "a local loss, where `process.geometry` names one", hidden=True)
    contributions: float = option(
        0.1, "what atoms and bonds add up to, of the properties that the network sees", hidden=True
    )


@dataclass(frozen=True, kw_only=True)
class TrainerOptions:
    """How long a training takes, on what, and what is looked at on the way."""

    max_steps: int | None = option(20000, "null = none", least=1)
    max_time: str | None = option(None, "8 hours", typed="trainer.max_time=00:08:00:00", beside=True)
    accelerator: str = option("auto", "auto, cpu or gpu")
    devices: int | str = option(
        1, "or auto", full="processes on CPU, or GPUs; auto = two processes on CPU, all GPUs", beside=True
    )
    num_nodes: int = option(1, "machines, each with its devices", hidden=True)
    strategy: str = option("auto", "of Lightning", hidden=True)
    precision: int | str = option(
        "auto", "32-true, bf16-mixed, auto = the faster in a trial at the start; or another of Lightning's", hidden=True
    )
    accumulate_grad_batches: int = option(
        1,
        "batches to a step, to save memory",
        full="batches that make up a step, one after the other, where a larger one does not fit into memory",
        least=1,
    )
    log_every: int = option(50, "steps", hidden=True, least=1)
    validate_every: int = option(500, "steps; state and model are saved as often", least=1)
    save_minutes: float = option(10.0, "and whenever so many minutes have passed since", hidden=True)
    num_validation: int = option(2000, "molecules", hidden=True)
    sample_every: int = option(4, "validations", hidden=True, least=1)
    num_quality_samples: int = option(100, "molecules", hidden=True)
    best_by: str | None = option(
        "p2_valid_unique",
        "score of that in out/best",
        full="which score of samples makes the model in OUT/best; null = none",
    )


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """What `moldiff train` makes and how; what it trains is in the groups."""

    out: str = option("runs/${data.name}", "run folder; the trained model ends up in it", typed="out=runs/qm9")
    resume: bool | str = option(
        False, "true = go on with that in `out`; auto = if there is one", choices=(True, False, "auto")
    )
    init: str | None = option(
        None, "start from the weights of a model (name or folder); atom classes it does not know start fresh"
    )
    half: str | None = option(None, "a or b = learn from one half of the training molecules")
    batch_size: int = option(128, "molecules at a time on a device", least=1)
    seed: int = option(0, "of the run", least=0)
    self_conditioning: float = option(0.5, "share of the steps that feed the network its own estimate", hidden=True)
    ema_decay: float = option(0.999, "of the averaged weights", hidden=True)
    compile: bool | str = option(
        "auto", "true, false, auto = where a trial at the start found that it pays", hidden=True
    )
    field_weights: FieldWeights = option(FieldWeights(), "of the parts of the loss", hidden=True)
    trainer: TrainerOptions = option(TrainerOptions(), "steps, time, devices", hidden=True)


@dataclass(frozen=True, kw_only=True)
class Common:
    """What every command has."""

    debug: bool = option(False, "stack traces", full="show the stack trace of an error", typed="debug=true")
    quiet: bool = option(
        False, "only errors", full="`true` = say only what goes wrong", typed="quiet=true", beside=True
    )
    log: str | None = option(
        None,
        "a copy",
        full="a file to which all that is said on the terminal is added, but for bars",
        typed="log=FILE",
        beside=True,
    )


COMMANDS: Mapping[str, tuple[type, ...]] = {
    "sample": (SampleTarget, SamplingConfig, SampleOptions, Common),
    "evaluate": (InputOptions, EvaluateOptions, Common),
    "view": (InputOptions, ViewOptions, Common),
    "verify": (VerifyOptions, Common),
    "prepare": (PrepareOptions, Common),
    "merge": (MergeOptions, Common),
    "train": (TrainOptions, Common),
}
"""Where the options of a command are defined; of two of one name the later holds, in the place of the first."""

_KINDS: Mapping[str, tuple[type, ...]] = {
    "bool": (bool,),
    "int": (int,),
    "float": (float,),
    "str": (str,),
    "Path": (str,),
    "Source": (str,),
    "tuple": (str,),
    "Sequence": (list, str),
    "Collection": (list, str),
    "list": (list,),
    "Mapping": (dict,),
    "None": (type(None),),
}
"""As what a type of Python is typed: a range is text such as 7..9, an item alone stands for a list of one."""


class Option(NamedTuple):
    """An option of a command."""

    name: str  # dotted where it is in a group
    default: Any
    kinds: tuple[type, ...]  # of value that may be typed; () = any
    field: Field[Any]  # where it is defined

    @property
    def typed(self) -> str:
        """The option with its default, or as an example, as it is typed."""
        return str(self.field.metadata.get("typed", f"{self.name}={as_typed(self.default)}"))


def as_typed(value: Any) -> str:
    """A value as it is typed."""
    if isinstance(value, list | tuple):
        return f"[{','.join(map(as_typed, value))}]"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def kinds_of(annotation: str) -> tuple[type, ...]:
    """The kinds of value that are typed for a type of Python, as it stands in the code."""
    names = (part.partition("[")[0] for part in annotation.split(" | "))
    return tuple(dict.fromkeys(kind for name in names for kind in _KINDS.get(name, ())))


def options_in(kind: type, prefix: str = "") -> Iterator[Option]:
    """The options that a dataclass defines, groups before what is in them."""
    for one in fields(kind):
        default = one.default if one.default_factory is MISSING else one.default_factory()
        yield Option(f"{prefix}{one.name}", default, kinds_of(str(one.type)), one)
        if is_dataclass(default):
            yield from options_in(type(default), f"{prefix}{one.name}.")


def options_of(command: str) -> dict[str, Option]:
    """The options of a command by name; what its groups have beside is in the configs of these."""
    return {one.name: one for kind in COMMANDS.get(command, ()) for one in options_in(kind)}


def root_config(command: str) -> dict[str, Any]:
    """The defaults of a command's options, as its config has them."""
    config = {}
    for name, (_, default, _, field) in options_of(command).items():
        if "." in name or "group" in field.metadata:
            continue
        target = {"_target_": f"{type(default).__module__}.{type(default).__qualname__}"}
        built = target if "built" in field.metadata else {}
        config[name] = built | vars(default) if is_dataclass(default) else default
    return config


def check_limits(command: str, options: Mapping[str, Any]) -> None:
    """Refuse values that the options' definitions rule out."""
    for name, one in options_of(command).items():
        group, _, last = name.rpartition(".")
        value, limits = (options[group] if group else options).get(last), one.field.metadata
        if "least" in limits:
            check_at_least(name, value, limits["least"])
        if value not in limits.get("choices", (value,)):
            *others, final = map(as_typed, limits["choices"])
            raise MoldiffError(f"{name}: got {value!r}, expected {', '.join(others)} or {final}")


def help_lines(options: Iterable[Option], column: int = 22) -> str:
    """Options, their defaults and what they mean, as lines of a screen."""
    entries: list[tuple[str, str]] = []
    for one in options:
        said, how = one.field.metadata["help"].replace("`", ""), one.field.metadata
        if "beside" in how:
            entries[-1] = entries[-1][0], f"{entries[-1][1]}; {one.typed} = {said}"
        elif "hidden" not in how:
            entries.append((one.typed, said))
    layout: dict[str, Any] = {"width": 80, "subsequent_indent": " " * column, "break_on_hyphens": False}
    return "".join(fill(said, initial_indent=f"  {typed:<{column - 4}}  ", **layout) + "\n" for typed, said in entries)


EXIT_OK, EXIT_FAILED, EXIT_WRONG_INPUT, EXIT_INTERRUPTED = 0, 1, 2, 130

_COMMON = """\
  --cfg              print all options with their values and stop
  --config-dir DIR   look in DIR for own configs, too
  -m                 a job for each combination of KEY=A,B or KEY=range(1,4)"""


def _screen(name: str, shown: Iterable[Option] = (), column: int = 22) -> str:
    """A text with these options, and what every command has, where it says `{options}` and `{common}`."""
    text = Path(__file__).with_name("screens").joinpath(f"{name}.txt").read_text(encoding="utf-8")
    return text.replace("{options}", help_lines(shown, column).rstrip()).replace("{common}", _COMMON)


GENERAL, TASKS = _screen("general"), _screen("tasks")
CHOICE = _screen("choice", options_in(Likeness, "like."), 27)
SCREENS = {
    name: _screen(name, (one for one in options_of(name).values() if not one.name.startswith("like.")))
    for name in COMMANDS
}

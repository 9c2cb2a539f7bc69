"""The layers of the package: imports only point down, and each library is known only where it belongs."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "moldiff"

LAYERS = (
    {
        "errors",
        "results",
        "radii",
        "vocabulary",
        "batch",
        "geometry",
        "protocols",
        "randomness",
        "construct",
        "hardware",
        "arithmetic",
        "pool",
        "ranks",
        "signals",
        "storage",
    },
    {
        "chem",
        "completion",
        "fields",
        "oddities",
        "records",
        "descriptors",
        "shipped",
        "io",
        "process",
        "nn",
        "decode",
        "schedule",
        "optimizer",
    },
    {"data", "metrics", "report", "condition"},
    {
        "model",
        "sampler",
        "steering",
        "trajectory",
        "drawing",
        "restart",
        "recipe",
        "elements",
        "reach",
        "targets",
        "tasks",
        "descendants",
    },
    {"checkpoint", "scoring", "stream", "callbacks", "training", "trial", "known", "evaluation", "card", "view"}
    | {"transfer", "average", "state", "logs", "curve", "predictor"}
    | {"generate", "run", "samples", "resume", "filters", "likeness", "catalogue"},
    {"cli", "sampling", "options", "folders", "jobs", "usage", "testing", "benchmark"},
)
"""From the bottom up; a folder counts as one module, whose parts may see each other."""

SIBLINGS = {
    "vocabulary": {"errors"},
    "batch": {"errors", "vocabulary"},
    "geometry": {"vocabulary"},
    "protocols": {"batch", "randomness", "results"},
    "construct": {"errors"},
    "hardware": {"errors"},
    "pool": {"results"},
    "storage": {"errors"},
    "completion": {"chem", "records"},
    "oddities": {"chem", "fields"},
    "records": {"chem", "fields"},
    "io": {"chem", "fields", "records"},
    "report": {"metrics"},
    "steering": {"model"},
    "sampler": {"model", "steering"},
    "trajectory": {"model", "sampler"},
    "drawing": {"model", "sampler", "steering", "trajectory"},
    "restart": {"drawing", "sampler"},
    "recipe": {"drawing", "model", "restart", "sampler"},
    "run": {"checkpoint", "samples"},
    "elements": {"drawing", "sampler"},
    "reach": {"drawing"},
    "targets": {"drawing", "sampler"},
    "tasks": {"drawing", "sampler"},
    "descendants": {"drawing", "sampler"},
    "training": {"callbacks", "checkpoint", "logs", "state", "stream", "transfer", "trial"},
    "trial": {"callbacks"},
    "callbacks": {"checkpoint", "curve", "logs", "state"},
    "transfer": {"checkpoint"},
    "average": {"checkpoint"},
    "predictor": {"callbacks", "checkpoint", "stream"},
    "state": {"checkpoint"},
    "logs": {"checkpoint"},
    "curve": {"checkpoint"},
    "generate": {"checkpoint", "filters", "predictor", "run", "samples"},
    "card": {"checkpoint"},
    "evaluation": {"known"},
    "view": {"checkpoint", "evaluation"},
    "resume": {"filters", "run"},
    "filters": {"run", "samples"},
    "catalogue": {"checkpoint"},
    "likeness": {"filters", "run", "samples"},
    "sampling": {"usage"},
    "benchmark": {"usage"},
    "folders": {"options"},
    "jobs": {"options", "usage"},
    "cli": {"folders", "jobs", "options", "sampling", "usage"},
}
"""What a module may import of its own layer."""

LIBRARIES = {
    "rdkit": {
        "chem",
        "completion",
        "oddities",
        "records",
        "descriptors",
        "io",
        "data",
        "metrics",
        "report",
        "evaluation",
        "samples",
        "tasks",
        "view",
        "benchmark",
    },
    "hydra": {"options"},
    "omegaconf": {"options"},
    "lightning": {"training", "callbacks", "stream", "trial", "logs", "predictor"},
    "pytorch_lightning": set(),
    "torch_geometric": {"data"},
    "e3nn": {"nn"},
}
"""Where a library may be imported."""

OPTIONAL = {
    "tblite",
    "posebusters",
    "fcd",
    "matplotlib",
    "qm9pack",
    "biotite",
    "moses",
    "datamol",
    "pandas",
    "molbloom",
}
"""Libraries of the extras: only inside the function that needs them."""


def modules() -> list[str]:
    """Dotted names below `moldiff` of all modules but the package itself."""
    paths = [path.relative_to(ROOT).with_suffix("") for path in ROOT.rglob("*.py")]
    names = [".".join(path.parts).removesuffix(".__init__") for path in paths]
    return sorted(name for name in names if name not in ("__init__", "weights"))


@cache
def imports(module: str) -> tuple[tuple[str, bool], ...]:
    """(absolute name, whether at module level) of everything a module imports at run time."""
    path = ROOT.joinpath(*module.split("."))
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return tuple(_walk(ast.parse(file.read_text(encoding="utf-8")), at_top=True))


def _walk(node: ast.AST, *, at_top: bool) -> Iterator[tuple[str, bool]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from ((alias.name, at_top) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, "relative import"
            yield from ((f"{child.module}.{alias.name}", at_top) for alias in child.names)
        elif not (isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)):
            inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from _walk(child, at_top=at_top and not inside)


def own_imports(module: str, *, only_top: bool = False) -> set[str]:
    """Modules of the package, below `moldiff`, that a module imports."""
    known = set(modules())
    found = set()
    for name, at_top in imports(module):
        parts = name.split(".")
        if parts[0] == "moldiff" and (at_top or not only_top):
            dotted = [".".join(parts[1:end]) for end in range(len(parts), 1, -1)]
            found |= set([name for name in dotted if name in known][:1])
    return found


def layer(module: str) -> int:
    head = module.partition(".")[0]
    found = [level for level, members in enumerate(LAYERS) if head in members]
    assert found, f"moldiff.{head} is in no layer of this test: give it one"
    return found[0]


@pytest.mark.parametrize("module", modules())
def test_imports_point_down(module: str) -> None:
    head = module.partition(".")[0]
    for other in own_imports(module):
        target = other.partition(".")[0]
        allowed = target == head or target in SIBLINGS.get(head, ()) or layer(other) < layer(module)
        assert allowed, f"moldiff.{module} (layer {layer(module)}) imports moldiff.{other} (layer {layer(other)})"


@pytest.mark.parametrize("module", modules())
def test_libraries_stay_where_they_belong(module: str) -> None:
    for name, at_top in imports(module):
        library = name.partition(".")[0]
        if library in LIBRARIES:
            assert module.partition(".")[0] in LIBRARIES[library], f"moldiff.{module} imports {library}"
        assert not (library in OPTIONAL and at_top), f"moldiff.{module} imports {library} at its top"


def test_training_needs_no_rdkit() -> None:
    reached, waiting = set(), {"training"}
    while waiting:
        module = waiting.pop()
        reached.add(module)
        assert not any(name.startswith("rdkit") for name, _ in imports(module)), f"training reaches moldiff.{module}"
        packages = {module.rpartition(".")[0]} - {""}
        waiting |= (own_imports(module, only_top=True) | packages) - reached
    assert "data.loader" in reached


def test_importing_training_loads_no_rdkit() -> None:
    code = "import sys, moldiff.training; print([name for name in ('rdkit', 'hydra') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys; from moldiff.cli import main; main(['--help']); main(['train', '--help']); "
        "heavy = {'torch', 'numpy', 'rdkit', 'hydra', 'omegaconf', 'lightning', 'rich'} & set(sys.modules); "
        "sys.exit(f'{heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_version_has_one_source() -> None:
    import moldiff

    pyproject = (ROOT.parent / "pyproject.toml").read_text(encoding="utf-8")
    assert f'version = "{moldiff.__version__}"' in pyproject or 'dynamic = ["version"]' in pyproject

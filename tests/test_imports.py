"""The rooms of the package: imports only point down, and each library is known only where it belongs."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "moldiff"

ROOMS = (
    (
        "errors processes",
        "the one exception; worker processes with limits for each item",
    ),
    (
        "molecules",
        "what a molecule is: elements, validity, identity, parts; files of them: `formats/sdf.py` reads and writes SDF",
    ),
    (
        "diffusion",
        "`process/` and `nn/`, `model.py`, `sampler.py`, `decoding.py`, and models as folders: `pretrained.py`",
    ),
    ("data", "`moldiff prepare`: from files (`sources/`) by rules (`curation.py`) to a prepared set, and its batches"),
    ("evaluation", "`moldiff evaluate`: a metric is a file in `metrics/` and an entry of `suite.py`"),
    ("tasks", "what can be known beforehand: grow, link, replace, conformers, bonds, formula, analogues, pocket"),
    (
        "sampling",
        "`moldiff sample`: from a model (`generator.py`) to checked molecules (`run.py`), filters, similarity",
    ),
    ("training", "`moldiff train`: Lightning's module and data, callbacks, states, optimizer, finetuning, predictors"),
    ("view", "`moldiff view`: a file as one HTML page"),
    ("cli", "commands, options, help: the only room that knows Hydra"),
)
"""From the bottom up: what a room imports of others stands above it in this list. CONTRIBUTING has it as a table."""

LIBRARIES = (
    ("rdkit", "not in", ("diffusion",)),
    ("torch", "not in", ("errors", "processes", "molecules")),
    ("lightning pytorch_lightning", "only in", ("training",)),
    ("hydra omegaconf", "only in", ("cli",)),
)
"""Where libraries may be imported."""

EXCEPTIONS: dict[str, str] = {}
"""Libraries that modules import against these rules, until they are rewritten."""

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
    "gemmi",
    "vina",
    "meeko",
    "pyarrow",
    "openpyxl",
}
"""Libraries of the extras: only inside the function that needs them."""


def modules() -> list[str]:
    """Dotted names below `moldiff` of all modules but the package itself."""
    paths = [path.relative_to(ROOT).with_suffix("") for path in ROOT.rglob("*.py")]
    names = [".".join(path.parts).removesuffix(".__init__") for path in paths]
    return sorted(name for name in names if name != "__init__")


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


def level(module: str) -> int:
    """How high the room of a module stands."""
    room = module.partition(".")[0]
    rooms = [name for names, _ in ROOMS for name in names.split()]
    assert room in rooms, f"moldiff.{room} is no room of this test: give it a place"
    return rooms.index(room)


@pytest.mark.parametrize("module", modules())
def test_imports_point_down(module: str) -> None:
    for other in own_imports(module):
        same = module.partition(".")[0] == other.partition(".")[0]
        assert same or level(other) < level(module), f"moldiff.{module} imports moldiff.{other}, which stands above it"


@pytest.mark.parametrize("module", modules())
def test_libraries_stay_where_they_belong(module: str) -> None:
    room = module.partition(".")[0]
    for name, at_top in imports(module):
        library = name.partition(".")[0]
        for libraries, where, rooms in LIBRARIES:
            if library in libraries.split() and EXCEPTIONS.get(module) != library:
                assert (room in rooms) == (where == "only in"), f"moldiff.{module} imports {library}"
        assert not (library in OPTIONAL and at_top), f"moldiff.{module} imports {library} at its top"


def test_contributing_has_the_map() -> None:
    contributing = (ROOT.parent / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rows = [(", ".join(f"`{name}`" for name in names.split()), what) for names, what in ROOMS]
    table = ["| room | what is there |", "|---|---|", *(f"| {names} | {what} |" for names, what in rows)]
    assert "\n\n" + "\n".join(table) + "\n\n" in contributing


def test_training_needs_no_rdkit() -> None:
    reached, waiting = set(), {"training.train"}
    while waiting:
        module = waiting.pop()
        reached.add(module)
        assert not any(name.startswith("rdkit") for name, _ in imports(module)), f"training reaches moldiff.{module}"
        packages = {module.rpartition(".")[0]} - {""}
        waiting |= (own_imports(module, only_top=True) | packages) - reached
    assert "data.loader" in reached


def test_importing_training_loads_no_rdkit() -> None:
    code = "import sys, moldiff.training.train; print([name for name in ('rdkit', 'hydra') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("modules", "heavy"),
    [
        ("moldiff.molecules.formats.reader, moldiff.molecules.identity, moldiff.molecules.conformers", "torch scipy"),
        ("moldiff.evaluation.evaluate, moldiff.evaluation.suite", "torch"),
        ("moldiff.data.curation, moldiff.data.sources.files", "torch"),
    ],
)
def test_workers_load_little(modules: str, heavy: str) -> None:
    """What processes of the preparation and of the evaluation import: half a second each for torch would be felt."""
    code = f"import sys, {modules}; print([name for name in {heavy.split()} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys; from moldiff.cli.main import main; main(['--help']); main(['train', '--help']); "
        "heavy = {'torch', 'numpy', 'rdkit', 'hydra', 'omegaconf', 'lightning', 'rich'} & set(sys.modules); "
        "sys.exit(f'{heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_version_has_one_source() -> None:
    import moldiff

    pyproject = (ROOT.parent / "pyproject.toml").read_text(encoding="utf-8")
    assert f'version = "{moldiff.__version__}"' in pyproject or 'dynamic = ["version"]' in pyproject

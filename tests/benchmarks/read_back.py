"""How many molecules of a written file are not what they say, by kind of fault: `tests/read_back.py` at size.

`python tests/benchmarks/read_back.py [--number qm9=10000 drugs=1000] [--file FILE ...] [--out benchmark.json]` samples
each model with `moldiff sample` as a user would, reads the files with RDKit alone, prints records with faults of each
kind, and writes JSON. `--file` reads files that are there already instead; `--conformers qm9=prepared/qm9:500` samples
conformers from the SMILES of so many held-out molecules with stereo, one of each, and asks for the isomer of each line.
The exit code is 1 when a kind that has to be without fault has one.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from rdkit import Chem
from rich.console import Console
from rich.table import Table

from moldiff.data.dataset import MoleculeDataset

sys.path.insert(0, str(Path(__file__).parents[1]))
from read_back import KINDS, counts, findings, isomer, num_records

NONE_ALLOWED = ("graph", "charge", "stereo", "field", "x-h")
_SHOWN = 5  # findings of a kind
_DRAWS = 4  # of each conformer at most


def sampled(model: str, number: int, folder: Path, more: list[str]) -> Path:
    """New molecules of a model, by the command."""
    out = folder / f"{model}.sdf"
    command = [sys.executable, "-m", "moldiff.cli.main", "sample", f"model={model}", f"n={number}", f"out={out}", *more]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return out


def conformers(model: str, data: str, number: int, folder: Path, more: list[str]) -> tuple[Path, list[str]]:
    """A conformer of each of so many test molecules with centres or double bonds, and their SMILES."""
    prepared = MoleculeDataset.load(data)
    places = np.random.default_rng(0).permutation(prepared.split("test")).tolist()
    lines = [text for place in places if set(text := prepared.smiles[place]) & set("@/\\")][:number]
    given, out = folder / f"{model}.smi", folder / f"{model}.conformers.sdf"
    given.write_text("\n".join(lines) + "\n")
    options = ["task=conformers", f"input={given}", "n=1", f"max_draws={_DRAWS * len(lines)}", *more]
    command = [sys.executable, "-m", "moldiff.cli.main", "sample", f"model={model}", f"out={out}", *options]
    # 1: some of them are still missing after so many draws, which the number of records says.
    if subprocess.run(command, check=False, stdout=subprocess.DEVNULL).returncode > 1:
        raise SystemExit("the conformers cannot be drawn")
    return out, lines


def wrong_isomers(path: Path, asked: list[str]) -> list[str]:
    """Records whose coordinates are not those of the line that they were asked for."""
    wrong = []
    for mol in Chem.SDMolSupplier(str(path), removeHs=False):
        line = asked[int(mol.GetProp("input_record")) - 1]
        Chem.AssignStereochemistryFrom3D(mol)
        found = isomer(mol)
        if found != Chem.CanonSmiles(line):
            wrong.append(f"asked for {line}, the coordinates are those of {found}")
    return wrong


def read(path: Path) -> dict[str, Any]:
    """Records of a file, those with faults of each kind, and some of the faults."""
    found = findings(path)
    examples = {kind: [one for one in found if one.kind == kind][:_SHOWN] for kind in KINDS}
    shown = {kind: [f"record {one.record}: {one.detail}" for one in some] for kind, some in examples.items() if some}
    return {"records": num_records(path), "faults": counts(found), "examples": shown}


def main() -> int:
    """Sample or take the files, read them, print and write the numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--number", nargs="*", default=["qm9=10000", "drugs=1000"], metavar="MODEL=N")
    parser.add_argument("--file", nargs="*", type=Path, default=[])
    parser.add_argument("--conformers", nargs="*", default=[], metavar="MODEL=SET:N")
    parser.add_argument("--option", nargs="*", default=[], metavar="NAME=VALUE", help="more options of moldiff sample")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    results: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for path in options.file:
            results[path.name] = read(path)
        for asked in [] if options.file else options.number:
            model, _, number = asked.partition("=")
            results[model] = read(sampled(model, int(number), Path(folder), options.option))
        for asked in options.conformers:
            model, data, number = re.fullmatch(r"(.+?)=(.+):(\d+)", asked).groups()
            path, lines = conformers(model, data, int(number), Path(folder), options.option)
            result, wrong = read(path), wrong_isomers(path, lines)
            result["faults"]["stereo"] += len(wrong)
            result["examples"] |= {"isomer": wrong[:_SHOWN]} if wrong else {}
            results[f"{model}, conformers"] = result
    table = Table("", "records", *KINDS, title="Records with a fault")
    for name, result in results.items():
        table.add_row(name, str(result["records"]), *(str(count) for count in result["faults"].values()))
    console = Console()
    console.print(table)
    for name, result in results.items():
        for kind, some in result["examples"].items():
            console.print(f"{name}, {kind}: {'; '.join(some)}", markup=False)
    if options.out:
        options.out.write_text(json.dumps(results, indent=2) + "\n")
    return int(any(result["faults"][kind] for result in results.values() for kind in NONE_ALLOWED))


if __name__ == "__main__":
    sys.exit(main())

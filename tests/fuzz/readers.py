"""Feed the readers bytes that atheris makes from examples, guided by coverage, and keep those that break them.

`python tests/fuzz/readers.py --seconds 3600 --out findings [--formats .sdf .xyz]`, after `pip install atheris`. The
time is shared out among the formats. What breaks a reader is kept in `findings/FORMAT/`: a file for every place in the
code from which an exception comes, and the one that a crash or a hang of the process left. Each belongs into
`FOUND` of tests/molecules/test_fuzz_read.py, which the default suite runs.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS), str(TESTS / "molecules"), str(TESTS / "data")]

FORMATS = (".sdf", ".xyz", ".smi", ".csv", ".mol2")
TOKENS = (
    *("M  END", "$$$$", "M  CHG  1   1   1", "M  RAD  1   1   2", "M  V30 ", "V3000", "V2000", "BEGIN CTAB", "R#"),
    *("@<TRIPOS>MOLECULE", "@<TRIPOS>ATOM", "@<TRIPOS>BOND", "Properties=", "species:S:1:pos:R:3", "charge=", "nan"),
    *(
        ">  <gap>",
        "1e999",
        "-inf",
        "[2H]",
        "%10",
        "[*]",
        "@@",
        "/C=C/",
        "smiles",
        "999",
        "\\x00",
        "\\x0d",
        "\\xef\\xbb\\xbf",
    ),
    *('"', '""', ";", ",", "|", "#", "\\x09", "\\xb2"),
)
"""What files of these formats are made of; unlikely to come about by chance."""


def one_format(suffix: str, folder: Path, seconds: int) -> None:
    """Fuzz one reader in this process, which ends with it."""
    import atheris

    with atheris.instrument_imports(
        include=["moldiff.molecules.formats", "moldiff.data", "moldiff.molecules.formats.record", "moldiff.molecules"]
    ):
        from test_fuzz_read import SEEDS, check

    corpus = folder / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    (corpus / "example").write_text(SEEDS[suffix], encoding="utf-8")
    (folder / "tokens").write_text("".join(f'"{_quoted(token)}"\n' for token in TOKENS), encoding="utf-8")

    def feed(data: bytes) -> None:
        try:
            check(suffix, data)
        except Exception as error:  # each place is wanted once, and the search goes on
            found = folder / f"{_place(error)}{suffix}"
            if not found.exists():
                found.write_bytes(data)

    options = [f"-max_total_time={seconds}", "-timeout=60", "-max_len=4096", f"-dict={folder / 'tokens'}"]
    options += [f"-artifact_prefix={folder}/", "-print_final_stats=1", "-rss_limit_mb=4096"]
    atheris.Setup([sys.argv[0], *options, str(corpus)], feed)
    atheris.Fuzz()


def _quoted(token: str) -> str:
    return token.replace('"', '\\"')


def _place(error: Exception) -> str:
    """A name for the kind of an exception and the line that it comes from."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}-{Path(frame.filename).stem}-{frame.lineno}"


def run(suffix: str, folder: Path, seconds: int) -> dict[str, Any]:
    """Fuzz one reader for so long, in processes that are started again where one crashes."""
    folder.mkdir(parents=True, exist_ok=True)
    start, executed, crashes = time.monotonic(), 0, 0
    command = [sys.executable, __file__, "--child", suffix, "--out", str(folder)]
    while (left := round(seconds - (time.monotonic() - start))) > 0:
        done = subprocess.run([*command, "--seconds", str(left)], capture_output=True, text=True, errors="replace")
        (folder / "log").write_text(done.stdout + done.stderr, encoding="utf-8")
        counts = re.findall(r"stat::number_of_executed_units:\s*(\d+)", done.stderr)
        executed += int(counts[-1]) if counts else 0
        crashes += done.returncode != 0
        if done.returncode and not counts:
            raise SystemExit(f"{suffix}: {(done.stderr or done.stdout).strip().splitlines()[-1]}")
    found = sorted(path.name for path in folder.iterdir() if path.is_file() and path.name not in ("log", "tokens"))
    corpus = len(list((folder / "corpus").iterdir()))
    return {"format": suffix, "inputs": executed, "corpus": corpus, "process_ended": crashes, "findings": found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=3600, help="in all")
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=FORMATS)
    parser.add_argument("--out", type=Path, required=True, help="a folder for what is found")
    parser.add_argument("--child", choices=FORMATS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        one_format(args.child, args.out, args.seconds)
        return
    for suffix in args.formats:
        found = run(suffix, args.out / suffix[1:], args.seconds // len(args.formats))
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()

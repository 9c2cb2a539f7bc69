"""Where the numbers of a training are written as it goes: a table, a picture of it, and TensorBoard."""

import csv
import io
import math
import time
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from moldiff.errors import MoldiffError
from moldiff.molecules.formats.storage import write_atomically

TABLE_FILE = "log/metrics.csv"
CURVE_FILE = "curve.svg"
_SECONDS = 10.0  # the table is written at most this often, save at the end and before the state is


class MetricsTable(Logger):
    """`log/metrics.csv`: a row for every step at which something was measured.

    A training that is resumed after a `step` goes on with the table up to there.
    """

    name, version = "csv", "log"  # which Lightning has as properties

    def __init__(self, folder: str | Path, *, step: int = 0) -> None:
        super().__init__()
        self._path, self._written = Path(folder) / TABLE_FILE, float("-inf")
        self.rows: dict[int, dict[str, float]] = {}
        if step and self._path.is_file():
            with self._path.open(newline="", encoding="utf-8") as file:
                for row in csv.DictReader(file):
                    if (number := int(row.pop("step"))) <= step:
                        self.rows[number] = {name: float(text) for name, text in row.items() if text}

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Nothing: the training's config lies beside its weights."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        assert step is not None
        is_new = step not in self.rows
        self.rows.setdefault(step, {}).update({name: float(value) for name, value in metrics.items()})
        if is_new and time.monotonic() - self._written > _SECONDS:
            self.save()

    @rank_zero_only
    def save(self) -> None:
        """Write the whole table, so that it is never seen half."""
        if not self.rows:
            return
        columns = ["step", *sorted({name for row in self.rows.values() for name in row})]
        text = io.StringIO(newline="")
        table = csv.DictWriter(text, columns, lineterminator="\n")
        table.writeheader()
        table.writerows({"step": step, **row} for step, row in sorted(self.rows.items()))
        self._path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self._path, text.getvalue().encode())
        self._written = time.monotonic()

    @rank_zero_only
    def finalize(self, status: str) -> None:
        self.save()


def write_curve(path: Path, rows: Mapping[int, Mapping[str, float]]) -> None:
    """Draw the numbers of a training by step: `train/loss` and `valid/loss` above, `sample/...` below."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    series: defaultdict[str, list[tuple[int, float]]] = defaultdict(list)
    for step, row in sorted(rows.items()):
        for name, value in row.items():
            if math.isfinite(value):
                series[name].append((step, value))
    losses = [name for name in ("train/loss", "valid/loss") if name in series]
    samples = sorted(name for name in series if name.startswith("sample/"))
    panels = [(title, names) for title, names in (("Loss", losses), ("Quality of samples", samples)) if names]
    if not panels:
        return
    figure = Figure(figsize=(8, 2.8 * len(panels)))
    figure.subplots_adjust(left=0.1, right=0.75, hspace=0.5)
    for axes, (title, names) in zip(figure.subplots(len(panels), squeeze=False)[:, 0], panels, strict=True):
        for name in names:
            label = f"{name.removeprefix('sample/')} {series[name][-1][1]:.3g}"
            axes.plot(*zip(*series[name], strict=True), label=label, gid=name, marker="o", markevery=[-1], markersize=3)
        axes.set(title=title, xlabel="steps", xlim=(0, max(rows)), ylim=(0, 1) if names is samples else None)
        axes.grid(alpha=0.3)
        axes.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    picture = io.BytesIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": path.name}):  # text as text, and the same file each time
        figure.savefig(picture, format="svg", metadata={"Date": None})
    write_atomically(path, picture.getvalue())


def tensorboard(folder: str | Path, *, step: int = 0) -> Logger:
    """A logger of event files in `tensorboard/` of the training's folder; later events than `step` are hidden."""
    from lightning.pytorch.loggers import TensorBoardLogger

    try:
        return TensorBoardLogger(folder, name="", version="tensorboard", purge_step=step + 1 if step else None)
    except ModuleNotFoundError:
        raise MoldiffError('logger: tensorboard is not installed; pip install "moldiff[tensorboard]"') from None

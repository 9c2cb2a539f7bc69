"""A run: the same molecules from one process and from several, in shards, after an interruption, in little memory."""

from __future__ import annotations

import gc
import logging
import weakref
from collections.abc import Iterable
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from faulty import Deadly, Narrow

import moldiff
from moldiff.diffusion.model import MoleculeDiffusion
from moldiff.diffusion.pretrained import PretrainedModel
from moldiff.diffusion.sampler import PowerSampler
from moldiff.errors import MoldiffError
from moldiff.molecules.formats.writer import Writer, finished_records
from moldiff.sampling.batch import SampleSpec, in_batches, stack_starts
from moldiff.sampling.generator import Generator
from moldiff.sampling.molecule_sampler import IndexBlocks, choose_workers
from moldiff.sampling.run import ResumePoint
from moldiff.sampling.sample import Sample
from moldiff.tasks.task import NewMolecules

FAST = PowerSampler(num_steps=3)


@pytest.fixture(scope="module")
def generator() -> Generator:
    return moldiff.load("qm9", device="cpu")


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moldiff.sampling.molecule_sampler._MAX_BLOCK", 6)


def bits(samples: Iterable[Sample]) -> list[object]:
    """Everything of the molecules, to the last digit."""
    return [
        (s.index, s.smiles, s.unique, s.molecule.pos.tobytes(), s.molecule.hydrogen_offset.tobytes()) for s in samples
    ]


def narrow(generator: Generator, pairs: int, error: Exception) -> tuple[Generator, Narrow]:
    """The generator with a denoiser that runs out of memory."""
    model = generator.checkpoint.model
    denoiser = Narrow(model.denoiser, pairs, error)
    small = MoleculeDiffusion(denoiser, model.process, model.vocabulary, model.statistics)
    return Generator(replace(generator.checkpoint, model=small), generator.device), denoiser


def test_workers_draw_the_molecules_of_one_process(generator: Generator) -> None:
    alone = generator.sample(20, sampler=FAST, workers=0, keep=("valid",))
    shared = generator.sample(20, sampler=FAST, workers=2, keep=("valid",))
    assert len(alone) == 20
    assert bits(shared) == bits(alone)
    assert (shared.drawn, shared.results, shared.complete) == (alone.drawn, alone.results, True)


@pytest.mark.usefixtures("one_thread")
def test_molecules_do_not_depend_on_the_number_of_threads(generator: Generator) -> None:
    alone = bits(generator.sample(20, sampler=FAST, keep=(), workers=0))
    torch.set_num_threads(4)
    assert bits(generator.sample(20, sampler=FAST, keep=(), workers=0)) == alone
    assert torch.get_num_threads() == 4


def test_a_block_whose_worker_died_is_drawn_again(generator: Generator, caplog: pytest.LogCaptureFixture) -> None:
    run, model = generator.stream(14, sampler=FAST, keep=(), workers=2), generator.checkpoint.model
    task = Deadly(*vars(NewMolecules.like_training(model.statistics, model.vocabulary)).values(), at=8)
    deadly = replace(run, molecules=replace(run.molecules, task=task))
    with caplog.at_level(logging.WARNING):
        found = bits(deadly)
    assert found == bits(generator.stream(14, sampler=FAST, keep=(), workers=0))
    assert [record.getMessage() for record in caplog.records] == [
        "molecules 6 to 11 are drawn again: the process that worked on it ended with code 9"
    ]


def test_without_workers_one_process_goes_on_alone(generator: Generator, caplog: pytest.LogCaptureFixture) -> None:
    class Unknown(Narrow):
        """Of a class that no other process can import."""

    other, _ = narrow(generator, 10**6, MemoryError())
    model = other.checkpoint.model
    model.denoiser = Unknown(generator.checkpoint.model.denoiser, 10**6, MemoryError())
    with caplog.at_level(logging.WARNING):
        samples = other.sample(8, sampler=FAST, keep=(), workers=2)
    assert bits(samples) == bits(generator.sample(8, sampler=FAST, keep=(), workers=0))
    assert "workers cannot be used, one process goes on alone" in caplog.records[0].getMessage()


@pytest.mark.parametrize(("workers", "finished"), [(0, 12), (2, 18)])
def test_ctrl_c_returns_what_is_finished(generator: Generator, workers: int, finished: int) -> None:
    def interrupt(done: float) -> None:
        if done > 12:  # within the third block, or behind it where another process draws it
            raise KeyboardInterrupt

    samples = generator.sample(40, sampler=FAST, keep=(), workers=workers, on_progress=interrupt)
    assert [sample.index for sample in samples] == list(range(finished))
    assert not samples.complete
    assert bits(samples) == bits(generator.sample(finished, sampler=FAST, keep=(), workers=0))


def test_two_shards_are_one_run(generator: Generator) -> None:
    whole = generator.sample(20, sampler=FAST, keep=(), seed=3)
    shards = [*generator.sample(9, sampler=FAST, keep=(), seed=3)]
    shards += generator.sample(11, sampler=FAST, keep=(), seed=3, first=9)
    assert [one.index for one in shards] == list(range(20))
    for one, other in zip(whole, shards, strict=True):
        assert one.smiles == other.smiles
        assert one.molecule.name == other.molecule.name
        np.testing.assert_allclose(one.molecule.pos, other.molecule.pos, atol=1e-4)


@pytest.mark.parametrize("keep", [(), ("valid",), ("valid", "unique", "novel")])
def test_a_run_goes_on_behind_any_record_to_the_same_end(
    generator: Generator, keep: tuple[str, ...], tmp_path: Path
) -> None:
    whole = bits(generator.stream(16, sampler=FAST, keep=keep, decode="raw", size=(3, 5), max_draws=4_000))
    assert len(whole) == 16
    for cut in (0, 1, 6, 11, 16):
        with Writer(tmp_path / "a.sdf", streamed=True) as writer:
            run = generator.stream(16, sampler=FAST, keep=keep, decode="raw", size=(3, 5), max_draws=4_000)
            for sample in islice(run, cut):
                writer.write(sample.molecule, sample.record())
        finished = finished_records(tmp_path / "a.sdf") if cut else None
        rest = run.resumed(finished, "a.sdf") if finished else run
        assert bits(rest) == whole[cut:]
        assert (rest.kept, rest.complete) == (16, True)


def test_a_file_of_another_run_is_not_continued(generator: Generator, tmp_path: Path) -> None:
    path = tmp_path / "a.sdf"
    with Writer(path) as writer:
        for sample in generator.stream(3, sampler=FAST, keep=(), seed=1, decode="raw"):
            writer.write(sample.molecule, sample.record())
    finished = finished_records(path)
    for options, message in [
        ({"seed": 2}, "record 1 was drawn with seed=1, expected 2"),
        ({"steps": 4}, "record 1 was drawn with steps=3, expected 4"),
        ({"decode": "valence"}, "record 1 was drawn with decode=raw, expected valence"),
        ({"sampler": PowerSampler(num_steps=3, churn=0.5)}, "record 1 was drawn with sampler="),
        ({"first": 2}, "record 1 has index 0, expected a larger one"),
        ({"size": 4}, "heavy atoms, expected 4 by the options"),
    ]:
        run = generator.stream(5, **({"sampler": FAST, "keep": (), "seed": 1, "decode": "raw"} | options))  # type: ignore[arg-type]
        with pytest.raises(MoldiffError, match=message):
            run.resumed(finished, path)


def test_keys_of_records_are_those_of_the_molecules(generator: Generator) -> None:
    samples = generator.sample(60, sampler=PowerSampler(num_steps=10), workers=0, keep=("valid",))
    from moldiff.molecules import identity

    assert [identity.canonical_key(s.smiles or "") for s in samples] == [s.verdict.canonical for s in samples]


def test_nothing_but_keys_stays_in_memory(generator: Generator) -> None:
    alive: list[weakref.ref[Sample]] = []
    most = 0
    for sample in generator.stream(15, sampler=FAST, keep=()):
        alive.append(weakref.ref(sample))
        if sample.index % 5 == 4:
            gc.collect()
            most = max(most, sum(reference() is not None for reference in alive))
    assert len(alive) == 15
    assert most <= 2


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried to ..."
        ),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: not enough memory: you tried to ..."),
    ],
)
def test_batches_are_halved_where_memory_runs_out(generator: Generator, error: Exception) -> None:
    small, denoiser = narrow(generator, 200, error)
    samples = small.sample(12, sampler=FAST, keep=(), workers=0)
    expected = generator.sample(12, sampler=FAST, keep=(), workers=0)
    assert [s.smiles for s in samples] == [s.smiles for s in expected]
    for one, other in zip(samples, expected, strict=True):
        np.testing.assert_allclose(one.molecule.pos, other.molecule.pos, atol=1e-4)
    assert 1 <= denoiser.failures <= 3, "the budget stays small for the blocks that follow"


def test_what_does_not_fit_is_said(generator: Generator) -> None:
    small, _ = narrow(generator, 10, MemoryError())
    with pytest.raises(MoldiffError, match="size: a molecule of 9 heavy atoms does not fit into memory"):
        small.sample(3, sampler=FAST, size=9, workers=0)
    other, _ = narrow(generator, 10, RuntimeError("something else"))
    with pytest.raises(RuntimeError, match="something else"):
        other.sample(3, sampler=FAST, size=9, workers=0)


def test_batches_stay_within_their_budget() -> None:
    task = NewMolecules({3: 1, 9: 5, 20: 1})
    specs = [SampleSpec.of(task, 0, index) for index in range(40)]
    batches = list(in_batches(specs, 500))
    assert sorted(one.index for batch in batches for one in batch) == list(range(40))
    assert all(len(batch) == 1 or len(batch) * max(one.size for one in batch) ** 2 <= 500 for batch in batches)
    assert max(len(batch) for batch in batches) >= 6


def test_blocks_cover_what_may_be_drawn_once() -> None:
    blocks = IndexBlocks(first=5, needed=20, limit=50, length=6)
    found = list(blocks.behind(5))
    assert [index for block in found for index in block] == list(range(5, 55))
    assert found[3] == range(23, 25), "a block ends with the molecules that are needed"
    assert list(blocks.behind(12)) == found[1:]
    assert list(IndexBlocks(first=0, needed=9, limit=4, length=6).behind(0)) == [range(4)]


def test_padding_of_starts_is_unknown() -> None:
    starts = [NewMolecules({size: 1}).begin(0, torch.Generator()) for size in (2, 4)]
    allowed = torch.zeros(1, 2, 3, dtype=torch.bool)
    stacked = stack_starts([replace(starts[0], allowed=allowed), starts[1]])
    assert stacked.clean.node_mask.tolist() == [[True, True, False, False], [True] * 4]
    assert stacked.clean.bond.shape == (2, 4, 4)
    assert bool((stacked.level.pos == 1).all())
    assert stacked.allowed is not None
    assert stacked.allowed[0].tolist() == [[False] * 3] * 2 + [[True] * 3] * 2
    assert bool(stacked.allowed[1].all())


def test_workers_are_for_long_runs(generator: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moldiff.sampling.molecule_sampler.available_cpus", lambda: 2)
    monkeypatch.setattr("torch.get_num_threads", lambda: 2)
    molecules = generator.stream(1).molecules
    assert [choose_workers(molecules, 0, n) for n in (1, 100, 400, 2000)] == [0, 0, 2, 2]
    assert choose_workers(generator.stream(1, size=40).molecules, 0, 50) == 2
    monkeypatch.setattr("torch.get_num_threads", lambda: 1)
    assert choose_workers(molecules, 0, 100_000) == 0


def test_nothing_is_drawn_for_a_run_that_is_complete(generator: Generator) -> None:
    run = replace(generator.stream(5, sampler=FAST), done=ResumePoint(5, 7))
    assert list(run) == []
    assert (run.complete, run.drawn) == (True, 0)


def test_a_number_of_workers_is_checked(generator: Generator) -> None:
    with pytest.raises(MoldiffError, match="workers: got -1, expected a whole number from 0 to"):
        generator.sample(1, workers=-1)
    assert isinstance(generator.checkpoint, PretrainedModel)

"""The quality of a model during its training: sample from it, and count."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, median

import numpy as np

from moldiff.diffusion.compute import FLOAT32
from moldiff.diffusion.model import MoleculeDiffusion
from moldiff.diffusion.pretrained import PretrainedModel
from moldiff.diffusion.sampler import Sampler
from moldiff.evaluation.metrics.relaxation import energy_drop
from moldiff.evaluation.molecule_set import quality
from moldiff.molecules import convert, validity
from moldiff.molecules.molecule import Molecule
from moldiff.sampling.generator import Generator

_LOGGED = ("p1_atom_stable", "p1_molecule_stable", "p2_molecule_stable", "p2_valid", "p2_valid_unique")


def sample_quality(model: MoleculeDiffusion, *, num_samples: int, sampler: Sampler) -> dict[str, float]:
    """P1, P2 and `geometry` of raw molecules and validity of decoded ones, for the first so many of seed 0."""
    nowhere = PretrainedModel(model, Path(), "model in training", "", {})
    run = Generator(nowhere, next(model.parameters()).device).stream(
        num_samples, sampler=sampler, keep=(), workers=0, arithmetic=FLOAT32
    )
    samples = list(run)
    if run.interrupted:
        raise KeyboardInterrupt
    raw = [sample.argmax for sample in samples]
    found = quality(raw)
    scores = {name: found[name] for name in _LOGGED if name in found}
    scores["decoded_p2_valid"] = quality([sample.molecule for sample in samples])["p2_valid"]
    return scores | geometry([molecule for molecule in raw if validity.check(molecule) is None])


def geometry(molecules: Sequence[Molecule]) -> dict[str, float]:
    """What validity does not see, of valid molecules; what cannot be measured is left out.

    Means of the radius of gyration (Å), at the most frequent size, and of the hydrogens of a heavy atom; the median of
    the energy that a molecule loses by relaxing (kcal/mol).
    """
    if not molecules:
        return {}
    size, _ = Counter(molecule.num_heavy_atoms for molecule in molecules).most_common(1)[0]
    drops = [drop for molecule in molecules if (drop := energy_drop(convert.to_rdkit(molecule))) is not None]
    radii = [float(np.sqrt(one.pos.var(0).sum())) for one in molecules if one.num_heavy_atoms == size]
    return {
        "radius_of_gyration": mean(radii),
        "hydrogens": mean(float(one.num_hydrogens.mean()) for one in molecules),
        **({"mmff94s_drop": median(drops)} if drops else {}),
    }

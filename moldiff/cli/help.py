"""What `moldiff --help` and `moldiff COMMAND --help` print, each fitting on a screen, and what the exit codes are."""

from __future__ import annotations

from moldiff.cli.options import help_lines, options_in, options_of
from moldiff.sampling.config import Likeness

EXIT_OK, EXIT_FAILED, EXIT_WRONG_INPUT, EXIT_INTERRUPTED = 0, 1, 2, 130

GENERAL = """\
moldiff - 3D molecules by E(3)-equivariant diffusion

usage: moldiff COMMAND [key=value ...]

commands:
  sample     draw new molecules from a trained model and write them to a file
  evaluate   score a file of molecules, whoever made it
  view       a file of molecules as one HTML page: 2D, 3D, filters, plots
  verify     whether the records of a file are what moldiff drew
  merge      the parts of a command with shards=K as one result
  prepare    turn a source of molecules into a prepared set
  train      train a model on a prepared set
  models     list the models of the package

options:
  -h, --help         this text; moldiff COMMAND --help shows a command's options
  --version          the version
  hydra.job.chdir=true   with any COMMAND: work in the folder of its output

examples:
  moldiff sample n=1000 size=7..9 seed=1 out=small.sdf
  moldiff evaluate input=molecules.sdf
  moldiff view input=molecules.sdf
  moldiff train experiment=quick
"""

_COMMON = """\
  --cfg              print all options with their values and stop
  --config-dir DIR   look in DIR for own configs, too
  -m                 a job for each combination of KEY=A,B or KEY=range(1,4)
"""


def _lines(command: str) -> str:
    """The options of a command but those inside of groups, and what every command has."""
    return help_lines(one for one in options_of(command).values() if "." not in one.name) + _COMMON


SAMPLE = f"""\
moldiff sample - draw new molecules from a trained model into a file

usage: moldiff sample [key=value ...]

options and their defaults:
{_lines("sample")}
examples:
  moldiff sample n=1000 size=7..9 seed=1 out=small.sdf
  moldiff sample n=20 'keep=[valid,unique,novel]' out=new.csv
"""

TASKS = """\
moldiff sample task=NAME - start from what is known of a molecule

grow       new atoms on a molecule or a part of it, which stays as it is
  core=FILE|SMILES    one molecule in 3D, or a SMILES; * marks an open end
  keep=null           atoms that stay: [0,1,2] (from 0) or a SMARTS; null = all
  attach=null         atoms that gain a bond; null = open ends, else any
  new_atoms=null      heavy atoms to add: 3, or 2..4
link       new atoms between two or more pieces
  core=FILE|SMILES    the pieces in 3D, which stay, or as SMILES, each with *
  keep, attach, new_atoms   as for grow; attach: at least one in each piece
replace    new atoms in the place of others
  core=FILE|SMILES    remove=ATOMS   attach, new_atoms   as for grow
conformers n conformers of each molecule, with its stereochemistry
  smiles=SMILES       or input=FILE; smiles=- reads standard input
  rmsd=null           leave out those nearer than this to one before (A)
bonds      bonds and charges for coordinates
  input=FILE          with all hydrogens, such as an .xyz file
  charge=null         of all, or of each: [-1,0]; null = as the file says, or 0
  any_charge=false    true = leave charges to the model
formula    molecules of one formula
  formula=C7H10N2O    with its charge, if any: C2H8N+
analogues  n neighbours of each molecule
  of=FILE|SMILES      noise=null = by the run's similarity, or 0.6; 0 to 1
pocket     molecules in the pocket of a protein; pip install "moldiff[pocket]"
  receptor=FILE       .pdb or .cif; also=null = residues that stay: HEM, ...
  ligand=FILE         where: a molecule that lies in the pocket
  center=null         or x, y, z (A); residues=null = or around A:85, ...
  core, keep, attach  as for grow, in the receptor's frame
  new_atoms=null      by the free volume; strength=1.5 = how much it bends them

Text with special characters goes in quotes: 'smiles="C#N"'.
All options of `moldiff sample` but size go with them.

examples:
  moldiff sample task=grow core=c1ccccc1 attach=0 new_atoms=2..3 n=20
  moldiff sample task=replace 'core="CC(=O)NC"' 'remove="C(=O)"' new_atoms=2
  moldiff sample task=conformers 'smiles="C[C@H](O)CN"' n=10 out=conf.sdf
  moldiff sample task=bonds input=molecules.xyz out=bonds.sdf
  moldiff sample task=analogues of=molecules.sdf noise=0.5 n=5 out=near.sdf
  moldiff sample task=pocket model=drugs receptor=a.pdb ligand=old.sdf n=20
"""

CHOICE = f"""\
moldiff sample filters=... columns=... like=... - choose among the molecules

filters=null  kept molecules pass all of them; null = the model's own, [] = no
            filter; counts are in the summary, values in the records, and
            drawing goes on until n pass (max_draws)
  stable                   no group that falls apart; drugs has it as its own
  pains, nibr, brenk       no structural alert of that list
  lipinski, veber, ro3     rules of thumb
  sa<4.5, qed>=0.5, ...    bounds on qed, sa, logp, tpsa, mw, heavy_atoms,
                           rotatable_bonds, rings, donors, acceptors, fsp3
columns=[]  for the records of kept ones; pip install "moldiff[lookup]"
  purchasable    in stock in ZINC20; 7 % of others are found, too
  known_drug     the name of an approved drug of the same graph in ChEMBL
like=FILE   a molecule in 3D, or a SMILES: the n best by overlay of shape and
            pharmacophore, best first, moved onto it; like_score is from 0 to 1.
            All is written at the end, so resume=true cannot go on with it
{help_lines(options_in(Likeness, "like."), 27)}
examples:
  moldiff sample n=20 'filters=[pains,nibr,sa<4.5]' columns=[known_drug]
  moldiff sample n=50 like=ligand.sdf like.rounds=3 out=alike.sdf
"""

EVALUATE = f"""\
moldiff evaluate - score a file of molecules, whoever made it

usage: moldiff evaluate input=FILE [key=value ...]

options and their defaults:
{_lines("evaluate")}
examples:
  moldiff evaluate input=molecules.sdf
  moldiff evaluate input=molecules.sdf reference=qm9 out=report
  moldiff evaluate input=molecules.sdf 'metrics=[p3,xtb]' out=report.json
"""

VIEW = f"""\
moldiff view - a file of molecules as one HTML page that works offline

usage: moldiff view input=FILE [key=value ...]

options and their defaults:
{_lines("view")}
examples:
  moldiff view input=molecules.sdf
  moldiff view input=molecules.sdf reference=qm9 out=page.html
  moldiff view input=molecules.sdf 'metrics=[geometry,druglike]'
  moldiff sample n=20 trajectory=true && moldiff view input=molecules.sdf
"""

VERIFY = f"""\
moldiff verify - whether the records of a file are what moldiff drew

usage: moldiff verify input=FILE [key=value ...]

Draws each record again from its own fields: model, weights, seed, index and
settings. Reproduced = it is the same to rounding; changed = it is not, and how;
foreign = it does not say that moldiff drew it; unknown = it cannot be drawn
again here, for example with other weights. The exit code is 0 if all are
reproduced, and 1 otherwise.

options and their defaults:
{_lines("verify")}
examples:
  moldiff verify input=molecules.sdf
  moldiff verify input=molecules.sdf out=verified.json
"""

MERGE = f"""\
moldiff merge - the parts of a command with shards=K as one result

usage: moldiff merge input=FOLDER [key=value ...]

Where `moldiff sample shards=3/8` or `moldiff prepare shards=3/8` made the parts
one by one. All have to be there, and of the same options, weights and version.
The result is what the command alone would have written.

options and their defaults:
{_lines("merge")}
examples:
  moldiff merge input=molecules.shards
  moldiff merge input=prepared/mine.shards
"""

PREPARE = f"""\
moldiff prepare - turn a source of molecules into a prepared set

usage: moldiff prepare data.path=FILE [key=value ...]

options and their defaults:
  data.path=FILE      file, folder or pattern of .sdf, .mol, .mol2, .xyz, .smi,
                      .csv, .tsv (each also .gz) and .parquet
  data=qm9            instead: QM9, needs pip install "moldiff[qm9]"
  data=drugs          or PDB ligands and data.num_moses=300000 molecules of
                      MOSES with ETKDGv3 + MMFF94s; goes on where it was ended.
                      Needs "moldiff[drugs]" and pip install --no-deps molsets
{help_lines(options_of("prepare").values())}with data.path:
  data.hydrogens=add        or keep; none = heavy atoms alone
  data.fragments=largest    or reject
  data.conformers=etkdg     where 3D is missing: ETKDGv3 + MMFF94s; or reject
  data.radicals=false       data.elements=[] to take as drawn, such as [Pt]
  data.min_count=null       fewest molecules an atom class must be in
  data.smiles_column=null   found by name or content; data.name_column=null
  data.valid_share=0.1      data.test_share=0.1, or data.split_field=COLUMN
  data.seed=0               data.time_limit=60.0 seconds a record
{_COMMON}
examples:
  moldiff prepare data.path=mine.sdf
  moldiff prepare data.path=drugs.csv data.smiles_column=structure limit=500
  moldiff prepare data=qm9 limit=2000 out=prepared/tiny
"""

TRAIN = f"""\
moldiff train - train a model on your own molecules or on a prepared set

usage: moldiff train [key=value ...]

options and their defaults:
  experiment=NAME     qm9 = the shipped model, quick = two minutes in all
  data=qm9            qm9 or sample (1,000 molecules); data.folder=prepared/qm9
  data.path=FILE      instead: own molecules, prepared first as moldiff prepare
                      does, with its options, into prepared/ and their name
  condition=properties         learn to draw towards the set's properties
  denoiser=pair_transformer    or small, egnn; denoiser.num_layers=6 ...
  process=joint_linear         or joint_cosine; a further loss:
'process.geometry={{_target_: moldiff.diffusion.process.geometry_loss.Distances}}'
  prior=marginal               of the classes; or uniform, absorbing
  optimizer=muon               or adamw; optimizer.muon_lr=0.015, ...
  logger=csv          log/metrics.csv and curve.svg; or [csv,tensorboard]
{help_lines(options_of("train").values())}\
  other: self_conditioning, ema_decay, compile, field_weights, times, tasks,
         schedule, sampler, quality; --cfg shows their values
{_COMMON}
examples:
  moldiff train experiment=quick && moldiff sample model=runs/quick
  moldiff train experiment=qm9
  moldiff train data.path=mine.sdf init=qm9 trainer.max_steps=2000
  moldiff train out=runs/qm9 experiment=qm9 resume=true
"""

COMMANDS = {
    "sample": SAMPLE,
    "evaluate": EVALUATE,
    "view": VIEW,
    "verify": VERIFY,
    "prepare": PREPARE,
    "merge": MERGE,
    "train": TRAIN,
}

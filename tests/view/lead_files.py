"""Files of drug-like molecules that were grown on a core, as `moldiff sample task=grow` writes them."""

import json
from collections.abc import Sequence
from pathlib import Path

from rdkit import Chem
from rdkit.Chem.rdDistGeom import EmbedMolecule

CORE = "c1ccc2[nH]cc(CC*)c2c1"
GROWN = {
    "amide": "CC(=O)NCCc1c[nH]c2ccccc12",
    "piperidine": "C1CCN(CCc2c[nH]c3ccccc23)CC1",
    "ether": "COCCc1c[nH]c2ccccc12",
    "benzamide": "O=C(NCCc1c[nH]c2ccccc12)c1ccccc1",
    "sulfonamide": "CS(=O)(=O)NCCc1c[nH]c2ccccc12",
    "chloride": "ClCCCCc1c[nH]c2ccccc12",
}
OTHERS = {
    "aspirin": "CC(=O)Oc1ccccc1C(=O)O",
    "caffeine": "Cn1cnc2c1c(=O)n(C)c(=O)n2C",
    "ibuprofen": "CC(C)Cc1ccc(cc1)C(C)C(=O)O",
}


def grown_file(path: Path, molecules: dict[str, str] = GROWN, core: str | None = CORE) -> Path:
    """Write molecules with conformers; with a core their kept atoms and what they were made from."""
    with Chem.SDWriter(str(path)) as writer:
        for name, smiles in molecules.items():
            mol = Chem.AddHs(Chem.MolFromSmiles(smiles))
            EmbedMolecule(mol, randomSeed=1)
            mol.SetProp("_Name", name)
            if core is not None:
                part = Chem.MolFromSmiles(core.replace("*", ""))  # whose atoms have the same order but for the *
                mol.SetProp("kept", _numbers(mol.GetSubstructMatch(part)))
                params = Chem.SmilesParserParams()
                params.removeHs = False
                atoms = Chem.MolFromSmiles(core, params).GetAtoms()
                mol.SetProp("kept_from", _numbers([atom.GetIdx() for atom in atoms if atom.GetAtomicNum()]))
                mol.SetProp("task", json.dumps({"name": "grow", "core": core}))
            writer.write(mol)
    return path


def _numbers(numbers: Sequence[int]) -> str:
    return " ".join(map(str, numbers))

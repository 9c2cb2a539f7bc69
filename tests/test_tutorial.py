"""The tutorial runs from its first cell to its last, and shows what it says."""

from __future__ import annotations

from pathlib import Path

import pytest
from models import needs_weights
from rdkit import Chem
from read_back import findings

TUTORIAL = Path(__file__).parents[1] / "docs" / "tutorial.ipynb"


@needs_weights
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_tutorial_ends_with_ten_candidates(tmp_path: Path) -> None:
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    pytest.importorskip("pandas")
    pytest.importorskip("ipywidgets")
    notebook = nbformat.read(TUTORIAL, as_version=4)
    client = nbclient.NotebookClient(notebook, timeout=180, resources={"metadata": {"path": str(tmp_path)}})
    client.execute()
    shown = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert not [output for output in shown if output.output_type == "error"]
    html = [output.data.get("text/html", "") for output in shown if output.output_type == "execute_result"]
    widgets = [output for output in shown if "application/vnd.jupyter.widget-view+json" in output.get("data", {})]
    assert len(widgets) == 1  # the bar of the run
    assert "sampling" in str(notebook.metadata.widgets)
    assert [kind for kind in html if kind.count("<svg") == 10]  # the grid
    assert len([kind for kind in html if "3Dmol" in kind]) == 2  # a molecule, and the page
    assert "['reproduced'" in "".join(output.data.get("text/plain", "") for output in shown if "data" in output)
    assert findings(tmp_path / "candidates.sdf") == []
    mols = list(Chem.SDMolSupplier(str(tmp_path / "candidates.sdf")))
    assert len({Chem.MolToSmiles(mol) for mol in mols}) == 10
    assert all(mol.GetProp("relaxed") == "ok" and float(mol.GetProp("qed")) > 0.5 for mol in mols)

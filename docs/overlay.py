"""Draw the best molecules of a ranked file over their reference, side by side.

`python docs/overlay.py RANKED.sdf REFERENCE.sdf overlay.png [NUMBER]` needs `pip install ".[browser]"`, Chromium and
its driver. RANKED.sdf is what `moldiff sample like=REFERENCE.sdf` wrote.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from importlib import resources
from pathlib import Path

import numpy as np
from rdkit import Chem

from moldiff.molecules.formats.reader import records

WIDTH, HEIGHT, CAPTION = 300, 260, 44
_FLAGS = ("--headless=new", "--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader")
_PAGE = """<!doctype html><meta charset="utf-8"><style>
body {{ margin: 0; background: white; display: flex; font: 14px sans-serif; text-align: center }}
.stage {{ position: relative; width: {width}px; height: {height}px }}
</style><body><script>{script}</script><script>
for (const one of {panels}) {{
  const panel = document.body.appendChild(document.createElement("div"));
  const stage = panel.appendChild(document.createElement("div"));
  stage.className = "stage";
  for (const line of one.caption) panel.appendChild(document.createElement("div")).textContent = line;
  const viewer = $3Dmol.createViewer(stage, {{ backgroundColor: "white", antialias: true }});
  viewer.addModel({reference}, "sdf").setStyle({{}}, {{ stick: {{ radius: 0.1, color: "#e0a030" }} }});
  const look = {{ stick: {{ radius: 0.13 }}, sphere: {{ scale: 0.2 }} }};
  if (one.block) viewer.addModel(one.block, "sdf").setStyle({{}}, look);
  viewer.zoomTo();
  viewer.zoom(1.5);
  viewer.render();
}}
</script>"""


def read(path: str) -> list[Chem.Mol]:
    """The molecules of a file that can be read."""
    return [record.mol for record in records(path) if record.mol is not None and record.problem is None]


def facing(mols: list[Chem.Mol]) -> list[str]:
    """MOL blocks of molecules in one frame, turned so that the first one's broadest side is seen."""
    pos = mols[0].GetConformer().GetPositions()
    centre = pos.mean(0)
    axes = np.linalg.svd(pos - centre)[2]
    axes[2] *= np.sign(np.linalg.det(axes))
    blocks = []
    for mol in mols:
        turned = Chem.Mol(mol)
        turned.GetConformer().SetPositions((mol.GetConformer().GetPositions() - centre) @ axes.T)
        blocks.append(Chem.MolToMolBlock(turned))
    return blocks


def page(ranked: list[Chem.Mol], reference: Chem.Mol) -> str:
    """A panel with the reference, and one for each molecule over it."""
    first, *blocks = facing([reference, *ranked])
    panels: list[dict[str, object]] = [{"block": None, "caption": [Chem.MolToSmiles(Chem.RemoveHs(reference)), ""]}]
    for mol, block in zip(ranked, blocks, strict=True):
        score = f"overlay {float(mol.GetProp('like_score')):.2f}"
        panels.append({"block": block, "caption": [mol.GetProp("SMILES"), score]})
    script = resources.files("moldiff.view").joinpath("assets/3Dmol-min.js").read_text(encoding="utf-8")
    texts = {"panels": json.dumps(panels), "reference": json.dumps(first), "script": script}
    return _PAGE.format(width=WIDTH, height=HEIGHT, **texts)


def main(ranked: str, reference: str, out: str, number: str = "3") -> None:
    """Draw the picture."""
    from selenium import webdriver

    chosen = read(ranked)[: int(number)]
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for flag in _FLAGS:
        options.add_argument(flag)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "overlay.html")
        path.write_text(page(chosen, read(reference)[0]), encoding="utf-8")
        driver = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
        try:
            size = {
                "width": WIDTH * (len(chosen) + 1),
                "height": HEIGHT + CAPTION,
                "deviceScaleFactor": 1,
                "mobile": False,
            }
            driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
            driver.get(path.as_uri())
            driver.save_screenshot(out)
        finally:
            driver.quit()


if __name__ == "__main__":
    main(*sys.argv[1:])

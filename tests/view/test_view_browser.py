"""The page in a real browser, driven as a user does; needs chromium, chromedriver and `pip install ".[browser]"`."""

import csv
import io
import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lead_files import GROWN, OTHERS, grown_file
from models import small_model
from PIL import Image
from rdkit import Chem
from rdkit.Chem.rdFingerprintGenerator import GetMorganGenerator
from rdkit.DataStructs import TanimotoSimilarity

import moldiff
from moldiff.data.dataset import MoleculeDataset
from moldiff.diffusion.pretrained import PretrainedModel
from moldiff.diffusion.sampler import PowerSampler
from moldiff.sampling.generator import Generator
from moldiff.view import view

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (shutil.which("chromium") and shutil.which("chromedriver")), reason="no chromium with chromedriver"
    ),
]
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--use-angle=swiftshader",  # WebGL without a graphics card
    "--enable-unsafe-swiftshader",
    "--window-size=1200,1000",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("browser")


def chromium(folder: Path) -> Any:
    """A browser that saves into `downloads` of a folder."""
    webdriver = pytest.importorskip("selenium.webdriver")
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for flag in (*FLAGS, f"--user-data-dir={folder / 'profile'}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
    (folder / "downloads").mkdir()
    where = {"behavior": "allow", "downloadPath": str(folder / "downloads")}
    driver.execute_cdp_cmd("Browser.setDownloadBehavior", where)
    return driver


@pytest.fixture(scope="module")
def browser(folder: Path) -> Iterator[Any]:
    driver = chromium(folder)
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def page(folder: Path) -> Path:
    """Eight molecules with films, one of them with charges that cannot be, one with a name that tries to run."""
    checkpoint = PretrainedModel(small_model().float(), Path("nowhere"), "small", "0123456789ab", {})
    generator = Generator(checkpoint, torch.device("cpu"))
    samples = list(generator.sample(8, sampler=PowerSampler(num_steps=6), keep=(), trajectory=True))
    hostile = replace(samples[3].molecule, name="<img src=x onerror=window.ran=1>")
    samples[3] = replace(samples[3], molecule=hostile)
    broken = replace(samples[6].molecule, formal_charge=samples[6].molecule.formal_charge + 3)
    samples[6] = replace(samples[6], molecule=broken)
    return view(samples, folder / "few.html")


@pytest.fixture
def grown(browser: Any, folder: Path) -> Iterator[Any]:
    """Six molecules grown on a core, freshly opened."""
    path = folder / "grown.html"
    yield from _watched(browser, path if path.is_file() else view(grown_file(folder / "grown.sdf")))


@pytest.fixture
def two(browser: Any, folder: Path) -> Iterator[Any]:
    """Two files side by side, freshly opened."""
    path = folder / "two.html"
    if not path.is_file():
        view([grown_file(folder / "a.sdf"), grown_file(folder / "b.sdf", OTHERS, core=None)], path)
    yield from _watched(browser, path)


@pytest.fixture
def opened(browser: Any, page: Path) -> Iterator[Any]:
    """The page, freshly opened; afterwards the browser has nothing to complain of and has fetched nothing else."""
    yield from _watched(browser, page)


def _watched(browser: Any, path: Path) -> Iterator[Any]:
    browser.get("about:blank")
    for log in ("browser", "performance"):
        browser.get_log(log)
    browser.get(path.as_uri())
    yield browser
    assert browser.execute_script("return window.ran") is None
    assert browser.get_log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    fetched = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
    assert [url for url in fetched if not url.startswith(("data:", "blob:"))] == [path.as_uri()]


def find(browser: Any, selector: str) -> Any:
    return browser.find_element("css selector", selector)


def click(browser: Any, selector: str) -> None:
    """Click, once cards that are drawn only now have moved the place no more."""
    element = find(browser, selector)
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)
    script = "const done = arguments[0]; requestAnimationFrame(() => requestAnimationFrame(done))"
    browser.execute_async_script(script)
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)
    element.click()


def names(browser: Any) -> list[str]:
    """Names of the cards that are shown, in their order."""
    script = "return [...document.querySelectorAll('.card:not([hidden]) h2')].map((head) => head.textContent)"
    return list(browser.execute_script(script))


def wait(browser: Any, condition: str, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not browser.execute_script(f"return Boolean({condition})"):
        assert time.monotonic() < end, f"in vain waited for {condition}"
        time.sleep(0.05)


def download(browser: Any, folder: Path, kind: str, name: str) -> Path:
    """What an export in a format has written."""
    browser.execute_script("document.getElementById('format').value = arguments[0]", kind)
    click(browser, "#export")
    target = folder / "downloads" / name
    end = time.monotonic() + 20
    while not target.is_file():
        assert time.monotonic() < end, f"in vain waited for {name}"
        time.sleep(0.05)
    return target


def search(browser: Any, smarts: str) -> list[str]:
    """Names of the cards that a SMARTS finds."""
    browser.execute_script("document.getElementById('mode').value = 'smarts'")
    find(browser, "#search").clear()
    find(browser, "#search").send_keys(smarts)
    script = (
        "const done = arguments[1]; gallery.search().then(() => setTimeout(() => gallery.search().then(done), 200))"
    )
    browser.execute_async_script(script, smarts)
    return names(browser)


@contextmanager
def phone(browser: Any, width: int = 390, height: int = 844) -> Iterator[None]:
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        yield
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def drag(browser: Any, start: tuple[float, float], end: tuple[float, float]) -> None:
    """Draw over a part of the plot, whose corners are shares of its width and height."""
    browser.execute_script("document.getElementById('plot').scrollIntoView({block: 'center'})")
    box = browser.execute_script("return document.getElementById('plot').getBoundingClientRect().toJSON()")
    (x0, y0), (x1, y1) = (
        (int(box["x"] + x * box["width"]), int(box["y"] + y * box["height"])) for x, y in (start, end)
    )
    actions = pytest.importorskip("selenium.webdriver.common.actions.action_builder").ActionBuilder(browser)
    actions.pointer_action.move_to_location(x0, y0).pointer_down().move_to_location(x1, y1).pointer_up()
    actions.perform()


def picture(browser: Any) -> str:
    """What the 3D viewer shows."""
    return str(browser.execute_script("return gallery.detail.stage.viewer.pngURI()"))


def slide(browser: Any, frame: int) -> None:
    script = "const s = document.getElementById('frame'); s.value = arguments[0]; s.dispatchEvent(new Event('input'))"
    browser.execute_script(script, frame)


def test_search_filter_and_sort(opened: Any) -> None:
    everything = names(opened)
    assert len(everything) == 8
    find(opened, "#search").send_keys("small-0-5")
    wait(opened, "document.querySelectorAll('.card:not([hidden])').length === 1")
    assert names(opened) == ["small-0-5"]
    find(opened, "#search").clear()
    find(opened, "#search").send_keys("onerror")
    wait(opened, "document.querySelector('#count').textContent.startsWith('1 of 8')")
    opened.execute_script("document.getElementById('search').value = ''; gallery.update()")
    click(opened, "#refine summary")
    size = len(opened.find_elements("css selector", ".card:not([hidden])"))
    find(opened, "[name=low]").send_keys("5")
    click(opened, "#filter button")
    assert 0 < len(names(opened)) < size
    assert find(opened, "#filters button").get_attribute("aria-label").startswith("Remove filter heavy atoms: 5")
    click(opened, "#filters button")
    assert names(opened) == everything
    click(opened, "#direction")
    assert names(opened) == everything[::-1]
    box = find(opened, "#statuses input")
    count = opened.execute_script("return Number(/\\d+/.exec(arguments[0].parentNode.textContent)[0])", box)
    box.click()
    assert len(names(opened)) == 8 - count


def test_3d_turns_and_the_film_plays(opened: Any) -> None:
    assert not opened.find_elements("css selector", "canvas"), "the viewer is made on demand"
    click(opened, "#m1 .open")
    wait(opened, "document.querySelector('#stage canvas') && !document.querySelector('#stage').hidden")
    before = picture(opened)
    find(opened, "#stage").send_keys("\ue014")  # arrow right
    assert picture(opened) != before
    assert "molecule" in find(opened, "#frame-number").text
    last = picture(opened)
    slide(opened, 0)
    assert find(opened, "#frame-number").text == "frame 1 of 7"
    assert picture(opened) != last
    click(opened, "#play")
    wait(opened, "document.querySelector('#frame-number').textContent === 'molecule'")
    assert picture(opened) == last
    click(opened, "#next")
    assert find(opened, "#detail-name").text == "small-0-2"
    assert len(opened.find_elements("css selector", "canvas")) == 1, "one viewer serves all"
    opened.switch_to.active_element.send_keys("\ue00c")  # escape
    # The browser first gives the focus back to where it was, the page then takes it to the molecule shown last.
    wait(opened, "document.activeElement.closest('.card') && document.activeElement.closest('.card').id === 'm2'")
    assert not opened.execute_script("return document.getElementById('detail').open")


def test_the_pocket_is_around_the_molecule(browser: Any, folder: Path) -> None:
    pytest.importorskip("gemmi")
    file = grown_file(folder / "docked.sdf", {"ether": GROWN["ether"]}, core=None)
    mol = Chem.MolFromMolFile(str(file), removeHs=False)
    mol.GetConformer().SetPositions(mol.GetConformer().GetPositions() + np.array([-2.7, 27.8, 3.4]))
    Chem.MolToMolFile(mol, str(file))
    page = view(file, receptor=resources.files("moldiff.example_data") / "receptors" / "1s3v.pdb")
    watched = _watched(browser, page)
    next(watched)
    click(browser, "#m0 .open")
    wait(browser, "document.querySelector('#stage canvas') && !document.querySelector('#stage').hidden")
    count = "return gallery.detail.stage.viewer.selectedAtoms({}).length"
    residues = browser.execute_script("return gallery.data.pockets[0].residues.map((one) => one[0])")
    assert browser.execute_script(count) > mol.GetNumAtoms() + 4 * len(residues)
    assert "A:34" in residues
    pictures = []
    for value in ("surface", "sticks", "none"):
        script = (
            "const s = document.getElementById('pocket'); s.value = arguments[0]; s.dispatchEvent(new Event('change'))"
        )
        browser.execute_script(script, value)
        pictures.append(picture(browser))
    assert len(set(pictures)) == 3
    with pytest.raises(StopIteration):
        next(watched)


def test_export_is_what_was_selected(opened: Any, folder: Path, page: Path) -> None:
    for card in ("#m5", "#m3"):
        click(opened, f"{card} .pick")
    assert "2 selected" in find(opened, "#count").text
    target = download(opened, folder, "SDF", "few-selected.sdf")
    found = moldiff.read(target).records
    assert [record.name for record in found] == ["<img src=x onerror=window.ran=1>", "small-0-5"]
    assert [record.mol and record.mol.GetProp("index") for record in found] == ["3", "5"]
    click(opened, "#only-selected")
    assert len(names(opened)) == 2


def test_dark_and_narrow(opened: Any) -> None:
    ground = "return getComputedStyle(document.body).backgroundColor"
    light = opened.execute_script(ground)
    feature = {"name": "prefers-color-scheme", "value": "dark"}
    opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    assert opened.execute_script(ground) != light
    opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    with phone(opened, 320, 640):
        assert opened.execute_script("return document.documentElement.scrollWidth") <= 320


def test_molecules_come_first_on_a_phone(grown: Any) -> None:
    with phone(grown):
        box = "return document.querySelector(arguments[0]).getBoundingClientRect().toJSON()"
        drawing = grown.execute_script(box, "#m0 svg")
        assert drawing["bottom"] < 844
        assert drawing["width"] > 300
        assert grown.execute_script(box, "#lead0 svg")["bottom"] < drawing["top"]
        grown.execute_script("document.getElementById('m4').scrollIntoView({block: 'center'})")
        assert 0 <= grown.execute_script(box, "#lead0 svg")["top"] < 100, "the lead stays in view"
        assert not grown.execute_script("return document.getElementById('numbers').open")
        heights = "return [...document.querySelectorAll('button, select')].map((one) => one.offsetHeight)"
        assert all(height >= 30 for height in grown.execute_script(heights) if height), "all can be hit with a thumb"
        click(grown, "#m1 .open")
        wait(grown, "document.querySelector('#stage canvas')")
        assert grown.execute_script("return document.documentElement.scrollWidth") <= 390


def test_smarts_are_looked_up_by_rdkit(grown: Any) -> None:
    for smarts in ("C(=O)[NX3]", "[#16]", "c1ccccc1-[#6]", "[Cl,$(S(=O)=O)]"):
        query = Chem.MolFromSmarts(smarts)
        expected = [name for name, smiles in GROWN.items() if Chem.MolFromSmiles(smiles).HasSubstructMatch(query)]
        assert search(grown, smarts) == expected
        marked = "return [...document.querySelectorAll('.card:has(.hit) h2')].map((head) => head.textContent)"
        assert grown.execute_script(marked) == expected
    assert search(grown, "[oops") == list(GROWN)
    assert "is no SMARTS" in find(grown, "#search-note").text
    assert search(grown, "") == list(GROWN)
    assert not grown.find_elements("css selector", ".hit")


def test_similarity_to_a_chosen_card(grown: Any) -> None:
    prints = [GetMorganGenerator(2, fpSize=2048).GetFingerprint(Chem.MolFromSmiles(one)) for one in GROWN.values()]
    expected = [TanimotoSimilarity(prints[3], other) for other in prints]
    click(grown, "#m3 .like")
    wait(grown, "document.querySelectorAll('.alike').length === 6")
    order = sorted(range(6), key=lambda k: -expected[k])
    assert names(grown) == [list(GROWN)[k] for k in order]
    shown = grown.execute_script("return [...document.querySelectorAll('.alike')].map((one) => one.textContent)")
    assert shown == [f"similarity {expected[k]:.2f}" for k in order]
    assert find(grown, "#chosen figcaption").text == "similar to benzamide"
    click(grown, "#unpin")
    assert names(grown) == list(GROWN)
    assert not grown.find_elements("css selector", ".alike")


def test_the_plot_is_brushed(grown: Any) -> None:
    click(grown, "#refine summary")
    assert len(grown.find_elements("css selector", "#plot circle")) == 6
    assert "Scatter of QED against logP: 6 molecules" in find(grown, "#plot").get_attribute("aria-label")
    points = "[...document.querySelectorAll('#plot circle')]"
    across = grown.execute_script(f"return {points}.map((one) => Number(one.getAttribute('cx')))")
    width = grown.execute_script("return document.getElementById('plot').viewBox.baseVal.width")
    middle = (sorted(across)[2] + sorted(across)[3]) / 2
    drag(grown, (middle / width, 0.02), (0.999, 0.9))
    assert names(grown) == [name for name, x in zip(GROWN, across, strict=True) if x > middle]
    assert len(grown.find_elements("css selector", "#plot .out")) == 3
    click(grown, "#filters button")
    assert names(grown) == list(GROWN)
    grown.execute_script(
        "const y = document.getElementById('plot-y'); y.value = ''; y.dispatchEvent(new Event('change'))"
    )
    counts = "return [...document.querySelectorAll('#plot rect.out title')].map((one) => parseInt(one.textContent))"
    assert sum(grown.execute_script(counts)) == 6
    low = "return [...document.querySelectorAll('#plot rect.out')].map((one) => one.getBoundingClientRect().bottom)"
    assert max(bottoms := grown.execute_script(low)) - min(bottoms) < 1, "bars stand on the axis"
    drag(grown, (0.08, 0.3), (0.5, 0.5))
    assert 0 < len(names(grown)) < 6
    assert find(grown, "#filters button").text.startswith("logP: ")


def test_chosen_ones_in_each_format(grown: Any, folder: Path) -> None:
    for card in ("#m1", "#m4"):
        click(grown, f"{card} .pick")
    assert find(grown, "#export").text == "Export 2"
    rows = list(csv.DictReader(io.StringIO(download(grown, folder, "CSV", "grown-selected.csv").read_text())))
    assert [row["name"] for row in rows] == ["piperidine", "sulfonamide"]
    assert [Chem.CanonSmiles(row["SMILES"]) for row in rows] == [Chem.CanonSmiles(GROWN[row["name"]]) for row in rows]
    assert 0 < float(rows[0]["QED"]) < 1
    lines = download(grown, folder, "SMILES", "grown-selected.smi").read_text().splitlines()
    assert {line.split()[1]: Chem.CanonSmiles(line.split()[0]) for line in lines} == {
        name: Chem.CanonSmiles(GROWN[name]) for name in ("piperidine", "sulfonamide")
    }
    with Image.open(download(grown, folder, "PNG", "grown-selected.png")) as image:
        assert image.size == (960, 384)
        halves = [image.convert("L").crop(box).getextrema() for box in ((0, 0, 480, 330), (480, 0, 960, 330))]
        assert all(low < 100 and high == 255 for low, high in halves)  # a drawing on white in each


def test_records_without_coordinates_are_exported_too(browser: Any, folder: Path) -> None:
    (folder / "list.smi").write_text("".join(f"{smiles} {name}\n" for name, smiles in OTHERS.items()))
    watched = _watched(browser, view(folder / "list.smi"))
    next(watched)
    found = moldiff.read(download(browser, folder, "SDF", "list-selected.sdf"))
    assert [record.name for record in found.records] == list(OTHERS)
    assert [Chem.MolToSmiles(Chem.RemoveHs(mol)) for mol in found.mols] == list(map(Chem.CanonSmiles, OTHERS.values()))
    with pytest.raises(StopIteration):
        next(watched)


def test_two_files_side_by_side(two: Any) -> None:
    left = "return [...Array(9).keys()].map((k) => document.getElementById(`m${k}`).getBoundingClientRect().left)"
    places = two.execute_script(left)
    assert max(places[:6]) < min(places[6:])
    assert len(two.find_elements("css selector", "#files input")) == 2
    click(two, "#files input")
    assert names(two) == list(OTHERS)
    click(two, "#files input")
    click(two, "#beside")
    assert min(two.execute_script(left)[6:]) <= max(places[:6])
    with phone(two):
        assert two.execute_script("return document.documentElement.scrollWidth") <= 390


def test_by_keyboard_alone(grown: Any) -> None:
    body = find(grown, "body")
    body.send_keys("\ue004")  # tab
    assert grown.execute_script("return document.activeElement.className") == "skip"
    grown.switch_to.active_element.send_keys("\ue007")  # enter
    grown.switch_to.active_element.send_keys("\ue004")
    focused = "return document.activeElement.getAttribute('aria-label')"
    assert grown.execute_script(focused) == "Select amide"
    grown.switch_to.active_element.send_keys(" ")
    assert "1 selected" in find(grown, "#count").text
    grown.switch_to.active_element.send_keys("\ue004")
    assert grown.execute_script(focused) == "Sort by similarity to amide"
    grown.switch_to.active_element.send_keys("/")
    assert grown.execute_script("return document.activeElement.id") == "search"
    bare = """return [...document.querySelectorAll('button, select, input, svg')].filter((one) => !(
        one.textContent.trim() || one.getAttribute('aria-label') || one.labels?.length)).map((one) => one.id)"""
    assert grown.execute_script(bare) == [], "everything has a name for screen readers"


def test_a_thousand_molecules_open_at_once(browser: Any, folder: Path) -> None:
    prepared = MoleculeDataset.load(str(resources.files("moldiff.example_data") / "sample"))
    path = view([prepared.molecule(index) for index in range(1000)], folder / "many.html")
    watched = _watched(browser, path)
    next(watched)
    assert len(names(browser)) == 1000
    assert browser.execute_script("return performance.getEntriesByType('navigation')[0].loadEventEnd") < 3000
    script = "const t = performance.now(); gallery.update(); document.body.offsetHeight; return performance.now() - t"
    assert browser.execute_script("document.getElementById('search').value = 'C#N';" + script) < 500
    with pytest.raises(StopIteration):
        next(watched)

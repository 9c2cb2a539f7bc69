"""The page in a real browser, driven as a user does; needs chromium, chromedriver and `pip install ".[browser]"`."""

import json
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import torch
from models import small_model

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


@pytest.fixture(scope="module")
def browser(folder: Path) -> Iterator[Any]:
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


def test_export_is_what_was_selected(opened: Any, folder: Path, page: Path) -> None:
    for card in ("#m5", "#m3"):
        click(opened, f"{card} .pick")
    assert "2 selected" in find(opened, "#count").text
    click(opened, "#export")
    target = folder / "downloads" / "few-selected.sdf"
    end = time.monotonic() + 20
    while not target.is_file():
        assert time.monotonic() < end
        time.sleep(0.05)
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
    size = {"width": 400, "height": 800, "deviceScaleFactor": 1, "mobile": False}
    opened.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    assert opened.execute_script("return document.documentElement.scrollWidth") <= 400
    opened.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


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

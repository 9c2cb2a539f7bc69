"""Pictures of the page for docs/; needs what its tests in a browser need.

From the root of the repository: `PYTHONPATH=tests python tests/view/screenshots.py FILE.sdf`.
"""

import io
import sys
import tempfile
from pathlib import Path

from PIL import Image
from test_view_browser import chromium, wait

from moldiff.view import view

DOCS = Path(__file__).parents[2] / "docs"
SIZES = {"": (1400, 900), "_phone": (390, 844)}
COLORS = 160


def main(source: str) -> None:
    """Write view.png, view_phone.png and the same with _dark."""
    with tempfile.TemporaryDirectory() as folder:
        page = view(source, Path(folder) / f"{Path(source).stem}.html")
        browser = chromium(Path(folder))
        try:
            for suffix, (width, height) in SIZES.items():
                size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
                browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
                for scheme in ("light", "dark"):
                    feature = {"name": "prefers-color-scheme", "value": scheme}
                    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
                    browser.get(Path(page).as_uri())
                    wait(browser, "document.readyState === 'complete'")
                    image = Image.open(io.BytesIO(browser.get_screenshot_as_png())).convert("RGB").quantize(COLORS)
                    image.save(DOCS / f"view{suffix}{'_dark' * (scheme == 'dark')}.png", optimize=True)
        finally:
            browser.quit()


if __name__ == "__main__":
    main(sys.argv[1])

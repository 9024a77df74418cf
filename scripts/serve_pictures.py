"""Screenshots of `explainode serve` for docs/serve.md, at both widths and in both themes.

explainode serve --port 8765 &
python scripts/serve_pictures.py http://127.0.0.1:8765/ docs/
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright


def main() -> None:
    address, folder = sys.argv[1], Path(sys.argv[2])
    found = next(path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name)))
    with sync_playwright() as session:
        browser = session.chromium.launch(executable_path=found, args=["--no-sandbox", "--disable-gpu"])
        for name, width, theme in (("wide", 1400, "light"), ("narrow", 390, "dark")):
            page = browser.new_context(viewport={"width": width, "height": 1250}, color_scheme=theme).new_page()
            page.goto(address)
            page.wait_for_selector("#grid[aria-busy=false] .cell:not(.waiting)", timeout=120_000)
            page.screenshot(path=folder / f"serve_{name}.png")
        browser.close()


if __name__ == "__main__":
    main()

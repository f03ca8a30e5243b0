"""Draw the picture that a link to the site is shown with, from the logo and the mechanism.

Run as ``python docs/make_social_card.py``, with chromium and playwright; it writes
docs/_static/social_card.png.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from playwright.sync_api import sync_playwright

STATIC = Path(__file__).parent / "_static"
CARD = f"""
<style>
  body {{ margin: 0; height: 630px; display: flex; align-items: center; gap: 50px; color: #222832;
    border-top: 18px solid #00639b; box-sizing: border-box; padding: 0 60px;
    font: 34px/1.35 system-ui, sans-serif; }}
  h1 {{ display: flex; align-items: center; gap: 22px; margin: 0 0 26px; font-size: 84px; }}
  h1 img {{ width: 96px; }}
  p {{ margin: 0; width: 450px; }}
</style>
<div>
  <h1><img src="{(STATIC / "logo.svg").as_uri()}">mcbn</h1>
  <p>Predictive uncertainty from any network trained with batch norm, without retraining</p>
</div>
<img src="{(STATIC / "mechanism.svg").as_uri()}" width="580">
"""

with sync_playwright() as playwright:
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
    page = browser.new_page(viewport={"width": 1200, "height": 630}, color_scheme="light")
    page.goto(STATIC.as_uri())  # so that pictures from the disk may be shown
    page.set_content(CARD, wait_until="load")
    page.screenshot(path=STATIC / "social_card.png")
    browser.close()

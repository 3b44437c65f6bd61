"""Pages opened in a real headless browser."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
# Windows of a browser are not as narrow as a phone; frames are.
FRAME = """<!doctype html>
<meta charset="utf-8">
<meta name="color-scheme" content="light dark">
<iframe style="width: {width}px; height: 800px; border: 0"></iframe>
<pre id="seen"></pre>
<script>
const frame = document.querySelector("iframe");
frame.onload = () => {{
  const page = frame.contentDocument, view = frame.contentWindow, colours = {{}};
  // A legend's marks are no text, and controls have the browser's own background.
  for (const element of page.querySelectorAll("h1, h2, h3, p, li, a, b:not(.key *), code, td, th, label, .facts"))
    colours[view.getComputedStyle(element).color] = element.localName;
  document.getElementById("seen").textContent = JSON.stringify({{
    ready: page.body.dataset.ready,
    window: view.innerWidth,
    content: page.scrollingElement.scrollWidth,
    dark: view.matchMedia("(prefers-color-scheme: dark)").matches,
    background: view.getComputedStyle(page.body).backgroundColor,
    colours,
  }});
}};
frame.srcdoc = {page};
</script>
"""


def seen(page: Path, width: int, dark: bool = False) -> dict[str, Any]:
    """What a reader has in a window of this width, in the dark or not: widths, and the text's colours."""
    frame = page.with_name(f"frame-{width}.html")
    # As a script reads it: a tag in the text would end the script around it.
    frame.write_text(FRAME.format(width=width, page=json.dumps(page.read_text()).replace("<", "\\u003c")))
    # Blink's PreferredColorScheme: 0 is dark.
    dom = dom_of(frame, *(["--blink-settings=preferredColorScheme=0"] if dark else []))
    return dict(json.loads(re.search(r'<pre id="seen">(.*)</pre>', dom)[1]))


def dom_of(page: Path, *more: str) -> str:
    """The page's document after its scripts have run; skips the test where there is no browser."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip(f"there is none of {', '.join(BROWSERS)}")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=5000", "--dump-dom", *more]
    shown = subprocess.run([browser, *options, page.as_uri()], capture_output=True, text=True, check=True, timeout=120)
    return shown.stdout

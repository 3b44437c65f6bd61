"""The versions of other packages that the tests have passed with: `make test` notes them, the site shows them.

A version stands between `<!-- tested:PACKAGE -->` and `<!-- /tested -->`. `python tools/tested_with.py` notes those
that are installed, `python tools/tested_with.py --write` puts what was noted into the pages of the repository.
"""

import json
import re
import sys
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NOTED = ROOT / "build" / "tested-with.json"
PAGES = (ROOT / "README.md", ROOT / "docs" / "frameworks.md", ROOT / "docs" / "other-loops.md")
PLACE = re.compile(r"(<!-- tested:([\w-]+) -->).*?(<!-- /tested -->)")


def packages(text: str) -> list[str]:
    """Those that a page has places for."""
    return [name for _, name, _ in PLACE.findall(text)]


def filled(text: str, versions: dict[str, str]) -> str:
    """The page with the versions in their places; what is not known stays.

    Args:
        text: Markdown.
        versions: of packages, by name.
    """
    return PLACE.sub(
        lambda match: f"{match[1]}{versions[match[2]]}{match[3]}" if match[2] in versions else match[0], text
    )


def noted() -> dict[str, str]:
    """What the last tests that passed were run with; nothing where none were."""
    return json.loads(NOTED.read_text()) if NOTED.exists() else {}


def main() -> None:
    if "--write" in sys.argv:
        for page in PAGES:
            page.write_text(filled(page.read_text(), noted()))
        return
    names = sorted({name for page in PAGES for name in packages(page.read_text())})
    versions = {name: version(name) for name in names}
    NOTED.parent.mkdir(exist_ok=True)
    NOTED.write_text(json.dumps(versions, indent=1) + "\n")
    print("tested with", ", ".join(f"{name} {versions[name]}" for name in names))


if __name__ == "__main__":
    main()

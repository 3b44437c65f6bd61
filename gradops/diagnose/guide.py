"""The command line of `python -m gradops guide`: sections of the page on exploding gradients, on a terminal."""

import argparse
import re
import sys
from pathlib import Path

from rich.console import Console
from rich.markdown import Markdown

# A link to the page in docs; where gradops was installed, its text.
PAGE = Path(__file__).with_name("exploding-gradients.md")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the guide's options to `parser`."""
    parser.add_argument("section", nargs="?", help="as a report names it; without one, what there are")


def main(args: argparse.Namespace) -> int:
    """Prints one section, or their names. Returns the exit status."""
    found = sections()
    console = Console(highlight=False)
    if args.section is None:
        for name, (heading, _) in found.items():
            console.print(f"{name:{max(map(len, found))}}  {heading}", markup=False)
        return 0
    if args.section not in found:
        sys.exit(f"the guide has no section {args.section}; without a name, gradops guide lists them")
    heading, text = found[args.section]
    console.print(f"{heading}\n", style="bold", markup=False)
    console.print(Markdown(_plain(text)))
    return 0


def sections() -> dict[str, tuple[str, str]]:
    """Headings and Markdown texts of the guide's sections, by their anchors."""
    parts = re.split(r"^## (.*)$", PAGE.read_text(), flags=re.MULTILINE)[1:]
    return {_anchor(heading): (heading, text.strip()) for heading, text in zip(parts[::2], parts[1::2], strict=True)}


def _anchor(heading: str) -> str:
    """The name that a page's heading has in links."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def _plain(text: str) -> str:
    """Markdown without what a terminal cannot show: pictures, where links lead, and raised numbers."""
    text = re.sub(r"^!\[.*\n", "", text, flags=re.MULTILINE)
    text = re.sub(r"\[([^]]+)\]\([^)\s]+\)", r"\1", text)
    return re.sub(r"<sup>(.*?)</sup>", r"^\1", text)

"""What programs print, read back."""

import csv
import json
from typing import Any
from xml.etree import ElementTree


def last_json(output: str) -> dict[str, Any]:
    """The last line that is a JSON object."""
    for line in reversed(output.splitlines()):
        if line.startswith("{"):
            found: dict[str, Any] = json.loads(line)
            return found
    raise ValueError("no line of the output is JSON")


def junit(text: str) -> dict[str, Any]:
    """Counts, and names of tests that failed, from pytest's --junitxml."""
    cases = list(ElementTree.fromstring(text).iter("testcase"))
    bad = [case for case in cases if case.find("failure") is not None or case.find("error") is not None]
    skipped = sum(case.find("skipped") is not None for case in cases)
    names = [f"{case.get('classname')}::{case.get('name')}" for case in bad]
    return {"passed": len(cases) - len(bad) - skipped, "skipped": skipped, "failed": names}


def ncu(text: str) -> list[dict[str, str]]:
    """A row for each kernel from `ncu --csv --page raw --print-units base`: a header, a line of units, the kernels.

    What ncu and the program say around them is left out.
    """
    lines = [line for line in text.splitlines() if line.startswith('"')]
    header = next((number for number, line in enumerate(lines) if line.startswith('"ID"')), None)
    if header is None:
        raise ValueError("ncu printed no table")
    units, *kernels = csv.DictReader(lines[header:])
    for metric in (name for name in units if name.startswith("dram__bytes")):
        if units[metric] != "byte":
            raise ValueError(f"ncu's {metric} is in {units[metric]}, not in byte")
    return kernels


def number(text: str) -> float:
    """ncu groups digits by commas."""
    return float(text.replace(",", ""))

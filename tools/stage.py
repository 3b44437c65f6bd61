"""Runs one stage of a set-up quietly: one line while it runs, what it prints in a log, the log's end where it fails.

    python tools/stage.py build "compiling the native code" python setup.py build_ext --inplace

keeps the log in build/log/build.log. Python 3.10 and nothing else is needed: the first stage makes the environment.
"""

import os
import re
import selectors
import shutil
import subprocess
import sys
import time
from pathlib import Path

LOGS = Path("build", "log")
# As ninja counts, "[3/28] ...".
COUNT = re.compile(r"^\[(\d+)/(\d+)\]")
# A file of the native code takes about this long on one core.
SECONDS_A_FILE = 12.0
SHOWN = 60  # lines of the log


class Line:
    """The line of a stage: on a terminal it is drawn anew, elsewhere its end is added when the stage is done."""

    def __init__(self, title: str) -> None:
        self._title, self._began, self._estimated = title, time.monotonic(), False
        self._drawn = sys.stdout.isatty()
        print(title, end="", flush=True)

    def update(self, last: str) -> None:
        """Says how far the stage is, by the last line that it printed."""
        counted = COUNT.match(last)
        if counted and not self._estimated:
            self._estimated = True
            total, cores = int(counted[2]), os.cpu_count() or 1
            minutes = max(1, round(total * SECONDS_A_FILE / cores / 60))
            estimate = f" ({total} files, about {minutes} minute{'s' * (minutes > 1)})"
            self._title += estimate
            if not self._drawn:
                print(estimate, end="", flush=True)
        if self._drawn:
            how_far = f"{counted[1]} of {counted[2]}" if counted else last
            text = f"{self._title}, {self._seconds()} s: {how_far}"
            print(f"\r\033[K{text[: shutil.get_terminal_size().columns - 1]}", end="", flush=True)

    def end(self, failed: bool) -> None:
        """Says how long it took."""
        start = f"\r\033[K{self._title}" if self._drawn else ""
        print(f"{start}: {'failed' if failed else 'done'} after {self._seconds()} s", flush=True)

    def _seconds(self) -> int:
        return round(time.monotonic() - self._began)


def run(name: str, title: str, command: list[str]) -> int:
    """Runs the command. Returns its exit status."""
    log = LOGS / f"{name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    line, last = Line(title), ""
    with log.open("wb") as kept, subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as child:
        assert child.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(child.stdout, selectors.EVENT_READ)
            while True:
                if selector.select(timeout=1.0):
                    if not (read := os.read(child.stdout.fileno(), 1 << 16)):
                        break
                    kept.write(read)
                    said = [text.strip() for text in read.decode(errors="replace").splitlines() if text.strip()]
                    last = next((text for text in reversed(said) if COUNT.match(text)), said[-1] if said else last)
                line.update(last)
    line.end(failed=child.returncode != 0)
    if child.returncode:
        lines = log.read_text(errors="replace").splitlines()
        print("\n".join(lines[-SHOWN:]), f"\nThe whole log is in {log}.", sep="\n", file=sys.stderr)
    return child.returncode


if __name__ == "__main__":
    sys.exit(run(sys.argv[1], sys.argv[2], sys.argv[3:]))

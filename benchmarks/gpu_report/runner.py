"""Runs a stage: its commands one after another or several at once, none of them beyond the stage's end."""

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console

from benchmarks.gpu_report.record import FAILED, MISSING, OK, REFUSED, STYLES, TIMED_OUT, Record

ROOT = Path(__file__).resolve().parents[2]
LAST_LINES = 15


class RefusedError(Exception):
    """The machine does not allow this; the message says what, and it is no failure of the kit."""


@dataclass(frozen=True)
class Target:
    """Where stages run: on "cuda", or in a rehearsal on "cpu", with files that a run leaves in `folder`."""

    device: str
    folder: Path

    @property
    def rehearsal(self) -> bool:
        return self.device == "cpu"

    def file(self, name: str) -> Path:
        return self.folder / name


@dataclass(frozen=True)
class Command:
    """A process that finds something out.

    Attributes:
        part: its name within the stage.
        argv: what is run, from the root of the repository.
        read: gets its exit status and its output, and returns what was found, for JSON. It raises `RefusedError`, or
            ValueError for a failure. None takes any success.
        needs: a program without which it is not tried.
        environ: added to ours.
        seconds: it is ended after them.
    """

    part: str
    argv: tuple[str, ...]
    read: Callable[[int, str], Any] | None = None
    needs: str | None = None
    environ: dict[str, str] = field(default_factory=dict)
    seconds: float = 480.0


class Stage(Protocol):
    """A module of this package."""

    NAME: str
    AT_ONCE: int

    def commands(self, target: Target) -> list[Command]: ...


def run_stage(
    stage: Stage, target: Target, record: Record, console: Console, seconds: float, again: bool = False
) -> None:
    """Runs what is not recorded as a success of this commit, and records it."""
    deadline = time.monotonic() + seconds
    target.folder.mkdir(parents=True, exist_ok=True)
    commands = stage.commands(target)
    todo = [command for command in commands if again or not record.has(stage.NAME, command.part)]
    done = len(commands) - len(todo)
    console.rule(f"{stage.NAME}: {len(todo)} parts" + (f", {done} done before" if done else ""), align="left")
    with console.status(stage.NAME), ThreadPoolExecutor(stage.AT_ONCE) as pool:
        for command, entry in _finished(pool, todo, deadline):
            record.add(stage.NAME, command.part, entry)
            say(console, command, entry)


def _finished(
    pool: ThreadPoolExecutor, commands: Iterable[Command], deadline: float
) -> Iterable[tuple[Command, dict[str, Any]]]:
    futures = {pool.submit(run, command, deadline): command for command in commands}
    try:
        for future in as_completed(futures):
            yield futures[future], future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def say(console: Console, command: Command, entry: dict[str, Any]) -> None:
    """A line for each part, and what a part that did not succeed said last."""
    style = STYLES[entry["status"]]
    console.print(f"[{style}]{entry['status']:>9}[/]  {command.part}  [dim]{entry['seconds']:.0f} s[/]")
    if entry["said"]:
        console.print(entry["said"], style="dim", markup=False)


def run(command: Command, deadline: float) -> dict[str, Any]:
    """Runs one command and says how it went."""
    began = time.monotonic()
    status, said, found = _run(command, min(command.seconds, deadline - began))
    return {
        "status": status,
        "said": said.replace(str(ROOT), "."),
        "found": found,
        "seconds": round(time.monotonic() - began, 1),
        "command": shown(command),
    }


def shown(command: Command) -> str:
    """The command for people, without paths of this machine."""
    words = ["python" if word == sys.executable else word.replace(f"{ROOT}/", "") for word in command.argv]
    return " ".join([*(f"{key}={value}" for key, value in command.environ.items()), shlex.join(words)])


def _run(command: Command, seconds: float) -> tuple[str, str, Any]:
    if command.needs is not None and shutil.which(command.needs) is None:
        return MISSING, f"{command.needs} is not on PATH", None
    if seconds <= 0:
        return TIMED_OUT, "not begun: the stage's time was over", None
    returncode, output = execute(command, seconds)
    if returncode is None:
        return TIMED_OUT, f"ended after {seconds:.0f} s; {_last(output)}", None
    try:
        if command.read is None:
            if returncode:
                raise ValueError(f"exit status {returncode}")
            return OK, "", None
        return OK, "", command.read(returncode, output)
    except RefusedError as refusal:
        return REFUSED, str(refusal), None
    except (ValueError, KeyError, LookupError, OSError) as error:
        return FAILED, f"{error}; {_last(output)}", None


def _last(output: str) -> str:
    lines = [line for line in output.splitlines() if line.strip()]
    return "its last lines:\n" + "\n".join(lines[-LAST_LINES:]) if lines else "it said nothing"


def execute(command: Command, seconds: float) -> tuple[int | None, str]:
    """The exit status, None for a command that was ended with all that it started, and stdout with stderr."""
    environ = {**os.environ, "PYTHONUNBUFFERED": "1", "OMP_WAIT_POLICY": "passive", **command.environ}
    with subprocess.Popen(
        command.argv,
        cwd=ROOT,
        env=environ,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    ) as process:
        try:
            output, _ = process.communicate(timeout=seconds)
            return process.returncode, output
        except subprocess.TimeoutExpired:
            _end(process)
            output, _ = process.communicate()
            return None, output
        except BaseException:  # Ctrl-C ends the command, too
            _end(process)
            raise


def _end(process: "subprocess.Popen[str]") -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)

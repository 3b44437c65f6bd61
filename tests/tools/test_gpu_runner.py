"""The GPU kit's runner: parts that fail, take too long, are missing or refused, and what a second run does."""

import io
import json
import sys
import time
from types import SimpleNamespace

from rich.console import Console

from benchmarks.gpu_report.record import Record
from benchmarks.gpu_report.runner import Command, RefusedError, Target, run_stage


def python(code):
    return (sys.executable, "-c", code)


def run(commands, path, commit="abc", at_once=1, seconds=60.0, again=False):
    """The entries after one stage of these commands, and what was printed."""
    stage = SimpleNamespace(NAME="stage", AT_ONCE=at_once, commands=lambda target: commands)
    record, console = Record(path, commit), Console(file=io.StringIO(), width=200)
    run_stage(stage, Target("cpu", path.parent), record, console, seconds, again)
    return record.document["stages"]["stage"], console.file.getvalue()


def test_a_part_that_fails_is_recorded_with_its_last_words_and_the_next_goes_on(tmp_path):
    commands = [Command("bad", python("print('oh dear'); exit(3)")), Command("good", python(""))]
    entries, printed = run(commands, tmp_path / "r.json")
    assert [entries[part]["status"] for part in ("bad", "good")] == ["failed", "ok"]
    assert entries["bad"]["said"] == "exit status 3; its last lines:\noh dear"
    assert "failed  bad" in printed
    assert "oh dear" in printed


def test_a_part_that_takes_too_long_is_ended_with_its_children_and_the_next_goes_on(tmp_path):
    late = tmp_path / "late"
    child = f"import time, pathlib; time.sleep(2); pathlib.Path({str(late)!r}).touch()"
    slow = f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {child!r}]); time.sleep(60)"
    entries, _ = run([Command("slow", python(slow), seconds=1), Command("good", python(""))], tmp_path / "r.json")
    assert [entries[part]["status"] for part in ("slow", "good")] == ["timed out", "ok"]
    assert entries["slow"]["said"] == "ended after 1 s; it said nothing"
    time.sleep(2)
    assert not late.exists()


def test_no_part_begins_when_the_stage_is_over(tmp_path):
    commands = [Command("first", python("import time; time.sleep(60)")), Command("second", python(""))]
    entries, _ = run(commands, tmp_path / "r.json", seconds=1.0)
    assert {entry["status"] for entry in entries.values()} == {"timed out"}
    assert entries["second"]["said"] == "not begun: the stage's time was over"


def test_what_is_missing_or_refused_is_no_failure(tmp_path):
    def refuse(returncode, output):
        raise RefusedError("the machine does not let us")

    commands = [
        Command("missing", ("no-such-tool",), needs="no-such-tool"),
        Command("refused", python(""), refuse),
    ]
    entries, _ = run(commands, tmp_path / "r.json")
    assert entries["missing"]["status"] == "missing"
    assert entries["missing"]["said"] == "no-such-tool is not on PATH"
    assert (entries["refused"]["status"], entries["refused"]["said"]) == ("refused", "the machine does not let us")
    record = Record(tmp_path / "r.json", "abc")
    assert record.print_summary(Console(file=io.StringIO()), ["stage"]) == 0


def test_output_that_cannot_be_read_is_a_failure(tmp_path):
    entries, _ = run([Command("odd", python("print('{')"), lambda _, out: json.loads(out))], tmp_path / "r.json")
    assert entries["odd"]["status"] == "failed"
    assert entries["odd"]["said"].endswith("its last lines:\n{")
    record = Record(tmp_path / "r.json", "abc")
    assert record.print_summary(Console(file=io.StringIO()), ["stage"]) == 1


def test_a_second_run_does_only_what_did_not_succeed_and_keeps_the_rest(tmp_path):
    path, tried = tmp_path / "r.json", tmp_path / "tried"

    def attempt(part, code=""):
        note = f"open({str(tried)!r}, 'a').write('{part} ');"
        return Command(part, python(note + code), lambda returncode, _: returncode or int("failed"))

    def good(part):
        return Command(part, attempt(part).argv, lambda _, __: {"found": part})

    path.write_text(json.dumps({"stages": {"other": {"part": {"status": "ok", "found": 7}}}}))
    run([good("a"), attempt("b")], path)
    entries, printed = run([good("a"), good("b")], path)
    assert tried.read_text() == "a b b "
    assert "1 parts, 1 done before" in printed
    assert [entries[part]["found"] for part in "ab"] == [{"found": "a"}, {"found": "b"}]
    assert json.loads(path.read_text())["stages"]["other"]["part"]["found"] == 7
    run([good("a")], path, again=True)
    run([good("a")], path, commit="def")
    run([good("a")], path, commit="def+")  # changed files: nobody knows which
    run([good("a")], path, commit="def+")
    assert tried.read_text() == "a b b a a a a "


def test_parts_of_a_stage_run_at_once(tmp_path):
    nap = Command("nap", python("import time; time.sleep(1.5)"))
    naps = [Command(str(number), nap.argv) for number in range(3)]
    began = time.monotonic()
    entries, _ = run(naps, tmp_path / "r.json", at_once=3)
    assert time.monotonic() - began < 4.0
    assert all(entry["status"] == "ok" for entry in entries.values())

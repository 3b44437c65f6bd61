"""`python -m benchmarks.gpu_report`: runs the stages, and writes the pages from what they found."""

import argparse
import json
import subprocess
import sys
from pathlib import Path

from rich.console import Console

from benchmarks.gpu_report import build, dram, right, rules, sanitized_rules, sanitizer, times, training
from benchmarks.gpu_report.record import Record
from benchmarks.gpu_report.runner import Target, run_stage

STAGES = {stage.NAME: stage for stage in (build, right, rules, dram, times, training, sanitizer, sanitized_rules)}
ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "gpu_report.json"
SCRATCH = ROOT / "build" / "gpu-report"
STAGE_SECONDS = 480.0


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_report", description=__doc__)
    parser.add_argument("--stage", nargs="+", choices=STAGES, default=list(STAGES), help="only these (all)")
    parser.add_argument("--again", action="store_true", help="also what succeeded before at this commit")
    parser.add_argument("--json", type=Path, help=f"the file that results are added to ({RESULTS.relative_to(ROOT)})")
    parser.add_argument(
        "--dry-run", action="store_true", help="rehearse on the CPU: small cases, no figures and no page is written"
    )
    return parser.parse_args(argv)


def commit() -> str:
    """The commit, with a plus where the tree has changes; "unknown" where there is no repository."""
    git = ["git", "-C", str(ROOT)]
    try:
        head = subprocess.run([*git, "rev-parse", "--short=9", "HEAD"], capture_output=True, text=True, check=True)
        changes = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    # What the kit itself writes is no change of what it measures.
    changed = [line for line in changes.stdout.splitlines() if not line.endswith((".md", RESULTS.name))]
    return head.stdout.strip() + ("+" if changed else "")


def main(argv: list[str] | None = None) -> int:
    """Returns 1 if something failed or ran out of time; what a machine does not have is no failure."""
    args = arguments(argv)
    console = Console(highlight=False)
    target = Target("cpu" if args.dry_run else "cuda", SCRATCH)
    path = args.json or (SCRATCH / "dry-run.json" if args.dry_run else RESULTS)
    if args.dry_run:
        path.unlink(missing_ok=True)
    record = Record(path, commit())
    for name in args.stage:
        run_stage(STAGES[name], target, record, console, STAGE_SECONDS, again=args.again)
    write_pages(path, args.dry_run, console)
    return record.print_summary(console, args.stage)


def write_pages(path: Path, rehearsal: bool, console: Console) -> None:
    """The figures of the pages; of a rehearsal only into the scratch folder."""
    # Only here, since it imports torch, which must not hold the GPU or an old build while stages run.
    from benchmarks import gpu_tables, tables

    if not rehearsal:
        tables.write_pages()
        return
    document = json.loads(path.read_text())
    blocks = [f"<!-- {name} -->\n\n{make(document)}\n" for name, make in gpu_tables.FIGURES.items()]
    page = SCRATCH / "dry-run.md"
    page.write_text("\n".join(blocks))
    console.print(f"what the pages would get: {page.relative_to(ROOT)}", markup=False)


if __name__ == "__main__":
    sys.exit(main())

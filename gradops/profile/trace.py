"""What torch.profiler recorded, read from the Chrome trace that it writes."""

import json
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity

from gradops.bench.costs import silence_profiler
from gradops.profile.loop import Loop, step_range

DEVICE_CATEGORIES = ("kernel", "gpu_memcpy", "gpu_memset")
_RANGE = "user_annotation"


@dataclass(frozen=True)
class Event:
    """Something with a beginning and a length, both in microseconds."""

    name: str
    category: str
    start: float
    length: float
    thread: Any
    args: dict[str, Any]

    @property
    def end(self) -> float:
        return self.start + self.length

    @property
    def is_range(self) -> bool:
        return self.category == _RANGE

    def covers(self, other: "Event") -> bool:
        return self.start <= other.start and other.end <= self.end


@dataclass(frozen=True)
class Step:
    """One step: the range around it, and the events that began in it, in order."""

    whole: Event
    events: list[Event]


class Trace:
    """A Chrome trace."""

    def __init__(self, document: dict[str, Any]) -> None:
        self.document = document
        timed = (raw for raw in document["traceEvents"] if raw.get("ph") in ("X", "i") and "ts" in raw)
        self.events = sorted(map(_event, timed), key=lambda event: (event.start, -event.length))

    def steps(self, loop: str) -> list[Step]:
        """The steps of a loop, by its name."""
        wholes = [event for event in self.events if event.is_range and event.name == step_range(loop)]
        return [Step(whole, self._of(whole)) for whole in wholes]

    def _of(self, whole: Event) -> list[Event]:
        launched = {
            event.args["correlation"]
            for event in self.events
            if event.category.startswith("cuda_") and whole.covers(event) and "correlation" in event.args
        }
        return [event for event in self.events if event is not whole and self._belongs(event, whole, launched)]

    @staticmethod
    def _belongs(event: Event, whole: Event, launched: set[Any]) -> bool:
        if event.category in DEVICE_CATEGORIES:
            return event.args.get("correlation") in launched
        return whole.start <= event.start < whole.end

    def only(self, loop: str) -> dict[str, Any]:
        """The document with the steps of one loop, and what names processes and threads."""
        kept = {(event.start, event.name) for step in self.steps(loop) for event in (step.whole, *step.events)}
        events = [
            raw
            for raw in self.document["traceEvents"]
            if raw.get("ph") == "M" or (raw.get("ts"), raw.get("name")) in kept
        ]
        return {**self.document, "traceEvents": events}


def _event(raw: dict[str, Any]) -> Event:
    thread = (raw.get("pid"), raw.get("tid"))
    length = float(raw.get("dur", 0.0))
    return Event(raw["name"], raw.get("cat", ""), float(raw["ts"]), length, thread, raw.get("args", {}))


def record(loops: Iterable[Loop], steps: int) -> Trace:
    """Profiles `steps` steps of each loop, in turns; they have been warmed up."""
    loops = list(loops)
    activities = [ProfilerActivity.CPU]
    if any(loop.settings.device == "cuda" for loop in loops):
        activities.append(ProfilerActivity.CUDA)
    silence_profiler()
    for loop in loops:
        loop.profiled(True)
    with torch.profiler.profile(activities=activities, profile_memory=True, acc_events=True) as profile:
        for _ in range(steps):
            for loop in loops:
                loop.step()
    for loop in loops:
        loop.profiled(False)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "trace.json")
        profile.export_chrome_trace(str(path))
        return Trace(json.loads(path.read_text()))

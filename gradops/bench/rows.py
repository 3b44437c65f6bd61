"""What was found out about recipes on a case, as rows of tables and of JSON."""

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from gradops.bench.costs import Costs
from gradops.bench.interleave import Samples
from gradops.bench.models import Shape
from gradops.bench.recipes import Recipe
from gradops.bench.stream import BYTES_PER_PARAM

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Row:
    """One recipe, or one stream, on one case. Times are medians in seconds; None for what does not apply.

    Attributes:
        samples: the seconds of each round.
        seconds: of a call, the median; on a GPU its own time, from a cold cache.
        spread: interquartile range over median.
        bytes_per_param: memory traffic.
        share_of_stream: `bytes_per_second` over that of the fastest plain stream, the median over the rounds; on a GPU
            over that of a copy.
        gradops_speedup: median over the rounds of this time over that of `versus`, the gradops recipe for this work.
        calls: operator calls; on a GPU launches.
        waits: host synchronisations.
        replay_seconds: of a CUDA graph.
        call_seconds: when calls follow each other without a pause, on a GPU.
        host_seconds: until a call returns, on a GPU that was idle.
        failed: why there is no time.
        uncaptured: why there is no CUDA graph.
        optimizer: whose phase it is.
    """

    case: str
    recipe: str
    params: int
    tensors: int
    dtype: str = "float32"
    samples: tuple[float, ...] = ()
    seconds: float | None = None
    spread: float | None = None
    bytes_per_param: int | None = None
    bytes_per_second: float | None = None
    share_of_stream: float | None = None
    versus: str | None = None
    gradops_speedup: float | None = None
    calls: int | None = None
    waits: int | None = None
    replay_seconds: float | None = None
    call_seconds: float | None = None
    host_seconds: float | None = None
    failed: str | None = None
    uncaptured: str | None = None
    optimizer: str = "AdamW"

    def figures(self) -> dict[str, Any]:
        """All but the samples, of which there are many; how many is said."""
        return {**asdict(self), "samples": None, "rounds": len(self.samples)}


def row_of(figures: dict[str, Any]) -> Row:
    """The row that `Row.figures` was taken from, without its samples."""
    return Row(**{name: value for name, value in figures.items() if name not in ("samples", "rounds")})


@dataclass
class Found:
    """What was found out about each function of a case, by name.

    Attributes:
        faster_than_stream: median over the rounds of the fastest plain stream's time over this one's.
        bandwidth: of a copy on a GPU, in bytes a second.
    """

    samples: dict[str, Samples] = field(default_factory=dict)
    speedups: dict[str, float] = field(default_factory=dict)
    faster_than_stream: dict[str, float] = field(default_factory=dict)
    costs: dict[str, Costs] = field(default_factory=dict)
    replays: dict[str, Samples] = field(default_factory=dict)
    back_to_back: dict[str, Samples] = field(default_factory=dict)
    host: dict[str, Samples] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    uncaptured: dict[str, str] = field(default_factory=dict)
    bandwidth: float | None = None

    def add(self, samples: dict[str, Samples], recipes: Iterable[Recipe], streams: Iterable[str] = ()) -> None:
        """Takes what was timed together; of what is timed again, as gradops in each pair, the first stays."""
        fastest = min((samples[name] for name in streams), key=lambda found: found.median, default=None)
        if fastest is not None:
            ratios = {name: found.times_faster_than(fastest) for name, found in samples.items()}
            self.faster_than_stream = ratios | self.faster_than_stream
        for recipe in recipes:
            if recipe.name in samples and recipe.versus in samples:
                self.speedups[recipe.name] = samples[recipe.versus].times_faster_than(samples[recipe.name])
        self.samples = samples | self.samples

    def share_of_stream(self, name: str, moved: int | None, per_second: float | None) -> float | None:
        """What a function that moves so many bytes of each parameter has of the bandwidth there is."""
        if moved and name in self.faster_than_stream:
            return moved / BYTES_PER_PARAM * self.faster_than_stream[name]
        return per_second / self.bandwidth if per_second and self.bandwidth else None


def rows_of(
    case: str, shape_list: list[Shape], dtype: str, recipes: list[Recipe], streams: list[str], found: Found
) -> list[Row]:
    """The rows of a table, recipes first."""
    params = sum(map(math.prod, shape_list))
    by_name = {recipe.name: recipe for recipe in recipes}
    rows = []
    for name in [*(recipe.name for recipe in recipes), *streams]:
        recipe = by_name.get(name)
        costs, samples = found.costs.get(name), found.samples.get(name)
        moved = BYTES_PER_PARAM if recipe is None else _bytes_per_param(recipe, costs, params, DTYPES[dtype].itemsize)
        per_second = moved * params / samples.median if moved and samples else None
        rows.append(
            Row(
                case=case,
                recipe=name,
                params=params,
                tensors=len(shape_list),
                dtype=dtype,
                samples=tuple(samples.seconds) if samples else (),
                seconds=samples.median if samples else None,
                spread=samples.spread if samples else None,
                bytes_per_param=moved,
                bytes_per_second=per_second,
                share_of_stream=found.share_of_stream(name, moved, per_second),
                versus=recipe.versus if recipe else None,
                gradops_speedup=found.speedups.get(name),
                calls=costs.calls if costs else None,
                waits=costs.waits if costs else None,
                replay_seconds=found.replays[name].median if name in found.replays else None,
                call_seconds=found.back_to_back[name].median if name in found.back_to_back else None,
                host_seconds=found.host[name].median if name in found.host else None,
                failed=found.failed.get(name),
                uncaptured=found.uncaptured.get(name),
                optimizer=recipes[0].optimizer,
            )
        )
    return rows


def _bytes_per_param(recipe: Recipe, costs: Costs | None, params: int, element: int) -> int | None:
    if recipe.hidden_bytes is None or costs is None:
        return None
    return round(costs.bytes / params + recipe.hidden_bytes(element))

"""Estimates how much of the second read of the gradients an L2 cache saves.

The walk reads all gradients, then all of param, exp_avg, exp_avg_sq and the gradients again, and writes all but the
gradients. The bytes that reach DRAM are 28 per float32 parameter and 4 more where a gradient has left the cache in
between. The model: one cache for all blocks, fully associative, least recently used leaves first, empty at the start;
blocks advance in step. "evict first" has what is read once (all but the gradients) leave before anything else.

    python -m tests.emulation.l2_model docs/l2-estimate.md
"""

import math
import sys
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gradops.bench.models import shapes

LINE = 128
# What a block takes at a time: a piece of 512 elements for each of its 8 warps. Its lines are touched together and so
# leave together, which makes the row, not the line, what the replay counts by.
ROW = 8 * 512 * 4
MODELS = ["resnet18", "resnet50", "resnet152", "vit_b_16"]
GRADS, STREAMS = 0, (1, 2, 3)


class Cache:
    """A cache of `capacity` bytes whose entries are (array, row)."""

    def __init__(self, capacity):
        self.free = capacity
        self.kept, self.first_out = OrderedDict(), OrderedDict()
        self.dram_bytes = 0

    def touch(self, key, size, dirty=False, evict_first=False):
        """Reads an entry, and writes it too if it is `dirty` then."""
        held = self.first_out if evict_first else self.kept
        if key in held:
            held.move_to_end(key)
            held[key] = (size, dirty)
            return
        self.dram_bytes += size
        self.free -= size
        held[key] = (size, dirty)
        while self.free < 0:
            self._evict()

    def _evict(self):
        size, dirty = (self.first_out or self.kept).popitem(last=False)[1]
        self.free += size
        self.dram_bytes += size * dirty

    def flush(self):
        while self.kept or self.first_out:
            self._evict()


@dataclass(frozen=True)
class Chip:
    """A cache of so many MiB, one block on each multiprocessor, and rows that a block parks: 8 in registers."""

    name: str
    cache: int
    blocks: int
    parked_rows: int


CHIPS = [Chip("A100", 40, 108, 8 + 10), Chip("H100", 50, 132, 8 + 14), Chip("RTX 5090", 96, 170, 8 + 6)]


@dataclass(frozen=True)
class Walk:
    """How the step goes over the gradients.

    Attributes:
        reverse: each block goes backward in the second phase.
        evict_first: param and moments leave the cache before the gradients do.
        parked: bytes of gradients that each block keeps on chip, those read first; they are not read again.
    """

    reverse: bool
    evict_first: bool = False
    parked: int = 0


def rows_of(tensors, row=ROW):
    """Bytes of each row of tensors with so many float32 elements, in whole lines: a tensor begins a line, and a row."""
    sizes = []
    for elements in tensors:
        full, rest = divmod(4 * elements, row)
        sizes += [row] * full + [math.ceil(rest / LINE) * LINE] * (rest > 0)
    return np.array(sizes, dtype=np.int64)


def split(sizes, blocks):
    """The rows of each block: contiguous, of about the same number of bytes."""
    starts = np.cumsum(sizes) - sizes
    block = starts * blocks // max(int(sizes.sum()), 1)
    return [np.flatnonzero(block == i).tolist() for i in range(blocks)]


def in_step(rows_of_blocks):
    """Rows in the order in which they are reached when each block takes its next one in turn."""
    for turn in range(max(map(len, rows_of_blocks))):
        for rows in rows_of_blocks:
            if turn < len(rows):
                yield rows[turn]


def dram_bytes(tensors, capacity, walk, blocks, row=ROW):
    """Bytes between cache and DRAM in one step over `tensors` (numbers of elements), by replay of every access."""
    sizes = rows_of(tensors, row)
    mine = split(sizes, blocks)
    size = sizes.tolist()
    cache = Cache(capacity)
    for i in in_step(mine):
        cache.touch((GRADS, i), size[i])
    parked = set()
    for rows in mine:
        ends = np.cumsum(sizes[rows])
        parked.update(i for i, end in zip(rows, ends.tolist(), strict=True) if end <= walk.parked)
    # What was read last comes first when it goes backward; what is parked comes last then, too.
    for i in in_step([rows[::-1] if walk.reverse else rows for rows in mine]):
        if i not in parked:
            cache.touch((GRADS, i), size[i])
        for stream in STREAMS:
            cache.touch((stream, i), size[i], dirty=True, evict_first=walk.evict_first)
    cache.flush()
    return cache.dram_bytes


def closed_form(total, capacity, walk):
    """As `dram_bytes`, of `total` bytes of gradients in one large tensor; without parking.

    Between the two reads of a gradient lie d bytes of gradients that were read after it. Backward, these d bytes are
    read again and 3 d of streams; forward, it is all gradients, and three times what lies before it. It is still there
    if that, and the row itself, fits. What leaves first takes no room.
    """
    if walk.parked:
        raise ValueError("closed_form knows no parking")
    if walk.evict_first:
        # Forward, the gradients that are read again push out those that will be, unless all fit.
        hits = min(total, capacity) if walk.reverse else total * (total <= capacity)
    elif walk.reverse:
        hits = min(total, capacity / 4)
    else:
        hits = min(total, max(0, capacity - total) / 3)
    return 7 * total + (total - hits)


def walks(chip):
    """The columns of the table."""
    return {
        "forward": Walk(reverse=False),
        "reverse": Walk(reverse=True),
        "forward, evict first": Walk(reverse=False, evict_first=True),
        "reverse, evict first": Walk(reverse=True, evict_first=True),
        "forward, evict first, parked": Walk(reverse=False, evict_first=True, parked=chip.parked_rows * ROW),
        "reverse, evict first, parked": Walk(reverse=True, evict_first=True, parked=chip.parked_rows * ROW),
    }


def table_rows(model):
    """Lines of the table for one model: DRAM bytes per parameter on each chip, for each walk."""
    tensors = [math.prod(shape) for shape in shapes(model)]
    for chip in CHIPS:
        step_bytes = [dram_bytes(tensors, chip.cache << 20, walk, chip.blocks) for walk in walks(chip).values()]
        per_param = " | ".join(f"{found / sum(tensors):.2f}" for found in step_bytes)
        yield f"| {model} | {sum(tensors) / 1e6:.1f} M | {chip.name} | {per_param} |"


def head():
    assumed = "\n".join(
        f"* {chip.name}: L2 of {chip.cache} MiB, {chip.blocks} blocks that together park "
        f"{chip.parked_rows * ROW * chip.blocks / 2**20:.1f} MiB"
        for chip in CHIPS
    )
    return f"""# What the L2 cache saves: an estimate

DRAM bytes per float32 parameter and step, by a model and not by a measurement. 28 is the floor (gradient, parameter and
two moments read, all but the gradient written); 32 is what it costs when no gradient is in the cache any more when it
is read again. The columns differ in the order of the second phase, in whether parameters and moments are marked to
leave the cache first, and in whether gradients are parked in registers and shared memory.

The model replays every access of blocks that advance in step through one fully associative cache, in which the least
recently used leaves first and which is empty at the start. A real L2 has sets, two partitions on some chips, a
replacement rule that is not published, and other tenants: take the differences between the columns rather than the
figures. Assumed are

{assumed}

`python -m tests.emulation.l2_model docs/l2-estimate.md` writes this page.

| model | parameters | chip | {" | ".join(walks(CHIPS[0]))} |
|---|---|---|{"---|" * len(walks(CHIPS[0]))}
"""


def main(path):
    lines = [line for model in MODELS for line in table_rows(model)]
    Path(path).write_text(head() + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])

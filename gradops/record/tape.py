"""The device's side of a record: each step copied from the optimizer's live buffers into a ring."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gradops.one_pass.groups import param_names, params_of
from gradops.one_pass.one_pass import OnePass
from gradops.record.activations import ActivationWatch
from gradops.record.history import ACTIVATIONS, PER_PARAM, Chunk, Params
from gradops.record.ring import Column, Ring, Snapshot

if TYPE_CHECKING:
    from gradops.record.samples import Held


@dataclass(frozen=True)
class Reading:
    """Steps on their way to the CPU.

    Attributes:
        snapshot: the ring's rows.
        params: the parameters of the rows.
        lr: [S, G] float32; NaN where it is a tensor, whose values are in the snapshot.
        sampled: [S] bool, whether activations were looked at.
        has_loss: [S] bool, whether a loss was given.
        samples: [S] those of each step's batch, as `samples.held` gives them, part by part.
        before: attempted steps before some of the rows, by their index; where the row before does not say so.
    """

    snapshot: Snapshot
    params: Params
    lr: Tensor
    sampled: Tensor
    has_loss: Tensor
    samples: list[tuple["Held", ...]]
    before: dict[int, int]

    def chunk(self, attempted_before: int) -> Chunk:
        """The steps, without those that did nothing since no parameter had a gradient; waits for the device.

        Args:
            attempted_before: attempted steps before the first row, if `before` does not say so.
        """
        columns = self.snapshot.columns()
        columns["lr"] = torch.where(self.lr.isnan(), columns["lr"], self.lr)
        taken, skipped, *_ = columns["counters"].unbind(1)
        attempted = taken + skipped
        previous = torch.cat([torch.tensor([attempted_before], dtype=torch.int64, device="cpu"), attempted[:-1]])
        for index, count in self.before.items():
            if index < len(previous):
                previous[index] = count
        kept = attempted != previous
        columns = {name: values[kept] for name, values in columns.items()}
        sampled = self.sampled[kept]
        for name in ACTIVATIONS:
            if name in columns:
                columns[name] = columns[name][sampled]
        from gradops.record.samples import table

        samples = table(parts for parts, keep in zip(self.samples, kept.tolist(), strict=True) if keep)
        return Chunk(self.params, attempted[kept], sampled, self.has_loss[kept], samples, kept, columns)


class Tape:
    """Records the steps of an optimizer with the parameters that it has now.

    Args:
        optimizer: whose buffers are read.
        names: names of parameters that are better than the optimizer's, by the parameter's id.
        watch: whose activations are recorded too, if any.
        capacity: steps that it holds.
        activations_every: the distance of the steps in which activations are measured.
    """

    def __init__(
        self,
        optimizer: OnePass,
        names: dict[int, str],
        watch: ActivationWatch | None,
        capacity: int,
        activations_every: int,
    ) -> None:
        self._optimizer, self._watch, self._every = optimizer, watch, activations_every
        self._names, self._capacity = names, capacity
        self.steps = 0  # recorded so far
        self._bind()
        self.note_counters()

    @property
    def device(self) -> torch.device:
        return self._norms.device

    def is_stale(self) -> bool:
        """Whether the optimizer has other parameters, or has them elsewhere, than when this began."""
        return self._optimizer.engine.buffers.norms is not self._norms

    def note_counters(self) -> None:
        """Notes how many steps were attempted before the next one, which no row has. Waits for the device."""
        stats = self._optimizer.stats
        self._before[self._ring.filled] = int(stats.steps_taken) + int(stats.steps_skipped)

    def record(self, loss: Tensor | None, samples: tuple["Held", ...] = ()) -> bool:
        """Copies what the step left; true if the tape is full then."""
        index, row = self._ring.filled, self._ring.row()
        self._has_loss[index] = loss is not None
        self._samples[index] = samples
        targets, sources = [row[name] for name in self._sources], list(self._sources.values())
        if loss is not None:
            targets.append(row["loss"])
            sources.append(loss)
        for group, options in enumerate(self._optimizer.param_groups):
            if isinstance(options["lr"], Tensor):
                targets.append(row["lr"][group])
                sources.append(options["lr"].detach().reshape(()))
            else:
                self._lr[index, group] = float(options["lr"])
        if self._watch is not None:
            self._sampled[index] = self._watch.on
            for values, measured in self._watch.take(row):
                targets.append(values)
                sources.append(measured)
        with torch.no_grad():
            torch._foreach_copy_(targets, sources, non_blocking=True)
        self._ring.advance()
        self.steps += 1
        if self._watch is not None:
            self._watch.on = self.steps % self._every == 0
        return self._ring.full

    def take(self) -> Reading | None:
        """Starts the copy of what was recorded to the CPU, and begins anew; nothing if there is nothing."""
        reading = None
        if rows := self._ring.filled:
            snapshot = self._ring.take()
            known = self._lr[:rows], self._sampled[:rows], self._has_loss[:rows], self._samples[:rows]
            reading = Reading(snapshot, self.params, *known, self._before)
            self._clear()
        if self.is_stale():
            self._bind()
        return reading

    def _bind(self) -> None:
        """Takes the optimizer's parameters and buffers as they are now."""
        buffers, groups = self._optimizer.engine.buffers, self._optimizer.param_groups
        self._norms = buffers.norms
        params = list(params_of(groups))
        names = [self._names.get(id(param), name) for param, name in zip(params, param_names(groups), strict=True)]
        owners = [index for index, group in enumerate(groups) for _ in group["params"]]
        self.params = Params(_distinct(names), tuple(param.numel() for param in params), tuple(owners))
        self._sources = {"scalars": buffers.scalars, "counters": buffers.counters}
        self._sources |= {name: getattr(buffers, name) for name in PER_PARAM if hasattr(buffers, name)}
        columns = [
            Column("scalars", torch.float32, tuple(buffers.scalars.shape)),
            Column("counters", torch.int64, tuple(buffers.counters.shape)),
            Column("loss", torch.float32),
            Column("lr", torch.float32, (len(groups),)),
            *(Column(name, dtype, (len(params),)) for name, (dtype, _) in PER_PARAM.items()),
            *([] if self._watch is None else self._watch.columns()),
        ]
        self._ring = Ring(columns, self._capacity, self._norms.device)
        self._clear()

    def _clear(self) -> None:
        """New memory for what is known on the CPU; a reading keeps the old."""
        self._lr = torch.full(
            (self._capacity, len(self._optimizer.param_groups)), float("nan"), dtype=torch.float32, device="cpu"
        )
        self._sampled = torch.zeros(self._capacity, dtype=torch.bool, device="cpu")
        self._has_loss = torch.zeros(self._capacity, dtype=torch.bool, device="cpu")
        self._samples: list[tuple[Held, ...]] = [()] * self._capacity
        self._before: dict[int, int] = {}


def _distinct(names: list[str]) -> tuple[str, ...]:
    """The names with a number after those that stand there twice."""
    seen: dict[str, int] = {}
    result = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        result.append(name if seen[name] == 1 else f"{name}#{seen[name]}")
    return tuple(result)

"""`Recorder`: what every step did to every parameter, kept on the device until somebody asks."""

import atexit
import importlib.util
import os
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from gradops.one_pass.one_pass import OnePass
from gradops.record.about import about, protected, types_of, with_running_statistics
from gradops.record.activations import ActivationWatch
from gradops.record.answers import Answers
from gradops.record.findings import STEPS, FindingCalls
from gradops.record.history import History
from gradops.record.run_file import RunFile
from gradops.record.stuck import StuckWatch
from gradops.record.tape import Reading, Tape

if TYPE_CHECKING:
    from gradops.diagnose.finding import Finding
    from gradops.record.run import Run
    from gradops.record.samples import Held


class Recorder(Answers):
    """Keeps what each step of an optimizer measured, and statistics of what the model's layers put out.

    Per step and parameter: gradient norm, largest gradient, count of non-finite elements, ratio of update to weight and
    RMS of the weights (for which `optimizer.track_updates` is set until it is closed), whether `max_relative_step`
    bound. Per step: global norm, clip coefficient, loss, loss scale, learning rates, whether it was skipped.

    Nothing waits for the device: the values are copied into a ring of `capacity` steps on the device, which is copied
    to the CPU, asynchronously, when it is full or when somebody asks.

        with gradops.Recorder(optimizer, model, path="run.npz"):
            for inputs, targets in loader:
                optimizer.backward(criterion(model(inputs), targets))  # records the loss
                optimizer.step()
                optimizer.zero_grad()

    Code that calls `loss.backward()` itself records the loss by `recorder.loss(loss)`; with `batch=indices`, which may
    also stand before `optimizer.backward(loss)`, the report names the samples of a bad batch. A step that was captured
    in a CUDA graph is recorded by `recorder.after_step()` after each replay. In a module that `torch.compile` compiles,
    each watched layer breaks the graph.

    `on_finding` is called while there is trouble:

        gradops.Recorder(optimizer, model, on_finding=lambda finding: print(finding.level, finding.text))
        gradops.Recorder(optimizer, model, on_finding=lambda finding: run.alert(finding.kind, finding.text))  # W&B
        writer = torch.utils.tensorboard.SummaryWriter()
        gradops.Recorder(
            optimizer, model, on_finding=lambda finding: writer.add_text(finding.kind, finding.text, finding.step)
        )

    Thirty skipped steps in a row, and fifty steps without a gradient, warn once without it.

    Args:
        optimizer: an optimizer that `gradops.wrap` returned, or one of gradops's own.
        model: the model whose activations are to be watched; None for none. It also names the parameters, where the
            optimizer was made without their names.
        capacity: steps that the ring holds.
        path: the record's file. It is written when the ring is full, if that takes no more than a hundredth of the
            time, by `close`, and when the interpreter exits.
        callback: called with a dictionary of numbers for each step, as `rows` gives them, when they are read out.
        on_finding: called once with each failure and warning that the report finds, a
            `gradops.diagnose.finding.Finding`. It looks for them when steps are read out, if that takes no more than a
            twentieth of the time, and by `close`. What `on_finding` raises ends the training.
        modules: names of the modules whose outputs are watched; None for those that have no modules in them.
        activations_every: steps from one measurement of the activations to the next.
        near_zero: the largest magnitude of an activation that counts as near zero.

    Raises:
        TypeError: the optimizer is none of gradops'.
        ValueError: `capacity` or `activations_every` is not positive, or the model has no module of such a name.
        OSError: no file can be written at `path`. One that cannot be written later is a warning.
        ImportError: numpy is missing, or with `on_finding` the extra `report`.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        model: nn.Module | None = None,
        *,
        capacity: int = 256,
        path: str | os.PathLike[str] | None = None,
        callback: Callable[[dict[str, float]], object] | None = None,
        on_finding: Callable[["Finding"], object] | None = None,
        modules: Iterable[str] | None = None,
        activations_every: int = 1,
        near_zero: float = 1e-3,
    ) -> None:
        if not isinstance(optimizer, OnePass):
            raise TypeError(f"Recorder takes an optimizer from gradops.wrap, got {type(optimizer).__name__}")
        for name, value in (("capacity", capacity), ("activations_every", activations_every)):
            if value < 1:
                raise ValueError(f"{name} must be positive, got {value}")
        if importlib.util.find_spec("numpy") is None:
            raise ModuleNotFoundError("Recorder needs numpy: run pip install 'gradops[report]'", name="numpy")
        self._optimizer, self._callback = optimizer, callback
        self._file = None if path is None else RunFile(path)
        self._findings = None if on_finding is None else FindingCalls(on_finding)
        self._stuck = StuckWatch()
        names = {} if model is None else {id(param): name for name, param in model.named_parameters()}
        self._watch = None if model is None else ActivationWatch(model, modules, near_zero)
        self._tape = Tape(optimizer, names, self._watch, capacity, activations_every)
        layers = [] if self._watch is None else self._watch.layers
        self._history = History(layers, list(names.values()), types_of(model))
        self._running = with_running_statistics(model)
        self._readings: list[Reading] = []
        self._loss: Tensor | None = None
        self._seen: tuple[weakref.ref[Tensor], bool] | None = None  # the last loss, and whether with its batch
        self._samples: tuple[Held, ...] = ()
        self._about: dict[str, Any] | None = None  # once it is closed
        self._shown = 0  # steps that TensorBoard has
        self._attempted = 0  # steps up to the last one in the history
        optimizer.engine.watch(self)
        self._tracked_before, optimizer.track_updates = optimizer.track_updates, True
        self._at_exit: Callable[[], None] | None = _closer(self)
        atexit.register(self._at_exit)

    def __repr__(self) -> str:
        state = "closed" if self._at_exit is None else "recording"
        return f"<gradops Recorder of {type(self._optimizer).__name__}: {self._tape.steps} steps, {state}>"

    def loss(self, loss: Tensor | float, batch: "Tensor | Sequence[int | str] | None" = None) -> None:
        """Records the loss of the step to come; called by `optimizer.backward`.

        The losses of several calls before one step are added up, as their gradients are, and their batches joined.
        A loss that is given here with its batch, and to `optimizer.backward` too, counts once.

        Args:
            loss: unscaled.
            batch: indices or names of the samples that it is of, which the report names where the batch is a bad one.

        Raises:
            TypeError: the samples are neither integers nor strings.
        """
        if batch is not None:
            from gradops.record.samples import held

            self._samples = (*self._samples, held(batch))
        if isinstance(loss, Tensor):
            seen, self._seen = self._seen, (weakref.ref(loss), batch is not None)
            if seen is not None and seen[0]() is loss and seen[1] != (batch is not None):
                self._seen = None
                return
        device = self._tape.device
        if isinstance(loss, Tensor):
            value = loss.detach().sum().to(device, torch.float32, non_blocking=True, copy=True)
        else:
            value = torch.full((), loss, dtype=torch.float32, device=device)
        self._loss = value if self._loss is None else self._loss.add_(value)

    def after_step(self, loss: Any = None) -> None:
        """Records the step that was just taken; called by `optimizer.step`.

        Args:
            loss: of that step, where `self.loss` was not called.
        """
        if self._tape.device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            return
        if self._tape.is_stale():
            self._take()
        if self._loss is None and loss is not None:
            self.loss(loss)
        full = self._tape.record(self._loss, self._samples)
        self._loss, self._samples, self._seen = None, (), None
        if full:
            self._take()
        if self._readings and self._readings[0].snapshot.arrived():
            self._collect(wait=False)
            if self._findings is not None:
                self._findings.look_if_cheap(self._lately)
            if self._file is not None:
                self._file.write_if_cheap(self._so_far)

    def after_load(self) -> None:
        """Notes the counters of the checkpoint that was loaded; called by `optimizer.load_state_dict`."""
        self._tape.note_counters()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Records nothing inside the block: a trial's steps, say, as those of `gradops.lr_find`."""
        watching = self._watch is not None and self._watch.on
        self._optimizer.engine.unwatch(self)
        if self._watch is not None:
            self._watch.on = False
        try:
            yield
        finally:
            self._optimizer.engine.watch(self)
            if self._watch is not None:
                self._watch.on = watching

    def run(self) -> "Run":
        """The record so far; waits for the device."""
        if self._about is None:
            self._take()
            self._collect()
        return self._so_far()

    def rows(self) -> Iterator[dict[str, float]]:
        """One flat dictionary a step, for a logger; see `gradops.record.sinks.rows`. Waits for the device."""
        from gradops.record.sinks import rows

        return rows(self.run())

    def to_tensorboard(self, writer: Any) -> None:
        """Writes what was recorded since the last call to a `torch.utils.tensorboard.SummaryWriter`."""
        from gradops.record.sinks import write_tensorboard

        run = self.run()
        write_tensorboard(run, writer, self._shown)
        self._shown = len(run.steps)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the record so far to an .npz file, which `Run.load` reads; as a whole, or not at all."""
        self.run().save(path)

    def close(self) -> None:
        """Ends the recording: removes every hook and writes the file at `path`. The record stays readable."""
        if self._at_exit is None:
            return
        atexit.unregister(self._at_exit)
        self._at_exit = None
        self._optimizer.engine.unwatch(self)
        self._leave_tracking()
        if self._watch is not None:
            self._watch.close()
        self._take()
        self._collect()
        self._about, self._history.running = about(self._optimizer), self._exposed()
        if self._file is not None:
            self._file.write(self.run())
        if self._findings is not None:
            self._findings.look(self._lately())

    def __enter__(self) -> "Recorder":
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def _leave_tracking(self) -> None:
        """Sets `track_updates` back, or lets the last recorder do so."""
        others = [watcher for watcher in self._optimizer.engine.watchers if isinstance(watcher, Recorder)]
        for other in others:
            other._tracked_before = other._tracked_before and self._tracked_before
        if not others:
            self._optimizer.track_updates = self._tracked_before

    def _so_far(self) -> "Run":
        """What has arrived."""
        return self._made_of(self._history)

    def _lately(self) -> "Run":
        """The last of it, which can be looked at in no time."""
        return self._made_of(self._history.last_steps(STEPS))

    def _made_of(self, history: History) -> "Run":
        known = self._about
        if known is None:
            known = about(self._optimizer)
            self._history.running = self._exposed()
        history.running = self._history.running
        return history.run(self._tape.params, known)

    def _exposed(self) -> list[str]:
        """The modules whose running statistics a skipped step does not put back."""
        kept = protected(self._optimizer)
        return [name for name, module in self._running.items() if module() not in kept]

    def _take(self) -> None:
        reading = self._tape.take()
        if reading is not None:
            self._readings.append(reading)

    def _collect(self, wait: bool = True) -> None:
        """Takes what has arrived into the history, or all that is on its way, and calls the callback."""
        count = 0
        while self._readings and (wait or self._readings[0].snapshot.arrived()):
            chunk = self._readings.pop(0).chunk(self._attempted)
            self._stuck.see(chunk)
            self._history.chunks.append(chunk)
            self._attempted = int(chunk.attempted[-1]) if len(chunk.attempted) else self._attempted
            count += 1
        if count and self._callback is not None:
            from gradops.record.sinks import rows

            for row in rows(self._history.last(count).run(self._tape.params, {})):
                self._callback(row)


def _closer(recorder: Recorder) -> Callable[[], None]:
    """What closes the recorder when the interpreter exits, without keeping it alive until then."""
    reference = weakref.ref(recorder)

    def close() -> None:
        if (found := reference()) is not None:
            found.close()

    return close

"""`ModelEma`: timm's ModelEmaV3 whose averages the optimizer's pass keeps."""

import logging
from collections.abc import Iterator, Mapping, MutableMapping
from typing import Any

import torch
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor, nn

from gradops.distributed.shards import is_sharded
from gradops.one_pass.ema_buffers import average_of_buffers
from gradops.one_pass.groups import params_of
from gradops.one_pass.known_optimizers import alive
from gradops.one_pass.one_pass import OnePass
from gradops.policies.ema import WeightEma

_log = logging.getLogger(__name__)


class ModelEma(ModelEmaV3):
    """timm.utils.ModelEmaV3 whose averages are those of the optimizer's pass, `WeightEma`.

    `module` shares their memory, so `update` has nothing to average. Its first call averages as timm does, into what
    was loaded into `module` before, and gives the result to the optimizer. So do later calls for tensors that the
    optimizer comes to average, such as those of layers that were frozen, and for all of them after the optimizer has
    loaded a state. Tensors that the optimizer does not average are averaged as by timm.

    Everything is done as by timm, and `in_pass` is False, where the pass cannot do it: with a `device` or `dtype`, with
    parameters in half precision, sharded or in TorchScript, without an optimizer or with several, and in a run with a
    warm-up that was resumed without its optimizer, whose steps the warm-up counts.

    Other than with timm, a skipped step leaves the averages as they are, each tensor counts its own updates in the
    warm-up, and a weight that two layers share is averaged once.

    Args:
        model: whose weights are averaged.
        *args, **kwargs: ModelEmaV3's.
        optimizer: of gradops, with no `ema` of its own. By default the one alive that has the model's parameters.

    Raises:
        TypeError: `optimizer` is not gradops's.
        ValueError: `optimizer` has an `ema` already, or a decay is out of `WeightEma`'s range.
    """

    def __init__(self, model: nn.Module, *args: Any, optimizer: Any = None, **kwargs: Any) -> None:
        super().__init__(model, *args, **kwargs)
        if optimizer is not None and not isinstance(optimizer, OnePass):
            raise TypeError(f"optimizer must be one of gradops, got {type(optimizer).__name__}")
        if optimizer is not None and optimizer.ema is not None:
            raise ValueError("optimizer averages weights already; set its ema to None, or leave out ModelEma")
        self._optimizer: OnePass | None = None
        self._ema: WeightEma | None = None
        self._calls: int | None = None  # the optimizer's steps at the last update
        self._step: int | None = None  # the last update's
        found = optimizer or _optimizer_of(model)
        if found is not None and found.ema is None and self._averages_as_the_pass(model):
            self._optimizer = found
            self._set_policy(model, start=1 + self.update_after_step, warmup=self.use_warmup)
            _log.info("The weights are averaged in the steps of %s", type(found).__name__)

    @property
    def in_pass(self) -> bool:
        """Whether the optimizer's pass averages."""
        return self._optimizer is not None

    @torch.no_grad()
    def update(self, model: nn.Module, step: int | None = None) -> None:
        """As timm's; to be called once after each of the optimizer's steps.

        Args:
            model: whose weights are averaged.
            step: the number of updates so far, this one included; None for no warm-up.

        Raises:
            RuntimeError: the optimizer has not made exactly one step since the last call, and so has averaged another
                number of times than were asked for; or its `ema` is another now.
            ValueError: `step` does not follow that of the last call.
        """
        if self._optimizer is not None:
            self._check_turn(self._optimizer, model, step)
        if self._optimizer is None:
            super().update(model, step)
            return
        weight = 1.0 - self.get_decay(step)
        averages = _averages(self._optimizer)
        for live, ours in _pairs(model, self.module):
            average = averages.get(id(live))
            if average is not None and average.data_ptr() == ours.data_ptr():
                continue
            if not ours.is_floating_point() or (self.exclude_buffers and not isinstance(ours, nn.Parameter)):
                ours.copy_(live)
                continue
            ours.lerp_(live.to(ours), weight)
            if average is not None:
                average.copy_(ours)
                ours.data = average

    def _check_turn(self, optimizer: OnePass, model: nn.Module, step: int | None) -> None:
        """Refuses an update that is not for the one step since the last; the first sets the policy for the others."""
        now = getattr(optimizer, "ema", None)
        if now is None:  # set so, or the optimizer is unwrapped
            self._optimizer = None
            return
        if now is not self._ema:
            raise RuntimeError(
                "optimizer.ema was set while a ModelEma averages by it; set it to None to have timm do it"
            )
        calls = optimizer.engine.calls
        if self._calls is None:
            self._begin(optimizer, model, step)
        elif calls != self._calls + 1:
            raise RuntimeError(
                "ModelEma.update() must be called once after each of the optimizer's steps, which average; there were "
                f"{calls - self._calls} since the last call. For another rhythm use timm's ModelEmaV3"
            )
        elif step != (None if self._step is None else self._step + 1):
            raise ValueError(f"step must follow that of the last update, {self._step}, got {step}")
        self._calls, self._step = calls, step

    def _begin(self, optimizer: OnePass, model: nn.Module, step: int | None) -> None:
        """Has the pass count as `step` does, whatever the optimizer has counted; reads that from the device."""
        states = [optimizer.state.get(param) for param in model.parameters()]
        steps = [float(state["step"]) for state in states if isinstance(state, Mapping) and "step" in state]
        ahead = 0 if step is None else int(max(steps, default=0.0)) - step + self.update_after_step + 1
        warmup = self.use_warmup and step is not None
        if warmup and ahead < 0:
            optimizer.ema = self._optimizer = None
        else:
            self._set_policy(model, start=max(0, ahead), warmup=warmup)

    def _set_policy(self, model: nn.Module, start: int, warmup: bool) -> None:
        curve: dict[str, Any] = {"inv_gamma": self.warmup_gamma, "power": self.warmup_power}
        curve = {**curve, "min_decay": self.min_decay} if warmup else {}
        self._ema = WeightEma(self.decay, start=start, buffers=None if self.exclude_buffers else model, **curve)
        assert self._optimizer is not None
        self._optimizer.ema = self._ema

    def _averages_as_the_pass(self, model: nn.Module) -> bool:
        wide = all(param.dtype in (torch.float32, torch.float64) for param in model.parameters())
        elsewhere = self.device is not None or getattr(self, "dtype", None) is not None
        return wide and not elsewhere and not _scripted(model) and not any(map(is_sharded, model.parameters()))


def _scripted(model: nn.Module) -> bool:
    return any(isinstance(part, torch.jit.ScriptModule) for part in model.modules())


def _optimizer_of(model: nn.Module) -> OnePass | None:
    """The one that has parameters of the model; None where there are several."""
    ids = {id(param) for param in model.parameters()}
    found = [one for one in alive() if any(id(param) in ids for param in params_of(one.param_groups))]
    return found[0] if len(found) == 1 else None


def _averages(optimizer: OnePass) -> dict[int, Tensor]:
    """The averages that the optimizer has now, by the id of what they are of."""
    states = [(param, optimizer.state.get(param)) for param in params_of(optimizer.param_groups)]
    found = {id(param): state["ema"] for param, state in states if isinstance(state, MutableMapping) and "ema" in state}
    buffers = average_of_buffers(optimizer, optimizer.engine.buffers.scalars.device)
    return found | {id(buffer): average for buffer, average in buffers}


def _pairs(model: nn.Module, copied: nn.Module) -> Iterator[tuple[Tensor, Tensor]]:
    """Parameters and buffers of the state dict, with those of the copy; each once."""
    seen: set[int] = set()
    for part, twin in zip(model.modules(), copied.modules(), strict=True):
        for stores in ((part._parameters, twin._parameters), (part._buffers, twin._buffers)):
            for name, live in stores[0].items():
                ours = stores[1][name]
                if live is not None and ours is not None and name not in part._non_persistent_buffers_set:
                    if id(live) not in seen:
                        yield live, ours
                    seen.add(id(live))

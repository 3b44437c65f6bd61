"""ultralytics' averages and those that the optimizer's step updates, in the same memory."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from gradops._frameworks import needs
from gradops.backends.torch.math import arithmetic_of
from gradops.one_pass.ema_buffers import EMA_BUFFERS, averaged_buffers
from gradops.one_pass.groups import params_of
from gradops.one_pass.one_pass import OnePass
from gradops.one_pass.state import start_state
from gradops.policies.ema import WeightEma
from gradops.settings import settings_of

with needs("ultralytics", extra="ultralytics"):
    from ultralytics.utils.torch_utils import ModelEMA

# Of the ModelEMA that every trainer of theirs makes.
DECAY, TAU = 0.9999, 2000.0


class SharedAverages:
    """The parameters and buffers of `ema.ema` as the averages in an optimizer's state.

    So the module is up to date after every step, nothing is kept twice, and what others write into it (a loaded
    checkpoint) is what the next step averages on.

    Args:
        ema: the ModelEMA.
        model: what it averages, bare.
        optimizer: of the model's parameters.

    Attributes:
        ema: the ModelEMA.
        why_not: why the step cannot do what its `update` does; None where it can.
    """

    def __init__(self, ema: Any, model: nn.Module, optimizer: OnePass) -> None:
        self.ema, self._optimizer = ema, optimizer
        saved = model.state_dict(keep_vars=True)
        averages = {name: value for name, value in ema.ema.state_dict(keep_vars=True).items() if _is_averaged(value)}
        in_step = {id(param) for param in params_of(optimizer.param_groups)}
        shared = [name for name, value in saved.items() if name in averages and id(value) in in_step]
        self._params = [(saved[name], averages[name]) for name in shared]
        self._held: list[tuple[Tensor, Tensor]] = []
        # Where the buffers are: by name the module and its key.
        self._live, places = _buffers_of(model), _buffers_of(ema.ema)
        self._places = {name: place for name, place in places.items() if name in averages}
        # Each module that has some, since a walk over all modules takes its time.
        modules = {id(module): module for name, (module, _) in self._live.items() if name in self._places}
        self._policy = WeightEma(DECAY, tau=TAU, buffers=tuple(modules.values()))
        self._together: Tensor | None = None
        self.why_not = self._reason(averages, saved)

    def share(self) -> None:
        """Has the optimizer's next step update `ema.ema`; there must be gradients. Cheap where it does already."""
        optimizer = self._optimizer
        if optimizer.ema is not self._policy:
            optimizer.ema = self._policy
        if not self._held or self._held[0][1].data_ptr() != self._params[0][1].data_ptr():  # or `ema.ema` has moved
            self._held = [(param, average.detach()) for param, average in self._params]
        states = optimizer.state
        for param, average in self._held:
            state = states.get(param)
            if state is None or state.get("ema") is not average:
                self._share_param(param, average)
        if self._places and not self._has_buffers():
            self._share_buffers()

    def _reason(self, averages: dict[str, Tensor], model: dict[str, Tensor]) -> str | None:
        """The first of what does not fit."""
        if type(self.ema) is not ModelEMA:
            return f"trainer.ema is a {type(self.ema).__name__}"
        if not all(math.isclose(self.ema.decay(n), DECAY * (1 - math.exp(-n / TAU))) for n in (1, 1000, 100_000)):
            return f"its decay is not that of ModelEMA(model, decay={DECAY}, tau={TAU:g})"
        stepped = {id(param) for param, _ in self._params}
        if not stepped:
            return "it averages none of the optimizer's parameters"
        for name, average in averages.items():
            live = model.get(name)
            if live is None or (average.shape, average.device, live.device) != (live.shape, *[self._device] * 2):
                return f"{name} is another in the model"
            wanted = torch.float32 if name in self._places else arithmetic_of(live)
            if average.dtype != wanted:
                return f"{name} is {average.dtype}"
            if name not in self._places and live.requires_grad and id(live) not in stepped:
                return f"{name} is not the optimizer's"
        return None

    @property
    def _device(self) -> torch.device:
        return self._optimizer.engine.buffers.scalars.device

    def _share_param(self, param: Tensor, average: Tensor) -> None:
        optimizer = self._optimizer
        state = optimizer.state.get(param)
        if not state:
            if param.grad is None:
                return
            group = next(group for group in optimizer.param_groups if any(param is other for other in group["params"]))
            starts = optimizer.rule.starts_of(group, optimizer.defaults)
            state = start_state(param, optimizer.rule, starts, settings_of(optimizer))
            optimizer.state[param] = state
        state["ema"] = average
        if not optimizer.rule.counts_as_torch:
            # The warm-up goes on from here. Torch's checkpoints do not say how many updates there were; ModelEMA does,
            # and counts those that were skipped, too.
            made = self.ema.updates - int(optimizer.stats.steps_skipped)
            state["step"] = torch.full((), max(0, made), dtype=torch.float32, device=self._device)

    def _has_buffers(self) -> bool:
        carriers = [state for state in self._optimizer.state.values() if EMA_BUFFERS in state]
        if self._together is None or not carriers or carriers[0][EMA_BUFFERS] is not self._together:
            return False
        module, key = next(iter(self._places.values()))
        return module.get_buffer(key).data_ptr() == self._together.data_ptr()

    @torch.no_grad()
    def _share_buffers(self) -> None:
        """Makes the averages of the buffers parts of one tensor, as `gradops.one_pass.ema_buffers` keeps them."""
        states = self._optimizer.state
        with_grad = (param for param in params_of(self._optimizer.param_groups) if param.grad is not None)
        carrier = next((states[param] for param in with_grad if param in states), None)
        if carrier is None:
            return
        live = averaged_buffers(self._policy, self._device)
        name_of = {id(module._buffers[key]): name for name, (module, key) in self._live.items()}
        places = [self._places.get(name_of.get(id(buffer), "")) for buffer in live]
        values = [
            buffer if place is None else place[0].get_buffer(place[1])
            for place, buffer in zip(places, live, strict=True)
        ]
        for state in states.values():
            state.pop(EMA_BUFFERS, None)
        self._together = carrier[EMA_BUFFERS] = torch.cat([value.detach().reshape(-1).float() for value in values])
        parts = self._together.split([value.numel() for value in values])
        for place, value, part in zip(places, values, parts, strict=True):
            if place is not None:
                value.data = part.view(value.shape)


def _is_averaged(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _buffers_of(model: nn.Module) -> dict[str, tuple[nn.Module, str]]:
    """By name, of every buffer that a state dict has, the module and its key there."""
    return {
        f"{prefix}.{key}" if prefix else key: (module, key)
        for prefix, module in model.named_modules(remove_duplicate=False)
        for key, buffer in module._buffers.items()
        if buffer is not None and key not in module._non_persistent_buffers_set
    }


def without_averages(optimizer: torch.optim.Optimizer, state_dict: dict[str, Any]) -> None:
    """Takes the averages out of an optimizer's state dict: ultralytics' checkpoints have them by themselves."""
    state_dict["state"] = {
        index: {key: value for key, value in state.items() if key not in ("ema", EMA_BUFFERS)}
        for index, state in state_dict["state"].items()
    }

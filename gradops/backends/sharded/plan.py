"""The plan of an optimizer with sharded parameters: `StepPlan` over what this process holds of them."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from gradops.backends.call import Backend
from gradops.backends.checks import check_tensor, takes_part
from gradops.backends.plan import StepPlan
from gradops.backends.sharded.exchange import Exchange
from gradops.distributed.shards import is_sharded, local_grad, local_tensor
from gradops.settings import Settings
from gradops.stats import StepBuffers
from gradops.update_rule import UpdateRule


@dataclass(slots=True)
class _Shard:
    """A parameter and the tensor that stands for it on this process.

    Attributes:
        param: the optimizer's.
        local: of the same memory as the parameter's local tensor; the parameter itself if it is no DTensor.
        state: the optimizer's, as it was bound.
        values: its values then, with their local tensors.
        local_state: the same with local tensors.
    """

    param: Tensor
    local: Tensor
    state: dict[str, Any] | None = None
    values: list[tuple[Any, Any]] = field(default_factory=list)
    local_state: dict[str, Any] | None = None

    def follow(self) -> None:
        """Makes the local tensor that of the parameter as it is now; of one that takes no part nothing is looked at."""
        if self.local is self.param or not takes_part(self.param):
            return
        now = local_tensor(self.param)
        if (now.data_ptr(), now.shape, now.stride()) != (self.local.data_ptr(), self.local.shape, self.local.stride()):
            self.local.data = now.detach()

    def bind_state(self, state: dict[str, Any] | None) -> None:
        self.state = state
        self.values = [(value, local_tensor(value)) for value in (state or {}).values()]
        self.local_state = None
        if state:
            self.local_state = {key: local for key, (_, local) in zip(state, self.values, strict=True)}

    def state_is(self, state: dict[str, Any] | None) -> bool:
        """Whether this is the state that was bound, with the same tensors."""
        if state is not self.state or len(state or {}) != len(self.values):
            return False
        pairs = zip((state or {}).values(), self.values, strict=True)
        return all(value is known and local_tensor(value) is local for value, (known, local) in pairs)


def _shard_of(param: Tensor) -> _Shard:
    if not is_sharded(param):
        return _Shard(param, param)
    local = local_tensor(param).detach()
    local.grad_dtype = None  # whatever the gradient's is
    return _Shard(param, local)


class ShardedPlan:
    """The interface of `gradops.backends.plan.StepPlan` for parameters of which some are DTensors.

    Args:
        backend: what carries out the steps.
        rule: the update rule.
    """

    def __init__(self, backend: Backend, rule: UpdateRule) -> None:
        self._backend = backend
        self._plan = StepPlan(backend, rule)
        self._shards: list[_Shard] = []
        self._exchange: Exchange | None = None
        self._local_state: dict[Tensor, Any] = {}

    @staticmethod
    def prepare(settings: Settings) -> Settings:
        """As StepPlan's."""
        return settings

    def bind_params(self, param_groups: list[dict[str, Any]], names: tuple[str, ...], buffers: StepBuffers) -> None:
        """As StepPlan's."""
        before = {id(shard.param): shard for shard in self._shards}
        params = [param for group in param_groups for param in group["params"]]
        shards = [before.get(id(param)) or _shard_of(param) for param in params]
        for index, shard in enumerate(shards):
            shard.follow()
            # The plan takes local tensors for frozen ones, since they require no gradient.
            if shard.local is not shard.param and takes_part(shard.param):
                check_tensor(shard.local, buffers.scalars.device, "parameter", names[index], self._backend.DTYPES)
        same = [id(shard.param) for shard in shards] == [id(shard.param) for shard in self._shards]
        exchange = self._exchange if same and self._exchange is not None else Exchange(params)
        self._plan.bind_params(self._local_groups(param_groups, shards), names, buffers, exchange)
        self._shards, self._exchange = shards, exchange

    def bind_state(self, state: dict[Tensor, Any]) -> None:
        """As StepPlan's."""
        for shard in self._shards:
            shard.bind_state(state.get(shard.param))
        self._local_state = {shard.local: shard.local_state for shard in self._shards if shard.local_state}
        with self._local_grads():
            self._plan.bind_state(self._local_state)

    def params_without_state(self) -> list[int]:
        """As StepPlan's."""
        with self._local_grads():
            return self._plan.params_without_state()

    def step(
        self,
        param_groups: list[dict[str, Any]],
        state: dict[Tensor, Any],
        settings: Settings,
        loss_scale: Tensor | None,
        grads_scaled: bool,
        found_inf: Tensor | None,
    ) -> bool:
        """As StepPlan's; every process of the parameters' meshes must call it."""
        params = [param for group in param_groups for param in group["params"]]
        if [id(param) for param in params] != [id(shard.param) for shard in self._shards]:
            return False
        if not all(shard.state_is(state.get(shard.param)) for shard in self._shards):
            return False
        groups = self._local_groups(param_groups, self._shards)
        with self._local_grads():
            if not self._plan.step(groups, self._local_state, settings, loss_scale, grads_scaled, found_inf):
                return False
        # The local tensors' counters, which StepPlan bumps, are not those of the DTensors.
        written = [shard.param for shard in self._shards if shard.local is not shard.param]
        torch.autograd.graph.increment_version([param for param in written if param.grad is not None])
        return True

    def description(self) -> str:
        """As StepPlan's."""
        processes = 0 if self._exchange is None else self._exchange.processes
        return f"{self._backend.description()}, shards of {processes} ranks"

    def refresh(self) -> None:
        """As StepPlan's."""
        self._plan.refresh()

    @staticmethod
    def _local_groups(param_groups: list[dict[str, Any]], shards: list[_Shard]) -> list[dict[str, Any]]:
        locals_ = iter(shards)
        return [{**group, "params": [next(locals_).local for _ in group["params"]]} for group in param_groups]

    @contextmanager
    def _local_grads(self) -> Iterator[None]:
        """Gives the local tensors their gradients for as long as they are needed."""
        sharded = [shard for shard in self._shards if shard.local is not shard.param]
        with torch.no_grad():
            try:
                for shard in sharded:
                    shard.follow()
                    shard.local.grad = local_grad(shard.param)
                yield
            finally:
                for shard in sharded:
                    shard.local.grad = None

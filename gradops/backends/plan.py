"""The host path of a step in Python: csrc/host/step_plan.h for the backends without native code.

Built once for an optimizer. A step walks the parameters and compares identity, address, dtype, shape and strides with
what the plan knows; only what moved is checked anew.
"""

from itertools import chain
from typing import Any

import torch
from torch import Tensor

from gradops.backends.call import Backend, Row, StepCall
from gradops.backends.known_row import KnownRow
from gradops.backends.sharded.exchange import Exchange
from gradops.settings import Settings, with_l1
from gradops.stats import StepBuffers
from gradops.update_rule import UpdateRule


class StepPlan:
    """What the optimizer's tensors are, checked at each step against what they were."""

    def __init__(self, backend: Backend, rule: UpdateRule) -> None:
        self._backend, self._rule = backend, rule
        self._known: list[KnownRow] = []
        self._buffers = StepBuffers()
        self._exchange: Exchange | None = None

    @staticmethod
    def prepare(settings: Settings) -> Settings:
        """What `step` takes of these settings, which have been checked."""
        return settings

    def bind_params(
        self,
        param_groups: list[dict[str, Any]],
        names: tuple[str, ...],
        buffers: StepBuffers,
        exchange: Exchange | None = None,
    ) -> None:
        """Takes the parameters of all groups; `names` and the rows of `buffers` have one entry a parameter.

        What the plan knew of a parameter is kept. One that is neither to be trained nor has a gradient is checked when
        its first gradient comes. With an `exchange` the parameters are parts of those that it is of, and every process
        of theirs must call `step`.

        Raises:
            RuntimeError: another one cannot be stepped on the device of `buffers`; the plan is then as it was.
        """
        before = {id(known.row.param): known for known in self._known}
        params = [(param, index) for index, group in enumerate(param_groups) for param in group["params"]]
        device = buffers.scalars.device
        known = []
        for (param, group), name in zip(params, names, strict=True):
            kept = before.get(id(param))
            if kept is None or (kept.row.group, kept.device) != (group, device):
                kept = KnownRow(Row(param, name, group), device, self._backend.DTYPES, self._rule)
                kept.link_if_it_takes_part()
            known.append(kept)
        for entry, name in zip(known, names, strict=True):
            entry.row.name = name
        self._known = known
        self._buffers, self._exchange = buffers, exchange
        self._backend.forget_rows()

    def bind_state(self, state: dict[Tensor, Any]) -> None:
        """Takes the optimizer's `state` as it is now."""
        for known in self._known:
            entry = state.get(known.row.param)
            if not known.state_is(entry):
                known.bind_state(entry)

    def params_without_state(self) -> list[int]:
        """Indices of the parameters that have a gradient but no state.

        Raises:
            RuntimeError: a parameter that has a gradient cannot be stepped, or the gradient does not fit it.
        """
        try:
            return self._follow()
        finally:
            self._let_go_of_grads()

    def step(
        self,
        param_groups: list[dict[str, Any]],
        state: dict[Tensor, Any],
        settings: Settings,
        loss_scale: Tensor | None,
        grads_scaled: bool,
        found_inf: Tensor | None,
    ) -> bool:
        """One step.

        False, and nothing has changed, if groups or state are not those that were bound, or if a tensor cannot be
        stepped with them.
        """
        if not self._same_params(param_groups):
            return False
        try:
            if not self._is_ready(state):
                return False
            if self._exchange is not None or any(known.row.grad is not None for known in self._known):
                rows, groups = [known.row for known in self._known], with_l1(param_groups, settings.l1)
                self._carry_out(
                    StepCall(rows, groups, settings, loss_scale, grads_scaled, found_inf, self._buffers, self._exchange)
                )
            return True
        finally:
            self._let_go_of_grads()

    def _is_ready(self, state: dict[Tensor, Any]) -> bool:
        try:
            without_state = self._follow()
        except RuntimeError:
            return False  # the model may have moved as a whole; else params_without_state says what is wrong
        taking_part = (known for known in self._known if known.row.grad is not None)
        return not without_state and all(known.state_is(state.get(known.row.param)) for known in taking_part)

    def _follow(self) -> list[int]:
        for known in self._known:
            known.follow()
        rows = [known.row for known in self._known]
        return [index for index, row in enumerate(rows) if row.grad is not None and row.state is None]

    def _let_go_of_grads(self) -> None:
        for known in self._known:
            known.row.grad = None

    def _carry_out(self, call: StepCall) -> None:
        taking_part = [known for known in self._known if known.row.grad is not None]
        for known in taking_part:
            _check_moments(known.row, self._rule, call.groups[known.row.group])
        with torch.no_grad():
            self._backend.step(call)
        # A stale graph must not be run backward through, whatever wrote the memory.
        torch.autograd.graph.increment_version([known.row.param for known in taking_part])
        measures = call.settings.measures_params(self._rule)
        for known in taking_part:
            known.version, known.row.squares_known = known.row.param._version, measures

    def description(self) -> str:
        """What runs the steps, for people."""
        return self._backend.description()

    def refresh(self) -> None:
        """Forgets what it knows of the parameters' values, after edits that no counter shows."""
        for known in self._known:
            known.forget_values()

    def _same_params(self, param_groups: list[dict[str, Any]]) -> bool:
        params = list(chain.from_iterable(group["params"] for group in param_groups))
        groups = chain.from_iterable([index] * len(group["params"]) for index, group in enumerate(param_groups))
        return len(params) == len(self._known) and all(
            known.row.param is param and known.row.group == group
            for known, param, group in zip(self._known, params, groups, strict=True)
        )


def _check_moments(row: Row, rule: UpdateRule, group: dict[str, Any]) -> None:
    for moment in rule.moments:
        if moment.because and moment.used(group) and moment.name not in (row.state or {}):
            raise RuntimeError(f"gradops: {moment.because}, but the state of '{row.name}' has no {moment.name}")

"""Our optimizers in one pass, for a Learner's `opt_func`, and fastai's view of them."""

import inspect
from functools import partial
from typing import Any

import torch

import gradops
from gradops._frameworks import needs
from gradops.fastai import state
from gradops.one_pass.one_pass import OnePass

with needs("fastai"):
    from fastai.optimizer import OptimWrapper, set_item_pg

# fastai's names for hyper-parameters that classes call differently; "betas.0" is the first of `betas`.
FASTAIS = {"mom": ("momentum", "betas.0"), "sqr_mom": ("alpha", "betas.1"), "wd": ("weight_decay",)}


def Adam(  # noqa: N802  # fastai's name for it
    params: Any,
    lr: float | slice,
    mom: float = 0.9,
    sqr_mom: float = 0.99,
    eps: float = 1e-5,
    wd: float = 0.01,
    decouple_wd: bool = True,
    **settings: Any,
) -> "Optimizer":
    """fastai's `Adam` in one pass, for a Learner's `opt_func`: the same arguments and defaults.

    Args:
        params: parameters or lists of them, as the learner's splitter makes them.
        lr, mom, sqr_mom, eps, wd: fastai's names for lr, both betas, eps and weight_decay.
        decouple_wd: AdamW's weight decay, else Adam's L2.
        **settings: those of `gradops.wrap`.
    """
    cls = gradops.AdamW if decouple_wd else gradops.Adam
    return of_class(cls, params, lr, mom=mom, sqr_mom=sqr_mom, eps=eps, wd=wd, **settings)


def of_class(cls: type[OnePass], params: Any, lr: float | slice, **options: Any) -> "Optimizer":
    """An optimizer of ours as a Learner takes it, with the defaults of its class; `gradops.fastai.SGD` is it for SGD.

    Args:
        cls: of gradops.
        params: parameters or lists of them, as the learner's splitter makes them.
        lr: the learner spreads a slice over the groups itself.
        **options: the class's own arguments and settings, or fastai's names for them: mom, sqr_mom and wd. Momentum
            that begins as 0 stays 0, whatever a schedule says, as in fastai.

    Raises:
        TypeError: the class has no such argument.
    """
    made_by = partial(cls, lr=lr.stop if isinstance(lr, slice) else lr, **_torchs_names(cls, options))
    return Optimizer(params, made_by)


def _torchs_names(cls: type[OnePass], options: dict[str, Any]) -> dict[str, Any]:
    """The options under the names that the class has for them."""
    parameters = inspect.signature(cls).parameters
    named = {name: value for name, value in options.items() if name not in FASTAIS}
    for name, value in options.items():
        if name not in FASTAIS:
            continue
        keys = [key for key in FASTAIS[name] if key.partition(".")[0] in parameters]
        if not keys:
            raise TypeError(f"gradops.{cls.__name__} has no {' or '.join(FASTAIS[name])}, which fastai calls {name}")
        key, _, index = keys[0].partition(".")
        if index:
            values = list(named.get(key, parameters[key].default))
            values[int(index)] = value
            value = tuple(values)
        named[key] = value
    return named


class Optimizer(OptimWrapper):
    """fastai's view of a gradops optimizer, in which a Learner's `wd_bn_bias=False` holds.

    The learner marks parameters of norms, and biases, to go without weight decay, which an OptimWrapper ignores. Here
    they stand in groups of their own, behind the groups that fastai sees. A schedule may set hyper-parameters that the
    optimizer has not: nothing reads them, as in fastai.
    """

    def __init__(self, params: Any, opt: Any) -> None:
        super().__init__(params, opt)
        if self.opt.param_groups[0].get("momentum") == 0:
            del self.bwd_map["mom"]
        self.groups_seen = len(self.opt.param_groups)
        self.lists = [list(group["params"]) for group in self.opt.param_groups]  # in fastai's order
        self.undecayed: dict[int, int] | None = None  # group that fastai sees: group of its marked parameters

    @property
    def hypers(self) -> list[dict[str, Any]]:
        return super().hypers[: self.groups_seen]

    @property
    def param_lists(self) -> list[list[torch.Tensor]]:
        groups = [group["params"] for group in self.opt.param_groups]
        marked = self.undecayed or {}
        return [groups[i] + (groups[marked[i]] if i in marked else []) for i in range(self.groups_seen)]

    def _set_hyper(self, k: str, v: Any) -> None:
        if k not in self.bwd_map:
            return
        super()._set_hyper(k, v)
        self._part_undecayed()
        for seen, marked in (self.undecayed or {}).items():
            if k != "wd":
                set_item_pg(self.opt.param_groups[marked], self.bwd_map[k], v[seen])

    def step(self, closure: Any = None) -> Any:
        self._part_undecayed()
        return self.opt.step(closure)

    def state_dict(self) -> dict[str, Any]:
        """In fastai's format: plain fastai reads it."""
        self._part_undecayed()
        return state.written(self)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Of fastai's format, written with GradOps or without; of torch's, too, which 0.1.0 wrote."""
        self._part_undecayed()
        if state.is_fastais(state_dict):
            state.read(self, state_dict)
        else:
            self.opt.load_state_dict(state_dict)

    def _part_undecayed(self) -> None:
        """Gives the marked parameters their groups; once, and not before the learner has marked any."""
        if self.undecayed is not None or not self.state:
            return
        self.undecayed = {}
        for seen, group in enumerate(list(self.opt.param_groups)):
            marked = [param for param in group["params"] if not self.state[param].get("do_wd", True)]
            if not marked:
                continue
            options = {key: value for key, value in group.items() if not key.startswith("gradops_")}
            names = dict(zip(group["params"], group.get("param_names", ()), strict=False))
            _fill(group, [param for param in group["params"] if self.state[param].get("do_wd", True)], names)
            self.undecayed[seen] = len(self.opt.param_groups)
            self.opt.add_param_group(_fill({**options, "weight_decay": 0.0}, marked, names))

    def part_anew(self) -> None:
        """Gives every parameter the group that its mark asks for, after marks have changed."""
        groups = self.opt.param_groups
        names: dict[torch.Tensor, str] = {}
        for group in groups:
            names.update(zip(group["params"], group.get("param_names", ()), strict=False))
        del groups[self.groups_seen :]
        for group, params in zip(groups, self.lists, strict=True):
            _fill(group, list(params), names)
        self.undecayed = None
        self._part_undecayed()
        self.opt.engine.rebind()


def _fill(group: dict[str, Any], params: list[torch.Tensor], names: dict[torch.Tensor, str]) -> dict[str, Any]:
    """Puts the parameters into the group, with their names where they have any."""
    group["params"] = params
    if "param_names" in group:
        group["param_names"] = [names[param] for param in params]
    return group

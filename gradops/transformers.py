"""transformers: `Trainer`, and `GradOpsMixin` for subclasses of it."""

import os
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

import gradops
from gradops._frameworks import check_settings, needs, settings_with

with needs("transformers"):
    import transformers
    from transformers.training_args import OptimizerNames

from gradops.accelerate import upgrade
from gradops.one_pass.one_pass import OnePass
from gradops.optim.wrap import rule_for


class GradOpsMixin:
    """Before a Trainer class: `class MyTrainer(GradOpsMixin, transformers.Seq2SeqTrainer)`.

    The optimizer that the trainer makes (`optim="adamw_torch"`, "sgd", "rmsprop" and so on), or is given, is wrapped if
    `gradops.wrap` takes it; another one stays as it is, and is refused where there are settings for it.
    `optim="lion_32bit"` is `gradops.Lion` with transformers' arguments for that name, and needs no bitsandbytes; any
    class of gradops goes by `optimizer_cls_and_kwargs=(gradops.LARS, {"lr": 0.1})`.

    `max_grad_norm` is done by its step. The `grad_norm` that the trainer logs is the norm before clipping;
    `gradops.accelerate` measures it before the step, by reading the gradients once more. A step that was skipped leaves
    the learning-rate schedule where it is.

    With `settings={"ema": gradops.WeightEma(...)}` the step averages the weights, and `evaluate()`, `predict()`, the
    evaluations during training and `save_model()` are of the averages. Checkpoints have both: the weights where they
    always are, the averages in the optimizer's state; a resumed run goes on with both, and `load_best_model_at_end`
    loads both.

    Args:
        *args, **kwargs: the trainer's.
        settings: those of `gradops.wrap`, as a dict; but not `max_norm`, which is `max_grad_norm`, nor `loss_scale`,
            which is the accelerator's. `"protect": True` protects the model that is trained.

    Raises:
        ValueError, TypeError: a setting is out of its range, or does not go with the trainer's arguments, or there are
            some for an optimizer that cannot be wrapped.
    """

    def __init__(self, *args: Any, settings: dict[str, Any] | None = None, **kwargs: Any) -> None:
        self.settings = settings or {}
        for name, instead in (("max_norm", "TrainingArguments' max_grad_norm"), ("loss_scale", "fp16=True")):
            if name in self.settings:
                raise TypeError(f"{name} is no setting of a Trainer's; use {instead}")
        check_settings(self.settings)
        super().__init__(*args, **kwargs)
        if self.settings.get("ema") is not None:
            _check_averages_with(self.args)  # type: ignore[attr-defined]

    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()  # type: ignore[misc]
        upgrade(self.accelerator)  # type: ignore[attr-defined]

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        trainer: Any = self
        given, of_trainer = trainer.optimizer, trainer.optimizer_cls_and_kwargs
        if given is None and of_trainer is None and trainer.args.optim == OptimizerNames.LION:
            trainer.optimizer_cls_and_kwargs = gradops.Lion, _lions_arguments(trainer.args)
        try:
            optimizer = super().create_optimizer(*args, **kwargs)  # type: ignore[misc]
        finally:
            trainer.optimizer_cls_and_kwargs = of_trainer
        settings = settings_with(self.settings, trainer.model)
        if given is None and isinstance(optimizer, OnePass):
            for name, value in settings.items():
                setattr(optimizer, name, value)
        elif rule_for(optimizer) is not None or settings:
            gradops.wrap(optimizer, **settings)
        return optimizer

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        with self._averages():
            return super().evaluation_loop(*args, **kwargs)  # type: ignore[misc]

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        # The internal calls are those of checkpoints, from which training goes on.
        with nullcontext() if _internal_call else self._averages():
            super().save_model(output_dir, _internal_call)  # type: ignore[misc]

    def _load_best_model(self) -> None:
        super()._load_best_model()  # type: ignore[misc]
        if self.settings.get("ema") is not None:
            trainer: Any = self
            path = os.path.join(trainer.state.best_model_checkpoint, "optimizer.pt")
            trainer.optimizer.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))

    def _averages(self) -> AbstractContextManager[None]:
        """The block in which the model has its averaged weights; one that does nothing where there are none."""
        trainer: Any = self
        optimizer = getattr(trainer.optimizer, "optimizer", trainer.optimizer)
        averages = isinstance(optimizer, OnePass) and optimizer.ema is not None and not optimizer.engine.averaged
        return gradops.ema_weights(trainer.model, optimizer) if averages else nullcontext()


class Trainer(GradOpsMixin, transformers.Trainer):
    """transformers.Trainer whose optimizer takes the one pass; see `GradOpsMixin`."""


def _lions_arguments(args: transformers.TrainingArguments) -> dict[str, Any]:
    """Those that transformers has for the name."""
    return {"lr": args.learning_rate, "betas": (args.adam_beta1, args.adam_beta2)}


def _check_averages_with(args: transformers.TrainingArguments) -> None:
    """Refuses arguments under which the averages would be lost.

    Raises:
        ValueError: naming the argument.
    """
    for name in ("fp16_full_eval", "bf16_full_eval"):
        if getattr(args, name):
            raise ValueError(f"{name} makes the weights half precision for good; with ema use {name[:4]}=True alone")
    if args.load_best_model_at_end and args.save_only_model:
        raise ValueError("load_best_model_at_end with ema needs save_only_model=False: optimizer.pt has the averages")

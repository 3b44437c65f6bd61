"""transformers: `Trainer`, and `GradOpsMixin` for subclasses of it."""

from typing import Any

import gradops
from gradops._frameworks import check_settings, needs, settings_with

with needs("transformers"):
    import transformers

from gradops.accelerate import upgrade
from gradops.optim.wrap import rule_for


class GradOpsMixin:
    """Before a Trainer class: `class MyTrainer(GradOpsMixin, transformers.Seq2SeqTrainer)`.

    The optimizer that the trainer makes, or is given, is wrapped if `gradops.wrap` takes it. `max_grad_norm` is
    done by its step. The `grad_norm` that the trainer logs is the norm before clipping; `gradops.accelerate` measures
    it before the step, by reading the gradients once more. A step that was skipped leaves the learning-rate schedule
    where it is.

    Args:
        *args, **kwargs: the trainer's.
        settings: those of `gradops.wrap`, as a dict; but not `max_norm`, which is `max_grad_norm`, nor `loss_scale`,
            which is the accelerator's. `"protect": True` protects the model that is trained.

    Raises:
        ValueError, TypeError: a setting is out of its range.
    """

    def __init__(self, *args: Any, settings: dict[str, Any] | None = None, **kwargs: Any) -> None:
        self.settings = settings or {}
        for name, instead in (("max_norm", "TrainingArguments' max_grad_norm"), ("loss_scale", "fp16=True")):
            if name in self.settings:
                raise TypeError(f"{name} is no setting of a Trainer's; use {instead}")
        check_settings(self.settings)
        super().__init__(*args, **kwargs)

    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()  # type: ignore[misc]
        upgrade(self.accelerator)  # type: ignore[attr-defined]

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        optimizer = super().create_optimizer(*args, **kwargs)  # type: ignore[misc]
        if rule_for(optimizer) is not None:
            gradops.wrap(optimizer, **settings_with(self.settings, self.model))  # type: ignore[attr-defined]
        return optimizer


class Trainer(GradOpsMixin, transformers.Trainer):
    """transformers.Trainer whose optimizer takes the one pass; see `GradOpsMixin`."""

"""A trainer of ultralytics whose optimizer unscales, clips, updates and averages in one pass."""

from typing import Any, ClassVar

import torch

import gradops
from gradops._frameworks import check_settings, name_params, needs, one_pass_scaler, settings_with
from gradops.one_pass.one_pass import OnePass
from gradops.optim.wrap import rule_for

with needs("ultralytics", extra="ultralytics"):
    from ultralytics.engine.trainer import BaseTrainer
    from ultralytics.utils import LOGGER
    from ultralytics.utils.torch_utils import unwrap_model

from gradops.ultralytics.averages import SharedAverages, without_averages

# What every one of their trainers clips the gradients' norm to.
MAX_NORM = 10.0
# Whose these are.
_NOT_HERE = {"loss_scale": "the trainer's scaler has the loss scale: amp=True", "ema": "the averages are trainer.ema's"}


def trainer(of: Any, **settings: Any) -> type:
    """Makes a trainer for `YOLO.train`: the task's own, whose optimizer is wrapped when it is made.

        model = YOLO("yolov8n.pt")
        model.train(data="coco8.yaml", trainer=gradops.ultralytics.trainer(model))

    The step clips to 10.0 as ultralytics does, and updates the averages in `trainer.ema`, which validation, checkpoints
    and callbacks go on to read. Checkpoints are ultralytics' own, to be resumed with this trainer or without. MuSGD,
    which `optimizer="auto"` takes above 10,000 iterations, cannot be wrapped: it stays as it is, and the log says so.
    A step in which the gradients hold an inf or NaN is skipped, without a scaler too.

    Args:
        of: a model of ultralytics, for the trainer of its task; or a trainer class.
        **settings: those of `gradops.wrap` but `loss_scale` and `ema`. `max_norm` is 10.0 where it is not given.
            `protect=True` protects the model that is trained.

    Returns:
        A subclass of the trainer class.

    Raises:
        ValueError, TypeError: a setting is out of its range; `of` is something else, or a trainer class with an
            `optimizer_step` of its own. When training starts, there are settings for an optimizer that cannot be
            wrapped.
    """
    for name, instead in _NOT_HERE.items():
        if name in settings:
            raise TypeError(f"{name} is no setting of a trainer's; {instead}")
    check_settings(_with_default(settings))
    cls = _trainer_class(of)
    if cls.optimizer_step is not BaseTrainer.optimizer_step:
        raise TypeError(f"{cls.__name__} has an optimizer_step of its own, which this trainer would replace")
    # No module has it by this name, and so cloudpickle hands it to DDP's processes by value.
    return type(f"GradOps{cls.__name__}", (GradOpsMixin, cls), {"settings": settings})


def _with_default(settings: dict[str, Any]) -> dict[str, Any]:
    """With ultralytics' clipping; with "agc" `max_norm` is something else."""
    return settings if settings.get("clip_mode") == "agc" else {"max_norm": MAX_NORM, **settings}


def _trainer_class(of: Any) -> type[Any]:
    found = of
    if not isinstance(of, type) and hasattr(of, "task_map"):
        found = of.task_map[of.task]["trainer"]
    if not (isinstance(found, type) and issubclass(found, BaseTrainer)):
        raise TypeError(f"trainer takes a model of ultralytics, such as YOLO(...), or a trainer class, got {of!r}")
    return found


class GradOpsMixin:
    """What `trainer` adds to a trainer class, with its two hooks that have to do with the optimizer."""

    settings: ClassVar[dict[str, Any]]

    ema: Any
    model: Any
    optimizer: Any
    scaler: Any
    averages: SharedAverages | None = None

    def build_optimizer(self, model: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        """ultralytics', wrapped; the scaler, which is there by then, becomes one that makes no extra pass."""
        optimizer: Any = super().build_optimizer(model, *args, **kwargs)  # type: ignore[misc]
        if rule_for(optimizer) is None and not self.settings:
            kind = type(optimizer).__name__
            LOGGER.info(f"gradops: {kind} cannot be wrapped; its steps, clipping and averages stay ultralytics' own")
            return optimizer
        bare = unwrap_model(model)
        wrapped: Any = gradops.wrap(optimizer, **settings_with(_with_default(self.settings), bare))
        if name_params(wrapped, bare):
            wrapped.engine.rebind()
        wrapped.register_state_dict_post_hook(without_averages)
        self.scaler = one_pass_scaler(self.scaler)
        return wrapped

    def optimizer_step(self) -> None:
        """What ultralytics' does, the averages included, in one pass."""
        if not isinstance(self.optimizer, OnePass):
            super().optimizer_step()  # type: ignore[misc]
            return
        in_step = self._share_averages()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        if in_step:
            self.ema.updates += 1
        elif self.ema:
            self.ema.update(self.model)

    def _share_averages(self) -> bool:
        """Whether the next step updates `trainer.ema`, as it is now: loading a checkpoint makes another."""
        optimizer, averages = self.optimizer, self.averages
        if self.ema and (averages is None or averages.ema is not self.ema):
            self.averages = averages = SharedAverages(self.ema, unwrap_model(self.model), optimizer)
            if averages.why_not is not None:
                LOGGER.info(f"gradops: the averages stay ultralytics' own: {averages.why_not}")
        if averages is None or averages.why_not is not None or not self.ema or not self.ema.enabled:
            if optimizer.ema is not None:
                optimizer.ema = None
            return False
        averages.share()
        return True

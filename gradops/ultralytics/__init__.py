"""ultralytics: `trainer`, a task's own trainer whose optimizer takes the one pass, with clipping and averages in it."""

from gradops.ultralytics.training import trainer

__all__ = ["trainer"]

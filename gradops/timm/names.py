"""`gradopsadamw`, `gradopssgd` and so on: names for timm's factory, registered by importing this module."""

from collections.abc import Iterator
from dataclasses import replace

from timm.optim._optim_factory import OptimInfo, default_registry

from gradops.optim.classes import classes, torchs_class


def _of_all_optimizers() -> Iterator[OptimInfo]:
    """Ours, with the arguments and defaults that timm has under the same name, and under others for torch's class.

    So `gradopssgd` has Nesterov's momentum as timm's `sgd` has, and `gradopsmomentum` has not.
    """
    infos = map(default_registry.get_optimizer_info, default_registry.list_optimizers())
    theirs = {info.name: info for info in infos}  # an alias has the name of what it stands for
    for name, cls in classes().items():
        torchs = torchs_class(cls)
        for info in theirs.values():
            if info.name == name.lower() or (torchs is not None and info.opt_class is torchs):
                said = f"gradops.{name} for {info.name}, with clipping and loss scale in one pass"
                # The factory splits names at underscores, so these have none.
                yield replace(info, name=f"gradops{info.name}", opt_class=cls, description=said)


OPTIMIZERS = tuple(_of_all_optimizers())
for _info in OPTIMIZERS:
    default_registry.register(_info)

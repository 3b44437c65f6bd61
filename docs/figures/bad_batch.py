"""One corrupt batch in a healthy run, and what stands against it."""

import pathlib
from collections.abc import Iterator
from typing import Any

import torch

import gradops
from docs.figures.style import LOOKS, PALE, label, new_figure, save
from docs.figures.trainings import SEED, loss_of, task
from gradops.demo.network import ResidualNet
from gradops.demo.training import batches

LR, STEPS, BAD = 0.003, 110, 70
# The corrupt batch: images that somebody forgot to scale, and labels of other images.
TIMES = 85.0
# Half of them where the runs are compared; decades alone would be two.
LOSS_TICKS = (0.2, 0.5, 1.0, 10.0, 50.0)
REMEDIES: dict[str, dict[str, Any]] = {
    "AdamW": {},
    "max_norm=0.3": {"max_norm": 0.3},
    "guard, skipping": {"guard": gradops.SpikeGuard("skip")},
    "max_relative_step": {"max_relative_step": gradops.RelativeStepCap(0.1, warmup_steps=100)},
}


def draw(path: pathlib.Path) -> dict[str, Any]:
    """Loss and norm of the same run, four times."""
    figure, (losses, norms) = new_figure(9.6, 3.8, 2)
    facts = {}
    for (name, remedy), look in zip(REMEDIES.items(), LOOKS, strict=True):
        loss, norm = zip(*_run(remedy), strict=True)
        steps = range(BAD - 20, STEPS)
        losses.plot(steps, loss[BAD - 20 :], label=name, **{**look, "marker": ""})
        norms.plot(steps, norm[BAD - 20 :], **{**look, "marker": ""})
        facts[name] = {
            "norm of the bad batch": float(f"{norm[BAD]:.3g}"),
            "median norm of the 20 before": float(f"{sorted(norm[BAD - 20 : BAD])[10]:.3g}"),
            "loss of the 10 before, 10 after, last 10": [
                round(sum(part) / 10, 3) for part in (loss[BAD - 10 : BAD], loss[BAD + 1 : BAD + 11], loss[-10:])
            ],
        }
    for axes in (losses, norms):
        axes.axvline(BAD, color=PALE, linewidth=1, linestyle=":")
        axes.set_yscale("log")
    losses.set_yticks(LOSS_TICKS, [f"{tick:g}" for tick in LOSS_TICKS])
    label(losses, "loss of a batch", "step")
    label(norms, "gradient norm, before clipping", "step")
    losses.legend(frameon=False)
    save(figure, path)
    return facts


def _run(remedy: dict[str, Any]) -> Iterator[tuple[float, float]]:
    torch.manual_seed(SEED)
    network = ResidualNet()
    optimizer = gradops.AdamW(network.named_parameters(), lr=LR, **remedy)
    for step, (_, index) in enumerate(zip(range(STEPS), batches(task(LR)), strict=False)):
        canvases, labels = task(LR).train.batch(index)
        loss = loss_of(network, (TIMES * canvases, labels.flip(0)) if step == BAD else (canvases, labels))
        optimizer.zero_grad()
        optimizer.backward(loss)
        optimizer.step()
        yield loss.item(), float(optimizer.stats.grad_norm)

"""The first page's record: a run that explodes under norm clipping, its picture, and what its report says."""

import pathlib

import torch

import gradops
from docs.figures.trainings import loss_of, task
from gradops.demo import MAX_NORM
from gradops.demo.network import ResidualNet
from gradops.demo.training import batches


def draw(path: pathlib.Path) -> dict[str, list[str]]:
    """Draws the recorded run; returns the lines of its report."""
    torch.manual_seed(0)
    network = ResidualNet()
    optimizer = gradops.wrap(torch.optim.AdamW(network.named_parameters()), max_norm=MAX_NORM)
    with gradops.Recorder(optimizer, network) as recorder:
        run = task(lr=0.1)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, run.lr, total_steps=run.steps)
        for index in batches(run):
            optimizer.backward(loss_of(network, run.train.batch(index)))
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
    # Three layers: the picture stands on the first page.
    recorder.plot(path, layers=["stage1.2.conv2", "stage1.4.conv1", "stage2.5.conv2"])
    return {"report": str(recorder.report()).splitlines()}

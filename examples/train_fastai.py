"""fastai: a multi-label CNN without normalisation, `fit_one_cycle` up to a learning rate at which it would explode.

The callback stands in place of MixedPrecision and GradientClip; the optimizer is the Learner's default one.
"""

import argparse

from fastai.callback.schedule import fit_one_cycle  # noqa: F401  # puts it on Learner
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.learner import Learner
from torch import nn
from torch.utils.data import TensorDataset

import gradops
from gradops.demo.digits import compose, load_digits
from gradops.demo.network import ResidualNet
from gradops.fastai import GradOps


def learner(canvases: int, blocks: int, callbacks: list) -> Learner:
    """A learner on composed canvases of real digits: which of the ten digits are there?"""
    train, held_out = (
        compose(digits, count, seed=0) for digits, count in zip(load_digits(), (canvases, 256), strict=True)
    )
    loaders = [
        DataLoader(TensorDataset(part.images.float() / 85 - 0.5, part.labels), bs=64, shuffle=part is train)
        for part in (train, held_out)
    ]
    return Learner(DataLoaders(*loaders), ResidualNet(blocks=blocks), nn.BCEWithLogitsLoss(), cbs=callbacks)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--canvases", type=int, default=512)
    parser.add_argument("--blocks", type=int, default=2)
    arguments = parser.parse_args()
    cap = gradops.RelativeStepCap(0.1, warmup_steps=100)
    learn = learner(arguments.canvases, arguments.blocks, [GradOps("fp32", max_norm=1.0, max_relative_step=cap)])
    learn.fit_one_cycle(1, 0.1)
    stats = learn.grad_ops.stats.cpu()
    worst = stats.names[int(stats.norms.argmax())]
    print(f"steps {int(stats.steps_taken)}, last norm {float(stats.grad_norm):.3g}, most of it in {worst}")

"""Small fastai Learners, and callbacks that watch and disturb them."""

import copy
import math

import fastai.callback.schedule  # noqa: F401  # gives Learners fit_one_cycle and lr_find
import torch
from fastai.callback.core import Callback
from fastai.callback.progress import ProgressCallback
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.learner import Learner
from fastai.optimizer import Adam as FastaisAdam
from torch import nn
from torch.utils.data import TensorDataset

import gradops
from gradops import fastai as gf

CLOSE = {"rtol": 2e-4, "atol": 2e-5}

# A scale under which no gradient of these tests overflows by itself.
SCALE = gradops.DynamicLossScale(init_scale=1024.0)


def grad_ops(precision, **settings):
    return gf.GradOps(precision, **({"loss_scale": SCALE} if precision == "fp16" else {}), **settings)


class Items(TensorDataset):
    def new_empty(self):
        return Items(*(tensor[:0] for tensor in self.tensors))


def data(path, batches=6, size=4):
    torch.manual_seed(1)
    items = Items(torch.randn(batches * size, 1, 6, 6), torch.randn(batches * size, 2))
    loaders = [DataLoader(items, bs=size, num_workers=0) for _ in range(2)]
    return DataLoaders(*loaders, path=path)


def network():
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU())
    return nn.Sequential(body, nn.Sequential(nn.Flatten(), nn.Linear(64, 2)))


def two_groups(model):
    return [list(model[0].parameters()), list(model[1].parameters())]


def make_learner(path, opt_func=FastaisAdam, cbs=(), **options):
    learn = Learner(data(path), network(), nn.MSELoss(), opt_func, cbs=list(cbs), **options)
    learn.remove_cb(ProgressCallback)
    learn.logger = lambda *_: None
    return learn


def weights(learn):
    return {name: value.detach().clone() for name, value in learn.model.state_dict().items()}


class Watch(Callback):
    """Another callback: what it sees of each batch."""

    order = 70

    def __init__(self):
        self.cancelled, self.steps, self.hypers, self.losses = [], 0, [], []

    def after_cancel_step(self):
        self.cancelled.append(self.learn.train_iter)

    def after_step(self):
        self.steps += 1
        self.hypers.append(copy.copy(self.learn.opt.hypers[-1]))
        self.losses.append(self.learn.loss.item())


class Poison(Callback):
    """Makes the loss of some batches inf; the batch numbers count on over epochs."""

    def __init__(self, *batches):
        self.batches = batches

    def after_loss(self):
        if self.learn.training and self.learn.train_iter in self.batches:
            self.learn.loss_grad = self.learn.loss_grad * math.inf

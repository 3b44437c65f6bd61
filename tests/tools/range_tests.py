"""What range tests are run on: a small network, and batches with random numbers of their own."""

import random

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

BATCHES = 6


class Noisy(torch.utils.data.Dataset):
    """Samples with random numbers of their own, as augmentation draws them."""

    def __init__(self):
        self.values = torch.randn(8 * BATCHES, 5, generator=torch.Generator().manual_seed(1))
        self.noise = torch.Generator().manual_seed(2)
        self.more_noise = np.random.default_rng(3)

    def __len__(self):
        return len(self.values)

    def __getitem__(self, index):
        noise = 0.1 * torch.randn(5, generator=self.noise) + 0.1 * self.more_noise.normal()
        x = self.values[index] + noise + 0.1 * random.random()
        return x.float(), (self.values[index].sum() > 0).float()


def make_loader(**options):
    return torch.utils.data.DataLoader(Noisy(), batch_size=8, shuffle=True, **options)


def make_model(dtype=torch.float32):
    torch.manual_seed(0)
    layers = nn.Linear(5, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 1), nn.Flatten(0)
    model = nn.Sequential(*layers).to(dtype)
    model.register_forward_pre_hook(lambda _, args: args[0].to(dtype))
    return model


def loss_fn(outputs, targets):
    return F.binary_cross_entropy_with_logits(outputs.float(), targets)

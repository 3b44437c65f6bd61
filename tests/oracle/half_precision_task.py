"""A small real task for parameters in half precision: handwritten digits, and what a run on them ends with."""

import torch
from torch.func import functional_call

from gradops.demo.digits import load_digits

CLASSES = 10
BATCH = 64


def final_loss(make_optimizer, dtype, steps=400, lr=1e-3, seed=0):
    """Mean training loss over the last quarter of a run whose rate falls to 0.

    Parameters are stored in `dtype` and gradients come in it; the network itself computes in float32, so that runs
    differ in nothing but how parameters are kept.
    """
    torch.manual_seed(seed)
    model = torch.nn.Sequential(torch.nn.Linear(784, 48), torch.nn.ReLU(), torch.nn.Linear(48, CLASSES)).to(dtype)
    optimizer = make_optimizer(model.parameters(), lr)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, steps)
    digits, _ = load_digits()
    images = torch.from_numpy(digits.images).reshape(-1, 784).float().div_(255.0)
    classes = torch.from_numpy(digits.classes)
    losses = []
    for _ in range(steps):
        batch = torch.randint(len(images), (BATCH,))
        params = {name: param.float() for name, param in model.named_parameters()}
        loss = torch.nn.functional.cross_entropy(functional_call(model, params, images[batch]), classes[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return sum(losses[-steps // 4 :]) / (steps // 4)

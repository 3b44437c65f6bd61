"""Plain torch: a wrapped AdamW with clipping, a loss scale, accumulation over two micro-batches, and a scheduler."""

import torch
import torch.nn.functional as F
from torch import nn

import gradops

STEPS = 40

torch.manual_seed(0)
inputs = torch.randn(512, 20)
targets = torch.sin(inputs[:, :1]) + inputs[:, 1:2] * inputs[:, 2:3]
model = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 1))

optimizer = torch.optim.AdamW(model.named_parameters(), lr=1e-2)
scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-2, total_steps=STEPS)
optimizer = gradops.wrap(optimizer, max_norm=1.0, loss_scale="dynamic")

norms = []
for _ in range(STEPS):
    for rows in torch.randperm(len(inputs))[:128].chunk(2):
        with torch.autocast("cpu", dtype=torch.float16):
            loss = F.mse_loss(model(inputs[rows]).float(), targets[rows]) / 2
        optimizer.backward(loss)
    optimizer.step()
    scheduler.step()
    optimizer.zero_grad()
    norms.append(optimizer.stats.grad_norm.clone())  # the live tensor is overwritten by the next step

stats = optimizer.stats.cpu()
print(f"loss {2 * loss.item():.3f}, norm {norms[0]:.2f} at first and {norms[-1]:.2f} at last")
print(f"steps taken {stats.steps_taken}, skipped {stats.steps_skipped}, loss scale {stats.loss_scale:g}")

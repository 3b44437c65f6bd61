"""Accelerate: `gradops.accelerate.Accelerator` in place of accelerate's, and the loop as it was."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from gradops.accelerate import Accelerator

torch.manual_seed(0)
inputs = torch.randn(512, 20)
data = DataLoader(TensorDataset(inputs, torch.sin(inputs[:, :1])), batch_size=32)
model = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 1))
optimizer = torch.optim.AdamW(model.named_parameters(), lr=1e-2)  # wrapped by prepare()
scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 24)

accelerator = Accelerator(mixed_precision="bf16", gradient_accumulation_steps=2)
model, optimizer, data, scheduler = accelerator.prepare(model, optimizer, data, scheduler)

norms = []
for _ in range(3):
    for batch, targets in data:
        with accelerator.accumulate(model):
            loss = F.mse_loss(model(batch).float(), targets)
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                norms.append(accelerator.clip_grad_norm_(model.parameters(), 1.0))  # measured by the step below
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()

print(f"loss {loss.item():.3f}, norms {norms[0]:.2f} ... {norms[-1]:.2f}, skipped: {optimizer.step_was_skipped}")

"""timm: an optimizer by its name, clipping, NativeScaler, and an average of the weights in the optimizer's pass."""

import timm
import torch
import torch.nn.functional as F
from timm.optim import create_optimizer_v2

from gradops.timm import ModelEma, NativeScaler, dispatch_clip_grad  # registers gradopsadamw, gradopssgd and so on

torch.manual_seed(0)
device = "cuda" if torch.cuda.is_available() else "cpu"
model = timm.create_model("test_resnet", num_classes=4).to(device)
optimizer = create_optimizer_v2(model, opt="gradopsadamw", lr=2e-3, weight_decay=0.05)
# Loss scales are for float16, so for a GPU; bfloat16 needs none.
dtype, scaler = (torch.float16, NativeScaler(device)) if device == "cuda" else (torch.bfloat16, None)
average = ModelEma(model, decay=0.9, use_warmup=True)

images, labels = torch.randn(32, 3, 64, 64, device=device), torch.arange(32, device=device) % 4
for step in range(5):
    with torch.autocast(device, dtype=dtype):
        loss = F.cross_entropy(model(images).float(), labels)
    if scaler is not None:
        scaler(loss, optimizer, clip_grad=1.0, clip_mode="norm", parameters=model.parameters())
    else:
        loss.backward()
        dispatch_clip_grad(model.parameters(), 1.0, mode="norm")  # by the step; so does timm.utils.dispatch_clip_grad
        optimizer.step()
    optimizer.zero_grad()
    average.update(model, step=step + 1)  # the step has done it
averaged = F.cross_entropy(average.module(images), labels)
print(f"loss {loss.item():.3f}, norm {optimizer.stats.grad_norm.item():.3f}, of the averages {averaged.item():.3f}")

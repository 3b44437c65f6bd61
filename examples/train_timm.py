"""timm: an optimizer by its name, NativeScaler, and an exponential moving average of the weights."""

import timm
import torch
import torch.nn.functional as F
from timm.optim import create_optimizer_v2
from timm.utils import ModelEmaV3

from gradops.timm import NativeScaler  # registers gradopsadam and gradopsadamw

torch.manual_seed(0)
device = "cuda" if torch.cuda.is_available() else "cpu"
model = timm.create_model("test_resnet", num_classes=4).to(device)
optimizer = create_optimizer_v2(model, opt="gradopsadamw", lr=2e-3, weight_decay=0.05)
scaler = NativeScaler(device, init_scale=1024.0)
average = ModelEmaV3(model, decay=0.9)

images, labels = torch.randn(32, 3, 64, 64, device=device), torch.arange(32, device=device) % 4
for _ in range(5):
    with torch.autocast(device, dtype=torch.bfloat16):
        loss = F.cross_entropy(model(images).float(), labels)
    scaler(loss, optimizer, clip_grad=1.0, clip_mode="norm", parameters=model.parameters())
    optimizer.zero_grad()
    average.update(model)
print(f"loss {loss.item():.3f}, norm {optimizer.stats.grad_norm.item():.3f}, scale {scaler.state_dict()['scale']:g}")

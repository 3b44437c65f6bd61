"""A training that calls timm's public parts in the order in which its training script calls them."""

import contextlib

import timm
import torch
from timm import utils
from timm.optim import create_optimizer_v2
from timm.task import ClassificationTask

LRS = {"sgd": 0.05, "lars": 0.05}


class Loop:
    """A small ResNet on a few images; `opt` is timm's name, "gradops" before it makes it ours."""

    def __init__(self, opt="gradopssgd", amp=None, scaler=None, **options):
        torch.manual_seed(0)
        self.model = timm.create_model("test_resnet", num_classes=3)
        self.task = ClassificationTask(self.model, torch.nn.CrossEntropyLoss(), verbose=False)
        options = {"lr": LRS.get(opt.removeprefix("gradops"), 2e-3), "weight_decay": 0.01, **options}
        self.optimizer = create_optimizer_v2(self.model, opt=opt, **options)
        self.began = self.weights()
        self.autocast = contextlib.nullcontext() if amp is None else torch.autocast("cpu", dtype=amp)
        self.scaler, self.updates = scaler, 0
        self.images, self.labels = torch.randn(8, 4, 3, 32, 32), torch.tensor([0, 1, 2, 0])

    def backward(self, batch=0, scale=1.0):
        with self.autocast:
            loss = self.task(self.images[batch % 8], self.labels)["loss"] * scale
        loss.backward()
        return self

    def clip(self, value, mode="norm", **options):
        utils.dispatch_clip_grad(self.task.get_clip_parameters(exclude_head="agc" in mode), value, mode, **options)
        return self

    def run(self, steps=4, clip=None, mode="norm", accumulate=1):
        for batch in range(steps * accumulate):
            update = (batch + 1) % accumulate == 0
            clipped = None if clip is None else self.task.get_clip_parameters(exclude_head="agc" in mode)
            with self.autocast:
                loss = self.task(self.images[batch % 8], self.labels)["loss"] / accumulate
            if self.scaler is not None:
                self.scaler(loss, self.optimizer, clip, mode, clipped, need_update=update)
            else:
                loss.backward()
                if update:
                    if clip is not None:
                        utils.dispatch_clip_grad(clipped, value=clip, mode=mode)
                    self.optimizer.step()
            if update:
                self.updates += 1
                self.optimizer.zero_grad()
                self.task.update_ema(step=self.updates)
        return self

    def weights(self):
        return [param.detach().clone() for param in self.model.parameters()]

    def moved(self):
        """Two vectors of everything: how far the weights came, and the moments."""
        states = [self.optimizer.state[param] for param in self.model.parameters()]
        moments = [value.reshape(-1) for state in states for _, value in sorted(state.items()) if value.ndim]
        far = [(now - was).reshape(-1) for now, was in zip(self.weights(), self.began, strict=True)]
        return torch.cat(far), torch.cat(moments)

"""Image classification as torchvision's references train it: every part of the recipe, on generated images.

SGD with Nesterov's momentum, no weight decay for norms and biases, warm-up and cosine, label smoothing, mixup,
clipping, an average of the weights every 32 steps, autocast with a loss scale, and checkpoints. `--native` trains the
same with torch's own clipping, GradScaler and AveragedModel.

    python examples/train_classification.py --amp --checkpoint run.pt
    python examples/train_classification.py --amp --checkpoint run.pt --resume    # goes on after the last whole epoch
"""

import argparse
import copy
import functools

import torch
import torchvision
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torchvision.transforms import v2

import gradops

CLASSES, SIDE = 4, 32
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def arguments(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--native", action="store_true", help="torch's own clipping, GradScaler and AveragedModel")
    parser.add_argument("--amp", action="store_true", help="autocast, in float16 on a GPU and bfloat16 on a CPU")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--lr", type=float, default=0.02)
    parser.add_argument("--warmup-epochs", type=int, default=1)
    parser.add_argument("--max-norm", type=float, default=1.0)
    parser.add_argument("--ema-steps", type=int, default=32)
    parser.add_argument("--ema-decay", type=float, default=0.998)
    parser.add_argument("--checkpoint", help="file that is written after each epoch")
    parser.add_argument("--resume", action="store_true", help="from the checkpoint")
    return parser.parse_args(argv)


def generated_images(count):
    """Stripes of four directions under noise: images (n, 3, 32, 32) and classes (n,)."""
    generator = torch.Generator().manual_seed(0)
    classes = torch.arange(count) % CLASSES
    angles = (classes * torch.pi / CLASSES)[:, None, None]
    rows, columns = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    stripes = torch.sin(0.8 * (rows * angles.cos() + columns * angles.sin()))
    return stripes[:, None] + 0.7 * torch.randn(count, 3, SIDE, SIDE, generator=generator), classes


def adjusted_decay(args, world_size=1):
    """The average's decay, so that it spans the same share of a training whatever the batch size and the epochs."""
    adjust = world_size * args.batch_size * args.ema_steps / args.epochs
    return 1 - min(1.0, (1 - args.ema_decay) * adjust)


def warmup_averagings(args):
    """Averagings in the warm-up, in which the references copy the weights."""
    return args.warmup_epochs * (args.images // args.batch_size) // args.ema_steps


class OnePass:
    """Clipping, loss scale, update and average in the optimizer's step, and all their state in its state_dict."""

    def __init__(self, model, groups, args):
        optimizer = torch.optim.SGD(groups, lr=args.lr, momentum=0.9, nesterov=True)
        self.optimizer = gradops.wrap(
            optimizer,
            max_norm=args.max_norm,
            loss_scale="dynamic" if args.amp else None,
            ema=gradops.WeightEma(
                adjusted_decay(args), every=args.ema_steps, start=warmup_averagings(args) + 1, buffers=model
            ),
        )
        self.model = model

    def step(self, loss):
        self.optimizer.backward(loss)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def averaged(self):
        return gradops.ema_model(self.model, self.optimizer)

    def state_dict(self):
        return self.optimizer.state_dict()

    def load_state_dict(self, state):
        self.optimizer.load_state_dict(state)


class Native:
    """The same by torch alone.

    The references average in the first step of each 32 of an epoch. This averages in the last one, counted over the
    whole training and without skipped steps, as `WeightEma(every=32)` does.
    """

    def __init__(self, model, groups, args):
        self.args, self.model, self.updates = args, model, 0
        self.optimizer = torch.optim.SGD(groups, lr=args.lr, momentum=0.9, nesterov=True)
        self.scaler = torch.amp.GradScaler(DEVICE, enabled=args.amp)
        self.ema = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(adjusted_decay(args)), use_buffers=True)

    def step(self, loss):
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        nn.utils.clip_grad_norm_(self.model.parameters(), self.args.max_norm)
        scale = self.scaler.get_scale()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        if self.scaler.get_scale() >= scale:
            self.updates += 1
            if self.updates % self.args.ema_steps == 0:
                self.ema.update_parameters(self.model)
                if self.updates // self.args.ema_steps <= warmup_averagings(self.args):
                    self.ema.n_averaged.zero_()  # the next one copies, too

    def averaged(self):
        return copy.deepcopy(self.ema.module).eval()

    def state_dict(self):
        parts = {name: getattr(self, name).state_dict() for name in ("optimizer", "scaler", "ema")}
        return {**parts, "updates": self.updates}

    def load_state_dict(self, state):
        self.updates = state["updates"]
        for name in ("optimizer", "scaler", "ema"):
            getattr(self, name).load_state_dict(state[name])


def main(argv=None):
    args = arguments(argv)
    torch.manual_seed(0)
    images, classes = (tensor.to(DEVICE) for tensor in generated_images(args.images + 64))
    data = torch.utils.data.TensorDataset(images[:-64], classes[:-64])
    loader = torch.utils.data.DataLoader(data, args.batch_size, shuffle=True, drop_last=True)
    # BatchNorm's statistics keep 0.99 of themselves in this model, which is for more steps than these.
    norm = functools.partial(nn.BatchNorm2d, eps=1e-3, momentum=0.1)
    model = torchvision.models.mobilenet_v3_small(num_classes=CLASSES, norm_layer=norm).to(DEVICE)
    criterion = nn.CrossEntropyLoss(label_smoothing=0.1)
    mixup = v2.MixUp(alpha=0.2, num_classes=CLASSES)

    groups = gradops.no_decay_groups(model, weight_decay=1e-4)
    training = (Native if args.native else OnePass)(model, groups, args)
    warmup = torch.optim.lr_scheduler.LinearLR(training.optimizer, 0.01, total_iters=args.warmup_epochs)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(training.optimizer, args.epochs - args.warmup_epochs)
    schedule = torch.optim.lr_scheduler.SequentialLR(training.optimizer, [warmup, cosine], [args.warmup_epochs])

    first, losses = 0, []
    parts = {"model": model, "training": training, "schedule": schedule}
    if args.resume:
        saved = torch.load(args.checkpoint, DEVICE, weights_only=True)
        first, losses = saved["epoch"], saved["losses"]
        for name, part in parts.items():
            part.load_state_dict(saved[name])

    for epoch in range(first, args.epochs):
        torch.manual_seed(epoch)  # of the order and the mixup, so that a resumed run has the same
        model.train()
        for batch in loader:
            mixed, targets = mixup(*batch)
            with torch.autocast(DEVICE, torch.bfloat16 if DEVICE == "cpu" else torch.float16, enabled=args.amp):
                loss = criterion(model(mixed), targets)
            training.step(loss)
            losses.append(loss.detach())
        schedule.step()
        if args.checkpoint:
            state = {name: part.state_dict() for name, part in parts.items()}
            torch.save({**state, "epoch": epoch + 1, "losses": losses}, args.checkpoint)
        last = torch.stack(losses[-len(loader) :]).mean()
        print(f"epoch {epoch + 1}: loss {last:.3f}, learning rate {schedule.get_last_lr()[0]:.4f}")

    averaged = training.averaged()
    with torch.no_grad():
        for name, of in (("weights", model.eval()), ("averaged weights", averaged)):
            right = (of(images[-64:]).argmax(1) == classes[-64:]).float().mean()
            print(f"accuracy of the {name} {right:.1%}")
    return torch.stack(losses), model, averaged


if __name__ == "__main__":
    main()

"""Object detection as torchvision's references train it, on generated images: SGD, a warm-up from a thousandth, steps.

The references read every loss and stop at one that is not finite, so that the CPU waits for the device in each step.
Here the device skips such a step: weights, momentum and, by `protect`, BatchNorm's statistics keep their bits, and
nothing waits. `--stop` stops as the references do; `--native` trains with torch alone.

    python examples/train_detection.py --bad-step 5           # an image with an inf: that step is skipped
    python examples/train_detection.py --bad-step 5 --stop
"""

import argparse
import math
import sys

import torch
from torch import nn
from torchvision.models.detection import fasterrcnn_mobilenet_v3_large_320_fpn

import gradops

SIDE, BATCH = 64, 2
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def arguments(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--native", action="store_true", help="torch's own optimizer and clipping")
    parser.add_argument("--stop", action="store_true", help="at a loss that is not finite")
    parser.add_argument("--bad-step", type=int, help="this step's images have an inf")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--lr", type=float, default=0.01)
    parser.add_argument("--max-norm", type=float, default=10.0)
    return parser.parse_args(argv)


def generated(count):
    """Noise with one bright or dark square each: images in [0, 1] and their targets."""
    generator = torch.Generator().manual_seed(0)
    pairs = []
    for number in range(count):
        image = 0.4 + 0.2 * torch.rand(3, SIDE, SIDE, generator=generator)
        side = int(torch.randint(16, 33, (), generator=generator))
        left, top = torch.randint(0, SIDE - side, (2,), generator=generator).tolist()
        image[:, top : top + side, left : left + side] = number % 2
        box = torch.tensor([[left, top, left + side, top + side]], dtype=image.dtype)
        target = {"boxes": box.to(DEVICE), "labels": torch.tensor([1 + number % 2], device=DEVICE)}
        pairs.append((image.to(DEVICE), target))
    return pairs


def native_step(optimizer, model, loss, args):
    """Torch alone: to skip the step somebody has to read the loss."""
    if math.isfinite(loss.item()):
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), args.max_norm)
        optimizer.step()
    optimizer.zero_grad()


def one_pass_step(optimizer, loss):
    """A loss that is inf or NaN makes every gradient NaN here, and a step with a NaN is skipped, on the device."""
    (loss * (1 + 0 * loss.detach())).backward()
    optimizer.step()
    optimizer.zero_grad()


def main(argv=None):
    args = arguments(argv)
    torch.manual_seed(0)
    sizes = {"min_size": SIDE, "max_size": SIDE, "box_batch_size_per_image": 32}
    model = fasterrcnn_mobilenet_v3_large_320_fpn(weights=None, weights_backbone=None, num_classes=3, **sizes)
    model.to(DEVICE)
    optimizer = torch.optim.SGD(model.named_parameters(), lr=args.lr, momentum=0.9, weight_decay=1e-4)
    if not args.native:
        optimizer = gradops.wrap(optimizer, max_norm=args.max_norm, protect=model)
    by_epoch = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones=[args.epochs - 1], gamma=0.1)
    loader = torch.utils.data.DataLoader(
        generated(args.images), BATCH, shuffle=True, collate_fn=lambda batch: tuple(zip(*batch, strict=True))
    )

    model.train()
    losses = []
    for epoch in range(args.epochs):
        warmup = None
        if epoch == 0:
            warmup = torch.optim.lr_scheduler.LinearLR(optimizer, 1 / 1000, total_iters=min(1000, len(loader) - 1))
        for images, targets in loader:
            if len(losses) == args.bad_step:
                images = [image.masked_fill(torch.ones_like(image).triu(60).bool(), math.inf) for image in images]
            loss = sum(model(list(images), list(targets)).values())
            if args.stop and not math.isfinite(loss.item()):
                sys.exit(f"step {len(losses)}: the loss is {loss.item()}, stopping training")
            native_step(optimizer, model, loss, args) if args.native else one_pass_step(optimizer, loss)
            losses.append(loss.detach())
            if warmup:
                warmup.step()
        by_epoch.step()
        last = torch.stack(losses[-len(loader) :]).nanmean()  # the one wait, once an epoch
        skipped = "" if args.native else f", skipped steps {int(optimizer.stats.steps_skipped)}"
        print(f"epoch {epoch + 1}: loss {last:.3f}{skipped}", flush=True)
    return torch.stack(losses), model


if __name__ == "__main__":
    main()

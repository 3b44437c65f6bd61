"""Large batches: LARS and LARC-bounded SGD beside plain SGD and AdamW on real digits, from batch 64 to 2,048.

Every run sees the same number of digits, so that a larger batch takes fewer steps, with a larger rate.

    python examples/train_large_batch.py --epochs 16 --seeds 8
    python examples/train_large_batch.py --batch-sizes 2048 --accumulate 8 --precision bf16
    python -m gradops profile examples/train_large_batch.py:make_training --batch-size 256 --accumulate 8
"""

import argparse
import math
import statistics

import torch
import torch.nn.functional as F
from torch import nn

import gradops
from gradops.demo.digits import load_digits
from gradops.demo.network import Convolution  # nn.Conv2d, but quick in float16 on a CPU, too

BASE_BATCH = 64
WARMUP = 0.2  # of the steps
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# The best rates at batch 64, by studies/large_batch.py.
RATES = {"SGD": 0.03, "LARC": 0.3, "LARS": 0.3, "AdamW": 0.003}


def make_optimizer(name, model, lr, **settings):
    """One of the four. Norms and biases have no weight decay, and LARS then does not adapt their rate."""
    groups = gradops.no_decay_groups(model, weight_decay=0.05 if name == "AdamW" else 5e-4)
    if name == "AdamW":
        return gradops.AdamW(groups, lr=lr, **settings)
    if name == "LARS":
        return gradops.LARS(groups, lr=lr, momentum=0.9, trust_coeff=0.02, **settings)
    if name == "LARC":  # SGD whose rate LARS' quotient bounds
        settings["max_relative_step"] = gradops.RelativeStepCap(0.02)
    return gradops.SGD(groups, lr=lr, momentum=0.9, **settings)


def make_model():
    layers = []
    for inputs, outputs, size, stride in ((1, 16, 5, 2), (16, 32, 3, 2), (32, 32, 3, 1)):
        layers += [Convolution(inputs, outputs, size, stride, padding=size // 2, bias=False)]
        layers += [nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(32 * 7 * 7, 10))


def tensors(digits):
    """Images in [-0.5, 2.5] (n, 1, 28, 28) and classes (n,)."""
    return torch.from_numpy(digits.images)[:, None].float() / 85 - 0.5, torch.from_numpy(digits.classes)


def batches(count, size, steps, seed):
    """Indices of each step's digits; a batch may begin in one epoch and end in the next."""
    generator = torch.Generator().manual_seed(seed)
    epochs = math.ceil(size * steps / count)
    return torch.cat([torch.randperm(count, generator=generator) for _ in range(epochs)]).split(size)[:steps]


def train(name, batch_size, lr, seed=0, epochs=16, accumulate=1, precision="fp32"):
    """One run. Returns the loss of the last epoch, the held-out digits' loss and accuracy, and the skipped steps."""
    torch.manual_seed(seed)
    (images, classes), held_out = map(tensors, load_digits())
    model = make_model()
    optimizer = make_optimizer(name, model, lr, loss_scale="dynamic" if precision == "fp16" else None)
    steps = max(1, epochs * len(images) // batch_size)
    warmup = max(1, round(WARMUP * steps))

    def factor(step):  # up in a line, then down along a cosine
        if step < warmup:
            return (step + 1) / warmup
        return 0.5 + 0.5 * math.cos(math.pi * (step - warmup) / max(1, steps - warmup))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    losses = []
    for rows in batches(len(images), batch_size, steps, seed):
        total = 0.0
        for part in rows.chunk(accumulate):
            with torch.autocast("cpu", PRECISIONS[precision], enabled=precision != "fp32"):
                outputs = model(images[part])
            loss = F.cross_entropy(outputs.float(), classes[part]) * len(part) / len(rows)
            optimizer.backward(loss)
            total += loss.detach()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        losses.append(total)
    with torch.no_grad():
        outputs = model.eval()(held_out[0])
    return {
        "loss": float(torch.stack(losses[-math.ceil(steps / epochs) :]).mean()),
        "held_out_loss": float(F.cross_entropy(outputs, held_out[1])),
        "accuracy": float((outputs.argmax(1) == held_out[1]).float().mean()),
        "skipped": int(optimizer.stats.steps_skipped),
    }


def scaled(lr, batch_size, rule):
    """The rate for this batch: `linear` or `sqrt` in the batch's size."""
    return lr * (batch_size / BASE_BATCH) ** {"linear": 1.0, "sqrt": 0.5}[rule]


def make_training(batch_size=2048):
    """What `gradops profile` trains: the same network on the same digits, by torch's SGD."""
    images, classes = tensors(load_digits()[0])
    model = make_model()
    groups = gradops.no_decay_groups(model, weight_decay=5e-4)
    optimizer = torch.optim.SGD(groups, scaled(RATES["SGD"], batch_size, "sqrt"), momentum=0.9)
    data = [(images[rows], classes[rows]) for rows in batches(len(images), batch_size, 8, seed=0)]
    return model, optimizer, data, F.cross_entropy


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--optimizers", nargs="+", choices=RATES, default=list(RATES))
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[64, 2048])
    parser.add_argument("--rule", choices=("linear", "sqrt"), default="sqrt", help="how the rate grows with the batch")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--accumulate", type=int, default=1, help="parts of a batch, each with a backward of its own")
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32")
    parser.add_argument("--seeds", type=int, default=1)
    args = parser.parse_args()
    print(f"held-out accuracy (training loss), mean of {args.seeds} seeds, {args.epochs} epochs, {args.precision}")
    print("batch " + "".join(f"{name:>16}" for name in args.optimizers))
    for batch_size in args.batch_sizes:
        cells = []
        for name in args.optimizers:
            lr = scaled(RATES[name], batch_size, args.rule)
            runs = [
                train(name, batch_size, lr, seed, args.epochs, args.accumulate, args.precision)
                for seed in range(args.seeds)
            ]
            accuracy, loss = (statistics.mean(run[key] for run in runs) for key in ("accuracy", "loss"))
            cells.append(f"{accuracy:.2%} ({loss:.3f})")
        print(f"{batch_size:<6}" + "".join(f"{cell:>16}" for cell in cells), flush=True)


if __name__ == "__main__":
    main()

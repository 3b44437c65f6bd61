"""Small runs of transformers' Trainer."""

import math

import torch
import transformers

CLOSE = {"rtol": 5e-4, "atol": 5e-6}


class Network(torch.nn.Module):
    """The smallest model that a Trainer takes; `poison` numbers the forwards whose loss is inf."""

    def __init__(self, poison=()):
        super().__init__()
        torch.manual_seed(0)
        self.net = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 2))
        self.poison, self.calls, self.dtypes = poison, 0, set()

    def forward(self, inputs, labels):
        out = self.net(inputs)
        self.dtypes.add(out.dtype)
        loss = torch.nn.functional.mse_loss(out.float(), labels)
        self.calls += 1
        return {"loss": loss * math.inf if self.calls - 1 in self.poison else loss, "logits": out}


def run_trainer(folder, cls, model=None, optimizers=(None, None), resume=None, scaler=None, extra=(), **options):
    arguments = transformers.TrainingArguments(
        str(folder),
        per_device_train_batch_size=4,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        logging_steps=1,
        logging_nan_inf_filter=False,
        **{"learning_rate": 1e-2, "num_train_epochs": 1, "save_strategy": "no", **options},
    )
    torch.manual_seed(1)
    data = [{"inputs": torch.randn(8), "labels": torch.randn(2)} for _ in range(24)]
    trainer = cls(model or Network(), arguments, optimizers=optimizers, **{"train_dataset": data, **dict(extra)})
    if scaler:  # Accelerate makes none on a CPU
        trainer.accelerator.scaler, trainer.accelerator.native_amp = scaler, True
        trainer.accelerator.state._mixed_precision = "fp16"
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def weights(trainer):
    return [param.detach().clone() for param in trainer.model.parameters()]


def logged(trainer, name):
    return [row[name] for row in trainer.state.log_history if name in row]

"""protect through every framework's door: a NaN batch leaves no trace in the model."""

import importlib
import logging
import math
import warnings

import pytest
import torch
import torch.nn.functional as F
from beside import assert_same_bits
from torch import nn
from torch.utils.data import DataLoader, Dataset

import gradops

SIZE, BATCHES, BAD = 4, 6, 2


def make_network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.BatchNorm1d(16, momentum=None), nn.Linear(16, 2)
    )


class Rows(Dataset):
    """Rows in order, as tuples or by name; `saw` says whether the bad batch is among them."""

    def __init__(self, saw, named=False):
        generator = torch.Generator().manual_seed(1)
        inputs = torch.randn(BATCHES, SIZE, 8, generator=generator)
        targets = torch.randn(BATCHES, SIZE, 2, generator=generator)
        inputs[BAD, 1, 3] = math.nan
        kept = [number for number in range(BATCHES) if saw or number != BAD]
        self.inputs, self.targets, self.named = inputs[kept].flatten(0, 1), targets[kept].flatten(0, 1), named

    def __len__(self):
        return len(self.inputs)

    def __getitem__(self, index):
        row = self.inputs[index], self.targets[index]
        return dict(zip(("inputs", "labels"), row, strict=True)) if self.named else row

    def new_empty(self):
        return self


def assert_no_trace(train):
    """`train(saw)` trains and returns the network and the number of skipped steps."""
    (saw, skipped), (never, none) = train(True), train(False)
    assert (skipped, none) == (1, 0)
    expected = never.state_dict()
    for name, value in saw.state_dict().items():
        assert value.isfinite().all(), name
        assert_same_bits(value, expected[name], name)
    inputs = torch.randn(3, 8)
    assert_same_bits(saw.eval()(inputs), never.eval()(inputs), "evaluation")


def skipped_by(optimizer):
    return int(optimizer.stats.steps_skipped)


def scaler(cls=gradops.GradScaler):
    # float16's gradients are rounded otherwise under another scale, so that it must not move.
    floor = {"min_scale": 4096.0} if cls is gradops.GradScaler else {}
    return cls("cpu", init_scale=4096.0, **floor)


@pytest.mark.parametrize("door", ["gradops", "accelerate"])
@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_accelerate(door, scaled, accumulate, request):
    accelerate = pytest.importorskip("accelerate")
    request.getfixturevalue("fresh_states")
    from gradops import accelerate as ga

    cls = ga.Accelerator if door == "gradops" else accelerate.Accelerator

    def train(saw):
        accelerator = cls(cpu=True, gradient_accumulation_steps=accumulate)
        if scaled:
            accelerator.scaler = scaler(gradops.GradScaler if door == "gradops" else torch.amp.GradScaler)
        model = make_network()
        optimizer = gradops.wrap(torch.optim.AdamW(model.parameters(), lr=1e-2), protect=model)
        rows = DataLoader(Rows(saw), batch_size=SIZE // accumulate)
        model, optimizer, loader = accelerator.prepare(model, optimizer, rows)
        for inputs, targets in loader:
            with accelerator.accumulate(model):
                accelerator.backward(F.mse_loss(model(inputs), targets))
                if accelerator.sync_gradients and door == "gradops":
                    accelerator.clip_grad_norm_(model.parameters(), 0.5)
                optimizer.step()
                optimizer.zero_grad()
        return model, skipped_by(optimizer.optimizer)

    assert_no_trace(train)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_lightning(precision, accumulate):
    pl = pytest.importorskip("lightning.pytorch")
    from gradops.lightning import GradOpsPrecision

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

    class Module(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = make_network()

        def training_step(self, batch, _):
            return F.mse_loss(self.net(batch[0]).float(), batch[1])

        def configure_optimizers(self):
            return torch.optim.AdamW(self.net.parameters(), lr=1e-2)

    def train(saw):
        module = Module()
        plugin = GradOpsPrecision(precision, "cpu", scaler() if precision == "16-mixed" else None, protect=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trainer = pl.Trainer(
                accelerator="cpu", plugins=[plugin], max_epochs=1, logger=False, enable_checkpointing=False,
                enable_progress_bar=False, enable_model_summary=False, accumulate_grad_batches=accumulate,
                gradient_clip_val=0.5,
            )  # fmt: skip
            trainer.fit(module, DataLoader(Rows(saw), batch_size=SIZE // accumulate))
        (optimizer,) = trainer.optimizers
        assert optimizer.protect is module
        return module.net, skipped_by(optimizer)

    assert_no_trace(train)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_transformers(accumulate, tmp_path, request):
    transformers = pytest.importorskip("transformers")
    request.getfixturevalue("fresh_states")
    from gradops import transformers as gt

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = make_network()

        def forward(self, inputs, labels):
            return {"loss": F.mse_loss(self.net(inputs), labels)}

    class InOrder(gt.Trainer):
        def _get_train_sampler(self, *_):
            return torch.utils.data.SequentialSampler(self.train_dataset)

    def train(saw):
        arguments = transformers.TrainingArguments(
            str(tmp_path),
            per_device_train_batch_size=SIZE // accumulate,
            gradient_accumulation_steps=accumulate,
            lr_scheduler_type="constant",
            num_train_epochs=1,
            save_strategy="no",
            use_cpu=True,
            report_to=[],
            disable_tqdm=True,
        )
        trainer = InOrder(Network(), arguments, train_dataset=Rows(saw, named=True), settings={"protect": True})
        trainer.train()
        optimizer = trainer.optimizer.optimizer
        assert optimizer.protect is trainer.model
        return trainer.model.net, skipped_by(optimizer)

    assert_no_trace(train)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_fastai(precision, tmp_path):
    pytest.importorskip("fastai")
    from fastai.callback.progress import ProgressCallback
    from fastai.data.core import DataLoaders
    from fastai.data.load import DataLoader as FastaisLoader
    from fastai.learner import Learner

    from gradops import fastai as gf

    def train(saw):
        loaders = [FastaisLoader(Rows(saw), bs=SIZE, num_workers=0) for _ in range(2)]
        options = {"loss_scale": gradops.DynamicLossScale(4096.0, min_scale=4096.0)} if precision == "fp16" else {}
        door = gf.GradOps(precision, protect=True, **options)
        learn = Learner(DataLoaders(*loaders, path=tmp_path), make_network(), nn.MSELoss(), cbs=[door])
        learn.remove_cb(ProgressCallback)
        learn.logger = lambda *_: None
        with learn.no_logging():
            learn.fit(1, 1e-2)
        assert learn.opt.opt.protect is None  # settings hold while a fit runs
        return learn.model, skipped_by(learn.opt.opt)

    assert_no_trace(train)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_timm(accumulate):
    pytest.importorskip("timm")
    from timm.optim import create_optimizer_v2

    from gradops import timm as gt

    def train(saw):
        model = make_network()
        optimizer = create_optimizer_v2(model, opt="gradopsadamw", lr=1e-2, protect=model)
        step = gt.NativeScaler("cpu", init_scale=4096.0)
        for number, (inputs, targets) in enumerate(DataLoader(Rows(saw), batch_size=SIZE // accumulate)):
            loss, update = F.mse_loss(model(inputs), targets), (number + 1) % accumulate == 0
            step(loss, optimizer, clip_grad=0.5, parameters=model.parameters(), need_update=update)
            if update:
                optimizer.zero_grad()
        return model, skipped_by(optimizer)

    assert_no_trace(train)


@pytest.mark.parametrize(
    ("framework", "make"),
    [
        ("lightning", lambda door: door.GradOpsPrecision(protect=5)),
        ("transformers", lambda door: door.Trainer(settings={"protect": 5})),
        ("fastai", lambda door: door.GradOps(protect=5)),
    ],
)
def test_doors_refuse_what_is_no_module(framework, make):
    pytest.importorskip(framework)
    door = importlib.import_module(f"gradops.{framework}")
    with pytest.raises(TypeError, match=r"^protect must be a torch\.nn\.Module"):
        make(door)

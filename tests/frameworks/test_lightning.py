"""`gradops.lightning` under a real Trainer: clipping with mixed precision, logging, checkpoints, several optimizers."""

import logging
import math
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader, TensorDataset

pytest.importorskip("lightning")

import lightning.pytorch as pl
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning.pytorch.profilers import SimpleProfiler

import gradops
from gradops.lightning import GradNormMonitor, GradOpsPrecision
from gradops.optim.classes import classes, torchs_class

CLOSE = {"rtol": 2e-4, "atol": 2e-6}
BATCHES = 6


class Module(pl.LightningModule):
    """A small network; `poison` names batches whose loss is inf."""

    def __init__(self, make=torch.optim.AdamW, poison=(), lr=1e-2):
        super().__init__()
        torch.manual_seed(0)
        self.net = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 2))
        self.make, self.poison, self.lr, self.dtypes = make, poison, lr, set()

    def training_step(self, batch, index):
        inputs, targets = batch
        out = self.net(inputs)
        self.dtypes.add(out.dtype)
        loss = F.mse_loss(out.float(), targets)
        return loss * math.inf if index in self.poison else loss

    def configure_optimizers(self):
        optimizer = self.make(self.net.named_parameters(), lr=self.lr)
        return [optimizer], [{"scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 3), "interval": "step"}]


def data():
    torch.manual_seed(1)
    return DataLoader(TensorDataset(torch.randn(4 * BATCHES, 8), torch.randn(4 * BATCHES, 2)), batch_size=4)


def fit(module, plugin, checkpoint=None, **options):
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    options = {"max_epochs": 1, "logger": False, "enable_checkpointing": False, **options}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = pl.Trainer(
            accelerator="cpu",
            plugins=[plugin] if plugin else [],
            enable_progress_bar=False,
            enable_model_summary=False,
            **options,
        )
        trainer.fit(module, data(), ckpt_path=checkpoint, weights_only=False)
    return trainer


def weights(module):
    return [param.detach().clone() for param in module.net.parameters()]


def scaler():
    return gradops.GradScaler("cpu", init_scale=256.0, growth_interval=4)


@pytest.mark.parametrize(("algorithm", "clip_val"), [("norm", 0.1), ("value", 0.02), (None, None)])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_clips_as_lightning_does(algorithm, clip_val, accumulate):
    options = {
        "gradient_clip_val": clip_val,
        "gradient_clip_algorithm": algorithm,
        "accumulate_grad_batches": accumulate,
    }
    theirs, ours = Module(), Module()
    fit(theirs, None, **options)
    trainer = fit(ours, GradOpsPrecision(device="cpu"), **options)
    torch.testing.assert_close(weights(ours), weights(theirs), **CLOSE)
    (optimizer,) = trainer.optimizers
    assert isinstance(optimizer, gradops.AdamW)
    assert int(optimizer.stats.steps_taken) == BATCHES // accumulate
    assert optimizer.max_norm is None
    assert optimizer.clip_value is None
    if algorithm == "norm":
        assert optimizer.stats.clip_coef.item() < 1


@pytest.mark.parametrize("cls", classes().values(), ids=classes())
def test_every_optimizer_is_wrapped_and_clipped_as_by_lightning(cls):
    torchs = torchs_class(cls)
    if torchs is None:
        pytest.skip("torch has no such optimizer")
    theirs, ours = Module(torchs), Module(torchs)
    fit(theirs, None, gradient_clip_val=0.1)
    trainer = fit(ours, GradOpsPrecision(device="cpu"), gradient_clip_val=0.1)
    assert type(trainer.optimizers[0]) is cls
    torch.testing.assert_close(weights(ours), weights(theirs), **CLOSE)


def test_settings_that_no_optimizer_can_take_are_refused_by_its_name():
    with pytest.raises(TypeError, match="got Rprop; train with"):
        fit(Module(torch.optim.Rprop), GradOpsPrecision(device="cpu", max_norm=1.0))


@pytest.mark.parametrize("make", [torch.optim.AdamW, gradops.AdamW])
@pytest.mark.parametrize(("precision", "dtype"), [("16-mixed", torch.float16), ("bf16-mixed", torch.bfloat16)])
def test_clipping_and_mixed_precision_work_together(precision, dtype, make):
    exact, mixed = Module(), Module(make)
    fit(exact, None, gradient_clip_val=0.1)
    plugin = GradOpsPrecision(precision, "cpu", scaler() if precision == "16-mixed" else None)
    trainer = fit(mixed, plugin, gradient_clip_val=0.1)
    assert mixed.dtypes == {dtype}
    torch.testing.assert_close(weights(mixed), weights(exact), rtol=0.05, atol=5e-3)
    stats = trainer.optimizers[0].stats
    assert stats.loss_scale.item() == (512.0 if precision == "16-mixed" else 1.0)
    assert stats.clip_coef.item() == pytest.approx(0.1 / stats.grad_norm.item(), rel=1e-4)


def test_lightnings_own_plugin_refuses_to_clip_for_us():
    """Lightning's issue 21435, and the reason for the plugin."""
    with pytest.raises(RuntimeError, match="does not allow for gradient clipping"):
        fit(Module(gradops.AdamW), MixedPrecision("16-mixed", "cpu", scaler()), gradient_clip_val=0.1)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
def test_only_real_overflows_are_skipped(precision):
    plugin = GradOpsPrecision(precision, "cpu", scaler() if precision == "16-mixed" else None)
    module = Module(poison=(1, 4))
    trainer = fit(module, plugin, gradient_clip_val=0.1)
    stats = trainer.optimizers[0].stats
    assert (int(stats.steps_taken), int(stats.steps_skipped)) == (BATCHES - 2, 2)
    assert all(weight.isfinite().all() for weight in weights(module))
    if plugin.scaler:
        assert plugin.scaler.get_scale() == 64.0


def test_default_scaler_and_device():
    assert isinstance(GradOpsPrecision("16-mixed", "cpu").scaler, gradops.GradScaler)
    assert GradOpsPrecision("16-mixed").device == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(ValueError, match="64-true"):
        GradOpsPrecision("64-true")


@pytest.mark.parametrize("settings", [{"loss_scale": 2.0}, {"backend": "torch"}, {"max_nrom": 1.0}])
def test_settings_that_are_not_its_own_are_refused(settings):
    with pytest.raises(TypeError, match=next(iter(settings))):
        GradOpsPrecision(**settings)


def test_settings_reach_the_optimizer():
    cap = gradops.RelativeStepCap(0.01)
    trainer = fit(Module(), GradOpsPrecision(device="cpu", max_relative_step=cap))
    assert trainer.optimizers[0].max_relative_step == cap
    assert trainer.optimizers[0].stats.capped.any()
    with pytest.raises(ValueError, match="wrapped already"):
        fit(Module(gradops.AdamW), GradOpsPrecision(device="cpu", max_relative_step=cap))


def test_clipping_asked_for_in_some_steps_is_done_in_those():
    class Sometimes(Module):
        def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None):
            if self.trainer.global_step % 2:
                self.clip_gradients(optimizer, gradient_clip_val=0.01, gradient_clip_algorithm="norm")

    class Coefficients(pl.Callback):
        def __init__(self):
            self.clipped = []

        def on_train_batch_end(self, trainer, *_):
            self.clipped.append(trainer.optimizers[0].stats.clip_coef.item() < 1)

    seen = Coefficients()
    fit(Sometimes(), GradOpsPrecision(device="cpu"), callbacks=[seen])
    assert seen.clipped == [False, True] * (BATCHES // 2)


class Manual(Module):
    """Two optimizers, one of them not ours, stepped by hand."""

    automatic_optimization = False

    def training_step(self, batch, index):
        for optimizer in self.optimizers():
            optimizer.zero_grad()
            self.manual_backward(super().training_step(batch, index))
            self.clip_gradients(optimizer, gradient_clip_val=0.05, gradient_clip_algorithm="norm")
            optimizer.step()

    def configure_optimizers(self):
        return [self.make(self.net[0].parameters(), lr=1e-2), torch.optim.Rprop(self.net[2].parameters(), lr=1e-2)]


def test_manual_optimization_with_an_optimizer_that_is_not_ours():
    theirs, ours = Manual(), Manual()
    fit(theirs, None)
    trainer = fit(ours, GradOpsPrecision(device="cpu"))
    torch.testing.assert_close(weights(ours), weights(theirs), **CLOSE)
    assert trainer.optimizers[0].stats.clip_coef.item() < 1
    assert type(trainer.optimizers[1]) is torch.optim.Rprop


@pytest.mark.parametrize("precision", ["32-true", "16-mixed"])
def test_resumed_run_is_bitwise_the_whole_one(precision, tmp_path):
    def plugin():
        return GradOpsPrecision(precision, "cpu", scaler() if precision == "16-mixed" else None)

    whole, half, rest = (Module(poison=(1,)) for _ in range(3))
    fit(whole, plugin(), max_epochs=2, gradient_clip_val=0.1)
    fit(half, plugin(), gradient_clip_val=0.1).save_checkpoint(tmp_path / "half.ckpt")
    trainer = fit(rest, plugin(), tmp_path / "half.ckpt", max_epochs=2, gradient_clip_val=0.1)
    assert int(trainer.optimizers[0].stats.steps_skipped) == 2
    for ours, expected in zip(weights(rest), weights(whole), strict=True):
        assert torch.equal(ours, expected)


class Looking(Module):
    """Notes what the hooks see: the norm of the gradients themselves, and what the plugin says of it."""

    def __init__(self, ours, **options):
        super().__init__(**options)
        self.ours, self.raw, self.norms, self.after_clipping = ours, [], [], []

    def total(self):
        return torch.stack([param.grad.norm() for param in self.net.parameters()]).norm().item()

    def on_before_optimizer_step(self, optimizer):
        self.raw.append(self.total())
        self.norms.append(self.trainer.precision_plugin.grad_norm(optimizer).item() if self.ours else self.raw[-1])

    def configure_gradient_clipping(self, *args, **kwargs):
        super().configure_gradient_clipping(*args, **kwargs)
        self.after_clipping.append(self.total())


@pytest.mark.parametrize("precision", ["32-true", "16-mixed"])
def test_hooks_see_gradients_as_backward_left_them_and_learn_their_norm_from_the_plugin(precision):
    theirs, ours = Looking(False), Looking(True)
    fit(theirs, None, gradient_clip_val=0.1)
    plugin = GradOpsPrecision(precision, "cpu", scaler() if precision == "16-mixed" else None)
    fit(ours, plugin, gradient_clip_val=0.1)
    assert ours.norms == pytest.approx(theirs.norms, rel=0.05)
    assert max(theirs.after_clipping) < 0.11
    assert ours.after_clipping == ours.raw
    scale = 256.0 if precision == "16-mixed" else 1.0
    assert ours.raw[0] == pytest.approx(scale * ours.norms[0], rel=1e-5)


def test_norm_of_an_optimizer_that_is_not_ours_is_refused():
    with pytest.raises(TypeError, match="Rprop"):
        GradOpsPrecision(device="cpu").grad_norm(torch.optim.Rprop(Module().parameters(), lr=0.1))


@pytest.mark.parametrize("precision", ["32-true", "16-mixed"])
def test_clipping_by_norm_is_not_taken_for_adaptive_clipping(precision):
    """With clip_mode="agc" an optimizer's max_norm is a factor of weights, gradient_clip_val is not."""
    plugin = GradOpsPrecision(
        precision, "cpu", scaler() if precision == "16-mixed" else None, max_norm=10.0, clip_mode="agc"
    )
    trainer = fit(Module(), plugin, gradient_clip_val=1e-3)
    assert trainer.optimizers[0].stats.grad_norm.item() == pytest.approx(1e-3, rel=1e-2)
    assert trainer.optimizers[0].max_norm == 10.0


class Waits(TorchDispatchMode):
    """Counts what would wait for a GPU."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        Waits.count += func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.is_nonzero.default)
        return func(*args, **(kwargs or {}))


class Memory(Logger):
    """Keeps what is logged."""

    name = version = "memory"

    def __init__(self):
        super().__init__()
        self.rows = []

    def log_metrics(self, metrics, step=None):
        self.rows.append(metrics)

    def log_hyperparams(self, *args):
        pass


class Norms(pl.Callback):
    """What the gradients themselves say."""

    def __init__(self):
        self.norms = []

    def on_before_optimizer_step(self, trainer, module, optimizer):
        norms = [param.grad.norm() for param in module.net.parameters()]
        self.norms.append(torch.stack(norms).norm().item())


class Counted(GradNormMonitor):
    def on_train_batch_end(self, *args):
        with Waits():
            super().on_train_batch_end(*args)


@pytest.mark.parametrize("accumulate", [1, 3])
def test_norm_before_clipping_is_logged_and_nobody_waits(accumulate):
    norms, logger = Norms(), Memory()
    Waits.count = 0
    trainer = fit(
        Module(),
        GradOpsPrecision(device="cpu"),
        callbacks=[Counted(), norms],
        logger=logger,
        gradient_clip_val=1e-3,
        accumulate_grad_batches=accumulate,
        log_every_n_steps=1,
    )
    assert Waits.count == 0
    assert [row["grad_norm"] for row in logger.rows] == pytest.approx(norms.norms)
    assert [row["clip_coef"] for row in logger.rows] == pytest.approx([1e-3 / norm for norm in norms.norms], rel=1e-2)
    assert len(norms.norms) == trainer.global_step == BATCHES // accumulate


def test_the_counter_of_waits_counts():
    Waits.count = 0
    with Waits():
        float(torch.ones(()))
    assert Waits.count == 1


def test_several_optimizers_are_logged_apart():
    class Both(Manual):
        def configure_optimizers(self):
            return [self.make(layer.parameters(), lr=1e-2) for layer in (self.net[0], self.net[2])]

    logger = Memory()
    fit(Both(), GradOpsPrecision(device="cpu"), callbacks=[GradNormMonitor()], logger=logger, log_every_n_steps=1)
    assert {"grad_norm/0", "grad_norm/1"} <= set(logger.rows[0])


def test_lightnings_profiler_sees_the_step():
    profiler = SimpleProfiler()
    fit(Module(), GradOpsPrecision(device="cpu"), profiler=profiler)
    assert any("optimizer_step" in name for name in profiler.recorded_durations)

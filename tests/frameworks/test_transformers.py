"""`gradops.transformers` with the real Trainer: clipping, logs, skipped steps, checkpoints."""

import math

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("accelerate")

import transformers
from trainers import CLOSE, Network, logged, weights

import gradops
from gradops import transformers as gt
from gradops.optim.classes import classes


@pytest.mark.parametrize("options", [{}, {"gradient_accumulation_steps": 2}, {"max_grad_norm": 0.0}], ids=str)
def test_trains_and_logs_as_transformers_does(train, options):
    options = {"max_grad_norm": 0.1, "weight_decay": 0.1, **options}
    theirs, ours = (train(cls, **options) for cls in (transformers.Trainer, gt.Trainer))
    torch.testing.assert_close(weights(ours), weights(theirs), **CLOSE)
    for name in ("loss", "grad_norm", "learning_rate"):
        assert logged(ours, name) == pytest.approx(logged(theirs, name), rel=1e-3)
    assert len(logged(ours, "grad_norm")) == int(ours.optimizer.stats.steps_taken)


def test_max_grad_norm_is_done_by_the_step(train, monkeypatch):
    def fail(*_, **__):
        raise AssertionError("the gradients were clipped outside the step")

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", fail)
    monkeypatch.setattr(torch.nn.utils, "get_total_norm", fail)
    trainer = train(gt.Trainer, max_grad_norm=0.01)
    stats = trainer.optimizer.stats
    assert stats.clip_coef.item() == pytest.approx(0.01 / stats.grad_norm.item(), rel=1e-3)
    assert logged(trainer, "grad_norm")[-1] == stats.grad_norm.item()
    with pytest.raises(AssertionError, match="outside the step"):
        train(transformers.Trainer, max_grad_norm=0.01)


@pytest.mark.parametrize("max_grad_norm", [0.1, 0.0])
@pytest.mark.parametrize("scaled", [False, True])
def test_norm_is_known_before_the_step(train, max_grad_norm, scaled):
    """Trainers that override a hook read it there; transformers' own reads it when it logs."""

    class Looking(transformers.Trainer):
        def _get_grad_norm(self, *args, **kwargs):
            norm = super()._get_grad_norm(*args, **kwargs)
            self.seen = [*getattr(self, "seen", []), norm.item()]
            return norm

    class Ours(gt.GradOpsMixin, Looking):
        pass

    def seen(cls, scaler):
        trainer = train(cls, scaler=scaler("cpu", init_scale=256.0) if scaled else None, max_grad_norm=max_grad_norm)
        assert logged(trainer, "grad_norm") == trainer.seen
        return trainer.seen

    assert seen(Ours, gradops.GradScaler) == pytest.approx(seen(Looking, torch.amp.GradScaler), rel=1e-2)


@pytest.mark.parametrize("name", ["adamw_torch", "adamw_torch_fused", "sgd", "rmsprop", "adagrad"])
def test_optimizer_that_the_trainer_makes_is_wrapped_if_it_can_be(train, name):
    options = {"optim": name, "max_grad_norm": 0.1, "weight_decay": 0.01}
    theirs, ours = (train(cls, **options) for cls in (transformers.Trainer, gt.Trainer))
    plain = type(theirs.optimizer.optimizer)
    assert type(ours.optimizer.optimizer) is classes().get(plain.__name__, plain)
    torch.testing.assert_close(weights(ours), weights(theirs), **CLOSE)
    assert logged(ours, "grad_norm") == pytest.approx(logged(theirs, "grad_norm"), rel=1e-3)


def test_settings_for_an_optimizer_that_cannot_be_wrapped_are_refused_by_its_name(train):
    assert type(train(gt.Trainer, optim="adafactor").optimizer.optimizer) is transformers.Adafactor
    with pytest.raises(TypeError, match="got Adafactor; train with"):
        train(gt.Trainer, optim="adafactor", extra={"settings": {"clip_value": 1.0}})


@pytest.mark.parametrize("scaled", [False, True])
def test_skipped_steps_leave_the_schedule_where_it_is(train, scaled):
    scaler = gradops.GradScaler("cpu", init_scale=256.0) if scaled else None
    trainer = train(gt.Trainer, Network(poison=(1, 3)), scaler=scaler, max_grad_norm=0.1)
    assert int(trainer.optimizer.stats.steps_skipped) == 2
    rates = logged(trainer, "learning_rate")
    assert len(set(rates)) == 4
    assert all(weight.isfinite().all() for weight in weights(trainer))
    norms = logged(trainer, "grad_norm")
    assert [math.isfinite(norm) for norm in norms] == [True, False, True, False, True, True]
    if scaled:
        assert scaler.get_scale() == 64.0


def test_bf16_runs_under_autocast(train):
    trainer = train(gt.Trainer, bf16=True)
    assert trainer.model.dtypes == {torch.bfloat16}
    assert int(trainer.optimizer.stats.steps_taken) == 6


def test_settings_reach_the_optimizer(train):
    settings = {"max_relative_step": gradops.RelativeStepCap(0.001)}
    trainer = train(gt.Trainer, extra={"settings": settings})
    assert trainer.optimizer.stats.capped.any()


def test_optimizer_that_is_passed_in_is_wrapped(train):
    model = Network()
    trainer = train(gt.Trainer, model, optimizers=(torch.optim.Adam(model.named_parameters(), lr=1e-2), None))
    assert type(trainer.optimizer.optimizer) is gradops.Adam
    assert trainer.optimizer.stats.names[0] == "net.0.weight"


@pytest.mark.parametrize("name", ["max_norm", "loss_scale", "max_nrom"])
def test_settings_that_are_the_trainers_are_refused(train, name):
    with pytest.raises(TypeError, match=name):
        train(gt.Trainer, extra={"settings": {name: 1.0}})


def test_other_trainers_take_the_mixin(train):
    class Own(transformers.Trainer):
        def compute_loss(self, model, inputs, **options):
            return 2 * super().compute_loss(model, inputs, **options)

    class Mine(gt.GradOpsMixin, Own):
        pass

    losses = [logged(train(cls), "loss") for cls in (gt.Trainer, Mine, Own)]
    assert losses[1][0] == 2 * losses[0][0]
    assert losses[1] == pytest.approx(losses[2], rel=1e-3)


def test_optimizers_of_other_kinds_stay_as_they_are(train):
    model = Network()
    trainer = train(gt.Trainer, model, optimizers=(torch.optim.Rprop(model.parameters(), lr=1e-2), None))
    assert type(trainer.optimizer.optimizer) is torch.optim.Rprop
    assert min(logged(trainer, "grad_norm")) > 0


def test_resumed_training_is_bitwise_the_whole_one(train, tmp_path):
    options = {"num_train_epochs": 2, "save_strategy": "epoch", "max_grad_norm": 0.1}
    whole = train(gt.Trainer, **options)
    expected = weights(whole)
    rest = train(gt.Trainer, resume=str(tmp_path / "checkpoint-6"), **options)
    assert rest.optimizer.stats.names == whole.optimizer.stats.names
    assert int(rest.optimizer.stats.steps_taken) == 12
    for ours, theirs in zip(weights(rest), expected, strict=True):
        assert torch.equal(ours, theirs)


def native_lion(model):
    return pytest.importorskip("timm.optim").Lion(model.parameters(), lr=1e-2, betas=(0.9, 0.95), weight_decay=0.1)


def test_lion_by_transformers_name_is_ours(train):
    options = {"weight_decay": 0.1, "max_grad_norm": 0.1, "adam_beta2": 0.95}
    ours, model = train(gt.Trainer, optim="lion_32bit", **options), Network()
    optimizer = native_lion(model)
    for group in optimizer.param_groups:  # as transformers has it: no decay for biases
        group["params"] = [param for param in group["params"] if param.ndim > 1]
    biases = [param for param in model.parameters() if param.ndim == 1]
    optimizer.add_param_group({"params": biases, "weight_decay": 0.0})
    theirs = train(transformers.Trainer, model, optimizers=(optimizer, None), **options)
    assert type(ours.optimizer.optimizer) is gradops.Lion
    torch.testing.assert_close(weights(ours), weights(theirs), **CLOSE)
    assert logged(ours, "grad_norm") == pytest.approx(logged(theirs, "grad_norm"), rel=1e-3)


@pytest.mark.parametrize("name", classes())
def test_every_class_is_taken_with_its_arguments_and_the_settings(train, name):
    made = {"lr": 1e-3, "clip_value": 0.5}
    extra = {"optimizer_cls_and_kwargs": (classes()[name], made), "settings": {"l1": 1e-4, "clip_value": 0.25}}
    trainer = train(gt.Trainer, extra=extra, max_grad_norm=0.1)
    optimizer = trainer.optimizer.optimizer
    assert type(optimizer) is classes()[name]
    assert (optimizer.l1, optimizer.clip_value, optimizer.max_norm) == (1e-4, 0.25, None)
    assert trainer.optimizer.stats.clip_coef < 1
    assert int(trainer.optimizer.stats.steps_taken) == 6


def test_names_that_a_search_makes_anew_follow_its_learning_rate(train):
    trainer = train(gt.Trainer, optim="lion_32bit")
    trainer.optimizer, trainer.args.learning_rate = None, 0.5
    assert trainer.create_optimizer().param_groups[0]["lr"] == 0.5

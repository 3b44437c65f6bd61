"""`gradops.timm` with the real factory, scaler and averages."""

import math

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("timm")

import timm
from timm.optim import create_optimizer_v2, list_optimizers
from timm.scheduler import CosineLRScheduler
from timm.utils import ModelEmaV3

import gradops
from gradops import timm as gt
from gradops.optim.classes import classes

TimmsScaler = gt.NativeScaler.__base__  # timm.utils has ours
CLOSE = {"rtol": 2e-4, "atol": 2e-6}
SGDS = {"gradopssgd": True, "gradopsmomentum": False}


class Training:
    """timm's own training loop, on a small model."""

    def __init__(self, scaler, opt="gradopsadamw", **options):
        torch.manual_seed(0)
        self.model = timm.create_model("test_vit", num_classes=3, img_size=32, patch_size=16)
        # A bias of attention's keys has a gradient of 0, of which rounding makes something; eps keeps that small.
        options = {"lr": 1e-3, "weight_decay": 0.1, "eps": 1e-4, **options}
        self.optimizer = create_optimizer_v2(self.model, opt=opt, **options)
        self.scaler = scaler
        self.images, self.labels = torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 0])

    def run(self, steps=3, poison=(), accumulate=1, parameters=None, **clip):
        for step in range(steps * accumulate):
            loss = F.cross_entropy(self.model(self.images), self.labels) * (math.inf if step in poison else 1)
            update = (step + 1) % accumulate == 0
            clipped = list(self.model.parameters()) if parameters is None else parameters(self.model)
            self.scaler(loss, self.optimizer, parameters=clipped, need_update=update, **clip)
            if update:
                self.optimizer.zero_grad()
        return self

    def weights(self):
        return [param.detach().clone() for param in self.model.parameters()]


def timms():
    scaler = TimmsScaler("cpu")
    scaler._scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
    return scaler


def ours():
    return gt.NativeScaler("cpu", init_scale=256.0)


@pytest.mark.parametrize(
    ("name", "cls", "like"), [("gradopsadam", gradops.Adam, "adam"), ("gradopsadamw", gradops.AdamW, "adamw")]
)
def test_factory_makes_our_optimizers_by_name(name, cls, like):
    assert name in list_optimizers()
    assert "_" not in name
    made, plain = Training(ours(), name, max_norm=1.0, eps=1e-6, betas=(0.8, 0.9)), Training(ours(), like)
    assert type(made.optimizer) is cls
    assert made.optimizer.max_norm == 1.0
    assert (made.optimizer.defaults["eps"], made.optimizer.defaults["betas"]) == (1e-6, (0.8, 0.9))
    decays = [[group["weight_decay"] for group in training.optimizer.param_groups] for training in (made, plain)]
    assert decays[0] == decays[1]


@pytest.mark.parametrize("cls", classes().values(), ids=classes())
def test_every_optimizer_has_a_name_and_trains_as_timms_of_that_name_does(cls):
    name = cls.__name__.lower()
    expected, training = Training(timms(), name).run(), Training(ours(), f"gradops{name}").run()
    assert type(training.optimizer) is cls
    ours_first, theirs_first = (one.optimizer.param_groups[0] for one in (training, expected))
    shared = ours_first.keys() & theirs_first.keys() - {"params"}
    assert shared >= {"lr", "weight_decay"}
    assert {key: ours_first[key] for key in shared} == {key: theirs_first[key] for key in shared}
    # Its attention's keys have a bias whose gradient is rounding, which a sign makes as large as any.
    kept = [index for index, (name, _) in enumerate(training.model.named_parameters()) if "qkv.bias" not in name]
    weights = [[one.weights()[index] for index in kept] for one in (training, expected)]
    torch.testing.assert_close(*weights, rtol=1e-3, atol=1e-5)


def test_other_names_of_torchs_sgd_keep_their_defaults():
    nesterov = {opt: Training(ours(), opt).optimizer.defaults["nesterov"] for opt in SGDS}
    assert nesterov == SGDS


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize(
    "clip",
    [{}, {"clip_grad": 0.05}, {"clip_grad": 0.001, "clip_mode": "value"}, {"clip_grad": 0.01, "clip_mode": "agc"}],
    ids=["none", "norm", "value", "agc"],
)
def test_scaler_trains_as_timms_does(clip, accumulate):
    expected = Training(timms(), "adamw").run(accumulate=accumulate, **clip)
    training = Training(ours()).run(accumulate=accumulate, **clip)
    torch.testing.assert_close(training.weights(), expected.weights(), **CLOSE)
    assert int(training.optimizer.stats.steps_taken) == 3
    assert (training.optimizer.max_norm, training.optimizer.clip_value) == (None, None)


@pytest.mark.parametrize("mode", ["norm", "value", "agc"])
def test_clipping_in_the_step_leaves_gradients_as_they_are(mode):
    training = Training(ours())
    loss = F.cross_entropy(training.model(training.images), training.labels)
    expected = torch.autograd.grad(256.0 * loss, list(training.model.parameters()), retain_graph=True)
    training.scaler(loss, training.optimizer, 1e-3, mode, training.model.parameters())
    assert all(torch.equal(param.grad, grad) for param, grad in zip(training.model.parameters(), expected, strict=True))


@pytest.mark.parametrize("mode", ["norm", "value"])
def test_clipping_to_0_is_timms(mode):
    clip = {"clip_grad": 0.0, "clip_mode": mode}
    expected, training = Training(timms(), "adamw").run(**clip), Training(ours()).run(**clip)
    torch.testing.assert_close(training.weights(), expected.weights(), **CLOSE)


def test_clipping_by_norm_is_not_taken_for_adaptive_clipping():
    """With clip_mode="agc" an optimizer's max_norm is a factor of the weights; clip_grad is one of the gradients."""
    training = Training(ours(), max_norm=10.0, clip_mode="agc").run(clip_grad=1e-3)
    assert training.optimizer.stats.grad_norm.item() == pytest.approx(1e-3, rel=1e-2)
    assert training.optimizer.max_norm == 10.0


def test_clipping_of_some_of_the_parameters_is_timms():
    """timm leaves the head out of agc, for one."""
    body = {"clip_grad": 0.01, "parameters": lambda model: list(model.blocks.parameters())}
    expected = Training(timms(), "adamw").run(**body)
    training = Training(ours()).run(**body)
    torch.testing.assert_close(training.weights(), expected.weights(), **CLOSE)


def test_optimizers_of_other_kinds_work():
    expected = Training(timms(), "lamb").run(clip_grad=0.05, poison=(1,))
    training = Training(ours(), "lamb").run(clip_grad=0.05, poison=(1,))
    torch.testing.assert_close(training.weights(), expected.weights(), **CLOSE)


def test_overflow_is_skipped_and_the_scale_goes_down():
    training = Training(ours()).run(poison=(1,), clip_grad=0.05)
    assert (int(training.optimizer.stats.steps_taken), int(training.optimizer.stats.steps_skipped)) == (2, 1)
    assert training.scaler.state_dict()["scale"] == 128.0


def test_scalers_state_goes_to_timms_and_back():
    training = Training(ours()).run(poison=(1,))
    other = timms()
    assert other.state_dict_key == training.scaler.state_dict_key
    other.load_state_dict(training.scaler.state_dict())
    back = ours()
    back.load_state_dict(other.state_dict())
    assert back.state_dict() == training.scaler.state_dict()


def test_clipping_without_parameters_is_refused():
    training = Training(ours())
    with pytest.raises(ValueError, match="parameters"):
        training.scaler(training.model(training.images).sum(), training.optimizer, clip_grad=1.0)


def test_averages_and_schedules_follow_the_weights():
    averages = []
    for scaler, opt in ((timms(), "adamw"), (ours(), "gradopsadamw")):
        training = Training(scaler, opt)
        average = ModelEmaV3(training.model, decay=0.5)
        schedule = CosineLRScheduler(training.optimizer, t_initial=4, warmup_t=1, warmup_lr_init=1e-5)
        for epoch in range(3):
            training.run(1, clip_grad=0.05)
            average.update(training.model)
            schedule.step(epoch + 1)
        averages.append([*average.module.state_dict().values()])
        assert training.optimizer.param_groups[0]["lr"] < 1e-3
    torch.testing.assert_close(averages[1], averages[0], **CLOSE)

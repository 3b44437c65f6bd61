"""`gradops.transformers.Trainer` with `settings={"ema": ...}`: what is evaluated, saved and resumed."""

import copy

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("accelerate")

import transformers
from safetensors.torch import load_file
from trainers import CLOSE, Network, logged, weights

import gradops
from gradops import transformers as gt

DECAY = 0.5
EMA = {"settings": {"ema": gradops.WeightEma(DECAY)}}
EVALUATED = {"eval_strategy": "steps", "eval_steps": 2, "max_grad_norm": 0.1}


class Natively(transformers.Trainer):
    """Averages after each step, and evaluates and saves a copy of the model with the averages."""

    averaged = None

    def _inner_training_loop(self, *args, **kwargs):
        self.averaged = copy.deepcopy(self.model)
        self.add_callback(Averaging(self))
        return super()._inner_training_loop(*args, **kwargs)

    def evaluation_loop(self, *args, **kwargs):
        kept, self.model, self.model_wrapped = (self.model, self.model_wrapped), self.averaged, self.averaged
        try:
            return super().evaluation_loop(*args, **kwargs)
        finally:
            self.model, self.model_wrapped = kept


class Averaging(transformers.TrainerCallback):
    def __init__(self, trainer):
        self.trainer = trainer

    def on_step_end(self, *args, **kwargs):
        with torch.no_grad():
            for average, param in zip(self.trainer.averaged.parameters(), self.trainer.model.parameters(), strict=True):
                average.lerp_(param, 1 - DECAY)


@pytest.fixture
def evaluated(train):
    torch.manual_seed(2)
    data = [{"inputs": torch.randn(8), "labels": torch.randn(2)} for _ in range(8)]

    def run(cls, extra=(), **options):
        return train(cls, extra={**dict(extra), "eval_dataset": data}, **{**EVALUATED, **options})

    return run


def test_evaluation_is_of_the_averages_and_training_goes_on_with_the_weights(evaluated):
    theirs, ours, plain = evaluated(Natively), evaluated(gt.Trainer, EMA), evaluated(gt.Trainer)
    assert len(logged(ours, "eval_loss")) == 3
    assert logged(ours, "eval_loss") == pytest.approx(logged(theirs, "eval_loss"), rel=1e-4)
    assert logged(ours, "eval_loss") != pytest.approx(logged(plain, "eval_loss"), rel=1e-4)
    assert all(torch.equal(a, b) for a, b in zip(weights(ours), weights(plain), strict=True))
    for name in ("loss", "grad_norm"):
        assert logged(ours, name) == pytest.approx(logged(theirs, name), rel=1e-3)


def test_prediction_after_the_training_is_of_the_averages(evaluated):
    theirs, ours = evaluated(Natively), evaluated(gt.Trainer, EMA)
    predicted = [trainer.predict(trainer.eval_dataset).predictions for trainer in (ours, theirs)]
    torch.testing.assert_close(*map(torch.from_numpy, predicted), **CLOSE)


def saved(folder):
    return load_file(folder / "model.safetensors")


def test_saved_model_has_the_averages_and_checkpoints_the_weights(evaluated, tmp_path):
    ours = evaluated(gt.Trainer, EMA, save_strategy="epoch")
    ours.save_model(str(tmp_path / "final"))
    averages = gradops.ema_model(ours.model, ours.optimizer.optimizer).state_dict()
    torch.testing.assert_close(saved(tmp_path / "final"), dict(averages), rtol=0, atol=0)
    torch.testing.assert_close(saved(tmp_path / "checkpoint-6"), dict(ours.model.state_dict()), rtol=0, atol=0)
    assert not torch.equal(averages["net.0.weight"], ours.model.net[0].weight)


def test_resumed_training_goes_on_with_weights_and_averages_bit_for_bit(evaluated, tmp_path):
    options = {"num_train_epochs": 2, "save_strategy": "epoch"}
    whole = evaluated(gt.Trainer, EMA, **options)
    rest = evaluated(gt.Trainer, EMA, resume=str(tmp_path / "checkpoint-6"), **options)
    assert logged(rest, "eval_loss") == logged(whole, "eval_loss")
    models = [gradops.ema_model(one.model, one.optimizer.optimizer) for one in (rest, whole)]
    for ours, theirs in zip(*(model.parameters() for model in models), strict=True):
        assert torch.equal(ours, theirs)


def test_best_model_comes_with_its_averages(evaluated):
    options = {"save_strategy": "steps", "save_steps": 2, "load_best_model_at_end": True}
    ours = evaluated(gt.Trainer, EMA, greater_is_better=False, metric_for_best_model="eval_loss", **options)
    first, *later = logged(ours, "eval_loss")
    assert all(first < loss for loss in later)
    assert ours.evaluate()["eval_loss"] == pytest.approx(first, rel=1e-6)


@pytest.mark.parametrize("argument", ["fp16_full_eval", "bf16_full_eval", "save_only_model"])
def test_arguments_that_would_lose_the_averages_are_refused(evaluated, argument):
    options = {"save_strategy": "steps", "save_steps": 2, "load_best_model_at_end": argument == "save_only_model"}
    with pytest.raises(ValueError, match=argument):
        evaluated(gt.Trainer, EMA, **{argument: True}, **options)


def test_average_begins_where_the_optimizer_is_passed_in(evaluated):
    model = Network()
    optimizers = (torch.optim.RMSprop(model.named_parameters(), lr=1e-3), None)
    ours = evaluated(gt.Trainer, EMA, model=model, optimizers=optimizers)
    assert ours.optimizer.optimizer.ema == EMA["settings"]["ema"]
    assert "ema" in ours.optimizer.optimizer.state[model.net[0].weight]

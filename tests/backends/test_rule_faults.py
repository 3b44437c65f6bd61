"""A fault planted in each update rule and in the average of the weights, of each backend: the comparison with the
oracle that tests/rules/test_steps.py makes must fail with it, and pass without.

Native rules are compiled alone, from csrc/math/rules, and carried out in place of torch's. CUDA's kernels compile the
same headers, so that what is shown of them is shown of CUDA. Triton's rules run in its interpreter, which
test_triton_step.py starts.
"""

import importlib
import os
from typing import NamedTuple

import pytest
import torch
from against_oracle import every_kind_of_step
from planting import OnHost, plant
from rules import TABLES, table_of

import gradops
from gradops.backends.torch import ema as torch_ema
from gradops.backends.torch import rules as torch_rules
from gradops.backends.torch import step as torch_step

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
differs = pytest.raises(AssertionError, match=r"times the tolerance|rounded differently|elements differ")


class Faults(NamedTuple):
    """What the fault is, the options of tests/rules in which it shows, the C++ type, and (right, wrong) by backend."""

    what: str
    options: str
    struct: str
    torch: tuple[str, str]
    triton: tuple[str, str]
    native: tuple[str, str]


FAULTS = {
    "adagrad": Faults(
        "the rate decays before the first update", "lr decay", "Adagrad",
        torch=("(step - 1.0) * lr_decay", "step * lr_decay"),
        triton=("(step - 1.0) * lr_decay", "step * lr_decay"),
        native=("(row.step - 1.0) * hyper.lr_decay)), s", "row.step * hyper.lr_decay)), s"),
    ),
    "adam": Faults(
        "the second moment is corrected by beta1", "default", "Adam",
        torch=("bias_correction(beta2, step).rsqrt()", "bias_correction(beta1, step).rsqrt()"),
        triton=("tl.sqrt(1.0 - integer_power(beta2, step))", "tl.sqrt(1.0 - integer_power(beta1, step))"),
        native=("sqrt(1.0 - pow(hyper.beta2, row.step))", "sqrt(1.0 - pow(hyper.beta1, row.step))"),
    ),
    "adamax": Faults(
        "the largest gradient is kept for ever", "default", "Adamax",
        torch=("moments[1].to(grad.dtype).mul(beta2)", "moments[1].to(grad.dtype)"),
        triton=("beta2 * moments[1]", "moments[1]"),
        native=("coefs.beta2 * moments[kExpInf]", "moments[kExpInf]"),
    ),
    "lars": Faults(
        "the ratio leaves out the decay", "adapted", "Lars",
        torch=("grad_norms + weight_decay * weight_norms + eps", "grad_norms + eps"),
        triton=("grad_norm + weight_decay * weight_norm + eps", "grad_norm + eps"),
        native=("norms.grad + weight_decay * norms.param + hyper.eps", "norms.grad + hyper.eps"),
    ),
    "lion": Faults(
        "the momentum is averaged with beta1", "default", "Lion",
        torch=("[grad.mul(1.0 - beta2).add_(exp_avg.mul(beta2))]", "[grad.mul(1.0 - beta1).add_(exp_avg.mul(beta1))]"),
        triton=("(beta2 * exp_avg + one_minus_beta2 * grad,)", "(beta1 * exp_avg + one_minus_beta1 * grad,)"),
        native=(
            "coefs.beta2 * exp_avg + coefs.one_minus_beta2 * grad",
            "coefs.beta1 * exp_avg + coefs.one_minus_beta1 * grad",
        ),
    ),
    "nadam": Faults(
        "the momentum does not look ahead", "momentum decay", "NAdam",
        torch=("_momentum(hyper, step + 1.0)", "_momentum(hyper, step)"),
        triton=("momentum_of(hyper, step + 1.0)", "momentum_of(hyper, step)"),
        native=("momentum(hyper, row.step + 1.0)", "momentum(hyper, row.step)"),
    ),
    "radam": Faults(
        "a term of the rectification is dropped", "default", "RAdam",
        torch=("(now - 4.0) * (now - 2.0) * end", "(now - 4.0) * end"),
        triton=("(now - 4.0) * (now - 2.0) * end", "(now - 4.0) * end"),
        native=("(now - 4.0) * (now - 2.0) * end", "(now - 4.0) * end"),
    ),
    "rmsprop": Faults(
        "eps is inside the root", "eps", "Rmsprop",
        torch=("variance.sqrt().add_(eps)", "variance.add(eps).sqrt()"),
        triton=("tl.sqrt_rn(variance) + eps", "tl.sqrt_rn(variance + eps)"),
        native=("sqrtf(variance) + coefs.eps", "sqrtf(variance + coefs.eps)"),
    ),
    "sgd": Faults(
        "Nesterov's momentum looks back", "nesterov", "Sgd",
        torch=("grad.add(buffer, alpha=momentum)", "grad.add(buffer, alpha=-momentum)"),
        triton=("grad + momentum * direction", "grad - momentum * direction"),
        native=("grad + coefs.momentum * buffer", "grad - coefs.momentum * buffer"),
    ),
}  # fmt: skip
AVERAGES = {
    "torch": ("n = turn - ema.start\n", "n = turn - ema.start - 1.0\n"),
    "triton": ("n = turn - tl.load(settings + EMA_START)", "n = turn - tl.load(settings + EMA_START) - 1.0"),
    "native": ("n = turn - policy.start;", "n = turn - policy.start - 1.0;"),
}
PLACES = ["triton"] if INTERPRETED else ["torch", "native"]
CLIPPED = {"max_norm": 0.5}
AVERAGED = {"ema": gradops.WeightEma(0.9, tau=2.0)}


@pytest.fixture(params=PLACES)
def place(request):
    if request.param == "triton":
        pytest.importorskip("triton", minversion="3.3")
    return request.param


def compare(cls, settings, place, options="default"):
    backend = "torch" if place == "native" else place
    every_kind_of_step(cls, table_of(cls).options[options], {**settings, "backend": backend}, torch.device("cpu"))


def on_host(monkeypatch, rule, fault, folder):
    """Puts the native rule, with or without a fault, and the native average in the place of torch's."""
    folder.mkdir()
    native = OnHost(rule, FAULTS[rule].struct, fault, folder)
    monkeypatch.setattr(torch_rules, "load", lambda name: native)
    monkeypatch.setattr(torch_step, "average_rows_", native.average_rows_)


def test_every_rule_has_its_faults():
    assert FAULTS.keys() == TABLES.keys()


@pytest.mark.parametrize("rule", FAULTS)
def test_a_fault_in_a_rule_is_caught(rule, place, tmp_path, monkeypatch):
    faults, cls = FAULTS[rule], TABLES[rule].classes[0]
    if place == "native":
        on_host(monkeypatch, rule, None, tmp_path / "sound")
    compare(cls, CLIPPED, place, faults.options)
    if place == "native":
        on_host(monkeypatch, rule, (f"math/rules/{rule}.h", *faults.native), tmp_path / "faulty")
    else:
        module = importlib.import_module(f"gradops.backends.{place}.rules.{rule}")
        plant(module, *getattr(faults, place), tmp_path, monkeypatch)
    with differs:
        compare(cls, CLIPPED, place, faults.options)


def test_an_average_that_is_one_update_late_is_caught(place, tmp_path, monkeypatch):
    if place == "native":
        on_host(monkeypatch, "sgd", None, tmp_path / "sound")
    compare(gradops.SGD, AVERAGED, place)
    if place == "native":
        on_host(monkeypatch, "sgd", ("math/ema.h", *AVERAGES[place]), tmp_path / "faulty")
    else:
        plant(importlib.import_module(f"gradops.backends.{place}.ema"), *AVERAGES[place], tmp_path, monkeypatch)
    with pytest.raises(AssertionError, match="average of param"):
        compare(gradops.SGD, AVERAGED, place)


def test_an_average_that_moves_in_a_skipped_step_is_caught_in_torchs_operations(tmp_path, monkeypatch):
    plant(torch_ema, "else skip | (weight == 0.0)", "else weight == 0.0", tmp_path, monkeypatch)
    with pytest.raises(AssertionError, match="average of param"):
        compare(gradops.SGD, AVERAGED, "torch")


@pytest.mark.usefixtures("backend")
def test_an_average_that_moves_in_a_skipped_step_is_caught_whatever_the_backend(device, monkeypatch):
    """Kernels leave a skipped step before any of its rows, so that the average alone is moved behind their back."""
    step = gradops.SGD.step

    def moving(optimizer, *args, **options):
        step(optimizer, *args, **options)
        for param, state in optimizer.state.items() if optimizer.stats.found_inf else ():
            state["ema"].lerp_(param.detach().float(), 0.1)

    every_kind_of_step(gradops.SGD, {}, AVERAGED, device)
    monkeypatch.setattr(gradops.SGD, "step", moving)
    with pytest.raises(AssertionError, match="average of param"):
        every_kind_of_step(gradops.SGD, {}, AVERAGED, device)

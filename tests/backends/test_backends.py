"""Which backend runs, how one is forced, and what the torch one promises besides the shared test bodies."""

import contextlib
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from beside import Beside, assert_bitwise, params_of, snapshot
from cases import CHUNK, DTYPES, LAYOUTS, ParamCase, needs_native
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

import gradops
from gradops.backends import choose
from gradops.backends.torch import guard as torch_guard
from gradops.backends.torch import math as torch_math
from gradops.backends.torch.step import TorchStep

TESTS = Path(__file__).resolve().parents[1]


def make(device="cpu", **settings):
    param = torch.ones(5, device=device).requires_grad_()
    param.grad = torch.ones_like(param)
    return gradops.AdamW([("layer.weight", param)], lr=0.1, **settings), param


@pytest.mark.parametrize(
    ("device", "native", "triton", "expected"),
    [
        ("cpu", ["cpu"], True, "native"),
        ("cpu", [], True, "torch"),
        ("cuda", ["cpu", "cuda"], True, "native"),
        ("cuda", ["cpu"], True, "triton"),
        ("cuda", [], True, "triton"),
        ("cuda", [], False, "torch"),
        ("xpu", ["cpu", "cuda"], True, "triton"),
        ("xpu", ["cpu", "cuda"], False, "torch"),
        ("mps", ["cpu"], True, "torch"),
    ],
)
def test_backend_follows_the_device_and_what_was_built(device, native, triton, expected, monkeypatch):
    monkeypatch.setattr(choose.extension, "missing_for", lambda kind: "" if kind in native else "no native code")
    monkeypatch.setattr(choose.importlib.util, "find_spec", lambda name: triton or None)
    monkeypatch.setattr(choose.importlib, "import_module", lambda name: SimpleNamespace(__version__="3.6.0"))
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    choose._missing_for_triton.cache_clear()
    choice = choose.backend_for(torch.device(device))
    choose._missing_for_triton.cache_clear()
    assert choice.name == expected
    assert ("no native code" in choice.reason) is (device not in native)


def test_a_backend_without_a_twin_of_the_rule_is_passed_over_with_the_reason(monkeypatch):
    rule = replace(gradops.Adam.rule, name="unheard_of", title="Unheard")
    lacks = {"native": "no Unheard there", "triton": "nor there", "torch": ""}
    monkeypatch.setattr(choose, "missing", lambda name, device_type: "")
    monkeypatch.setattr(choose, "missing_rule", lambda name, wanted: lacks[name] if wanted is rule else "")
    choice = choose.backend_for(torch.device("cuda"), rule)
    assert (choice.name, choice.reason) == ("torch", "no Unheard there; nor there")
    assert choose.backend_for(torch.device("cuda"), gradops.Adam.rule).name == "native"
    with pytest.raises(RuntimeError, match=r"backend='native' cannot step parameters on cuda: no Unheard there"):
        choose.backend_for(torch.device("cuda"), rule, "native")


@needs_native
def test_native_code_says_which_rules_it_lacks():
    assert choose.missing_rule("native", gradops.Adam.rule) == ""
    rule = replace(gradops.Adam.rule, name="unheard_of", title="Unheard")
    assert choose.missing_rule("native", rule) == "gradops' native code has no Unheard"


def test_forced_backend_that_cannot_run_is_refused_with_the_reason(monkeypatch):
    monkeypatch.setattr(choose, "missing", lambda name, device_type: "it rains")
    with pytest.raises(RuntimeError, match=r"backend='triton' cannot step parameters on cpu: it rains"):
        make(backend="triton")
    optimizer = torch.optim.AdamW([torch.ones(3).requires_grad_()])
    with pytest.raises(RuntimeError, match="it rains"):
        gradops.wrap(optimizer, backend="native")
    assert type(optimizer) is torch.optim.AdamW


@pytest.mark.parametrize(
    ("version", "said"),
    [
        (
            "3.2.0",
            "the kernels need Triton 3.3 or newer, which torch 2.7 brings: before it kernels have neither tuples nor "
            "functions as arguments, this is 3.2.0",
        ),
        ("3.3.0+git1", ""),
        ("3.10.0", ""),
        ("4.0.0", ""),
    ],
)
def test_a_triton_that_is_too_old_is_named(version, said, monkeypatch):
    monkeypatch.setattr(choose.importlib.util, "find_spec", lambda name: True)
    monkeypatch.setattr(choose.importlib, "import_module", lambda name: SimpleNamespace(__version__=version))
    choose._missing_for_triton.cache_clear()
    assert choose.missing("triton", "cuda") == said
    choose._missing_for_triton.cache_clear()


def test_misspelt_backend_is_refused():
    with pytest.raises(ValueError, match=r"backend must be .*native, triton, torch, got 'cuda'"):
        make(backend="cuda")


@needs_native
def test_forced_backend_runs_and_is_named():
    for name, said in (("native", "cpu, "), ("torch", "torch's own operations, since backend='torch' was asked for")):
        optimizer, _ = make(backend=name)
        optimizer.step()
        assert optimizer.stats.backend.startswith(said)


@needs_native
def test_backend_may_be_changed_in_mid_run():
    case = ParamCase((40, 30))
    both = Beside(gradops.AdamW([case.param()], lr=0.1, max_norm=1.0), max_norm=1.0)
    said = set()
    for name in (None, "torch", "native", "torch"):
        both.optimizer.backend = name
        both.step([case.grad()])
        said.add(both.optimizer.stats.backend)
    assert len(said) == 2


def test_backend_that_cannot_run_assigned_later_moves_nothing(monkeypatch):
    optimizer, _ = make()
    optimizer.step()
    before = snapshot(optimizer)
    with pytest.raises(ValueError, match="backend"):
        optimizer.backend = "xla"
    optimizer.backend = "triton"
    with monkeypatch.context() as patched:
        patched.setattr(choose, "missing", lambda name, device_type: "it rains")
        with pytest.raises(RuntimeError, match="it rains"):
            optimizer.step()
    assert_bitwise(snapshot(optimizer), before)
    optimizer.backend = None
    optimizer.step()


def test_gradients_are_let_go_of_after_the_step(device):
    optimizer, param = make(device)
    for _ in range(2):
        param.grad = torch.ones_like(param)
        memory = StorageWeakRef(param.grad.untyped_storage())
        optimizer.step()
        assert not memory.expired()
        param.grad = None
        assert memory.expired()


class Forbid(TorchDispatchMode):
    """Raises for operations that read a device's memory on the host, and for results of a forbidden dtype."""

    SYNCHRONISING = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "unique")

    def __init__(self, dtype=None):
        super().__init__()
        self.dtype = dtype
        self.calls = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.calls += 1
        name = func.overloadpacket.__name__
        assert name not in self.SYNCHRONISING, f"{name} waits for the device"
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, (tuple, list)) else [result]:
            assert not torch.is_tensor(value) or value.dtype != self.dtype, f"{name} gave {self.dtype}"
        return result


def guard(monkeypatch, dtype=None):
    mode, step = Forbid(dtype), TorchStep.step

    def guarded(self, call):
        with mode:
            step(self, call)

    monkeypatch.setattr(TorchStep, "step", guarded)
    return mode


EVERYTHING = {
    "max_norm": 1.0,
    "clip_value": 2.0,
    "max_relative_step": gradops.RelativeStepCap(0.05, warmup_steps=3),
    "loss_scale": gradops.DynamicLossScale(init_scale=8.0, growth_interval=2),
    "guard": gradops.SpikeGuard(warmup_steps=1),
    "track_updates": True,
}


def run_beside(**settings):
    cases = [ParamCase((40, 30)), ParamCase((CHUNK + 1,), DTYPES[1], grad_dtype=DTYPES[1]), ParamCase((0,))]
    lr = torch.tensor(0.1)
    optimizer = gradops.AdamW([case.param() for case in cases], lr=lr, amsgrad=True, backend="torch", **settings)
    both = Beside(optimizer, **settings)
    for poison in (1.0, float("inf"), 1.0):
        both.step([case.grad(8.0) * poison for case in cases])


@pytest.mark.parametrize("norm_type", [2.0, 1.0, float("inf"), 3.0])
def test_torch_step_never_waits_for_the_device(norm_type, monkeypatch):
    mode = guard(monkeypatch)
    run_beside(norm_type=norm_type, **EVERYTHING)
    assert mode.calls > 100


def test_guard_sees_a_step_that_waits(monkeypatch):
    def waiting(norm, max_norm):
        return torch.tensor(min(1.0, max_norm / norm.item()))

    monkeypatch.setattr(torch_guard, "clip_coef", waiting)
    guard(monkeypatch)
    with pytest.raises(AssertionError, match="_local_scalar_dense waits for the device"):
        run_beside(**EVERYTHING)


def test_torch_step_needs_no_float64_where_the_device_has_none(monkeypatch):
    monkeypatch.setattr(torch_math, "_WITHOUT_FLOAT64", {"cpu"})
    mode = guard(monkeypatch, torch.float64)
    run_beside(**EVERYTHING)
    assert mode.calls > 100
    monkeypatch.setattr(torch_math, "_WITHOUT_FLOAT64", set())
    with pytest.raises(AssertionError, match=r"gave torch\.float64"):
        run_beside(**EVERYTHING)


@contextlib.contextmanager
def threads(count):
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("norm_type", [2.0, 1.0, 3.0])
def test_torch_step_gives_the_same_bits_for_any_number_of_threads(norm_type):
    def run():
        torch.manual_seed(3)
        cases = [ParamCase((9, CHUNK * 5 + 7)), ParamCase((300, 401), layout="transposed"), ParamCase((33,))]
        optimizer = gradops.AdamW(
            [case.param() for case in cases], norm_type=norm_type, max_norm=1.0, max_relative_step=0.05, backend="torch"
        )
        for _ in range(2):
            for param, case in zip(params_of(optimizer), cases, strict=True):
                param.grad = case.grad()
            optimizer.step()
        params, states = snapshot(optimizer)
        return [*params, optimizer.stats.norms.clone(), optimizer.stats.grad_norm.clone()], states

    with threads(1):
        alone = run()
    for count in (2, 3, 7):
        with threads(count):
            assert_bitwise(run(), alone)


@needs_native
@pytest.mark.parametrize("names", [("native", "torch"), ("torch", "native")])
def test_state_of_one_backend_is_taken_on_by_another(names):
    def run(names):
        torch.manual_seed(4)
        param, saved = torch.randn(1000).requires_grad_(), None
        for name in names:
            optimizer = gradops.AdamW([param], lr=0.1, max_norm=1.0, backend=name)
            if saved is not None:
                optimizer.load_state_dict(saved)
            for _ in range(3):
                param.grad = torch.randn_like(param)
                optimizer.step()
            saved = optimizer.state_dict()
        assert int(optimizer.stats.steps_taken) == 6
        return param.detach()

    torch.testing.assert_close(run(names), run(("native", "native")), rtol=1e-5, atol=1e-6)


@needs_native
def test_operators_have_one_schema_with_and_without_native_code():
    code = (
        "import torch, gradops; print({name: str(getattr(torch.ops.gradops, name).default._schema) for name in NAMES})"
    )
    names = "('grad_stats', 'adam_step_', 'clip_grad_norm_', 'unscale_', 'update_loss_scale_')"
    said = []
    for hide in ("", "import sys; sys.modules['gradops._C'] = None; "):
        command = [sys.executable, "-c", hide + code.replace("NAMES", names)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        said.append(plain(done.stdout))
    assert said[0] == said[1]
    assert "grads" in said[0]


def plain(schema):
    """Without what tells neither type nor meaning: the names of aliases and of results, and sizes known by symbols."""
    schema = re.sub(r"\((\w)\d*!\)", "(!)", schema)
    return (
        re.sub(r" (grad_norm|norms|abs_max|nonfinite)(?=[,)])", " ", schema)
        .replace(" ,", ",")
        .replace(" )", ")")
        .replace("SymInt", "int")
    )


@pytest.mark.parametrize("layout", LAYOUTS)
def test_torch_step_writes_no_gradient_and_leaves_strides(layout):
    case = ParamCase((2, 3, 4, 5), layout=layout, grad_layout="transposed")
    optimizer = gradops.AdamW([case.param()], backend="torch")
    param = params_of(optimizer)[0]
    strides = param.stride()
    param.grad = case.grad()
    kept = param.grad.clone()
    optimizer.step()
    assert param.stride() == strides
    assert torch.equal(param.grad, kept)


def test_everything_around_the_step_works_without_native_code():
    """The same bodies once more with `gradops._C` hidden, as an install without it has them."""
    files = ["step/test_clip.py", "step/test_ops.py"]
    files += [f"optimizer/test_{name}.py" for name in ("grad_scaler", "own_grad_scaler", "native_faults")]
    code = "import sys, pytest; sys.modules['gradops._C'] = None; sys.exit(pytest.main(sys.argv[1:]))"
    arguments = ["-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist", *[str(TESTS / name) for name in files]]
    done = subprocess.run([sys.executable, "-c", code, *arguments], cwd=TESTS.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:]
    assert " passed" in done.stdout

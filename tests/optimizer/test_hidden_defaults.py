"""Nothing that gradops makes takes its dtype or device from torch's defaults, which users may set to anything."""

import ast
import re
from pathlib import Path

import pytest
import torch
from beside import assert_bitwise, params_of, snapshot

import gradops
from gradops import Recorder

ROOT = Path(__file__).parents[2]

# Functions of torch whose result has the default dtype, or lies on the default device, where none is named.
FACTORIES = {
    "zeros", "ones", "empty", "full", "tensor", "arange", "range", "linspace", "logspace", "eye", "rand", "randn",
    "randint", "randperm", "normal", "as_tensor", "asarray", "scalar_tensor", "empty_strided", "tril_indices",
    "triu_indices", "hann_window", "hamming_window", "blackman_window", "kaiser_window", "bartlett_window",
}  # fmt: skip


def unnamed(source):
    """Line and text of the factory calls that leave dtype or device open."""
    found = []
    for node in ast.walk(ast.parse(source)):
        is_torchs = isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
        if is_torchs and isinstance(node.func.value, ast.Name) and node.func.value.id == "torch":
            named = {keyword.arg for keyword in node.keywords}
            if node.func.attr in FACTORIES and not {"dtype", "device"} <= named:
                found.append((node.lineno, ast.unparse(node)))
    return found


def unnamed_in_cpp(source):
    calls = re.findall(r"\b(?:at|torch)::(?:zeros|ones|empty|full|tensor|arange|scalar_tensor|rand\w*)\([^;]*;", source)
    named = (re.compile(r"\bk(Float|Double|Long|Int|Byte|Bool)\b|dtype"), re.compile(r"on_cpu\(|on_device|\.device\("))
    return [call for call in calls if not all(pattern.search(call) for pattern in named)]


def test_every_factory_call_names_its_dtype_and_device():
    sources = sorted((ROOT / "gradops").rglob("*.py"))
    found = {str(path.relative_to(ROOT)): calls for path in sources if (calls := unnamed(path.read_text()))}
    assert len(sources) > 100
    assert not found
    sources = sorted((ROOT / "csrc").rglob("*.cpp"))
    found = {str(path.relative_to(ROOT)): calls for path in sources if (calls := unnamed_in_cpp(path.read_text()))}
    assert len(sources) > 10
    assert not found


def test_the_search_sees_calls_that_leave_something_open():
    assert unnamed("x = torch.zeros(3, dtype=torch.float32)") == [(1, "torch.zeros(3, dtype=torch.float32)")]
    assert unnamed("x = f(torch.tensor(\n    1.0, device=d))") == [(1, "torch.tensor(1.0, device=d)")]
    assert not unnamed("x = torch.full((), 1.0, dtype=d, device=e), torch.zeros_like(x)")
    assert unnamed_in_cpp("auto x = at::zeros({3}, at::kFloat);") == ["at::zeros({3}, at::kFloat);"]
    assert unnamed_in_cpp("auto x = at::empty({3}, at::TensorOptions().device(d));")
    assert not unnamed_in_cpp("auto x = at::empty({3}, on_cpu(at::kFloat));")


@pytest.fixture(params=["bfloat16", "float16", "float64", "meta"])
def hidden_default(request):
    """Sets one of torch's defaults to something that no step expects."""
    if request.param == "meta":
        torch.set_default_device("meta")
    else:
        torch.set_default_dtype(getattr(torch, request.param))
    yield request.param
    torch.set_default_device(None)
    torch.set_default_dtype(torch.float32)


SETTINGS = {
    "plain": {},
    "tracked": {"track_updates": True, "max_norm": 1.0},
    "scaled": {"loss_scale": "dynamic", "max_norm": 1.0, "norm_type": 3.0},
    "fixed scale": {"loss_scale": 8.0, "clip_value": 0.5},
    "guarded": {"guard": gradops.SpikeGuard(warmup_steps=1), "max_relative_step": 0.1},
    "agc": {"clip_mode": "agc", "max_norm": 0.01, "l1": 0.01},
    "masters": {"master_weights": True},
    "kahan": {"rounding": "kahan", "moments_dtype": torch.bfloat16},
}

NAMES = ("float32", "scalar", "half", "empty")


def parameters(device):
    values = torch.arange(24, dtype=torch.float32, device=device).sin()
    makers = (values.view(4, 6), values[3], values[:7].bfloat16(), values[:0])
    return [(name, torch.nn.Parameter(value.clone())) for name, value in zip(NAMES, makers, strict=True)]


def train(device, settings, cls=gradops.AdamW):
    """Three steps with everything around them, one of them skipped; returns what there then is."""
    optimizer = cls(parameters(device), lr=0.1, amsgrad=True, **settings)
    recorder = Recorder(optimizer) if settings.get("track_updates") else None
    for step in range(4):
        for index, param in enumerate(params_of(optimizer)):
            param.grad = torch.full_like(param, 0.5 + step - index)
        if step == 2:
            params_of(optimizer)[0].grad[1, 1] = torch.inf
        scaled = optimizer.scale(torch.ones((), dtype=torch.float32, device=device))
        assert scaled.dtype == torch.float32
        if step == 1:
            optimizer.unscale_()
            gradops.clip_grad_norm_(params_of(optimizer), 1.0)
        optimizer.step()
    again = cls(parameters(device), lr=0.1, amsgrad=True, **settings)
    again.load_state_dict(optimizer.state_dict())
    stats = optimizer.stats.cpu()
    rows = {name: getattr(stats, name) for name in ("grad_norm", "norms", "update_ratio", "param_rms", "steps_skipped")}
    run = None if recorder is None else recorder.run()
    return snapshot(optimizer), snapshot(again)[1], rows, run


@pytest.mark.parametrize("name", SETTINGS)
def test_a_step_does_not_depend_on_torchs_defaults(name, hidden_default, backend, device):
    torch.set_default_device(None)
    torch.set_default_dtype(torch.float32)
    expected = train(device, SETTINGS[name])
    if hidden_default == "meta":
        torch.set_default_device("meta")
    else:
        torch.set_default_dtype(getattr(torch, hidden_default))
    found = train(device, SETTINGS[name])
    assert_bitwise(found[0], expected[0])
    assert_bitwise(([], found[1]), ([], expected[1]))
    for row, value in expected[2].items():
        assert found[2][row].dtype == value.dtype
        assert found[2][row].device == value.device
        torch.testing.assert_close(found[2][row], value, rtol=0.0, atol=0.0, equal_nan=True)
    if expected[3] is not None:
        assert found[3].grad_norm.dtype == expected[3].grad_norm.dtype
        assert found[3].grad_norm.tolist() == expected[3].grad_norm.tolist()


def train_model():
    """A model with BatchNorm under a scaler, its activations recorded, its buffers protected, and a clip by hand."""
    torch.manual_seed(0)
    as_float32 = {"dtype": torch.float32, "device": "cpu"}
    model = torch.nn.Sequential(
        torch.nn.Linear(6, 5, **as_float32), torch.nn.BatchNorm1d(5, **as_float32), torch.nn.ReLU()
    )
    optimizer = gradops.AdamW(model.named_parameters(), lr=0.1, max_norm=1.0, protect=model)
    recorder = Recorder(optimizer, model)
    scaler = gradops.GradScaler("cpu", init_scale=4.0, growth_interval=2)
    for step in range(4):
        inputs = torch.linspace(-1.0, 1.0, 48, **as_float32).view(8, 6) * (torch.inf if step == 2 else 1.0)
        optimizer.zero_grad()
        scaler.scale(model(inputs).square().sum()).backward()
        scaler.step(optimizer)
        scaler.update()
    run = recorder.run()
    recorder.close()
    rows = {name: getattr(run, name) for name in ("loss", "norms", "activation_mean", "activation_near_zero")}
    return [value.clone() for value in model.state_dict().values()], rows, scaler.get_scale()


def test_a_recorded_model_does_not_depend_on_torchs_defaults(hidden_default):
    torch.set_default_device(None)
    torch.set_default_dtype(torch.float32)
    values, rows, scale = train_model()
    if hidden_default == "meta":
        torch.set_default_device("meta")
    else:
        torch.set_default_dtype(getattr(torch, hidden_default))
    found_values, found_rows, found_scale = train_model()
    for mine, theirs in zip(found_values, values, strict=True):
        assert mine.dtype == theirs.dtype
        assert torch.equal(mine, theirs)
    for name, row in rows.items():
        assert found_rows[name].dtype == row.dtype
        assert str(found_rows[name].tolist()) == str(row.tolist())
    assert found_scale == scale


def test_clipping_nothing_gives_a_float32_zero_on_the_cpu(hidden_default):
    norm = gradops.clip_grad_norm_([torch.nn.Parameter(torch.ones(3, dtype=torch.float32, device="cpu"))], 1.0)
    assert (norm.dtype, norm.device.type, float(norm)) == (torch.float32, "cpu", 0.0)

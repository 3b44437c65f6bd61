"""A parameter is checked when it takes part: frozen ones of any kind may stand beside those that are stepped."""

import pytest
import torch
from beside import assert_bitwise, params_of, snapshot
from rules import CLASSES

import gradops

pytestmark = pytest.mark.usefixtures("backend")

FROZEN = {
    "int8": lambda device: torch.ones(300, 4, dtype=torch.int8, device=device),
    "uint8": lambda device: torch.ones(4, dtype=torch.uint8, device=device),
    "bool": lambda device: torch.ones(4, dtype=torch.bool, device=device),
    "float8": lambda device: torch.ones(4, device=device).to(torch.float8_e4m3fn),
    "float64": lambda device: torch.ones(4, dtype=torch.float64, device=device),
    "complex": lambda device: torch.ones(4, dtype=torch.complex64, device=device),
    "sparse": lambda device: torch.ones(4, 4, device=device).to_sparse(),
    "meta": lambda device: torch.ones(4, device="meta"),
    "expanded": lambda device: torch.ones(1, device=device).expand(5),
    "subclass": lambda device: torch.ones(4, device=device).as_subclass(Strange),
}


class Strange(torch.Tensor):
    """A tensor with a Python class of its own."""


def make(frozen, device, settings=None, cls=gradops.AdamW):
    torch.manual_seed(2)
    first, last = (torch.nn.Parameter(torch.randn(5, device=device)) for _ in range(2))
    named = (
        [("base", frozen), ("first", first), ("last", last)]
        if frozen is not None
        else [("first", first), ("last", last)]
    )
    return cls(named, lr=0.1, max_norm=1.0, **(settings or {})), first, last


SETTINGS = [
    {},
    {"track_updates": True, "max_relative_step": 0.1},
    {"clip_mode": "agc"},
    {"master_weights": True, "loss_scale": 4.0},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda settings: "-".join(settings) or "plain")
@pytest.mark.parametrize("kind", FROZEN)
def test_frozen_parameters_of_any_kind_stand_beside_those_that_are_stepped(kind, settings, device):
    optimizer, *mine = make(FROZEN[kind](device), device, settings)
    usual, *theirs = make(None, device, settings)
    assert optimizer.stats.grad_norm.device.type == device.type
    for step in range(3):
        for each, params in ((optimizer, mine), (usual, theirs)):
            for param in params:
                param.grad = torch.full((5,), float(step + 1), device=device)
            each.scale(torch.ones((), dtype=torch.float32, device=device))
            if step == 1:
                each.unscale_()
            each.step()
        for param, other in zip(mine, theirs, strict=True):
            assert torch.equal(param, other)
    stats = optimizer.stats
    assert stats.names == ("base", "first", "last")
    for name in ("norms", "abs_max", "nonfinite", "capped", "update_ratio", "param_rms"):
        row, other = getattr(stats, name), getattr(usual.stats, name)
        assert row.shape == (3,)
        if "track_updates" in settings or name not in ("update_ratio", "param_rms"):
            assert row[0] == 0
            assert torch.equal(row[1:], other)
    assert params_of(optimizer)[0] not in optimizer.state
    assert stats.backend == usual.stats.backend


@pytest.mark.parametrize("settings", [{}, {"master_weights": True}], ids=["plain", "masters"])
@pytest.mark.parametrize("kind", ["int8", "float64", "complex", "meta", "expanded"])
@pytest.mark.parametrize("cls", CLASSES)
def test_no_rule_keeps_a_state_of_a_frozen_parameter(cls, kind, settings, device):
    optimizer, *params = make(FROZEN[kind](device), device, settings, cls)
    for param in params:
        param.grad = torch.ones_like(param)
    optimizer.step()
    assert optimizer.state.keys() == set(params)


def first_gradient_of(kind, device):
    """A frozen parameter in an optimizer that has stepped, which then gets a gradient; sparse and odd ones too."""
    optimizer, first, last = make(FROZEN[kind](device), device)
    first.grad, last.grad = torch.ones_like(first), torch.ones_like(last)
    optimizer.step()
    base = params_of(optimizer)[0]
    base.grad_dtype = None
    base.grad = torch.ones_like(base) if base.layout == torch.strided else base.detach().clone()
    return optimizer


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("complex", "parameter of 'base' is (complex64|ComplexFloat); expected"),
        ("sparse", "parameter of 'base' is (sparse_coo|Sparse); only dense"),
        ("meta", "parameter of 'base' is on meta; wrap after materialising it"),
        ("expanded", "parameter of 'base' has elements that share memory"),
        ("float8", "parameter of 'base' is float8|parameter of 'base' is Float8"),
    ],
)
def test_a_frozen_parameter_is_named_when_its_first_gradient_comes(kind, message, device):
    optimizer = first_gradient_of(kind, device)
    rest = params_of(optimizer)[1:]
    before = [param.detach().clone() for param in rest], [dict(optimizer.state[param]) for param in rest]
    for _ in range(2):
        with pytest.raises(RuntimeError, match=message):
            optimizer.step()
    assert all(torch.equal(param, was) for param, was in zip(rest, before[0], strict=True))
    assert int(optimizer.stats.steps_taken) == 1
    assert params_of(optimizer)[0] not in optimizer.state
    params_of(optimizer)[0].grad = None
    optimizer.step()
    assert int(optimizer.stats.steps_taken) == 2


def test_a_frozen_float64_parameter_is_stepped_in_float64_once_it_has_a_gradient(device):
    optimizer = first_gradient_of("float64", device)
    optimizer.step()
    base = params_of(optimizer)[0]
    assert optimizer.state[base]["exp_avg"].dtype == torch.float64
    assert (base < 1).all()
    assert "'base' is float64" in optimizer.stats.backend


@pytest.mark.parametrize("door", ["construction", "wrap", "added group"])
def test_a_meta_parameter_that_is_to_be_trained_says_when_to_wrap(door, device):
    good, meta = torch.nn.Parameter(torch.ones(3, device=device)), torch.nn.Parameter(torch.ones(3, device="meta"))
    doors = {
        "construction": lambda: gradops.AdamW([("ghost", meta), ("good", good)]),
        "wrap": lambda: gradops.wrap(torch.optim.AdamW([("good", good), ("ghost", meta)])),
        "added group": lambda: gradops.AdamW([("good", good)]).add_param_group({"params": [("ghost", meta)]}),
    }
    with pytest.raises(RuntimeError, match="parameter of 'ghost' is on meta; wrap after materialising it"):
        doors[door]()
    with pytest.raises(RuntimeError, match="parameter of 'ghost' is on meta; wrap after materialising it"):
        gradops.AdamW([("ghost", meta)])


def test_state_of_a_frozen_parameter_waits_until_it_is_stepped_again(device):
    """A run resumed with a part of the model frozen, which is unfrozen later: torch goes on with the old moments."""
    optimizer, first, last = make(None, device)
    plain = torch.optim.AdamW([p.detach().clone().requires_grad_() for p in (first, last)], lr=0.1)
    for step, frozen in enumerate([False, True, False]):
        for each in (optimizer, plain):
            for param in params_of(each):
                param.grad = torch.full((5,), 0.1 * (step + 1), device=device)
            if frozen:
                params_of(each)[1].grad = None
            each.step()
        if step == 0:
            resumed, *_ = make(None, device)
            with torch.no_grad():
                for param, now in zip(params_of(resumed), params_of(optimizer), strict=True):
                    param.copy_(now)
            resumed.load_state_dict(optimizer.state_dict())
            optimizer = resumed
    for mine, theirs in zip(params_of(optimizer), params_of(plain), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)
        assert float(optimizer.state[mine]["step"]) == float(plain.state[theirs]["step"])


@pytest.mark.parametrize(
    ("entry", "settings"), [("master", {"master_weights": True}), ("compensation", {"rounding": "kahan"})]
)
def test_grown_parameters_say_which_entry_of_their_state_to_delete(entry, settings, device):
    """Densification: a bigger parameter takes the old one's place, and the user grows its moments."""
    param = torch.nn.Parameter(torch.ones(4, 3, dtype=torch.bfloat16, device=device))
    optimizer = gradops.AdamW([("points", param)], lr=0.1, **settings)
    param.grad = torch.ones_like(param)
    optimizer.step()
    grown = torch.nn.Parameter(torch.cat([param.detach(), param.detach()[:2]]))
    state = optimizer.state.pop(param)
    for key in ("exp_avg", "exp_avg_sq"):
        state[key] = torch.cat([state[key], torch.zeros_like(state[key][:2])])
    optimizer.state[grown] = state
    optimizer.param_groups[0]["params"][0] = grown
    grown.grad = torch.ones_like(grown)
    before = snapshot(optimizer)
    message = (
        rf"{entry} of 'points' has shape \[4, 3\], its parameter \[6, 3\]; delete this entry of its state, so that"
    )
    with pytest.raises(RuntimeError, match=message):
        optimizer.step()
    assert_bitwise(snapshot(optimizer), before)
    del optimizer.state[grown][entry]
    optimizer.step()
    assert optimizer.state[grown][entry].shape == (6, 3)
    assert (grown < 1).all()
    assert float(optimizer.state[grown]["step"]) == 2

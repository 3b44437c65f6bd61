"""Parameters that no step can take are refused by name."""

import pytest
import torch
from beside import assert_bitwise, snapshot
from refused import make

import gradops

pytestmark = pytest.mark.usefixtures("backend")

BAD_PARAMS = {
    "complex": lambda: torch.ones(3, dtype=torch.complex64).requires_grad_(),
    "sparse": lambda: torch.ones(3, 3).to_sparse().requires_grad_(),
}


@pytest.mark.parametrize("kind", BAD_PARAMS)
def test_parameter_that_cannot_be_fused_is_named_at_construction(kind):
    named = [("good", torch.ones(2).requires_grad_()), ("bad.weight", BAD_PARAMS[kind]())]
    with pytest.raises((TypeError, ValueError, RuntimeError), match=r"bad\.weight"):
        gradops.AdamW(named)
    try:
        optimizer = torch.optim.AdamW(named)
    except ValueError:
        return  # torch itself refuses some
    with pytest.raises((TypeError, ValueError, RuntimeError), match=r"bad\.weight"):
        gradops.wrap(optimizer)
    assert type(optimizer) is torch.optim.AdamW


@pytest.mark.parametrize("kind", ["complex"])
def test_added_group_that_cannot_be_fused_is_refused_and_not_added(kind):
    optimizer = gradops.AdamW([("good", torch.ones(2).requires_grad_())])
    with pytest.raises((TypeError, ValueError, RuntimeError), match=r"bad\.weight"):
        optimizer.add_param_group({"params": [("bad.weight", BAD_PARAMS[kind]())]})
    assert len(optimizer.param_groups) == 1


def test_moment_replaced_by_one_of_another_shape_is_refused(device):
    optimizer, param = make(gradops.AdamW, device)
    optimizer.step()
    optimizer.state[param]["exp_avg"].data = torch.zeros(7, device=device)
    before = snapshot(optimizer)
    with pytest.raises(RuntimeError, match=r"exp_avg of 'layer\.weight' has shape.*7.*5"):
        optimizer.step()
    assert_bitwise(snapshot(optimizer), before)


@pytest.mark.parametrize("offset", [0, 3])
def test_parameter_whose_memory_was_freed_between_steps_is_refused(offset, device):
    param = torch.ones(8, device=device)[offset : offset + 5].requires_grad_()
    optimizer = gradops.AdamW([("layer.weight", param)])
    param.grad = torch.ones(5, device=device)
    optimizer.step()
    param.untyped_storage().resize_(0)
    with pytest.raises(RuntimeError, match=r"parameter of 'layer\.weight' has no memory"):
        optimizer.step()


def test_inference_parameter_is_refused(device):
    with torch.inference_mode():
        param = torch.ones(5, device=device)
    optimizer = gradops.AdamW([("layer.weight", param)])
    param.grad = torch.ones(5, device=device)
    with pytest.raises(RuntimeError, match=r"parameter of 'layer\.weight' is an inference tensor"):
        optimizer.step()


def test_expanded_parameter_is_refused(device):
    param = torch.ones(1, device=device).expand(5).detach().requires_grad_()

    def build_and_step():
        optimizer = gradops.AdamW([("wide", param)])
        param.grad = torch.ones(5, device=device)
        optimizer.step()

    with pytest.raises((RuntimeError, ValueError), match=r"wide.*(share memory|overlap)"):
        build_and_step()


@pytest.mark.filterwarnings("ignore:optimizer contains a parameter group with duplicate parameters")
def test_parameter_twice_in_one_group_is_refused():
    param = torch.ones(3).requires_grad_()
    with pytest.raises(ValueError, match=r"(?i)duplicate|more than once|twice"):
        gradops.AdamW([param, param])
    optimizer = torch.optim.AdamW([param, param])
    with pytest.raises(ValueError, match=r"(?i)duplicate|more than once|twice"):
        gradops.wrap(optimizer)


def test_parameter_in_two_groups_is_refused():
    param = torch.ones(3).requires_grad_()
    with pytest.raises(ValueError, match="more than one parameter group"):
        gradops.AdamW([{"params": [param]}, {"params": [param]}])


def test_parameters_on_several_devices_are_refused_or_run(device):
    params = [
        ("here", torch.ones(3, device=device).requires_grad_()),
        ("there", torch.ones(3, device="meta").requires_grad_()),
    ]
    with pytest.raises(RuntimeError, match="parameter of 'there' is on meta; wrap after materialising it"):
        gradops.AdamW(params)

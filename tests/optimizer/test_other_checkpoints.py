"""Checkpoints and state dicts of something else: one sentence says of what, and nothing has changed."""

import copy

import pytest
import torch
from beside import assert_bitwise, snapshot

import gradops


def trained(width=8, last=1, cls=gradops.AdamW, seed=1, **options):
    torch.manual_seed(seed)
    model = torch.nn.Sequential(
        torch.nn.Linear(4, width), *(torch.nn.Linear(width, 1 if row else width) for row in range(last))
    )
    optimizer = cls(model.named_parameters(), lr=0.1, **options)
    model(torch.ones(2, 4)).sum().backward()
    optimizer.step()
    return model, optimizer


def refused(path, model, optimizer, sentence, **extra):
    before = snapshot(optimizer)
    with pytest.raises(ValueError, match=sentence):
        gradops.load_checkpoint(path, model, optimizer, **extra)
    assert_bitwise(snapshot(optimizer), before)


@pytest.fixture
def path(tmp_path):
    gradops.save_checkpoint(tmp_path, *trained(seed=0))
    return tmp_path


def test_another_models_shapes(path):
    refused(
        path,
        *trained(width=16),
        r"another model: model\.0\.weight is \[8, 4\] there, \[16, 4\] here, and 3 more differ$",
    )


def test_a_layer_that_only_one_of_the_two_has(path):
    refused(path, *trained(last=2), r"another model: it lacks model\.2\.bias and 1 more$")
    refused(path, *trained(last=0), r"another model: it also has model\.1\.bias and 1 more$")


def test_another_optimizer(path, tmp_path):
    refused(
        path, *trained(amsgrad=True), r"another optimizer.*: it lacks optimizer\.state\.0\.bias\.max_exp_avg_sq and"
    )
    gradops.save_checkpoint(tmp_path / "sgd", *trained(cls=torch.optim.SGD, momentum=0.9))
    refused(tmp_path / "sgd", *trained(), r"another optimizer.*: it lacks optimizer\.")


def test_a_scheduler_that_was_not_saved(path):
    model, optimizer = trained()
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    refused(path, model, optimizer, "saved without scheduler; leave scheduler out of the call$", scheduler=scheduler)


def test_an_object_that_has_no_state_is_not_missed(path):
    class Stateless:
        def state_dict(self):
            return {}

        def load_state_dict(self, state):
            assert not state

    gradops.load_checkpoint(path, *trained(), scheduler=Stateless())


def test_a_file_where_a_folder_is_meant(tmp_path):
    model, optimizer = trained()
    file = tmp_path / "model.pt"
    torch.save(model.state_dict(), file)
    for act in (gradops.save_checkpoint, gradops.load_checkpoint):
        with pytest.raises(
            NotADirectoryError, match=r"model\.pt is a file, and a checkpoint is a folder: pass .*torch\.load"
        ):
            act(file, model, optimizer)


@pytest.mark.parametrize("options", [{}, {"momentum": 0.9}])
def test_sgds_state_dict(options):
    _, sgd = trained(cls=torch.optim.SGD, **options)
    _, optimizer = trained()
    before = snapshot(optimizer)
    with pytest.raises(ValueError, match="no Adam's: its group 0 has no betas; load the model's weights alone"):
        optimizer.load_state_dict(sgd.state_dict())
    assert_bitwise(snapshot(optimizer), before)


def test_a_state_dict_of_adams_kin():
    """Adamax has Adam's groups and another state."""
    _, optimizer = trained()
    with pytest.raises(ValueError, match="no Adam's: its parameter 0 has no exp_avg_sq"):
        optimizer.load_state_dict(trained(cls=torch.optim.Adamax)[1].state_dict())


def test_what_a_hook_makes_of_another_optimizers_state_dict_counts():
    _, sgd = trained(cls=torch.optim.SGD)
    _, optimizer = trained()
    adams = copy.deepcopy(optimizer.state_dict())
    optimizer.register_load_state_dict_pre_hook(lambda *_: adams)
    optimizer.load_state_dict(sgd.state_dict())

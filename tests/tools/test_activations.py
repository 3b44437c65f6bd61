"""A recorder's view of the layers: what is watched, when, and that training is left as it is."""

import math

import numpy as np
import pytest
import torch
from activation_oracle import expected
from torch import nn
from torch.utils.checkpoint import checkpoint

import gradops
from gradops.record.activations import histogram_edges


class Net(nn.Module):
    """Every kind of output: tensors, tuples of tensors, dictionaries, whole numbers."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(10, 6)
        self.lstm = nn.LSTM(6, 5, batch_first=True)
        self.block = nn.Sequential(nn.Linear(5, 8), nn.GELU(), nn.Dropout(0.25), nn.Identity())
        self.choose = Choose()
        self.head = nn.Linear(8, 3)

    def forward(self, tokens):
        hidden, _ = self.lstm(self.embed(tokens))
        features = self.block(hidden)
        self.choose(features)
        return self.head(features)


class Choose(nn.Module):
    def forward(self, x):
        return {"largest": x.argmax(-1), "smallest": x.argmin(-1)}


TOKENS = torch.arange(12).reshape(3, 4) % 10


def make(seed=0):
    torch.manual_seed(seed)
    model = Net()
    return model, gradops.AdamW(model.named_parameters(), lr=1e-2)


def step(model, optimizer, forward=None):
    outputs = (forward or model)(TOKENS)
    optimizer.backward(outputs.square().mean())
    optimizer.step()
    optimizer.zero_grad()


def outputs_of(model, names):
    """What the modules put out, by hooks of the test's own; tuples by their first tensor."""
    seen = {}

    def note(name):
        def hook(module, args, output):
            seen[name] = (output[0] if isinstance(output, tuple) else output).detach().clone()

        return hook

    for name in names:
        model.get_submodule(name).register_forward_hook(note(name))
    return seen


def is_the_record_of(run, index, seen):
    for place, layer in enumerate(run.layers):
        if layer not in seen:
            assert np.isnan(run.activation_mean[index, place])
            assert run.activation_histogram[index, place].sum() == 0
            continue
        (mean, std, abs_max), counts = expected(seen[layer])
        assert run.activation_mean[index, place] == pytest.approx(mean, rel=1e-5, abs=1e-7)
        assert run.activation_std[index, place] == pytest.approx(std, rel=1e-5)
        assert run.activation_abs_max[index, place] == np.float32(abs_max)
        assert run.activation_near_zero[index, place] == pytest.approx(counts[1] / counts[0])
        assert run.activation_negative[index, place] == pytest.approx(counts[2] / counts[0])
        assert run.activation_nonfinite[index, place] == counts[3]
        assert run.activation_histogram[index, place].tolist() == counts[4:]


def test_leaves_are_watched_and_their_first_tensor_is_measured():
    model, optimizer = make()
    recorder = gradops.Recorder(optimizer, model)
    layers = ["embed", "lstm", "block.0", "block.1", "block.2", "head"]
    seen = outputs_of(model, layers)
    step(model, optimizer)
    run = recorder.run()
    assert run.layers == ["embed", "lstm", "block.0", "block.1", "block.2", "choose", "head"]
    is_the_record_of(run, 0, seen)


def test_chosen_modules_are_watched_in_the_order_given():
    model, optimizer = make()
    recorder = gradops.Recorder(optimizer, model, modules=["head", "block"])
    seen = outputs_of(model, ["block", "head"])
    step(model, optimizer)
    assert recorder.run().layers == ["head", "block"]
    is_the_record_of(recorder.run(), 0, seen)


def test_evaluation_is_not_recorded():
    model, optimizer = make()
    recorder = gradops.Recorder(optimizer, model)
    model(TOKENS)
    model.eval()
    model(TOKENS * 0)
    model.train()
    with torch.no_grad():
        model(TOKENS * 0)
    mine = recorder._watch._seen[0][0].clone()
    step(model, optimizer)
    assert recorder.run().activation_mean[0, 0] == mine[0]


def test_replicas_of_a_module_that_share_its_hooks_are_not_recorded():
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
    optimizer = gradops.AdamW(model.named_parameters())
    recorder = gradops.Recorder(optimizer, model)
    output = model(torch.ones(1, 2))
    model[1]._replicate_for_data_parallel()(torch.full((1, 3), 1e6))
    optimizer.backward(output.sum())
    optimizer.step()
    assert recorder.run().activation_abs_max[0, 1] == output.max().item()


def test_every_kth_step_is_sampled_and_the_others_say_nothing():
    model, optimizer = make()
    recorder = gradops.Recorder(optimizer, model, activations_every=3, capacity=4)
    for _ in range(8):
        step(model, optimizer)
    run = recorder.run()
    measured = ~np.isnan(run.activation_mean[:, 0])
    assert measured.tolist() == [index % 3 == 0 for index in range(8)]
    assert (run.activation_histogram.sum((1, 2)) > 0).tolist() == measured.tolist()


def test_last_pass_before_the_step_counts():
    model, optimizer = make()
    recorder = gradops.Recorder(optimizer, model)
    seen = outputs_of(model, recorder._watch.layers[:-2])
    for tokens in (TOKENS * 0, TOKENS):
        optimizer.backward(model(tokens).square().mean() / 2)
    optimizer.step()
    run = recorder.run()
    for layer in ("embed", "lstm"):
        assert run.activation_abs_max[0, run.layers.index(layer)] == seen[layer].abs().max()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_is_recorded_in_its_own_precision(dtype):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    optimizer = gradops.AdamW(model.named_parameters())
    recorder = gradops.Recorder(optimizer, model)
    with torch.autocast("cpu", dtype=dtype):
        output = model(torch.randn(4, 6) * 100)
    optimizer.backward(output.float().sum())
    optimizer.step()
    assert output.dtype == dtype
    assert recorder.run().activation_abs_max[0, 2] == output.abs().max().item()


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed_training_is_recorded_and_keeps_its_bits(reentrant):
    def forward_of(model):
        def forward(tokens):
            hidden = model.lstm(model.embed(tokens))[0]
            return model.head(checkpoint(model.block, hidden, use_reentrant=reentrant))

        return forward

    plain, recorded = make(), make()
    recorder = gradops.Recorder(recorded[1], recorded[0])
    for model, optimizer in (plain, recorded):
        torch.manual_seed(1)
        for _ in range(3):
            step(model, optimizer, forward_of(model))
    for param, other in zip(plain[0].parameters(), recorded[0].parameters(), strict=True):
        assert torch.equal(param, other)
    assert not np.isnan(recorder.run().activation_mean[:, [0, 1, 2, 3, 4, 6]]).any()


def test_recording_keeps_no_graph_alive_and_changes_no_bit():
    plain, recorded = make(), make()
    recorder = gradops.Recorder(recorded[1], recorded[0], capacity=2)
    for model, optimizer in (plain, recorded):
        torch.manual_seed(1)
        for _ in range(5):
            step(model, optimizer)
    for param, other in zip(plain[0].parameters(), recorded[0].parameters(), strict=True):
        assert torch.equal(param, other)
    recorded[0](TOKENS)
    assert not any(tensor.requires_grad for pair in recorder._watch._seen.values() for tensor in pair)


def test_inf_and_nan_in_one_layer_are_seen_there():
    model, optimizer = make()
    recorder = gradops.Recorder(optimizer, model)
    step(model, optimizer)
    with torch.no_grad():
        model.block[0].weight[0] = math.inf
    step(model, optimizer)
    run = recorder.run()
    place = run.layers.index("block.0")
    assert run.activation_nonfinite[1, place] == 12
    assert run.activation_nonfinite[1, :place].sum() == 0
    assert run.activation_histogram[1, place].sum() == 12 * 7
    assert np.isfinite(run.activation_std[1, place])


def test_float64_outputs_are_measured_and_sparse_or_complex_ones_are_left_alone():
    class Odd(nn.Module):
        def __init__(self, change):
            super().__init__()
            self.change = change

        def forward(self, x):
            self.change(x)
            return self.change(x)

    weight = nn.Parameter(torch.ones(3))
    changes = [torch.Tensor.double, torch.Tensor.to_sparse, lambda x: x * 1j, lambda x: (x * 1j).conj().imag]
    model = nn.Sequential(*[Odd(change) for change in changes])
    optimizer = gradops.AdamW([weight])
    recorder = gradops.Recorder(optimizer, model)
    for module in model:
        module(weight * 2)
    optimizer.backward(weight.sum())
    optimizer.step()
    run = recorder.run()
    assert run.activation_mean[0, 0] == 2
    assert np.isnan(run.activation_mean[0, 1:]).all()


def test_compiled_model_trains_with_a_recorder():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    optimizer = gradops.AdamW(model.named_parameters())
    recorder = gradops.Recorder(optimizer, model)
    compiled = torch.compile(model, backend="aot_eager")
    inputs = torch.randn(4, 6)
    optimizer.backward(compiled(inputs).square().sum())
    first = model[0](inputs)
    optimizer.step()
    assert recorder.run().activation_abs_max[0, 0] == pytest.approx(first.abs().max().item())


def test_edges_are_symmetric_and_ascending_with_zero_in_the_middle():
    edges = np.array(histogram_edges())
    assert (np.diff(edges) > 0).all()
    assert (edges == -edges[::-1]).all()
    assert edges[len(edges) // 2] == 0
    assert edges[-1] == 2.0**16
    positive = edges[edges > 0]
    assert (positive[1:] / positive[:-1] == 2).all()

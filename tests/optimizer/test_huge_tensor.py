"""A tensor whose elements 32 bits cannot count."""

import gc

import psutil
import pytest
import torch
from beside import assert_same_bits

import gradops

NUMEL = 2**31 + 4_099
NEEDED = 20e9
# Where a 32-bit count goes wrong: the ends, and around 2^31.
PLACES = [slice(0, 100), slice(2**31 - 70, 2**31 + 70), slice(NUMEL - 100, NUMEL)]


def values_at(place, seed):
    generator = torch.Generator().manual_seed(seed + place.start % 1000)
    return torch.randn(place.stop - place.start, generator=generator).bfloat16()


@pytest.mark.slow
@pytest.mark.skipif(psutil.virtual_memory().available < NEEDED, reason="needs 20 GB of memory")
def test_elements_beyond_32_bits_are_stepped_as_those_of_a_small_tensor():
    options = {"lr": 0.1, "weight_decay": 0.1, "moments_dtype": torch.bfloat16, "clip_value": 2.0}
    huge = torch.nn.Parameter(torch.ones(NUMEL, dtype=torch.bfloat16))
    huge.grad = torch.zeros(NUMEL, dtype=torch.bfloat16)
    small = torch.nn.Parameter(torch.ones(sum(place.stop - place.start for place in PLACES), dtype=torch.bfloat16))
    small.grad = torch.cat([values_at(place, 1) for place in PLACES])
    with torch.no_grad():
        small.copy_(torch.cat([values_at(place, 0) for place in PLACES]))
        for place in PLACES:
            huge[place], huge.grad[place] = values_at(place, 0), values_at(place, 1)
    # The one norm of both, since the rest of the huge gradient is 0.
    optimizers = [gradops.AdamW([param], max_norm=5.0, **options) for param in (huge, small)]
    for optimizer in optimizers:
        optimizer.step()
    assert float(optimizers[0].stats.grad_norm) == pytest.approx(float(optimizers[1].stats.grad_norm), rel=1e-6)
    assert int(optimizers[0].stats.nonfinite.sum()) == 0
    for name in ("param", "exp_avg", "exp_avg_sq"):
        of_huge, of_small = (
            param.detach() if name == "param" else optimizer.state[param][name]
            for param, optimizer in zip((huge, small), optimizers, strict=True)
        )
        assert_same_bits(torch.cat([of_huge[place] for place in PLACES]), of_small, name)
    assert huge[200].item() == pytest.approx(0.99, abs=0.004)  # decayed, and not moved otherwise
    huge.grad[NUMEL - 1] = float("inf")
    optimizers[0].step()
    assert int(optimizers[0].stats.steps_skipped) == 1
    del huge, optimizers
    gc.collect()

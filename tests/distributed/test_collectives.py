"""What a sharded step costs besides its kernels: one gathering, and no waiting on the host."""

import layouts
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import gradops
from gradops.distributed import gather


class _Waits(TorchDispatchMode):
    """Counts the operators that hand a device's value to Python."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten._local_scalar_dense.default or func is torch.ops.aten.nonzero.default
        return func(*args, **(kwargs or {}))


def watched_steps(layout, world, settings):
    """For each step the elements that gatherings send and the values that Python waits for."""
    sent = []
    all_gather = gather.all_gather

    def counted(out, numbers, group):
        sent[-1].append(numbers.numel())
        all_gather(out, numbers, group=group)

    gather.all_gather = counted
    try:
        # A backend in Python, since native code for the CPU may read what lies on the CPU.
        where = layouts.placements_of(layout, world)
        params = [
            torch.nn.Parameter(layouts.spread(value, where(index)))
            for index, value in enumerate(layouts.parameters(shapes=layouts.SMALL))
        ]
        optimizer = gradops.AdamW(params, backend=layouts.IN_PYTHON, **settings)
        waits = []
        for step in range(3):
            sent.append([])
            for index, grad in enumerate(layouts.gradients(step, shapes=layouts.SMALL)):
                params[index].grad = layouts.spread(grad, where(index))
            optimizer.scale(torch.zeros(()))
            with _Waits() as mode:
                optimizer.step()
            waits.append(mode.count)
        return sent, waits
    finally:
        gather.all_gather = all_gather


def test_a_step_gathers_once_a_few_numbers_a_parameter_and_waits_for_nothing(workers):
    settings = {"max_norm": 1.0, "max_relative_step": 0.1, "loss_scale": "dynamic"}
    for sent, waits in workers.run(2, watched_steps, "replicated_beside", 2, settings):
        assert sent == [[4 * (len(layouts.SMALL) + 1)]] * 3
        assert waits[1:] == [0, 0]


def test_clipping_by_units_and_tracking_gather_once_more_and_wait_for_nothing(workers):
    settings = {"clip_mode": "agc", "max_norm": 0.01, "track_updates": True, "loss_scale": "dynamic"}
    columns = len(layouts.SMALL) + 1
    for sent, waits in workers.run(2, watched_steps, "replicated_beside", 2, settings):
        assert sent == [[5 * columns, 3 * columns]] * 3
        assert waits[1:] == [0, 0]


def test_without_a_cap_the_sizes_of_parameters_do_not_travel(workers):
    for sent, _ in workers.run(2, watched_steps, "fsdp", 2, {}):
        assert sent == [[3 * (len(layouts.SMALL) + 1)]] * 3

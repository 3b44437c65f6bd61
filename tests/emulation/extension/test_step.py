"""The emulated CUDA step against the oracle: every dtype, layout, option, size and schedule."""

import pytest
import torch
from beside import Beside, assert_bitwise, assert_same_bits, params_of, snapshot
from cases import ParamCase, draw_grad, group_options, param_cases, sequences, settings_of_the_step
from hypothesis import given
from hypothesis import strategies as st
from rules import CLASSES
from watched import PIECE, REGISTER_SLOTS, WARPS, Watched, element_bytes

import gradops

GUARDS = [
    gradops.SpikeGuard("skip", warmup_steps=3),
    gradops.SpikeGuard("clip", ratio=1.0, z_score=3.0, min_lr_factor=0.3, history=4, warmup_steps=2),
]


def forms():
    """Grids, launch forms and how much is parked; a seed for each schedule."""
    return st.fixed_dictionaries(
        {
            "blocks": st.integers(1, 4),
            "one_launch": st.booleans(),
            "shared_slots": st.integers(0, 2),
            "inline_params": st.booleans(),
            "seed": st.integers(0, 2**32),
        }
    )


@pytest.mark.parametrize("cls", CLASSES)
@given(data=st.data(), form=forms(), seed=st.integers(0, 2**32))
def test_any_sequence_of_steps_equals_the_oracle(cls, data, form, seed):
    torch.manual_seed(seed)
    cases = data.draw(st.lists(param_cases(), min_size=1, max_size=5))
    settings = data.draw(settings_of_the_step(cls))
    cut = data.draw(st.integers(1, len(cases)))
    params = [case.param() for case in cases]
    groups = [{"params": part, **data.draw(group_options(cls))} for part in (params[:cut], params[cut:]) if part]
    optimizer = cls(groups, **settings)
    Watched(optimizer, **form)
    both = Beside(optimizer, **settings)
    for events in data.draw(sequences(len(cases), max_steps=3)):
        both.step([draw_grad(case, event, both.oracle.scale) for case, event in zip(cases, events, strict=True)])


@pytest.mark.parametrize("guard", GUARDS)
@given(form=forms(), seed=st.integers(0, 2**32), max_relative_step=st.sampled_from([None, 0.05]))
def test_guarded_steps_equal_the_oracle(guard, form, seed, max_relative_step):
    torch.manual_seed(seed)
    settings = {"guard": guard, "max_relative_step": max_relative_step, "max_norm": 2.0}
    cases = [ParamCase((31, 33)), ParamCase((PIECE + 1,), torch.bfloat16)]
    optimizer = gradops.AdamW([case.param() for case in cases], lr=0.1, **settings)
    Watched(optimizer, **form)
    both, steps = Beside(optimizer, **settings), []
    for scale in (1.0, 0.9, 1.1, 60.0, 1.0, float("inf"), 0.5, 80.0, 1.0):
        steps.append(both.step([case.grad(scale) for case in cases]))
    assert sum(step.guarded for step in steps) >= 2
    assert min(step.lr_factor for step in steps) < 1.0
    assert sum(step.found_inf for step in steps) == 1


def step_all(cases, form, settings, options, events=("grad",) * 2, seed=3, cls=gradops.AdamW):
    """Everything a sequence of steps leaves: parameters, state, stats, and the reports of the last step."""
    torch.manual_seed(seed)
    optimizer = cls([case.param() for case in cases], **options, **settings)
    plan = Watched(optimizer, **form)
    for event in events:
        for param, case in zip(params_of(optimizer), cases, strict=True):
            param.grad = draw_grad(case, event)
        optimizer.step()
    return snapshot(optimizer), [buffer.clone() for buffer in optimizer.engine.buffers.all()], plan


HOSTILE = [
    ParamCase((0,)),
    ParamCase((1,)),
    ParamCase((PIECE * 17 + 5,)),
    ParamCase((PIECE,), layout="misaligned"),
    ParamCase((PIECE * 3,), torch.bfloat16, grad_dtype=torch.bfloat16),
    ParamCase((PIECE + 12,), grad_dtype=torch.float16),
    ParamCase((PIECE * 5 + 8,), grad_layout="misaligned"),
    ParamCase((37, 29), layout="transposed"),
    ParamCase((PIECE * 40,)),
]
FORMS = [
    {"blocks": blocks, "one_launch": one_launch, "shared_slots": slots, "seed": seed}
    for blocks, one_launch, slots, seed in [
        (1, False, 0, 0), (1, True, 0, 5), (2, True, 1, 6), (3, True, 3, 7), (5, False, 0, 8), (7, True, 0, 9)
    ]
]  # fmt: skip


@pytest.mark.parametrize("event", ["grad", float("nan")])
def test_same_bits_for_every_grid_launch_form_and_schedule(event):
    settings = {"max_norm": 1.0, "max_relative_step": 0.05, "clip_value": 2.0, "track_updates": True}
    options = {"amsgrad": True, "weight_decay": 0.1}
    expected, expected_stats, _ = step_all(HOSTILE, FORMS[0], settings, options, ("grad", event, "grad"))
    for form in FORMS[1:]:
        left, stats, _ = step_all(HOSTILE, form, settings, options, ("grad", event, "grad"))
        assert_bitwise(left, expected)
        for mine, theirs in zip(stats, expected_stats, strict=True):
            assert_same_bits(mine, theirs)


@pytest.mark.parametrize("one_launch", [True, False])
@pytest.mark.parametrize("seed", range(2))
def test_rows_of_many_chunks_wait_for_each_others_scratch(seed, one_launch):
    """Behind four chunks a whole block merges a row's sums in scratch memory, one row after another.

    A barrier that is missing there is for ThreadSanitizer to see (`make test-emulated-sanitized`).
    """
    cases = [ParamCase((41_037,)), ParamCase((PIECE * 70,)), ParamCase((PIECE * 90 + 3,))]
    settings = {"max_norm": 1.0, "max_relative_step": 0.05}
    optimizer = gradops.AdamW([case.param() for case in cases], lr=10.0, **settings)
    Watched(optimizer, blocks=1, one_launch=one_launch, seed=seed)
    both = Beside(optimizer, **settings)
    for size in (1.0, 100.0):
        both.step([case.grad(size * 10.0**row) for row, case in enumerate(cases)])


def measured_norm(case, norm_type):
    optimizer = gradops.Adam([case.param()], max_norm=1.0, norm_type=norm_type)
    Watched(optimizer)
    torch.manual_seed(6)
    params_of(optimizer)[0].grad = case.grad()
    optimizer.step()
    return optimizer.stats.grad_norm


@pytest.mark.parametrize("norm_type", [2.0, 1.0, 3.0, float("inf")])
@pytest.mark.parametrize("layout", ["contiguous", "misaligned", "strided"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_norms_hang_on_values_and_not_on_where_they_lie(dtype, layout, norm_type):
    shape = (PIECE * 2 + 24,)
    norm = measured_norm(ParamCase(shape, dtype, grad_layout=layout), norm_type)
    assert_same_bits(norm, measured_norm(ParamCase(shape), norm_type))


@pytest.mark.parametrize("blocks", [1, 3])
def test_tables_cost_a_few_bytes_a_piece(blocks):
    cases = [ParamCase((PIECE * 40 + 3,)), ParamCase((7,))]
    _, _, plan = step_all(cases, {"blocks": blocks, "seed": 5}, {"max_norm": 1.0}, {})
    pieces, chunks = 42, 4
    traffic = plan.reports[0].traffic
    of_pieces, piece_stats, grad_sums = (traffic[f"{size} bytes"] for size in (8 * pieces, 16 * pieces, 32 * chunks))
    # All lanes of a warp read a piece's place at once, which a GPU does as one access; once in each phase.
    assert of_pieces.load_bytes == 8 * (2 * 32 * pieces + chunks)
    assert piece_stats.store_bytes == piece_stats.load_bytes == 16 * pieces
    assert grad_sums.store_bytes == 32 * chunks
    assert grad_sums.load_bytes == 32 * chunks * (blocks + 1)  # every block decides; rows are finished once


@pytest.mark.parametrize("amsgrad", [False, True])
@pytest.mark.parametrize(("dtype", "parked"), [(torch.float32, 28), (torch.bfloat16, 22), (torch.float16, 22)])
def test_bytes_are_those_of_one_read_of_what_is_parked(dtype, parked, amsgrad):
    numel = PIECE * 64
    case = ParamCase((numel,), dtype, grad_dtype=dtype)
    width = dtype.itemsize
    for blocks, slots, reread_pieces in [(2, 0, 0), (1, 0, 0), (3, 1, 0)]:
        form = {"blocks": blocks, "shared_slots": slots, "seed": 11}
        _, _, plan = step_all([case], form, {"max_norm": 1.0}, {"amsgrad": amsgrad})
        assert len(plan.reports) == 1
        assert element_bytes(plan.reports) == numel * (parked + 8 * amsgrad) + reread_pieces * PIECE * width


@pytest.mark.parametrize(("grad_dtype", "parked"), [(torch.bfloat16, 28), (torch.float32, 30)])
def test_a_master_costs_its_read_and_write_and_one_write_of_the_parameter(grad_dtype, parked):
    numel = PIECE * 64
    case = ParamCase((numel,), torch.bfloat16, grad_dtype=grad_dtype)
    _, _, plan = step_all([case], {"seed": 11}, {"max_norm": 1.0, "master_weights": True}, {})
    (report,) = plan.reports
    assert element_bytes([report]) == numel * parked
    assert report.traffic["param"].load_bytes == 0
    assert report.traffic["param"].stores == numel // 8


@pytest.mark.parametrize(("dtype", "parked"), [(torch.float32, 20), (torch.bfloat16, 14)])
def test_bfloat16_moments_cost_8_bytes_less(dtype, parked):
    numel = PIECE * 64
    case = ParamCase((numel,), dtype, grad_dtype=dtype)
    _, _, plan = step_all([case], {"seed": 11}, {"max_norm": 1.0, "moments_dtype": torch.bfloat16}, {})
    (report,) = plan.reports
    assert element_bytes([report]) == numel * parked
    assert report.traffic["exp_avg"].loads == report.traffic["exp_avg"].stores == numel // 8


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_compensation_costs_one_read_and_one_write_of_it(dtype):
    numel = PIECE * 64
    case = ParamCase((numel,), dtype, grad_dtype=dtype)
    _, _, plan = step_all([case], {"seed": 11}, {"max_norm": 1.0, "rounding": "kahan"}, {})
    (report,) = plan.reports
    assert element_bytes([report]) == numel * 26
    assert report.traffic["compensation"].loads == report.traffic["compensation"].stores == numel // 8


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize(("dtype", "parked"), [(torch.float32, 28), (torch.bfloat16, 22)])
@pytest.mark.parametrize(("one_launch", "numel"), [(True, PIECE * 8), (False, PIECE * 64)])
def test_an_average_costs_one_read_and_one_write_where_it_moves(one_launch, numel, dtype, parked, every):
    """For Adam 36 bytes for a parked element, 40 for one that is read twice; nothing more where this step has none."""
    form = {"blocks": 1, "one_launch": one_launch, "shared_slots": 0, "seed": 4}
    settings = {"max_norm": 1.0, "ema": gradops.WeightEma(0.9, every=every)}
    *_, plan = step_all([ParamCase((numel,), dtype, grad_dtype=dtype)], form, settings, {})
    assert len(plan.reports) == (1 if one_launch else 3)
    read_twice = 0 if one_launch else dtype.itemsize
    moves = 8 if every == 1 else 0
    assert element_bytes(plan.reports) == (parked + moves + read_twice) * numel
    loads = sum(report.traffic["ema"].loads for report in plan.reports if "ema" in report.traffic)
    assert loads == (numel // 4 if moves else 0)


# Of a float32 element whose gradient is read twice.
BYTES = [
    (gradops.Adagrad, {}, 24),
    (gradops.Adam, {}, 32),
    (gradops.Adam, {"amsgrad": True}, 40),
    (gradops.Adamax, {}, 32),
    (gradops.LARS, {"momentum": 0.9, "weight_decay": 0.1}, 24),  # its norms are free
    (gradops.Lion, {}, 24),
    (gradops.NAdam, {}, 32),
    (gradops.RAdam, {}, 32),
    (gradops.RMSprop, {}, 24),
    (gradops.RMSprop, {"momentum": 0.9}, 32),
    (gradops.RMSprop, {"centered": True}, 32),
    (gradops.RMSprop, {"momentum": 0.9, "centered": True}, 40),
    (gradops.SGD, {}, 16),
    (gradops.SGD, {"momentum": 0.9}, 24),
]


@pytest.mark.parametrize(("cls", "options", "read_twice"), BYTES)
@pytest.mark.parametrize(("one_launch", "numel"), [(True, PIECE * 8), (False, PIECE * 64)])
def test_a_moment_costs_one_read_and_one_write(cls, options, read_twice, one_launch, numel):
    """Where the gradient is parked, 4 bytes less."""
    form = {"blocks": 1, "one_launch": one_launch, "shared_slots": 0, "seed": 4}
    *_, plan = step_all([ParamCase((numel,))], form, {"max_norm": 1.0}, {"lr": 0.1, **options}, cls=cls)
    expected = read_twice - 4 * one_launch
    assert element_bytes(plan.reports) == expected * numel


def test_bytes_of_every_rule_are_counted():
    assert {cls.rule.name for cls, *_ in BYTES} == {cls.rule.name for cls in CLASSES}


@pytest.mark.parametrize(("one_launch", "slots"), [(True, 0), (True, 2), (False, 0)])
@pytest.mark.parametrize("tail", [0, 4, 5])
@pytest.mark.parametrize("tracks", [False, True])
def test_bytes_of_what_is_not_parked_grow_by_one_read(one_launch, slots, tail, tracks):
    """Tracked updates park four slots less, and cost nothing else."""
    numel = PIECE * 100 + tail
    form = {"blocks": 1, "one_launch": one_launch, "shared_slots": slots, "seed": 4}
    settings = {"max_norm": 1.0, "track_updates": tracks}
    _, _, plan = step_all([ParamCase((numel,))], form, settings, {})
    assert len(plan.reports) == (1 if one_launch else 2 + tracks)
    parked = WARPS * (REGISTER_SLOTS - 4 * tracks + slots) * PIECE if one_launch else 0
    assert element_bytes(plan.reports) == 28 * numel + 4 * (numel - parked)
    for report in plan.reports:
        assert "grad" not in report.traffic or report.traffic["grad"].store_bytes == 0


PLACES = {"first": 0, "parked in registers": 700, "parked in shared memory": PIECE * WARPS * REGISTER_SLOTS + 9}


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
@pytest.mark.parametrize("place", [*PLACES, "read again", "last, in an odd tail"])
def test_nonfinite_anywhere_leaves_every_bit(place, value):
    numel = PIECE * WARPS * (REGISTER_SLOTS + 3) + 3
    at = PLACES.get(place, numel - 1 if place.startswith("last") else numel - PIECE * WARPS)
    cases = [ParamCase((5,)), ParamCase((numel,)), ParamCase((PIECE,))]
    optimizer = gradops.AdamW([case.param() for case in cases], max_norm=1.0)
    plan = Watched(optimizer, blocks=1, shared_slots=1)
    both = Beside(optimizer, max_norm=1.0)
    both.step([case.grad() for case in cases])
    before = snapshot(optimizer)
    grads = [case.grad() for case in cases]
    grads[1][at] = value
    both.step(grads)
    assert_bitwise(snapshot(optimizer), before)
    assert optimizer.stats.nonfinite.tolist() == [0, 1, 0]
    assert plan.reports[0].traffic["param"].store_bytes == 0


@pytest.mark.parametrize("norm_type", [1.0, 2.0, 3.0, 0.5])
@pytest.mark.parametrize("magnitude", [1e-30, 1e-20, 1e20, 1e30])
def test_huge_and_tiny_gradients_have_the_right_norm(norm_type, magnitude):
    case = ParamCase((PIECE * 3 + 1,), magnitude=magnitude)
    optimizer = gradops.Adam([case.param()], max_norm=1.0, norm_type=norm_type)
    Watched(optimizer)
    Beside(optimizer, max_norm=1.0, norm_type=norm_type).step([case.grad()])


def test_many_tiny_tensors():
    cases = [ParamCase((1 + i % 70,)) for i in range(600)]
    optimizer = gradops.AdamW([case.param() for case in cases], max_norm=1.0)
    Watched(optimizer, blocks=3)
    both = Beside(optimizer, max_norm=1.0)
    both.step([case.grad() for case in cases])
    both.step([None if i % 3 == 0 else case.grad() for i, case in enumerate(cases)])

"""A sharded step on the emulated kernels: without a race the unsharded step, and no byte more."""

import pytest
from layouts import train
from test_sharded_step import assert_equals_unsharded, assert_ranks_agree
from watched import PIECE, Watched, moved

import gradops

# Over two processes: several blocks, nothing on the second, a piece of odd size, a vector, filters, less than a piece.
SHAPES = [(40, 1031), (1, 7), (3 * PIECE + 5,), (600, 30), (4, 2, 3, 3), (9,)]
CASES = {
    "clip": (gradops.AdamW, {"max_norm": 0.5}),
    "cap and tracked": (gradops.AdamW, {"max_relative_step": 0.001, "track_updates": True}),
    "rule by norms": (gradops.LARS, {"max_norm": 1.0, "max_relative_step": 0.01}),
    "units": (gradops.AdamW, {"clip_mode": "agc", "max_norm": 0.01, "track_updates": True}),
}


def watched_train(layout, cls, settings):
    """What `train` returns, and the bytes of elements that the last step of this process moved, by array."""
    plans = []

    def make(groups, **options):
        optimizer = cls(groups, **options)
        plans.append(Watched(optimizer, blocks=3, one_launch=False, seed=5))
        return optimizer

    result = train(layout, 2, settings, cls=make, shapes=SHAPES)
    return result, moved(plans[0].reports)


@pytest.mark.parametrize("case", CASES)
def test_two_processes_take_the_whole_step_without_a_race_and_move_no_byte_more(workers, case):
    ranks = workers.run(2, watched_train, "fsdp", *CASES[case])
    expected, alone = watched_train(None, *CASES[case])
    results = [result for result, _ in ranks]
    assert_ranks_agree(results)
    assert_equals_unsharded(results[0], expected)
    assert all(result["backend"].endswith("2 ranks") for result in results)
    assert {name: sum(of_rank[name] for _, of_rank in ranks) for name in alone} == alone

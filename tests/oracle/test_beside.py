"""What the comparison with the oracle lets pass, and what it finds."""

import pytest
import tolerances as tol
import torch
from beside import assert_rounded

EXACT = {
    "near": 1.0 + 2.0**-12,
    "tie": 2.5 + 2.0**-10,
    "overflow": 65520.0,
    "infinite": 1e6,
    "subnormal": 2.5 * 2.0**-24,
}
STORED = {
    "near": [1.0],
    "tie": [2.5, 2.5 + 2.0**-9],
    "overflow": [65504.0, float("inf")],
    "infinite": [float("inf")],
    "subnormal": [2.0**-23, 1.5 * 2.0**-23],
}


@pytest.mark.parametrize("what", EXACT)
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_either_neighbour_of_a_tie_passes_and_no_other_value(what, sign):
    exact = torch.tensor([sign * EXACT[what]], dtype=torch.float64)
    right, right_ones = exact.half(), torch.tensor(STORED[what]).half()
    neighbours = [torch.nextafter(value, end) for value in right_ones for end in torch.tensor([0.0, torch.inf]).half()]
    for stored in {value.item() for value in (*right_ones, *neighbours)}:
        actual = torch.tensor([sign * stored], dtype=torch.float16)
        if stored in STORED[what]:
            assert_rounded(actual, right, exact, tol.PARAM, 0.0, what)
        else:
            with pytest.raises(AssertionError, match="1 of 1 are not what the exact value rounds to"):
                assert_rounded(actual, right, exact, tol.PARAM, 0.0, what)


def test_what_is_no_number_equals_itself_alone():
    nan, one = torch.tensor([torch.nan]).half(), torch.tensor([1.0]).half()
    assert_rounded(nan, nan, nan.double(), tol.PARAM, 0.0, "nan")
    for actual, expected in ((nan, one), (one, nan)):
        with pytest.raises(AssertionError, match="rounds to"):
            assert_rounded(actual, expected, expected.double(), tol.PARAM, 0.0, "nan")

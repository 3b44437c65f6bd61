"""The one table of tolerances: kernels work in float32, the oracle in float64; each row says what may differ and why.

Tests compare one step from the same stored bits (the oracle is set to the optimizer's values after each), so nothing
accumulates. `atol` is relative to the magnitude the row names.
"""

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Tolerance:
    rtol: float
    atol: float
    reason: str


FLOAT32_EPS = 2.0**-23

NORM = Tolerance(2e-6, 0.0, "float32 sums over fixed lanes of a chunk, merged in a tree")
CLAMPED_NORM = Tolerance(8e-6, 0.0, "of equal values all 256 additions of a lane may round one way")
POWER_NORM = Tolerance(2e-5, 0.0, "other p go through pow: p * log2(x) loses bits with its size")
UPDATE_RATIO = Tolerance(4e-6, 0.0, "two norms, one of them of float32 differences")
CLIP_COEF = Tolerance(2e-6, 0.0, "the norm's error, then one rounding to float32")
POWER_CLIP_COEF = Tolerance(2e-5, 0.0, "the same, from a norm by pow")
GUARD = Tolerance(2e-6, 4e-6, "a difference of norms; atol x the usual norm")
EXP_AVG = Tolerance(4e-6, 1e-6, "clip_coef's error, one lerp; atol x largest gradient: terms may cancel")
EXP_AVG_SQ = Tolerance(8e-6, 1e-38, "the square doubles clip_coef's error; below 1e-38 float32 is subnormal")
SCALAR = Tolerance(FLOAT32_EPS, 0.0, "one product, of a factor that may be rounded apart")
POWER_EXP_AVG = Tolerance(3e-5, 1e-6, "EXP_AVG with the error of a norm by pow")
POWER_EXP_AVG_SQ = Tolerance(6e-5, 1e-38, "EXP_AVG_SQ with the error of a norm by pow")
L2_EXP_AVG_SQ = Tolerance(
    6e-5, 1e-6, "decay and gradient may cancel before they are squared; atol x largest sum squared"
)
SCALED_BUFFER = Tolerance(1e-5, 1e-6, "EXP_AVG, times a quotient of two norms")
PARAM = Tolerance(2 * FLOAT32_EPS, 1e-4, "one rounding of the weight; atol x lr: division, sqrt, the moments' errors")
AVERAGE = Tolerance(0.0, 4 * FLOAT32_EPS, "one lerp by a rounded weight; atol x the larger of average and weight")
TORCH_FLOAT64 = Tolerance(1e-12, 1e-15, "oracle against torch, both in float64: the same formulas")
TORCH_FLOAT32 = Tolerance(2e-5, 1e-6, "20 steps against torch, which rounds after every operation")
ACTIVATION_MEAN = Tolerance(2e-6, 1e-7, "float32 sums of deviations; atol x largest value: terms cancel")
ACTIVATION_STD = Tolerance(4e-6, 1e-8, "float32 sums of squared deviations; atol x largest value: a float32's mean")


def power_norm(p):
    """Of the norm of this type: below 1 the root multiplies the sum's error."""
    return replace(POWER_NORM, rtol=POWER_NORM.rtol / min(1.0, p))

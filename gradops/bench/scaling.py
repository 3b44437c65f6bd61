"""Cost against work: the cases of `--scaling`."""

from collections.abc import Iterator

TENSORS = 100  # while parameters grow
PARAMS = 1_000_000  # while tensors grow
TENSOR_COUNTS = (10, 50, 100, 500, 1000, 5000, 10_000)  # divisors of PARAMS
_STEPS = (10**4, 10**5, 10**6, 10**7, 3 * 10**7, 10**8, 3 * 10**8)


def cases(most_params: float) -> Iterator[str]:
    """Names of shape lists, each once: parameters grow, then tensors."""
    for params in _STEPS:
        if params <= most_params:
            yield f"{TENSORS}x{params // TENSORS}"
    for tensors in TENSOR_COUNTS:
        if tensors != TENSORS:
            yield f"{tensors}x{PARAMS // tensors}"

"""The phases of a step as torch.ops.gradops runs them: on emulated kernels, without a race, as the CPU's own code."""

import itertools
import math
import os
import subprocess
import sys
from pathlib import Path

import emulator
import operators
import pytest
import torch
from beside import assert_same_bits
from watched import memory_of, watching

ROOT = Path(__file__).resolve().parents[3]


def watched_call(operator, *args, **options):
    """Calls it; only what its schema says may be written."""
    arguments = {argument.name: argument for argument in operator.default._schema.arguments}
    written, read = [], []
    for name, value in [*zip(arguments, args, strict=False), *options.items()]:
        tensors = value if isinstance(value, list) else [value] if isinstance(value, torch.Tensor) else []
        alias = arguments[name].alias_info
        (written if alias is not None and alias.is_write else read).extend(map(memory_of, tensors))
    with watching(seed=7, written=written, read=[*map(emulator.read_only, read)]) as launches:
        result = operator(*args, **options)
    assert launches
    assert [launch.faults for launch in launches] == [[]] * len(launches)
    return result


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """What the build for CPUs gives, which needs a process of its own."""
    path = tmp_path_factory.mktemp("operators") / "cpu.pt"
    of_this = ("LD_PRELOAD", "GRADOPS_EMULATED_FORM")
    environment = {name: value for name, value in os.environ.items() if name not in of_this}
    environment["PYTHONPATH"] = os.pathsep.join(map(str, (ROOT, ROOT / "tests", ROOT / "tests" / "oracle")))
    subprocess.run([sys.executable, operators.__file__, path], env=environment, check=True)
    return torch.load(path)


@pytest.fixture(scope="module")
def emulated():
    return operators.results(watched_call)


# Sums are taken in another order; of bfloat16 what is stored may then be its neighbour.
TOLERANCES = {"statistics": 2e-6, "clipped": 4e-6, "unscaled": 0.0, "updated": 0.0, "loss scale": 0.0}


@pytest.mark.parametrize("what", TOLERANCES)
def test_an_operator_gives_what_the_cpus_does(expected, emulated, what):
    names = [name for name in expected if name.startswith(what)]
    assert names
    assert expected.keys() == emulated.keys()
    for mine, theirs in itertools.chain(*(zip(emulated[name], expected[name], strict=True) for name in names)):
        rtol = TOLERANCES[what]
        rtol = 2**-7 if rtol and mine.dtype == torch.bfloat16 else rtol
        torch.testing.assert_close(mine, theirs, rtol=rtol, atol=0, equal_nan=True)


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_clipping_leaves_what_is_not_finite(emulated, value):
    for grad, before in zip(emulated[f"clipped {value}"][1:], operators.gradients(value), strict=True):
        assert_same_bits(grad, before)

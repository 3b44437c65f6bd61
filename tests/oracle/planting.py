"""Puts a fault into a file that is running: its own text with one place replaced."""

import ctypes
import importlib.util
import subprocess
from pathlib import Path
from types import FunctionType

import torch

ROOT = Path(__file__).resolve().parents[2]
HARNESS = ROOT / "tests" / "backends" / "rule_on_host.cpp"


def replaced(path, right, wrong):
    """The file's text with the fault, whose place must be the only one of its kind."""
    text = path.read_text()
    assert text.count(right) == 1, f"{path}: {right!r} is there {text.count(right)} times"
    return text.replace(right, wrong)


def plant(module, right, wrong, folder, monkeypatch):
    """Gives the functions of a Python module, jitted ones too, the code that they have with the fault.

    They stay the same objects, since others have imported them.
    """
    path = folder / Path(module.__file__).name  # Triton's interpreter reads a function's file
    path.write_text(replaced(Path(module.__file__), right, wrong))
    spec = importlib.util.spec_from_file_location("with_fault", path)
    faulty = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(faulty)
    for name, function in vars(module).items():
        inner = getattr(function, "fn", function)
        if not isinstance(inner, FunctionType) or inner.__module__ != module.__name__:
            continue
        part = "__code__" if inner is function else "__dict__"
        monkeypatch.setattr(function, part, getattr(vars(faulty)[name], part))


class OnHost:
    """A rule of csrc/math/rules compiled for the CPU alone, with the functions of one of torch's backend.

    Args:
        rule: the file's stem.
        struct: the C++ type.
        fault: the file under csrc, and what is replaced by what; None for none.
        folder: where the file with the fault is compiled.
    """

    def __init__(self, rule, struct, fault, folder):
        target = folder / f"{rule}.so"
        if fault is not None:
            file, right, wrong = fault
            copy = folder / file
            copy.parent.mkdir(parents=True)
            copy.write_text(replaced(ROOT / "csrc" / file, right, wrong))
        flags = [f"-I{folder}", f"-I{ROOT / 'csrc'}", f'-DHEADER="math/rules/{rule}.h"', f"-DRULE={struct}"]
        fixed = ["g++", "-std=c++20", "-O1", "-ffp-contract=off", "-fPIC", "-shared"]
        subprocess.run([*fixed, *flags, str(HARNESS), "-o", str(target)], check=True)
        self.library = ctypes.CDLL(str(target))
        for name, kind in (("next_scalar", ctypes.c_float), ("grad_factor", ctypes.c_double)):
            getattr(self.library, name).restype = kind
        self.library.ema_weight.restype = ctypes.c_float

    def coefs(self, params, hyper, lr, step, *scalars):
        columns = [lr, step, *(scalar.double() for scalar in scalars)]
        return list(zip(*(column.tolist() for column in columns), strict=True))

    def next_scalar(self, hyper, step, scalar):
        calls = zip(step.tolist(), scalar.tolist(), strict=True)
        return torch.tensor(
            [self.library.next_scalar(_numbers(hyper), ctypes.c_double(n), ctypes.c_float(x)) for n, x in calls]
        )

    def grad_factor(self, hyper, weight_decay, lr, weight_norms, grad_norms):
        rows = zip(lr.tolist(), weight_norms.tolist(), grad_norms.tolist(), strict=True)
        found = [self.library.grad_factor(_numbers(hyper), *map(ctypes.c_double, (weight_decay, *row))) for row in rows]
        return torch.tensor(found, dtype=torch.float64)

    def update(self, weight, grad, moments, hyper, coefs):
        lr, step, scalar = map(ctypes.c_double, (*coefs, 0.0)[:3])
        weight, grad, *moments = (values.float().clone(memory_format=torch.contiguous_format)
                                  for values in (weight, grad, *moments))  # fmt: skip
        pointers = (ctypes.c_void_p * 3)(*(moment.data_ptr() for moment in moments))
        addresses = map(ctypes.c_void_p, (weight.data_ptr(), grad.data_ptr()))
        self.library.update(_numbers(hyper), lr, step, scalar, ctypes.c_int64(weight.numel()), *addresses, pointers)
        return weight, moments

    def average_rows_(self, ema, rows, step, skip):
        """`gradops.backends.torch.ema.average_rows_` of contiguous float32."""
        for row, number in zip(rows if ema is not None and not skip else (), step.tolist(), strict=False):
            weight = self.library.ema_weight(_numbers(ema.numbers), ctypes.c_double(number))
            average, values = row.state["ema"], row.updated.float().contiguous()
            pointers = map(ctypes.c_void_p, (average.data_ptr(), values.data_ptr()))
            if weight:
                self.library.average(*pointers, ctypes.c_int64(values.numel()), ctypes.c_float(weight))


def _numbers(values):
    return (ctypes.c_double * len(values))(*values)

import emulator
import pytest


def pytest_runtest_setup():
    if emulator.cuda_include() is None:
        pytest.skip("needs the headers of the CUDA toolkit")

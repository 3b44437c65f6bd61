"""A program: saves, and is killed before every single thing that a save does to the disk, one after the other.

After each death the folder must hold the old checkpoint or the new one, whole.
"""

import os
import signal
import sys

import torch

import gradops


def make(value):
    model = torch.nn.Linear(64, 64)
    optimizer = gradops.AdamW(model.parameters(), lr=0.1)
    for param in model.parameters():
        param.grad = torch.ones_like(param)
    optimizer.step()
    with torch.no_grad():
        for tensor in (*model.parameters(), *(state["exp_avg"] for state in optimizer.state.values())):
            tensor.fill_(value)
    return model, optimizer


def save_and_die(folder, value, moment):
    """Returns the moment in the child's stead: False if the save was over before the process could die."""
    child = os.fork()
    if child == 0:
        seen = 0

        def hook(event, arguments):
            nonlocal seen
            if any(
                isinstance(argument, str | os.PathLike) and str(argument).startswith(folder) for argument in arguments
            ):
                seen += 1
                if seen > moment:
                    os.kill(os.getpid(), signal.SIGKILL)

        model, optimizer = make(value)
        sys.addaudithook(hook)
        gradops.save_checkpoint(folder, model, optimizer)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, f"the save failed: {status}"
    return os.WIFSIGNALED(status)


def read(folder):
    model, optimizer = make(-1.0)
    gradops.load_checkpoint(folder, model, optimizer)
    moments = (optimizer.state[param]["exp_avg"] for param in model.parameters())
    (value,) = {float(part) for tensor in (*model.parameters(), *moments) for part in tensor.flatten()}
    return value


def main(folder):
    gradops.save_checkpoint(folder, *make(0.0))
    deaths = followed = 0
    value = 0.0
    while save_and_die(folder, value + 1, deaths):
        deaths += 1
        found = read(folder)
        assert found in (value, value + 1), f"after {value}, dying at {deaths} in the save of the next left {found}"
        followed += found > value
        value = found
    assert read(folder) == value + 1
    assert len(os.listdir(folder)) == 2, "what crashed saves left over is not cleared away"
    print(deaths, followed)


if __name__ == "__main__":
    torch.set_num_threads(1)  # a forked process has no pool of threads
    main(sys.argv[1])

"""Processes that stay alive between tests, since starting Python and torch takes longer than what they run."""

import datetime
import io
import itertools
import os
import queue
import tempfile
import time
import traceback

import pytest
import torch
import torch.distributed as dist

from gradops.torch_before_2_7 import BEFORE_2_7

# Starting the processes alone takes a minute on a busy machine.
TIMEOUT = 300.0


def _packed(value):
    # By hand, because a queue would hand tensors over in shared memory, which lasts no longer than the process.
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def _work(rank, tasks, results):
    torch.set_num_threads(1)
    if os.environ.get("TRITON_INTERPRET") == "1":
        import interpreter

        interpreter.install()
    while (task := tasks.get()) is not None:
        function, world, path, arguments = task
        try:
            dist.init_process_group(
                "gloo", f"file://{path}", rank=rank, world_size=world, timeout=datetime.timedelta(seconds=0.8 * TIMEOUT)
            )
            torch.manual_seed(0)
            results.put((rank, True, _packed(function(*arguments))))
        except BaseException:
            results.put((rank, False, traceback.format_exc()))
        finally:
            if dist.is_initialized():
                if BEFORE_2_7:
                    time.sleep(0.1)  # gloo's threads drop tensors with the GIL, and the group waits for them with it
                dist.destroy_process_group()


class Workers:
    """Runs a function on as many processes as wanted, which form one gloo process group for as long as it runs."""

    def __init__(self):
        self._processes, self._tasks, self._results = [], [], None
        # As long as the processes: one that leaves its group looks for the group's file, for minutes if it is gone.
        self._folder, self._groups = tempfile.TemporaryDirectory(), itertools.count()

    def run(self, world, function, *arguments):
        """What `function(*arguments)` returned on each rank; the function must be importable."""
        self._start(world)
        store = f"{self._folder.name}/{next(self._groups)}"
        for tasks in self._tasks[:world]:
            tasks.put((function, world, store, arguments))
        returned = {}
        while len(returned) < world:
            try:
                rank, fine, value = self._results.get(timeout=TIMEOUT)
            except queue.Empty:
                value, fine, rank = f"no answer within {TIMEOUT} s", False, "some"
            if not fine:
                self.stop()
                raise AssertionError(f"rank {rank}: {value}")
            returned[rank] = torch.load(io.BytesIO(value), weights_only=False)
        return [returned[rank] for rank in range(world)]

    def stop(self):
        for process in self._processes:
            process.kill()
            process.join()
        self._processes, self._tasks, self._results = [], [], None

    def _start(self, world):
        context = torch.multiprocessing.get_context("spawn")
        self._results = self._results or context.Queue()
        while len(self._processes) < world:
            tasks = context.Queue()
            rank = len(self._processes)
            process = context.Process(target=_work, args=(rank, tasks, self._results), daemon=True)
            process.start()
            self._tasks.append(tasks)
            self._processes.append(process)


@pytest.fixture(scope="session")
def workers():
    if not (dist.is_available() and dist.is_gloo_available()):
        pytest.skip("this torch has no gloo")
    group = Workers()
    yield group
    group.stop()

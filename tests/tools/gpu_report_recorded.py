"""What the programs of the GPU kit print, in their own formats."""

from gradops.bench.rows import Row
from gradops.profile.loop import NAMES

NCU = """\
{"params": 11689512, "estimate": 28.004}
==PROF== Connected to process 4242 (/usr/bin/python3.12)
==PROF== Profiling "one_pass_step_kernel": 0%....50%....100% - 1 pass
==PROF== Profiling "reduce_kernel": 0%....50%....100% - 1 pass
==PROF== Disconnected from process 4242
"ID","Process ID","Process Name","Host Name","Kernel Name","Context","Stream","Block Size","Grid Size","Device","CC",\
"dram__bytes_read.sum","dram__bytes_write.sum"
"","","","","","","","","","","","byte","byte"
"0","4242","python3.12","127.0.0.1","void gradops::cuda::one_pass_step_kernel<false>(SmallArgs)","1","7",\
"(256, 1, 1)","(132, 1, 1)","0","9.0","187,032,192","93,516,096"
"1","4242","python3.12","127.0.0.1","void at::native::reduce_kernel<512, 1, float>(float)","1","7",\
"(32, 16, 1)","(132, 1, 1)","0","9.0","209,715,200","46,758,048"
"""
NCU_REFUSED = """\
{"params": 11689512, "estimate": 28.004}
==PROF== Connected to process 4242 (/usr/bin/python3.12)
==ERROR== ERR_NVGPUCTRPERM - The user does not have permission to access NVIDIA GPU Performance Counters on the target \
device 0. For instructions on enabling permissions and to get more information see the documentation.
==PROF== Disconnected from process 4242
==WARNING== No kernels were profiled.
"""

JUNIT = """\
<?xml version="1.0" encoding="utf-8"?><testsuites name="pytest tests"><testsuite name="pytest" errors="0" failures="1" \
skipped="1" tests="3" time="0.5"><testcase classname="tests.test_decide" name="test_a[native-cuda]" time="0.1" />\
<testcase classname="tests.test_decide" name="test_b[native-cuda]" time="0.1"><failure message="assert 1 == 2">tests/\
test_decide.py:9: AssertionError</failure></testcase><testcase classname="tests.test_decide" \
name="test_c[native-cuda]" time="0.1"><skipped type="pytest.skip" message="no">no</skipped>\
</testcase></testsuite></testsuites>
"""

SANITIZED = {
    "memcheck": "========= COMPUTE-SANITIZER\none cooperative launch [] 3\n========= ERROR SUMMARY: 0 errors\n",
    "racecheck": "========= COMPUTE-SANITIZER\n"
    "========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)\n",
}
RACE = """\
========= COMPUTE-SANITIZER
========= Error: Race reported between Write access at void gradops::cuda::update_kernel<false>(SmallArgs)+0xb0
=========     and Read access at void gradops::cuda::update_kernel<false>(SmallArgs)+0xc0 [1024 hazards]
=========
========= RACECHECK SUMMARY: 1 hazard displayed (1 error, 0 warnings)
"""

ENV = {
    "device": "cuda",
    "env": {"CUDA native": "usable; cuda:0 one cooperative launch", "CPU native": "usable", "Triton": "usable, 3.6.0"},
    "machine": {"gpu": "NVIDIA H100 80GB HBM3", "cpu": "a processor", "cuda": "13.0", "torch": "2.11.0+cu130"}
    | {"python": "3.12.3"},
}


def row(recipe, seconds, case="resnet50", tensors=161, **more):
    twice = seconds and 2 * seconds
    return Row(case, recipe, 25_557_032, tensors, seconds=seconds, call_seconds=twice, **more).figures()


TIMES = {
    "resnet50": [
        row("torch foreach + GradScaler + clip", 1e-3, gradops_speedup=4.5, calls=25, waits=1),
        row("torch fused + GradScaler + clip", 5e-4, gradops_speedup=2.25, calls=21, waits=0),
        row("gradops + loss scale", 2.2e-4, calls=1, waits=0, share_of_stream=0.91, host_seconds=1e-5),
        row("gradops", 2.1e-4, calls=1, waits=0, replay_seconds=2e-4),
        row("apex FusedAdam + clip", None, failed="no"),
    ],
    "resnet50 compiled": [row("torch.compile + clip", 4e-4, gradops_speedup=2.0), row("gradops", 9.0)],
    "10x64": [row("gradops", 1e-5, "10x64", 10)],
    "10000x64": [row("gradops", 1e-4, "10000x64", 10_000)],
}

_LOOP = {"seconds": [0.2, 0.1, 0.3], "memory": {"peaks": {"forward": 2**33, "backward": 2**34}}, "skipped": 0}
TRAINING = {
    "speedup_quartiles": [1.0, 1.02, 1.03],
    "loops": {
        name: {
            **_LOOP,
            "phases": {"forward": {"seconds": 0.1}, "norm": {"seconds": 2e-3}, "optimizer": {"seconds": 3e-3}},
        }
        for name in NAMES
    },
}

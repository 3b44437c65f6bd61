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

# Events of torch.profiler's Chrome trace, a line each: a step of the loop with torch, and one with gradops. Kernels run
# later than they are launched, and a range of the host's is shown once more over the kernels that it launched.
PROFILED = """\
{"ph":"X","cat":"user_annotation","name":"torch step","pid":4242,"tid":4242,"ts":1000.0,"dur":900.0,"args":{"External id":1}}
{"ph":"X","cat":"user_annotation","name":"forward","pid":4242,"tid":4242,"ts":1010.0,"dur":200.0,"args":{"External id":2}}
{"ph":"X","cat":"cuda_runtime","name":"cudaLaunchKernelExC","pid":4242,"tid":4242,"ts":1020.0,"dur":6.0,"args":{"External id":3,"cbid":430,"correlation":11}}
{"ph":"X","cat":"user_annotation","name":"norm","pid":4242,"tid":4242,"ts":1300.0,"dur":150.0,"args":{"External id":4}}
{"ph":"X","cat":"cuda_runtime","name":"cudaLaunchKernel","pid":4242,"tid":4242,"ts":1310.0,"dur":5.0,"args":{"External id":5,"cbid":211,"correlation":12}}
{"ph":"X","cat":"cuda_runtime","name":"cudaLaunchKernel","pid":4242,"tid":4242,"ts":1330.0,"dur":5.0,"args":{"External id":6,"cbid":211,"correlation":13}}
{"ph":"X","cat":"cuda_runtime","name":"cudaMemcpyAsync","pid":4242,"tid":4242,"ts":1350.0,"dur":4.0,"args":{"External id":7,"cbid":41,"correlation":14}}
{"ph":"X","cat":"cuda_runtime","name":"cudaStreamSynchronize","pid":4242,"tid":4242,"ts":1355.0,"dur":60.0,"args":{"External id":7,"cbid":131,"correlation":15}}
{"ph":"X","cat":"user_annotation","name":"optimizer","pid":4242,"tid":4242,"ts":1500.0,"dur":300.0,"args":{"External id":8}}
{"ph":"X","cat":"cuda_runtime","name":"cudaMemsetAsync","pid":4242,"tid":4242,"ts":1505.0,"dur":3.0,"args":{"External id":9,"cbid":51,"correlation":16}}
{"ph":"X","cat":"cuda_runtime","name":"cudaLaunchKernel","pid":4242,"tid":4242,"ts":1510.0,"dur":5.0,"args":{"External id":10,"cbid":211,"correlation":17}}
{"ph":"X","cat":"kernel","name":"sm90_xmma_fprop_implicit_gemm_f16f16_f16f32_f32_nhwckrsc_nhwc","pid":0,"tid":7,"ts":1030.0,"dur":90.0,"args":{"External id":3,"device":0,"context":1,"stream":7,"correlation":11,"grid":[132,1,1],"block":[384,1,1]}}
{"ph":"X","cat":"kernel","name":"void at::native::(anonymous namespace)::multi_tensor_apply_kernel<at::native::(anonymous namespace)::TensorListMetadata<1>, at::native::(anonymous namespace)::LpNormFunctor<float, (at::native::NormType)1, float, 1, 1, 0>, float*, int>(float)","pid":0,"tid":7,"ts":1400.0,"dur":40.0,"args":{"External id":5,"device":0,"context":1,"stream":7,"correlation":12,"grid":[320,1,1],"block":[512,1,1]}}
{"ph":"X","cat":"kernel","name":"void at::native::lpnorm_cleanup<float, (at::native::NormType)1, float, float>(float)","pid":0,"tid":7,"ts":1442.0,"dur":3.0,"args":{"External id":6,"device":0,"context":1,"stream":7,"correlation":13,"grid":[161,1,1],"block":[512,1,1]}}
{"ph":"X","cat":"gpu_memcpy","name":"Memcpy DtoH (Device -> Pageable)","pid":0,"tid":7,"ts":1447.0,"dur":1.5,"args":{"External id":7,"device":0,"context":1,"stream":7,"correlation":14,"bytes":4}}
{"ph":"X","cat":"gpu_memset","name":"Memset (Device)","pid":0,"tid":7,"ts":1520.0,"dur":1.0,"args":{"External id":9,"device":0,"context":1,"stream":7,"correlation":16,"bytes":4}}
{"ph":"X","cat":"kernel","name":"void at::native::(anonymous namespace)::multi_tensor_apply_kernel<at::native::(anonymous namespace)::FusedOptimizerTensorListMetadata<4>, at::native::(anonymous namespace)::FusedAdamMathFunctor<float, 4, (at::native::ADAM_MODE)1, false>, float*>(float)","pid":0,"tid":7,"ts":1600.0,"dur":450.0,"args":{"External id":10,"device":0,"context":1,"stream":7,"correlation":17,"grid":[320,1,1],"block":[512,1,1]}}
{"ph":"X","cat":"gpu_user_annotation","name":"optimizer","pid":0,"tid":7,"ts":1520.0,"dur":530.0,"args":{"External id":8}}
{"ph":"X","cat":"user_annotation","name":"gradops step","pid":4242,"tid":4242,"ts":3000.0,"dur":500.0,"args":{"External id":21}}
{"ph":"X","cat":"user_annotation","name":"forward","pid":4242,"tid":4242,"ts":3010.0,"dur":200.0,"args":{"External id":22}}
{"ph":"X","cat":"cuda_runtime","name":"cudaLaunchKernelExC","pid":4242,"tid":4242,"ts":3020.0,"dur":6.0,"args":{"External id":23,"cbid":430,"correlation":31}}
{"ph":"X","cat":"user_annotation","name":"optimizer","pid":4242,"tid":4242,"ts":3300.0,"dur":60.0,"args":{"External id":24}}
{"ph":"X","cat":"user_annotation","name":"gradops.step","pid":4242,"tid":4242,"ts":3305.0,"dur":50.0,"args":{"External id":25}}
{"ph":"X","cat":"user_annotation","name":"gradops.one_pass_step","pid":4242,"tid":4242,"ts":3320.0,"dur":20.0,"args":{"External id":26}}
{"ph":"X","cat":"cuda_runtime","name":"cudaLaunchCooperativeKernel","pid":4242,"tid":4242,"ts":3325.0,"dur":8.0,"args":{"External id":26,"cbid":317,"correlation":32}}
{"ph":"X","cat":"kernel","name":"sm90_xmma_fprop_implicit_gemm_f16f16_f16f32_f32_nhwckrsc_nhwc","pid":0,"tid":7,"ts":3030.0,"dur":90.0,"args":{"External id":23,"device":0,"context":1,"stream":7,"correlation":31,"grid":[132,1,1],"block":[384,1,1]}}
{"ph":"X","cat":"kernel","name":"void gradops::cuda::one_pass_step_kernel<false>(SmallArgs)","pid":0,"tid":7,"ts":3600.0,"dur":220.0,"args":{"External id":26,"device":0,"context":1,"stream":7,"correlation":32,"grid":[132,1,1],"block":[256,1,1]}}
{"ph":"X","cat":"gpu_user_annotation","name":"gradops.step","pid":0,"tid":7,"ts":3600.0,"dur":220.0,"args":{"External id":25}}
{"ph":"X","cat":"gpu_user_annotation","name":"gradops.one_pass_step","pid":0,"tid":7,"ts":3600.0,"dur":220.0,"args":{"External id":26}}
"""  # noqa: E501

# `make demo` and `make test` set up what they need in .venv, once; see CONTRIBUTING.md for the rest.

PYTHON ?= python3
# Another torch: make TORCH=torch==2.13.0 test
TORCH ?= torch==2.14.1
# Python test processes. Threads sleep instead of spinning, here and in the demo: others may want the cores.
JOBS ?= 2
optimizer_tests = $(1:%=tests/optimizer/test_%.py)
SANITIZED_TESTS ?= tests/step
EMULATED_TESTS ?= tests/step tests/emulation/extension $(patsubst %,tests/rules/test_%.py,bound late_moments steps trust_ratio) \
	$(call optimizer_tests,native_faults stats) tests/backends/test_same_result.py tests/tools/test_gpu_report_steps.py
# The rest of what passes on the emulated GPU.
EMULATED_REST := $(filter-out $(EMULATED_TESTS),$(wildcard tests/rules/test_*.py)) \
	$(call optimizer_tests,checkpoint grad_scaler own_grad_scaler weight_ema) tests/tools/test_recorder.py \
	$(patsubst %,tests/distributed/test_%.py,many_ranks ranks_apart sharded_rules sharded_step)
# What must pass with every torch and Python: make TORCH=torch==2.6.0 test-core PYTHON=python3.10
CORE_TESTS ?= tests/oracle tests/step $(filter-out %/test_steps.py,$(wildcard tests/rules/test_*.py)) \
	$(call optimizer_tests,attributes bad_grads bad_params checkpoint compile containers ema_checkpoints ema_weights \
	float64 frozen_params grad_scaler handed_over keywords lr_schedulers older_checkpoints optim_db other_checkpoints \
	own_grad_scaler protect rewritten stats stuck weight_ema wrap) \
	$(patsubst %,tests/distributed/test_%.py,clip_sharded collectives many_ranks mixed_kinds python_backends refusals \
	sharded_rules sharded_step) \
	$(patsubst %,tests/backends/test_%.py,backends triton_code triton_step) tests/tools/test_recorder.py
CORE := build/core/$(subst ==,-,$(TORCH))-$(notdir $(PYTHON))
IN_CORE = export PYTHONPATH=$(CURDIR) XDG_CACHE_HOME=$(CURDIR)/$(CORE)/cache GRADOPS_CUDA=$${GRADOPS_CUDA:-0} \
	PATH=$(CURDIR)/$(CORE)/bin:$$PATH OMP_WAIT_POLICY=passive;
# The interpreter of Triton 3.6 and older fails beside numpy 2.4.
CORE_NEEDS := "setuptools>=77" expecttest hypothesis ninja "numpy<2.4" pytest pytest-benchmark pytest-xdist
# torch alone is the newest.
VERSIONS ?= torch==2.6.0 torch==2.7.0 torch==2.8.0 torch==2.10.0 torch==2.11.0 torch==2.13.0 torch==2.14.1 torch
# More of the scaling run's options: make bench SCALING="--most-params 1e7"
SCALING ?=
# The training whose profile is in the README.
PROFILE ?= --precision fp16 --batch-size 16 --accumulate 4

VENV := .venv
STAMPS := $(VENV)/stamps
PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check install
# One line a stage: its name and what it does; what it prints goes to build/log.
STAGE := @$(PYTHON) tools/stage.py
PYTEST := OMP_WAIT_POLICY=passive $(PY) -m pytest
NATIVE := $(shell find csrc -type f) setup.py gradops/building/recipe.py
CXX_STYLED := $(shell find csrc tests -name "*.cpp" -o -name "*.h" -o -name "*.cu" -o -name "*.cuh")
SANITIZED := build/sanitized
EMULATED := build/emulated
library = $$(g++ -print-file-name=lib$(1).so)
emulated_step = if [ -d $(EMULATED)-$(1) ]; then PYTHONPATH=$(EMULATED)-$(1):. GRADOPS_EMULATED_FORM=one_launch \
	OMP_WAIT_POLICY=passive $(2) $(VENV)/bin/pytest -p no:cacheprovider -n 0 \
	$(patsubst %,tests/emulation/extension/test_%.py,$(3)); fi
THREAD_CASES := --model resnet18 resnet50 --recipes fused foreach gradops
EXTRAS_demo := demo
EXTRAS_test := demo,frameworks,ultralytics,test
EXTRAS_dev := demo,dev
EXTRAS_release := release
EXTRAS_docs := demo,docs,frameworks,ultralytics

.PHONY: demo docs figures test test-all test-core test-core-gpu-report test-core-once test-versions test-cpp test-python \
	test-emulated test-emulated-two-launches test-emulated-rest test-slow test-long test-sanitized \
	test-emulated-sanitized bench gpu-report lint format build wheels clean FORCE

demo: $(STAMPS)/demo $(STAMPS)/build
	OMP_WAIT_POLICY=passive $(PY) -m gradops demo $(ARGS)

test: test-cpp test-python test-emulated

test-all: test test-slow test-long test-sanitized test-emulated-two-launches test-emulated-rest test-emulated-sanitized

test-cpp:
	$(STAGE) cpp-tests "compiling the C++ tests" $(MAKE) -C tests/cpp build
	$(MAKE) --no-print-directory -C tests/cpp test

test-python: $(STAMPS)/test $(STAMPS)/build
	$(PYTEST) -n $(JOBS) $(ARGS)
	$(if $(ARGS),,$(PY) tools/tested_with.py)

# The tests of the step once more, with the CUDA backend on the CPU: see tests/emulation/README.md.
test-emulated test-emulated-two-launches: test-emulated%: $(STAMPS)/test $(STAMPS)/build
	$(STAGE) emulated "compiling the emulated CUDA backend" $(PY) tests/emulation/extension/build.py $(EMULATED)
	if [ -d $(EMULATED) ]; then \
	    PYTHONPATH=$(EMULATED):. GRADOPS_EMULATED_FORM=$(if $*,two_launches,one_launch) OMP_WAIT_POLICY=passive \
	    $(VENV)/bin/pytest -p no:cacheprovider -n $(JOBS) $(EMULATED_TESTS); \
	else tail -n 1 build/log/emulated.log; fi

test-emulated-rest:
	$(MAKE) test-emulated EMULATED_TESTS="$(EMULATED_REST)"

test-emulated-sanitized: $(STAMPS)/test $(STAMPS)/build
	$(STAGE) emulated-thread "compiling the emulated CUDA backend with ThreadSanitizer" env GRADOPS_SANITIZE=thread \
	$(PY) tests/emulation/extension/build.py $(EMULATED)-thread
	$(call emulated_step,thread,LD_PRELOAD="$(call library,tsan)" TSAN_OPTIONS=halt_on_error=1,step)
	$(STAGE) emulated-address "compiling it with AddressSanitizer" env GRADOPS_SANITIZE=address,undefined \
	$(PY) tests/emulation/extension/build.py $(EMULATED)-address
	$(call emulated_step,address,LD_PRELOAD="$(call library,asan) $(call library,ubsan)" \
	ASAN_OPTIONS=detect_leaks=0,step operators)

# In an environment of its own, with native code for CPUs in a cache of its own. GRADOPS_CUDA=1 compiles CUDA code, too.
test-core:
	$(STAGE) core-venv "making $(CORE)" $(PYTHON) -m venv $(CORE)
	$(STAGE) core-torch "installing $(TORCH), some GB" $(CORE)/bin/python -m pip --disable-pip-version-check install \
	"$(TORCH)" $(CORE_NEEDS)
	$(IN_CORE) python -m gradops build && python -m gradops env && \
	python -m pytest -p no:cacheprovider -n $(JOBS) $(CORE_TESTS) $(ARGS)

# The same, and the GPU kit's dry run there, with the packages that machines with a GPU have.
test-core-gpu-report: test-core
	$(STAGE) core-report "installing matplotlib and rich" $(CORE)/bin/python -m pip --disable-pip-version-check install \
	matplotlib rich
	$(IN_CORE) python -m benchmarks.gpu_report --dry-run

# The same as test-core, which gives the several GB back.
test-core-once: test-core
	rm -r $(CORE)

test-versions:
	for torch in $(VERSIONS); do $(MAKE) TORCH=$$torch test-core-once || exit 1; done

# The tests that are marked slow, of these files: make test-slow ARGS=tests/tools
test-slow: $(STAMPS)/test $(STAMPS)/build
	$(PYTEST) -n $(JOBS) -m slow $(ARGS)

# A thousand examples, where `make test` tries 25.
test-long: $(STAMPS)/test $(STAMPS)/build
	$(PYTEST) -n $(JOBS) --hypothesis-profile=long $(ARGS)

# The library must be there before Python starts, since Python itself is not built with the sanitizers; it is Python,
# too, that leaks at exit.
test-sanitized: $(STAMPS)/test $(STAMPS)/build
	rm -rf $(SANITIZED)/gradops
	$(STAGE) sanitized "compiling with the sanitizers" env GRADOPS_NATIVE=1 GRADOPS_CUDA=0 GRADOPS_SANITIZE=address,undefined \
	    $(PY) setup.py -q build --build-lib $(SANITIZED)
	LD_PRELOAD="$(call library,asan) $(call library,ubsan)" \
	ASAN_OPTIONS=detect_leaks=0 PYTHONPATH=$(SANITIZED) OMP_WAIT_POLICY=passive \
	$(VENV)/bin/pytest -p no:cacheprovider -n 0 $(SANITIZED_TESTS)

bench: $(STAMPS)/test $(STAMPS)/build
	mkdir -p benchmarks/results
	$(PY) -m pytest benchmarks/bench_step.py --benchmark-enable --benchmark-json=benchmarks/results/step.json $(ARGS)
	$(PY) -m pytest benchmarks/bench_ranges.py --benchmark-enable --benchmark-json=benchmarks/results/ranges.json
	$(PY) -m gradops bench $(THREAD_CASES) --threads 1 --json benchmarks/results/one_thread.json
	$(PY) -m gradops bench $(THREAD_CASES) --threads 2 --json benchmarks/results/two_threads.json
	$(PY) -m gradops bench --optimizer all --model resnet50 161x64 --threads 2 --seconds 60 --json benchmarks/results/optimizers.json
	$(PY) -m gradops bench --scaling --json benchmarks/results/scaling.json $(SCALING)
	$(PY) -m benchmarks.sharded --json benchmarks/results/sharded.json
	$(PY) -m benchmarks.simulated_mesh --json benchmarks/results/mesh.json
	$(PY) -m benchmarks.yolo_ema --json benchmarks/results/yolo_ema.json
	$(PY) -m gradops profile $(PROFILE) --output build/profile
	cp build/profile/timeline.png docs/profile.png
	cp build/profile/report.json benchmarks/results/profile.json
	$(PY) -m benchmarks.tables

# On a GPU, with the Python that is there: nothing is installed. See docs/gpu.md.
gpu-report:
	$(PYTHON) -m benchmarks.gpu_report $(ARGS)

# The site, in build/site.
docs: $(STAMPS)/docs $(STAMPS)/build
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict

# The pictures of the guide, and the numbers that it quotes; minutes.
figures: $(STAMPS)/docs $(STAMPS)/build
	$(PY) -m gradops demo --output docs/gradops-demo.png
	$(PY) -m docs.figures $(ARGS)

lint: $(STAMPS)/dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/clang-format --dry-run -Werror $(CXX_STYLED)
	$(VENV)/bin/mypy

format: $(STAMPS)/dev
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .
	$(VENV)/bin/clang-format -i $(CXX_STYLED)

build: $(STAMPS)/build

# What is released, in dist/, each wheel tried in a clean environment: see docs/releasing.md.
wheels: $(STAMPS)/release
	$(PY) tools/wheels.py

clean:
	rm -rf build gradops/_C*.so

# Set-up. A stamp is older than what it was made from, or its step has been done.

$(STAMPS)/venv:
	$(STAGE) venv "making $(VENV)" $(PYTHON) -m venv $(VENV)
	$(STAGE) setuptools "installing setuptools and ninja" $(PIP) "setuptools>=77" wheel ninja
	@mkdir -p $(STAMPS)
	@touch $@

$(STAMPS)/torch-wanted: FORCE | $(STAMPS)/venv
	@echo "$(TORCH)" | cmp --quiet - $@ || echo "$(TORCH)" > $@

$(STAMPS)/torch: $(STAMPS)/torch-wanted
	$(STAGE) torch "installing $(TORCH), some GB" $(PIP) "$(TORCH)"
	@touch $@

# Without a GPU the CUDA code only has to compile and to load: for one architecture instead of four.
$(STAMPS)/build: export TORCH_CUDA_ARCH_LIST := $(or $(TORCH_CUDA_ARCH_LIST),$(if $(wildcard /dev/nvidia0),,9.0))
$(STAMPS)/build: $(NATIVE) $(STAMPS)/torch
	$(STAGE) build "compiling the native code" $(PY) setup.py -q build_ext --inplace
	@touch $@

$(STAMPS)/demo $(STAMPS)/test $(STAMPS)/dev $(STAMPS)/docs $(STAMPS)/release: $(STAMPS)/%: pyproject.toml $(STAMPS)/build
	$(STAGE) $* "installing the extras $(EXTRAS_$*)" $(PIP) --no-build-isolation "$(TORCH)" --editable ".[$(EXTRAS_$*)]"
	@touch $@

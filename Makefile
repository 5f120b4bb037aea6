# `make help` lists the targets. Everything lives in .venv and build/; nothing is installed outside.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# On a machine without a GPU: TORCH_INDEX=https://download.pytorch.org/whl/cpu fetches PyTorch's CPU build.
TORCH_INDEX ?=
PIP := $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))
# PyTorch's CUDA builds bring the Triton that they ask for; beside its CPU build, which has none, the tests take this one.
TRITON := $$($(BIN)/python -c "import importlib.metadata as m; any(r.startswith('triton') for r in m.requires('torch')) or print('triton==3.9.0')")
BUILT_FILES := $(sort $(wildcard csrc/*.cpp csrc/*/*.cpp csrc/*/*.h csrc/*/*.cu))
CXX_FILES := $(BUILT_FILES) $(sort $(wildcard tests/csrc/*/*.cpp tests/csrc/*/*.c tests/csrc/*/*.h))
SANITIZED = PYTHONSAFEPATH=1 PYTHONPATH=build/asan FASTDIFF_FUZZ_CALLS=500 ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 \
	UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 \
	LD_PRELOAD="$$(g++ -print-file-name=libasan.so) $$(g++ -print-file-name=libstdc++.so)" $(BIN)/python
SOURCES := setup.py pyproject.toml constraints.txt $(filter-out csrc/standalone/%,$(BUILT_FILES)) $(wildcard csrc/cuda/*.py csrc/cuda/*.map)

.DEFAULT_GOAL := help
.PHONY: help setup setup-dev demo docs docs-serve examples standalone wheel test lint format bench bench-cpu bench-gpu asan clean

help:  ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# PyTorch first: the extension is built against it, without build isolation.
$(VENV)/.tools: constraints.txt | $(BIN)/python
	$(PIP) -q "setuptools>=77" wheel ninja torch
	@touch $@

$(VENV)/.run: $(SOURCES) | $(VENV)/.tools
	$(PIP) -q --no-build-isolation -e ".[demo]"
	@touch $@

# The compiler's warnings are errors here, and in no one else's build.
# The peers of the live tests come without their dependencies, of which torchvision would bring another PyTorch.
$(VENV)/.dev: $(SOURCES) | $(VENV)/.tools
	FASTDIFF_WERROR=1 $(PIP) -q --no-build-isolation -e ".[demo,triton,serve,hub,browser,test,bench,lint,docs,release]" $(TRITON)
	$(PIP) -q --no-deps denoising-diffusion-pytorch einops ema-pytorch torch-fidelity
	@touch $@ $(VENV)/.run

# The engines that the CPU bench races.
$(VENV)/.peers: $(VENV)/.dev
	$(PIP) -q --no-build-isolation -e ".[peers]"
	@touch $@

setup: $(VENV)/.run  ## Create .venv, install the pinned dependencies, build the extension

setup-dev: $(VENV)/.dev  ## The same, with the tools for tests, linting and benchmarks

demo: setup  ## Train on handwritten digits, sample and score them; writes out/demo/
	$(BIN)/fastdiff demo --overwrite

docs: setup-dev  ## Build the site into build/site, strictly: a broken link is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

docs-serve: setup-dev  ## Serve the site at http://127.0.0.1:8000 while its pages are written
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve

EXAMPLES := train samplers likelihood edit own_sampler
examples: setup out/demo/checkpoints  ## Run docs/examples with their full settings; writes their pictures and what they print
	mkdir -p build/examples
	cd build/examples && for name in $(EXAMPLES); do \
		MODEL=../../out/demo ../../$(BIN)/python ../../docs/examples/$$name.py > $$name.txt || exit 1; done
	cp build/examples/*.png build/examples/*.txt docs/examples/

out/demo/checkpoints:
	$(MAKE) demo

standalone:  ## Build the library and the program that sample without Python into build/standalone/ (needs CMake)
	cmake -S csrc/standalone -B build/standalone -DCMAKE_BUILD_TYPE=Release
	cmake --build build/standalone --parallel

# From the source archive, which so proves to be whole. auditwheel refuses what a glibc of 2.28 would not load; PyTorch's
# libraries are found where it is installed. Without the CUDA part, which a glibc of 2.34 would have to load: docs/install.md.
WHEEL_PLATFORM ?= manylinux_2_28_x86_64
wheel: setup-dev  ## Build the source archive and the wheel that needs no compiler into dist/
	rm -rf build/wheel dist
	FASTDIFF_CUDA=0 $(BIN)/python -m build --no-isolation --outdir build/wheel
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/auditwheel repair --strip --only-plat --plat $(WHEEL_PLATFORM) --exclude "libtorch*.so" \
		--exclude "libc10*.so" --wheel-dir dist build/wheel/*.whl
	mv build/wheel/*.tar.gz dist/
	@ls -l dist

test: setup-dev  ## Run the whole test suite
	$(BIN)/python -m pytest -n auto tests

lint: setup-dev  ## Check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(CXX_FILES)
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/hadolint Dockerfile

format: setup-dev  ## Rewrite the sources in the house style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CXX_FILES)

bench: setup-dev  ## Time the ops against plain PyTorch and diffusers; writes bench/results/
	$(BIN)/python bench/run.py

bench-cpu: $(VENV)/.peers  ## Time the CPU engine against others (ONNX Runtime, OpenVINO, ncnn, MNN); writes bench/results/
	$(BIN)/python bench/cpu_unet.py
	$(BIN)/python bench/cpu_train.py
	$(BIN)/python bench/train_scaling.py ho-cifar10
	$(BIN)/python bench/train_scaling.py "ho-cifar10, 32 images"
	$(BIN)/python bench/train_scaling.py digits
	$(BIN)/python bench/generation.py speed
	$(BIN)/python bench/generation.py memory

bench-gpu:  ## Test and time everything on a GPU, in eight minutes at most, by PYTHON; writes bench/results/
	$(PYTHON) bench/gpu_suite.py

# Without PYTHONSAFEPATH the folder that it runs in, whose extension is the ordinary one, would come first.
asan: setup-dev  ## Run the ops' and the engine's tests under AddressSanitizer and UndefinedBehaviorSanitizer
	FASTDIFF_SANITIZE=address,undefined $(BIN)/python setup.py -q build --build-base build/asan-objects --build-lib build/asan
	$(SANITIZED) -c "import torch, fastdiff._C as c; assert 'build/asan' in c.__file__, c.__file__"
	$(SANITIZED) -m pytest -q -n 0 tests/ops tests/engine/test_native.py tests/engine/test_native_limits.py \
		tests/engine/test_lucidrains.py tests/engine/test_edm_networks.py tests/serving/test_rows.py
	FASTDIFF_FUZZ_FILES=10000 $(BIN)/python -m pytest -q -n 0 tests/csrc/test_standalone.py -k "sanitizers or valgrind"

clean:  ## Remove .venv, build products and caches
	rm -rf $(VENV) build dist *.egg-info fastdiff/*.so .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

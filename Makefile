# Everything a newcomer needs, from Python (>= 3.10) and a C++ compiler alone. `make` lists the targets.
# PYTHON=python3.12 chooses the interpreter of .venv, ARGS='...' is passed on to the command of the target.

PYTHON ?= python3
VENV   ?= .venv
ARGS   ?=

BIN := $(VENV)/bin
PIP := PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python -m pip --disable-pip-version-check --quiet

# What an installation depends on: a change here reinstalls (and recompiles what changed), anything else does not.
SOURCES := pyproject.toml setup.py constraints.txt CMakeLists.txt $(shell find csrc -type f)

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help venv demo test test-slow test-sanitize test-cuda-emulated bench bench-sweep bench-models bench-peer bench-digits bench-inference bench-serving web lint types format clean distclean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-18s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(VENV)/.demo ## train, evaluate, export and serve a small multimodal VAE; results in demo_out/
	@$(BIN)/mmvae-fast demo --out demo_out $(ARGS)

test: $(VENV)/.test ## the test suite, less what is marked slow (ARGS='-k noise' chooses)
	@$(BIN)/python -m pytest $(ARGS)

test-slow: $(VENV)/.test ## only the tests marked slow: wheel builds in fresh environments, full trainings
	@$(BIN)/python -m pytest -m slow $(ARGS)

# What reads memory in every way there is, in a few minutes; ARGS=tests/functional for all (ten minutes a set).
SANITIZED := tests/functional -k "values_and or layouts or extreme or untouched or experts or empty or fuzz"
# In a package of its own under build/. Python and torch are not instrumented, hence the preloaded run-time libraries.
test-sanitize: $(VENV)/.test ## the functions' tests under AddressSanitizer and UBSan, for every instruction set
	@rm -rf build/sanitize/package && mkdir -p build/sanitize/package
	@cp -r mmvae_fast tests pyproject.toml build/sanitize/package && find build/sanitize/package -name '*.so' -delete
	@PATH="$(abspath $(BIN)):$$PATH" cmake -GNinja -S . -B build/sanitize/cmake -DMMVAE_FAST_SANITIZE=ON \
	  -DPython_EXECUTABLE="$(abspath $(BIN))/python" \
	  -DCMAKE_LIBRARY_OUTPUT_DIRECTORY="$(CURDIR)/build/sanitize/package/mmvae_fast" >/dev/null
	@PATH="$(abspath $(BIN)):$$PATH" ninja -C build/sanitize/cmake _C
	@cd build/sanitize/package && for set in default avx2 avx512; do echo "== $$set"; \
	  LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libubsan.so)" \
	  ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 ATEN_CPU_CAPABILITY=$$set PYTHONPATH="$$PWD" \
	  "$(abspath $(BIN))/python" -m pytest -q -s $(or $(ARGS),$(SANITIZED)) || exit 1; done

test-cuda-emulated: $(VENV)/.test ## the functions' tests on the CUDA kernels, run on the CPU: no GPU needed
	@$(BIN)/python -m pytest -m slow tests/test_cuda_emulated.py $(ARGS)

bench: $(VENV)/.demo ## kernels against twins, torch.compile and peers, with the targets (ARGS='--quick --functions poe')
	@$(BIN)/python -m benchmarks $(ARGS)

bench-sweep: $(VENV)/.demo ## is any function slower than its twin or torch.compile at any size? (half an hour)
	@$(BIN)/python -m benchmarks --sweep $(ARGS)

bench-models: $(VENV)/.demo ## every model's training step over its networks and optimiser alone (ten minutes)
	@$(BIN)/python -m benchmarks.models $(ARGS)

bench-peer: $(VENV)/.demo ## training steps against multivae's (downloads it; ARGS='--compile --models MoPoE' adds torch.compile)
	@$(PIP) install --no-deps multivae pythae
	@$(BIN)/python -m benchmarks.peer $(ARGS)

bench-digits: $(VENV)/.demo ## train every model on the embedded digits: coherences and likelihoods (twenty minutes)
	@$(BIN)/python -m benchmarks.digits $(ARGS)

bench-inference: $(VENV)/.test ## the ONNX Runtime against torch and torch.compile, with and without missing modalities
	@$(BIN)/python -m benchmarks.inference $(ARGS)

bench-serving: $(VENV)/.test ## requests a second of a served bundle (ARGS=BUNDLE), and how long they take
	@$(BIN)/python -m benchmarks.serving $(ARGS)

web: ## the page that shows a bundle in a browser, in web/dist (needs npm, which downloads onnxruntime-web)
	@cd web && npm install --silent --no-audit --no-fund --no-package-lock && npm run -s build

lint: $(VENV)/.dev ## ruff and clang-format, changing nothing
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@find csrc -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh' | xargs -r $(BIN)/clang-format --dry-run -Werror

types: $(VENV)/.dev ## mypy over the package
	@$(BIN)/mypy $(ARGS)

format: $(VENV)/.dev ## rewrite what `make lint` complains about, where a tool can
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .
	@find csrc -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh' | xargs -r $(BIN)/clang-format -i

venv: $(VENV)/.dev ## .venv with everything a developer needs

clean: ## what builds, tests and the demo wrote; keeps .venv
	@rm -rf build dist *.egg-info demo_out bench_out .pytest_cache .mypy_cache .ruff_cache .hypothesis $(VENV)/.demo $(VENV)/.test $(VENV)/.dev
	@find mmvae_fast \( -name '*.so' -o -name '*.pyc' \) -delete

distclean: clean ## the same, and .venv
	@rm -rf $(VENV)

# torch first and alone: the build reads its headers, and the pin keeps a later step from choosing another.
$(VENV)/.torch: constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "mmvae_fast needs Python >= 3.10; choose one: make PYTHON=python3.12")'
	@echo "== $(VENV): PyTorch ($$(grep '^torch==' constraints.txt)), with its dependencies"
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) install -c constraints.txt torch
	@touch $@

# The build requirements of pyproject.toml, needed here because an editable install builds without isolation.
$(VENV)/.build: $(VENV)/.torch
	@$(PIP) install 'setuptools>=77' cmake ninja pybind11
	@touch $@

$(VENV)/.demo $(VENV)/.test $(VENV)/.dev: $(VENV)/.%: $(VENV)/.build $(SOURCES)
	@echo "== $(VENV): mmvae_fast[$*], compiling its kernels"
	@$(PIP) install --no-build-isolation -c constraints.txt -e '.[$*]'
	@touch $@

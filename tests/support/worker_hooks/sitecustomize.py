"""Read by Python at the start of each process whose PYTHONPATH names this folder: what one of a
run's processes is to do otherwise. The launcher starts them, so no test can reach into them."""

import importlib
import json
import os

if (hook := os.environ.get("WORKER_HOOK")) and os.environ.get("RANK"):
    rank, function, arguments = json.loads(hook)
    if int(os.environ["RANK"]) == rank:
        getattr(importlib.import_module("tests.support.hooked_workers"), function)(*arguments)

"""No pickle: nothing in app/ can read or write one, and a run and its resume do neither."""

import _pickle
import ast
import functools
import os
import pkgutil
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.forked_job import ForkedJobRunner, at
from tests.support.repository import MODULES

# Each name stands for everything below it too.
FORBIDDEN = (
    *("_pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "pickle", "shelve"),
    *("torch.hub", "torch.jit.load", "torch.load", "torch.package", "torch.save"),
    *("torch.distributed.checkpoint", "torch.serialization"),
    *("numpy.load", "numpy.save", "numpy.savez", "numpy.savez_compressed"),
    *("__import__", "eval", "exec", "importlib.import_module"),
)
# Of whatever object, since its class is not in the text.
FORBIDDEN_ANYWHERE = {
    "ModelCheckpoint",
    "load_from_checkpoint",
    "read_pickle",
    "save_checkpoint",
    "to_pickle",
}
# The only value that these may have.
SWITCHES = {"allow_pickle": "False", "ckpt_path": "None", "trust_remote_code": "False"}
# Lightning's own checkpoints are on by default.
TRAINER_SWITCHES = {"enable_checkpointing": "False", "logger": "False"}

# What no run needs. Data workers (NUM_WORKERS) do pickle: samples, between processes of one job.
PLACES = (
    "pickle.Unpickler",
    "pickle.dump",
    "pickle.dumps",
    "pickle.load",
    "pickle.loads",
    "pytorch_lightning.Trainer.save_checkpoint",
    "torch.load",
    "torch.save",
    "torch.serialization.load",
    "torch.serialization.save",
)
PICKLED = 99


def imports(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """Every import: the name in this module, and what it stands for in full."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (
                (alias.asname, alias.name) if alias.asname else (alias.name, alias.name)
                for alias in node.names
            )
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                yield alias.asname or alias.name, f"{node.module}.{alias.name}"


def full_name(node: ast.AST, imported: dict[str, str]) -> str:
    """`t.load` after `import torch as t` is torch.load; what is no name is empty."""
    if isinstance(node, ast.Attribute):
        return f"{full_name(node.value, imported)}.{node.attr}"
    return imported.get(node.id, node.id) if isinstance(node, ast.Name) else ""


def is_forbidden(name: str) -> bool:
    below = any(name == root or name.startswith(f"{root}.") for root in FORBIDDEN)
    return below or name.endswith(".*") or name.rsplit(".", 1)[-1] in FORBIDDEN_ANYWHERE


def ways_to_pickle(source: str) -> list[str]:
    """What in `source` could read or write a pickle, or run code that is only data here."""
    tree = ast.parse(source)
    imported = dict(imports(tree))
    names = {*imported.values(), *(full_name(node, imported) for node in ast.walk(tree))}
    found = sorted(filter(is_forbidden, names))
    for node in ast.walk(tree):
        if isinstance(node, ast.keyword) and node.arg in SWITCHES:
            if ast.unparse(node.value) != SWITCHES[node.arg]:
                found.append(ast.unparse(node))
        elif isinstance(node, ast.Call) and full_name(node.func, imported).endswith(".Trainer"):
            given = {word.arg: ast.unparse(word.value) for word in node.keywords}
            if not TRAINER_SWITCHES.items() <= given.items():
                found.append(ast.unparse(node))
    return found


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_nothing_can_pickle(path: Path) -> None:
    assert ways_to_pickle(path.read_text("utf-8")) == []


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import pickle", "pickle"),
        ("import _pickle", "_pickle"),
        ("from pickle import loads as read", "pickle.loads"),
        ("import importlib\nimportlib.import_module('pickle')", "importlib.import_module"),
        ("__import__('pickle')", "__import__"),
        ("eval('1')", "eval"),
        ("import torch\ntorch.load('f')", "torch.load"),
        ("import torch as _t\n_t.load", "torch.load"),
        ("def late():\n    import torch as t\n    t.save(1, 'f')", "torch.save"),
        ("from torch import *", "torch.*"),
        ("from torch import load", "torch.load"),
        ("from torch.serialization import load", "torch.serialization.load"),
        ("import torch\ntorch.serialization.load", "torch.serialization.load"),
        ("import torch.serialization", "torch.serialization"),
        ("import torch\ntorch.distributed.checkpoint.save", "torch.distributed.checkpoint.save"),
        ("from torch.distributed import checkpoint as c", "torch.distributed.checkpoint"),
        ("import pandas\npandas.read_pickle('f')", "pandas.read_pickle"),
        ("frame().to_pickle('f')", ".to_pickle"),
        ("import numpy as np\nnp.load('f')", "numpy.load"),
        ("store.read('f', allow_pickle=True)", "allow_pickle=True"),
        ("A.from_pretrained('a/b', trust_remote_code=True)", "trust_remote_code=True"),
        (
            "from pytorch_lightning.callbacks import ModelCheckpoint",
            "pytorch_lightning.callbacks.ModelCheckpoint",
        ),
        ("from pytorch_lightning import Trainer\nTrainer(max_steps=1)", "Trainer(max_steps=1)"),
        (
            "import pytorch_lightning as pl\npl.Trainer(logger=False, enable_checkpointing=on)",
            "pl.Trainer(logger=False, enable_checkpointing=on)",
        ),
        ("trainer.save_checkpoint('f')", "trainer.save_checkpoint"),
        ("t.fit(m, ckpt_path='last.ckpt')", "ckpt_path='last.ckpt'"),
    ],
)
def test_each_way_to_pickle_is_found(source: str, found: str) -> None:
    assert found in ways_to_pickle(source)


def end_at_pickle() -> None:
    """From here on, this process ends where something pickles: an exception could be caught."""

    def end(place: str) -> None:
        traceback.print_stack()
        print(f"{place} was called", file=sys.stderr, flush=True)
        os._exit(PICKLED)

    for place in PLACES:
        at(place, 1, functools.partial(end, place))
    # Whichever way it came there: a pickle that names a class or a function.
    sys.addaudithook(lambda event, _: end(event) if event == "pickle.find_class" else None)


def pickle_at(place: str) -> None:
    end_at_pickle()
    pkgutil.resolve_name(place)()


def unpickle_a_class() -> None:
    pickled = _pickle.dumps(Path)
    end_at_pickle()
    _pickle.loads(pickled)


@pytest.mark.parametrize("place", PLACES)
def test_a_job_that_pickles_would_be_noticed(place: str) -> None:
    ended = ForkedJobRunner({}).preceded_by(pickle_at, place).run("config")
    assert ended.code == PICKLED and f"{place} was called" in ended.log


def test_a_job_that_unpickles_a_class_some_other_way_would_be_noticed() -> None:
    ended = ForkedJobRunner({}).preceded_by(unpickle_a_class).run("config")
    assert ended.code == PICKLED and "pickle.find_class was called" in ended.log


@pytest.mark.slow
@pytest.mark.parametrize("trainer", ["lightning", "torch"])
def test_a_run_and_its_resume_never_pickle(
    trainer: str, job_environment: dict[str, str], tmp_path: Path
) -> None:
    run = ForkedJobRunner(
        {
            **job_environment,
            "CHECKPOINT_URI": f"file://{tmp_path}",
            "TRAINER": trainer,
            "TOTAL_STEPS": "2",
            "SAMPLE_EVERY_STEPS": "1",
        }
    ).preceded_by(end_at_pickle)
    begun = run.run("train")
    assert begun.code == 0, begun.log
    resumed = run.with_(ADDITIONAL_STEPS="2").run("train")
    assert resumed.code == 0, resumed.log
    assert "resumed from step 2" in resumed.log

"""What each command does. Heavy imports happen inside, so that the light ones answer at once."""

import argparse
import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import app
from app.console import counted, size
from app.errors import ConfigError, Damaged, IncompatibleRun, NotFound
from app.failures import disk_failures
from app.heartbeat import check_heartbeat
from app.observe.report import page, read_run
from app.run.attempt_text import attempt_table
from app.run.checkpoints import (
    StoredCheckpoint,
    find_checkpoint,
    read_latest,
    read_manifest,
    stored_checkpoints,
)
from app.run.fetching import fetch
from app.run.journal import read_attempts
from app.run.record import load_record
from app.settings.load import Settings, refuse_several_processes, variable_table
from app.settings.variables import variables
from app.stores.contract import Store
from app.stores.opening import open_store
from app.training.preemption import StopRequest
from app.training.spot import watched_for_notices

log = logging.getLogger(__name__)

_WEIGHTS_ONLY_LEAVES_OUT = ("optimizer.safetensors",)


def train(settings: Settings, _: argparse.Namespace, stop: StopRequest) -> None:
    refuse_several_processes()
    # The libraries take seconds to load: who waits knows for what.
    log.info(
        "smollm2-spot-trainer %s starts: run %s, checkpoints in %s",
        app.__version__,
        " or ".join(settings.run_names),
        settings.checkpoints.checkpoint_uri,
    )
    # From here on, so that a notice counts while libraries load and data is prepared, too.
    with watched_for_notices(settings.checkpoints, settings.metadata_servers):
        from app.training.start import run

        run(settings, stop)


def prepare(settings: Settings, arguments: argparse.Namespace, _: StopRequest) -> None:
    from app.data.token_progress import TokenProgress
    from app.data.tokenizer import build_builtin_tokenizer
    from app.run.recorded_source import source_of_named_run
    from app.training.job import open_preparation, resolve_job

    if arguments.tokenizer_only:
        with disk_failures(f"--tokenizer_only {arguments.tokenizer_only}"):
            files = build_builtin_tokenizer(Path(arguments.tokenizer_only))
        print(f"{files.directory}: {files.vocab_size:,} tokens")
        return
    steps = range(settings.run.total_steps + settings.run.additional_steps)
    progress = TokenProgress()
    job, uri = resolve_job(settings), settings.checkpoints.checkpoint_uri
    source = source_of_named_run(settings.data, uri, [job.run_name], progress.alive)
    preparation = open_preparation(job, source, steps, progress.waiting, everything=arguments.all)
    preparation.run()
    progress.arrived()
    print(f"{preparation.train.n_tokens:,} training tokens in {settings.data.data_dir}")


def config(settings: Settings, arguments: argparse.Namespace, _: StopRequest) -> None:
    if arguments.markdown:
        print(variable_table())
        return
    rows = [(v.name, settings.shown(v), settings.sources[v.name]) for v in variables()]
    width = max(len(name) for name, _, _ in rows)
    value_width = max(len(value) for _, value, _ in rows)
    for name, value, source in rows:
        print(f"{name:<{width}}  {value:<{value_width}}  {source}")


def health(_settings: Settings, _arguments: argparse.Namespace, _stop: StopRequest) -> None:
    print(check_heartbeat())


def generate(settings: Settings, arguments: argparse.Namespace, _: StopRequest) -> None:
    from app.generation.decoding import Sampling
    from app.generation.text import load_from_store, load_model, stream_text

    sampling = Sampling(
        temperature=arguments.temperature,
        top_k=arguments.top_k,
        top_p=arguments.top_p,
        repetition_penalty=arguments.repetition_penalty,
        max_tokens=arguments.max_tokens,
        seed=settings.run.seed,
    )
    device = settings.compute.device
    if arguments.model_dir:
        loaded = load_model(arguments.model_dir, device)
    else:
        with scratch_folder(settings) as scratch:
            store = _existing_run(settings)
            loaded = load_from_store(store, arguments.checkpoint, device, scratch)
    log.info("model %s", loaded.origin)
    started, pieces = time.monotonic(), 0
    print(arguments.prompt, end="", flush=True)
    for piece in stream_text(loaded, arguments.prompt, sampling):
        print(piece, end="", flush=True)
        pieces += 1
    print()
    tokens = pieces - 1  # the last piece is what was left
    log.info("%.1f tokens/s", tokens / max(1e-9, time.monotonic() - started))


def list_checkpoints(settings: Settings, arguments: argparse.Namespace, _: StopRequest) -> None:
    store = _existing_run(settings)
    latest = read_latest(store)
    rows = [_checkpoint_row(store, stored, latest) for stored in stored_checkpoints(store)]
    attempts = read_attempts(store, newest=arguments.attempts)
    if arguments.json:
        shown = [{**attempt.model_dump(), "steps": attempt.steps} for attempt in attempts]
        print(json.dumps({"checkpoints": rows, "attempts": shown}, indent=1))
        return
    stored_record = load_record(store)
    if stored_record is not None:
        record = stored_record.record
        extended = "".join(f", extended to {e.target}" for e in record.extensions)
        print(f"{store.uri}: target step {record.total_steps}{extended}")
    print(f"{'checkpoint':<24} {'train loss':>10} {'size':>9}  {'saved at':<26} state")
    for row in rows:
        loss = row.get("train_loss")
        loss_text = f"{loss:.4f}" if isinstance(loss, float) else "-"
        print(
            f"{row['name']:<24} {loss_text:>10} {size(row['bytes']):>9}  "
            f"{row.get('created_at', '-'):<26} {row['state']}"
        )
    if attempts:
        print("\n" + "\n".join(attempt_table(attempts)))


def report(settings: Settings, arguments: argparse.Namespace, _: StopRequest) -> None:
    """Write the run's page here, whole or not at all."""
    run = read_run(_existing_run(settings))
    target = Path(arguments.to or f"{run.name}-report.html").absolute()
    with disk_failures(f"--to {target}"):
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".report-", dir=target.parent) as scratch:
            partial = Path(scratch) / "index.html"
            partial.write_text(page(run), "utf-8")
            partial.replace(target)
    print(target)


def _checkpoint_row(store: Store, stored: StoredCheckpoint, latest: str | None) -> dict[str, Any]:
    row: dict[str, Any] = {
        "name": str(stored.name),
        "step": stored.name.step,
        "bytes": sum(stored.sizes.values()),
    }
    if not stored.has_manifest:
        lost = stored.lost_manifest(latest)
        return row | {"state": "damaged: its manifest is missing" if lost else "unfinished upload"}
    try:
        manifest = read_manifest(store, stored.name)
    except NotFound:
        return row | {"state": "removed just now"}
    except IncompatibleRun as error:
        return row | {"state": str(error)}
    except Damaged as error:
        return row | {"state": f"damaged: {error}"}
    row |= {"train_loss": manifest.train_loss, "created_at": manifest.created_at}
    return row | {"state": "late: not part of the run" if stored.late else "committed"}


def verify_checkpoints(settings: Settings, arguments: argparse.Namespace, _: StopRequest) -> None:
    """Every byte of every checkpoint, and whether all are there. Raises Damaged if not."""
    from app.run.verification import Verification
    from app.state.snapshot import STATE_FILES

    store, found = _existing_run(settings), []
    only = find_checkpoint(store, arguments.checkpoint) if arguments.checkpoint else None
    verification = Verification(store, partial(scratch_folder, settings), STATE_FILES)
    for finding in [verification.one(only)] if only else verification.whole_run():
        print(f"{finding.name}  {finding.text}")
        found.append(finding)
    damaged = [finding.name for finding in found if finding.damaged]
    if not damaged:
        print(f"{counted(sum(finding.whole for finding in found), 'checkpoint')} verified")
    if attempts := read_attempts(store, newest=arguments.attempts):
        print("\n" + "\n".join(attempt_table(attempts)))
    if damaged:
        raise Damaged(f"{store.uri} is damaged: {', '.join(damaged)}")


def pull_checkpoint(settings: Settings, arguments: argparse.Namespace, _: StopRequest) -> None:
    """Copy a verified checkpoint into a folder, which appears whole or not at all."""
    store = _existing_run(settings)
    name = find_checkpoint(store, arguments.checkpoint or "latest")
    target = Path(arguments.to or f"{store.uri.rsplit('/', 1)[1]}-step-{name.step}").absolute()
    if target.exists():
        raise ConfigError(f"{target} exists already: name another folder with --to")
    leave_out = _WEIGHTS_ONLY_LEAVES_OUT if arguments.weights_only else ()
    wanted = [file for file in read_manifest(store, name).files if file not in leave_out]
    with disk_failures(f"--to {target}"):
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".pull-", dir=target.parent) as scratch:
            partial = Path(scratch) / "checkpoint"
            partial.mkdir()
            source = fetch(store, name, partial, only=wanted)
            if source != partial:
                for file in wanted:
                    shutil.copyfile(source / file, partial / file)
            partial.rename(target)
    print(target)


def show_data(settings: Settings, arguments: argparse.Namespace, _: StopRequest) -> None:
    from app.cli.prepared_tokens import find_tokens, sequence_length
    from app.data.inspection import Place, samples_of_step, step_text

    place = Place(arguments.step, arguments.rank, arguments.world_size, arguments.micro_step)
    samples = samples_of_step(
        find_tokens(settings), settings.batch, sequence_length(settings), settings.run.seed, place
    )
    if arguments.json:
        print(json.dumps({**asdict(place), "samples": [asdict(s) for s in samples]}, indent=1))
        return
    for line in step_text(place, samples):
        print(line)


def data_statistics(settings: Settings, arguments: argparse.Namespace, _: StopRequest) -> None:
    from app.cli.prepared_tokens import find_tokens
    from app.data.inspection import statistics, statistics_text

    prepared = find_tokens(settings)
    found = statistics(prepared)
    if arguments.json:
        print(json.dumps(found.as_json(), indent=1))
        return
    for line in statistics_text(prepared, found):
        print(line)


@contextmanager
def scratch_folder(settings: Settings) -> Iterator[Path]:
    """A folder for downloads: on the data volume, since /tmp may be memory."""
    data_dir = settings.data.data_dir
    parent = data_dir if os.access(data_dir, os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix=".scratch-", dir=parent) as folder:
        yield Path(folder)


def _existing_run(settings: Settings) -> Store:
    """The store of the run that the settings name; with MODEL=auto, of the one that exists."""
    uri, names = settings.checkpoints.checkpoint_uri, settings.run_names
    stores = [open_store(uri, name) for name in names]
    existing = [store for store in stores if load_record(store) is not None]
    if not existing:
        raise NotFound(f"{uri} holds no run named {' or '.join(names)}: set RUN_NAME")
    if len(existing) > 1:
        raise ConfigError(f"{uri} holds the runs {' and '.join(names)}: set RUN_NAME")
    return existing[0]

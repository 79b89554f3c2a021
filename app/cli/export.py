"""`export`: a checkpoint as a model that others load, in a folder or on the Hugging Face hub."""

import argparse
import logging
import shutil
import tempfile
from pathlib import Path

from app.cli.arguments import Commands, place
from app.cli.chosen_step import add_step
from app.cli.named_run import existing_run, scratch_folder
from app.errors import ConfigError, UsageError
from app.failures import disk_failures
from app.model.hub_upload import HUB, HubPlace, check_writable, upload
from app.observe.chosen_checkpoint import chosen_checkpoint
from app.observe.pictures import picture_of_curves
from app.observe.reported_run import read_run
from app.run.checkpoints import Manifest, read_manifest
from app.run.evaluations import Evaluation, evaluations_of
from app.run.fetching import fetch
from app.run.layout import CheckpointName
from app.run.view import read_view
from app.settings.combined import Settings
from app.stores.contract import Store
from app.training.preemption import StopRequest

log = logging.getLogger(__name__)

_CARD = "README.md"


def add_commands(commands: Commands) -> None:
    command = commands.add(
        "export", export, "a checkpoint as a model with its card, in a folder or on the hub"
    )
    command.add_argument(
        "--to",
        type=_target,
        required=True,
        metavar="DIR|hub:OWNER/NAME[@BRANCH]",
        help="folder to create, or repository of the Hugging Face hub",
    )
    add_step(command, "the newest")
    command.add_argument(
        "--dtype",
        choices=("bfloat16", "float32"),
        default="bfloat16",
        help="type of the weights; default: bfloat16",
    )
    command.add_argument(
        "--gguf",
        nargs="?",
        const="bf16",
        choices=("bf16", "f16", "f32"),
        help="also a file for llama.cpp and Ollama; without a type: bf16",
    )
    command.add_argument("--overwrite", action="store_true", help="replace a model that is there")
    command.add_argument("--public", action="store_true", help="a new repository of the hub is")


def export(settings: Settings, arguments: argparse.Namespace, _: StopRequest) -> None:
    """Make the whole model beside its place, and put it there at the end.

    Raises ConfigError where a model is there already, Damaged for a checkpoint that does not
    verify, and what the store, the disk and the hub say.
    """
    target, store = arguments.to, existing_run(settings)
    if isinstance(target, HubPlace):
        check_writable(target)
        with scratch_folder(settings) as scratch:
            folder = scratch / "model"
            folder.mkdir()
            _make(store, settings, arguments, folder, (target.repository, target.revision))
            print(upload(folder, target, public=arguments.public, overwrite=arguments.overwrite))
        return
    if arguments.public:
        raise UsageError("--public has a meaning only with --to hub:…")
    target = target.absolute()
    with disk_failures(f"--to {target}"):
        _check_free(target, overwrite=arguments.overwrite)
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as beside:
            folder = Path(beside) / "model"
            folder.mkdir()
            _make(store, settings, arguments, folder, (target.name, None))
            if target.exists():
                target.rename(Path(beside) / "replaced")
            folder.rename(target)
    print(target)


def _target(text: str) -> Path | HubPlace:
    """The type of --to."""
    if not text.startswith(HUB):
        return place(text)
    try:
        return HubPlace.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: {error}") from error


def _check_free(target: Path, *, overwrite: bool) -> None:
    """Raises ConfigError where something is there that is not to be replaced."""
    if not target.exists():
        return
    if not overwrite:
        raise ConfigError(f"{target} exists already: name another folder, or add --overwrite")
    if not (target / _CARD).is_file() or not (target / "config.json").is_file():
        raise ConfigError(f"{target} is not a model that was exported: it is not replaced")


def _make(
    store: Store,
    settings: Settings,
    arguments: argparse.Namespace,
    folder: Path,
    loaded_as: tuple[str, str | None],
) -> None:
    """Write the model, its tokenizer and its card to `folder`."""
    from app.model.huggingface import MODEL_FILE
    from app.observe.model_card import CURVES_FILE, Exported, model_card, rows_until
    from app.state.exported_weights import export_weights
    from app.state.progress import STATE_FILE, read_progress
    from app.state.snapshot import OPTIMIZER_FILE, Expected

    view, run = read_view(store), read_run(store)
    name = chosen_checkpoint(store, view, arguments.step or "latest")
    manifest = read_manifest(store, name)
    wanted = [file for file in manifest.files if file != OPTIMIZER_FILE]
    expected = Expected(view.record.record if view.record else None)
    gguf = None
    with scratch_folder(settings) as scratch:
        checkpoint = fetch(
            store, name, scratch, wanted, [MODEL_FILE, STATE_FILE], expected=expected
        )
        progress = read_progress(checkpoint / STATE_FILE)
        progress.check(name.step, expected.record)
        known = progress.run or expected.record
        if known is None:
            raise ConfigError(f"{name.key()} does not say its run: start the job once, then export")
        export_weights(checkpoint, folder, arguments.dtype)
        for file in wanted:
            if file not in (MODEL_FILE, STATE_FILE, "config.json"):
                shutil.copyfile(checkpoint / file, folder / file)
        if arguments.gguf:
            from app.state.gguf_file import write_gguf

            gguf = f"{run.name}-step-{name.step}-{arguments.gguf}.gguf"
            write_gguf(
                checkpoint, folder / gguf, arguments.gguf, run.name, settings.logs.started_by
            )
    rows = rows_until(run, name.step)
    starts = [attempt.start_step for attempt in run.attempts if attempt.start_step]
    (folder / CURVES_FILE).write_text(picture_of_curves(rows, starts), "utf-8")
    described = Exported(
        name=name,
        progress=progress,
        identity=known.identity,
        dtype=arguments.dtype,
        place=loaded_as[0],
        revision=loaded_as[1],
        gguf=gguf,
        evaluations=_evaluations(store, name, manifest),
    )
    (folder / _CARD).write_text(model_card(run, described), "utf-8")
    log.info("exported step %d in %s", name.step, arguments.dtype)


def _evaluations(store: Store, name: CheckpointName, manifest: Manifest) -> list[Evaluation]:
    """What was found out about these weights."""
    weights = manifest.files["model.safetensors"].sha256
    found = evaluations_of(store)
    for key, reason in found.damaged:
        log.warning("%s is left out of the card: %s", key, reason)
    return [one for one in found.found if (one.checkpoint, one.weights) == (str(name), weights)]

"""`prepare`: tokenize the dataset without training."""

import argparse

from app.cli.arguments import Commands, place
from app.data.data_dir import DataDir
from app.failures import disk_failures
from app.heartbeat import show_life_of
from app.printable import show
from app.settings.combined import Settings
from app.training.preemption import StopRequest


def add_commands(commands: Commands) -> None:
    command = commands.add("prepare", prepare, "tokenize the dataset without training")
    command.add_argument(
        "--all", action="store_true", help="the whole dataset, not only what the run needs"
    )
    command.add_argument(
        "--tokenizer_only",
        type=place,
        metavar="DIR",
        help="only train the builtin tokenizer of MODEL",
    )


def prepare(settings: Settings, arguments: argparse.Namespace, _: StopRequest) -> None:
    from app.cli.prepared_tokens import named_run
    from app.data.token_progress import TokenProgress
    from app.data.tokenizer import build_builtin_tokenizer, builtin_vocab_size
    from app.run.recorded_source import source_of_named_run, tokenizer_of_named_run
    from app.training.compute import model_of
    from app.training.job import resolve_job, run_name_of
    from app.training.training_data import open_preparation

    if arguments.tokenizer_only:
        with disk_failures(f"--tokenizer_only {arguments.tokenizer_only}"):
            size = builtin_vocab_size(model_of(settings)[1].vocab_size)
            files = build_builtin_tokenizer(arguments.tokenizer_only, size)
        show(f"{files.directory}: {files.vocab_size:,} tokens")
        return
    DataDir(settings.data.data_dir).take_temporary_files()
    show_life_of(settings.run_place)
    progress = TokenProgress()
    names, uri = [run_name_of(settings)], settings.checkpoints.checkpoint_uri
    job = resolve_job(settings, named_run(settings, names))
    tokenizer = tokenizer_of_named_run(settings.data, uri, names, job.tokenizer)
    job = job.with_tokenizer(tokenizer)
    steps = range(job.settings.run.total_steps + settings.run.additional_steps)
    source = source_of_named_run(settings.data, uri, names, progress.alive)
    preparation = open_preparation(job, source, steps, progress.waiting, everything=arguments.all)
    preparation.run()
    progress.arrived()
    show(f"{preparation.train.n_tokens:,} training tokens in {settings.data.data_dir}")

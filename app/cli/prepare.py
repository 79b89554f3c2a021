"""`prepare`: tokenize the dataset without training."""

import argparse

from app.cli.arguments import Commands, place
from app.failures import disk_failures
from app.settings.combined import Settings
from app.training.preemption import StopRequest


def add_commands(commands: Commands) -> None:
    command = commands.add("prepare", prepare, "tokenize the dataset without training")
    command.add_argument(
        "--all", action="store_true", help="the whole dataset, not only what the run needs"
    )
    command.add_argument(
        "--tokenizer_only", type=place, metavar="DIR", help="only train the builtin tokenizer"
    )


def prepare(settings: Settings, arguments: argparse.Namespace, _: StopRequest) -> None:
    from app.data.token_progress import TokenProgress
    from app.data.tokenizer import build_builtin_tokenizer
    from app.run.recorded_source import source_of_named_run
    from app.training.job import resolve_job
    from app.training.training_data import open_preparation

    if arguments.tokenizer_only:
        with disk_failures(f"--tokenizer_only {arguments.tokenizer_only}"):
            files = build_builtin_tokenizer(arguments.tokenizer_only)
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

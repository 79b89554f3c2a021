"""`data show` and `data stats`: a look at the prepared tokens."""

import argparse
from dataclasses import asdict

from app.cli.arguments import Commands, count_from
from app.cli.tables import add_json, show_json
from app.settings.combined import Settings
from app.training.preemption import StopRequest


def add_commands(commands: Commands) -> None:
    verbs = commands.group("data", "look at the prepared tokens")
    show = verbs.add("show", show_data, "print the text that a step sees")
    show.add_argument(
        "--step", type=count_from(1), required=True, help="from 1, as the log counts them"
    )
    show.add_argument("--rank", type=count_from(0), default=0, help="of the processes; default: 0")
    show.add_argument(
        "--world_size", type=count_from(1), default=1, help="how many processes; default: 1"
    )
    show.add_argument("--micro_step", type=count_from(0), help="from 0; default: all of the step")
    stats = verbs.add("stats", data_statistics, "count documents, tokens and bytes")
    add_json(show, stats)


def show_data(settings: Settings, arguments: argparse.Namespace, _: StopRequest) -> None:
    from app.cli.prepared_tokens import batch_and_length, find_tokens
    from app.data.inspection import Place, samples_of_step, step_text

    place = Place(arguments.step, arguments.rank, arguments.world_size, arguments.micro_step)
    batch, seq_len = batch_and_length(settings)
    samples = samples_of_step(find_tokens(settings), batch, seq_len, settings.run.seed, place)
    if arguments.json:
        show_json({**asdict(place), "samples": samples})
        return
    for line in step_text(place, samples):
        print(line)


def data_statistics(settings: Settings, arguments: argparse.Namespace, _: StopRequest) -> None:
    from app.cli.prepared_tokens import find_tokens
    from app.data.inspection import statistics, statistics_text

    prepared = find_tokens(settings)
    found = statistics(prepared)
    if arguments.json:
        show_json(asdict(found))
        return
    for line in statistics_text(prepared, found):
        print(line)

"""`config` and `health`: what the job here is set to, and whether it makes progress."""

import argparse

from app.cli.arguments import Commands
from app.cli.named_model import model_here
from app.cli.tables import add_json, show_json
from app.data.data_dir import DataDir
from app.heartbeat import check_heartbeat
from app.printable import show
from app.settings.combined import Settings
from app.settings.presets import RECIPES
from app.settings.recipes import with_recipe
from app.settings.values import as_typed
from app.settings.variables import variables
from app.training.preemption import StopRequest


def add_commands(commands: Commands) -> None:
    command = commands.add("config", config, "show every variable, its value and its source")
    command.add_argument("--markdown", action="store_true", help="as docs/variables.md has it")
    add_json(command)
    commands.add("health", health, "exit 0 while the named run makes progress here")


def config(settings: Settings, arguments: argparse.Namespace, _: StopRequest) -> None:
    if arguments.markdown:
        print(variable_table())
        return
    if settings.model.init_from is None:
        settings = with_recipe(settings, model_here(settings))
    rows = [(v.name, settings.shown(v), settings.sources[v.name]) for v in variables()]
    if arguments.json:
        names = ("name", "value", "source")
        show_json({"variables": [dict(zip(names, row, strict=True)) for row in rows]})
        return
    width = max(len(name) for name, _, _ in rows)
    value_width = max(len(value) for _, value, _ in rows)
    for name, value, source in rows:
        show(f"{name:<{width}}  {value:<{value_width}}  {source}")


def variable_table() -> str:
    """The table of docs/variables.md, in Markdown."""
    rows = ["| variable | default | unit | what it does |", "|---|---|---|---|"]
    for variable in variables():
        shown = as_typed(variable.info.default)
        choices = getattr(variable.info.annotation, "__args__", ())
        named = " \\| ".join(choice for choice in choices if isinstance(choice, str))
        text = variable.info.description or ""
        defaults = [f"`{shown}`"] if shown else []
        for model, recipe in RECIPES.items():
            if variable.name in recipe:
                defaults.append(f"{model}: `{as_typed(recipe[variable.name])}`")
        rows.append(
            f"| `{variable.name}` | {', '.join(defaults)} | {variable.unit} "
            f"| {text}{f' ({named})' if named else ''} |"
        )
    return "\n".join(rows)


def health(settings: Settings, _arguments: argparse.Namespace, _stop: StopRequest) -> None:
    DataDir(settings.data.data_dir).take_temporary_files()
    show(check_heartbeat(settings.run_place))

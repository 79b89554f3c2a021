"""The sections are filled here: from flags, the environment, a file and the defaults.

The environment is the only configuration. A command-line flag is the same name in
lower case, and a `.env` file in the working directory is read too; the order of
precedence is flag, environment, file, default. Nothing else in the project reads
the environment, except boto3 (AWS_*), the hub client (HF_*) and the trackers' libraries (WANDB_*,
MLFLOW_*), each for its own names.
The addresses of the clouds' metadata servers (`MetadataServers`) are read here too. What a launcher
of processes says to each of them is read by `place`.
"""

import os
import re
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import ValidationError

from app.console import redacted
from app.errors import AppError, ConfigError
from app.settings.aws import aws_problems, named_endpoint
from app.settings.combined import Settings, Source, impossible_combinations
from app.settings.env_file import ENV_FILE, read_env_file
from app.settings.place import other_names
from app.settings.recipes import with_recipe
from app.settings.spelling import misspelled
from app.settings.trackers import tracker_names, tracker_problems
from app.settings.values import CREDENTIALS, allowed
from app.settings.variables import SECTIONS, MetadataServers, Section, variables

S = TypeVar("S", bound=Section)

_WHERE = {"flag": "a flag", "environment": "the environment", "file": str(ENV_FILE)}

_LONGEST_SHOWN = 200  # characters of a value
_SERVICE_LINK = re.compile(r"(tcp|udp|sctp)://[^/\s]+:\d+")


def load_settings(flags: Mapping[str, str] | None = None) -> Settings:
    """Settings from `flags` (lower-case names), the environment, `.env` and the defaults: those of
    MODEL, where it is named and has some of its own, and the general ones.

    Raises ConfigError, with one line for each problem, and AccessDenied for a `.env` that cannot
    be read.
    """
    file, flag = _by_name(read_env_file()), _by_name(flags or {})
    nodes = flag.get("NUM_NODES") or file.get("NUM_NODES", "")
    environment, problems = other_names(_environment(), nodes)
    places: dict[Source, Mapping[str, str]] = {
        "file": file,
        "environment": _by_name(environment),
        "flag": flag,
    }
    given = {name: text for place in places.values() for name, text in place.items()}
    sources = _sources(places)
    problems += [
        f"{name} is not a variable of this job; did you mean {nearest}?"
        for name, nearest in misspelled({**places["file"], **places["environment"]})
    ]
    sections: dict[str, Section] = {}
    for name, section in SECTIONS.items():
        try:
            sections[name] = _filled(section, given)
        except ValidationError as error:
            problems += [_problem(detail, sources) for detail in error.errors()]
    if not problems:
        servers = _filled(MetadataServers, given)
        settings = Settings(
            **sections,  # type: ignore[arg-type]
            metadata_servers=servers,
            sources=sources,
            s3_endpoint=named_endpoint(os.environ),
            trackers=tracker_names(os.environ),
        )
        settings = with_recipe(settings, settings.model.model)
        problems = list(impossible_combinations(settings))
        if settings.uses_s3:
            problems += aws_problems(os.environ)
        problems += tracker_problems(settings.logs.loggers, os.environ)
    if problems:
        raise ConfigError(*problems)
    return settings


def wanted_log(flags: Mapping[str, str]) -> tuple[str, str]:
    """What LOG_FORMAT and LOG_LEVEL say, or "" for each that says nothing.

    Before all settings are read: errors in them are logged in this form.
    """
    try:
        file = read_env_file()
    except AppError:  # `load_settings` says so
        file = {}
    places = [_by_name(place) for place in (file, _environment(), flags)]
    said = {name: value for place in places for name, value in place.items() if value}
    return said.get("LOG_FORMAT", ""), said.get("LOG_LEVEL", "")


def _environment() -> dict[str, str]:
    """The environment without what Kubernetes put into it for a Service of the same name.

    A Service `metrics` makes METRICS_PORT=tcp://10.0.0.5:9090 in each pod of its namespace.
    """
    return {
        name: value
        for name, value in os.environ.items()
        if not (name.endswith("_PORT") and _SERVICE_LINK.fullmatch(value))
    }


def _by_name(values: Mapping[str, str]) -> dict[str, str]:
    """What is set, by the names of the variables; an empty value, as compose passes on, is not."""
    known = {variable.name for variable in variables()}
    return {
        name.upper() if name.upper() in known else name: value
        for name, value in values.items()
        if value != ""
    }


def _filled(section: type[S], given: Mapping[str, str]) -> S:
    named = {key: key.upper() for key in section.model_fields}
    known: dict[str, Any] = {key: given[name] for key, name in named.items() if name in given}
    return section(**known)


def _sources(places: Mapping[Source, Mapping[str, str]]) -> dict[str, Source]:
    sources: dict[str, Source] = {variable.name: "default" for variable in variables()}
    for source, place in places.items():
        sources |= {name: source for name in sources if name in place}
    return sources


def _problem(detail: Any, sources: Mapping[str, Source]) -> str:
    name = str(detail["loc"][0]).upper()
    info = next(variable.info for variable in variables() if variable.name == name)
    reason = str(detail["msg"]).removeprefix("Value error, ").replace("Input should be", "allowed:")
    if may_be := allowed(info):
        said = f"{reason}; " if detail["type"] == "value_error" else ""
        reason = f"{said}allowed: {may_be}"
    where = _WHERE.get(sources.get(name, "default"), "its default")
    # `redacted` finds a password by the sign that ends it, but a password may hold that sign.
    value = "***" if CREDENTIALS in reason else redacted(repr(detail["input"]))
    shown = value if len(value) <= _LONGEST_SHOWN else f"{value[:_LONGEST_SHOWN]}…"
    return f"{name}={shown} (from {where}) cannot be used: {reason}"

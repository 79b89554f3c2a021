"""The sections are filled here: from flags, the environment, a file and the defaults.

The environment is the only configuration. A command-line flag is the same name in
lower case, and a `.env` file in the working directory is read too; the order of
precedence is flag, environment, file, default. Nothing else in the project reads
the environment, except boto3 (AWS_*) and the hub client (HF_*), each for its own names.
Two more things are read here: the addresses of the clouds' metadata servers
(`MetadataServers`), and how many processes a launcher has started.
"""

import os
from collections.abc import Mapping
from typing import Any

from dotenv import dotenv_values
from pydantic import ValidationError

from app.console import redacted
from app.errors import AccessDenied, ConfigError
from app.settings.aws import aws_problems
from app.settings.combined import Settings, Source, impossible_combinations
from app.settings.spelling import misspelled
from app.settings.values import CREDENTIALS
from app.settings.variables import ENV_FILE, SECTIONS, Section, variables

_WHERE = {"flag": "a flag", "environment": "the environment", "file": str(ENV_FILE)}


def load_settings(flags: Mapping[str, str] | None = None) -> Settings:
    """Settings from `flags` (lower-case names), the environment, `.env` and the defaults.

    Raises ConfigError, with one line for each problem.
    """
    given = {name: value for name, value in (flags or {}).items() if value != ""}
    sources = _sources(given)
    problems = [
        f"{name} is not a variable of this job; did you mean {nearest}?"
        for name, nearest in misspelled([*os.environ, *_env_file()])
    ]
    sections: dict[str, Section] = {}
    for name, section in SECTIONS.items():
        known: dict[str, Any] = {
            key: value for key, value in given.items() if key in section.model_fields
        }
        try:
            sections[name] = section(**known)
        except ValidationError as error:
            problems += [_problem(detail, sources) for detail in error.errors()]
    if not problems:
        settings = Settings(**sections, sources=sources)  # type: ignore[arg-type]
        problems = list(impossible_combinations(settings))
        if settings.uses_s3:
            problems += aws_problems(os.environ)
    if problems:
        raise ConfigError(*problems)
    return settings


def refuse_several_processes() -> None:
    """Raises ConfigError where a launcher such as torchrun has started more than one process.

    One process would train while the others wait for its lease, and the user would take this
    for distributed training.
    """
    started = os.environ.get("WORLD_SIZE", "")
    if started.isdecimal() and int(started) > 1:
        raise ConfigError(
            f"WORLD_SIZE={started} (from the environment) cannot be used: the job trains in one "
            "process on one GPU; start it without torchrun"
        )


def _env_file() -> dict[str, str | None]:
    """Raises ConfigError or AccessDenied for a file that cannot be read."""
    try:
        return dotenv_values(ENV_FILE) if ENV_FILE.is_file() else {}
    except UnicodeDecodeError as error:
        raise ConfigError(f"{ENV_FILE} is not UTF-8 text ({error.reason}): convert it") from error
    except OSError as error:
        raise AccessDenied(f"{ENV_FILE} cannot be read ({error.strerror})") from error


def _sources(flags: Mapping[str, str]) -> dict[str, Source]:
    environment = {name.upper() for name, value in os.environ.items() if value}
    file = {name.upper() for name, value in _env_file().items() if value}
    sources: dict[str, Source] = {}
    for variable in variables():
        name = variable.name
        if name.lower() in flags:
            sources[name] = "flag"
        elif name in environment:
            sources[name] = "environment"
        elif name in file:
            sources[name] = "file"
        else:
            sources[name] = "default"
    return sources


def _problem(detail: Any, sources: Mapping[str, Source]) -> str:
    name = str(detail["loc"][0]).upper()
    reason = str(detail["msg"]).removeprefix("Value error, ").replace("Input should be", "allowed:")
    where = _WHERE.get(sources.get(name, "default"), "its default")
    # `redacted` finds a password by the sign that ends it, but a password may hold that sign.
    value = "***" if CREDENTIALS in reason else redacted(repr(detail["input"]))
    return f"{name}={value} (from {where}) cannot be used: {reason}"

"""The sections filled: from flags, the environment, a file and the defaults.

The environment is the only configuration. A command-line flag is the same name in
lower case, and a `.env` file in the working directory is read too; the order of
precedence is flag, environment, file, default. Nothing else in the project reads
the environment, except boto3 (AWS_*) and the hub client (HF_*) for their own names;
`metadata_servers` holds what the clouds' own names say about spot notices, and
`refuse_several_processes` looks at what launchers say.
"""

import difflib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from dotenv import dotenv_values
from pydantic import ValidationError

from app.console import redacted
from app.errors import AccessDenied, ConfigError
from app.settings.presets import AUTO_MODELS, PRESETS
from app.settings.variables import (
    CREDENTIALS,
    ENV_FILE,
    SECTIONS,
    BatchSettings,
    CheckpointSettings,
    ComputeSettings,
    DataSettings,
    LogSettings,
    MetadataServers,
    ModelSettings,
    OptimizerSettings,
    RunSettings,
    Section,
    Variable,
    variables,
)

Source = Literal["default", "environment", "file", "flag"]


@dataclass(frozen=True)
class Settings:
    """All sections, checked one by one and against each other."""

    run: RunSettings = field(default_factory=RunSettings)
    model: ModelSettings = field(default_factory=ModelSettings)
    data: DataSettings = field(default_factory=DataSettings)
    batch: BatchSettings = field(default_factory=BatchSettings)
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    compute: ComputeSettings = field(default_factory=ComputeSettings)
    checkpoints: CheckpointSettings = field(default_factory=CheckpointSettings)
    logs: LogSettings = field(default_factory=LogSettings)
    metadata_servers: MetadataServers = field(default_factory=MetadataServers)
    sources: Mapping[str, Source] = field(default_factory=dict)

    def value(self, variable: Variable) -> Any:
        return getattr(getattr(self, variable.section), variable.name.lower())

    def shown(self, variable: Variable) -> str:
        """The value as `config` prints it, without a credential inside a URI."""
        return redacted(as_typed(self.value(variable)))

    @property
    def run_names(self) -> tuple[str, ...]:
        """What the run may be called: with MODEL=auto the device decides, which is not asked."""
        if self.run.run_name:
            return (self.run.run_name,)
        if self.model.init_name:
            return (self.model.init_name,)
        return AUTO_MODELS if self.model.model == "auto" else (self.model.model,)

    def is_default(self, name: str) -> bool:
        return self.sources.get(name, "default") == "default"


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
        problems = list(_impossible_combinations(settings))
    if problems:
        raise ConfigError("\n".join(problems))
    return settings


def refuse_several_processes() -> None:
    """Raises ConfigError where a launcher such as torchrun has started more than one process.

    One would train and the others wait for its lease, which looks like distributed training.
    """
    started = os.environ.get("WORLD_SIZE", "")
    if started.isdecimal() and int(started) > 1:
        raise ConfigError(
            f"WORLD_SIZE={started} (from the environment) cannot be used: the job trains in one "
            "process on one GPU; start it without torchrun"
        )


def misspelled(names: list[str]) -> Iterator[tuple[str, str]]:
    """Pairs of (name, nearest variable) for names that almost are a variable of ours."""
    known = [variable.name for variable in variables()]
    for name in sorted(set(names)):
        if name.upper() not in known:
            nearest = next((ours for ours in known if _almost(name.upper(), ours)), None)
            if nearest:
                yield name, nearest


def _almost(name: str, ours: str) -> bool:
    if "_" in name:
        alike = difflib.SequenceMatcher(None, name, ours).ratio() >= _ALIKE
        return alike or ours.startswith(f"{name}_")
    # MODE, MODELS and COMPILER are other programs' words, not our MODEL and COMPILE.
    if len(ours) < _SHORT or name.startswith(ours) or ours.startswith(name):
        return False
    # One letter is wrong, missing or too many, or two have changed places.
    same = next((n for n, (a, b) in enumerate(zip(name, ours, strict=False)) if a != b), 0)
    given, right = name[same:], ours[same:]
    swapped = given[:2] == right[1::-1] and given[2:] == right[2:]
    return swapped or given[1:] in (right, right[1:]) or given == right[1:]


def as_typed(value: object) -> str:
    """A value the way a user writes it: false, 25, 1e-08; nothing for what is unset."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    return str(value).removesuffix(".0") if isinstance(value, float) else str(value)


def variable_table() -> str:
    """The README's table of variables, in Markdown."""
    rows = ["| variable | default | unit | what it does |", "|---|---|---|---|"]
    for variable in variables():
        shown = as_typed(variable.info.default)
        choices = getattr(variable.info.annotation, "__args__", ())
        named = " \\| ".join(choice for choice in choices if isinstance(choice, str))
        text = variable.info.description or ""
        rows.append(
            f"| `{variable.name}` | {f'`{shown}`' if shown else ''} | {variable.unit} "
            f"| {text}{f' ({named})' if named else ''} |"
        )
    return "\n".join(rows)


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


_ALIKE = 0.9  # share of letters
_SHORT = 5  # letters; SEED is one slip away from too many words
_WHERE = {"flag": "a flag", "environment": "the environment", "file": str(ENV_FILE)}


def _problem(detail: Any, sources: Mapping[str, Source]) -> str:
    name = str(detail["loc"][0]).upper()
    reason = str(detail["msg"]).removeprefix("Value error, ").replace("Input should be", "allowed:")
    where = _WHERE.get(sources.get(name, "default"), "its default")
    # A password can hold what ends a URI, which no pattern sees.
    value = "***" if CREDENTIALS in reason else redacted(repr(detail["input"]))
    return f"{name}={value} (from {where}) cannot be used: {reason}"


def _impossible_combinations(settings: Settings) -> Iterator[str]:
    batch, model, data = settings.batch, settings.model, settings.data
    if rest := batch.global_batch_size % batch.batch_size:
        divisor = next(n for n in range(batch.batch_size, 0, -1) if not batch.global_batch_size % n)
        multiple = batch.global_batch_size - rest or batch.batch_size
        yield (
            f"GLOBAL_BATCH_SIZE={batch.global_batch_size} is not a multiple of "
            f"BATCH_SIZE={batch.batch_size}: set BATCH_SIZE={divisor} or "
            f"GLOBAL_BATCH_SIZE={multiple}"
        )
    if model.seq_len and not model.init_from:
        contexts = [PRESETS[model.model]] if model.model != "auto" else list(PRESETS.values())
        longest = max(preset.max_position_embeddings for preset in contexts)
        if model.seq_len > longest:
            yield (
                f"SEQ_LEN={model.seq_len} is above the context of MODEL={model.model}: "
                f"at most {longest} tokens"
            )
    if model.seq_len and data.val_every_steps and data.val_tokens < model.seq_len:
        yield (
            f"VAL_TOKENS={data.val_tokens} is less than one sequence of SEQ_LEN={model.seq_len}: "
            "set it higher"
        )
    if model.init_from and not settings.is_default("MODEL"):
        yield (
            f"MODEL={model.model} has no meaning with INIT_FROM={model.init_from}, whose "
            "config.json gives the shape: unset one of them"
        )
    if model.init_from and not settings.is_default("INIT"):
        yield (
            f"INIT={model.init} has no meaning with INIT_FROM={model.init_from}, which brings its "
            "own weights: unset one of them"
        )
    if data.dataset == "builtin" and not settings.is_default("DATASET_CONFIG"):
        yield "DATASET_CONFIG has no meaning with DATASET=builtin: unset it or name a dataset"

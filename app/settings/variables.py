"""The variables that configure the job: type, bounds, unit, one line of help.

They are grouped into sections, and a module is handed only the section that it needs. `load`
fills the sections; what no type and no bound can say about a single value is in `values`.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo, field_validator
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from app.settings.dataset_spec import mixture_parts
from app.settings.values import (
    as_meant,
    data_source,
    device_count,
    directory_or_hub_id,
    folder,
    host_name,
    number_as_written,
    path_safe,
    step_range,
    steps_to_profile,
    store_uri,
    without_credentials,
)

LOGGERS = ("tensorboard", "csv", "wandb", "mlflow")
MAX_VALIDATION_TOKENS = 4_000_000  # held-out text beyond this is not tokenized


Resume = Literal["auto", "must", "never"]
StartedBy = Literal["python", "make", "compose", "compose-gpu", "docker", "kubernetes"]


class Section(BaseSettings):
    """A group of variables. What is not given has its default.

    `load` hands in what flags, the environment and the file say, in this order, since each of
    them needs a word of its own before it counts. So no section reads a source by itself.
    """

    model_config = SettingsConfigDict(
        frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Only what is handed in."""
        return (init_settings,)

    @field_validator("*", mode="before")
    @classmethod
    def _as_meant(cls, value: Any, place: ValidationInfo) -> Any:
        if not isinstance(value, str):
            return value
        return number_as_written(as_meant(value), cls.model_fields[place.field_name or ""])


def _field(default: Any, description: str, unit: str = "", **bounds: Any) -> Any:
    """A variable with its default, one line of help, its unit, and pydantic's bounds (ge, lt …)."""
    return Field(default, description=description, json_schema_extra={"unit": unit}, **bounds)


class RunSettings(Section):
    run_name: Annotated[str, path_safe("._-", 100)] | None = _field(
        None, "name of the run and its folder; default: the model's name, or INIT_FROM's last part"
    )
    total_steps: int = _field(
        5000, "optimizer steps of the original run", "steps", ge=1, le=100_000_000
    )
    additional_steps: int = _field(
        0, "extend a finished run by this many steps", "steps", ge=0, le=100_000_000
    )
    extension_id: Annotated[str, path_safe("._:-", 200)] | None = _field(
        None,
        "name of the extension: the same name is applied once, however often it starts, and to an "
        "unfinished run that has a checkpoint too",
    )
    resume: Resume = _field(
        "auto",
        "must: refuse to start a new run, as where a volume may not be mounted; never: refuse to "
        "go on with a run",
    )
    seed: int = _field(1337, "seed of the weights and of the data order", ge=0, lt=2**63)
    trainer: Literal["lightning", "torch"] = _field(
        "lightning", "pytorch-lightning, or a plain PyTorch loop"
    )

    @property
    def unnamed_steps(self) -> int:
        """ADDITIONAL_STEPS, if no EXTENSION_ID says which start asked for them first."""
        return 0 if self.extension_id else self.additional_steps


class ModelSettings(Section):
    model: Literal["auto", "smollm2-135m", "smollm2-360m", "smollm2-1.7b", "tiny"] = _field(
        "auto", "the model's shape; auto: 135m where there is a GPU, tiny where not"
    )
    seq_len: int | None = _field(
        None,
        "length of a training sequence; default: the model's context",
        "tokens",
        ge=8,
        le=131_072,
    )
    init_from: Annotated[str, AfterValidator(directory_or_hub_id)] | None = _field(
        None, "start from the weights of a Hugging Face directory or hub id (owner/name@revision)"
    )
    init: Literal["normal", "scaled"] = _field(
        "normal", "first weights: one deviation; or o_proj, down_proj / sqrt(2 · layers)"
    )

    @property
    def names_shape(self) -> bool:
        """Whether MODEL names a shape. `auto` is the default, whether or not somebody typed it."""
        return self.model != "auto"

    @property
    def init_name(self) -> str | None:
        """What a run from INIT_FROM is called: the last part of its path, or of its name."""
        if self.init_from is None:
            return None
        hub_name = re.fullmatch(r"([\w.-]+/)?([\w.-]+)@.+", self.init_from)
        return hub_name[2] if hub_name else self.init_from.rstrip("/").rsplit("/", 1)[-1]


class DataSettings(Section):
    dataset: str = _field(
        "builtin",
        "builtin, a hub id, or a path, pattern or URI of .txt, .jsonl or .parquet; "
        "or several of them with weights: a:0.7,b:0.3",
        min_length=1,
    )
    dataset_config: str | None = _field(None, "configuration (subset) of a hub dataset")
    dataset_split: str = _field("train", "split of the dataset", min_length=1)
    text_column: str = _field("text", "column that holds the text", min_length=1)
    tokenizer: Annotated[str, AfterValidator(directory_or_hub_id)] = _field(
        "builtin",
        "builtin, or a Hugging Face directory or hub id (owner/name@revision)",
        min_length=1,
    )
    document_mask: bool = _field(
        False, "documents packed into one sequence do not attend to each other"
    )
    data_dir: Annotated[Path, BeforeValidator(folder)] = _field(
        Path("runs/data"), "folder for prepared tokens, caches and local logs; in the image: /data"
    )
    val_every_steps: int = _field(0, "validation loss every so many steps; 0: off", "steps", ge=0)
    val_tokens: int = _field(
        131_072, "size of the validation set", "tokens", ge=256, le=MAX_VALIDATION_TOKENS
    )

    @field_validator("dataset")
    @classmethod
    def _readable(cls, dataset: str) -> str:
        try:
            specs = [part.spec for part in mixture_parts(dataset)] or [dataset]
        except ValueError:
            # The error of a mixture quotes DATASET, so a credential in it is reported first.
            without_credentials(dataset)
            raise
        for spec in specs:
            data_source(spec)
        return dataset


class BatchSettings(Section):
    batch_size: int = _field(2, "sequences per device and micro-step", "sequences", ge=1, le=65_536)
    global_batch_size: int = _field(
        16,
        "sequences per optimizer step; gradient accumulation follows from it",
        "sequences",
        ge=1,
        le=1_048_576,
    )


class OptimizerSettings(Section):
    optimizer: Literal["adamw", "muon"] = _field(
        "adamw", "of the matrices inside the layers; embedding and norms always have AdamW"
    )
    learning_rate: float = _field(3e-4, "peak learning rate, of both optimizers", gt=0, le=1)
    lr_schedule: Literal["cosine", "wsd", "constant"] = _field(
        "cosine", "after warm-up: cosine to the floor, stable then decay, or constant"
    )
    warmup_steps: int = _field(100, "linear warm-up", "steps", ge=0)
    min_lr_ratio: float = _field(0.1, "floor, as a share of the peak", ge=0, le=1)
    extension_lr: Literal["hold", "stretch"] = _field(
        "hold", "in an extension: stay at the floor, or follow the longer schedule"
    )
    weight_decay: float = _field(0.1, "of matrices; norms have none", ge=0, le=10)
    adam_beta1: float = _field(0.9, "AdamW's first-moment decay", ge=0, lt=1)
    adam_beta2: float = _field(0.999, "AdamW's second-moment decay", ge=0, lt=1)
    adam_epsilon: float = _field(1e-8, "AdamW's denominator term", gt=0, le=1)
    grad_clip: float = _field(1.0, "largest gradient norm; 0: no clipping", ge=0)
    z_loss: float = _field(
        0.0, "weight of z-loss in the gradient; losses are reported without it; 0: off", ge=0, le=1
    )


class ComputeSettings(Section):
    device: Literal["auto", "cpu", "cuda", "mps"] = _field("auto", "auto: a GPU where there is one")
    precision: Literal["auto", "32-true", "bf16-mixed"] = _field(
        "auto", "auto: bf16-mixed on GPUs and CPUs that have it, else 32-true"
    )
    compile: Literal["auto", "true", "false"] = _field("auto", "torch.compile; auto: on CUDA")
    fused_loss: Literal["auto", "true", "false"] = _field(
        "auto", "never hold all logits; auto: on a CPU, and on GPUs of less than 32 GiB"
    )
    gradient_checkpointing: bool = _field(
        False, "recompute activations in the backward pass, to save memory"
    )
    num_workers: int | None = _field(
        None, "data loading processes; default: 0 on CPU, 2 on a GPU", ge=0, le=256
    )


class CheckpointSettings(Section):
    checkpoint_uri: Annotated[str, AfterValidator(store_uri)] = _field(
        "runs/checkpoints",
        "a folder, also as file:///absolute/folder, or s3://bucket/prefix; "
        "in the image: /checkpoints",
    )
    checkpoint_every_steps: int = _field(20, "steps between checkpoints", "steps", ge=1)
    keep_top: int = _field(
        5, "checkpoints kept by train loss; the newest is kept too", ge=0, le=10_000
    )
    grace_seconds: float = _field(
        25, "time between SIGTERM and SIGKILL", "seconds", gt=0, le=86_400
    )
    spot_notices: Literal["off", "aws", "gcp"] = _field(
        "off", "ask the cloud's metadata server for spot notices, and act as on SIGTERM"
    )
    lease_ttl: float = _field(
        30, "a silent holder of the run is dead after this long", "seconds", ge=2, le=3_600
    )
    lease_wait: float = _field(
        120, "how long to wait for a live holder before exit 75", "seconds", ge=0, le=86_400
    )
    give_up_seconds: float = _field(
        1800, "how long saving may fail before exit 75", "seconds", ge=0, le=604_800
    )
    hang_seconds: float = _field(
        1800,
        "without a micro-step, a save or data for so long: exit 75; "
        "until the first step is done, four times as long",
        "seconds",
        ge=10,
        le=604_800,
    )


class LogSettings(Section):
    log_every_steps: int = _field(1, "steps between log lines", "steps", ge=1)
    log_format: Literal["text", "json"] = _field("text", "one line per event, as …")
    log_level: Literal["debug", "info", "warning"] = _field(
        "info", "the least that is logged; debug: errors with their tracebacks, too"
    )
    sample_every_steps: int = _field(
        0, "steps between text samples in the log; 0: off", "steps", ge=0
    )
    loggers: str = _field(
        "tensorboard,csv", "beside metrics.jsonl: any of tensorboard, csv, wandb, mlflow; or none"
    )
    started_by: StartedBy = _field(
        "python",
        "how you call this program, for the commands in its last lines; compose, make, the image "
        "and k8s/job.yaml set it",
    )
    metrics_port: int = _field(
        0,
        "serve /metrics for Prometheus, /healthz and the live page on this port; 0: off",
        ge=0,
        le=65_535,
    )
    metrics_host: Annotated[str, AfterValidator(host_name)] = _field(
        "127.0.0.1", "address to serve them on; 0.0.0.0: every network of this machine"
    )

    profile_steps: Annotated[str, AfterValidator(steps_to_profile)] | None = _field(
        None, "write a trace of torch's profiler of these steps into the store, as 10-12"
    )

    @property
    def profiled(self) -> range | None:
        """The steps that PROFILE_STEPS names."""
        return step_range(self.profile_steps) if self.profile_steps else None

    @field_validator("loggers")
    @classmethod
    def _known_loggers(cls, value: str) -> str:
        names = [name.strip() for name in value.split(",") if name.strip()]
        if unknown := [name for name in names if name not in (*LOGGERS, "none")]:
            raise ValueError(f"{unknown[0]!r} is none of {', '.join(LOGGERS)}, none")
        return ",".join(name for name in names if name != "none")


class ProcessSettings(Section):
    devices: Annotated[str, AfterValidator(device_count)] = _field(
        "auto", "processes on this machine, one for each device; auto: every GPU, 1 on a CPU"
    )
    num_nodes: int = _field(1, "machines that train the run together", ge=1, le=10_000)
    node_rank: int = _field(0, "number of this machine among them, from 0", ge=0, lt=10_000)
    master_addr: str | None = _field(None, "address of machine 0, where processes find each other")
    master_port: int = _field(
        29500, "port there, open for the other machines; one machine needs none", ge=1, le=65_535
    )
    peer_timeout: float = _field(
        60, "a process that is silent for so long is lost: exit 75", "seconds", ge=5, le=86_400
    )


class MetadataServers(Section):
    """Where a machine asks its cloud about itself: the clouds' own names, not the job's."""

    aws_ec2_metadata_service_endpoint: str = "http://169.254.169.254/"
    gce_metadata_host: str = "169.254.169.254"


SECTIONS: dict[str, type[Section]] = {
    "run": RunSettings,
    "model": ModelSettings,
    "data": DataSettings,
    "batch": BatchSettings,
    "optimizer": OptimizerSettings,
    "compute": ComputeSettings,
    "checkpoints": CheckpointSettings,
    "logs": LogSettings,
    "processes": ProcessSettings,
}


@dataclass(frozen=True)
class Variable:
    """One row of the table in docs/variables.md, and of what `config` shows."""

    name: str
    section: str
    info: FieldInfo

    @property
    def flag(self) -> str:
        return f"--{self.name.lower()}"

    @property
    def unit(self) -> str:
        extra = self.info.json_schema_extra
        return str(extra.get("unit", "")) if isinstance(extra, dict) else ""


def variables() -> Iterator[Variable]:
    for section, model in SECTIONS.items():
        for name, info in model.model_fields.items():
            yield Variable(name.upper(), section, info)

"""The variables that configure the job: type, bounds, unit, one line of help.

They are grouped into sections, and a module is handed only the section that it needs. `load`
fills the sections; what no type and no bound can say about a single value is in `values`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, field_validator
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, SettingsConfigDict

from app.settings.dataset_spec import mixture_parts
from app.settings.values import path_safe, store_uri, without_credentials

ENV_FILE = Path(".env")
MAX_VALIDATION_TOKENS = 4_000_000  # held-out text beyond this is not tokenized


class Section(BaseSettings):
    """A group of variables. An empty value counts as unset, so that compose can pass it on."""

    model_config = SettingsConfigDict(
        frozen=True, extra="ignore", env_ignore_empty=True, env_file=ENV_FILE
    )


def _unit(name: str) -> dict[str, Any]:
    return {"unit": name}


class RunSettings(Section):
    run_name: Annotated[str, path_safe("._-", 100)] | None = Field(
        None,
        description="name of the run, and of its folder in the store; default: the model's name",
    )
    total_steps: int = Field(
        5000,
        ge=1,
        le=100_000_000,
        description="optimizer steps of the original run",
        json_schema_extra=_unit("steps"),
    )
    additional_steps: int = Field(
        0,
        ge=0,
        le=100_000_000,
        description="extend a finished run by this many steps",
        json_schema_extra=_unit("steps"),
    )
    extension_id: Annotated[str, path_safe("._:-", 200)] | None = Field(
        None,
        description="name of the extension: the same name is applied once, however often it starts",
    )
    seed: int = Field(1337, ge=0, lt=2**63, description="seed of the weights and of the data order")
    trainer: Literal["lightning", "torch"] = Field(
        "lightning", description="pytorch-lightning, or a plain PyTorch loop"
    )


class ModelSettings(Section):
    model: Literal["auto", "smollm2-135m", "smollm2-360m", "smollm2-1.7b", "tiny"] = Field(
        "auto", description="the model's shape; auto: 135m where there is a GPU, tiny where not"
    )
    seq_len: int | None = Field(
        None,
        ge=8,
        le=131_072,
        description="length of a training sequence; default: the model's context",
        json_schema_extra=_unit("tokens"),
    )
    init_from: Annotated[str, AfterValidator(without_credentials)] | None = Field(
        None,
        description="start from the weights of a Hugging Face directory or hub id",
    )
    init: Literal["normal", "scaled"] = Field(
        "normal",
        description="first weights: one deviation; or o_proj, down_proj / sqrt(2 · layers)",
    )

    @property
    def init_name(self) -> str | None:
        """What a run from INIT_FROM is called: the last part of it."""
        return self.init_from.rstrip("/").rsplit("/", 1)[-1] if self.init_from else None


class DataSettings(Section):
    dataset: str = Field(
        "builtin",
        min_length=1,
        description="builtin, a hub id, or a path, glob or URI of .txt, .jsonl or .parquet; "
        "or several of them with weights: a:0.7,b:0.3",
    )
    dataset_config: str | None = Field(None, description="configuration (subset) of a hub dataset")
    dataset_split: str = Field("train", min_length=1, description="split of the dataset")
    text_column: str = Field("text", min_length=1, description="column that holds the text")
    tokenizer: Annotated[str, AfterValidator(without_credentials)] = Field(
        "builtin", min_length=1, description="builtin, or a Hugging Face directory or hub id"
    )
    document_mask: bool = Field(
        False, description="documents packed into one sequence do not attend to each other"
    )
    data_dir: Path = Field(
        Path("/data"), description="folder for prepared tokens, caches and local logs"
    )
    val_every_steps: int = Field(
        0,
        ge=0,
        description="validation loss every so many steps; 0: off",
        json_schema_extra=_unit("steps"),
    )
    val_tokens: int = Field(
        131_072,
        ge=256,
        le=MAX_VALIDATION_TOKENS,
        description="size of the validation set",
        json_schema_extra=_unit("tokens"),
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
            without_credentials(spec)
        return dataset

    @field_validator("data_dir")
    @classmethod
    def _absolute(cls, path: Path) -> Path:
        return path.absolute()


class BatchSettings(Section):
    batch_size: int = Field(
        2,
        ge=1,
        le=65_536,
        description="sequences per device and micro-step",
        json_schema_extra=_unit("sequences"),
    )
    global_batch_size: int = Field(
        16,
        ge=1,
        le=1_048_576,
        description="sequences per optimizer step; gradient accumulation follows from it",
        json_schema_extra=_unit("sequences"),
    )


class OptimizerSettings(Section):
    optimizer: Literal["adamw", "muon"] = Field(
        "adamw",
        description="of the matrices inside the layers; embedding and norms always have AdamW",
    )
    learning_rate: float = Field(
        3e-4, gt=0, le=1, description="peak learning rate, of both optimizers"
    )
    lr_schedule: Literal["cosine", "wsd", "constant"] = Field(
        "cosine", description="after warm-up: cosine to the floor, stable then decay, or constant"
    )
    warmup_steps: int = Field(
        100, ge=0, description="linear warm-up", json_schema_extra=_unit("steps")
    )
    min_lr_ratio: float = Field(0.1, ge=0, le=1, description="floor, as a share of the peak")
    extension_lr: Literal["hold", "stretch"] = Field(
        "hold", description="in an extension: stay at the floor, or follow the longer schedule"
    )
    weight_decay: float = Field(0.1, ge=0, le=10, description="of matrices; norms have none")
    adam_beta1: float = Field(0.9, ge=0, lt=1, description="AdamW's first-moment decay")
    adam_beta2: float = Field(0.999, ge=0, lt=1, description="AdamW's second-moment decay")
    adam_epsilon: float = Field(1e-8, gt=0, le=1, description="AdamW's denominator term")
    grad_clip: float = Field(1.0, ge=0, description="largest gradient norm; 0: no clipping")
    z_loss: float = Field(
        0.0,
        ge=0,
        le=1,
        description="weight of z-loss in the gradient; losses are reported without it; 0: off",
    )


class ComputeSettings(Section):
    device: Literal["auto", "cpu", "cuda", "mps"] = Field(
        "auto", description="auto: a GPU where there is one"
    )
    precision: Literal["auto", "32-true", "bf16-mixed"] = Field(
        "auto", description="auto: bf16-mixed on GPUs and CPUs that have it, else 32-true"
    )
    compile: Literal["auto", "true", "false"] = Field(
        "auto", description="torch.compile; auto: on CUDA"
    )
    fused_loss: Literal["auto", "true", "false"] = Field(
        "auto",
        description="never hold all logits; auto: on a CPU, and on GPUs of less than 32 GiB",
    )
    gradient_checkpointing: bool = Field(
        False, description="recompute activations in the backward pass, to save memory"
    )
    num_workers: int | None = Field(
        None, ge=0, le=256, description="data loading processes; default: 0 on CPU, 2 on a GPU"
    )


class CheckpointSettings(Section):
    checkpoint_uri: Annotated[str, AfterValidator(store_uri)] = Field(
        "file:///checkpoints", description="file:///absolute/folder or s3://bucket/prefix"
    )
    checkpoint_every_steps: int = Field(
        20, ge=1, description="steps between checkpoints", json_schema_extra=_unit("steps")
    )
    keep_top: int = Field(
        5, ge=0, le=10_000, description="checkpoints kept by train loss; the newest is kept too"
    )
    grace_seconds: float = Field(
        25,
        gt=0,
        le=86_400,
        description="time between SIGTERM and SIGKILL",
        json_schema_extra=_unit("seconds"),
    )
    spot_notices: Literal["off", "aws", "gcp"] = Field(
        "off", description="ask the cloud's metadata server for spot notices, and act as on SIGTERM"
    )
    lease_ttl: float = Field(
        30,
        ge=2,
        le=3_600,
        description="a silent holder of the run is dead after this long",
        json_schema_extra=_unit("seconds"),
    )
    lease_wait: float = Field(
        120,
        ge=0,
        le=86_400,
        description="how long to wait for a live holder before exit 79",
        json_schema_extra=_unit("seconds"),
    )
    give_up_seconds: float = Field(
        1800,
        ge=0,
        le=604_800,
        description="how long saving may fail before exit 75",
        json_schema_extra=_unit("seconds"),
    )


class LogSettings(Section):
    log_every_steps: int = Field(
        1, ge=1, description="steps between log lines", json_schema_extra=_unit("steps")
    )
    log_format: Literal["text", "json"] = Field("text", description="one line per event, as …")
    sample_every_steps: int = Field(
        0,
        ge=0,
        description="steps between text samples in the log; 0: off",
        json_schema_extra=_unit("steps"),
    )
    loggers: str = Field(
        "tensorboard,csv", description="beside metrics.jsonl: any of tensorboard, csv; or none"
    )
    metrics_port: int = Field(
        0, ge=0, le=65_535, description="serve Prometheus metrics on this port; 0: off"
    )

    @field_validator("loggers")
    @classmethod
    def _known_loggers(cls, value: str) -> str:
        names = [name.strip() for name in value.split(",") if name.strip()]
        if unknown := [name for name in names if name not in ("tensorboard", "csv", "none")]:
            raise ValueError(f"{unknown[0]!r} is none of tensorboard, csv, none")
        return ",".join(name for name in names if name != "none")


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
}


@dataclass(frozen=True)
class Variable:
    """One row of the table that the README and `config` show."""

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

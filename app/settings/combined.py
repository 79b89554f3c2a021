"""All sections together: as one value, and the combinations of values that are refused."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from app.console import redacted
from app.settings.place import Place
from app.settings.presets import AUTO_MODELS, PRESETS
from app.settings.trackers import TrackerNames
from app.settings.values import as_typed
from app.settings.variables import (
    BatchSettings,
    CheckpointSettings,
    ComputeSettings,
    DataSettings,
    LogSettings,
    MetadataServers,
    ModelSettings,
    OptimizerSettings,
    ProcessSettings,
    RunSettings,
    Variable,
)

Source = Literal["default", "preset", "environment", "file", "flag"]


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
    processes: ProcessSettings = field(default_factory=ProcessSettings)
    metadata_servers: MetadataServers = field(default_factory=MetadataServers)
    trackers: TrackerNames = field(default_factory=TrackerNames)
    place: Place = field(default_factory=Place)
    sources: Mapping[str, Source] = field(default_factory=dict)
    s3_endpoint: str = ""  # the variable that names it, with its value

    def value(self, variable: Variable) -> Any:
        return getattr(getattr(self, variable.section), variable.name.lower())

    def shown(self, variable: Variable) -> str:
        """The value as `config` prints it, without a credential inside a URI."""
        return redacted(as_typed(self.value(variable)))

    @property
    def run_names(self) -> tuple[str, ...]:
        """The names that the run may have: both of them for MODEL=auto.

        Which one it is depends on the device, and only a look at it, through torch, can tell.
        """
        if self.run.run_name:
            return (self.run.run_name,)
        if self.model.init_name:
            return (self.model.init_name,)
        return AUTO_MODELS if self.model.model == "auto" else (self.model.model,)

    @property
    def run_place(self) -> str:
        """The run and where it lies, in the same words for each command with these settings."""
        uri = self.checkpoints.checkpoint_uri
        at = f" at {redacted(self.s3_endpoint)}" if "s3://" in uri and self.s3_endpoint else ""
        return f"run {' or '.join(self.run_names)} in {uri}{at}"

    @property
    def uses_s3(self) -> bool:
        return "s3://" in f"{self.checkpoints.checkpoint_uri} {self.data.dataset}"

    def is_default(self, name: str) -> bool:
        """Whether the user has not set it: the value is the general default, or the model's."""
        return self.sources.get(name, "default") in ("default", "preset")


def impossible_combinations(settings: Settings) -> Iterator[str]:
    """One line for each, with what to set instead."""
    batch, model, data = settings.batch, settings.model, settings.data
    devices = settings.processes.devices
    if settings.compute.device == "mps" and devices not in ("auto", "1"):
        yield (
            f"DEVICES={devices}, but an Apple GPU serves one process: set DEVICES=1, or DEVICE=cpu"
        )
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
    if model.init_from and model.names_shape:
        yield (
            f"MODEL={model.model} has no meaning with INIT_FROM={model.init_from}, whose "
            "config.json gives the shape: unset one of them"
        )
    if model.init_from and model.init != "normal":
        yield (
            f"INIT={model.init} has no meaning with INIT_FROM={model.init_from}, which brings its "
            "own weights: unset one of them"
        )
    if data.dataset == "builtin" and not settings.is_default("DATASET_CONFIG"):
        yield "DATASET_CONFIG has no meaning with DATASET=builtin: unset it or name a dataset"


def impossible_nodes(settings: Settings) -> Iterator[str]:
    """What `train` cannot use of NUM_NODES and the like; other commands do not look at them."""
    processes = settings.processes
    if processes.num_nodes == 1:
        if processes.node_rank:
            yield f"NODE_RANK={processes.node_rank}, but NUM_NODES=1: unset one of them"
        return
    several = f"NUM_NODES={processes.num_nodes}"
    if settings.is_default("NODE_RANK"):
        yield f"{several}, but NODE_RANK is not set: give each machine its number, from 0"
    elif processes.node_rank >= processes.num_nodes:
        yield f"NODE_RANK={processes.node_rank}, but {several}: numbers begin with 0"
    if not processes.master_addr:
        yield f"{several}, but MASTER_ADDR is not set: it is the address of machine 0, for all"

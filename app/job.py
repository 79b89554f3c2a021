"""A job: the settings with everything decided that depends on device, model and tokenizer."""

import logging
from dataclasses import asdict, dataclass
from pathlib import Path

from app.compute import Compute, resolve_compute, resolve_model
from app.console import duration
from app.errors import ConfigError
from app.health import beat
from app.loader import BatchGeometry
from app.prepare import PreparedData, PrepareProgress, check_enough, prepare
from app.presets import ModelConfig
from app.pretrained import model_directory, read_config
from app.record import Identity
from app.sampler import SampleOrder
from app.sections import ModelSettings, redacted
from app.settings import Settings
from app.sources import PinnedSource
from app.tokenizer import TokenizerFiles, load_tokenizer

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """The settings with everything decided that depends on the device and the model."""

    settings: Settings
    compute: Compute
    model_name: str
    config: ModelConfig
    run_name: str
    geometry: BatchGeometry
    init_directory: Path | None
    tokenizer: TokenizerFiles

    def identity(self, source: PinnedSource) -> Identity:
        data, model = self.settings.data, self.settings.model
        return Identity(
            model=self.model_name,
            shape=asdict(self.config),
            dataset=redacted(data.dataset),
            dataset_revision=source.revision,
            dataset_fingerprint=source.fingerprint,
            tokenizer=data.tokenizer,
            tokenizer_fingerprint=self.tokenizer.fingerprint,
            seq_len=self.geometry.seq_len,
            global_batch_size=self.geometry.global_batch_size,
            seed=self.settings.run.seed,
            init_from=model.init_from,
            init=model.init,
            optimizer=self.settings.optimizer.optimizer,
        )


def resolve_job(settings: Settings) -> Job:
    """Decide device, model, sequence length and tokenizer."""
    compute = resolve_compute(settings.compute)
    name, config, directory = _resolve_model(settings.model, compute)
    seq_len = settings.model.seq_len or config.max_position_embeddings
    if seq_len > config.max_position_embeddings:
        raise ConfigError(
            f"SEQ_LEN={seq_len} is above the context of {name}: at most "
            f"{config.max_position_embeddings} tokens"
        )
    batch = settings.batch
    spec = settings.data.tokenizer
    if directory is not None and settings.is_default("TOKENIZER"):
        spec = str(directory)  # the weights know no other token ids
    tokenizer = load_tokenizer(spec, settings.data.data_dir, config.vocab_size)
    return Job(
        settings=settings,
        compute=compute,
        model_name=name,
        config=config,
        run_name=settings.run.run_name or name,
        geometry=BatchGeometry(batch.batch_size, batch.global_batch_size, seq_len),
        init_directory=directory,
        tokenizer=tokenizer,
    )


def _resolve_model(
    settings: ModelSettings, compute: Compute
) -> tuple[str, ModelConfig, Path | None]:
    name, config = resolve_model(settings.model, compute.device)
    if settings.model == "auto":
        log.info("MODEL=auto: %s, since this is %s", name, compute.device_name)
    if settings.init_from is None:
        return name, config, None
    directory = model_directory(settings.init_from, "INIT_FROM")
    assert settings.init_name is not None
    return settings.init_name, read_config(directory), directory


def prepare_tokens(job: Job, source: PinnedSource, target: int) -> PreparedData:
    """Tokens for `target` steps, and a validation split where one is asked for."""
    order = SampleOrder(n_sequences=None, seed=job.settings.run.seed)
    sequences = target * job.geometry.global_batch_size
    windows = -(-sequences // order.window)
    tokens = windows * order.window * job.geometry.seq_len + 1

    def report(progress: PrepareProgress) -> None:
        beat()
        log.info(
            "preparing data: %s documents, %s tokens in %s",
            f"{progress.documents:,}",
            f"{progress.tokens:,}",
            duration(progress.seconds),
        )

    data = prepare(source.settings, job.tokenizer, tokens, report, source=source.fingerprint)
    check_enough(data, job.geometry.seq_len)
    if job.settings.data.val_every_steps:
        held_out = min(
            job.settings.data.val_tokens, data.validation.n_tokens - 1 if data.validation else 0
        )
        if held_out < job.geometry.seq_len:
            raise ConfigError(
                f"VAL_EVERY_STEPS={job.settings.data.val_every_steps}, but DATASET="
                f"{job.settings.data.dataset} is too small to hold out {job.geometry.seq_len + 1} "
                "tokens: set VAL_EVERY_STEPS=0"
            )
    return data

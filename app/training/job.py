"""A job: the settings with everything decided that depends on device, model and tokenizer."""

import logging
from dataclasses import asdict, dataclass
from pathlib import Path

from app.console import redacted
from app.data.sample_order import BatchGeometry
from app.data.tokenizer import TokenizerFiles, load_tokenizer
from app.errors import ConfigError
from app.model.huggingface import model_directory, read_config
from app.run.record import Identity, one_path
from app.settings.combined import Settings
from app.settings.local_paths import local_path
from app.settings.presets import ModelConfig
from app.settings.variables import ModelSettings
from app.training.compute import Compute, resolve_compute, resolve_model

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

    def identity(self, revision: str | None, fingerprint: str) -> Identity:
        """What this job would record of the run, given revision and fingerprint of its data."""
        data, model = self.settings.data, self.settings.model
        return Identity(
            model=self.model_name,
            shape=asdict(self.config),
            dataset=redacted(data.dataset),
            dataset_revision=revision,
            dataset_fingerprint=fingerprint,
            tokenizer=data.tokenizer,
            tokenizer_fingerprint=self.tokenizer.fingerprint,
            seq_len=self.geometry.seq_len,
            global_batch_size=self.geometry.global_batch_size,
            seed=self.settings.run.seed,
            init_from=_one_name(model.init_from),
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
        spec = str(directory)  # the weights were trained with the ids of this tokenizer
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


def _one_name(spec: str | None) -> str | None:
    """A folder's resolved path, however it was typed; a hub id stays as it is."""
    return one_path(str(path)) if spec and (path := local_path(spec)).is_dir() else spec

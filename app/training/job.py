"""A job: the settings with everything decided that depends on device, model and tokenizer."""

import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass

from app.console import redacted
from app.data.sample_order import BatchGeometry
from app.data.tokenizer import TokenizerFiles, load_tokenizer
from app.errors import ConfigError
from app.settings.combined import Settings
from app.settings.presets import ModelConfig
from app.state.identity import Identity
from app.training.compute import Compute, resolve_compute, resolve_model
from app.training.first_weights import BegunRun, FirstWeights, first_weights

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
    init: FirstWeights | None
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
            init_from=self.init.init_from if self.init else None,
            init_weights=self.init.digest if self.init else None,
            init=model.init,
            optimizer=self.settings.optimizer.optimizer,
        )


def resolve_job(
    settings: Settings, begun_as: Callable[[str], BegunRun | None] | None = None
) -> Job:
    """Decide device, model, sequence length and tokenizer.

    `begun_as` finds the run of a name, if it was begun: INIT_FROM is needed only before there is
    a checkpoint. Without `begun_as` nobody asks what INIT_FROM holds.
    """
    compute = resolve_compute(settings.compute)
    model = settings.model
    preset, shape = resolve_model(model.model, compute.device)
    run_name = settings.run.run_name or model.init_name or preset
    begun = begun_as(run_name) if begun_as else None
    init = first_weights(settings, begun, identified=begun_as is not None)
    name, config = (init.model, init.config) if init else (preset, shape)
    if init is None and model.model == "auto":
        log.info("MODEL=auto: %s, since this is %s", name, compute.device_name)
    seq_len = model.seq_len or config.max_position_embeddings
    if seq_len > config.max_position_embeddings:
        raise ConfigError(
            f"SEQ_LEN={seq_len} is above the context of {name}: at most "
            f"{config.max_position_embeddings} tokens"
        )
    batch = settings.batch
    return Job(
        settings=settings,
        compute=compute,
        model_name=name,
        config=config,
        run_name=run_name,
        geometry=BatchGeometry(batch.batch_size, batch.global_batch_size, seq_len),
        init=init,
        tokenizer=_tokenizer(settings, config, init, begun),
    )


def _tokenizer(
    settings: Settings, config: ModelConfig, init: FirstWeights | None, begun: BegunRun | None
) -> TokenizerFiles:
    spec, data_dir = settings.data.tokenizer, settings.data.data_dir
    if init is not None and settings.is_default("TOKENIZER"):
        # The weights were trained with the ids of their own tokenizer.
        if init.directory is None and begun is not None:
            return begun.tokenizer(data_dir)
        spec = str(init.directory)
    return load_tokenizer(spec, data_dir, config.vocab_size)

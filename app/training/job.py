"""A job: the settings with everything decided that depends on device, model and tokenizer."""

import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from app.console import redacted
from app.data.preparation import Preparation
from app.data.sample_order import BatchGeometry, SampleOrder
from app.data.sources import PinnedSource
from app.data.token_cache import open_token_cache
from app.data.token_need import PrepareProgress, TokenNeed, Waiting
from app.data.tokenizer import TokenizerFiles, load_tokenizer
from app.errors import ConfigError
from app.model.huggingface import model_directory, read_config
from app.run.record import Identity, one_path
from app.settings.combined import Settings
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
        """With the hub revision and the fingerprint of the data, which are not looked at here."""
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


def _one_name(spec: str | None) -> str | None:
    """A folder's own path, whichever way it was typed; a hub id as it is."""
    return one_path(spec) if spec and Path(spec).is_dir() else spec


def open_preparation(
    job: Job,
    source: PinnedSource,
    steps: range,
    report: Callable[[PrepareProgress], None],
    *,
    everything: bool = False,
) -> Preparation:
    """Tokens for the optimizer steps `steps` (or all of DATASET), and a validation split
    where one is asked for. Nothing is done yet."""
    data, seq_len = job.settings.data, job.geometry.seq_len
    order = SampleOrder(n_sequences=None, seed=job.settings.run.seed)
    first_window = steps.start * job.geometry.global_batch_size // order.window
    need = TokenNeed(
        start=first_window * order.window * seq_len,
        stop=order.tokens_until(steps.stop * job.geometry.global_batch_size, seq_len),
        validation=data.val_tokens + 1 if data.val_every_steps else 0,
    )
    uri = job.settings.checkpoints.checkpoint_uri
    return Preparation(
        source,
        job.tokenizer,
        replace(need, stop=None) if everything else need,
        cache=lambda fingerprint: open_token_cache(uri, fingerprint),
        report=report,
    )


def check_data(job: Job, preparation: Preparation, waiting: Waiting) -> None:
    """Wait for the first tokens. Raises ConfigError if DATASET is too small for the run."""
    data, seq_len = job.settings.data, job.geometry.seq_len
    n_tokens = preparation.wait_for("train", seq_len + 1, waiting).n_tokens("train")
    if n_tokens < seq_len + 1:
        raise ConfigError(
            f"DATASET has only {n_tokens} tokens to train on, and one sequence takes "
            f"SEQ_LEN + 1 = {seq_len + 1}: set a smaller SEQ_LEN or name a larger dataset"
        )
    if data.val_every_steps:
        index = preparation.wait_for("validation", seq_len + 1, waiting)
        if min(data.val_tokens, index.n_tokens("validation") - 1) < seq_len:
            raise ConfigError(
                f"VAL_EVERY_STEPS={data.val_every_steps}, but DATASET={data.dataset} is too "
                f"small to hold out {seq_len + 1} tokens: set VAL_EVERY_STEPS=0"
            )

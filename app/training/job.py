"""A job: the settings with everything decided that depends on device, model and tokenizer."""

import logging
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from app.console import redacted
from app.data.builtin import BUILTIN
from app.data.sample_order import BatchGeometry
from app.data.tokenizer import TokenizerFiles, load_tokenizer
from app.errors import AccessDenied, ConfigError, NotFound, Unavailable
from app.failures import disk_failures
from app.model.hub_snapshot import local_directory
from app.model.huggingface import model_directory, read_config
from app.run.kept_files import copy_kept_files
from app.run.record import Identity, load_record, one_path
from app.settings.combined import Settings
from app.settings.local_paths import local_path
from app.settings.presets import ModelConfig
from app.stores.contract import Store
from app.stores.opening import open_store
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
    """Decide device, model, sequence length and tokenizer.

    A hub that is away, or no longer has what TOKENIZER and INIT_FROM name, does not stop a run that
    has a checkpoint: config and tokenizer are in it.
    """
    compute = resolve_compute(settings.compute)
    preset, shape = resolve_model(settings.model.model, compute.device)
    if settings.model.model == "auto":
        log.info("MODEL=auto: %s, since this is %s", preset, compute.device_name)
    name = settings.model.init_name or preset
    try:
        return _resolve(settings, compute, name, shape, None)
    except (Unavailable, AccessDenied, NotFound) as error:
        store = _begun_run(settings, settings.run.run_name or name)
        if store is None:
            raise
        data_dir = settings.data.data_dir
        with disk_failures(f"DATA_DIR={data_dir}"):
            data_dir.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=".scratch-", dir=data_dir) as scratch:
                kept = Path(scratch) / name
                if not copy_kept_files(store, kept):
                    raise
                log.warning("%s; what the run's newest checkpoint holds of it is used", error)
                return _resolve(settings, compute, name, shape, kept)


def _resolve(
    settings: Settings, compute: Compute, name: str, shape: ModelConfig, kept: Path | None
) -> Job:
    """`kept` is a folder to use in the place of a repository of the hub."""
    config, directory = shape, None
    if init_from := settings.model.init_from:
        on_hub = kept and _is_hub_id(init_from, "INIT_FROM")
        directory = kept if on_hub else model_directory(init_from, "INIT_FROM")
        assert directory is not None
        config = read_config(directory)
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
    elif kept and _is_hub_id(spec, "TOKENIZER"):
        spec = str(kept)
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


def _begun_run(settings: Settings, run_name: str) -> Store | None:
    """The run, if it was begun with the same names and one of them at least is the hub's."""
    names = {"TOKENIZER": settings.data.tokenizer, "INIT_FROM": settings.model.init_from}
    if not any(spec and _is_hub_id(spec, variable) for variable, spec in names.items()):
        return None
    store = open_store(settings.checkpoints.checkpoint_uri, run_name)
    stored = load_record(store)
    begun = stored and (stored.record.identity.tokenizer, stored.record.identity.init_from)
    return store if begun == (names["TOKENIZER"], _one_name(names["INIT_FROM"])) else None


def _is_hub_id(spec: str, variable: str) -> bool:
    """Whether only the hub can have what `spec` names."""
    return spec != BUILTIN and local_directory(spec, f"{variable}={spec}") is None


def _one_name(spec: str | None) -> str | None:
    """A folder's resolved path, however it was typed; a hub id stays as it is."""
    return one_path(str(path)) if spec and (path := local_path(spec)).is_dir() else spec

"""A job: the settings with everything decided that depends on device, model and tokenizer."""

import logging
from dataclasses import asdict, dataclass, replace

from app.console import redacted
from app.data.sample_order import BatchGeometry
from app.data.tokenizer import TokenizerFiles, load_tokenizer
from app.errors import AccessDenied, ConfigError, NotFound, Unavailable
from app.settings.combined import Settings, impossible_combinations
from app.settings.place import Place
from app.settings.presets import FOLLOW_TOKENIZER, ModelConfig
from app.settings.recipes import with_fitting_batch, with_recipe
from app.state.identity import Identity
from app.training.compute import Compute, model_of, resolve_compute, resolve_model
from app.training.first_weights import BegunRun, FirstWeights, first_weights

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """The settings with everything decided that depends on the device and the model.

    `settings` have the model's own defaults for what the user has not set.
    """

    settings: Settings
    compute: Compute
    model_name: str
    config: ModelConfig
    run_name: str
    geometry: BatchGeometry
    init: FirstWeights | None
    tokenizer: TokenizerFiles

    def with_tokenizer(self, tokenizer: TokenizerFiles) -> "Job":
        """This job with another tokenizer, and with an embedding that fits it."""
        config = _fitting(self.model_name, self.config, self.init, tokenizer)
        return replace(self, tokenizer=tokenizer, config=config)

    def at(self, place: Place) -> "Job":
        """This job with the share of a step that `place` has."""
        settings = with_fitting_batch(replace(self.settings, place=place))
        batch, seq_len = settings.batch, self.geometry.seq_len
        geometry = BatchGeometry(
            batch.batch_size, batch.global_batch_size, seq_len, place.world_size, place.rank
        )
        return replace(self, settings=settings, geometry=geometry)

    def without_validation(self) -> "Job":
        settings = self.settings
        data = settings.data.model_copy(update={"val_every_steps": 0})
        return replace(self, settings=replace(settings, data=data))

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


def run_name_of(settings: Settings) -> str:
    """The name of the run, which follows from the device where MODEL=auto."""
    return settings.run.run_name or settings.model.init_name or model_of(settings)[0]


def resolve_job(
    settings: Settings, begun: BegunRun | None = None, *, identified: bool = False
) -> Job:
    """Decide device, model, sequence length and tokenizer.

    `begun` is the run, if it has a record: what INIT_FROM and TOKENIZER name is needed only before
    there is a checkpoint. Only if the run is to be `identified`, INIT_FROM is read to its end.
    """
    compute = resolve_compute(settings.compute)
    model = settings.model
    preset, shape = resolve_model(model.model, compute.device)
    init = first_weights(settings, begun, identified=identified)
    name, config = (init.model, init.config) if init else (preset, shape)
    settings = with_recipe(settings, preset) if init is None else settings
    if settings.place.world_size > 1:
        settings = with_fitting_batch(settings)
    if init is None:
        if problems := list(impossible_combinations(settings)):
            raise ConfigError(*problems)
        if model.model == "auto":
            log.info("MODEL=auto: %s, since this is %s", name, compute.device_name)
    seq_len = model.seq_len or config.max_position_embeddings
    if seq_len > config.max_position_embeddings:
        raise ConfigError(
            f"SEQ_LEN={seq_len} is above the context of {name}: at most "
            f"{config.max_position_embeddings} tokens"
        )
    batch = settings.batch
    tokenizer = tokenizer_of(settings, config.vocab_size, init, begun, follows=_follows(name, init))
    return Job(
        settings=settings,
        compute=compute,
        model_name=name,
        config=_fitting(name, config, init, tokenizer),
        run_name=run_name_of(settings),
        geometry=BatchGeometry(
            batch.batch_size,
            batch.global_batch_size,
            seq_len,
            settings.place.world_size,
            settings.place.rank,
        ),
        init=init,
        tokenizer=tokenizer,
    )


def _follows(model: str, init: FirstWeights | None) -> bool:
    """Whether the embedding has the size of the tokenizer; weights that are given have theirs."""
    return init is None and model in FOLLOW_TOKENIZER


def _fitting(
    model: str, config: ModelConfig, init: FirstWeights | None, tokenizer: TokenizerFiles
) -> ModelConfig:
    return replace(config, vocab_size=tokenizer.vocab_size) if _follows(model, init) else config


def tokenizer_of(
    settings: Settings,
    vocab_size: int,
    init: FirstWeights | None,
    begun: BegunRun | None,
    *,
    follows: bool = False,
) -> TokenizerFiles:
    """The tokenizer of the run; where what names it is out of reach, from its checkpoints.

    Raises what `load_tokenizer` and `BegunRun.tokenizer` raise.
    """
    spec, data_dir = settings.data.tokenizer, settings.data.data_dir
    if init is not None and settings.is_default("TOKENIZER"):
        # The weights were trained with the ids of their own tokenizer.
        if init.directory is None and begun is not None:
            return begun.tokenizer(data_dir)
        spec = str(init.directory)
    try:
        return load_tokenizer(spec, data_dir, vocab_size, follows=follows)
    except (AccessDenied, NotFound, Unavailable) as error:
        # A hub that is away does not stop a run whose checkpoints hold the tokenizer.
        if begun is None or begun.record.identity.tokenizer != spec or not begun.has_checkpoints():
            raise
        log.warning("%s; the tokenizer in the run's newest checkpoint is used", error)
        return begun.tokenizer(data_dir)

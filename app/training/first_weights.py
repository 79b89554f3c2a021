"""INIT_FROM: the weights that a run begins with.

They are needed only until there is a checkpoint. From then on the record says the shape, and the
checkpoints hold the tokenizer, so INIT_FROM may be moved, removed or unset. Weights are the same
where their SHA-256 is, which the record holds.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from app.data.data_dir import DataDir, own_folder
from app.data.tokenizer import TokenizerFiles, keep_tokenizer, read_tokenizer
from app.errors import AccessDenied, AppError, ConfigError, Damaged, NotFound, Unserved
from app.failures import disk_failures
from app.heartbeat import beat
from app.model.huggingface import model_directory, read_config
from app.run.checkpoints import read_manifest
from app.run.fetching import fetch
from app.run.layout import RECORD
from app.run.view import RunView
from app.settings.combined import Settings
from app.settings.local_paths import local_path
from app.settings.presets import ModelConfig
from app.state.identity import RECORD_FORMAT, RunRecord, one_path, same_place
from app.state.snapshot import Expected, tokenizer_files
from app.state.weights import weights_digest
from app.stores.contract import Store
from app.stores.documents import decode_document
from app.stores.opening import Place, open_place

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FirstWeights:
    """What a run from INIT_FROM begins with, under the names that are recorded.

    `digest` is None where nobody asked for it. `directory` is None where there are checkpoints:
    nothing of it is needed any more.
    """

    model: str
    config: ModelConfig
    init_from: str | None
    digest: str | None
    directory: Path | None


@dataclass(frozen=True)
class BegunRun:
    """A run that has a record."""

    store: Store
    view: RunView
    record: RunRecord

    def has_checkpoints(self) -> bool:
        return bool(self.view.committed)

    def first_weights(self) -> FirstWeights:
        """As the record says. Raises Damaged if it has no shape of a model."""
        identity = self.record.identity
        if identity.config is None:
            raise Damaged(f"{self.store.uri}: run.json has no shape of a model")
        return FirstWeights(
            identity.model, identity.config, identity.init_from, identity.init_weights, None
        )

    def tokenizer(self, data_dir: Path) -> TokenizerFiles:
        """The tokenizer of the run, from its newest checkpoint that has it, kept in DATA_DIR.

        Raises Damaged if no checkpoint has it, Unserved if one may that the store fails at,
        Unavailable for a full disk, and the store's errors.
        """
        fingerprint = self.record.identity.tokenizer_fingerprint
        place, setting = DataDir(data_dir), f"the tokenizer of {self.store.uri}"
        directory = place.tokenizers / f"run-{fingerprint[:32]}"
        with disk_failures(place.setting):
            if not directory.is_dir():
                with own_folder(place.restore) as scratch:
                    keep_tokenizer(self._tokenizer_files(scratch, setting), directory)
        return read_tokenizer(directory, setting)

    def _tokenizer_files(self, scratch: Path, setting: str) -> dict[str, bytes]:
        unserved: Unserved | None = None
        for name in self.view.committed:
            target = scratch / str(name)
            target.mkdir()
            try:
                files = tokenizer_files(read_manifest(self.store, name).files)
                expected = Expected(self.record)
                folder = fetch(self.store, name, target, files, alive=beat, expected=expected)
                if self._is_own(read_tokenizer(folder, setting)):
                    return {file: (folder / file).read_bytes() for file in files}
            except (Damaged, NotFound, Unserved) as error:
                log.warning("%s is not taken from %s: %s", setting, name, error)
                if isinstance(error, Unserved):
                    unserved = error
        if unserved:
            raise unserved
        raise Damaged(f"{setting} is in none of its checkpoints: set TOKENIZER")

    def _is_own(self, files: TokenizerFiles) -> bool:
        return files.fingerprint == self.record.identity.tokenizer_fingerprint


def begun_run(store: Store, view: RunView) -> BegunRun | None:
    """The run in the store; None if it has no record yet."""
    return BegunRun(store, view, view.record.record) if view.record else None


def first_weights(
    settings: Settings, begun: BegunRun | None, *, identified: bool
) -> FirstWeights | None:
    """What the run begins, or was begun, with; None for a run of MODEL.

    The digest is computed only if they are to be `identified`. Raises what finding and reading
    INIT_FROM raises, unless the run has checkpoints: then other weights that are there are
    returned, for the comparison with the record to refuse, and else those of the record.
    """
    spec = settings.model.init_from
    recorded = begun.record.identity if begun else None
    if spec is None:
        adopts = recorded and recorded.init_from and not settings.model.names_shape
        return begun.first_weights() if begun and adopts and begun.has_checkpoints() else None
    resumes = begun is not None and begun.has_checkpoints()
    if begun and resumes and same_place(begun.record.identity.init_from, spec):
        return begun.first_weights()
    try:
        found = _in_directory(settings, spec, identified)
    except AppError as error:
        if begun is None or not resumes:
            raise
        log.warning("%s: the run goes on without it, from its checkpoints", error)
        return begun.first_weights()
    if begun is None or found.digest is None or found.digest != begun.record.identity.init_weights:
        return found
    own = begun.first_weights()
    return (
        own
        if resumes
        else FirstWeights(own.model, own.config, own.init_from, own.digest, found.directory)
    )


def check_name(
    settings: Settings, begun: BegunRun | None, run_name: str, init: FirstWeights | None
) -> None:
    """Raises ConfigError where a new run would begin, and a run of the same weights is there.

    Without RUN_NAME, a run has the name of the folder in INIT_FROM. A folder that was moved has
    another one, and without INIT_FROM there is none: the run would silently be left behind.
    """
    if begun or settings.run.run_name or settings.run.resume == "never":
        return
    if init is None and settings.model.names_shape:
        return
    uri = settings.checkpoints.checkpoint_uri
    try:
        names = [
            name
            for name, record in _runs_named_by_weights(open_place(uri))
            if init is None or init.digest == record.identity.init_weights
        ]
    except AccessDenied as error:
        log.warning("not looked for a run that INIT_FROM named, and that is to go on: %s", error)
        return
    if names:
        raise ConfigError(
            f"{uri} holds no run {run_name}, but {' and '.join(names)}, begun from "
            f"{'the same weights' if init else 'INIT_FROM'} and named after it: set "
            f"{' or '.join(f'RUN_NAME={name}' for name in names)} to go on, or "
            f"RUN_NAME={run_name} to begin another run"
        )


def _runs_named_by_weights(place: Place) -> Iterator[tuple[str, RunRecord]]:
    for name in place.folders():
        key = f"{name}/{RECORD}"
        try:
            record = decode_document(place.get(key)[0], RunRecord, key, newest_format=RECORD_FORMAT)
        except (ConfigError, AccessDenied):
            continue  # no run, or one that only its own start has to understand
        if record.identity.init_from and record.identity.model == name:
            yield name, record


def _in_directory(settings: Settings, spec: str, identified: bool) -> FirstWeights:
    directory, path = model_directory(spec, "INIT_FROM"), local_path(spec)
    with disk_failures(f"INIT_FROM={spec}"):
        config = read_config(directory)
        digest = weights_digest(directory, beat) if identified else None
    name = settings.model.init_name
    assert name is not None
    return FirstWeights(
        name, config, one_path(str(path)) if path.is_dir() else spec, digest, directory
    )

"""The prepared tokens that the settings name, for commands that show them."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from app.cli.named_model import model_here
from app.console import redacted
from app.data.builtin import BUILTIN
from app.data.data_dir import DataDir
from app.data.inspection import N_IDS, PreparedTokens
from app.data.shard_index import read_index
from app.data.tokenization import tokens_fingerprint
from app.data.tokenizer import TokenizerFiles, load_tokenizer
from app.errors import NotFound
from app.failures import disk_failures
from app.run.recorded_source import source_of_named_run, tokenizer_of_named_run
from app.run.view import read_view
from app.settings.combined import Settings
from app.settings.local_paths import local_path
from app.settings.presets import PRESETS
from app.settings.recipes import with_recipe
from app.settings.variables import BatchSettings
from app.stores.opening import open_store

if TYPE_CHECKING:  # its libraries take seconds to load
    from app.training.first_weights import BegunRun


def find_tokens(settings: Settings) -> PreparedTokens:
    """Raises NotFound where nothing is prepared, and what `source_of_named_run`, `named_run` and
    the tokenizer raise."""
    data = settings.data
    uri = settings.checkpoints.checkpoint_uri
    tokenizer = _tokenizer(settings)
    source = source_of_named_run(data, uri, settings.run_names).fingerprint
    data_dir = DataDir(data.data_dir)
    directory = data_dir.tokens(tokens_fingerprint(source, tokenizer))
    with disk_failures(data_dir.setting):
        index = read_index(directory, source, tokenizer.fingerprint)
    if not index.n_tokens("train"):
        raise NotFound(
            f"{data_dir.setting} holds no tokens of DATASET={redacted(data.dataset)} with "
            f"TOKENIZER={data.tokenizer}: make them with `python -m app prepare`"
        )
    return PreparedTokens(data_dir, directory, index, tokenizer)


def batch_and_length(settings: Settings) -> tuple[BatchSettings, int]:
    """The batch and the sequence length of the run that the settings name.

    Only an unnamed model needs a look at the device.
    """
    model = settings.model
    begun = named_run(settings, settings.run_names)
    if begun or model.init_from:
        from app.training.first_weights import first_weights

        if init := first_weights(settings, begun, identified=False):
            return settings.batch, model.seq_len or init.config.max_position_embeddings
    name = model_here(settings)
    context = PRESETS[name].max_position_embeddings
    return with_recipe(settings, name).batch, model.seq_len or context


def named_run(settings: Settings, names: Sequence[str]) -> "BegunRun | None":
    """The begun run with one of these names, which has what INIT_FROM and TOKENIZER name by itself.

    None where there is none, or one for each name of MODEL=auto. The store is asked only where the
    run may have something: so tokens of local files are made without it. Raises what `read_view`
    and the store raise.
    """
    adopts, spec = settings.run.run_name and not settings.model.names_shape, settings.data.tokenizer
    with disk_failures(f"TOKENIZER={spec}"):
        is_here = spec == BUILTIN or local_path(spec).is_dir()
    if is_here and not adopts and settings.model.init_from is None:
        return None
    stores = [open_store(settings.checkpoints.checkpoint_uri, name) for name in names]
    begun = [(store, view) for store in stores if (view := read_view(store)).record]
    if len(begun) != 1:
        return None
    from app.training.first_weights import begun_run

    return begun_run(*begun[0])


def _tokenizer(settings: Settings) -> TokenizerFiles:
    names: Sequence[str] = settings.run_names
    begun, spec = named_run(settings, names), settings.data.tokenizer
    if begun is None and settings.model.init_from is None:
        size = N_IDS
        if spec == BUILTIN:  # there is one for each model
            name = model_here(settings)
            names, size = [settings.run.run_name or name], PRESETS[name].vocab_size
        ours = load_tokenizer(spec, settings.data.data_dir, size)
    else:
        from app.training.first_weights import first_weights
        from app.training.job import tokenizer_of

        init = first_weights(settings, begun, identified=False)
        ours = tokenizer_of(settings, N_IDS, init, begun)
    return tokenizer_of_named_run(settings.data, settings.checkpoints.checkpoint_uri, names, ours)

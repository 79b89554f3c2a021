"""The prepared tokens that the settings name, for commands that show them."""

from app.console import redacted
from app.data.data_dir import DataDir
from app.data.inspection import N_IDS, PreparedTokens
from app.data.shard_index import read_index
from app.data.tokenization import tokens_fingerprint
from app.data.tokenizer import load_tokenizer
from app.errors import NotFound
from app.failures import disk_failures
from app.run.recorded_source import source_of_named_run, tokenizer_of_named_run
from app.settings.combined import Settings
from app.settings.presets import PRESETS


def find_tokens(settings: Settings) -> PreparedTokens:
    """Raises NotFound where nothing is prepared, and what `source_of_named_run` and the tokenizer
    raise."""
    data = settings.data
    uri = settings.checkpoints.checkpoint_uri
    tokenizer = load_tokenizer(_tokenizer_spec(settings), data.data_dir, N_IDS)
    tokenizer = tokenizer_of_named_run(data, uri, settings.run_names, tokenizer)
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


def sequence_length(settings: Settings) -> int:
    """SEQ_LEN, or the context of the model; only an unnamed model needs a look at the device."""
    model = settings.model
    if model.seq_len:
        return model.seq_len
    if model.init_from:
        from app.model.huggingface import model_directory, read_config

        return read_config(model_directory(model.init_from, "INIT_FROM")).max_position_embeddings
    if model.model != "auto":
        return PRESETS[model.model].max_position_embeddings
    from app.model.device import resolve_device
    from app.training.compute import resolve_model

    device = resolve_device(settings.compute.device)
    return resolve_model(model.model, device)[1].max_position_embeddings


def _tokenizer_spec(settings: Settings) -> str:
    if settings.model.init_from and settings.is_default("TOKENIZER"):
        from app.model.huggingface import model_directory

        return str(model_directory(settings.model.init_from, "INIT_FROM"))
    return settings.data.tokenizer

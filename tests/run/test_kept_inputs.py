"""What a run keeps of its image is read back as data: bounded, compared, and never a path."""

import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from app.data.builtin import image_text, kept_text
from app.data.sources import pin_source
from app.data.tokenizer import TokenizerFiles, read_tokenizer
from app.errors import Damaged, IncompatibleRun
from app.run.kept_inputs import keep_inputs, read_text, tokenizer_of_run
from app.run.layout import TEXT_KEY, TOKENIZER_KEY
from app.settings.variables import DataSettings
from app.state.identity import RunRecord
from app.stores.contract import Store
from tests.support.stored_run import IDENTITY

DOCUMENTS = ["one document\n", "another, with ünicode\u2028and \x00"]
BUILTIN = DataSettings(dataset="builtin")


@pytest.fixture
def tokenizer(small_tokenizer: Path) -> TokenizerFiles:
    return read_tokenizer(small_tokenizer, "TOKENIZER=small")


def keep(store: Store, tokenizer: TokenizerFiles, documents: list[str]) -> None:
    keep_inputs(store, pin_source(BUILTIN, builtin=kept_text(documents)), tokenizer)


def record_with(fingerprint: str) -> RunRecord:
    identity = IDENTITY.model_copy(update={"tokenizer_fingerprint": fingerprint})
    return RunRecord(run_name="tiny", created_at="now", identity=identity, total_steps=1)


def other_tokenizer(tokenizer: TokenizerFiles, folder: Path) -> TokenizerFiles:
    """As `tokenizer`, with another name for one token."""
    folder.mkdir()
    for path in tokenizer.directory.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    content = json.loads((folder / "tokenizer.json").read_text())
    content["added_tokens"].append({**content["added_tokens"][0], "id": 300, "content": "<x>"})
    (folder / "tokenizer.json").write_text(json.dumps(content))
    return read_tokenizer(folder, "TOKENIZER=other")


def packed(**document: Any) -> bytes:
    return zlib.compress(json.dumps(document).encode())


def test_what_is_kept_is_read_back_as_it_was_and_what_was_kept_first_stays(
    folder: Store, tokenizer: TokenizerFiles, tmp_path: Path
) -> None:
    assert read_text(folder) is None
    keep(folder, tokenizer, DOCUMENTS)
    keep(folder, other_tokenizer(tokenizer, tmp_path / "other"), ["other text"])
    kept = read_text(folder)
    assert kept is not None
    assert list(kept.read()) == list(kept.read()) == DOCUMENTS
    assert kept.fingerprint == kept_text(DOCUMENTS).fingerprint


def test_the_text_of_this_image_fits_into_what_is_kept(
    folder: Store, tokenizer: TokenizerFiles
) -> None:
    keep_inputs(folder, pin_source(BUILTIN), tokenizer)
    kept = read_text(folder)
    assert kept is not None
    assert kept.fingerprint == image_text().fingerprint


def test_data_that_are_not_builtin_are_not_kept(
    folder: Store, tokenizer: TokenizerFiles, tmp_path: Path
) -> None:
    (tmp_path / "a.txt").write_text("some text\n")
    keep_inputs(folder, pin_source(DataSettings(dataset=str(tmp_path / "a.txt"))), tokenizer)
    assert [info.key for info in folder.list("")] == [TOKENIZER_KEY]


def test_the_tokenizer_of_the_run_is_taken_where_the_image_has_another(
    folder: Store, tokenizer: TokenizerFiles, tmp_path: Path
) -> None:
    keep(folder, tokenizer, DOCUMENTS)
    ours = other_tokenizer(tokenizer, tmp_path / "other")
    data, record = DataSettings(data_dir=tmp_path / "data"), record_with(tokenizer.fingerprint)
    for _ in range(2):
        taken = tokenizer_of_run(data, record, folder, ours)
        assert taken.fingerprint == tokenizer.fingerprint
        assert taken.eos_token_id == tokenizer.eos_token_id
        assert taken.directory.parent == tmp_path / "data" / "tokenizers"
    assert tokenizer_of_run(data, record_with(ours.fingerprint), folder, ours) is ours
    assert tokenizer_of_run(data, None, folder, ours) is ours
    named = data.model_copy(update={"tokenizer": "o/good"})
    assert tokenizer_of_run(named, record, folder, ours) is ours


@pytest.mark.parametrize("spec", ["o/good", "a path"])
def test_what_the_hub_changed_is_taken_from_the_run_and_what_a_person_changed_is_refused(
    spec: str, folder: Store, tokenizer: TokenizerFiles, tmp_path: Path
) -> None:
    keep(folder, tokenizer, DOCUMENTS)
    ours = other_tokenizer(tokenizer, tmp_path / "other")
    spec = str(ours.directory) if spec == "a path" else spec
    record = record_with(tokenizer.fingerprint)
    identity = record.identity.model_copy(update={"tokenizer": spec})
    record = record.model_copy(update={"identity": identity})
    data = DataSettings(tokenizer=spec, data_dir=tmp_path / "data")
    taken = tokenizer_of_run(data, record, folder, ours)
    assert taken.fingerprint == (ours if "/other" in spec else tokenizer).fingerprint


def test_a_tokenizer_that_is_not_the_one_of_the_run_is_damage(
    folder: Store, tokenizer: TokenizerFiles, tmp_path: Path
) -> None:
    keep(folder, tokenizer, DOCUMENTS)
    ours = other_tokenizer(tokenizer, tmp_path / "other")
    with pytest.raises(Damaged, match=rf"{TOKENIZER_KEY} is not the tokenizer of the run"):
        tokenizer_of_run(DataSettings(data_dir=tmp_path), record_with("f" * 64), folder, ours)


TRUNCATED = zlib.compress(bytes(range(256)) * 40)[:-30]
TOO_LARGE = zlib.compress(bytes(65 * 2**20))


@pytest.mark.parametrize("content", [b"", b"{}", TRUNCATED, TOO_LARGE], ids=len)
@pytest.mark.parametrize("key", [TEXT_KEY, TOKENIZER_KEY])
def test_what_is_cut_or_far_too_large_is_damage_and_fills_no_memory(
    content: bytes, key: str, folder: Store, tokenizer: TokenizerFiles, tmp_path: Path
) -> None:
    folder.put(key, [content])
    with pytest.raises(Damaged, match=rf"{folder.uri}/{key} is (damaged|cut short, or too large)"):
        reading(folder, tokenizer, tmp_path)[key]()


@pytest.mark.parametrize(
    ("key", "document"),
    [
        (TEXT_KEY, {"documents": "text"}),
        (TEXT_KEY, {"documents": [1]}),
        (TEXT_KEY, {"documents": ["\ud800"]}),
        (TOKENIZER_KEY, {"files": {"../tokenizer.json": "{}"}}),
        (TOKENIZER_KEY, {"files": {"/tmp/tokenizer.json": "{}"}}),
        (TOKENIZER_KEY, {"files": {"..": "{}"}}),
        (TOKENIZER_KEY, {"files": {"tokenizer.json\n": "{}"}}),
        (TOKENIZER_KEY, {"files": {f"{number}.json": "{}" for number in range(1000)}}),
    ],
)
def test_other_content_and_names_that_lead_elsewhere_are_damage(
    key: str,
    document: dict[str, Any],
    folder: Store,
    tokenizer: TokenizerFiles,
    tmp_path: Path,
) -> None:
    folder.put(key, [packed(**document)])
    with pytest.raises(Damaged, match=f"{key} is damaged"):
        reading(folder, tokenizer, tmp_path)[key]()
    assert not (tmp_path / "tokenizers").exists()


@pytest.mark.parametrize("key", [TEXT_KEY, TOKENIZER_KEY])
def test_what_a_newer_version_kept_is_refused_and_not_called_damaged(
    key: str, folder: Store, tokenizer: TokenizerFiles, tmp_path: Path
) -> None:
    folder.put(key, [packed(format_version=2)])
    with pytest.raises(IncompatibleRun, match="use the newer image"):
        reading(folder, tokenizer, tmp_path)[key]()


def reading(store: Store, ours: TokenizerFiles, data_dir: Path) -> dict[str, Callable[[], object]]:
    record, data = record_with("f" * 64), DataSettings(data_dir=data_dir)
    return {
        TEXT_KEY: lambda: read_text(store),
        TOKENIZER_KEY: lambda: tokenizer_of_run(data, record, store, ours),
    }

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from app.data import tokenizer as module
from app.data.builtin import builtin_fingerprint
from app.data.limits import DataLimits
from app.data.tokenizer import (
    BUILTIN_VOCAB_SIZES,
    END_OF_TEXT,
    TextEncoder,
    TokenizerFiles,
    _without_prefix,
    build_builtin_tokenizer,
    build_image_tokenizers,
    builtin_name,
    load_tokenizer,
    read_tokenizer,
    save_tokenizer,
    train_tokenizer,
)
from app.errors import AccessDenied, ConfigError, Damaged, NotFound, Unavailable
from app.settings.variables import DataSettings
from tests.support.hubserver import hub, use_endpoint
from tests.support.prepared import prepare

TEXTS = ["the quick brown fox jumps over the lazy dog " * 3, "def f(x):\n    return x + 1\n" * 3]
NOWHERE = Path("/nonexistent")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> TokenizerFiles:
    directory = tmp_path_factory.mktemp("small")
    save_tokenizer(train_tokenizer(TEXTS, 280), directory)
    return read_tokenizer(directory, "TOKENIZER=small")


@pytest.fixture(scope="module")
def builtin(tmp_path_factory: pytest.TempPathFactory) -> TokenizerFiles:
    """The real one, trained once: some seconds."""
    return build_builtin_tokenizer(tmp_path_factory.mktemp("builtin") / "tokenizer", 49_152)


@pytest.fixture
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A standard library of two small files, on which a tokenizer is quickly trained."""
    folder = tmp_path_factory.mktemp("library")
    for number, text in enumerate(TEXTS):
        (folder / f"{number}.py").write_text(text)
    return folder


def decode(files: TokenizerFiles, ids: list[int]) -> str:
    tokenizer = Tokenizer.from_file(str(files.directory / "tokenizer.json"))
    return tokenizer.decode(ids, skip_special_tokens=False)


@pytest.fixture(scope="module")
def foreign(small_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    copy = tmp_path_factory.mktemp("foreign") / "their-tokenizer"
    shutil.copytree(small_tokenizer, copy)
    yield copy


def edited(directory: Path, target: Path, name: str, **changes: object) -> Path:
    shutil.copytree(directory, target)
    path = target / name
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return target


def test_the_builtin_tokenizer_has_the_size_and_the_special_token_of_smollm2(
    builtin: TokenizerFiles,
) -> None:
    assert builtin.vocab_size == 49_152
    assert (builtin.eos_token_id, builtin.bos_token_id) == (0, 0)


def test_transformers_gives_the_same_ids_also_beside_a_llama_config(
    builtin: TokenizerFiles, tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    directory = tmp_path / "checkpoint"
    shutil.copytree(builtin.directory, directory)
    (directory / "config.json").write_text('{"model_type": "llama"}')
    text = f"{module.__doc__}\n\n  naïve 日本 12345\r\n"
    ours = TextEncoder(builtin).encode_batch([text])[0].tolist()
    for path in (builtin.directory, directory):
        theirs = AutoTokenizer.from_pretrained(path)
        assert theirs.encode(text) == ours
        assert theirs.decode(ours) == text
        assert theirs.eos_token_id == theirs.bos_token_id == theirs.unk_token_id == 0


@given(text=st.text())
def test_any_text_comes_back_from_its_tokens(small: TokenizerFiles, text: str) -> None:
    ids = TextEncoder(small).encode_batch([text])[0]
    assert ids.dtype == np.uint16
    assert decode(small, ids.tolist()) == text


def test_the_end_of_text_token_inside_a_document_is_only_text(small: TokenizerFiles) -> None:
    ids = TextEncoder(small).encode_batch([f"a{END_OF_TEXT}b"])[0].tolist()
    assert small.eos_token_id not in ids
    assert decode(small, ids) == f"a{END_OF_TEXT}b"


def prefixing(kind: str) -> Tokenizer:
    """An untrained BPE that puts a prefix before a text, in the way that `kind` names."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    if kind == "ByteLevel":
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        tokenizer.decoder = decoders.ByteLevel()
    elif kind == "Prepend":
        steps = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        tokenizer.normalizer = normalizers.Sequence(steps)
        strip = [decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        tokenizer.decoder = decoders.Sequence(strip)
    else:
        step = pre_tokenizers.Metaspace(prepend_scheme=kind.removesuffix(" in a sequence"))
        tokenizer.pre_tokenizer = (
            pre_tokenizers.Sequence([step, pre_tokenizers.Digits()]) if " " in kind else step
        )
        tokenizer.decoder = decoders.Metaspace()
    return tokenizer


@pytest.mark.parametrize(
    "kind",
    [
        "always",
        "first",
        "always in a sequence",
        "first in a sequence",
        "Prepend",
        "ByteLevel",
    ],
)
def test_a_prefix_is_put_before_a_document_and_not_before_what_goes_on_with_it(
    kind: str, tmp_path: Path
) -> None:
    limits = DataLimits(document_bytes=100, piece_size=30)
    text = "".join(TEXTS).replace("\n", " \n") * 3
    tokenizer = prefixing(kind)
    trainer = trainers.BpeTrainer(
        vocab_size=290, special_tokens=[END_OF_TEXT, "<unk>"], show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    (tmp_path / "tokenizer").mkdir()
    save_tokenizer(tokenizer, tmp_path / "tokenizer")
    files = load_tokenizer(str(tmp_path / "tokenizer"), tmp_path, 300)
    (tmp_path / "a.txt").write_text(text)
    data = DataSettings(dataset=f"{tmp_path}/a.txt", data_dir=tmp_path)
    train = prepare(data, files, limits=limits, is_held_out=lambda text: False).train
    ids = train.read(0, train.n_tokens - 1).tolist()
    whole = TextEncoder(files).encode_batch([text])[0].tolist()
    assert decode(files, ids).removeprefix(" ") == text == decode(files, whole).removeprefix(" ")
    assert (tokenizer.id_to_token(ids[0]) or "")[0] in "▁Ġ"
    going_on = TextEncoder(files).encode_batch(["the", "the"], [False, True])
    assert decode(files, [*going_on[1].tolist(), *going_on[0].tolist()]) == "the the"


def test_training_twice_gives_the_same_tokenizer() -> None:
    assert train_tokenizer(TEXTS, 300).to_str() == train_tokenizer(iter(TEXTS), 300).to_str()


def test_the_one_in_the_image_is_used_where_there_is_one(
    small: TokenizerFiles, tmp_path: Path
) -> None:
    for size in BUILTIN_VOCAB_SIZES:
        shutil.copytree(small.directory, tmp_path / "image" / builtin_name(size))
    for vocab_size, size in ((4_096, 4_096), (49_151, 4_096), (49_152, 49_152), (65_536, 49_152)):
        files = load_tokenizer(
            "builtin", tmp_path / "data", vocab_size, builtin_directory=tmp_path / "image"
        )
        assert files.directory == tmp_path / "image" / f"tokenizer-{size}"
        assert files.fingerprint == small.fingerprint
    assert not (tmp_path / "data").exists()


def test_an_image_has_one_for_each_size(library: Path, tmp_path: Path) -> None:
    build_image_tokenizers(tmp_path / "image", library)
    assert sorted(path.name for path in (tmp_path / "image").iterdir()) == [
        "tokenizer-4096",
        "tokenizer-49152",
    ]


def test_a_model_that_follows_the_tokenizer_takes_any_size_of_16_bits(
    small: TokenizerFiles, tmp_path: Path
) -> None:
    spec = str(small.directory)
    assert load_tokenizer(spec, tmp_path, 10, follows=True).vocab_size == small.vocab_size
    copy = tmp_path / "large"
    copy.mkdir()
    words = {END_OF_TEXT: 0, **{f"word{number}": number for number in range(1, 65_537)}}
    save_tokenizer(Tokenizer(models.WordLevel(words, END_OF_TEXT)), copy)
    with pytest.raises(ConfigError, match="has 65537 tokens, an id of 16 bits can tell 65536"):
        load_tokenizer(str(copy), tmp_path, 10, follows=True)


def test_elsewhere_it_is_trained_once_and_kept(
    library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load() -> TokenizerFiles:
        return load_tokenizer(
            "builtin", tmp_path, 49_152, builtin_directory=NOWHERE, library=library
        )

    first, trained_on = load(), builtin_fingerprint(library)
    monkeypatch.setattr(module, "train_tokenizer", None)
    assert load() == first
    assert [path.name for path in (tmp_path / "tokenizers").iterdir()] == [
        "builtin-49152-" + trained_on[:16]
    ]


def test_a_second_process_that_was_faster_does_no_harm(
    library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "tokenizer"
    save = module.save_tokenizer

    def save_after_another(tokenizer: Tokenizer, directory: Path) -> None:
        target.mkdir()
        save(tokenizer, target)
        save(tokenizer, directory)

    monkeypatch.setattr(module, "save_tokenizer", save_after_another)
    assert build_builtin_tokenizer(target, 300, library).eos_token_id == 0
    assert [path.name for path in tmp_path.iterdir()] == ["tokenizer"]


def test_a_training_that_fails_leaves_nothing_behind(
    library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "save_tokenizer", full)
    with pytest.raises(Unavailable, match=f"DATA_DIR={tmp_path} is full"):
        load_tokenizer("builtin", tmp_path, 49_152, builtin_directory=NOWHERE, library=library)
    assert not list((tmp_path / "tokenizers").iterdir())


def test_a_hugging_face_directory_is_copied_once_and_kept(foreign: Path, tmp_path: Path) -> None:
    first = load_tokenizer(str(foreign), tmp_path, 300)
    assert first.directory.parent == tmp_path / "tokenizers"
    assert first.eos_token_id == read_tokenizer(foreign, "TOKENIZER=x").eos_token_id
    before = first.directory.stat()
    assert load_tokenizer(str(foreign), tmp_path, 300) == first
    assert first.directory.stat() == before


@pytest.mark.parametrize(
    "named", ["GPT2Tokenizer", "LlamaTokenizer", "Qwen2Tokenizer", "GPTNeoXTokenizer", None]
)
def test_the_ids_are_those_of_tokenizer_json_whatever_class_stands_beside_it(
    named: str | None, tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    tokenizer = Tokenizer(models.BPE())
    steps = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["f(x)\n    22 + 4567\n"] * 9, trainer)
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    save_tokenizer(tokenizer, theirs)
    given = edited(theirs, tmp_path / "given", "tokenizer_config.json", tokenizer_class=named)
    files = load_tokenizer(str(given), tmp_path, 300)
    text = "f(x)\n    1\n    22 + 4567\n"
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert TextEncoder(files).encode_batch([text])[0].tolist() == ids
    (files.directory / "config.json").write_text('{"model_type": "llama"}')
    assert AutoTokenizer.from_pretrained(files.directory).encode(text) == ids


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("tokenizer.model", "SentencePiece"),
        ("qwen.tiktoken", "tiktoken"),
        ("vocab.json", "BPE or WordPiece"),
    ],
)
def test_a_tokenizer_of_another_form_is_refused_with_what_to_do(
    name: str, kind: str, tmp_path: Path
) -> None:
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / name).write_bytes(b"x")
    with pytest.raises(ConfigError, match=rf"only a {kind} file \({name}\): make one") as caught:
        load_tokenizer(str(tmp_path / "t"), tmp_path, 300)
    assert "\n" not in str(caught.value)


def test_the_end_of_text_token_may_be_named_by_its_number_in_config_json(
    foreign: Path, tmp_path: Path
) -> None:
    directory = edited(foreign, tmp_path / "t", "tokenizer_config.json")
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        (directory / name).write_text("{}")  # as GPT-2's
    (directory / "config.json").write_text('{"eos_token_id": 0}')
    assert load_tokenizer(str(directory), tmp_path, 300).eos_token_id == 0


def test_a_file_system_that_changes_no_permissions_is_enough(
    foreign: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("os.chmod", refuse)
    monkeypatch.setattr("os.fchmod", refuse)
    assert load_tokenizer(str(foreign), tmp_path, 300).directory.is_dir()


def test_a_directory_with_other_content_is_another_tokenizer(
    small: TokenizerFiles, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(small.directory, copy)
    first = load_tokenizer(str(copy), tmp_path, 300)
    save_tokenizer(train_tokenizer(TEXTS, 270), copy)
    second = load_tokenizer(str(copy), tmp_path, 300)
    assert first.directory != second.directory
    assert first.fingerprint != second.fingerprint


def test_the_fingerprint_of_a_copy_is_that_of_the_original(
    small: TokenizerFiles, tmp_path: Path
) -> None:
    assert load_tokenizer(str(small.directory), tmp_path, 300).fingerprint == small.fingerprint


def test_settings_that_encoding_overrides_do_not_count_in_the_fingerprint(
    small: TokenizerFiles, tmp_path: Path
) -> None:
    truncation = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    directory = edited(small.directory, tmp_path / "t", "tokenizer.json", truncation=truncation)
    files = read_tokenizer(directory, "TOKENIZER=t")
    assert files.fingerprint == small.fingerprint
    assert len(TextEncoder(files).encode_batch(["the quick brown fox"])[0]) > 4


def test_a_tokenizer_larger_than_the_vocabulary_is_refused(
    small: TokenizerFiles, tmp_path: Path
) -> None:
    n = small.vocab_size
    shutil.copytree(small.directory, tmp_path / builtin_name(4_096))
    with pytest.raises(ConfigError, match=f"^TOKENIZER=builtin has {n} tokens.* is {n - 1}:"):
        load_tokenizer("builtin", tmp_path, n - 1, builtin_directory=tmp_path)


def test_a_tokenizer_without_an_end_of_text_token_is_refused(foreign: Path, tmp_path: Path) -> None:
    directory = edited(foreign, tmp_path / "t", "tokenizer_config.json", eos_token=None)
    with pytest.raises(ConfigError, match=f"^TOKENIZER={directory} has no end-of-text token"):
        load_tokenizer(str(directory), tmp_path, 300)


def test_a_directory_that_holds_no_tokenizer_is_refused(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ConfigError, match=f"^TOKENIZER={empty} cannot be loaded"):
        load_tokenizer(str(empty), tmp_path, 300)


@pytest.mark.parametrize("content", ["{", "[]", '{"version": "1.0"}'])
def test_a_broken_tokenizer_file_is_named(tmp_path: Path, foreign: Path, content: str) -> None:
    directory = tmp_path / "t"
    shutil.copytree(foreign, directory)
    (directory / "tokenizer.json").write_text(content)
    with pytest.raises(Damaged, match=str(directory / "tokenizer.json")):
        load_tokenizer(str(directory), tmp_path, 300)


@pytest.mark.parametrize("spec", ["/no/such/folder", "./missing", "a/b/c"])
def test_what_looks_like_a_path_is_never_asked_of_the_hub(spec: str, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=f"^TOKENIZER={spec}: there is no such directory"):
        load_tokenizer(spec, tmp_path, 300)


def test_one_from_the_hub_is_fetched_once(
    foreign: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {path.name: path.read_bytes() for path in foreign.iterdir()}
    files["model.safetensors"] = b"large"
    with hub(monkeypatch, tmp_path, files) as requests:
        first = load_tokenizer("o/good", tmp_path, 300)
        assert first.fingerprint == read_tokenizer(foreign, "TOKENIZER=x").fingerprint
        assert not any("safetensors" in request for request in requests)
    assert load_tokenizer("o/good", tmp_path, 300) == first


def test_a_revision_of_one_on_the_hub_can_be_named(
    foreign: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {path.name: path.read_bytes() for path in foreign.iterdir()}
    with hub(monkeypatch, tmp_path, files) as requests:
        load_tokenizer("o/good@refs/pr/1", tmp_path, 300)
        assert any("refs/pr/1" in request for request in requests)
    load_tokenizer("o/good@refs/pr/1", tmp_path, 300)  # it is kept, and no other one is
    with hub(monkeypatch, tmp_path / "other", files) as requests:
        load_tokenizer("o/good@v2", tmp_path, 300)
        assert any("v2" in request for request in requests)


@pytest.mark.parametrize(
    ("repository", "expected"),
    [
        ("o/missing", AccessDenied),  # or private: the hub does not say
        ("o/gated", AccessDenied),
        ("o/forbidden", AccessDenied),
        ("o/busy", Unavailable),
        ("not an id", NotFound),
    ],
)
def test_the_hubs_refusals_are_told_apart(
    repository: str, expected: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with hub(monkeypatch, tmp_path, {"tokenizer.json": b"{}"}):
        with pytest.raises(expected, match=f"^TOKENIZER={repository}") as caught:
            load_tokenizer(repository, tmp_path, 300)
        assert caught.type is expected
    assert not list((tmp_path / "tokenizers").iterdir())


def test_a_hub_that_nobody_answers_for_is_unavailable(
    closed_endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_endpoint(monkeypatch, closed_endpoint, tmp_path)
    with pytest.raises(Unavailable, match="TOKENIZER=o/good: the hub cannot be reached"):
        load_tokenizer("o/good", tmp_path, 300)


def test_a_space_that_stands_before_each_word_is_no_prefix_of_the_text() -> None:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    steps = [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()]  # as T5's
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    assert _without_prefix(tokenizer) is tokenizer

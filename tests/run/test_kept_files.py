"""What a run keeps beside its weights comes from its newest whole checkpoint."""

from pathlib import Path

from app.run.committing import commit
from app.run.kept_files import copy_kept_files
from app.run.layout import CheckpointName
from app.stores.local import LocalStore
from tests.support.stored_run import FILES, FreeLease


def test_config_and_tokenizer_come_from_the_newest_whole_checkpoint_and_no_weights(
    tmp_path: Path,
) -> None:
    store, folder = LocalStore(tmp_path / "store"), tmp_path / "kept"
    assert not copy_kept_files(store, folder)
    for step in (1, 2):
        name, config = CheckpointName(step, 1), b'{"step": %d}' % step
        files = FILES | {"config.json": [config], "tokenizer.json": [b"{}"]}
        commit(store, name, files, 1.0, FreeLease(store))
    (tmp_path / "store" / name.key("config.json")).write_bytes(b"damaged")
    assert copy_kept_files(store, folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
        "config.json": b'{"step": 1}',
        "tokenizer.json": b"{}",
    }

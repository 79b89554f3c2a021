"""Trackers of others are checked before training begins: packages first."""

import importlib.util
from dataclasses import replace
from pathlib import Path

import pytest

from app.errors import ConfigError
from app.observe.services import check_trackers, link_to
from app.run.checkpoints import read_manifest
from app.settings.combined import Settings
from app.settings.variables import LogSettings, StartedBy
from app.stores.opening import open_store
from tests.support.stored_run import commit_step


def settings(loggers: str, started_by: StartedBy = "python") -> Settings:
    return replace(Settings(), logs=LogSettings(loggers=loggers, started_by=started_by))


@pytest.mark.parametrize(
    ("started_by", "command"),
    [
        ("python", "-m pip install -r requirements-trackers.txt -c requirements.txt"),
        ("make", "EXTRAS=trackers make train"),
        ("compose", "EXTRAS=trackers docker compose build train"),
        ("docker", "docker build --build-arg EXTRAS=trackers "),
        ("kubernetes", "docker build --build-arg EXTRAS=trackers "),
    ],
)
def test_a_missing_package_is_named_with_the_command_that_installs_it(
    started_by: StartedBy, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for name in ("wandb", "mlflow"):
        with pytest.raises(ConfigError, match=f"needs the package {name}") as caught:
            check_trackers(settings(f"csv,{name}", started_by))
        assert command in str(caught.value)
    check_trackers(settings("tensorboard,csv"))


def test_a_checkpoint_is_linked_by_its_place_and_the_digest_of_its_weights(tmp_path: Path) -> None:
    store = open_store(tmp_path.as_uri(), "run")
    name = commit_step(store, 4)
    manifest = read_manifest(store, name)
    link = link_to(store, name, manifest)
    assert link.step == 4 and link.uri == f"{store.uri}/checkpoints/{name}"
    assert link.sha256 == manifest.files["model.safetensors"].sha256

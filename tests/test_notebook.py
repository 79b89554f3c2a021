"""The notebook, run from its first cell to its last in a copy of what a clone has."""

from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from tests.support.repository import ROOT
from tests.support.validated_run import train_validated

NOTEBOOK = ROOT / "notebooks" / "look-at-a-run.ipynb"


@pytest.fixture
def notebook() -> Any:
    return nbformat.read(NOTEBOOK, as_version=4)


def test_it_lies_in_the_repository_without_outputs(notebook: Any) -> None:
    nbformat.validate(notebook)
    for cell in notebook.cells:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.usefixtures("nothing_set")
def test_it_pulls_a_checkpoint_draws_its_curves_and_writes(
    notebook: Any,
    job_environment: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CHECKPOINT_URI", train_validated(job_environment, tmp_path))
    monkeypatch.setenv("RUN_NAME", "tiny")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    where = {"metadata": {"path": str(NOTEBOOK.parent)}}
    NotebookClient(notebook, timeout=240, kernel_name="python3", resources=where).execute()
    shown = {cell.id: cell.outputs for cell in notebook.cells if cell.cell_type == "code"}
    assert "model.safetensors" in shown["pull"][-1].data["text/plain"]
    assert len(shown["rows"][-1].data["text/html"].split("<tr>")) > 5
    assert shown["curves"][-1].data["image/svg+xml"].count("<polyline") == 4
    assert shown["text"][-1].text.startswith("def main(")

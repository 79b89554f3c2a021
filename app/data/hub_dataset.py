"""DATASET as a dataset of the Hugging Face hub, streamed row by row."""

from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from app.data.limits import DEFAULT_LIMITS, DataLimits
from app.data.pieces import Pieces, Placed, PlacedPieces, Position
from app.data.readers import no_column, row_pieces, text_of
from app.data.retries import Backoff, Sleep
from app.errors import AppError, ConfigError, Damaged, Unavailable
from app.failures import disk_failures, first_line
from app.model.hub_failures import hub_failures
from app.settings.dataset_spec import HubName
from app.settings.variables import DataSettings

_CACHE = "the hub's cache (HF_HOME)"


@dataclass(frozen=True)
class HubSource:
    """One split of one configuration at one commit. `sleep` waits for a hub that is away."""

    name: HubName
    config: str | None
    split: str
    column: str
    limits: DataLimits = DEFAULT_LIMITS
    sleep: Sleep | None = None

    @property
    def pinned(self) -> str:
        return str(self.name)

    @property
    def revision(self) -> str | None:
        return self.name.revision

    def origins(self) -> Mapping[str, str]:
        config = self.config or "default"  # the library's name for the one that nobody names
        key = f"hub {self.name.repo_id} {config} {self.split} {self.column}"
        return {key: self.name.repo_id}

    def identity(self) -> Mapping[str, str]:
        return {
            self.name.repo_id: f"revision {self.revision}",
            "DATASET_CONFIG": self.config or "",
            "DATASET_SPLIT": self.split,
            "TEXT_COLUMN": self.column,
        }

    def pieces(self, after: Position | None) -> Pieces:
        return PlacedPieces(self._placed(after or {}), after)

    def _placed(self, after: Position) -> Generator[Placed]:
        """Stream the rows; wait for a hub that is away, and go on after the last row."""
        backoff = Backoff(self.sleep)
        reached = after
        while True:
            try:
                for piece, place in self._stream(reached):
                    backoff.worked()
                    reached = place
                    yield piece, place
                return
            except Unavailable as error:
                backoff.failed(error)

    def _stream(self, after: Position) -> Iterator[Placed]:
        setting = f"DATASET={self.pinned}"
        with hub_failures(setting):
            import datasets
        dataset = self._open(setting)
        count, first = int(after.get("rows", 0)), int(after.get("part", 0))
        state, library = after.get("state"), datasets.__version__
        with _library_failures(setting):
            if state and after.get("library") == library:
                dataset.load_state_dict(state)
            elif count:  # another version of the library wrote the state: skip row by row
                dataset = dataset.skip(count)
            rows = iter(dataset)
        while True:
            with _library_failures(setting):
                row = next(rows, None)
                reached = dataset.state_dict()
            if row is None:
                return
            if self.column not in row:
                raise no_column(self.column, row, self.name.repo_id)
            text = text_of(row[self.column], self.column, self.name.repo_id)
            here = {"rows": count, "state": state, "library": library}
            count, state = count + 1, reached
            following = {"rows": count, "state": state, "library": library}
            yield from row_pieces(text, self.limits, first, here, following)
            first = 0

    def _open(self, setting: str) -> Any:
        from datasets import config, load_dataset

        # The library would wait for minutes and say nothing; `Backoff` logs each pause.
        config.STREAMING_READ_MAX_RETRIES = config.STREAMING_OPEN_MAX_RETRIES = 1
        config.STREAMING_READ_RETRY_INTERVAL = config.STREAMING_OPEN_RETRY_INTERVAL = 0
        config.STREAMING_READ_SERVER_UNAVAILABLE_RETRY_INTERVAL = 0
        config.STREAMING_READ_RATE_LIMIT_RETRY_INTERVAL = 0
        try:
            with hub_failures(setting), disk_failures(_CACHE):
                return load_dataset(
                    self.name.repo_id,
                    self.config,
                    split=self.split,
                    revision=self.revision,
                    streaming=True,
                )
        except AppError:
            raise
        except Exception as error:
            # DATASET_CONFIG or DATASET_SPLIT is wrong: the library's text lists the right ones. Or
            # the dataset is of a kind that it cannot read: what it raises then is no fixed list.
            raise ConfigError(
                f"{setting} with DATASET_CONFIG={self.config or ''} DATASET_SPLIT={self.split} "
                f"cannot be used: {first_line(error)}"
            ) from error


@contextmanager
def _library_failures(setting: str) -> Iterator[None]:
    """For reading rows. What the library raises for broken files of any format is no fixed list.

    Raises Damaged, and what `hub_failures` and `disk_failures` raise.
    """
    try:
        with hub_failures(setting), disk_failures(_CACHE):
            yield
    except AppError:
        raise
    except Exception as error:
        raise Damaged(f"{setting} cannot be read: {first_line(error)}") from error


def open_hub(
    settings: DataSettings,
    revision: str | None,
    limits: DataLimits = DEFAULT_LIMITS,
    sleep: Sleep | None = None,
) -> HubSource:
    """The dataset at its newest commit, or at the commit `revision`.

    The hub is asked for the newest commit only. Raises NotFound, AccessDenied, Unavailable.
    """
    name = HubName.parse(settings.dataset)
    return HubSource(
        _at_commit(name.at(revision) if revision else name, f"DATASET={settings.dataset}"),
        name.config or settings.dataset_config,
        name.split or settings.dataset_split,
        settings.text_column,
        limits,
        sleep,
    )


def _at_commit(name: HubName, setting: str) -> HubName:
    if name.is_pinned:
        return name

    with hub_failures(setting):
        from huggingface_hub import HfApi

        api = HfApi()
        info = api.dataset_info(name.repo_id, revision=name.revision, timeout=30)
        if info.gated:  # everybody sees its description, but not everybody its files
            api.auth_check(name.repo_id, repo_type="dataset")
    if info.sha is None:
        raise Unavailable(f"{setting}: the hub names no revision")
    return name.at(str(info.sha))

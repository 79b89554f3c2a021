"""What a training process serves on METRICS_PORT: its metrics, its health, and the live page."""

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http import HTTPStatus

from app.errors import AccessDenied, ConfigError, Unavailable
from app.heartbeat import check_heartbeat
from app.observe.live import LiveRuns, PageLimits
from app.observe.prometheus import RunMetrics
from app.observe.server import HEALTH, METRICS, TEXT, Address, Answer, PageServer, Shown
from app.settings.combined import Settings
from app.stores.opening import open_place

log = logging.getLogger(__name__)

_POLL_SECONDS = 0.1  # until the server notices that it is to end


@contextmanager
def served(settings: Settings, run_name: str) -> Iterator[RunMetrics]:
    """The metrics of the run `run_name`, served inside this block, if METRICS_PORT is set.

    Where it cannot be served there, that is said, and is no reason not to train.
    """
    metrics = RunMetrics(run_name, settings.place.rank)
    server = _server(settings, run_name, metrics) if settings.logs.metrics_port else None
    if server is None:
        yield metrics
        return
    log.info("metrics, health and the live page are at %s", server.url)
    thread = threading.Thread(
        target=server.serve_forever, args=(_POLL_SECONDS,), name="endpoint", daemon=True
    )
    thread.start()
    try:
        yield metrics
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _server(settings: Settings, run_name: str, metrics: RunMetrics) -> PageServer | None:
    host, port = settings.logs.metrics_host, settings.logs.metrics_port
    uri = settings.checkpoints.checkpoint_uri
    texts: dict[str, Callable[[], Answer]] = {
        METRICS: lambda: Answer(HTTPStatus.OK, metrics.text(), f"{TEXT}; version=0.0.4"),
        HEALTH: partial(_health, settings.run_place),
    }
    runs = LiveRuns(partial(open_place, uri), uri, PageLimits())
    address = Address(host, port, f"METRICS_HOST={host} METRICS_PORT={port}")
    try:
        return PageServer(address, Shown(runs, uri, run_name, texts))
    except (ConfigError, AccessDenied) as error:
        log.warning("%s. Training goes on without /metrics, /healthz and the page", error)
        return None


def _health(run_place: str) -> Answer:
    """What `python -m app health` says of the run that is at work here."""
    try:
        return Answer(HTTPStatus.OK, f"{check_heartbeat(run_place)}\n")
    except Unavailable as error:
        return Answer(HTTPStatus.SERVICE_UNAVAILABLE, f"{error}\n")

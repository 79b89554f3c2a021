"""Spot notices: both clouds' protocols, and a notice that is a SIGTERM."""

import functools
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from app.errors import AccessDenied, AppError, ConfigError, Damaged, Unavailable
from app.settings.load import load_settings
from app.settings.variables import CheckpointSettings, MetadataServers
from app.training.preemption import Interrupted, StopRequest
from app.training.spot import (
    AwsNotices,
    GcpNotices,
    Notice,
    NoticeSource,
    SpotWatch,
    watched_for_notices,
)
from tests.support.forked_job import ForkedJobRunner
from tests.support.job import JobRunner, both, newest_checkpoint
from tests.support.metadata_server import FakeCloud, fake_cloud

CLOUDS = ("aws", "gcp")
AWS_NOTICE = Notice("AWS", "terminate", "at 2026-11-24T12:02:00Z")
GCP_NOTICE = Notice("GCP", "preempted", "within 30 s")

PATIENT = 60.0  # seconds: a busy machine may answer late, which is no fault of the server here


@pytest.fixture
def patient_job(monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs that this process starts by fork wait for an answer as long as the tests do."""
    patient = functools.partial(watched_for_notices, answer_seconds=PATIENT)
    monkeypatch.setattr("app.cli.train.watched_for_notices", patient)


@pytest.fixture
def cloud() -> Iterator[FakeCloud]:
    with fake_cloud() as server:
        yield server


def source(name: str, address: str, answer_seconds: float = PATIENT) -> NoticeSource:
    if name == "aws":
        return AwsNotices(f"http://{address}/", answer_seconds)
    return GcpNotices(address, answer_seconds)


@pytest.mark.parametrize("name", CLOUDS)
def test_no_notice_and_then_one(name: str, cloud: FakeCloud) -> None:
    asked = source(name, cloud.address)
    assert asked.notice() is None
    cloud.noticed = True
    assert asked.notice() == {"aws": AWS_NOTICE, "gcp": GCP_NOTICE}[name]


def test_a_session_of_aws_is_used_again_and_renewed_when_it_is_over(cloud: FakeCloud) -> None:
    asked = AwsNotices(f"http://{cloud.address}", PATIENT)
    assert asked.notice() is None and asked.notice() is None
    assert cloud.requests.count("PUT /latest/api/token") == 1
    cloud.expire_tokens()
    cloud.noticed = True
    assert asked.notice() == AWS_NOTICE
    assert cloud.requests.count("PUT /latest/api/token") == 2


@pytest.mark.parametrize("name", CLOUDS)
@pytest.mark.parametrize(
    ("status", "error"),
    [(401, AccessDenied), (403, AccessDenied), (302, Unavailable), (503, Unavailable)],
)
def test_a_refusal_is_no_notice(
    name: str, status: int, error: type[AppError], cloud: FakeCloud
) -> None:
    cloud.instead = lambda _: (status, b"TRUE")
    with pytest.raises(error, match=str(status)):
        source(name, cloud.address).notice()


@pytest.mark.parametrize("name", CLOUDS)
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>please log in</html>",
        b"\xff\x00\r\n",
        b"[" * 30_000,
        b'{"action": 1, "time": 2}',
    ],
)
def test_an_answer_without_meaning_is_no_notice(name: str, body: bytes, cloud: FakeCloud) -> None:
    cloud.instead = lambda path: None if path.endswith("/token") else (200, body)
    with pytest.raises(Damaged, match="answers what is no notice"):
        source(name, cloud.address).notice()


def test_a_token_cannot_bring_headers_of_its_own(cloud: FakeCloud) -> None:
    cloud.instead = lambda path: (200, b"x\r\nHost: evil") if path.endswith("/token") else None
    with pytest.raises(Damaged):
        AwsNotices(f"http://{cloud.address}", PATIENT).notice()


@pytest.mark.parametrize("name", CLOUDS)
def test_an_answer_without_end_is_cut_off(name: str, cloud: FakeCloud) -> None:
    cloud.instead = lambda _: (200, b"TRUE" * 100_000)
    with pytest.raises(Unavailable, match="more than 65536 bytes"):
        source(name, cloud.address).notice()


@pytest.mark.parametrize("name", CLOUDS)
def test_a_server_that_is_not_there_is_unavailable(name: str, closed_endpoint: str) -> None:
    with pytest.raises(Unavailable, match="does not answer"):
        source(name, closed_endpoint.removeprefix("http://")).notice()


@pytest.fixture
def trickling() -> Iterator[str]:
    """A server that sends one byte and then waits."""
    released = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.sendall(b"H")
                released.wait(30)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        released.set()
        thread.join()


@pytest.mark.parametrize("name", CLOUDS)
def test_an_answer_that_trickles_is_given_up(name: str, trickling: str) -> None:
    with pytest.raises(Unavailable, match="does not answer"):
        source(name, trickling, answer_seconds=0.1).notice()


@pytest.mark.parametrize("name", CLOUDS)
def test_no_proxy_is_asked(
    name: str, cloud: FakeCloud, closed_endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(variable, closed_endpoint)
    for variable in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    assert source(name, cloud.address).notice() is None


@pytest.mark.parametrize(
    ("made", "variable"),
    [
        (lambda: AwsNotices("169.254.169.254"), "AWS_EC2_METADATA_SERVICE_ENDPOINT"),
        (lambda: AwsNotices("https://169.254.169.254"), "AWS_EC2_METADATA_SERVICE_ENDPOINT"),
        (lambda: AwsNotices("http://me@169.254.169.254"), "AWS_EC2_METADATA_SERVICE_ENDPOINT"),
        (lambda: GcpNotices("http://169.254.169.254"), "GCE_METADATA_HOST"),
        (lambda: GcpNotices("host:port"), "GCE_METADATA_HOST"),
    ],
)
def test_an_address_that_cannot_be_one_names_its_variable(
    made: Callable[[], NoticeSource], variable: str
) -> None:
    with pytest.raises(ConfigError, match=f"^{variable}="):
        made()


def test_an_address_of_ipv6_can_be_one() -> None:
    AwsNotices("http://[fd00:ec2::254]/")


def test_the_addresses_are_the_clouds_own_unless_their_variables_say_otherwise(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    names = ("AWS_EC2_METADATA_SERVICE_ENDPOINT", "GCE_METADATA_HOST")
    for name in names:
        monkeypatch.setenv(name, "")
    assert load_settings().metadata_servers == MetadataServers.model_construct()
    for name in names:
        monkeypatch.setenv(name, "elsewhere")
    servers = load_settings().metadata_servers
    assert servers.aws_ec2_metadata_service_endpoint == servers.gce_metadata_host == "elsewhere"


class ScriptedSource:
    """Answers that a test has written down; the last one stays."""

    variable, every = "SPOT_NOTICES=test", 0.001

    def __init__(self, *answers: Notice | AppError | None) -> None:
        self._answers = list(answers)
        self.asked_often = threading.Event()
        self._count = 0

    def notice(self) -> Notice | None:
        self._count += 1
        if self._count >= 20:
            self.asked_often.set()
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        if isinstance(answer, AppError):
            raise answer
        return answer


def test_a_notice_is_acted_on_once_and_said_in_one_line(
    caplog: pytest.LogCaptureFixture,
) -> None:
    acts: list[str] = []
    acted = threading.Event()

    def act() -> None:
        acts.append("SIGTERM")
        acted.set()

    watch = SpotWatch(ScriptedSource(None, AWS_NOTICE), act)
    watch.start()
    assert acted.wait(30)
    watch.thread.join(30)
    assert acts == ["SIGTERM"]
    assert caplog.messages == [
        "SPOT NOTICE from AWS: terminate at 2026-11-24T12:02:00Z; stopping as on SIGTERM"
    ]


def test_a_server_that_never_answers_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    silent = ScriptedSource(Unavailable("nobody there"))
    watch = SpotWatch(silent, lambda: pytest.fail("no notice was given"))
    watch.start()
    assert silent.asked_often.wait(30)
    watch.close()
    watch.thread.join(30)
    assert caplog.messages == ["SPOT_NOTICES=test: nobody there: training goes on without notices"]


def test_a_server_that_is_late_is_heard_and_each_trouble_is_said_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    acted = threading.Event()
    a, b = Unavailable("silent"), Damaged("garbage")
    watch = SpotWatch(ScriptedSource(a, b, a, None, b, None, GCP_NOTICE), acted.set)
    watch.start()
    assert acted.wait(30)
    said = [message.removeprefix("SPOT_NOTICES=test: ") for message in caplog.messages]
    assert said == [
        "silent: training goes on without notices",
        "garbage: training goes on without notices",
        "asking every 0.001 s, no notice so far",
        "SPOT NOTICE from GCP: preempted within 30 s; stopping as on SIGTERM",
    ]


def test_a_notice_after_the_end_is_not_acted_on() -> None:
    asked, answered = threading.Event(), threading.Event()

    class Slow(ScriptedSource):
        def notice(self) -> Notice | None:
            asked.set()
            assert answered.wait(30)
            return AWS_NOTICE

    watch = SpotWatch(Slow(None), lambda: pytest.fail("the job is over"))
    watch.start()
    assert asked.wait(30)
    watch.close()
    answered.set()
    watch.thread.join(30)
    assert not watch.thread.is_alive()


def servers(cloud: FakeCloud) -> MetadataServers:
    given = {name.lower(): value for name, value in cloud.environment().items()}
    return MetadataServers.model_validate(given)


@pytest.mark.parametrize("name", CLOUDS)
def test_before_training_a_notice_ends_the_process_where_it_strikes(
    name: str, cloud: FakeCloud, own_handlers: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    cloud.noticed = True
    stop = StopRequest()
    stop.install()
    settings = CheckpointSettings.model_validate({"spot_notices": name})
    watched = watched_for_notices(settings, servers(cloud), PATIENT)
    with pytest.raises(Interrupted), watched:
        threading.Event().wait(30)
    assert stop.requested


def test_off_asks_nobody(cloud: FakeCloud, monkeypatch: pytest.MonkeyPatch) -> None:
    before = set(threading.enumerate())
    with watched_for_notices(CheckpointSettings(), servers(cloud)):
        assert set(threading.enumerate()) <= before
    assert cloud.requests == []


def tiny_job(job_environment: dict[str, str], store: Path, cloud: FakeCloud) -> JobRunner:
    environment = {
        **job_environment,
        **cloud.environment(),
        "CHECKPOINT_URI": f"file://{store}",
        "TRAINER": "torch",
        "TOTAL_STEPS": "100000",
        "CHECKPOINT_EVERY_STEPS": "100000",
    }
    return ForkedJobRunner(environment)


@pytest.mark.slow
@pytest.mark.usefixtures("patient_job")
@pytest.mark.parametrize("name", CLOUDS)
def test_a_notice_commits_the_step_and_exits_143(
    name: str, cloud: FakeCloud, job_environment: dict[str, str], tmp_path: Path
) -> None:
    def give_notice() -> None:
        cloud.noticed = True

    job = tiny_job(job_environment, tmp_path, cloud).with_(SPOT_NOTICES=name)
    then = both(give_notice)
    stopped = job.run("train", when={"asking every": then, "step 4/100000": then})
    assert stopped.code == 143, stopped.log
    assert f"SPOT_NOTICES={name}: asking every" in stopped.log
    assert stopped.log.count("SPOT NOTICE from") == 1
    step = int(newest_checkpoint(tmp_path / "tiny").name.split("-")[1])
    assert step >= 4
    assert f"stopped at step {step} of 100000; newest checkpoint: step {step}" in stopped.log


@pytest.mark.slow
@pytest.mark.usefixtures("patient_job")
def test_a_notice_before_training_begins_ends_the_job_with_143(
    cloud: FakeCloud, job_environment: dict[str, str], tmp_path: Path
) -> None:
    cloud.noticed = True
    stopped = tiny_job(job_environment, tmp_path, cloud).with_(SPOT_NOTICES="gcp").run("train")
    assert stopped.code == 143, stopped.log
    assert "stopped before this attempt finished a step: nothing new to save" in stopped.log
    assert not list(tmp_path.rglob("manifest.json"))

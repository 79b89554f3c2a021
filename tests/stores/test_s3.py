"""A run in a bucket: what servers answer, what they do not know, what they leave behind."""

import base64
import errno
import io
import random
import re
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from app.errors import (
    AccessDenied,
    AppError,
    ConfigError,
    NoBucket,
    NotFound,
    Unavailable,
    Unserved,
)
from app.stores.contract import MAX_GET_BYTES
from app.stores.limits import StoreLimits
from app.stores.opening import open_store
from app.stores.s3 import S3Store
from tests.support.interposed import Answer, Answering, Interposed
from tests.support.store_contents import keys, leave_half_written

AT_ONCE = StoreLimits(restart_wait=0)
MIB = 2**20


def xml(code: str, message: str = "no") -> str:
    return f"<Error><Code>{code}</Code><Message>{message}</Message></Error>"


@pytest.fixture
def s3(bucket: str) -> S3Store:
    return S3Store(bucket, "some/prefix/run", limits=StoreLimits(probe_pause=0))


class TestS3Store:
    def test_lists_page_after_page(self, bucket: str) -> None:
        store = S3Store(bucket, "run", page_size=3)
        for number in range(10):
            store.put(f"k/{number}", [b"x"])
        assert keys(store, "k") == [f"k/{number}" for number in range(10)]

    def test_a_bucket_of_another_server_is_another_place_and_amazons_is_one(
        self, bucket: str, s3_server: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        uri = f"s3://{bucket}/run"
        assert S3Store(bucket, "run").place == f"{uri} at {s3_server}"
        monkeypatch.delenv("AWS_ENDPOINT_URL_S3")
        for region in ("us-east-1", "eu-central-1", "cn-north-1"):
            monkeypatch.setenv("AWS_DEFAULT_REGION", region)
            assert S3Store(bucket, "run").place == uri
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://amazonaws.com.example")
        assert S3Store(bucket, "run").place == f"{uri} at http://amazonaws.com.example"

    def test_sees_only_its_own_prefix(self, bucket: str) -> None:
        run, longer = open_store(f"s3://{bucket}/", "run"), open_store(f"s3://{bucket}", "run-2")
        longer.put("a", [b"x"])
        assert keys(run) == []
        assert run.uri == f"s3://{bucket}/run"

    def test_leaves_out_what_no_writer_of_a_run_made(
        self, s3: S3Store, bucket: str, s3_client: Any
    ) -> None:
        for name in ("", "folder/", "my notes.txt", ".store-probe-1"):
            s3_client.put_object(Bucket=bucket, Key=f"some/prefix/run/{name}")
        assert keys(s3) == []

    def test_a_missing_bucket_is_not_taken_for_an_empty_one(self, bucket: str) -> None:
        store = open_store(f"s3://{bucket}-missing", "run")
        for use in (store.check, lambda: keys(store), lambda: store.put("a", [b"x"])):
            with pytest.raises(NoBucket, match=f"{bucket}-missing.*no such bucket"):
                use()

    @pytest.mark.usefixtures("bucket", "no_backoff")
    def test_an_endpoint_that_nobody_listens_to_is_unavailable(
        self, closed_endpoint: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", closed_endpoint)
        store = open_store("s3://bucket", "run", AT_ONCE)
        for use in (store.check, lambda: store.put("a", [b"x"]), lambda: keys(store)):
            with pytest.raises(Unavailable, match=closed_endpoint):
                use()

    @pytest.mark.usefixtures("no_backoff")
    def test_a_server_that_starts_while_the_job_does_is_waited_for(
        self, bucket: str, s3_answers: Interposed, caplog: pytest.LogCaptureFixture
    ) -> None:
        left = 7  # more than the SDK's own tries

        def starting(environ: dict[str, Any]) -> Answer | None:
            nonlocal left
            left -= 1
            return (503, xml("ServiceUnavailable")) if left >= 0 else None

        s3_answers.answering = starting
        open_store(f"s3://{bucket}", "run", StoreLimits(restart_pause=0)).check()
        said = [record.message for record in caplog.records if "tried again for" in record.message]
        assert len(said) == 2

    @pytest.mark.usefixtures("no_backoff")
    def test_a_server_that_does_not_come_is_waited_for_no_longer_than_said(
        self, bucket: str, s3_answers: Interposed
    ) -> None:
        s3_answers.answering = lambda environ: (503, xml("ServiceUnavailable"))
        with pytest.raises(Unavailable, match="does not serve now"):
            open_store(f"s3://{bucket}", "run", AT_ONCE).check()

    @pytest.mark.usefixtures("bucket", "no_backoff")
    def test_a_server_that_says_nothing_is_spoken_of_at_each_try(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            url = f"http://127.0.0.1:{silent.getsockname()[1]}"
            monkeypatch.setenv("AWS_ENDPOINT_URL_S3", url)
            with pytest.raises(Unavailable, match=url):
                hasty = StoreLimits(read_timeout=0.2, restart_wait=0)
                open_store("s3://bucket", "run", hasty).check()
        assert [record.message for record in caplog.records if "app." in record.name] == [
            f"{url} does not answer (ListObjectsV2, try {n} of 3)" for n in (1, 2, 3)
        ]

    @pytest.mark.usefixtures("bucket")
    @pytest.mark.parametrize("url", ["not-a-url", "http://", "http://bad host/"])
    def test_an_endpoint_that_is_no_url_is_a_configuration_error(
        self, monkeypatch: pytest.MonkeyPatch, url: str
    ) -> None:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", url)
        with pytest.raises(ConfigError, match="AWS_ENDPOINT_URL_S3"):
            open_store("s3://bucket", "run").check()

    @pytest.mark.parametrize(
        ("answer", "expected"),
        [
            ((403, xml("AccessDenied")), AccessDenied),
            ((403, xml("InvalidAccessKeyId")), AccessDenied),
            ((403, xml("SignatureDoesNotMatch")), AccessDenied),
            ((403, "no XML at all"), AccessDenied),
            ((400, xml("ExpiredToken")), AccessDenied),
            ((401, xml("Unauthorized")), AccessDenied),
            ((404, xml("NoSuchKey")), NotFound),
            ((404, xml("NoSuchBucket")), NoBucket),
            ((404, "<html>default backend</html>"), Unavailable),
            ((503, xml("SlowDown")), Unavailable),
            ((500, xml("InternalError")), Unserved),
            ((502, "<html>bad gateway</html>"), Unserved),
            ((507, xml("XMinioStorageFull")), Unavailable),
            ((400, xml("RequestTimeout")), Unavailable),
            ((400, xml("InvalidBucketName")), ConfigError),
            ((404, ""), Unavailable),
        ],
    )
    @pytest.mark.usefixtures("no_backoff")
    def test_keeps_the_servers_answers_apart(
        self,
        s3: S3Store,
        s3_answers: Interposed,
        tmp_path: Path,
        answer: Answer,
        expected: type[AppError],
    ) -> None:
        s3.put("a", [b"x"])
        s3_answers.answering = lambda environ: answer
        uses: list[Callable[[], object]] = [
            lambda: s3.get("a"),
            lambda: s3.fetch("a", tmp_path),
            lambda: s3.move("a", "b"),
            lambda: keys(s3),
            lambda: s3.put("a", [b"y"]),
        ]
        for use in uses:
            with pytest.raises(expected) as caught:
                use()
            assert type(caught.value) is expected
            assert "testing-secret" not in str(caught.value)
        s3_answers.reset()
        assert s3.get("a")[0] == b"x"

    @pytest.mark.usefixtures("no_backoff")
    def test_a_web_server_that_is_no_s3_is_unavailable(
        self, bucket: str, s3_answers: Interposed
    ) -> None:
        s3 = open_store(f"s3://{bucket}", "run", AT_ONCE)
        s3_answers.answering = lambda environ: (200, "<!doctype html><html><br>console</html>")
        for use in (s3.check, lambda: keys(s3)):
            with pytest.raises(Unavailable, match="does not serve now"):
                use()

    def test_a_key_that_cannot_be_deleted_is_an_error(
        self, s3: S3Store, s3_answers: Interposed
    ) -> None:
        s3_answers.answering = only("DELETE", (403, xml("AccessDenied")))
        with pytest.raises(AccessDenied, match="some/prefix/run/a"):
            s3.delete(["a"])

    @pytest.mark.parametrize(
        "answer",
        [
            (403, xml("AccessDenied")),
            (405, xml("MethodNotAllowed")),
            (400, xml("InvalidRequest", "Object is WORM protected")),
            (501, xml("NotImplemented")),
        ],
    )
    def test_a_bucket_that_forbids_deletion_is_found_out(
        self, s3: S3Store, s3_answers: Interposed, answer: Answer
    ) -> None:
        found = [s3.deletes]
        for answering in (only("DELETE", answer), lambda environ: None):
            s3_answers.answering = answering
            s3.check()
            found.append(s3.deletes)
        assert found == [True, False, True] and s3.conditional_writes

    @pytest.mark.parametrize(
        "answer",
        [
            (400, xml("NotImplemented")),
            (400, xml("MissingContentMD5")),
            (405, xml("MethodNotAllowed")),
            (501, ""),
        ],
    )
    def test_a_server_that_deletes_only_one_by_one_is_enough(
        self, s3: S3Store, s3_answers: Interposed, answer: Answer
    ) -> None:
        s3_answers.answering = only("POST", answer, query="delete")
        s3.check()
        s3.put("a", [b"x"])
        s3.put("b", [b"x"])
        s3.delete(["a", "missing", "b"])
        assert keys(s3) == []

    @pytest.mark.parametrize(
        "answer", [(400, xml("NotImplemented")), (405, xml("MethodNotAllowed")), (501, "")]
    )
    def test_a_server_without_uploads_in_parts_gets_one_piece(
        self, s3: S3Store, s3_answers: Interposed, answer: Answer
    ) -> None:
        s3_answers.answering = only("POST", answer, query="uploads")
        for key in "ab":
            s3.put(key, [bytes(9 * MIB)])
        refused = [request for request in s3_answers.requests if request.startswith("POST")]
        assert len(refused) == 1
        assert [info.size for info in s3.list("")] == [9 * MIB, 9 * MIB]

    @pytest.mark.parametrize(
        "answer", [(501, xml("NotImplemented")), (403, xml("AccessDenied", "no GetObjectTagging"))]
    )
    @pytest.mark.parametrize("size", [0, 5, 9 * MIB])
    @pytest.mark.usefixtures("no_backoff")
    def test_a_server_that_makes_no_copies_gets_them_from_here(
        self, s3: S3Store, s3_answers: Interposed, answer: Answer, size: int
    ) -> None:
        content = bytes([7]) * size
        s3.put("a", [content])

        def answering(environ: dict[str, Any]) -> Answer | None:
            return answer if "HTTP_X_AMZ_COPY_SOURCE" in environ else None

        s3_answers.answering = answering
        s3.move("a", "b")
        assert keys(s3) == ["b"]
        assert s3.get("b", 10 * MIB)[0] == content

    def test_a_server_that_makes_neither_copies_nor_uploads_in_parts_gets_copies_in_one_piece(
        self, s3: S3Store, s3_answers: Interposed
    ) -> None:
        content = random.Random(7).randbytes(9 * MIB)
        s3.put("a", [content])

        def answering(environ: dict[str, Any]) -> Answer | None:
            asked = "HTTP_X_AMZ_COPY_SOURCE" in environ or environ["QUERY_STRING"] == "uploads"
            return (501, xml("NotImplemented")) if asked else None

        s3_answers.answering = answering
        s3.move("a", "b")
        assert keys(s3) == ["b"]
        assert s3.get("b", 10 * MIB)[0] == content

    @pytest.mark.parametrize("answer", [(403, xml("SignatureDoesNotMatch")), (411, "")])
    def test_checksums_that_a_server_takes_for_something_else_are_left_out(
        self, s3: S3Store, s3_answers: Interposed, answer: Answer
    ) -> None:
        def answering(environ: dict[str, Any]) -> Answer | None:
            has_checksum = "HTTP_X_AMZ_CHECKSUM_CRC32" in environ
            return answer if environ["REQUEST_METHOD"] == "PUT" and has_checksum else None

        s3_answers.answering = answering
        s3.check()
        s3.put("a", [b"x"])
        assert keys(s3) == ["a"]

    def test_a_listing_in_another_order_and_of_other_prefixes_is_put_in_order(
        self, s3: S3Store, s3_answers: Interposed
    ) -> None:
        names = ["some/prefix/run/b/2", "some/prefix/other/x", "a", "some/prefix/run/a"]
        s3_answers.answering = lambda environ: (200, listing(*map(entry, names)))
        assert keys(s3) == ["a", "b/2"]

    @pytest.mark.parametrize("field", ["ETag", "LastModified", "StorageClass"])
    def test_what_a_listing_need_not_tell_may_be_missing(
        self, s3: S3Store, s3_answers: Interposed, field: str
    ) -> None:
        short = re.sub(f"<{field}>.*</{field}>", "", entry("some/prefix/run/a"))
        s3_answers.answering = lambda environ: (200, listing(short))
        assert [(info.key, info.size) for info in s3.list("")] == [("a", 3)]

    @pytest.mark.parametrize(
        "answer",
        [
            "<Contents><Key>some/prefix/run/a</Key></Contents>",
            "<Contents><Size>3</Size></Contents>",
            "<Contents><Key>some/prefix/run/a</Key><Size>big</Size></Contents>",
            "<IsTruncated>true</IsTruncated>",
            "<NextContinuationToken>1</NextContinuationToken>",
            "<Contents>",
        ],
    )
    @pytest.mark.usefixtures("no_backoff")
    def test_a_listing_that_tells_too_little_is_no_listing(
        self, s3: S3Store, s3_answers: Interposed, answer: str
    ) -> None:
        s3_answers.answering = lambda environ: (200, listing(answer))
        with pytest.raises(Unavailable):
            keys(s3)

    @pytest.mark.usefixtures("no_backoff")
    @pytest.mark.parametrize(
        ("method", "query", "answer"),
        [
            (
                "POST",
                "uploads",
                "<InitiateMultipartUploadResult><!--UploadId--></InitiateMultipartUploadResult>",
            ),
            ("POST", "uploadId", "<CompleteMultipartUploadResult>"),
            ("HEAD", "", ""),
            ("PUT", "", "<CopyObjectResult><ETag/>"),
        ],
    )
    def test_an_answer_without_what_is_needed_of_it_is_an_outage(
        self,
        s3: S3Store,
        s3_answers: Interposed,
        tmp_path: Path,
        method: str,
        query: str,
        answer: str,
    ) -> None:
        s3.put("a", [bytes(9 * MIB)])
        s3_answers.answering = only(method, (200, answer), query=query)
        s3_answers.headers = {"ETag": ""}
        with pytest.raises(Unavailable):
            if method == "POST":
                s3.put("b", [bytes(9 * MIB)])
            elif method == "HEAD":
                s3.fetch("a", tmp_path)
                s3.move("a", "b")
            else:
                s3.move("a", "b")

    def test_an_upload_without_a_date_is_not_stale_and_others_uploads_are_not_ours(
        self, s3: S3Store, s3_answers: Interposed
    ) -> None:
        uploads = "".join(
            f"<Upload><Key>{key}</Key><UploadId>1</UploadId></Upload>"
            for key in ("some/prefix/run/a", "another/run/a")
        )
        s3_answers.answering = lambda environ: (
            200,
            f"<ListMultipartUploadsResult>{uploads}</ListMultipartUploadsResult>",
        )
        assert [(half.key, half.stale) for half in s3.half_written()] == [("a", False)]

    def test_uploads_that_are_told_of_in_part_hinder_nothing(
        self, s3: S3Store, s3_answers: Interposed
    ) -> None:
        for upload in ("<Upload><Key>some/prefix/run/a</Key></Upload>", "<Upload>", "<Upload/>"):
            text = f"<ListMultipartUploadsResult>{upload}</ListMultipartUploadsResult>"
            s3_answers.answering = constant((200, text))
            assert s3.half_written() == []

    @pytest.mark.parametrize("answer", ["refuses", "stores them"])
    def test_a_server_that_does_not_know_the_checksums_of_uploads_gets_none(
        self, s3: S3Store, s3_answers: Interposed, caplog: pytest.LogCaptureFixture, answer: str
    ) -> None:
        def answering(environ: dict[str, Any]) -> Answer | None:
            if environ["REQUEST_METHOD"] != "PUT" or "HTTP_X_AMZ_CHECKSUM_CRC32" not in environ:
                return None
            if answer == "refuses":
                return 501, xml("NotImplemented", "A header you provided implies what is not.")
            environ["wsgi.input"].read(length := int(environ["CONTENT_LENGTH"]))
            environ["wsgi.input"] = io.BytesIO(bytes(length))
            for name in [name for name in environ if "CHECKSUM" in name]:
                del environ[name]
            return None

        s3_answers.answering = answering
        s3.check()
        assert s3.conditional_writes
        assert "does not know the checksums of uploads" in caplog.text
        s3.put("a", [bytes([1]) * 9 * MIB])
        assert s3.put_if_absent("b", b"1")
        s3_answers.reset()
        assert (s3.get("a", 10 * MIB)[0], s3.get("b")[0]) == (bytes([1]) * 9 * MIB, b"1")

    def test_a_bit_that_flips_on_the_way_is_read_again(
        self, s3: S3Store, s3_answers: Interposed
    ) -> None:
        s3.put("a", [b"whole"])
        s3_answers.answering = first(1, (200, "whale"))
        s3_answers.headers = {"x-amz-checksum-crc32": base64.b64encode(bytes(4)).decode()}
        assert s3.get("a")[0] == b"whole"
        assert s3_answers.requests.count(f"GET /{s3.uri.removeprefix('s3://')}/a") == 2

    @pytest.mark.parametrize("support", ["ignored", "unknown"])
    def test_a_server_without_conditional_writes_is_found_out(
        self, s3: S3Store, s3_answers: Interposed, support: str
    ) -> None:
        def answering(environ: dict[str, Any]) -> Answer | None:
            given = [environ.pop(f"HTTP_IF_{name}", None) for name in ("MATCH", "NONE_MATCH")]
            return (501, xml("NotImplemented")) if support == "unknown" and any(given) else None

        s3_answers.answering = answering
        s3.check()
        assert not s3.conditional_writes
        assert keys(s3) == []
        etag = s3.put_if_absent("a", b"1")
        assert etag
        assert s3.put_if_absent("a", b"2") is None
        assert s3.put_if_match("a", b"2", "other") is None
        assert s3.put_if_match("a", b"2", etag)
        assert s3.get("a")[0] == b"2"

    @pytest.mark.parametrize(
        "answer",
        [
            (501, xml("NotImplemented")),
            (405, ""),
            (411, ""),
            (400, xml("KMS.KMSInternalException")),
            (400, "<html>bad request</html>"),
        ],
    )
    def test_one_odd_answer_switches_nothing_off(
        self, s3: S3Store, s3_answers: Interposed, answer: Answer
    ) -> None:
        for asked in (conditional, only("DELETE", answer)):
            odd = [answer]

            def answering(
                environ: dict[str, Any], odd: list[Answer] = odd, asked: Asked = asked
            ) -> Answer | None:
                return odd.pop() if odd and asked(environ) else None

            s3_answers.answering = answering
            s3.check()
            assert odd == [] and s3.conditional_writes and s3.deletes

    @pytest.mark.parametrize(
        ("answers", "expected"),
        [
            ([(501, xml("NotImplemented")), (405, xml("MethodNotAllowed"))], Unavailable),
            ([(501, xml("NotImplemented")), (403, xml("AccessDenied"))], AccessDenied),
            ([(400, xml("KMS.DisabledException"))] * 2, Unavailable),
            ([(400, "")] * 2, Unavailable),
        ],
    )
    def test_what_a_server_does_not_say_twice_or_not_clearly_leaves_the_protection_on(
        self,
        s3: S3Store,
        s3_answers: Interposed,
        answers: list[Answer],
        expected: type[AppError],
    ) -> None:
        left = list(answers)
        s3_answers.answering = lambda environ: left.pop(0) if conditional(environ) else None
        with pytest.raises(expected):
            s3.check()
        assert left == [] and s3.conditional_writes

    @pytest.mark.parametrize(
        "answer",
        [
            (400, xml("InvalidArgument", "Unsupported header 'if-none-match' received")),
            (400, xml("NotImplemented")),
            (405, ""),
        ],
    )
    def test_a_server_that_says_twice_that_it_knows_no_conditions_is_believed(
        self, s3: S3Store, s3_answers: Interposed, answer: Answer
    ) -> None:
        s3_answers.answering = lambda environ: answer if conditional(environ) else None
        s3.check()
        assert not s3.conditional_writes

    def test_a_large_object_is_replaced_also_without_conditional_writes(
        self, s3: S3Store, s3_answers: Interposed
    ) -> None:
        def answering(environ: dict[str, Any]) -> Answer | None:
            for name in ("MATCH", "NONE_MATCH"):
                environ.pop(f"HTTP_IF_{name}", None)
            return None

        s3_answers.answering = answering
        s3.check()
        large = bytes(MAX_GET_BYTES + 1)
        etag = s3.put_if_absent("a", large)
        assert etag and s3.put_if_absent("a", b"2") is None
        s3_answers.requests.clear()
        assert s3.put_if_match("a", b"2", etag)
        assert not [request for request in s3_answers.requests if request.startswith("GET")]

    @pytest.mark.usefixtures("no_backoff")
    def test_a_larger_object_that_stands_in_the_way_is_not_ours(
        self, s3: S3Store, s3_answers: Interposed
    ) -> None:
        s3.put("a", [bytes(MAX_GET_BYTES + 1)])
        s3_answers.answering = first(1, (500, xml("InternalError")))
        assert s3.put_if_absent("a", b"ours") is None

    def test_a_server_that_compares_etags_without_quotes_still_keeps_two_writers_apart(
        self, s3: S3Store, s3_answers: Interposed
    ) -> None:
        def answering(environ: dict[str, Any]) -> Answer | None:
            given = environ.get("HTTP_IF_MATCH")
            if given and given.startswith('"'):
                return 412, xml("PreconditionFailed")
            if given:
                environ["HTTP_IF_MATCH"] = f'"{given}"'
            return None

        s3_answers.answering = answering
        s3.check()
        assert s3.conditional_writes
        etag = s3.put_if_absent("a", b"1")
        assert etag and s3.put_if_match("a", b"2", etag)
        assert s3.put_if_match("a", b"3", etag) is None
        assert s3.get("a")[0] == b"2"

    @pytest.mark.usefixtures("bucket", "no_backoff")
    def test_a_connection_that_ends_within_an_interim_answer_is_an_outage(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def answer(listener: socket.socket) -> None:
            with suppress(OSError):
                while True:
                    client, _ = listener.accept()
                    with client:
                        client.recv(65_536)
                        client.sendall(b"HTTP/1.1 100 Continue\r\n")

        with socket.create_server(("127.0.0.1", 0)) as listener:
            threading.Thread(target=answer, args=(listener,), daemon=True).start()
            url = f"http://127.0.0.1:{listener.getsockname()[1]}"
            monkeypatch.setenv("AWS_ENDPOINT_URL_S3", url)
            with pytest.raises(Unavailable):
                open_store("s3://bucket", "run").put("a", [b"x"])
            listener.shutdown(socket.SHUT_RDWR)

    @pytest.mark.usefixtures("no_backoff")
    @pytest.mark.parametrize("page", ["<html>log in</html>", "", "<Listing/>", "{}"])
    def test_an_answer_that_is_none_of_s3_is_no_empty_listing_and_no_object(
        self, s3: S3Store, s3_answers: Interposed, page: str, tmp_path: Path
    ) -> None:
        s3.put("a", [b"content"])
        s3_answers.answering = lambda environ: (200, page)
        s3_answers.headers = {"ETag": ""}
        uses: list[Callable[[], object]] = [
            lambda: keys(s3),
            lambda: s3.get("a"),
            lambda: s3.fetch("a", tmp_path),
            lambda: s3.put("a", [b"other"]),
            lambda: s3.move("a", "b"),
        ]
        for use in uses:
            with pytest.raises(Unavailable):
                use()
        s3_answers.reset()
        assert s3.get("a")[0] == b"content"

    @pytest.mark.usefixtures("no_backoff")
    @pytest.mark.parametrize(
        ("answer", "believed"),
        [
            ((204, ""), True),
            ((200, ""), True),
            ((200, '<?xml version="1.0"?><DeleteResult/>'), True),
            ((200, "<html>log in</html>"), False),
            ((200, "<!doctype html><br>"), False),
            ((200, '<?xml version="1.0"?><!DOCTYPE html><html>log in</html>'), False),
            ((200, "deleted"), False),
            ((202, ""), False),
            ((203, "<html>log in</html>"), False),
        ],
    )
    def test_a_page_in_the_place_of_an_answer_is_no_deletion(
        self,
        s3: S3Store,
        s3_answers: Interposed,
        caplog: pytest.LogCaptureFixture,
        answer: Answer,
        believed: bool,
    ) -> None:
        caplog.set_level("INFO")
        leave_half_written(s3, "half")
        (half,) = s3.half_written()
        s3_answers.answering = only("DELETE", answer)
        uses: list[Callable[[], object]] = [lambda: s3.delete(["a"]), s3.check]
        for use in uses:
            if believed:
                use()
            else:
                with pytest.raises(Unavailable):
                    use()
        s3.discard(half)
        assert s3.deletes
        assert ("an unfinished upload may stay" in caplog.text) is not believed

    @pytest.mark.usefixtures("no_backoff")
    def test_an_upload_that_was_answered_without_an_etag_is_not_believed(
        self, s3: S3Store, s3_answers: Interposed
    ) -> None:
        s3_answers.answering = only("PUT", (204, ""))
        s3_answers.headers = {"ETag": ""}
        with pytest.raises(Unavailable):
            s3.put("a", [b"x"])

    @pytest.mark.usefixtures("bucket", "no_backoff")
    def test_an_answer_that_ends_anywhere_is_never_taken_for_a_whole_one(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # Without "close" the next request can go down a connection that is about to end.
        head = b'HTTP/1.1 200 OK\r\nConnection: close\r\nETag: "1"\r\n'
        whole = head + b"Content-Length: 19\r\nDate: today\r\n\r\n<ListBucketResult/>"
        sent = [whole]

        def answer(listener: socket.socket) -> None:
            with suppress(OSError):
                while True:
                    client, _ = listener.accept()
                    with client:
                        client.recv(65_536)
                        client.sendall(sent[0])

        with socket.create_server(("127.0.0.1", 0)) as listener:
            threading.Thread(target=answer, args=(listener,), daemon=True).start()
            url = f"http://127.0.0.1:{listener.getsockname()[1]}"
            monkeypatch.setenv("AWS_ENDPOINT_URL_S3", url)
            store = open_store("s3://bucket", "run")
            for length in range(len(whole)):
                sent[0] = whole[:length]
                for use in (lambda: store.get("a"), lambda: keys(store)):
                    with pytest.raises(Unavailable):
                        use()
            sent[0] = whole
            assert store.get("a") == (b"<ListBucketResult/>", '"1"')
            assert keys(store) == []
            listener.shutdown(socket.SHUT_RDWR)

    def test_an_upload_is_sent_at_once_and_waits_for_no_interim_answer(
        self, s3: S3Store, s3_answers: Interposed
    ) -> None:
        expected: list[str | None] = []

        def answering(environ: dict[str, Any]) -> Answer | None:
            if environ["REQUEST_METHOD"] == "PUT":
                expected.append(environ.get("HTTP_EXPECT"))
            return None

        s3_answers.answering = answering
        s3.put("a", [bytes(9 * MIB)])
        s3.put("b", [])
        assert len(expected) == 3 and set(expected) == {None}

    def test_an_answer_that_breaks_off_is_an_outage(
        self, s3: S3Store, s3_answers: Interposed, tmp_path: Path
    ) -> None:
        s3.put("a", [b"whole"])
        s3_answers.answering = only("GET", (200, "half"), path="/a")
        s3_answers.withheld = 4
        with pytest.raises(Unavailable, match=r"broke off|broken"):
            s3.get("a")
        s3_answers.reset()
        assert s3.get("a")[0] == b"whole"

    def test_a_server_that_stores_other_bytes_is_found_out(
        self, s3: S3Store, s3_answers: Interposed
    ) -> None:
        s3_answers.answering = only("GET", (200, "1000;chunk-signature"), path="probe")
        with pytest.raises(ConfigError, match="does not return what was written"):
            s3.check()
        s3_answers.reset()
        assert keys(s3) == []

    def test_a_conflict_of_conditional_writes_is_tried_again(
        self, bucket: str, s3_answers: Interposed
    ) -> None:
        s3 = S3Store(bucket, "run", limits=StoreLimits(conflict_pauses=(0, 0, 0, 0)))
        conflict = (409, xml("ConditionalRequestConflict"))
        s3_answers.answering = first(2, conflict)
        assert s3.put_if_absent("a", b"1")
        s3_answers.reset()
        s3_answers.answering = first(1000, conflict)
        assert s3.put_if_absent("b", b"1") is None
        assert len(s3_answers.requests) == 5

    @pytest.mark.parametrize(("stored", "wins"), [(b"ours", True), (b"theirs", False)])
    @pytest.mark.usefixtures("no_backoff")
    def test_a_conditional_write_whose_answer_was_lost_is_recognised(
        self, s3: S3Store, s3_answers: Interposed, stored: bytes, wins: bool
    ) -> None:
        s3.put("a", [stored])
        s3_answers.answering = first(1, (500, xml("InternalError")))
        etag = s3.put_if_absent("a", b"ours")
        assert etag == (s3.get("a")[1] if wins else None)

    @pytest.mark.usefixtures("no_backoff")
    def test_an_upload_that_fails_leaves_no_parts(
        self, s3: S3Store, bucket: str, s3_client: Any, s3_answers: Interposed
    ) -> None:
        s3_answers.answering = only("PUT", (403, xml("AccessDenied")), query="partNumber=2")
        with pytest.raises(AccessDenied):
            s3.put("large", [bytes(17 * MIB)])
        assert "Uploads" not in s3_client.list_multipart_uploads(Bucket=bucket)
        assert keys(s3) == []

    def test_an_upload_is_stale_once_it_began_long_ago(self, s3: S3Store, bucket: str) -> None:
        leave_half_written(s3, "mine")
        # moto dates every upload to 2010.
        century = StoreLimits(stale_upload=100 * 365 * 86_400)
        patient = S3Store(bucket, "some/prefix/run", limits=century)
        assert [half.stale for half in patient.half_written()] == [False]
        assert [half.stale for half in s3.half_written()] == [True]

    def test_an_upload_that_a_server_gives_no_date_is_found_and_not_called_stale(
        self, s3: S3Store, s3_answers: Interposed
    ) -> None:
        # SeaweedFS 4.47
        upload = "<Upload><Key>some/prefix/run/a/b</Key><UploadId>u-1</UploadId></Upload>"
        result = f"<ListMultipartUploadsResult>{upload}</ListMultipartUploadsResult>"
        s3_answers.answering = only("GET", (200, result), query="uploads")
        assert [(half.key, half.stale) for half in s3.half_written()] == [("a/b", False)]

    def test_who_uploads_on_what_was_discarded_is_told_and_can_upload_again(
        self, s3: S3Store, s3_answers: Interposed
    ) -> None:
        def discarding(environ: dict[str, Any]) -> Answer | None:
            if "partNumber=2" not in environ["QUERY_STRING"]:
                return None
            for half in s3.half_written():
                s3.discard(half)
            return 404, xml("NoSuchUpload")  # as S3 answers; moto breaks down

        s3_answers.answering = discarding
        with pytest.raises(Unavailable, match="NoSuchUpload"):
            s3.put("large", [bytes(17 * MIB)])
        s3_answers.reset()
        assert keys(s3) == []
        s3.put("large", [bytes(17 * MIB)])
        assert keys(s3) == ["large"]

    def test_a_policy_that_hides_uploads_hinders_nothing(
        self, s3: S3Store, s3_answers: Interposed
    ) -> None:
        leave_half_written(s3, "mine")
        found = s3.half_written()
        s3_answers.answering = only("GET", (403, xml("AccessDenied")), query="uploads")
        assert s3.half_written() == []
        s3_answers.answering = only("DELETE", (403, xml("AccessDenied")), query="uploadId")
        s3.discard(found[0])
        s3_answers.reset()
        assert s3.half_written() == found

    def test_a_server_that_sends_no_parts_of_an_object_sends_it_whole(
        self, s3: S3Store, s3_answers: Interposed, tmp_path: Path
    ) -> None:
        content = random.Random(7).randbytes(17 * MIB)
        s3.put("a", [content])

        def answering(environ: dict[str, Any]) -> Answer | None:
            environ.pop("HTTP_RANGE", None)
            return None

        s3_answers.answering = answering
        assert s3.fetch("a", tmp_path).read_bytes() == content

    def test_a_disk_that_fills_up_under_a_download_is_no_failure_of_the_store(
        self, s3: S3Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        s3.put("a", [b"x"])

        def full(*paths: str) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr("s3transfer.utils.rename_file", full)
        with pytest.raises(OSError, match="No space left on device"):
            s3.fetch("a", tmp_path)
        assert not list(tmp_path.iterdir())


def entry(key: str) -> str:
    return (
        f"<Contents><Key>{key}</Key><LastModified>2026-01-01T00:00:00Z</LastModified>"
        "<ETag>1</ETag><Size>3</Size><StorageClass>STANDARD</StorageClass></Contents>"
    )


def listing(*entries: str) -> str:
    return f"<ListBucketResult>{''.join(entries)}</ListBucketResult>"


def only(method: str, answer: Answer, path: str = "", query: str = "") -> Answering:
    def answering(environ: dict[str, Any]) -> Answer | None:
        meant = (
            environ["REQUEST_METHOD"] == method
            and path in environ["PATH_INFO"]
            and query in environ["QUERY_STRING"]
        )
        return answer if meant else None

    return answering


Asked = Callable[[dict[str, Any]], object]


def conditional(environ: dict[str, Any]) -> bool:
    return "HTTP_IF_MATCH" in environ or "HTTP_IF_NONE_MATCH" in environ


def constant(answer: Answer) -> Answering:
    return lambda environ: answer


def first(count: int, answer: Answer) -> Answering:
    """`answer` to the first `count` requests."""
    left = [answer] * count
    return lambda environ: left.pop() if left else None

"""A TCP proxy on loopback, between a job and its store, that breaks connections."""

import random
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Literal
from urllib.parse import urlsplit

Fault = Literal["reset", "slow", "cut", "torn"]
_CHUNK = 16_384


class FaultyLink:
    """Forwards every connection; while `fault` is set, about every second request suffers it,
    `left` of them at most.

    reset   its connection is closed at once, with RST
    slow    it trickles
    cut     it is served, and half of the answer gets through: nobody knows what the server did
    torn    as cut, but only in the body of a long answer
    """

    def __init__(self, target: tuple[str, int], seed: int) -> None:
        self.fault: Fault | None = None
        self.left = 1_000_000
        self.suffered = 0
        self._target, self._draw = target, random.Random(seed)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._closing, self._counting = threading.Event(), threading.Lock()
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def close(self) -> None:
        self._closing.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        while not self._closing.is_set():
            try:
                client, _ = self._listener.accept()
            except ConnectionAbortedError:
                continue  # the client was gone before it was served
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _strikes(self, *faults: str) -> bool:
        with self._counting:
            struck = self.fault in faults and self.left > 0 and self._draw.random() < 0.5
            self.left -= struck
            self.suffered += struck
            return struck

    def _serve(self, client: socket.socket) -> None:
        """One connection, which may carry many requests: each is judged by itself."""
        server: socket.socket | None = None
        try:
            while request := client.recv(_CHUNK):
                fault = self.fault if self._strikes("reset", "slow") else None
                if fault == "reset":
                    _abort(client)
                    return
                if server is None:
                    server = socket.create_connection(self._target)
                    threading.Thread(
                        target=self._answer, args=(server, client), daemon=True
                    ).start()
                for piece in _pieces(request, 512 if fault == "slow" else _CHUNK):
                    server.sendall(piece)
                    if fault == "slow":
                        self._closing.wait(0.005)
        except OSError:
            pass  # one side is gone: the other is closed below
        finally:
            for end in filter(None, (client, server)):
                # A close alone would wait for the thread that reads from it.
                with suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
                end.close()

    def _answer(self, server: socket.socket, client: socket.socket) -> None:
        try:
            while answer := server.recv(_CHUNK):
                if self._strikes("cut", *(["torn"] if len(answer) == _CHUNK else [])):
                    client.sendall(answer[: len(answer) // 2])
                    return
                client.sendall(answer)
        except OSError:
            pass
        finally:
            # The server's end of the connection is the client's too.
            with suppress(OSError):
                client.shutdown(socket.SHUT_RDWR)


def _pieces(data: bytes, size: int) -> Iterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


def _abort(connection: socket.socket) -> None:
    """Close with RST instead of FIN."""
    with suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.shutdown(socket.SHUT_RD)  # wakes a thread that reads; nothing is sent
    connection.close()


@contextmanager
def faulty_link(endpoint: str, seed: int) -> Iterator[FaultyLink]:
    parts = urlsplit(endpoint)
    link = FaultyLink((parts.hostname or "", parts.port or 80), seed)
    try:
        yield link
    finally:
        link.close()

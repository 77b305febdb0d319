"""The base of the emulated services: an HTTP server on loopback, a log of its requests, and faults on demand.

Guarantees: the port is bound when the server is created, requests are answered while it is entered; afterwards new
connections are refused, open ones are closed, and no thread of the server is left. The server prints nothing when a
client hangs up; it prints the traceback of any other error. Cannot: serve HTTPS.
"""

from __future__ import annotations

import contextlib
import json
import re
import socket
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Generic, Self, TypeVar

Kind = TypeVar("Kind")


@dataclass
class _Fault(Generic[Kind]):
    match: str
    kind: Kind
    times: int
    after: int


class Emulator(Generic[Kind]):
    """The request log of a service, and its faults of these kinds."""

    requests: list[Any]
    """Every request, oldest first; patterns are searched in `str()` of an entry."""

    def __init__(self) -> None:
        self.requests = []
        self._lock = threading.RLock()
        self._faults: list[_Fault[Kind]] = []

    def count(self, match: str) -> int:
        """Return the number of logged requests that match the pattern."""
        return sum(bool(re.search(match, str(request))) for request in list(self.requests))

    def add_fault(self, match: str, kind: Kind, times: int = 1, *, after: int = 0) -> None:
        """Break the next `times` requests that match the pattern, after skipping `after` of them."""
        with self._lock:
            self._faults.append(_Fault(match, kind, times, after))

    def clear_faults(self) -> None:
        """Delete all faults."""
        with self._lock:
            self._faults.clear()

    def _take_fault(self, line: str) -> Kind | None:
        with self._lock:
            for fault in self._faults:
                if not fault.times or not re.search(fault.match, line):
                    continue
                if not fault.after:
                    fault.times -= 1
                    return fault.kind
                fault.after -= 1
        return None


class LoopbackServer(Emulator[Kind]):
    """An emulator that serves HTTP with a handler class, from a thread. A context manager: it serves while entered.

    A handler that waits must end when `_closing` is set.
    """

    def __init__(self, handler: type[LoopbackHandler]) -> None:
        super().__init__()
        self._closing = threading.Event()
        self._server = _Server(("127.0.0.1", 0), type("Handler", (handler,), {"service": self}))
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), name=type(self).__name__)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    request_queue_size = 64
    daemon_threads = False  # `server_close` waits for the threads: a later test may fork, which threads do not survive

    def __init__(self, *given: Any) -> None:
        self._open: set[socket.socket] = set()
        super().__init__(*given)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer a connection's requests in a thread of its own."""
        self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """Close a connection."""
        self._open.discard(request)
        super().shutdown_request(request)

    def server_close(self) -> None:
        """Close the port and all connections, which clients keep alive between requests, and end their threads."""
        for connection in list(self._open):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        super().server_close()

    def handle_error(self, *given: Any) -> None:
        """Print the error, unless the client has hung up: some tests kill their client."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(*given)


@dataclass(frozen=True)
class Answer:
    """An HTTP response."""

    status: int
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)


def json_answer(content: object, status: int = 200, kind: str = "application/json") -> Answer:
    """Return a response with JSON in it."""
    return Answer(status, json.dumps(content).encode(), {"Content-Type": kind})


def html_answer(status: int) -> Answer:
    """Return an error page, as a proxy in front of a service sends it."""
    return Answer(status, f"<html>{HTTPStatus(status).phrase}</html>".encode(), {"Content-Type": "text/html"})


class LoopbackHandler(BaseHTTPRequestHandler):
    """One connection of a client, kept alive between requests. Subclasses define `do_GET` and so on."""

    service: Any
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # send a response as one packet; otherwise each waits 40 ms for the client's acknowledgement
    disable_nagle_algorithm = True
    timeout = 60

    def log_message(self, *_: object) -> None:
        """Print nothing: `requests` is the log."""

    def read_body(self, *, half: bool = False) -> bytes:
        """Read the body of the request, or only its first half."""
        length = int(self.headers.get("Content-Length") or 0)
        return self.rfile.read(length // 2 if half else length)

    def send(self, answer: Answer, *, cut: bool = False) -> None:
        """Send a response; with `cut`, close the connection in the middle of its body."""
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        self.wfile.write(answer.body[: len(answer.body) // 2] if cut else answer.body)
        if cut:
            self.wfile.flush()
            self.hang_up()

    def hang_up(self) -> None:
        """Close the connection without a response."""
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

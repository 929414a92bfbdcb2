"""Signs of life over HTTP: `/metrics`, `/healthz` and `/readyz` of one service.

In: a registry of series, the heartbeat of a main loop, a function that says what a service still waits for. Out:
answers to GET, each connection in a thread of its own, within a time and a size. It decides nothing and shows no grid.
"""

from __future__ import annotations

import io
import logging
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from socketserver import ThreadingTCPServer
from types import TracebackType
from typing import Any, NamedTuple, Self

import msgspec
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from gridsense.errors import UsageError

_log = logging.getLogger(__name__)

PATIENCE_S = 5.0
"""Time that a client is given, as a rule."""
HEAD_BYTES = 16 << 10
"""Longest head of a request."""
CONNECTIONS = 16
"""Answered at once; more are closed."""
HEARTBEAT_S = 30.0
"""Time without a beat after which a main loop is taken to hang."""

_TEXT = "text/plain; charset=utf-8"
_PAGES = {
    "/metrics": "series for Prometheus",
    "/healthz": "whether the main loop goes round; if not, restart the service",
    "/readyz": "whether the service does its work, and what it waits for",
}


class Heartbeat:
    """When a main loop last came round. Beaten by one thread, read by any.

    Parameters
    ----------
    limit_s
        Time without a beat after which the loop is taken to hang.
    monotonic_s
        The clock.
    """

    def __init__(self, limit_s: float = HEARTBEAT_S, monotonic_s: Callable[[], float] = time.monotonic) -> None:
        self.limit_s = limit_s
        self._monotonic_s = monotonic_s
        self._last_s = monotonic_s()

    def beat(self) -> None:
        """Say that the loop came round."""
        self._last_s = self._monotonic_s()

    def age_s(self) -> float:
        """Say how long ago that was.

        Returns
        -------
        float
            Seconds since the last beat, or since the heartbeat was made.
        """
        return self._monotonic_s() - self._last_s

    def hangs(self) -> bool:
        """Say whether that is too long ago.

        Returns
        -------
        bool
            The loop is taken to hang.
        """
        return self.age_s() > self.limit_s


@dataclass(frozen=True, slots=True)
class Readiness:
    """Whether a service does its work.

    Attributes
    ----------
    reasons
        What it waits for, a sentence each; empty: it is ready.
    """

    reasons: tuple[str, ...] = ()


class LifeServer:
    """Answers from the moment it is made until it is closed.

    Parameters
    ----------
    host
        Address to listen at.
    port
        Port; 0 for one that the operating system chooses.
    registry
        What `/metrics` shows.
    heartbeat
        What `/healthz` goes by.
    ready
        What `/readyz` shows; called from another thread.
    key
        Configuration key of the port, for errors.
    patience_s
        Time for a request to come, and again for its answer to be taken.

    Attributes
    ----------
    port
        Where it listens.

    Raises
    ------
    UsageError
        If it cannot listen there.
    """

    def __init__(
        self,
        host: str,
        port: int,
        registry: CollectorRegistry,
        heartbeat: Heartbeat,
        ready: Callable[[], Readiness],
        *,
        key: str = "metrics port",
        patience_s: float = PATIENCE_S,
    ) -> None:
        try:
            self._server = _Server(host, port, _Pages(registry, heartbeat, ready), patience_s)
        except (OSError, OverflowError) as error:
            why = error.strerror if isinstance(error, OSError) else None
            raise UsageError(
                f"{key} = {port}: cannot listen at {host}:{port} ({why or error}); choose another port or host, "
                "or stop the program that has it"
            ) from error
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.1,), name=f"life:{self.port}", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Stop listening and cut what is still connected. May be called again."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def __enter__(self) -> Self:
        """Go on.

        Returns
        -------
        Self
            This.
        """
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it.

        Parameters
        ----------
        kind
            Unused.
        error
            Unused.
        trace
            Unused.
        """
        self.close()


class _Pages(NamedTuple):
    """What is shown."""

    registry: CollectorRegistry
    heartbeat: Heartbeat
    ready: Callable[[], Readiness]


class _Server(ThreadingTCPServer):
    """Listens; a thread a connection, so many and no more."""

    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 4 * CONNECTIONS

    def __init__(self, host: str, port: int, pages: _Pages, patience_s: float) -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.pages, self.patience_s = pages, patience_s
        self._free = threading.Semaphore(CONNECTIONS)
        self._open: set[socket.socket] = set()
        super().__init__((host, port), _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Begin a thread if there is room for one."""
        if not self._free.acquire(blocking=False):
            _log.debug("%s: closed, %d connections are open", client_address[0], CONNECTIONS)
            self.shutdown_request(request)
            return
        self._open.add(request)
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answer one connection."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._open.discard(request)
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002 (socketserver's interface)
        """Say at debug that a client went away, or was too slow."""
        _log.debug("%s: connection given up", client_address[0], exc_info=True)

    def server_close(self) -> None:
        """Stop listening and wake what still waits for its client."""
        super().server_close()
        for request in tuple(self._open):
            try:
                request.shutdown(socket.SHUT_RDWR)
            except OSError:  # it has ended in this moment
                _log.debug("a connection ended by itself")


class _Handler(BaseHTTPRequestHandler):
    """Answers one request."""

    server: _Server
    server_version = "gridsense"
    sys_version = ""

    def handle(self) -> None:
        """Take in the head of the request, in time and no longer than it may be, and answer."""
        head = self._head()
        if head:
            self.rfile = io.BufferedReader(io.BytesIO(head))
            self.connection.settimeout(self.server.patience_s)
            super().handle()

    def do_GET(self) -> None:
        """Answer."""
        path = self.path.partition("?")[0]
        try:
            status, kind, body = self._page(path)
        except Exception as error:  # noqa: BLE001 (whatever a registry's collectors raise: the server goes on)
            _log.exception("%s cannot be answered", path)
            status, kind = HTTPStatus.INTERNAL_SERVER_ERROR, _TEXT
            body = f"{type(error).__name__}: see the service's log\n".encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_HEAD(self) -> None:
        """Answer without the text."""
        self.do_GET()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 (http.server's name)
        """Log at debug: who looks in is no news."""
        _log.debug("%s " + format, self.client_address[0], *args)

    def _head(self) -> bytes:
        """All bytes up to the empty line; none where it does not come in time or is too long."""
        deadline_s = time.monotonic() + self.server.patience_s
        head = b""
        while b"\r\n\r\n" not in head:
            self.connection.settimeout(max(deadline_s - time.monotonic(), 1e-3))
            piece = self.connection.recv(HEAD_BYTES + 1 - len(head))
            head += piece
            if not piece or len(head) > HEAD_BYTES:
                return b""
        return head

    def _page(self, path: str) -> tuple[HTTPStatus, str, bytes]:
        """Status, type and text of a page."""
        registry, heartbeat, ready = self.server.pages
        if path == "/metrics":
            encode, kind = choose_encoder(self.headers.get("Accept", ""))
            return HTTPStatus.OK, kind, encode(registry)
        if path == "/healthz":
            if not heartbeat.hangs():
                return HTTPStatus.OK, _TEXT, b"ok\n"
            why = (
                f"the main loop has not come round for {heartbeat.age_s():.0f} s, {heartbeat.limit_s:g} s are allowed\n"
            )
            return HTTPStatus.SERVICE_UNAVAILABLE, _TEXT, why.encode()
        if path == "/readyz":
            reasons = ready().reasons
            body = msgspec.json.encode({"ready": not reasons, "reasons": reasons})
            return HTTPStatus.SERVICE_UNAVAILABLE if reasons else HTTPStatus.OK, "application/json", body + b"\n"
        listing = "".join(f"{page}  {what}\n" for page, what in _PAGES.items()).encode()
        return HTTPStatus.OK if path == "/" else HTTPStatus.NOT_FOUND, _TEXT, listing

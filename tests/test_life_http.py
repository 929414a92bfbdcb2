"""Signs of life over real HTTP: what is answered, to whom, for how long, and how it ends."""

from __future__ import annotations

import json
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from prometheus_client import CollectorRegistry, Gauge
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families as prometheus
from prometheus_client.registry import Collector

from gridsense import life
from gridsense.errors import UsageError
from gridsense.life import Heartbeat, LifeServer, Readiness

WAIT_S = 30.0


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@contextmanager
def serving(
    registry: CollectorRegistry | None = None,
    heartbeat: Heartbeat | None = None,
    ready: Callable[[], Readiness] = Readiness,
    patience_s: float = WAIT_S,
) -> Iterator[LifeServer]:
    registry, heartbeat = registry or CollectorRegistry(), heartbeat or Heartbeat()
    with LifeServer("127.0.0.1", 0, registry, heartbeat, ready, patience_s=patience_s) as server:
        yield server


def get(server: LifeServer, path: str, method: str = "GET", accept: str = "") -> tuple[int, str, str]:
    request = urllib.request.Request(f"http://127.0.0.1:{server.port}{path}", method=method, headers={"Accept": accept})
    try:
        with urllib.request.urlopen(request, timeout=WAIT_S) as answer:  # noqa: S310 (our own)
            return answer.status, answer.headers["Content-Type"], answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers["Content-Type"], error.read().decode()


def test_metrics_come_in_either_format() -> None:
    registry = CollectorRegistry()
    Gauge("gridsense_x", "An x.", registry=registry).set(3)
    with serving(registry) as server:
        status, kind, text = get(server, "/metrics?name=ignored")
        assert status == 200
        assert kind.startswith("text/plain")
        assert [(f.name, f.samples[0].value) for f in prometheus(text)] == [("gridsense_x", 3.0)]
        status, kind, text = get(server, "/metrics", accept="application/openmetrics-text; version=1.0.0")
        assert kind.startswith("application/openmetrics-text")
        assert text.endswith("# EOF\n")
        assert [f.documentation for f in openmetrics(text)] == ["An x."]
        assert get(server, "/metrics", "HEAD")[::2] == (200, "")


def test_health_goes_by_the_heartbeat() -> None:
    clock = Clock()
    heartbeat = Heartbeat(limit_s=20.0, monotonic_s=clock)
    with serving(heartbeat=heartbeat) as server:
        assert get(server, "/healthz")[::2] == (200, "ok\n")
        clock.now_s += 20.0
        assert get(server, "/healthz")[0] == 200
        clock.now_s += 1.5
        status, _, text = get(server, "/healthz")
        assert status == 503
        assert text == "the main loop has not come round for 22 s, 20 s are allowed\n"
        heartbeat.beat()
        assert heartbeat.age_s() == 0.0
        assert get(server, "/healthz")[0] == 200


def test_readiness_says_what_is_waited_for() -> None:
    reasons = ["the log is not open", "no state yet"]
    with serving(ready=lambda: Readiness(tuple(reasons))) as server:
        status, kind, text = get(server, "/readyz")
        assert (status, kind) == (503, "application/json")
        assert json.loads(text) == {"ready": False, "reasons": reasons}
        reasons.clear()
        status, _, text = get(server, "/readyz")
        assert (status, json.loads(text)) == (200, {"ready": True, "reasons": []})


def test_the_first_page_lists_the_others_and_nothing_else_is_there() -> None:
    with serving() as server:
        status, _, text = get(server, "/")
        assert status == 200
        assert [line.split()[0] for line in text.splitlines()] == ["/metrics", "/healthz", "/readyz"]
        assert get(server, "/etc/passwd")[0] == 404
        assert get(server, "/metrics", "POST")[0] == 501


class Broken(Collector):
    def collect(self) -> Iterator[object]:  # type: ignore[override]  # it yields nothing
        raise OSError("/secret/place is gone")


def test_a_broken_collector_is_an_answer_and_a_log_line_not_the_end(caplog: pytest.LogCaptureFixture) -> None:
    registry = CollectorRegistry(support_collectors_without_names=True)
    registry.register(Broken())
    with serving(registry) as server:
        status, _, text = get(server, "/metrics")
        assert (status, text) == (500, "OSError: see the service's log\n")
        assert get(server, "/healthz")[0] == 200
    assert [r.getMessage() for r in caplog.records if r.levelname == "ERROR"] == ["/metrics cannot be answered"]


def test_who_looks_in_is_no_news(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    with serving() as server:
        get(server, "/healthz")
    assert caplog.records == []


def test_a_port_in_use_is_named_with_its_key() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UsageError) as refused:
            LifeServer("127.0.0.1", port, CollectorRegistry(), Heartbeat(), Readiness, key="metrics.processor_port")
    assert f"metrics.processor_port = {port}" in str(refused.value)
    assert "in use" in str(refused.value)


@pytest.mark.parametrize(("host", "port"), [("256.1.1.1", 0), ("127.0.0.1", 70_000), ("192.0.2.1", 0)])
def test_an_address_that_is_none_of_ours_is_refused(host: str, port: int) -> None:
    with pytest.raises(UsageError, match=f"metrics port = {port}: cannot listen at {host}"):
        LifeServer(host, port, CollectorRegistry(), Heartbeat(), Readiness)


def ended(connection: socket.socket) -> bool:
    """Wait for the other side to close; False where it answered."""
    try:
        return connection.recv(1) == b""
    except ConnectionError:
        return True


def test_a_client_that_sends_no_whole_request_is_cut() -> None:
    with serving(patience_s=0.2) as server, socket.create_connection(("127.0.0.1", server.port), WAIT_S) as client:
        client.sendall(b"GET /healthz HTTP/1.0\r\n")
        assert ended(client)


def test_a_client_that_drips_is_cut() -> None:
    with serving(patience_s=0.3) as server, socket.create_connection(("127.0.0.1", server.port), WAIT_S) as client:
        client.settimeout(0.02)
        deadline_s = time.monotonic() + WAIT_S
        while time.monotonic() < deadline_s:
            try:
                client.send(b"x")
                assert client.recv(1) == b""
            except TimeoutError:
                continue
            except ConnectionError:
                pass
            break
        else:
            pytest.fail("it is still connected")


def test_a_head_without_end_is_cut() -> None:
    with serving() as server, socket.create_connection(("127.0.0.1", server.port), WAIT_S) as client:
        try:
            for _ in range(1000):
                client.sendall(b"GET /healthz HTTP/1.0\r\n" + b"X-Long: " + b"x" * 10_000 + b"\r\n")
        except ConnectionError:
            pass
        else:
            assert ended(client)
        assert get(server, "/healthz")[0] == 200


def test_no_more_connections_than_there_is_room_for() -> None:
    with serving() as server:
        clients = [socket.create_connection(("127.0.0.1", server.port), WAIT_S) for _ in range(life.CONNECTIONS)]
        with socket.create_connection(("127.0.0.1", server.port), WAIT_S) as one_more:
            assert ended(one_more)
        for client in clients:
            client.sendall(b"GET /healthz HTTP/1.0\r\n\r\n")
        for client in clients:
            with client:
                assert client.recv(12) == b"HTTP/1.0 200"


def test_closing_cuts_who_waits_and_may_be_done_twice() -> None:
    with serving() as server, socket.create_connection(("127.0.0.1", server.port), WAIT_S) as client:
        client.sendall(b"GET")
        assert get(server, "/healthz")[0] == 200  # so the one before it is being served
        server.close()
        assert ended(client)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", server.port), WAIT_S)


def test_it_listens_by_ipv6_too() -> None:
    try:
        server = LifeServer("::1", 0, CollectorRegistry(), Heartbeat(), Readiness)
    except UsageError:
        pytest.skip("this machine has no IPv6 loopback")
    with server, urllib.request.urlopen(f"http://[::1]:{server.port}/healthz", timeout=WAIT_S) as answer:
        assert answer.read() == b"ok\n"

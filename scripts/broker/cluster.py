"""A real Apache Kafka on loopback: one broker or three, in KRaft mode, each a process of its own.

In: an empty folder, or that of an earlier cluster, whose data it goes on with. Out: servers that answer, and brokers
that can be killed, suspended and restarted under the same ports. It makes no topics, and outlives nobody: a broker
whose starter died, however it died, is killed.
"""

from __future__ import annotations

import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from kafka import KafkaAdminClient
from kafka.errors import KafkaError

from scripts.broker.jars import HERE, jars, java

CLUSTER_ID = "MkU3OEVBNTcwNTJENDM2Qg"
PATIENCE_S = 60.0
"""How long a cluster may take until it answers; it takes two seconds on an idle machine."""
STOP_S = 10.0
"""How long a broker may take to stop before it is killed."""
LOG_LINES = 20
"""Of a broker's log, in the error that says that it died."""

WATCHER = 'read -r said || kill -KILL "$0"'
"""Runs beside each broker, with its process id; its input is a pipe that only the starter holds. The pipe ends when the
starter is gone, whatever ended it; a line says that the broker is gone, and nobody need be killed."""

PROPERTIES = {
    "auto.create.topics.enable": "false",
    "group.initial.rebalance.delay.ms": "0",
    "group.min.session.timeout.ms": "1000",
    "message.max.bytes": str(32 << 20),
    "replica.fetch.max.bytes": str(32 << 20),
    "offsets.retention.minutes": str(7 * 24 * 60),
    "transaction.abort.timed.out.transaction.cleanup.interval.ms": "1000",
    # few partitions: made quickly
    "offsets.topic.num.partitions": "4",
    "transaction.state.log.num.partitions": "4",
    "share.coordinator.state.topic.num.partitions": "1",
    # a broker that was killed is missed, and may come back, soon
    "broker.heartbeat.interval.ms": "500",
    "broker.session.timeout.ms": "3000",
    # retention and compaction come about while a test waits
    "log.initial.task.delay.ms": "1000",
    "log.retention.check.interval.ms": "1000",
    "log.cleaner.backoff.ms": "1000",
    "log.segment.delete.delay.ms": "1000",
    # small: there are two cores, and several brokers at once
    "log.cleaner.dedupe.buffer.size": str(8 << 20),
    "num.network.threads": "2",
    "num.io.threads": "4",
}


class BrokerError(Exception):
    """A broker did not start, or is not there; the message says which, and what its log says."""


class Cluster:
    """Brokers on loopback, numbered from 0; the number is the node id that clients see.

    `start` makes it answer, `stop` ends it; or use it in a ``with`` statement. Everything lies in the folder, also what
    each broker says (`broker-0/kafka.log`). An object belongs to one thread at a time.

    Parameters
    ----------
    folder
        For everything; made if there is none.
    brokers
        How many: one, or three that survive the loss of one (replication 3, 2 in sync).
    properties
        Settings of the brokers that differ from these here.
    optimized
        Have Java compile thoroughly what runs often: for measurements. Without, a broker starts with half the work.
    """

    def __init__(
        self,
        folder: Path,
        brokers: int = 1,
        *,
        properties: Mapping[str, str] | None = None,
        optimized: bool = False,
    ) -> None:
        self.folder = folder
        self.brokers = brokers
        self.properties = dict(properties or {})
        self.optimized = optimized
        self._processes: dict[int, tuple[subprocess.Popen[bytes], subprocess.Popen[bytes]]] = {}
        self._reserved: list[dict[str, socket.socket]] = []

    def __enter__(self) -> Self:
        """Start."""
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop."""
        self.stop()

    @property
    def servers(self) -> str:
        """What clients are told: ``127.0.0.1:PORT``, by commas."""
        return ",".join(f"127.0.0.1:{self._port(n, 'CLIENTS')}" for n in range(self.brokers))

    def pid(self, n: int) -> int:
        """Say which process a broker is.

        Parameters
        ----------
        n
            Which broker.

        Returns
        -------
        int
            Its process id.

        Raises
        ------
        BrokerError
            If it does not run.
        """
        return self._process(n).pid

    def start(self) -> None:
        """Start all brokers, and wait until they answer.

        Raises
        ------
        BrokerError
            If they do not; none is left running.
        KafkaMissingError
            If there is no Java, or Kafka cannot be had.
        """
        jars()
        for _ in range(self.brokers):
            self._reserved.append({name: _reserve() for name in ("CLIENTS", "CONTROLLER")})
        try:
            for n in range(self.brokers):
                self._configure(n)
                self._launch(n)
            self.wait()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop all brokers; the data stay."""
        self.resume(*self._processes)
        for process, _ in self._processes.values():
            process.terminate()
        deadline_s = time.monotonic() + STOP_S  # together: a broker may wait for a quorum that is leaving too
        for n in list(self._processes):
            self._await_end(n, deadline_s)
        for reserved in self._reserved:
            for held in reserved.values():
                held.close()
        self._reserved.clear()

    def kill(self, n: int) -> None:
        """End a broker at once, as a power cut would end its process (SIGKILL).

        Parameters
        ----------
        n
            Which broker.
        """
        self._process(n).kill()
        self._await_end(n, time.monotonic() + STOP_S)

    def restart(self, n: int) -> None:
        """Start a broker again, with its data and ports, and wait until it answers; if it runs it is stopped before.

        Parameters
        ----------
        n
            Which broker.

        Raises
        ------
        BrokerError
            If it does not answer.
        """
        if n in self._processes:
            self.resume(n)
            self._processes[n][0].terminate()
            self._await_end(n, time.monotonic() + STOP_S)
        self._launch(n)
        self.wait()

    def suspend(self, n: int) -> None:
        """Stop a broker in its tracks (SIGSTOP): its connections stay and nothing answers.

        Parameters
        ----------
        n
            Which broker.
        """
        self._process(n).send_signal(signal.SIGSTOP)

    def resume(self, *brokers: int) -> None:
        """Let suspended brokers go on (SIGCONT).

        Parameters
        ----------
        *brokers
            Which.
        """
        for n in brokers:
            self._process(n).send_signal(signal.SIGCONT)

    def wait(self, patience_s: float = PATIENCE_S) -> None:
        """Wait until the brokers that run answer, know of each other, and no partition lacks one of them.

        Parameters
        ----------
        patience_s
            How long, at most.

        Raises
        ------
        BrokerError
            If one ends meanwhile, or they do not answer in time.
        """
        deadline_s = time.monotonic() + patience_s
        for n in self._processes:
            self._await_socket(n, deadline_s)
        last = "it knows no others"
        while time.monotonic() < deadline_s:
            self._check_alive()
            try:
                with self.admin(deadline_s - time.monotonic()) as admin:
                    while time.monotonic() < deadline_s:
                        self._check_alive()
                        if (missing := self._missing(admin)) is None:
                            return
                        last = missing
                        time.sleep(0.05)
            except (KafkaError, OSError) as error:
                last = repr(error)
                time.sleep(0.1)
        raise BrokerError(f"the brokers did not answer within {patience_s:.0f} s: {last}{self._said(0)}")

    @contextmanager
    def admin(self, patience_s: float = PATIENCE_S) -> Iterator[KafkaAdminClient]:
        """Connect as who may do everything.

        Parameters
        ----------
        patience_s
            How long to try.

        Yields
        ------
        KafkaAdminClient
            Closed afterwards.
        """
        running = ",".join(f"127.0.0.1:{self._port(n, 'CLIENTS')}" for n in self._processes)
        client = KafkaAdminClient(
            bootstrap_servers=running, bootstrap_timeout_ms=int(patience_s * 1e3), request_timeout_ms=5_000
        )
        try:
            yield client
        finally:
            client.close()

    def _missing(self, admin: KafkaAdminClient) -> str | None:
        """Say what keeps the cluster from being whole, as far as its brokers run."""
        running = set(self._processes)
        if there := running ^ {b["broker_id"] for b in admin.describe_cluster()["brokers"] if not b.get("is_fenced")}:
            return f"brokers {sorted(there)} are not as they should be"
        for topic in admin.describe_topics():
            for partition in topic["partitions"]:
                if lacking := set(partition["replica_nodes"]) & running - set(partition["isr_nodes"]):
                    return f"brokers {sorted(lacking)} lag behind in {topic['name']}"
        return None

    def _process(self, n: int) -> subprocess.Popen[bytes]:
        if n not in self._processes:
            raise BrokerError(f"broker {n} does not run")
        return self._processes[n][0]

    def _port(self, n: int, listener: str) -> int:
        if not self._reserved:
            raise BrokerError("the cluster is not started: it has no ports")
        return int(self._reserved[n][listener].getsockname()[1])

    def _configure(self, n: int) -> None:
        """Write the settings of a broker and, where it has no data yet, give it an empty disk."""
        folder = self._folder(n)
        folder.mkdir(parents=True, exist_ok=True)
        copies, in_sync = (min(self.brokers, 3), min(self.brokers, 2))
        listeners = ",".join(f"{name}://127.0.0.1:{self._port(n, name)}" for name in self._reserved[n])
        properties = {
            "process.roles": "broker,controller",
            "node.id": str(n),
            "controller.quorum.voters": ",".join(
                f"{other}@127.0.0.1:{self._port(other, 'CONTROLLER')}" for other in range(self.brokers)
            ),
            "controller.listener.names": "CONTROLLER",
            "listeners": listeners,
            "listener.security.protocol.map": "CLIENTS:PLAINTEXT,CONTROLLER:PLAINTEXT",
            "inter.broker.listener.name": "CLIENTS",
            "log.dirs": str(folder.absolute() / "data"),
            "default.replication.factor": str(copies),
            "min.insync.replicas": str(in_sync),
            "offsets.topic.replication.factor": str(copies),
            "transaction.state.log.replication.factor": str(copies),
            "transaction.state.log.min.isr": str(in_sync),
            "share.coordinator.state.topic.replication.factor": str(copies),
            "share.coordinator.state.topic.min.isr": str(in_sync),
            **PROPERTIES,
            **self.properties,
        }
        settings = folder / "server.properties"
        settings.write_text("".join(f"{key}={value}\n" for key, value in properties.items()), encoding="utf-8")
        if not (folder / "data" / "meta.properties").exists():
            done = subprocess.run(
                [*self._java(), "kafka.tools.StorageTool", "format", "-t", CLUSTER_ID, "-c", settings],
                capture_output=True, text=True, check=False,
            )  # fmt: skip
            if done.returncode:
                raise BrokerError(f"broker {n} refuses its settings, {settings}: {done.stdout}{done.stderr}")

    def _java(self) -> list[str]:
        quick = [] if self.optimized else ["-XX:TieredStopAtLevel=1"]
        logs = f"-Dlog4j2.configurationFile={HERE / 'log4j2.properties'}"
        return [str(java()), "-Xmx512m", *quick, logs, "-cp", f"{jars()}/*"]

    def _folder(self, n: int) -> Path:
        return self.folder / f"broker-{n}"

    def _launch(self, n: int) -> None:
        with (self._folder(n) / "kafka.log").open("ab") as log:
            process = subprocess.Popen(
                [*self._java(), "kafka.Kafka", str(self._folder(n) / "server.properties")],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        # in sessions of their own: Ctrl+C is for the starter, who stops them in order
        watcher = subprocess.Popen(
            ["sh", "-c", WATCHER, str(process.pid)], stdin=subprocess.PIPE, start_new_session=True
        )
        self._processes[n] = process, watcher

    def _await_end(self, n: int, deadline_s: float) -> None:
        """Wait for a broker that was told to end; kill it at the deadline."""
        process, watcher = self._processes.pop(n)
        try:
            process.wait(max(deadline_s - time.monotonic(), 0.0))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        with suppress(BrokenPipeError):
            watcher.communicate(b"gone\n")

    def _await_socket(self, n: int, deadline_s: float) -> None:
        """Wait until a broker listens; what connects before that is refused."""
        while time.monotonic() < deadline_s:
            self._check_alive()
            with suppress(OSError), socket.create_connection(("127.0.0.1", self._port(n, "CLIENTS")), timeout=1.0):
                return
            time.sleep(0.05)

    def _check_alive(self) -> None:
        for n, (process, _) in self._processes.items():
            if process.poll() is not None:
                raise BrokerError(f"broker {n} ended with {process.returncode}{self._said(n)}")

    def _said(self, n: int) -> str:
        log = self._folder(n) / "kafka.log"
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.exists() else []
        return "\n".join([f"; {log} ends with:", *lines[-LOG_LINES:]])


def _reserve() -> socket.socket:
    """Take a free port, and keep it from others while the broker is down.

    A bound socket that does not listen is passed over by whoever asks for any port, and leaves a server that sets
    SO_REUSEADDR, as Java's do, to listen there (Linux).
    """
    held = socket.socket()
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    held.bind(("127.0.0.1", 0))
    return held

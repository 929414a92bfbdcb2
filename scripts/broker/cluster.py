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
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from kafka.admin import (
    ACL,
    ACLOperation,
    ACLPermissionType,
    KafkaAdminClient,
    ResourcePattern,
    ResourceType,
)
from kafka.errors import KafkaError

from scripts.broker.credentials import ADMIN, ALLOWED, BROKER, Credentials, make_credentials
from scripts.broker.jars import HERE, jars, java
from streams.errors import LogError
from streams.kafka.clients import admin
from streams.kafka.settings import KafkaSettings, Mechanism, Protocol, Secret, Security

CLUSTER_ID = "MkU3OEVBNTcwNTJENDM2Qg"
PATIENCE_S = 60.0
"""How long a cluster may take until it answers; it takes two seconds on an idle machine."""
ASK_S = 5.0
"""Within which a broker answers an administrator."""
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

Guard = Literal["plain", "scram"]
PLAIN = ("CLIENTS", "CONTROLLER")
"""Listeners, each with a port of its own."""
SECURED = ("CLIENTS", "MTLS", "CONTROLLER")
PLAIN_PROPERTIES = {
    "listener.security.protocol.map": "CLIENTS:PLAINTEXT,CONTROLLER:PLAINTEXT",
    "inter.broker.listener.name": "CLIENTS",
}

ACCESS = [
    ACL(f"User:{ALLOWED}", "*", operation, ACLPermissionType.ALLOW, ResourcePattern(kind, "*"))
    for kind, operations in {
        ResourceType.TOPIC: (
            ACLOperation.READ,
            ACLOperation.WRITE,
            ACLOperation.DESCRIBE,
            ACLOperation.DESCRIBE_CONFIGS,
            ACLOperation.CREATE,
            ACLOperation.DELETE,
        ),
        ResourceType.GROUP: (ACLOperation.READ, ACLOperation.DESCRIBE),
        ResourceType.TRANSACTIONAL_ID: (ACLOperation.WRITE, ACLOperation.DESCRIBE),
    }.items()
    for operation in operations
]
"""What `Credentials.allowed` may do: nothing on the cluster itself, and it may alter nothing. Delete is for records."""


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
    security
        ``plain``: anybody may do everything. ``scram``: `servers` take SASL_SSL with SCRAM-SHA-512 or OAUTHBEARER,
        `tls_servers` take SSL with a client's certificate; access lists say who may do what (`credentials`).
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
        security: Guard = "plain",
        properties: Mapping[str, str] | None = None,
        optimized: bool = False,
    ) -> None:
        self.folder = folder
        self.brokers = brokers
        self.security = security
        self.properties = dict(properties or {})
        self.optimized = optimized
        self._processes: dict[int, tuple[subprocess.Popen[bytes], subprocess.Popen[bytes]]] = {}
        self._reserved: list[dict[str, socket.socket]] = []
        self._credentials: Credentials | None = None

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
        return self._servers("CLIENTS", range(self.brokers))

    @property
    def tls_servers(self) -> str:
        """The same, for clients with a certificate."""
        return self._servers("MTLS", range(self.brokers))

    @property
    def credentials(self) -> Credentials:
        """Who may talk to a secured cluster, and by what; once it is started."""
        if not self._credentials:
            raise BrokerError("the cluster is not secured, or not started: it has no credentials")
        return self._credentials

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
        java()
        jars()
        listeners = PLAIN if self.security == "plain" else SECURED
        if self.security == "scram":
            self._credentials = make_credentials(self.folder.absolute() / "credentials")
        self._reserved = [{name: _reserve() for name in listeners} for _ in range(self.brokers)]
        try:
            for n in range(self.brokers):
                self._configure(n)
                self._launch(n)
            self.wait()
            if self.security == "scram":
                with self.admin() as client:
                    client.create_acls(ACCESS)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop all brokers; the data stay."""
        self.halt(*self._processes)
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

    def halt(self, *brokers: int) -> None:
        """Stop brokers in order (SIGTERM), together; their data and ports stay theirs.

        Parameters
        ----------
        *brokers
            Which.
        """
        self.resume(*brokers)
        for n in brokers:
            self._process(n).terminate()
        deadline_s = time.monotonic() + STOP_S  # together: a broker may wait for a quorum that is leaving too
        for n in brokers:
            self._await_end(n, deadline_s)

    def restart(self, *brokers: int) -> None:
        """Start brokers, with their data and ports, and wait until they answer; those that run are stopped before.

        Parameters
        ----------
        *brokers
            Which.

        Raises
        ------
        BrokerError
            If one does not answer.
        """
        self.halt(*(n for n in brokers if n in self._processes))
        for n in brokers:
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
            self.check()
            try:
                with self.admin() as client:
                    while time.monotonic() < deadline_s:
                        self.check()
                        if (missing := self._missing(client)) is None:
                            return
                        last = missing
                        time.sleep(0.05)
            except (KafkaError, LogError, OSError) as error:
                last = repr(error)
                time.sleep(0.1)
        raise BrokerError(f"the brokers did not answer within {patience_s:.0f} s: {last}{self._said(0)}")

    def check(self) -> None:
        """Look whether a broker has ended by itself.

        Raises
        ------
        BrokerError
            One has; what its log says last is in the message.
        """
        for n, (process, _) in self._processes.items():
            if process.poll() is not None:
                raise BrokerError(f"broker {n} ended with {process.returncode}{self._said(n)}")

    @contextmanager
    def admin(self) -> Iterator[KafkaAdminClient]:
        """Connect as who may do everything.

        Yields
        ------
        KafkaAdminClient
            Closed afterwards.
        """
        security = (
            Security()
            if self.security == "plain"
            else Security(
                Protocol.SASL_SSL,
                Mechanism.SCRAM_SHA_512,
                self.credentials.admin.name,
                Secret(self.credentials.admin.password),
                ca_file=self.credentials.ca_file,
            )
        )
        servers = self._servers("CLIENTS", self._processes).split(",")
        client = admin(KafkaSettings(tuple(servers), security, request_s=ASK_S))
        try:
            yield client
        finally:
            client.close()

    def _missing(self, client: KafkaAdminClient) -> str | None:
        """Say what keeps the cluster from being whole, as far as its brokers run."""
        running = set(self._processes)
        if there := running ^ {b["broker_id"] for b in client.describe_cluster()["brokers"] if not b.get("is_fenced")}:
            return f"brokers {sorted(there)} are not as they should be"
        for topic in client.describe_topics():
            for partition in topic["partitions"]:
                if lacking := set(partition["replica_nodes"]) & running - set(partition["isr_nodes"]):
                    return f"brokers {sorted(lacking)} lag behind in {topic['name']}"
        return None

    def _process(self, n: int) -> subprocess.Popen[bytes]:
        if n not in self._processes:
            raise BrokerError(f"broker {n} does not run")
        return self._processes[n][0]

    def _servers(self, listener: str, brokers: Iterable[int]) -> str:
        return ",".join(f"127.0.0.1:{self._port(n, listener)}" for n in brokers)

    def _port(self, n: int, listener: str) -> int:
        if not self._reserved or listener not in self._reserved[n]:
            raise BrokerError(f"the cluster is not started, or has no listener {listener}")
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
            "log.dirs": str(folder.absolute() / "data"),
            "default.replication.factor": str(copies),
            "min.insync.replicas": str(in_sync),
            "offsets.topic.replication.factor": str(copies),
            "transaction.state.log.replication.factor": str(copies),
            "transaction.state.log.min.isr": str(in_sync),
            "share.coordinator.state.topic.replication.factor": str(copies),
            "share.coordinator.state.topic.min.isr": str(in_sync),
            **(PLAIN_PROPERTIES if self.security == "plain" else secured_properties(self.credentials)),
            **PROPERTIES,
            **self.properties,
        }
        settings = folder / "server.properties"
        settings.write_text("".join(f"{key}={value}\n" for key, value in properties.items()), encoding="utf-8")
        if not (folder / "data" / "meta.properties").exists():
            done = subprocess.run(
                [*self._java(), "kafka.tools.StorageTool", "format", "-t", CLUSTER_ID, "-c", settings, *self._users()],
                capture_output=True, text=True, check=False,
            )  # fmt: skip
            if done.returncode:
                raise BrokerError(f"broker {n} refuses its settings, {settings}: {done.stdout}{done.stderr}")

    def _users(self) -> list[str]:
        if self.security == "plain":
            return []
        parties = (self.credentials.admin, self.credentials.allowed, self.credentials.stranger)
        return [f"--add-scram=SCRAM-SHA-512=[name={one.name},password={one.password}]" for one in parties]

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
            self.check()
            with suppress(OSError), socket.create_connection(("127.0.0.1", self._port(n, "CLIENTS")), timeout=1.0):
                return
            time.sleep(0.05)

    def _said(self, n: int) -> str:
        log = self._folder(n) / "kafka.log"
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.exists() else []
        return "\n".join([f"; {log} ends with:", *lines[-LOG_LINES:]])


def secured_properties(credentials: Credentials) -> dict[str, str]:
    """Say what makes brokers ask who one is, and what one may do.

    Parameters
    ----------
    credentials
        Theirs.

    Returns
    -------
    dict[str, str]
        Settings of a broker. Its own kind it knows by certificate too: no listener is in the clear.
    """
    modules = "org.apache.kafka.common.security"
    return {
        "listener.security.protocol.map": "CLIENTS:SASL_SSL,MTLS:SSL,CONTROLLER:SSL",
        "inter.broker.listener.name": "MTLS",
        "ssl.keystore.type": "PEM",
        "ssl.keystore.location": str(credentials.store_file),
        "ssl.truststore.type": "PEM",
        "ssl.truststore.location": str(credentials.ca_file),
        "listener.name.mtls.ssl.client.auth": "required",
        "listener.name.controller.ssl.client.auth": "required",
        "ssl.principal.mapping.rules": "RULE:^CN=([^,]+).*$/$1/",
        "listener.name.clients.sasl.enabled.mechanisms": "SCRAM-SHA-512,OAUTHBEARER",
        "listener.name.clients.scram-sha-512.sasl.jaas.config": f"{modules}.scram.ScramLoginModule required;",
        # takes tokens that nobody signed; its own is never used
        "listener.name.clients.oauthbearer.sasl.jaas.config": f"{modules}.oauthbearer.OAuthBearerLoginModule required "
        f'unsecuredLoginStringClaim_sub="{BROKER}";',
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "super.users": f"User:{ADMIN};User:{BROKER}",
    }


def _reserve() -> socket.socket:
    """Take a free port, and keep it from others while the broker is down.

    A bound socket that does not listen is passed over by whoever asks for any port, and leaves a server that sets
    SO_REUSEADDR, as Java's do, to listen there (Linux).
    """
    held = socket.socket()
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    held.bind(("127.0.0.1", 0))
    return held

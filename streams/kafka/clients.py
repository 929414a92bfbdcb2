"""Clients of Kafka: producers, consumers and administrators, made from settings; their errors in our words.

In: settings. Out: kafka-python's own clients, tuned for frames of tens of kB; a wrong password, an unknown certificate
or a dead server is told at once and for what it is. kafka-python's log lines become few lines of ours, and what they
would show of secrets is dropped. It sends and reads nothing.
"""

from __future__ import annotations

import logging
import re
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar
from weakref import WeakSet

from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, errors
from kafka.net.compat import KafkaNetClient
from kafka.net.connection import KafkaConnection
from kafka.net.inet import KafkaNetSocket, create_connection
from kafka.net.manager import KafkaConnectionManager
from kafka.net.sasl.oauth import AbstractTokenProvider
from kafka.net.selector import NetworkSelector
from kafka.net.transport import KafkaSSLTransport, KafkaTCPTransport

from streams.errors import DeniedError, FencedError, LogError, LogFullError, SettingsError, UnreachableError
from streams.kafka.settings import KafkaSettings, Mechanism, Secret, Security

BATCH_BYTES = 1 << 19
"""Of a producer's batch: a frame of 48 kB costs 0.1 ms of CPU in such batches, 0.5 ms in the default's, of one frame.
A broker takes batches of 1 MB unless told otherwise."""
FETCH_BYTES = 8 << 20
"""Of one answer for one partition; one record may be larger."""
LINGER_MS = 2
"""How long a record waits for others of its batch."""
AGAIN_MS = 10
"""After which a transaction is begun again that the servers refused because the one before is not quite ended: 3 to 10
ms after its commit. kafka-python would wait ten times as long."""
RECEIVE_BYTES = 1 << 17
"""Taken from a socket at a time; a TLS record is smaller, so that none is left half read."""
RECEIVE_PIECES = 64
"""Taken before others have their turn."""
RETRY_S = 3.0
"""Attempts of `request_s` each that a producer has for a batch."""
REPEAT_S = 60.0
"""A line that kafka-python logs again within this time is not said again."""

_log = logging.getLogger(__name__)
_TELLTALES = ("kafka.net.connection", "kafka.protocol.parser", "kafka.admin.client")
"""Loggers whose debugging lines hold whole requests or settings."""
_TRANSLATIONS: tuple[tuple[tuple[type[Exception], ...], type[LogError], str], ...] = (
    (
        (errors.SaslAuthenticationFailedError,),
        DeniedError,
        "the servers refuse these credentials ({}): check kafka.username and kafka.password_file, or kafka.token_file",
    ),
    (
        (errors.UnsupportedSaslMechanismError, errors.IllegalSaslStateError, errors.SecurityDisabledError),
        DeniedError,
        "the servers take no such login ({}): check kafka.mechanism and kafka.protocol",
    ),
    (
        (errors.AuthorizationError,),
        DeniedError,
        "no right to do this ({}): have whoever runs the servers give the rights (ACLs) of deploy/kafka/README.md",
    ),
    (
        (
            errors.FencedInstanceIdError,
            errors.FencedMemberEpochError,
            errors.IllegalGenerationError,
            errors.InvalidProducerEpochError,
            errors.ProducerFencedError,
            errors.TransactionCoordinatorFencedError,
            errors.UnknownMemberIdError,
        ),
        FencedError,
        "another instance has taken over ({}): this one must stop or begin anew",
    ),
    (
        (
            errors.KafkaStorageError,
            errors.NotEnoughReplicasAfterAppendError,
            errors.NotEnoughReplicasError,
            errors.ThrottlingQuotaExceededError,
        ),
        LogFullError,
        "the servers cannot take it now ({}): see their disks and replicas; then try again",
    ),
    (
        (errors.InvalidReceiveError,),
        DeniedError,
        "no Kafka in the clear is there ({}): check log.url, and kafka.protocol, which may have to be SASL_SSL",
    ),
    (
        (errors.MessageSizeTooLargeError, errors.RecordListTooLargeError),
        LogError,
        "a record is too large ({}): raise kafka.record_bytes, and max.message.bytes of the topic",
    ),
    (
        (errors.UnknownTopicOrPartitionError,),
        LogError,
        "there is no such topic or partition ({}): make it by `gridsense topics create`",
    ),
    (
        (
            errors.BrokerNotAvailableError,
            errors.KafkaConnectionError,
            errors.KafkaTimeoutError,
            errors.MetadataEmptyBrokerList,
            errors.NodeNotReadyError,
            errors.RequestTimedOutError,
        ),
        UnreachableError,
        "no answer ({}): see whether the servers run and can be reached, and check log.url",
    ),
)
"""Kinds of errors, ours, and what to say."""
_UNTRUSTED = "[SSL"
"""In the text of whatever error a handshake ends with."""
_NO_RIGHT = "AuthorizationFailedError"
"""In the text of errors that wrap such a one."""
_ECHO = re.compile(r"^(?:\[Error \d+\] )?(\w+)(?:: \1)*(?:: |$)")
"""How kafka-python's errors begin: with their own name, once or more."""

_Client = TypeVar("_Client")


def translation(error: Exception, what: str) -> LogError:
    """Say in our words what kafka-python raised.

    Parameters
    ----------
    error
        Its error.
    what
        What was being done, and with which topic: the message begins with it.

    Returns
    -------
    LogError
        To be raised from it.
    """
    if isinstance(error, LogError):
        return error
    name = type(error).__name__
    text = str(error)
    if (echo := _ECHO.match(text)) and echo[1] == name:
        text = text[echo.end() :]
    said = f"{name}: {text}" if text else name
    if _UNTRUSTED in said:
        return DeniedError(
            f"{what}: the servers' certificate or ours is refused ({said}): check kafka.ca_file, "
            "kafka.certificate_file and the host in log.url"
        )
    for kinds, ours, message in _TRANSLATIONS:
        if isinstance(error, kinds) or (errors.AuthorizationError in kinds and _NO_RIGHT in said):
            return ours(f"{what}: {message.format(said)}")
    return LogError(f"{what}: {said}")


@contextmanager
def translated(what: str) -> Iterator[None]:
    """Raise our errors in place of kafka-python's; `what` is being done, and with which topic."""
    try:
        yield
    except (errors.KafkaError, OSError) as error:
        raise translation(error, what) from error


def producer(
    settings: KafkaSettings, *, transactional_id: str = "", transaction_s: float = 10.0, linger_ms: int = LINGER_MS
) -> KafkaProducer:
    """Make a producer: idempotent, acknowledged by all replicas in sync, in order.

    A record whose future fails may be lost or may be written; the producer is then of no more use.

    Parameters
    ----------
    settings
        Of Kafka.
    transactional_id
        Owner of its transactions, without the prefix; empty: it has none.
    transaction_s
        After which the servers abort a transaction that was not finished.
    linger_ms
        How long a record waits for others of its batch.

    Returns
    -------
    KafkaProducer
        Connected. To be closed.
    """
    request_ms = round(settings.request_s * 1e3)
    extra: dict[str, Any] = (
        {
            "transactional_id": settings.prefix + transactional_id,
            "transaction_timeout_ms": round(transaction_s * 1e3),
            "retry_backoff_ms": AGAIN_MS,
        }
        if transactional_id
        else {}
    )
    return _made(
        settings,
        lambda options: KafkaProducer(
            **options,
            **extra,
            enable_idempotence=True,
            acks="all",
            max_in_flight_requests_per_connection=5,
            batch_size=BATCH_BYTES,
            linger_ms=linger_ms,
            max_request_size=settings.record_bytes,
            compression_type=settings.compression or None,
            request_timeout_ms=request_ms,
            delivery_timeout_ms=round(request_ms * RETRY_S),
            max_block_ms=request_ms,
            allow_auto_create_topics=False,
            metrics_enabled=False,
        ),
    )


def consumer(
    settings: KafkaSettings,
    *,
    group: str = "",
    instance: str = "",
    assignors: tuple[type, ...] = (),
    session_s: float = 10.0,
    poll_s: float = 300.0,
    records: int = 1 << 14,
    fetch_bytes: int = FETCH_BYTES,
    wait_s: float = 0.25,
) -> KafkaConsumer:
    """Make a consumer: reads committed records alone, commits nothing by itself, and begins nowhere by itself.

    Where the position is gone, polling raises `kafka.errors.OffsetOutOfRangeError`; where there is none,
    `kafka.errors.NoOffsetForPartitionError`. It belongs to one thread.

    Parameters
    ----------
    settings
        Of Kafka.
    group
        That it is a member of, without the prefix; empty: of none.
    instance
        Its name as a static member; empty: it is none.
    assignors
        Of partitions, for members; empty: kafka-python's own choice.
    session_s
        Silence after which a group does without it.
    poll_s
        Time between polls after which a group does without it.
    records
        Of one poll, at most.
    fetch_bytes
        Of one answer for one partition; one record may be larger.
    wait_s
        How long a server waits for records before it says that there are none.

    Returns
    -------
    KafkaConsumer
        Connected. To be closed.
    """
    extra: dict[str, Any] = {"group_id": settings.prefix + group} if group else {}
    if instance:
        extra["group_instance_id"] = instance
    if assignors:
        extra["partition_assignment_strategy"] = assignors
    return _made(
        settings,
        lambda options: KafkaConsumer(
            **options,
            **extra,
            isolation_level="read_committed",
            auto_offset_reset="none",
            enable_auto_commit=False,
            allow_auto_create_topics=False,
            session_timeout_ms=round(session_s * 1e3),
            heartbeat_interval_ms=round(session_s * 1e3 / 4),
            max_poll_interval_ms=round(poll_s * 1e3),
            max_poll_records=records,
            max_partition_fetch_bytes=fetch_bytes,
            fetch_max_bytes=2 * fetch_bytes,
            receive_message_max_bytes=3 * fetch_bytes + 2 * settings.record_bytes,
            fetch_max_wait_ms=round(wait_s * 1e3),
            request_timeout_ms=round(settings.request_s * 1e3),
            metrics_enabled=False,
        ),
    )


def admin(settings: KafkaSettings) -> KafkaAdminClient:
    """Make an administrator's client: topics, offsets of groups, where partitions begin and end.

    Parameters
    ----------
    settings
        Of Kafka.

    Returns
    -------
    KafkaAdminClient
        Connected. To be closed.
    """
    return _made(
        settings,
        lambda options: KafkaAdminClient(**options, request_timeout_ms=round(settings.request_s * 1e3)),
    )


def discard(client: KafkaProducer) -> None:
    """Close a producer without waiting for what it could not send; its thread ends when its last wait does.

    Parameters
    ----------
    client
        To be closed; with a transaction begun, the servers abort that when its time is over or its owner is back.
    """
    client._sender.force_close()  # noqa: SLF001 - `close` waits first, and where that fails closes nothing
    with suppress(errors.KafkaError, OSError):
        client.close(timeout=1.0)


def hushed() -> None:
    """Have kafka-python's loggers speak through ours, seldom, and never of what is secret."""
    logger = logging.getLogger("kafka")
    if any(isinstance(handler, _Relay) for handler in logger.handlers):
        return
    logger.addHandler(_Relay())
    logger.propagate = False
    if logger.level == logging.NOTSET:
        logger.setLevel(logging.WARNING)
    for name in _TELLTALES:
        logging.getLogger(name).addFilter(_discreet)


def _discreet(record: logging.LogRecord) -> bool:
    """Keep what is no debugging line."""
    return record.levelno > logging.DEBUG


class _Relay(logging.Handler):
    """Says what kafka-python logs as a line of ours, each kind of line once a while.

    Whoever called is told by an error; what kafka-python calls one is often no more than a connection that we closed.
    """

    def __init__(self) -> None:
        super().__init__()
        self._said: dict[tuple[str, int], float] = {}

    def emit(self, record: logging.LogRecord) -> None:
        """Say it, or not."""
        now, line = time.monotonic(), (record.name, record.lineno)
        if now >= self._said.get(line, 0.0):
            self._said[line] = now + REPEAT_S
            level = logging.INFO if record.levelno >= logging.ERROR else logging.DEBUG
            _log.log(level, "%s: %s", record.name, record.getMessage())


class _Hidden(str):
    """A password as kafka-python wants it, a text; where it shows its settings, this is not shown."""

    __slots__ = ()

    def __repr__(self) -> str:
        """Say nothing."""
        return "***"


class _TokenFile(AbstractTokenProvider):  # type: ignore[misc]  # kafka-python has no types
    """Reads a bearer token whenever a connection needs one."""

    def __init__(self, security: Security) -> None:
        super().__init__()
        self._path = security.token_file

    def token(self) -> str:
        """Read it."""
        try:
            return self._path.read_text(encoding="ascii").strip() if self._path else ""
        except (OSError, ValueError) as error:
            raise DeniedError(f"{self._path}: no bearer token can be read there ({type(error).__name__})") from None


class _Direct(KafkaNetSocket):  # type: ignore[misc]  # kafka-python has no types
    """Connects to a server itself, by no proxy, and closes the socket where it cannot; kafka-python leaves it open."""

    SCHEMES = ("direct",)

    async def sock_connect(
        self, net: Any, sock: socket.socket, sockaddr: Any, timeout_at: float | None = None
    ) -> socket.socket:
        """Connect."""
        try:
            connected: socket.socket = await super().sock_connect(net, sock, sockaddr, timeout_at=timeout_at)
        except BaseException:
            sock.close()
            raise
        return connected


class _Socket:
    """Reads from a socket what is there before it says that the other side has closed it.

    kafka-python forgets what came just before: of a refusal, the reason. Its pieces of 4 kB also cost a third of the
    CPU of reading frames of 48 kB.
    """

    _sock: socket.socket | None

    def _sock_recv(self) -> tuple[bytes, Exception | None]:
        if self._sock is None:
            return b"", errors.KafkaConnectionError("closed meanwhile")
        received: list[bytes] = []
        while len(received) < RECEIVE_PIECES:
            try:
                piece = self._sock.recv(RECEIVE_BYTES)
            except (BlockingIOError, InterruptedError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
                break
            except OSError as error:
                if received:
                    break
                return b"", errors.KafkaConnectionError(error)
            if not piece:
                if received:
                    break
                return b"", errors.KafkaConnectionError("socket disconnected")
            received.append(piece)
        return b"".join(received), None

    def sever(self) -> None:
        """Close the socket if it is open."""
        sock, self._sock = self._sock, None
        if sock is not None:
            sock.close()


class _Plain(_Socket, KafkaTCPTransport):  # type: ignore[misc]  # kafka-python has no types
    """Bytes to and from a server."""


class _Encrypted(_Socket, KafkaSSLTransport):  # type: ignore[misc]  # kafka-python has no types
    """The same over TLS."""


class _Connections(KafkaConnectionManager):  # type: ignore[misc]  # kafka-python has no types
    """Connections that remember why they failed.

    kafka-python tries to connect again until its time is over, and then says no more than that; after a refused
    password it tries again without a pause. Here the first server that refuses us ends the first attempt, and later
    ones keep the pauses.
    """

    def __init__(self, net: NetworkSelector, **options: Any) -> None:  # its own signature
        super().__init__(net, **options)
        self.failure: Exception | None = None
        self._refusals: dict[Any, Exception] = {}
        self._transports: WeakSet[_Plain | _Encrypted] = WeakSet()

    def get_connection(  # its own signature
        self,
        node_id: Any,
        timeout_ms: float | None = None,
        pop_on_close: bool = True,  # noqa: FBT001, FBT002 - its own signature
        refresh_metadata_on_err: bool = True,  # noqa: FBT001, FBT002 - its own signature
        reset_backoff_on_connect: bool = True,  # noqa: FBT001, FBT002 - its own signature
    ) -> KafkaConnection:
        """Find or begin a connection."""
        if not self.bootstrapped and node_id in self._refusals:
            raise self._refusals[node_id]
        known = self._conns.get(node_id)
        connection = super().get_connection(
            node_id, timeout_ms, pop_on_close, refresh_metadata_on_err, reset_backoff_on_connect
        )
        if connection is not known:
            connection.init_future.add_errback(lambda error: self._failed(node_id, error))
            connection.init_future.add_callback(lambda _: self._refusals.pop(node_id, None))
        return connection

    async def _build_transport(self, node: Any, timeout_at: float | None = None) -> KafkaTCPTransport:
        """Connect to a server; where it or we refuse, close the socket: kafka-python leaves it to the collector."""
        sock = await create_connection(
            self._net,
            node.host,
            node.port,
            self.config["socket_options"],
            proxy_url=self.config["proxy_url"],
            timeout_at=timeout_at,
        )
        if not self.ssl_enabled:
            transport: _Plain | _Encrypted = _Plain(self._net, sock, host=node.host)
        else:
            transport = _Encrypted(self._net, sock, host=node.host, ssl_context=self.config["ssl_context"])
        self._transports.add(transport)
        try:
            await transport.handshake()
        except BaseException as error:
            transport.close()
            raise errors.KafkaConnectionError(f"handshake failed: {error}") from error
        return transport

    def reset_backoff(self, node_id: Any) -> None:
        """Forget past failures, unless it failed just now."""
        if node_id in self._refusals:
            self.update_backoff(node_id)
        else:
            super().reset_backoff(node_id)

    def sever(self) -> None:
        """Close the sockets that are still open, now that nothing is sent or received any more."""
        for transport in list(self._transports):
            transport.sever()

    def _failed(self, node_id: Any, error: Exception) -> None:
        self.failure = error
        if isinstance(translation(error, ""), DeniedError):
            self._refusals[node_id] = error


class _Network(KafkaNetClient):  # type: ignore[misc]  # kafka-python has no types
    """Connections and their loop, of which nothing stays open when it is closed.

    kafka-python closes a socket when all is sent, and its loop before that.
    """

    def close(self, node_id: Any = None) -> None:
        """Close one connection, or all and the loop."""
        super().close(node_id)
        if node_id is None:
            self._manager.sever()


def _made(settings: KafkaSettings, make: Callable[[dict[str, Any]], _Client]) -> _Client:
    """Make a client; where it cannot connect, leave nothing open and say why."""
    hushed()
    clients: list[_Network] = []

    def network(**options: Any) -> KafkaNetClient:  # as kafka-python calls it
        net = NetworkSelector(**options)
        clients.append(_Network(net, _Connections(net, **options), **options))
        return clients[-1]

    options = _options(settings) | {"kafka_client": network}
    try:
        return make(options)
    except Exception as error:
        cause: Exception = error
        for client in clients:
            if isinstance(error, errors.KafkaTimeoutError):
                cause = client._manager.failure or error  # noqa: SLF001 - it is ours, there
            with suppress(Exception):
                client.close()
            with suppress(Exception):
                client._net.stop()  # noqa: SLF001 - nobody else has it
        if not isinstance(error, (errors.KafkaError, LogError, OSError)):
            raise
        raise translation(cause, settings.place) from cause


def _options(settings: KafkaSettings) -> dict[str, Any]:
    """Lay out what all clients are told."""
    security = settings.security
    options: dict[str, Any] = {
        "bootstrap_servers": list(settings.servers),
        "bootstrap_timeout_ms": round(settings.request_s * 1e3),
        "client_id": settings.client,
        "security_protocol": str(security.protocol),
        "reconnect_backoff_max_ms": 1000,
        "proxy_url": f"{_Direct.SCHEMES[0]}://",
    }
    if security.protocol.encrypted:
        options["ssl_context"] = _tls(security)
    if security.mechanism:
        options["sasl_mechanism"] = str(security.mechanism)
        if security.mechanism == Mechanism.OAUTHBEARER:
            options["sasl_oauth_token_provider"] = _TokenFile(security)
        else:
            options["sasl_plain_username"] = security.username
            options["sasl_plain_password"] = _Hidden(security.password.reveal())
    return options


def _tls(security: Security) -> ssl.SSLContext:
    """Say by which certificates the servers know us, and we them."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.check_hostname = security.check_hostname
    try:
        if security.ca_file:
            context.load_verify_locations(security.ca_file)
        else:
            context.load_default_certs()
    except OSError as error:
        raise SettingsError(f"kafka: ca_file {security.ca_file} holds no certificates (PEM): {error}") from error
    if security.certificate_file:
        try:
            context.load_cert_chain(security.certificate_file, security.key_file, _password(security.key_password))
        except OSError as error:
            raise SettingsError(
                f"kafka: certificate_file {security.certificate_file}, key_file and key_password do not fit ({error})"
            ) from error
    return context


def _password(secret: Secret) -> Callable[[], str]:
    """Give a key file's password, if it asks; without one OpenSSL would ask the terminal."""
    return secret.reveal

"""What it takes to reach Kafka: servers, credentials, the prefix of the topics, the order of the regions.

In: what the configuration says. Out: frozen settings, and `check`, which refuses what contradicts itself or would send
in the clear what leaves the machine. It opens no connection and does not know kafka-python.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from streams.errors import SettingsError


class Protocol(StrEnum):
    """How a connection is secured, by Kafka's names."""

    PLAINTEXT = "PLAINTEXT"
    SSL = "SSL"
    SASL_PLAINTEXT = "SASL_PLAINTEXT"
    SASL_SSL = "SASL_SSL"

    @property
    def encrypted(self) -> bool:
        """Whether it is TLS."""
        return self in (Protocol.SSL, Protocol.SASL_SSL)

    @property
    def authenticated(self) -> bool:
        """Whether credentials are exchanged by SASL."""
        return self in (Protocol.SASL_PLAINTEXT, Protocol.SASL_SSL)


class Mechanism(StrEnum):
    """How credentials are exchanged, by Kafka's names."""

    PLAIN = "PLAIN"
    SCRAM_SHA_256 = "SCRAM-SHA-256"
    SCRAM_SHA_512 = "SCRAM-SHA-512"
    OAUTHBEARER = "OAUTHBEARER"


@dataclass(frozen=True, slots=True, repr=False)
class Secret:
    """A text that is not shown: neither by `repr` nor by `str`, nor in a traceback or a log line made of them."""

    _text: str = ""

    def reveal(self) -> str:
        """Give the text itself.

        Returns
        -------
        str
            Empty where there is none.
        """
        return self._text

    def __bool__(self) -> bool:
        """Whether there is one."""
        return bool(self._text)

    def __repr__(self) -> str:
        """Say whether there is one, no more."""
        return "Secret(***)" if self._text else "Secret()"

    __str__ = __repr__


@dataclass(frozen=True, slots=True)
class Security:
    """How the servers know us, and we them.

    Attributes
    ----------
    protocol
        Plain or TLS, with SASL or without.
    mechanism
        How credentials are exchanged, with SASL; else None.
    username, password
        For PLAIN and SCRAM.
    token_file
        Holds a bearer token, for OAUTHBEARER; read anew for each connection, so that whoever renews it writes the file.
    ca_file
        Certificates of the authorities that sign servers' (PEM); None: those of the system.
    certificate_file, key_file
        Our own certificate and its key (PEM), where servers ask for it (mTLS).
    key_password
        Of the key file, where it is encrypted.
    check_hostname
        Whether a server's certificate must name the host that we connect to.
    """

    protocol: Protocol = Protocol.PLAINTEXT
    mechanism: Mechanism | None = None
    username: str = ""
    password: Secret = field(default_factory=Secret)
    token_file: Path | None = None
    ca_file: Path | None = None
    certificate_file: Path | None = None
    key_file: Path | None = None
    key_password: Secret = field(default_factory=Secret)
    check_hostname: bool = True

    def check(self) -> None:
        """Refuse what contradicts itself.

        Raises
        ------
        SettingsError
            It does, or a file is not there.
        """
        protocol, mechanism = self.protocol, self.mechanism
        by_token, by_password = mechanism == Mechanism.OAUTHBEARER, bool(self.username and self.password)
        tls = [name for name in ("ca_file", "certificate_file", "key_file") if getattr(self, name)]
        for wrong, message in (
            (
                protocol.authenticated and not mechanism,
                f"{protocol} needs a mechanism: set one of {', '.join(Mechanism)}",
            ),
            (mechanism and not protocol.authenticated, f"{mechanism} goes with SASL_SSL, not with {protocol}"),
            (by_token and not self.token_file, "OAUTHBEARER needs token_file, a file that holds a bearer token"),
            (
                mechanism and not by_token and not by_password,
                f"{mechanism} needs username and password (a file or the environment)",
            ),
            (
                (self.username or self.password) and (not mechanism or by_token),
                f"{mechanism or protocol} uses no username and password: SCRAM over SASL_SSL does",
            ),
            (self.token_file and not by_token, "token_file is for OAUTHBEARER: set mechanism to it, or leave it out"),
            (
                tls and not protocol.encrypted,
                f"{' and '.join(tls)} are for TLS, and protocol is {protocol}: set it to SASL_SSL or SSL",
            ),
            (self.key_file and not self.certificate_file, "key_file without certificate_file: set both"),
            (self.key_password and not self.certificate_file, "key_password without certificate_file: set both"),
        ):
            if wrong:
                raise SettingsError(f"kafka: {message}")
        for name in ("token_file", *tls):
            path = getattr(self, name)
            if path and not path.is_file():
                raise SettingsError(f"kafka: {name} is {path}, and there is no such file")


@dataclass(frozen=True, slots=True)
class KafkaSettings:
    """How Kafka is reached.

    Attributes
    ----------
    servers
        ``host:port`` of one or more brokers; they name the others.
    security
        How the servers know us, and we them.
    prefix
        Of every topic's name, and of the names of groups and transactions' owners.
    regions
        In the order in which they have partitions of their own.
    client
        What we are called in the brokers' logs and quotas.
    allow_plaintext
        Whether to go unencrypted to a host that is not this machine.
    request_s
        Seconds to wait for an answer, and for a broker to be found.
    compression
        Of what is produced: ``lz4``, ``zstd``, ``gzip`` or, empty, none.
    record_bytes
        The largest record that is written or read.
    """

    servers: tuple[str, ...]
    security: Security = field(default_factory=Security)
    prefix: str = ""
    regions: tuple[str, ...] = ()
    client: str = "gridsense"
    allow_plaintext: bool = False
    request_s: float = 10.0
    compression: str = ""
    record_bytes: int = 16 << 20

    @property
    def place(self) -> str:
        """Where it is and who we are there, for messages: no secret is in it."""
        it = self.security
        who = ""
        if it.username:
            who = f" as {it.username}"
        elif it.token_file:
            who = f" by the token in {it.token_file}"
        elif it.certificate_file:
            who = f" by the certificate in {it.certificate_file}"
        return f"kafka {', '.join(self.servers)}{who}"

    def topic(self, name: str) -> str:
        """Name a topic as the brokers know it.

        Parameters
        ----------
        name
            Of `streams.log`.

        Returns
        -------
        str
            With the prefix.
        """
        return self.prefix + name

    def check(self) -> None:
        """Refuse what contradicts itself, and what would leave the machine unencrypted.

        Raises
        ------
        SettingsError
            The message names the key.
        """
        if not self.servers:
            raise SettingsError("kafka: no server is named: give at least one host:port")
        for server in self.servers:
            _split(server)
        for name in {region for region in self.regions if self.regions.count(region) > 1}:
            raise SettingsError(f"kafka: the region {name!r} is listed twice")
        self.security.check()
        if self.security.protocol.encrypted or self.allow_plaintext:
            return
        for server in self.servers:
            host, _ = _split(server)
            if not _loopback(host):
                raise SettingsError(
                    f"kafka: {self.security.protocol} would send everything to {host} unencrypted: set protocol to"
                    " SASL_SSL or SSL, or, in a network that is secured otherwise, allow_plaintext to true"
                )


def _split(server: str) -> tuple[str, int]:
    """Take ``host:port`` apart."""
    host, colon, port = server.rpartition(":")
    if not (colon and host and port.isdecimal() and 0 < int(port) < 1 << 16):
        raise SettingsError(f"kafka: {server!r} is no server: give host:port")
    return host.removeprefix("[").removesuffix("]"), int(port)


def _loopback(host: str) -> bool:
    """Whether a host is this machine, by its name alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"

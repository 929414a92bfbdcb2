"""What a gateway is told: whom to ask, and its limits.

In: numbers and names. Out: frozen settings. It reads no file; `check` refuses what contradicts itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from streams.errors import SettingsError


class Transport(StrEnum):
    """How commands and data travel (C37.118.2-2011, annex E)."""

    TCP = "tcp"
    """Commands and data over one TCP connection."""
    TCP_SPONTANEOUS = "tcp-spontaneous"
    """Data over TCP, from the start and without a command."""
    UDP = "udp"
    """Data to a local port, without a command."""
    UDP_COMMANDED = "udp-commanded"
    """Commands as datagrams; data come back to where they were sent from."""
    TCP_UDP = "tcp-udp"
    """Commands over TCP, data to a local UDP port."""

    @property
    def commanded(self) -> bool:
        """Whether the peer waits for commands."""
        return self not in (Transport.TCP_SPONTANEOUS, Transport.UDP)

    @property
    def over_tcp(self) -> bool:
        """Whether there is a TCP connection."""
        return self not in (Transport.UDP, Transport.UDP_COMMANDED)

    @property
    def over_udp(self) -> bool:
        """Whether data come as datagrams."""
        return self not in (Transport.TCP, Transport.TCP_SPONTANEOUS)


@dataclass(frozen=True, slots=True)
class ConnectionSettings:
    """One peer.

    Attributes
    ----------
    name
        Key of its records in the log; unique in a gateway.
    host
        Its address or name. Datagrams of others are refused; empty, with `Transport.UDP` alone: of nobody.
    port
        Where it takes commands; unused by `Transport.UDP`.
    id_code
        ID code of its stream; 0: of the first configuration that comes. Commands then carry 0 until it is known, which
        some devices answer and others do not: set it where commands are sent.
    transport
        How commands and data travel.
    udp_port
        Local port for datagrams; 0: any free one, for a peer that answers to where commands came from.
    local_host
        Local address for datagrams. Empty: 127.0.0.1 with `Transport.UDP`, else the one that faces the peer.
    """

    name: str
    host: str
    port: int = 4712
    id_code: int = 0
    transport: Transport = Transport.TCP
    udp_port: int = 0
    local_host: str = ""


@dataclass(frozen=True, slots=True)
class GatewaySettings:
    """What holds for all connections.

    Attributes
    ----------
    connect_s
        How long a connection may take to come about.
    answer_s
        How long to wait for a configuration before the other form (CFG-3, CFG-2) is asked for.
    configure_s
        How long a peer may stay without a usable configuration, or without any whole frame, before it is dropped.
    stall_s
        Silence after which a connection counts as dead; never less than three reporting periods.
    change_s
        How often a configuration is asked for at most while one is running.
    backoff_least_s, backoff_most_s
        Bounds of the pause before the first and the last of many attempts.
    good_s
        How long data must have come before the next pause is a short one again.
    max_pmus
        PMUs of a configuration at most.
    max_configuration_bytes
        Bytes of a configuration at most.
    max_garbage_bytes
        Bytes without a whole frame after which a peer is dropped.
    held_bytes
        Data frames kept for a configuration that is still on its way, bytes a connection, some for each frame included.
    letters_hz
        Dead letters written a second and connection; the others are counted only.
    buffer_bytes
        What is gathered at most while the log cannot be written.
    flush_s
        How often what was gathered is written.
    tick_s
        How often deadlines are looked at.
    stop_s
        Time for what was gathered to be written at the end, once the connections are closed (up to a second).
    mark_s
        Nothing having come for a region for so long, the log is told what time it is; longer in proportion where fewer
        than 12 frames a second are reported. 0: never; who reads the log then says it.
    allow_shared_id_codes
        Whether two connections may carry streams of one ID code.
    """

    connect_s: float = 5.0
    answer_s: float = 2.0
    configure_s: float = 15.0
    stall_s: float = 5.0
    change_s: float = 5.0
    backoff_least_s: float = 0.5
    backoff_most_s: float = 30.0
    good_s: float = 60.0
    max_pmus: int = 4000
    max_configuration_bytes: int = 1 << 20
    max_garbage_bytes: int = 256 * 1024
    held_bytes: int = 1 << 20
    letters_hz: int = 10
    buffer_bytes: int = 1 << 26
    flush_s: float = 0.02
    tick_s: float = 0.1
    stop_s: float = 3.0
    mark_s: float = 0.0
    allow_shared_id_codes: bool = False


def check(connections: Sequence[ConnectionSettings]) -> None:
    """Refuse connections that contradict themselves or each other.

    Parameters
    ----------
    connections
        All of one gateway.

    Raises
    ------
    SettingsError
        When a name is empty or given twice, a port or ID code is out of range, or a peer has no address.
    """
    names: set[str] = set()
    for one in connections:
        if not one.name or one.name in names:
            raise SettingsError(f"two connections are called {one.name!r}, or one has no name: give each its own")
        names.add(one.name)
        for field, value in (("port", one.port), ("udp_port", one.udp_port), ("id_code", one.id_code)):
            if not 0 <= value <= 0xFFFF:
                raise SettingsError(f"connection {one.name!r}: {field} is {value}, it must be 0 to 65535")
        if one.transport is not Transport.UDP and not (one.host and one.port):
            raise SettingsError(f"connection {one.name!r}: {one.transport} needs the peer's host and port")

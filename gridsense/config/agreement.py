"""What keys of the configuration say against each other, and what is allowed and perhaps not meant.

In: a `Config` of which each key is right by itself. Out: keys and what must be, or sentences. It reads no file.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator
from pathlib import Path

from gridsense.config.sections import Config, ConnectionSection, KafkaSection, Key, dotted, loopback

_WHOLE_CLUSTER = 3
"""Copies of each record that survive the death of a broker while another is down for maintenance."""


def contradictions(config: Config) -> Iterator[tuple[tuple[Key, ...], str]]:
    """Find keys that are right by themselves and not together.

    Parameters
    ----------
    config
        Any configuration.

    Yields
    ------
    tuple[tuple[Key, ...], str]
        The keys, first the one to change; what must be.
    """
    yield from _clashing_connections(config)
    for key, connection in _connections(config):
        if connection.transport in {"udp", "tcp-udp"} and not connection.udp_port:
            need = f"must be a port from 1 to 65535: transport {connection.transport} takes data there"
            yield ((*key, "udp_port"), (*key, "transport")), need
    ports = (("metrics", name) for name in ("processor_port", "gateway_port", "archive_port"))
    yield from _clashes((((key,), getattr(config.metrics, key[1])) for key in ports), "be a port of its own, or 0")
    if config.gateway.backoff_min > config.gateway.backoff_max:
        keys = ("gateway", "backoff_min"), ("gateway", "backoff_max")
        yield keys, "must be at most gateway.backoff_max"
    if not config.log_servers and _same_file(config.log_path, config.store_path):
        yield (("store", "path"), ("log", "url")), "must be another file than the log's"
    if _same_file(config.spill_path, config.store_path):
        yield (("kafka", "spill"), ("store", "path")), "must be another file than the event store's"
    yield from _clashing_kafka(config)
    simulate = config.simulate
    if bool(simulate.concentrators) != bool(simulate.pmus_each):
        missing, given = ("pmus_each", "concentrators") if simulate.concentrators else ("concentrators", "pmus_each")
        yield (("simulate", missing), ("simulate", given)), f"must be above 0: simulate.{given} is"
    if simulate.split and simulate.concentrators:
        yield (("simulate", "split"), ("simulate", "concentrators")), "must be false where concentrators are made"


def oddities(config: Config) -> Iterator[str]:
    """Say what is allowed and perhaps not meant.

    Parameters
    ----------
    config
        A configuration without contradictions.

    Yields
    ------
    str
        A sentence.
    """
    if not loopback(config.metrics.host):
        yield f"metrics.host = {config.metrics.host}: everybody who reaches this machine can read the metrics"
    if not config.log.retention and not config.log.retention_size:
        yield "log.retention and log.retention_size are both 0: the log grows until the disk is full"
    if 0 < config.log.retention < config.store.snapshot_every:
        yield "log.retention is shorter than store.snapshot_every: a crash loses frames that are not in a snapshot"
    if 0 < config.log.retention < config.archive.file_span:
        yield "log.retention is shorter than archive.file_span: frames go before they are archived"
    if config.scoring.model and "sequence" not in config.scoring.scorers:
        yield "scoring.model is not used: scoring.scorers has no sequence"
    if 0 < config.archive.retention < config.archive.compact_after:
        yield "archive.retention is shorter than archive.compact_after: days go before they are joined"
    if not config.gateway.connections and not config.simulate.files:
        yield "gateway.connections is empty: there is nothing to watch"
    yield from _odd_kafka(config)
    yield from _odd_connections(config)


def _odd_kafka(config: Config) -> Iterator[str]:
    kafka = config.kafka
    if not config.log_servers:
        if kafka != KafkaSection():
            yield f"[kafka] is not used: log.url is {config.log.url}"
        return
    if elsewhere := _elsewhere(config):
        if not kafka.protocol.endswith("SSL"):
            yield f"kafka.protocol = {kafka.protocol}: everything goes unencrypted to {elsewhere}"
        if kafka.replication < _WHOLE_CLUSTER:
            yield f"kafka.replication = {kafka.replication}: too few copies for the death of a broker"
    if kafka.protocol.endswith("SSL") and not kafka.check_hostname:
        yield "kafka.check_hostname is false: whoever has a certificate of the same authority can stand in for a broker"
    if kafka.predictions and "sequence" not in config.scoring.scorers:
        yield "kafka.predictions has nothing to write: scoring.scorers has no sequence"
    unlisted = sorted({it.region for it in config.gateway.connections if it.region} - set(kafka.regions))
    if unlisted and kafka.regions:
        yield f"kafka.regions does not name {', '.join(unlisted)}: a hash chooses the partition, perhaps a crowded one"


def _odd_connections(config: Config) -> Iterator[str]:
    for key, connection in _connections(config):
        if connection.udp_port and connection.transport in {"tcp", "tcp-spontaneous"}:
            yield f"{dotted(key)}.udp_port is not used with transport {connection.transport}"
        if not connection.id_code and connection.transport not in {"tcp-spontaneous", "udp"}:
            yield (
                f"{dotted(key)}.id_code is 0: with transport {connection.transport} commands carry it, "
                "and most devices answer to their own ID code alone"
            )


def _connections(config: Config) -> Iterator[tuple[Key, ConnectionSection]]:
    for place, connection in enumerate(config.gateway.connections):
        yield ("gateway", "connections", place), connection


def _clashing_connections(config: Config) -> Iterator[tuple[tuple[Key, ...], str]]:
    connections = list(_connections(config))
    names = [(((*key, "name"),), it.name) for key, it in connections]
    yield from _clashes(names, "be a name of its own")
    addresses = [
        (((*key, "port"), (*key, "host")), (it.host, it.port)) for key, it in connections if it.transport != "udp"
    ]
    yield from _clashes(addresses, "be another port, or the host another")
    yield from _clashes(((((*key, "udp_port"),), it.udp_port) for key, it in connections), "be a port of its own")
    if not config.gateway.allow_shared_id_codes:
        codes = ((((*key, "id_code"),), it.id_code) for key, it in connections)
        yield from _clashes(codes, "be an ID code of its own, unless gateway.allow_shared_id_codes is true")


def _clashing_kafka(config: Config) -> Iterator[tuple[tuple[Key, ...], str]]:
    kafka = config.kafka
    tls, elsewhere = kafka.protocol.endswith("SSL"), _elsewhere(config)
    for wrong, name, other, must in (
        *_clashing_credentials(kafka),
        *_clashing_files(kafka, tls=tls),
        (kafka.min_in_sync > kafka.replication, "min_in_sync", "replication", "be at most kafka.replication"),
        (kafka.idle <= kafka.mark, "idle", "mark", "be longer than kafka.mark"),
    ):
        if wrong:
            yield (("kafka", name), ("kafka", other)), f"must {must}"
    if elsewhere and not tls and not kafka.allow_plaintext:
        need = f"must be SASL_SSL or SSL, or kafka.allow_plaintext true: {elsewhere} is another machine"
        yield (("kafka", "protocol"), ("log", "url")), need


def _clashing_credentials(kafka: KafkaSection) -> Iterator[tuple[bool, str, str, str]]:
    """Say of each way to prove who we are whether it is wrong here, by which other key, and what must be."""
    sasl = kafka.protocol.startswith("SASL")
    token, word = sasl and kafka.mechanism == "OAUTHBEARER", sasl and kafka.mechanism != "OAUTHBEARER"
    why, value = ("mechanism", kafka.mechanism) if sasl else ("protocol", kafka.protocol)
    password = bool(kafka.password.get_secret_value())
    because = f": kafka.{why} is {value}"
    for name, given in (
        ("username", bool(kafka.username)),
        ("password", password),
        ("password_file", bool(kafka.password_file)),
    ):
        yield given and not word, name, why, f"be empty{because}"
    yield bool(kafka.token_file) and not token, "token_file", why, f"be empty{because}"
    yield token and not kafka.token_file, "token_file", "protocol", f"be a file that holds a bearer token{because}"
    yield word and not kafka.username, "username", "protocol", f"be a name{because}"
    need = f"be a file that holds the password, or GRIDSENSE_KAFKA__PASSWORD set{because}"
    yield word and not password and not kafka.password_file, "password_file", "protocol", need
    yield (
        word and password and bool(kafka.password_file),
        "password_file",
        "password",
        "be empty: kafka.password is set",
    )


def _clashing_files(kafka: KafkaSection, *, tls: bool) -> Iterator[tuple[bool, str, str, str]]:
    """Say the same of each file that TLS needs."""
    for name in ("ca_file", "certificate_file", "key_file", "key_password_file"):
        given = bool(getattr(kafka, name))
        yield given and not tls, name, "protocol", f"be empty: kafka.protocol {kafka.protocol} is without TLS"
        alone = given and tls and name.startswith("key_") and not kafka.certificate_file
        yield alone, name, "certificate_file", "be empty, or kafka.certificate_file set too"


def _elsewhere(config: Config) -> str:
    """Name the first server that is not this machine."""
    hosts = (server.rpartition(":")[0].strip("[]") for server in config.log_servers)
    return next((host for host in hosts if not loopback(host)), "")


def _clashes(values: Iterable[tuple[tuple[Key, ...], Hashable]], must: str) -> Iterator[tuple[tuple[Key, ...], str]]:
    """Find values other than 0 that were there before."""
    seen: dict[Hashable, tuple[Key, ...]] = {}
    for keys, value in values:
        first = seen.setdefault(value, keys)
        if value != 0 and first is not keys:
            yield (*keys, *first), f"must {must}: {dotted(first[0])} is the same"


def _same_file(one: Path, other: Path) -> bool:
    return one.resolve() == other.resolve()

"""Opening the log that the configuration names: the embedded one, or Kafka.

In: a configuration. Out: a `streams.log.Log`; and, for who does more with Kafka than that, how it is reached. Files of
secrets are read here, once; what is in them goes nowhere else.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from gridsense.config import Config
from gridsense.errors import UsageError
from streams import sqlite_log
from streams.errors import SettingsError
from streams.kafka.settings import KafkaSettings, Mechanism, Protocol, Secret, Security
from streams.log import DEAD_LETTERS, EVENTS, FRAMES, PREDICTIONS, REGIONAL, SCORES, Log, Retention

if TYPE_CHECKING:
    from streams.kafka.topics import TopicSpec

RECORD_BYTES = 16 << 20
"""The largest value in Kafka: a frame has at most 64 KiB, but one record holds what came in one piece."""

_SECRET_BYTES = 1 << 16
"""No file of a password is larger; another is a mistake in its name."""


def kafka_settings(config: Config) -> KafkaSettings:
    """Take out of a configuration how Kafka is reached.

    Parameters
    ----------
    config
        With brokers in log.url.

    Returns
    -------
    KafkaSettings
        Checked.

    Raises
    ------
    UsageError
        If the log is not in Kafka, a file is missing, or keys contradict each other; the message names the key.
    """
    it = config.kafka
    if not config.log_servers:
        raise UsageError(f"log.url = {config.log.url}: must be kafka://HOST:PORT, HOST:PORT of a broker")
    protocol = Protocol(it.protocol)
    settings = KafkaSettings(
        servers=config.log_servers,
        security=Security(
            protocol=protocol,
            mechanism=Mechanism(it.mechanism) if protocol.authenticated else None,
            username=it.username,
            password=_password(config),
            token_file=_file(config, "token_file"),
            ca_file=_file(config, "ca_file"),
            certificate_file=_file(config, "certificate_file"),
            key_file=_file(config, "key_file"),
            key_password=_secret(config, "key_password_file"),
            check_hostname=it.check_hostname,
        ),
        prefix=it.prefix,
        request_s=it.request,
        record_bytes=RECORD_BYTES,
        regions=it.regions,
        allow_plaintext=it.allow_plaintext,
        compression="" if it.compression == "none" else it.compression,
    )
    try:
        settings.check()
    except SettingsError as error:
        raise UsageError(str(error)) from error
    return settings


def open_log(config: Config) -> Log:
    """Open the log.

    Parameters
    ----------
    config
        Says where it is.

    Returns
    -------
    Log
        Close it at the end. A `UsageError` or `streams.errors.LogError` says why it cannot be opened.
    """
    if not config.log_servers:
        return sqlite_log.open_log(config.log_path)
    from streams.kafka.log import KafkaLog  # noqa: PLC0415 - who has no Kafka need not wait for its client

    return KafkaLog(kafka_settings(config))


def topic_specs(config: Config) -> list[TopicSpec]:
    """Say what each topic of Kafka should be like.

    Parameters
    ----------
    config
        Any.

    Returns
    -------
    list[TopicSpec]
        Names without the prefix.
    """
    from streams.kafka.topics import TopicSettings, specs  # noqa: PLC0415 - as above

    it, size = config.kafka, config.log.retention_size
    retention = {
        FRAMES: config.retention(),
        DEAD_LETTERS: Retention(it.dead_letters_retention, size),
        SCORES: Retention(it.scores_retention, size),
        PREDICTIONS: Retention(it.predictions_retention, size),
        REGIONAL: config.retention(),
        EVENTS: Retention(it.events_retention),
    }
    min_in_sync = it.min_in_sync or max(it.replication - 1, 1)
    return specs(TopicSettings(it.partitions, it.replication, min_in_sync, RECORD_BYTES, retention))


def log_place(config: Config) -> str:
    """Say where the log is, for people.

    Parameters
    ----------
    config
        Says where it is.

    Returns
    -------
    str
        The embedded log's file, or Kafka's brokers.
    """
    return f"kafka://{','.join(config.log_servers)}" if config.log_servers else str(config.log_path)


def _password(config: Config) -> Secret:
    given = config.kafka.password.get_secret_value()
    return Secret(given) if given else _secret(config, "password_file")


def _file(config: Config, name: str) -> Path | None:
    """Find a file that the section [kafka] names."""
    text: str = getattr(config.kafka, name)
    path = config.place(text) if text else None
    if path and not path.is_file():
        raise UsageError(f"kafka.{name} = {text}: {path} is no file")
    return path


def _secret(config: Config, name: str) -> Secret:
    """Read a secret; a line's end after it is no part of it."""
    path = _file(config, name)
    if path is None:
        return Secret()
    try:
        with path.open("rb") as file:
            text = file.read(_SECRET_BYTES).decode().removesuffix("\n").removesuffix("\r")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "is not UTF-8"
        raise UsageError(f"kafka.{name} = {path}: cannot be read: {reason}") from error
    if not text or "\n" in text:
        raise UsageError(f"kafka.{name} = {path}: must hold one line, the secret")
    return Secret(text)

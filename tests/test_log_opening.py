"""Which log is opened, and how the secrets of Kafka come out of files."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest

from gridsense.config import load
from gridsense.errors import UsageError
from gridsense.log_opening import kafka_settings, log_place, open_log
from streams.kafka.log import KafkaLog
from streams.kafka.settings import KafkaSettings, Mechanism, Protocol
from streams.log import FRAMES, Record

WORD = "hunter2"


def made(folder: Path, keys: str, **environ: str) -> KafkaSettings:
    file = folder / "gridsense.toml"
    file.write_text(f'log.url = "kafka://broker:9092,127.0.0.1:9093"\n[kafka]\n{keys}')
    return kafka_settings(load(file, environ=environ).config)


def test_the_embedded_log_is_the_file_of_the_configuration(tmp_path: Path) -> None:
    file = tmp_path / "gridsense.toml"
    file.write_text('log.url = "sqlite:here.db"')
    config = load(file, environ={}).config
    with closing(open_log(config)) as log:
        log.append(FRAMES, [Record(1, "a", b"x")])
    assert (tmp_path / "here.db").is_file()
    assert log_place(config) == str(tmp_path / "here.db")
    with pytest.raises(UsageError, match=r"log\.url = sqlite:here\.db: must be kafka://"):
        kafka_settings(config)


def test_kafka_is_opened_without_a_word_to_it(tmp_path: Path) -> None:
    file = tmp_path / "gridsense.toml"
    file.write_text('log.url = "kafka://127.0.0.1:1"')
    config = load(file, environ={}).config
    with closing(open_log(config)) as log:
        assert isinstance(log, KafkaLog)
    assert log_place(config) == "kafka://127.0.0.1:1"


def test_keys_arrive(tmp_path: Path) -> None:
    for name in ("ca.pem", "own.pem", "own.key"):
        (tmp_path / name).write_text("")
    (tmp_path / "word").write_text(f"{WORD}\r\n")
    (tmp_path / "key-word").write_text(" of the key \n")
    keys = (
        'protocol = "SASL_SSL"\nmechanism = "SCRAM-SHA-256"\nusername = "g"\npassword_file = "word"\n'
        'ca_file = "ca.pem"\ncertificate_file = "own.pem"\nkey_file = "own.key"\nkey_password_file = "key-word"\n'
        'check_hostname = false\nprefix = "north."\nregions = ["a", "b"]\ncompression = "zstd"\n'
        'request = "2s"\n'
    )
    settings = made(tmp_path, keys)
    security = settings.security
    assert settings.servers == ("broker:9092", "127.0.0.1:9093")
    assert (settings.prefix, settings.regions, settings.compression) == ("north.", ("a", "b"), "zstd")
    assert settings.request_s == 2.0
    assert (security.protocol, security.mechanism) == (Protocol.SASL_SSL, Mechanism.SCRAM_SHA_256)
    assert (security.username, security.password.reveal()) == ("g", WORD)
    assert (security.ca_file, security.certificate_file) == (tmp_path / "ca.pem", tmp_path / "own.pem")
    assert (security.key_file, security.key_password.reveal()) == (tmp_path / "own.key", " of the key ")
    assert not security.check_hostname
    assert WORD not in repr(settings)


def test_the_environment_may_hold_the_password(tmp_path: Path) -> None:
    variables = {"GRIDSENSE_KAFKA__PASSWORD": WORD}
    settings = made(tmp_path, 'protocol = "SASL_SSL"\nusername = "g"\n', **variables)
    assert settings.security.password.reveal() == WORD


def test_plaintext_leaves_the_machine_only_where_it_may(tmp_path: Path) -> None:
    assert made(tmp_path, "allow_plaintext = true\n").allow_plaintext
    with pytest.raises(UsageError, match="broker is another machine"):
        made(tmp_path, "")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, r"kafka\.password_file = word: .*/word is no file"),
        (b"", r"kafka\.password_file = .*/word: must hold one line, the secret"),
        (b"\n", r"must hold one line"),
        (b"hunter2\nhunter2\n", r"must hold one line"),
        (b"\xff", r"kafka\.password_file = .*/word: cannot be read: is not UTF-8"),
    ],
)
def test_a_file_without_a_secret_is_told_by_its_key(tmp_path: Path, content: bytes | None, told: str) -> None:
    if content is not None:
        (tmp_path / "word").write_bytes(content)
    with pytest.raises(UsageError, match=told) as caught:
        made(tmp_path, 'protocol = "SASL_SSL"\nusername = "g"\npassword_file = "word"\n')
    assert WORD not in str(caught.value)


def test_a_certificate_that_is_not_there_is_told_by_its_key(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"kafka\.ca_file = none\.pem: .* is no file"):
        made(tmp_path, 'protocol = "SSL"\nca_file = "none.pem"\n')

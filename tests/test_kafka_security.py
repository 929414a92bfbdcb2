"""Who may talk to Kafka, on a real broker with passwords, tokens, certificates and access lists: and who is told what.

Nothing that is refused takes longer than it takes to be refused, and no secret is shown by anything.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from kafka.admin import ACL, ACLOperation, ACLPermissionType, NewTopic, ResourcePattern, ResourceType

from scripts.broker.cluster import Cluster
from scripts.broker.credentials import Credentials, Party, token
from streams.errors import DeniedError, LogError, SettingsError
from streams.kafka.clients import admin, consumer, producer
from streams.kafka.log import KafkaLog
from streams.kafka.settings import KafkaSettings, Mechanism, Protocol, Secret, Security
from streams.log import FRAMES, Record
from tests.log_contract import follow

LONG_S = 120.0
"""Given to each attempt: one that waited it out would not end within the time of a test run."""
CLIENTS: tuple[Callable[[KafkaSettings], object], ...] = (producer, consumer, admin)


@pytest.fixture
def credentials(secure_kafka: Cluster) -> Credentials:
    return secure_kafka.credentials


@pytest.fixture
def by_password(secure_kafka: Cluster, kafka_prefix: str) -> KafkaSettings:
    """As who may do what GridSense does, by SCRAM over TLS."""
    party = secure_kafka.credentials.allowed
    security = Security(
        Protocol.SASL_SSL,
        Mechanism.SCRAM_SHA_512,
        party.name,
        Secret(party.password),
        ca_file=secure_kafka.credentials.ca_file,
    )
    return KafkaSettings(tuple(secure_kafka.servers.split(",")), security, prefix=kafka_prefix, request_s=LONG_S)


@pytest.fixture
def by_certificate(secure_kafka: Cluster, by_password: KafkaSettings) -> KafkaSettings:
    """The same by mTLS."""
    party = secure_kafka.credentials.allowed
    security = Security(
        Protocol.SSL,
        ca_file=secure_kafka.credentials.ca_file,
        certificate_file=party.certificate_file,
        key_file=party.key_file,
    )
    return replace(by_password, servers=tuple(secure_kafka.tls_servers.split(",")), security=security)


@pytest.fixture
def by_token(by_password: KafkaSettings, credentials: Credentials) -> KafkaSettings:
    """The same by a bearer token."""
    security = Security(
        Protocol.SASL_SSL,
        Mechanism.OAUTHBEARER,
        token_file=credentials.allowed.token_file,
        ca_file=credentials.ca_file,
    )
    return replace(by_password, security=security)


def made(settings: KafkaSettings) -> None:
    with closing(admin(settings)) as client:
        client.create_topics([NewTopic(settings.topic(FRAMES), 1, 1)])


def used(settings: KafkaSettings) -> None:
    """Write, read and commit."""
    settings.check()
    made(settings)
    with closing(KafkaLog(settings)) as log:
        log.append(FRAMES, [Record(1, "a", b"secured")])
        assert [entry.value for entry in log.read(FRAMES, 0).entries] == [b"secured"]
        log.commit(FRAMES, "me", 1)
        assert log.position(FRAMES, "me") == 1


def changed(settings: KafkaSettings, **changes: object) -> KafkaSettings:
    return replace(settings, security=replace(settings.security, **changes))  # type: ignore[arg-type]


def refusal(settings: KafkaSettings, make: Callable[[KafkaSettings], object] = admin) -> DeniedError:
    with pytest.raises(DeniedError) as caught:
        make(settings)
    return caught.value


def test_a_password_lets_in(by_password: KafkaSettings) -> None:
    used(by_password)


def test_a_certificate_lets_in(by_certificate: KafkaSettings) -> None:
    used(by_certificate)


def test_megabytes_pass_encrypted(by_certificate: KafkaSettings) -> None:
    made(by_certificate)
    values = [bytes([n]) * 900_000 for n in range(20)]
    with closing(KafkaLog(by_certificate)) as log:
        log.append(FRAMES, [Record(n, "a", value) for n, value in enumerate(values)])
        assert [entry.value for entry in follow(log, FRAMES)[0]] == values


def test_an_encrypted_key_lets_in_with_its_password(by_certificate: KafkaSettings, credentials: Credentials) -> None:
    encrypted = changed(
        by_certificate, key_file=credentials.encrypted_key_file, key_password=Secret(credentials.key_password)
    )
    used(encrypted)
    for password in ("", "wrong"):
        with pytest.raises(SettingsError, match=r"certificate_file.*key_password") as caught:
            admin(changed(encrypted, key_password=Secret(password)))
        assert credentials.key_password not in str(caught.value)


def test_a_token_lets_in_and_is_read_anew(by_token: KafkaSettings, credentials: Credentials, tmp_path: Path) -> None:
    used(by_token)
    renewed = tmp_path / "token"
    settings = changed(by_token, token_file=renewed)
    renewed.write_text(credentials.expired_token_file.read_text())
    refusal(settings)
    renewed.write_text(token(credentials.allowed.name, 600.0) + "\n")
    with closing(admin(settings)) as client:
        assert [topic["name"] for topic in client.describe_topics([by_token.topic(FRAMES)])]


@pytest.mark.parametrize("make", CLIENTS)
def test_a_wrong_password_is_refused_at_once(
    by_password: KafkaSettings, make: Callable[[KafkaSettings], object]
) -> None:
    error = refusal(changed(by_password, password=Secret("not the password")), make)
    assert str(error).startswith(f"kafka {by_password.servers[0]} as gridsense: ")
    assert str(error).count("SaslAuthenticationFailedError") == 1
    assert "check kafka.username and kafka.password_file" in str(error)
    refusal(changed(by_password, username="nobody"), make)


@pytest.mark.parametrize("make", CLIENTS)
def test_an_unknown_authority_is_refused_at_once(
    by_password: KafkaSettings, credentials: Credentials, make: Callable[[KafkaSettings], object]
) -> None:
    error = refusal(changed(by_password, ca_file=credentials.other_ca_file), make)
    assert "certificate verify failed" in str(error)
    assert "check kafka.ca_file" in str(refusal(changed(by_password, ca_file=None), make))


def test_a_certificate_for_another_host_is_refused(by_password: KafkaSettings) -> None:
    port = by_password.servers[0].rpartition(":")[2]
    by_name = replace(by_password, servers=(f"localhost:{port}",))
    assert "localhost" in str(refusal(by_name))
    admin(changed(by_name, check_hostname=False)).close()


def test_no_certificate_is_refused(by_certificate: KafkaSettings) -> None:
    assert "certificate" in str(refusal(changed(by_certificate, certificate_file=None, key_file=None)))


def test_a_mechanism_that_the_servers_do_not_have_is_refused(by_password: KafkaSettings) -> None:
    error = refusal(changed(by_password, mechanism=Mechanism.PLAIN))
    assert "SaslMechanism" in str(error)
    assert "check kafka.mechanism" in str(error)


def test_a_missing_token_is_told(by_token: KafkaSettings, tmp_path: Path) -> None:
    assert f"{tmp_path / 'none'}: no bearer token" in str(refusal(changed(by_token, token_file=tmp_path / "none")))


def test_in_the_clear_to_a_secured_listener_is_refused_at_once(by_password: KafkaSettings) -> None:
    assert "check log.url, and kafka.protocol" in str(refusal(replace(by_password, security=Security())))


def stranger(settings: KafkaSettings, party: Party) -> KafkaSettings:
    return changed(settings, username=party.name, password=Secret(party.password))


def test_who_has_no_rights_is_told_so(by_password: KafkaSettings, credentials: Credentials) -> None:
    made(by_password)
    with closing(KafkaLog(stranger(by_password, credentials.stranger))) as log:
        for use in (
            lambda: log.append(FRAMES, [Record(1, "a", b"b")]),
            lambda: log.read(FRAMES, 0),
            lambda: log.latest(FRAMES),
            lambda: log.extent(FRAMES),
            lambda: log.commit(FRAMES, "me", 1),
            lambda: log.position(FRAMES, "me"),
        ):
            with pytest.raises(DeniedError, match=r"AuthorizationFailed.*rights"):
                use()


def looking(name: str, topic: str) -> list[ACL]:
    """Let somebody read one topic."""
    pattern = ResourcePattern(ResourceType.TOPIC, topic)
    return [ACL(f"User:{name}", "*", ACLOperation.READ, ACLPermissionType.ALLOW, pattern)]


def test_who_may_only_look_cannot_write(by_password: KafkaSettings, secure_kafka: Cluster) -> None:
    made(by_password)
    party = secure_kafka.credentials.stranger
    with secure_kafka.admin() as client:
        client.create_acls(acls := looking(party.name, by_password.topic(FRAMES)))
    try:
        with closing(KafkaLog(stranger(by_password, party))) as log:
            assert log.read(FRAMES, 0).entries == []
            with pytest.raises(DeniedError, match="AuthorizationFailed"):
                log.append(FRAMES, [Record(1, "a", b"b")])
    finally:
        with secure_kafka.admin() as client:
            client.delete_acls(acls)


def test_no_secret_is_shown(  # noqa: PLR0917 - each way in is a fixture
    by_password: KafkaSettings,
    by_token: KafkaSettings,
    by_certificate: KafkaSettings,
    credentials: Credentials,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    caplog.set_level(logging.DEBUG)
    everywhere = logging.getLogger("kafka")
    everywhere.addHandler(caplog.handler)
    for name in ("kafka", "kafka.net.connection", "kafka.protocol.parser", "kafka.admin.client"):
        caplog.set_level(logging.DEBUG, logger=name)
    told = list[str]()
    encrypted = changed(
        by_certificate, key_file=credentials.encrypted_key_file, key_password=Secret(credentials.key_password)
    )
    with_plain = changed(by_password, mechanism=Mechanism.PLAIN)
    for settings in (by_password, by_token, encrypted, with_plain):
        for wrong in (settings, changed(settings, ca_file=credentials.other_ca_file)):
            told += [repr(wrong), str(wrong), f"{wrong.security.password} {wrong.security.key_password}"]
            for make in CLIENTS:
                try:
                    make(wrong).close()  # type: ignore[attr-defined]
                except LogError as error:
                    told += ["".join(traceback.format_exception(error)), repr(error)]
    everywhere.removeHandler(caplog.handler)
    told += [record.getMessage() for record in caplog.records] + [caplog.text, *capfd.readouterr()]
    everything = "\n".join(told)
    assert "Attempting bootstrap" in everything
    for secret in (
        credentials.allowed.password,
        credentials.allowed.token_file.read_text(),
        credentials.key_password,
    ):
        assert secret not in everything
        assert secret[:20] not in everything


def test_a_secret_is_shown_to_who_asks_alone() -> None:
    secret = Secret("hunter2")
    assert secret.reveal() == "hunter2"
    assert secret == Secret("hunter2")
    assert secret
    assert not Secret()
    assert "hunter2" not in f"{secret} {secret!r} {[secret]} {Security(password=secret)}"


@pytest.mark.parametrize("server", ["10.0.0.1:9092", "kafka.grid.example:9092", "[2001:db8::1]:9092", "0.0.0.0:9092"])
def test_what_leaves_the_machine_in_the_clear_is_refused_unless_said_so(server: str) -> None:
    for security in (
        Security(),
        Security(Protocol.SASL_PLAINTEXT, Mechanism.SCRAM_SHA_512, "a", Secret("b")),
    ):
        settings = KafkaSettings((server,), security)
        with pytest.raises(SettingsError, match=r"unencrypted.*allow_plaintext"):
            settings.check()
        with pytest.raises(SettingsError, match="unencrypted"):
            replace(settings, servers=("127.0.0.1:9092", server)).check()
        replace(settings, allow_plaintext=True).check()
    KafkaSettings((server,), Security(Protocol.SSL)).check()


@pytest.mark.parametrize("server", ["127.0.0.1:9092", "localhost:9092", "[::1]:9092", "127.8.9.1:1"])
def test_within_the_machine_it_need_not_be_said(server: str) -> None:
    KafkaSettings((server,)).check()


SCRAM = Security(Protocol.SASL_SSL, Mechanism.SCRAM_SHA_512, "a", Secret("b"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (KafkaSettings(()), "no server"),
        (KafkaSettings(("localhost",)), "host:port"),
        (KafkaSettings(("localhost:99999",)), "host:port"),
        (KafkaSettings((":9092",)), "host:port"),
        (KafkaSettings(("localhost:1",), regions=("a", "b", "a")), "'a' is listed twice"),
        (KafkaSettings(("localhost:1",), Security(Protocol.SASL_SSL)), "needs a mechanism"),
        (KafkaSettings(("localhost:1",), replace(SCRAM, protocol=Protocol.SSL)), "goes with SASL_SSL"),
        (KafkaSettings(("localhost:1",), replace(SCRAM, password=Secret())), "needs username and password"),
        (KafkaSettings(("localhost:1",), replace(SCRAM, username="")), "needs username and password"),
        (KafkaSettings(("localhost:1",), replace(SCRAM, mechanism=Mechanism.OAUTHBEARER)), "token_file"),
        (KafkaSettings(("localhost:1",), replace(SCRAM, token_file=Path("t"))), "token_file is for OAUTHBEARER"),
        (KafkaSettings(("localhost:1",), Security(username="a", password=Secret("b"))), "no username"),
        (KafkaSettings(("localhost:1",), Security(ca_file=Path("ca.pem"))), "ca_file.*TLS"),
        (KafkaSettings(("localhost:1",), replace(SCRAM, ca_file=Path("none.pem"))), "ca_file is none.pem"),
        (KafkaSettings(("localhost:1",), replace(SCRAM, key_file=Path("key"))), "key_file without"),
        (KafkaSettings(("localhost:1",), replace(SCRAM, key_password=Secret("p"))), "key_password without"),
    ],
)
def test_what_contradicts_itself_is_refused(settings: KafkaSettings, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        settings.check()


def test_files_that_hold_something_else_are_named(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.pem"
    wrong.write_text("nothing of the kind")
    for security, name in (
        (replace(SCRAM, ca_file=wrong), "ca_file"),
        (Security(Protocol.SSL, certificate_file=wrong, key_file=wrong), "certificate_file"),
    ):
        with pytest.raises(SettingsError, match=f"{name} {wrong}"):
            admin(KafkaSettings(("127.0.0.1:9",), security))

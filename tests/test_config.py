"""The configuration: what may stand in it, what is said of every mistake, and where each value came from."""

from __future__ import annotations

import json
import math
import os
import shutil
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
from annotated_types import Ge, Gt, Le
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from gridsense import pipeline
from gridsense.cli import run
from gridsense.commands.check_config import check_config
from gridsense.commands.init import init
from gridsense.config import Config, Loaded, example, load, schema, values
from gridsense.config.example import EXAMPLE_CONNECTION
from gridsense.config.kinds import duration_text, size_text, toml_text
from gridsense.config.reading import _lines
from gridsense.config.sections import GatewaySection, Transport, dotted
from gridsense.errors import UsageError
from gridsense.sequence import BUNDLED, load_model
from gridsense.services.receiving import connection_settings
from gridsense.simulator import server
from models.errors import ArtifactError
from streams.gateway import settings as gateway
from streams.log import Retention

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the configuration is written: in the working folder, as a person would have it."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("GRIDSENSE_")]:
        monkeypatch.delenv(name)
    return Path("gridsense.toml")


def read(file: Path, text: str, *overrides: str, **environ: str) -> Loaded:
    file.write_text(text, encoding="utf-8")
    return load(file, overrides, environ)


def mistakes(file: Path, text: str, *overrides: str, **environ: str) -> list[str]:
    with pytest.raises(UsageError) as caught:
        read(file, text, *overrides, **environ)
    return str(caught.value).splitlines()


def sections(kind: type[BaseModel]) -> Iterator[type[BaseModel]]:
    yield kind
    for info in kind.model_fields.values():
        for inner in (info.annotation, *get_args(info.annotation)):
            if isinstance(inner, type) and issubclass(inner, BaseModel):
                yield from sections(inner)


# --- every mistake is told in plain words: key, value, expectation, place


ONE = '[[gateway.connections]]\nname = "one"\n'
CODED = f"{ONE}id_code = 1\n"

BROKEN = [
    ('name = ""', 'gridsense.toml:1: name = "": must not be empty, nor begin or end with a space'),
    (
        'name = "a\\u0007"',
        'gridsense.toml:1: name = "a\\u0007": must be printable, without control characters or special spaces',
    ),
    ("name = 7", "gridsense.toml:1: name = 7: must be text in quotes"),
    ("log = 3", "gridsense.toml:1: log = 3: must be a table of keys and values"),
    (
        '[log]\nurl = "kafka://broker"',
        (
            'gridsense.toml:2: log.url = "kafka://broker": must name each server by its host and port, such as '
            "kafka://a:9092,b:9092"
        ),
    ),
    (
        '[log]\nurl = "kafka://127.0.0.1:9092,"',
        (
            'gridsense.toml:2: log.url = "kafka://127.0.0.1:9092,": must name each server by its host and port, such '
            "as kafka://a:9092,b:9092"
        ),
    ),
    (
        '[log]\nurl = "kafka:broker:9092"',
        (
            'gridsense.toml:2: log.url = "kafka:broker:9092": must be kafka://HOST:PORT, or several with commas, such '
            "as kafka://a:9092,b:9092"
        ),
    ),
    (
        '[log]\nurl = "grid.db"',
        (
            'gridsense.toml:2: log.url = "grid.db": must be sqlite:PATH, such as sqlite:gridsense-log.db, or '
            "kafka://HOST:PORT,HOST:PORT"
        ),
    ),
    (
        '[log]\nurl = "kafka://broker:9092"',
        (
            'gridsense.toml:2: kafka.protocol = "PLAINTEXT": must be SASL_SSL or SSL, or kafka.allow_plaintext true: '
            "broker is another machine"
        ),
    ),
    (
        (
            "kafka.protocol = 'SASL_PLAINTEXT'\nkafka.username = 'g'\nkafka.password_file = 'p'\n"
            "log.url = 'kafka://127.0.0.1:1,[2001:db8::7]:9092'"
        ),
        (
            'gridsense.toml:1: kafka.protocol = "SASL_PLAINTEXT": must be SASL_SSL or SSL, or kafka.allow_plaintext '
            "true: 2001:db8::7 is another machine"
        ),
    ),
    (
        '[kafka]\nprefix = "north/"',
        (
            'gridsense.toml:2: kafka.prefix = "north/": must be letters, digits, dots, hyphens and underscores, 200 at '
            "most"
        ),
    ),
    (
        '[kafka]\nregions = ["a", "b", "a"]',
        'gridsense.toml:2: kafka.regions = ["a", "b", "a"]: must name each region once',
    ),
    ('[kafka]\nregions = ["a/b"]', 'gridsense.toml:2: kafka.regions = ["a/b"]: must hold neither # nor /'),
    ("[kafka]\npartitions = 0", "gridsense.toml:2: kafka.partitions = 0: must be at least 1"),
    (
        "[kafka]\nmin_in_sync = 3\nreplication = 2",
        "gridsense.toml:2: kafka.min_in_sync = 3: must be at most kafka.replication",
    ),
    ('[kafka]\nidle = "200ms"', 'gridsense.toml:2: kafka.idle = "200ms": must be a duration such as 60s, 5min or 72h'),
    ("[kafka]\nidle = 0.2", 'gridsense.toml:2: kafka.idle = "0.2s": must be longer than kafka.mark'),
    (
        '[kafka]\nprotocol = "TLS"',
        'gridsense.toml:2: kafka.protocol = "TLS": must be one of PLAINTEXT, SSL, SASL_PLAINTEXT, SASL_SSL',
    ),
    ('[kafka]\nusername = "g"', 'gridsense.toml:2: kafka.username = "g": must be empty: kafka.protocol is PLAINTEXT'),
    (
        '[kafka]\nprotocol = "SSL"\npassword_file = "p"',
        'gridsense.toml:3: kafka.password_file = "p": must be empty: kafka.protocol is SSL',
    ),
    (
        '[kafka]\nprotocol = "SASL_SSL"\npassword_file = "p"',
        'gridsense.toml:2: kafka.username = "": must be a name: kafka.mechanism is SCRAM-SHA-512',
    ),
    (
        '[kafka]\nprotocol = "SASL_SSL"\nmechanism = "PLAIN"\nusername = "g"',
        (
            'gridsense.toml:2: kafka.password_file = "": must be a file that holds the password, or '
            "GRIDSENSE_KAFKA__PASSWORD set: kafka.mechanism is PLAIN"
        ),
    ),
    (
        '[kafka]\nprotocol = "SASL_SSL"\nmechanism = "OAUTHBEARER"',
        (
            'gridsense.toml:2: kafka.token_file = "": must be a file that holds a bearer token: kafka.mechanism is '
            "OAUTHBEARER"
        ),
    ),
    (
        '[kafka]\nprotocol = "SASL_SSL"\nusername = "g"\npassword_file = "p"\ntoken_file = "t"',
        'gridsense.toml:5: kafka.token_file = "t": must be empty: kafka.mechanism is SCRAM-SHA-512',
    ),
    (
        '[kafka]\nca_file = "ca.pem"',
        'gridsense.toml:2: kafka.ca_file = "ca.pem": must be empty: kafka.protocol PLAINTEXT is without TLS',
    ),
    (
        '[kafka]\nprotocol = "SSL"\nkey_file = "k.pem"',
        'gridsense.toml:3: kafka.key_file = "k.pem": must be empty, or kafka.certificate_file set too',
    ),
    (
        '[kafka]\nspill = "gridsense.db"',
        'gridsense.toml:2: kafka.spill = "gridsense.db": must be another file than the event store\'s',
    ),
    (
        '[log]\n\nretention = "3 days"',
        'gridsense.toml:3: log.retention = "3 days": must be a duration such as 60s, 5min or 72h',
    ),
    (
        "log.retention = true",
        (
            "gridsense.toml:1: log.retention = true: must be a duration: a number of seconds, or text such as 60s, "
            "5min or 72h"
        ),
    ),
    ('log.retention = "900000h"', 'gridsense.toml:1: log.retention = "900000h": must be at most ten years'),
    (
        '[log]\nretention_size = "much"',
        'gridsense.toml:2: log.retention_size = "much": must be a size such as 256kB, 64MiB or 50GiB',
    ),
    (
        '[log]\nretention_size = "1.0005kB"',
        'gridsense.toml:2: log.retention_size = "1.0005kB": must be a whole number of bytes',
    ),
    (
        "[log]\nretention_size = 0.5",
        (
            "gridsense.toml:2: log.retention_size = 0.5: must be a size: a whole number of bytes, or text such as "
            "256kB, 64MiB or 50GiB"
        ),
    ),
    (
        '[log]\nretenton = "72h"',
        'gridsense.toml:2: log.retenton = "72h": unknown key; did you mean `retention`?',
    ),
    ("[loging]\n", "gridsense.toml:1: loging = {}: unknown key; did you mean `logging`?"),
    (
        'snapshot_every = "10s"',
        'gridsense.toml:1: snapshot_every = "10s": unknown key; did you mean `store.snapshot_every`?',
    ),
    (
        "xyzzy = 1",
        (
            "gridsense.toml:1: xyzzy = 1: unknown key; there are name, log, kafka, store, detection, scoring, align, "
            "quality, gateway, metrics, logging, archive, simulate"
        ),
    ),
    ("[store]\nsnapshot_every = 0.5", "gridsense.toml:2: store.snapshot_every = 0.5: must be at least 1s"),
    (
        "[detection]\nfalse_alarms_per_day = 0",
        "gridsense.toml:2: detection.false_alarms_per_day = 0: must be above 0",
    ),
    (
        "[detection]\nfalse_alarms_per_day = inf",
        "gridsense.toml:2: detection.false_alarms_per_day = inf: must be a finite number",
    ),
    ("align.lateness = -1", "gridsense.toml:1: align.lateness = -1: must be at least 0"),
    ("align.lateness = nan", "gridsense.toml:1: align.lateness = nan: must be a finite number"),
    (
        '[quality]\nunsynced = "angle"',
        'gridsense.toml:2: quality.unsynced = "angle": must be one of angles, phasors',
    ),
    ("[quality]\nuse_sync_bit = 1", "gridsense.toml:2: quality.use_sync_bit = 1: must be true or false"),
    ("[quality]\nahead = 1", "gridsense.toml:2: quality.ahead = 1: must be at least 2"),
    (
        "[quality]\nusual_voltage = [1.0]",
        "gridsense.toml:2: quality.usual_voltage = [1.0]: must be a list of 2 numbers",
    ),
    (
        '[quality]\nusual_voltage = [1.0, "x"]',
        'gridsense.toml:2: quality.usual_voltage = [1.0, "x"]: must be a list of 2 numbers',
    ),
    (
        "[quality]\nusual_voltage = [1.25, 0.75]",
        "gridsense.toml:2: quality.usual_voltage = [1.25, 0.75]: must be two numbers above 0, the smaller first",
    ),
    ("[gateway]\nflush_ms = 2.5", "gridsense.toml:2: gateway.flush_ms = 2.5: must be a whole number"),
    (
        "[gateway]\ngarbage_size = 1000",
        "gridsense.toml:2: gateway.garbage_size = 1000: must be at least 64KiB",
    ),
    (
        '[gateway]\nbackoff_min = "1min"',
        'gridsense.toml:2: gateway.backoff_min = "1min": must be at most gateway.backoff_max',
    ),
    (
        "[gateway.connections]\n",
        "gridsense.toml:1: gateway.connections = {}: must be tables: each begins with [[gateway.connections]]",
    ),
    (
        f"{ONE}\n[[gateway.connections]]\nname = 'two'\nport = 70000",
        "gridsense.toml:6: gateway.connections[1].port = 70000: must be at most 65535",
    ),
    (
        "[[gateway.connections]]\nport = 4713",
        (
            "gridsense.toml:1: gateway.connections[0].name: is missing: Name of the connection, in events, metrics and "
            "archives. No two alike, neither # nor / in it."
        ),
    ),
    (
        f"{ONE}region = 'a/b'",
        'gridsense.toml:3: gateway.connections[0].region = "a/b": must hold neither # nor /',
    ),
    (
        "[[gateway.connections]]\nname = 'a#b'",
        'gridsense.toml:2: gateway.connections[0].name = "a#b": must hold neither # nor /',
    ),
    (
        f"{ONE}host = 'pmu:4712'",
        (
            'gridsense.toml:3: gateway.connections[0].host = "pmu:4712": must be an address or the name of a machine, '
            "without a port"
        ),
    ),
    (
        f"{ONE}local_host = 'a b'",
        (
            'gridsense.toml:3: gateway.connections[0].local_host = "a b": must be an address or the name of a machine, '
            "without a port"
        ),
    ),
    (f"{ONE}id_code = 65535", "gridsense.toml:3: gateway.connections[0].id_code = 65535: must be at most 65534"),
    (
        f"{ONE}transport = 'TCP'",
        (
            'gridsense.toml:3: gateway.connections[0].transport = "TCP": must be one of tcp, tcp-spontaneous, udp, '
            "udp-commanded, tcp-udp"
        ),
    ),
    (
        f"{ONE}transport = 'tcp-udp'",
        (
            "gridsense.toml:3: gateway.connections[0].udp_port = 0: must be a port from 1 to 65535: transport tcp-udp "
            "takes data there"
        ),
    ),
    (
        f"{ONE}{ONE}port = 4713",
        (
            'gridsense.toml:4: gateway.connections[1].name = "one": must be a name of its own: '
            "gateway.connections[0].name is the same"
        ),
    ),
    (
        f"{ONE}[[gateway.connections]]\nname = 'two'\nport = 4712",
        (
            "gridsense.toml:5: gateway.connections[1].port = 4712: must be another port, or the host another: "
            "gateway.connections[0].port is the same"
        ),
    ),
    (
        f"{ONE}id_code = 7\n[[gateway.connections]]\nname = 'two'\nport = 1\nid_code = 7",
        (
            "gridsense.toml:7: gateway.connections[1].id_code = 7: must be an ID code of its own, unless "
            "gateway.allow_shared_id_codes is true: gateway.connections[0].id_code is the same"
        ),
    ),
    (
        f"{ONE}transport='udp'\nudp_port=5\n[[gateway.connections]]\nname='two'\ntransport='udp'\nudp_port=5",
        (
            "gridsense.toml:8: gateway.connections[1].udp_port = 5: must be a port of its own: "
            "gateway.connections[0].udp_port is the same"
        ),
    ),
    (
        "[metrics]\nprocessor_port = 9109",
        (
            "gridsense.toml:2: metrics.gateway_port = 9109: must be a port of its own, or 0: metrics.processor_port is "
            "the same"
        ),
    ),
    (
        '[store]\npath = "./gridsense-log.db"',
        'gridsense.toml:2: store.path = "./gridsense-log.db": must be another file than the log\'s',
    ),
    ("simulate.files = 'x'", 'gridsense.toml:1: simulate.files = "x": must be a list of texts'),
    ("simulate.files = [1]", "gridsense.toml:1: simulate.files = [1]: must be a list of texts"),
    (
        "[simulate]\nconcentrators = 3",
        "gridsense.toml:2: simulate.pmus_each = 0: must be above 0: simulate.concentrators is",
    ),
    (
        "[simulate]\nconcentrators = 3\npmus_each = 4\nsplit = true",
        "gridsense.toml:4: simulate.split = true: must be false where concentrators are made",
    ),
]


@pytest.mark.parametrize(("text", "line"), BROKEN)
def test_a_mistake_names_place_key_value_and_what_must_be(file: Path, text: str, line: str) -> None:
    assert mistakes(file, text) == [line]


def test_all_mistakes_are_told_at_once_in_the_order_of_the_file(file: Path) -> None:
    text = (
        '[metrics]\ngateway_port = 9108\n[log]\nretention = "x"\n'
        "[[gateway.connections]]\nport = 4711\n"
        "[[gateway.connections]]\nname = 'b'\nport = 0\nhots = 1\n"
        "[[gateway.connections]]\nname = 'b'\n"
        "[align]\ngap = 'x'\n"
    )
    told = mistakes(file, text, "archive.folder=", "nonsense", GRIDSENSE_ALIGN__DEAD="soon")
    assert [line.split(": ")[0] for line in told] == [
        "gridsense.toml:2",
        "gridsense.toml:4",
        "gridsense.toml:5",
        "gridsense.toml:9",
        "gridsense.toml:10",
        "gridsense.toml:12",
        "gridsense.toml:14",
        "GRIDSENSE_ALIGN__DEAD",
        "--set archive.folder=",
        "--set nonsense",
    ]
    assert told[-3] == 'GRIDSENSE_ALIGN__DEAD: align.dead = "soon": must be a duration such as 60s, 5min or 72h'
    assert told[-1] == "--set nonsense: must be key=value, such as log.retention=72h"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a = \n", "gridsense.toml:1:5: this is no TOML: Invalid value"),
        ("a = 1\na = 2\n", "gridsense.toml:2:6: this is no TOML: Cannot overwrite a value"),
        ("\n\nx = '''abc", "gridsense.toml:3:1: this is no TOML: Expected \"'''\" (at end of document)"),
    ],
)
def test_broken_toml_is_told_with_line_and_column(file: Path, text: str, line: str) -> None:
    assert mistakes(file, text) == [line]


def test_a_file_that_is_not_there_says_what_writes_one(file: Path) -> None:
    with pytest.raises(UsageError, match=r"gridsense\.toml: there is no such file; `gridsense init gridsense\.toml`"):
        load(file)


def test_a_file_that_cannot_be_read_or_is_no_text_is_told(file: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read: Is a directory"):
        load(file.absolute().parent)
    file.write_bytes(b"name = '\xff'")
    with pytest.raises(UsageError, match=r"gridsense\.toml: is not UTF-8 at byte 8"):
        load(file)


def test_absurd_numbers_and_depths_are_told_like_other_mistakes(file: Path) -> None:
    digits, depth = "1" * 5000, "[" * 100_000
    (line,) = mistakes(file, f"gateway.max_pmus = {digits}")
    assert line.startswith("gridsense.toml:1:1: this is no TOML: Exceeds the limit")
    (line,) = mistakes(file, f"simulate.files = {depth}")
    assert line.startswith("gridsense.toml:1:1: this is no TOML: ")
    told = mistakes(file, "", f"gateway.max_pmus={digits}", f"log.retention_size={digits}", f"log.retention={digits}")
    assert [line[-30:].rpartition(": ")[2] for line in told] == [
        "must be a whole number",
        "must be at most ten years",
        "must be at most 1 EiB",
    ]


def test_a_long_value_and_a_strange_key_stay_on_one_short_line(file: Path) -> None:
    (line,) = mistakes(file, f"name = {list(range(1000))}")
    assert line.startswith("gridsense.toml:1: name = [0, 1, 2")
    assert line.endswith("...: must be text in quotes")
    assert len(line) < 150
    (line,) = mistakes(file, '"new\\nline.key" = 1')
    assert line.startswith('gridsense.toml:1: "new\\nline.key" = 1: unknown key; there are name')


# --- the file < the environment < the command line


def test_the_command_line_goes_before_the_environment_before_the_file(file: Path) -> None:
    text = 'name = "f"\n[log]\nretention = "1h"\nretention_size = "1GiB"\n[align]\ngap = 5'
    loaded = read(
        file,
        text,
        "log.retention=3h",
        GRIDSENSE_LOG__RETENTION="2h",
        GRIDSENSE_LOG__RETENTION_SIZE="2GiB",
        GRIDSENSE_GATEWAY__MAX_PMUS="17",
        GRIDSENSE_METRICS__HOST="::1",
    )
    assert (loaded.config.log.retention, loaded.config.log.retention_size) == (3 * 3600, 2 << 30)
    assert (loaded.config.name, loaded.config.align.gap, loaded.config.gateway.max_pmus) == ("f", 5.0, 17)
    given_by = {key: origin for key, origin in loaded.origins.items() if origin != "default"}
    assert given_by == {
        "name": "gridsense.toml:1",
        "log.retention": "--set log.retention=3h",
        "log.retention_size": "GRIDSENSE_LOG__RETENTION_SIZE",
        "align.gap": "gridsense.toml:6",
        "gateway.max_pmus": "GRIDSENSE_GATEWAY__MAX_PMUS",
        "metrics.host": "GRIDSENSE_METRICS__HOST",
    }
    assert list(loaded.origins) == [dotted(key) for key, _ in values(loaded.config)]


def test_text_stays_text_and_everything_else_is_read_as_toml(file: Path) -> None:
    loaded = read(
        file,
        "",
        "name=7",
        "quality.use_sync_bit=false",
        "quality.usual_voltage=[0.5, 2]",
        "detection.false_alarms_per_day=2",
        'simulate.files=["a", "b"]',
        "detection.learn=40",
        "gateway.buffer_size=2000000",
    )
    config = loaded.config
    assert (config.name, config.quality.use_sync_bit, config.quality.usual_voltage) == ("7", False, (0.5, 2.0))
    assert (config.detection.false_alarms_per_day, config.detection.learn) == (2.0, 40.0)
    assert (config.simulate.files, config.gateway.buffer_size) == (("a", "b"), 2_000_000)


def test_one_key_of_one_connection_can_be_set(file: Path) -> None:
    text = f"{ONE}[[gateway.connections]]\nname = 'two'\nport = 1\n"
    loaded = read(file, text, "gateway.connections[1].port=2", GRIDSENSE_GATEWAY__CONNECTIONS__0__ID_CODE="5")
    assert [(it.name, it.port, it.id_code) for it in loaded.config.gateway.connections] == [
        ("one", 4712, 5),
        ("two", 2, 0),
    ]
    assert loaded.origins["gateway.connections[1].name"] == "gridsense.toml:4"
    assert loaded.origins["gateway.connections[1].port"] == "--set gateway.connections[1].port=2"
    assert loaded.origins["gateway.connections[0].id_code"] == "GRIDSENSE_GATEWAY__CONNECTIONS__0__ID_CODE"
    assert loaded.origins["gateway.connections[0].port"] == "default"
    assert mistakes(file, text, "gateway.connections[2].port=2") == [
        "--set gateway.connections[2].port=2: gateway.connections has 2 entries, numbered from 0; there is no [2]"
    ]


def test_all_connections_can_be_given_in_one_variable(file: Path) -> None:
    name = "GRIDSENSE_GATEWAY__CONNECTIONS"
    loaded = read(file, ONE, **{name: '[{name = "x", port = 1}, {name = "y", port = 2}]'})
    assert [(it.name, it.port) for it in loaded.config.gateway.connections] == [("x", 1), ("y", 2)]
    assert loaded.origins["gateway.connections[1].port"] == name
    told = mistakes(file, ONE, **{name: '[{name = "x", port = 1}, {name = "y", port = 0}]'})
    assert told == [f"{name}: gateway.connections[1].port = 0: must be at least 1"]


def test_an_unknown_variable_or_word_is_a_mistake(file: Path) -> None:
    assert mistakes(file, "", "log.urll=x", GRIDSENSE_STORE__PAHT="x") == [
        'GRIDSENSE_STORE__PAHT: store.paht = "x": unknown key; did you mean `path`?',
        '--set log.urll=x: log.urll = "x": unknown key; did you mean `url`?',
    ]
    assert mistakes(file, "log.url = 'sqlite:x'", "log.url.path=y") == [
        '--set log.url.path=y: log.url = { path = "y" }: must be text in quotes'
    ]


def test_variables_that_an_orchestrator_sets_are_only_told(file: Path) -> None:
    # Kubernetes sets such for a service called "gridsense"
    loaded = read(file, CODED, GRIDSENSE_PORT="tcp://10.0.0.1:9108", GRIDSENSE_SERVICE_HOST="10.0.0.1", OTHER="x")
    assert loaded.warnings == (
        "GRIDSENSE_PORT, GRIDSENSE_SERVICE_HOST: no setting, ignored; log.url would be GRIDSENSE_LOG__URL",
    )


def test_the_process_environment_is_read_where_none_is_given(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRIDSENSE_NAME", "north")
    file.write_text("")
    assert load(file).config.name == "north"
    assert load(None).origins["name"] == "GRIDSENSE_NAME"
    assert load(None, environ={}).config == Config()


# --- secrets

SASL = '[kafka]\nprotocol = "SASL_SSL"\nusername = "g"\n'
WORD = "hunter2"


def test_a_password_comes_from_the_environment_and_is_never_shown(
    file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRIDSENSE_KAFKA__PASSWORD", WORD)
    file.write_text(SASL)
    loaded = load(file)
    assert loaded.config.kafka.password.get_secret_value() == WORD
    assert loaded.origins["kafka.password"] == "GRIDSENSE_KAFKA__PASSWORD"
    assert WORD not in repr(loaded)
    assert WORD not in str(loaded.config)
    check_config(file)
    check_config(file, json=True)
    told = capsys.readouterr()
    assert WORD not in told.out + told.err
    rows = {line.split()[0]: line.split() for line in told.out.splitlines() if line.strip()}
    assert rows["kafka.password"][1:] == ['"***"', "GRIDSENSE_KAFKA__PASSWORD"]
    assert rows["kafka.username"][1:] == ['"g"', "gridsense.toml:3"]
    assert '"password":"***"' in told.out


def test_a_password_of_digits_is_text(file: Path) -> None:
    variables = {"GRIDSENSE_KAFKA__PASSWORD": "1234"}
    config = read(file, SASL, **variables).config
    assert config.kafka.password.get_secret_value() == "1234"


@pytest.mark.parametrize(
    ("text", "override", "line"),
    [
        (
            f"{SASL}password = '{WORD}'",
            "",
            (
                'gridsense.toml:4: kafka.password = "***": must not stand in a file: set GRIDSENSE_KAFKA__PASSWORD, or '
                "kafka.password_file"
            ),
        ),
        (
            SASL,
            f"kafka.password={WORD}",
            (
                '--set kafka.password=***: kafka.password = "***": must not stand on the command line, where others '
                "can read it: set GRIDSENSE_KAFKA__PASSWORD, or kafka.password_file"
            ),
        ),
    ],
)
def test_a_password_in_a_file_or_on_the_command_line_is_refused(
    file: Path, text: str, override: str, line: str
) -> None:
    told = mistakes(file, text, *filter(None, [override]))
    assert line in told
    assert WORD not in "".join(told)


@pytest.mark.parametrize(
    ("text", "override", "shown"),
    [
        (f"{SASL}pasword = '{WORD}'", "", 'kafka.pasword = "***": unknown key; did you mean `password`?'),
        (f"{SASL}password = ['{WORD}']", "", 'kafka.password = ["***"]: must be text in quotes'),
        (f"[kafka.security]\nsecret = '{WORD}'", "", 'kafka.security = { secret = "***" }: unknown key'),
        (f"kafka_password = '{WORD}'", "", 'kafka_password = "***": unknown key; did you mean `kafka.password`?'),
        (f"log.url = 'kafka://g:{WORD}@b:9092'", "", 'log.url = "kafka://***@b:9092": must hold no credentials'),
        ("", f"log.url=kafka://g:{WORD}@b:9092", "--set log.url=kafka://***@b:9092: log.url = "),
        ("", f'kafka={{pasword="{WORD}"}}', '--set kafka=***: kafka.pasword = "***": unknown key'),
        ("", f"kafka.sasl.password={WORD}", "--set kafka.sasl.password=***: kafka.sasl = "),
    ],
)
def test_what_was_meant_as_a_secret_is_not_shown(file: Path, text: str, override: str, shown: str) -> None:
    told = "\n".join(mistakes(file, text, *filter(None, [override])))
    assert shown in told
    assert WORD not in told


# --- lines


LINES = """\
# a comment
name = "x" # = [[
[gateway] # [not]
connect = 1
"answer" = '''
[metrics]
host = "no"
'''

[[gateway.connections]]
name = "one"
[log]
retention_size = "1MiB"
[[gateway.connections]]
  name = "two"
  port = 5
[simulate]
files = [
  "a", # ]
  # [[gateway.connections]]
  "b",
]
loop = true
"""


def test_each_key_is_found_on_its_line() -> None:
    assert {dotted(key): line for key, line in _lines(LINES).items()} == {
        "name": 2,
        "gateway": 3,
        "gateway.connect": 4,
        "gateway.answer": 5,
        "gateway.connections": 10,
        "gateway.connections[0]": 10,
        "gateway.connections[0].name": 11,
        "log": 12,
        "log.retention_size": 13,
        "gateway.connections[1]": 14,
        "gateway.connections[1].name": 15,
        "gateway.connections[1].port": 16,
        "simulate": 17,
        "simulate.files": 18,
        "simulate.files[0]": 18,
        "simulate.files[1]": 18,
        "simulate.loop": 23,
    }


names = st.from_regex(r"[a-c]{1,2}", fullmatch=True)
trees = st.recursive(
    st.integers(0, 9) | st.text(st.sampled_from("ab]['\"\n#="), max_size=5),
    lambda inner: st.dictionaries(names, inner, max_size=4),
    max_leaves=12,
)
tables = st.dictionaries(names, trees | st.lists(st.dictionaries(names, trees, max_size=3), min_size=1, max_size=3))


def written(table: dict[str, Any], path: tuple[str, ...], key: tuple[str | int, ...]) -> Iterator[tuple[str, Any]]:
    """Write a table as one would: a line or several for each statement, with the places that it begins."""
    for name, value in table.items():
        if not isinstance(value, dict | list):
            several = isinstance(value, str) and "\n" in value and '"""' not in value and not value.endswith('"')
            text = f'"""\n{value}"""' if several else toml_text(value)
            yield f"{name} = {text}", (*key, name)
    for name, value in table.items():
        header = ".".join((*path, name))
        if isinstance(value, dict):
            yield f"\n# [{header}\n[{header}]", (*key, name)
            yield from written(value, (*path, name), (*key, name))
        elif isinstance(value, list):
            for place, item in enumerate(value):
                yield f"[[{header}]]", (*key, name, place)
                yield from written(item, (*path, name), (*key, name, place))


@given(tables)
@settings(max_examples=60, deadline=None)
def test_lines_are_right_for_any_table(table: dict[str, Any]) -> None:
    text, expected = "", {}
    for statement, key in written(table, (), ()):
        expected[key] = text.count("\n") + 1 + (2 if statement.startswith("\n#") else 0)
        text += statement + "\n"
    assert tomllib.loads(text) == table
    found = _lines(text)
    assert {key: found[key] for key in expected} == expected


def test_long_inline_lists_are_found_in_good_time() -> None:
    rows = "".join(f'  {{ name = "pmu {n}", port = {n} }},\n' for n in range(4000))
    found = _lines(f"[gateway]\nconnections = [\n{rows}]\nflush_ms = 3\n")
    assert found["gateway", "flush_ms"] == 4004
    assert found["gateway", "connections", 3999, "port"] == 2


# --- any valid configuration survives being written and read


def bounds(info: FieldInfo) -> tuple[float, float]:
    low, high = -math.inf, math.inf
    for it in info.metadata:
        low = max(low, it.gt + 0.001 if isinstance(it, Gt) else it.ge if isinstance(it, Ge) else low)
        high = min(high, it.le if isinstance(it, Le) else high)
    return low, high


words = st.text(st.characters(exclude_categories=("C", "Z"), exclude_characters="#/"), min_size=1, max_size=12)
SPECIAL = {
    "url": words.filter(lambda text: not text.startswith(("//", ":"))).map("sqlite:log-{}".format),
    "path": words.map("store-{}".format),
    "host": st.sampled_from(["127.0.0.1", "pmu-7.example", "::1"]),
    "usual_voltage": st.tuples(st.floats(0.1, 0.9), st.floats(0.91, 5)).map(list),
    "files": st.lists(words, max_size=3),
    "scorers": st.lists(st.sampled_from(pipeline.SCORERS), min_size=1, max_size=3),
    # what other keys must agree with is left alone, or made below
    "backoff_min": st.floats(0.001, 1),
    "backoff_max": st.floats(1, 100),
    "processor_port": st.integers(1, 10),
    "gateway_port": st.integers(11, 20),
    "archive_port": st.just(0),
    "split": st.just(value=False),
    "concentrators": st.integers(1, 5),
    "pmus_each": st.integers(1, 5),
    "protocol": st.just("PLAINTEXT"),
    **dict.fromkeys(("username", "password", "password_file", "token_file", "ca_file"), st.just("")),
    **dict.fromkeys(("certificate_file", "key_file", "key_password_file"), st.just("")),
    "prefix": st.from_regex(r"[a-z0-9._-]{0,9}", fullmatch=True),
    "regions": st.lists(words, unique=True, max_size=3),
    "replication": st.integers(3, 5),
    "min_in_sync": st.integers(0, 3),
    "mark": st.floats(0.01, 1),
    "idle": st.floats(1.5, 100),
    "transport": st.sampled_from(["tcp", "tcp-spontaneous", "udp-commanded"]),
}


def one(name: str, info: FieldInfo) -> st.SearchStrategy[Any]:
    """Make values of a key."""
    low, high = bounds(info)
    annotation: Any = info.annotation
    if name in SPECIAL:
        return SPECIAL[name]
    if get_origin(annotation) is Literal:
        return st.sampled_from(get_args(annotation))
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return some(annotation)
    plain = {
        bool: st.booleans(),
        int: st.integers(math.ceil(max(low, 0)), int(min(high, 1 << 50))),
        float: st.floats(max(low, 0), min(high, 1e6)),
        str: words,
    }
    return plain[annotation]


def some(kind: type[BaseModel]) -> st.SearchStrategy[dict[str, Any]]:
    """Make tables of a section: every key at will, save those that need each other."""
    made = {name: one(name, info) for name, info in kind.model_fields.items() if name != "connections"}
    together = {name: made.pop(name) for name in ("concentrators", "pmus_each") if name in made}
    return st.fixed_dictionaries(together, optional=made)


def connections(labels: list[str]) -> st.SearchStrategy[list[dict[str, Any]]]:
    return st.tuples(
        *(
            st.fixed_dictionaries(
                {"name": st.just(name), "port": st.just(n + 1)},
                optional={"id_code": st.just(n), "transport": SPECIAL["transport"], "host": SPECIAL["host"]},
            )
            for n, name in enumerate(labels)
        )
    ).map(list)


lists = st.lists(words, unique=True, max_size=3).flatmap(connections)


@given(some(Config), lists)
@settings(max_examples=60, deadline=None)
def test_any_configuration_written_and_read_is_the_same(
    tmp_path_factory: pytest.TempPathFactory, tree: dict[str, Any], rows: list[dict[str, Any]]
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.toml"
    config = Config.model_validate({**tree, "gateway": {**tree.get("gateway", {}), "connections": rows}})
    text = "".join(f"{name} = {toml_text(value)}\n" for name, value in config.model_dump(mode="json").items())
    path.write_text(text, encoding="utf-8")
    loaded = load(path, environ={})
    assert loaded.config == config.in_folder(path.parent)
    assert loaded.config.model_dump() == config.model_dump()
    assert "default" not in loaded.origins.values()


@given(st.floats(0, 1e8), st.integers(0, 1 << 60))
@settings(max_examples=100, deadline=None)
def test_durations_and_sizes_survive_being_written(duration_s: float, size_bytes: int) -> None:
    tree = {"align": {"gap": duration_text(duration_s)}, "log": {"retention_size": size_text(size_bytes)}}
    config = Config.model_validate(tree)
    assert config.align.gap == duration_s
    assert config.log.retention_size == size_bytes


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("0", 0),
        ("12", 12),
        ("12B", 12),
        ("256kB", 256_000),
        ("1.5 MiB", 3 << 19),
        ("50GiB", 50 << 30),
        ("2tb", 2 * 10**12),
    ],
)
def test_sizes_are_read_with_their_unit(text: str, size_bytes: int) -> None:
    assert Config.model_validate({"log": {"retention_size": text}}).log.retention_size == size_bytes


# --- what it is turned into


def test_transports_are_those_of_the_gateway_and_the_simulator() -> None:
    assert get_args(Transport) == tuple(gateway.Transport) == tuple(server.Transport)


def test_the_defaults_are_those_of_the_parts() -> None:
    assert Config().pipeline_settings() == pipeline.Settings(scorers=("quadratic", "sequence"), model=load_model())


def test_the_model_is_loaded_once_where_it_is_wanted_and_refused_in_words(file: Path) -> None:
    config = read(file, '[scoring]\nscorers = ["sequence", "quadratic"]').config
    assert config.scoring.scorers == ("quadratic", "sequence"), "the order does not matter"
    assert config.model() is config.pipeline_settings().model
    assert read(file, '[scoring]\nscorers = ["quadratic"]').config.pipeline_settings().model is None
    copy = file.parent / "models" / "mine"
    shutil.copytree(BUNDLED, copy)
    config = read(file, '[scoring]\nmodel = "models/mine"').config
    assert config.model_path == copy.absolute()
    assert config.model() == load_model()
    (copy / "spec.json").write_text("{}", encoding="utf-8")
    config = read(file, '[scoring]\nmodel = "models/mine"').config
    with pytest.raises(ArtifactError, match=r"spec\.json"):
        config.pipeline_settings()
    assert run(["check-config", str(file)]) == 3
    assert run(["run", "--config", str(file)]) == 3
    assert run(["check-config", str(file), "--set", 'scoring.scorers=["quadratic"]']) == 0


def test_every_key_of_the_pipeline_arrives() -> None:
    def other(value: Any) -> Any:
        match value:
            case bool():
                return not value
            case "angles":
                return "phasors"
            case str():
                return f"{value} other"
            case tuple():
                return (0.5, 1.5)
            case _:
                return value + 1

    default = Config()
    changed = {
        name: {key: other(value) for key, value in getattr(default, name).model_dump().items()}
        for name in ("detection", "align", "quality")
    }
    plain, moved = pipeline.Settings(), Config.model_validate({"name": "other", **changed}).pipeline_settings()
    assert moved.source == "other"
    assert (moved.learn_s, moved.persist_s) == (plain.learn_s + 1, plain.persist_s + 1)
    assert moved.detection.false_alarms_per_day == plain.detection.false_alarms_per_day + 1
    for part in ("align", "quality"):
        before, after = getattr(plain, part), getattr(moved, part)
        for name in before.__slots__:
            assert getattr(after, name) == other(getattr(before, name)), f"{part}.{name} does not arrive"


def test_a_log_in_kafka_has_servers_and_no_file(file: Path) -> None:
    config = read(file, 'log.url = "kafka://localhost:9092,[::1]:9093"').config
    assert config.log_servers == ("localhost:9092", "[::1]:9093")
    with pytest.raises(UsageError, match="this works on the embedded log alone"):
        _ = config.log_path
    assert read(file, "").config.log_servers == ()
    check_config(file, overrides=("log.url=kafka://127.0.0.1:9092",))


def test_the_key_of_a_connection_names_its_region(file: Path) -> None:
    config = read(file, f"{ONE}region = 'north'\n[[gateway.connections]]\nname = 'two'\nport = 1").config
    assert [it.key for it in config.gateway.connections] == ["north/one", "two"]
    assert [it.name for it in connection_settings(config.gateway.connections)] == ["north/one", "two"]


def test_paths_count_from_the_folder_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "grid.toml"
    outside = tmp_path.parent / "store.db"
    file.write_text(f'[store]\npath = "{outside}"\n[archive]\nfolder = "a/b"\n[simulate]\nfiles = ["c"]\n')
    config = load(file, environ={}).config
    assert (config.log_path, config.store_path) == (tmp_path / "gridsense-log.db", outside)
    assert (config.archive_path, config.simulate_paths) == (tmp_path / "a" / "b", (tmp_path / "c",))
    assert config.retention() == Retention(age_s=72 * 3600.0, size=50 << 30)
    assert load(None, environ={}).config.log_path == Path("gridsense-log.db").absolute()


# --- what is allowed and odd

FAR = "log.url = 'kafka://b:9092'\n[kafka]"
NEAR = "log.url = 'kafka://127.0.0.1:9092'\n[kafka]"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[metrics]\nhost = '0.0.0.0'", "everybody who reaches this machine"),
        ("[log]\nretention = 0\nretention_size = 0", "grows until the disk is full"),
        ("[scoring]\nscorers = ['quadratic']\nmodel = 'mine'", "scoring.model is not used"),
        ("[log]\nretention = 2", "shorter than store.snapshot_every"),
        ("[log]\nretention = '5min'", "shorter than archive.file_span"),
        ("[archive]\nretention = '2h'", "shorter than archive.compact_after"),
        (f"{ONE}udp_port = 7", "gateway.connections[0].udp_port is not used with transport tcp"),
        (ONE, "gateway.connections[0].id_code is 0: with transport tcp commands carry it"),
        ("", "gateway.connections is empty"),
        ("[kafka]\ngroup = 'g'", "[kafka] is not used: log.url is sqlite:gridsense-log.db"),
        (f"{FAR}\nallow_plaintext = true", "everything goes unencrypted to b"),
        (f"{FAR}\nprotocol = 'SSL'\nreplication = 2", "too few copies for the death of a broker"),
        (f"{FAR}\nprotocol = 'SSL'\ncheck_hostname = false", "can stand in for a broker"),
        (f"{NEAR}\npredictions = true\n[scoring]\nscorers = ['quadratic']", "kafka.predictions has nothing to write"),
        (f"{NEAR}\nregions = ['a']\n{ONE}region = 'b'", "kafka.regions does not name b"),
    ],
)
def test_what_is_odd_is_told(file: Path, text: str, words: str) -> None:
    full = text if "connections" in text or not text else f"{text}\n{ONE}"
    assert any(words in warning for warning in read(file, full).warnings)


def test_nothing_is_odd_about_the_example(file: Path) -> None:
    assert read(file, example()).warnings == ()


# --- the example and the schema


def test_every_key_is_documented() -> None:
    silent = [
        f"{kind.__name__}.{name}"
        for kind in sections(Config)
        for name, info in kind.model_fields.items()
        if not (info.description or (isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel)))
    ]
    assert silent == []
    assert all(kind.__doc__ for kind in sections(Config))


def test_the_example_is_all_defaults_and_its_connection(file: Path) -> None:
    config = read(file, example()).config
    expected = Config(gateway=GatewaySection(connections=(EXAMPLE_CONNECTION,)))
    assert config.model_dump() == expected.model_dump()


def test_every_comment_of_the_example_that_is_a_key_holds_its_default(file: Path) -> None:
    opened = "".join(
        line.removeprefix("#") if line.startswith("#") and line[1:2].islower() else line
        for line in example().splitlines(keepends=True)
    )
    loaded = read(file, opened)
    assert loaded.config.model_dump() == read(file, example()).config.model_dump()
    assert "default" not in loaded.origins.values(), "a key is missing in the example"


def test_the_schema_knows_every_key_of_the_example() -> None:
    document = json.loads(schema())

    def check(node: Any, rule: dict[str, Any]) -> None:
        rule = document["$defs"][rule["$ref"].rpartition("/")[2]] if "$ref" in rule else rule
        kinds = {"object": dict, "array": list, "string": str, "integer": int, "number": float, "boolean": bool}
        assert any(isinstance(node, kinds[it["type"]]) for it in rule.get("anyOf", [rule])), (node, rule)
        if isinstance(node, dict):
            assert not rule["additionalProperties"]
            assert set(rule.get("required", ())) <= set(node) <= set(rule["properties"])
            for name, value in node.items():
                check(value, rule["properties"][name])
        elif isinstance(node, list):
            for place, value in enumerate(node):
                check(value, rule["items"] if "items" in rule else rule["prefixItems"][place])
        elif "enum" in rule:
            assert node in rule["enum"]

    full = Config(gateway=GatewaySection(connections=(EXAMPLE_CONNECTION,)))
    check(tomllib.loads(example()), document)
    check(full.model_dump(mode="json"), document)


def test_the_schema_describes_every_key() -> None:
    document = json.loads(schema())
    for rule in (document, *document["$defs"].values()):
        assert rule["description"]
        assert all("description" in inner or "$ref" in inner for inner in rule["properties"].values())


@pytest.mark.parametrize(("name", "text"), [("gridsense.example.toml", example), ("gridsense.schema.json", schema)])
def test_deploy_holds_what_the_code_writes(name: str, text: Any) -> None:
    assert (DEPLOY / name).read_text(encoding="utf-8") == text(), f"write deploy/{name} anew with gridsense init"


# --- the commands


def test_init_writes_a_file_that_check_config_reads(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    init()
    assert file.read_text(encoding="utf-8") == example()
    assert file.read_text(encoding="utf-8").startswith("#:schema ./gridsense.schema.json\n")
    capsys.readouterr()
    check_config()
    told = capsys.readouterr()
    assert '"sqlite:gridsense-log.db"' in told.out
    assert "pmu-1" in told.out
    assert told.err == ""


def test_init_does_not_write_over_a_file(file: Path) -> None:
    file.write_text("mine")
    with pytest.raises(UsageError, match=r"gridsense\.toml is there already"):
        init()
    assert file.read_text() == "mine"
    init(force=True)
    assert file.read_text(encoding="utf-8") == example()


def test_init_prints_the_schema(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    init(schema=True)
    assert json.loads(capsys.readouterr().out) == json.loads(schema())
    assert not file.exists()


def test_check_config_shows_each_value_and_where_it_came_from(
    file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file.write_text(f'[log]\nretention = "24h"\n{ONE}host = "b"\n')
    monkeypatch.setenv("GRIDSENSE_ALIGN__GAP", "2min")
    check_config(file, overrides=("metrics.host=0.0.0.0", "gateway.connections[0].port=4713"))
    told = capsys.readouterr()
    rows = {line.split()[0]: line.split() for line in told.out.splitlines() if line.strip()}
    assert rows["log.retention"][1:] == ['"24h"', "gridsense.toml:2"]
    assert rows["align.gap"][1:] == ['"2min"', "GRIDSENSE_ALIGN__GAP"]
    assert rows["align.dead"][1:] == ['"2s"', "default"]
    assert rows["[0]"][1:4] == ["one", "b", "4713"]
    assert rows["[0]"][-3:] == ["gridsense.toml:4,", "--set", "gateway.connections[0].port=4713"]
    assert "warning: metrics.host = 0.0.0.0: everybody" in told.err


def test_check_config_prints_json(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file.write_text(CODED)
    check_config(file, overrides=("log.retention=0",), json=True)
    report = json.loads(capsys.readouterr().out)
    assert report["config"]["gateway"]["connections"][0]["name"] == "one"
    assert report["config"]["log"]["retention"] == "0"
    assert report["origins"]["log.retention"] == "--set log.retention=0"
    assert report["warnings"] == []


def test_check_config_raises_every_mistake(file: Path) -> None:
    file.write_text("name = 1\nlogg = 1\n")
    with pytest.raises(UsageError, match=r"gridsense\.toml:1: name = 1.*\n.*gridsense\.toml:2: logg = 1"):
        check_config(file)

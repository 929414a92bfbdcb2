"""Tries every way into a secured Kafka, right and wrong, with every command; and which rights each service needs.

The broker asks who one is, over TLS: by password (SCRAM), by a bearer token, or by a certificate; access lists say what
one may do. With the right credentials every command must work. With wrong ones each must end with exit code 4, and say
in one sentence where, who, and which key to change: never a secret. Only a gateway goes on where nobody answers: what
it receives is kept on its disk until somebody does.

Then there is a user for each service, with no rights but those of `deploy/kafka/README.md`: it must work with them, and
complain without any one of them, or else the list is too long. The exit status is 1 where anything is otherwise, 2
where it could not be tried. Needs openssl, Java 17 and, the first time, Maven.

  secure_kafka.py
  secure_kafka.py --quick     # each wrong way with one command, and no rights are withdrawn
"""

from __future__ import annotations

import argparse
import json
import os
import socketserver
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple, cast

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

try:
    from kafka.admin import (
        ACL,
        ACLOperation,
        ACLPermissionType,
        ACLResourcePatternType,
        ResourcePattern,
        ResourceType,
    )
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Column, Table

    from gridsense.cli import EXIT_OK, EXIT_PEER
    from gridsense.config import load
    from gridsense.errors import GridSenseError
    from gridsense.log_opening import kafka_settings, topic_specs
    from scripts.broker.cluster import BrokerError, Cluster
    from scripts.broker.credentials import LIVES_S, Credentials, token
    from scripts.broker.jars import KafkaMissingError
    from scripts.faults.line import PATIENCE_S, CheckError, Service, free_port, wait_until, write_settings
    from streams.errors import LogError, StreamsError
    from streams.kafka import topics
    from streams.kafka.log import KafkaLog
    from streams.kafka.settings import KafkaSettings
    from streams.log import (
        CONFIGURATIONS,
        DEAD_LETTERS,
        EVENTS,
        FRAMES,
        JOIN_STATE,
        LEASE,
        PREDICTIONS,
        REGIONAL,
        SCORES,
        STATE,
        STATUS,
        Record,
    )
    from tests.reference.recorded import recorded
    from tests.reference.small_grid import small_grid
except ImportError:
    own = ROOT / ".venv" / "bin" / "python"
    if not own.exists() or Path(sys.prefix) == own.parents[1]:
        raise
    os.execv(own, [str(own), *sys.argv])  # noqa: S606 - any Python may start this; the project's own runs it

GATEWAY, PROCESSOR, WATCH, CREATE = "gateway", "run", "watch", "topics create"
COMMANDS: dict[str, tuple[str, ...]] = {
    GATEWAY: ("gateway",),
    PROCESSOR: ("run", "--once"),
    "archive": ("archive", "--once"),
    WATCH: ("watch", "--once"),
    "replay": ("replay", "frames.bin", "--speed", "0"),
    "topics check": ("topics", "check"),
    CREATE: ("topics", "create"),
}
NOBODY = "nobody there"
GROUP = "gridsense"
"""As kafka.group is as a rule; each try has one that begins so."""
WORK_S = 5.0
"""For so long a service goes on: it is seen only then whether it can do everything."""
NO_RIGHT = "no right to do this"

WORKS = {GATEWAY: "receiving from", PROCESSOR: "partition 0: "}
"""What a service says when it has begun to work."""

Operation = ACLOperation
Kind = ResourceType


class Way(NamedTuple):
    """A way to connect.

    Attributes
    ----------
    name
        For people.
    servers
        Where.
    keys
        Of [kafka].
    told
        What a refusal must say; empty where nothing is to be refused.
    """

    name: str
    servers: str
    keys: str
    told: tuple[str, ...] = ()


class Right(NamedTuple):
    """What an access list allows.

    Attributes
    ----------
    kind
        Of what is accessed.
    name
        Its name, without the prefix of the installation.
    operation
        What may be done.
    prefixed
        Whether everything that begins so is meant.
    """

    kind: Kind
    name: str
    operation: Operation
    prefixed: bool = False

    def acl(self, user: str, prefix: str) -> ACL:
        """Write it as Kafka does.

        Parameters
        ----------
        user
            Who has it.
        prefix
            Of the installation.

        Returns
        -------
        ACL
            From any host.
        """
        pattern = ACLResourcePatternType.PREFIXED if self.prefixed else ACLResourcePatternType.LITERAL
        place = ResourcePattern(self.kind, prefix + self.name, pattern)
        return ACL(f"User:{user}", "*", self.operation, ACLPermissionType.ALLOW, place)

    def __str__(self) -> str:
        """Name it."""
        kind = {Kind.TOPIC: "topic", Kind.GROUP: "group", Kind.TRANSACTIONAL_ID: "transactional id"}[self.kind]
        return f"{kind} {self.name}{'*' if self.prefixed else ''}: {self.operation.name.lower().replace('_', ' ')}"


def _topics(operation: Operation, *names: str) -> tuple[Right, ...]:
    return tuple(Right(Kind.TOPIC, name, operation) for name in names)


def _everything(*operations: Operation) -> tuple[Right, ...]:
    return tuple(Right(Kind.TOPIC, "pmu.", operation, prefixed=True) for operation in operations)


RIGHTS: dict[str, tuple[Right, ...]] = {
    GATEWAY: (
        *_topics(Operation.WRITE, FRAMES, CONFIGURATIONS, DEAD_LETTERS, STATUS),
        *_topics(Operation.READ, CONFIGURATIONS, LEASE),
        Right(Kind.GROUP, f"{GROUP}-gateway-", Operation.READ, prefixed=True),
        Right(Kind.TRANSACTIONAL_ID, f"{GROUP}-gateway-", Operation.WRITE, prefixed=True),
    ),
    PROCESSOR: (
        *_topics(Operation.READ, FRAMES, CONFIGURATIONS, REGIONAL, STATE, JOIN_STATE),
        *_topics(Operation.WRITE, FRAMES, REGIONAL, STATE, JOIN_STATE),
        *_topics(Operation.WRITE, EVENTS, SCORES, PREDICTIONS, DEAD_LETTERS, STATUS),
        Right(Kind.GROUP, GROUP, Operation.READ, prefixed=True),
        Right(Kind.TRANSACTIONAL_ID, f"{GROUP}", Operation.WRITE, prefixed=True),
    ),
    "archive": (*_topics(Operation.READ, FRAMES, CONFIGURATIONS), Right(Kind.GROUP, "archive", Operation.READ)),
    WATCH: _topics(Operation.READ, EVENTS, STATUS),
    "replay": _topics(Operation.WRITE, FRAMES, CONFIGURATIONS),
    "topics check": _everything(Operation.DESCRIBE, Operation.DESCRIBE_CONFIGS),
    CREATE: _everything(Operation.CREATE, Operation.DESCRIBE),
}
"""What each command needs, and no more."""


class Outcome(NamedTuple):
    """What became of a command.

    Attributes
    ----------
    status
        Its exit code.
    said
        Lines on stderr and stdout.
    worked
        It did what it is for.
    """

    status: int
    said: list[str]
    worked: bool

    @property
    def fine(self) -> bool:
        """It did everything, and had nothing to complain of."""
        return self.worked and self.status == EXIT_OK and not self.complains

    @property
    def complains(self) -> bool:
        """It said that it has no right to something."""
        return any(NO_RIGHT in line for line in self.said)


class Tried(NamedTuple):
    """A command in a way.

    Attributes
    ----------
    way, command
        Which.
    status
        Its exit code.
    told
        Its last line.
    wrong
        What must not be, a sentence each.
    """

    way: str
    command: str
    status: int
    told: str
    wrong: list[str]


class Withdrawn(NamedTuple):
    """A right that a user did not have.

    Attributes
    ----------
    command
        What the user does.
    right
        Which; empty: it had all.
    came
        What came of it.
    wrong
        What must not be, a sentence each.
    """

    command: str
    right: str
    came: str
    wrong: list[str]


def ways_in(cluster: Cluster) -> list[Way]:
    """Say by what one is let in.

    Parameters
    ----------
    cluster
        Secured, and started.

    Returns
    -------
    list[Way]
        For who may do everything that is asked for here.
    """
    known = cluster.credentials
    party, ca = known.allowed, f'ca_file = "{known.ca_file}"'
    by_password = f'protocol = "SASL_SSL"\n{ca}\nusername = "{party.name}"\npassword_file = "{party.password_file}"'
    by_certificate = f'certificate_file = "{party.certificate_file}"\nkey_file = "{party.key_file}"'
    return [
        Way("password", cluster.servers, by_password),
        Way("certificate", cluster.tls_servers, f'protocol = "SSL"\n{ca}\n{by_certificate}'),
        _by_token("token", cluster, party.token_file),
    ]


def ways_out(cluster: Cluster, folder: Path) -> list[Way]:
    """Say by what one is not let in.

    Parameters
    ----------
    cluster
        Secured, and started.
    folder
        For a password that is none.

    Returns
    -------
    list[Way]
        With what a refusal must tell.
    """
    known = cluster.credentials
    wrong = folder / "wrong.password"
    wrong.write_text("none of this broker's")
    by_password, stranger = ways_in(cluster)[0], known.stranger
    name, password = f'"{known.allowed.name}"', str(known.allowed.password_file)
    who = f"as {known.allowed.name}"
    expired = _by_token("expired token", cluster, known.expired_token_file)
    return [
        by_password._replace(
            name="wrong password",
            keys=by_password.keys.replace(password, str(wrong)),
            told=(who, "kafka.username and kafka.password_file"),
        ),
        by_password._replace(
            name="unknown user",
            keys=by_password.keys.replace(name, '"nobody"'),
            told=("as nobody", "kafka.username and kafka.password_file"),
        ),
        expired._replace(told=(str(known.expired_token_file), "kafka.token_file")),
        by_password._replace(
            name="unknown authority",
            keys=by_password.keys.replace(str(known.ca_file), str(known.other_ca_file)),
            told=(who, "certificate verify failed", "kafka.ca_file"),
        ),
        Way(
            "no certificate",
            cluster.tls_servers,
            f'protocol = "SSL"\nca_file = "{known.ca_file}"',
            ("certificate", "kafka.certificate_file"),
        ),
        Way("in the clear", cluster.servers, 'protocol = "PLAINTEXT"', ("kafka.protocol",)),
        by_password._replace(
            name="no rights",
            keys=by_password.keys.replace(name, f'"{stranger.name}"').replace(password, str(stranger.password_file)),
            told=(f"as {stranger.name}", NO_RIGHT, "deploy/kafka/README.md"),
        ),
        by_password._replace(
            name=NOBODY, servers=f"127.0.0.1:{free_port()}", told=(who, "no answer", "log.url"),
        ),
    ]  # fmt: skip


def _by_token(name: str, cluster: Cluster, file: Path) -> Way:
    keys = (
        f'protocol = "SASL_SSL"\nmechanism = "OAUTHBEARER"\nca_file = "{cluster.credentials.ca_file}"\n'
        f'token_file = "{file}"'
    )
    return Way(name, cluster.servers, keys)


def secrets_of(known: Credentials) -> list[str]:
    """Say what nobody may ever read.

    Parameters
    ----------
    known
        Of a cluster.

    Returns
    -------
    list[str]
        Passwords and tokens.
    """
    parties = (known.admin, known.allowed, known.stranger)
    found = [party.password for party in parties] + [party.token_file.read_text() for party in parties]
    return [*found, known.expired_token_file.read_text(), "none of this broker's"]


def refusal(way: Way, status: int, said: Sequence[str], secrets: Sequence[str]) -> list[str]:
    """Judge how a command was refused.

    Parameters
    ----------
    way
        How it tried.
    status
        Its exit code.
    said
        Lines on stderr and stdout.
    secrets
        What must not be there.

    Returns
    -------
    list[str]
        What is wrong, a sentence each.
    """
    last = said[-1] if said else ""
    wrong = [f"exit code {status}, not {EXIT_PEER}"] if status != EXIT_PEER else []
    wrong += [f"it does not say {words!r}" for words in (way.servers, *way.told) if words not in last]
    wrong += ["it shows a secret"] if any(secret in line for secret in secrets for line in said) else []
    return wrong + (["it shows a traceback"] if any("Traceback" in line for line in said) else [])


class Site:
    """A secured broker with topics of its own prefix, and what is needed to try commands there.

    Parameters
    ----------
    cluster
        Secured, and started.
    folder
        For everything; made.
    prefix
        Of topics that nobody else uses.
    """

    def __init__(self, cluster: Cluster, folder: Path, prefix: str) -> None:
        self.cluster, self.folder, self.prefix = cluster, folder, prefix
        self.secrets = secrets_of(cluster.credentials)
        self.records = recorded([small_grid("north", 1, 3, 1)], frames=1)
        self.port = 0
        self._tries = 0

    @contextmanager
    def open(self) -> Iterator[Site]:
        """Make the topics, write a minute of frames into them, and serve others.

        Yields
        ------
        Site
            Itself.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        settings = self.settings()
        config = load(self.folder / "owner" / "gridsense.toml", environ={}).config
        topics.create(settings, topic_specs(config))
        with closing(KafkaLog(settings)) as log:
            log.append(FRAMES, self.records)
            log.append(CONFIGURATIONS, self.records[:1])
            # What makes a processor ask for a configuration, and put something aside.
            log.append(FRAMES, [self.records[-1]._replace(key="stray")])
        with _Device(("127.0.0.1", 0), _frames_of(self.records)) as device:
            self.port = int(device.server_address[1])
            serving = threading.Thread(target=device.serve_forever, args=(0.05,))
            serving.start()
            try:
                yield self
            finally:
                device.shutdown()
                serving.join()

    def settings(self) -> KafkaSettings:
        """Say how Kafka is reached by who may do everything.

        Returns
        -------
        KafkaSettings
            By password.
        """
        owner = self.folder / "owner"
        self._configure(owner, ways_in(self.cluster)[0], GROUP, self.prefix, "device")
        return kafka_settings(load(owner / "gridsense.toml", environ={}).config)

    def place(self, command: str, way: Way) -> Path:
        """Make a folder for one try.

        Parameters
        ----------
        command
            Of `COMMANDS`.
        way
            How it connects.

        Returns
        -------
        Path
            With a configuration: a device that nobody knows yet; of a processor, a group that has read nothing; to
            make topics, a prefix behind which there are none.
        """
        self._tries += 1
        folder = self.folder / f"try-{self._tries}"
        group = f"{GROUP}-{self._tries}" if command == PROCESSOR else GROUP
        prefix = f"{self.prefix}pmu.{self._tries}." if command == CREATE else self.prefix
        self._configure(folder, way, group, prefix, f"device-{self._tries}")
        (folder / "frames.bin").write_bytes(b"".join(record.value for record in self.records[:60]))
        return folder

    def perform(self, command: str, way: Way) -> Outcome:
        """Let a command do its work, and end it.

        Parameters
        ----------
        command
            Of `COMMANDS`.
        way
            How it connects.

        Returns
        -------
        Outcome
            What became of it. A `CheckError` says that it does not end.
        """
        folder = self.place(command, way)
        came = self._perform(command, folder)
        if command == PROCESSOR and came.fine:  # once more: it goes on where it was
            again = self._perform(command, folder)
            came = again._replace(said=came.said + again.said)
        return came

    def _perform(self, command: str, folder: Path) -> Outcome:
        words = COMMANDS[command]
        serving = command in {GATEWAY, PROCESSOR}
        with Service(folder, "command", *(words[:1] if serving else words)) as service, closing(self._log()) as log:
            before = log.extent(FRAMES).next
            service.start()
            worked = False
            if serving:
                group = load(folder / "gridsense.toml", environ={}).config.kafka.group
                late_s = time.monotonic() + PATIENCE_S
                while not (worked or service.ended or service.heard(NO_RIGHT)) and time.monotonic() < late_s:
                    time.sleep(0.1)
                    worked = self._works(command, log, before, group) and bool(service.heard(WORKS[command]))
                with suppress(CheckError):  # what comes to its end does so meanwhile
                    wait_until(lambda: service.ended, "it ends", patience_s=WORK_S)
                worked = worked and not service.ended
                status = service.wait() if service.ended else service.stop()
            else:
                status = service.wait()
                worked = status == EXIT_OK
            said = service.said() + (folder / "command.out").read_text().splitlines()
        return Outcome(status, said, worked)

    def attempt(self, command: str, way: Way) -> Tried:
        """Try a command that is to be refused, or a gateway that is to go on without anybody.

        Parameters
        ----------
        command
            Of `COMMANDS`.
        way
            How it connects.

        Returns
        -------
        Tried
            What became of it. A `CheckError` says that it does not end.
        """
        with Service(self.place(command, way), "command", *COMMANDS[command]) as service:
            service.start()
            if command == GATEWAY and way.name == NOBODY:
                told = service.hear("what comes goes into")
                status = service.stop()
                said = [line for line in service.said() if "what comes goes into" in line]
                return Tried(way.name, command, status, told, _going_on(way, status, said, self.secrets))
            status = service.wait()
            said = service.said()
        return Tried(way.name, command, status, said[-1] if said else "", refusal(way, status, said, self.secrets))

    @contextmanager
    def allowed(self, user: str, rights: Sequence[Right]) -> Iterator[Way]:
        """Let a user exist for a while, with some rights.

        Parameters
        ----------
        user
            Its name.
        rights
            No others.

        Yields
        ------
        Way
            How it connects: by a token.
        """
        file = self.folder / f"{user.replace(' ', '-')}.token"
        file.write_text(token(user, LIVES_S))
        acls = [right.acl(user, self.prefix) for right in rights]
        with self.cluster.admin() as client:
            if acls:
                client.create_acls(acls)
            try:
                yield _by_token(user, self.cluster, file)
            finally:
                if acls:
                    client.delete_acls(acls)

    def _log(self) -> KafkaLog:
        return KafkaLog(self.settings())

    def _works(self, command: str, log: KafkaLog, before: int, group: str) -> bool:
        """Whether a gateway has written frames, or a processor read all that there were."""
        if command == GATEWAY:
            return log.extent(FRAMES).next > before
        with suppress(LogError):
            return (log.position(FRAMES, group) or 0) >= before
        return False

    def _configure(self, folder: Path, way: Way, group: str, prefix: str, device: str) -> None:
        connection = (
            f'[[gateway.connections]]\nname = "{device}"\nhost = "127.0.0.1"\n'
            f'port = {self.port or 1}\ntransport = "tcp-spontaneous"\n'
        )
        keys = (
            f'prefix = "{prefix}"\ngroup = "{group}"\nreplication = 1\npartitions = 1\npredictions = true\n'
            f'standby = true\nidle = "0.5s"\nrequest = "2s"\nspill = "spill.db"\n{way.keys}'
        )
        ports = "processor_port = 0\ngateway_port = 0\narchive_port = 0"
        write_settings(
            folder, connection, learn_s=25.0, log=f"kafka://{way.servers}", kafka=keys, metrics=ports, snapshot_s=1.0
        )


def _going_on(way: Way, status: int, said: Sequence[str], secrets: Sequence[str]) -> list[str]:
    """Judge a gateway that went on where nobody answered."""
    wrong = refusal(way, status, said, secrets)
    return [words for words in wrong if not words.startswith("exit code")] + (
        [f"exit code {status}, not {EXIT_OK}"] if status else []
    )


def _frames_of(records: Sequence[Record]) -> list[bytes]:
    """Give out what a device sends: its configuration, and frames of which each tenth is damaged."""
    frames = [record.value for record in records]
    return [frame[:-1] + bytes([frame[-1] ^ 1]) if n and n % 10 == 0 else frame for n, frame in enumerate(frames)]


class _Device(socketserver.ThreadingTCPServer):
    """Sends frames to whoever connects, twenty a second, again and again."""

    allow_reuse_address = True
    daemon_threads = True

    def __init__(self, address: tuple[str, int], frames: Sequence[bytes]) -> None:
        self.frames = frames
        super().__init__(address, _Sending)


class _Sending(socketserver.BaseRequestHandler):
    """One receiver."""

    def handle(self) -> None:
        """Send until it is gone."""
        frames = cast("_Device", self.server).frames
        with suppress(OSError):
            while True:
                for frame in frames:
                    self.request.sendall(frame)
                    time.sleep(0.05)


def try_ways_in(site: Site, commands: Sequence[str], say: Callable[[str], object]) -> list[Tried]:
    """Let everybody in who has a right to it.

    Parameters
    ----------
    site
        Open.
    commands
        Which to try.
    say
        Says how far it is.

    Returns
    -------
    list[Tried]
        What became of each.
    """
    out = []
    for way in ways_in(site.cluster):
        for command in commands:
            came = site.perform(command, way)
            wrong = [] if came.fine else [f"exit code {came.status}; it said: {' | '.join(came.said[-3:])}"]
            wrong += ["it shows a secret"] if any(s in line for s in site.secrets for line in came.said) else []
            out.append(Tried(way.name, command, came.status, "", wrong))
        say(f"by {way.name}: tried")
    return out


def try_ways_out(site: Site, commands: Mapping[str, Sequence[str]], say: Callable[[str], object]) -> list[Tried]:
    """Try all that must be refused.

    Parameters
    ----------
    site
        Open.
    commands
        By the name of a way, which to try.
    say
        Says how far it is.

    Returns
    -------
    list[Tried]
        What became of each.
    """
    out = []
    for way in ways_out(site.cluster, site.folder):
        out += [site.attempt(command, way) for command in commands[way.name]]
        say(f"{way.name}: tried")
    return out


def try_rights(site: Site, commands: Sequence[str], say: Callable[[str], object], *, withdraw: bool) -> list[Withdrawn]:
    """Let users with the rights of their command do its work, and then without one right after the other.

    Parameters
    ----------
    site
        Open.
    commands
        Which to try.
    say
        Says how far it is.
    withdraw
        Whether rights are withdrawn.

    Returns
    -------
    list[Withdrawn]
        What came of it.
    """
    out = []
    for command in commands:
        rights = RIGHTS[command]
        with site.allowed(command, rights) as way:
            came = site.perform(command, way)
        wrong = [] if came.fine else [f"with all of its rights it does not work: {' | '.join(came.said[-3:])}"]
        out.append(Withdrawn(command, "", _came(came), wrong))
        for right in rights if withdraw and came.fine else ():
            with site.allowed(command, [other for other in rights if other != right]) as way:
                came = site.perform(command, way)
            wrong = ["it is not needed"] if came.fine else [] if came.complains else ["nothing is said of it"]
            out.append(Withdrawn(command, str(right), _came(came), wrong))
        say(f"rights of {command}: tried")
    return out


def _came(outcome: Outcome) -> str:
    if outcome.fine:
        return "works"
    if outcome.status == EXIT_OK:
        return "complains"
    return f"ends with {outcome.status}"


def show(console: Console, tried: Sequence[Tried], withdrawn: Sequence[Withdrawn]) -> None:
    """Print what came of it for people."""
    table = Table("who, how", "command", "exit", "", box=SIMPLE_HEAD, pad_edge=False)
    for one in tried:
        table.add_row(
            one.way, one.command, f"{one.status}", f"[bold red]{'; '.join(one.wrong)}[/]" if one.wrong else "ok"
        )
    console.print(table)
    table = Table("user", Column("without", no_wrap=True), "", "", box=SIMPLE_HEAD, pad_edge=False)
    for one in withdrawn:
        table.add_row(one.command, one.right or "nothing", one.came, _verdict(one.wrong))
    console.print(table)
    for way, told in {one.way: one.told for one in tried if one.told}.items():
        console.print(f"{way}: {told}", soft_wrap=True, markup=False, highlight=False)


def _verdict(wrong: Sequence[str]) -> str:
    return f"[bold red]{escape('; '.join(wrong))}[/]" if wrong else "ok"


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="secure_kafka.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="fewer combinations, and no rights are withdrawn")
    parser.add_argument("--rights", nargs="*", choices=[*RIGHTS], help="only the rights of these commands")
    parser.add_argument("--json", action="store_true", help="the last line is one JSON object with the figures")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str]) -> int:
    """Check, and say what came of it."""
    args = parse(arguments)
    aside = Console(stderr=True, highlight=False, soft_wrap=True, markup=False)
    tried: list[Tried] = []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="gridsense-secure-")))
        try:
            cluster = stack.enter_context(Cluster(folder / "cluster", security="scram"))
            site = stack.enter_context(Site(cluster, folder / "site", "secured.").open())
            if args.rights is None:
                tried += try_ways_in(site, [GATEWAY, WATCH] if args.quick else [*COMMANDS], aside.print)
                names = [way.name for way in ways_out(cluster, folder)]
                each = [[command] for command in COMMANDS] if args.quick else [[*COMMANDS]]
                some = {name: each[n % len(each)] for n, name in enumerate(names)}
                tried += try_ways_out(site, some, aside.print)
            withdrawn = try_rights(site, args.rights or [*RIGHTS], aside.print, withdraw=not args.quick)
        except (BrokerError, CheckError, GridSenseError, KafkaMissingError, StreamsError) as error:
            print(f"secure_kafka: {error}", file=sys.stderr)
            return 2
    show(Console(soft_wrap=not sys.stdout.isatty()), tried, withdrawn)
    wrong = [words for one in (*tried, *withdrawn) for words in one.wrong]
    if args.json:
        figures = {"tried": len(tried), "rights": len(withdrawn), "broken": wrong}
        print(json.dumps(figures))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

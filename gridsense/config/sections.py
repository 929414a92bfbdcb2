"""What can be configured: one class a section, one documented field a key. Defaults are those of the parts.

In: values, from wherever. Out: a frozen `Config`, and the settings of the parts that it makes. It reads no file and no
environment (`gridsense.config.reading` does), and does not see what two keys say against each other (`agreement`).
"""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PrivateAttr, SecretStr, Strict

from gridsense import detection, pipeline
from gridsense.config.kinds import Bytes, Flag, Number, Seconds, Secret, Text, Whole
from gridsense.errors import UsageError
from gridsense.sequence import BUNDLED, Model, load_model
from streams.align import AlignSettings
from streams.gateway.settings import GatewaySettings
from streams.log import Retention
from streams.quality import QualitySettings

Key = tuple[str | int, ...]
"""Where a value stands: names of sections and keys, places in lists."""

Transport = Literal["tcp", "tcp-spontaneous", "udp", "udp-commanded", "tcp-udp"]

_PIPELINE = pipeline.Settings()
_DETECTION = detection.Settings()
_ALIGN = AlignSettings()
_QUALITY = QualitySettings()
_GATEWAY = GatewaySettings()
_LOG = "sqlite:"
_KAFKA = "kafka://"
_URLS = "must be sqlite:PATH, such as sqlite:gridsense-log.db, or kafka://HOST:PORT,HOST:PORT"
_FRAME_BYTES = 1 << 16
_TOPIC_LETTERS = 200
"""Of a prefix; Kafka allows 249 in a topic's name."""


def dotted(key: Key) -> str:
    """Write where a value stands.

    Parameters
    ----------
    key
        Its path.

    Returns
    -------
    str
        ``gateway.connections[2].port``.
    """
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in key).removeprefix(".")


def _log_url(url: str) -> str:
    if url.startswith("kafka:"):
        if not url.startswith(_KAFKA):
            raise ValueError("must be kafka://HOST:PORT, or several with commas, such as kafka://a:9092,b:9092")
        if "@" in url:
            raise ValueError("must hold no credentials: they stand in [kafka]")
        for server in url.removeprefix(_KAFKA).split(","):
            _server(server)
        return url
    path = url.removeprefix(_LOG)
    if not url.startswith(_LOG) or not path or path.startswith(("//", ":")):
        raise ValueError(_URLS)
    return url


def _server(server: str) -> None:
    host, colon, port = server.rpartition(":")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    named = bool(bare) and (_is_address(bare) if ":" in bare or bare != host else not set(bare) & set(" /[]?"))
    if not (colon and named and port.isascii() and port.isdecimal() and 0 < int(port) < 1 << 16):
        raise ValueError("must name each server by its host and port, such as kafka://a:9092,b:9092")


def _name(name: str) -> str:
    if "#" in name or "/" in name:
        raise ValueError("must hold neither # nor /")
    return name


def _regions(regions: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(regions)) < len(regions):
        raise ValueError("must name each region once")
    return regions


def _topic_prefix(prefix: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9._-]*", prefix) or len(prefix) > _TOPIC_LETTERS:
        raise ValueError("must be letters, digits, dots, hyphens and underscores, 200 at most")
    return prefix


def _host(host: str) -> str:
    if any(letter in " /:[]" or not letter.isprintable() for letter in host) and not _is_address(host):
        raise ValueError("must be an address or the name of a machine, without a port")
    return host


def loopback(host: str) -> bool:
    """Say whether a host is this machine, by its name alone.

    Parameters
    ----------
    host
        Address or name.

    Returns
    -------
    bool
        True for ``localhost`` and loopback addresses.
    """
    return host == "localhost" or (_is_address(host) and ipaddress.ip_address(host).is_loopback)


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _rising(pair: tuple[float, float]) -> tuple[float, float]:
    if not 0 < pair[0] < pair[1]:
        raise ValueError("must be two numbers above 0, the smaller first")
    return pair


def _scorers(scorers: tuple[pipeline.Scorer, ...]) -> tuple[pipeline.Scorer, ...]:
    """Put them in their order; in which they were named does not matter."""
    if not scorers:
        raise ValueError("must name at least one")
    return tuple(scorer for scorer in pipeline.SCORERS if scorer in scorers)


def _text(text: str) -> str:
    if text != text.strip() or (text and not text.isprintable()):
        raise ValueError("must be printable, without a space at either end")
    return text


def _path(text: str) -> str:
    if text != text.strip() or (text and not text.isprintable()):
        raise ValueError("must be a path, printable, without a space at either end")
    return text


Host = Annotated[Text, AfterValidator(_host)]
HostOrNone = Annotated[str, Strict(), AfterValidator(_host)]
PathOrNone = Annotated[str, Strict(), AfterValidator(_path)]
TextOrNone = Annotated[str, Strict(), AfterValidator(_text)]
Name = Annotated[Text, AfterValidator(_name)]
Port = Annotated[Whole, Field(ge=1, le=65_535)]
PortOrNone = Annotated[Whole, Field(ge=0, le=65_535)]


class Section(BaseModel):
    """What all sections share: no key that is not known, no change after reading, a docstring for each key."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


class LogSection(Section):
    """The log between the gateway, the processor and the archive: what came, as it came."""

    url: Annotated[Text, AfterValidator(_log_url)] = "sqlite:gridsense-log.db"
    """Where the log is: sqlite:PATH, a relative path counted from this file's folder, on a local disk and no share; or
    kafka://HOST:PORT,HOST:PORT: brokers of one cluster, of which any finds the others. [kafka] says the rest then."""

    retention: Seconds = Field(default=72 * 3600.0, ge=0)
    """How long frames are kept. Longer: a processor that stood still for days loses nothing. 0: whatever their age."""

    retention_size: Bytes = Field(default=50 << 30, ge=0)
    """How much is kept; beyond it the oldest frames go, whatever `retention` says. 0: however much. With Kafka: of each
    topic, an equal share for each partition, one copy counted."""


class KafkaSection(Section):
    """Kafka as the log, where log.url is kafka://…; `gridsense topics create` makes the topics as this says."""

    prefix: Annotated[str, Strict(), AfterValidator(_topic_prefix)] = ""
    """Before the name of every topic, group and transaction: `north.` makes `north.pmu.frames`. For several
    installations on one cluster."""

    group: Name = "gridsense"
    """Name of the processors' consumer group: those that share it share the work."""

    instance: Annotated[TextOrNone, AfterValidator(_name)] = ""
    """Name of this process in its group, another for each, such as its host's: a restart within `session` moves nothing
    to others then (static membership). Empty: none, and whoever restarts is somebody new."""

    partitions: Whole = Field(default=4, ge=1, le=10_000)
    """Partitions of the topics of frames, scores and state: as many processors can share the work. A region lives in
    one of them. Not to be changed while there is something in the topics."""

    replication: Whole = Field(default=3, ge=1, le=100)
    """Brokers that hold a copy of each record. 3: any one may die while another is down. 1: for a single broker, which
    must not die."""

    min_in_sync: Whole = Field(default=0, ge=0, le=100)
    """Copies that must be written before a record counts. 0: one less than `replication`, at least 1."""

    regions: Annotated[tuple[Name, ...], AfterValidator(_regions)] = ()
    """Regions in the order in which they take partitions, in turn, so that they spread evenly; the same list
    everywhere. One that is not named takes a partition by a hash of its name."""

    protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    """How connections are secured: SSL is TLS, SASL asks who we are. What is not TLS is refused to other machines, save
    by `allow_plaintext`."""

    mechanism: Literal["SCRAM-SHA-512", "SCRAM-SHA-256", "PLAIN", "OAUTHBEARER"] = "SCRAM-SHA-512"
    """How we say who we are, with SASL. Not used with PLAINTEXT and SSL."""

    username: TextOrNone = ""
    """Who we are, with SCRAM and PLAIN."""

    password: Secret = Field(default_factory=lambda: SecretStr(""))
    """Password, by the variable GRIDSENSE_KAFKA__PASSWORD alone; it is refused in a file and on a command line."""

    password_file: PathOrNone = ""
    """File that holds the password instead; a line's end after it is no part of it. Relative paths of this section
    count from this file's folder."""

    token_file: PathOrNone = ""
    """With OAUTHBEARER: file that holds a bearer token, read anew for each connection. Whoever renews the token writes
    the file."""

    ca_file: PathOrNone = ""
    """Certificates of the authorities that sign the brokers' (PEM). Empty: those of the system."""

    certificate_file: PathOrNone = ""
    """Our own certificate (PEM), where brokers ask for one (mTLS)."""

    key_file: PathOrNone = ""
    """Its private key (PEM). Empty: it stands in `certificate_file`."""

    key_password_file: PathOrNone = ""
    """File that holds the password of the private key, where it has one."""

    check_hostname: Flag = True
    """Whether a broker's certificate must name the host that we connect to. false lets others stand in for it."""

    allow_plaintext: Flag = False
    """Whether frames, and passwords, may go unencrypted to another machine: in a network that is secured otherwise."""

    request: Seconds = Field(default=10.0, ge=0.5, le=300)
    """How long an answer of the brokers is waited for, before they count as unreachable."""

    compression: Literal["none", "lz4", "zstd", "gzip"] = "none"
    """How what we write is compressed. Less network and disk, more CPU."""

    dead_letters_retention: Seconds = Field(default=720 * 3600.0, ge=0)
    """How long what could not be used is kept. 0: whatever its age; this and the following, too, end at
    log.retention_size."""

    scores: Flag = True
    """Whether the scores of each PMU are written, to pmu.scores."""

    scores_retention: Seconds = Field(default=72 * 3600.0, ge=0)
    """How long scores are kept. 0: whatever their age."""

    predictions: Flag = False
    """Whether what the network expected of every reading is written, to pmu.predictions: 11 kB a PMU and second."""

    predictions_retention: Seconds = Field(default=6 * 3600.0, ge=0)
    """How long predictions are kept. 0: whatever their age."""

    events_retention: Seconds = Field(default=366 * 86_400.0, ge=0)
    """How long events are kept, by age alone. 0: for ever."""

    session: Seconds = Field(default=10.0, ge=1, le=1800)
    """A process that is silent for this long is dead, and others take its partitions. Brokers allow 6 s to 30 min, as a
    rule. Longer: slower restarts stay unnoticed, and so do deaths."""

    transaction: Seconds = Field(default=10.0, ge=1, le=900)
    """A transaction that lasts longer is aborted by the brokers, such as one whose process died. Until then nobody
    reads beyond it."""

    max_lag: Seconds = Field(default=0.0, ge=0)
    """A processor further behind than this skips to what comes now, and says so in an event. 0: it never skips."""

    mark: Seconds = Field(default=0.25, ge=0.01, le=60)
    """Where nothing came of a region for this long, the gateway writes down what time it is, so that windows close."""

    idle: Seconds = Field(default=10.0, ge=0.1)
    """Where not even that came for this long, as without a gateway, the processor writes it."""

    join_patience: Seconds = Field(default=5.0, ge=0)
    """How long a disturbance waits for regions that are behind, before it is told without them."""

    spill: Text = "gridsense-spill.db"
    """File in which a gateway keeps what Kafka does not take, a relative path counted from this file's folder."""

    spill_size: Bytes = Field(default=10 << 30, ge=1 << 20)
    """How much it keeps there; then memory fills, and beyond gateway.buffer_size the newest frames are dropped."""

    standby: Flag = False
    """Whether a second gateway of the same connections stands beside this one: both receive, one writes, and the other
    keeps what that one may not have written, for its turn. The same configuration for both."""


class StoreSection(Section):
    """What the processor remembers: events, and its own state for the next start."""

    path: Text = "gridsense.db"
    """The event store (SQLite), a relative path counted from this file's folder."""

    snapshot_every: Seconds = Field(default=30.0, ge=1)
    """Time between two snapshots of the processor's state. Shorter: less to read again after a crash, more to write."""


class DetectionSection(Section):
    """What is an event."""

    learn: Seconds = Field(default=_PIPELINE.learn_s, gt=0)
    """Quiet time that the newest fit's reference is learned from. Longer in a restless grid; no score comes before."""

    false_alarms_per_day: Number = Field(default=_DETECTION.false_alarms_per_day, gt=0)
    """How many false events of the grid a day are acceptable. Fewer is less sensitive."""

    persist: Seconds = Field(default=_PIPELINE.persist_s, ge=0)
    """How long a PMU's samples must be refused to be an event of its own."""


class ScoringSection(Section):
    """What looks for events: parabolas fitted to what comes, and a network that predicts it."""

    scorers: Annotated[tuple[pipeline.Scorer, ...], AfterValidator(_scorers)] = pipeline.SCORERS
    """`quadratic` holds fitted parabolas against what is typical; `sequence` what came against what was expected."""

    model: PathOrNone = ""
    """Folder of the model of `sequence`, a relative path counted from this file's folder. Empty: the bundled one."""


class AlignSection(Section):
    """How long to wait for whom."""

    lateness: Seconds = Field(default=_ALIGN.lateness_s, ge=0)
    """A frame may come this much after the newest one; later ones are counted and dropped. It delays every event."""

    grace: Seconds = Field(default=_ALIGN.grace_s, ge=0)
    """When frames stop, what is waited for is given up by the clock this long after `lateness`."""

    ahead: Seconds = Field(default=_ALIGN.ahead_s, ge=0)
    """A frame further ahead of everybody than this is a bad clock, until most sources agree with it."""

    dead: Seconds = Field(default=_ALIGN.dead_s, ge=0)
    """A source that sent nothing in time for this long is not waited for."""

    gap: Seconds = Field(default=_ALIGN.gap_s, ge=0)
    """A gap in everybody's time up to this is filled with empty slots; a longer one begins anew."""


class QualitySection(Section):
    """Which samples are bad. The defaults suit transmission PMUs at 10 to 120 frames a second."""

    unsynced: Literal["angles", "phasors"] = _QUALITY.unsynced
    """What a lost synchronisation masks: `angles` at once; or `phasors`, frequency and ROCOF after `sync_grace`."""

    sync_grace: Seconds = Field(default=_QUALITY.sync_grace_s, ge=0)
    """How long phasors are still believed without synchronisation, where `unsynced` is `phasors`."""

    mask_time_quality: Whole = Field(default=_QUALITY.mask_time_quality, ge=1, le=8)
    """Time quality code (STAT bits 8-6, 1 to 7) from which time counts as lost; 5 is a millisecond. 8: never."""

    use_sync_bit: Flag = _QUALITY.use_sync_bit
    """Believe STAT bit 13. Some devices of the IEEE 1344 age set it always: then false."""

    stuck: Seconds = Field(default=_QUALITY.stuck_s, gt=0)
    """A phasor that keeps the bits of magnitude and angle this long is stuck. Longer where devices round coarsely."""

    stuck_lone: Seconds = Field(default=_QUALITY.stuck_lone_s, gt=0)
    """A single magnitude or angle that used to change and keeps its bits this long is stuck."""

    stuck_values: Whole = Field(default=_QUALITY.stuck_values, ge=1, le=1000)
    """A frequency of at most this many distinct values in a minute is stuck, unless it is exactly nominal."""

    zero: Seconds = Field(default=_QUALITY.zero_s, ge=0)
    """A voltage of exactly zero for longer is a dead channel, no fault."""

    ahead: Whole = Field(default=_QUALITY.ahead, ge=2, le=1000)
    """Frames after a sample that it is judged against for spikes: they delay every event."""

    back: Whole = Field(default=_QUALITY.back, ge=2, le=1000)
    """Frames before a sample that it is judged against for spikes."""

    spike_sigmas: Number = Field(default=_QUALITY.spike_sigmas, gt=0)
    """A spike stands this many robust standard deviations off its neighbours in time. Greater: fewer spikes."""

    spike_hz: Number = Field(default=_QUALITY.spike_hz, gt=0)
    """Smallest step of a frequency in one frame that may be a spike, in Hz."""

    spike_rocof_hz_s: Number = Field(default=_QUALITY.spike_rocof_hz_s, gt=0)
    """The same for ROCOF, in Hz/s."""

    spike_deg: Number = Field(default=_QUALITY.spike_deg, gt=0)
    """The same for an angle, in degrees."""

    spike_voltage: Number = Field(default=_QUALITY.spike_voltage, gt=0)
    """The same for a voltage magnitude, as a share of it; such a spike is marked, not masked."""

    spike_current: Number = Field(default=_QUALITY.spike_current, gt=0)
    """The same for a current magnitude, as a share of it; such a spike is marked, not masked."""

    moved_voltage: Number = Field(default=_QUALITY.moved_voltage, gt=0)
    """A change of the PMU's own voltage by this share within two frames excuses every spike: it is a fault."""

    moved_current: Number = Field(default=_QUALITY.moved_current, gt=0)
    """A change of a current by this share within two frames excuses a spike of its angle."""

    moved_hz: Number = Field(default=_QUALITY.moved_hz, gt=0)
    """A frequency that leaves its neighbours in time by this many Hz keeps another PMU's spike company."""

    company: Whole = Field(default=_QUALITY.company, ge=1)
    """With this many other PMUs moving in the same frame a spike is the grid's own, and is not masked."""

    frequency_range_hz: Number = Field(default=_QUALITY.frequency_range_hz, gt=0)
    """No device measures a frequency further from nominal than this many Hz."""

    usual_voltage: Annotated[tuple[Number, Number], AfterValidator(_rising)] = _QUALITY.usual_voltage
    """Below and above these shares of nominal a voltage is marked as an excursion; never masked for that."""

    usual_hz: Number = Field(default=_QUALITY.usual_hz, gt=0)
    """A frequency further from nominal than this many Hz is marked as an excursion."""


class ConnectionSection(Section):
    """One PMU or concentrator that the gateway reads."""

    name: Name
    """Name of the connection, in events, metrics and archives. No two alike, neither # nor / in it."""

    region: Annotated[TextOrNone, AfterValidator(_name)] = ""
    """What it is scored together with: all connections of a region share a reference. With Kafka a region is processed
    in one place, and several regions in several. Neither # nor / in it. Empty: all that have none are one."""

    host: Host = "127.0.0.1"
    """Address or name of the device. With `udp`: from which datagrams are taken."""

    port: Port = 4712
    """Port of the device; C37.118 devices listen on 4712 (TCP) or 4713 (UDP). Not used with `udp`."""

    id_code: Whole = Field(default=0, ge=0, le=65_534)
    """ID code of the stream; frames with another are refused. 0: whatever comes first."""

    transport: Transport = "tcp"
    """`tcp`: we ask for data. `tcp-spontaneous`: it sends to whoever connects. `udp`: it sends to `udp_port` unasked.
    `udp-commanded`: we ask by datagram. `tcp-udp`: we ask by TCP, data come by UDP to `udp_port`."""

    udp_port: PortOrNone = 0
    """Our own UDP port for data: needed with `udp` and `tcp-udp`. 0: any free one, for a device that answers to it."""

    local_host: HostOrNone = ""
    """Our own address for UDP data. Empty: 127.0.0.1 with `udp`, else the one that faces the device."""

    @property
    def key(self) -> str:
        """Key of its records in the log."""
        return f"{self.region}/{self.name}" if self.region else self.name


class GatewaySection(Section):
    """How devices are read."""

    connect: Seconds = Field(default=_GATEWAY.connect_s, gt=0)
    """How long a TCP connection may take to be made. Longer over satellite or radio."""

    answer: Seconds = Field(default=_GATEWAY.answer_s, gt=0)
    """How long a device may take to answer a command; without a CFG-3 by then it is asked for a CFG-2."""

    stall: Seconds = Field(default=_GATEWAY.stall_s, gt=0)
    """Without a whole frame for this long a connection is made anew; at least three reporting periods."""

    configure: Seconds = Field(default=_GATEWAY.configure_s, gt=0)
    """How long a device may take from the connection to its first configuration."""

    backoff_min: Seconds = Field(default=_GATEWAY.backoff_least_s, gt=0)
    """Pause before the first new try; it doubles with each."""

    backoff_max: Seconds = Field(default=_GATEWAY.backoff_most_s, gt=0)
    """Longest pause between two tries. Shorter: a device that comes back is seen earlier, a dead one is asked more."""

    flush_ms: Whole = Field(default=round(_GATEWAY.flush_s * 1e3), ge=1, le=1000)
    """Milliseconds for which frames are gathered before they are written. Longer: fewer writes, later events."""

    buffer_size: Bytes = Field(default=_GATEWAY.buffer_bytes, ge=1 << 20)
    """Memory for frames while the log cannot be written; beyond it the newest are dropped and counted."""

    max_pmus: Whole = Field(default=_GATEWAY.max_pmus, ge=1, le=65_535)
    """A configuration of more PMUs than this is refused."""

    garbage_size: Bytes = Field(default=_GATEWAY.max_garbage_bytes, ge=_FRAME_BYTES)
    """A device that sent this much without one good frame is disconnected; a frame alone may have 64 KiB."""

    allow_shared_id_codes: Flag = _GATEWAY.allow_shared_id_codes
    """Whether two connections may have the same ID code, as where two utilities number their devices alike."""

    connections: tuple[ConnectionSection, ...] = ()
    """The devices, one table [[gateway.connections]] each."""


class MetricsSection(Section):
    """Prometheus metrics and signs of life, over HTTP."""

    host: Host = "127.0.0.1"
    """Address that is listened on. 0.0.0.0 shows the metrics to everybody who reaches the machine."""

    processor_port: PortOrNone = 9108
    """Port of the processor's metrics. 0: none."""

    gateway_port: PortOrNone = 9109
    """Port of the gateway's metrics. 0: none."""

    archive_port: PortOrNone = 9110
    """Port of the archive's metrics. 0: none."""


class LoggingSection(Section):
    """What the services say."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    """How much is said. `debug` is for finding faults, not for months."""

    format: Literal["auto", "console", "json"] = "auto"
    """`json`: a line of JSON each; `console`: for people; `auto`: for people on a terminal, else JSON."""


class ArchiveSection(Section):
    """The archive: Parquet, a folder a day and source."""

    folder: Text = "archive"
    """Where it is written, a relative path counted from this file's folder."""

    file_span: Seconds = Field(default=3600.0, ge=1)
    """Time that one file covers. Shorter: it is there sooner, in more files."""

    compact_after: Seconds = Field(default=24 * 3600.0, ge=0)
    """How long after its end a day's files are joined into one: later than the latest frame is expected."""

    retention: Seconds = Field(default=0.0, ge=0)
    """How long days are kept. 0: for ever."""


class SimulateSection(Section):
    """What `gridsense up` serves as PMUs where no real ones are connected."""

    files: tuple[Text, ...] = ()
    """Captures or archives to serve, relative paths counted from this file's folder."""

    transport: Transport = "tcp"
    """How they are served, as in [[gateway.connections]]."""

    speed: Number = Field(default=1.0, ge=0)
    """Times real time. 0: as fast as it is read."""

    loop: Flag = False
    """Begin again at the end of the files, with time stamps that go on."""

    shift_to_now: Flag = False
    """Move the time stamps so that the first frame is of now."""

    split: Flag = False
    """Serve each PMU by itself, as one connection a PMU."""

    concentrators: Whole = Field(default=0, ge=0, le=10_000)
    """Number of concentrators made of the files' PMUs, in turn. 0: the streams of the files as they are."""

    pmus_each: Whole = Field(default=0, ge=0, le=65_535)
    """PMUs of each of these concentrators."""

    port: PortOrNone = 4712
    """Port of the first stream; the others follow it. 0: any free ones."""


class Config(Section):
    """GridSense: everything that can be configured."""

    name: Text = _PIPELINE.source
    """What is watched, such as the name of the grid: it stands in every event."""

    log: LogSection = Field(default_factory=LogSection)
    kafka: KafkaSection = Field(default_factory=KafkaSection)
    store: StoreSection = Field(default_factory=StoreSection)
    detection: DetectionSection = Field(default_factory=DetectionSection)
    scoring: ScoringSection = Field(default_factory=ScoringSection)
    align: AlignSection = Field(default_factory=AlignSection)
    quality: QualitySection = Field(default_factory=QualitySection)
    gateway: GatewaySection = Field(default_factory=GatewaySection)
    metrics: MetricsSection = Field(default_factory=MetricsSection)
    logging: LoggingSection = Field(default_factory=LoggingSection)
    archive: ArchiveSection = Field(default_factory=ArchiveSection)
    simulate: SimulateSection = Field(default_factory=SimulateSection)

    _folder: Path = PrivateAttr(default=Path())
    _model: Model | None = PrivateAttr(default=None)

    def in_folder(self, folder: Path) -> Config:
        """Say which folder relative paths are counted from.

        Parameters
        ----------
        folder
            Of the configuration file.

        Returns
        -------
        Config
            The same values.
        """
        config = self.model_copy()
        config._folder = folder  # noqa: SLF001 (its own)
        return config

    @property
    def log_servers(self) -> tuple[str, ...]:
        """The brokers of a log in Kafka, ``host:port`` each; none where the log is embedded."""
        url = self.log.url
        return tuple(url.removeprefix(_KAFKA).split(",")) if url.startswith(_KAFKA) else ()

    @property
    def log_path(self) -> Path:
        """The embedded log's file, absolute.

        Raises
        ------
        UsageError
            If the log is in Kafka: it has no file.
        """
        if self.log_servers:
            raise UsageError(f"log.url = {self.log.url}: this works on the embedded log alone, sqlite:PATH")
        return self.place(self.log.url.removeprefix(_LOG))

    @property
    def spill_path(self) -> Path:
        """The file of what Kafka did not take, absolute."""
        return self.place(self.kafka.spill)

    @property
    def store_path(self) -> Path:
        """The event store's file, absolute."""
        return self.place(self.store.path)

    @property
    def archive_path(self) -> Path:
        """The archive's folder, absolute."""
        return self.place(self.archive.folder)

    @property
    def simulate_paths(self) -> tuple[Path, ...]:
        """The files to serve, absolute."""
        return tuple(map(self.place, self.simulate.files))

    @property
    def model_path(self) -> Path:
        """The model's folder, absolute."""
        return self.place(self.scoring.model) if self.scoring.model else BUNDLED

    def model(self) -> Model | None:
        """Load the sequence scorer's model, once.

        Returns
        -------
        Model | None
            None where that scorer is not used. A `models.errors.ArtifactError` says why the model is refused.
        """
        if self._model is None and "sequence" in self.scoring.scorers:
            self._model = load_model(self.model_path)
        return self._model

    def retention(self) -> Retention:
        """Make the log's retention.

        Returns
        -------
        Retention
            For `streams.log.Log.retain`.
        """
        return Retention(age_s=self.log.retention, size=self.log.retention_size)

    def pipeline_settings(self) -> pipeline.Settings:
        """Make the pipeline's settings.

        Returns
        -------
        pipeline.Settings
            Those that are not configured are the pipeline's own; an `ArtifactError` as by `model`.
        """
        align, quality = self.align, self.quality
        return pipeline.Settings(
            source=self.name,
            learn_s=self.detection.learn,
            persist_s=self.detection.persist,
            scorers=self.scoring.scorers,
            model=self.model(),
            detection=detection.Settings(false_alarms_per_day=self.detection.false_alarms_per_day),
            align=AlignSettings(
                lateness_s=align.lateness,
                grace_s=align.grace,
                ahead_s=align.ahead,
                dead_s=align.dead,
                gap_s=align.gap,
            ),
            quality=QualitySettings(
                unsynced=quality.unsynced,
                sync_grace_s=quality.sync_grace,
                mask_time_quality=quality.mask_time_quality,
                use_sync_bit=quality.use_sync_bit,
                stuck_s=quality.stuck,
                stuck_lone_s=quality.stuck_lone,
                stuck_values=quality.stuck_values,
                zero_s=quality.zero,
                ahead=quality.ahead,
                back=quality.back,
                spike_sigmas=quality.spike_sigmas,
                spike_hz=quality.spike_hz,
                spike_rocof_hz_s=quality.spike_rocof_hz_s,
                spike_deg=quality.spike_deg,
                spike_voltage=quality.spike_voltage,
                spike_current=quality.spike_current,
                moved_voltage=quality.moved_voltage,
                moved_current=quality.moved_current,
                moved_hz=quality.moved_hz,
                company=quality.company,
                frequency_range_hz=quality.frequency_range_hz,
                usual_voltage=quality.usual_voltage,
                usual_hz=quality.usual_hz,
            ),
        )

    def place(self, path: str) -> Path:
        """Say which file is meant by a path in the configuration.

        Parameters
        ----------
        path
            As it stands there.

        Returns
        -------
        Path
            Absolute; a relative one was counted from the folder of the configuration file.
        """
        return (self._folder / path).absolute()

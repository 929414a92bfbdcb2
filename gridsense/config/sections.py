"""What can be configured: one class a section, one documented field a key. Defaults are those of the parts.

In: values, from wherever. Out: a frozen `Config`, and the settings of the parts that it makes. It reads no file and no
environment (`gridsense.config.reading` does), and what two keys say against each other is told by `contradictions`.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Hashable, Iterable, Iterator
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PrivateAttr, Strict

from gridsense import detection, pipeline
from gridsense.config.kinds import Bytes, Flag, Number, Seconds, Text, Whole
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
_FRAME_BYTES = 1 << 16


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
        raise ValueError("Kafka comes with a later version; write sqlite:PATH, such as sqlite:gridsense-log.db")
    path = url.removeprefix(_LOG)
    if not url.startswith(_LOG) or not path or path.startswith(("//", ":")):
        raise ValueError("must be sqlite:PATH, such as sqlite:gridsense-log.db")
    return url


def _connection_name(name: str) -> str:
    if "#" in name or "/" in name:
        raise ValueError("must hold neither # nor /")
    return name


def _host(host: str) -> str:
    if any(letter in " /:[]" or not letter.isprintable() for letter in host) and not _is_address(host):
        raise ValueError("must be an address or the name of a machine, without a port")
    return host


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


def _path(text: str) -> str:
    if text != text.strip() or (text and not text.isprintable()):
        raise ValueError("must be a path, printable, without a space at either end")
    return text


Host = Annotated[Text, AfterValidator(_host)]
HostOrNone = Annotated[str, Strict(), AfterValidator(_host)]
PathOrNone = Annotated[str, Strict(), AfterValidator(_path)]
Port = Annotated[Whole, Field(ge=1, le=65_535)]
PortOrNone = Annotated[Whole, Field(ge=0, le=65_535)]


class Section(BaseModel):
    """What all sections share: no key that is not known, no change after reading, a docstring for each key."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


class LogSection(Section):
    """The log between the gateway, the processor and the archive: what came, as it came."""

    url: Annotated[Text, AfterValidator(_log_url)] = "sqlite:gridsense-log.db"
    """Where the log is: sqlite:PATH, a relative path counted from this file's folder. On a local disk, not a share."""

    retention: Seconds = Field(default=72 * 3600.0, ge=0)
    """How long frames are kept. Longer: a processor that stood still for days loses nothing. 0: whatever their age."""

    retention_size: Bytes = Field(default=50 << 30, ge=0)
    """How much is kept; beyond it the oldest frames go, whatever `retention` says. 0: however much."""


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

    name: Annotated[Text, AfterValidator(_connection_name)]
    """Name of the connection, in events, metrics and archives. No two alike, neither # nor / in it."""

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
    def log_path(self) -> Path:
        """The log's file, absolute."""
        return self._place(self.log.url.removeprefix(_LOG))

    @property
    def store_path(self) -> Path:
        """The event store's file, absolute."""
        return self._place(self.store.path)

    @property
    def archive_path(self) -> Path:
        """The archive's folder, absolute."""
        return self._place(self.archive.folder)

    @property
    def simulate_paths(self) -> tuple[Path, ...]:
        """The files to serve, absolute."""
        return tuple(map(self._place, self.simulate.files))

    @property
    def model_path(self) -> Path:
        """The model's folder, absolute."""
        return self._place(self.scoring.model) if self.scoring.model else BUNDLED

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

    def _place(self, path: str) -> Path:
        return (self._folder / path).absolute()


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
    if _same_file(config.log_path, config.store_path):
        yield (("store", "path"), ("log", "url")), "must be another file than the log's"
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
    if not _loopback(config.metrics.host):
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
    yield from _odd_connections(config)


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


def _clashes(values: Iterable[tuple[tuple[Key, ...], Hashable]], must: str) -> Iterator[tuple[tuple[Key, ...], str]]:
    """Find values other than 0 that were there before."""
    seen: dict[Hashable, tuple[Key, ...]] = {}
    for keys, value in values:
        first = seen.setdefault(value, keys)
        if value != 0 and first is not keys:
            yield (*keys, *first), f"must {must}: {dotted(first[0])} is the same"


def _same_file(one: Path, other: Path) -> bool:
    return one.resolve() == other.resolve()


def _loopback(host: str) -> bool:
    return host == "localhost" or (_is_address(host) and ipaddress.ip_address(host).is_loopback)

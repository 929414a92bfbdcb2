"""A member of a consumer group that reads, writes and commits its places in one transaction.

In: the partitions of one topic that the group gives it, committed records alone. Out: entries by partition; records
written together with the places up to which they came of what was read, all or nothing, once. A member that was taken
for dead and wakes commits nothing. It keeps no state of what reads, and makes no topics.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any, NamedTuple, NoReturn

from kafka import ConsumerRebalanceListener, KafkaConsumer, KafkaProducer, OffsetAndMetadata, TopicPartition, errors
from kafka.coordinator.assignors.cooperative_sticky import CooperativeStickyAssignor
from kafka.structs import ConsumerGroupMetadata, MemberState
from kafka.util import Timer

from streams.errors import FencedError, LogError, UnreachableError
from streams.kafka.clients import consumer, discard, producer, translated, translation
from streams.kafka.records import entry_of, headers_of
from streams.kafka.settings import KafkaSettings
from streams.log import Entry, Lost, Reading

FETCH_BYTES = 1 << 21
"""Of one partition in one answer, as a rule; an answer holds twice that, and one record may be larger."""
UNDECIDED_S = 30.0
"""Beyond the time of a transaction, after which a place that is not decided is said to hang."""
OPEN_S = 60.0
"""How long a member that begins waits for servers that are there, and have not settled who does what."""
ALIVE_S = 1.0
"""Within which a server must answer to be called alive."""
BREATH_S = 0.005
"""From one look at what has come to the next, where nothing has."""
PAUSE_S = 0.1
"""Between attempts, at first; doubled up to `PAUSES_S`."""
PAUSES_S = 2.0
SLICE_S = 0.25
"""Of a wait for the servers, after which it is looked whether somebody interrupted it."""

_log = logging.getLogger(__name__)
_REPLACED = (
    errors.CommitFailedError,  # of a transaction: illegal generation or unknown member
    errors.FencedInstanceIdError,
    errors.IllegalGenerationError,
    errors.UnknownMemberIdError,
)
_OVERTAKEN = (errors.InvalidProducerEpochError, errors.ProducerFencedError)
_UNSETTLED = (
    errors.InvalidProducerIdMappingError,
    errors.InvalidTxnStateError,
    errors.OutOfOrderSequenceNumberError,
    errors.RetriableError,
    errors.UnknownProducerIdError,
    *_OVERTAKEN,
)


class Outgoing(NamedTuple):
    """A record to be written in a transaction.

    Attributes
    ----------
    topic
        Without the prefix.
    partition
        Of the topic.
    key
        Of the record.
    value
        Bytes, untouched.
    headers
        Beside the value, in order.
    time_ns
        When it came or happened, UTC nanoseconds, written as a header; 0: none is written.
    """

    topic: str
    partition: int
    key: str
    value: bytes
    headers: tuple[tuple[str, bytes], ...] = ()
    time_ns: int = 0


class Place(NamedTuple):
    """How far a partition has been read, as it is committed.

    Attributes
    ----------
    offset
        Where to go on.
    note
        What its reader wants to know then, up to 4 kB less 40 bytes.
    """

    offset: int
    note: str = ""


@dataclass(frozen=True, slots=True)
class MemberSettings:
    """What a member is of.

    Attributes
    ----------
    group
        Whose partitions are divided among its members, without the prefix.
    topic
        What it reads, without the prefix.
    instance
        Its name in the group, kept over restarts (a static member); nobody else may bear it at the same time. Empty: it
        is a member for as long as it lives.
    session_s
        Silence after which the group goes on without it.
    rebalance_s
        Time between polls after which the group goes on without it.
    transaction_s
        After which the servers abort a transaction that was not finished.
    patience_s
        How long a transaction is tried again while no server takes it; below `rebalance_s`.
    """

    group: str
    topic: str
    instance: str = ""
    session_s: float = 10.0
    rebalance_s: float = 300.0
    transaction_s: float = 10.0
    patience_s: float = 240.0


class Member:
    """A consumer of a group, and a producer whose transactions commit what was read together with what was written.

    Everything is called from one thread, and the callbacks come from it too, in `poll`. While a partition is being
    revoked its reader may still commit, and must not after the callback has returned.

    Every method may raise a `streams.errors.LogError`. `FencedError`: the group has gone on without this member; what
    it was about to commit is not. `UnreachableError` of `transact`: no server took it for `patience_s`, and only what
    is committed tells whether it was written. After either it is of no more use: close it, and read on, with another,
    from what is committed. After any other error of `transact` nothing was written (a record too large, no right to
    write): it may go on.

    Parameters
    ----------
    settings
        Of Kafka.
    member
        What it is a member of.
    assigned
        Called with partitions that are its own from now on. Each stands at its committed place, or at the beginning of
        the topic where there is none.
    revoked
        Called with partitions that it has to let go of.

    Attributes
    ----------
    transactions, aborted, fenced
        How many were committed; how many attempts were not; how often it was told that it had been replaced.
    rebalances, rebalance_s
        How often it joined the group, and the seconds that this took altogether.
    doubled
        It was replaced by another that bears the same name of an instance.
    """

    def __init__(
        self,
        settings: KafkaSettings,
        member: MemberSettings,
        assigned: Callable[[Sequence[int]], None],
        revoked: Callable[[Sequence[int]], None],
    ) -> None:
        self.settings = settings
        self.member = member
        self.transactions = 0
        self.aborted = 0
        self.fenced = 0
        self.rebalances = 0
        self.rebalance_s = 0.0
        self.doubled = False
        self._assigned = assigned
        self._revoked = revoked
        self._identity = uuid.uuid4().hex[:12]
        self._commits = 0
        self._topic = settings.topic(member.topic)
        self._consumer: KafkaConsumer | None = None
        self._producer: KafkaProducer | None = None
        self._listener = _Listener()
        self._membership: ConsumerGroupMetadata | None = None
        self._joining_s: float | None = None
        self._undecided_s: float | None = None
        self._places: dict[int, Place | None] = {}  # what it owns, and what was committed of it
        self._fetched: dict[int, list[Entry]] = {}
        self._lost: dict[int, list[Lost]] = {}
        self._told: dict[int, int] = {}
        self._written_ms: dict[int, int] = {}
        self._interrupted = threading.Event()

    # --- life ---------------------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Connect, and settle what an earlier process of this instance had left unfinished. `poll` joins the group.

        Raises
        ------
        LogError
            There is no such topic.
        """
        member = self.member
        with ExitStack() as failed:
            failed.callback(self.close)
            with translated(f"{self.settings.place}: transactions of {self.settings.prefix}{member.group}"):
                self._producer = self._first_producer()
            self._consumer = consumer(
                self.settings,
                group=member.group,
                instance=member.instance,
                assignors=(CooperativeStickyAssignor,),
                session_s=member.session_s,
                poll_s=member.rebalance_s,
                fetch_bytes=FETCH_BYTES,
            )
            with translated(f"{self.settings.place}: {self._topic}"):
                found = self._consumer.partitions_for_topic(self._topic)
            if not found:  # and joining before that is known would divide nothing, and then again
                raise LogError(f"{self._topic}: there is no such topic: make it by `gridsense topics create`")
            failed.pop_all()
        self._listener.consumer = self._consumer
        self._consumer.subscribe([self._topic], listener=self._listener)

    def close(self) -> None:
        """Let go of everything. A static member stays one of the group until its session ends."""
        self._listener.closed = True
        if self._consumer is not None:
            with suppress(errors.KafkaError, OSError):
                self._consumer.close(autocommit=False, timeout_ms=1000)
            self._consumer = None
        if self._producer is not None:
            discard(self._producer)
            self._producer = None
        self._places.clear()

    def interrupt(self) -> None:
        """Have a transaction that waits for servers give up, now and later. May be called from anywhere."""
        self._interrupted.set()

    # --- reading ------------------------------------------------------------------------------------------------------

    def poll(self, timeout_s: float) -> dict[int, Reading]:
        """Read on, and take part in the group. While no server answers, nothing is there to read.

        Parameters
        ----------
        timeout_s
            How long to wait for something.

        Returns
        -------
        dict[int, Reading]
            By partition, a few MB in all as a rule. A reading may be without entries where it only goes past what is
            none, or past what was lost.
        """
        deadline_s = time.monotonic() + timeout_s
        while True:
            self._hand_over()
            left_s = deadline_s - time.monotonic()
            readings = self._collect()
            if readings or left_s <= 0:
                return readings
            began_s = time.monotonic()
            self._step(left_s)
            # While a heartbeat is overdue it does not wait at all: the servers have enough to do without our asking.
            if not self._fetched and (took_s := time.monotonic() - began_s) < BREATH_S:
                time.sleep(min(BREATH_S - took_s, left_s))

    def committed(self, partition: int) -> Place | None:
        """Say what is committed of a partition. While the answer is being decided by a transaction, wait for it.

        Parameters
        ----------
        partition
            Any of the topic.

        Returns
        -------
        Place | None
            None where nobody ever committed.
        """
        if partition in self._places:
            return self._places[partition]
        with translated(f"{self.settings.place}: what {self.member.group} has committed of {self._topic} {partition}"):
            return self._ask_committed(partition, self.settings.request_s)[0]

    def seek(self, partition: int, offset: int) -> None:
        """Have the next reading begin elsewhere.

        Parameters
        ----------
        partition
            Of those that are assigned.
        offset
            Where to.
        """
        for tp in self._held([partition]):
            self._live().seek(tp, offset)
        self._fetched.pop(partition, None)
        self._lost.pop(partition, None)
        self._told[partition] = offset

    def pause(self, partitions: Iterable[int]) -> None:
        """Read nothing of some partitions for now.

        Parameters
        ----------
        partitions
            Of those that are assigned.
        """
        self._live().pause(*self._held(partitions))

    def resume(self, partitions: Iterable[int]) -> None:
        """Read some partitions again.

        Parameters
        ----------
        partitions
            Of those that are assigned.
        """
        self._live().resume(*self._held(partitions))

    def end(self, partition: int) -> int:
        """Say where a partition ends.

        Parameters
        ----------
        partition
            Of those that are assigned.

        Returns
        -------
        int
            Offset of its next record, as it was when something was last fetched.
        """
        tp = self._tp(partition)
        known = self._live().highwater(tp) if self._held([partition]) else None
        if known is not None:
            return int(known)
        with translated(f"{self.settings.place}: the end of {self._topic} {partition}"):
            return int(self._live().end_offsets([tp], timeout_ms=_ms(self.settings.request_s))[tp])

    def written_ns(self, partition: int) -> int:
        """Say when the newest record that was fetched had been written.

        Parameters
        ----------
        partition
            Any of the topic.

        Returns
        -------
        int
            UTC nanoseconds by the servers' clock, to the millisecond; 0 before the first.
        """
        return self._written_ms.get(partition, 0) * 1_000_000

    def alive(self) -> bool:
        """Ask the servers of its partitions whether they are there, to tell nothing to read from nobody to read from.

        Returns
        -------
        bool
            Whether all of them answered within a second.
        """
        tps = [self._tp(partition) for partition in self._places or (0,)]
        try:
            self._live().end_offsets(tps, timeout_ms=_ms(ALIVE_S))
        except (errors.KafkaError, OSError):
            return False
        return True

    # --- writing ------------------------------------------------------------------------------------------------------

    def transact(self, records: Sequence[Outgoing], places: Mapping[int, Place]) -> None:
        """Write records and commit places, all or nothing, once; on return it is done.

        What fails is settled with the servers: what had gone through after all is not done again, what had not is.

        Parameters
        ----------
        records
            In order; the order holds within a partition.
        places
            By partition of those that are assigned; at least one where there are records, since they are what tells an
            attempt that went through from one that did not.

        Raises
        ------
        ValueError
            There are records, and no place.
        """
        if not places:
            if records:
                raise ValueError("records without a place that is committed with them: give at least one")
            return
        deadline_s = time.monotonic() + self.member.patience_s
        self._end_join(deadline_s)
        self._check_owned(places)
        self._commits += 1
        token = f"{self._identity}-{self._commits}"
        offsets = {
            self._tp(partition): OffsetAndMetadata(place.offset, f"{token} {place.note}".rstrip(" "), -1)
            for partition, place in places.items()
        }
        unsettled, pause_s = False, PAUSE_S
        while True:
            began_s = time.monotonic()
            try:
                if self._producer is None:
                    self._producer = self._ready_producer()
                if not (unsettled and self._went_through(token, places)):
                    unsettled = True
                    self._attempt(self._producer, records, offsets)
                break
            except (errors.KafkaError, LogError, OSError, ValueError) as error:
                cause = self._failed(error, began_s)
            if self._interrupted.wait(min(pause_s, max(0.0, deadline_s - time.monotonic()))) or (
                time.monotonic() >= deadline_s
            ):
                self._give_up(cause)
            pause_s = min(2 * pause_s, PAUSES_S)
        self.transactions += 1
        self._places.update(places)

    def _attempt(
        self, client: KafkaProducer, records: Sequence[Outgoing], offsets: Mapping[TopicPartition, OffsetAndMetadata]
    ) -> None:
        """Try once. The places go first: whoever was replaced is told before it has written anything."""
        deadline_s = time.monotonic() + self.member.transaction_s
        transactions = client._transaction_manager  # noqa: SLF001 - the public methods wait forever
        client.begin_transaction()
        self._await(client, transactions.send_offsets_to_transaction(offsets, self._membership), deadline_s)
        futures = [
            client.send(
                self.settings.topic(record.topic),
                key=record.key.encode(),
                value=record.value,
                headers=[*record.headers, *(headers_of(record.time_ns) if record.time_ns else ())],
                partition=record.partition,
            )
            for record in records
        ]
        for future in futures:  # a batch that fails while the commit waits would be lost, and the commit go through
            while not future.is_done:
                self._check_time(deadline_s)
                with suppress(errors.KafkaTimeoutError):
                    future.get(SLICE_S)
            future.get(0)
        self._await(client, transactions.begin_commit(), deadline_s)

    def _await(self, client: KafkaProducer, result: Any, deadline_s: float) -> None:
        client._sender.wakeup()  # noqa: SLF001 - as the public methods do
        while not result.wait(_ms(SLICE_S)):
            self._check_time(deadline_s)

    def _check_time(self, deadline_s: float) -> None:
        if self._interrupted.is_set() or time.monotonic() >= deadline_s:
            raise errors.KafkaTimeoutError("the servers do not answer")

    def _failed(self, error: Exception, began_s: float) -> Exception:
        """Raise what cannot be helped; else say what it was, having let go of the producer."""
        what = f"{self.settings.place}: transaction of {self.settings.prefix}{self.member.group}"
        cause = error
        if self._producer is not None:
            self.aborted += 1
            if type(error) is errors.KafkaError:  # "because we are in an error state"
                cause = self._producer._transaction_manager.last_error or error  # noqa: SLF001 - said nowhere else
            discard(self._producer)
            self._producer = None
        if isinstance(cause, _OVERTAKEN) and time.monotonic() - began_s < self.member.transaction_s:
            self._look_for_double()  # it was not the time of the transaction that was over
            self._fence(what, cause)
        if isinstance(cause, _REPLACED):
            self._fence(what, cause)
        if isinstance(cause, (*_UNSETTLED, OSError, UnreachableError)) or type(cause) is errors.KafkaError:
            _log.warning("%s: %s: it is settled and tried again", what, cause or type(cause).__name__)
            return cause
        with suppress(errors.KafkaError, LogError, OSError):
            self._producer = self._ready_producer()  # which aborts it now
        if isinstance(cause, ValueError):
            raise LogError(f"{what}: {cause}") from cause
        raise translation(cause, what) from cause

    def _look_for_double(self) -> None:
        """Where somebody of our name has overtaken us, wait until the group has them: then we must not come back."""
        if not self.member.instance:
            return
        self._live().pause(*self._live().assignment())
        deadline_s = time.monotonic() + self.member.session_s
        while time.monotonic() < deadline_s and not self._interrupted.is_set():
            self._step(SLICE_S)

    def _went_through(self, token: str, places: Mapping[int, Place]) -> bool:
        """Whether the attempt before, settled now, had been committed."""
        tokens = {self._ask_committed(partition, self.settings.request_s)[1] for partition in places}
        return tokens == {token}

    def _give_up(self, cause: Exception) -> NoReturn:
        what = f"{self.settings.place}: transaction of {self.settings.prefix}{self.member.group}"
        raise UnreachableError(
            f"{what}: not done within {self.member.patience_s:g} s ({translation(cause, 'at last')})"
        ) from cause

    def _fence(self, what: str, cause: Exception | None) -> NoReturn:
        self.fenced += 1
        self.doubled = isinstance(cause, errors.FencedInstanceIdError)
        reason = f" ({type(cause).__name__})" if cause else ""
        raise FencedError(f"{what}: the group has gone on without this member{reason}: begin anew") from cause

    def _first_producer(self) -> KafkaProducer:
        """Make a producer; servers of which one answers may still be about to find who coordinates."""
        deadline_s = time.monotonic() + OPEN_S
        while True:
            try:
                return self._ready_producer()
            except (errors.RetriableError, errors.KafkaTimeoutError) as error:
                if self._interrupted.is_set() or time.monotonic() >= deadline_s:
                    raise
                _log.warning("%s: %s: no coordinator yet (%s)", self.settings.place, self.member.group, error)
                self._interrupted.wait(PAUSES_S)

    def _ready_producer(self) -> KafkaProducer:
        """Make a producer; whatever its predecessor of this name had begun is committed or aborted on return."""
        made = producer(
            self.settings,
            transactional_id=f"{self.member.group}-{self.member.instance or self._identity}",
            transaction_s=self.member.transaction_s,
            linger_ms=0,
        )
        try:
            made.init_transactions()
        except BaseException:
            discard(made)
            raise
        return made

    # --- the group ----------------------------------------------------------------------------------------------------

    def _step(self, timeout_s: float) -> None:
        """Let the consumer do one round: join if it must, fetch what there is."""
        what = f"{self.settings.place}: {self._topic} by {self.settings.prefix}{self.member.group}"
        client = self._live()
        coordinator = client._coordinator  # noqa: SLF001 - nothing public tells
        if coordinator.rejoining and not coordinator.rejoin_needed:
            # kafka-python 3.0.12: a joining that new metadata began, and that outlasts a round, may be taken as done in
            # the next, while heartbeats are off: the group would go on without us, and we never hear of it
            coordinator.request_rejoin()
        try:
            # one round, not `poll`: within one call that would let go of partitions and join again, untold
            fetched = client._poll_once(Timer(_ms(timeout_s)), client.config["max_poll_records"])  # noqa: SLF001
        except errors.NoOffsetForPartitionError:
            fetched = {}  # they are being assigned; `_hand_over` says where they stand
        except errors.OffsetOutOfRangeError as error:
            fetched = {}
            self._go_past(error)
        except (errors.RetriableError, OSError) as error:
            _log.debug("%s: %s", what, error)
            fetched = {}
            time.sleep(min(timeout_s, PAUSE_S))
        except errors.LogTruncationError as error:
            raise LogError(
                f"{what}: the log has lost what was read from it already ({error}): decide where to go on, and"
                " set the group's offsets"
            ) from error
        except errors.KafkaError as error:
            if self._listener.lost or isinstance(error, _REPLACED):
                self._fence(what, error)
            raise translation(error, what) from error
        for tp, records in fetched.items():
            self._fetched.setdefault(tp.partition, []).extend(map(entry_of, records))
            if records:
                self._written_ms[tp.partition] = records[-1].timestamp
        self._remember_membership(what)

    def _remember_membership(self, what: str) -> None:
        """Keep who we are in the group now. What is committed is committed as that, or refused.

        Not asked for when committing: what runs in the background may have forgotten it then, and a commit as nobody
        is refused by nobody.
        """
        if self._is_doubled():
            self._fence(what, errors.FencedInstanceIdError())
        now_s, membership = time.monotonic(), self._live().group_metadata()
        if membership.state != MemberState.STABLE:
            self._joining_s = self._joining_s or now_s
            return
        known = self._membership
        if known is not None and known.member_id != membership.member_id and self._places:
            self._fence(what, None)  # it was out and came back: others may have had its partitions
        if known is None or known.generation_id != membership.generation_id:
            self.rebalances += 1
            self.rebalance_s += now_s - (self._joining_s or now_s)
        self._joining_s = None
        self._membership = membership

    def _is_doubled(self) -> bool:
        """Whether a heartbeat was answered that another of our name is there: kafka-python only ceases to send more."""
        coordinator = self._live()._coordinator  # noqa: SLF001 - said nowhere else
        with coordinator._lock:  # noqa: SLF001
            joined = coordinator.state == MemberState.STABLE and not (
                coordinator.rejoin_needed or coordinator.rejoining
            )
            return bool(self.member.instance) and joined and not coordinator._heartbeat_enabled  # noqa: SLF001

    def _hand_over(self) -> None:
        """Tell our owner what the group has decided since."""
        while self._listener.changes:
            given, tps = self._listener.changes[0]
            partitions = sorted(tp.partition for tp in tps)
            if given:
                try:
                    places = {
                        partition: self._ask_committed(partition, self.settings.request_s)[0]
                        for partition in partitions
                    }
                    first = self._first([self._tp(p) for p, place in places.items() if place is None])
                except (errors.RetriableError, OSError) as error:
                    self._say_undecided(partitions, error)
                    return  # the next poll asks again
                self._undecided_s = None
                self._listener.changes.popleft()
                self._places |= places
                for partition, place in places.items():
                    self.seek(partition, first[partition] if place is None else place.offset)
                self.resume(partitions)
                self._assigned(partitions)
            else:
                self._listener.changes.popleft()
                try:
                    self._revoked(partitions)
                finally:
                    for partition in partitions:
                        self._places.pop(partition, None)
                        self._fetched.pop(partition, None)
                        self._lost.pop(partition, None)

    def _say_undecided(self, partitions: Sequence[int], error: Exception) -> None:
        """Say, once, that partitions cannot be begun: a transaction that never ends holds their places."""
        now_s = time.monotonic()
        self._undecided_s = self._undecided_s or now_s + UNDECIDED_S + self.member.transaction_s
        if now_s > self._undecided_s:
            self._undecided_s = float("inf")
            _log.error(
                "%s: what %s%s has committed of partitions %s is not known after %g s (%s); if the servers are well, a"
                " transaction hangs: see kafka-transactions.sh find-hanging",
                self._topic,
                self.settings.prefix,
                self.member.group,
                list(partitions),
                UNDECIDED_S + self.member.transaction_s,
                type(error).__name__,
            )

    def _end_join(self, deadline_s: float) -> None:
        """Bring to its end a joining that a poll has begun: the group's generation changes in its midst."""
        while self._membership is not None and self._live().group_metadata().state == MemberState.REBALANCING:
            if self._interrupted.is_set() or time.monotonic() >= deadline_s:
                raise UnreachableError(f"{self.settings.prefix}{self.member.group} is still dividing its partitions")
            self._step(SLICE_S)

    def _check_owned(self, places: Mapping[int, Place]) -> None:
        foreign = sorted(set(places) - set(self._places))
        if foreign:
            self.fenced += 1
            raise FencedError(f"{self._topic}: partitions {foreign} are not ours (any more): begin anew")

    # --- the partitions -----------------------------------------------------------------------------------------------

    def _collect(self) -> dict[int, Reading]:
        """Gather what was fetched."""
        readings = {}
        for partition in self._places:
            entries = self._fetched.pop(partition, [])
            lost = tuple(self._lost.pop(partition, ()))
            told = self._told[partition]
            following = self._position(partition, entries[-1].offset + 1 if entries else told)
            if entries or lost or following != told:
                self._told[partition] = following
                readings[partition] = Reading(entries, following, lost)
        return readings

    def _position(self, partition: int, otherwise: int) -> int:
        try:
            position = self._live().position(self._tp(partition), timeout_ms=0)
        except (errors.KafkaError, OSError):
            return otherwise
        return otherwise if position is None else int(position)

    def _go_past(self, error: errors.OffsetOutOfRangeError) -> None:
        """Go on where the topic begins now, and say what is missing."""
        for tp, offset in error.args[0].items():
            try:
                first = self._first([tp])[tp.partition]
                end = self._live().end_offsets([tp], timeout_ms=_ms(self.settings.request_s))[tp]
            except (errors.RetriableError, OSError):
                continue  # the next fetch says it again
            if offset > end:
                raise LogError(
                    f"{self._topic} {tp.partition} ends at {end}, and {offset} was read already: it was made anew, or"
                    " has lost its end; decide where to go on, and set the group's offsets"
                ) from error
            if offset < first:
                self._live().seek(tp, first)
                self._lost.setdefault(tp.partition, []).append(Lost(offset, first - 1, "expired"))

    def _first(self, tps: Sequence[TopicPartition]) -> dict[int, int]:
        if not tps:
            return {}
        found = self._live().beginning_offsets(list(tps), timeout_ms=_ms(self.settings.request_s))
        return {tp.partition: int(offset) for tp, offset in found.items()}

    def _ask_committed(self, partition: int, timeout_s: float) -> tuple[Place | None, str]:
        """Ask for what is committed, and by which transaction. It is stable: no transaction that may change it runs."""
        found = self._live().committed(self._tp(partition), metadata=True, timeout_ms=_ms(timeout_s))
        if found is None:
            return None, ""
        token, _, note = (found.metadata or "").partition(" ")
        return Place(int(found.offset), note), token

    def _held(self, partitions: Iterable[int]) -> list[TopicPartition]:
        """Name those that the group has not taken since our owner was last told."""
        held = self._live().assignment()
        return [tp for tp in map(self._tp, partitions) if tp in held]

    def _tp(self, partition: int) -> TopicPartition:
        return TopicPartition(self._topic, partition)

    def _live(self) -> KafkaConsumer:
        if self._consumer is None:
            raise LogError(f"{self._topic}: this member is not open")
        return self._consumer


class _Listener(ConsumerRebalanceListener):  # type: ignore[misc]  # kafka-python has no types
    """Takes down what the group decides, in the thread of the network, while the owner's waits for it."""

    def __init__(self) -> None:
        self.changes: deque[tuple[bool, set[TopicPartition]]] = deque()
        self.consumer: KafkaConsumer | None = None
        self.lost = False
        self.closed = False

    def on_partitions_assigned(self, assigned: set[TopicPartition]) -> None:
        """Keep still what came, until the owner knows."""
        if assigned and self.consumer is not None:
            self.consumer.pause(*assigned)
            self.changes.append((True, set(assigned)))

    def on_partitions_revoked(self, revoked: set[TopicPartition]) -> None:
        """Remember what goes."""
        if revoked and not self.closed:
            self.changes.append((False, set(revoked)))

    def on_partitions_lost(self, lost: set[TopicPartition]) -> None:
        """Go no further: joining again would claim what others own."""
        if lost and not self.closed:
            self.lost = True
            raise FencedError("the group has gone on without this member")


def _ms(time_s: float) -> int:
    return round(time_s * 1e3)

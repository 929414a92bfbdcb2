"""Which of several processes may do something: the one that has the only partition of a topic.

In: the name of a group. Out: whether this process has it; another gets it when this one lets go, or is silent for the
time of a session. It may be believed for a while after it was lost: who acts on it must be fenced besides.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from kafka import ConsumerRebalanceListener, KafkaConsumer, errors
from kafka.coordinator.assignors.cooperative_sticky import CooperativeStickyAssignor

from streams.kafka.clients import consumer, translated
from streams.kafka.settings import KafkaSettings
from streams.log import LEASE

JOIN_S = 0.1
"""How long one look may wait for the group, while another has the lease."""


class Lease:
    """A membership in a group for the one partition of `LEASE`. It belongs to one thread.

    Parameters
    ----------
    settings
        Of Kafka.
    group
        Whose members share the lease, without the prefix.
    session_s
        Silence after which another one gets it.
    """

    def __init__(self, settings: KafkaSettings, group: str, session_s: float) -> None:
        self._settings = settings
        self._group = group
        self._session_s = session_s
        self._client: KafkaConsumer | None = None

    def held(self) -> bool:
        """Take part in the group, and say whether the lease is ours. A `LogError` where we are no member any more.

        Returns
        -------
        bool
            As far as we know.
        """
        with translated(f"{self._settings.place}: lease of group {self._settings.prefix}{self._group}"):
            if self._client is None:
                self._client = consumer(
                    self._settings,
                    group=self._group,
                    assignors=(CooperativeStickyAssignor,),
                    session_s=self._session_s,
                )
                self._client.subscribe([self._settings.topic(LEASE)], listener=_Listener(self._client))
            coordinator = self._client._coordinator  # noqa: SLF001 - nothing public tells
            if coordinator.rejoining:
                # kafka-python 3.0.12: where joining outlasts a poll, the next may take it as done, while heartbeats are
                # off: the group then goes on without us, and we would never hear of it
                coordinator.request_rejoin()
            with suppress(errors.RetriableError):
                self._client.poll(0 if self._client.assignment() else round(JOIN_S * 1e3))
            return bool(self._client.assignment())

    def close(self) -> None:
        """Let another one have it."""
        if self._client is not None:
            with suppress(errors.KafkaError, OSError):
                self._client.close(autocommit=False, timeout_ms=1000)
            self._client = None


class _Listener(ConsumerRebalanceListener):  # type: ignore[misc]  # kafka-python has no types
    """Keeps the partition from being read: there is nothing in it."""

    def __init__(self, client: KafkaConsumer) -> None:
        self._client = client

    def on_partitions_assigned(self, assigned: set[Any]) -> None:
        """Say where it stands, so that nobody asks."""
        for tp in assigned:
            self._client.seek(tp, 0)
            self._client.pause(tp)

    def on_partitions_revoked(self, revoked: set[Any]) -> None:
        """Nothing is to be done."""

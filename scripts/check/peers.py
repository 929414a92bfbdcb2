"""Checks that other people's C37.118 understands ours, and ours theirs: clients, servers, and tshark on the wire.

Third-party clients read `simulate-pmu`, our gateway reads third-party servers, every number is compared; tshark reads
what passes between simulator and gateway by every transport. The first run makes `.venv-peers` from hash-locked
requirements. The exit status is 1 where anything differs.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

try:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    from models.errors import VirtualEnvironmentError
    from scripts.peers.environment import peers_python
    from scripts.peers.scene import Form, make_scene
    from scripts.peers.sessions import Conversation, PeerError, client_reads, server_is_read
    from scripts.peers.wire import Seen, loopback_is_open, tshark_is_there, watch
    from streams.gateway.settings import Transport
except ImportError:
    own = ROOT / ".venv" / "bin" / "python"
    if not own.exists() or Path(sys.prefix) == own.parents[1]:
        raise
    os.execv(own, [str(own), *sys.argv])  # noqa: S606 - any Python may start this; the project's own runs it

FLOATS = Form(polar=True, float_phasors=True, float_frequency=True)
RECTANGULAR_FLOATS = Form(polar=False, float_phasors=True, float_frequency=True)
INTEGERS = Form(polar=True, float_phasors=False, float_frequency=False)
RECTANGULAR_INTEGERS = Form(polar=False, float_phasors=False, float_frequency=False)
MIXED = Form(polar=True, float_phasors=True, float_frequency=False)
FORMS = (FLOATS, RECTANGULAR_FLOATS, INTEGERS, RECTANGULAR_INTEGERS, MIXED)

CLIENTS = ("pyc37", "pymu", "pysynphasor")
SERVERS = (("pypmu", "pyc37"), ("pypmu", "synchrophasor"), ("pysynphasor",))
FRAMES = 120
LIMITED = ("pyc37", "pypmu")
"""pyPMU takes a floating FREQ for a deviation within 32.767, where the standard has the frequency itself in Hz: it can
neither read nor send one. It also reads STAT wrongly (15-14 are shifted by 15, time quality is not shifted)."""


@dataclass(frozen=True, slots=True)
class Found:
    """Everything that was looked at.

    Attributes
    ----------
    clients, servers
        Conversations.
    wires
        By transport.
    skipped
        What was not looked at, and why.
    """

    clients: tuple[Conversation, ...]
    servers: tuple[Conversation, ...]
    wires: tuple[Seen, ...]
    skipped: tuple[str, ...]

    @property
    def differences(self) -> int:
        """How many."""
        return sum(len(one.differences) for one in (*self.clients, *self.servers, *self.wires))

    @property
    def malformed(self) -> int:
        """Packets that tshark finds fault with."""
        return sum(wire.malformed for wire in self.wires)


def can(peer: str, form: Form) -> bool:
    """Tell whether a peer knows a format as the standard has it.

    Parameters
    ----------
    peer
        A client, or the first word of a server.
    form
        Formats.

    Returns
    -------
    bool
        See `LIMITED`.
    """
    return peer not in LIMITED or not form.float_frequency


def conversations(python: Path, *, quick: bool) -> Iterator[tuple[str, Callable[[Path], Conversation]]]:
    """List what clients and servers are asked.

    Parameters
    ----------
    python
        Of the peers' environment.
    quick
        Integers and floats, one PMU and several, but not all combinations.

    Yields
    ------
    tuple[str, Callable[[Path], Conversation]]
        ``client`` or ``server``, and what holds it in a folder.
    """
    asked = [(MIXED, 1), (INTEGERS, 3), (FLOATS, 3)] if quick else [(form, pmus) for form in FORMS for pmus in (1, 3)]
    for client in CLIENTS:
        plain = client in LIMITED
        for form, pmus in asked:
            if can(client, form):
                yield "client", partial(client_reads, python, client, make_scene(form, pmus, FRAMES, plain=plain))
        if can(client, FLOATS):
            several = make_scene(FLOATS, 3, FRAMES)
            yield "client", partial(client_reads, python, client, several, made=True)
            if not quick:
                yield "client", partial(client_reads, python, client, several, bare=True)
    for server in SERVERS:
        for form, pmus in asked:
            if can(server[0], form) and not (quick and pmus == 1):
                yield "server", partial(server_is_read, python, server, make_scene(form, pmus, FRAMES, plain=False))


def look(*, quick: bool, say: Callable[[str], None]) -> Found:
    """Hold all conversations.

    Parameters
    ----------
    quick
        A part of them.
    say
        Says what is being done.

    Returns
    -------
    Found
        What came of them.
    """
    held: dict[str, list[Conversation]] = {"client": [], "server": []}
    wires, skipped = [], []
    try:
        say("making or finding the peers' environment")
        python = peers_python()
    except VirtualEnvironmentError as error:
        skipped.append(f"clients and servers: {error}")
    else:
        for kind, hold in conversations(python, quick=quick):
            with tempfile.TemporaryDirectory() as folder:
                held[kind].append(hold(Path(folder)))
            last = held[kind][-1]
            say(f"{kind} {last.peer}: {last.about}: {len(last.differences)} differences")
    if tshark_is_there():
        asked = [(INTEGERS, False)] if quick else [(form, False) for form in FORMS]
        if not quick and loopback_is_open():
            asked += [(FLOATS, True), (RECTANGULAR_INTEGERS, True)]
        elif not quick:
            skipped.append("packets of the system: capturing on the loopback is not allowed; a relay took them down")
        for transport in Transport:
            for form, live in asked:
                with tempfile.TemporaryDirectory() as folder:
                    scene = make_scene(form, 3, FRAMES, plain=False)
                    wires.append(watch(transport, scene, Path(folder), live=live))
            say(f"wire {transport}: {sum(wires[-1].theirs.values())} frames, {wires[-1].malformed} malformed")
    else:
        skipped.append("the wire: tshark is not installed (Debian package tshark)")
    return Found(tuple(held["client"]), tuple(held["server"]), tuple(wires), tuple(skipped))


def show(console: Console, found: Found) -> None:
    """Print tables for people."""
    table = Table("", "peer", "said", "frames", "differs", title="other people's C37.118 and ours", box=SIMPLE_HEAD)
    for kind, held in (("client", found.clients), ("server", found.servers)):
        for one in held:
            table.add_row(kind, one.peer, one.about, str(one.frames), "; ".join(one.differences) or "-")
    console.print(table)
    table = Table(
        "transport", "taken by", "frames by type, as tshark", "malformed", "differs", title="the wire", box=SIMPLE_HEAD
    )
    for seen in found.wires:
        types = ", ".join(f"{n} {kind}" for kind, n in seen.theirs.items())
        table.add_row(
            str(seen.transport),
            "capture" if seen.live else "relay",
            types,
            str(seen.malformed),
            "; ".join(seen.differences) or "-",
        )
    console.print(table)
    for line in found.skipped:
        console.print(f"not looked at: {line}", markup=False)


def as_json(found: Found) -> str:
    """Write the figures as one line of JSON.

    Parameters
    ----------
    found
        What was looked at.

    Returns
    -------
    str
        An object.
    """
    return json.dumps(
        {
            "clients": len({one.peer for one in found.clients}),
            "servers": len({one.peer for one in found.servers}),
            "conversations": len(found.clients) + len(found.servers),
            "transports": len({seen.transport for seen in found.wires}),
            "frames_compared": sum(one.frames for one in (*found.clients, *found.servers)),
            "captured_live": sum(seen.live for seen in found.wires),
            "frames_dissected": sum(sum(seen.theirs.values()) for seen in found.wires),
            "differences": found.differences,
            "malformed": found.malformed,
            "bad_checksums": sum(seen.bad_checksums for seen in found.wires),
            "skipped": list(found.skipped),
        }
    )


def main(arguments: Sequence[str]) -> int:
    """Check, and say what came of it."""
    parser = argparse.ArgumentParser(
        prog="peers.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="some formats instead of all: within a minute")
    parser.add_argument("--json", action="store_true", help="the last line is one JSON object with the figures")
    args = parser.parse_args(arguments)
    logging.getLogger("streams").setLevel(logging.ERROR)  # that a peer closes is no news here
    aside = Console(stderr=True, highlight=False, soft_wrap=True, markup=False)
    try:
        found = look(quick=args.quick, say=aside.print)
    except PeerError as error:
        print(f"peers: {error}", file=sys.stderr)
        return 2
    show(Console(soft_wrap=not sys.stdout.isatty()), found)
    if args.json:
        print(as_json(found))
    return 1 if found.differences or found.malformed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""What passes between simulator and gateway, as tshark dissects it: every frame, none malformed, no wrong check."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from scripts.check.peers import FLOATS, INTEGERS
from scripts.peers.scene import make_scene
from scripts.peers.wire import Seen, Tape, dissect, tshark_is_there, watch
from streams.c37118.configuration import encode_configuration
from streams.gateway.settings import Transport

FRAMES = 60


@pytest.fixture(autouse=True)
def _tshark() -> None:
    if not tshark_is_there():
        if os.environ.get("CI"):
            pytest.fail("tshark is missing: CI must install it")
        pytest.skip("tshark is not installed (Debian package tshark)")


@pytest.mark.parametrize("transport", list(Transport), ids=str)
def test_tshark_reads_every_frame(transport: Transport, tmp_path: Path) -> None:
    form = INTEGERS if transport.over_udp else FLOATS
    seen = watch(transport, make_scene(form, 3, FRAMES, plain=False), tmp_path)
    assert seen.differences == ()
    assert seen.malformed == 0
    assert seen.theirs["data"] == FRAMES
    assert seen.theirs.keys() == ({"cfg3", "command", "data"} if transport.commanded else {"cfg2", "data"})


def test_tshark_finds_what_is_wrong(tmp_path: Path) -> None:
    scene = make_scene(FLOATS, 1, 2)
    good = encode_configuration(scene.configuration)[0]
    tape = Tape([])
    tape.take("udp", 4712, 4713, good)
    tape.take("udp", 4712, 4713, good[:-1] + bytes([good[-1] ^ 1]))
    tape.take("udp", 4712, 4713, good[:18] + b"\0\2" + good[20:])
    path = tmp_path / "wrong.pcap"
    tape.write(path)
    types, malformed, bad = dissect(path, (0, 4712))
    assert types == {"cfg2": 3}
    assert malformed > 0
    assert bad == 2


def test_a_difference_is_said() -> None:
    seen = Seen(Transport.TCP, 3, 2, {"data": 3}, {"data": 2}, 0, 1)
    assert len(seen.differences) == 3

"""Clients and servers that nobody here wrote: they read our simulator, our gateway reads them, number by number."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from scripts.check.peers import CLIENTS, FLOATS, INTEGERS, MIXED, RECTANGULAR_INTEGERS, SERVERS, Found, as_json, can
from scripts.peers.scene import Form, Scene, make_scene
from scripts.peers.sessions import Conversation, client_reads, server_is_read

FRAMES = 100


def plain(peer: str, form: Form, pmus: int) -> Scene:
    return make_scene(form, pmus, FRAMES, plain=peer == "pyc37")


def agreed(conversation: Conversation) -> None:
    assert conversation.differences == ()
    assert conversation.frames == FRAMES


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize(("form", "pmus"), [(FLOATS, 1), (INTEGERS, 3)], ids=["floats", "integers"])
def test_a_third_party_client_reads_the_simulator(
    peers_python: Path, tmp_path: Path, client: str, form: Form, pmus: int
) -> None:
    heard = client_reads(peers_python, client, plain(client, form, pmus), tmp_path)
    if can(client, form):
        agreed(heard)
    else:  # see scripts.check.peers.LIMITED; should a new version learn it, the check shall ask for it
        assert heard.differences == (f"{FRAMES} of {FRAMES} data frames were not understood",)


@pytest.mark.parametrize("client", [c for c in CLIENTS if can(c, FLOATS)])
def test_a_third_party_client_reads_a_concentrator_made_up(peers_python: Path, tmp_path: Path, client: str) -> None:
    agreed(client_reads(peers_python, client, make_scene(FLOATS, 3, FRAMES), tmp_path, made=True))


@pytest.mark.parametrize(
    ("server", "form"),
    [(SERVERS[0], MIXED), (SERVERS[0], RECTANGULAR_INTEGERS), (SERVERS[1], INTEGERS), (SERVERS[2], FLOATS)],
    ids=["pyc37, mixed", "pyc37, integers", "synchrophasor, integers", "pysynphasor, floats"],
)
def test_the_gateway_reads_a_third_party_server(
    peers_python: Path, tmp_path: Path, server: tuple[str, ...], form: Form
) -> None:
    agreed(server_is_read(peers_python, server, make_scene(form, 3, FRAMES, plain=False), tmp_path))


def test_a_wrong_number_is_a_difference(peers_python: Path, tmp_path: Path) -> None:
    scene = make_scene(INTEGERS, 3, FRAMES, plain=False)
    frequency, sent = scene.frequency.copy(), scene.sent.copy()
    frequency[50, 1] += 1
    sent[70, 2, 1, 0] += 1
    found = server_is_read(peers_python, ("pysynphasor",), replace(scene, frequency=frequency, sent=sent), tmp_path)
    assert [d.partition(",")[0] for d in found.differences] == [
        "phasor: 1 of 900 differ",
        "frequency: 1 of 300 differ",
    ]


def test_the_scene_fills_its_formats() -> None:
    scene = make_scene(INTEGERS, 3, FRAMES)
    assert scene.sent[..., 0].max() > 40_000, "an unsigned magnitude, above what a signed one can be"
    assert scene.sent[..., 1].min() < 0
    assert len(np.unique(scene.batch.time_ns)) == FRAMES
    assert make_scene(INTEGERS, 3, FRAMES, plain=False).batch.stat.any()


def test_the_figures() -> None:
    one = Conversation("pyc37", "", 100, ())
    found = Found((one, one), (replace(one, differences=("no",)),), (), ("the wire",))
    assert (found.differences, found.malformed) == (1, 0)
    assert '"clients": 1, "servers": 1, "conversations": 3' in as_json(found)
    assert '"frames_compared": 300' in as_json(found)

"""Gateway and processor killed at random moments: nothing lost, nothing doubled; and the check can fail."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from scripts.check.kill_embedded import broken, compare_events, main
from scripts.faults.line import Change, Frame, Frames, compare_frames, compare_logs

S = 10**9
RAISED, ENDED, OTHER = Change("a", False, "begins"), Change("a", True, "ends"), Change("b", False, "begins")
SENT = [Frame(n * S // 10, (n, 0), bytes([n])) for n in range(10)]
GOOD = Frames(sent=10, logged=10)


@pytest.mark.slow
def test_five_kills_lose_and_double_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status = main(["--quick", "--json", "--seed", "3", "--keep", str(tmp_path / "line")])
    said = capsys.readouterr()
    assert status == 0, said.out + said.err
    figures = json.loads(said.out.splitlines()[-1])
    assert sum(figures["kills"].values()) >= 5
    assert figures["changes"] > 0
    assert (figures["lost"], figures["doubled"], figures["differing"]) == (0, 0, 0)
    assert figures["frames_logged"] + figures["frames_while_down"] == figures["frames_sent"] > 0


def test_what_a_killed_processor_must_not_do_is_told() -> None:
    straight = [RAISED, ENDED]
    assert broken(compare_events(straight, straight), GOOD) == []
    for killed, words in (
        ([RAISED], "1 changes of events are lost"),
        ([RAISED, ENDED, OTHER], "1 changes of events are doubled"),
        ([RAISED, ENDED, ENDED], "1 changes of events are doubled"),
        ([RAISED, ENDED._replace(text="later")], "1 changes of events say something else"),
        ([ENDED, RAISED], "1 events ended before they were raised"),
    ):
        (told,) = broken(compare_events(killed, straight), GOOD)
        assert told.startswith(words)
    assert broken(compare_events([], []), Frames()) == [
        "no event was found: nothing was tried",
        "no frame was logged: nothing was tried",
    ]


def test_frames_that_a_gateway_must_not_lose_are_told() -> None:
    found = compare_events([RAISED], [RAISED])
    down = compare_frames(SENT, [*SENT[:3], *SENT[6:]], [SENT[4].arrival_ns])
    assert down == Frames(sent=10, logged=7, while_down=3, unwritten_s=pytest.approx(0.1))
    assert broken(found, down) == []
    late = compare_frames(SENT, [*SENT[:3], *SENT[6:]], [SENT[8].arrival_ns])
    assert broken(found, late) == ["3 frames are missing though the gateway was there"]
    twice = compare_frames(SENT, [*SENT[:5], SENT[4], *SENT[5:]], [])
    assert broken(found, twice) == ["1 frames are doubled or out of order"]
    changed = compare_frames(SENT, [*SENT[:9], SENT[9]._replace(digest=b"?")], [])
    assert broken(found, changed) == ["1 frames are not as they were sent"]
    assert compare_logs({"a": SENT, "b": SENT}, {"a": SENT, "b": SENT[2:]}, []) == Frames(sent=18, logged=18)

"""Stands where the training environment's interpreter does: says and writes what `models/t2t` would, in no time.

`trainer_environment(folder)` makes the folder look like an environment that was made. A step of it is a file, so that a
test sees what was done again; a file `fail` beside the interpreter lets training fail.
"""

from __future__ import annotations

import sys
from pathlib import Path

from models import training_environment
from models.virtual_environment import STAMP, digest

ROOT = Path(__file__).parents[2]

PROGRAM = """#!{python}
import json, pathlib, sys
sys.path.append({root!r})
import numpy as np
assert sys.argv[1:5] == ["-W", "ignore", "-m", "t2t"], sys.argv
verb, words = sys.argv[5], dict(zip(sys.argv[6::2], sys.argv[7::2]))
here = pathlib.Path(__file__).parent
with (here / "calls").open("a") as out:
    out.write(json.dumps([verb, words]) + "\\n")
def say(event, **facts):
    print(json.dumps(dict(facts, event=event)), flush=True)
if verb == "generate":
    for split in ("train", "eval", "test"):
        assert list(pathlib.Path(words["--tmp-dir"], split).glob("*.npy")), split
    say("generated", files=3)
elif verb == "train":
    print("no JSON, for the log")
    say("step", step=1, of=2, loss=1.5)
    if (here / "fail").exists():
        print("OutOfMemory: no room for the batch", file=sys.stderr)
        sys.exit(7)
    say("evaluation", step=2, of=2, loss=1.25, held_out=1.125, best=1.125)
    say("trained", steps=2, best=1.125)
elif verb == "export":
    from models.engines import ArrayEngine
    from tests.reference.small_network import frames, small_weights
    to = pathlib.Path(words["--to"])
    (to / "saved_model").mkdir(parents=True, exist_ok=True)
    (to / "saved_model" / "saved_model.pb").write_bytes(b"a graph")
    weights = small_weights(inputs=49, hidden=8, layers=1, outputs=42, scale=0.1)
    parts = {{"bottom/kernel": weights.bottom_kernel, "bottom/bias": weights.bottom_bias,
             "cell_0/kernel": weights.cells[0][0], "cell_0/bias": weights.cells[0][1],
             "top/kernel": weights.top_kernel, "top/bias": weights.top_bias}}
    np.savez(to / "weights.npz", **parts)
    inputs = frames(3, 40, 2, 49)
    engine = ArrayEngine(weights)
    state, raw = engine.initial(2), []
    for frame in inputs:
        found, state = engine.step(frame, state)
        raw.append(found)
    wrong = 1e-3 if (here / "wrong").exists() else 0
    np.savez(to / "self_test.npz", inputs=inputs, raw=np.stack(raw) + np.float32(wrong))
    (to / "trained.json").write_text(json.dumps({{"steps": 2, "versions": {{"tensor2tensor": "1.15.7"}}}}))
    say("exported", to=str(to))
"""


def trainer_environment(folder: Path) -> Path:
    (folder / "bin").mkdir(parents=True)
    python = folder / "bin" / "python"
    python.write_text(PROGRAM.format(python=sys.executable, root=str(ROOT)))
    python.chmod(0o755)
    t2t = Path(training_environment.__file__).parent / "t2t"
    (folder / STAMP).write_text(digest((t2t / "requirements.txt", t2t / "requirements-source.txt")))
    return folder

"""Draws the README's picture: the demo's terminal, a moment after the second fault, as `docs/demo.svg`.

Run it as `.venv/bin/python scripts/draw_demo.py`; the bundled streams go through the product's own pipeline and screen.
"""

from __future__ import annotations

import io
import re
from pathlib import Path

from rich.console import Console

from gridsense.detect import learn
from gridsense.pipeline import SCORERS, Pipeline, Settings
from gridsense.screen import Screen
from gridsense.sequence import load_model
from gridsense.sources import open_source, read_rounds

ROOT = Path(__file__).parents[1]
MOMENT_S = 287.0


def main() -> None:
    """Watch the bundled grid up to the moment, and draw."""
    bundled = ROOT / "gridsense" / "demo"
    settings = Settings(source="demo", scorers=SCORERS, model=load_model())
    learned = learn(settings, [open_source(bundled / "ambient.parquet")], lambda _: None)
    pipeline = Pipeline(settings, learned)
    screen = Screen("54 PMUs of 5 concentrators", pipeline.threshold)
    frames = 0
    for together in read_rounds([open_source(bundled / "demo.parquet")], round_s=0.4):
        for output in pipeline.feed(together):
            screen.show(output)
            frames += len(output.judged.time_ns)
        for event in pipeline.open_events():
            screen.show_event(event)
        if frames >= MOMENT_S * 30:
            break
    screen.note = f"{frames / 30:.0f} s of the stream"
    console = Console(
        record=True, width=120, height=40, force_terminal=True, color_system="truecolor", file=io.StringIO()
    )
    console.print(screen, end="")
    drawn = console.export_svg(title="gridsense demo").replace("Fira Code", "DejaVu Sans Mono")
    # The font's address: a picture in a repository fetches nothing.
    drawn = re.sub(r"@font-face\s*\{.*?\}\s*", "", drawn, flags=re.DOTALL)
    target = ROOT / "docs" / "demo.svg"
    target.write_text(drawn)
    print(f"{target.relative_to(ROOT)}: {len(drawn):,} bytes")


if __name__ == "__main__":
    main()

"""Tells whoever started this process how far it is: a line of JSON for each event on stdout, and nothing else there."""

import json


def say(event: str, **words: object) -> None:
    """Write one line.

    Parameters
    ----------
    event
        What happened.
    **words
        What there is to say of it.
    """
    print(json.dumps({"event": event, **words}), flush=True)  # noqa: T201 - stdout is the channel

"""A recording in, C37.118 servers out: what PMUs and concentrators would have put on the wire, for real receivers.

`recording` reads files as frames, `script` says which stream is served with which of them, `playback` says when each
frame leaves, `server` who gets it. It judges no value.
"""

"""IEEE C37.118.2-2011 in both directions.

Bytes of configuration, data, header and command frames in, definitions and `FrameBatch` out, and back.
It opens no file and no socket: `streams.captures` and the gateway feed it.
"""

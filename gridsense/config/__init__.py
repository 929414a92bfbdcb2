"""The configuration: one TOML file < environment `GRIDSENSE_A__B` < command line, read once, passed down frozen.

`load` reads it and says where each value came from; `sections` says what there is; `example` and `schema` write it.
"""

from gridsense.config.example import SCHEMA_FILE, example, schema
from gridsense.config.reading import FILE_NAME, Loaded, load, values
from gridsense.config.sections import Config, ConnectionSection

__all__ = [
    "FILE_NAME",
    "SCHEMA_FILE",
    "Config",
    "ConnectionSection",
    "Loaded",
    "example",
    "load",
    "schema",
    "values",
]

"""One module a command of `gridsense`; `gridsense.cli` lists them."""

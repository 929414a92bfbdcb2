"""The demo: a simulated grid sent as C37.118 bytes, watched live in the terminal, and judged at its end.

In: the streams bundled here (`ambient.parquet`, `demo.parquet`) and their labels (`demo.json`). Out: a screen, then a
summary. The streams are made by `scripts/simulate_grid.py`; nothing here simulates, and nothing else imports this.
"""

"""GridSense: streaming anomaly detection for synchrophasors. Start reading at `gridsense.pipeline`."""

import os

# The matrices of one PMU are small: a second BLAS thread costs more than it gives (learning takes six times as long).
# Whoever sets it otherwise, or imports numpy before, keeps what they have.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

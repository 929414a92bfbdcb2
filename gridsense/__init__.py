"""GridSense: streaming anomaly detection for synchrophasors. Start reading at `gridsense.pipeline`."""

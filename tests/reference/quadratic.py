"""The obvious quadratic fit: one `numpy.linalg.lstsq` a window. Slow; the oracle of `baselines.quadratic`."""

import numpy as np
from numpy.typing import NDArray


def fit_each(
    values: NDArray[np.float64],
    good: NDArray[np.bool_],
    *,
    rate_hz: float,
    points: int,
    hop: int,
    least: int,
    first: int | None = None,
) -> NDArray[np.float64]:
    """`(K, 4, N)` a, b, c, d of samples `(T, N)`; NaN where fewer than `least` points are good."""
    first = points - 1 if first is None else first
    out = []
    for end in range(first, len(values), hop):
        rows = slice(end - points + 1, end + 1)
        x = (np.arange(points) - points // 2) / rate_hz
        columns = []
        for n in range(values.shape[1]):
            ok = good[rows, n]
            if ok.sum() < least:
                columns.append([np.nan] * 4)
                continue
            y = values[rows, n][ok].astype(np.float64)
            # A constant taken off and put back changes nothing but rounding; lstsq itself loses digits without it.
            offset = y[0]
            design = np.vander(x[ok], 3, increasing=True)
            coefficients = np.linalg.lstsq(design, y - offset, rcond=None)[0]
            residual = y - offset - design @ coefficients
            d = np.sqrt(residual @ residual / (ok.sum() - 3))
            columns.append([coefficients[0] + offset, *coefficients[1:], d])
        out.append(np.array(columns).T)
    return np.array(out)

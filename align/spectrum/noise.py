"""Signal and noise of one weight matrix, from its singular values.

S are the singular values of a matrix of n x m, n <= m, in the units of its weights; beta = n / m. Only S is needed and
no vectors, so it comes from the eigenvalues of the n x n Gram matrix, which costs less than an SVD. Both orientations
of a weight give the same figures. No torch at import.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from math import cos, pi, sin, sqrt
from typing import TYPE_CHECKING, Any, Literal, get_args

from align.errors import AlignError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Estimator = Literal["mp", "reference"]
ESTIMATORS: tuple[str, ...] = get_args(Estimator)
VERSION = 1  # raised with every change that changes a figure, so that no old cache entry is taken

_NORMAL_IQR = 1.349  # interquartile range of the normal distribution, as the published program writes it
_BLOCK = 1024  # rows or columns that are float64 at a time, so that a matrix is never copied whole
TORCH_FROM = 2048  # from this side on torch's eigensolver (MKL) gains more than its import costs


@dataclass(frozen=True)
class Measure:
    """What is known of one matrix.

    Attributes:
        snr: sum S[S > t] / sum S[S <= t] / max S, in 1 / units of the weights; always finite.
        threshold: t, in the units of the weights.
        degenerate: the ratio says nothing, because the threshold does not divide S.
    """

    snr: float
    threshold: float
    degenerate: bool


def check_estimator(name: str) -> None:
    """Refuse an unknown name.

    Raises:
        AlignError: there is no such estimator.
    """
    if name not in ESTIMATORS:
        raise AlignError(f"there is no estimator '{name}'", f"write {' or '.join(ESTIMATORS)}")


def measure(squares: NDArray[np.float64], long_side: int, estimator: str = "mp") -> Measure:
    """The signal-to-noise ratio of a matrix of n x m, n <= m.

    The ratio is that of the published program (cognitivecomputations/spectrum, `calculate_snr_for_layer`): sums on
    both sides of the threshold t, over the largest singular value, with 1.0 for the noise where nothing lies below t.

    `reference` marks as degenerate what has nothing below t, or nothing above. `mp` marks only the first: there,
    nothing above t is an answer, namely that the matrix is noise. Where the noise sums to zero, as in a matrix of low
    rank, the published program gives infinity or a ratio to rounding errors; here it counts as 1.0, and as degenerate.

    Args:
        squares: (n,) squares of S in any order, as `eigenvalues` gives them; what is within rounding of 0 counts as 0.
        long_side: m.
        estimator: `mp` or `reference`.

    Raises:
        AlignError: there is no such estimator.
    """
    import numpy as np

    check_estimator(estimator)
    rounding = len(squares) * np.finfo(np.float64).eps * squares.max()
    values = np.sqrt(np.where(squares > rounding, squares, 0.0))
    limit = (reference_threshold if estimator == "reference" else mp_threshold)(values, long_side)
    above = values > limit
    signal, noise, largest = float(values[above].sum()), float(values[~above].sum()), float(values.max())
    degenerate = noise == 0.0 or (estimator == "reference" and signal == 0.0)
    ratio = signal / (noise or 1.0) / largest if largest else 0.0
    return Measure(ratio, limit, degenerate)


def reference_threshold(values: NDArray[np.float64], long_side: int) -> float:
    """t = IQR(S) / 1.349 * (1 + sqrt(n / m)), as the published program has it.

    It takes S for normally distributed and leaves out that their spread falls with beta, so for n < m it calls noise
    signal: two thirds of it at beta 1/2, all of it at 1/4 and below.

    Args:
        values: (n,) singular values.
        long_side: m.
    """
    return _iqr(values) / _NORMAL_IQR * (1 + sqrt(len(values) / long_side))


def mp_threshold(values: NDArray[np.float64], long_side: int) -> float:
    """The largest singular value that noise of the same interquartile range would have.

    For independent entries of standard deviation s, the values S / sqrt(m) follow the law of Marchenko and Pastur
    (1967), which ends at s (1 + sqrt(beta)). So s = IQR(S) / (sqrt(m) IQR_law(beta)) and t = s (sqrt(n) + sqrt(m)).
    The interquartile range is taken because spikes above the bulk hardly move it.

    Args:
        values: (n,) singular values.
        long_side: m.
    """
    short = len(values)
    deviation = _iqr(values) / (sqrt(long_side) * mp_iqr(short / long_side))
    return deviation * (sqrt(short) + sqrt(long_side))


@lru_cache(maxsize=256)
def mp_iqr(beta: float) -> float:
    """Interquartile range of the law's singular values, for entries of variance 1 over sqrt(m); 0 < beta <= 1.

    With x = 1 + beta + 2 sqrt(beta) cos(theta), theta from 0 at the upper edge to pi at the lower one, the density of
    the eigenvalues x, sqrt((b - x) (x - a)) / (2 pi beta x), turns into 2 sin(theta)^2 / (pi x), which is smooth.
    """
    from scipy.integrate import quad
    from scipy.optimize import brentq

    root = sqrt(beta)

    def eigenvalue(theta: float) -> float:
        return 1 + beta + 2 * root * cos(theta)

    def singular_value(share_above: float) -> float:
        def excess(theta: float) -> float:
            above, _ = quad(lambda t: 2 * sin(t) ** 2 / (pi * eigenvalue(t)), 0, theta, epsabs=1e-12)
            return float(above) - share_above

        # the range ends before pi, where the density of a square matrix is 0 / 0
        return sqrt(eigenvalue(brentq(excess, 1e-6, pi - 1e-6, xtol=1e-12)))

    return singular_value(0.25) - singular_value(0.75)


def gram(weight: NDArray[Any], decode: Callable[[NDArray[Any]], NDArray[Any]] | None = None) -> NDArray[np.float64]:
    """The smaller Gram matrix of a weight W, W W' or W' W, in float64; its eigenvalues are S squared.

    Args:
        weight: (rows, columns), of any type that `decode` turns into floats; read in blocks, so it may be mapped.
        decode: turns a block as stored into floats; None: it is of floats.

    Returns:
        (short, short) in Fortran order, with the upper triangle only, which halves the work. A NaN or infinity of the
        weight stands on its diagonal too.
    """
    import numpy as np
    from scipy.linalg.blas import dsyrk

    rows, columns = weight.shape
    wide = rows <= columns
    short = min(rows, columns)
    total = np.zeros((short, short), order="F")
    for first in range(0, max(rows, columns), _BLOCK):
        block = weight[:, first : first + _BLOCK] if wide else weight[first : first + _BLOCK]
        block = decode(block) if decode else block
        # (short, block) in Fortran order either way, so that BLAS takes it without another copy
        part = block.astype(np.float64, order="F") if wide else block.astype(np.float64, order="C").T
        total = dsyrk(1.0, part, beta=1.0, c=total, overwrite_c=1)
    return np.asarray(total, dtype=np.float64)


def eigenvalues(gram: NDArray[np.float64]) -> NDArray[np.float64]:
    """The eigenvalues of what `gram` returns, ascending, in float64; the matrix is overwritten.

    A value of S comes out exact to about 1e-16 max(S)^2 / S, so that a direction of 1000 times the noise does no harm;
    with float32, at 1e-7, it would.

    Returns:
        (short,); NaN throughout where the weight holds a NaN or infinity.
    """
    import numpy as np

    if not np.isfinite(gram.diagonal()).all():
        return np.full(len(gram), np.nan)
    if len(gram) >= TORCH_FROM:
        import torch

        # the upper triangle of a Fortran array is the lower one in torch's order
        return np.asarray(torch.linalg.eigvalsh(torch.from_numpy(gram.T), UPLO="L").numpy(), dtype=np.float64)
    from scipy.linalg import eigvalsh

    found = eigvalsh(gram, lower=False, overwrite_a=True, check_finite=False, driver="evd")
    return np.asarray(found, dtype=np.float64)


def _iqr(values: NDArray[np.float64]) -> float:
    import numpy as np

    low, high = np.quantile(values, [0.25, 0.75])
    return float(high - low)

"""Dunnett's distribution: the largest of several Student t's that share a baseline and a variance.

Dunnett, "A multiple comparison procedure for comparing several treatments with a control", JASA 50 (1955).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from scipy import optimize, special, stats

Y_NODES, Y_END = 48, 7.0  # of the baseline's normal, beyond which 3e-12 are left
S_NODES, S_TAIL = 64, 1e-10  # of the standard deviation's logarithm, and what is left at either end


def shares(variants: Sequence[int], baseline: int) -> tuple[float, ...]:
    """lambda_i = sqrt(n_i / (n_i + n_0)): t_i and t_j correlate by lambda_i lambda_j. n: seeds of each."""
    return tuple(sorted(float(np.sqrt(n / (n + baseline))) for n in variants))


def exceedance(t: float, shares: tuple[float, ...], df: float) -> float:
    """Probability that any |t_i| exceeds t where no variant differs from the baseline: the p value of |t_i| = t.

    Given the baseline's mean y (in its standard errors) and the standard deviation's estimate s (in true ones) the t_i
    are independent, so it is a double integral of a product, by Gauss and Legendre's quadrature: to 1e-9, or 1e-5 with
    one or two degrees of freedom or a baseline with far fewer seeds than the variants.
    """
    if len(shares) == 1:
        return float(2 * stats.t.sf(abs(t), df))
    y, y_weights, s, s_weights = _nodes(df)
    ends = (abs(t) * s)[:, None, None]
    share, count = np.unique(shares, return_counts=True)
    shift, spread = y[:, None] * share, np.sqrt(1 - share**2)
    inside = special.ndtr((ends - shift) / spread) - special.ndtr((-ends - shift) / spread)
    return float(np.clip(s_weights @ (1 - (inside**count).prod(axis=-1)) @ y_weights, 0.0, 1.0))


@lru_cache(maxsize=1024)
def critical(shares: tuple[float, ...], df: float, alpha: float = 0.05) -> float:
    """The t that the largest |t_i| exceeds with probability alpha; between Student's and Bonferroni's."""
    low, high = stats.t.isf(alpha / 2, df), stats.t.isf(alpha / 2 / len(shares), df)
    if len(shares) == 1:
        return float(low)
    return float(optimize.brentq(lambda t: exceedance(t, shares, df) - alpha, low * (1 - 1e-9), high * (1 + 1e-9)))


def power(shift: float, critical: float, df: float) -> float:
    """Probability that |t| exceeds the critical value where the true difference is `shift` standard errors.

    The noncentral t's two tails, by the same quadrature: scipy's gives up on large shifts.
    """
    _, _, s, s_weights = _nodes(df)
    return float(s_weights @ (special.ndtr(shift - critical * s) + special.ndtr(-shift - critical * s)))


@lru_cache(maxsize=256)
def _nodes(df: float) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Nodes and weights of y, whose integrand is even once all signs of the t_i count alike, and of s."""
    node, weight = np.polynomial.legendre.leggauss(Y_NODES)
    y = (node + 1) / 2 * Y_END
    y_weights = weight * np.exp(-(y**2) / 2)
    node, weight = np.polynomial.legendre.leggauss(S_NODES)
    low, high = (0.5 * np.log(chi2 / df) for chi2 in (stats.chi2.ppf(S_TAIL, df), stats.chi2.isf(S_TAIL, df)))
    log_s = low + (node + 1) / 2 * (high - low)
    density = df * (log_s - np.exp(2 * log_s) / 2)  # its logarithm, but for a constant
    s_weights = weight * np.exp(density - density.max())
    return y, y_weights / y_weights.sum(), np.exp(log_s), s_weights / s_weights.sum()

"""Mean field of a random tanh network: variances, growth of perturbations, and the rate of their decay."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import brentq

from gradlab.predictions.arguments import non_negative
from gradlab.validation import Array, finite, real_array

NODES = 100
STEP = 0.2  # see _moments


class MeanField(NamedTuple):
    """Stationary mean field of a random tanh network.

    Attributes:
        q: variance of a pre-activation.
        chi: χ1, the mean squared growth of a perturbation in one step.
        rate: ½ ln χ1, the largest Lyapunov exponent, nats per step.
        time_scale: ξ = −1/ln χ1 in steps, over which a squared perturbation falls by e; ∞ where it does not fall.
    """

    q: float
    chi: float
    rate: float
    time_scale: float


@dataclass(frozen=True, eq=False)
class MeanFieldPath:
    """Mean field of a random tanh network along a given course of input variances.

    Attributes:
        q: variance of the pre-activations a_1 … a_T [B, T] or [T].
        chi: χ at each step, for J_t = diag(φ'(a_t)) W [B, T] or [T].
        rate: mean over t of ½ ln χ_t, nats per step [B] or a scalar.
    """

    q: Array
    chi: Array
    rate: Array


def mean_field(gain: float, *, input_variance: float = 0.0, bias_variance: float = 0.0) -> MeanField:
    """Return the mean-field variance, perturbation growth and rate of a random tanh network.

    With W_ij ~ N(0, g²/n), q solves q = g² ∫Dz tanh²(√q z) + σ_b² + s, and then
    χ1 = g² ∫Dz tanh'(√q z)², λ1 = ½ ln χ1, ξ = −1/ln χ1. The edge of chaos is χ1 = 1; without bias and input it
    is g = 1, and below it q = 0 and χ1 = g².

    This is the limit n → ∞. Simulated at n = 400, λ1 fell short by about 0.01 in the chaotic phase and by about
    0.002 in the ordered one.

    Args:
        gain: g ≥ 0, the standard deviation of an entry of W times √n.
        input_variance: s, the variance of the pre-activation that the input brings, fresh at each step.
        bias_variance: σ_b², the variance of the biases.

    Returns:
        A `MeanField`, q and χ1 to about 1e-12 relative. For g = 1 exactly without bias and input, ξ = ∞.

    Raises:
        ValueError: a negative or infinite argument.
        TypeError: an argument that is not a real number.

    Source:
        Molgedey, Schuchhardt & Schuster 1992; Schoenholz et al. 2017; Chen, Pennington & Schoenholz 2018.

    Example:
        >>> m = mean_field(1.5)
        >>> round(m.q, 9), round(m.chi, 9), round(m.rate, 9)
        (0.793354043, 1.139323225, 0.065217212)
    """
    g = non_negative("gain", gain)
    s = non_negative("input_variance", input_variance) + non_negative("bias_variance", bias_variance)
    excess = (g - 1) * (g + 1)
    # ∫Dz tanh² ≥ q − 2q² puts the positive root above (g² − 1)/(2g²); tanh² < 1 puts it below g² + s
    low = max(s, excess / (2 * g * g) if g > 1 else 0.0)
    q = 0.0
    if low > 0:

        def gap(log_q: float) -> float:  # in ln q: a faint input at g = 1 puts 100 decades between the ends
            x = np.exp(log_q)
            # g²∫Dz tanh² − q, by the Taylor series where the two cancel, so that the root is sharp near the edge;
            # the term left out is below 3e2 x⁴ of the leading one
            series = x * excess - g * g * x * x * (2 - x * (17 / 3 - x * (62 / 3 - x * 1382 / 15)))
            return float((series if x < 1e-4 else g * g * _moments(x)[0] - x) + s)

        high = g * g + s
        a, b = np.log(low), np.log(high)
        if gap(a) > 0 > gap(b):
            q = float(np.clip(np.exp(brentq(gap, a, b, xtol=1e-15, rtol=1e-15)), low, high))
        else:  # the bracket is closed by rounding
            q = low
    chi = g * g * float(_moments(np.asarray(q))[1])
    rate = 0.5 * np.log(chi) if chi > 0 else -np.inf
    time_scale = np.inf if chi >= 1 else -1 / np.log(chi) if chi > 0 else 0.0
    return MeanField(q, chi, float(rate), float(time_scale))


def mean_field_path(
    gain: float, input_variances: ArrayLike, *, bias_variance: float = 0.0, initial_variance: float = 0.0
) -> MeanFieldPath:
    """Return the mean field of a random tanh network whose input changes in strength over time.

    q_t = g² ∫Dz tanh²(√q_{t−1} z) + s_t + σ_b², χ_t = g² ∫Dz tanh'(√q_t z)², rate = mean_t ½ ln χ_t. Here q_t is
    the variance of the pre-activation a_t over units and s_t the part of it that the input brings, so that
    J_t = diag(φ'(a_t)) W grows a squared perturbation by χ_t on average.

    It takes the input as independent from step to step and from unit to unit. A slow or constant input acts
    rather like a bias; a shared one correlates units. As n → ∞ only.

    Args:
        gain: g ≥ 0.
        input_variances: s_1 … s_T [T] or [B, T]; for inputs U x_t take the variance of it over units.
        bias_variance: σ_b².
        initial_variance: q_0, variance of the pre-activation whose tanh is h_0; 0 for h_0 = 0.

    Returns:
        A `MeanFieldPath`; arrays [T] with a scalar rate, or [B, T] with rates [B].

    Raises:
        ValueError: a negative or infinite argument, or no step.
        TypeError: an argument that is not a real number.

    Source:
        Chen, Pennington & Schoenholz 2018 (the recursion, here resolved in time).

    Example:
        >>> path = mean_field_path(1.5, [0.0] * 500, initial_variance=1.0)
        >>> round(float(path.q[-1]), 9), round(float(path.chi[-1]), 9)
        (0.793354043, 1.139323225)
    """
    g = non_negative("gain", gain)
    variances = finite("input_variances", real_array("input_variances", input_variances))
    if variances.ndim not in (1, 2) or 0 in variances.shape or (variances < 0).any():
        raise ValueError(
            "input_variances must be [time] or [batch, time], at least one step and none negative, got shape"
            f" {variances.shape} with least value {variances.min(initial=0.0)}"
        )
    q = np.full(variances.shape[:-1], non_negative("initial_variance", initial_variance))
    bias = non_negative("bias_variance", bias_variance)
    path = np.empty_like(variances)
    for t in range(variances.shape[-1]):
        q = g * g * _moments(q)[0] + variances[..., t] + bias
        path[..., t] = q
    chi = g * g * _moments(path)[1]
    with np.errstate(divide="ignore"):
        rate = 0.5 * np.log(chi).mean(axis=-1)
    return MeanFieldPath(path, chi, rate)


def _moments(q: Array) -> tuple[Array, Array]:
    """Return (∫Dz tanh²(√q z), ∫Dz sech⁴(√q z)) for each q ≥ 0.

    The trapezoidal rule in z with step h = 0.2/max(1, √q). It converges like exp(−2πd/h) with d the distance of
    the nearest pole, π/(2√q), and like exp(−2π²/h²) for the Gaussian: e^{−49} at worst, whatever q. 100 nodes
    reach |z| = 20 or |√q z| = 20, where Gauss or sech² has fallen below 1e-16 of the total.
    """
    h = STEP / np.sqrt(np.maximum(1.0, q))[..., None]
    z = h * np.arange(NODES + 1)
    weight = 2 * h / np.sqrt(2 * np.pi) * np.exp(-z * z / 2)
    weight[..., 0] /= 2
    a = np.sqrt(q)[..., None] * z
    sech2 = 1 / np.cosh(a) ** 2
    # tanh² does not decay, so for large q it is 1 − sech²; for small q that would cancel
    tanh2 = np.where(q > 1, 1 - (weight * sech2).sum(axis=-1), (weight * np.tanh(a) ** 2).sum(axis=-1))
    return tanh2, (weight * sech2**2).sum(axis=-1)

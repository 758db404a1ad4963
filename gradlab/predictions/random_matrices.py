"""Random matrices: one, a product of many, and one behind a gate."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import digamma, polygamma

from gradlab.predictions.arguments import non_negative
from gradlab.validation import Array, finite, positive_integer, real_array


class CircularLaw(NamedTuple):
    """Limits of a Ginibre matrix W_ij ~ N(0, g²/n): ρ(W) → g and σ1(W) → 2g."""

    spectral_radius: float
    sigma_max: float


class GinibreExponents(NamedTuple):
    """Lyapunov exponents of a product of fresh Gaussian matrices.

    Attributes:
        exponents: λ_i in nats per step, descending [n].
        step_variance: variance of ln|R_ii| in one step, independent from step to step [n]; the standard error of an
            exponent measured over N steps is √(step_variance/N).
    """

    exponents: Array
    step_variance: Array


class ProductMoments(NamedTuple):
    """Moments of the squared singular values of a product P of L Gaussian matrices.

    Attributes:
        first: (1/n) E tr(PPᵀ) = 1 at every n.
        second: (1/n) E tr((PPᵀ)²); L + 1 as n → ∞.
        first_standard_deviation: of (1/n) tr(PPᵀ) over draws; 0 as n → ∞.
        sigma_max_squared: σ1², the edge (L+1)^{L+1}/L^L of the limiting distribution, whatever n.
    """

    first: float
    second: float
    first_standard_deviation: float
    sigma_max_squared: float


class GatedDisc(NamedTuple):
    """The disc in the complex plane that the eigenvalues of a gated step fill."""

    centre: float
    radius: float


def circular_law(gain: float) -> CircularLaw:
    """Return the spectral radius and the norm that a random recurrent matrix has in the limit.

    W_ij ~ N(0, g²/n): ρ(W) → g, σ1(W) → 2g. So the norm certifies vanishing gradients of a tanh network below
    g = ½, where chaos starts at g = 1 only.

    Args:
        gain: g ≥ 0.

    Returns:
        (spectral_radius, sigma_max). At finite n, measured at 100 and 400: ρ lies above g by 0.5 g/√n with a
        standard deviation of 0.3 g/√n, and σ1 below 2g by g n^{−2/3} with a standard deviation of 0.6 g n^{−2/3}.

    Raises:
        ValueError: a negative or infinite gain.
        TypeError: a gain that is not a real number.

    Source:
        Ginibre 1965; Geman 1980 (σ1), 1986 (ρ).

    Example:
        >>> circular_law(1.5)
        CircularLaw(spectral_radius=1.5, sigma_max=3.0)
    """
    g = non_negative("gain", gain)
    return CircularLaw(g, 2 * g)


def ginibre_exponents(n: int, scale: float = 1.0) -> GinibreExponents:
    """Return the Lyapunov exponents of a product of Gaussian matrices, a fresh one at each step.

    With iid N(0, s²/n) entries, λ_i = ½[ln(2s²/n) + ψ((n − i + 1)/2)]: ln|R_ii| of a step is the logarithm of a chi
    variable of n − i + 1 degrees of freedom, times s/√n, with variance ¼ψ'((n − i + 1)/2). Exact at every n.

    A network that reuses its W is not such a product: its steps are correlated through the state.

    Args:
        n: size of the matrices.
        scale: s > 0.

    Returns:
        A `GinibreExponents`.

    Raises:
        ValueError: n < 1, or a scale that is not positive and finite.
        TypeError: n is not an integer, or the scale not a real number.

    Source:
        Newman 1986; Akemann, Burda & Kieburg 2014.

    Example:
        >>> ginibre_exponents(2).exponents
        array([-0.28860783, -0.98175501])
    """
    half = np.arange(positive_integer("n", n), 0, -1) / 2
    s = _positive_scale(scale)
    return GinibreExponents(0.5 * (np.log(2 / n) + digamma(half)) + np.log(s), 0.25 * polygamma(1, half))


def ginibre_limit(position: ArrayLike, scale: float = 1.0) -> Array:
    """Return the spectrum of Lyapunov exponents of a product of large Gaussian matrices.

    λ(x) = ½ ln(1 − x) + ln s at x = i/n, as n → ∞. At finite n, x = (i − ½)/n is within 1/(4n(1 − x)) of
    `ginibre_exponents`, at every i.

    Args:
        position: x in [0, 1), of any shape.
        scale: s > 0, entries N(0, s²/n).

    Returns:
        λ(x) in nats per step, the same shape.

    Raises:
        ValueError: x outside of [0, 1), or a scale that is not positive and finite.
        TypeError: arguments that are not real numbers.

    Source:
        Newman 1986.

    Example:
        >>> ginibre_limit([0.0, 0.75]) / np.log(2)
        array([ 0., -1.])
    """
    x = finite("position", real_array("position", position))
    if (x < 0).any() or (x >= 1).any():
        raise ValueError(f"position must lie in [0, 1), the index of the exponent over n, got {x.min()} to {x.max()}")
    return 0.5 * np.log1p(-x) + np.log(_positive_scale(scale))


def ginibre_product_moments(factors: int, n: int | None = None) -> ProductMoments:
    """Return the moments of the squared singular values of a product of Gaussian matrices.

    P = J_L ··· J_1 with fresh iid N(0, 1/n) entries: (1/n) tr(PPᵀ) → 1, (1/n) tr((PPᵀ)²) → L + 1 and
    σ1² → (L+1)^{L+1}/L^L as n → ∞.

    At finite n the first two are exact means by a recursion (Isserlis' theorem for one more factor): with
    u = E(tr PPᵀ)² and v = E tr((PPᵀ)²), u ← u + 2v/n, v ← u/n + (1 + 1/n) v, from u = n², v = n. It gives the standard
    deviation of the first moment, too, which grows with L: the limit needs n well above L.

    It needs fresh matrices. For one W throughout, P = W^L, it holds as n → ∞ at a fixed L only.

    Args:
        factors: L, the number of matrices.
        n: their size; None for the limit.

    Returns:
        A `ProductMoments`.

    Raises:
        ValueError: L or n below 1.
        TypeError: L or n is not an integer.

    Source:
        Pennington, Schoenholz & Ganguli 2017 for the limits; the recursion is gradlab's.

    Example:
        >>> ginibre_product_moments(1)
        ProductMoments(first=1.0, second=2.0, first_standard_deviation=0.0, sigma_max_squared=4.0)
        >>> ginibre_product_moments(1, 10).second
        2.1
    """
    L = positive_integer("factors", factors)
    edge = float(L * np.exp((L + 1) * np.log1p(1 / L)))  # (L+1)^{L+1}/L^L without its powers, which overflow
    if n is None:
        return ProductMoments(1.0, L + 1.0, 0.0, edge)
    size = positive_integer("n", n)
    spread, second = 0.0, 1.0  # u/n² − 1 and v/n: their difference from the limit is wanted to its own accuracy
    for _ in range(L):
        spread, second = spread + 2 * second / size**2, second + 1 + spread + second / size
    return ProductMoments(1.0, second, float(np.sqrt(spread)), edge)


def gated_disc(update: float, gain: float, *, mean_square_slope: float = 1.0) -> GatedDisc:
    """Return the disc that the eigenvalues of a step fill when a gate keeps part of the state.

    J = z I + (1 − z) diag(φ') W with W_ij ~ N(0, g²/n) and one constant z: centre z, radius (1 − z) g √⟨φ'²⟩, as n → ∞.
    An update (or forget) gate near 1 gathers the spectrum at 1, the other factors set its radius. A leaky unit with
    step α is the case z = 1 − α.

    At finite n the largest distance from the centre exceeds the radius by about 0.5/√n of it, with a standard deviation
    of 0.3/√n, as for `circular_law`. In a trained or running network z and φ' differ from unit to unit and depend on
    W, which this leaves out.

    Args:
        update: z in [0, 1].
        gain: g ≥ 0.
        mean_square_slope: ⟨φ'²⟩ over the units, ≥ 0.

    Returns:
        (centre, radius).

    Raises:
        ValueError: z outside of [0, 1], or another argument negative or infinite.
        TypeError: an argument that is not a real number.

    Source:
        Can, Krishnamurthy & Schwab 2020 for the statement on gates; the case of a constant gate is the circular law.

    Example:
        >>> gated_disc(0.75, 2.0)
        GatedDisc(centre=0.75, radius=0.5)
    """
    z, g, square = non_negative("update", update), non_negative("gain", gain), mean_square_slope
    if z > 1:
        raise ValueError(f"update must lie in [0, 1], got {update!r}; give the gate, not its pre-activation")
    return GatedDisc(z, float((1 - z) * g * np.sqrt(non_negative("mean_square_slope", square))))


def _positive_scale(scale: float) -> float:
    s = non_negative("scale", scale)
    if s == 0:
        raise ValueError("scale must be positive, got 0: the product is zero after one step")
    return s

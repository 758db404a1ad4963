"""The statements of `bounds_vs_truth.py`: what each says of one network, and where its hypotheses do not hold."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from bounds_vs_truth_networks import Array, Measured

from gradlab import bounds, predictions

W_ALONE, GAIN, GAIN_AND_INPUT = "W", "g", "g, input variance"
EPS = float(np.finfo(np.float64).eps)
SAME, OTHER, PRODUCT = "this run", "other runs", "the product"


@dataclass(frozen=True)
class Statement:
    """A statement on the gradient.

    Attributes:
        name: of the row.
        kind: "prediction" of the rate, "upper" or "lower" bound of ln‖∂L/∂h_t‖ − ln‖∂L/∂h_T‖.
        needs: what one must know to make it.
        value: a prediction gives nats per step, [B] or a scalar; a bound nats at t = 0 … T−1, [B, T] or [T].
        lacking: says which hypothesis a network breaks, None if none.
        certifies: whether the bound proves that the gradient vanishes; None: it never does.
    """

    name: str
    kind: str
    needs: str
    value: Callable[[Measured], Any]
    lacking: Callable[[Measured], str | None] = lambda m: None
    certifies: Callable[[Measured], bool] | None = None


def only_linear(m: Measured) -> str | None:
    """W^k is the Jacobian of a linear network."""
    return None if m.linear else "∂h_T/∂h_t is not Wᵏ: the network is not linear"


def no_growth(m: Measured) -> str | None:
    """Statements on sup‖W^k‖ need ρ ≤ 1."""
    return only_linear(m) or (None if np.isfinite(m.spectrum.transient_peak_upper) else "sup‖Wᵏ‖ = ∞: ρ(W) ≥ 1")


def stable(m: Measured) -> str | None:
    """Stein's equation needs ρ < 1."""
    if only_linear(m) or bounds.stein_power_bound(m.W, [0]).certified:
        return only_linear(m)
    return "ρ(W) < 1 does not hold"


def diagonalisable(m: Measured) -> str | None:
    """κ(V) needs eigenvectors."""
    return only_linear(m) or (None if np.isfinite(m.spectrum.eigenvector_condition) else "W is defective")


def gaussian_linear(m: Measured) -> str | None:
    """The circular law says what ρ(W) is, so what W^k does."""
    return only_linear(m) or _iid(m)


def gaussian_tanh(m: Measured) -> str | None:
    """The mean field is that of random tanh networks under white input."""
    return "this mean field is of tanh networks" if m.linear else _iid(m)


def _iid(m: Measured) -> str | None:
    if m.kind.trained:
        return "trained: W is no longer a random draw"
    return None if m.kind.gain is not None else "Wᵢⱼ are not iid Gaussian"


def is_orthogonal(m: Measured) -> str | None:
    """WᵀW = I to rounding."""
    return None if abs(m.spectrum.singular_values - 1).max() < 16 * len(m.W) * EPS else "W is not orthogonal"


def mean_log_radius(m: Measured) -> Array:
    """Return ⟨ln ρ(J_s)⟩ over the steps [B]: the folk rule, with the slopes."""
    with np.errstate(divide="ignore"):
        return np.asarray(np.log(np.abs(np.linalg.eigvals(m.J)).max(axis=-1)).mean(axis=-1))


def mean_field_rate(m: Measured) -> float:
    """Return ½ ln χ1 of the class's gain and input variance."""
    assert m.kind.gain is not None
    return predictions.mean_field(m.kind.gain, input_variance=m.kind.drive).rate


def _chain(m: Measured) -> bounds.Chain:
    return bounds.chain(m.J, recurrent_matrix=m.W, slopes=m.slopes, slope_supremum=1.0)


def _kreiss(m: Measured) -> Array:
    return np.full(len(m.lags), np.log(bounds.kreiss_bounds(m.W, precision=0.5, evaluations=5000).transient_upper))


def _entries(m: Measured) -> bounds.EntryBound:
    return bounds.entry_bound(m.W, m.lags, slope_supremum=1.0)


def _dominance(m: Measured) -> bounds.DominanceCertificate:
    return bounds.dominance_certificate(m.W, m.lags, slope_supremum=1.0)


def _falls(sup: float) -> bool:
    return bool(sup < 1 - 1e-12)


STATEMENTS = (
    Statement("ρ(W)ᵏ, the folk rule", "prediction", W_ALONE, lambda m: np.log(m.spectrum.spectral_radius)),
    Statement("gᵏ, circular law", "prediction", GAIN, lambda m: np.log(m.kind.gain), gaussian_linear),
    Statement("mean field ½ ln χ₁", "prediction", GAIN_AND_INPUT, mean_field_rate, gaussian_tanh),
    Statement("λ₁, held-out runs", "prediction", OTHER, lambda m: m.held_out.mean()),
    Statement("λ₁, same run", "prediction", SAME, lambda m: m.exponent),
    Statement("⟨ln ρ(J)⟩, same run", "prediction", SAME, mean_log_radius),
    Statement(
        "(γσ₁)ᵏ", "upper", W_ALONE, lambda m: _chain(m).promise,
        certifies=lambda m: _falls(m.spectrum.sigma_max),
    ),
    Statement(
        "dominance ‖(γ|W|)ᵏ‖", "upper", W_ALONE, lambda m: _dominance(m).log_bound,
        certifies=lambda m: _dominance(m).certified,
    ),
    Statement(
        "n²(γ‖W‖∞)ᵏ, by entries", "upper", W_ALONE, lambda m: np.log(len(m.W)) + _entries(m).log_bound,
        certifies=lambda m: _entries(m).certified,
    ),
    Statement(
        "2wᵏ, numerical radius", "upper", W_ALONE, lambda m: bounds.numerical_radius_power_bound(m.W, m.lags),
        only_linear, lambda m: _falls(m.spectrum.numerical_radius_upper),
    ),
    Statement(
        "Henrici", "upper", W_ALONE, lambda m: bounds.henrici_power_bound(m.W, m.lags),
        only_linear, lambda m: _falls(m.spectrum.spectral_radius),
    ),
    Statement(
        "κ(V)ρᵏ", "upper", W_ALONE,
        lambda m: np.log(m.spectrum.eigenvector_condition) + m.lags * np.log(m.spectrum.spectral_radius),
        diagonalisable, lambda m: _falls(m.spectrum.spectral_radius),
    ),
    Statement(
        "Stein metric", "upper", W_ALONE, lambda m: bounds.stein_power_bound(m.W, m.lags).log_bound,
        stable, lambda m: bounds.stein_power_bound(m.W, [0]).certified,
    ),
    Statement("Kreiss e·n·K", "upper", W_ALONE, _kreiss, no_growth),
    Statement(
        "sup‖Wᵏ‖", "upper", W_ALONE, lambda m: np.full(len(m.lags), np.log(m.spectrum.transient_peak_upper)), no_growth
    ),
    Statement("Π max φ′, orthogonal W", "upper", SAME, lambda m: bounds.orthogonal_bound(m.W, m.slopes), is_orthogonal),
    Statement("Π (max φ′ σ₁)", "upper", SAME, lambda m: _chain(m).slopes),
    Statement(
        "ηᵏ, η = max‖J‖", "upper", SAME, lambda m: bounds.latching_certificate(m.J).log_bound,
        certifies=lambda m: bool(bounds.latching_certificate(m.J).certified.all()),
    ),
    Statement("Π‖J‖, mean chain", "upper", SAME, lambda m: _chain(m).step_norms),
    Statement("σ₁(P)", "upper", PRODUCT, lambda m: m.log_singular_values[..., 0]),
    Statement("σₙ(P)", "lower", PRODUCT, lambda m: m.log_singular_values[..., -1]),
    Statement("Π σₙ(J), lower end", "lower", SAME, lambda m: bounds.lower_end(m.J).step_values),
)  # fmt: skip


def evaluate(m: Measured) -> dict[str, dict[str, Any]]:
    """Return what each statement says of one network: a reason that it says nothing, or its error for each sequence.

    The error is in nats per step: of a prediction, predicted minus fitted rate [B]; of a bound, its distance from the
    measured gradient at the longest lag T over T, ≥ 0 unless it is crossed [B]. Crossings are counted over all lags.
    A bound crossed by less than 1e-9 of the numbers compared (at least 1) is not: they are sums of T terms, each of
    which carries n ε and more where the gradient is small beside the product.
    """
    found: dict[str, dict[str, Any]] = {}
    for statement in STATEMENTS:
        reason = statement.lacking(m)
        if reason is not None:
            found[statement.name] = {"reason": reason}
            continue
        value = np.asarray(statement.value(m), np.float64)
        if statement.kind == "prediction":
            error = value - m.rate
            wrong = (value * m.rate < 0) & (np.minimum(np.abs(value), np.abs(m.rate)) > 1e-9)  # 0 has no sign
            entry: dict[str, Any] = {"wrong_sign": int(wrong.sum())}
        else:
            gap = (value - m.drop) if statement.kind == "upper" else (m.drop - value)
            slack = 1e-9 * np.maximum(1.0, np.maximum(np.abs(value), np.abs(m.drop)))
            error = gap[:, 0] / len(m.lags)
            entry = {"crossings": int((gap < -slack).sum()), "checked": int(gap.size)}
            if statement.certifies is not None:
                entry["certified"] = bool(statement.certifies(m))
        found[statement.name] = entry | {"errors": [float(one) for one in error]}
    return found

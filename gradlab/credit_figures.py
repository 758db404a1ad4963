"""Figures of where credit goes, of what an output's gradient leaves out, and of what clipping does."""

from __future__ import annotations

from typing import Any

import matplotlib as mpl
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from gradlab.figures import axes, legend_above, one_network
from gradlab.lags import BLACK, BLUE, GREEN, GREY, ORANGE, RED, drawn, need, one_layer

CREDIT = "gl.credit_by_lag makes it"
LEFT_OUT = "gl.gradient_left_out makes it"
AUDIT = "gl.clipping_audit makes it"
RULES = {"norm": ("by norm", BLUE, "o"), "value": ("by value", RED, "^"), "global_norm": ("by global norm", GREEN, "s")}


def credit(ds: xr.Dataset, *, ax: Axes | None = None) -> Axes:
    """Draw the share of every lag in ∂L/∂W (bars), the sum up to it (line), and the credit horizon.

    Args:
        ds: needs credit_share, credit_cumulative and credit_horizon.
        ax: axes to draw on; a new figure if not given.

    Returns:
        The axes.

    Raises:
        ValueError: credit_share, credit_cumulative or credit_horizon is missing, which `gl.credit_by_lag` makes, or is
            of several stages or runs.

    Examples:
        >>> ds = xr.Dataset(
        ...     {"credit_share": ("lag", [0.8, 0.2]), "credit_cumulative": ("lag", [0.8, 1.0]), "credit_horizon": 1.0}
        ... )
        >>> sorted(text.get_text() for text in credit(ds).get_legend().get_texts())
        ['all lags up to it (left)', 'horizon: lag 1', 'share of a lag (right)']
    """
    need(ds, "credit", credit_share=CREDIT, credit_cumulative=CREDIT, credit_horizon=CREDIT)
    one_network(ds[["credit_share", "credit_cumulative", "credit_horizon"]].drop_vars("lag", errors="ignore"), "credit")
    share, total = ds["credit_share"].values, ds["credit_cumulative"].values
    lags = np.arange(len(share))
    with axes(ax) as ax:
        ax.axhline(0, color=GREY, linewidth=mpl.rcParams["axes.linewidth"], zorder=0.5)
        ax.plot(lags, total, color=BLACK, label="all lags up to it (left)")
        ax.bar([0], [np.nan], color=BLUE, alpha=0.5, linewidth=0, label="share of a lag (right)")
        # the bars on a scale of their own, with the same zero: the largest is half as high as the frame
        scale = 2.0 * float(np.nanmax(np.abs(share))) if np.isfinite(share).any() and share.any() else 1.0
        low = min(0.0, *drawn(total), *drawn(share / scale)) if np.isfinite(share).all() else 0.0
        beside = ax.twinx()
        beside.bar(lags, share, width=0.8, color=BLUE, alpha=0.5, linewidth=0)
        top = max(1.05, 1.03 * float(np.nanmax(total))) if np.isfinite(total).any() else 1.05
        ax.set_ylim(low - 0.02, top)
        beside.set_ylim(scale * (low - 0.02), scale * top)
        beside.spines["right"].set_visible(True)
        beside.spines["right"].set_color(BLUE)
        beside.tick_params(axis="y", colors=BLUE)
        beside.set_ylabel("share of a lag", color=BLUE)
        horizon = float(ds["credit_horizon"])
        if np.isfinite(horizon):
            ax.axvline(horizon, color=ORANGE, linestyle="--", label=f"horizon: lag {horizon:.0f}")
            ax.axhline(0.9, color=ORANGE, linewidth=0.5 * mpl.rcParams["lines.linewidth"], linestyle=":")
        ax.set(xlabel="lag $k$ (steps from use to loss)", ylabel=r"share of $\partial L/\partial W_{hh}$, summed")
        ax.set_xlim(-0.6, len(share) - 0.4)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        legend_above(ax)
    return ax


def truncation(ds: xr.Dataset, *, ax: Axes | None = None) -> Axes:
    """Draw the bias of truncated backpropagation over the steps kept, and the cosine with the whole gradient.

    Args:
        ds: needs truncation_bias and truncation_cosine.
        ax: axes to draw on; a new figure if not given.

    Returns:
        The axes.

    Raises:
        ValueError: truncation_bias or truncation_cosine is missing, which `gl.credit_by_lag` makes, or is of several
            stages or runs.

    Examples:
        >>> ds = xr.Dataset({"truncation_bias": ("lag", [0.5, 0.0]), "truncation_cosine": ("lag", [0.9, 1.0])})
        >>> [float(x) for x in truncation(ds).lines[-1].get_xdata()]
        [1.0, 2.0]
    """
    need(ds, "truncation", truncation_bias=CREDIT, truncation_cosine=CREDIT)
    one_network(ds[["truncation_bias", "truncation_cosine"]].drop_vars("lag", errors="ignore"), "truncation")
    bias, cosine = ds["truncation_bias"].values, ds["truncation_cosine"].values
    steps = np.arange(1, len(bias) + 1)
    with axes(ax) as ax:
        for level in (0.0, 1.0):
            ax.axhline(level, color=GREY, linewidth=0.5 * mpl.rcParams["axes.linewidth"], zorder=0.5)
        ax.plot(steps, bias, color=RED, label=r"bias $\Vert C - \nabla\Vert/\Vert\nabla\Vert$")
        ax.plot(steps, cosine, color=BLUE, linestyle="--", label=r"cosine of $C$ with $\nabla$")
        ax.set(xlabel="steps kept in truncated backpropagation", ylabel=r"$C$ against the whole gradient $\nabla$")
        ax.set_xlim(1, max(len(bias), 2))
        top = np.nanmax(bias) if np.isfinite(bias).any() else 1.0
        low = min(0.0, float(np.nanmin(cosine))) if np.isfinite(cosine).any() else 0.0
        ax.set_ylim(1.05 * low - 0.03, max(1.05, 1.05 * top))
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        legend_above(ax)
    return ax


def left_out(ds: xr.Dataset, *, layer: str | None = None, ax: Axes | None = None) -> Axes:
    """Draw ‖∂L/∂y_t‖ of a layer's outputs in full, and what a tape gives for the output tensor.

    Where the tape gives exactly zero there is no dot.

    Args:
        ds: needs log_total_gradient_norm, log_output_gradient_norm and left_out_overall.
        layer: which; the first if not given.
        ax: axes to draw on; a new figure if not given.

    Returns:
        The axes.

    Raises:
        ValueError: a variable is missing, or there is no such layer.

    Examples:
        >>> curves = {"log_total_gradient_norm": [[-1.0, 0.0]], "log_output_gradient_norm": [[-np.inf, 0.0]]}
        >>> ds = xr.Dataset({name: (("layer", "time"), one) for name, one in curves.items()})
        >>> ds = ds.assign(left_out_overall=("layer", [0.35])).assign_coords(layer=["rnn"], time=[1, 2])
        >>> left_out(ds).get_legend().get_title().get_text()
        'layer rnn: 35 % of the norm left out'
    """
    variables = ("log_total_gradient_norm", "log_output_gradient_norm", "left_out_overall")
    ds, chosen = one_layer(ds, "left_out", layer, **dict.fromkeys(variables, LEFT_OUT))
    total, tape = (ds[name].values for name in variables[:2])
    t = ds["time"].values
    with axes(ax) as ax:
        ax.plot(t, drawn(total), color=BLACK, label="total")
        zeros = int(np.isneginf(tape).sum())
        label = "tape.gradient(loss, output)" + (f": 0 at {zeros} of {len(tape)} steps" if zeros else "")
        ax.plot(t, drawn(tape), color=RED, linestyle=":", marker="o", markersize=2.5, clip_on=False, label=label)
        ax.set(xlabel="time step $t$", ylabel=r"$\ln\Vert\partial L/\partial y_t\Vert$ (nats)")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        _legend(ax, title=f"layer {chosen}: {100 * float(ds['left_out_overall']):.0f} % of the norm left out")
    return ax


def clipping(ds: xr.Dataset, *, ax: Axes | None = None) -> Axes:
    """Draw what clipping leaves of the norm and of the direction, a mark for every weight and batch that was clipped.

    Args:
        ds: needs clip_active, clip_norm_ratio and clip_cosine.
        ax: axes to draw on; a new figure if not given.

    Returns:
        The axes.

    Raises:
        ValueError: clip_active, clip_norm_ratio or clip_cosine is missing: the dataset is not of `gl.clipping_audit`.

    Examples:
        >>> ones = (("rule", "minibatch", "weight"), [[[1.0], [0.0]]])
        >>> ds = xr.Dataset({name: ones for name in ("clip_active", "clip_norm_ratio", "clip_cosine")})
        >>> ax = clipping(ds.assign_coords(rule=["norm"], threshold=("rule", [0.5])))
        >>> [text.get_text() for text in ax.get_legend().get_texts()]
        ['by norm at 0.5: 50 % clipped']
    """
    need(ds, "clipping", clip_active=AUDIT, clip_norm_ratio=AUDIT, clip_cosine=AUDIT)
    dims = ("rule", "minibatch", "weight")
    active, ratio, cosine = (ds[n].transpose(*dims).values for n in ("clip_active", "clip_norm_ratio", "clip_cosine"))
    with axes(ax) as ax:
        for r, rule in enumerate(str(one) for one in ds["rule"].values):
            word, colour, mark = RULES[rule]
            hit = active[r] > 0
            label = f"{word} at {float(ds['threshold'][r]):g}: {100 * hit.mean():.0f} % clipped"
            look: dict[str, Any] = {"markersize": 2.5, "markeredgewidth": 0, "alpha": 0.45}
            ax.plot(ratio[r][hit], cosine[r][hit], mark, color=colour, **look)
            ax.plot([], [], mark, color=colour, markersize=3, markeredgewidth=0, label=label)
        ax.set(
            xlabel=r"norm kept, $\Vert$clip$(g)\Vert/\Vert g\Vert$",
            ylabel=r"direction kept, $\cos(\mathrm{clip}(g), g)$",
        )
        low, high = ax.get_ylim()
        ax.set(xlim=(0, 1.02), ylim=(min(low, 0.9), max(high, 1.004)))
        _legend(ax)
    return ax


def clipping_profile(ds: xr.Dataset, *, ax: Axes | None = None) -> Axes:
    """Draw the share of every lag in the norms of all contributions to ∂L/∂W_hh, before and after clipping.

    A rule that multiplies the gradient by one number leaves the profile as it was: its line lies on that of "none".

    Args:
        ds: needs clip_profile.
        ax: axes to draw on; a new figure if not given.

    Returns:
        The axes.

    Raises:
        ValueError: there is no clip_profile, which `gl.clipping_audit` makes.

    Examples:
        >>> ds = xr.Dataset({"clip_profile": (("profile_rule", "lag"), [[0.0, -1.0], [0.0, -1.0]])})
        >>> ax = clipping_profile(ds.assign_coords(profile_rule=["none", "norm"], lag=[0, 1]))
        >>> [line.get_label() for line in ax.lines]
        ['not clipped', 'by norm: moved by 0']
    """
    need(ds, "clipping_profile", clip_profile=AUDIT)
    profile = ds["clip_profile"].transpose("profile_rule", "lag").values
    rules, lags = [str(one) for one in ds["profile_rule"].values], ds["lag"].values
    plain = profile[rules.index("none")]
    dashes = {"norm": (0, (5, 2)), "value": "-", "global_norm": (0, (1, 2))}
    with axes(ax) as ax:
        width = mpl.rcParams["lines.linewidth"]
        ax.plot(lags, drawn(plain), color=GREY, linewidth=3 * width, alpha=0.6, label="not clipped")
        for rule, values in zip(rules, profile, strict=True):
            if rule == "none":
                continue
            word, colour, _ = RULES[rule]
            both = np.isfinite(values) & np.isfinite(plain)
            moved = float(np.abs(values[both] - plain[both]).max()) if both.any() else np.nan
            label = f"{word}: moved by {0 if moved < 1e-9 else moved:.2g}"
            ax.plot(lags, drawn(values), color=colour, linestyle=dashes[rule], label=label)
        ax.set(
            xlabel="lag $k$ (steps from use to loss)", ylabel=r"$\ln(\Vert G_k\Vert\,/\,\Sigma_j\Vert G_j\Vert)$ (nats)"
        )
        ax.set_xlim(0, max(len(lags) - 1, 1))
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        legend_above(ax, title="largest move of a lag in nats")
    return ax


def _legend(ax: Axes, title: str | None = None) -> None:
    """Put a legend of long lines above the axes, one below the other."""
    size = mpl.rcParams["legend.fontsize"]
    ax.legend(title=title, title_fontsize=size, alignment="left", loc="lower left", bbox_to_anchor=(0, 1))

"""Gradients under observation while a model trains: a Keras callback that a custom loop can call as well."""

from __future__ import annotations

import json
import math
import os
import time
import warnings
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import keras
import numpy as np
import xarray as xr

from gradlab import schedules
from gradlab.clipping import clip, clipping_of, norm
from gradlab.jacobian import NotFiniteError
from gradlab.probe import Loss, Probe, ProbeResult, recurrent_layers
from gradlab.results import SCHEMA_VERSION, provenance, save
from gradlab.tracking_dataset import Look, as_dataset
from gradlab.tracking_measures import LayerMeasures, main_recurrent_matrix, measure
from gradlab.validation import positive_integer

_NAN = float("nan")


class GradientTracker(keras.callbacks.Callback):
    """A callback that measures on a fixed batch, while a model trains, how its gradients travel through time.

    At each look, for every recurrent layer: total, direct and recurrent ∂L/∂h_t; the singular values of
    ∂h_T/∂h_{T−k} at chosen lags; the rate at which ‖∂L/∂h_t‖ decays; λ_1, ρ(W_hh) and saturation; and the gradient of
    every weight before and after the optimiser's clipping. Everything is computed in float64, with dropout off.

    It looks before the first epoch, where the schedule says, and after the last. `dataset()` gives what was seen at any
    time, also after a crash or Ctrl-C; with a `path` it is written, whole or not at all, after every look. The headline
    values go into the `logs` of each epoch (NaN where there was no look), so that History has them, and CSVLogger and
    TensorBoard where they are listed after the tracker: ``<layer>/log_gradient_ratio`` (ln‖∂L/∂h_0‖ − ln‖∂L/∂h_T‖),
    ``<layer>/decay_rate``, ``<layer>/lyapunov_exponent``, ``<layer>/spectral_radius``, ``<layer>/saturation``,
    ``probe_gradient_norm`` and ``probe_clipped_gradient_norm``. Training goes on as if nobody looked, bit by bit.

    A training that leaves the finite numbers is reported once, with epoch and step (also in the attributes
    ``diverged_epoch`` and ``diverged_step``); looks after that are NaN.

    In a loop of your own::

        tracker.set_model(model)
        tracker.record(epoch=0)
        for epoch in range(epochs):
            ...                             # train; tracker.on_train_batch_end(i, {"loss": loss}) watches the steps
            tracker.on_epoch_end(epoch)     # obeys the schedule

    Args:
        probe_inputs: what the model takes, batch first: 16 to 64 sequences that training does not see.
        probe_targets: what its loss compares with.
        loss: ``loss(targets, outputs)``; None: the one that the model was compiled with.
        sample_weight: weights of the probe's sequences, for the compiled loss.
        layers: names of the recurrent layers to look at; None for all.
        schedule: a function of the number of epochs (or steps) done that says whether to look, such as
            ``gl.schedules.linear(5)``; None: ``gl.schedules.logarithmic()``.
        every: what the schedule counts, "epoch" or "step" (updates of the weights since the tracker's first look).
        lags: at which the spectrum is taken, at most T; None: powers of two, and the longest there is. Where a mask
            leaves no sequence so many steps it is NaN.
        spectrum_sequences: of how many sequences of the probe the spectrum is taken (median).
        optimizer: whose clipping counts; None: that of the model.
        path: a netCDF file (`gl.load` reads it) to be kept up to date.

    Raises:
        ValueError: when training begins: a model without a recurrent layer, a probe batch that does not fit or holds
            NaN, a loss that does not depend on the states (see `gradlab.probe.Probe`); lags that are longer than every
            layer's T; a folder that does not exist.
        TypeError: a schedule that cannot be called, counts that are not integers, lags that are no list.

    Warns:
        RuntimeWarning: training left the finite numbers.
        UserWarning: at a lag that was asked for every spectrum is NaN, as a mask leaves no sequence so many steps.

    Example:
        >>> import gradlab as gl
        >>> keras.utils.set_random_seed(0)
        >>> task = gl.tasks.adding(20, 64)
        >>> rnn = keras.layers.SimpleRNN(8, name="rnn")
        >>> model = keras.Sequential([keras.Input((20, 2)), rnn, keras.layers.Dense(1)])
        >>> model.compile("adam", "mse")
        >>> tracker = GradientTracker(task.test_inputs, task.test_targets, schedule=gl.schedules.linear(1))
        >>> history = model.fit(task.inputs, task.targets, epochs=2, verbose=0, callbacks=[tracker])
        >>> ds = tracker.dataset()
        >>> ds.epoch.values, ds.log_gradient_norm.dims, len(history.history["rnn/decay_rate"])
        (array([0., 1., 2.]), ('epoch', 'layer', 'time'), 2)
    """

    def __init__(
        self,
        probe_inputs: Any,
        probe_targets: Any = None,
        *,
        loss: Loss | None = None,
        sample_weight: Any = None,
        layers: Sequence[str] | None = None,
        schedule: schedules.Schedule | None = None,
        every: Literal["epoch", "step"] = "epoch",
        lags: Sequence[int] | None = None,
        spectrum_sequences: int = 1,
        optimizer: Any = None,
        path: str | os.PathLike[str] | None = None,
    ) -> None:
        super().__init__()
        if every not in ("epoch", "step"):
            raise ValueError(f'every must be "epoch" or "step", got {every!r}')
        self._given = {"loss": loss, "sample_weight": sample_weight, "layers": layers}
        self._batch = (probe_inputs, probe_targets)
        self._schedule = schedules.checked(schedules.logarithmic() if schedule is None else schedule)
        self._every = every
        # Keras waits for the loss after each batch only for a callback that is not async_safe; one that is it calls
        # from other threads, in any order, up to the end of the epoch
        self.async_safe = every == "epoch"
        if lags is not None and (isinstance(lags, str) or not isinstance(lags, Iterable)):
            raise TypeError(f"lags must be a list, got {lags!r}; put brackets around it")
        self._lags = None if lags is None else sorted({positive_integer("lags", one) for one in lags})
        self._sequences = positive_integer("spectrum_sequences", spectrum_sequences)
        self._optimizer, self._path = optimizer, path
        self._lags_checked = False
        self._probe: Probe | None = None
        self._looks: list[Look] = []
        self._done = 0  # epochs
        self._offset = 0  # of the epochs that Keras counts from 0 again in a second call of fit
        self._steps = self._epoch_start = self._first_step = 0
        self._bad_losses: list[tuple[int, float]] = []  # steps whose loss was not finite
        self._diverged: dict[str, Any] = {}
        self._blocks: dict[str, str] = {}
        self._names: list[str] = []  # of the layers, in the order in which the model calls them
        self._provenance: dict[str, Any] | None = None

    # --- what Keras calls, or a loop of your own -----------------------------------------------------------------

    def set_model(self, model: keras.Model) -> None:
        """Take the model to be looked at."""
        if model is not getattr(self, "_model", None):
            self._probe = None
            recurrent_layers(model, self._given["layers"])  # says at once where there is nothing to look at
        super().set_model(model)

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Look before the first epoch."""
        if epoch + self._offset < self._done:  # a second call of fit
            self._offset = self._done - epoch
        self._done = epoch + self._offset
        self._steps = self._epoch_start = self._count()
        if not self._looks:
            self._first_step = self._steps  # of an optimiser that has trained before: schedules count from here
            self.record(self._done)

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Count the steps, watch the loss, and look where the schedule counts steps and says so."""
        # by the number of the batch: to ask the optimiser takes longer than everything else here
        before, step = self._steps, self._epoch_start + batch + 1
        self._steps = max(before, step)
        loss = (logs or {}).get("loss")
        if loss is not None and not math.isfinite(float(loss)):
            self._bad_losses.append((step, float(loss)))
        if self._every == "epoch":  # then the batches come in any order
            return
        self._report_losses()
        if self._diverged:
            return
        fresh = range(before + 1, self._steps + 1)  # more than one in a compiled loop
        if any(self._schedule(i - self._first_step) for i in fresh):
            per_epoch = self.params.get("steps") if isinstance(self.params, dict) else None
            self.record(self._done + ((batch + 1) / per_epoch if per_epoch else 0.0))

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Look if the schedule says so, or if this was the last, and put the headline values into the logs."""
        self._report_losses()
        self._done = epoch + 1 + self._offset
        self._steps = self._epoch_start = self._count()
        asked = self._every == "epoch" and self._schedule(self._done)
        last = isinstance(self.params, dict) and self.params.get("epochs") == epoch + 1
        missing = last and self._looks and self._looks[-1].epoch < self._done and not self._diverged
        headlines = self.record(self._done) if asked or missing or not self._looks else self._latest()
        if logs is not None:
            logs.update(headlines)

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Look once more if training was stopped at an epoch that the schedule leaves out."""
        self._report_losses()
        if self._looks and self._looks[-1].epoch < self._done and not self._diverged:
            self.record(self._done)

    # --- one look ------------------------------------------------------------------------------------------------

    def record(self, epoch: float, step: int | None = None) -> dict[str, float]:
        """Look now, whatever the schedule says.

        Args:
            epoch: how many epochs are done, fractions allowed.
            step: how many updates are done; None: what the optimiser or the tracker has counted.

        Returns:
            The headline values, as they go into the logs.

        Raises:
            ValueError: there is no model yet, or it and the probe batch do not fit together.
        """
        started = time.perf_counter()
        if getattr(self, "_model", None) is None:
            raise ValueError("the tracker has no model yet; call tracker.set_model(model), or pass it to model.fit")
        if self._probe is None:
            inputs, targets = self._batch
            self._probe = Probe(self.model, inputs, targets, **self._given)
        step = self._count() if step is None else int(step)
        found = self._probe()
        self._names = self._probe.layer_names
        measures: dict[str, LayerMeasures] = {}
        if found.finite:
            lags = self._settled_lags(found)
            try:
                measures = {name: measure(one, lags, self._sequences) for name, one in found.layers.items()}
            except NotFiniteError as error:
                found = found._replace(finite=False, not_finite=str(error))
            self._blocks = {
                name: main_recurrent_matrix(one.trajectory.step)[0] for name, one in found.layers.items()
            } or self._blocks
        if not found.finite:
            # epochs are counted when they are done: what is seen then happened in the last of them
            self._report(found.not_finite, max(0.0, math.ceil(epoch) - 1.0), step)
        before, after = self._weight_norms(found)
        look = Look(float(epoch), step, found.loss, measures, before, after, time.perf_counter() - started)
        self._looks.append(look)
        if self._path is not None:
            save(self.dataset(), self._path)
            look = look._replace(seconds=time.perf_counter() - started)  # writing is part of the price
            self._looks[-1] = look
        return look.headlines(self._names)

    def dataset(self) -> xr.Dataset:
        """Return everything seen so far.

        Dims epoch (fractions of epochs where steps are counted), layer, time (t = 0 … T in reading order), spectrum_lag
        and mode, weight; a layer with fewer steps or units than another is NaN beyond its own. Attributes: versions,
        seed unset, commit, the lags, and where training diverged, if it did: after how many whole epochs and updates.

        Raises:
            ValueError: nothing was seen yet.
        """
        if not self._looks:
            raise ValueError("nothing was tracked yet; pass the tracker to model.fit, or call tracker.record(epoch)")
        if self._provenance is None:
            self._provenance = provenance(None)
        ds = as_dataset(self._looks, self._lags or [])
        ds.attrs |= {
            "title": f"Gradients of {self.model.name} while it trains",
            "schema_version": SCHEMA_VERSION,
            "recurrent_matrix": json.dumps(self._blocks),
            "clipping": json.dumps(self._clipping()),
            "diverged_epoch": _NAN,
            "diverged_step": -1,
            "diverged_reason": "",
            **self._diverged,
            **self._provenance,
        }
        return ds

    # --- inside --------------------------------------------------------------------------------------------------

    def _clipping(self) -> tuple[Any, float] | None:
        return clipping_of(self._optimizer if self._optimizer is not None else getattr(self.model, "optimizer", None))

    def _settled_lags(self, found: ProbeResult) -> list[int]:
        """Return the lags; at the first look they are chosen or checked, for now T and the mask are known."""
        if self._lags is not None and self._lags_checked:
            return self._lags
        runs = [one.trajectory for one in found.layers.values()]
        longest = max(one.inputs.shape[1] for one in runs)
        if self._lags is None:
            self._lags, self._lags_checked = [2**i for i in range(longest.bit_length()) if 2**i < longest], True
            self._lags.append(longest)
            return self._lags
        beyond = [k for k in self._lags if k > longest]
        if beyond:
            raise ValueError(
                f"lags must be at most T = {longest}, the steps of the probe batch, got {beyond}; leave them out, or"
                " give longer sequences"
            )
        self._lags_checked = True
        taken = max(
            one.inputs.shape[1] if one.mask is None else int(one.mask[: self._sequences].sum(axis=1).max())
            for one in runs
        )
        masked = [k for k in self._lags if k > taken]
        if masked:
            warnings.warn(
                f"the spectrum at lags {masked} is NaN: the mask leaves the first {self._sequences} sequences of the"
                f" probe batch at most {taken} steps; give longer ones first, or raise spectrum_sequences",
                UserWarning,
                stacklevel=3,
            )
        return self._lags

    def _weight_norms(self, found: ProbeResult) -> tuple[dict[str, float], dict[str, float]]:
        """Return the norm of the gradient of each weight before and after clipping."""
        if not found.finite:
            return {}, {}
        gradients = {name: np.asarray(one, np.float64) for name, one in found.weight_gradients.items()}
        rule = self._clipping()
        clipped = gradients if rule is None else clip(gradients, *rule)
        return ({name: norm(one) for name, one in part.items()} for part in (gradients, clipped))  # type: ignore[return-value]

    def _latest(self) -> dict[str, float]:
        """Return the headlines of a look made at the end of this epoch, NaN if there was none."""
        headlines = self._looks[-1].headlines(self._names)
        return headlines if self._looks[-1].epoch == self._done else dict.fromkeys(headlines, _NAN)

    def _count(self) -> int:
        """Return how many updates are done: by the batches that ended, or the optimiser's own count if it is larger."""
        counter = self._optimizer or getattr(getattr(self, "_model", None), "optimizer", None)
        if counter is None or not getattr(counter, "built", True):
            return self._steps
        return max(self._steps, int(np.asarray(keras.ops.convert_to_numpy(counter.iterations))))

    def _report_losses(self) -> None:
        """Report the first step whose loss was not finite."""
        if self._bad_losses:
            step, loss = min(self._bad_losses)
            self._report(f"the training loss is {loss}", self._done, step)

    def _report(self, reason: str, epoch: float, step: int | None = None) -> None:
        """Keep, and say once, that training left the finite numbers, after how many whole epochs."""
        if self._diverged:
            return
        step = self._steps if step is None else step
        self._diverged = {"diverged_epoch": float(epoch), "diverged_step": int(step), "diverged_reason": reason}
        warnings.warn(
            f"training left the finite numbers in epoch {math.floor(epoch) + 1}, at step {step}: {reason}; lower the"
            " learning rate, or clip the gradient",
            RuntimeWarning,
            stacklevel=3,
        )

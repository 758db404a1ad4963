"""The recurrent matrices of a cell, gate by gate: what each block's spectrum says by itself."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from gradlab.spectrum import RecurrentSpectrum, recurrent_spectrum
from gradlab.step import as_step

# the letters of `Step.recurrent_matrices`, in Keras's order of the columns of a recurrent kernel
_LSTM = {"i": "input", "f": "forget", "c": "candidate", "o": "output"}
_GRU = {"z": "update", "r": "reset", "h": "candidate"}
_BLOCKS = {"W": "recurrent"} | _LSTM | _GRU


def gate_spectra(cell: Any, *, input_size: int | None = None) -> dict[str, RecurrentSpectrum]:
    """Return the spectral quantities of the recurrent matrix of each gate.

    Keras holds the gates side by side, recurrent_kernel [n, 4n] = [W_iᵀ, W_fᵀ, W_cᵀ, W_oᵀ] for an LSTM and
    [n, 3n] = [W_zᵀ, W_rᵀ, W_hᵀ] for a GRU. Each block is taken as it acts on h_{t−1}.

    None of them is the recurrence of the cell: its step is ∂h_t/∂h_{t−1} (`step_jacobians`), in which the gates
    multiply each other. A forget gate with ρ(W_f) = 5 may leave every gradient alone. What holds for W^k holds for the
    powers of a block, which no gated cell takes.

    Args:
        cell: an LSTM, GRU or simple recurrent Keras cell, a layer of one, a stack of cells, or a `VanillaRNNCell`.
        input_size: d; needed for a cell that is not built.

    Returns:
        A `RecurrentSpectrum` for each block, in Keras's order: input, forget, candidate and output; update, reset and
        candidate; recurrent, for a cell without gates. In a stack "layer1.input" and so on. The precision is that in
        which the cell stores its weights.

    Raises:
        ValueError: a cell of another kind, of which gradlab does not know the blocks; an unbuilt cell without
            `input_size`; weights that are not finite.
        TypeError: something that does not recur.

    Source:
        The blocks and their order are those of ``keras.layers.LSTMCell`` and ``keras.layers.GRUCell``.

    Example:
        >>> import keras
        >>> spectra = gate_spectra(keras.layers.LSTMCell(4, recurrent_initializer="orthogonal"), input_size=3)
        >>> list(spectra)
        ['input', 'forget', 'candidate', 'output']
        >>> bool(spectra["forget"].sigma_max < 1.0001)    # a block of an orthogonal kernel is a contraction
        True
    """
    step = as_step(cell, input_size=input_size)
    if not step.recurrent_matrices:
        raise ValueError(
            f"cell must be an LSTM, GRU or simple recurrent cell, or a stack of these, got {step.description}, of which"
            " gradlab does not know the blocks; pass each matrix to recurrent_spectrum as it acts on h"
        )
    spectra = {}
    for name, matrix in step.recurrent_matrices.items():
        layer, _, letter = name.rpartition(".")
        label = f"{layer}.{_BLOCKS[letter]}" if layer else _BLOCKS[letter]
        spectra[label] = recurrent_spectrum(matrix, precision=_stored_precision(step.cell))
    return spectra


def _stored_precision(cell: Any) -> float:
    """Return the relative rounding of the weights; of a stack, that of its coarsest layer."""
    cells = cell.cells if isinstance(cell, keras.layers.StackedRNNCells) else [cell]
    kinds = (tf.as_dtype(getattr(one, "variable_dtype", "float64")).as_numpy_dtype for one in cells)
    return max(float(np.finfo(kind).eps) for kind in kinds)

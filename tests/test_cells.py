from __future__ import annotations

import keras
import mpmath
import numpy as np
import pytest
import scipy.linalg
import tensorflow as tf
from cell_cases import EPS, softened
from hypothesis import example, given
from hypothesis import strategies as st

from gradlab import activations
from gradlab.cells import RecurrentInitializer, VanillaRNNCell
from gradlab.jacobian import step_jacobians
from gradlab.trajectory import rollout


def built(units=64, features=3, **kwargs):
    cell = VanillaRNNCell(units, dtype="float64", **kwargs)
    cell.build((None, features))
    return cell


# --- the recurrent matrix --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gain", [None, 0.3, 1.7])
def test_orthogonal_is_a_multiple_of_an_isometry(gain):
    W = built(recurrent_gain=gain, seed=0).recurrent_matrix
    g = 1.0 if gain is None else gain
    # Householder QR: ‖QᵀQ − I‖ of order n·eps
    assert np.abs(W.T @ W - g**2 * np.eye(64)).max() <= 4 * 64 * EPS * g**2
    assert np.sign(np.linalg.det(W)) in (-1.0, 1.0)


def test_orthogonal_is_haar_distributed():
    """A Haar matrix has E tr Q = 0 and E (tr Q)² = 1; LAPACK's QR alone gives signs that are not at random."""
    traces = [np.trace(RecurrentInitializer("orthogonal", seed=seed)((8, 8), "float64")) for seed in range(400)]
    assert abs(np.mean(traces)) < 4 / np.sqrt(400)
    # (tr Q)² has variance 2 in the limit
    assert abs(np.mean(np.square(traces)) - 1.0) < 4 * np.sqrt(2 / 400)


@pytest.mark.parametrize(
    ("name", "kurtosis"), [("glorot", 1.8), ("xavier", 1.8), ("gaussian", 3.0)], ids=["glorot", "xavier", "gaussian"]
)
def test_random_matrices_have_variance_gain_squared_over_n(name, kurtosis):
    n, gain = 128, 1.4
    W = built(n, recurrent_initializer=name, recurrent_gain=gain, seed=1).recurrent_matrix
    expected = gain**2 / n
    # standard error of a mean of N squares: expected·√((kurtosis − 1)/N)
    assert abs(np.mean(W**2) - expected) < 4 * expected * np.sqrt((kurtosis - 1) / n**2)
    assert abs(np.mean(W)) < 4 * np.sqrt(expected) / n
    # fourth moment: which distribution it is; its variance is below (moment 8) ≤ 105·variance⁴
    assert abs(np.mean(W**4) / expected**2 - kurtosis) < 4 * np.sqrt(105) / n
    if kurtosis == 1.8:
        assert np.abs(W).max() <= gain * np.sqrt(3 / n)


def test_identity_is_identity():
    assert np.array_equal(built(5, recurrent_initializer="identity").recurrent_matrix, np.eye(5))
    assert np.array_equal(
        built(5, recurrent_initializer="identity", recurrent_gain=0.5).recurrent_matrix, 0.5 * np.eye(5)
    )


@pytest.mark.parametrize("name", ["orthogonal", "glorot", "identity", "gaussian"])
@pytest.mark.parametrize("radius", [0.9, 3.0])
def test_spectral_radius_is_exact(name, radius):
    W = built(32, recurrent_initializer=name, spectral_radius=radius, seed=2).recurrent_matrix
    values, left, right = scipy.linalg.eig(W, left=True)
    leading = np.argmax(np.abs(values))
    # QR iteration is backward stable: each eigenvalue moves by n·eps·‖W‖ over the cosine of its two eigenvectors
    condition = 1.0 / abs(np.vdot(left[:, leading], right[:, leading]))
    assert abs(np.abs(values).max() - radius) <= 10 * 32 * EPS * np.linalg.norm(W, 2) * condition


def test_seeds_make_the_weights_and_nothing_else_does():
    def weights(seed, **kwargs):
        return built(40, 40, seed=seed, recurrent_initializer="gaussian", **kwargs).get_weights()

    assert all(np.array_equal(a, b) for a, b in zip(weights(7), weights(7, name="other"), strict=True))
    for first, second in ((weights(7), weights(8)), (weights(None), weights(None))):
        assert not np.allclose(first[0], second[0])
        assert not np.allclose(first[1], second[1])
    U, W, _ = weights(7, kernel_initializer="random_normal")
    # U and W have streams of their own: the correlation of 1600 independent pairs has standard error 1/40
    assert abs(np.corrcoef(U.ravel(), W.ravel())[0, 1]) < 4 / 40
    cell = VanillaRNNCell(3, seed=7)
    assert len({7, cell.kernel_initializer.seed, cell.recurrent_initializer.seed}) == 3


def test_a_seed_leaves_the_global_generators_alone():
    np.random.seed(0)  # noqa: NPY002
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    built(seed=3)
    assert np.array_equal(np.random.get_state()[1], before)  # noqa: NPY002


# --- the step --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", ["tanh", "relu", "sigmoid", "linear"])
@pytest.mark.parametrize("use_bias", [True, False])
def test_it_is_the_simple_rnn_of_keras(activation, use_bias):
    rng = np.random.default_rng(3)
    ours = built(6, 4, activation=activation, use_bias=use_bias)
    theirs = keras.layers.SimpleRNNCell(6, activation, use_bias=use_bias, dtype="float64")
    theirs.build((None, 4))
    weights = [rng.standard_normal(w.shape) for w in theirs.get_weights()]
    ours.set_weights(weights)
    theirs.set_weights(weights)
    x, h = rng.standard_normal((10, 4)), rng.standard_normal((10, 6))
    output, [state] = ours(tf.constant(x), [tf.constant(h)])
    assert output is state
    # the two sum 4 + 6 products and a bias in their own order
    size = np.abs(x) @ np.abs(weights[0]) + np.abs(h) @ np.abs(weights[1]) + (np.abs(weights[2]) if use_bias else 0)
    assert (np.abs(output - theirs(tf.constant(x), [tf.constant(h)])[0]) <= 2 * 12 * EPS * (1 + size)).all()
    assert np.array_equal(ours.recurrent_matrix, weights[1].T)


def test_initial_state_and_sizes():
    cell = VanillaRNNCell(4, dtype="float32")
    (state,) = cell.get_initial_state(batch_size=3)
    assert state.shape == (3, 4)
    assert state.dtype == tf.float32
    assert not state.numpy().any()
    assert cell.state_size == cell.output_size == 4


def test_an_initial_state_needs_a_batch_size():
    with pytest.raises(ValueError, match=r"needs the number of sequences, got None; pass batch_size=B"):
        VanillaRNNCell(4).get_initial_state()


def test_an_initializer_refuses_a_bad_seed():
    with pytest.raises(ValueError, match="seed must be at least 0, got -2"):
        RecurrentInitializer(seed=-2)
    assert RecurrentInitializer(seed=np.int64(3)).get_config()["seed"] == 3


def test_mixed_precision_computes_in_half_and_keeps_full_weights():
    cell = VanillaRNNCell(16, dtype="mixed_float16", seed=0)
    layer = keras.layers.RNN(cell, return_sequences=True, dtype="mixed_float16")
    x = np.random.default_rng(0).standard_normal((2, 6, 3)).astype(np.float16)
    outputs = layer(x)
    assert outputs.dtype == tf.float16
    assert {w.dtype for w in cell.weights} == {"float32"}
    exact = rollout(cell, x).states[:, 1:]
    # W is orthogonal and |tanh'| ≤ 1, so that each step adds its own rounding only: 20 products below 2, in half
    step = np.arange(1, 7)[:, None]
    assert (np.abs(outputs.numpy() - exact) <= step * np.sqrt(16) * 20 * 2 * 2.0**-11).all()
    assert np.abs(outputs.numpy() - exact).max() > 0.0


# --- Keras -----------------------------------------------------------------------------------------------------------


def test_it_trains_inside_a_keras_layer():
    """The sign of the first input, remembered over 10 steps of noise: chance has a loss of ln 2."""
    rng = np.random.default_rng(4)
    x = rng.standard_normal((256, 10, 2)).astype(np.float32)
    x[:, 0, 0] = rng.choice([-1.0, 1.0], 256)
    y = (x[:, 0, 0] > 0).astype(np.float32)
    cell = VanillaRNNCell(16, recurrent_gain=1.0, seed=5)
    head = keras.layers.Dense(1, "sigmoid", kernel_initializer=keras.initializers.GlorotUniform(seed=6))
    model = keras.Sequential([keras.layers.Input((10, 2)), keras.layers.RNN(cell), head])
    model.compile(keras.optimizers.Adam(0.02), "binary_crossentropy", jit_compile=False)
    before = cell.get_weights()
    losses = model.fit(x, y, epochs=15, batch_size=64, shuffle=False, verbose=0).history["loss"]
    assert losses[0] > 0.5
    assert losses[-1] < 0.3 * losses[0]
    assert all(np.abs(new - old).max() > 1e-3 for new, old in zip(cell.get_weights(), before, strict=True))


@pytest.mark.parametrize(
    "make",
    [
        lambda: VanillaRNNCell(4, "tanh", recurrent_gain=1.3, seed=0),
        lambda: VanillaRNNCell(4, "relu", recurrent_initializer="gaussian", spectral_radius=np.float64(0.8)),
        lambda: VanillaRNNCell(4, softened, use_bias=False),
        lambda: VanillaRNNCell(4, keras.activations.softsign),
        lambda: VanillaRNNCell(4, recurrent_initializer=keras.initializers.RandomNormal(seed=1)),
        lambda: VanillaRNNCell(4, dtype="float64"),
    ],
    ids=["name", "radius", "registered callable", "Keras callable", "Keras initializer", "float64"],
)
def test_a_model_loads_as_it_was_saved(make, tmp_path):
    cell = make()
    model = keras.Sequential([keras.layers.Input((5, 2)), keras.layers.RNN(cell), keras.layers.Dense(1)])
    cell.set_weights([w + 0.1 for w in cell.get_weights()])
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    x = np.random.default_rng(1).standard_normal((3, 5, 2)).astype(np.float32)
    assert np.array_equal(loaded(x), model(x))
    twin = loaded.layers[0].cell
    assert twin is not cell
    assert twin.activation is cell.activation
    assert twin.get_config() == cell.get_config()
    assert np.array_equal(rollout(twin, x).states, rollout(cell, x).states)


def test_a_configuration_makes_the_same_seeded_cell():
    cell = built(5, recurrent_gain=0.7, seed=9)
    again = VanillaRNNCell.from_config(cell.get_config())
    again.build((None, 3))
    assert all(np.array_equal(a, b) for a, b in zip(cell.get_weights(), again.get_weights(), strict=True))
    assert again.dtype == "float64"


# --- derivatives of saturated units ----------------------------------------------------------------------------------


def derivative(activation, a):
    return activations.slopes(activation, tf.constant([a], tf.float64)).numpy()[0]


@given(a=st.floats(-350.0, 350.0))
@example(a=0.0)
@example(a=19.5)
@example(a=-353.0)
@example(a=1e-300)
def test_tanh_slope_has_every_digit(a):
    with mpmath.workdps(40):
        exact = mpmath.sech(mpmath.mpf(a)) ** 2
        # exp(−2|a|) to 2 eps, then 1 + d, a square and a quotient: 0.5 eps each, the first doubled by the square
        assert abs(derivative(activations.tanh, a) / exact - 1) <= 4 * EPS


@given(a=st.floats(-700.0, 700.0))
@example(a=0.0)
@example(a=37.0)
@example(a=-707.0)
def test_logistic_slope_has_every_digit(a):
    with mpmath.workdps(40):
        d = mpmath.exp(-abs(mpmath.mpf(a)))
        assert abs(derivative(activations.sigmoid, a) / (d / (1 + d) ** 2) - 1) <= 4 * EPS


@pytest.mark.parametrize(("name", "sign"), [("tanh", 2.0), ("sigmoid", 1.0)])
def test_slopes_can_be_differentiated_again(name, sign):
    """For a penalty on gradients: tanh'' = −2 tanh tanh', and σ'' = σ' (1 − 2σ) = −σ' tanh(a/2)."""
    a = tf.constant(np.linspace(-4.0, 4.0, 17), tf.float64)
    with tf.GradientTape() as tape:
        tape.watch(a)
        slope = activations.slopes(activations.BY_NAME[name], a)
    expected = -sign * np.tanh(a * sign / 2.0) * slope
    assert np.allclose(tape.gradient(slope, a), expected, rtol=20 * EPS, atol=EPS)


def test_tensorflow_alone_loses_those_digits():
    """What the module is for; if this fails one day, it can go."""
    assert derivative(tf.tanh, 19.5) == 0.0
    assert derivative(activations.tanh, 19.5) == pytest.approx(4 * np.exp(-39.0), rel=1e-15)
    assert abs(derivative(tf.sigmoid, 40.0) / np.exp(-40.0) - 1) > 1e-3


@pytest.mark.parametrize("name", activations.BY_NAME)
def test_values_and_slopes_are_those_of_keras_where_it_is_accurate(name):
    a = tf.constant(np.linspace(-3.0, 3.0, 25), tf.float64)
    ours, theirs = activations.BY_NAME[name], getattr(keras.activations, name)
    assert np.array_equal(ours(a), theirs(a))
    # 1 − tanh² cancels to 1/0.01 at 3
    assert np.allclose(activations.slopes(ours, a), activations.slopes(theirs, a), rtol=400 * EPS, atol=0.0)
    assert activations.slopes(ours, a).numpy().max() <= activations.SLOPE_SUPREMUM[name]
    assert activations.name_of(ours) == activations.name_of(theirs) == name
    assert activations.accurate(theirs) is ours


ALIASES = {
    "tanh": [tf.tanh, tf.nn.tanh, tf.math.tanh, keras.ops.tanh],
    "sigmoid": [tf.sigmoid, tf.nn.sigmoid, tf.math.sigmoid, keras.ops.sigmoid],
    "relu": [tf.nn.relu, keras.ops.relu],
    "linear": [tf.identity],
}


@pytest.mark.parametrize("name", ALIASES)
def test_an_activation_is_known_under_every_name(name):
    for one in (*ALIASES[name], keras.layers.Activation(name), keras.layers.Activation(ALIASES[name][0])):
        assert activations.name_of(one) == name
        assert activations.accurate(one) is activations.BY_NAME[name]
        assert VanillaRNNCell(2, one).get_config()["activation"] == name
    assert activations.name_of(keras.layers.Activation("softplus")) is None


@pytest.mark.parametrize("activation", [tf.tanh, tf.nn.tanh, keras.ops.tanh, keras.layers.Activation("tanh"), "tanh"])
@pytest.mark.parametrize("kind", [VanillaRNNCell, keras.layers.SimpleRNNCell])
def test_a_saturated_unit_has_a_jacobian_under_every_name_of_its_activation(kind, activation):
    cell = kind(2, activation=activation, dtype="float64")
    cell.build((None, 1))
    cell.set_weights([np.array([[30.0, 40.0]]), np.eye(2), np.zeros(2)])
    J = step_jacobians(rollout(cell, np.ones((1, 1, 1))), method="autodiff")
    exact = [float(mpmath.sech(a) ** 2) for a in (30, 40)]
    assert np.allclose(np.diagonal(J[0, 0]), exact, rtol=10 * EPS, atol=0.0)


def test_unknown_activations_pass_through():
    assert activations.accurate(softened) is softened
    assert activations.name_of(softened) is None
    assert activations.slopes(lambda a: tf.ones(3), tf.zeros(3)).numpy().tolist() == [0.0] * 3


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"units": 0}, ValueError, "units must be at least 1, got 0"),
        ({"units": -3}, ValueError, "units must be at least 1, got -3"),
        ({"units": 2.0}, TypeError, r"units must be a positive integer, got 2.0 of type float"),
        ({"units": True}, TypeError, "units must be a positive integer, got True of type bool"),
        ({"activation": "elu"}, ValueError, r"must be one of \['linear', .*'tanh'\] or a callable, got 'elu'"),
        ({"activation": None}, TypeError, r"activation must be a name \[.*\] or a callable, got None"),
        ({"recurrent_initializer": "xavierr"}, ValueError, "recurrent_initializer must be one of .*, got 'xavierr'"),
        ({"recurrent_gain": 1.0, "spectral_radius": 0.9}, ValueError, "both set the size of W; give one of them"),
        ({"recurrent_gain": 0.0}, ValueError, "recurrent_gain must be a positive finite number, got 0.0"),
        ({"recurrent_gain": -1}, ValueError, "recurrent_gain must be a positive finite number, got -1"),
        ({"recurrent_gain": True}, ValueError, "recurrent_gain must be a positive finite number, got True"),
        ({"seed": -1}, ValueError, "seed must be at least 0, got -1"),
        ({"seed": "a"}, TypeError, "seed must be an integer or None, got 'a' of type str"),
        ({"seed": 2.0}, TypeError, "seed must be an integer or None, got 2.0 of type float"),
        ({"seed": True}, TypeError, "seed must be an integer or None, got True of type bool"),
        ({"recurrent_gain": "big"}, ValueError, "recurrent_gain must be a positive finite number, got 'big'"),
        ({"spectral_radius": np.nan}, ValueError, "spectral_radius must be a positive finite number, got nan"),
        ({"spectral_radius": np.inf}, ValueError, "spectral_radius must be a positive finite number, got inf"),
        (
            {"recurrent_gain": 2.0, "recurrent_initializer": keras.initializers.Orthogonal()},
            ValueError,
            "go with an initializer by name, got the object",
        ),
        (
            {"spectral_radius": 2.0, "recurrent_initializer": keras.initializers.Orthogonal()},
            ValueError,
            "go with an initializer by name, got the object",
        ),
        ({"kernel_initializer": "gloriot"}, ValueError, "gloriot"),
    ],
)
def test_bad_arguments_are_named(arguments, error, match):
    with pytest.raises(error, match=match):
        VanillaRNNCell(**{"units": 3, **arguments})


@pytest.mark.parametrize("shape", [(3, 4), (3,), (3, 3, 3)])
def test_a_recurrent_matrix_is_square(shape):
    with pytest.raises(ValueError, match=r"a recurrent matrix is square \[n, n\], got shape"):
        RecurrentInitializer()(shape)


def test_a_cell_without_weights_has_no_recurrent_matrix():
    with pytest.raises(ValueError, match=r"call cell.build\(\(None, features\)\) first"):
        _ = VanillaRNNCell(3).recurrent_matrix

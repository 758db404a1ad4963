from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

import gradlab as gl
from gradlab import fixes
from gradlab.probe import Probe

L = keras.layers
B, T, D, N = 3, 6, 2, 4
RNG = np.random.default_rng(0)
X, Y = RNG.standard_normal((B, T, D)), RNG.standard_normal((B, 1))
X[0, 4:] = 0.0  # left out by the mask
CELLS = {
    "tanh": lambda: L.SimpleRNN(N, dtype="float64"),
    "lstm": lambda: L.LSTM(N, dtype="float64"),
    "gru": lambda: L.GRU(N, dtype="float64"),
}


def network(cell="tanh"):
    keras.utils.set_random_seed(3)
    model = keras.Sequential(
        [keras.Input((T, D), dtype="float64"), L.Masking(dtype="float64"), CELLS[cell](), L.Dense(1, dtype="float64")]
    )
    for one in model.trainable_variables:  # away from zero biases
        one.assign(one + 0.1 * np.random.default_rng(5).standard_normal(one.shape))
    return model


def regularized(cell, penalty):
    model = fixes.RegularizedModel(network(cell), [penalty])
    model.compile("sgd", "mse")
    return model


def run(model, probe=None):
    probe = probe or Probe(model.inner, X, Y, loss=keras.losses.MeanSquaredError())
    (found,) = probe().layers.values()
    return found, gl.step_jacobians(found.trajectory)


@pytest.mark.parametrize("cell", CELLS)
def test_omega_is_the_formula(cell):
    model = regularized(cell, fixes.NormPreservation(2.0))
    found, J = run(model)
    omega = gl.bounds.norm_preservation_penalty(J, found.total, mask=found.trajectory.mask)
    assert float(model.penalty(X, Y)) == pytest.approx(2.0 * omega.mean(), rel=1e-12)


def test_omega_of_a_float64_model_is_not_rounded_by_the_loss():
    """Of several outputs the direction of the gradient would be that of float32."""
    plain = network()
    plain.pop()
    plain.add(L.Dense(3, dtype="float64"))
    model = fixes.RegularizedModel(plain, [fixes.NormPreservation(1.0)])
    model.compile("sgd", "mse")
    y = Y * np.array([0.3, -1.1, 0.7])
    (found,) = Probe(plain, X, y, loss=lambda t, o: tf.reduce_mean((t - o) ** 2))().layers.values()
    omega = gl.bounds.norm_preservation_penalty(
        gl.step_jacobians(found.trajectory), found.total, mask=found.trajectory.mask
    )
    assert float(model.penalty(X, y)) == pytest.approx(omega.mean(), rel=1e-12)


def slopes_by_differences(variable, value, places, step=1e-6):
    """Central differences: the error is of the order of step² and ε/step, 1e-10 for values of order one."""
    start = variable.numpy().copy()
    found = []
    for place in places:
        ends = []
        for sign in (1, -1):
            moved = start.copy()
            moved[place] += sign * step
            variable.assign(moved)
            ends.append(value())
        found.append((ends[0] - ends[1]) / (2 * step))
    variable.assign(start)
    return np.array(found)


def gradient(model, name):
    (variable,) = [one for one in model.inner.trainable_variables if one.name == name and "dense" not in one.path]
    with tf.GradientTape() as tape:
        value = model.penalty(tf.constant(X), tf.constant(Y))
    return variable, tape.gradient(value, variable.value).numpy()


@pytest.mark.parametrize(
    ("cell", "name"), [("tanh", "recurrent_kernel"), ("tanh", "kernel"), ("gru", "recurrent_kernel")]
)
def test_the_gradient_of_omega_is_its_immediate_derivative(cell, name):
    """States and gradients of the loss are constants: only the step Jacobian moves with the weights."""
    model = regularized(cell, fixes.NormPreservation(1.0))
    found, _ = run(model)
    layer = model.inner.layers[1]

    def omega():
        traj = found.trajectory
        fixed = gl.Trajectory(traj.inputs, traj.states, gl.as_step(layer), traj.mask)
        J = gl.step_jacobians(fixed, method="autodiff")
        return gl.bounds.norm_preservation_penalty(J, found.total, mask=traj.mask).mean()

    variable, slope = gradient(model, name)
    places = [(0, 0), (1, 3), (1, 1)]
    np.testing.assert_allclose(
        [slope[p] for p in places], slopes_by_differences(variable, omega, places), rtol=0, atol=1e-7
    )


@pytest.mark.parametrize("cell", ["tanh", "lstm"])
def test_flossing_reads_lyapunov_exponents_and_knows_its_slope(cell):
    k = 2
    model = regularized(cell, fixes.Flossing(1.0, k=k, target=-0.1))
    probe = Probe(model.inner, X, Y, loss=keras.losses.MeanSquaredError())  # reads the weights anew at each call

    def by_hand():
        found, J = run(model, probe)
        frame, _ = np.linalg.qr(np.random.default_rng(0).standard_normal((J.shape[-1], k)))
        values = []
        for b in range(B):
            Q, sums = frame, np.zeros(k)
            taken = np.ones(T, bool) if found.trajectory.mask is None else found.trajectory.mask[b]
            for step in J[b][taken]:
                Q, R = np.linalg.qr(step @ Q)
                sums += np.log(np.abs(np.diagonal(R)))
            values.append(sums / taken.sum())
        return float(np.mean((np.array(values) + 0.1) ** 2))

    # a dozen QR decompositions of well-conditioned frames
    assert float(model.penalty(X, Y)) == pytest.approx(by_hand(), rel=1e-10)
    variable, slope = gradient(model, "recurrent_kernel")
    places = [(0, 0), (2, 3)]
    np.testing.assert_allclose(
        [slope[p] for p in places], slopes_by_differences(variable, by_hand, places), rtol=0, atol=1e-7
    )


def test_flossing_leaves_out_steps_that_take_a_direction_to_zero():
    """Units of a ReLU that are off at two steps: there is no logarithm, and no NaN in the slope."""
    x = np.ones((B, T, D))
    x[0, 1], x[1, 3], x[2, 4] = -50.0, -50.0, -50.0  # all units off at these steps
    layer = L.SimpleRNN(
        N, "relu", kernel_initializer=keras.initializers.Constant(0.5), recurrent_initializer="identity",
        bias_initializer="ones", dtype="float64",
    )  # fmt: skip
    plain = keras.Sequential([keras.Input((T, D), dtype="float64"), layer, L.Dense(1, dtype="float64")])
    model = fixes.RegularizedModel(plain, [fixes.Flossing(k=2, target=0.3)])
    model.compile(keras.optimizers.SGD(0.1), "mse")

    @tf.function
    def penalty_and_slopes():
        with tf.GradientTape() as tape:
            value = model.penalty(tf.constant(x), tf.constant(Y))
        return value, tape.gradient(value, layer.trainable_weights)

    value, (kernel, recurrent, bias) = penalty_and_slopes()
    # elsewhere J = W = I: every exponent is 0, and that of (1 + ε)I is ε to first order
    assert float(value) == pytest.approx(0.3**2, abs=1e-15)
    assert np.trace(recurrent) == pytest.approx(-2 * 0.3, abs=1e-14)
    assert not np.any(kernel)  # slopes of 0 and 1 have none of their own
    assert not np.any(bias)
    assert np.isfinite(model.fit(x, Y, verbose=0).history["loss"]).all()


def test_flossing_pulls_the_exponent_to_zero_by_fit():
    keras.utils.set_random_seed(0)
    rnn = L.SimpleRNN(8, recurrent_initializer=fixes.BlockInitializer("gaussian", 0.4, seed=1))
    plain = keras.Sequential([keras.Input((10, 2)), rnn, L.Dense(1)])
    model = fixes.RegularizedModel(plain, [fixes.Flossing(10.0, k=1, sequences=4)])
    model.compile(keras.optimizers.Adam(0.05), "mse")
    x, y = RNG.standard_normal((30, 10, 2)).astype("float32"), np.zeros((30, 1), "float32")

    def exponent():
        return float(gl.lyapunov_exponents(gl.step_jacobians(gl.rollout(rnn, x)), 1).exponents.mean())

    before = exponent()
    history = model.fit(x, y, batch_size=12, epochs=8, verbose=0, validation_data=(x, y)).history  # 12, 12 and 6
    assert before < -0.5
    assert abs(exponent()) < 0.2
    assert history["val_loss"][-1] == pytest.approx(
        plain.evaluate(x, y, verbose=0) if plain.compiled else np.mean(plain.predict(x, verbose=0) ** 2), rel=1e-4
    )


def test_omega_lowers_itself_by_fit():
    model = regularized("tanh", fixes.NormPreservation(5.0))
    before = float(model.penalty(X, Y))
    model.compile(keras.optimizers.Adam(0.02), "mse")
    model.fit(X, Y, epochs=15, verbose=0)
    assert float(model.penalty(X, Y)) < 0.5 * before


def test_every_reading_of_a_weight_enters_what_is_assigned_to_it():
    # TensorFlow orders the two by a control edge, which its optimiser drops because all gradients go through one
    # IdentityN of Keras, and then cuts that in pieces: a penalty read the readout after its update once in some
    # thousand steps. So a way from reading to assignment must exist when each tensor passes the IdentityN by itself
    model = regularized("tanh", fixes.NormPreservation(2.0))
    model.optimizer.build(model.trainable_variables)

    @tf.function
    def train_step(x, y):
        return model.train_step((x, y))

    graph = train_step.get_concrete_function(tf.constant(X), tf.constant(Y)).graph
    handles = {id(one.value.handle): one.path for one in model.trainable_variables}
    captured = {id(inside): handles[id(outside)] for outside, inside in graph.captures if id(outside) in handles}

    def what_enters(tensors):
        found, stack = set(), list(tensors)
        while stack:
            tensor = stack.pop()
            if tensor.ref() not in found:
                found.add(tensor.ref())
                given = tensor.op.inputs
                stack += [given[tensor.value_index]] if tensor.op.type == "IdentityN" else given
        return {one.deref().op for one in found}

    changes = [one for one in graph.get_operations() if one.type.startswith("Assign")]
    useful = what_enters([*graph.outputs, *(tensor for one in changes for tensor in one.inputs[1:])])
    seen = []
    for assign in changes:
        if name := captured.get(id(assign.inputs[0])):
            readers = [one for one in assign.inputs[0].consumers() if one is not assign and one in useful]
            assert len(readers) >= 2, name
            assert set(readers) <= what_enters(assign.inputs[1:]), name
            seen.append(name)
    assert sorted(seen) == sorted(handles.values())


def test_without_penalty_the_step_is_keras_s_own():
    """In evaluation nothing is added, and dropout of the training run is Keras's."""
    model = regularized("gru", fixes.NormPreservation(1.0))
    expected = np.mean((model.inner.predict(X, verbose=0) - Y) ** 2)
    assert model.evaluate(X, Y, verbose=0) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("cell", "kwargs"), [("lstm", {"unit_forget_bias": False}), ("gru", {}), ("gru", {"reset_after": False})]
)
def test_chrono_biases_lie_where_the_formula_says(cell, kwargs):
    initializer = fixes.ChronoInitializer(50.0, cell, seed=4)
    layer = {"lstm": L.LSTM, "gru": L.GRU}[cell](2000, bias_initializer=initializer, **kwargs)
    bias = np.asarray(initializer(((4 if cell == "lstm" else 3) * 2000,), "float64"))
    keep = bias[2000:4000] if cell == "lstm" else bias[:2000]
    times = np.exp(keep)  # U[1, 49]
    assert 1.0 <= times.min() < 1.3
    assert 48.7 < times.max() <= 49.0
    assert abs(times.mean() - 25.0) < 5 * 48 / np.sqrt(12 * 2000)  # five standard errors
    if cell == "lstm":
        np.testing.assert_array_equal(bias[:2000], -keep)
        np.testing.assert_array_equal(bias[4000:], 0.0)
    else:
        np.testing.assert_array_equal(bias[2000:], 0.0)
    small = {"lstm": L.LSTM, "gru": L.GRU}[cell](3, bias_initializer=initializer, **kwargs)
    small.build((None, None, 1))
    both = np.asarray(small.cell.bias)
    if both.ndim == 2:
        np.testing.assert_array_equal(both[1], 0.0)
    again = keras.initializers.deserialize(
        keras.initializers.serialize(layer.cell.bias_initializer if cell == "gru" else initializer)
    )
    np.testing.assert_array_equal(
        again((2, 9) if cell == "gru" else (12,)), initializer((2, 9) if cell == "gru" else (12,))
    )


@pytest.mark.parametrize("units", [6, 8, 32])
def test_chrono_says_so_where_keras_fills_the_forget_gate_itself(units):
    layer = L.LSTM(units, bias_initializer=fixes.ChronoInitializer(100))  # unit_forget_bias=True is the default
    with pytest.raises(ValueError, match="unit_forget_bias=False"):
        layer.build((None, None, 2))
    with pytest.raises(ValueError, match='say cell="gru" for a GRU'):
        L.GRU(units, bias_initializer=fixes.ChronoInitializer(100)).build((None, None, 2))


def test_one_penalty_wants_brackets():
    with pytest.raises(TypeError, match=r"penalties must be a list, .* put brackets around it"):
        fixes.RegularizedModel(network(), fixes.NormPreservation(2.0))


def test_a_chrono_unit_remembers_as_long_as_it_says():
    """A GRU unit with this bias and no inputs shrinks by z = 1 − 1/(1 + e^b) a step."""
    layer = L.GRU(5, bias_initializer=fixes.ChronoInitializer(30.0, "gru"), recurrent_initializer="zeros")
    layer.build((None, None, 1))
    J = gl.step_jacobians(gl.rollout(layer, np.zeros((1, 1, 1))))[0, 0]
    b = np.asarray(layer.cell.bias)[0, :5].astype(np.float64)
    np.testing.assert_allclose(1 / (1 - np.diagonal(J)), gl.predictions.gate_memory(b).leak, rtol=1e-10)


@pytest.mark.parametrize("blocks", [1, 3, 4])
def test_every_gate_has_its_own_gain(blocks):
    gains = [0.5 + i for i in range(blocks)]
    W = np.asarray(fixes.BlockInitializer("orthogonal", gains, seed=2)((6, 6 * blocks), "float64"))
    parts = np.split(W, blocks, axis=1)
    for g, one in zip(gains, parts, strict=True):
        np.testing.assert_allclose(one @ one.T, g**2 * np.eye(6), rtol=0, atol=1e-13 * g**2)
    if blocks > 1:
        assert not np.allclose(parts[0] / gains[0], parts[1] / gains[1])
    layer = L.GRU(4, recurrent_initializer=fixes.BlockInitializer("gaussian", 1.5, seed=0))
    again = L.GRU.from_config(layer.get_config())
    for one in (layer, again):
        one.build((None, None, 2))
    np.testing.assert_array_equal(layer.cell.recurrent_kernel, again.cell.recurrent_kernel)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: fixes.NormPreservation(0.0), "weight must be a positive finite number"),
        (lambda: fixes.Flossing(k=0), "k must be at least 1"),
        (lambda: fixes.Flossing(target=np.nan), "target must be finite"),
        (lambda: regularized("tanh", fixes.Flossing(k=5)).penalty(X, Y), "k must be at most the 4 entries"),
        (lambda: fixes.RegularizedModel(network(), []), "at least one"),
        (lambda: fixes.RegularizedModel(keras.Sequential([keras.Input((3,)), L.Dense(1)]), [1]), "no recurrent layer"),
        (lambda: fixes.ChronoInitializer(100.0, "rnn"), 'cell must be "lstm" or "gru"'),
        (lambda: fixes.ChronoInitializer(100.0)((7,)), "has 4n entries, got shape"),
        (lambda: fixes.BlockInitializer("orthogonal", [1.0, 1.0])((3, 9)), "one for each of the 3 gates, got 2"),
        (lambda: fixes.BlockInitializer("unitary"), "must be one of"),
        (lambda: fixes.BlockInitializer()((3, 7)), r"is \[n, m·n\] for m gates"),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()

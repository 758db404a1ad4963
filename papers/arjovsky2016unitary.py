"""With an orthogonal recurrence and ReLU no gradient grows; a unitary network carries it where tanh and LSTM lose it.

Stated by Arjovsky, Shah & Bengio 2016 (arXiv 1511.06464): with an orthogonal or unitary recurrence and ReLU,
‖∂L/∂h_t‖ ≤ ‖∂L/∂h_T‖ (section 2), and at the start of training their uRNN propagates gradients while they vanish
exponentially in a tanh network and an LSTM; without memory the copy task costs 10 ln 8/(T + 20), the adding task 1/6.
By Le, Jaitly & Hinton 2015 (arXiv 1504.00941) they stay constant in ReLU networks that start at W = I, b = 0 (IRNN),
as long as the units are active; for the adding task without memory they print 0.1767, which is one digit off 1/6.
Setting: the adding task, T = 100, networks at initialisation, ∂L/∂h_t of its squared error; the two baselines from
samples of the tasks. That the bound is no promise is seen in the figure: real orthogonal networks with ReLU keep it and
lose ½ ln 2 a step, since half of the units are shut.

    python papers/arjovsky2016unitary.py            # a minute on 2 cores
    python papers/arjovsky2016unitary.py --quick    # seconds
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray
from reproduction import Claim, Result, reproduce, standard_error

import gradlab as gl
from gradlab.record import figure

T = 100
UNITS = 64  # of the uRNN: 32 complex ones
ERRORS = 4.0  # standard errors that a sampled mean may be off
SUMS = 40_000  # targets of the adding task: four standard errors are 0.004, and 0.1767 is 0.010 away from 1/6
QUOTED = "quoted in section 3 of Tallec & Ollivier 2018"

Array = NDArray[np.float64]


def unitary(n: int, rng: np.random.Generator) -> NDArray[np.complex128]:
    """Return W = D_3 R_2 F^-1 D_2 Π R_1 F D_1: phases, reflections, the Fourier transform and a permutation."""

    def phases() -> NDArray[np.complex128]:
        return np.exp(1j * rng.uniform(-np.pi, np.pi, n))

    def reflected(M: NDArray[np.complex128]) -> NDArray[np.complex128]:
        v = rng.uniform(-1.0, 1.0, n) + 1j * rng.uniform(-1.0, 1.0, n)
        return M - 2.0 * np.outer(v, v.conj() @ M) / np.vdot(v, v).real

    W = np.fft.fft(np.diag(phases()), axis=0, norm="ortho")
    W = phases()[:, None] * reflected(W)[rng.permutation(n)]
    return phases()[:, None] * reflected(np.fft.ifft(W, axis=0, norm="ortho"))


def urnn(seed: int) -> tuple[gl.Step, Array]:
    """Return the step of a uRNN at initialisation, over (Re h, Im h), and its start state."""
    rng, n = np.random.default_rng(seed), UNITS // 2
    W = unitary(n, rng)
    recurrent = tf.constant(np.block([[W.real, -W.imag], [W.imag, W.real]]).T)
    bound = np.sqrt(6.0 / (2 + UNITS))
    kernel = tf.constant(rng.uniform(-bound, bound, (2, UNITS)))
    bias = tf.constant(rng.uniform(-0.01, 0.01, n))

    def step(state: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
        z = tf.matmul(state, recurrent) + tf.matmul(x, kernel)
        real, imaginary = tf.split(z, 2, axis=-1)
        size = tf.sqrt(real**2 + imaginary**2)
        scale = tf.nn.relu(size + bias) / size  # modReLU
        return tf.concat([scale * real, scale * imaginary], axis=-1)

    start = rng.uniform(-1.0, 1.0, UNITS) * np.sqrt(3.0 / UNITS)
    return gl.as_step(step, state_size=UNITS, input_size=2), start


def simple(name: str, activation: str, kernel: Any = "glorot_uniform") -> Callable[[int], tuple[Any, None]]:
    """Return a maker of simple networks from a seed."""
    return lambda seed: (
        gl.VanillaRNNCell(
            UNITS, activation, recurrent_initializer=name, kernel_initializer=kernel, seed=seed, dtype="float64"
        ),
        None,
    )


def lstm(seed: int) -> tuple[Any, None]:
    """Return an LSTM as Keras makes it, but seeded."""
    kernel, recurrent = (
        keras.initializers.GlorotUniform(seed=2 * seed),
        keras.initializers.Orthogonal(seed=2 * seed + 1),
    )
    weights = {"kernel_initializer": kernel, "recurrent_initializer": recurrent}
    return keras.layers.LSTMCell(UNITS, dtype="float64", **weights), None


NETWORKS: dict[str, Callable[[int], tuple[Any, Any]]] = {
    "uRNN": urnn,
    "orthogonal, ReLU": simple("orthogonal", "relu"),
    "IRNN": simple("identity", "relu", keras.initializers.RandomNormal(stddev=0.001, seed=0)),
    "Gaussian, tanh": simple("gaussian", "tanh"),
    "Glorot, tanh": simple("glorot", "tanh"),
    "LSTM": lstm,
}


def run(cell: Any, start: Any, task: Any) -> gl.Trajectory:
    """Return the run over the task's test sequences."""
    return gl.rollout(cell, task.test_inputs, initial_state=start)


def log_gradients(traj: gl.Trajectory, task: Any, seed: int) -> Array:
    """Return ln‖∂L/∂h_t‖ − ln‖∂L/∂h_T‖ [B, T+1] for the squared error through a random readout of h_T."""
    w = np.random.default_rng(seed).standard_normal(UNITS) / np.sqrt(UNITS)
    targets = tf.constant(task.test_targets[:, 0])
    g = gl.state_gradients(
        traj, None, lambda states: (tf.linalg.matvec(states[:, -1, :UNITS], tf.constant(w)) - targets) ** 2
    )
    return g.log_total_norm - g.log_total_norm[:, -1:]


def modulation(traj: gl.Trajectory) -> float:
    """Return the mean of 0.01/|h_t| over the units of a uRNN, 1 where a bias may shut one: what a step may change."""
    real, imaginary = np.split(traj.states[:, 1:], 2, axis=-1)
    return float(np.mean(0.01 / np.maximum(np.hypot(real, imaginary), 0.01)))


def memoryless(options: argparse.Namespace) -> list[Claim]:
    """Return the claims about the baselines."""
    N = 1000 if options.quick else 4000
    task = gl.tasks.copy(T, N, seed=options.seed, test_samples=N)
    share = np.stack([(task.targets == label).mean(axis=0) for label in range(9)])  # of every label at every step
    cost = -np.log(share[task.test_targets, np.arange(T + 20)]).mean(axis=1)
    excess = 7.0 / (2.0 * N) * 10.0 / (T + 20)
    summed = gl.tasks.adding(T, 1, seed=options.seed, test_samples=SUMS).test_targets[:, 0]
    error = (summed - 1.0) ** 2
    deviation = float(error.std(ddof=1) / np.sqrt(SUMS))
    sampling = ERRORS * float(np.sqrt(7.0 / 180.0 / SUMS))
    sampled = f"{ERRORS:g} standard errors of the mean over {SUMS} sequences; (U_1 + U_2 − 1)² varies by 7/180"
    return [
        Claim(
            statement=f"cross-entropy of the copy task without memory, T = {T}: 10 ln 8/(T + 20)",
            place=QUOTED,
            published=10.0 * np.log(8.0) / (T + 20),
            measured=float(cost.mean()),
            uncertainty=float(cost.std(ddof=1) / np.sqrt(N)),
            tolerance=2.0 * excess,
            why=f"twice the 7/2N nats a symbol that it costs to estimate eight shares from {N} sequences",
            units="nats",
        ),
        Claim(
            statement="squared error of the adding task if the answer is always 1: 1/6",
            place=QUOTED,
            published=1.0 / 6.0,
            measured=float(error.mean()),
            uncertainty=deviation,
            tolerance=sampling,
            why=sampled,
        ),
        Claim(
            statement="the same as Le et al. 2015 print it: 0.1767",
            place="quoted in MinPy's tutorial on recurrent networks",
            published=0.1767,
            measured=float(error.mean()),
            uncertainty=deviation,
            tolerance=sampling + 0.5e-4,
            why=f"{sampled}; half a unit of the last digit printed",
        ),
    ]


def active(task: Any) -> float:
    """Return max |ln σ| of all ∂h_T/∂h_t of an IRNN whose inputs keep every unit active."""
    positive = keras.initializers.RandomUniform(0.0, 0.001, seed=0)  # and so are the inputs
    cell, _ = simple("identity", "relu", positive)(0)
    return float(np.abs(gl.log_singular_values(gl.step_jacobians(run(cell, None, task))[:1])).max())


def compute(options: argparse.Namespace) -> Result:
    """Return the claims: the bound, the rates at initialisation, the baselines."""
    seeds, B = (4, 4) if options.quick else (16, 16)
    task = gl.tasks.adding(T, 1, seed=options.seed, test_samples=B)
    curves: dict[str, Any] = {}
    largest, modulated = [], []
    for name, make in NETWORKS.items():
        found, rates = [], []
        for seed in range(options.seed, options.seed + seeds):
            traj = run(*make(seed), task)
            found.append(log_gradients(traj, task, seed))
            rates.append(gl.fit_decay(found[-1]).rate.mean())
            if name == "uRNN":
                modulated.append(modulation(traj))
            if name == "orthogonal, ReLU":
                largest.append(gl.log_singular_values(gl.step_jacobians(traj)[:1])[0, :, 0])
        curves[name] = {
            "mean": np.mean(found, axis=(0, 1)).tolist(),
            "deviation": np.std(np.mean(found, axis=1), axis=0, ddof=1).tolist(),
            "largest": float(np.max(found)),
            "rate": [float(np.mean(rates)), standard_error(rates)],
        }

    def rate(name: str, statement: str, tolerance: float, why: str, sense: Any = "equal") -> Claim:
        mean, error = curves[name]["rate"]
        return Claim(statement, "", 0.0, mean, tolerance, why, error, sense, "nats/step", kind="experiment")

    rounding, why = T * UNITS * float(np.finfo(float).eps), f"rounding: nε for each of {T} products"
    claims = [
        Claim(
            statement="largest ‖∂h_T/∂h_t‖ over lags and networks, orthogonal recurrence and ReLU",
            place="section 2",
            published=1.0,
            measured=float(np.exp(np.max(largest))),
            tolerance=rounding,
            why=why,
            sense="at most",
            kind="theorem",
        ),
        Claim(
            statement="largest ‖∂L/∂h_t‖/‖∂L/∂h_T‖ there",
            place="section 2",
            published=1.0,
            measured=float(np.exp(curves["orthogonal, ReLU"]["largest"])),
            tolerance=rounding,
            why=why,
            sense="at most",
            kind="theorem",
        ),
        Claim(
            statement="gradients stay constant in an IRNN with all units active (Le et al. 2015); largest |ln σ| of"
            " ∂h_T/∂h_t",
            place="",
            published=0.0,
            measured=active(task),
            tolerance=rounding,
            why=why,
            units="nats",
            kind="theorem",
        ),
        rate(
            "uRNN",
            "rate of ln‖∂L/∂h_t‖ over the lag, uRNN at the start",
            float(np.mean(modulated)),
            "biases b of modReLU, |b| ≤ 0.01, change norms by |b|/|h| at most; its mean",
        ),
        rate(
            "IRNN",
            "rate of ln‖∂L/∂h_t‖ over the lag, IRNN at the start (Le et al. 2015)",
            0.5 * np.log(2.0) / T,
            "half of the units have inputs that shut them; their part of the gradient is lost, once",
        ),
        rate(
            "Gaussian, tanh", "rate of ln‖∂L/∂h_t‖ over the lag, tanh network at the start", 0.0, "the sign", "at most"
        ),
        rate("LSTM", "rate of ln‖∂L/∂h_t‖ over the lag, LSTM at the start", 0.0, "the sign", "at most"),
        *memoryless(options),
    ]
    curves["largest_singular_value"] = np.max(largest, axis=0).tolist()
    differs = (
        f"{UNITS} units in every network, where theirs have equal numbers of parameters. The variance of a sum of two"
        " numbers from U[0, 1] is 1/6 = 0.1667, as Arjovsky et al. have it; the 0.1767 of Le et al. looks like a"
        " misprint of one digit."
    )
    return Result(claims, curves, differs)


def draw(record: dict[str, Any], path: Path) -> None:
    """Draw the gradients over t, and those of orthogonal ReLU networks with their bound."""
    curves = record["curves"]
    t = np.arange(T + 1)
    looks = dict(zip(NETWORKS, ("C0", "C2", "C1", "C3", "C4", "k"), strict=True))
    with figure(path, 1, 2, figsize=(5.6, 2.6)) as (_, axes):
        left, right = axes[0]
        for name, colour in looks.items():
            mean, deviation = np.array(curves[name]["mean"]), np.array(curves[name]["deviation"])
            left.fill_between(t, mean - deviation, mean + deviation, color=colour, alpha=0.2, linewidth=0)
            left.plot(t, mean, color=colour, label=name)
        left.set_xlabel("t (steps)")
        left.set_ylabel(r"$\ln(\|\partial L/\partial h_t\|\,/\,\|\partial L/\partial h_T\|)$")
        left.legend(loc="lower right", title="at initialisation")
        right.axhline(0.0, color="k", linestyle="--", label="bound")
        right.plot(
            t[:-1], curves["largest_singular_value"], color="C0", label=r"largest $\ln\|\partial h_T/\partial h_t\|$"
        )
        right.plot(t, curves["orthogonal, ReLU"]["mean"], color="C2", label=r"mean $\ln\|\partial L/\partial h_t\|$")
        right.plot(t, -0.5 * np.log(2.0) * (T - t), color="C2", linestyle=":", label=r"$-(T-t)\,\frac{1}{2}\ln 2$")
        right.set_xlabel("t (steps)")
        right.set_ylabel("nats")
        right.legend(loc="lower right", title="orthogonal, ReLU")


if __name__ == "__main__":
    reproduce(__file__, __doc__, compute, draw)

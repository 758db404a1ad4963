"""The description of a run: values alone, checked and hashed. No TensorFlow."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gradlab.tasks.task import split_sizes
from gradlab.validation import positive_integer, positive_number, update_rates

SIMPLE = ("tanh", "relu", "linear")
CELLS = (*SIMPLE, "lstm", "gru")
INITIALIZERS = ("gaussian", "orthogonal", "glorot", "identity")
_REAL = ("digits", "digits_rows", "vowels", "gunpoint")
_DRAWN = (
    "adding", "addition", "multiplication", "temporal_order", "temporal_order_3bit", "memorization",
    "random_permutation", "copy", "latching", "noise",
)  # fmt: skip
DATA: dict[str, int | None] = dict.fromkeys(_REAL) | dict.fromkeys(_DRAWN, 100)  # the length where it can be chosen
_LEAST_LENGTH = dict.fromkeys(("addition", "multiplication", "temporal_order", "temporal_order_3bit"), 10)
_LEAST_LENGTH |= {"latching": 3}  # others 2
SAMPLES = dict.fromkeys(_DRAWN, 2000) | {"noise": 64}  # of a task that is drawn, if not said
TEST_SEQUENCES = {"digits": 360, "digits_rows": 360, "vowels": 370, "gunpoint": 150}  # of the real ones
OPTIMIZERS = ("adam", "sgd", "rmsprop")
MEASURES = ("analysis", "decay", "held_out", "credit", "slopes", "tracking")
CLIPS = ("clip_norm", "clip_value", "global_clip_norm")


@dataclass(frozen=True)
class Experiment:
    """What is trained and measured; the same description gives the same numbers on the same machine.

    A field added later has a default that means what was done before it was there, and defaults never change: `hash`
    and `key` leave out what is at its default, so that results keep their names.

    Attributes:
        cell: "tanh", "relu" or "linear" (`VanillaRNNCell`), "lstm" or "gru" (Keras).
        gain: g, the size of the recurrent matrices at initialisation, every gate alike.
        seed: of the weights, the order of the batches and the data, below 2³².
        data: a task of `gradlab.tasks`: the real "digits" (64 pixels, one a step), "digits_rows" (8 steps), "vowels"
            (masked, up to 29 steps) and "gunpoint" (150 steps); "adding", "addition" and "multiplication" (the latter
            two masked), "temporal_order", "temporal_order_3bit", "random_permutation", "latching", with an answer at
            the end; "memorization" and "copy", with one at every step (then the loss, and the gradient at h_t, are of
            all steps); "noise" (white noise, nothing to learn).
        units: n of each gate.
        epochs: passes over the training data; 0 analyses the initial network alone.
        batch_size: sequences per training step.
        learning_rate: of the optimiser.
        clip_norm: the norm at which the gradient of each weight is clipped in training (not in the analysis), None for
            no such clipping. At most one of the three kinds of clipping is given.
        probes: number of test sequences analysed; with those held out, where they are measured, at most as many as the
            task has.
        held_out: number of further test sequences, on which the Lyapunov exponents alone are measured: what they say of
            the decay on the probes is a forecast, for neither the training nor the decay has seen these.
        initializer: of the recurrent matrix of each gate: "gaussian", W_ij ~ N(0, g²/n); "orthogonal", g·Q with Q
            Haar-distributed; "glorot", uniform with variance g²/n; "identity", g·I (see `RecurrentInitializer`).
        forget_bias: of the forget gate of an LSTM or the update gate of a GRU, a number; "chrono" for
            ln U[1, T − 1] (Tallec & Ollivier 2018), with its negative for the input gate of an LSTM; None for what
            Keras has, 1 for an LSTM and 0 for a GRU.
        length: first argument of a task that is drawn, None for 100: T, or the delay of "copy" and "memorization",
            which have 20 steps more; real data have a length of their own.
        samples: training sequences of a task that is drawn, None for 2000 ("noise": 64); the test has a fifth as many.
        optimizer: "adam", "sgd" or "rmsprop", as in Keras.
        momentum: of "sgd".
        clip_value: the size at which every entry of the gradient is clipped.
        global_clip_norm: the norm at which the gradient of all weights together is clipped (Pascanu et al. 2013).
        measured: what is measured: "analysis", everything of `analyze` on the probes; "decay", its gradients and
            fitted decay alone, for networks too large for all singular values; "held_out", Lyapunov exponents on the
            held-out sequences; "credit", `credit_by_lag` of ∂L/∂W_hh on the probes; "slopes", φ'(a_t) of every unit of
            a simple network on the probes; "tracking", what a `GradientTracker` sees of the probes during training.
            Empty for the learning curves alone.
        measured_at: after which epochs, increasing; None for before and after training, and for tracking
            `schedules.logarithmic` (which in any case looks before the first epoch and after the last).
        leak: α of leaky units of a simple network, h_t = (1 − α) h_{t−1} + α φ(a_t); None for h_t = φ(a_t).
        residual: α of residual units, h_t = h_{t−1} + α φ(a_t). At most one of the two is given.
        omega: weight of Ω (`fixes.NormPreservation`) in the training loss; its authors took 4, their code has 2.
            None for no such term.
        flossing: weight of gradient flossing (`fixes.Flossing`) in the training loss, on all sequences of every batch.
        flossing_exponents: how many of the largest Lyapunov exponents it pulls towards 0.

    Raises:
        ValueError: an unknown choice, a number out of range, or fields that contradict each other.
        TypeError: a value of the wrong type.

    Example:
        >>> experiment = Experiment("lstm", gain=1.2, forget_bias="chrono", data="adding", length=50)
        >>> experiment.key
        'lstm-adding-7a35b1cf2a929fd8'
        >>> Experiment.from_dict(experiment.as_dict()) == experiment
        True
    """

    cell: str
    gain: float = 1.0
    seed: int = 0
    data: str = "digits"
    units: int = 32
    epochs: int = 12
    batch_size: int = 64
    learning_rate: float = 3e-3
    clip_norm: float | None = 1.0
    probes: int = 8
    held_out: int = 8
    initializer: str = "gaussian"
    forget_bias: float | str | None = None
    length: int | None = None
    samples: int | None = None
    optimizer: str = "adam"
    momentum: float = 0.0
    clip_value: float | None = None
    global_clip_norm: float | None = None
    measured: tuple[str, ...] = ("analysis", "held_out")
    measured_at: tuple[int, ...] | None = None
    leak: float | None = None
    residual: float | None = None
    omega: float | None = None
    flossing: float | None = None
    flossing_exponents: int = 1

    def __post_init__(self) -> None:
        """Check every value, and bring those that are equal to one form: 1 and 1.0 name the same run."""
        for name, choices in (
            ("cell", CELLS),
            ("data", tuple(DATA)),
            ("initializer", INITIALIZERS),
            ("optimizer", OPTIMIZERS),
        ):
            _one_of(name, getattr(self, name), choices)
        for name in ("units", "batch_size", "probes", "held_out", "flossing_exponents"):
            self._set(name, positive_integer(name, getattr(self, name)))
        for name in ("length", "samples"):
            if getattr(self, name) is not None:
                self._set(name, positive_integer(name, getattr(self, name)))
        self._leave_out_defaults()
        for name in ("seed", "epochs"):
            self._set(name, _count(name, getattr(self, name)))
        if self.seed >= 2**32:
            raise ValueError(f"seed must be below 2**32, got {self.seed}")
        for name in ("gain", "learning_rate"):
            self._set(name, positive_number(name, getattr(self, name)))
        for name in (*CLIPS, "omega", "flossing"):
            if getattr(self, name) is not None:
                self._set(name, positive_number(name, getattr(self, name)))
        for name, rate in zip(("leak", "residual"), update_rates(self.leak, self.residual), strict=True):
            self._set(name, rate)
        if not _is_number(self.momentum) or not 0.0 <= self.momentum < 1.0:
            raise ValueError(f"momentum must be a number in [0, 1), got {self.momentum!r}")
        self._set("momentum", float(self.momentum))
        self._check_forget_bias()
        self._check_measured()
        self._check_data()
        self._check_contradictions()
        self._check_sequences()

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    def _leave_out_defaults(self) -> None:
        """Bring what says the same as None to None: the same run has one name."""
        for name, usual in (("length", DATA[self.data]), ("samples", SAMPLES.get(self.data))):
            if getattr(self, name) == usual:
                self._set(name, None)

    def _check_forget_bias(self) -> None:
        if self.forget_bias is None or self.forget_bias == "chrono":
            pass
        elif _is_number(self.forget_bias) and math.isfinite(float(self.forget_bias)):
            usual = {"lstm": 1.0, "gru": 0.0}.get(self.cell)  # what Keras has goes by the name of None
            self._set("forget_bias", None if self.forget_bias == usual else float(self.forget_bias))
        else:
            raise ValueError(f'forget_bias must be a finite number, "chrono" or None, got {self.forget_bias!r}')

    def _check_measured(self) -> None:
        for name, kinds in (("measured", list | tuple), ("measured_at", list | tuple | None)):
            value = getattr(self, name)
            if not isinstance(value, kinds):
                raise TypeError(f"{name} must be a list, got {value!r}; put brackets around it")
        for one in self.measured:
            _one_of("measured", one, MEASURES)
        self._set("measured", tuple(name for name in MEASURES if name in self.measured))
        if {"analysis", "decay"} <= set(self.measured):
            raise ValueError('measured has "analysis" and "decay", and the first contains the second; leave one out')
        if not self.measured and (self.measured_at is not None or not self.epochs):
            raise ValueError(f"measured must name one of {list(MEASURES)} unless the learning curves alone are wanted")
        if self.measured_at is None:
            return
        at = tuple(_count("measured_at", epoch) for epoch in self.measured_at)
        if not at or list(at) != sorted(set(at)) or at[-1] > self.epochs:
            raise ValueError(f"measured_at must be increasing epochs from 0 to epochs={self.epochs}, got {list(at)}")
        # the default by another name is the same run, unless a schedule is
        self._set("measured_at", None if at == self._start_and_end and "tracking" not in self.measured else at)

    def _check_data(self) -> None:
        if self.data == "noise" and self.epochs:
            raise ValueError(f"white noise has nothing to learn, got epochs={self.epochs}; set epochs=0")
        if DATA[self.data] is None:
            free = [name for name, steps in DATA.items() if steps]
            for name in ("length", "samples"):
                if getattr(self, name) is not None:
                    raise ValueError(
                        f'{name} goes with data in {free}, got {name}={getattr(self, name)} and "{self.data}"'
                    )
        least = _LEAST_LENGTH.get(self.data, 2)
        if self.length is not None and self.length < least:
            raise ValueError(f'length of "{self.data}" must be at least {least}, got {self.length}')

    def _check_contradictions(self) -> None:
        if self.forget_bias == "chrono" and self.length is not None and self.length < 3:
            raise ValueError(f'forget_bias="chrono" goes with length of at least 3, got length={self.length}')
        if self.forget_bias is not None and self.cell not in ("lstm", "gru"):
            raise ValueError(f'forget_bias goes with cell "lstm" or "gru", got it with "{self.cell}"')
        for name in ("leak", "residual"):
            if getattr(self, name) is not None and self.cell not in SIMPLE:
                raise ValueError(f'{name} goes with cell in {list(SIMPLE)}, got it with "{self.cell}"')
        for name in ("omega", "flossing"):
            if getattr(self, name) is not None and not self.epochs:
                raise ValueError(f"{name} is a term of the training loss, got it with epochs=0; train, or set it None")
        if "slopes" in self.measured and (self.cell not in SIMPLE or self.leak or self.residual):
            raise ValueError(
                f'measured has "slopes", which go with h_t = φ(a_t): cell in {list(SIMPLE)}, not leaky, not residual,'
                f' got "{self.cell}", leak={self.leak}, residual={self.residual}'
            )
        if "tracking" in self.measured and not self.epochs:
            raise ValueError('measured has "tracking", which looks at a training, and epochs=0; leave it out')
        size = 2 * self.units if self.cell == "lstm" else self.units
        if self.flossing is None and self.flossing_exponents != 1:
            raise ValueError(f"flossing_exponents goes with flossing, got {self.flossing_exponents} without it")
        if self.flossing_exponents > size:
            raise ValueError(f"flossing_exponents must be at most {size}, the state, got {self.flossing_exponents}")
        if self.momentum and self.optimizer != "sgd":
            raise ValueError(f'momentum goes with optimizer "sgd", got momentum={self.momentum} and "{self.optimizer}"')
        clips = [f"{name}={getattr(self, name)}" for name in CLIPS if getattr(self, name) is not None]
        if len(clips) > 1:
            raise ValueError(
                f"at most one of {list(CLIPS)} must be given, got {' and '.join(clips)}; set the others to None"
                ' (in a file "none"), clip_norm too, which is 1.0 if not said'
            )

    def _check_sequences(self) -> None:
        if self.data == "noise" or not self.measured:  # of noise as many are drawn as are asked for
            return
        drawn = self.samples or SAMPLES.get(self.data)
        there = split_sizes(drawn, None)[1] if drawn else TEST_SEQUENCES[self.data]
        held_out = self.held_out if "held_out" in self.measured else 0
        needed = self.probes + held_out
        if needed > there:
            raise ValueError(
                f"probes{' and held_out together' if held_out else ''} must be at most the {there} test sequences of"
                f' "{self.data}", got {self.probes}{f" and {held_out}" if held_out else ""}; take fewer'
                f"{f', or samples of at least {5 * needed}' if drawn else ''}"
            )

    @property
    def _start_and_end(self) -> tuple[int, ...]:
        return (0, self.epochs) if self.epochs else (0,)

    @property
    def stages(self) -> dict[int, str]:
        """The epochs after which the network is measured, in order, with their names in the dataset."""
        if not set(self.measured) - {"tracking"}:
            return {}
        at = self._start_and_end if self.measured_at is None else self.measured_at
        names = {self.epochs: "trained", 0: "initial"}  # in this order: with no epochs there is no training
        return {epoch: names.get(epoch, f"epoch {epoch}") for epoch in at}

    def __repr__(self) -> str:
        """Return the call that makes it, without what is at its default."""
        fields = {name: value for name, value in dataclasses.asdict(self).items() if value != _DEFAULTS.get(name)}
        return f"Experiment({', '.join(f'{name}={value!r}' for name, value in fields.items())})"

    def as_dict(self) -> dict[str, Any]:
        """Return all fields as JSON has them."""
        return {
            name: list(value) if isinstance(value, tuple) else value for name, value in dataclasses.asdict(self).items()
        }

    @property
    def hash(self) -> str:
        """The SHA-256 of the description: of the fields that are not at their default, by name."""
        content = {name: value for name, value in self.as_dict().items() if getattr(self, name) != _DEFAULTS.get(name)}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    @property
    def key(self) -> str:
        """A name for the result: cell, data and the first 64 bits of `hash`."""
        return f"{self.cell}-{self.data}-{self.hash[:16]}"

    @classmethod
    def from_dict(cls, description: Experiment | Mapping[str, Any]) -> Experiment:
        """Return the experiment that a table of JSON or TOML describes; "none" stands for None, which TOML lacks.

        Raises:
            ValueError: a key is unknown or "cell" is missing, and as the class does.
            TypeError: as the class does, or not a table.

        Example:
            >>> Experiment.from_dict({"cell": "tanh", "gian": 1.5})
            Traceback (most recent call last):
            ...
            ValueError: unknown key 'gian' (did you mean 'gain'?); an experiment has ['cell', 'gain', 'seed', ...]
        """
        if isinstance(description, cls):
            return description
        if not isinstance(description, Mapping):
            raise TypeError(f"a description must be an Experiment or a table of its fields, got {description!r}")
        fields = [field.name for field in dataclasses.fields(cls)]
        for key in description:
            if key not in fields:
                near = difflib.get_close_matches(str(key), fields, 1)
                raise ValueError(
                    f"unknown key {key!r}{f' (did you mean {near[0]!r}?)' if near else ''}; an experiment has {fields}"
                )
        if "cell" not in description:
            raise ValueError(f"an experiment needs the key 'cell', one of {list(CELLS)}, got {dict(description)}")
        values: dict[str, Any] = {key: None if value == "none" else value for key, value in description.items()}
        return cls(**values)


_DEFAULTS = {
    field.name: field.default for field in dataclasses.fields(Experiment) if field.default is not dataclasses.MISSING
}


def _one_of(name: str, value: Any, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {list(choices)}, got {value!r}")


def _is_number(value: Any) -> bool:
    return hasattr(value, "__float__") and not isinstance(value, str | bool)


def _count(name: str, value: Any) -> int:
    """Return an integer ≥ 0."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    if value < 0:
        raise ValueError(f"{name} must not be negative, got {value}")
    return int(value)

"""Eight float64 at a time in Numba: LLVM's own vectors, for loops that it would not turn into vectors by itself.

It does so only where it can rule out at run time that the arrays overlap, which on rows of 32 costs more than the loop.
A `Register` is eight neighbours of a row; on processors with narrower registers LLVM takes several of them.
"""

# mypy: disable-error-code="misc, no-untyped-def"

from __future__ import annotations

import operator
from typing import Any

from llvmlite import ir
from numba import extending, types
from numba.core.cgutils import get_or_insert_function
from numba.np.arrayobj import make_array

from gradlab.graded import WIDTH

intrinsic: Any = extending.intrinsic  # its types say nothing of what it decorates
overload: Any = extending.overload


class Register(types.Type):
    """Eight float64."""

    def __init__(self) -> None:
        super().__init__(name="Register")


register = Register()
_double, _bits = ir.DoubleType(), ir.IntType(64)
VECTOR = ir.VectorType(_double, WIDTH)


@extending.register_model(Register)
class _Model(extending.models.PrimitiveModel):
    def __init__(self, manager: Any, kind: Any) -> None:
        super().__init__(manager, kind, VECTOR)


def address(context: Any, builder: Any, kind: Any, array: Any, row: Any, column: Any) -> Any:
    """Where Register A[row, column : column + 8] of a contiguous A lies."""
    A = make_array(kind)(context, builder, array)
    offset = builder.add(builder.mul(row, builder.extract_value(A.shape, 1)), column)
    return builder.bitcast(builder.gep(A.data, [offset]), VECTOR.as_pointer())


def shuffled(builder: Any, a: Any, b: Any, which: list[int]) -> Any:
    """The vector of these places of a and, counted on, b."""
    return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(ir.IntType(32), len(which)), which))


def spread_in(builder: Any, x: Any) -> Any:
    """The vector of eight times x."""
    first = builder.insert_element(ir.Constant(VECTOR, ir.Undefined), x, ir.IntType(32)(0))
    return shuffled(builder, first, first, [0] * WIDTH)


def of_rows(A: Any) -> bool:
    """Whether A is what `load` and `store` may touch: anything else would be memory corrupted."""
    return isinstance(A, types.Array) and A.ndim == 2 and A.layout == "C" and A.dtype == types.float64


@intrinsic
def load(typing_context: Any, A: Any, row: Any, column: Any) -> Any:
    """A[row, column : column + 8] of a contiguous A, without any check."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.load(address(context, builder, signature.args[0], *arguments), align=8)

    return (register(A, types.int64, types.int64), generate) if of_rows(A) else None


@intrinsic
def store(typing_context: Any, A: Any, row: Any, column: Any, x: Any) -> Any:
    """A[row, column : column + 8] = x for a contiguous A, without any check."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        builder.store(arguments[3], address(context, builder, signature.args[0], *arguments[:3]), align=8)
        return context.get_dummy_value()

    return (types.void(A, types.int64, types.int64, register), generate) if of_rows(A) and A.mutable else None


@intrinsic
def spread(typing_context: Any, x: Any) -> Any:
    """Eight times x."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return spread_in(builder, arguments[0])

    return register(types.float64), generate


@intrinsic
def fma(typing_context: Any, a: Any, b: Any, c: Any) -> Any:
    """a·b + c, rounded once, of float64 or registers."""
    kind, native, name = (register, VECTOR, "v8f64") if isinstance(a, Register) else (types.float64, _double, "f64")

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        function = ir.FunctionType(native, [native] * 3)
        return builder.call(get_or_insert_function(builder.module, function, f"llvm.fma.{name}"), arguments)

    return kind(kind, kind, kind), generate


@intrinsic
def larger(typing_context: Any, a: Any, b: Any) -> Any:
    """max(|a|, |b|) in each place; where b is NaN, a."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        whole = ir.VectorType(_bits, WIDTH)
        mask = ir.Constant(whole, [(1 << 63) - 1] * WIDTH)
        a, b = (builder.bitcast(builder.and_(builder.bitcast(x, whole), mask), VECTOR) for x in arguments)
        return builder.select(builder.fcmp_ordered(">", b, a), b, a)

    return register(register, register), generate


@intrinsic
def where_greater(typing_context: Any, a: Any, b: Any, x: Any, y: Any) -> Any:
    """In each place x if a > b, else y; y where one is NaN."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        a, b, x, y = arguments
        return builder.select(builder.fcmp_ordered(">", a, b), x, y)

    return register(register, register, register, register), generate


def _function(name: str) -> Any:
    """The intrinsic of a function of one register."""

    @intrinsic
    def function(typing_context: Any, x: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            of_vector = ir.FunctionType(VECTOR, [VECTOR])
            return builder.call(get_or_insert_function(builder.module, of_vector, f"llvm.{name}.v8f64"), arguments)

        return register(register), generate

    return function


magnitude, root = _function("fabs"), _function("sqrt")  # |x| and √x in each place


@intrinsic
def greatest(typing_context: Any, x: Any) -> Any:
    """The largest of the eight, none of which is NaN."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        (x,) = arguments
        for half in (4, 2, 1):
            a, b = (shuffled(builder, x, x, list(range(start, start + half))) for start in (0, half))
            x = builder.select(builder.fcmp_ordered(">", a, b), a, b)
        return builder.extract_element(x, ir.IntType(32)(0))

    return types.float64(register), generate


@intrinsic
def total(typing_context: Any, x: Any) -> Any:
    """The sum of the eight, in pairs."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        (x,) = arguments
        for half in (4, 2, 1):
            x = builder.fadd(*(shuffled(builder, x, x, list(range(a, a + half))) for a in (0, half)))
        return builder.extract_element(x, ir.IntType(32)(0))

    return types.float64(register), generate


def _arithmetic(name: str) -> Any:
    """The intrinsic of an operation on two registers."""

    @intrinsic
    def operation(typing_context: Any, a: Any, b: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return getattr(builder, name)(*arguments)

        return register(register, register), generate

    return operation


_sum, _difference, _product, _quotient = (_arithmetic(name) for name in ("fadd", "fsub", "fmul", "fdiv"))


@overload(operator.add)
def _add(a, b):
    if isinstance(a, Register) and isinstance(b, Register):
        return lambda a, b: _sum(a, b)


@overload(operator.sub)
def _subtract(a, b):
    if isinstance(a, Register) and isinstance(b, Register):
        return lambda a, b: _difference(a, b)


@overload(operator.mul)
def _multiply(a, b):
    if isinstance(a, Register) and isinstance(b, Register):
        return lambda a, b: _product(a, b)


@overload(operator.truediv)
def _divide(a, b):
    if isinstance(a, Register) and isinstance(b, Register):
        return lambda a, b: _quotient(a, b)


@intrinsic
def bits_of(typing_context: Any, x: Any) -> Any:
    """The bits of a float64 x ≥ 0 as an integer: exponent and fraction, in order of size."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], _bits)

    return types.int64(types.float64), generate


@intrinsic
def from_bits(typing_context: Any, bits: Any) -> Any:
    """The float64 of these bits."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], _double)

    return types.float64(types.int64), generate


@intrinsic
def powers_of_two(typing_context: Any, top: Any, exponents: Any, start: Any) -> Any:
    """2^(top − exponents[start : start + 8]) of a contiguous array, unchecked, cut off as `rows.power_of_two` is."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        top, exponents, start = arguments
        whole = ir.VectorType(_bits, WIDTH)

        def everywhere(x: int) -> Any:
            return ir.Constant(whole, [x] * WIDTH)

        data = make_array(signature.args[1])(context, builder, exponents).data
        some = builder.load(builder.bitcast(builder.gep(data, [start]), whole.as_pointer()), align=8)
        first = builder.insert_element(ir.Constant(whole, ir.Undefined), top, ir.IntType(32)(0))
        power = builder.sub(builder.add(shuffled(builder, first, first, [0] * WIDTH), everywhere(1023)), some)
        for limit, beyond in ((0, "<"), (1523, ">")):
            power = builder.select(builder.icmp_signed(beyond, power, everywhere(limit)), everywhere(limit), power)
        return builder.bitcast(builder.shl(power, everywhere(52)), VECTOR)

    good = isinstance(exponents, types.Array) and exponents.dtype == types.int64 and exponents.layout == "C"
    return (register(types.int64, exponents, types.int64), generate) if good else None

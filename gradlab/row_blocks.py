"""Eight registers at a time in Numba: blocks transposed, and eight pairs of rows multiplied and rotated in one pass.

Written for LLVM, since all of a block has to stay in registers: eight sums and sixteen factors leave room for six more.
"""

# mypy: disable-error-code="misc, no-untyped-def"

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from gradlab.graded import WIDTH
from gradlab.registers import VECTOR, address, intrinsic, of_rows, shuffled, spread_in

_whole = ir.IntType(64)


@intrinsic
def transpose_block(typing_context: Any, A: Any, row: Any, column: Any, B: Any, to_row: Any, to_column: Any) -> Any:
    """B[to_row : to_row + 8, to_column : to_column + 8] = A[row : row + 8, column : column + 8]ᵀ, without any check."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        A, row, column, B, to_row, to_column = arguments
        lines = [
            builder.load(address(context, builder, signature.args[0], A, builder.add(row, _whole(i)), column), align=8)
            for i in range(WIDTH)
        ]
        for half in (1, 2, 4):  # exchange the off-diagonal halves of blocks twice as large each time
            for i in range(WIDTH):
                if not i & half:
                    lines[i], lines[i + half] = _interleaved(builder, lines[i], lines[i + half], half)
        for i, line in enumerate(lines):
            where = address(context, builder, signature.args[3], B, builder.add(to_row, _whole(i)), to_column)
            builder.store(line, where, align=8)
        return context.get_dummy_value()

    good = of_rows(A) and of_rows(B) and B.mutable
    return (types.void(A, *[types.int64] * 2, B, *[types.int64] * 2), generate) if good else None


def _interleaved(builder: Any, a: Any, b: Any, half: int) -> tuple[Any, Any]:
    """Runs of `half` places in turn: the even ones of a and b, and the odd ones."""
    even = [WIDTH + k - half if k & half else k for k in range(WIDTH)]
    odd = [WIDTH + k if k & half else k + half for k in range(WIDTH)]
    return shuffled(builder, a, b, even), shuffled(builder, a, b, odd)


def _totals(builder: Any, lines: list[Any]) -> Any:
    """The sums of eight vectors, as one."""
    for half in (1, 2, 4):
        lines = [builder.fadd(*_interleaved(builder, a, b, half)) for a, b in zip(lines[::2], lines[1::2], strict=True)]
    return lines[0]


@intrinsic
def multiply_blocks(typing_context: Any, A: Any, a: Any, b: Any, start: Any, stop: Any, products: Any) -> Any:
    """products[i, j] = A[a + i] · A[b + j], i, j = 0 … 7, in the columns start … stop: whole registers, unchecked."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        A, a, b, start, stop, products = arguments
        fma = _fma(builder)
        for top in (0, WIDTH // 2):
            sums = [[_zeros(builder) for _ in range(WIDTH)] for _ in range(WIDTH // 2)]
            for left in (0, WIDTH // 2):  # sixteen sums at a time
                with cgutils.for_range_slice(builder, start, stop, _whole(WIDTH), _whole) as (j, _):
                    xs, ys = (
                        [
                            builder.load(address(context, builder, signature.args[0], A, row, j), align=8)
                            for row in (builder.add(base, _whole(i)) for i in range(offset, offset + WIDTH // 2))
                        ]
                        for base, offset in ((a, top), (b, left))
                    )
                    for x, line in zip(xs, sums, strict=True):
                        for y, one in zip(ys, line[left:], strict=False):
                            builder.store(builder.call(fma, [x, y, builder.load(one)]), one)
            for i, line in enumerate(sums, start=top):
                totals = _totals(builder, [builder.load(one) for one in line])
                where = address(context, builder, signature.args[5], products, _whole(i), _whole(0))
                builder.store(totals, where, align=8)
        return context.get_dummy_value()

    good = of_rows(A) and of_rows(products) and products.mutable
    return (types.void(A, *[types.int64] * 4, products), generate) if good else None


def _fma(builder: Any) -> Any:
    """a·b + c of vectors."""
    return cgutils.get_or_insert_function(builder.module, ir.FunctionType(VECTOR, [VECTOR] * 3), "llvm.fma.v8f64")


def _zeros(builder: Any) -> Any:
    """Where a sum of vectors stands, for now nothing: LLVM keeps it in a register."""
    return cgutils.alloca_once_value(builder, ir.Constant(VECTOR, [0.0] * WIDTH))


def _over_pairs(turning: bool) -> Any:
    """The intrinsic of a pass over eight pairs of rows."""

    @intrinsic
    def one_pass(typing_context: Any, A: Any, rows: Any, start: Any, stop: Any, pairs: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            A, rows, start, stop, pairs = arguments

            def place(kind: int, array: Any, i: Any, j: Any) -> Any:
                return address(context, builder, signature.args[kind], array, i, j)

            def row(which: int, i: int) -> Any:
                return builder.load(builder.bitcast(place(1, rows, _whole(which), _whole(i)), _whole.as_pointer()))

            def factor(which: int, i: int) -> Any:
                where = builder.bitcast(place(4, pairs, _whole(which), _whole(i)), ir.DoubleType().as_pointer())
                return spread_in(builder, builder.load(where))

            fma, sums = _fma(builder), [_zeros(builder) for _ in range(WIDTH)]
            first, second = ([row(which, i) for i in range(WIDTH)] for which in (0, 1))
            if turning:
                of_first, of_second = ([factor(which, i) for i in range(WIDTH)] for which in (FIRST, SECOND))

            def add(i: int, x: Any, y: Any) -> None:
                builder.store(builder.call(fma, [x, y, builder.load(sums[i])]), sums[i])

            with cgutils.for_range_slice(builder, start, stop, _whole(WIDTH), _whole) as (j, _):
                xs, ys = [], []
                for i in range(WIDTH):
                    of_x, of_y = place(0, A, first[i], j), place(0, A, second[i], j)
                    x, y = builder.load(of_x, align=8), builder.load(of_y, align=8)
                    if turning:
                        x, y = builder.call(fma, [of_first[i], y, x]), builder.call(fma, [of_second[i], x, y])
                        builder.store(x, of_x, align=8)
                        builder.store(y, of_y, align=8)
                    xs.append(x)
                    ys.append(y)
                    if not turning:
                        add(i, x, y)
                    elif i > 0:
                        add(i - 1, xs[i - 1], y)
                if turning:
                    add(WIDTH - 1, xs[-1], ys[0])
            totals = _totals(builder, [builder.load(one) for one in sums])
            builder.store(totals, place(4, pairs, _whole(PRODUCT), _whole(0)), align=8)
            return context.get_dummy_value()

        good = of_rows(A) and A.mutable and of_rows(pairs) and pairs.mutable
        good = good and isinstance(rows, types.Array) and rows.dtype == types.int64 and rows.layout == "C"
        return (types.void(A, rows, types.int64, types.int64, pairs), generate) if good else None

    return one_pass


PRODUCT, FIRST, SECOND = 0, 1, 2  # rows of `pairs` [3 or more, 8]

# pairs[PRODUCT, i] = A[rows[0, i]] · A[rows[1, i]] over the columns start … stop, by whole registers, without any check
multiply_pairs = _over_pairs(False)

# A[rows[0, i]] += pairs[FIRST, i] · A[rows[1, i]] and A[rows[1, i]] += pairs[SECOND, i] · A[rows[0, i]], both of what
# they were, over the same columns; and pairs[PRODUCT, i] = A[rows[0, i]] · A[rows[1, i + 1]] of what they are now, the
# last with rows[1, 0]: that is, of the next pairs, on the way. No row may be there twice.
rotate_pairs = _over_pairs(True)

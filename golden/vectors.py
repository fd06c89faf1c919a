"""Vectors of 16 numbers of 32 bits, for functions that are compiled.

They are written as vectors of LLVM, which makes one instruction of an operation where the processor has one and several
where not: the results are the same everywhere. Python's operators work on them, lane by lane; a number as the second
operand counts for all lanes.
"""

import operator
from collections.abc import Callable
from typing import Any

import numba
from llvmlite import ir
from numba.core import cgutils, types
from numba.core.datamodel import models
from numba.extending import intrinsic, lower_builtin, register_model, type_callable

__all__ = [
    "LANES",
    "PANEL",
    "add_halves",
    "add_pairs",
    "inner",
    "largest",
    "least",
    "load",
    "shift_in_zeros",
    "store",
    "zero",
]

LANES = 16
PANEL = 2 * LANES
"""Channels that are laid out together, as so many sums of a row stay in registers."""


def inner(function: Callable[..., Any]) -> Callable[..., Any]:
    """A compiled function that only compiled functions call."""
    options: dict[str, Any] = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}
    return numba.njit(function, nogil=True, error_model="numpy", **options)


def _intrinsic(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of compiled code from one that writes its code."""
    return intrinsic(function)


_I16, _I32 = ir.IntType(16), ir.IntType(32)
_VECTOR = ir.VectorType(_I32, LANES)
_HALVES, _PRODUCTS = ir.VectorType(_I16, 2 * LANES), ir.VectorType(_I32, 2 * LANES)


class _Vector(types.Type):
    """The type of a vector."""

    def __init__(self) -> None:
        super().__init__(name="windowed_vector")


@register_model(_Vector)
class _VectorModel(models.PrimitiveModel):
    """How a vector is held."""

    def __init__(self, manager: Any, kind: Any) -> None:
        super().__init__(manager, kind, _VECTOR)


_vector = _Vector()


def _splat(builder: Any, value: Any) -> Any:
    """A number of 32 bits, or fewer or more of them, in every lane."""
    if value.type.width != 32:
        value = builder.trunc(value, _I32) if value.type.width > 32 else builder.sext(value, _I32)
    nothing = ir.Constant(_VECTOR, ir.Undefined)
    return builder.shuffle_vector(builder.insert_element(nothing, value, _I32(0)), nothing, ir.Constant(_VECTOR, None))


def _address(context: Any, builder: Any, kind: Any, array: Any, index: Any, element: Any) -> Any:
    """Of 16 elements, from `array[index]` on."""
    data = context.make_array(kind)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [index]), ir.VectorType(element, LANES).as_pointer())


@_intrinsic
def load(typing, array, index):
    """16 elements of an int32 or int16 array from an index on, which nothing checks."""
    element = ir.IntType(array.dtype.bitwidth)

    def generate(context, builder, signature, arguments):
        found = builder.load(_address(context, builder, signature.args[0], arguments[0], arguments[1], element))
        found.align = element.width // 8
        return found if element.width == 32 else builder.sext(found, _VECTOR)

    return _vector(array, types.uint64), generate


@_intrinsic
def store(typing, array, index, vector):
    """Writes 16 elements of an int32 or int16 array, from an index on, which nothing checks."""
    element = ir.IntType(array.dtype.bitwidth)

    def generate(context, builder, signature, arguments):
        address = _address(context, builder, signature.args[0], arguments[0], arguments[1], element)
        value = arguments[2]
        if element.width < 32:
            value = builder.trunc(value, ir.VectorType(element, LANES))
        builder.store(value, address).align = element.width // 8
        return context.get_dummy_value()

    return types.void(array, types.uint64, _vector), generate


@_intrinsic
def zero(typing):
    """Zeros."""
    return _vector(), lambda context, builder, signature, arguments: ir.Constant(_VECTOR, None)


@_intrinsic
def add_pairs(typing, sums, vector, pair):
    """`sums + low·low + high·high` of 16-bit halves, those of each lane with those of one number of 32 bits."""

    def generate(context, builder, signature, arguments):
        total, a, b = arguments
        wide = [builder.sext(builder.bitcast(v, _HALVES), _PRODUCTS) for v in (a, _splat(builder, b))]
        products = builder.mul(*wide)
        nothing = ir.Constant(_PRODUCTS, ir.Undefined)
        low, high = (
            builder.shuffle_vector(products, nothing, ir.Constant(_VECTOR, list(range(first, 2 * LANES, 2))))
            for first in (0, 1)
        )
        return builder.add(total, builder.add(low, high))

    return _vector(_vector, _vector, types.int32), generate


def _each(build: Callable[[Any, Any, Any], Any]) -> Callable[..., Any]:
    """How an operation is compiled, lane by lane: its second operand may be one number for all lanes."""

    def generate(context, builder, signature, arguments):
        first, second = arguments
        return build(builder, first, _splat(builder, second) if second.type != _VECTOR else second)

    return generate


def _operator(function: Any, build: Callable[[Any, Any, Any], Any]) -> None:
    """Gives vectors an operator of Python."""

    @type_callable(function)
    def _(context):
        def kind(a, b):
            return _vector if isinstance(a, _Vector) and isinstance(b, (_Vector, types.Integer)) else None

        return kind

    for second in (_Vector, types.Integer):
        lower_builtin(function, _Vector, second)(_each(build))


def _lanewise(build: Callable[[Any, Any, Any], Any]) -> Any:
    """An operation without an operator."""
    return _intrinsic(lambda typing, a, b: (_vector(_vector, b), _each(build)))


for _function, _build in (
    (operator.add, ir.IRBuilder.add),
    (operator.sub, ir.IRBuilder.sub),
    (operator.mul, ir.IRBuilder.mul),
    (operator.and_, ir.IRBuilder.and_),
    (operator.or_, ir.IRBuilder.or_),
    (operator.xor, ir.IRBuilder.xor),
    (operator.lshift, ir.IRBuilder.shl),
    (operator.rshift, ir.IRBuilder.ashr),
):
    _operator(_function, _build)
least = _lanewise(lambda builder, a, b: builder.select(builder.icmp_signed("<", a, b), a, b))
largest = _lanewise(lambda builder, a, b: builder.select(builder.icmp_signed(">", a, b), a, b))
shift_in_zeros = _lanewise(ir.IRBuilder.lshr)


@_intrinsic
def add_halves(typing, a, b):
    """Both 16-bit halves of each lane, their sums saturated."""

    def generate(context, builder, signature, arguments):
        kind = ir.FunctionType(_HALVES, [_HALVES, _HALVES])
        add = cgutils.get_or_insert_function(builder.module, kind, f"llvm.sadd.sat.v{2 * LANES}i16")
        return builder.bitcast(builder.call(add, [builder.bitcast(v, _HALVES) for v in arguments]), _VECTOR)

    return _vector(_vector, _vector), generate

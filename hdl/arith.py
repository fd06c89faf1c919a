"""Small arithmetic shared by all blocks: rounding shifts, saturation, leading one, the LFSR.

All functions are combinational and return expressions whose width their docstring states. They use
their operands more than once: pass signals or slices, not long expressions.
"""

from __future__ import annotations

from collections.abc import Sequence

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value, ValueLike, signed, unsigned
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from spec.lfsr import STATE_BITS, TAPS

__all__ = [
    "Lfsr",
    "adder_tree",
    "bits_below",
    "clip_symmetric",
    "delay_line",
    "leading_one",
    "lfsr_next",
    "round_shift",
    "saturate",
    "truncate",
]


def truncate(value: ValueLike, bits: int) -> Value:
    """The low `bits` bits of `value` (extended when it is narrower) as signed(`bits`).

    For results that are known to fit.
    """
    value = Value.cast(value)
    missing = bits - len(value)
    if missing > 0:
        fill = value[-1] if value.shape().signed else Const(0, 1)
        value = Cat(value, fill.replicate(missing))
    return value[:bits].as_signed()


def saturate(value: ValueLike, bits: int) -> Value:
    """satN: `value` (signed or unsigned, any width) saturated to signed(`bits`)."""
    value = Value.cast(value)
    if not value.shape().signed:
        value = Cat(value, Const(0, 1)).as_signed()
    if len(value) <= bits:
        return truncate(value, bits)
    sign = value[-1]
    above = value[bits - 1 : -1]  # all equal to the sign when the value fits
    overflow = Mux(sign, ~above.all(), above.any())
    low = Mux(overflow, (~sign).replicate(bits - 1), value[: bits - 1])
    return Cat(low, sign).as_signed()


def clip_symmetric(value: ValueLike, bits: int) -> Value:
    """`value` clipped to -(2^(bits-1) - 1) ... 2^(bits-1) - 1, as signed(`bits`)."""
    clipped = saturate(value, bits)
    lowest = clipped == -(1 << (bits - 1))
    return Cat(clipped[0] | lowest, clipped[1:]).as_signed()


def round_shift(
    value: ValueLike, amount: ValueLike, max_amount: int | None = None, *, min_amount: int = 0
) -> Value:
    """rnd(value >> amount), half up: (value + 2^(amount-1)) >> amount, and `value` for amount 0.

    `amount` is an int or an unsigned value within min_amount...max_amount (for a value, max_amount
    defaults to what its width holds; tight bounds save shifter stages and result bits).
    The result has the signedness of `value` and len(value) - min_amount bits, plus one when
    min_amount > 0 (the carry of the rounding); at least 2 bits.
    """
    value = Value.cast(value)
    if isinstance(amount, int):
        min_amount = max_amount = amount
    else:
        amount = Value.cast(amount)
        if max_amount is None:
            max_amount = (1 << len(amount)) - 1
    if not 0 <= min_amount <= max_amount:
        raise ValueError(
            f"round_shift: bounds must satisfy 0 <= min <= max, not {min_amount}, {max_amount}"
        )
    if max_amount == 0:
        return value
    # rnd(v >> s) = ((2v >> s) + 1) >> 1: one shifter, a carry in, no variable rounding constant.
    wide = Cat(Const(0, 1), value)
    wide = wide.as_signed() if value.shape().signed else wide
    kept = wide.shift_right(min_amount)
    if max_amount > min_amount:
        rest_bits = (max_amount - min_amount).bit_length()
        rest = amount if min_amount == 0 else amount - min_amount
        kept = kept >> Value.cast(rest)[:rest_bits]
    total = (kept + 1).shift_right(1)
    bits = max(2, len(value) - min_amount + (min_amount > 0))
    if value.shape().signed:
        return truncate(total, bits)
    return total[:bits]


def leading_one(value: ValueLike) -> Value:
    """msb: the index of the highest set bit of `value`, 0 when there is none.

    The result is unsigned with ceil(log2(len(value))) bits (at least 1).
    """

    def search(bits: Value) -> Value:
        """Index within `bits`, whose length is a power of two of at least 2."""
        if len(bits) == 2:
            return bits[1]
        half = len(bits) // 2
        upper = bits[half:].any()
        return Cat(Mux(upper, search(bits[half:]), search(bits[:half])), upper)

    value = Value.cast(value)
    length = max(2, 1 << (len(value) - 1).bit_length())
    return search(Cat(value, Const(0, length - len(value))) if length > len(value) else value)


def bits_below(value: ValueLike, top: ValueLike, count: int) -> Value:
    """(value << count >> top) & (2^count - 1): the `count` bits below `top`, the leading one."""
    value = Value.cast(value)
    return (Cat(Const(0, count), value) >> top)[:count]


def delay_line(m: Module, value: ValueLike, length: int, name: str) -> list[Value]:
    """`value` delayed by 0...`length` cycles: element k is visible k cycles later. Reset to 0."""
    taps = [Value.cast(value)]
    for k in range(1, length + 1):
        tap = Signal(taps[0].shape(), name=f"{name}_{k}")
        m.d.sync += tap.eq(taps[-1])
        taps.append(tap)
    return taps


def adder_tree(m: Module, terms: Sequence[Value], bits: int, stages: int) -> Value:
    """The sum of `terms`, signed(`bits`), which it and all partial sums fit or wrap around, `stages` cycles later.

    The tree's levels are spread over the stages, the first ones taking one more where they do not divide.
    """
    levels = ceil_log2(len(terms))
    for stage in range(stages):
        share = -(-levels // (stages - stage))
        levels -= share
        for _ in range(share):
            sums: list[Value] = [truncate(a + b, bits) for a, b in zip(terms[0::2], terms[1::2], strict=False)]
            terms = [*sums, *terms[2 * len(sums) :]]
        registers = []
        for number, term in enumerate(terms):
            register = Signal(signed(bits), name=f"sum_{stage}_{number}", reset_less=True)
            m.d.sync += register.eq(term)
            registers.append(register)
        terms = registers
    (total,) = terms
    return total


def lfsr_next(state: Value) -> Value:
    """The state after `state` (16 bits): Galois, right shift, taps 0xB400."""
    taps = Const(TAPS, STATE_BITS) & state[0].replicate(STATE_BITS)
    return state[1:] ^ taps


class Lfsr(wiring.Component):
    """16-bit Galois LFSR: `state` after reset is `init`; it advances after a cycle with `step`.

    Users take random bits from the top of `state`, before the step.
    """

    step: Signal
    state: Signal

    def __init__(self, init: int):
        if not 0 < init < 1 << STATE_BITS:
            raise ValueError(f"Lfsr: init must be in 1...{(1 << STATE_BITS) - 1}, not {init}")
        super().__init__({"step": In(1), "state": Out(unsigned(STATE_BITS), init=init)})  # pyright: ignore[reportCallIssue]

    def elaborate(self, platform):
        m = Module()
        with m.If(self.step):
            m.d.sync += self.state.eq(lfsr_next(self.state))
        return m

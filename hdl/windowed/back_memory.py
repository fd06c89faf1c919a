"""What backpropagation keeps of a batch, a column each: slope bits, which of a block was the largest, signals.

docs/rules.md, section 6.
"""

from __future__ import annotations

from amaranth.hdl import Cat, Module, Mux, Signal, Value, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from hdl.arith import delay_line, truncate
from hdl.memory import DualPortMemory
from hdl.verilog import make
from spec.machine import Machine
from spec.rules import BACK_BITS
from spec.windowed import SLOPE_SHIFT

__all__ = ["BackMemory"]


class BackMemory(wiring.Component):
    """`slope_depth` words of C slope bits, `index_depth` of C indices, and C banks of `signal_depth` signals.

    Members
    -------
    slope_valid, slope_word, slope[c] : In
        Slope bits to a word.
    index_valid, index_word, index[c] : In
        To a word which pixel of a block was the largest: ``2·(y mod 2) + x mod 2``.
    signal_valid, signal_bank, signal_word, signal_value : In
        A signal d, signed(`BACK_BITS`) within ±2047, to a word of a bank.
    slope_addr, index_addr, signal_addr, channels, place, outside, back : In
        Cycle t - `LATENCY`, of a step: its words; the columns that its tile uses; where in its block its pixel is;
        that it has none; that it is one of the way back.
    pooled, left_shift : In
        Of the layer: it max-pools; what an update shifts by, 0 to `delta_bits` - BACK_BITS. Held until column C - 1
        has had its last step.
    neg[c], skip[c] : Out
        Cycle t + c: column c's slope bit, and whether its pixel is not the largest of its block.
    delta[c] : Out
        Cycle t + c, signed(`delta_bits`): -d << `left_shift`; on the way back -d where `neg`, else -8d, and 0 where
        `skip`. Also 0 from column `channels` on, and `outside`. Both need the signal negated, so it is kept thus.

    What is written in a cycle can be asked for from `WRITE_LATENCY` cycles later on. A word that a step asks for is
    not written in that cycle, nor bank c's within the c cycles behind it.
    """

    LATENCY = 2
    WRITE_LATENCY = 1

    slope_valid: Signal
    slope_word: Signal
    slope: Signal
    index_valid: Signal
    index_word: Signal
    index: list[Signal]
    signal_valid: Signal
    signal_bank: Signal
    signal_word: Signal
    signal_value: Signal
    slope_addr: Signal
    index_addr: Signal
    signal_addr: Signal
    channels: Signal
    place: Signal
    outside: Signal
    back: Signal
    pooled: Signal
    left_shift: Signal
    neg: Signal
    skip: Signal
    delta: list[Signal]

    def __init__(self, machine: Machine):
        self.machine = machine
        cols = machine.cols
        words = {"slope": machine.slope_addr_bits, "index": machine.index_addr_bits, "signal": machine.signal_addr_bits}
        super().__init__(
            {
                **{f"{name}_valid": In(1) for name in words},
                **{f"{name}_word": In(bits) for name, bits in words.items()},
                "slope": In(cols),
                "index": In(2).array(cols),
                "signal_bank": In(range(cols)),
                "signal_value": In(signed(BACK_BITS)),
                **{f"{name}_addr": In(bits) for name, bits in words.items()},
                "channels": In(range(cols + 1)),
                "place": In(2),
                "outside": In(1),
                "back": In(1),
                "pooled": In(1),
                "left_shift": In(range(machine.delta_bits - BACK_BITS + 1)),
                "neg": Out(cols),
                "skip": Out(cols),
                "delta": Out(signed(machine.delta_bits)).array(cols),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        machine, cols = self.machine, self.machine.cols
        m.submodules.slopes = slopes = DualPortMemory(cols, machine.slope_depth)
        m.submodules.indices = indices = DualPortMemory(2 * cols, machine.index_depth)
        m.d.comb += [
            slopes.read_addr.eq(self.slope_addr),
            slopes.write_en.eq(self.slope_valid),
            slopes.write_addr.eq(self.slope_word),
            slopes.write_data.eq(self.slope),
            indices.read_addr.eq(self.index_addr),
            indices.write_en.eq(self.index_valid),
            indices.write_addr.eq(self.index_word),
            indices.write_data.eq(Cat(self.index)),
        ]

        # Bits are skewed behind their memories, the signals' addresses in front of theirs. A register follows each.
        place = delay_line(m, self.place, 1, "place")[-1]
        shown = Cat(~self.outside & (self.channels > c) for c in range(cols))
        addr = delay_line(m, self.signal_addr, cols - 1, "signal_addr")
        back = delay_line(m, self.back, cols + 1, "back")
        kept = Signal(signed(BACK_BITS))
        m.d.comb += kept.eq(-self.signal_value)
        for c in range(cols):
            signals, m.submodules[f"signals_{c}"] = make(
                platform, "back_signals", lambda: DualPortMemory(signed(BACK_BITS), machine.signal_depth)
            )
            skips = self.pooled & (indices.read_data.word_select(c, 2) != place)
            neg = delay_line(m, slopes.read_data[c], c + 1, f"neg_{c}")[-1]
            skip = delay_line(m, skips, c + 1, f"skip_{c}")[-1]
            used = delay_line(m, shown[c], c + self.LATENCY, f"shown_{c}")[-1]
            signal = delay_line(m, signals.read_data, 1, f"signal_{c}")[-1]
            goes_back = back[c + self.LATENCY]
            shift = Signal.like(self.left_shift, name=f"shift_{c}")
            m.d.comb += [
                signals.read_addr.eq(addr[c]),
                signals.write_en.eq(self.signal_valid & (self.signal_bank == c)),
                signals.write_addr.eq(self.signal_word),
                signals.write_data.eq(kept),
                self.neg[c].eq(neg),
                self.skip[c].eq(skip),
                shift.eq(Mux(goes_back, Mux(neg, 0, SLOPE_SHIFT), self.left_shift)),
            ]
            # The small shifts first, as the value is narrow then.
            value: Value = Mux(used & ~(goes_back & skip), signal, 0).as_signed()
            for k in range(len(shift)):
                value = truncate(Mux(shift[k], value << (1 << k), value), machine.delta_bits)
            m.d.comb += self.delta[c].eq(value)
        return m

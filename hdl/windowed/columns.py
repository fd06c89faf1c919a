"""From the array's totals to activations, slope bits and latents: a lane a column, one drain for all.

docs/convolutions.md, sections 2, 3 and 6; docs/rules.md, section 6.
"""

from __future__ import annotations

from functools import reduce
from operator import or_

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from hdl.arith import delay_line, round_shift, saturate, truncate
from hdl.feed import link
from hdl.verilog import make
from hdl.windowed.bias_unit import WINDOW_WEIGHT_BITS
from hdl.windowed.kept_words import KeptWords, held_inputs
from hdl.windowed.position_layout import position_layout
from spec.machine import ACT_BITS, SCORE_BITS, WEIGHT_BITS, Machine
from spec.qformat import signed_bits
from spec.windowed import SLOPE_SHIFT
from spec.windowed_program import MAX_WINDOW, WINDOWED_FIELDS

__all__ = ["ColumnLane", "Columns", "z_bits"]

_IN_FRAC_BITS = WINDOWED_FIELDS["in_frac"].width
_ACT_SHIFT_BITS = WINDOWED_FIELDS["act_shift"].width
_LATENT_SHIFT_BITS = WINDOWED_FIELDS["latent_shift"].width
_WINDOW_SUM_BITS = ACT_BITS + (MAX_WINDOW - 1).bit_length()
"""A window's sum, of `MAX_WINDOW` numbers of `ACT_BITS` at most."""


def z_bits(machine: Machine) -> int:
    """A pre-activation: at most ``max_fan_in`` products of 2^15 * 2^7, and a bias of 2^15 shifted by at most 7.

    ``acc_bits`` is no narrower: accumulators also hold words on their way to the host.
    """
    return signed_bits((machine.max_fan_in + 1) << (WEIGHT_BITS - 1 + ACT_BITS - 1))


class ColumnLane(wiring.Component):
    """One column's arithmetic. With t the cycle of a total, a port belongs to its position in cycle:

    ===============================  =================  ==================================================
    ``valid, total, bias``           t                  signed(`acc_bits`), s16
    ``block_first, window_first``    t + FLAG_LATENCY   the position is a block's, a window's first
    ``z``                            t + Z_LATENCY      ``total + (bias << in_frac)``, signed(`z_bits`)
    ``neg``                          t + NEG_LATENCY    z < 0, but not in the output layer
    ``largest``                      t + SUM_LATENCY    s8, the block's largest activation so far
    ``window_sum, window_weight``    t + SUM_LATENCY    the window's so far: of activations, signed; of 8 a
                                                        position, but 1 where `neg`, unsigned
    ===============================  =================  ==================================================

    * ``in_frac, is_output``: the layer's. ``act_shift_less_1``: ``act_shift - 1``, 0 to 30.
    * ``beyond``: bit i is ``i >= act_shift + 7``: what a sum of 8 bits cannot have, unless it is the sign.

    The last three hold until the next position's. In the output layer `largest` and `window_sum` mean nothing. A
    machine that does not learn has no `neg`, one whose rule does not form `latents` in every layer no `window_weight`.
    A sum or a shift a stage; no register but `valid`'s has a reset.

    With rule ``bp``, in the place of `neg`:

    ===============================  =================  ==================================================
    ``place``                        t + FLAG_LATENCY   2·(y mod 2) + x mod 2 of the position
    ``largest_neg, _place``          t + SUM_LATENCY    of the position that `largest` is from
    ===============================  =================  ==================================================
    """

    Z_LATENCY = 2
    NEG_LATENCY = Z_LATENCY + 1
    FLAG_LATENCY = NEG_LATENCY + 1
    SUM_LATENCY = FLAG_LATENCY + 1

    valid: Signal
    total: Signal
    bias: Signal
    block_first: Signal
    window_first: Signal
    in_frac: Signal
    is_output: Signal
    act_shift_less_1: Signal
    beyond: Signal
    z: Signal
    neg: Signal
    largest: Signal
    window_sum: Signal
    window_weight: Signal
    place: Signal
    largest_neg: Signal
    largest_place: Signal

    def __init__(self, machine: Machine):
        self.machine = machine
        rule = machine.learning
        kept = {"place": In(2), "largest_neg": Out(1), "largest_place": Out(2)}
        super().__init__(
            {
                "valid": In(1),
                "total": In(signed(machine.acc_bits)),
                "bias": In(signed(WEIGHT_BITS)),
                "block_first": In(1),
                "window_first": In(1),
                "in_frac": In(_IN_FRAC_BITS),
                "is_output": In(1),
                "act_shift_less_1": In(_ACT_SHIFT_BITS),
                "beyond": In(z_bits(machine)),
                "z": Out(signed(z_bits(machine))),
                **(kept if rule.transposes else {"neg": Out(1)} if rule.learns else {}),
                "largest": Out(signed(ACT_BITS)),
                "window_sum": Out(signed(_WINDOW_SUM_BITS)),
                **({"window_weight": Out(WINDOW_WEIGHT_BITS)} if rule.latents else {}),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        bits, rule = z_bits(self.machine), self.machine.learning
        valid = delay_line(m, self.valid, self.FLAG_LATENCY, "valid")[-1]

        # t + 1. A total is a sum of products and fits `bits`.
        total = Signal(signed(bits), reset_less=True)
        aligned = Signal(signed(WEIGHT_BITS + (1 << _IN_FRAC_BITS) - 1), reset_less=True)
        m.d.sync += [total.eq(truncate(self.total, bits)), aligned.eq(self.bias << self.in_frac)]

        # t + 2.
        z = Signal(signed(bits), reset_less=True)
        m.d.sync += z.eq(total + aligned)

        # t + 3: rnd((z >> 3) >> s) = rnd(z >> (s + 3)) as s >= 1. Of z >> (s - 1), or s + 2, the rounding needs 8 bits
        # and the sign, if all further bits equal the sign: else the activation saturates, rounded or not, as it is
        # at most -128.5 or at least 128. No more is shifted than that and the 3 bits between which the sign decides.
        sign = z[-1]
        shifted = _bits_from(z, self.act_shift_less_1, ACT_BITS + SLOPE_SHIFT)
        differs = z.as_unsigned() ^ sign.replicate(bits)
        low = Signal(ACT_BITS, reset_less=True)
        negative = Signal(reset_less=True)
        neg = Signal(reset_less=True)
        overflow = Signal(reset_less=True)
        m.d.sync += [
            low.eq(Mux(sign, shifted[SLOPE_SHIFT:], shifted[:ACT_BITS])),
            negative.eq(sign),
            *([neg.eq(sign & ~self.is_output)] if rule.learns else []),
            overflow.eq((differs & Mux(sign, self.beyond << SLOPE_SHIFT, self.beyond)).any()),
        ]

        # t + 4.
        a = Signal(signed(ACT_BITS), reset_less=True)
        neg_of_a = Signal(reset_less=True)
        rounded = round_shift(Cat(low, negative).as_signed(), 1)
        limit = Cat((~negative).replicate(ACT_BITS - 1), negative).as_signed()
        m.d.sync += a.eq(Mux(overflow, limit, saturate(rounded, ACT_BITS)))
        if rule.latents or rule.transposes:
            m.d.sync += neg_of_a.eq(neg)

        # t + 5. The largest window's sums fit.
        largest = Signal.like(self.largest, reset_less=True)
        total_a = Signal.like(self.window_sum, reset_less=True)
        weight = Signal(WINDOW_WEIGHT_BITS, reset_less=True)
        largest_neg, largest_place = Signal(reset_less=True), Signal(2, reset_less=True)
        with m.If(valid):
            with m.If(self.block_first | (a > largest)):
                m.d.sync += largest.eq(a)
                if rule.transposes:
                    m.d.sync += [largest_neg.eq(neg_of_a), largest_place.eq(self.place)]
            m.d.sync += total_a.eq(Mux(self.window_first, 0, total_a) + a)
            if rule.latents:
                m.d.sync += weight.eq(Mux(self.window_first, 0, weight) + Mux(neg_of_a, 1, 1 << SLOPE_SHIFT))
        m.d.comb += [
            self.z.eq(z),
            *([self.neg.eq(neg)] if rule.learns and not rule.transposes else []),
            self.largest.eq(largest),
            self.window_sum.eq(total_a),
            *([self.window_weight.eq(weight)] if rule.latents else []),
        ]
        if rule.transposes:
            m.d.comb += [self.largest_neg.eq(largest_neg), self.largest_place.eq(largest_place)]
        return m


class Columns(wiring.Component):
    """C lanes, each with its own total; what they make leaves as vectors, or drained a column a cycle.

    Members
    -------
    result_valid[c], result_data[c], bias[c] : In
        The array's totals and the channels' biases: column c's of a position in cycle t + c. Positions may follow
        each other every cycle, the last ones of windows at least C cycles apart (where nothing looks at their latents,
        too, in any distance). No host's word may come here.
    position, position_tile, position_channels : In
        In cycle t: which position (:func:`position_layout`), which column tile, its columns in use (1 to C).
    in_frac, act_shift, latent_shift, is_output, max_pool : In
        The layer's, 0 to 7, 1 to 31, 0 to 15, bits; from its first total until its last output.
        `max_pool` 0: every position is a block. The output layer: every position is a window.
    slope_valid, slope[c] : Out
        The position's slope bits, all columns in cycle t + C - 1 + `SLOPE_LATENCY`; 0 in the output layer.
    map_valid, map_data[c], map_position, map_tile, map_channels : Out
        The position's activations (s8) in cycle t + C - 1 + `MAP_LATENCY`; with `max_pool` the largest of its block,
        only where a whole block ends. Not in the output layer. Columns that are not in use mean nothing.
    latent_valid, latent, latent_weight, score, latent_column, latent_window, latent_y, latent_tile : Out
        Column c's in cycle t + c + `LATENT_LATENCY`, where a window ends, columns in use alone: the window's latent
        (s8) and the sum of its slopes, 8 or 1 a position; in the output layer the position's score (s20), `latent`
        means nothing and the weight is 8. With it the window's number, its last position's row, the column tile.

    A machine that does not learn has no `slope_valid, slope`, one whose rule does not form `latents` in every layer
    no `latent_weight`.

    With rule ``bp`` slopes leave later and with their words, and those of a block are the largest pixel's:

    slope_valid, slope_word, slope[c], index_valid, index_word, index[c] : Out
        As :class:`~hdl.windowed.back_memory.BackMemory` takes them, in cycle t + C - 1 + `MAP_LATENCY`: with the
        activations, in the output layer too; indices (2·(y mod 2) + x mod 2 of the largest of a block, of equal ones
        the first) where `max_pool`.
    slope_base, index_base : In
        The first words of the sample, held over it; and `pool_latent, width, positions, windows`, the layer's, as in
        :class:`~hdl.windowed.kept_words.KeptWords`.
    """

    SLOPE_LATENCY = ColumnLane.NEG_LATENCY
    """From the last column's total."""
    MAP_LATENCY = ColumnLane.SUM_LATENCY
    """From the last column's total."""
    LATENT_LATENCY = ColumnLane.SUM_LATENCY + 3
    """From the same column's total: it is chosen, shifted, rounded."""

    result_valid: Signal
    result_data: list[Signal]
    bias: list[Signal]
    position: data.View
    position_tile: Signal
    position_channels: Signal
    in_frac: Signal
    act_shift: Signal
    latent_shift: Signal
    is_output: Signal
    max_pool: Signal
    slope_valid: Signal
    slope: Signal
    slope_word: Signal
    index_valid: Signal
    index_word: Signal
    index: list[Signal]
    slope_base: Signal
    index_base: Signal
    pool_latent: Signal
    width: Signal
    positions: Signal
    windows: Signal
    map_valid: Signal
    map_data: list[Signal]
    map_position: data.View
    map_tile: Signal
    map_channels: Signal
    latent_valid: Signal
    latent: Signal
    latent_weight: Signal
    score: Signal
    latent_column: Signal
    latent_window: Signal
    latent_y: Signal
    latent_tile: Signal

    def __init__(self, machine: Machine):
        self.machine = machine
        rule = machine.learning
        self.layout = position_layout(machine.max_side)
        channels = range(machine.cols + 1)
        tile = range(-(-machine.max_neurons // machine.cols))
        super().__init__(
            {
                "result_valid": In(machine.cols),
                "result_data": In(signed(machine.acc_bits)).array(machine.cols),
                "bias": In(signed(WEIGHT_BITS)).array(machine.cols),
                "position": In(self.layout),
                "position_tile": In(tile),
                "position_channels": In(channels),
                "in_frac": In(_IN_FRAC_BITS),
                "act_shift": In(_ACT_SHIFT_BITS),
                "latent_shift": In(_LATENT_SHIFT_BITS),
                "is_output": In(1),
                "max_pool": In(1),
                **({"slope_valid": Out(1), "slope": Out(machine.cols)} if rule.learns else {}),
                **(_kept(machine) if rule.transposes else {}),
                "map_valid": Out(1),
                "map_data": Out(signed(ACT_BITS)).array(machine.cols),
                "map_position": Out(self.layout),
                "map_tile": Out(tile),
                "map_channels": Out(channels),
                "latent_valid": Out(1),
                "latent": Out(signed(ACT_BITS)),
                **({"latent_weight": Out(WINDOW_WEIGHT_BITS)} if rule.latents else {}),
                "score": Out(signed(SCORE_BITS)),
                "latent_column": Out(range(machine.cols)),
                "latent_window": Out(self.layout["window"].shape),
                "latent_y": Out(self.layout["y"].shape),
                "latent_tile": Out(tile),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        skew = self.machine.cols - 1
        # A position travels from column to column with its totals: element k of these is k cycles old.
        age = max(skew + self.MAP_LATENCY, self.LATENT_LATENCY - 1)
        positions = [self.layout(p) for p in delay_line(m, self.position.as_value(), age, "position")]
        tiles = delay_line(m, self.position_tile, age, "tile")
        channels = delay_line(m, self.position_channels, age, "channels")

        lanes = self._lanes(m, platform, positions)
        last_valid = delay_line(m, self.result_valid[skew], self.MAP_LATENCY, "last_valid")
        self._vectors(m, lanes, last_valid, positions[skew + self.MAP_LATENCY])
        if self.machine.learning.transposes:
            ahead = self.MAP_LATENCY - KeptWords.LATENCY
            self._keep(m, lanes, last_valid[ahead], positions[skew + ahead], tiles[skew + ahead])
        m.d.comb += [
            self.map_tile.eq(tiles[skew + self.MAP_LATENCY]),
            self.map_channels.eq(channels[skew + self.MAP_LATENCY]),
        ]
        self._drain(m, lanes, positions)
        self._number(m, positions, tiles, channels)
        return m

    def _lanes(self, m: Module, platform, positions: list[data.View]) -> list[ColumnLane]:
        """The lanes, and what they share of the shift: registers, a cycle before z needs them."""
        act_shift_less_1 = Signal(_ACT_SHIFT_BITS, reset_less=True)
        beyond = Signal(z_bits(self.machine), reset_less=True)
        m.d.sync += [
            act_shift_less_1.eq(self.act_shift - 1),
            beyond.eq(Cat(i >= self.act_shift + ACT_BITS - 1 for i in range(len(beyond)))),
        ]
        found = []
        for c in range(self.machine.cols):
            lane, m.submodules[f"lane_{c}"] = make(platform, "column_lane", lambda: ColumnLane(self.machine))
            flags = positions[c + ColumnLane.FLAG_LATENCY]
            m.d.comb += [
                lane.valid.eq(self.result_valid[c]),
                lane.total.eq(self.result_data[c]),
                lane.bias.eq(self.bias[c]),
                lane.block_first.eq(flags.block_first | ~self.max_pool),
                lane.window_first.eq(flags.window_first),
                lane.in_frac.eq(self.in_frac),
                lane.is_output.eq(self.is_output),
                lane.act_shift_less_1.eq(act_shift_less_1),
                lane.beyond.eq(beyond),
                *([lane.place.eq(Cat(flags.x[:1], flags.y[:1]))] if self.machine.learning.transposes else []),
            ]
            found.append(lane)
        return found

    def _vectors(self, m: Module, lanes: list[ColumnLane], last_valid: list[Value], position: data.View) -> None:
        """What is written at once waits for the last column."""
        skew, rule = self.machine.cols - 1, self.machine.learning
        pooled = ~self.max_pool | (position.block_last & position.block_whole)
        slopes = last_valid[self.MAP_LATENCY] & pooled if rule.transposes else last_valid[self.SLOPE_LATENCY]
        m.d.comb += [
            *([self.slope_valid.eq(slopes)] if rule.learns else []),
            self.map_valid.eq(last_valid[self.MAP_LATENCY] & pooled & ~self.is_output),
            self.map_position.eq(position),
        ]
        for c, lane in enumerate(lanes):
            if rule.learns:
                neg = lane.largest_neg if rule.transposes else lane.neg
                m.d.comb += self.slope[c].eq(delay_line(m, neg, skew - c, f"slope_{c}")[-1])
            m.d.comb += self.map_data[c].eq(delay_line(m, lane.largest, skew - c, f"data_{c}")[-1])

    def _keep(self, m: Module, lanes: list[ColumnLane], valid: Value, position: data.View, tile: Value) -> None:
        """The words of what is kept, asked for ahead of it; indices."""
        m.submodules.words = words = KeptWords(self.machine)
        m.d.comb += [
            words.valid.eq(valid),
            words.position.eq(position),
            words.tile.eq(tile),
            *link(words, self, *held_inputs(self.machine)),
            self.slope_word.eq(words.slope_word),
            self.index_valid.eq(self.slope_valid & self.max_pool),
            self.index_word.eq(words.index_word),
        ]
        for c, lane in enumerate(lanes):
            index = delay_line(m, lane.largest_place, self.machine.cols - 1 - c, f"index_{c}")[-1]
            m.d.comb += self.index[c].eq(index)

    def _drain(self, m: Module, lanes: list[ColumnLane], positions: list[data.View]) -> None:
        """Column c's values become visible a cycle after column c - 1's: a choice a cycle, nothing is kept.

        Windows end at least C cycles apart, so one lane is chosen at a time. The output layer's z comes
        `SUM_LATENCY - Z_LATENCY` cycles before a window's sum would, and waits where it is narrowest.
        """
        early = ColumnLane.SUM_LATENCY - ColumnLane.Z_LATENCY
        behind_choice = self.LATENT_LATENCY - ColumnLane.SUM_LATENCY - 1
        weighs = self.machine.learning.latents
        numbers, weights = [], []
        for c, lane in enumerate(lanes):
            # Visible with z, and with the sums.
            valid = delay_line(m, self.result_valid[c], ColumnLane.SUM_LATENCY - 1, f"valid_{c}")
            z_chosen, sum_chosen, weight_chosen = (Signal(name=f"{n}_chosen_{c}") for n in ("z", "sum", "weight"))
            z_ends, sum_ends = (
                valid[latency - 1] & positions[c + latency - 1].window_last
                for latency in (ColumnLane.Z_LATENCY, ColumnLane.SUM_LATENCY)
            )
            m.d.sync += [z_chosen.eq(z_ends & self.is_output), sum_chosen.eq(sum_ends & ~self.is_output)]
            numbers += [_gated(lane.z, z_chosen), _gated(truncate(lane.window_sum, len(lane.z)), sum_chosen)]
            if weighs:
                m.d.sync += weight_chosen.eq(sum_ends)
                weights.append(_gated(lane.window_weight, weight_chosen))

        # Chosen; shifted, with the bit below for the rounding; rounded. A score is shifted by 1 or more, and a window's
        # sum has fewer bits than z, so that the bit below costs no bit above.
        bits = len(lanes[0].z)
        amount = Signal(_ACT_SHIFT_BITS, reset_less=True)
        chosen, shifted = (Signal(signed(bits), name=n, reset_less=True) for n in ("chosen", "shifted"))
        weight = Signal(WINDOW_WEIGHT_BITS, reset_less=True)
        score = Signal(signed(SCORE_BITS), reset_less=True)
        latent = Signal.like(self.latent, reset_less=True)
        rounded = round_shift(shifted, 1)
        m.d.sync += [
            amount.eq(Mux(self.is_output, self.act_shift, self.latent_shift)),
            chosen.eq(reduce(or_, numbers)),
            *([weight.eq(reduce(or_, weights))] if weighs else []),
            shifted.eq(Cat(Const(0, 1), chosen).as_signed() >> amount),
            score.eq(saturate(rounded, SCORE_BITS)),
            latent.eq(saturate(rounded, ACT_BITS)),
        ]
        m.d.comb += [
            self.score.eq(delay_line(m, score, early, "score")[-1]),
            self.latent.eq(latent),
            *([self.latent_weight.eq(delay_line(m, weight, behind_choice, "weight")[-1])] if weighs else []),
        ]

    def _number(self, m: Module, positions: list[data.View], tiles: list[Value], channels: list[Value]) -> None:
        """Counts the columns that leave, from column 0's on, with what is the same for all."""
        before = self.LATENT_LATENCY - 1
        ends = delay_line(m, self.result_valid[0], before, "first_valid")[before] & positions[before].window_last
        left = Signal(range(self.machine.cols))  # in use beyond this column
        with m.If(ends):
            m.d.sync += [
                self.latent_valid.eq(1),
                self.latent_column.eq(0),
                left.eq(channels[before] - 1),
                self.latent_window.eq(positions[before].window),
                self.latent_y.eq(positions[before].y),
                self.latent_tile.eq(tiles[before]),
            ]
        with m.Else():
            more = left != 0
            m.d.sync += [
                self.latent_valid.eq(more), self.latent_column.eq(self.latent_column + 1), left.eq(left - more)
            ]  # fmt: skip


def _kept(machine: Machine) -> dict[str, wiring.Member]:
    """Ports of what backpropagation keeps of a sample, beyond the slopes themselves."""
    return {
        **held_inputs(machine),
        "slope_word": Out(machine.slope_addr_bits),
        "index_valid": Out(1),
        "index_word": Out(machine.index_addr_bits),
        "index": Out(2).array(machine.cols),
    }


def _bits_from(value: Value, amount: Value, count: int) -> Value:
    """`count` bits of `value`, signed, from bit `amount` on.

    The largest shift comes first: then each keeps but the bits that it and the smaller ones can still need.
    """
    for k in reversed(range(len(amount))):
        moved = value.shift_right(1 << k) if len(value) > 1 << k else value[-1].as_signed()
        value = truncate(Mux(amount[k], moved, value), count + (1 << k) - 1)
    return value[:count]


def _gated(value: Value, enable: Value) -> Value:
    return value & enable.replicate(len(value))

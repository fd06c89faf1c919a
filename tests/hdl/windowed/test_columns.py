"""hdl.windowed.columns: every output of whole layers in every cycle, against the equations of the description."""

import random
from dataclasses import dataclass, replace
from itertools import count

import pytest
from amaranth.sim import Simulator

from hdl.windowed.columns import Columns, z_bits
from spec.machine import load_machine

POSITION = ("y", "x", "window", "block_first", "block_last", "block_whole", "window_first", "window_last")
WORD = (-(1 << 15), (1 << 15) - 1)
HELD = ("in_frac", "act_shift", "latent_shift", "is_output", "max_pool")
KEPT = ("slope_base", "index_base", "pool_latent", "width", "positions", "windows")
"""What a machine that backpropagates holds besides."""


def machine(cols, max_fan_in=64, **changes):
    values = {"rows": 8, "cols": cols, "fraction_bits": 20, "gradient_bits": 44, "max_side": 32, "max_neurons": 64}
    return replace(load_machine("tiny"), max_fan_in=max_fan_in, **{**values, **changes})


def rnd(v, s):
    return (v + (1 << (s - 1))) >> s if s else v


def sat(v, bits):
    return max(-(1 << (bits - 1)), min((1 << (bits - 1)) - 1, v))


@dataclass(frozen=True)
class Layer:
    height: int
    width: int
    wh: int
    ww: int
    channels: int
    in_frac: int = 7
    act_shift: int = 17
    latent_shift: int = 0
    is_output: int = 0
    max_pool: int = 0
    pool_latent: int = 0

    @property
    def kept(self):
        """Under bp, slope bits of a sample and channel: of whole blocks or of positions."""
        return self.height * self.width // (4 if self.max_pool else 1)

    def word(self, y, x):
        """Which of them is the position's, row by row."""
        return y // 2 * (self.width // 2) + x // 2 if self.max_pool else y * self.width + x

    def held(self, slope_base=0, index_base=0):
        """What a layer's sample holds."""
        windows = -(-self.height // self.wh) * -(-self.width // self.ww)
        return {
            **{name: getattr(self, name) for name in (*HELD, "pool_latent", "width")},
            "positions": self.height * self.width, "windows": windows,
            "slope_base": slope_base, "index_base": index_base,
        }  # fmt: skip

    def positions(self):
        """Dictionaries of what the struct holds, in walk order."""
        side = 2 if self.max_pool else 1
        where = {}
        for y in range(self.height):
            for x in range(self.width):
                window = y // self.wh * -(-self.width // self.ww) + x // self.ww
                where[y, x] = window, (y % self.wh // side, x % self.ww // side)
        order = sorted(where, key=lambda p: (*where[p], p))
        ends = [None, *order, None]
        for before, (y, x), after in zip(ends, order, ends[2:], strict=False):
            block = where[y, x]
            yield {
                "y": y, "x": x, "window": block[0],
                "block_first": where.get(before) != block,
                "block_last": where.get(after) != block,
                "block_whole": list(where.values()).count(block) == side**2,
                "window_first": where.get(before, (None,))[0] != block[0],
                "window_last": where.get(after, (None,))[0] != block[0],
            }  # fmt: skip


def totals(m, layer, rng):
    """Pairs of total and bias that a network of the machine can have, around what rounds and saturates."""
    high = m.max_fan_in << 22
    s = layer.act_shift
    corners = [0, 1, -1, high, -high]
    for scale in (1 << s >> 1, 1 << s, 127 << s, 255 << s >> 1, 128 << s, 1 << s << 18, 1 << s << 19):
        for slope in (0, 3):
            corners += [sign * (scale << slope) + offset for sign in (1, -1) for offset in (-1, 0, 1)]

    def one():
        bias = rng.choice([*WORD, 0, rng.randint(*WORD)])
        kind = rng.randrange(3)
        if kind == 0:  # any magnitude
            total = rng.randint(-high, high) >> rng.randrange(24)
        else:  # a corner's z; or an activation's and a half
            z = rng.choice(corners) if kind == 1 else (rng.randint(-1100, 1100) << s >> 1) + rng.randint(-1, 1)
            total = z - (bias << layer.in_frac)
        return (total, bias) if abs(total) <= high else one()

    return one


class Script:
    """Layers one after the other; `total(layer, index)` gives pairs, `gap()` idle cycles between positions."""

    def __init__(self, m, seed):
        self.m, self.rng = m, random.Random(seed)
        self.t, self.window_end = 0, -100
        self.results = {}  # (cycle, column) -> (total, bias)
        self.positions = {}  # cycle -> (struct, tile, channels)
        self.parameters = {}  # cycle -> values of what is held, from then on, or None: noise
        self.maps, self.slopes, self.latents = {}, {}, {}  # cycle -> expected
        self.indices = {}  # cycle -> expected word and indices
        self.saturated = self.negative = 0
        self.unread = False

    def layer(self, layer, interval=1, gap=lambda: 0, total=None, latents=True, bases=(0, 0)):
        """`latents`: they are looked at, so that windows end C cycles apart. `bases`: of slope bits and indices."""
        self.unread |= not latents
        m, cols = self.m, self.m.cols
        draw = total or totals(m, layer, self.rng)
        begins = True
        for tile in range(-(-layer.channels // cols)):
            channels = min(cols, layer.channels - tile * cols)
            largest, sums, weights = [0] * cols, [0] * cols, [0] * cols
            blocks = [[] for _ in range(cols)]  # under bp: activation, slope bit and place of a block's pixels so far
            for place in layer.positions():
                if not layer.max_pool:  # positions are blocks, whatever the flags
                    place |= {name: self.rng.randrange(2) for name in POSITION if name.startswith("block")}
                t = self.t
                if place["window_last"] and latents:
                    t = max(t, self.window_end + cols)
                    self.window_end = t
                if begins:
                    self.parameters[t] = layer.held(*bases)
                begins = False
                self.t = t + interval + gap()
                self.positions[t] = place, tile, channels
                negs, ends = 0, t + cols - 1
                for c in range(cols):
                    total, bias = self.results[t + c, c] = draw()
                    z = total + (bias << layer.in_frac)
                    neg = z < 0 and not layer.is_output
                    a = sat(rnd(z >> 3 if z < 0 else z, layer.act_shift), 8)
                    negs |= neg << c
                    largest[c] = a if place["block_first"] or not layer.max_pool else max(largest[c], a)
                    pixel = a, neg, 2 * (place["y"] % 2) + place["x"] % 2
                    blocks[c] = [*(blocks[c] if layer.max_pool else []), pixel]
                    sums[c] = a + (0 if place["window_first"] else sums[c])
                    weights[c] = (1 if neg else 8) + (0 if place["window_first"] else weights[c])
                    self.saturated += a in (-128, 127)
                    self.negative += neg
                    if place["window_last"] and c < channels and latents:
                        found = (
                            {"score": sat(rnd(z, layer.act_shift), 20)}
                            if layer.is_output
                            else {"latent": sat(rnd(sums[c], layer.latent_shift), 8)}
                        )
                        found |= {"latent_column": c, "latent_window": place["window"], "latent_y": place["y"],
                                  "latent_tile": tile}  # fmt: skip
                        if m.learning.latents:
                            found["latent_weight"] = weights[c]
                        self.last = t + c + Columns.LATENT_LATENCY
                        self.latents[self.last] = found
                if m.learning.transposes:
                    if not layer.max_pool or len(blocks[0]) == 4:
                        pixels = [max(block, key=lambda pixel: pixel[0]) for block in blocks]  # the first of equal ones
                        negs = sum(neg << c for c, (_, neg, _) in enumerate(pixels))
                        offset, at = tile * layer.kept + layer.word(place["y"], place["x"]), ends + Columns.MAP_LATENCY
                        self.slopes[at] = negs, bases[0] + offset
                        if layer.max_pool:
                            self.indices[at] = [index for _, _, index in pixels], bases[1] + offset
                        blocks = [[] for _ in range(cols)]
                elif m.learning.learns:
                    self.slopes[ends + Columns.SLOPE_LATENCY] = negs, None
                whole = place["block_last"] and place["block_whole"]
                if not layer.is_output and (whole or not layer.max_pool):
                    self.maps[ends + Columns.MAP_LATENCY] = list(largest[:channels]), place, tile
        # Parameters hold until everything is out, then mean nothing.
        self.t = max(self.last if latents else 0, ends + Columns.MAP_LATENCY) + 1
        self.parameters[self.t] = None
        self.t += self.rng.randrange(3)

    def run(self):
        dut, rng, m = Columns(self.m), self.rng, self.m
        noise = lambda bits: rng.getrandbits(bits)  # noqa: E731
        names = {name: len(getattr(dut, name)) for name in (*HELD, *(KEPT if m.learning.transposes else ()))}

        async def bench(ctx):
            held = None
            for t in range(self.t + 30):
                held = self.parameters.get(t, held)
                for name, bits in names.items():
                    ctx.set(getattr(dut, name), held[name] % (1 << bits) if held else noise(bits))
                place, tile, channels = self.positions.get(t, (None, noise(3), rng.randint(0, m.cols)))
                for name in POSITION:
                    signal = getattr(dut.position, name)
                    ctx.set(signal, int(place[name]) if place else noise(len(signal)))
                ctx.set(dut.position_tile, tile)
                ctx.set(dut.position_channels, channels)
                valid = 0
                for c in range(m.cols):
                    present = (t, c) in self.results
                    valid |= present << c
                    any_total = noise(m.acc_bits) - (1 << (m.acc_bits - 1)), rng.randint(*WORD)
                    total, bias = self.results.get((t, c), any_total)
                    ctx.set(dut.result_data[c], total)
                    ctx.set(dut.bias[c], bias)
                ctx.set(dut.result_valid, valid)

                if m.learning.learns:
                    assert ctx.get(dut.slope_valid) == (t in self.slopes), t
                if t in self.slopes:
                    negs, word = self.slopes[t]
                    assert ctx.get(dut.slope) == negs, t
                    assert word is None or ctx.get(dut.slope_word) == word, t
                if m.learning.transposes:
                    assert ctx.get(dut.index_valid) == (t in self.indices), t
                if t in self.indices:
                    found = [ctx.get(index) for index in dut.index], ctx.get(dut.index_word)
                    assert found == self.indices[t], t
                assert ctx.get(dut.map_valid) == (t in self.maps), t
                if t in self.maps:
                    data, place, tile = self.maps[t]
                    assert [ctx.get(dut.map_data[c]) for c in range(len(data))] == data, t
                    assert ctx.get(dut.map_channels) == len(data), t
                    assert ctx.get(dut.map_tile) == tile, t
                    assert {name: ctx.get(getattr(dut.map_position, name)) for name in POSITION} == place, t
                assert self.unread or ctx.get(dut.latent_valid) == (t in self.latents), t
                for name, value in self.latents.get(t, {}).items():
                    assert ctx.get(getattr(dut, name)) == value, (t, name)
                await ctx.tick()

        simulator = Simulator(dut)
        simulator.add_clock(1e-6)
        simulator.add_testbench(bench)
        simulator.run()


def interval(layer, cols):
    smallest = min(layer.height, (layer.height - 1) % layer.wh + 1) * ((layer.width - 1) % layer.ww + 1)
    return -(-cols // smallest)


def random_layer(rng, cols):
    pool = rng.randrange(2)
    height, width = (rng.randint(1 + pool, 6) for _ in range(2))
    wh, ww = (side + side % 2 * pool for side in (rng.randint(1, 6), rng.randint(1, 6)))
    return Layer(
        height, width, wh, ww, rng.randint(1, 3 * cols), in_frac=rng.randrange(8), act_shift=rng.randint(1, 31),
        latent_shift=rng.randrange(4), max_pool=pool,
    )  # fmt: skip


CORNERS = [
    Layer(4, 4, 4, 4, 5, latent_shift=2, max_pool=1),
    Layer(5, 5, 2, 2, 9, max_pool=1),  # blocks cut by the map
    Layer(3, 5, 1, 1, 3),  # a latent a position
    Layer(1, 1, 1, 1, 17, in_frac=0),  # fully connected
    Layer(1, 1, 1, 1, 10, is_output=1, in_frac=4, act_shift=9),
    Layer(6, 3, 6, 3, 8, act_shift=12, latent_shift=3, max_pool=1),
    Layer(1, 1, 1, 1, 8, is_output=1, act_shift=1),
]


@pytest.mark.parametrize("cols", [1, 2, 5, 8])
def test_layers_back_to_back(cols):
    """A position every cycle where windows have C, in the least interval where they have not."""
    script = Script(machine(cols), seed=cols)
    for layer in CORNERS * 2:
        script.layer(layer, interval(layer, cols))
    script.run()
    assert script.saturated > 100 and script.negative > 100


@pytest.mark.parametrize("rule", ["dfa", "inference"])
@pytest.mark.parametrize("cols", [2, 8])
def test_latents_that_nothing_looks_at(cols, rule):
    """Then a position a cycle, however small windows are: maps and slopes are right."""
    script = Script(machine(cols, rule=rule), seed=cols)
    for layer in CORNERS * 2:
        script.layer(layer, latents=False)
    script.run()
    assert script.saturated > 100 and script.maps


@pytest.mark.parametrize("cols, seed, rule", [
    *((cols, seed, "lls") for cols in (1, 3, 8) for seed in range(2)), (3, 2, "dfa"), (3, 3, "inference"),
])  # fmt: skip
def test_random_layers(cols, seed, rule):
    """Idle cycles anywhere; a window's last position only is late where windows are small."""
    script = Script(machine(cols, rule=rule), seed)
    for number in range(12):
        layer = random_layer(script.rng, cols)
        script.layer(layer, 1, (lambda: 0) if number % 3 == 0 else lambda: script.rng.choice([0, 0, 1, 6]))
    script.run()


@pytest.mark.parametrize("is_output", [0, 1])
@pytest.mark.parametrize("fan_in, gradient_bits", [(1, 24), (1024, 44)])
def test_every_shift(is_output, fan_in, gradient_bits):
    """Sums of the narrowest and a wide machine; in_frac too."""
    script = Script(machine(2, fan_in, gradient_bits=gradient_bits, fraction_bits=6, delta_bits=12), 3)
    for act_shift in range(1, 32):
        for in_frac in (0, 7, act_shift % 8):
            layer = Layer(1, 1, 1, 1, 2, in_frac, act_shift, is_output=is_output)
            script.layer(replace(layer, channels=16) if is_output else replace(layer, height=8), 2)
    script.run()


def test_every_latent_shift():
    """Where the shift is 0 the sum itself saturates."""
    script = Script(machine(2), 4)
    for shift in range(16):
        for size in ((1, 1), (4, 4), (8, 5)):
            script.layer(Layer(*size, *size, 6, latent_shift=shift, act_shift=16), 2)
    script.run()


@pytest.mark.parametrize("extreme", [127, -128, None])
def test_largest_window(extreme):
    """1024 positions at the largest magnitudes, of the sum and of the slopes' sum; and both in turn."""
    pairs = {127: (1024 << 22, WORD[1]), -128: (-1024 << 22, WORD[0])}
    script = Script(machine(2, 1024), 5)
    for shift in (8, 10, 12):
        layer = Layer(32, 32, 32, 32, 2, act_shift=17, latent_shift=shift, max_pool=1)
        script.layer(layer, total=lambda: pairs[extreme or script.rng.choice(list(pairs))])
    script.run()
    found = {(latent["latent"], latent["latent_weight"]) for latent in script.latents.values()}
    if extreme:
        slopes = 1024 * (8 if extreme > 0 else 1)
        assert found == {(extreme, slopes), (32 if extreme > 0 else -32, slopes)}


@pytest.mark.parametrize("step", [1, -1])
@pytest.mark.parametrize("first", [-120, -20, 60])
def test_maxima_do_not_come_from_the_block_before(step, first):
    """Activations that rise or fall from position to position, over blocks of one sign and of both."""
    script = Script(machine(4), 6)
    numbers = count()

    def total():
        a = first + step * (next(numbers) // script.m.cols)
        return (a << 7 if a < 0 else a << 4), 0

    script.layer(Layer(6, 6, 2, 6, 4, in_frac=0, act_shift=4, max_pool=1), total=total)
    script.run()
    maxima = [data[0] for data, _, _ in script.maps.values()]
    assert maxima == sorted(maxima, reverse=step < 0) and len(set(maxima)) > 1


def test_width_of_the_sum():
    """No wider than a pre-activation, whatever else the accumulators hold."""
    assert z_bits(machine(2, 1024)) == 34 < machine(2, 1024).acc_bits == 44
    assert z_bits(machine(2, 1)) == 25


def kept_layer(rng, cols, pool):
    """As a machine that backpropagates walks it: blocks, latent windows, or single pixels."""
    height, width = (rng.randint(1, 7) for _ in range(2))
    wh, ww = {"latent": (rng.randint(1, height), rng.randint(1, width)), "max": (2, 2), "none": (1, 1)}[pool]
    if pool == "max":
        height, width = 2 * height, 2 * width
    return Layer(
        height, width, wh, ww, rng.randint(1, 3 * cols), in_frac=0, act_shift=rng.randint(3, 24),
        latent_shift=rng.randrange(4), max_pool=int(pool == "max"), pool_latent=int(pool == "latent"),
    )  # fmt: skip


@pytest.mark.parametrize("cols, seed", [(cols, seed) for cols in (1, 3, 8) for seed in range(2)])
def test_what_backpropagation_keeps(cols, seed):
    """Layers of every kind, two samples each, a position a cycle or with pauses; activations that are often equal."""
    m = machine(cols, rule="bp", delta_bits=18, slope_depth=1 << 14, index_depth=5000)
    script = Script(m, seed)
    for number in range(18):
        pool = ("max", "latent", "none")[number % 3]
        layer = kept_layer(script.rng, cols, pool)
        near = lambda layer=layer: (script.rng.randint(-24, 3) << layer.act_shift >> 1, 0)  # noqa: E731
        gap = (lambda: 0) if number % 2 else lambda: script.rng.choice([0, 0, 1, 6])
        stride = -(-layer.channels // cols) * layer.kept
        slope, index = script.rng.randrange(8000), script.rng.randrange(2000)
        for sample in range(2):
            bases = slope + sample * stride, index + sample * stride
            script.layer(layer, 1, gap, near if number % 4 else None, pool == "latent", bases)
    script.layer(Layer(1, 1, 1, 1, 3 * cols, is_output=1, act_shift=9), cols, bases=(9000, 0))
    script.run()
    assert len({tuple(index) for index, _ in script.indices.values()}) >= 4
    assert len({negs for negs, _ in script.slopes.values()}) >= 2


@pytest.mark.parametrize("totals, index, neg", [
    ((0, 0, 0, 0), 0, 0), ((-1, 0, 0, 0), 0, 1), ((0, -1, 16, 16), 2, 0), ((-999, -64, -63, -65), 1, 1),
    ((-900, -128, -128, 5), 3, 0), ((-512, -256, -128, -128), 2, 1), ((40, 33, 999, 9999), 3, 0),
    ((9999, 99999, 9999, 9999), 0, 0),
])  # fmt: skip
def test_the_first_of_equal_ones(totals, index, neg):
    """Their activations are equal, not their sums; a slope bit of 1 with an activation of 0 too."""
    script = Script(machine(2, rule="bp", delta_bits=18), 1)
    for _ in range(2):  # behind a block of any other
        numbers = iter([(value, 0) for value in totals for _ in range(2)])
        script.layer(Layer(2, 2, 2, 2, 2, in_frac=0, act_shift=4, max_pool=1), total=numbers.__next__)
        script.layer(Layer(2, 2, 2, 2, 2, in_frac=0, act_shift=4, max_pool=1))
    script.run()
    ((found, _), *_), ((negs, _), *_) = script.indices.values(), script.slopes.values()
    assert found == [index] * 2 and negs == 3 * neg

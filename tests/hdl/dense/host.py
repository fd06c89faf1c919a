"""A host for the core in Amaranth's own simulator: what the tests of the whole core share."""

from collections import Counter

from spec import memory_map
from spec.network import FullyConnected, Network, Recipe
from spec.program import encode
from spec.timing import Phase


def network(*sizes, basis="square"):
    return Network(
        name="test", input_shape=(sizes[0],), classes=sizes[-1], basis=basis,
        layers=tuple(FullyConnected(size) for size in sizes[1:]),
        recipe=Recipe(hidden_rate_shift=4, output_rate_shift=4),
    )  # fmt: skip


class Host:
    """Drives the core's ports; counts the cycles that `phase` and `layer` show."""

    def __init__(self, core):
        self.core = core
        self.seen = Counter()
        self.beats = []

    async def tick(self, ctx):
        core = self.core
        self.seen[Phase(ctx.get(core.phase)), ctx.get(core.layer)] += 1
        if ctx.get(core.results.valid) and ctx.get(core.results.ready):
            beat = ctx.get(core.results.payload)
            self.beats.append((beat.data, beat.last))
        await ctx.tick()

    async def bus(self, ctx, address, data=None):
        bus = self.core.bus
        ctx.set(bus.req_valid, 1)
        ctx.set(bus.req_addr, address)
        ctx.set(bus.req_write, data is not None)
        ctx.set(bus.req_data, (data or 0) & 0xFFFFFFFF)
        while not ctx.get(bus.req_ready):
            await self.tick(ctx)
        await self.tick(ctx)
        ctx.set(bus.req_valid, 0)
        while data is None and not ctx.get(bus.rsp_valid):
            await self.tick(ctx)
        return ctx.get(bus.rsp_data)

    async def register(self, ctx, name, data=None):
        return await self.bus(ctx, memory_map.register_address(name), data)

    async def setup(self, ctx, program, parameters):
        machine = self.core.machine
        for number, layer in enumerate(program.layers):
            for word, value in enumerate(encode(layer)):
                await self.bus(ctx, memory_map.program_address(machine, number, word), value)
        await self.register(ctx, "LAYERS", len(program.layers))
        await self.register(ctx, "INPUT_LENGTH", program.input_length)
        await self.register(ctx, "INPUT_WORDS", program.input_words)
        for address, value in parameters.items():
            await self.bus(ctx, address, value)
        await self.register(ctx, "CTRL", 0b11)

    async def send(self, ctx, pixels, label):
        samples = self.core.samples
        for data, last in [*((pixel & 255, 0) for pixel in pixels), (label, 1)]:
            ctx.set(samples.valid, 1)
            ctx.set(samples.payload, {"data": data, "last": last})
            while not ctx.get(samples.ready):
                await self.tick(ctx)
            await self.tick(ctx)
        ctx.set(samples.valid, 0)


def addresses(machine, program):
    """Bus addresses of every parameter, layer by layer."""
    layers = []
    for layer in program.layers:
        weights = [
            memory_map.weight_address(
                machine, i % machine.rows, j % machine.cols,
                layer.w_base + j // machine.cols * layer.row_tiles + i // machine.rows,
            )
            for j in range(layer.n_out) for i in range(layer.n_in)
        ]  # fmt: skip
        biases = [memory_map.bias_address(machine, layer.b_base + j) for j in range(layer.n_out)]
        layers.append(weights + biases)
    return layers

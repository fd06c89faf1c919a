"""A host for a core of either datapath in Amaranth's own simulator: what the tests of whole cores share."""

from collections import Counter

from spec import memory_map
from spec.program import encode
from spec.timing import Phase


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

    async def idle(self, ctx):
        """What has just been sent begins in a few cycles, if it does."""
        for _ in range(4):
            await self.tick(ctx)
        while not await self.register(ctx, "STATUS") & 1:
            pass

    async def setup(self, ctx, program, parameters):
        machine = self.core.machine
        for number, layer in enumerate(program.layers):
            for word, value in enumerate(encode(layer)):
                await self.bus(ctx, memory_map.program_address(machine, number, word), value)
        for name, value in registers(program).items():
            await self.register(ctx, name, value)
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


def registers(program):
    """What the host writes beside descriptors: the program's own, of whichever kind it is."""
    names = ("INPUT_LENGTH", "INPUT_WORDS", "INPUT_ROW", "INPUT_GAP", "INPUT_SLOTS", "BATCH")
    found = {name: getattr(program, name.lower()) for name in names if hasattr(program, name.lower())}
    return {"LAYERS": len(program.layers), **found}

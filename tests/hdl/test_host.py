"""The host's side, block by block: loader, result FIFO, writeback, counters, bus and maintenance."""

import gc
import random
from collections import deque

import pytest
from amaranth.hdl import Elaboratable, Module
from amaranth.lib import wiring
from amaranth.lib.wiring import In, connect, flipped
from amaranth.sim import Simulator

from hdl.bus import Bus, BusSignature
from hdl.counters import Counters
from hdl.dense.array import Array
from hdl.dense.bias_unit import BiasUnit
from hdl.dense.loader import InputLoader
from hdl.dense.writeback import Writeback
from hdl.maintenance import Maintenance
from hdl.results import ResultFifo
from spec import memory_map
from spec.errors import SpecError
from spec.lfsr import PERIOD, SEQUENCE, offset
from spec.machine import Machine
from spec.memory_map import REGISTERS
from spec.network import NO_LABEL
from spec.timing import Phase


def machine(**changes):
    values = {
        "name": "test", "rows": 3, "cols": 2, "weight_depth": 12, "activation_depth": 16,
        "max_neurons": 12, "max_fan_in": 20, "bias_depth": 16, "max_layers": 3, "delta_bits": 18,
        "fraction_bits": 12, "result_fifo_depth": 11,
    }  # fmt: skip
    return Machine(**{**values, **changes})


def simulate(dut, *benches):
    simulator = Simulator(dut)
    simulator.add_clock(1e-6)
    for bench in benches:
        simulator.add_testbench(bench)
    simulator.run()


# -- loader ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [1, 3, 4])
@pytest.mark.parametrize("length", [1, 7, 20])
def test_loader(rows, length):
    """Good and bad packets, stalls on every side: only good ones arrive, whole, in their buffers."""
    classes, input_words = 5, -(-length // rows)
    dut = InputLoader(machine(rows=rows, activation_depth=64), classes)
    rng = random.Random(f"{rows} {length}")
    packets = []
    for _ in range(40):
        bad = rng.choice(["", "", "", "length", "label", "both"])
        lengths = [length - 1, length + 1, 0, 2 * length, 3 * length]
        size = rng.choice([n for n in lengths if n != length]) if bad in ("length", "both") else length
        label = rng.choice([5, 254, 128] if bad in ("label", "both") else [*range(5), NO_LABEL])
        packets.append((bad, [rng.randrange(-128, 128) for _ in range(size)], label))
    good = deque((pixels, label) for bad, pixels, label in packets if not bad)
    memory = {}
    beats = deque()
    for bad, pixels, label in packets:
        beats += [(value & 255, 0, "") for value in pixels] + [(label, 1, bad)]

    async def bench(ctx):
        ctx.set(dut.length, length)
        ctx.set(dut.input_words, input_words)
        sticky = {"length": False, "label": False}
        offering = False
        held = deque()  # buffers whose sample has begun
        next_buffer = idle = 0
        while beats or good or held:
            ctx.set(dut.enable, rng.randrange(8) > 0)
            ctx.set(dut.load_ready, rng.randrange(4) > 0)
            offering = bool(beats) and (offering or rng.randrange(4) > 0)
            ctx.set(dut.samples.valid, offering)
            if offering:
                ctx.set(dut.samples.payload, {"data": beats[0][0], "last": beats[0][1]})
            clear = rng.randrange(16) == 0
            ctx.set(dut.clear_errors, clear)
            # The sequencer: takes a label, later gives the buffer back.
            begin = ctx.get(dut.sample_valid) and not held and rng.randrange(20) == 0
            ctx.set(dut.label_release, begin)
            release = bool(held) and rng.randrange(20) == 0
            ctx.set(dut.buffer_release, release)
            if ctx.get(dut.sample_valid):
                pixels, label = good[0]
                assert ctx.get(dut.sample_label) == label
                assert ctx.get(dut.sample_buffer) == next_buffer
            if begin:
                held.append((next_buffer, good.popleft()[0]))
                next_buffer ^= 1
            for buffer, pixels in held:
                for i, pixel in enumerate(pixels):
                    assert memory[i % rows, buffer * input_words + i // rows] == pixel
            if release:
                held.popleft()
            if ctx.get(dut.load_valid) and ctx.get(dut.load_ready):
                where = ctx.get(dut.load_row), ctx.get(dut.load_addr)
                assert where[0] < rows and where[1] < 2 * input_words
                memory[where] = ctx.get(dut.load_data)
            taken = offering and ctx.get(dut.samples.ready)
            bad = beats[0][2] if taken else ""
            await ctx.tick()
            if clear:
                sticky = {"length": False, "label": False}
            if taken:
                beats.popleft()
                offering = False
                if bad:
                    sticky["length" if bad in ("length", "both") else "label"] = True
            assert ctx.get(dut.bad_length) == sticky["length"]
            assert ctx.get(dut.bad_label) == sticky["label"]
            idle = 0 if taken or begin or release else idle + 1
            assert idle < 1000

    simulate(dut, bench)


# -- results --------------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [4, 7, 8])
def test_result_fifo(depth):
    """Random results under random back-pressure; `room` is exactly what would fit."""
    classes = 3
    dut = ResultFifo(machine(result_fifo_depth=depth), classes)
    rng = random.Random(depth)
    expected, held = deque(), 0

    async def push(ctx):
        nonlocal held
        for _ in range(60):
            layers = rng.randint(1, (depth - 1) // classes)
            scores, noise = rng.randrange(2), rng.randrange(2)
            ctx.set(dut.layers, layers)
            ctx.set(dut.scores, scores)
            while not ctx.get(dut.room):
                await ctx.tick()
            ctx.set(dut.begin, 1)
            await ctx.tick()
            ctx.set(dut.begin, 0)
            ctx.set(dut.scores, noise)  # what was set when the sample began counts
            for _ in range(layers * classes):
                score = rng.choice([-(1 << 19), (1 << 19) - 1, -1, 0, rng.randrange(-1000, 1000)])
                ctx.set(dut.score_valid, 1)
                ctx.set(dut.score, score)
                if scores:
                    expected.append((score & 0xFFFFFFFF, 0))
                    held += 1
                await ctx.tick()
                ctx.set(dut.score_valid, 0)
                if rng.randrange(3) == 0:
                    await ctx.tick()
            prediction, label = rng.randrange(256), rng.randrange(256)
            ctx.set(dut.summary, 1)
            ctx.set(dut.prediction, prediction)
            ctx.set(dut.label, label)
            expected.append((label << 8 | prediction, 1))
            held += 1
            await ctx.tick()
            ctx.set(dut.summary, 0)

    async def take(ctx):
        nonlocal held
        got = idle = 0
        while idle < 200:
            patience = rng.choice([1, 1, 3, 10])
            ready = rng.randrange(patience) == 0
            ctx.set(dut.results.ready, ready)
            idle += 1
            if ready and ctx.get(dut.results.valid):
                beat = ctx.get(dut.results.payload)
                assert (beat.data, beat.last) == expected.popleft(), f"beat {got}"
                got, idle = got + 1, 0
                held -= 1
            assert held <= depth
            await ctx.tick()
        assert not expected

    simulate(dut, push, take)


def test_result_fifo_room():
    """Room for the whole result, and not one beat more, with and without scores."""
    depth, classes = 11, 3
    dut = ResultFifo(machine(result_fifo_depth=depth), classes)

    async def bench(ctx):
        for level in range(depth + 1):
            for layers in (1, 2, 3):
                for scores in (0, 1):
                    ctx.set(dut.layers, layers)
                    await ctx.tick()
                    ctx.set(dut.scores, scores)
                    needed = 1 + scores * layers * classes
                    assert ctx.get(dut.room) == (level + needed <= depth), (level, layers, scores)
                    ctx.set(dut.summary, 1)
                    assert ctx.get(dut.room) == (level + 1 + needed <= depth)
                    ctx.set(dut.summary, 0)
            if level < depth:
                ctx.set(dut.summary, 1)
                await ctx.tick()
                ctx.set(dut.summary, 0)

    simulate(dut, bench)


@pytest.mark.filterwarnings("ignore::amaranth.hdl.UnusedElaboratable")
def test_result_fifo_too_small():
    with pytest.raises(SpecError, match="result_fifo_depth: must be at least 12 .*, got 11"):
        ResultFifo(machine(), 11)
    gc.collect()


# -- writeback and counters -----------------------------------------------------------------------


@pytest.mark.parametrize("rows", [1, 3, 4])
def test_writeback(rows):
    dut = Writeback(machine(rows=rows))
    rng = random.Random(rows)

    async def bench(ctx):
        for n_out in (1, rows, rows + 1, 12):
            ctx.set(dut.n_out, n_out)
            ctx.set(dut.a_base, 2)
            ctx.set(dut.start, 1)
            await ctx.tick()
            ctx.set(dut.start, 0)
            j = 0
            for _ in range(40):
                valid = rng.randrange(2)
                ctx.set(dut.valid, valid)
                assert ctx.get(dut.real) == (valid and j < n_out)
                if ctx.get(dut.real):
                    assert (ctx.get(dut.row), ctx.get(dut.addr)) == (j % rows, 2 + j // rows)
                j += valid
                await ctx.tick()

    simulate(dut, bench)


def test_counters():
    dut = Counters()
    rng = random.Random(1)
    events = {"SAMPLES": "sample_done", "FORWARD_STEPS": "forward_step",
              "UPDATE_STEPS": "update_step", "BIAS_STEPS": "bias_step"}  # fmt: skip

    async def bench(ctx):
        expected = {name: 0 for name in [*events, *(f"CYCLES_{p.name}" for p in Phase)]}
        for _ in range(300):
            clear, phase = rng.randrange(50) == 0, rng.choice(list(Phase))
            ctx.set(dut.clear, clear)
            ctx.set(dut.phase, phase)
            for name, event in events.items():
                happens = rng.randrange(2)
                ctx.set(getattr(dut, event), happens)
                expected[name] += happens
            expected[f"CYCLES_{phase.name}"] += 1
            if clear:
                for name in expected:
                    if name not in ("UPDATE_STEPS", "BIAS_STEPS"):
                        expected[name] = 0
            await ctx.tick()
            assert {name: ctx.get(getattr(dut, name)) for name in expected} == expected

    simulate(dut, bench)


def test_step_counters_have_the_period_of_the_lfsr():
    dut = Counters()

    async def bench(ctx):
        ctx.set(dut.update_step, 1)
        await ctx.tick().repeat(PERIOD - 1)
        assert ctx.get(dut.UPDATE_STEPS) == PERIOD - 1
        await ctx.tick()
        assert ctx.get(dut.UPDATE_STEPS) == 0

    simulate(dut, bench)


# -- bus, maintenance and what they reach ----------------------------------------------------------


class HostSide(wiring.Component):
    """Bus and maintenance with a real array and bias unit; `working` stands for a sample."""

    def __init__(self, m):
        self.machine = m
        self.parts = Bus(m), Maintenance(m), Array(m, check=True), BiasUnit(m)
        super().__init__(
            {"bus": In(BusSignature(memory_map.address_bits(m))), "working": In(1)}
        )

    def elaborate(self, platform) -> Elaboratable:
        m = Module()
        m.submodules += self.parts
        bus, maintenance, array, bias = self.parts
        connect(m, flipped(self.bus), bus.bus)
        m.d.comb += [bus.waiting.eq(~self.working), bus.idle.eq(~self.working & ~maintenance.busy)]
        m.d.comb += maintenance.waiting.eq(~self.working)
        for name in ("weight_valid", "weight_write", "row", "col", "word",
                     "advance_array", "advance_bias", "advance_count"):  # fmt: skip
            m.d.comb += getattr(maintenance, name).eq(getattr(bus, name))
        m.d.comb += maintenance.data.eq(bus.weight_data)
        for name in ("weight_done", "read_valid", "read_data", "advancing_array", "advancing_bias"):
            m.d.comb += getattr(bus, name).eq(getattr(maintenance, name))
        for name in ("step_valid", "step_op", "step_addr", "step_first", "step_last",
                     "host_row", "host_col", "host_data"):  # fmt: skip
            m.d.comb += getattr(array, name).eq(getattr(maintenance, name))
        for name in ("result_valid", "result_data"):
            m.d.comb += getattr(maintenance, name).eq(getattr(array, name))
        m.d.comb += [
            bias.advance.eq(maintenance.bias_advance),
            bias.host_valid.eq(bus.bias_valid),
            bias.host_addr.eq(bus.bias_addr),
            bias.host_write.eq(bus.bias_write),
            bias.host_data.eq(bus.bias_data),
            bus.bias_q.eq(bias.host_q),
        ]
        return m


async def transact(ctx, dut, requests, rng=None, on_cycle=lambda ctx: None):
    """Makes requests (address, data or None), a cycle apart at the least; returns what was read."""
    waiting, answers, reads = deque(requests), [], 0
    idle = 0
    while waiting or reads > len(answers):
        offer = bool(waiting) and (rng is None or rng.randrange(3) > 0)
        ctx.set(dut.bus.req_valid, offer)
        if offer:
            address, data = waiting[0]
            ctx.set(dut.bus.req_addr, address)
            ctx.set(dut.bus.req_write, data is not None)
            ctx.set(dut.bus.req_data, (data or 0) & 0xFFFFFFFF)
        on_cycle(ctx)
        if ctx.get(dut.bus.rsp_valid):
            answers.append(ctx.get(dut.bus.rsp_data))
            idle = 0
        if offer and ctx.get(dut.bus.req_ready):
            reads += waiting.popleft()[1] is None
            idle = 0
        idle += 1
        assert idle < 2000 and len(answers) <= reads
        await ctx.tick()
    ctx.set(dut.bus.req_valid, 0)
    return answers


def register(name):
    return memory_map.register_address(name)


def code16(rng):
    return rng.choice([-32768, 32767, -1, 0, 1, rng.randrange(-32768, 32768)])


@pytest.mark.parametrize("rows,cols", [(1, 1), (2, 2), (3, 2), (1, 4), (5, 3)])
def test_bus_memories(rows, cols):
    """Every word of every memory, in mixed order, while samples come and go: answers in order."""
    m = machine(rows=rows, cols=cols)
    dut = HostSide(m)
    rng = random.Random(f"{rows} {cols}")
    addresses = [
        memory_map.weight_address(m, r, c, word)
        for r in range(rows) for c in range(cols) for word in range(m.weight_depth)
    ] + [memory_map.bias_address(m, word) for word in range(m.bias_depth)]  # fmt: skip
    bus, maintenance = dut.parts[:2]

    async def bench(ctx):
        def sample(ctx):
            # As the sequencer: begins only when nothing holds it, and then for a while.
            if ctx.get(dut.working):
                ctx.set(dut.working, rng.randrange(20) > 0)
            elif not (ctx.get(bus.hold) or ctx.get(maintenance.busy)):
                ctx.set(dut.working, begin)

        values = {address: code16(rng) for address in addresses}
        begin = 0
        writes = list(values.items())
        rng.shuffle(writes)
        await transact(ctx, dut, writes, rng, sample)
        requests, expected = [], []
        for _ in range(300):
            begin = rng.randrange(2)
            address = rng.choice(addresses)
            if rng.randrange(4) == 0:
                values[address] = code16(rng)
                requests.append((address, values[address]))
            elif rng.randrange(4) == 0:
                requests.append((register("ID"), None))
                expected.append(memory_map.ID_VALUE)
            else:
                requests.append((address, None))
                expected.append(values[address] & 0xFFFFFFFF)
        assert await transact(ctx, dut, requests, rng, sample) == expected
        ctx.set(dut.working, 0)
        everything = [(address, None) for address in addresses]
        begin = 0
        assert await transact(ctx, dut, everything) == [values[a] & 0xFFFFFFFF for a in addresses]

    simulate(dut, bench)


def test_bus_waits_for_the_sample():
    """Weights and biases wait for `wait`; registers do not; writes of the program hold a sample up."""
    m = machine()
    dut = HostSide(m)
    bus = dut.parts[0]

    async def bench(ctx):
        ctx.set(dut.working, 1)
        assert await transact(ctx, dut, [(register("VERSION"), None)] * 3) == [1] * 3
        for address in (memory_map.weight_address(m, 0, 0, 0), memory_map.bias_address(m, 3)):
            ctx.set(dut.bus.req_valid, 1)
            ctx.set(dut.bus.req_addr, address)
            await ctx.tick()
            ctx.set(dut.bus.req_valid, 0)
            for _ in range(50):
                assert ctx.get(bus.hold) and not ctx.get(dut.bus.req_ready)
                assert not ctx.get(dut.bus.rsp_valid)
                await ctx.tick()
            ctx.set(dut.working, 0)
            seen = 0
            for _ in range(50):
                seen += ctx.get(dut.bus.rsp_valid)
                await ctx.tick()
            assert seen == 1 and not ctx.get(bus.hold)
            ctx.set(dut.working, 1)
        ctx.set(dut.bus.req_valid, 1)
        ctx.set(dut.bus.req_write, 1)
        ctx.set(dut.bus.req_data, 0x89ABCDEF)
        ctx.set(dut.bus.req_addr, memory_map.program_address(m, 2, 5))
        await ctx.tick()
        ctx.set(dut.bus.req_valid, 0)
        assert ctx.get(bus.program_write) and ctx.get(bus.hold)
        assert ctx.get(bus.program_addr) == 2 * 8 + 5
        assert ctx.get(bus.program_data) == 0x89ABCDEF

    simulate(dut, bench)


def test_bus_registers():
    """Each register keeps exactly its bits, reads 0 elsewhere, and disturbs no other one."""
    m = machine()
    dut = HostSide(m)
    bus = dut.parts[0]
    held = {"CTRL": 2, "LAYERS": 2, "INPUT_LENGTH": 5, "INPUT_WORDS": 4}
    rng = random.Random(3)

    async def bench(ctx):
        state = {name: 0 for name in held}
        for _ in range(60):
            name = rng.choice([*held, "ID", "STATUS", "SAMPLES", "CYCLES_WAIT", "VERSION"])
            value = rng.randrange(1 << 32)
            answers = await transact(
                ctx, dut, [(register(name), value)] + [(register(n), None) for n in held]
            )
            if name in held:
                state[name] = value % (1 << held[name])
            assert answers == list(state.values())
            got = (bus.enable, bus.scores, bus.layers, bus.input_length, bus.input_words)
            ctrl = state["CTRL"]
            assert tuple(ctx.get(s) for s in got) == (
                ctrl & 1, ctrl >> 1, state["LAYERS"], state["INPUT_LENGTH"], state["INPUT_WORDS"],
            )  # fmt: skip
        fixed = {"ID": memory_map.ID_VALUE, "VERSION": memory_map.VERSION_VALUE, "CLEAR": 0,
                 "ADVANCE_ARRAY": 0, "ADVANCE_BIAS": 0, "STATUS": 1}  # fmt: skip
        assert await transact(ctx, dut, [(register(n), None) for n in fixed]) == list(fixed.values())
        unused = max(r.address for r in REGISTERS.values()) + 1
        others = [(unused, None), (memory_map.program_address(m, 0, 0), None)]
        assert await transact(ctx, dut, others) == [0, 0]
        for signal, value in ((bus.bad_label, 0b010), (bus.bad_length, 0b100)):
            ctx.set(signal, 1)
            assert await transact(ctx, dut, [(register("STATUS"), None)]) == [1 | value]
            ctx.set(signal, 0)
        for number, name in enumerate(n for n in REGISTERS if hasattr(bus, n)):
            ctx.set(getattr(bus, name), number + 1000)
            assert await transact(ctx, dut, [(register(name), None)]) == [number + 1000]
        pulses = []
        for value in range(4):
            await transact(
                ctx, dut, [(register("CLEAR"), value), (register("ID"), None)],
                on_cycle=lambda ctx: pulses.append(
                    (ctx.get(bus.clear_counters), ctx.get(bus.clear_errors))
                ),
            )  # fmt: skip
        assert [pulse for pulse in pulses if any(pulse)] == [(1, 0), (0, 1), (1, 1)]

    simulate(dut, bench)


@pytest.mark.parametrize("rows,cols,depth", [(3, 2, 12), (1, 1, 5), (2, 2, 8)])
def test_advance(rows, cols, depth):
    """LFSRs stand where so many steps bring them, and no weight or bias has changed."""
    m = machine(rows=rows, cols=cols, weight_depth=depth)
    dut = HostSide(m)
    array, bias = dut.parts[2:]
    rng = random.Random(depth)
    addresses = [
        memory_map.weight_address(m, r, c, word)
        for r in range(rows) for c in range(cols) for word in range(depth)
    ] + [memory_map.bias_address(m, word) for word in range(m.bias_depth)]  # fmt: skip

    async def bench(ctx):
        values = [code16(rng) for _ in addresses]
        await transact(ctx, dut, list(zip(addresses, values, strict=True)))
        total = {"ADVANCE_ARRAY": 0, "ADVANCE_BIAS": 0}
        # The second of a kind waits for the first; the last is done while a sample is at work.
        for name, count in (("ADVANCE_ARRAY", 1), ("ADVANCE_BIAS", 40), ("ADVANCE_BIAS", 3),
                            ("ADVANCE_ARRAY", 300), ("ADVANCE_ARRAY", 0), ("ADVANCE_ARRAY", 7)):  # fmt: skip
            total[name] += count
            await transact(ctx, dut, [(register(name), count)])
        reads = [(register("STATUS"), None)]
        ctx.set(dut.working, 1)
        assert not (await transact(ctx, dut, reads))[0] & 1
        ctx.set(dut.working, 0)
        while not (await transact(ctx, dut, reads))[0] & 1:
            pass
        got = await transact(ctx, dut, [(address, None) for address in addresses])
        assert got == [value & 0xFFFFFFFF for value in values]
        for r in range(rows):
            for c in range(cols):
                state = ctx.get(lfsrs[r * cols + c])
                assert state == SEQUENCE[(offset(m, r * cols + c) + total["ADVANCE_ARRAY"]) % PERIOD]
        assert ctx.get(lfsrs[-1]) == SEQUENCE[(offset(m, m.pes) + total["ADVANCE_BIAS"]) % PERIOD]

    # The LFSRs are inside; their states are found by their reset values in elaboration order.
    from hdl import arith

    lfsrs, original = [], arith.Lfsr.__init__

    def record(self, init):
        original(self, init)
        lfsrs.append(self.state)

    patch = pytest.MonkeyPatch()
    patch.setattr(arith.Lfsr, "__init__", record)
    try:
        simulator = Simulator(dut)
        simulator.add_clock(1e-6)
        simulator.add_testbench(bench)
        simulator.run()
    finally:
        patch.undo()
    assert array and bias and len(lfsrs) == m.lfsrs


@pytest.mark.parametrize("rule", ["lls_m", "lls_mxm", "local_classifier"])
def test_bus_trained_scores(rule):
    """A request waits for `wait`, holds up the next sample, and is answered when it is done; registers lie below."""
    m = machine(rule=rule)
    dut = Bus(m)
    row, lane = (1 << memory_map.row_bits(m)) - 2, 0 if rule == "lls_m" else 201

    async def bench(ctx):
        for write in (1, 0):
            ctx.set(dut.waiting, 0)
            ctx.set(dut.bus.req_valid, 1)
            ctx.set(dut.bus.req_write, write)
            ctx.set(dut.bus.req_addr, memory_map.score_address(m, row, lane))
            ctx.set(dut.bus.req_data, -5 & 0xFFFFFFFF)
            await ctx.tick()
            ctx.set(dut.bus.req_addr, memory_map.register_address("ID"))
            ctx.set(dut.bus.req_write, 0)
            for _ in range(5):
                assert ctx.get(dut.hold) and not ctx.get(dut.score_valid) and not ctx.get(dut.bus.req_ready)
                await ctx.tick()
            ctx.set(dut.waiting, 1)
            for _ in range(3):
                assert ctx.get(dut.score_valid) and ctx.get(dut.score_write) == write
                assert ctx.get(dut.score_row) == row and ctx.get(dut.score_data) == -5
                assert rule == "lls_m" or ctx.get(dut.score_lane) == lane
                await ctx.tick()
            ctx.set(dut.score_done, 1)
            ctx.set(dut.score_q, -77)
            assert ctx.get(dut.bus.req_ready)
            await ctx.tick()
            ctx.set(dut.score_done, 0)
            ctx.set(dut.bus.req_valid, 0)
            assert not ctx.get(dut.hold) and not ctx.get(dut.score_valid)
            assert ctx.get(dut.bus.rsp_valid) == (not write)
            assert write or ctx.get(dut.bus.rsp_data) == -77 & 0xFFFFFFFF
            await ctx.tick()
            assert ctx.get(dut.bus.rsp_valid) and ctx.get(dut.bus.rsp_data) == memory_map.ID_VALUE
            await ctx.tick()

    simulate(dut, bench)

"""hdl.windowed.loader: packets into the ring, good and bad ones, under stalls on every side."""

import random
from collections import deque
from dataclasses import replace

import pytest
from amaranth.sim import Simulator

from hdl.windowed.loader import Loader
from spec.machine import load_machine
from spec.network import NO_LABEL

CLASSES = 5


def machine(rows, **changes):
    values = {
        "rows": rows, "cols": min(rows, 3), "activation_depth": 64, "fraction_bits": 20, "gradient_bits": 44,
        "max_batch": 3, "max_side": 12,
    }  # fmt: skip
    return replace(load_machine("tiny"), **{**values, **changes})


def packets_of(rng, length, count):
    """(what is wrong, elements, label)."""
    found = []
    for _ in range(count):
        bad = rng.choice(["", "", "", "length", "label", "both"])
        wrong = [n for n in (length - 1, length + 1, 0, 2 * length, 3 * length) if n != length]
        size = rng.choice(wrong) if bad in ("length", "both") else length
        good = [*range(CLASSES), *range(CLASSES), NO_LABEL]
        label = rng.choice([5, 254, 128] if bad in ("label", "both") else good)
        found.append((bad, [rng.randrange(-128, 128) for _ in range(size)], label))
    return found


# Height, elements of a row, gap, slots, words between samples' ends.
RINGS = [(1, 1, 0, 1, 0), (1, 7, 0, 2, 0), (3, 4, 2, 6, 1), (4, 3, 1, 5, 0), (2, 5, 3, 3, 2), (5, 1, 1, 4, 0)]


@pytest.mark.parametrize("rows", [1, 2, 4])
@pytest.mark.parametrize("ring", RINGS, ids=str)
def test_loader(rows, ring):
    """Only good packets arrive, whole, in order, in their slots; nothing is written where one may be in use."""
    height, row, gap, slots, space = ring
    gap = min(gap, rows - 1)
    length, pitch = height * row, row + gap
    words = -(-((height - 1) * pitch + row) // rows) + space
    rng = random.Random(f"{rows} {ring}")
    m = machine(rows, activation_depth=max(4, slots * words))
    dut = Loader(m, CLASSES)
    packets = packets_of(rng, length, 80)
    beats = deque()
    for bad, elements, label in packets:
        beats += [(value & 255, 0, bad) for value in elements] + [(label, 1, bad)]
    due = deque((elements, label) for bad, elements, label in packets if not bad)
    where = [y * pitch + x for y in range(height) for x in range(row)]
    memory = {}
    waiting = deque()  # (slot, elements, label) of samples that have not begun, in order
    begun = deque()  # batches at work, the oldest first
    max_batch = 3

    async def bench(ctx):
        for name, value in (("length", length), ("input_row", row), ("input_gap", gap),
                            ("input_words", words), ("input_slots", slots)):  # fmt: skip
            ctx.set(getattr(dut, name), value)
        sticky = {"length": False, "label": False}
        offering, idle, next_slot, asked = False, 0, 0, None
        seen_full = seen_unlabelled = False
        while beats or waiting or begun:
            enable, load_ready = rng.randrange(8) > 0, rng.randrange(4) > 0
            ctx.set(dut.enable, enable)
            ctx.set(dut.load_ready, load_ready)
            offering = bool(beats) and (offering or rng.randrange(4) > 0)
            ctx.set(dut.samples.valid, offering)
            element, last, bad = beats[0] if beats else (rng.randrange(256), rng.randrange(2), "")
            ctx.set(dut.samples.payload, {"data": element, "last": last})
            clear = rng.randrange(16) == 0
            ctx.set(dut.clear_errors, clear)

            # What waits, and what is open, follow from what came.
            labelled = [sample for sample in waiting if sample[2] != NO_LABEL]
            unlabelled = len(labelled) < len(waiting)
            assert ctx.get(dut.waiting) == len(labelled)
            assert ctx.get(dut.unlabelled) == unlabelled
            taken_slots = len(waiting) + sum(len(batch) for batch in begun)
            open_ = enable and taken_slots < slots and not unlabelled
            seen_full |= taken_slots == slots
            seen_unlabelled |= unlabelled
            assert ctx.get(dut.samples.ready) == (open_ and load_ready)

            # The sequencer: begins some, frees them later in one go.
            patient = len(due) % 16 < 8 and taken_slots < slots and not unlabelled and idle < 50
            busy = patient or rng.randrange(3)
            begins = []
            if waiting and not busy:
                begins = labelled[: rng.randint(1, max_batch)] if labelled else list(waiting)
            ctx.set(dut.begin, bool(begins))
            ctx.set(dut.begin_count, len(begins) or rng.randrange(4))
            release = bool(begun) and rng.randrange(12) == 0
            ctx.set(dut.release, release)
            ctx.set(dut.release_count, len(begun[0]) if release else rng.randrange(4))

            # What is in the ring stays there.
            for slot, elements, _ in [*waiting, *(sample for batch in begun for sample in batch)]:
                got = [memory.get(slot * words * rows + place) for place in where]
                assert got == elements
            if asked:
                assert ctx.get(dut.label) == asked[2]
            known = [*waiting, *(sample for batch in begun for sample in batch)]
            asked = rng.choice(known) if known else None
            ctx.set(dut.label_slot, asked[0] if asked else rng.randrange(2 * max_batch))

            if ctx.get(dut.load_valid) and load_ready:
                place = ctx.get(dut.load_element)
                slot, inside = divmod(place, words * rows)
                assert slot == next_slot and inside in where
                memory[place] = ctx.get(dut.load_data)
            beat = offering and ctx.get(dut.samples.ready)
            assert beat or not (ctx.get(dut.load_valid) and load_ready)
            await ctx.tick()
            for sample in begins:
                waiting.remove(sample)
            if begins:
                begun.append(begins)
            if release:
                freed = begun.popleft()
                asked = None if asked in freed else asked
            if clear:
                sticky = {"length": False, "label": False}
            if beat:
                beats.popleft()
                offering = False
                if bad and last:
                    sticky["length" if bad in ("length", "both") else "label"] = True
                if last and not bad:
                    elements, label = due.popleft()
                    waiting.append((next_slot, elements, label))
                    next_slot = (next_slot + 1) % slots
            assert ctx.get(dut.bad_length) == sticky["length"]
            assert ctx.get(dut.bad_label) == sticky["label"]
            idle = 0 if beat or begins or release else idle + 1
            assert idle < 3000
        assert not due and seen_unlabelled and seen_full

    simulator = Simulator(dut)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()


@pytest.mark.parametrize("half", range(4))
def test_restart(half):
    """From any state, in the middle of a packet too: the next sample is in slot 0, of another shape."""
    dut = Loader(machine(2), CLASSES)

    async def send(ctx, elements, label, length=None):
        """The first `length` beats; returns where elements went."""
        places = []
        for element, last in [*((e & 255, 0) for e in elements), (label, 1)][:length]:
            ctx.set(dut.samples.valid, 1)
            ctx.set(dut.samples.payload, {"data": element, "last": last})
            assert ctx.get(dut.samples.ready)
            if ctx.get(dut.load_valid):
                places.append(ctx.get(dut.load_element))
            await ctx.tick()
        ctx.set(dut.samples.valid, 0)
        return places

    async def shape(ctx, length, row, gap, words, slots):
        ctx.set(dut.restart, 1)
        ctx.set(dut.enable, 0)
        for name, value in (("length", length), ("input_row", row), ("input_gap", gap),
                            ("input_words", words), ("input_slots", slots)):  # fmt: skip
            ctx.set(getattr(dut, name), value)
        await ctx.tick()
        ctx.set(dut.restart, 0)
        ctx.set(dut.enable, 1)

    async def bench(ctx):
        ctx.set(dut.load_ready, 1)
        assert not ctx.get(dut.samples.ready)
        await shape(ctx, 4, 4, 0, 2, 6)
        await send(ctx, [1, 2, 3, 4], 1)
        await send(ctx, [1], 1)
        await send(ctx, [1, 2, 3, 4], NO_LABEL if half == 3 else 2)
        if half < 3:
            await send(ctx, [5, 6, 7, 8, 9, 9], 3, length=(0, 2, 5)[half])
        assert ctx.get(dut.waiting) == (1 if half == 3 else 2)
        await shape(ctx, 3, 2, 1, 5, 2)
        assert ctx.get(dut.bad_length)
        assert not ctx.get(dut.waiting) and not ctx.get(dut.unlabelled)
        for slot in (0, 1):
            assert await send(ctx, [1, 2, 3], 4) == [slot * 10 + n for n in (0, 1, 3)]
        assert ctx.get(dut.waiting) == 2 and not ctx.get(dut.samples.ready)

    simulator = Simulator(dut)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()

"""The activation memory against a plain model of its banks."""

import cocotb
import numpy as np

from hdl.dense.activation_memory import ActivationMemory
from sim.benches import context
from sim.benches.streams import start
from sim.benches.timeline import Timeline


@cocotb.test()
async def banks(dut):
    """Random reads, writes and loads in every cycle: skew, row mask, priority of writes over
    loads."""
    machine = context.design().machine
    rows, depth = machine.rows, machine.activation_depth
    rng = context.rng("banks")
    cycles = await start(dut)
    noise = ["read_addr", "write_addr", "write_data", "load_addr", "load_data"]
    lanes = [f"act__{row}" for row in range(rows)]
    timeline = Timeline(cycles, context.rng("noise"), noise, lanes)
    memory = np.zeros((rows, depth), dtype=np.int64)

    def bank(name: str, row: int) -> dict[str, int]:
        return {name: row} if machine.row_bits else {}

    t = cycles.now + 1
    for row in range(rows):
        for addr in range(depth):
            memory[row, addr] = rng.integers(-128, 128)
            timeline.drive(
                t,
                load_valid=1,
                load_addr=addr,
                load_data=memory[row, addr],
                **bank("load_row", row),
            )
            timeline.expect(t, "load_ready", 1)
            t += 1

    # Every value of the mask in small machines, some in large ones; it changes when no read is in flight.
    masks = range(1, 1 << rows) if rows <= 4 else [int(rng.integers(1, 1 << rows)) for _ in range(12)]
    for mask in masks:
        asked: dict[int, tuple[int, bool]] = {}
        begin, length = t, 40
        held: tuple[int, int, int] | None = None
        for cycle in range(begin, begin + length + rows + 2):
            timeline.drive(cycle, row_mask=mask)
            touched = set()  # words that banks read in this cycle
            if cycle < begin + length and rng.integers(4):
                asked[cycle] = int(rng.integers(depth)), bool(rng.integers(2))
                timeline.drive(cycle, read_valid=1, read_addr=asked[cycle][0], read_last=asked[cycle][1])
            else:
                timeline.drive(cycle, read_last=int(rng.integers(2)))
            for row in range(rows):
                if cycle - row in asked:
                    addr, last = asked[cycle - row]
                    touched.add((row, addr))
                    masked = last and not mask >> row & 1
                    value = 0 if masked else memory[row, addr]
                    timeline.expect(
                        cycle + ActivationMemory.LATENCY,
                        lanes[row],
                        value,
                        (row, addr, last, f"{mask:b}"),
                    )

            def place(touched: set[tuple[int, int]] = touched) -> tuple[int, int, int]:
                while True:
                    row, addr = int(rng.integers(rows)), int(rng.integers(depth))
                    if (row, addr) not in touched:
                        return row, addr, int(rng.integers(-128, 128))

            writes = bool(rng.integers(2))
            if writes:
                row, addr, value = place()
                timeline.drive(
                    cycle,
                    write_valid=1,
                    write_addr=addr,
                    write_data=value,
                    **bank("write_row", row),
                )
            loads = held is not None or bool(rng.integers(2))
            timeline.expect(cycle, "load_ready", not writes)
            if loads:
                # A load that waits keeps its word, as a stream does; a word in the way of a read waits as well.
                if held is None or held[:2] in touched:
                    held = place()
                timeline.drive(
                    cycle,
                    load_valid=1,
                    load_addr=held[1],
                    load_data=held[2],
                    **bank("load_row", held[0]),
                )
            if writes:
                memory[row, addr] = value
            elif loads and held is not None:
                memory[held[0], held[1]] = held[2]
                held = None
        t = begin + length + rows + 2
    await timeline.run()
    assert timeline.checked > 20 * len(list(masks))

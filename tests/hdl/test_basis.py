"""The basis in hardware against the table, every entry; and that padding reads something defined."""

import random
from dataclasses import replace

import pytest
from amaranth.back import rtlil
from amaranth.sim import Simulator

from hdl.basis import BasisEntries
from spec.basis import Basis
from spec.machine import load_machine


@pytest.mark.parametrize("neurons", [8, 61, 512])
@pytest.mark.parametrize("kind", ["square", "walsh", "sine"])
def test_entries(kind, neurons):
    machine = replace(load_machine("tiny"), max_neurons=neurons)
    basis = Basis(kind, 10)
    table = basis.table(neurons)
    dut = BasisEntries(machine, basis, (neurons + machine.cols).bit_length())
    order = [*range(neurons), *random.Random(kind).sample(range(neurons), neurons // 2)]

    async def bench(ctx):
        for index in order:
            ctx.set(dut.index, index)
            await ctx.tick()
            zero = ctx.get(dut.zero)
            assert zero == (not table[:, index].any() and kind == "square"), index
            for c in range(10):
                entry = ctx.get(dut.entries[c])
                if kind != "sine":
                    assert not (zero and entry)
                    entry = 0 if zero else 2 * entry - 1
                assert entry == table[c, index], (c, index)
        ctx.set(dut.index, neurons + 1)  # padding
        await ctx.tick()

    simulator = Simulator(dut)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()


def test_table_is_a_block_rom():
    """Only a table of some size asks for a block RAM; Walsh needs no table."""
    machine = load_machine("digits")

    def netlist(kind, neurons):
        return rtlil.convert(BasisEntries(replace(machine, max_neurons=neurons), Basis(kind, 10), 10))

    assert "rom_style" in netlist("square", 256)
    assert "rom_style" in netlist("sine", 256)
    assert "rom_style" not in netlist("square", 8)
    assert "$meminit" not in netlist("walsh", 256)

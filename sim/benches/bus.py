"""The host of a core: bus accesses with stalls, and what is done with them."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from cocotb.triggers import FallingEdge, First, RisingEdge, Timer

from sim.benches.streams import Stalls, signed
from spec import memory_map
from spec.machine import WEIGHT_BITS, Machine
from spec.program import LayerDescriptor, Program, encode

__all__ = ["Bus", "Host", "Parameters"]

Parameters = list[tuple[np.ndarray, np.ndarray]]
"""Weight ``(n_out, n_in)`` and bias ``(n_out,)`` of each layer, codes of 16 bits."""

_PATIENCE = 2_000_000
"""Nanoseconds (200,000 cycles) without progress after which the bus is dead."""


class Bus:
    """Pipelined accesses; ``permissions`` gives the cycles in which a request may be made."""

    def __init__(self, dut: Any, permissions: Stalls):
        self._dut = dut
        self._permissions = permissions
        dut.bus__req_valid.value = 0

    async def transact(self, requests: Iterable[tuple[int, int | None]]) -> list[int]:
        """Make every request ``(address, data)``, a read where data is None; returns the words
        read, in order.

        A request that waits stays as it is, and every read must be answered exactly once.
        """
        dut, waiting = self._dut, list(requests)
        waiting.reverse()
        answers: list[int] = []
        outstanding = 0
        offered = False
        while waiting or outstanding:
            answered = len(answers)
            if not offered and waiting and next(self._permissions):
                address, data = waiting[-1]
                dut.bus__req_valid.value = 1
                dut.bus__req_write.value = data is not None
                dut.bus__req_addr.value = address
                dut.bus__req_data.value = (data or 0) & 0xFFFFFFFF
                offered = True
            await FallingEdge(dut.clk)
            taken = offered and int(dut.bus__req_ready.value) == 1
            if int(dut.bus__rsp_valid.value):
                assert outstanding, "bus: a response although no read is outstanding"
                answers.append(int(dut.bus__rsp_data.value))
                outstanding -= 1
            if taken:
                outstanding += waiting.pop()[1] is None
            await RisingEdge(dut.clk)
            if taken:
                dut.bus__req_valid.value = 0
                offered = False
            elif answered == len(answers) and (offered or not waiting):
                # Nothing moved, and only the core can change that: no need to look every cycle.
                await self._core_moves(len(waiting), outstanding)
        return answers

    async def _core_moves(self, waiting: int, outstanding: int) -> None:
        """Wait until the core takes a request or answers one; returns in the high half of that cycle."""
        dut = self._dut
        ready, answer = dut.bus__req_ready, dut.bus__rsp_valid
        if int(answer.value) or (waiting and int(ready.value)):
            return
        edges = [RisingEdge(answer), *([RisingEdge(ready)] if waiting else [])]
        moved = await First(*edges, limit := Timer(_PATIENCE, unit="ns"))
        assert moved is not limit, (
            f"bus: nothing moved for {_PATIENCE} ns, {waiting} requests and {outstanding} answers open"
        )

    async def read(self, address: int) -> int:
        """One word."""
        return (await self.transact([(address, None)]))[0]

    async def write(self, address: int, data: int) -> None:
        """One word."""
        await self.transact([(address, data)])

    async def make(self, writes: tuple[np.ndarray, np.ndarray]) -> None:
        """A list of writes: addresses and data, of equal lengths."""
        await self.transact(zip(*(array.tolist() for array in writes), strict=True))

    async def codes(self, addresses: np.ndarray, bits: int) -> np.ndarray:
        """Reads codes of so many bits, int32 in the shape of the addresses; each must come sign-extended to 32 bits."""
        words = await self.transact((address, None) for address in addresses.ravel().tolist())
        values = [signed(word, bits) for word in words]
        for address, word, value in zip(addresses.flat, words, values, strict=True):
            assert word == value & 0xFFFFFFFF, f"address {address:#x}: {word:#x} is not sign-extended"
        return np.array(values, np.int32).reshape(addresses.shape)


class Host:
    """What a driver does with the bus: registers, the program, weights and biases by neuron and
    input."""

    def __init__(self, bus: Bus, machine: Machine):
        self.bus = bus
        self.machine = machine

    async def register(self, name: str) -> int:
        """Read a register."""
        return await self.bus.read(memory_map.register_address(name))

    async def registers(self, names: Sequence[str]) -> dict[str, int]:
        """Read registers in one go."""
        requests = [(memory_map.register_address(name), None) for name in names]
        return dict(zip(names, await self.bus.transact(requests), strict=True))

    async def set_register(self, name: str, value: int) -> None:
        """Write a register."""
        await self.bus.write(memory_map.register_address(name), value)

    async def set_bits(self, name: str, *bits: str) -> None:
        """Write a register with the named bits set and the others 0."""
        value = sum(1 << memory_map.register_bit(name, bit) for bit in bits)
        await self.set_register(name, value)

    async def load_program(self, program: Program) -> None:
        """Descriptors and the registers that go with them."""
        address = memory_map.program_address
        await self.bus.transact(
            (address(self.machine, number, word), value)
            for number, layer in enumerate(program.layers)
            for word, value in enumerate(encode(layer))
        )
        await self.set_register("LAYERS", len(program.layers))
        await self.set_register("INPUT_LENGTH", program.input_length)
        await self.set_register("INPUT_WORDS", program.input_words)

    def _addresses(self, layer: LayerDescriptor) -> tuple[list[int], list[int]]:
        """Bus addresses of a layer's weights, neuron by neuron, and of its biases."""
        rows, cols = self.machine.rows, self.machine.cols
        weights = [
            memory_map.weight_address(
                self.machine,
                i % rows,
                j % cols,
                layer.w_base + j // cols * layer.row_tiles + i // rows,
            )
            for j in range(layer.n_out)
            for i in range(layer.n_in)
        ]
        biases = [memory_map.bias_address(self.machine, layer.b_base + j) for j in range(layer.n_out)]
        return weights, biases

    async def write_parameters(self, program: Program, parameters: Parameters) -> None:
        """Write every weight and bias."""
        for layer, (weight, bias) in zip(program.layers, parameters, strict=True):
            for addresses, values in zip(self._addresses(layer), (weight, bias), strict=True):
                data = [int(value) for value in values.flat]
                await self.bus.transact(zip(addresses, data, strict=True))

    async def read_parameters(self, program: Program) -> Parameters:
        """Read every weight and bias; each word must come sign-extended to 32 bits."""
        parameters = []
        for layer in program.layers:
            weight, bias = [await self.bus.codes(np.array(found), WEIGHT_BITS) for found in self._addresses(layer)]
            parameters.append((weight.reshape(layer.n_out, layer.n_in), bias))
        return parameters

"""The basis against the table of ``spec.basis``: every latent in order and at random, one a
cycle."""

import cocotb

from hdl.basis import BasisEntries
from sim.benches import context
from sim.benches.streams import start
from sim.benches.timeline import Timeline
from spec.basis import Basis


@cocotb.test()
async def entries(dut):
    """Every entry of the table."""
    design = context.design()
    basis = Basis(design.basis, design.classes)
    latents = design.machine.max_neurons
    table = basis.table(latents)
    cycles = await start(dut)
    timeline = Timeline(cycles, context.rng("noise"), ("index",))
    t = cycles.now + 1
    for i in [*range(latents), *context.rng("order").integers(0, latents, latents)]:
        timeline.drive(t, index=int(i))
        seen = t + BasisEntries.LATENCY
        # A sign has no zero: the square basis has a wire of its own for it. One bit reads as 0 or -1.
        empty = basis.kind == "square" and not table[:, i].any()
        timeline.expect(seen, "zero", -int(empty), f"latent {i}")
        for c, entry in enumerate(table[:, i]):
            code = int(entry) if basis.kind == "sine" else -int(entry > 0)
            timeline.expect(seen, f"entries__{c}", code, f"latent {i}, class {c}, entry {entry}")
        t += 1
    await timeline.run()
    assert timeline.checked == 2 * latents * (design.classes + 1)

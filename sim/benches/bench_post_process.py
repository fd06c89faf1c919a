"""Post-processing against the golden model: bias, slope, rounding, saturation, latency."""

import cocotb
import numpy as np

from golden.fixed import hidden_activation, output_score
from hdl.dense.post_process import PostProcess
from sim.benches import context
from sim.benches.streams import start
from sim.benches.timeline import Timeline
from spec.machine import BIAS_LEFT_SHIFT, INPUT_FRAC, SCORE_FRAC, WEIGHT_FRAC

OUTPUTS = ("out_valid", "out_a", "out_neg", "out_score")


def totals(rng: np.random.Generator, limit: int, shift: int, count: int) -> list[int]:
    """Pre-activations: extremes, both signs of every rounding tie and its neighbours near 0 and
    near saturation, and random numbers of every magnitude."""
    values = [0, 1, -1, limit, -limit, limit - 1, 1 - limit]
    for step in (0, 1, 2, 126, 127, 128, 129):
        for slope in (0, 3):
            tie = ((2 * step + 1) << (shift + slope)) >> 1
            values += [sign * tie + offset for sign in (1, -1) for offset in (-1, 0, 1)]
    magnitudes = rng.integers(0, limit.bit_length(), count)
    values += [int(rng.integers(-(1 << m), (1 << m) + 1)) for m in magnitudes]
    return [min(max(value, -limit), limit) for value in values]


@cocotb.test()
async def codes(dut):
    """Every legal kind of layer; totals come at random, in pairs, and back to back."""
    machine = context.design().machine
    rng = context.rng("codes")
    cycles = await start(dut)
    pulses = ("out_valid", "bias_pop")
    timeline = Timeline(cycles, context.rng("noise"), ("acc_data", "bias_data"), pulses)
    largest = machine.max_fan_in << 22
    kinds = [(frac, output) for frac in (4, INPUT_FRAC) for output in (False, True)]
    t, beats = cycles.now + 1, 0
    for in_frac, is_output in kinds:
        # Section 1: output scores have 9 fraction bits, activations 4.
        act_shift = WEIGHT_FRAC + in_frac - (SCORE_FRAC if is_output else 4)
        for z in totals(rng, largest, act_shift, 300):
            bias = int(rng.choice([-32768, 32767, 0, int(rng.integers(-32768, 32768))]))
            acc = min(max(z - (bias << BIAS_LEFT_SHIFT), -largest), largest)
            z = acc + (bias << BIAS_LEFT_SHIFT)
            inputs = {"acc": acc, "bias": bias, "z": z, "shift": act_shift, "output": is_output}
            timeline.drive(t, acc_valid=1, acc_data=acc, bias_data=bias)
            timeline.expect(t, "bias_pop", 1, inputs)
            seen = t + PostProcess.LATENCY
            timeline.expect(seen, "out_valid", 1, inputs)
            if is_output:
                score = output_score(np.array([z]), act_shift)
                timeline.expect(seen, "out_score", int(score[0]), inputs)
            else:
                a, neg = hidden_activation(np.array([z]), act_shift)
                timeline.expect(seen, "out_a", int(a[0]), inputs)
                timeline.expect(seen, "out_neg", int(neg[0]), inputs)
            beats += 1
            t += 1 if rng.integers(2) else int(rng.integers(1, 4))
        end = t + PostProcess.LATENCY + 2
        # The layer's parameters stand still while it runs.
        for cycle in range(cycles.now, end):
            timeline.drive(cycle, act_shift=act_shift, is_output=is_output)
        await timeline.run(end)
        t = end + 1
    assert timeline.checked >= 3 * beats

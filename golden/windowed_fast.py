"""The bit-exact integer model of convolutions and mini-batches, compiled: the bits of `golden.windowed`
at the speed of the processor, on one thread.

Everything is integer, so a sum may be regrouped as long as nothing overflows; five changes of form, and
those of backpropagation in `golden.windowed_fast_back`:

- **Products of 16 bits in pairs.** Forward, `z[p, j]` is a sum over pairs of taps; in update, `G[t, j]`
  is one over pairs of positions; one kernel serves both. A lane is a channel, holds both halves of a
  pair, and adds `a0·b0 + a1·b1` to its sum of 32 bits (`golden.vectors`; x86: `vpdpwssd`, `vpmaddwd`).
  Measured on one core of a Zen 4, for 196 positions, 288 taps and 64 channels: 110 GMAC/s, against 31 for
  dot products that the compiler vectorizes itself, 24 for the two passes of single precision BLAS (bytes of
  the weights) that are exact, 23 for double precision BLAS.
- **Forward in blocks of 504 taps**: `504·2^22`, a bias and a rounding fit 32 bits. Layers with more taps
  add their blocks in 64.
- **Update without windows.** `A` and `D` together are `D[j, t] = Σ_p c[j, p]·x[p, t]`, `c = -8d` or, where
  `z` was negative, `-d`: 32 bits hold it while they hold `128·Σ_p |c|` of every channel. Samples whose shifts
  `left` differ by up to 2 are summed together, `c` shifted by the difference. If one such sum `G` holds the
  whole batch, weights move in 32 bits: nested floors make of `floor((w·2^F + rand_F + G·2^left) / 2^F)` the
  sum `w + floor((G + rand) / 2^down)`, `down = F - left`, `rand` the top `down` bits of `rand_F`. Else the
  sums are collected in 64 bits, and the definition is applied as it stands.
- **Random numbers are made, not looked up.** The LFSRs of a panel stand in lanes, two in each as two taps
  share a weight's, and step as the update walks along the taps: the same pair of LFSRs comes back after
  one step or, if the array has an odd number of rows, two.
- **Panels.** 32 channels are a panel: weights `[panel][pair of taps][channel][2]`. All that has channels is
  padded to whole panels with zeros, which stay, as their signal is 0; so are taps to pairs. Latents are in
  the order window, channel, and so is the basis table.

Maps keep their borders of zeros; patches are copied out of them, a row of the kernel at a time.
"""

from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple
from zlib import crc32

import numpy as np

from golden import fast, vectors, windowed_fast_back
from golden.fast import (
    TRAINED_KINDS,
    _compiled,
    _feedback,
    _hidden_signal,
    _hold,
    _label_gradient,
    _rnd,
    _sat,
    _signals,
    _softmax_error,
)
from golden.fixed import StatefulModel, StepResult, checked_samples
from golden.signals import RATE_BEYOND
from golden.train import Parameters, TrainReport, initial_windowed_codes
from golden.vectors import (
    LANES,
    PANEL,
    add_halves,
    add_pairs,
    inner,
    largest,
    least,
    load,
    shift_in_zeros,
    store,
    zero,
)
from golden.windowed_fast_back import WayBack, choose, room_for_way_back, send_back, turn_weights
from spec import lfsr
from spec.geometry import LayerGeometry
from spec.lfsr import PERIOD, SEQUENCE, TAPS, offset
from spec.machine import Machine
from spec.network import NO_LABEL, POOLS, Network
from spec.tables import EXP, RCP8, RCP9
from spec.windowed import WindowedLayer, windowed_layers, windows_of

__all__ = ["FastWindowedModel"]

BLOCK = 504 // 2
"""Pairs of taps whose products, and a bias, always fit 32 bits."""
ROWS_MAX, PATCH_CODES = 2048, 1 << 17
"""Positions worked on together: so many at most, and so few that their patches stay near the processor."""
BACK_ROWS_MAX = 1000
"""The same with signals of 15 bits, `c` of 1000 of which fit `ROOM`."""
SPREAD = 2
"""By how much the shifts of samples that are summed in 32 bits may differ."""
ROOM = (1 << 24) - (1 << 17)
"""The largest `Σ|c|` of a channel: times 128, and with 24 random bits, it fits 32 bits."""
SAMPLES_A_CALL, MACS_A_CALL = 1024, 1 << 33
"""Compiled code cannot be interrupted: a Ctrl-C waits for no more than this."""
GROUP, GROUP_CODES = 16, 1 << 21
"""Samples that are inferred together, so that they share the weights: so many at most, and so few that a layer's
outputs stay that small."""


# What a layer, the machine and the memory are to the compiled code.

LAYER = np.dtype(
    [
        (name, np.int64)
        for name in (
            # the map it reads, with its border: a row of it, a sample's; where the samples' begin
            *("row_size", "map_size", "map_base"),
            *("input_height", "input_width", "channels_in", "padding"),
            *("kernel_height", "kernel_width", "stride", "depthwise"),
            # the map it makes, and its windows; which window a position is in
            *("height", "width", "channels", "padded", "positions"),
            *("grid_height", "grid_width", "windows", "window_base"),
            # where the next layer's map begins inside its border, and a row of that map
            *("pool", "next_start", "next_row_size"),
            *("taps", "pairs", "tap_rows", "panels", "rows"),
            *("weight_base", "channel_base", "table_base", "gain_base", "delta_base", "trained_base", "trained_size"),
            *("row_tiles", "col_tiles", "lfsr_rows"),
            *("in_frac", "latent_shift", "act_shift", "score_shift", "rate_shift", "coarse", "left_max"),
            *("is_output", "train"),
        )
    ]
)
MACHINE = np.dtype(
    [
        (name, np.int64)
        for name in (
            *("rows", "cols", "fraction_bits", "lfsr_stride", "basis_fraction", "room"),
            # what `spec.rules.Rule` says
            *("scores", "waits", "transposes"),
            # what is trained of the scores (`golden.fast.TRAINED_KINDS`), and the shift of its rate
            *("trained_kind", "trained_rate"),
        )
    ]
)


class _Memory(NamedTuple):
    """Flat arrays. State: `weights` int32, pairs of s16; `biases` int16; `trained` int32. Constants: `tables` int16,
    `small` (see `golden.fast`), `sequence` uint16, the LFSR's, twice; `walks` int32, a channel's own steps into it;
    `windows` int32. The rest is room that a layer uses while it is worked on, but for `maps`.
    """

    weights: np.ndarray
    biases: np.ndarray
    trained: np.ndarray
    tables: np.ndarray
    small: np.ndarray
    sequence: np.ndarray
    walks: np.ndarray
    windows: np.ndarray
    maps: np.ndarray
    """int16: what each layer reads, of every sample of a batch."""
    patches: np.ndarray
    patch_pairs: np.ndarray
    """int16, and the same memory as int32: (rows, pairs of taps)."""
    z: np.ndarray
    wide_z: np.ndarray
    """int32 and, if any layer needs it, int64: (rows, padded channels)."""
    lifted: np.ndarray
    """int32: a layer's biases with the fraction bits of `z`."""
    a: np.ndarray
    gain: np.ndarray
    """int16 (positions of the batch, padded channels): outputs, and by how much a pixel counts, 8 or 1 or, where
    max-pooling does not take it, nothing; where layers wait for the output layer's error, the gains of each have a
    place of their own.
    """
    sums: np.ndarray
    latents: np.ndarray
    delta: np.ndarray
    """int32, int16, int16 (windows, padded channels): sums, latents; the signals of every sample of the batch, of two
    layers where they go back.
    """
    left: np.ndarray
    order: np.ndarray
    """int64 (batch,): a sample's shift; the samples in its order."""
    gain_at: np.ndarray
    delta_at: np.ndarray
    """int64 (rows,): where a row finds its gain and its signal."""
    signal: np.ndarray
    """int32 [panel][pair of rows][channel]: `c`."""
    row_pairs: np.ndarray
    """int32 (pairs of rows, taps): the patches of two positions."""
    gradient: np.ndarray
    """int32 [panel][tap][channel]: `G`."""
    bias_gradient: np.ndarray
    """int64 (padded channels,)."""
    states: np.ndarray
    """int32: pairs of LFSRs."""
    scores: np.ndarray
    """int64 (batch, L, K): of the layers that form them."""
    errors: np.ndarray
    vectors: np.ndarray
    back: np.ndarray
    positive: np.ndarray
    """int64 (batch, K), int64 (2, I), int32 (latents,), bool (latents,), all False: of the learning signal."""
    way: WayBack


# The kernel.


@inner
def _multiply(v, v_at, steps, x, row_stride, step_stride, rows, out, out_at, out_stride, add):
    """`out[r, lane] = Σ_k pairs(v[k, lane], x[r, k])`, a panel of lanes, added to what is there if `add`.

    `rows` is rounded up to a multiple of 4, and there must be room for that.
    """
    half, panel = np.uint64(LANES), np.uint64(PANEL)
    along, across, line = np.uint64(step_stride), np.uint64(row_stride), np.uint64(out_stride)
    for row in range(0, rows, 4):
        at0 = np.uint64(out_at + row * out_stride)
        at1 = at0 + line
        at2 = at1 + line
        at3 = at2 + line
        a0, a1, b0, b1, c0, c1, d0, d1 = zero(), zero(), zero(), zero(), zero(), zero(), zero(), zero()
        if add:
            a0, a1, b0, b1 = load(out, at0), load(out, at0 + half), load(out, at1), load(out, at1 + half)
            c0, c1, d0, d1 = load(out, at2), load(out, at2 + half), load(out, at3), load(out, at3 + half)
        at = np.uint64(v_at)
        x0 = np.uint64(row * row_stride)
        x1 = x0 + across
        x2 = x1 + across
        x3 = x2 + across
        for _ in range(steps):
            v0, v1 = load(v, at), load(v, at + half)
            a0, a1 = add_pairs(a0, v0, x[x0]), add_pairs(a1, v1, x[x0])
            b0, b1 = add_pairs(b0, v0, x[x1]), add_pairs(b1, v1, x[x1])
            c0, c1 = add_pairs(c0, v0, x[x2]), add_pairs(c1, v1, x[x2])
            d0, d1 = add_pairs(d0, v0, x[x3]), add_pairs(d1, v1, x[x3])
            at += panel
            x0 += along
            x1 += along
            x2 += along
            x3 += along
        store(out, at0, a0)
        store(out, at0 + half, a1)
        store(out, at1, b0)
        store(out, at1 + half, b1)
        store(out, at2, c0)
        store(out, at2 + half, c1)
        store(out, at3, d0)
        store(out, at3 + half, d1)


# Forward.


@inner
def _corner(layer, m, row):
    """Where the patch of a row begins, in `maps`: rows are positions of the samples in `order`, sample by sample."""
    sample, position = m.order[row // layer.positions], row % layer.positions
    y, x = position // layer.width, position % layer.width
    return layer.map_base + sample * layer.map_size + layer.stride * (y * layer.row_size + x * layer.channels_in)


@inner
def _copy_patches(layer, m, first, rows):
    """The patches of rows `first…`."""
    length, span = layer.kernel_width * layer.channels_in, 2 * layer.pairs
    for row in range(rows):
        source = _corner(layer, m, first + row)
        target = row * span
        for _ in range(layer.kernel_height):
            # The last vector may write too much, which what comes behind it overwrites.
            for i in range(0, length, LANES):
                store(m.patches, target + i, load(m.maps, source + i))
            source += layer.row_size
            target += length
        if layer.taps < span:
            m.patches[row * span + layer.taps] = 0


@inner
def _depthwise_z(layer, m, first, rows):
    """`z` of rows of a depthwise layer."""
    for row in range(rows):
        corner = _corner(layer, m, first + row)
        for j in range(0, layer.padded, LANES):
            weight = layer.weight_base + (j // PANEL) * layer.pairs * PANEL + j % PANEL
            z, t = zero(), 0
            for ky in range(layer.kernel_height):
                source = corner + ky * layer.row_size + j
                for _ in range(layer.kernel_width):
                    w = load(m.weights, weight)
                    if t & 1:
                        w = w >> 16
                        weight += PANEL
                    else:
                        w = (w << 16) >> 16
                    z = z + w * load(m.maps, source)
                    source += layer.channels_in
                    t += 1
            store(m.z, row * layer.padded + j, z)


@inner
def _activate(layer, m, first, rows):
    """Outputs and gains of rows from `z` without biases, in 32 bits."""
    shift, half = layer.act_shift, (1 << layer.act_shift) >> 1
    for row in range(rows):
        for j in range(0, layer.padded, LANES):
            z = load(m.z, row * layer.padded + j) + load(m.lifted, j)
            negative = z >> 31
            a = ((z >> (negative & 3)) + half) >> shift
            target = (first + row) * layer.padded + j
            store(m.a, target, largest(least(a, 127), -128))
            store(m.gain, layer.gain_base + target, (negative & -7) + 8)


@inner
def _activate_wide(layer, m, first, rows):
    """The same in 64 bits."""
    shift, half = layer.act_shift, (1 << layer.act_shift) >> 1
    for row in range(rows):
        source, target = np.uint64(row * layer.padded), np.uint64((first + row) * layer.padded)
        for j in range(np.uint64(layer.padded)):
            z = m.wide_z[source + j] + m.lifted[j]
            negative = z >> 63
            a = ((z >> (negative & 3)) + half) >> shift
            m.a[target + j] = min(max(a, -128), 127)
            m.gain[layer.gain_base + target + j] = (negative & -7) + 8


@inner
def _forward_rows(layer, m, first, rows, scores):
    """Rows `first…` from their maps to `a` and `gain`; in the output layer to `scores` `(batch, K)`."""
    wide = layer.pairs > BLOCK
    if layer.depthwise:
        _depthwise_z(layer, m, first, rows)
    else:
        _copy_patches(layer, m, first, rows)
        if wide:
            m.wide_z[: rows * layer.padded] = 0
        for start in range(0, layer.pairs, BLOCK):
            steps, x = min(layer.pairs - start, BLOCK), m.patch_pairs[start:]
            for panel in range(layer.panels):
                weight = layer.weight_base + (panel * layer.pairs + start) * PANEL
                out = panel * PANEL
                _multiply(m.weights, weight, steps, x, layer.pairs, 1, rows, m.z, out, layer.padded, False)
            if wide:
                for i in range(rows * layer.padded):
                    m.wide_z[i] += m.z[i]
    if layer.is_output:
        for row in range(rows):
            for j in range(layer.channels):
                at = row * layer.padded + j
                z = (m.wide_z[at] if wide else np.int64(m.z[at])) + m.lifted[j]
                scores[first + row, j] = _sat(_rnd(z, layer.act_shift), 20)
    elif wide:
        _activate_wide(layer, m, first, rows)
    else:
        _activate(layer, m, first, rows)


@inner
def _form_latents(layer, m, sample):
    """A sample's latents."""
    size = layer.windows * layer.padded
    m.sums[:size] = 0
    for position in range(layer.positions):
        source = (sample * layer.positions + position) * layer.padded
        target = m.windows[layer.window_base + position] * layer.padded
        for j in range(0, layer.padded, LANES):
            store(m.sums, target + j, load(m.sums, target + j) + load(m.a, source + j))
    shift, half = layer.latent_shift, (1 << layer.latent_shift) >> 1
    for i in range(0, size, LANES):
        store(m.latents, i, largest(least((load(m.sums, i) + half) >> shift, 127), -128))


@inner
def _hand_on(layer, m, sample, target):
    """Writes a sample's outputs to the next layer's map: `target` is its first element inside the border."""
    source, at, height, width = m.a, sample * layer.positions * layer.padded, layer.height, layer.width
    block, right, below = 1, 0, 0
    if layer.pool == 1:
        block, right, below = 2, layer.padded, layer.width * layer.padded
    elif layer.pool == 2:
        source, at, height, width = m.latents, 0, layer.grid_height, layer.grid_width
    whole = layer.channels // LANES * LANES
    for y in range(height // block):
        for x in range(width // block):
            upper = at + block * (y * width + x) * layer.padded
            lower = upper + below
            to = target + y * layer.next_row_size + x * layer.channels
            for j in range(0, whole, LANES):
                a = largest(load(source, upper + j), load(source, upper + right + j))
                b = largest(load(source, lower + j), load(source, lower + right + j))
                store(m.maps, to + j, largest(a, b))
            for j in range(whole, layer.channels):
                best = max(source[upper + j], source[upper + right + j])
                m.maps[to + j] = max(best, source[lower + j], source[lower + right + j])


# Learning signals: each writes a sample's to `delta`.


@inner
def _output_signal(layer, machine, m, sample, label, score):
    """The output layer's, and its error."""
    first, error = sample * layer.padded, m.errors[sample]
    _softmax_error(score, label, layer.score_shift, m.small, error)
    delta, gain = layer.delta_base + first, layer.gain_base + first
    for c in range(layer.channels):
        if machine.transposes:
            m.delta[delta + c] = min(max(_rnd(error[c], 3) << 6, -2047), 2047)
        else:
            m.delta[delta + c] = min(max(_rnd(error[c], 1), -127), 127)
    m.delta[delta + layer.channels : delta + layer.padded] = 0
    m.gain[gain : gain + layer.padded] = 8


@inner
def _own_signal(layer, machine, m, sample, label, score):
    """A hidden layer's from its latents and the label, with its scores where it forms them; returns the norm's exponent
    or 0.
    """
    size, table = layer.windows * layer.padded, m.tables[layer.table_base :]
    latents, back, delta = m.latents[:size], m.back[:size], m.delta[sample * size : (sample + 1) * size]
    if machine.scores == 0:
        _label_gradient(table[label * size : (label + 1) * size], machine.basis_fraction, back)
        _signals(back, 2, m.positive, 127, delta)
        _hold(delta, latents)
        return 0
    return _hidden_signal(
        latents,
        m.positive,
        table,
        machine.basis_fraction,
        machine.trained_kind,
        m.trained[layer.trained_base : layer.trained_base + layer.trained_size],
        machine.trained_rate,
        label,
        layer.score_shift,
        m.small,
        score,
        m.errors[sample],
        m.vectors,
        back,
        delta,
    )


@inner
def _fed_back(layer, machine, m, sample):
    """A hidden layer's from the output layer's error."""
    size = layer.windows * layer.padded
    back = m.back[:size]
    _feedback(m.errors[sample], m.tables[layer.table_base :], machine.basis_fraction, back)
    _signals(back, 2, m.positive, 127, m.delta[sample * size : (sample + 1) * size])


# Update.


@inner
def _find_signals(layer, m, first, rows):
    """Where rows `first…` find gain and signal."""
    for row in range(rows):
        sample, position = m.order[(first + row) // layer.positions], (first + row) % layer.positions
        m.gain_at[row] = layer.gain_base + (sample * layer.positions + position) * layer.padded
        window = sample * layer.windows + m.windows[layer.window_base + position]
        m.delta_at[row] = layer.delta_base + window * layer.padded


@inner
def _signal(m, row, j):
    """`c` of a row, channels `j…`."""
    return load(m.gain, m.gain_at[row] + j) * load(m.delta, m.delta_at[row] + j)


@inner
def _pair_signals(layer, m, first, rows, shift):
    """Makes `signal` of rows, and adds up the biases' gradients with their shift; returns the largest `Σ|c|`."""
    _find_signals(layer, m, first, rows)
    pairs, most = (rows + 1) // 2, zero()
    for j in range(0, layer.padded, LANES):
        target = (j // PANEL) * pairs * PANEL + j % PANEL
        total, size = zero(), zero()
        for pair in range(pairs):
            low, high = _signal(m, 2 * pair, j), zero()
            if 2 * pair + 1 < rows:
                high = _signal(m, 2 * pair + 1, j)
            total = total + low + high
            size = size + largest(low, zero() - low) + largest(high, zero() - high)
            store(m.signal, target + pair * PANEL, (low & 0xFFFF) | (high << 16))
        store(m.sums, j, total)
        most = largest(most, size)
    for j in range(layer.padded):
        m.bias_gradient[j] += np.int64(m.sums[j]) << shift
    store(m.sums, 0, most)
    return np.int64(m.sums[:LANES].max())


@inner
def _gradient(layer, m, first, rows, again, add):
    """`G` of rows whose signals are paired, added to what is there if `add`; `again`: patches must be made."""
    pairs = (rows + 1) // 2
    if layer.depthwise:
        _depthwise_gradient(layer, m, first, rows, add)
        return
    if again:
        _copy_patches(layer, m, first, rows)
    span = 2 * layer.pairs
    for pair in range(pairs):
        source, target = 2 * pair * span, pair * layer.tap_rows
        for t in range(0, span, LANES):
            low, high = load(m.patches, source + t), zero()
            if 2 * pair + 1 < rows:
                high = load(m.patches, source + span + t)
            store(m.row_pairs, target + t, (low & 0xFFFF) | (high << 16))
    for panel in range(layer.panels):
        _multiply(
            m.signal,
            panel * pairs * PANEL,
            pairs,
            m.row_pairs,
            1,
            layer.tap_rows,
            layer.taps,
            m.gradient,
            panel * layer.tap_rows * PANEL,
            PANEL,
            add,
        )


@inner
def _depthwise_gradient(layer, m, first, rows, add):
    """`G` of a depthwise layer."""
    if not add:
        m.gradient[: layer.panels * layer.tap_rows * PANEL] = 0
    for row in range(rows):
        corner = _corner(layer, m, first + row)
        for j in range(0, layer.padded, LANES):
            c, target = _signal(m, row, j), (j // PANEL) * layer.tap_rows * PANEL + j % PANEL
            for ky in range(layer.kernel_height):
                for kx in range(layer.kernel_width):
                    x = load(m.maps, corner + ky * layer.row_size + kx * layer.channels_in + j)
                    store(m.gradient, target, load(m.gradient, target) + c * x)
                    target += PANEL


@inner
def _own_steps(layer, machine, t, steps):
    """Of the steps after the state 1 that lead to a weight's LFSR, those that follow from its tap."""
    row, step = t % layer.lfsr_rows, t // layer.lfsr_rows
    return np.uint64((steps + step + row * machine.cols * machine.lfsr_stride) % PERIOD)


@inner
def _start_lfsrs(layer, machine, m, panel, slots, steps):
    """A panel's LFSRs before a layer's update: `states[slot, channel]`, the low half of taps `2·slot`."""
    for slot in range(slots):
        low, high = _own_steps(layer, machine, 2 * slot, steps), _own_steps(layer, machine, 2 * slot + 1, steps)
        for j in range(PANEL):
            walk = np.uint64(m.walks[layer.channel_base + panel * PANEL + j])
            pair = np.uint32(m.sequence[walk + low]) | np.uint32(m.sequence[walk + high]) << np.uint32(16)
            m.states[slot * PANEL + j] = np.int32(pair)


@inner
def _step_lfsrs(states):
    """Both LFSRs of every lane, one step on."""
    return ((states >> 1) & 0x7FFF7FFF) ^ ((states & 0x10001) * TAPS)


@inner
def _move(layer, machine, m, steps, down, narrow):
    """Moves the weights by `G / 2^down`, `down` 1…24; `narrow`: no weight moves by more than 16 bits hold."""
    twice = layer.lfsr_rows % 2 == 1
    slots = min(layer.lfsr_rows if twice else layer.lfsr_rows // 2, layer.pairs)
    unused, zeros = 32 - min(down, 16), max(down - 16, 0)
    for panel in range(layer.panels):
        _start_lfsrs(layer, machine, m, panel, slots, steps)
        weight = layer.weight_base + panel * layer.pairs * PANEL
        gradient = panel * layer.tap_rows * PANEL
        state = 0
        for _ in range(layer.pairs):
            for half in range(0, PANEL, LANES):
                states = load(m.states, state + half)
                stepped = _step_lfsrs(states)
                if twice:
                    stepped = _step_lfsrs(stepped)
                store(m.states, state + half, stepped)
                low, high = shift_in_zeros(states << 16, unused), shift_in_zeros(states, unused)
                if zeros > 0:
                    low, high = low << zeros, high << zeros
                low = (low + load(m.gradient, gradient + half)) >> down
                high = (high + load(m.gradient, gradient + PANEL + half)) >> down
                w = load(m.weights, weight + half)
                if narrow:
                    w = add_halves(w, (low & 0xFFFF) | (high << 16))
                else:
                    low = largest(least(((w << 16) >> 16) + low, 32767), -32768)
                    high = largest(least((w >> 16) + high, 32767), -32768)
                    w = (low & 0xFFFF) | (high << 16)
                store(m.weights, weight + half, w)
            weight += PANEL
            gradient += 2 * PANEL
            state = state + PANEL if state + PANEL < slots * PANEL else 0


@inner
def _move_wide(layer, machine, m, steps, gradient):
    """Moves the weights by `D`, int64, as it is defined."""
    bits = machine.fraction_bits
    for panel in range(layer.panels):
        for t in range(layer.taps):
            start = _own_steps(layer, machine, t, steps)
            for j in range(PANEL):
                at = layer.weight_base + (panel * layer.pairs + t // 2) * PANEL + j
                pair = m.weights[at]
                w = np.int64(np.int16(pair >> 16 if t % 2 else pair))
                walk = np.uint64(m.walks[layer.channel_base + panel * PANEL + j])
                state = np.int64(m.sequence[walk + start])
                total = (w << bits) + _random(state, bits) + gradient[(panel * layer.tap_rows + t) * PANEL + j]
                moved = _sat(total >> bits, 16)
                m.weights[at] = np.int32(pair & 0xFFFF | moved << 16 if t % 2 else (pair >> 16) << 16 | moved & 0xFFFF)


@inner
def _random(state, bits):
    """Random bits from an LFSR's state, int64."""
    return state >> (16 - bits) if bits <= 16 else state << (bits - 16)


@inner
def _sort_samples(m, count):
    """`order`: the samples in the order of their shifts."""
    for i in range(count):
        at = i
        while at > 0 and m.left[m.order[at - 1]] > m.left[i]:
            m.order[at] = m.order[at - 1]
            at -= 1
        m.order[at] = i


@inner
def _collect(layer, m, total, left):
    """Adds `G·2^left` to a total of 64 bits, which is made if there is none; returns it."""
    size = layer.panels * layer.tap_rows * PANEL
    if total.size == 0:
        total = np.zeros(size, np.int64)
    for i in range(size):
        total[i] += np.int64(m.gradient[i]) << left
    return total


@inner
def _update(layer, machine, m, count, counters):
    """Updates a layer from the inputs, gains, signals and shifts of `count` samples, and counts the steps."""
    _sort_samples(m, count)
    m.bias_gradient[: layer.padded] = 0
    total = np.empty(0, np.int64)
    filled, left = 0, np.int64(0)
    signals = layer.windows * layer.padded
    first = 0
    while first < count:
        # Samples whose shifts are close enough are summed together.
        lowest, last = m.left[m.order[first]], first
        while last < count and m.left[m.order[last]] - lowest <= SPREAD:
            sample = m.order[last]
            extra = m.left[sample] - lowest
            start = layer.delta_base + sample * signals
            for i in range(start, start + signals):
                m.delta[i] = -m.delta[i] << extra
            last += 1
        for row in range(first * layer.positions, last * layer.positions, layer.rows):
            rows = min(layer.rows, last * layer.positions - row)
            size = _pair_signals(layer, m, row, rows, lowest + layer.in_frac)
            if filled > 0 and (left != lowest or filled + size > machine.room):
                total = _collect(layer, m, total, left)
                filled = 0
            again = machine.waits != 0 or count > 1 or layer.positions > layer.rows
            _gradient(layer, m, row, rows, again, filled > 0)
            filled += size
            left = lowest
        first = last
    bits = machine.fraction_bits
    down = bits - left
    if total.size == 0 and 1 <= down <= 24:
        _move(layer, machine, m, counters[0], down, (filled * 128 + (1 << down)) >> down < 1 << 15)
    else:
        _move_wide(layer, machine, m, counters[0], _collect(layer, m, total, left))
    counters[0] += layer.row_tiles * layer.col_tiles
    at = counters[1] + machine.rows * machine.cols * machine.lfsr_stride
    for j in range(layer.channels):
        bias = np.int64(m.biases[layer.channel_base + j])
        random = _random(np.int64(m.sequence[(at + j) % PERIOD]), bits)
        m.biases[layer.channel_base + j] = _sat(((bias << bits) + random + m.bias_gradient[j]) >> bits, 16)
    counters[1] += layer.col_tiles * machine.cols


# The walk over the layers.


@inner
def _left(layer, machine, k):
    """By how much a signal is shifted: the rate."""
    coarse = layer.coarse
    return coarse + min(max(machine.fraction_bits - layer.rate_shift - k - coarse, 0), layer.left_max)


@inner
def _batch(samples, labels, layers, machine, m, counters, predictions):
    """One batch; without an update if the labels are none. Writes `predictions`."""
    count, last = samples.shape[0], layers.shape[0] - 1
    labelled, waits = labels[0] != NO_LABEL, machine.waits != 0
    _spread_input(layers[0], m, samples)
    for number in range(last + 1):
        layer = layers[number]
        trains = labelled and layer.train != 0 and (layer.is_output != 0 or not waits)
        for j in range(layer.channels):
            m.lifted[j] = np.int32(m.biases[layer.channel_base + j]) << layer.in_frac
        m.lifted[layer.channels : layer.padded] = 0
        for s in range(count):
            m.order[s] = s
        for row in range(0, count * layer.positions, layer.rows):
            rows = min(layer.rows, count * layer.positions - row)
            _forward_rows(layer, m, row, rows, m.scores[:, number])
        for s in range(count):
            score = m.scores[s, number]
            if layer.is_output:
                predictions[s] = score.argmax()
                if trains:
                    _output_signal(layer, machine, m, s, labels[s], score)
                    m.left[s] = _left(layer, machine, 0)
                continue
            if trains or layer.pool == 2:
                _form_latents(layer, m, s)
            _hand_on(layer, m, s, layer.next_start + s * layers[number + 1].map_size)
            if labelled and layer.train != 0 and machine.transposes != 0 and layer.pool == 1:
                choose(layer, m, s)
            if trains:
                m.left[s] = _left(layer, machine, _own_signal(layer, machine, m, s, labels[s], score))
        if trains and not waits:
            _update(layer, machine, m, count, counters)
    if labelled and waits:
        _learn_back(layers, machine, m, count, counters)


@inner
def _learn_back(layers, machine, m, count, counters):
    """Updates the layers, the last first, that waited for the output layer's error."""
    last = layers.shape[0] - 1
    for number in range(last, -1, -1):
        layer = layers[number]
        if layer.train == 0:
            return
        for s in range(count):
            if number < last and machine.transposes == 0:
                _fed_back(layer, machine, m, s)
            m.left[s] = _left(layer, machine, 0)
        if number > 0 and machine.transposes != 0 and layers[number - 1].train != 0:
            turn_weights(layer, m)
            for s in range(count):
                send_back(layer, layers[number - 1], m, s)
        _update(layer, machine, m, count, counters)


@inner
def _spread_input(layer, m, samples):
    """Writes samples inside the border of the first layer's map."""
    row = layer.input_width * layer.channels_in
    for s in range(samples.shape[0]):
        for y in range(layer.input_height):
            target = layer.map_base + s * layer.map_size + (y + layer.padding) * layer.row_size
            target += layer.padding * layer.channels_in
            for i in range(row):
                m.maps[target + i] = samples[s, y * row + i]


def _kept(sources: int) -> Callable[..., Any]:
    """`_run`, for a checksum of the sources that it calls.

    What is kept of it on the disk is of no use when these have changed: numba looks at a function's own file, and at
    what it closes over.
    """

    @_compiled
    def run(samples, labels, layers, machine, memory, counters, batch, predictions):
        """Batch after batch."""
        assert sources >= 0
        for first in range(0, samples.shape[0], batch):
            part = slice(first, first + batch)
            _batch(samples[part], labels[part], layers, machine[0], memory, counters, predictions[part])

    return run


CALLED = (fast, vectors, windowed_fast_back, lfsr)
"""The modules whose functions, or constants, are in the compiled code."""
_run = _kept(crc32(b"".join(Path(str(module.__file__)).read_bytes() for module in CALLED)))


class FastWindowedModel(StatefulModel):
    """`golden.windowed.WindowedModel` compiled: the same interface, the same bits.

    SpecError when the network does not fit the machine; `seed` is that of the initial parameters;
    `train_hidden=False` freezes the hidden layers.
    """

    def __init__(self, network: Network, machine: Machine, seed: int = 0, train_hidden: bool = True) -> None:
        super().__init__(network, machine, train_hidden)
        self._check_compiled()
        self.layers = windowed_layers(network, machine, train_hidden)
        self._prepare()
        self.load_parameters(initial_windowed_codes(network.shapes, seed, network.recipe.gain_shift))

    @property
    def batch(self) -> int:
        """Samples an update; those left at the end of a call of `train` are a shorter batch."""
        return self.network.recipe.batch

    def parameters(self) -> Parameters:
        """Copies of the parameters in layer order: int16 `(weight (N, taps), bias (N,))`."""
        found = []
        for number, layer in enumerate(self.layers):
            channels, taps = layer.geometry.channels, layer.geometry.taps
            weight = self._panels(self._memory.weights, number).transpose(0, 2, 1, 3)
            weight = weight.reshape(int(self._layers[number]["padded"]), -1)[:channels, :taps]
            first = int(self._layers[number]["channel_base"])
            found.append((weight.copy(), self._memory.biases[first : first + channels].copy()))
        return found

    def load_parameters(self, parameters: Parameters) -> None:
        """Replaces the parameters; the counters stay. SpecError if they are not codes of 16 bits."""
        for number, (weight, bias) in enumerate(self._checked_parameters(parameters)):
            layer = self._layers[number]
            padded = np.zeros((layer["padded"], 2 * layer["pairs"]), dtype=np.int16)
            padded[: weight.shape[0], : weight.shape[1]] = weight
            panels = padded.reshape(layer["panels"], PANEL, layer["pairs"], 2).transpose(0, 2, 1, 3)
            self._panels(self._memory.weights, number)[...] = panels
            self._memory.biases[layer["channel_base"] :][: len(bias)] = bias

    def step(self, x: np.ndarray, label: int | None = None) -> StepResult:
        """One sample, int8 `(features,)`, a batch of its own; trains on it as `run` does."""
        return self.run(np.asarray(x)[None], None if label is None else np.array([label]))[0]

    def train(self, x: np.ndarray, labels: np.ndarray) -> TrainReport:
        """Trains on samples int8 `(N, features)`, batch after batch; predictions are from before each update.

        SpecError on a machine for inference.
        """
        self._check_learns()
        return TrainReport(self._run(*checked_samples(self.network, x, np.asarray(labels)), self.batch))

    def predict(self, x: np.ndarray) -> np.ndarray:
        """The predicted class of each sample: int64 `(N,)`. Nothing is trained."""
        return self._run(*checked_samples(self.network, x, None), self._group)

    def run(self, x: np.ndarray, labels: np.ndarray | None) -> list[StepResult]:
        """Samples int8 `(N, features)`, batch after batch; trains on them unless `labels` is None or the rule
        `inference`.
        """
        codes, checked = checked_samples(self.network, x, labels)
        forms = labels is not None and self.machine.learning.scores
        formed = [layer.is_output or (layer.train and forms) for layer in self.layers]
        results = []
        for first in range(0, len(codes), self.batch):
            part = slice(first, first + self.batch)
            predictions = self._run(codes[part], checked[part], self.batch)
            for prediction, scores in zip(predictions, self._memory.scores, strict=False):
                kept = (score.copy() if there else None for there, score in zip(formed, scores, strict=True))
                results.append(StepResult(int(prediction), tuple(kept)))
        return results

    def _panels(self, weights: np.ndarray, number: int) -> np.ndarray:
        """A layer's weights as a view, int16 `(panel, pair of taps, channel, 2)`."""
        layer = self._layers[number]
        size = layer["panels"] * layer["pairs"] * PANEL
        flat = weights[layer["weight_base"] :][:size].view(np.int16)
        return flat.reshape(layer["panels"], layer["pairs"], PANEL, 2)

    def _run(self, x: np.ndarray, labels: np.ndarray, batch: int) -> np.ndarray:
        """Checked samples through the compiled code, between whose calls the state is whole."""
        predictions = np.empty(len(x), dtype=np.int64)
        most = min(SAMPLES_A_CALL, MACS_A_CALL // self.network.macs)
        step = max(1, most // batch) * batch
        for first in range(0, len(x), step):
            part = slice(first, first + step)
            arguments = self._layers, self._machine, self._memory, self.counters, batch, predictions[part]
            _run(x[part], labels[part], *arguments)
        return predictions

    def _prepare(self) -> None:
        """Lays out the memory of the compiled code."""
        machine, geometries = self.machine, [layer.geometry for layer in self.layers]
        positions = max(g.positions * _padded(g.channels) for g in geometries)
        self._group = max(1, min(GROUP, GROUP_CODES // positions))
        samples = max(self.batch, self._group)
        self._layers = _layer_table(self.layers, machine, samples, self.basis.classes)
        trained = self._lay_out_trained()
        self._machine = np.zeros(1, dtype=MACHINE)
        self._machine["rows"], self._machine["cols"] = machine.rows, machine.cols
        self._machine["fraction_bits"] = machine.fraction_bits
        self._machine["lfsr_stride"] = offset(machine, 1)
        self._machine["basis_fraction"] = self.basis.fraction_bits
        self._machine["room"] = ROOM
        rule = machine.learning
        for name in ("scores", "waits", "transposes"):
            self._machine[name] = getattr(rule, name)
        self._machine["trained_kind"] = TRAINED_KINDS[rule.trains]
        self._machine["trained_rate"] = self.network.recipe.rate_shift(rule.name) + RATE_BEYOND
        table = {name: self._layers[name] for name in LAYER.names or ()}
        padded, classes = table["padded"], self.network.classes
        patches = np.zeros(_room((table["rows"] + 4) * table["pairs"]), dtype=np.int32)
        wide = np.where(table["pairs"] > BLOCK, table["rows"] * padded, 0).max()
        latents = int((table["windows"] * padded).max())
        signals = samples * latents
        self._memory = _Memory(
            weights=np.zeros(int((table["panels"] * table["pairs"] * PANEL).sum()), dtype=np.int32),
            biases=np.zeros(int(padded.sum()), dtype=np.int16),
            trained=trained,
            tables=np.concatenate([self._table(layer) for layer in self.layers]),
            small=np.array([EXP, RCP8, RCP9], dtype=np.int64),
            sequence=np.resize(SEQUENCE, 2 * PERIOD),
            walks=np.concatenate([_walk(layer, machine) for layer in self._layers]),
            windows=np.concatenate([_window_of(g, machine) for g in geometries]).astype(np.int32),
            maps=np.zeros(int(samples * table["map_size"].sum()) + PANEL, dtype=np.int16),
            patches=patches.view(np.int16),
            patch_pairs=patches,
            z=np.zeros(_room((table["rows"] + 4) * padded), dtype=np.int32),
            wide_z=np.zeros(int(wide), dtype=np.int64),
            lifted=np.zeros(int(padded.max()), dtype=np.int32),
            a=np.zeros(_room(samples * table["positions"] * padded), dtype=np.int16),
            gain=np.zeros(_room(table["gain_base"] + samples * table["positions"] * padded), dtype=np.int16),
            sums=np.zeros(latents, dtype=np.int32),
            latents=np.zeros(latents, dtype=np.int16),
            delta=np.zeros(signals * (1 + machine.learning.transposes), dtype=np.int16),
            left=np.zeros(samples, dtype=np.int64),
            order=np.zeros(samples, dtype=np.int64),
            gain_at=np.zeros(_room(table["rows"]), dtype=np.int64),
            delta_at=np.zeros(_room(table["rows"]), dtype=np.int64),
            signal=np.zeros(_room((table["rows"] // 2 + 1) * padded), dtype=np.int32),
            row_pairs=np.zeros(_room((table["rows"] // 2 + 1) * table["tap_rows"]), dtype=np.int32),
            gradient=np.zeros(_room(table["tap_rows"] * padded), dtype=np.int32),
            bias_gradient=np.zeros(int(padded.max()), dtype=np.int64),
            states=np.zeros((machine.rows + 1) * PANEL, dtype=np.int32),
            scores=np.zeros((samples, len(geometries), classes), dtype=np.int64),
            errors=np.zeros((samples, classes), dtype=np.int64),
            vectors=np.zeros((2, self.basis.classes), dtype=np.int64),
            back=np.zeros(latents, dtype=np.int32),
            positive=np.zeros(latents, dtype=np.bool_),
            way=room_for_way_back(self._layers[1:] if machine.learning.transposes else self._layers[:0]),
        )

    def _lay_out_trained(self) -> np.ndarray:
        """The compiled code's memory of what is trained of the scores, int32, flat; `trained` are views of it.

        A basis is there as `_table` has it.
        """
        rows, sizes = self._layers[: len(self.trained)], [codes.size for codes in self.trained]
        by_class = self.machine.learning.trains == "basis"
        if by_class:
            sizes = [int(row["windows"] * row["padded"]) * self.network.classes for row in rows]
        bases, memory = _bases(sizes), np.zeros(sum(sizes), dtype=np.int32)
        rows["trained_base"], rows["trained_size"] = bases, sizes
        for number, (row, codes, base, size) in enumerate(zip(rows, self.trained, bases, sizes, strict=True)):
            kept = memory[base : base + size]
            if by_class:
                padded = kept.reshape(-1, row["windows"], row["padded"])
                kept = padded[:, :, : row["channels"]].transpose(2, 1, 0)
            kept[...] = codes.reshape(kept.shape)
            self.trained[number] = kept
        return memory

    def _table(self, layer: WindowedLayer) -> np.ndarray:
        """A hidden layer's basis as int16, flat `(I, windows, padded channels)`; nothing where none is read."""
        g = layer.geometry
        if layer.is_output or not self.machine.learning.basis:
            return np.zeros(0, dtype=np.int16)
        table = np.zeros((self.basis.classes, g.windows, _padded(g.channels)), dtype=np.int16)
        basis = self.basis.table(g.latents).reshape(-1, g.channels, g.windows)
        table[:, :, : g.channels] = basis.transpose(0, 2, 1)
        return table.ravel()


def _padded(channels: int) -> int:
    """Channels in whole panels."""
    return -(-channels // PANEL) * PANEL


def _room(sizes: np.ndarray) -> int:
    """Elements for the largest of these, and what a vector may reach beyond."""
    return int(sizes.max()) + PANEL


def _bases(sizes: Iterable[int]) -> list[int]:
    """Where things of these sizes begin, one behind the other."""
    return list(accumulate(sizes, initial=0))[:-1]


def _window_of(geometry: LayerGeometry, machine: Machine) -> np.ndarray:
    """Each position's window, `(positions,)`; of one that max-pooling drops, any."""
    windows = windows_of(geometry, machine)
    y, x = (
        np.minimum(np.arange(length) // size, count - 1)
        for length, size, count in zip(geometry.output[:2], windows.size, windows.grid, strict=True)
    )
    return (y[:, None] * windows.grid[1] + x).ravel()


def _walk(layer: np.ndarray, machine: Machine) -> np.ndarray:
    """Of the steps after the state 1 that lead to a weight's LFSR, those that follow from its channel, int32
    `(padded channels,)`.
    """
    j, stride = np.arange(int(layer["padded"])), offset(machine, 1)
    tile, column = j // machine.cols, j % machine.cols
    # Depthwise the weights are on the diagonal of the array.
    number = column * (machine.cols + 1) if layer["depthwise"] else column
    return ((tile * layer["row_tiles"] + number * stride) % PERIOD).astype(np.int32)


def _layer_table(layers: Sequence[WindowedLayer], machine: Machine, samples: int, vectors: int) -> np.ndarray:
    """The layers for the compiled code, `LAYER` `(L,)`, with room for so many samples at a time and a basis of so many
    `vectors`.
    """
    rows = []
    for layer in layers:
        g = layer.geometry
        height, width, channels_in = g.input
        row_size = (width + 2 * g.padding) * channels_in
        padded, pairs = _padded(g.channels), -(-g.taps // 2)
        most = BACK_ROWS_MAX if machine.learning.transposes else ROWS_MAX
        near = most if g.depthwise else min(most, max(64, PATCH_CODES // g.taps))
        windows = windows_of(g, machine)
        rows.append(
            dict(
                row_size=row_size,
                map_size=(height + 2 * g.padding) * row_size,
                input_height=height,
                input_width=width,
                channels_in=channels_in,
                padding=g.padding,
                kernel_height=g.kernel[0],
                kernel_width=g.kernel[1],
                stride=g.stride,
                depthwise=g.depthwise,
                height=g.output[0],
                width=g.output[1],
                channels=g.channels,
                padded=padded,
                positions=g.positions,
                grid_height=windows.grid[0],
                grid_width=windows.grid[1],
                windows=windows.count,
                pool=POOLS.index(g.pool),
                taps=g.taps,
                pairs=pairs,
                tap_rows=-(-g.taps // 4) * 4,
                panels=padded // PANEL,
                # Even, so that no pair of positions is cut.
                rows=near // 2 * 2,
                row_tiles=g.taps if g.depthwise else -(-g.taps // machine.rows),
                col_tiles=-(-g.channels // machine.cols),
                lfsr_rows=1 if g.depthwise else machine.rows,
                in_frac=g.in_frac,
                latent_shift=g.latent_shift,
                act_shift=layer.act_shift,
                score_shift=layer.score_shift,
                rate_shift=layer.rate_shift,
                coarse=layer.coarse,
                left_max=layer.left_max,
                is_output=layer.is_output,
                train=layer.train,
            )
        )
    table = np.zeros(len(rows), dtype=LAYER)
    for number, row in enumerate(rows):
        for name, value in row.items():
            table[name][number] = value
    table["map_base"] = _bases(samples * table["map_size"])
    table["window_base"] = _bases(table["positions"])
    if machine.learning.waits:
        table["gain_base"] = _bases(samples * table["positions"] * table["padded"])
    table["weight_base"] = _bases(table["panels"] * table["pairs"] * PANEL)
    table["channel_base"] = _bases(table["padded"])
    if machine.learning.transposes:
        # A layer's and the one's before it.
        signals = samples * int((table["windows"] * table["padded"]).max())
        table["delta_base"] = np.arange(len(table)) % 2 * signals
    sizes = table["windows"] * table["padded"] * vectors
    table["table_base"] = _bases(np.where(table["is_output"], 0, sizes))
    for row, after, layer, reader in zip(table, table[1:], layers, layers[1:], strict=False):
        made = layer.geometry.next_input
        row["next_start"] = after["map_base"] + after["padding"] * (after["row_size"] + after["channels_in"])
        # A fully connected layer reads the map as one element of many channels.
        row["next_row_size"] = after["row_size"] if reader.geometry.input == made else made[1] * made[2]
    return table

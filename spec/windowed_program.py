"""The layer program of convolutions and batches, and where a network's data is in a machine's memories.

``docs/convolutions.md``, section 6. A descriptor fills ``WINDOWED_WORDS`` words of 32 bits, that of a machine
whose rule waits some more (:func:`descriptor_kind`); descriptors stand so many words apart in program memory
that the next power of two holds one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

from spec import layout
from spec.errors import SpecError
from spec.geometry import LayerGeometry
from spec.machine import INPUT_FRAC, Machine
from spec.network import Network
from spec.program import Descriptor, Field, Fit, LayerDescriptor, check_kind, map_bases, need_scores
from spec.windowed import WindowedLayer, Windows, windowed_layers, windows_of

__all__ = [
    "BACK_FIELDS",
    "MAX_WINDOW",
    "WAITING_FIELDS",
    "WINDOWED_FIELDS",
    "WINDOWED_STRIDE",
    "WINDOWED_WORDS",
    "BackDescriptor",
    "WaitingDescriptor",
    "WindowedDescriptor",
    "WindowedProgram",
    "compile_windowed",
    "descriptor_kind",
    "position_interval",
]

MAX_WINDOW = 1024
"""Most positions of a latent window: the columns' sums are as wide."""
_MAX_COUNT = (1 << 16) - 1
"""What a descriptor's 16 bits hold, and the register INPUT_LENGTH."""

WINDOWED_FIELDS: dict[str, Field] = {
    "kernel_height": Field(0, 0, 3),
    "kernel_width": Field(0, 3, 3),
    "stride": Field(0, 6, 2),
    "padding": Field(0, 8, 3),
    "depthwise": Field(0, 11, 1),
    "in_channels": Field(1, 0, 16),
    "input_height": Field(1, 16, 8),
    "input_width": Field(1, 24, 8),
    "pitch": Field(2, 0, 16),
    "excess": Field(2, 16, 16),
    "step_ky": Field(0, 12, 6),
    "step_kx": Field(0, 18, 3),
    "step_ci": Field(3, 0, 16),
    "rewind_ky": Field(0, 21, 6),
    "rewind_kx": Field(0, 27, 3),
    "rewind_ci": Field(3, 16, 16),
    "x_base": Field(4, 0, 16),
    "x_stride": Field(4, 16, 16),
    "height": Field(5, 0, 8),
    "width": Field(5, 8, 8),
    "window_height": Field(5, 16, 8),
    "window_width": Field(5, 24, 8),
    "max_pool": Field(6, 0, 1),
    "pool_latent": Field(6, 1, 1),
    "is_output": Field(6, 2, 1),
    "train": Field(6, 3, 1),
    "positions": Field(7, 0, 16),
    "windows": Field(7, 16, 16),
    "latents": Field(8, 0, 16),
    "channels": Field(8, 16, 16),
    "col_tiles": Field(9, 0, 16),
    "steps": Field(9, 16, 16),
    "interval": Field(10, 0, 16),
    "last_channels": Field(6, 4, 6),
    "slope_stride": Field(11, 0, 21),
    "signal_stride": Field(12, 0, 17),
    "a_base": Field(13, 0, 16),
    "a_stride": Field(13, 16, 16),
    "a_pitch": Field(14, 0, 16),
    "next_channels": Field(14, 16, 16),
    "w_base": Field(15, 0, 16),
    "b_base": Field(15, 16, 16),
    "act_shift": Field(6, 10, 5),
    "latent_shift": Field(6, 15, 4),
    "score_shift": Field(6, 19, 5),
    "rate_shift": Field(6, 24, 6, signed=True),
    "left_max": Field(10, 16, 4),
    "coarse": Field(6, 30, 1),
    "in_frac": Field(10, 20, 3),
}
"""The layout of a descriptor; bits that no field names are 0."""

WAITING_FIELDS: dict[str, Field] = {
    "slope_base": Field(16, 0, 20),
    "trains_below": Field(16, 20, 1),
}
"""Further fields of a descriptor, of a machine whose rule ``waits``."""

BACK_FIELDS: dict[str, Field] = {
    "index_base": Field(17, 0, 20),
    "grid_width": Field(17, 20, 8),
    "signal_base": Field(18, 0, 16),
    "below_base": Field(18, 16, 16),
    "below_windows": Field(19, 0, 16),
    "below_channels": Field(19, 16, 16),
    "below_stride": Field(20, 0, 17),
    "row_tiles": Field(21, 0, 16),
}
"""Further fields of a descriptor, of a machine that backpropagates."""


@dataclass(frozen=True)
class WindowedDescriptor(Descriptor):
    """One layer as the sequencer sees it; ``docs/convolutions.md``, section 6, says what each field is.

    Bases and strides of maps are words of a bank, pitches elements. Element ``e`` of sample b's map is in
    bank ``e % rows`` at ``x_base + b*x_stride + e // rows``; PE(t % rows, j % cols) holds ``w[j][t]`` at
    ``w_base + (j // cols)*steps + t // rows`` (depthwise PE(j % cols, j % cols), ``+ t``); channel ``j``'s
    bias is in bank ``j % cols`` at ``b_base + j // cols``. ``excess`` and ``rewind_ky`` are modulo their
    fields. ``window_height`` and ``window_width`` are those of a whole window or, where that is smaller, of
    the map.
    """

    fields = WINDOWED_FIELDS

    kernel_height: int
    kernel_width: int
    stride: int
    padding: int
    depthwise: int
    in_channels: int
    input_height: int
    input_width: int
    pitch: int
    excess: int
    step_ky: int
    step_kx: int
    step_ci: int
    rewind_ky: int
    rewind_kx: int
    rewind_ci: int
    x_base: int
    x_stride: int
    height: int
    width: int
    window_height: int
    window_width: int
    max_pool: int
    pool_latent: int
    is_output: int
    train: int
    positions: int
    windows: int
    latents: int
    channels: int
    col_tiles: int
    steps: int
    interval: int
    last_channels: int
    slope_stride: int
    signal_stride: int
    a_base: int
    a_stride: int
    a_pitch: int
    next_channels: int
    w_base: int
    b_base: int
    act_shift: int
    latent_shift: int
    score_shift: int
    rate_shift: int
    left_max: int
    coarse: int
    in_frac: int


WINDOWED_WORDS = WindowedDescriptor.words()
WINDOWED_STRIDE = WindowedDescriptor.spacing()


@dataclass(frozen=True)
class WaitingDescriptor(WindowedDescriptor):
    """That of a rule with which hidden layers wait for the output layer's error.

    The layer's slope bits begin at word ``slope_base``; ``trains_below``: whether layers before it train after it.
    """

    fields = WINDOWED_FIELDS | WAITING_FIELDS

    slope_base: int
    trains_below: int


@dataclass(frozen=True)
class BackDescriptor(WaitingDescriptor):
    """That of backpropagation: ``docs/rules.md``, section 6.

    The layer's indices begin at word ``index_base``, its signals at ``signal_base``; ``grid_width`` windows are a row
    of them. The map that it reads was made by the layer below it, of ``below_channels`` channels and
    ``below_windows`` windows, whose signals begin at ``below_base``, a sample's ``below_stride`` words apart; all 0
    in the first layer. ``row_tiles``: of the channels read.
    """

    fields = WaitingDescriptor.fields | BACK_FIELDS

    index_base: int
    grid_width: int
    signal_base: int
    below_base: int
    below_windows: int
    below_channels: int
    below_stride: int
    row_tiles: int


for _kind in (WindowedDescriptor, WaitingDescriptor, BackDescriptor):
    assert tuple(_kind.fields) == tuple(field.name for field in fields(_kind))


def descriptor_kind(machine: Machine) -> type[Descriptor]:
    """The descriptors that a machine reads."""
    return _kind_of(machine) if machine.windowed else LayerDescriptor


def _kind_of(machine: Machine) -> type[WindowedDescriptor]:
    """Those of a machine with ``gradient_bits``."""
    if machine.learning.transposes:
        return BackDescriptor
    return WaitingDescriptor if machine.learning.waits else WindowedDescriptor


@dataclass(frozen=True)
class WindowedProgram:
    """What the host writes before the first sample: descriptors, and registers of the same names.

    A sample has ``input_length`` elements in rows of ``input_row``; in memory ``input_gap`` elements that
    are not written stand between two rows. It takes a slot of ``input_words`` words a bank in a ring of
    ``input_slots`` slots from word 0 on. ``batch`` samples are a batch.
    """

    layers: tuple[WindowedDescriptor, ...]
    input_length: int
    input_row: int
    input_gap: int
    input_words: int
    input_slots: int
    batch: int


def position_interval(layer: LayerGeometry, machine: Machine, is_output: bool) -> int:
    """Cycles from one position to the next in forward, I.

    The steps of a position, and as many that a window's latents, which leave one a cycle and ``cols`` of
    them, have left before the next window ends, whichever of the windows that is. An output layer's scores leave
    as latents do; where nothing reads a hidden layer's latents they are not formed.
    """
    if not (machine.learning.latents or layer.pool == "latent" or is_output):
        return layout.steps(layer, machine.rows)
    windows = windows_of(layer, machine)
    (wh, ww), (gh, gw) = windows.size, windows.grid
    # The map's edge cuts the last window of each axis.
    smallest = (windows.height - (gh - 1) * wh) * (windows.width - (gw - 1) * ww)
    return max(layout.steps(layer, machine.rows), -(-machine.cols // smallest))


def compile_windowed(network: Network, machine: Machine, train_hidden: bool = True) -> WindowedProgram:
    """Places a network with convolutions or batches on a machine with ``gradient_bits``.

    ``train_hidden=False`` freezes the hidden layers. :class:`SpecError`, one line, for what does not fit,
    naming everything that is too small, by how much, and the value of the machine's parameter that would
    fit; and for a network or machine of the other kind.
    """
    check_kind(network, machine)
    rows, cols, batch, geometry = machine.rows, machine.cols, network.recipe.batch, network.geometry
    tiles = [-(-layer.channels // cols) for layer in geometry]
    windows = [windows_of(layer, machine) for layer in geometry]
    input_words, slots = layout.words(geometry[0], rows), 2 * batch
    rule = machine.learning
    maps = [layout.words(layer, rows) for layer in geometry[1:]]
    bases, map_words = map_bases([batch * size for size in maps], slots * input_words, rule.waits)
    weights = [count * layout.steps(layer, rows) for layer, count in zip(geometry, tiles, strict=True)]

    fit = Fit(network, machine)
    if rows & (rows - 1) or cols > rows:
        fit.problem(f"rows and cols are {rows} and {cols}: rows must be a power of two, and cols no more")
    fit.need("max_layers", len(geometry), "layers")
    fit.need("max_batch", batch, "samples of a batch")
    sides = (side for layer in geometry for side in (*layer.input[:2], *layer.output[:2]))
    fit.need("max_side", max(sides), "height or width of the largest map")
    widest = max(max(layer.taps, layer.input[2]) for layer in geometry)
    fit.need("max_fan_in", widest, "taps or input channels of the widest layer")
    fit.need("max_neurons", max(layer.latents for layer in geometry), "latents of the widest layer")
    fit.need("weight_depth", sum(weights), "weight words a PE")
    # n words in each bank are (n - 1)*cols + 1 words or more.
    fit.need("bias_depth", (sum(tiles) - 1) * cols + 1, f"biases, {sum(tiles)} words in each of {cols} banks")
    kept = "all hidden" if rule.waits else "two"
    what = f"words a bank: {slots} inputs and {kept} layers' maps, each of {batch} samples"
    fit.need("activation_depth", map_words, what)
    slopes = [batch * count * _slope_words(layer, machine) for count, layer in zip(tiles, geometry, strict=True)]
    signals = [batch * count * found.count for count, found in zip(tiles, windows, strict=True)]
    indices = [size * (layer.pool == "max") for size, layer in zip(signals, geometry, strict=True)]
    slope_bases, slope_words = map_bases(slopes, 0, kept=True)
    index_bases, index_words = map_bases(indices, 0, kept=True)
    signal_bases, signal_words = map_bases(signals, 0, kept=False)
    if rule.learns:
        words = slope_words if rule.waits else max(slopes)
        kept = "all layers" if rule.waits else "a layer"
        fit.need("slope_depth", words, f"positions times column tiles of {kept} and batch")
        words = signal_words if rule.transposes else max(signals)
        kept = "two layers" if rule.transposes else "a layer"
        fit.need("signal_depth", words, f"windows times column tiles of {kept} and batch")
    if rule.transposes:
        fit.need("index_depth", index_words, "2x2 blocks times column tiles of all layers and batch")
    need_scores(fit, network, machine)
    scored = len(geometry) if rule.scores else 1
    beats = batch * (scored * network.classes + 1)
    what = "beats of a batch's results: every layer's class scores and the summary of each sample"
    fit.need("result_fifo_depth", beats, what)
    if network.features > _MAX_COUNT:
        fit.problem(f"a sample has {network.features} elements, {_MAX_COUNT} at most")
    for number, layer in enumerate(geometry):
        _check_layer(fit, number, layer, machine)
    layers: Sequence[WindowedLayer] = ()
    try:
        layers = windowed_layers(network, machine, train_hidden)
    except SpecError as error:
        fit.problem(str(error))
    fit.refuse()

    descriptors = []
    x_base, x_stride, w_base, b_base = 0, input_words, 0, 0
    for number, layer in enumerate(layers):
        if layer.is_output:
            output = dict(a_base=0, a_stride=0, a_pitch=0, next_channels=0)
        else:
            following, shape = geometry[number + 1], layer.geometry.next_input
            output = dict(
                a_base=bases[number],
                a_stride=maps[number],
                a_pitch=layout.written_pitch(shape, following, rows),
                next_channels=shape[2],
            )
        own = {}
        if rule.waits:
            own = dict(slope_base=slope_bases[number], trains_below=int(train_hidden and number > 0))
        if rule.transposes:
            own |= dict(
                index_base=index_bases[number],
                grid_width=windows[number].grid[1],
                signal_base=signal_bases[number],
                below_base=signal_bases[number - 1] if number else 0,
                below_windows=windows[number - 1].count if number else 0,
                below_channels=geometry[number - 1].channels if number else 0,
                below_stride=tiles[number - 1] * windows[number - 1].count if number else 0,
                row_tiles=tiles[number] if layer.geometry.depthwise else -(-layer.geometry.input[2] // rows),
            )
        descriptors.append(
            _kind_of(machine)(
                **_geometry_fields(layer.geometry, machine, layer.is_output),
                **own,
                **output,
                x_base=x_base,
                x_stride=x_stride,
                w_base=w_base,
                b_base=b_base,
                is_output=int(layer.is_output),
                train=int(layer.train),
                act_shift=layer.act_shift,
                score_shift=layer.score_shift,
                rate_shift=layer.rate_shift,
                left_max=layer.left_max,
                coarse=int(layer.coarse > 0),
            )
        )
        x_base, x_stride = output["a_base"], output["a_stride"]
        w_base += weights[number]
        b_base += tiles[number]
    _, width, channels = geometry[0].input
    return WindowedProgram(
        layers=tuple(descriptors),
        input_length=network.features,
        input_row=width * channels,
        input_gap=layout.pitch(geometry[0], rows) - width * channels,
        input_words=input_words,
        input_slots=slots,
        batch=batch,
    )


def _slope_words(layer: LayerGeometry, machine: Machine) -> int:
    """Words of slope bits of a sample and column tile: of a block's largest pixel, where that alone has a signal."""
    windows = windows_of(layer, machine)
    return windows.count if machine.learning.transposes and layer.pool == "max" else windows.positions


def _check_layer(fit: Fit, number: int, layer: LayerGeometry, machine: Machine) -> None:
    """What no machine's parameter bounds but the widths of the datapath do."""
    rows = machine.rows
    height, width = _window(windows_of(layer, machine))
    aligned = layer.depthwise or layer.kernel == (1, 1) or layer.input[2] % rows == 0
    if machine.learning.transposes and number and not aligned:
        text = f"layers[{number}] reads {layer.input[2]} channels, which under bp must be a multiple of rows, {rows}"
        fit.problem(f"{text}: {-(-layer.input[2] // rows) * rows} in the layer before would fit")
    if height * width > MAX_WINDOW:
        text = f"layers[{number}] has windows of {height}x{width} positions, {MAX_WINDOW} at most"
        fit.problem(f"{text}: a latent grid of more windows would fit")
    if layout.pitch(layer, rows) > _MAX_COUNT:
        taken = f"{layout.pitch(layer, rows)} elements from row to row"
        fit.problem(f"layers[{number}] reads a map with {taken}, {_MAX_COUNT} at most")
    # A bias is shifted left by in_frac; Machine.acc_bits holds it up to the input's fraction bits.
    if layer.in_frac > INPUT_FRAC:
        fit.problem(
            f"layers[{number}] reads latents with {layer.in_frac} fraction bits, {INPUT_FRAC} at most: an "
            f"activation_fraction smaller by {layer.in_frac - INPUT_FRAC} in the layer before would fit"
        )


def _window(windows: Windows) -> tuple[int, int]:
    """Height and width of the largest window: a whole one, unless the map is smaller.

    So they never exceed the map's sides, and the walk is the same, as the map's edge ends every window.
    """
    return min(windows.size[0], windows.height), min(windows.size[1], windows.width)


def _geometry_fields(layer: LayerGeometry, machine: Machine, is_output: bool) -> dict[str, int]:
    """The fields that the layer's shape alone decides."""
    rows, cols = machine.rows, machine.cols
    tiles = -(-layer.channels // cols)
    step, rewind = layout.step_digits(layer, rows), layout.rewind_digits(layer, rows)
    windows = windows_of(layer, machine)
    window_height, window_width = _window(windows)

    def modulo(name: str, value: int) -> int:
        return value % (1 << WINDOWED_FIELDS[name].width)

    return dict(
        kernel_height=layer.kernel[0],
        kernel_width=layer.kernel[1],
        stride=layer.stride,
        padding=layer.padding,
        depthwise=int(layer.depthwise),
        in_channels=layer.input[2],
        input_height=layer.input[0],
        input_width=layer.input[1],
        pitch=layout.pitch(layer, rows),
        excess=modulo("excess", layout.excess(layer, rows)),
        step_ky=step.ky,
        step_kx=step.kx,
        step_ci=step.ci,
        rewind_ky=modulo("rewind_ky", rewind.ky),
        rewind_kx=rewind.kx,
        rewind_ci=rewind.ci,
        height=windows.height,
        width=windows.width,
        window_height=window_height,
        window_width=window_width,
        max_pool=int(layer.pool == "max"),
        pool_latent=int(layer.pool == "latent"),
        positions=windows.positions,
        windows=windows.count,
        # Of use to rules with a signal a latent; a map's pixels may be more than the field holds.
        latents=0 if machine.learning.transposes else windows.count * layer.channels,
        channels=layer.channels,
        col_tiles=tiles,
        steps=layout.steps(layer, rows),
        interval=position_interval(layer, machine, is_output),
        last_channels=layer.channels - (tiles - 1) * cols,
        slope_stride=tiles * _slope_words(layer, machine),
        signal_stride=tiles * windows.count,
        latent_shift=layer.latent_shift,
        in_frac=layer.in_frac,
    )

"""A machine: the array's shape, its memories and widths, and the device it is built for, if any."""

from __future__ import annotations

import os
from dataclasses import MISSING, dataclass, fields, replace
from typing import Any

from spec.errors import SpecError, check_choice, check_int, check_number, check_text, located
from spec.qformat import QFormat, signed_bits
from spec.rules import BACK_BITS, RULES, Rule
from spec.yaml_loader import check_keys, find_file, load_yaml

__all__ = [
    "ACT_BITS",
    "ACT_FRAC",
    "ACTIVATION_FORMAT",
    "BIAS_LEFT_SHIFT",
    "DEPTHS",
    "ERROR_BITS",
    "ERROR_FRAC",
    "INPUT_FORMAT",
    "INPUT_FRAC",
    "SCORE_BITS",
    "SCORE_FRAC",
    "SCORE_KEYS",
    "WEIGHT_BITS",
    "WEIGHT_FORMAT",
    "WEIGHT_FRAC",
    "WINDOWED_KEYS",
    "Device",
    "Machine",
    "load_machine",
]

ACT_BITS = 8
"""An activation, an input pixel and a learning signal before its shift."""
ACT_FRAC = 4
"""Fraction bits of a hidden activation."""
INPUT_FRAC = 7
"""Fraction bits of an input pixel."""
WEIGHT_BITS = 16
WEIGHT_FRAC = 14
SCORE_BITS = 20
SCORE_FRAC = 9
"""Fraction bits of an output layer's score (a hidden layer's is an integer)."""
ERROR_BITS = 10
ERROR_FRAC = 8
BIAS_LEFT_SHIFT = 7
"""A bias is shifted left by this much to line up with the products."""

WEIGHT_FORMAT = QFormat(WEIGHT_BITS - WEIGHT_FRAC, WEIGHT_FRAC)
ACTIVATION_FORMAT = QFormat(ACT_BITS - ACT_FRAC, ACT_FRAC)
INPUT_FORMAT = QFormat(ACT_BITS - INPUT_FRAC, INPUT_FRAC)

_FAMILIES = {"ecp5": ("25k", "45k", "85k"), "ice40": ("up5k",)}
WINDOWED_KEYS = ("max_batch", "max_side", "slope_depth", "signal_depth", "index_depth")
"""Keys that only machines with ``gradient_bits`` have."""
SCORE_KEYS = {"vectors": "matrix", "classifier_depth": "basis"}
"""Keys that only rules need that train a part of the class scores, and what these train (`spec.rules.Rule.trains`)."""
DEPTHS = ("activation_depth", "slope_depth", "signal_depth", "index_depth", "classifier_depth")
"""Keys of memories that rules need of different sizes."""
# |weight * activation| <= 2^15 * 2^7, reached by the two most negative codes.
_PRODUCT_LOG2 = WEIGHT_BITS - 1 + ACT_BITS - 1
_LARGEST_KERNEL = 5 * 5


@dataclass(frozen=True)
class Device:
    """The FPGA a machine is placed on.

    ``part`` is nextpnr's name (``85k``, ``up5k``), ``speed`` its speed grade (ECP5: 6, 7 or 8;
    iCE40: None), ``clock_mhz`` the frequency that place and route has to reach, in MHz.
    """

    family: str
    part: str
    package: str
    speed: int | None
    clock_mhz: float

    def __post_init__(self) -> None:
        check_choice("family", self.family, _FAMILIES)
        check_choice("part", self.part, _FAMILIES[self.family])
        check_text("package", self.package)
        if self.family == "ecp5":
            check_int("speed", self.speed, 6, 8)
        elif self.speed is not None:
            raise SpecError("speed", f"must be left out for {self.family}", self.speed)
        check_number("clock_mhz", self.clock_mhz, 1, 1000)


@dataclass(frozen=True)
class Machine:
    """A machine, validated when it is made; all depths are in words, all widths in bits.

    ``weight_depth`` words (16 bits) a PE, ``activation_depth`` words (8 bits) in each of the
    ``rows`` banks, ``bias_depth`` words (16 bits); ``max_neurons`` is the widest layer and
    ``max_fan_in`` the widest input it can run, ``max_layers`` the longest program.
    ``delta_bits`` is the width of a shifted learning signal, ``fraction_bits`` the number of random
    bits below a weight, ``result_fifo_depth`` the beats of the result FIFO. ``gradient_bits`` is the
    width of a sum of gradients over positions and samples; 0 for a machine that has none, and runs
    fully connected layers at batch 1 only. ``rule`` is the learning rule it is built for, a name of
    :data:`spec.rules.RULES`; with ``inference`` ``delta_bits`` and ``fraction_bits`` are of no use, nor are
    ``slope_depth`` and ``signal_depth``, and ``gradient_bits`` only says which datapath it is.

    With ``gradient_bits`` (``docs/convolutions.md``, section 6): ``max_batch`` samples of a batch,
    ``max_side`` the largest height or width of a map, ``slope_depth`` words of ``cols`` slope bits,
    ``signal_depth`` words (a signal) in each of ``cols`` banks, ``index_depth`` (of use to ``bp``) words of ``cols``
    indices of 2 bits; ``bias_depth`` is in ``cols`` banks then, ``max_neurons`` counts a layer's latents and
    ``max_fan_in`` its taps or the channels that it reads, whichever are more. Without it these five must be left out.

    ``vectors`` and ``classifier_depth`` are of use to single rules (:mod:`spec.scores`): the basis vectors of
    ``lls_mxm``, 0 for as many as classes, and the rows of ``local_classifier``'s memory, a latent's entries each.

    ``rules``: pairs of a rule and what it has of :data:`DEPTHS`, as pairs, for :meth:`built_for`.
    """

    name: str
    rows: int
    cols: int
    weight_depth: int
    activation_depth: int
    max_neurons: int
    max_fan_in: int
    bias_depth: int
    max_layers: int
    delta_bits: int
    fraction_bits: int
    result_fifo_depth: int
    device: Device | None = None
    gradient_bits: int = 0
    max_batch: int = 1
    max_side: int = 32
    slope_depth: int = 1024
    signal_depth: int = 64
    index_depth: int = 1
    rule: str = "lls"
    vectors: int = 0
    classifier_depth: int = 1024
    rules: tuple[tuple[str, tuple[tuple[str, int], ...]], ...] = ()

    def __post_init__(self) -> None:
        check_text("name", self.name)
        # A descriptor's row mask is one 32-bit word; columns and depths fill 16-bit fields. The
        # LFSRs need R*C + 1 <= 1025 different starting points of the 65535: always so here.
        check_int("rows", self.rows, 1, 32)
        check_int("cols", self.cols, 1, 32)
        # Advancing the LFSRs writes words back as they were; five such steps are in flight.
        check_int("weight_depth", self.weight_depth, 5, 1 << 16)
        check_int("activation_depth", self.activation_depth, 4, 1 << 16)
        # max_neurons < 2^16 keeps the norm below 2^30, so msb <= 29 and k <= 15: every shift by
        # score_shift + k fits the 5 bits (0 to 31) of the softmax's shifter.
        check_int("max_neurons", self.max_neurons, 2, (1 << 16) - 1)
        check_int("max_fan_in", self.max_fan_in, 1, (1 << 16) - 1)
        check_int("bias_depth", self.bias_depth, 2, 1 << 16)
        check_int("max_layers", self.max_layers, 1, 64)
        # The unshifted signal has 8 bits, or BACK_BITS; a shifted one meets an activation in an 18x18 (or 16x16)
        # multiplier, which 18 bits is the most that any of the targets has.
        check_choice("rule", self.rule, RULES)
        check_int("delta_bits", self.delta_bits, self.signal_bits, 18)
        check_int("gradient_bits", self.gradient_bits, 0, 64)
        if 0 < self.gradient_bits < 24:
            raise SpecError("gradient_bits", "must be 0, or 24 to 64", self.gradient_bits)
        if self.windowed and self.learning.transposes:
            # Its lane also takes 8-fold signals to the PEs, on their way back.
            check_int("delta_bits", self.delta_bits, self.back_bits, 18)
        # The random bits are the top bits of a 16-bit LFSR. Sums of gradients are finer: zeros
        # follow its bits.
        check_int("fraction_bits", self.fraction_bits, 1, 24 if self.gradient_bits else 16)
        check_int("result_fifo_depth", self.result_fifo_depth, 4, 1 << 16)
        # A network's batch is at most 128; a side fills 8 bits of a descriptor.
        check_int("max_batch", self.max_batch, 1, 128)
        check_int("max_side", self.max_side, 1, 255)
        check_int("slope_depth", self.slope_depth, 1, 1 << 20)
        check_int("signal_depth", self.signal_depth, 1, 1 << 16)
        check_int("index_depth", self.index_depth, 1, 1 << 20)
        if self.vectors != 0:
            check_int("vectors", self.vectors, 2, 255)
        check_int("classifier_depth", self.classifier_depth, 2, 1 << 16)
        if not self.windowed:
            defaults = {field.name: field.default for field in fields(self)}
            for key in WINDOWED_KEYS:
                if getattr(self, key) != defaults[key]:
                    raise SpecError(key, "must be left out without gradient_bits", getattr(self, key))
        if not isinstance(self.rules, tuple):
            raise SpecError("rules", "must be a tuple of rules and their depths, as pairs", self.rules)
        if self.device is not None and not isinstance(self.device, Device):
            raise SpecError("device", "must be a device or nothing", self.device)

    def built_for(self, rule: str) -> Machine:
        """The machine for another rule: alike but for what ``rules`` says of it."""
        return self if rule == self.rule else replace(self, rule=rule, **dict(dict(self.rules).get(rule, ())))

    @property
    def windowed(self) -> bool:
        """Whether it has the datapath of ``docs/convolutions.md``, else that of ``docs/architecture.md``."""
        return self.gradient_bits > 0

    @property
    def own_keys(self) -> tuple[str, ...]:
        """The keys that a machine of its kind and rule uses, but for ``device``, ``rule`` and ``rules``."""
        trains = self.learning.trains
        unused = [key for key, needs in SCORE_KEYS.items() if needs != trains]
        others = ("device", "rule", "rules", *unused, *(() if self.windowed else WINDOWED_KEYS))
        return tuple(field.name for field in fields(self) if field.name not in others)

    @property
    def pes(self) -> int:
        """Processing elements, ``rows * cols``."""
        return self.rows * self.cols

    @property
    def lfsrs(self) -> int:
        """LFSRs: one a PE and, last, the bias unit's."""
        return self.pes + 1

    @property
    def learning(self) -> Rule:
        """What its rule needs."""
        return RULES[self.rule]

    @property
    def signal_bits(self) -> int:
        """A learning signal before its shift."""
        return BACK_BITS if self.learning.transposes else ACT_BITS

    @property
    def lane_bits(self) -> int:
        """The column lanes: a shifted signal; without learning the 1 that chooses a host access's column."""
        return self.delta_bits if self.learning.learns else 2

    @property
    def random_bits(self) -> int:
        """Random bits below a weight in a PE's adder; 0 without learning."""
        return self.fraction_bits if self.learning.learns else 0

    @property
    def operand_bits(self) -> int:
        """The multiplier's wide operand: a weight going forward, a shifted signal in update."""
        return max(WEIGHT_BITS, self.lane_bits)

    @property
    def narrow_bits(self) -> int:
        """The multiplier's other operand: an activation; on the way back a weight."""
        return WEIGHT_BITS if self.learning.transposes else ACT_BITS

    @property
    def product_bits(self) -> int:
        """A product: an n-bit times an m-bit signed number never needs more than n + m bits."""
        back = WEIGHT_BITS + BACK_BITS if self.learning.transposes else 0
        return max(self.operand_bits + ACT_BITS, back)

    @property
    def max_delta(self) -> int:
        """Largest magnitude of a shifted signal: as many bits, 127 or 2047, as it may be shifted by."""
        return ((1 << (self.signal_bits - 1)) - 1) << (self.delta_bits - self.signal_bits)

    @property
    def psum_bits(self) -> int:
        """A partial sum on its way down a column.

        Forward: ``rows`` products of at most 2^22 each; on its way back, along a row, ``cols`` of at
        most 2^26. Update: ``w * 2^F + rand`` lies within ``±2^(15+F)``, the product within
        ``±max_delta * 2^7``. Host access: a word times 2^F, and 1. Sums of gradients: what
        :mod:`spec.windowed` lets fit.
        """
        rule = self.learning
        forward = self.rows << _PRODUCT_LOG2
        back = self.cols << self._back_product_log2 if rule.transposes else 0
        word = 1 << (WEIGHT_BITS - 1 + self.random_bits)
        update = word + (self.max_delta << (ACT_BITS - 1)) if rule.learns else word + 1
        return max(signed_bits(max(forward, back, update)), self.gradient_bits * rule.learns)

    @property
    def back_sum_bits(self) -> int:
        """A sum at a row's end on the way back: ``max_neurons`` products, with convolutions those of each tap."""
        products = self.max_neurons * (_LARGEST_KERNEL if self.windowed else 1)
        return signed_bits(products << self._back_product_log2)

    @property
    def back_bits(self) -> int:
        """A signal on its way back: with convolutions the slope's 1 and 1/8 are 8 and 1."""
        return BACK_BITS + 3 * self.windowed

    @property
    def _back_product_log2(self) -> int:
        """The largest product of a weight and a signal on its way back."""
        return WEIGHT_BITS - 1 + self.back_bits - 1

    @property
    def acc_bits(self) -> int:
        """A pre-activation: ``max_fan_in`` products of at most 2^22, and a bias of 2^15 * 2^7.

        Never narrower than a partial sum, since host reads pass through the accumulators too.
        """
        return max(self.psum_bits, signed_bits((self.max_fan_in + 1) << _PRODUCT_LOG2))

    @property
    def bias_sum_bits(self) -> int:
        """A bias being updated: ``±2^(15+F)`` and a shifted signal, shifted by at most 7 more."""
        wide = (1 << (WEIGHT_BITS - 1 + self.fraction_bits)) + (self.max_delta << BIAS_LEFT_SHIFT)
        return signed_bits(wide)

    @property
    def norm_bits(self) -> int:
        """The sum of squares, unsigned: ``max_neurons`` terms of at most 2^14."""
        return (self.max_neurons << (2 * (ACT_BITS - 1))).bit_length()

    @property
    def row_bits(self) -> int:
        """Address bits that choose a row, ``ceil(log2 rows)``."""
        return (self.rows - 1).bit_length()

    @property
    def col_bits(self) -> int:
        """Address bits that choose a column, ``ceil(log2 cols)``."""
        return (self.cols - 1).bit_length()

    @property
    def weight_addr_bits(self) -> int:
        """Address bits of a PE's weight memory."""
        return (self.weight_depth - 1).bit_length()

    @property
    def activation_addr_bits(self) -> int:
        """Address bits of an activation bank."""
        return (self.activation_depth - 1).bit_length()

    @property
    def bias_addr_bits(self) -> int:
        """Address bits of the bias memory."""
        return (self.bias_depth - 1).bit_length()

    @property
    def bias_bank_depth(self) -> int:
        """Words of each of the ``cols`` bias banks of a machine with ``gradient_bits``."""
        return -(-self.bias_depth // self.cols)

    @property
    def bias_bank_addr_bits(self) -> int:
        """Address bits of a bias bank; 0 for a single word."""
        return (self.bias_bank_depth - 1).bit_length()

    @property
    def slope_addr_bits(self) -> int:
        """Address bits of the memory of slope bits; 0 for a single word."""
        return (self.slope_depth - 1).bit_length()

    @property
    def signal_addr_bits(self) -> int:
        """Address bits of a bank of shifted signals; 0 for a single word."""
        return (self.signal_depth - 1).bit_length()

    @property
    def index_addr_bits(self) -> int:
        """Address bits of the memory of max-pooling's indices; 0 for a single word."""
        return (self.index_depth - 1).bit_length()

    @property
    def sample_bits(self) -> int:
        """Bits of a sample's number within a batch, ``0 … max_batch - 1``; at least 1."""
        return max(1, (self.max_batch - 1).bit_length())

    @property
    def side_bits(self) -> int:
        """Bits of a row's or a column's number within a map, ``0 … max_side - 1``; at least 1."""
        return max(1, (self.max_side - 1).bit_length())

    @property
    def neuron_bits(self) -> int:
        """Bits of a neuron's number within a layer, ``0 … max_neurons - 1``."""
        return (self.max_neurons - 1).bit_length()

    @property
    def layer_bits(self) -> int:
        """Bits of a layer's number, ``0 … max_layers - 1``; at least 1."""
        return max(1, (self.max_layers - 1).bit_length())


def load_machine(name_or_path: str | os.PathLike[str]) -> Machine:
    """Reads a preset (``tiny``, ``digits``, ``mnist``, …) or a YAML file."""
    path = find_file("machines", name_or_path)
    values = load_yaml(path)
    required = [field.name for field in fields(Machine) if field.default is MISSING]
    with located(file=str(path)):
        check_keys(values, required, ["device", "gradient_bits", "rule", "rules", *SCORE_KEYS, *WINDOWED_KEYS])
        device = values.get("device")
        if device is not None:
            with located(path="device"):
                check_keys(device, ("family", "part", "package", "clock_mhz"), ("speed",))
                device = Device(**{"speed": None, **device})
        machine = Machine(**{**values, "device": device, "rules": ()})
        return _with_rules(machine, values.get("rules", {}))


def _with_rules(machine: Machine, rules: Any) -> Machine:
    """The machine with the depths that its file names for rules: its own, and those to build others with."""
    with located(path="rules"):
        named: dict[str, dict[str, int]] = {}
        for rule, values in check_keys(rules, (), RULES).items():
            with located(path=rule):
                named[rule] = check_keys(values, (), DEPTHS)
        # Every rule has a value for each of these, so that any can be built from any other.
        keys = sorted({key for values in named.values() for key in values})
        of_file = {key: getattr(machine, key) for key in keys}
        depths = {rule: of_file | named.get(rule, {}) for rule in RULES}
        for rule in named:
            with located(path=rule):
                replace(machine, rule=rule, **depths[rule])
    pairs = tuple((rule, tuple(values.items())) for rule, values in depths.items() if values)
    return replace(machine, rules=pairs, **depths[machine.rule])

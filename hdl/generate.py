"""Writes a machine as Verilog, with all that a driver has to know of it beside it."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from types import ModuleType
from typing import Any

from amaranth.lib.data import StructLayout
from amaranth.lib.wiring import In

from hdl.core import Core, core_for
from hdl.streams import RESULT_LAYOUT, SAMPLE_LAYOUT, SUMMARY_LAYOUT
from hdl.verilog import to_verilog
from spec import lfsr, memory_map, timing, windowed_timing
from spec.basis import Basis
from spec.machine import (
    ACT_BITS,
    ACTIVATION_FORMAT,
    ERROR_BITS,
    ERROR_FRAC,
    INPUT_FORMAT,
    SCORE_BITS,
    SCORE_FRAC,
    WEIGHT_BITS,
    WEIGHT_FORMAT,
    WINDOWED_KEYS,
    Machine,
)
from spec.network import NO_LABEL, Network
from spec.program import Program, encode, program_for
from spec.qformat import QFormat
from spec.rules import BACK_FRAC
from spec.scores import TRAINED_BITS, TRAINED_FRAC, score_basis, trained_shapes
from spec.windowed_program import WindowedProgram, descriptor_kind

__all__ = ["TOP", "Generated", "describe", "generate"]

TOP = "entrain_core"
"""Name of the top module and of the files."""
_SCHEMA = 1
_WAIVERS = Path(__file__).with_name("lint.vlt")
_PORTS = {
    "bus__req_valid": "a request is offered; it is taken at the rising edge at which req_ready is 1 as well",
    "bus__req_ready": "a request would be taken; does not depend on req_valid",
    "bus__req_write": "1: write, 0: read",
    "bus__req_addr": "word address, see memory_map",
    "bus__req_data": "what a write writes; no matter for a read",
    "bus__rsp_valid": "the answer to the oldest unanswered read is here, in this cycle only: it cannot be held up",
    "bus__rsp_data": "the answer, while rsp_valid is 1",
    "samples__valid": "a beat is offered; it is taken at the rising edge at which ready is 1 as well",
    "samples__ready": "a beat would be taken: CTRL.enable is set and an input buffer is free",
    "samples__payload": "a pixel with last = 0; behind the last pixel the sample's label with last = 1",
    "results__valid": "a beat is offered; it stays until the rising edge at which ready is 1 as well",
    "results__ready": "a beat would be taken",
    "results__payload": "a class score with last = 0 (only with CTRL.scores); last = 1 ends a sample's result",
    "phase": "what the sequencer is doing, see timing.phases",
    "layer": "for which layer",
}
_STREAMS: dict[str, tuple[StructLayout, dict[str, str]]] = {
    "samples__payload": (
        SAMPLE_LAYOUT,
        {
            "data": "a pixel (formats.input), or with last = 1 the label; no_label: infer only",
            "last": "the beat is the sample's last",
        },
    ),
    "results__payload": (
        RESULT_LAYOUT,
        {
            "data": "a class score, signed, layer by layer, class 0 first; or with last = 1 the summary",
            "last": "the beat is the result's last, the summary",
        },
    ),
}
_WINDOWED_PORTS = {
    **_PORTS,
    "samples__ready": "a beat would be taken: CTRL.enable is set, a slot of the input ring is free, and no sample "
    "without a label waits",
    "samples__payload": "an element with last = 0: row by row, in a row pixel by pixel, of a pixel channel by channel; "
    "behind the last element the sample's label with last = 1",
    "results__payload": "a class score with last = 0 (only with CTRL.scores), or a sample's summary with last = 1",
}
_WINDOWED_STREAMS: dict[str, tuple[StructLayout, dict[str, str]]] = {
    "samples__payload": (
        SAMPLE_LAYOUT,
        {
            "data": "an element (formats.input), or with last = 1 the label; no_label: infer only",
            "last": "the beat is the sample's last",
        },
    ),
    "results__payload": (
        RESULT_LAYOUT,
        {
            "data": "a class score, signed, class 0 first, see protocol.results; or with last = 1 the summary",
            "last": "the beat is a sample's summary",
        },
    ),
}
_PROTOCOL = {
    "batch": "A batch is BATCH samples with labels, in the order in which they come, and trains once. A sample "
    "without a label (no_label) ends it early: those in front of it are a shorter batch, then it is a batch of its "
    "own and trains nothing; the core takes no sample behind it until it has begun. So a host that has fewer than "
    "BATCH samples left writes their number to BATCH before it sends them, or sends one without a label. A batch "
    "begins when the results of BATCH samples (of one, if it has no label) fit the result FIFO. BATCH may be written "
    "whenever no batch waits half complete.",
    "results": "With CTRL.scores the class scores come first: {scores}. Then one beat with last = 1 a sample, in "
    "order: the prediction, with the parameters from before the batch. A batch of one sample is as it is without "
    "batches.",
    "ring": "Samples wait in INPUT_SLOTS slots of INPUT_WORDS words a bank, BATCH or more; rows of INPUT_ROW elements "
    "have INPUT_GAP elements between them. Slots are free again when the first layer is done with the batch. A write "
    "of INPUT_SLOTS or INPUT_WORDS waits until no batch is worked on, and empties the ring.",
    "weights": "Weight [j, t] of a layer is in PE(t % rows, j % cols), word w_base + (j // cols) * steps + t // rows; "
    "depthwise in PE(j % cols, j % cols), word w_base + (j // cols) * steps + t. All other words of the layer's PEs "
    "must be 0. Taps t run over the kernel's rows, columns, and the channels read.",
    "biases": "The bias of channel j is in bank j % cols, word b_base + j // cols.",
}
"""What a driver has to know of machines with batches, beyond what `docs/architecture.md` says of streams."""
_SCORE_STARTS = {
    "factors": "1 in every row",
    "matrix": "of I rows: 1 in row k % I of lane k, elsewhere 0",
    "basis": "the basis: entry [c, i] in lane c of row i",
}
"""What a driver writes to the trained part of a layer's class scores before training, by `Rule.trains`."""
_HIDDEN_SCORES = (
    "layer by layer, in a layer sample by sample, of each layer that trains (with labels) or is the output layer"
)
_OUTPUT_SCORES = "sample by sample, of the output layer"
_SUMMARY = {
    "prediction": "the class with the highest score of the output layer, with the weights from before this sample",
    "label": "the sample's label, as it came",
}


@dataclass(frozen=True)
class _Kind:
    """What the two kinds of machine do not share in a description."""

    ports: Mapping[str, str]
    streams: Mapping[str, tuple[StructLayout, dict[str, str]]]
    bias_bits: tuple[str, ...]
    timing: ModuleType


_DENSE = _Kind(_PORTS, _STREAMS, ("bias_addr_bits",), timing)
_WINDOWED = _Kind(_WINDOWED_PORTS, _WINDOWED_STREAMS, ("bias_bank_addr_bits",), windowed_timing)


@dataclass(frozen=True)
class Generated:
    """The files that :func:`generate` wrote, or found to be right already.

    ``lint``: waivers for Verilator's lint. ``replaced``: what the folder held before, where that was the description of
    something else; None where it held none, or the same.
    """

    verilog: Path
    description: Path
    lint: Path
    replaced: str | None = None


def describe(core: Core, network: Network, text: str) -> dict[str, object]:
    """What stands in the `.json` beside the Verilog `text` of `core`: plain values only."""
    machine, basis = core.machine, core.basis
    kind, descriptor = _WINDOWED if machine.windowed else _DENSE, descriptor_kind(machine)
    program = program_for(network, machine)
    rule = machine.learning
    derived = ("psum_bits", "acc_bits", *(("norm_bits",) if rule.scores else ()), "weight_addr_bits",
               "activation_addr_bits", *kind.bias_bits,
               *(("slope_addr_bits", "signal_addr_bits") if machine.windowed and rule.learns else ()),
               "row_bits", "col_bits", "neuron_bits", "layer_bits",
               *(("back_sum_bits",) if rule.transposes else ()),
               *(("index_addr_bits",) if rule.transposes and machine.windowed else ()))  # fmt: skip
    left_out = ("device",) if machine.windowed else ("device", *WINDOWED_KEYS)
    ports = [
        _port(kind, "__".join(map(str, path)), member.flow == In, value)
        for path, member, value in core.signature.flatten(core)
    ]
    described: dict[str, object] = {
        "schema": _SCHEMA,
        "module": TOP,
        "verilog": {"file": f"{TOP}.v", "sha256": _sha256(text)},
        "clock": "clk (rising edge)",
        "reset": "rst (synchronous, active high, one cycle is enough; all memories keep their contents)",
        "ports": ports,
        "machine": {
            **{f.name: getattr(machine, f.name) for f in fields(machine) if f.name not in left_out},
            "device": None
            if machine.device is None
            else {f.name: getattr(machine.device, f.name) for f in fields(machine.device)},
            "derived": {name: getattr(machine, name) for name in derived},
        },
        "network": {
            "name": network.name,
            "input_shape": list(network.input_shape),
            "classes": network.classes,
            **({"basis": _basis(basis, machine)} if rule.basis else {}),
            **({"trained_scores": _trained_scores(network, machine)} if rule.trains else {}),
            "shapes": [list(shape) for shape in network.shapes],
            "recipe": {f.name: getattr(network.recipe, f.name) for f in fields(network.recipe)},
            "no_label": NO_LABEL,
        },
        "formats": {
            "input": str(INPUT_FORMAT),
            **_formats(network, machine),
            "output_score": str(QFormat(SCORE_BITS - SCORE_FRAC, SCORE_FRAC)),
            **_signal_formats(machine),
        },
        **({"random": _random(machine)} if rule.learns else {}),
        "timing": {
            **_constants(kind, machine, basis),
            "phases": {phase.name.lower(): int(phase) for phase in timing.Phase},
        },
        "memory_map": memory_map.describe(machine),
        "descriptor": {
            "words": descriptor.words(),
            "stride": descriptor.spacing(),
            "fields": {
                name: {"word": f.word, "lsb": f.lsb, "width": f.width, "signed": f.signed}
                for name, f in descriptor.fields.items()
            },
        },
        "program": {
            "registers": _registers(program),
            "layers": [
                {
                    "fields": {name: getattr(layer, name) for name in descriptor.fields},
                    "words": list(encode(layer)),
                    "address": memory_map.program_address(machine, number, 0),
                }
                for number, layer in enumerate(program.layers)
            ],
        },
    }
    if machine.windowed:
        scores = _HIDDEN_SCORES if rule.scores else _OUTPUT_SCORES
        described["protocol"] = {name: text.format(scores=scores) for name, text in _PROTOCOL.items()}
    return described


def generate(
    machine: Machine, network: Network, out_dir: str | os.PathLike[str]
) -> Generated:
    """Writes `entrain_core.v`, `.json` and `.vlt` into `out_dir`, which is made if need be.

    The Verilog depends on the machine, the network's classes and, where the rule reads one, its basis; the `.json`
    adds the layer program that runs this network, on either kind of machine. A file that is right already is left
    alone, with its time stamp.

    Raises
    ------
    SpecError
        When the network does not fit the machine; nothing is written then.
    """
    program_for(network, machine)
    core = core_for(machine, network.classes, score_basis(network, machine))
    text = to_verilog(core, TOP)
    description = json.dumps(describe(core, network, text), indent=1) + "\n"
    folder = Path(out_dir)
    folder.mkdir(parents=True, exist_ok=True)
    verilog, json_file, lint = (folder / f"{TOP}.{suffix}" for suffix in ("v", "json", "vlt"))
    replaced = _described(json_file) if json_file.exists() and json_file.read_bytes() != description.encode() else None
    _write_if_changed(verilog, text)
    _write_if_changed(json_file, description)
    _write_if_changed(lint, _WAIVERS.read_text())
    return Generated(verilog, json_file, lint, replaced)


def _described(path: Path) -> str:
    """Of what machine and network a description is."""
    try:
        old = json.loads(path.read_text())
        return f"machine {old['machine']['name']}, network {old['network']['name']}"
    except (ValueError, KeyError, TypeError):
        return "something else"


def _port(kind: _Kind, name: str, is_input: bool, value: Any) -> dict[str, object]:
    """A port; those of the streams with the fields of their payload."""
    port: dict[str, object] = {
        "name": name,
        "direction": "input" if is_input else "output",
        "width": len(value.as_value() if hasattr(value, "as_value") else value),
        "description": kind.ports[name],
    }
    if name in kind.streams:
        port["fields"] = _fields(*kind.streams[name])
    if name == "results__payload":
        port["summary"] = _fields(SUMMARY_LAYOUT, _SUMMARY)
    return port


def _fields(layout: StructLayout, descriptions: dict[str, str]) -> dict[str, dict[str, object]]:
    """Where the members of a layout lie."""
    return {
        str(name): {"lsb": field.offset, "width": field.width, "description": descriptions[str(name)]}
        for name, field in layout
    }


def _formats(network: Network, machine: Machine) -> dict[str, object]:
    """Of what differs between the kinds: activations, weights, biases."""
    weight = str(WEIGHT_FORMAT)
    if machine.windowed:
        layers: list[dict[str, object]] = [
            {"input": str(_act_format(layer.in_frac)), "activation": str(_act_format(layer.act_frac))}
            for layer in network.geometry
        ]
        if machine.learning.transposes:
            # A latent's signal is shared by its pixels; in front of it signals have so many bits more below the point.
            frac = BACK_FRAC
            for layer, formats in zip(reversed(network.geometry), reversed(layers), strict=True):
                formats["delta_fraction_bits"] = frac
                frac += layer.area_log2 if layer.pool == "latent" else 0
        return {"layers": layers, "weight": weight, "bias": weight}
    return {
        "activation": str(ACTIVATION_FORMAT),
        "weight": weight,
        "bias_first_layer": str(_bias_format(INPUT_FORMAT)),
        "bias": str(_bias_format(ACTIVATION_FORMAT)),
    }


def _basis(basis: Basis, machine: Machine) -> dict[str, object]:
    """The basis, as far as the machine holds it."""
    return {
        "kind": basis.kind,
        "fraction_bits": basis.fraction_bits,
        "sha256": basis.sha256(machine.max_neurons),
        "columns": machine.max_neurons,
    }


def _trained_scores(network: Network, machine: Machine) -> dict[str, object]:
    """Of each hidden layer the rows that it has in the memory of trained scores, and what they begin as."""
    layers, first = [], 0
    for rows, lanes in trained_shapes(network, machine):
        layers.append({"first_row": first, "rows": rows, "lanes": lanes})
        first += rows
    return {"layers": layers, "start": _SCORE_STARTS[machine.learning.trains]}


def _signal_formats(machine: Machine) -> dict[str, str]:
    """Of what a rule makes its signals of."""
    rule = machine.learning
    if not rule.learns:
        return {}
    bits = machine.signal_bits
    hidden_frac, output_frac = (BACK_FRAC, BACK_FRAC) if rule.transposes else (6, 7)
    # With convolutions each layer has its own.
    hidden = {"delta_hidden": str(QFormat(bits - hidden_frac, hidden_frac))}
    return {
        **({"hidden_score": str(QFormat(SCORE_BITS, 0))} if rule.scores else {}),
        **({"trained_score": str(QFormat(TRAINED_BITS - TRAINED_FRAC, TRAINED_FRAC))} if rule.trains else {}),
        "error": str(QFormat(ERROR_BITS - ERROR_FRAC, ERROR_FRAC)),
        **({} if machine.windowed and rule.transposes else hidden),
        "delta_output": str(QFormat(bits - output_frac, output_frac)),
    }


def _random(machine: Machine) -> dict[str, object]:
    """The LFSRs: what they are, and where they begin."""
    return {
        "bits": lfsr.STATE_BITS,
        "taps": lfsr.TAPS,
        "fraction_bits": machine.fraction_bits,
        "reset_states": [int(lfsr.SEQUENCE[lfsr.offset(machine, n)]) for n in range(machine.lfsrs)],
    }


def _constants(kind: _Kind, machine: Machine, basis: Basis) -> dict[str, int]:
    """The latencies of the machine's phases, by their names in `spec.timing` or its like, those of its rule."""
    constants = {name: value for name, value in vars(kind.timing).items() if name.isupper() and isinstance(value, int)}
    rule = machine.learning
    plain = {name: constants.pop(f"PLAIN_{name}") for name in ("SIGNAL_TAIL", "ARGMAX_TAIL")}
    if not rule.scores:
        constants |= plain
    if rule.trains:
        more = timing.score_cycles(rule.trains, basis.classes)
        constants |= {name: constants[name] + cycles for name, cycles in zip(plain, more, strict=True)}
    if rule.learns and not machine.windowed:
        constants |= {
            "DELTA_LATENCY": timing.delta_latency(machine.rule),
            "UPDATE_TAIL": timing.update_tail(machine.rule),
        }
    has = {
        "BACK_TAIL": rule.transposes,
        "LABEL_TAIL": rule.error == "label",
        "FEEDBACK_TAIL": rule.error == "output",
        **dict.fromkeys(("SIGNAL_TAIL", "DELTA_LATENCY", "UPDATE_TAIL"), rule.learns),
    }
    return {name: value for name, value in constants.items() if has.get(name, True)}


def _registers(program: Program | WindowedProgram) -> dict[str, int]:
    """What the host writes to registers beside the descriptors, but for CTRL."""
    registers = {
        "LAYERS": len(program.layers),
        "INPUT_LENGTH": program.input_length,
        "INPUT_WORDS": program.input_words,
    }
    if isinstance(program, WindowedProgram):
        registers |= {
            "BATCH": program.batch,
            "INPUT_SLOTS": program.input_slots,
            "INPUT_ROW": program.input_row,
            "INPUT_GAP": program.input_gap,
        }
    return registers


def _act_format(fraction_bits: int) -> QFormat:
    return QFormat(ACT_BITS - fraction_bits, fraction_bits)


def _bias_format(inputs: QFormat) -> QFormat:
    return QFormat(WEIGHT_BITS - 7 - inputs.fraction_bits, 7 + inputs.fraction_bits)


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _write_if_changed(path: Path, text: str) -> None:
    if path.exists() and path.read_bytes() == text.encode():
        return
    # Renamed into place, so that nothing ever reads half a file.
    part = path.with_name(path.name + ".part")
    part.write_text(text)
    part.replace(path)

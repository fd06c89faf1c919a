"""Writes a machine as Verilog, with all that a driver has to know of it beside it."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass, fields
from pathlib import Path

from amaranth.lib.wiring import In

from hdl.core import Core
from hdl.verilog import to_verilog
from spec import lfsr, memory_map, timing
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
    Machine,
)
from spec.network import NO_LABEL, Network
from spec.program import DESCRIPTOR_STRIDE, DESCRIPTOR_WORDS, FIELDS, compile_program, encode
from spec.qformat import QFormat

__all__ = ["TOP", "Generated", "describe", "generate"]

TOP = "entrain_core"
"""Name of the top module and of the files."""
_SCHEMA = 1


@dataclass(frozen=True)
class Generated:
    """The files that :func:`generate` wrote, or found to be right already."""

    verilog: Path
    description: Path


def describe(core: Core, network: Network, text: str) -> dict[str, object]:
    """What stands in the `.json` beside the Verilog `text` of `core`: plain values only."""
    machine, basis = core.machine, core.basis
    program = compile_program(network, machine)
    derived = ("psum_bits", "acc_bits", "norm_bits", "weight_addr_bits", "activation_addr_bits",
               "bias_addr_bits", "row_bits", "col_bits", "neuron_bits", "layer_bits")  # fmt: skip
    ports = [
        {
            "name": "__".join(str(part) for part in path),
            "direction": "input" if member.flow == In else "output",
            "width": len(value.as_value() if hasattr(value, "as_value") else value),
        }
        for path, member, value in core.signature.flatten(core)
    ]
    return {
        "schema": _SCHEMA,
        "module": TOP,
        "verilog": {"file": f"{TOP}.v", "sha256": _sha256(text)},
        "clock": "clk",
        "reset": "rst (synchronous, active high)",
        "ports": ports,
        "machine": {
            **{f.name: getattr(machine, f.name) for f in fields(machine) if f.name != "device"},
            "device": None
            if machine.device is None
            else {f.name: getattr(machine.device, f.name) for f in fields(machine.device)},
            "derived": {name: getattr(machine, name) for name in derived},
        },
        "network": {
            "name": network.name,
            "input_shape": list(network.input_shape),
            "classes": network.classes,
            "basis": {
                "kind": network.basis,
                "fraction_bits": basis.fraction_bits,
                "sha256": basis.sha256(machine.max_neurons),
                "columns": machine.max_neurons,
            },
            "shapes": [list(shape) for shape in network.shapes],
            "recipe": {f.name: getattr(network.recipe, f.name) for f in fields(network.recipe)},
            "no_label": NO_LABEL,
        },
        "formats": {
            "input": str(INPUT_FORMAT),
            "activation": str(ACTIVATION_FORMAT),
            "weight": str(WEIGHT_FORMAT),
            "bias_first_layer": str(_bias_format(INPUT_FORMAT)),
            "bias": str(_bias_format(ACTIVATION_FORMAT)),
            "output_score": str(QFormat(SCORE_BITS - SCORE_FRAC, SCORE_FRAC)),
            "hidden_score": str(QFormat(SCORE_BITS, 0)),
            "error": str(QFormat(ERROR_BITS - ERROR_FRAC, ERROR_FRAC)),
            "delta_hidden": str(QFormat(ACT_BITS - 6, 6)),
            "delta_output": str(QFormat(ACT_BITS - 7, 7)),
        },
        "random": {
            "bits": lfsr.STATE_BITS,
            "taps": lfsr.TAPS,
            "fraction_bits": machine.fraction_bits,
            "reset_states": [
                int(lfsr.SEQUENCE[lfsr.offset(machine, n)]) for n in range(machine.lfsrs)
            ],
        },
        "timing": {
            **{
                name: value
                for name, value in vars(timing).items()
                if name.isupper() and isinstance(value, int)
            },
            "phases": {phase.name.lower(): int(phase) for phase in timing.Phase},
        },
        "memory_map": memory_map.describe(machine),
        "descriptor": {
            "words": DESCRIPTOR_WORDS,
            "stride": DESCRIPTOR_STRIDE,
            "fields": {
                name: {"word": f.word, "lsb": f.lsb, "width": f.width, "signed": f.signed}
                for name, f in FIELDS.items()
            },
        },
        "program": {
            "registers": {
                "LAYERS": len(program.layers),
                "INPUT_LENGTH": program.input_length,
                "INPUT_WORDS": program.input_words,
            },
            "layers": [
                {
                    "fields": {name: getattr(layer, name) for name in FIELDS},
                    "words": list(encode(layer)),
                    "address": memory_map.program_address(machine, number, 0),
                }
                for number, layer in enumerate(program.layers)
            ],
        },
    }


def generate(
    machine: Machine, network: Network, out_dir: str | os.PathLike[str]
) -> Generated:
    """Writes `entrain_core.v` and `entrain_core.json` into `out_dir`, which is made if need be.

    The Verilog depends on the machine and the network's classes and basis; the `.json` adds the layer
    program that runs this network. A file that is right already is left alone, with its time stamp.

    Raises
    ------
    SpecError
        When the network does not fit the machine; nothing is written then.
    """
    compile_program(network, machine)
    core = Core(machine, network.classes, Basis(network.basis, network.classes))
    text = to_verilog(core, TOP)
    description = json.dumps(describe(core, network, text), indent=1) + "\n"
    folder = Path(out_dir)
    folder.mkdir(parents=True, exist_ok=True)
    generated = Generated(folder / f"{TOP}.v", folder / f"{TOP}.json")
    _write_if_changed(generated.verilog, text)
    _write_if_changed(generated.description, description)
    return generated


def _bias_format(inputs: QFormat) -> QFormat:
    return QFormat(WEIGHT_BITS - 7 - inputs.fraction_bits, 7 + inputs.fraction_bits)


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _write_if_changed(path: Path, text: str) -> None:
    if path.exists() and path.read_text() == text:
        return
    # Renamed into place, so that nothing ever reads half a file.
    part = path.with_name(path.name + ".part")
    part.write_text(text)
    part.replace(path)

"""hdl.verilog on the array: one module for all PEs, and the same text every time."""

import re
from dataclasses import replace

from hdl.dense.array import Array
from hdl.verilog import to_verilog
from spec.machine import load_machine

TINY = load_machine("tiny")


def test_all_pes_share_one_module():
    text = to_verilog(Array(TINY), "dut")
    assert re.findall(r"^module dut_pe\b", text, re.M) == ["module dut_pe"]
    instances = re.findall(r"^\s*dut_pe\s+(\w+)\s*\(", text, re.M)
    assert instances == ["pe_0_0", "pe_0_1", "pe_1_0", "pe_1_1"]
    assert text.count("reg [15:0] words [31:0];") == 1


def test_every_port_is_connected():
    text = to_verilog(Array(TINY), "dut")
    header = re.search(r"^module dut_pe\((.*?)\);", text, re.S | re.M)
    instance = re.search(r"dut_pe\s+pe_1_0\s*\((.*?)\);", text, re.S)
    assert header is not None and instance is not None
    ports = header[1].split(", ")
    assert len(ports) == 15
    assert sorted(re.findall(r"\.(\w+)\(", instance[1])) == sorted(ports)


def test_large_memories_are_listed_once():
    lines = [
        to_verilog(Array(replace(TINY, weight_depth=depth)), "dut").count("\n")
        for depth in (64, 1024)
    ]
    assert lines[1] - lines[0] == 1024 - 64


def test_the_text_is_the_same_every_time():
    assert to_verilog(Array(TINY), "dut") == to_verilog(Array(TINY), "dut")

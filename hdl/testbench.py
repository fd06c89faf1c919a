"""A plain Verilog test bench for a generated core: plays bus writes and samples, and compares every result.

It is what a host does in hardware, too: everything happens at the rising edge, and only there.
"""

from __future__ import annotations

from collections.abc import Iterable

from hdl.streams import RESULT_LAYOUT, SAMPLE_LAYOUT
from spec.machine import Machine
from spec.memory_map import address_bits

__all__ = ["BENCH", "LOAD", "RESULTS", "SAMPLES", "hex_lines", "testbench"]

BENCH = "entrain_tb.v"
LOAD = "entrain_load.hex"
SAMPLES = "entrain_samples.hex"
RESULTS = "entrain_results.hex"

_TEXT = """\
// Plays {load} over the bus and {samples} into the core, and compares what comes out with
// {results}. Run it where these files are.
`timescale 1ns / 1ns

module entrain_tb;
  localparam WRITES = {writes}, BEATS = {beats}, EXPECTED = {expected};
  localparam QUIET = {quiet};  // so many cycles without a result are a failure

  reg [63:0] load [0:WRITES-1];  // address, data
  reg [{sample_high}:0] sample [0:BEATS-1];
  reg [{result_high}:0] expected [0:EXPECTED-1];
  initial begin
    $readmemh("{load}", load);
    $readmemh("{samples}", sample);
    $readmemh("{results}", expected);
  end

  reg clk = 0, rst = 1;
  always #5 clk = !clk;
  always @(posedge clk) rst <= 0;  // one cycle of reset

  integer write = 0, beat = 0, result = 0, wrong = 0, quiet = 0;

  // A request stays until the edge at which both valid and ready are 1; so does a beat.
  wire req_valid = !rst && write < WRITES;
  wire [63:0] request = load[req_valid ? write : 0];
  wire req_ready, sample_ready, result_valid;
  // The core takes no samples before the last write, CTRL.enable.
  wire sample_valid = !rst && beat < BEATS;
  wire [{result_high}:0] got;

  {top} core (
    .clk(clk), .rst(rst),
    .bus__req_valid(req_valid), .bus__req_ready(req_ready), .bus__req_write(1'b1),
    .bus__req_addr(request[{address_top}:32]), .bus__req_data(request[31:0]),
    .bus__rsp_valid(), .bus__rsp_data(),
    .samples__valid(sample_valid), .samples__ready(sample_ready),
    .samples__payload(sample[sample_valid ? beat : 0]),
    .results__valid(result_valid), .results__ready(1'b1), .results__payload(got),
    .phase(), .layer()
  );

  always @(posedge clk) if (!rst) begin
    quiet <= quiet + 1;
    if (req_valid && req_ready) begin
      write <= write + 1;
      quiet <= 0;
    end
    if (sample_valid && sample_ready) beat <= beat + 1;
    if (result_valid !== 1'b0) begin
      quiet <= 0;
      result <= result + 1;
      if (got !== expected[result]) begin
        wrong = wrong + 1;
        $display("result %0d: %h, expected %h", result, got, expected[result]);
      end
      if (result == EXPECTED - 1) begin
        if (wrong == 0) $display("PASS: %0d results, all as expected", EXPECTED);
        else $display("FAIL: %0d of %0d results differ", wrong, EXPECTED);
        $finish;
      end
    end else if (quiet > QUIET) begin
      $display("FAIL: no result for %0d cycles, %0d of %0d came", QUIET, result, EXPECTED);
      $finish;
    end
  end
endmodule
"""


def testbench(
    machine: Machine, top: str, writes: int, beats: int, expected: int, quiet: int | None = None
) -> str:
    """The bench for so many bus writes, beats of samples and results; ``top`` is the core's module.

    It reads the files :data:`LOAD`, :data:`SAMPLES` and :data:`RESULTS`. ``quiet``: so many cycles without a result
    are a failure, by default more than any program of the machine takes; a core that hangs is found sooner with less.
    """
    return _TEXT.format(
        top=top, writes=writes, beats=beats, expected=expected, load=LOAD, samples=SAMPLES, results=RESULTS,
        quiet=_longest(machine) if quiet is None else quiet,
        sample_high=SAMPLE_LAYOUT.size - 1, result_high=RESULT_LAYOUT.size - 1,
        address_top=32 + address_bits(machine) - 1,
    )  # fmt: skip


def _longest(machine: Machine) -> int:
    """Cycles that no sample, or batch of samples, takes."""
    words = machine.weight_depth * max(machine.rows, machine.cols)
    if machine.windowed:
        words *= machine.max_batch * machine.max_side**2
    # Both passes over every weight, and as much again for what a layer adds. Verilog's integers have 32 bits.
    return min(4 * words + 1000 * machine.max_layers, (1 << 31) - 1)


def hex_lines(values: Iterable[int], bits: int) -> str:
    """A file for ``$readmemh``: a number of so many bits a line."""
    return "".join(f"{value:0{-(-bits // 4)}x}\n" for value in values)

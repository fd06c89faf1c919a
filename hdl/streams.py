"""Beats of the streams between host and core."""

from amaranth.lib import data

from spec.machine import ACT_BITS

__all__ = ["LABEL_BITS", "RESULT_LAYOUT", "SAMPLE_LAYOUT", "SUMMARY_LAYOUT"]

LABEL_BITS = 8
SAMPLE_LAYOUT = data.StructLayout({"data": ACT_BITS, "last": 1})
"""A beat of the `samples` stream: a pixel (s8), or the label with `last = 1`."""
RESULT_LAYOUT = data.StructLayout({"data": 32, "last": 1})
"""A beat of the `results` stream: a score, sign extended, or with `last = 1` a SUMMARY_LAYOUT."""
SUMMARY_LAYOUT = data.StructLayout({"prediction": LABEL_BITS, "label": LABEL_BITS})
"""A result's last beat, from bit 0 of its data up."""

"""The hardware, in Amaranth: what docs/architecture.md describes, block by block.

This package takes every number from ``spec`` and never imports ``golden``: the two are independent witnesses.
"""

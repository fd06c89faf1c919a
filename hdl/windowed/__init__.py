"""The datapath for convolutions and mini-batches: docs/convolutions.md, section 6."""

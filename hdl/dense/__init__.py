"""The datapath for fully connected layers, one sample at a time: docs/architecture.md."""

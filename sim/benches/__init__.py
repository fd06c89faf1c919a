"""cocotb benches: each module drives one block, or the whole core, and compares it with the golden
model."""

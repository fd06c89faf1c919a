"""The page's arithmetic once more, in plain integers: what the tests of units that compute signals share."""

EXP = [round(4096 * 2 ** (-(j + 0.5) / 16)) for j in range(16)]
RCP9 = [round(512 / (1 + (j + 0.5) / 16)) for j in range(16)]
RCP8 = [round(256 / (1 + (j + 0.5) / 16)) for j in range(16)]


def rnd(v, s):
    """v / 2^s, half up."""
    return (v + (1 << (s - 1))) >> s if s else v


def sat(v, bits):
    """Saturated to so many bits, signed."""
    return max(-(1 << (bits - 1)), min((1 << (bits - 1)) - 1, v))


def msb(v):
    """Place of the leading one; 0 for 0."""
    return max(0, v.bit_length() - 1)


def clip(v, most=127):
    """Within plus and minus `most`."""
    return max(-most, min(most, v))

"""docs/rules.md, section 7, once more: the class scores of a hidden layer and what of them is trained, one number at a
time.

It shares nothing with the models but the basis; whoever changes the page changes both.
"""

import numpy as np

from spec.basis import Basis

RULES = ("lls_m", "lls_mxm", "local_classifier")


def rnd(value: int, shift: int) -> int:
    return (value + 2**shift // 2) // 2**shift


def sat(value: int, bits: int) -> int:
    return sorted((-(2 ** (bits - 1)), value, 2 ** (bits - 1) - 1))[1]


def wild_codes(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Trained parameters of every size up to saturation, corner codes among them."""
    codes = rng.normal(0, 2.0 ** rng.integers(19, 24), shape)
    codes = np.where(rng.random(shape) < 0.1, rng.choice([-(2**23), 2**23 - 1, 0, -1, -256], shape), codes)
    return np.clip(np.round(codes), -(2**23), 2**23 - 1).astype(np.int32)


class ExactScores:
    """Of one layer of `n` latents, under `lls` or one of RULES; `theta` is what is trained, `(rows, lanes)`."""

    def __init__(self, rule: str, basis: str, classes: int, n: int, vectors: int = 0):
        self.rule, self.classes = rule, range(classes)
        kind = Basis(basis, vectors if rule == "lls_mxm" and vectors else classes)
        self.table, self.frac = kind.table(n).tolist(), kind.fraction_bits
        self.vectors = range(len(self.table))
        self.theta: list[list[int]] = []
        if rule == "lls_m":
            self.theta = [[2**20] for _ in self.classes]
        if rule == "lls_mxm":
            self.theta = [[2**20 * (k % len(self.table) == i) for k in self.classes] for i in self.vectors]
        if rule == "local_classifier":
            self.theta = [[self.table[c][t] * 2 ** (20 - self.frac) for c in self.classes] for t in range(n)]

    def used(self, row: int, lane: int) -> int:
        return self.theta[row][lane] // 2**8

    def scores(self, a: list[int]) -> list[int]:
        raw = [rnd(sum(b * v for b, v in zip(row, a, strict=True)), self.frac) for row in self.table]
        v = [sat(value, 18) for value in raw]
        if self.rule == "lls_m":
            return [sat(rnd(self.used(c, 0) * v[c], 12), 20) for c in self.classes]
        if self.rule == "lls_mxm":
            return [sat(rnd(sum(self.used(i, k) * v[i] for i in self.vectors), 12), 20) for k in self.classes]
        if self.rule == "local_classifier":
            return [sat(rnd(sum(self.used(t, c) * x for t, x in enumerate(a)), 12), 20) for c in self.classes]
        return [sat(value, 20) for value in raw]

    def gradient(self, e: list[int], n: int) -> list[int]:
        if self.rule == "local_classifier":
            return [rnd(sum(self.used(t, c) * e[c] for c in self.classes), 12) for t in range(n)]
        f = e
        if self.rule == "lls_m":
            f = [sat(rnd(self.used(c, 0) * e[c], 12), 12) for c in self.classes]
        if self.rule == "lls_mxm":
            f = [sat(rnd(sum(self.used(i, k) * e[k] for k in self.classes), 12), 12) for i in self.vectors]
        return [rnd(sum(self.table[i][t] * f[i] for i in self.vectors), self.frac) for t in range(n)]

    def learn(self, a: list[int], e: list[int], rate: int, k: int) -> None:
        s = min(max(rate - 2 + k, 0), 31)
        v = [sat(rnd(sum(b * x for b, x in zip(row, a, strict=True)), self.frac), 18) for row in self.table]
        for row, lanes in enumerate(self.theta):
            for lane, code in enumerate(lanes):
                seen = a[row] if self.rule == "local_classifier" else v[row]
                error = e[row] if self.rule == "lls_m" else e[lane]
                lanes[lane] = sat(code - rnd(seen * rnd(error, 2) * 2**10, s), 24)

"""The trained part of a hidden layer's class scores in plain integers, from docs/rules.md, section 7."""

from tests.hdl.arithmetic import rnd, sat


class TrainedScores:
    """`theta`: rows of lanes, drawn around what training starts from, some at the ends of their range."""

    def __init__(self, kind, basis, rows, lanes, rng):
        self.kind, self.basis, self.rows, self.lanes = kind, basis, rows, lanes
        ends = [-(1 << 23), (1 << 23) - 1, 0, -1, 255]
        code = lambda: rng.choice(ends) if rng.random() < 0.1 else rng.randint(-3 << 20, 3 << 20)  # noqa: E731
        self.theta = [[code() for _ in range(lanes)] for _ in range(rows)]

    @property
    def used(self):
        """Their upper 16 bits."""
        return [[code >> 8 for code in row] for row in self.theta]

    def scores(self, raws, latents):
        """Of the rounded sums over the basis, one a vector, and the latents: a score a class."""
        self.v = v = [sat(raw, 18) for raw in raws]
        if self.kind == "factors":
            return [sat(rnd(m * x, 12), 20) for (m,), x in zip(self.used, v, strict=True)]
        sources = v if self.kind == "matrix" else latents
        sums = [sum(row[c] * x for row, x in zip(self.used, sources, strict=True)) for c in range(self.lanes)]
        return [sat(rnd(total, 12), 20) for total in sums]

    def gradients(self, errors, n):
        """G of each latent."""
        if self.kind == "factors":
            back = [sat(rnd(m * e, 12), 12) for (m,), e in zip(self.used, errors, strict=True)]
        else:
            sums = [rnd(sum(entry * e for entry, e in zip(row, errors, strict=True)), 12) for row in self.used]
            if self.kind == "basis":
                return sums
            back = [sat(total, 12) for total in sums]
        B = self.basis.table(n).tolist()
        return [rnd(sum(B[i][t] * f for i, f in enumerate(back)), self.basis.fraction_bits) for t in range(n)]

    def update(self, latents, errors, shift):
        """By the errors; `shift` is LR - 2 + k."""
        s = max(0, min(31, shift))
        step = lambda x, e: rnd(x * rnd(e, 2) << 10, s)  # noqa: E731
        if self.kind == "factors":
            steps = [[step(x, e)] for x, e in zip(self.v, errors, strict=True)]
        else:
            sources = self.v if self.kind == "matrix" else latents
            steps = [[step(x, e) for e in errors] for x in sources]
        for row, moves in zip(self.theta, steps, strict=True):
            for c, move in enumerate(moves):
                row[c] = sat(row[c] - move, 24)

"""What a comparison says of convolutions and batches beyond its table: each claim with its count, and the layers."""

from collections.abc import Mapping

from sim.cycle.text import NAMES, number, times

__all__ = ["NOTES", "PARAMETERS", "claims", "layer_table"]

PARAMETERS = ("weights", "biases")
ALIKE = (*PARAMETERS, "input buffers")
"""Memory that no rule changes."""
NOTES = (
    "- MACs are those of the usual form of the arithmetic, one a weight, position and sample, for forward pass and "
    "weight gradient; cycles and energy include padding.",
    "- Each rule is that of a machine built for it, with the depths of memories that the machine's file has for it. "
    "Pixels of a window share a signal: the array adds their activations and multiplies once a window. DFA's feedback, "
    "and DRTP's, is the network's basis.",
    "- BP has a signal of 12 bits for each value that a layer hands on, a pixel, the largest of a block or a latent. "
    "A block's other pixels have none, and max-pooling's odd rows and columns are not computed. Its way back reads "
    "weights at every position, as the forward pass does; there is none through the first layer.",
    "- Under every rule the sum of a weight's gradient stays in its PE while the batch passes: no memory keeps it.",
    "- Memory is what a step keeps, with the padding of its placement, whether or not the machine has so much.",
)


def claims(metrics: Mapping[str, dict]) -> list[str]:
    """What is said of LLS, each with the count that it is true of; ``metrics`` by rule. Lines of Markdown."""
    lls, bp = metrics["lls"], metrics["bp"]
    parts, passed = lls["learning_signal_macs"], bp["macs_by_phase"]["learning_signal"]
    fewest, all_parts = parts.get("scores", 0) + parts.get("gradient", 0), sum(parts.values())
    products = [number(sum(rule["multiplications_by_phase"].values())) for rule in (lls, bp)]
    sums = [number(rule["window_additions"]) for rule in (lls, bp)]
    heads = " | ".join(NAMES[rule] for rule in metrics)
    lines = [
        "## By which count",
        "",
        f"- Learning signal alone: BP needs {times(passed, fewest)} the MACs of LLS's class scores and their gradient "
        f"(2·K a latent, as LLS's paper counts), {times(passed, all_parts)} with the norm and the projection that the "
        "machine forms too.",
        f"- Whole step: {times(bp['macs'], lls['macs'])} the MACs, since forward pass and weight gradient cost either "
        f"rule as much. Of its MACs LLS multiplies {products[0]} here, BP {products[1]}: additions within windows, "
        f"{sums[0]} and {sums[1]} of 18 bits, stand for the other products of the weight gradient, signs of the basis "
        "for those of the class scores, and zeros behind max-pooling for some of BP's.",
        '- Memory: "half" is said of what a batch keeps. BP keeps maps after pooling, slope bits, 2 bits a pooled '
        "block, signals of two layers.",
        "",
        f"| batch | all memory: {heads} | BP/LLS | without parameters and inputs: {heads} | BP/LLS |",
        "|---:|" + "---:|" * (2 * len(metrics) + 2),
    ]
    for batch in lls["memory_by_batch"]:
        cells = [batch]
        for left_out in ((), ALIKE):
            found = {
                rule: sum(n for what, n in metrics[rule]["memory_by_batch"][batch].items() if what not in left_out)
                for rule in metrics
            }
            cells += [*map(number, found.values()), times(found["bp"], found["lls"])]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def layer_table(metrics: Mapping[str, dict]) -> list[str]:
    """LLS's layers: where its cycles go and how well they are used. Lines of Markdown."""
    lines = [
        "## Layers, LLS",
        "",
        "| layer | taps | channels | positions | windows | MACs | cycles | utilization | cycles, BP/LLS |",
        "|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for index, (lls, bp) in enumerate(zip(*(metrics[rule]["layers"] for rule in ("lls", "bp")), strict=True)):
        cycles = [sum(layer["cycles_by_phase"].values()) for layer in (lls, bp)]
        cells = [str(index), *(number(lls[key]) for key in ("inputs", "neurons", "positions", "windows"))]
        cells += [number(sum(lls["macs_by_phase"].values())), number(cycles[0]), number(lls["utilization"])]
        lines.append("| " + " | ".join([*cells, times(cycles[1], cycles[0])]) + " |")
    return lines

"""Convolutions and batches: the closed forms against the stepped walk, and what they must say of the presets."""

import random
from dataclasses import replace

import pytest

from sim.cycle.counts import COMPONENTS, PURPOSES
from sim.cycle.model import CYCLE_PHASES, inference_step, training_step
from sim.cycle.stepped import Walk
from sim.cycle.windowed_stepped import walk_windowed_step
from spec.errors import SpecError
from spec.machine import Machine, load_machine
from spec.network import Convolution, FullyConnected, Network, Recipe, load_network
from spec.rules import RULES
from spec.timing import score_cycles
from spec.windowed_program import WINDOWED_WORDS, BackDescriptor
from spec.windowed_timing import (
    ARGMAX_TAIL,
    BACK_TAIL,
    FEEDBACK_TAIL,
    FINISH_CYCLES,
    FORWARD_TAIL,
    LABEL_TAIL,
    PLAIN_ARGMAX_TAIL,
    PLAIN_SIGNAL_TAIL,
    SETUP_TAIL,
    SIGNAL_TAIL,
    UPDATE_TAIL,
)

ARRAYS = [(1, 1), (2, 1), (2, 2), (4, 1), (4, 2), (4, 3), (4, 4), (8, 3), (8, 8)]


def machine_of(rows: int, cols: int, rule: str = "lls") -> Machine:
    """A machine that every network here fits; sums of 32 bits, so that each is one addition of a technology (under BP
    wide arrays need up to 34, which is one of 16 more)."""
    return Machine(
        name="m", rows=rows, cols=cols, weight_depth=65536, activation_depth=65536, max_neurons=65535, max_fan_in=255,
        bias_depth=65536, max_layers=64, delta_bits=18, fraction_bits=12, result_fifo_depth=65536, gradient_bits=32,
        max_batch=128, max_side=255, slope_depth=1 << 20, signal_depth=65536, index_depth=1 << 20, rule=rule,
        classifier_depth=65536,
    )  # fmt: skip


def network_of(shape, layers, classes=3, batch=1, basis="square") -> Network:
    """``layers`` and the output layer."""
    recipe = Recipe(6, 7, batch=batch)
    return Network("n", shape, classes, basis, (*layers, FullyConnected(classes)), recipe)


def conv(channels, kernel, latent, **options) -> Convolution:
    """A convolution of pairs, or of numbers that stand for squares."""
    kernel, latent = ((size, size) if isinstance(size, int) else size for size in (kernel, latent))
    return Convolution(channels, kernel, latent, **options)


CORNERS = [
    # One of everything: pixel, kernel, window, channel.
    (1, 1, network_of((1, 1, 1), [conv(1, 1, 1)], 2)),
    (2, 2, network_of((3, 3, 2), [conv(2, 3, 1, padding=1)])),
    # A window a position; one window for the map, more than 128 positions of it, and exactly 128.
    (2, 2, network_of((4, 4, 1), [conv(3, 1, 4)])),
    (2, 1, network_of((13, 12, 1), [conv(1, 1, 1, pool="latent")])),
    (2, 1, network_of((16, 8, 1), [conv(1, 1, 1, pool="latent")])),
    (2, 2, network_of((16, 17, 1), [conv(1, 1, (1, 1), pool="latent")])),
    # Columns that wait for latents: windows of one position, cut to one.
    (8, 8, network_of((3, 3, 1), [conv(9, 1, 3)])),
    (8, 8, network_of((5, 5, 1), [conv(9, 1, 3)], batch=2)),
    (8, 8, network_of((5, 5, 1), [conv(9, 1, 2, pool="max")], batch=2)),
    # Odd maps with max-pooling; windows that do not divide.
    (4, 4, network_of((7, 5, 2), [conv(5, 3, (2, 3), padding=1, pool="max")], batch=3)),
    (4, 2, network_of((2, 2, 3), [conv(3, 1, 1, pool="max")])),
    # Stride 2; depthwise.
    (4, 4, network_of((6, 7, 3), [conv(6, (3, 2), 2, stride=2, padding=1)])),
    (4, 4, network_of((5, 5, 6), [conv(6, 3, 2, padding=1, depthwise=True)], batch=2)),
    (4, 3, network_of((5, 4, 3), [conv(3, 3, 2, stride=2, padding=1, depthwise=True), conv(5, 1, 2, pool="latent")])),
    # An update of one visit a column tile.
    (4, 4, network_of((1, 1, 3), [conv(9, 1, 1), FullyConnected(7)])),
    # Fully connected layers of a batch.
    (4, 4, network_of((9,), [FullyConnected(5)], batch=4)),
    (8, 8, network_of((20,), [FullyConnected(17), FullyConnected(3)], 10, batch=2)),
    # Back through kernels, with and without padding, strides that leave out places, pooling of both kinds.
    (2, 2, network_of((7, 6, 1), [conv(4, 3, 2, pool="max"), conv(3, 3, 1, padding=1, pool="max")], batch=2)),
    (2, 1, network_of((6, 5, 1), [conv(2, 1, 2), conv(3, (3, 2), 2, stride=2, padding=1), conv(2, 1, 1, stride=2)])),
    (4, 4, network_of((6, 6, 2), [conv(4, 3, 3, padding=1, pool="latent"), conv(5, 3, 2, pool="latent")], batch=2)),
    (4, 2, network_of((5, 6, 3), [conv(3, 3, 1), conv(3, (3, 2), 1, stride=2, padding=1, depthwise=True, pool="max")])),
    (2, 2, network_of((6, 6, 1), [conv(2, 1, 1), conv(2, 5, 1, padding=2), conv(5, 1, 1, stride=2)], batch=2)),
]


def some_networks(number: int, seed: int = 1):
    """Random arrays and networks of one to three layers."""
    draw = random.Random(seed)
    found = 0
    while found < number:
        rows, cols = draw.choice(ARRAYS)
        layers, channels = [], draw.randint(1, 4)
        shape = (draw.randint(2, 7), draw.randint(2, 7), channels)
        for _ in range(draw.randint(1, 2)):
            kernel = (draw.randint(1, 3), draw.randint(1, 3))
            options = {
                "stride": draw.randint(1, 2), "padding": draw.randrange(min(kernel)),
                "pool": draw.choice(("none", "max", "latent")), "depthwise": draw.random() < 0.25,
            }  # fmt: skip
            channels = channels if options["depthwise"] else draw.choice((draw.randint(1, 9), rows))
            layers.append(conv(channels, kernel, (draw.randint(1, 4), draw.randint(1, 4)), **options))
        layers += [FullyConnected(draw.randint(1, 9)) for _ in range(draw.randrange(2))]
        classes, batch = draw.randint(2, 5), draw.randint(1, 3)
        try:
            network = network_of(shape, layers, classes, batch)
            for rule in ("lls", "bp"):
                training_step(machine_of(rows, cols, rule), network)
        except SpecError:
            continue  # a map that becomes empty, too wide a fully connected layer, channels that BP cannot read
        found += 1
        yield rows, cols, network


WALKED = [*CORNERS, *some_networks(60)]


@pytest.mark.parametrize(
    "rule, rows, cols, network",
    # What trains its scores walks the array as lls does.
    [(name, *found) for name, rule in RULES.items() for found in (WALKED[::4] if rule.trains else WALKED)],
)
def test_closed_forms_equal_the_stepped_walk(rule, rows, cols, network):
    step = training_step(machine_of(rows, cols), network, rule)
    check_step(step, walk_windowed_step(step.machine, network))


FROZEN = [*CORNERS[:12], *some_networks(10, seed=2)]


@pytest.mark.parametrize(
    "rule, rows, cols, network",
    [(rule, *found) for rule in RULES for found in (FROZEN[::4] if RULES[rule].trains else FROZEN)],
)
def test_frozen_and_without_labels_too(rule, rows, cols, network):
    machine = machine_of(rows, cols, rule)
    frozen = training_step(machine, network, train_hidden=False)
    check_step(frozen, walk_windowed_step(machine, network, train_hidden=False))
    check_step(inference_step(machine, network), walk_windowed_step(machine, network, batch=1, labelled=False))


def check_step(step, walk: Walk):
    """What the walk saw of each layer is what the closed form says."""
    machine, rule = step.machine, RULES[step.rule]
    assert step.cycles == sum(cycles for *_, cycles in walk.visits)
    for closed, seen in zip(step.layers, walk.layers, strict=True):
        assert closed.cycles == seen.cycles
        check_macs(closed, seen, rule, closed is step.layers[-1], step.network.geometry[closed.layer])
        check_forward(machine, closed, seen, step.network)
        check_update(machine, closed, seen, rule, step.network.geometry[closed.layer])
        check_signal(machine, closed, seen, rule, step.network.geometry[closed.layer])
        check_signal_unit(closed, seen, step)


def check_macs(closed, seen, rule, output, geometry):
    """MACs and products of real weights."""
    for purpose in ("forward", "update"):
        assert closed.macs[purpose].get("matrix", 0) == seen.macs.get(purpose, 0)
    products = closed.multiplications["update"]
    if not output and not rule.waits:
        products -= seen.events.get(("signal", "signal_write"), 0)  # the biases'
    assert products == seen.multiplied.get("update", 0)
    if rule.transposes:
        goes_back = seen.events.get(("signal", "add"), 0) > 0
        # Those with zeros around the map count, which the array leaves out; of a block one pixel has the signal.
        assert closed.macs["signal"] == ({"transposed weights": seen.macs["forward"]} if goes_back else {})
        assert closed.multiplications["signal"] == seen.multiplied.get("signal", 0) // shared(rule, geometry)
    assert closed.window_additions == seen.macs.get("update", 0) // shared(rule, geometry)


def shared(rule, geometry):
    """Pixels of a block, of which one is counted."""
    return 4 if rule.transposes and geometry.pool == "max" else 1


def check_forward(machine, closed, seen, network):
    """Array and columns."""
    event, count = reader(closed, seen, "forward")
    more = machine.psum_bits > 32
    assert count("multiply_8x16", "multipliers") == event("multiply")
    assert count("add_32", "adders") == event("multiply") + event("accumulate")
    assert count("weight_read_32kb", "weight memory") == event("weight_read")
    assert count("activation_read_32kb", "activation memory") == event("activation_read")
    assert count("activation_write_32kb", "activation memory") == event("activation_write")
    assert count("bias_read", "bias unit") == event("bias_read")
    assert count("add_32", "bias unit") == event("result")
    geometry = network.geometry[closed.layer]
    added = event("result") * (2 if geometry.pool == "max" else 1)
    assert count("add_16", "adders") == added + more * (event("multiply") + event("accumulate"))
    latents = event("result") + event("latent") if geometry.pool == "latent" else 0
    assert count("add_16", "signal arithmetic") == latents


def check_update(machine, closed, seen, rule, geometry):
    """Array, column memory, bias unit."""
    event, count = reader(closed, seen, "update")
    more = machine.psum_bits > 32
    products = count("multiply_8x18", "multipliers") + count("multiply_16x16", "multipliers")
    assert products == event("multiply")
    assert count("add_32", "adders") == event("multiply")
    assert count("add_16", "adders") == event("window_add") + more * event("multiply")
    assert count("weight_read_32kb", "weight memory") == event("weight_read")
    assert count("weight_write_32kb", "weight memory") == event("weight_write")
    assert count("activation_read_32kb", "activation memory") == event("activation_read")
    word = column_word(machine, rule, geometry)
    assert count("activation_read_32kb", "column memory") == word * event("slope_read")
    assert count("activation_write_32kb", "column memory") == word * event("slope_write")
    signals = 2 if rule.transposes else 3
    where, other = ("delta memory", "column memory") if rule.transposes else ("column memory", "delta memory")
    read = "activation_read_32kb" if rule.transposes else "activation_read"
    assert count(read, where) == signals * event("signal_read") and count("activation_read", other) == 0
    if rule.waits:
        assert count("add_32", "bias unit") == event("bias_add")


def column_word(machine, rule, geometry):
    """Bytes of a word of slope bits, with BP behind max-pooling and one of indices."""
    return -(-machine.cols // 8) + (-(-2 * machine.cols // 8) if shared(rule, geometry) > 1 else 0)


def check_signal(machine, closed, seen, rule, geometry):
    """Column memory; BP's way back through the array."""
    event, count = reader(closed, seen, "signal")
    assert count("multiply_16x16", "multipliers") == event("multiply") // shared(rule, geometry)
    assert count("add_32", "adders") == event("add") + event("accumulate")
    assert count("weight_read_32kb", "weight memory") == event("weight_read")
    if rule.transposes:
        word = column_word(machine, rule, geometry)
        assert count("activation_read_32kb", "column memory") == word * event("slope_read")
        # A signal has 12 bits.
        assert count("activation_read_32kb", "delta memory") == 2 * event("delta_read")
        assert count("activation_write_32kb", "delta memory") == 2 * event("delta_write")
    else:
        assert count("activation_write", "column memory") == 3 * event("signal_write")
        # An error has 10 bits.
        assert count("activation_read", "delta memory") == 2 * event("error_read")
        assert count("activation_write", "delta memory") == 2 * event("error_write")


def check_signal_unit(closed, seen, step):
    """What makes the signals of a layer that trains, on a square basis."""
    rule, batch, K = RULES[step.rule], step.batch, step.network.classes
    if not closed.cycles["update"]:
        return
    event, count = reader(closed, seen, "signal")
    geometry = step.network.geometry[closed.layer]
    n, softmax = geometry.latents, 3 * K
    if rule.transposes:
        errors = batch * softmax if closed is step.layers[-1] else 0
        wide = (step.machine.psum_bits > 32) * event("add")
        assert count("add_16", "signal arithmetic") == errors + event("total")
        assert count("add_16", "adders") == wide + event("accumulate")  # totals have 51 bits
        return
    if closed is step.layers[-1]:
        assert count("add_16", "signal arithmetic") == batch * softmax
        return
    passed, _ = reader(closed, seen, "forward")
    formed = rule.latents and geometry.pool != "latent"
    sums = passed("result") + passed("latent") if formed else 0
    # A basis that is trained is no sum over signs.
    fixed = 2 * n * K if rule.trains != "basis" else 0
    own = fixed + n + softmax if rule.scores else {"drtp": 0, "dfa": n * K}[step.rule]
    assert count("add_16", "signal arithmetic") == sums + batch * own
    assert count("rom_read_bit", "basis table") == (batch * fixed if rule.scores else event("entry_read"))
    latents = batch * n if rule.scores else {"drtp": batch * -(-event("kept_bit") // batch // 8), "dfa": 0}[step.rule]
    for access in ("read", "write"):
        found = sum(count(f"activation_{access}{size}", "score memory") for size in ("", "_32kb"))
        assert found == 3 * event(f"parameter_{access}")
    for access in ("activation_read", "activation_write"):
        assert count(access, "latent memory") == latents
        # A' has 14 bits.
        assert closed.counts.total(access, "latent memory", "update") == (2 * batch * n if rule.latents else 0)
    assert closed.counts.total("add_16", "bias unit", "update") == (passed("result") if rule.latents else 0)


def reader(closed, seen, purpose):
    """An event of the walk; a count of the closed form."""
    return (
        lambda name: seen.events.get((purpose, name), 0),
        lambda action, component: closed.counts.total(action, component, purpose),
    )


@pytest.mark.parametrize("train_hidden", [True, False])
@pytest.mark.parametrize("batch", [1, 3, 5])
def test_cycles_are_those_of_the_table(train_hidden, batch):
    # 9x7 by 3x3 stride 2 with padding: 5x4, windows of 3x2 cut to 2x2; 11 channels, 4 words of 8 taps.
    network = network_of((9, 7, 3), [conv(11, 3, 2, stride=2, padding=1)], 4, batch=5)
    machine = machine_of(8, 4)
    step = training_step(machine, network, train_hidden=train_hidden, batch=batch)
    P, T, S, n, skew = 5 * 4, 3, 4, 11 * 4, 8 + 4
    setup = WINDOWED_WORDS + 8 + SETUP_TAIL
    conv_cycles = {
        "setup": setup, "finish": 0, "forward": batch * ((T * P - 1) * S + S + skew + FORWARD_TAIL),
        "signal": batch * (3 * 4 + n + SIGNAL_TAIL), "update": T * S * batch * P + skew + UPDATE_TAIL,
    }  # fmt: skip
    if not train_hidden:
        conv_cycles |= {"signal": 0, "update": 0}
    # 220 inputs: 28 words.
    output = {
        "setup": setup, "finish": 0, "forward": batch * (28 + skew + FORWARD_TAIL),
        "signal": batch * (3 * 4 + 4 + SIGNAL_TAIL), "update": 28 * batch + skew + UPDATE_TAIL,
    }  # fmt: skip
    assert [layer.cycles for layer in step.layers] == [conv_cycles, output]
    assert step.cycles_by_phase["finish"] == batch * FINISH_CYCLES and tuple(step.cycles_by_phase) == CYCLE_PHASES
    inference = inference_step(machine, network)
    assert inference.batch == 1
    for layer, own in zip(inference.layers, (conv_cycles, output), strict=True):
        signal = 4 + ARGMAX_TAIL if own is output else 0
        assert layer.cycles == {
            "setup": setup, "finish": 0, "forward": own["forward"] // batch, "signal": signal, "update": 0
        }  # fmt: skip


def test_cycles_of_the_other_rules_are_those_of_the_table():
    # 4x4 by 3x3 with padding: 16 positions, 4 windows; 6 channels in 2 tiles of 4, 9 taps in 3 steps of 4; 3 classes.
    K, B, P, T, S, n, skew = 3, 2, 16, 2, 3, 6 * 4, 4 + 4
    network = network_of((4, 4, 1), [conv(6, 3, 2, padding=1)], K, batch=B)
    drain, steps = skew + FORWARD_TAIL, 6 * 4 * 4 // 4
    hidden = {"forward": B * (T * P * S + drain), "update": T * S * B * P + skew + UPDATE_TAIL}
    output = {"forward": B * (steps + drain), "update": steps * B + skew + UPDATE_TAIL}
    errors, largest = B * (3 * K + PLAIN_SIGNAL_TAIL), B * (K + PLAIN_ARGMAX_TAIL)
    signals = {
        "drtp": (B * (n + LABEL_TAIL), errors), "dfa": (B * (K + n + FEEDBACK_TAIL), errors), "inference": (0, largest)
    }  # fmt: skip
    for rule, (signal, own) in signals.items():
        # A descriptor of a rule that waits has a word more, and it is read twice but for the output layer's.
        setup, learns = WINDOWED_WORDS + RULES[rule].waits + 4 + SETUP_TAIL, RULES[rule].learns
        step = training_step(machine_of(4, 4, rule), network)
        assert [layer.cycles for layer in step.layers] == [
            {"setup": setup * (2 if rule == "dfa" else 1), "finish": 0, "signal": signal, **hidden}
            | {"update": learns * hidden["update"]},
            {"setup": setup, "finish": 0, "signal": own, **output} | {"update": learns * output["update"]},
        ]
    # Columns' biases end one a cycle, so tiles of one visit are as far apart as there are columns.
    wide = network_of((1, 1, 2), [conv(9, 1, 1)])
    update = {rule: training_step(machine_of(4, 4, rule), wide).layers[0].cycles["update"] for rule in ("drtp", "dfa")}
    assert update == {"drtp": 3 + skew + UPDATE_TAIL, "dfa": 2 * 4 + 1 + skew + UPDATE_TAIL}
    # A window of one position: latents leave one a cycle, if any do.
    narrow = network_of((3, 3, 1), [conv(4, 1, 3)])
    forward = {rule: training_step(machine_of(4, 4, rule), narrow).layers[0].cycles["forward"] for rule in signals}
    assert forward == {"drtp": 8 * 4 + 1 + drain, "dfa": 9 + drain, "inference": 9 + drain}


def test_cycles_of_trained_scores_are_those_of_the_table():
    network = network_of((4, 4, 1), [conv(6, 3, 2, padding=1)], 3, batch=2)
    signals = {}
    for rule in ("lls", "lls_m", "lls_mxm", "local_classifier"):
        step, one = training_step(machine_of(4, 4, rule), network), inference_step(machine_of(4, 4, rule), network)
        signals[rule] = [*(layer.cycles["signal"] for layer in step.layers), one.layers[-1].cycles["signal"]]
    lls = [2 * (3 * 3 + 24 + SIGNAL_TAIL), 2 * (3 * 3 + 3 + SIGNAL_TAIL), 3 + ARGMAX_TAIL]
    assert signals["lls"] == signals["local_classifier"] == lls
    for rule, kind in (("lls_m", "factors"), ("lls_mxm", "matrix")):
        trained, inferred = score_cycles(kind, 3)
        assert signals[rule] == [lls[0] + 2 * trained, lls[1] + 2 * trained, lls[2] + inferred]


def test_order_of_the_phases():
    network = network_of((4, 4, 1), [conv(3, 3, 2, padding=1), FullyConnected(5)], batch=2)

    def order(rule: str, **options: bool) -> str:
        visits = walk_windowed_step(machine_of(2, 2, rule), network, **options).visits
        return " ".join(phase[:2] + str(layer) for phase, layer, _ in visits)

    # Setup, forward, signal, update, finish; two samples.
    each = "se{0} fo{0} si{0} fo{0} si{0} up{0}"
    local = {order(rule) for rule in ("lls", "lls_m", "lls_mxm", "local_classifier", "drtp")}
    assert local == {f"{' '.join(each.format(n) for n in range(3))} fi2"}
    forward = "se0 fo0 se1 fo1 se2 fo2 si2 fo2 si2"
    assert order("dfa") == f"{forward} up2 se1 si1 up1 se0 si0 up0 fi2"
    # The way back through layer 2 follows its errors; through layer 0 there is none.
    assert order("bp") == f"{forward} up2 se1 si1 up1 se0 up0 fi2"
    for rule in RULES:
        assert order(rule, labelled=False) == order("inference") == f"{forward} fi2"
        assert order(rule, train_hidden=False) == f"{forward} {'up2 ' * RULES[rule].learns}fi2"


def test_macs_of_smallconv_are_the_reference_s():
    """``lls.md``'s table: millions of MACs a sample, from the geometry alone."""
    machine = load_machine("smallconv")
    for name, forward, bp, signal, whole in (
        ("smallconv-cifar10", 10.59, 9.70, 271, 1.46),
        ("smallconv-mnist", 7.72, 7.49, 209, 1.48),
    ):
        network = load_network(name)
        K = network.classes
        steps = {rule: training_step(machine, network, rule, batch=1) for rule in RULES}
        assert steps["lls"].macs_by_phase["forward"] == steps["lls"].macs_by_phase["update"] == network.macs
        assert network.macs / 1e6 == pytest.approx(forward, abs=0.005)
        assert steps["bp"].signal_macs == {"transposed weights": sum(g.macs for g in network.geometry[1:])}
        assert steps["bp"].signal_macs["transposed weights"] / 1e6 == pytest.approx(bp, abs=0.005)
        latents = sum(g.latents for g in network.geometry[:-1])
        assert latents == 32 * 16 + 64 * 4 + 128 * 4 + 512
        # One a window and channel, where the reference has one an output before pooling.
        assert steps["dfa"].signal_macs == {"feedback": K * latents}
        assert steps["drtp"].signal_macs == steps["inference"].signal_macs == {}
        parts = steps["lls"].signal_macs
        assert parts == {
            "scores": K * latents, "gradient": K * latents, "norm": latents, "projection": latents + 4 * K
        }  # fmt: skip
        paper = parts["scores"] + parts["gradient"]
        assert paper == 35840
        assert steps["bp"].signal_macs["transposed weights"] / paper == pytest.approx(signal, abs=0.5)
        ratio = (2 * network.macs + steps["bp"].signal_macs["transposed weights"]) / (2 * network.macs + paper)
        assert ratio == pytest.approx(whole, abs=0.005)
        # What is trained of the scores has a product a parameter, both ways and in its gradient; the basis at most.
        for rule, trained in (("lls_m", 4 * K), ("lls_mxm", 4 * K * K), ("local_classifier", K * latents)):
            more = {part: trained for part in ("trained scores", "trained gradient", "parameters")}
            fixed = {} if rule == "local_classifier" else {part: K * latents for part in ("scores", "gradient")}
            assert steps[rule].signal_macs == {"norm": latents, "projection": latents + 4 * K} | fixed | more
        # The norm and the projection that the paper does not count change nothing in that.
        assert steps["bp"].macs / steps["lls"].macs == pytest.approx(whole, abs=0.005)


def test_products_of_smallconv_by_hand():
    network, machine = load_network("smallconv-cifar10"), load_machine("smallconv")
    steps = {rule: training_step(machine, network, rule, batch=1) for rule in RULES}
    biases = 32 * 16 + 64 * 4 + 128 * 4 + 512
    windows = 16 * 27 * 32 + 4 * 288 * 64 + 4 * 576 * 128 + 512 * 512 + 5120
    assert steps["lls"].multiplications_by_phase["update"] == windows + biases
    assert steps["lls"].window_additions == network.macs
    # Signs of the square basis are no products: norm and projection are left.
    assert steps["lls"].multiplications_by_phase["signal"] == 2 * 1792 + 4 * 10
    # Max-pooling leaves a signal a block; a window's mean goes back to its window.
    pooled = 256 * 27 * 32 + 64 * 288 * 64 + 4 * 576 * 128 + 512 * 512 + 5120
    assert steps["bp"].multiplications_by_phase["update"] == pooled
    # Of a block the largest is added alone.
    assert steps["bp"].window_additions == pooled + (64 - 4) * 576 * 128
    # Of 3x3 taps those that read something of a map of 16x16, of 8x8.
    back = 46 * 46 * 32 * 64 // 4 + 22 * 22 * 64 * 128 + 512 * 512 + 5120
    assert steps["bp"].multiplications_by_phase["signal"] == back
    # DFA's biases are sums.
    for rule, products in (("drtp", windows + biases), ("dfa", windows)):
        assert steps[rule].multiplications_by_phase == {"forward": network.macs, "signal": 0, "update": products}
        assert steps[rule].window_additions == network.macs


def test_basis_of_products():
    """A sine's entries have 8 bits: class scores and gradient are products; DFA's feedback too."""
    layers = [conv(3, 3, 2)]
    sine, square = (network_of((5, 5, 1), layers, basis=basis) for basis in ("sine", "square"))
    machine = machine_of(4, 4)
    more = {
        rule: training_step(machine, sine, rule).multiplications_by_phase["signal"]
        - training_step(machine, square, rule).multiplications_by_phase["signal"]
        for rule in RULES
    }
    assert more == {
        "lls": 2 * 3 * 12, "drtp": 0, "dfa": 3 * 12, "bp": 0, "inference": 0,
        "lls_m": 2 * 3 * 12, "lls_mxm": 2 * 3 * 12, "local_classifier": 0,
    }  # fmt: skip


def test_utilization_of_smallconv_and_of_its_layers():
    step = training_step(load_machine("smallconv"), load_network("smallconv-cifar10"))
    assert step.batch == 16 and 0.97 < step.utilization < 1
    assert step.utilization == pytest.approx(2 * 16 * step.network.macs / 64 / step.cycles, rel=1e-15)
    # 27 taps take 4 steps of 8.
    bounds = [27 / 32, 1, 1, 1, 10 / 16]
    for layer, bound in zip(step.layers, bounds, strict=True):
        assert layer.utilization(step.machine) < bound
    assert step.layers[0].utilization(step.machine) > 0.98 * 27 / 32
    assert all(layer.utilization(step.machine) > 0.99 for layer in step.layers[1:3])


def test_a_batch_is_given_or_the_recipe_s():
    machine, network = load_machine("smallconv"), load_network("smallconv-cifar10")
    whole = training_step(machine, network)
    assert whole.batch == network.recipe.batch and training_step(machine, network, batch=16) == whole
    one = training_step(machine, network, batch=1)
    assert one.cycles_by_phase["forward"] * 16 == whole.cycles_by_phase["forward"]
    assert one.cycles_by_phase["setup"] == whole.cycles_by_phase["setup"]
    # A larger batch than the recipe's is refused where it does not fit, and a plain network has none.
    with pytest.raises(SpecError, match="max_batch"):
        training_step(machine, network, batch=17)
    with pytest.raises(SpecError, match="batch"):
        training_step(machine, network, batch=0)
    with pytest.raises(SpecError, match="gradient_bits"):
        training_step(load_machine("digits"), load_network("digits"), batch=2)
    assert training_step(load_machine("digits"), load_network("digits"), batch=1).batch == 1
    # A batch that was not filled is not another program: fully connected layers stay on this datapath.
    short = training_step(machine_of(2, 2), network_of((9,), [FullyConnected(5)], batch=4), batch=1)
    assert short.batch == 1 and short.network.recipe.batch == 4


def test_a_weight_is_read_once_a_batch():
    machine, network = load_machine("smallconv"), load_network("smallconv-cifar10")
    words = {1: 0, 16: 0}
    for batch in words:
        counts = training_step(machine, network, batch=batch).counts
        words[batch] = counts.total("weight_read_32kb", "weight memory", "update")
        assert counts.total("weight_write_32kb", "weight memory", "update") == words[batch]
    assert words[1] == words[16] == 5680 * 64


def test_biases_are_summed_over_a_batch():
    machine, network = load_machine("smallconv"), load_network("smallconv-cifar10")
    channels, words = 32 + 64 + 128 + 512 + 10, 3  # 44 bits a sum
    for batch in (1, 2, 16):
        counts = training_step(machine, network, batch=batch).counts
        for access in ("read", "write"):
            assert counts.total(f"bias_{access}", "bias unit", "update") == channels * (1 + words * (batch - 1))
    # Additions of 44 bits are priced as one of 32 and one of 16.
    assert counts.total("add_32", "bias unit", "update") == 16 * (1792 + 10)


def test_frozen_layers_and_inferences_have_no_signal_and_no_update():
    machine, network = load_machine("smallconv"), load_network("smallconv-cifar10")
    frozen = training_step(machine, network, train_hidden=False)
    for layer in frozen.layers[:-1]:
        assert layer.cycles["signal"] == layer.cycles["update"] == layer.window_additions == 0
        assert not layer.macs["signal"] and not layer.macs["update"]
        assert {purpose for (purpose, _, _), _ in layer.counts} == {"forward"}
    assert frozen.layers[-1].cycles["update"] > 0
    inference = inference_step(machine, network)
    assert {purpose for (purpose, _, _), _ in inference.counts} == {"forward"}
    assert inference.macs == network.macs
    bp = training_step(machine, network, "bp", train_hidden=False)
    assert bp.macs_by_phase["signal"] == 0 and bp.cycles_by_phase["signal"] == 16 * (3 * 10 + PLAIN_SIGNAL_TAIL)


def test_cycles_of_the_way_back_by_hand():
    # 5x4 by 3x3, stride 2, padding 1: 3x2 positions. Of the kernel's rows and columns one meets even places, two odd.
    K, B, R, skew = 3, 2, 4, 4 + 2
    network = network_of((5, 4, 1), [conv(8, 1, 1), conv(5, 3, 1, stride=2, padding=1)], K, batch=B)
    step = training_step(machine_of(R, 2, "bp"), network)
    setup, drain = BackDescriptor.words() + R + SETUP_TAIL, skew + FORWARD_TAIL
    # Three column tiles: 3 steps a place where one tap meets it, but row tiles are 4 apart; two of 4 channels each.
    rows, columns = {1: 3, 2: 2}, {1: 2, 2: 2}
    tile = sum(rows[y] * columns[x] * max(3 * y * x, R) for y in rows for x in columns)
    assert tile == 6 * 4 + 6 * 6 + 4 * 6 + 4 * 12
    # 3x2x5 inputs are 8 words; the output layer reads them as one pixel, and has 2 column tiles.
    first, second, output = (layer.cycles for layer in step.layers)
    assert first == {
        "setup": 2 * setup, "finish": 0, "forward": B * (4 * 20 + drain), "signal": 0,
        "update": 4 * B * 20 + skew + UPDATE_TAIL,
    }  # fmt: skip
    assert second == {
        "setup": 2 * setup, "finish": 0, "forward": B * (3 * 6 * 18 + drain), "signal": B * 2 * tile + BACK_TAIL,
        "update": 3 * 18 * B * 6 + skew + UPDATE_TAIL,
    }  # fmt: skip
    # An interval of 8 for 8 steps; 8 row tiles of 2 steps, 4 apart.
    assert output == {
        "setup": setup, "finish": 0, "forward": B * (2 * 8 + drain),
        "signal": B * (3 * K + PLAIN_SIGNAL_TAIL) + B * 8 * 4 + BACK_TAIL, "update": 2 * 8 * B + skew + UPDATE_TAIL,
    }  # fmt: skip
    # Where max-pooling drops an odd row and column nothing is computed.
    odd = network_of((5, 5, 1), [conv(2, 1, 1, pool="max")])
    forward = {rule: training_step(machine_of(2, 2, rule), odd).layers[0].cycles["forward"] for rule in ("dfa", "bp")}
    assert forward["dfa"] - forward["bp"] == 5 * 5 - 4 * 4


def test_the_way_back_of_smallconv():
    machine, network = load_machine("smallconv"), load_network("smallconv-cifar10")
    lls, bp = (training_step(machine, network, rule) for rule in ("lls", "bp"))
    for ours, theirs, geometry in zip(lls.layers, bp.layers, network.geometry, strict=True):
        # A step in every cycle, where a row tile has as many as there are rows: the output layer's two have 2 each.
        steps = -(-geometry.taps // 8) * max(-(-geometry.channels // 8), 8 if theirs.layer == 4 else 1)
        errors = 16 * (3 * 10 + PLAIN_SIGNAL_TAIL) if theirs.layer == 4 else 0
        passed = 16 * steps * geometry.positions + BACK_TAIL if theirs.layer else 0
        assert theirs.cycles["signal"] == passed + errors
        assert passed >= 16 * geometry.macs // 64 * bool(theirs.layer)
        assert theirs.cycles["forward"] <= ours.cycles["forward"]
        assert theirs.cycles["update"] == ours.cycles["update"]
    assert bp.cycles > lls.cycles


def test_purposes_and_components_are_the_documented_ones():
    step = training_step(load_machine("smallconv"), load_network("smallconv-kws"))
    assert {key[0] for key, _ in step.counts} == set(PURPOSES)
    assert {key[1] for key, _ in step.counts} < set(COMPONENTS)


@pytest.mark.parametrize(
    "name, forward, bp, latents", [("vgg8", 722.9, 719.3, 10240), ("mobilenet-v1", 104.3, 102.3, None)]
)
def test_large_networks_take_no_time(name, forward, bp, latents):
    machine = replace(machine_of(16, 16), max_fan_in=16384, gradient_bits=44, fraction_bits=20)
    network = load_network(name)
    steps = {rule: training_step(machine, network, rule) for rule in RULES}
    assert steps["lls"].macs_by_phase["forward"] / 1e6 == pytest.approx(forward, abs=0.05)
    assert steps["bp"].macs_by_phase["signal"] / 1e6 == pytest.approx(bp, abs=0.05)
    if latents:
        assert steps["lls"].signal_macs["scores"] == steps["dfa"].signal_macs["feedback"] == 10 * latents

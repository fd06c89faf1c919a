// Drives a Verilator model of the core: everything that happens once a cycle is here, so that Python is
// called once for thousands of samples. The model knows the design only through its ports (see
// docs/architecture.md, section 3): bus, samples in, results out, phase and layer for the traces.

#include "Vcore.h"
#include "verilated.h"

#include <cstdint>
#include <cstring>

namespace {

constexpr int kPhases = 8;   // the phase port has 3 bits
constexpr int kLayers = 256;

struct Core {
    VerilatedContext context;
    Vcore top;
    uint64_t cycles = 0;
    uint64_t cycles_by_phase[kPhases][kLayers] = {};

    Core() : top(&context) {}

    // Combinational outputs are settled when this returns; `edge` then ends the cycle. The falling
    // edge does nothing in this design, so it shares its evaluation with the new inputs.
    void settle() {
        top.clk = 0;
        top.eval();
    }

    void edge() {
        cycles_by_phase[top.phase][top.layer]++;
        cycles++;
        top.clk = 1;
        top.eval();
    }
};

}  // namespace

extern "C" {

// A result shorter than zero says what went wrong; backend.py turns it into a sentence.
enum { kOk = 0, kHung = -1, kResultTooLong = -2, kUnasked = -4 };

void *core_open() {
    auto *core = new Core;
    core->top.clk = 0;
    core->top.rst = 1;
    core->top.bus___05Freq_valid = 0;
    core->top.samples___05Fvalid = 0;
    core->top.results___05Fready = 0;
    for (int i = 0; i < 4; i++) {
        core->settle();
        core->edge();
    }
    core->top.rst = 0;
    core->settle();
    core->cycles = 0;
    memset(core->cycles_by_phase, 0, sizeof core->cycles_by_phase);
    return core;
}

void core_close(void *handle) { delete static_cast<Core *>(handle); }

uint64_t core_cycles(void *handle) { return static_cast<Core *>(handle)->cycles; }

void core_trace(void *handle, uint64_t *out) {
    auto *core = static_cast<Core *>(handle);
    memcpy(out, core->cycles_by_phase, sizeof core->cycles_by_phase);
}

// `count` bus requests, pipelined; `data` is read for writes and filled for reads.
int core_bus(void *handle, int write, int64_t count, const uint32_t *addresses, uint32_t *data,
             int64_t patience) {
    auto *core = static_cast<Core *>(handle);
    int64_t sent = 0, received = write ? count : 0, quiet = 0;
    while (sent < count || received < count) {
        const bool asking = sent < count;
        core->top.bus___05Freq_valid = asking;
        core->top.bus___05Freq_write = write;
        if (asking) {
            core->top.bus___05Freq_addr = addresses[sent];
            core->top.bus___05Freq_data = write ? data[sent] : 0;
        }
        core->settle();
        quiet++;
        if (core->top.bus___05Frsp_valid) {
            // Only what was asked for in an earlier cycle is answered.
            if (write || received == sent) return kUnasked;
            data[received++] = core->top.bus___05Frsp_data;
            quiet = 0;
        }
        if (asking && core->top.bus___05Freq_ready) {
            sent++;
            quiet = 0;
        }
        core->edge();
        if (quiet > patience) return kHung;
    }
    core->top.bus___05Freq_valid = 0;
    core->settle();
    return kOk;
}

// Streams `count` samples in, and `beats` beats of results out, as fast as the core takes them. `results` gets each
// beat's payload whole: the word, and `last` above it.
int core_run(void *handle, int64_t count, int64_t features, const int8_t *x, const uint8_t *labels,
             int64_t beats, uint64_t *results, int64_t patience) {
    auto *core = static_cast<Core *>(handle);
    int64_t sample = 0, beat = 0, received = 0, quiet = 0;
    core->top.results___05Fready = 1;
    while (sample < count || received < beats) {
        const bool sending = sample < count;
        core->top.samples___05Fvalid = sending;
        if (sending) {
            const uint32_t byte =
                beat < features ? static_cast<uint8_t>(x[sample * features + beat]) : labels[sample];
            core->top.samples___05Fpayload = byte | (beat == features ? 0x100u : 0u);
        }
        core->settle();
        quiet++;
        if (core->top.results___05Fvalid) {
            if (received == beats) return kResultTooLong;
            results[received++] = core->top.results___05Fpayload;
            quiet = 0;
        }
        if (sending && core->top.samples___05Fready) {
            quiet = 0;
            if (beat++ == features) {
                beat = 0;
                sample++;
            }
        }
        core->edge();
        if (quiet > patience) return kHung;
    }
    core->top.samples___05Fvalid = 0;
    core->top.results___05Fready = 0;
    core->settle();
    return kOk;
}
}

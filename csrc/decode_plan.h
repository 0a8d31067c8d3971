// A language model as the decode engine sees it: packed matrices, layers in order, states and a workspace.
//
// Python fills these structures (generation/_native_plan.py mirrors them field by field; every field has 8 bytes) and
// owns all memory. Rows of activations are m = sequence * length + position.
#pragma once

#include <atomic>
#include <thread>

#include "common.h"
#include "math.h"

namespace STATESCAN_LEVEL {

constexpr int64_t kBlock = 16;    // output rows that lie interleaved
constexpr int64_t kUnit = 64;     // channels that stay with one thread: quantised groups never straddle two
constexpr int64_t kPartsOfBlock = kBlock / kLanes;

enum Format : int64_t { kWeightsFloat32 = 0, kWeightsBFloat16 = 1, kWeightsInt8 = 2, kWeightsInt4 = 3 };
enum Kind : int64_t { kMamba = 0, kMamba2 = 1, kAttention = 2, kGatedMLP = 3 };

// y = W x + bias. Sixteen output rows lie interleaved, [rows / 16][columns / s][16][s]: s = 1 float32, 2 bfloat16,
// 4 int8 (stored plus 128), 8 int4 (stored plus 8, four low nibbles before four high ones). Rows and columns that fill
// up a block weigh nothing. int8 has a scale a row; int4 has one a row and group of columns, sixteen bfloat16 in
// front of each group.
struct Matrix {
    const uint8_t* data;
    const float* scales;  // int8: (rows rounded up to 16)
    const float* bias;    // (rows rounded up to 16) or null
    int64_t rows, columns, format, group;
};

struct Norm {
    const float *weight, *bias;  // or null
    double eps;
    int64_t layer;  // 0 RMSNorm, 1 LayerNorm
};

// All a layer may need; which fields a kind uses is said where it is run (decode_layers.h).
struct Layer {
    int64_t kind;
    Norm norm;
    Matrix in, gate, select, delta, out;
    const float *conv_weight, *conv_bias;  // (taps, channels)
    const float *A, *D, *delta_bias, *norm_weight;
    Norm inner[3];
    int64_t inner_norms, inner_dim, state_dim, taps, rank, heads, head_dim, groups, mlp_dim;
    int64_t gated_norm, norm_before_gate, norm_group, kv_heads, rotary_dim;
    double norm_eps, delta_minimum, delta_maximum, scale;
    const float* rotary;  // (rotary_dim / 2): base^(-2 i / rotary_dim)
};

struct LayerState {
    float *conv, *ssm;     // conv (batch, taps - 1, channels); ssm as the kind says
    float *keys, *values;  // (batch, kv_heads, capacity, head_dim)
    const int64_t* start;  // (batch): entries before it are no one's
    int64_t cached, capacity;
};

struct Plan {
    const void* embedding;  // (vocabulary, dim), row by row
    int64_t embedding_type, dim, depth;
    const Layer* layers;
    Norm norm;
    Matrix head;
    int64_t dot_bfloat16;  // several rows of activations meet bfloat16 weights as bfloat16
};

inline int64_t round_up(int64_t value, int64_t step) { return (value + step - 1) / step * step; }
inline int64_t blocks_of(const Matrix& w) { return (w.rows + kBlock - 1) / kBlock; }

// A stretch of [0, count) in steps of `unit`, the same for every phase that asks with the same numbers.
struct Range {
    int64_t begin, end;
};
inline Range share(int64_t count, int64_t unit, int thread, int threads) {
    const int64_t units = (count + unit - 1) / unit;
    const int64_t begin = units * thread / threads * unit, end = units * (thread + 1) / threads * unit;
    return {std::min(begin, count), std::min(end, count)};
}

constexpr int64_t kLine = 64;  // bytes of a cache line, which is a step of a block of weights in every format

// Memory that is read next, to be asked for by work that leaves the memory idle.
struct Upcoming {
    const uint8_t *line = nullptr, *end = nullptr;
    void fetch(int64_t lines) {
        for (; lines && line < end; --lines, line += kLine) __builtin_prefetch(line, 0, 2);
    }
};
constexpr int64_t kLinesMeanwhile = 64;  // while threads meet

// Spins, since what others do takes microseconds, but not for long: a thread that has lost its core would otherwise hold
// up the others' time slices too.
template <typename Condition>
inline void wait_until(const Condition& condition) {
    for (int spins = 0; !condition(); ++spins) {
        if (spins >= 20000) std::this_thread::yield();
#if defined(__x86_64__)
        else __builtin_ia32_pause();
#elif defined(__aarch64__)
        else asm volatile("yield");
#endif
    }
}

// Threads that go through phases together.
class Team {
public:
    explicit Team(int size) : size_(size) {}
    void wait(Upcoming next = {}) {
        const int round = round_.load(std::memory_order_relaxed);
        const bool last = arrived_.fetch_add(1, std::memory_order_acq_rel) == size_ - 1;
        if (last) {
            arrived_.store(0, std::memory_order_relaxed);
            round_.store(round + 1, std::memory_order_release);
        }
        next.fetch(kLinesMeanwhile);
        if (last) return;
        wait_until([&] { return round_.load(std::memory_order_acquire) != round; });
    }

private:
    alignas(64) std::atomic<int> arrived_{0};
    alignas(64) std::atomic<int> round_{0};
    alignas(64) int size_;
};

}  // namespace STATESCAN_LEVEL

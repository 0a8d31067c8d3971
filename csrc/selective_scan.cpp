// Selective scan, forward and backward: h_t = exp(d_t A) h_{t-1} + d_t B_t x_t, y_t = (C_t h_t + D x_t) silu(z_t).
//
// Vectors run across channels, so the recurrence needs no shuffles and the states stay in registers. The backward
// pass recomputes the states of a tile from the one saved before it; nothing of length x channels x states is stored.
#include "scan_tiles.h"

namespace STATESCAN_LEVEL {
namespace {

// How many states are in flight together: as many as the registers hold.
#if defined(__AVX512F__)
constexpr int kForwardStates = 16, kBackwardStates = 8;
#elif defined(__AVX2__)
constexpr int kForwardStates = 4, kBackwardStates = 2;
#else
constexpr int kForwardStates = 2, kBackwardStates = 1;
#endif

template <typename V>
constexpr int in_flight(int reals) {
    return std::max<int>(1, reals * sizeof(vfloat) / sizeof(V));
}

// One thread's workspace. Arrays of [block][state] hold its own blocks only.
template <typename V>
struct Local {
    typedef typename Lanes<V>::Scalar Scalar;
    V *A, *state, *constant_B, *constant_C;
    Scalar *B, *C;                                                  // [position][state] of the current tile
    vfloat *step, *input, *x, *y;                                   // [position]
    V *grad_A, *grad_constant_B, *grad_constant_C, *sum_B, *sum_C;  // sum_*: [position][state], a lane a channel
    V *history, *decays;                                            // [position][state in flight]
    vfloat *grad_D, *grad_delta_bias;                               // [block]
    vfloat *slope, *grad, *grad_input, *grad_step;                  // [position]

    Local(const Problem& p, int64_t blocks, bool backward, Arena& arena) {
        const int64_t per_block = blocks * p.states, per_tile = kTile * p.states;
        A = arena.take<V>(per_block);
        state = arena.take<V>(per_block);
        constant_B = arena.take<V>(p.B.groups ? 0 : per_block);
        constant_C = arena.take<V>(p.C.groups ? 0 : per_block);
        B = arena.take<Scalar>(p.B.groups ? per_tile : 0);
        C = arena.take<Scalar>(p.C.groups ? per_tile : 0);
        step = arena.take<vfloat>(kTile);
        input = arena.take<vfloat>(kTile);
        x = arena.take<vfloat>(kTile);
        y = arena.take<vfloat>(kTile);
        if (!backward) return;
        grad_A = arena.take<V>(per_block);
        grad_constant_B = arena.take<V>(p.B.groups ? 0 : per_block);
        grad_constant_C = arena.take<V>(p.C.groups ? 0 : per_block);
        sum_B = arena.take<V>(p.B.groups ? per_tile : 0);
        sum_C = arena.take<V>(p.C.groups ? per_tile : 0);
        history = arena.take<V>((kTile + 1) * kBackwardStates);
        decays = arena.take<V>(kTile * kBackwardStates);
        grad_D = arena.take<vfloat>(blocks);
        grad_delta_bias = arena.take<vfloat>(blocks);
        slope = arena.take<vfloat>(kTile);
        grad = arena.take<vfloat>(kTile);
        grad_input = arena.take<vfloat>(kTile);
        grad_step = arena.take<vfloat>(kTile);
    }
};

// The most blocks that a thread owns or touches.
int64_t most_blocks(const Problem& p, int threads) {
    const Blocks blocks(p);
    int64_t most = 0;
    for (int thread = 0; thread < threads; ++thread) {
        const Share share(p, blocks, thread, threads);
        most = std::max(most, share.last_block() - share.first_block());
    }
    return most;
}

template <typename V>
size_t workspace(const Problem& p, bool backward, int threads) {
    Arena arena(nullptr);
    Local<V>(p, most_blocks(p, threads), backward, arena);
    return arena.used + 64;
}

// (channels, states) -> [state], a lane a channel, and back.
template <typename V, typename Scalar>
void gather(const Scalar* from, int64_t channel, int width, int64_t states, V* to) {
    for (int64_t n = 0; n < states; ++n) to[n] = V{};
    for (int lane = 0; lane < width; ++lane)
        for (int64_t n = 0; n < states; ++n) set_lane(to[n], lane, from[(channel + lane) * states + n]);
}
template <typename V, typename Scalar>
void scatter(const V* from, int64_t channel, int width, int64_t states, Scalar* to) {
    for (int lane = 0; lane < width; ++lane)
        for (int64_t n = 0; n < states; ++n) to[(channel + lane) * states + n] = get_lane(from[n], lane);
}

// The same between [state] and (states, channels), the layout of saved states.
template <typename V, typename Scalar>
void save_state(const V* from, int64_t channel, int width, int64_t states, int64_t channels, Scalar* to) {
    for (int64_t n = 0; n < states; ++n)
        for (int lane = 0; lane < width; ++lane) to[n * channels + channel + lane] = get_lane(from[n], lane);
}
template <typename V, typename Scalar>
void restore_state(const Scalar* from, int64_t channel, int width, int64_t count, int64_t channels, V* to) {
    for (int64_t n = 0; n < count; ++n) {
        to[n] = V{};
        for (int lane = 0; lane < width; ++lane) set_lane(to[n], lane, from[n * channels + channel + lane]);
    }
}
inline void save_state(const vfloat* from, int64_t channel, int width, int64_t states, int64_t channels, float* to) {
    for (int64_t n = 0; n < states; ++n) store_some(to + n * channels + channel, from[n], width);
}
inline void restore_state(const float* from, int64_t channel, int width, int64_t count, int64_t channels, vfloat* to) {
    for (int64_t n = 0; n < count; ++n) to[n] = load_some(from + n * channels + channel, width);
}

template <typename V>
void prepare_blocks(const Problem& p, const Blocks& blocks, const Share& share, Local<V>& local) {
    typedef typename Lanes<V>::Scalar Scalar;
    for (int64_t b = share.first_block(), own = 0; b < share.last_block(); ++b, own += p.states) {
        const int64_t channel = blocks.channel(b);
        const int width = blocks.width(b);
        const Scalar* A = static_cast<const Scalar*>(p.A);
        for (int64_t n = 0; n < p.states; ++n) local.A[own + n] = V{};
        for (int lane = 0; lane < width; ++lane)
            for (int64_t n = 0; n < p.states; ++n)
                set_lane(local.A[own + n], lane, to_powers(A[(channel + lane) * p.states + n]));
        if (!p.B.groups)
            gather(static_cast<const Scalar*>(p.B.rows.data), channel, width, p.states, local.constant_B + own);
        if (!p.C.groups)
            gather(static_cast<const Scalar*>(p.C.rows.data), channel, width, p.states, local.constant_C + own);
    }
}

// A tile of one block: where it lies, and what its rows of B and C are.
struct Place {
    int64_t row, channel, own;  // own: the index of the block among the thread's
    int rows, width;
};

// Loads x and delta; leaves the step, the input step * x, and x.
template <typename V>
void load_inputs(const Problem& p, const Place& at, Local<V>& local, vfloat* slope) {
    load_tile(p.x, at.row, at.channel, at.rows, at.width, local.x);
    load_tile(p.delta, at.row, at.channel, at.rows, at.width, local.step);
    const vfloat bias = p.delta_bias ? load_some(p.delta_bias + at.channel, at.width) : vfloat{};
    for (int t = 0; t < at.rows; ++t) {
        vfloat step = local.step[t] + bias;
        if (p.softplus) {
            if (slope) slope[t] = sigmoid(step);
            step = softplus(step);
        }
        local.step[t] = step;
        local.input[t] = step * local.x[t];
    }
}

template <typename V>
void load_rows_of(const Weights& w, const Place& at, int64_t group, int64_t states,
                  typename Lanes<V>::Scalar* tile) {
    constexpr int kFloats = sizeof(typename Lanes<V>::Scalar) / sizeof(float);
    load_weights(w.rows, at.row, group * w.group_stride, at.rows, int(states) * kFloats,
                 reinterpret_cast<float*>(tile));
}

// ---- forward -------------------------------------------------------------------------------------------------

// kCount states over a tile. B and C are [position][state], or [state] where constant; y gains sum C h.
template <typename V, int kCount, bool kConstantB, bool kConstantC>
void scan_states(int rows, const vfloat* step, const vfloat* input, const V* A, const void* B, const void* C,
                 int64_t states, const uint8_t* resets, V* state, vfloat* y) {
    typedef typename Lanes<V>::Scalar Scalar;
    V h[kCount];
    for (int n = 0; n < kCount; ++n) h[n] = state[n];
    for (int t = 0; t < rows; ++t) {
        if (resets && resets[t])
            for (int n = 0; n < kCount; ++n) h[n] = V{};
        const vfloat d = step[t], u = input[t];
        vfloat sum = y[t];
#pragma GCC unroll 16
        for (int n = 0; n < kCount; ++n) {
            const V b = kConstantB ? static_cast<const V*>(B)[n] : broadcast(static_cast<const Scalar*>(B)[t * states + n]);
            const V c = kConstantC ? static_cast<const V*>(C)[n] : broadcast(static_cast<const Scalar*>(C)[t * states + n]);
            h[n] = decay(d, A[n]) * h[n] + b * u;
            sum += real_product(c, h[n]);
        }
        y[t] = sum;
    }
    for (int n = 0; n < kCount; ++n) state[n] = h[n];
}

template <typename V, int kCount>
void scan_all_states(const Problem& p, const Place& at, Local<V>& local, int64_t from) {
    const int64_t own = at.own * p.states;
    int64_t n = from;
    for (; n + kCount <= p.states; n += kCount) {
        const void* B = p.B.groups ? static_cast<const void*>(local.B + n) : local.constant_B + own + n;
        const void* C = p.C.groups ? static_cast<const void*>(local.C + n) : local.constant_C + own + n;
        const uint8_t* resets = p.resets ? p.resets + at.row : nullptr;
        auto scan = p.B.groups ? (p.C.groups ? scan_states<V, kCount, false, false> : scan_states<V, kCount, false, true>)
                               : (p.C.groups ? scan_states<V, kCount, true, false> : scan_states<V, kCount, true, true>);
        scan(at.rows, local.step, local.input, local.A + own + n, B, C, p.states, resets, local.state + own + n, local.y);
    }
    if constexpr (kCount > 1)
        if (n < p.states) scan_all_states<V, kCount / 2>(p, at, local, n);
}

template <typename V>
void scan_tile(const Problem& p, const Place& at, Local<V>& local, void* y, int64_t y_stride) {
    load_inputs<V>(p, at, local, nullptr);
    const vfloat D = p.D ? load_some(p.D + at.channel, at.width) : vfloat{};
    for (int t = 0; t < at.rows; ++t) local.y[t] = local.x[t] * D * (1.0f / Lanes<V>::kPairs);
    scan_all_states<V, in_flight<V>(kForwardStates)>(p, at, local, 0);
    for (int t = 0; t < at.rows; ++t) local.y[t] *= Lanes<V>::kPairs;
    if (p.z.data) {
        load_tile(p.z, at.row, at.channel, at.rows, at.width, local.x);
        for (int t = 0; t < at.rows; ++t) local.y[t] *= silu(local.x[t]);
    }
    store_tile(y, p.x.type, y_stride, at.row, at.channel, at.rows, at.width, local.y);
}

template <typename V>
void forward_share(const Problem& p, void* y, void* last_state, void* states, int thread, int threads, void* memory) {
    typedef typename Lanes<V>::Scalar Scalar;
    const Blocks blocks(p);
    const Share share(p, blocks, thread, threads);
    Arena arena(memory);
    Local<V> local(p, share.last_block() - share.first_block(), false, arena);
    prepare_blocks(p, blocks, share, local);
    for (int64_t s = 0; s < p.sequences; ++s) {
        const int64_t first = share.first_block(s), last = share.last_block(s), end = p.begin(s + 1);
        for (int64_t b = first; b < last; ++b) {
            V* state = local.state + (b - share.first_block()) * p.states;
            if (p.initial_state)
                gather(static_cast<const Scalar*>(p.initial_state) + s * p.channels * p.states, blocks.channel(b),
                       blocks.width(b), p.states, state);
            else
                std::fill(state, state + p.states, V{});
        }
        int64_t checkpoint = p.checkpoint(s);
        for (int64_t row = p.begin(s); row < end; row += kTile, ++checkpoint) {
            int64_t group_B = -1, group_C = -1;
            for (int64_t b = first; b < last; ++b) {
                const Place at{row, blocks.channel(b), b - share.first_block(), int(std::min<int64_t>(kTile, end - row)),
                               blocks.width(b)};
                if (p.B.groups && blocks.group(p.B, b) != group_B)
                    load_rows_of<V>(p.B, at, group_B = blocks.group(p.B, b), p.states, local.B);
                if (p.C.groups && blocks.group(p.C, b) != group_C)
                    load_rows_of<V>(p.C, at, group_C = blocks.group(p.C, b), p.states, local.C);
                if (states)
                    save_state(local.state + at.own * p.states, at.channel, at.width, p.states, p.channels,
                               static_cast<Scalar*>(states) + checkpoint * p.states * p.channels);
                scan_tile<V>(p, at, local, y, p.channels);
            }
        }
        for (int64_t b = first; b < last; ++b)
            scatter(local.state + (b - share.first_block()) * p.states, blocks.channel(b), blocks.width(b), p.states,
                    static_cast<Scalar*>(last_state) + s * p.channels * p.states);
    }
}

// ---- backward ------------------------------------------------------------------------------------------------

struct Gradients {
    Rows y;                  // incoming, may be absent
    const void* last_state;  // incoming, may be absent
    const void* states;      // saved by the forward pass
    void *x, *delta, *A, *B, *C, *z, *initial_state;
    float *D, *delta_bias;
    float *part_B, *part_C;  // (threads, rows, groups, states) of Scalar
};

// States, and the decays between them, of a tile from the state before it; history[0] is that state.
template <typename V, int kCount, bool kConstantB, bool kConstantC>
void recompute_states(const Problem& p, const Place& at, Local<V>& local, const void* B, const void* C, int64_t own) {
    typedef typename Lanes<V>::Scalar Scalar;
    const uint8_t* resets = p.resets ? p.resets + at.row : nullptr;
    const V* A = local.A + own;
    V h[kCount];
    for (int n = 0; n < kCount; ++n) h[n] = local.history[n];
    for (int t = 0; t < at.rows; ++t) {
        if (resets && resets[t])
            for (int n = 0; n < kCount; ++n) h[n] = V{};
        const vfloat d = local.step[t], u = local.input[t];
        V *decays = local.decays + t * kCount, *history = local.history + (t + 1) * kCount;
        vfloat sum{};
#pragma GCC unroll 16
        for (int n = 0; n < kCount; ++n) {
            const V b = kConstantB ? static_cast<const V*>(B)[n] : broadcast(static_cast<const Scalar*>(B)[t * p.states + n]);
            const V c = kConstantC ? static_cast<const V*>(C)[n] : broadcast(static_cast<const Scalar*>(C)[t * p.states + n]);
            const V a = decay(d, A[n]);
            h[n] = a * h[n] + b * u;
            decays[n] = a;
            history[n] = h[n];
            sum += real_product(c, h[n]);
        }
        local.y[t] += sum;
    }
}

// The gradient through kCount states of a tile, from its last position to its first. local.state holds that of the
// state after the tile, and then of the state before it.
template <typename V, int kCount, bool kConstantB, bool kConstantC>
void unscan_states(const Problem& p, const Place& at, Local<V>& local, int64_t from) {
    typedef typename Lanes<V>::Scalar Scalar;
    const int64_t own = at.own * p.states + from;
    const void* B = kConstantB ? static_cast<const void*>(local.constant_B + own) : local.B + from;
    const void* C = kConstantC ? static_cast<const void*>(local.constant_C + own) : local.C + from;
    recompute_states<V, kCount, kConstantB, kConstantC>(p, at, local, B, C, own);
    const uint8_t* resets = p.resets ? p.resets + at.row : nullptr;
    const V* A = local.A + own;
    V g[kCount], grad_A[kCount];
    for (int n = 0; n < kCount; ++n) g[n] = local.state[own + n], grad_A[n] = local.grad_A[own + n];
    for (int t = at.rows - 1; t >= 0; --t) {
        const vfloat d = local.step[t], u = local.input[t], grad = local.grad[t];
        const V *decays = local.decays + t * kCount, *before = local.history + t * kCount, *h = before + kCount;
        V* sum_B = kConstantB ? local.grad_constant_B + own : local.sum_B + t * p.states + from;
        V* sum_C = kConstantC ? local.grad_constant_C + own : local.sum_C + t * p.states + from;
        vfloat grad_input = local.grad_input[t], grad_step = local.grad_step[t];
#pragma GCC unroll 16
        for (int n = 0; n < kCount; ++n) {
            const V b = kConstantB ? static_cast<const V*>(B)[n] : broadcast(static_cast<const Scalar*>(B)[t * p.states + n]);
            const V c = kConstantC ? static_cast<const V*>(C)[n] : broadcast(static_cast<const Scalar*>(C)[t * p.states + n]);
            g[n] = g[n] + conjugate(c) * grad;
            sum_C[n] = sum_C[n] + conjugate(h[n]) * grad;
            sum_B[n] = sum_B[n] + g[n] * u;
            grad_input += real_product_conjugate(g[n], b);
        }
        if (resets && resets[t]) {
            for (int n = 0; n < kCount; ++n) g[n] = V{};
        } else {
#pragma GCC unroll 16
            for (int n = 0; n < kCount; ++n) {
                g[n] = times_conjugate(g[n], decays[n]);
                const V exponent = times_conjugate(g[n], before[n]);
                grad_step += step_slope(exponent, A[n]);
                grad_A[n] = grad_A[n] + exponent * d;
            }
        }
        local.grad_input[t] = grad_input;
        local.grad_step[t] = grad_step;
    }
    for (int n = 0; n < kCount; ++n) local.state[own + n] = g[n], local.grad_A[own + n] = grad_A[n];
}

template <typename V, int kCount>
void unscan_all_states(const Problem& p, const Place& at, Local<V>& local, const typename Lanes<V>::Scalar* saved,
                       int64_t from) {
    int64_t n = from;
    for (; n + kCount <= p.states; n += kCount) {
        restore_state(saved + n * p.channels, at.channel, at.width, kCount, p.channels, local.history);
        auto unscan =
            p.B.groups ? (p.C.groups ? unscan_states<V, kCount, false, false> : unscan_states<V, kCount, false, true>)
                       : (p.C.groups ? unscan_states<V, kCount, true, false> : unscan_states<V, kCount, true, true>);
        unscan(p, at, local, n);
    }
    if constexpr (kCount > 1)
        if (n < p.states) unscan_all_states<V, kCount / 2>(p, at, local, saved, n);
}

template <typename V>
void unscan_tile(const Problem& p, const Gradients& g, const Place& at, Local<V>& local,
                 const typename Lanes<V>::Scalar* saved) {
    const int64_t stride = p.channels;
    const vfloat D = p.D ? load_some(p.D + at.channel, at.width) : vfloat{};
    load_inputs<V>(p, at, local, local.slope);
    if (g.y.data)
        load_tile(g.y, at.row, at.channel, at.rows, at.width, local.grad);
    else
        std::fill(local.grad, local.grad + at.rows, vfloat{});
    if (p.z.data) {
        load_tile(p.z, at.row, at.channel, at.rows, at.width, local.grad_step);
        for (int t = 0; t < at.rows; ++t) local.grad[t] *= silu(local.grad_step[t]);
    }
    for (int t = 0; t < at.rows; ++t) {
        local.y[t] = local.x[t] * D * (1.0f / Lanes<V>::kPairs);
        local.grad[t] *= Lanes<V>::kPairs;
        local.grad_input[t] = local.grad_step[t] = vfloat{};
    }
    unscan_all_states<V, in_flight<V>(kBackwardStates)>(p, at, local, saved, 0);

    vfloat grad_D = local.grad_D[at.own], grad_bias = local.grad_delta_bias[at.own];
    for (int t = 0; t < at.rows; ++t) {
        const vfloat x = local.x[t], grad = local.grad[t] * (1.0f / Lanes<V>::kPairs);
        vfloat grad_step = local.grad_input[t] * x + local.grad_step[t] * kLn2;
        if (p.softplus) grad_step *= local.slope[t];
        grad_D += grad * x;
        grad_bias += grad_step;
        local.input[t] = grad * D + local.grad_input[t] * local.step[t];
        local.grad_step[t] = grad_step;
    }
    local.grad_D[at.own] = grad_D;
    local.grad_delta_bias[at.own] = grad_bias;
    store_tile(g.x, p.x.type, stride, at.row, at.channel, at.rows, at.width, local.input);
    store_tile(g.delta, p.delta.type, stride, at.row, at.channel, at.rows, at.width, local.grad_step);
    if (p.z.data) {
        load_tile(p.z, at.row, at.channel, at.rows, at.width, local.step);
        if (g.y.data)
            load_tile(g.y, at.row, at.channel, at.rows, at.width, local.grad);
        for (int t = 0; t < at.rows; ++t) {
            const vfloat z = local.step[t];
            local.grad[t] *= local.y[t] * Lanes<V>::kPairs * silu_slope(z, sigmoid(z));
        }
        store_tile(g.z, p.z.type, stride, at.row, at.channel, at.rows, at.width, local.grad);
    }
}

// The lanes of a tile's gradient of B or C, added up, into this thread's part; and the sums begin anew.
template <typename V>
void flush_sums(const Weights& w, int64_t row, int rows, int64_t group, int64_t states, V* sums,
                typename Lanes<V>::Scalar* part) {
    for (int t = 0; t < rows; ++t) {
        auto* out = part + ((row + t) * w.groups + group) * states;
        for (int64_t n = 0; n < states; ++n) {
            out[n] = sum_lanes(sums[t * states + n]);
            sums[t * states + n] = V{};
        }
    }
}

template <typename V>
void backward_share(const Problem& p, const Gradients& g, int thread, int threads, void* memory) {
    typedef typename Lanes<V>::Scalar Scalar;
    const Blocks blocks(p);
    const Share share(p, blocks, thread, threads);
    const int64_t own_blocks = share.last_block() - share.first_block(), N = p.states;
    Arena arena(memory);
    Local<V> local(p, own_blocks, true, arena);
    prepare_blocks(p, blocks, share, local);
    Scalar* part_B = static_cast<Scalar*>(static_cast<void*>(g.part_B)) + thread * p.rows() * p.B.groups * N;
    Scalar* part_C = static_cast<Scalar*>(static_cast<void*>(g.part_C)) + thread * p.rows() * p.C.groups * N;
    std::fill(local.grad_A, local.grad_A + own_blocks * N, V{});
    std::fill(local.grad_D, local.grad_D + own_blocks, vfloat{});
    std::fill(local.grad_delta_bias, local.grad_delta_bias + own_blocks, vfloat{});
    if (p.B.groups) {
        std::fill(local.sum_B, local.sum_B + kTile * N, V{});
        std::fill(part_B, part_B + p.rows() * p.B.groups * N, Scalar{});
    } else {
        std::fill(local.grad_constant_B, local.grad_constant_B + own_blocks * N, V{});
    }
    if (p.C.groups) {
        std::fill(local.sum_C, local.sum_C + kTile * N, V{});
        std::fill(part_C, part_C + p.rows() * p.C.groups * N, Scalar{});
    } else {
        std::fill(local.grad_constant_C, local.grad_constant_C + own_blocks * N, V{});
    }
    for (int64_t s = 0; s < p.sequences; ++s) {
        const int64_t first = share.first_block(s), last = share.last_block(s), begin = p.begin(s), end = p.begin(s + 1);
        if (first == last) continue;
        for (int64_t b = first; b < last; ++b) {
            V* state = local.state + (b - share.first_block()) * N;
            if (g.last_state)
                gather(static_cast<const Scalar*>(g.last_state) + s * p.channels * N, blocks.channel(b), blocks.width(b), N,
                       state);
            else
                std::fill(state, state + N, V{});
        }
        for (int64_t tile = (end - begin + kTile - 1) / kTile - 1; tile >= 0; --tile) {
            const int64_t row = begin + tile * kTile;
            const int rows = int(std::min<int64_t>(kTile, end - row));
            const Scalar* saved = static_cast<const Scalar*>(g.states) + (p.checkpoint(s) + tile) * N * p.channels;
            for (int64_t b = first; b < last; ++b) {
                const Place at{row, blocks.channel(b), b - share.first_block(), rows, blocks.width(b)};
                const int64_t group_B = blocks.group(p.B, b), group_C = blocks.group(p.C, b);
                const bool new_B = b == first || blocks.group(p.B, b - 1) != group_B;
                const bool new_C = b == first || blocks.group(p.C, b - 1) != group_C;
                if (p.B.groups && new_B) load_rows_of<V>(p.B, at, group_B, N, local.B);
                if (p.C.groups && new_C) load_rows_of<V>(p.C, at, group_C, N, local.C);
                unscan_tile<V>(p, g, at, local, saved);
                const bool end_B = b + 1 == last || blocks.group(p.B, b + 1) != group_B;
                const bool end_C = b + 1 == last || blocks.group(p.C, b + 1) != group_C;
                if (p.B.groups && end_B) flush_sums(p.B, row, rows, group_B, N, local.sum_B, part_B);
                if (p.C.groups && end_C) flush_sums(p.C, row, rows, group_C, N, local.sum_C, part_C);
            }
        }
        if (g.initial_state)
            for (int64_t b = first; b < last; ++b)
                scatter(local.state + (b - share.first_block()) * N, blocks.channel(b), blocks.width(b), N,
                        static_cast<Scalar*>(g.initial_state) + s * p.channels * N);
    }
}

template <typename T>
void add_parts_as(const float* parts, int64_t size, int64_t from, int64_t to, int threads, T* out) {
    for (int64_t i = from; i < to; ++i) {
        float sum = parts[i];
        for (int thread = 1; thread < threads; ++thread) sum += parts[thread * size + i];
        out[i] = from_float<T>(sum);
    }
}
void add_parts(const float* parts, int64_t size, int thread, int threads, int type, void* out) {
    const int64_t from = size * thread / threads, to = size * (thread + 1) / threads;
    if (type == kFloat32) add_parts_as(parts, size, from, to, threads, static_cast<float*>(out));
    if (type == kBFloat16) add_parts_as(parts, size, from, to, threads, static_cast<bfloat16*>(out));
    if (type == kFloat16) add_parts_as(parts, size, from, to, threads, static_cast<float16*>(out));
}

// Adds what the threads have for the parameters, in the order of threads, so that the result does not waver.
template <typename V>
void reduce_share(const Problem& p, const Gradients& g, int thread, int threads, char* memory, size_t stride) {
    typedef typename Lanes<V>::Scalar Scalar;
    const Blocks blocks(p);
    const int64_t N = p.states, count = blocks.count();
    for (int64_t b = count * thread / threads; b < count * (thread + 1) / threads; ++b) {
        const int64_t channel = blocks.channel(b);
        const int width = blocks.width(b);
        bool found = false;
        vfloat D{}, bias{};
        V *A = nullptr, *B = nullptr, *C = nullptr;
        for (int other = 0; other < threads; ++other) {
            const Share share(p, blocks, other, threads);
            if (share.first == share.last || b < share.first_block() || b >= share.last_block()) continue;
            Arena arena(memory + other * stride);
            Local<V> local(p, share.last_block() - share.first_block(), true, arena);
            const int64_t own = b - share.first_block();
            D += local.grad_D[own], bias += local.grad_delta_bias[own];
            if (!found) {  // the first thread's arrays take the sums
                A = local.grad_A + own * N, B = local.grad_constant_B + own * N, C = local.grad_constant_C + own * N;
                found = true;
                continue;
            }
            for (int64_t n = 0; n < N; ++n) {
                A[n] = A[n] + local.grad_A[own * N + n];
                if (!p.B.groups) B[n] = B[n] + local.grad_constant_B[own * N + n];
                if (!p.C.groups) C[n] = C[n] + local.grad_constant_C[own * N + n];
            }
        }
        scatter(A, channel, width, N, static_cast<Scalar*>(g.A));
        if (!p.B.groups) scatter(B, channel, width, N, static_cast<Scalar*>(g.B));
        if (!p.C.groups) scatter(C, channel, width, N, static_cast<Scalar*>(g.C));
        if (g.D) store_some(g.D + channel, D, width);
        if (g.delta_bias) store_some(g.delta_bias + channel, bias, width);
    }
    constexpr int kFloats = sizeof(Scalar) / sizeof(float);
    if (p.B.groups) add_parts(g.part_B, p.rows() * p.B.groups * N * kFloats, thread, threads, p.B.rows.type, g.B);
    if (p.C.groups) add_parts(g.part_C, p.rows() * p.C.groups * N * kFloats, thread, threads, p.C.rows.type, g.C);
}

template <typename V>
void forward(const Problem& p, void* y, void* last_state, void* states, int threads, char* memory) {
    const size_t stride = workspace<V>(p, false, threads);
    parallel(threads, [&](int thread) {
        forward_share<V>(p, y, last_state, states, thread, threads, memory + thread * stride);
    });
}

template <typename V>
void backward(const Problem& p, const Gradients& g, int threads, char* memory) {
    const size_t stride = workspace<V>(p, true, threads);
    parallel(threads, [&](int thread) { backward_share<V>(p, g, thread, threads, memory + thread * stride); });
    parallel(threads, [&](int thread) { reduce_share<V>(p, g, thread, threads, memory, stride); });
}

}  // namespace
}  // namespace STATESCAN_LEVEL

// Strides count elements; those of complex B and C count their floats. Kernel arguments in the order of
// statescan/kernels/selective_scan.py.
#define PROBLEM_PARAMETERS                                                                                           \
    const void *x, const void *delta, const void *z, const void *A, const void *B, const void *C, const float *D,    \
        const float *delta_bias, const void *initial_state, const uint8_t *resets, const int64_t *offsets,           \
        int64_t x_stride, int64_t delta_stride, int64_t z_stride, int64_t B_stride, int64_t C_stride,                \
        int64_t B_group_stride, int64_t C_group_stride, int64_t B_groups, int64_t C_groups, int64_t sequences,       \
        int64_t length, int64_t channels, int64_t states, int x_type, int delta_type, int z_type, int B_type,        \
        int C_type, int softplus, int is_complex, int threads
#define PROBLEM                                                                                                      \
    Problem {                                                                                                        \
        {x, x_stride, x_type}, {delta, delta_stride, delta_type}, {z, z_stride, z_type}, A,                          \
            {{B, B_stride, B_type}, B_group_stride, B_groups}, {{C, C_stride, C_type}, C_group_stride, C_groups}, D, \
            delta_bias, initial_state, resets, offsets, sequences, length, channels, states, softplus != 0           \
    }

// Bytes / 1024 of the workspace that all threads together need.
STATESCAN_EXPORT(int, selective_scan_workspace)
(int64_t B_groups, int64_t C_groups, int64_t sequences, int64_t channels, int64_t states, int is_complex, int backward,
 int threads) {
    using namespace STATESCAN_LEVEL;
    Problem p{};
    p.B.groups = B_groups, p.C.groups = C_groups;
    p.sequences = sequences, p.channels = channels, p.states = states;
    const size_t stride = is_complex ? workspace<vcomplex>(p, backward, threads) : workspace<vfloat>(p, backward, threads);
    return int((stride * threads + 1023) / 1024);
}

STATESCAN_EXPORT(int, selective_scan_forward)
(PROBLEM_PARAMETERS, void* y, void* last_state, void* saved_states, void* memory) {
    using namespace STATESCAN_LEVEL;
    const Problem p = PROBLEM;
    (is_complex ? forward<vcomplex> : forward<vfloat>)(p, y, last_state, saved_states, threads,
                                                       static_cast<char*>(memory));
    return 0;
}

STATESCAN_EXPORT(int, selective_scan_backward)
(PROBLEM_PARAMETERS, const void* grad_y, int64_t grad_y_stride, const void* grad_last_state, const void* saved_states,
 void* grad_x, void* grad_delta, void* grad_A, void* grad_B, void* grad_C, float* grad_D, void* grad_z,
 float* grad_delta_bias, void* grad_initial_state, float* part_B, float* part_C, void* memory) {
    using namespace STATESCAN_LEVEL;
    const Problem p = PROBLEM;
    const Gradients g{{grad_y, grad_y_stride, x_type},
                      grad_last_state,
                      saved_states,
                      grad_x,
                      grad_delta,
                      grad_A,
                      grad_B,
                      grad_C,
                      grad_z,
                      grad_initial_state,
                      grad_D,
                      grad_delta_bias,
                      part_B,
                      part_C};
    (is_complex ? backward<vcomplex> : backward<vfloat>)(p, g, threads, static_cast<char*>(memory));
    return 0;
}

// Selective scan, backward: the gradients of every input.
//
// The states of a tile are computed again from the one saved before it, a few at a time, so nothing of length x
// channels x states is ever stored. With g_t the gradient of h_t (of its conjugate, for complex states):
//
//     g_t = conj(C_t) grad_y_t + conj(a_{t+1}) g_{t+1}          a_t = exp(d_t A)
//     grad B_t = g_t d_t x_t      grad C_t = conj(h_t) grad_y_t      grad (d_t A) = g_t conj(a_t h_{t-1})
#pragma once

#include "scan_forward.h"

namespace STATESCAN_LEVEL {
namespace {

// States and blocks in flight together. Two blocks share what they read of B and C and what they add to their
// gradients, which is most of the memory traffic.
#if defined(__AVX512F__)
constexpr int kBackwardStates = 4, kPair = 2;
#else
constexpr int kBackwardStates = 4, kPair = 1;
#endif

struct Gradients {
    Rows y;                  // incoming, may be absent
    const void* last_state;  // incoming, may be absent
    const void* saved;       // states, from the forward pass
    void *x, *delta, *A, *B, *C, *z, *initial_state;
    float *D, *delta_bias;
    float *part_B, *part_C;  // (threads, rows, groups, states) of Scalar
};

template <typename V>
struct Backward : Forward<V> {
    V *grad_A, *grad_constant_B, *grad_constant_C;  // [block][state]
    V *sum_B, *sum_C;                               // [position][state], a lane a channel, over all blocks of a group
    V *history, *decays;                            // [position][state in flight][block of the pair]
    vfloat *grad_D, *grad_delta_bias;               // [block]
    vfloat *slope, *grad, *grad_input, *grad_step;  // [block of the strip][position]

    Backward(const Problem& p, int64_t blocks, Arena& arena) : Forward<V>(p, blocks, arena) {
        const int64_t per_block = blocks * p.states, per_tile = kTile * p.states;
        grad_A = arena.take<V>(per_block);
        grad_constant_B = arena.take<V>(p.B.groups ? 0 : per_block);
        grad_constant_C = arena.take<V>(p.C.groups ? 0 : per_block);
        sum_B = arena.take<V>(p.B.groups ? per_tile : 0);
        sum_C = arena.take<V>(p.C.groups ? per_tile : 0);
        history = arena.take<V>((kTile + 1) * kBackwardStates * kPair);
        decays = arena.take<V>(kTile * kBackwardStates * kPair);
        grad_D = arena.take<vfloat>(blocks);
        grad_delta_bias = arena.take<vfloat>(blocks);
        for (vfloat** strip : {&slope, &grad, &grad_input, &grad_step}) *strip = arena.take<vfloat>(kStrip * kTile);
    }

    void clear(int64_t blocks, const Problem& p) {
        const int64_t per_block = blocks * p.states, per_tile = kTile * p.states;
        std::fill(grad_A, grad_A + per_block, V{});
        std::fill(grad_D, grad_D + blocks, vfloat{});
        std::fill(grad_delta_bias, grad_delta_bias + blocks, vfloat{});
        std::fill(grad_constant_B, grad_constant_B + (p.B.groups ? 0 : per_block), V{});
        std::fill(grad_constant_C, grad_constant_C + (p.C.groups ? 0 : per_block), V{});
        std::fill(sum_B, sum_B + (p.B.groups ? per_tile : 0), V{});
        std::fill(sum_C, sum_C + (p.C.groups ? per_tile : 0), V{});
    }
};

inline vfloat restore_state(const float* from, int width) { return load_some(from, width); }
inline vcomplex restore_state(const complex* from, int width) {
    vcomplex out{};
    for (int lane = 0; lane < std::min(width, kLanes); ++lane) set_lane(out, lane, from[lane]);
    return out;
}

// What one pass over a tile works on: `kCount` states, from `from` on, of `kBlocks` blocks, from the k-th on.
template <typename V>
struct Pass {
    const uint8_t* resets;
    const vfloat *step, *input, *grad;  // [block][position], as are the next three
    vfloat *y, *grad_input, *grad_step;
    const V* A;  // [block][state], as are the next two
    V *g, *grad_A;
    const void *B, *C;  // as `weight` reads them
    V *sum_B, *sum_C;   // [position][state], or [block][state] where constant
    V *history, *decays;
    int64_t states;
    int rows, first_block;  // of the strip
    const Ahead* ahead;
};

// States, and the decays between them, from the state before the tile, which is history[0].
template <typename V, int kCount, int kBlocks, bool kConstantB, bool kConstantC, bool kOutput>
void recompute_states(const Pass<V>& pass) {
    constexpr int kAll = kCount * kBlocks;
    V h[kAll];
    for (int i = 0; i < kAll; ++i) h[i] = pass.history[i];
    for (int t = 0; t < pass.rows; ++t) {
        if (pass.resets && pass.resets[t])
            for (int i = 0; i < kAll; ++i) h[i] = V{};
        V *decays = pass.decays + t * kAll, *history = pass.history + (t + 1) * kAll;
        if (pass.ahead)
            for (int k = 0; k < kBlocks; ++k) pass.ahead->fetch(t, pass.first_block + k);
        vfloat sum[kBlocks]{}, step[kBlocks], input[kBlocks];
        for (int k = 0; k < kBlocks; ++k) step[k] = pass.step[k * kTile + t], input[k] = pass.input[k * kTile + t];
#pragma GCC unroll 16
        for (int n = 0; n < kCount; ++n) {
#pragma GCC unroll 2
            for (int k = 0; k < kBlocks; ++k) {
                const int i = n * kBlocks + k;
                const V a = decay(step[k], pass.A[k * pass.states + n]);
                h[i] = a * h[i] + weight<V, kConstantB>(pass.B, pass.states, t, n, k) * input[k];
                decays[i] = a;
                history[i] = h[i];
                if (kOutput) sum[k] += real_product(weight<V, kConstantC>(pass.C, pass.states, t, n, k), h[i]);
            }
        }
        if (kOutput)
            for (int k = 0; k < kBlocks; ++k) pass.y[k * kTile + t] += sum[k];
    }
}

// From the last position to the first. `g` holds the gradient of the state after the tile, then of that before it.
template <typename V, int kCount, int kBlocks, bool kConstantB, bool kConstantC>
void unscan_states(const Pass<V>& pass) {
    constexpr int kAll = kCount * kBlocks;
    const int64_t states = pass.states;
    V g[kAll], grad_A[kAll];
    for (int n = 0; n < kCount; ++n)
        for (int k = 0; k < kBlocks; ++k) {
            g[n * kBlocks + k] = pass.g[k * states + n];
            grad_A[n * kBlocks + k] = pass.grad_A[k * states + n];
        }
    for (int t = pass.rows - 1; t >= 0; --t) {
        const V *decays = pass.decays + t * kAll, *before = pass.history + t * kAll, *h = before + kAll;
        const bool reset = pass.resets && pass.resets[t];
        vfloat grad_input[kBlocks]{}, grad_step[kBlocks]{}, step[kBlocks], input[kBlocks], grad[kBlocks];
        for (int k = 0; k < kBlocks; ++k) {
            step[k] = pass.step[k * kTile + t];
            input[k] = pass.input[k * kTile + t];
            grad[k] = pass.grad[k * kTile + t];
        }
        // What the state, with its gradient, gives to B, C and the input.
        auto output = [&](int n) __attribute__((always_inline)) {
            V to_B{}, to_C{};
#pragma GCC unroll 2
            for (int k = 0; k < kBlocks; ++k) {
                const int i = n * kBlocks + k;
                V* sum_B = kConstantB ? pass.sum_B + k * states + n : &to_B;
                V* sum_C = kConstantC ? pass.sum_C + k * states + n : &to_C;
                if (k == 0 && !kConstantB) to_B = pass.sum_B[t * states + n];
                if (k == 0 && !kConstantC) to_C = pass.sum_C[t * states + n];
                g[i] = g[i] + conjugate(weight<V, kConstantC>(pass.C, states, t, n, k)) * grad[k];
                *sum_C = *sum_C + conjugate(h[i]) * grad[k];
                *sum_B = *sum_B + g[i] * input[k];
                grad_input[k] += real_product_conjugate(g[i], weight<V, kConstantB>(pass.B, states, t, n, k));
            }
            if (!kConstantB) pass.sum_B[t * states + n] = to_B;
            if (!kConstantC) pass.sum_C[t * states + n] = to_C;
        };
        if (reset) {
            for (int n = 0; n < kCount; ++n) output(n);
            for (int i = 0; i < kAll; ++i) g[i] = V{};
        } else {
#pragma GCC unroll 16
            for (int n = 0; n < kCount; ++n) {
                output(n);
#pragma GCC unroll 2
                for (int k = 0; k < kBlocks; ++k) {
                    const int i = n * kBlocks + k;
                    g[i] = times_conjugate(g[i], decays[i]);
                    const V exponent = times_conjugate(g[i], before[i]);
                    grad_step[k] += step_slope(exponent, pass.A[k * states + n]);
                    grad_A[i] = grad_A[i] + exponent * step[k];
                }
            }
        }
        for (int k = 0; k < kBlocks; ++k) {
            pass.grad_input[k * kTile + t] += grad_input[k];
            pass.grad_step[k * kTile + t] += grad_step[k];
        }
    }
    for (int n = 0; n < kCount; ++n)
        for (int k = 0; k < kBlocks; ++k) {
            pass.g[k * states + n] = g[n * kBlocks + k];
            pass.grad_A[k * states + n] = grad_A[n * kBlocks + k];
        }
}

// What the backward scans within windows add, given the decays of the tile. Their own gradients run forward: with
// r_t = a_t e_{t+1} and e_t = r_t + b_t, those of e and r are u_t = a_{t-1} v_{t-1} and v_t = C_t grad_y_t + u_t, and
// that of d_t A is v_t r_t.
template <int kCount, int kBlocks>
void unscan_windows(const Pass<vfloat>& pass, int window, bool output) {
    constexpr int kAll = kCount * kBlocks;
    const int64_t states = pass.states;
    vfloat grad_A[kAll], looked[kTile * kAll];
    for (int i = 0; i < kAll; ++i) grad_A[i] = pass.grad_A[i % kBlocks * states + i / kBlocks];
    for (int first = 0; first < pass.rows; first += window) {
        const int end = std::min(pass.rows, first + window);
        vfloat r[kAll]{};
        for (int i = 0; i < kAll; ++i) looked[(end - 1) * kAll + i] = vfloat{};
        for (int t = end - 2; t >= first; --t) {
            vfloat sum[kBlocks]{};
#pragma GCC unroll 8
            for (int i = 0; i < kAll; ++i) {
                const int n = i / kBlocks, k = i % kBlocks;
                r[i] = pass.decays[t * kAll + i] *
                       (weight<vfloat, false>(pass.B, states, t + 1, n) * pass.input[k * kTile + t + 1] + r[i]);
                looked[t * kAll + i] = r[i];
                sum[k] += weight<vfloat, false>(pass.C, states, t, n) * r[i];
            }
            if (output)
                for (int k = 0; k < kBlocks; ++k) pass.y[k * kTile + t] += sum[k];
        }
        vfloat u[kAll]{};
        for (int t = first; t < end; ++t) {
            vfloat grad_input[kBlocks]{}, grad_step[kBlocks]{}, step[kBlocks], input[kBlocks], grad[kBlocks];
            for (int k = 0; k < kBlocks; ++k) {
                step[k] = pass.step[k * kTile + t];
                input[k] = pass.input[k * kTile + t];
                grad[k] = pass.grad[k * kTile + t];
            }
#pragma GCC unroll 8
            for (int n = 0; n < kCount; ++n) {
                const vfloat B = weight<vfloat, false>(pass.B, states, t, n), C = weight<vfloat, false>(pass.C, states, t, n);
                vfloat to_B = pass.sum_B[t * states + n], to_C = pass.sum_C[t * states + n];
#pragma GCC unroll 2
                for (int k = 0; k < kBlocks; ++k) {
                    const int i = n * kBlocks + k;
                    const vfloat seen = looked[t * kAll + i], v = C * grad[k] + u[i], exponent = v * seen;
                    to_B += u[i] * input[k];
                    to_C += seen * grad[k];
                    grad_input[k] += u[i] * B;
                    grad_step[k] += step_slope(exponent, pass.A[k * states + n]);
                    grad_A[i] += exponent * step[k];
                    u[i] = pass.decays[t * kAll + i] * v;
                }
                pass.sum_B[t * states + n] = to_B;
                pass.sum_C[t * states + n] = to_C;
            }
            for (int k = 0; k < kBlocks; ++k) {
                pass.grad_input[k * kTile + t] += grad_input[k];
                pass.grad_step[k * kTile + t] += grad_step[k];
            }
        }
    }
    for (int i = 0; i < kAll; ++i) pass.grad_A[i % kBlocks * states + i / kBlocks] = grad_A[i];
}

template <typename V, int kCount, int kBlocks, bool kConstantB, bool kConstantC>
void run_pass(const Pass<V>& pass, bool output, int window) {
    if (output)
        recompute_states<V, kCount, kBlocks, kConstantB, kConstantC, true>(pass);
    else
        recompute_states<V, kCount, kBlocks, kConstantB, kConstantC, false>(pass);
    if constexpr (sizeof(V) == sizeof(vfloat) && !kConstantB && !kConstantC)
        if (window) unscan_windows<kCount, kBlocks>(pass, window, output);
    unscan_states<V, kCount, kBlocks, kConstantB, kConstantC>(pass);
}

// All states from `from` on, of kBlocks blocks: kCount at a time, then half as many.
template <typename V, int kCount, int kBlocks>
void unscan_blocks(const Problem& p, const Strip& at, const Ahead& ahead, Backward<V>& local,
                   const typename Lanes<V>::Scalar* saved, int k, int64_t from) {
    int64_t n = from;
    for (; n + kCount <= p.states; n += kCount) {
        const int64_t own = (at.own + k) * p.states + n;
        for (int i = 0; i < kCount * kBlocks; ++i) {
            const int block = k + i % kBlocks;
            local.history[i] = restore_state(saved + (n + i / kBlocks) * p.channels + at.channel + block * kLanes,
                                             at.width - block * kLanes);
        }
        const Pass<V> pass{p.resets ? p.resets + at.row : nullptr,
                           local.step + k * kTile,
                           local.input + k * kTile,
                           local.grad + k * kTile,
                           local.y + k * kTile,
                           local.grad_input + k * kTile,
                           local.grad_step + k * kTile,
                           local.A + own,
                           local.state + own,
                           local.grad_A + own,
                           p.B.groups ? static_cast<const void*>(local.B + n) : local.constant_B + own,
                           p.C.groups ? static_cast<const void*>(local.C + n) : local.constant_C + own,
                           p.B.groups ? local.sum_B + n : local.grad_constant_B + own,
                           p.C.groups ? local.sum_C + n : local.grad_constant_C + own,
                           local.history,
                           local.decays,
                           p.states,
                           at.rows,
                           k,
                           n == 0 ? &ahead : nullptr};
        auto run = p.B.groups ? (p.C.groups ? run_pass<V, kCount, kBlocks, false, false> : run_pass<V, kCount, kBlocks, false, true>)
                              : (p.C.groups ? run_pass<V, kCount, kBlocks, true, false> : run_pass<V, kCount, kBlocks, true, true>);
        run(pass, p.z.data != nullptr, p.window);
    }
    if constexpr (kCount > 1)
        if (n < p.states) unscan_blocks<V, kCount / 2, kBlocks>(p, at, ahead, local, saved, k, n);
}

template <typename V>
void unscan_strip(const Problem& p, const Gradients& g, const Strip& at, const Strip& next, Backward<V>& local,
                  const typename Lanes<V>::Scalar* saved, const typename Lanes<V>::Scalar* next_saved) {
    Ahead ahead;
    const Rows grad_x{g.x, p.channels, p.x.type};
    const Rows grad_delta{g.delta, p.delta.walk_stride < 0 ? p.channels : p.delta.stride, p.delta.type, p.delta.walk_stride};
    const Rows grad_z{g.z, p.channels, p.z.type};
    for (const Rows& m : {p.x, p.delta, p.z, g.y, grad_x, grad_delta, grad_z}) ahead.add(m, next);
    const int64_t row_of_saved = p.channels * sizeof(typename Lanes<V>::Scalar);
    ahead.add(next_saved + next.channel, row_of_saved, p.states);

    const StripView x = load_inputs(p, at, local, local.slope);
    const StripView grad_y = g.y.data ? StripView::loaded(g.y, at, local.grad) : StripView(local.grad);
    if (!g.y.data) std::fill(local.grad, local.grad + at.blocks * kTile, vfloat{});
    StripView z(local.grad_step);
    if (p.z.data) {
        direct_path<V>(p, at, x, local.y);
        z = StripView::loaded(p.z, at, local.grad_step);
    }
    for (int k = 0; k < at.blocks; ++k)
        for (int t = 0; t < at.rows; ++t) {
            const int i = k * kTile + t;
            const vfloat grad = grad_y[k].get(t) * Lanes<V>::kPairs;
            local.grad[i] = p.z.data ? grad * silu(z[k].get(t)) : grad;
            local.grad_input[i] = local.grad_step[i] = vfloat{};
        }
    constexpr int kCount = in_flight<V>(kBackwardStates);
    int k = 0;
    for (; k + kPair <= at.blocks; k += kPair) unscan_blocks<V, kCount, kPair>(p, at, ahead, local, saved, k, 0);
    for (; k < at.blocks; ++k) unscan_blocks<V, kCount, 1>(p, at, ahead, local, saved, k, 0);

    const StripView to_x(grad_x, at, local.input), to_delta(grad_delta, at, local.grad_step);
    for (k = 0; k < at.blocks; ++k) {
        const int64_t own = at.own + k;
        const vfloat D = p.D ? load_some(p.D + at.channel + k * kLanes, at.width - k * kLanes) : vfloat{};
        vfloat grad_D = local.grad_D[own], grad_bias = local.grad_delta_bias[own];
        for (int t = 0; t < at.rows; ++t) {
            const int i = k * kTile + t;
            const vfloat value = x[k].get(t), grad = local.grad[i] * (1.0f / Lanes<V>::kPairs);
            vfloat grad_step = local.grad_input[i] * value + local.grad_step[i] * kLn2;
            if (p.softplus) grad_step *= local.slope[i];
            grad_D += grad * value;
            grad_bias += grad_step;
            to_x[k].set(t, grad * D + local.grad_input[i] * local.step[i]);
            to_delta[k].set(t, grad_step);
        }
        local.grad_D[own] = grad_D;
        local.grad_delta_bias[own] = grad_bias;
    }
    if (to_x.in(local.input)) store_strip(grad_x, at, local.input);
    if (to_delta.in(local.grad_step)) store_strip(grad_delta, at, local.grad_step);
    if (p.z.data) {
        z = StripView::loaded(p.z, at, local.step);
        const StripView again = g.y.data ? StripView::loaded(g.y, at, local.grad) : StripView(local.grad), to_z(grad_z, at, local.y);
        for (k = 0; k < at.blocks; ++k)
            for (int t = 0; t < at.rows; ++t) {
                const vfloat gate = z[k].get(t), y = local.y[k * kTile + t];
                to_z[k].set(t, again[k].get(t) * y * Lanes<V>::kPairs * silu_slope(gate, sigmoid(gate)));
            }
        if (to_z.in(local.y)) store_strip(grad_z, at, local.y);
    }
}

// The lanes of a tile's gradient of B or C, added up, into this thread's part; and the sums begin anew.
template <typename V>
void flush_sums(const Weights& w, const Strip& at, int64_t group, int64_t states, V* sums, typename Lanes<V>::Scalar* part) {
    for (int t = 0; t < at.rows; ++t) {
        const int64_t place = at.place(t);
        auto* out = part + (place * w.groups + group) * states;
        for (int64_t n = 0; n < states; ++n) {
            if (place >= 0) out[n] = sum_lanes(sums[t * states + n]);
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
    Backward<V> local(p, own_blocks, arena);
    prepare_blocks(p, blocks, share, local);
    local.clear(own_blocks, p);
    const int64_t size_B = p.stored_rows() * p.B.groups * N, size_C = p.stored_rows() * p.C.groups * N;
    Scalar* part_B = static_cast<Scalar*>(static_cast<void*>(g.part_B)) + thread * size_B;
    Scalar* part_C = static_cast<Scalar*>(static_cast<void*>(g.part_C)) + thread * size_C;
    std::fill(part_B, part_B + size_B, Scalar{});
    std::fill(part_C, part_C + size_C, Scalar{});
    for (int64_t s = 0; s < p.sequences; ++s) {
        const int64_t first = share.first_block(s), last = share.last_block(s), begin = p.begin(s), end = p.begin(s + 1);
        enter_sequence(p, blocks, share, s, g.last_state, local.state);
        for (int64_t tile = (end - begin + kTile - 1) / kTile - 1; tile >= 0; --tile) {
            const Scalar* saved = static_cast<const Scalar*>(g.saved) + (p.checkpoint(s) + tile) * N * p.channels;
            int64_t group_B = -1, group_C = -1;
            for (int64_t b = first; b < last;) {
                const int64_t row = begin + tile * kTile;
                const Strip at = strip_at(p, blocks, share, s, b, row, end);
                const int64_t then = b + at.blocks;
                const Strip next = then < last ? strip_at(p, blocks, share, s, then, row, end)
                                               : strip_at(p, blocks, share, s, first, std::max(begin, row - kTile), end);
                if (p.B.groups && blocks.group(p.B, b) != group_B)
                    load_rows_of<V>(p.B, at, group_B = blocks.group(p.B, b), N, local.B);
                if (p.C.groups && blocks.group(p.C, b) != group_C)
                    load_rows_of<V>(p.C, at, group_C = blocks.group(p.C, b), N, local.C);
                unscan_strip<V>(p, g, at, next, local, saved, next.row == row ? saved : saved - N * p.channels);
                if (p.B.groups && (then == last || blocks.group(p.B, then) != group_B))
                    flush_sums(p.B, at, group_B, N, local.sum_B, part_B);
                if (p.C.groups && (then == last || blocks.group(p.C, then) != group_C))
                    flush_sums(p.C, at, group_C, N, local.sum_C, part_C);
                b = then;
            }
        }
        if (g.initial_state) leave_sequence(p, blocks, share, s, local.state, g.initial_state);
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
inline void add_parts(const float* parts, int64_t size, int thread, int threads, int type, void* out) {
    const int64_t from = size * thread / threads, to = size * (thread + 1) / threads;
    if (type == kFloat32) add_parts_as(parts, size, from, to, threads, static_cast<float*>(out));
    if (type == kBFloat16) add_parts_as(parts, size, from, to, threads, static_cast<bfloat16*>(out));
    if (type == kFloat16) add_parts_as(parts, size, from, to, threads, static_cast<float16*>(out));
}

// Adds up what the threads have for the parameters, in the order of threads, so that the result never wavers.
template <typename V>
void reduce_share(const Problem& p, const Gradients& g, int thread, int threads, char* memory, size_t stride) {
    typedef typename Lanes<V>::Scalar Scalar;
    const Blocks blocks(p);
    const int64_t N = p.states, count = blocks.count();
    for (int64_t b = count * thread / threads; b < count * (thread + 1) / threads; ++b) {
        const int64_t channel = blocks.channel(b);
        const int width = blocks.width(b);
        vfloat D{}, bias{};
        V *A = nullptr, *B = nullptr, *C = nullptr;  // the first thread's arrays take the sums
        for (int other = 0; other < threads; ++other) {
            const Share share(p, blocks, other, threads);
            if (share.first == share.last || b < share.first_block() || b >= share.last_block()) continue;
            Arena arena(memory + other * stride);
            Backward<V> local(p, share.last_block() - share.first_block(), arena);
            const int64_t own = b - share.first_block();
            D += local.grad_D[own], bias += local.grad_delta_bias[own];
            const auto add = [&](V*& sum, V* values) {
                if (sum)
                    for (int64_t n = 0; n < N; ++n) sum[n] = sum[n] + values[own * N + n];
                else
                    sum = values + own * N;
            };
            add(A, local.grad_A);
            if (!p.B.groups) add(B, local.grad_constant_B);
            if (!p.C.groups) add(C, local.grad_constant_C);
        }
        scatter(A, channel, width, N, static_cast<Scalar*>(g.A));
        if (!p.B.groups) scatter(B, channel, width, N, static_cast<Scalar*>(g.B));
        if (!p.C.groups) scatter(C, channel, width, N, static_cast<Scalar*>(g.C));
        if (g.D) store_some(g.D + channel, D, width);
        if (g.delta_bias) store_some(g.delta_bias + channel, bias, width);
    }
    constexpr int kFloats = sizeof(Scalar) / sizeof(float);
    if (p.B.groups) add_parts(g.part_B, p.stored_rows() * p.B.groups * N * kFloats, thread, threads, p.B.rows.type, g.B);
    if (p.C.groups) add_parts(g.part_C, p.stored_rows() * p.C.groups * N * kFloats, thread, threads, p.C.rows.type, g.C);
}

}  // namespace
}  // namespace STATESCAN_LEVEL

// Selective scan, forward: h_t = exp(d_t A) h_{t-1} + d_t B_t x_t, y_t = (C_t h_t + D x_t) silu(z_t).
//
// Vectors run across channels, so the recurrence needs no shuffles and the states stay in registers.
#pragma once

#include "scan_tiles.h"

namespace STATESCAN_LEVEL {
namespace {

// How many states of a block are in flight together: as many as the registers hold.
#if defined(__AVX512F__)
constexpr int kForwardStates = 16;
#else
constexpr int kForwardStates = 8;
#endif

template <typename V>
constexpr int in_flight(int reals) {
    return std::max<int>(1, reals * sizeof(vfloat) / sizeof(V));
}

// One thread's workspace for the forward pass. Arrays of [block][state] hold its own blocks only.
template <typename V>
struct Forward {
    typedef typename Lanes<V>::Scalar Scalar;
    V *A, *state, *constant_B, *constant_C;
    Scalar *B, *C;                  // [position][state] of the current tile
    vfloat *step, *input, *x, *y;  // [block of the strip][position]

    Forward(const Problem& p, int64_t blocks, Arena& arena) {
        const int64_t per_block = blocks * p.states, per_tile = kTile * p.states;
        A = arena.take<V>(per_block);
        state = arena.take<V>(per_block);
        constant_B = arena.take<V>(p.B.groups ? 0 : per_block);
        constant_C = arena.take<V>(p.C.groups ? 0 : per_block);
        B = arena.take<Scalar>(p.B.groups ? per_tile : 0);
        C = arena.take<Scalar>(p.C.groups ? per_tile : 0);
        for (vfloat** strip : {&step, &input, &x, &y}) *strip = arena.take<vfloat>(kStrip * kTile);
    }
};

// (channels, states) -> [state], a lane a channel, and back.
template <typename V, typename Scalar>
void gather(const Scalar* from, int64_t channel, int width, int64_t states, V* to) {
    std::fill(to, to + states, V{});
    for (int lane = 0; lane < width; ++lane)
        for (int64_t n = 0; n < states; ++n) set_lane(to[n], lane, from[(channel + lane) * states + n]);
}
template <typename V, typename Scalar>
void scatter(const V* from, int64_t channel, int width, int64_t states, Scalar* to) {
    for (int lane = 0; lane < width; ++lane)
        for (int64_t n = 0; n < states; ++n) to[(channel + lane) * states + n] = get_lane(from[n], lane);
}

// [state] -> (states, channels), the layout of saved states.
inline void save_state(const vfloat* from, int64_t channel, int width, int64_t states, int64_t channels, float* to) {
    for (int64_t n = 0; n < states; ++n) store_some(to + n * channels + channel, from[n], width);
}
inline void save_state(const vcomplex* from, int64_t channel, int width, int64_t states, int64_t channels, complex* to) {
    for (int64_t n = 0; n < states; ++n)
        for (int lane = 0; lane < width; ++lane) to[n * channels + channel + lane] = get_lane(from[n], lane);
}

template <typename V>
void prepare_blocks(const Problem& p, const Blocks& blocks, const Share& share, Forward<V>& local) {
    typedef typename Lanes<V>::Scalar Scalar;
    for (int64_t b = share.first_block(), own = 0; b < share.last_block(); ++b, own += p.states) {
        const int64_t channel = blocks.channel(b);
        const int width = blocks.width(b);
        gather(static_cast<const Scalar*>(p.A), channel, width, p.states, local.A + own);
        for (int64_t n = 0; n < p.states; ++n) local.A[own + n] = to_powers(local.A[own + n]);
        if (!p.B.groups)
            gather(static_cast<const Scalar*>(p.B.rows.data), channel, width, p.states, local.constant_B + own);
        if (!p.C.groups)
            gather(static_cast<const Scalar*>(p.C.rows.data), channel, width, p.states, local.constant_C + own);
    }
}

// The thread's states at the start of a sequence (or, going backward, their gradients at its end), and back.
template <typename V>
void enter_sequence(const Problem& p, const Blocks& blocks, const Share& share, int64_t s, const void* from, V* states) {
    typedef typename Lanes<V>::Scalar Scalar;
    for (int64_t b = share.first_block(s); b < share.last_block(s); ++b) {
        V* state = states + (b - share.first_block()) * p.states;
        if (from)
            gather(static_cast<const Scalar*>(from) + s * p.channels * p.states, blocks.channel(b), blocks.width(b),
                   p.states, state);
        else
            std::fill(state, state + p.states, V{});
    }
}
template <typename V>
void leave_sequence(const Problem& p, const Blocks& blocks, const Share& share, int64_t s, const V* states, void* to) {
    typedef typename Lanes<V>::Scalar Scalar;
    for (int64_t b = share.first_block(s); b < share.last_block(s); ++b)
        scatter(states + (b - share.first_block()) * p.states, blocks.channel(b), blocks.width(b), p.states,
                static_cast<Scalar*>(to) + s * p.channels * p.states);
}

// delta, with its bias and softplus if any, and the softplus' slope where that is asked for.
template <typename V>
StripView load_steps(const Problem& p, const Strip& at, Forward<V>& local, vfloat* slope = nullptr) {
    const StripView delta = StripView::loaded(p.delta, at, local.step), steps(local.step);
    if (!p.softplus && !p.delta_bias) return delta;
    for (int k = 0; k < at.blocks; ++k) {
        const View from = delta[k], to = steps[k];
        const vfloat bias = p.delta_bias ? load_some(p.delta_bias + at.channel + k * kLanes, at.width - k * kLanes) : vfloat{};
        for (int t = 0; t < at.rows; ++t) {
            vfloat step = from.get(t) + bias;
            if (p.softplus) step = slope ? softplus(step, &slope[k * kTile + t]) : softplus(step);
            to.set(t, step);
        }
    }
    return steps;
}

// Fills the tiles of steps and inputs step * x; gives x.
template <typename V>
StripView load_inputs(const Problem& p, const Strip& at, Forward<V>& local, vfloat* slope = nullptr) {
    const StripView x = StripView::loaded(p.x, at, local.x), steps = load_steps(p, at, local, slope);
    for (int k = 0; k < at.blocks; ++k)
        for (int t = 0; t < at.rows; ++t) {
            const vfloat step = steps[k].get(t);
            local.step[k * kTile + t] = step;
            local.input[k * kTile + t] = step * x[k].get(t);
        }
    return x;
}

template <typename V>
void load_rows_of(const Weights& w, const Strip& at, int64_t group, int64_t states, typename Lanes<V>::Scalar* tile) {
    constexpr int kFloats = sizeof(typename Lanes<V>::Scalar) / sizeof(float);
    load_weights(w.rows, at, group * w.group_stride, int(states) * kFloats,
                 reinterpret_cast<float*>(tile));
}

// B or C at position t for state n of the k-th block: from [position][state], or [block][state] where constant.
template <typename V, bool kConstant>
inline V weight(const void* weights, int64_t states, int t, int n, int k = 0) {
    if constexpr (kConstant) return static_cast<const V*>(weights)[k * states + n];
    return broadcast(static_cast<const typename Lanes<V>::Scalar*>(weights)[t * states + n]);
}

// kCount states of one block over a tile; y gains sum C h. Where they are the first ones it begins as the direct path D x.
template <typename V, int kCount, bool kConstantB, bool kConstantC>
void scan_states(int rows, View step, View x, const vfloat* D, const V* A, const void* B, const void* C, int64_t states,
                 const uint8_t* resets, V* state, View y, const Ahead& ahead, int k) {
    V h[kCount];
    for (int n = 0; n < kCount; ++n) h[n] = state[n];
    for (int t = 0; t < rows; ++t) {
        if (resets && resets[t])
            for (int n = 0; n < kCount; ++n) h[n] = V{};
        ahead.fetch(t, k);
        const vfloat d = step.get(t), value = x.get(t), u = d * value;
        vfloat sum = D ? *D * value : y.get(t);
#pragma GCC unroll 16
        for (int n = 0; n < kCount; ++n) {
            h[n] = decay(d, A[n]) * h[n] + weight<V, kConstantB>(B, states, t, n) * u;
            sum += real_product(weight<V, kConstantC>(C, states, t, n), h[n]);
        }
        y.set(t, sum);
    }
    for (int n = 0; n < kCount; ++n) state[n] = h[n];
}

// The same on tiles, where every window is scanned backward too, from the decays of the way forth.
template <int kCount>
void scan_windows(int rows, int window, const vfloat* step, const vfloat* input, const vfloat* A, const void* B,
                  const void* C, int64_t states, vfloat* state, vfloat* y, const Ahead& ahead, int k) {
    vfloat h[kCount], decays[kTile * kCount];
    for (int n = 0; n < kCount; ++n) h[n] = state[n];
    for (int first = 0; first < rows; first += window) {
        const int end = std::min(rows, first + window);
        for (int t = first; t < end; ++t) {
            ahead.fetch(t, k);
            const vfloat d = step[t], u = input[t];
            vfloat sum = y[t];
#pragma GCC unroll 16
            for (int n = 0; n < kCount; ++n) {
                const vfloat a = decay(d, A[n]);
                decays[(t - first) * kCount + n] = a;
                h[n] = a * h[n] + weight<vfloat, false>(B, states, t, n) * u;
                sum += weight<vfloat, false>(C, states, t, n) * h[n];
            }
            y[t] = sum;
        }
        vfloat r[kCount]{};
        for (int t = end - 2; t >= first; --t) {
            const vfloat u = input[t + 1];
            vfloat sum = y[t];
#pragma GCC unroll 16
            for (int n = 0; n < kCount; ++n) {
                r[n] = decays[(t - first) * kCount + n] * (weight<vfloat, false>(B, states, t + 1, n) * u + r[n]);
                sum += weight<vfloat, false>(C, states, t, n) * r[n];
            }
            y[t] = sum;
        }
    }
    for (int n = 0; n < kCount; ++n) state[n] = h[n];
}

// All states of a block from `from` on: kCount at a time, then half as many.
template <typename V, int kCount>
void scan_block(const Problem& p, const Strip& at, const Ahead& ahead, Forward<V>& local, int k, View step, View x, vfloat D,
                View y, int64_t from) {
    const int64_t own = (at.own + k) * p.states;
    int64_t n = from;
    for (; n + kCount <= p.states; n += kCount) {
        const void* B = p.B.groups ? static_cast<const void*>(local.B + n) : local.constant_B + own + n;
        const void* C = p.C.groups ? static_cast<const void*>(local.C + n) : local.constant_C + own + n;
        auto scan = p.B.groups ? (p.C.groups ? scan_states<V, kCount, false, false> : scan_states<V, kCount, false, true>)
                               : (p.C.groups ? scan_states<V, kCount, true, false> : scan_states<V, kCount, true, true>);
        scan(at.rows, step, x, n ? nullptr : &D, local.A + own + n, B, C, p.states, p.resets ? p.resets + at.row : nullptr,
             local.state + own + n, y, ahead, k);
    }
    if constexpr (kCount > 1)
        if (n < p.states) scan_block<V, kCount / 2>(p, at, ahead, local, k, step, x, D, y, n);
}

// All states of a block whose windows are scanned backward too.
template <int kCount>
void scan_block_windows(const Problem& p, const Strip& at, const Ahead& ahead, Forward<vfloat>& local, int k, int64_t from) {
    const int64_t own = (at.own + k) * p.states;
    int64_t n = from;
    for (; n + kCount <= p.states; n += kCount)
        scan_windows<kCount>(at.rows, p.window, local.step + k * kTile, local.input + k * kTile, local.A + own + n,
                             local.B + n, local.C + n, p.states, local.state + own + n, local.y + k * kTile, ahead, k);
    if constexpr (kCount > 1)
        if (n < p.states) scan_block_windows<kCount / 2>(p, at, ahead, local, k, n);
}

// y begins as the direct path; it is doubled for conjugate pairs at the end.
template <typename V>
void direct_path(const Problem& p, const Strip& at, const StripView& x, vfloat* y) {
    for (int k = 0; k < at.blocks; ++k) {
        const int width = at.width - k * kLanes;
        const vfloat D = p.D ? load_some(p.D + at.channel + k * kLanes, width) : vfloat{};
        for (int t = 0; t < at.rows; ++t) y[k * kTile + t] = x[k].get(t) * (D * (1.0f / Lanes<V>::kPairs));
    }
}

// The strip on tiles, where windows are scanned backward too.
inline void scan_strip_windows(const Problem& p, const Strip& at, const Ahead& ahead, Forward<vfloat>& local, const Rows& y) {
    direct_path<vfloat>(p, at, load_inputs(p, at, local), local.y);
    for (int k = 0; k < at.blocks; ++k) scan_block_windows<kForwardStates>(p, at, ahead, local, k, 0);
    if (p.z.data) {
        load_strip(p.z, at, local.x);
        for (int k = 0; k < at.blocks; ++k)
            for (int i = k * kTile; i < k * kTile + at.rows; ++i) local.y[i] *= silu(local.x[i]);
    }
    store_strip(y, at, local.y);
}

// Inputs and outputs are used where they lie as far as they can be: there is so much arithmetic between a position and
// the next that the memory's time hides behind it. Copied to tiles and back they cost half as much again.
template <typename V>
void scan_strip(const Problem& p, const Strip& at, const Strip& next, Forward<V>& local, void* out) {
    const Rows y{out, p.channels, p.x.type};
    Ahead ahead;
    for (const Rows& m : {p.x, p.delta, p.z, y}) ahead.add(m, next);
    if constexpr (sizeof(V) == sizeof(vfloat))
        if (p.window) return scan_strip_windows(p, at, ahead, local, y);
    const StripView x = StripView::loaded(p.x, at, local.x), steps = load_steps(p, at, local), outputs(y, at, local.y);
    const bool unfinished = p.z.data || Lanes<V>::kPairs != 1;
    const StripView sums = unfinished ? StripView(local.y) : outputs;
    for (int k = 0; k < at.blocks; ++k) {
        const vfloat D = p.D ? load_some(p.D + at.channel + k * kLanes, at.width - k * kLanes) : vfloat{};
        scan_block<V, in_flight<V>(kForwardStates)>(p, at, ahead, local, k, steps[k], x[k], D * (1.0f / Lanes<V>::kPairs),
                                                    sums[k], 0);
    }
    if (unfinished) {
        const StripView gates = p.z.data ? StripView::loaded(p.z, at, local.x) : sums;
        for (int k = 0; k < at.blocks; ++k) {
            const View from = sums[k], gate = gates[k], to = outputs[k];
            for (int t = 0; t < at.rows; ++t) {
                const vfloat sum = from.get(t) * Lanes<V>::kPairs;
                to.set(t, p.z.data ? sum * silu(gate.get(t)) : sum);
            }
        }
    }
    if (outputs.in(local.y)) store_strip(y, at, local.y);
}

// The strip of sequence s that begins at block b and position `row`.
inline Strip strip_at(const Problem& p, const Blocks& blocks, const Share& share, int64_t s, int64_t b, int64_t row,
                      int64_t end) {
    const int count = blocks.strip(b, share.last_block(s));
    const int rows = int(std::max<int64_t>(0, std::min<int64_t>(kTile, end - row)));
    const int64_t channel = blocks.channel(b), walk = b / blocks.per_run;
    const int32_t* cells = p.order ? p.order + walk * p.length + (row - p.begin(s)) : nullptr;
    return {row, channel, b - share.first_block(), rows, blocks.width(b, count), count, cells,
            s * p.cells, walk, channel - walk * blocks.run};
}

template <typename V>
void forward_share(const Problem& p, void* y, void* last_state, void* saved, int thread, int threads, void* memory) {
    typedef typename Lanes<V>::Scalar Scalar;
    const Blocks blocks(p);
    const Share share(p, blocks, thread, threads);
    Arena arena(memory);
    Forward<V> local(p, share.last_block() - share.first_block(), arena);
    prepare_blocks(p, blocks, share, local);
    for (int64_t s = 0; s < p.sequences; ++s) {
        const int64_t first = share.first_block(s), last = share.last_block(s), end = p.begin(s + 1);
        enter_sequence(p, blocks, share, s, p.initial_state, local.state);
        int64_t checkpoint = p.checkpoint(s);
        for (int64_t row = p.begin(s); row < end; row += kTile, ++checkpoint) {
            int64_t group_B = -1, group_C = -1;
            for (int64_t b = first; b < last;) {
                const Strip at = strip_at(p, blocks, share, s, b, row, end);
                const Strip next = b + at.blocks < last ? strip_at(p, blocks, share, s, b + at.blocks, row, end)
                                                        : strip_at(p, blocks, share, s, first, row + kTile, end);
                if (p.B.groups && blocks.group(p.B, b) != group_B)
                    load_rows_of<V>(p.B, at, group_B = blocks.group(p.B, b), p.states, local.B);
                if (p.C.groups && blocks.group(p.C, b) != group_C)
                    load_rows_of<V>(p.C, at, group_C = blocks.group(p.C, b), p.states, local.C);
                if (saved)
                    for (int k = 0; k < at.blocks; ++k)
                        save_state(local.state + (at.own + k) * p.states, at.channel + k * kLanes,
                                   std::min(kLanes, at.width - k * kLanes), p.states, p.channels,
                                   static_cast<Scalar*>(saved) + checkpoint * p.states * p.channels);
                scan_strip<V>(p, at, next, local, y);
                b += at.blocks;
            }
        }
        leave_sequence(p, blocks, share, s, local.state, last_state);
    }
}

}  // namespace
}  // namespace STATESCAN_LEVEL

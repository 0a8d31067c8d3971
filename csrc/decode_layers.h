// The layers of the decode engine, each run by a team of threads from one norm to the sum with the residual stream.
#pragma once

#include "decode_products.h"

namespace STATESCAN_LEVEL {

// Where a layer's rows live, (rows, width) each; and the batch they stand for.
struct Rows {
    float *residual, *normed, *a, *b, *c, *partial;
    uint16_t *normed_halves, *made_halves;  // what all threads multiply, first and last in a layer, in bfloat16
    int64_t dim_stride, wide, partial_width, ld_halves;
    int64_t sequences, length;
    int64_t count() const { return sequences * length; }
};

constexpr int64_t kUpcomingBytes = 128 << 10;  // a part of the second-level cache

struct Worker {
    const Plan& plan;
    const Rows& rows;
    Scratch scratch;
    Team& team;
    int thread, threads;

    Activations prepare(const Matrix& w, const float* x, int64_t ldx, Range depth) const {
        return STATESCAN_LEVEL::prepare(w, x, ldx, rows.count(), depth, scratch, plan.dot_bfloat16 != 0);
    }
    Activations prepare(const Matrix& w, const float* x, int64_t ldx) const {
        return prepare(w, x, ldx, {0, w.columns});
    }
    // The same, shared out: each thread makes a part ready, and all take the whole once they have met.
    void prepare_part(const Matrix& w, const float* x, int64_t ldx, uint16_t* halves, Range of_rows, Range columns) const {
        if (takes_halves(w, rows.count(), plan.dot_bfloat16 != 0))
            for (int64_t m = of_rows.begin; m < of_rows.end; ++m)
                to_halves(x + m * ldx + columns.begin, columns.end - columns.begin,
                          halves + m * rows.ld_halves + columns.begin);
    }
    Activations prepared(const Matrix& w, const float* x, int64_t ldx, const uint16_t* halves) const {
        if (takes_halves(w, rows.count(), plan.dot_bfloat16 != 0))
            return {x, ldx, rows.count(), {0, w.columns}, halves, rows.ld_halves};
        return prepare(w, x, ldx);
    }
    // The thread's share of a product's outputs.
    void multiply(const Matrix& w, const Activations& x, Target to) const {
        product(w, x, share(blocks_of(w), 1, thread, threads), to, scratch);
    }
    // Outputs for the channels of `range`, whose begin is a multiple of kBlock.
    void multiply_channels(const Matrix& w, const Activations& x, Range range, Target to) const {
        product(w, x, {range.begin / kBlock, (range.end + kBlock - 1) / kBlock}, to, scratch);
    }
    // The beginning of the thread's share of a matrix.
    Upcoming upcoming(const Matrix& w) const {
        const Range blocks = share(blocks_of(w), 1, thread, threads);
        const int64_t bytes = (blocks.end - blocks.begin) * block_bytes(w);
        const uint8_t* first = w.data + blocks.begin * block_bytes(w);
        return {first, first + std::min(bytes, kUpcomingBytes)};
    }
    // The end of a layer: what its last product adds, while the next layer's first is asked for.
    void add_to_residual(const Layer& l, const Activations& x) const {
        multiply(l.out, x, {rows.residual, rows.dim_stride, true});
        const Layer* next = &l + 1;
        team.wait(upcoming(next < plan.layers + plan.depth ? next->in : plan.head));
    }
};

inline void normalise(const Norm& norm, const float* x, float* y, int64_t dim) {
    float mean = 0;
    if (norm.layer) {
        vfloat sum{};
        for (int64_t i = 0; i < dim; i += kLanes) sum += load_some(x + i, int(std::min<int64_t>(kLanes, dim - i)));
        mean = horizontal_sum(sum) / float(dim);
    }
    vfloat squares{};
    for (int64_t i = 0; i < dim; i += kLanes) {
        const int some = int(std::min<int64_t>(kLanes, dim - i));
        vfloat v = load_some(x + i, some);
        if (norm.layer)
            for (int j = 0; j < some; ++j) v[j] -= mean;
        squares += v * v;
    }
    const float r = 1.0f / std::sqrt(horizontal_sum(squares) / float(dim) + float(norm.eps));
    for (int64_t i = 0; i < dim; i += kLanes) {
        const int some = int(std::min<int64_t>(kLanes, dim - i));
        vfloat v = (load_some(x + i, some) - mean) * r;
        if (norm.weight) v *= load_some(norm.weight + i, some);
        if (norm.bias) v += load_some(norm.bias + i, some);
        store_some(y + i, v, some);
    }
}

// The layer's input, ready for its projections: one row is normalised by every thread for itself, many are shared out.
inline Activations normed_rows(const Worker& w, const Layer& l) {
    const Rows& r = w.rows;
    const Norm& norm = l.norm;
    if (r.count() == 1) {
        normalise(norm, r.residual, w.scratch.row, w.plan.dim);
        return w.prepare(l.in, w.scratch.row, r.dim_stride);
    }
    const Range mine = share(r.count(), 1, w.thread, w.threads);
    for (int64_t m = mine.begin; m < mine.end; ++m)
        normalise(norm, r.residual + m * r.dim_stride, r.normed + m * r.dim_stride, w.plan.dim);
    w.prepare_part(l.in, r.normed, r.dim_stride, r.normed_halves, mine, {0, l.in.columns});
    w.team.wait();
    return w.prepared(l.in, r.normed, r.dim_stride, r.normed_halves);
}

constexpr int64_t kScanRows = 16;  // positions at a time for all channels, so that rows are read along

// What `convolve` does with so many taps, each of whose inputs is loaded once.
template <int taps>
inline void convolve_taps(const float* weight, const float* bias, float* past, int64_t channels, Range range, const float* x,
                          int64_t ldx, float* y, int64_t ldy, int64_t length, bool activate) {
    for (int64_t begin = 0; begin < length; begin += kScanRows)
        for (int64_t c = range.begin; c < range.end; c += kLanes) {
            const int some = int(std::min<int64_t>(kLanes, range.end - c));
            const int64_t end = std::min(begin + kScanRows, length);
            vfloat weights[taps], inputs[taps];
            for (int k = 0; k < taps; ++k) weights[k] = load_some(weight + k * channels + c, some);
            for (int k = 1; k < taps; ++k) {
                const int64_t at = begin + k - taps;
                inputs[k] = load_some((at < 0 ? past + (at + taps - 1) * channels : x + at * ldx) + c, some);
            }
            const vfloat start = bias ? load_some(bias + c, some) : vfloat{};
            for (int64_t t = begin; t < end; ++t) {
                for (int k = 1; k < taps; ++k) inputs[k - 1] = inputs[k];
                inputs[taps - 1] = load_some(x + t * ldx + c, some);
                vfloat sum = start;
                for (int k = 0; k < taps; ++k) sum += weights[k] * inputs[k];
                store_some(y + t * ldy + c, activate ? silu(sum) : sum, some);
            }
            if (end == length)
                for (int k = 1; k < taps; ++k) store_some(past + (k - 1) * channels + c, inputs[k], some);
        }
}

// y = (silu of) the causal convolution of x over positions, for channels of `range`; leaves the last inputs in `state`.
inline void convolve(const Rows& r, const float* weight, const float* bias, float* state, int64_t taps, int64_t channels,
                     Range range, const float* x, int64_t ldx, float* y, int64_t ldy, bool activate) {
    const int64_t kept = taps - 1;
    for (int64_t sequence = 0; sequence < r.sequences; ++sequence) {
        float* past = state + sequence * kept * channels;
        const float* in = x + sequence * r.length * ldx;
        float* out = y + sequence * r.length * ldy;
        if (taps == 4) {  // of nearly every model
            convolve_taps<4>(weight, bias, past, channels, range, in, ldx, out, ldy, r.length, activate);
            continue;
        }
        for (int64_t t = 0; t < r.length; ++t)
            for (int64_t c = range.begin; c < range.end; c += kLanes) {
                const int some = int(std::min<int64_t>(kLanes, range.end - c));
                vfloat sum = bias ? load_some(bias + c, some) : vfloat{};
                for (int64_t k = 0; k < taps; ++k) {
                    const int64_t at = t + k - kept;
                    const float* from = at < 0 ? past + (at + kept) * channels : in + at * ldx;
                    sum += load_some(weight + k * channels + c, some) * load_some(from + c, some);
                }
                store_some(out + t * ldy + c, activate ? silu(sum) : sum, some);
            }
        for (int64_t k = 0; k < kept; ++k) {  // from the oldest on: each is read before it is written
            const int64_t at = r.length + k - kept;
            const float* from = at < 0 ? past + (at + kept) * channels : in + at * ldx;
            std::memmove(past + k * channels + range.begin, from + range.begin, 4 * (range.end - range.begin));
        }
    }
}

// ---- Mamba: in, gate (rows of z), conv, select (delta, B, C), delta, A times log2(e) and the state laid out
// [channels / 16][state_dim][16], D, delta_bias, out ------------------------------------------------------------

constexpr int64_t kStatesAhead = 64;  // lines, which a row of steps gives the memory time for

// Rows [begin, end) of one sequence, whose steps are in r.c; y in place of x.
template <int fixed>
inline void scan_states(const Worker& w, const Layer& l, float* state, Range channels, int64_t begin, int64_t end,
                        const float* selected, int64_t ld_selected, Upcoming& states, Upcoming& next) {
    const Rows& r = w.rows;
    const int64_t N = fixed ? fixed : l.state_dim;
    for (int64_t c = channels.begin; c < channels.end; c += kLanes) {
        const int64_t at = c / kBlock * kBlock * N + c % kBlock;
        const float* A = l.A + at;
        float* h = state + at;
        const vfloat D = load(l.D + c);
        vfloat held[fixed ? fixed : 1];
        states.fetch(N * kBlock * 4 / kLine);
        next.fetch(kBlock);  // as many lines as the memory gives meanwhile
        if (fixed)
            for (int n = 0; n < fixed; ++n) held[n] = load(h + n * kBlock);
        for (int64_t m = begin; m < end; ++m) {
            const float *B = selected + m * ld_selected + l.rank, *C = B + N;
            const vfloat x = load(r.b + m * r.wide + c), delta = load(r.c + m * r.wide + c), drive = delta * x;
            vfloat y = D * x;
#pragma GCC unroll 16
            for (int64_t n = 0; n < N; ++n) {
                const vfloat before = fixed ? held[fixed ? n : 0] : load(h + n * kBlock);
                const vfloat after = exp2(delta * load(A + n * kBlock)) * before + drive * B[n];
                if (fixed) held[fixed ? n : 0] = after;
                else store(h + n * kBlock, after);
                y += after * C[n];
            }
            store(r.b + m * r.wide + c, y);
        }
        if (fixed)
            for (int n = 0; n < fixed; ++n) store(h + n * kBlock, held[n]);
    }
}

// Steps and gates by themselves, since the states of one position keep the processor from seeing the next one's.
inline void selective_scan(const Worker& w, const Layer& l, float* states, Range channels, const float* selected,
                           int64_t ld_selected) {
    const Rows& r = w.rows;
    const int64_t rounded = round_up(l.inner_dim, kBlock);
    const bool sixteen = l.state_dim == 16 && kLanes == 16;
    Upcoming next = w.upcoming(l.out);
    for (int64_t begin = 0; begin < r.count();) {
        const int64_t sequence = begin / r.length, end = std::min(begin + kScanRows, (sequence + 1) * r.length);
        float* state = states + sequence * rounded * l.state_dim;
        Upcoming soon = {reinterpret_cast<const uint8_t*>(state + channels.begin * l.state_dim),
                         reinterpret_cast<const uint8_t*>(state + channels.end * l.state_dim)};
        soon.fetch(kStatesAhead);
        for (int64_t m = begin; m < end; ++m)
            for (int64_t c = channels.begin; c < channels.end; c += kLanes) {
                float* step = r.c + m * r.wide + c;
                store(step, softplus(load(step) + load(l.delta_bias + c)));
            }
        (sixteen ? scan_states<16> : scan_states<0>)(w, l, state, channels, begin, end, selected, ld_selected, soon, next);
        for (int64_t m = begin; m < end; ++m)
            for (int64_t c = channels.begin; c < channels.end; c += kLanes) {
                float* y = r.b + m * r.wide + c;
                store(y, load(y) * silu(load(r.a + m * r.wide + rounded + c)));
            }
        begin = end;
    }
}

inline void run_mamba(const Worker& w, const Layer& l, const LayerState& s) {
    const Rows& r = w.rows;
    const int64_t count = r.count(), rounded = round_up(l.inner_dim, kBlock), width = r.partial_width;
    const Range mine = share(l.inner_dim, kUnit, w.thread, w.threads);
    const Range whole = {mine.begin, round_up(mine.end, kBlock)};
    const Activations x = normed_rows(w, l);
    w.multiply_channels(l.in, x, mine, {r.a, r.wide, false});
    w.multiply_channels(l.gate, x, mine, {r.a + rounded, r.wide, false});
    convolve(r, l.conv_weight, l.conv_bias, s.conv, l.taps, l.inner_dim, mine, r.a, r.wide, r.b, r.wide, true);
    // Each thread multiplies the channels it has just made; the sum over threads comes after they have met.
    float* part = r.partial + w.thread * count * width;
    const Activations made = w.prepare(l.select, r.b, r.wide, mine);
    product(l.select, made, {0, blocks_of(l.select)}, {part, width, false}, w.scratch);
    w.team.wait(w.upcoming(l.delta));
    const Range summed = count == 1 ? Range{0, 1} : share(count, 1, w.thread, w.threads);
    float* selected = count == 1 ? w.scratch.row : r.partial + w.threads * count * width;
    for (int64_t m = summed.begin; m < summed.end; ++m) {
        float* to = selected + m * width;
        std::memcpy(to, r.partial + m * width, 4 * width);
        for (int other = 1; other < w.threads; ++other) {
            const float* from = r.partial + (other * count + m) * width;
            for (int64_t i = 0; i < width; i += kLanes) store(to + i, load(to + i) + load(from + i));
        }
        if (l.inner_norms) {
            normalise(l.inner[0], to, to, l.rank);
            normalise(l.inner[1], to + l.rank, to + l.rank, l.state_dim);
            normalise(l.inner[2], to + l.rank + l.state_dim, to + l.rank + l.state_dim, l.state_dim);
        }
    }
    if (count > 1) w.team.wait();
    w.multiply_channels(l.delta, w.prepare(l.delta, selected, width), mine, {r.c, r.wide, false});
    selective_scan(w, l, s.ssm, whole, selected, width);
    w.prepare_part(l.out, r.b, r.wide, r.made_halves, {0, count}, mine);
    w.team.wait();
    w.add_to_residual(l, w.prepared(l.out, r.b, r.wide, r.made_halves));
}

// ---- Mamba-2: in (gate of the MLP, MLP, z, x B C, delta), conv over x B C, A, D a channel, delta_bias; inner_dim
// channels in the scan and mlp_dim beside it; the state (heads, head_dim, state_dim) --------------------------------

inline void dual_scan(const Worker& w, const Layer& l, float* state, Range heads, int64_t at_delta) {
    const Rows& r = w.rows;
    const int64_t N = l.state_dim, P = l.head_dim;
    for (int64_t h = heads.begin; h < heads.end; ++h)
        for (int64_t sequence = 0; sequence < r.sequences; ++sequence)
            for (int64_t m = sequence * r.length; m < (sequence + 1) * r.length; ++m) {
                const float* row = r.b + m * r.wide;
                const int64_t group = h / (l.heads / l.groups);
                const float *B = row + l.inner_dim + group * N, *C = B + l.groups * N;
                const float raw = r.a[m * r.wide + at_delta + h] + l.delta_bias[h];
                float step = softplus(splat(raw))[0];
                step = std::min(std::max(step, float(l.delta_minimum)), float(l.delta_maximum));
                const float decay = std::exp(step * l.A[h]);
                float* all = state + (sequence * l.heads + h) * P * N;
                for (int64_t p = 0; p < P; ++p) {
                    const int64_t channel = h * P + p;
                    const float value = row[channel], drive = step * value;
                    float* held = all + p * N;
                    vfloat sum{};
                    int64_t n = 0;
                    for (; n + kLanes <= N; n += kLanes) {
                        const vfloat after = load(held + n) * decay + load(B + n) * drive;
                        store(held + n, after);
                        sum += after * load(C + n);
                    }
                    if (n < N) {
                        const int some = int(N - n);
                        const vfloat after = load_some(held + n, some) * decay + load_some(B + n, some) * drive;
                        store_some(held + n, after, some);
                        sum += after * load_some(C + n, some);
                    }
                    r.c[m * r.wide + l.mlp_dim + channel] = horizontal_sum(sum) + l.D[channel] * value;
                }
            }
}

// y (mlp_dim + inner_dim) to what the output projection reads; row has z at `at_gate`.
inline void finish_dual(const Layer& l, const float* row, const float* y, float* to) {
    const float* z = row + 2 * l.mlp_dim;
    for (int64_t i = 0; i < l.mlp_dim; i += kLanes) {
        const int some = int(std::min<int64_t>(kLanes, l.mlp_dim - i));
        store_some(to + i, silu(load_some(row + i, some)) * load_some(row + l.mlp_dim + i, some), some);
    }
    y += l.mlp_dim;
    to += l.mlp_dim;
    const int64_t group = l.gated_norm ? l.norm_group : l.inner_dim;
    for (int64_t begin = 0; begin < l.inner_dim; begin += group) {
        float r = 1;
        if (l.gated_norm) {
            vfloat squares{};
            for (int64_t i = begin; i < begin + group; i += kLanes) {
                const int some = int(std::min<int64_t>(kLanes, begin + group - i));
                vfloat v = load_some(y + i, some);
                if (!l.norm_before_gate) v *= silu(load_some(z + i, some));
                squares += v * v;
            }
            r = 1.0f / std::sqrt(horizontal_sum(squares) / float(group) + float(l.norm_eps));
        }
        for (int64_t i = begin; i < begin + group; i += kLanes) {
            const int some = int(std::min<int64_t>(kLanes, begin + group - i));
            vfloat v = load_some(y + i, some) * silu(load_some(z + i, some)) * r;
            if (l.gated_norm) v *= load_some(l.norm_weight + i, some);
            store_some(to + i, v, some);
        }
    }
}

inline void run_mamba2(const Worker& w, const Layer& l, const LayerState& s) {
    const Rows& r = w.rows;
    const int64_t count = r.count(), convolved = l.inner_dim + 2 * l.groups * l.state_dim;
    const int64_t at_conv = 2 * l.mlp_dim + l.inner_dim, at_delta = at_conv + convolved;
    const Activations x = normed_rows(w, l);
    w.multiply(l.in, x, {r.a, r.wide, false});
    w.team.wait();
    convolve(r, l.conv_weight, l.conv_bias, s.conv, l.taps, convolved, share(convolved, kBlock, w.thread, w.threads),
             r.a + at_conv, r.wide, r.b, r.wide, true);
    w.team.wait();
    dual_scan(w, l, s.ssm, share(l.heads, 1, w.thread, w.threads), at_delta);
    w.team.wait();
    if (count == 1) {
        finish_dual(l, r.a, r.c, w.scratch.row);
        w.add_to_residual(l, w.prepare(l.out, w.scratch.row, 0));
        return;
    }
    const Range mine = share(count, 1, w.thread, w.threads);
    for (int64_t m = mine.begin; m < mine.end; ++m)
        finish_dual(l, r.a + m * r.wide, r.c + m * r.wide, r.b + m * r.wide);
    w.prepare_part(l.out, r.b, r.wide, r.made_halves, mine, {0, l.out.columns});
    w.team.wait();
    w.add_to_residual(l, w.prepared(l.out, r.b, r.wide, r.made_halves));
}

// ---- attention: in (queries, keys, values, and value and gate of an MLP of mlp_dim), conv without activation or none
// (taps 0), out; new entries go behind the `cached` ones ------------------------------------------------------------

inline void turn(const Layer& l, float* head, int64_t position) {
    const int64_t half = l.rotary_dim / 2;
    for (int64_t i = 0; i < half; ++i) {
        const float angle = float(position) * l.rotary[i], c = std::cos(angle), s = std::sin(angle);
        const float first = head[i], second = head[i + half];
        head[i] = first * c - second * s;
        head[i + half] = second * c + first * s;
    }
}

inline float dot(const float* x, const float* y, int64_t count) {
    vfloat sum{};
    for (int64_t i = 0; i < count; i += kLanes) {
        const int some = int(std::min<int64_t>(kLanes, count - i));
        sum += load_some(x + i, some) * load_some(y + i, some);
    }
    return horizontal_sum(sum);
}

// One query against entries [begin, end) of a cache.
inline void attend(const float* query, const float* keys, const float* values, int64_t begin, int64_t end, int64_t dim,
                   float scale, float* scores, float* y) {
    float most = -INFINITY;
    for (int64_t i = begin; i < end; ++i) {
        scores[i - begin] = dot(query, keys + i * dim, dim) * scale;
        most = std::max(most, scores[i - begin]);
    }
    vfloat total{};
    const int64_t count = end - begin;
    for (int64_t i = 0; i < count; i += kLanes) {
        const int some = int(std::min<int64_t>(kLanes, count - i));
        vfloat e = exp(load_some(scores + i, some) - most);
        for (int j = some; j < kLanes; ++j) e[j] = 0;
        store_some(scores + i, e, some);
        total += e;
    }
    const float inverse = 1.0f / horizontal_sum(total);
    for (int64_t d = 0; d < dim; d += kLanes) {
        const int some = int(std::min<int64_t>(kLanes, dim - d));
        vfloat sum{};
        for (int64_t i = begin; i < end; ++i) sum += load_some(values + i * dim + d, some) * scores[i - begin];
        store_some(y + d, sum * inverse, some);
    }
}

inline void run_attention(const Worker& w, const Layer& l, const LayerState& s) {
    const Rows& r = w.rows;
    const int64_t count = r.count(), P = l.head_dim, repeats = l.heads / l.kv_heads;
    const int64_t qkv = P * (l.heads + 2 * l.kv_heads);
    const Activations x = normed_rows(w, l);
    w.multiply(l.in, x, {r.a, r.wide, false});
    w.team.wait();
    float* projected = r.a;
    if (l.taps) {
        convolve(r, l.conv_weight, l.conv_bias, s.conv, l.taps, qkv, share(qkv, kBlock, w.thread, w.threads), r.a, r.wide,
                 r.b, r.wide, false);
        projected = r.b;
        w.team.wait();
    }
    // A thread takes heads of keys with the queries that read them.
    const Range heads = share(r.sequences * l.kv_heads, 1, w.thread, w.threads);
    for (int64_t at = heads.begin; at < heads.end; ++at) {
        const int64_t sequence = at / l.kv_heads, head = at % l.kv_heads, start = s.start[sequence];
        float* keys = s.keys + at * s.capacity * P;
        float* values = s.values + at * s.capacity * P;
        for (int64_t t = 0; t < r.length; ++t) {
            const int64_t m = sequence * r.length + t, place = s.cached + t;
            float* row = projected + m * r.wide;
            float* key = row + P * (l.heads + head);
            turn(l, key, place - start);
            std::memcpy(keys + place * P, key, 4 * P);
            std::memcpy(values + place * P, row + P * (l.heads + l.kv_heads + head), 4 * P);
            for (int64_t q = head * repeats; q < (head + 1) * repeats; ++q) {
                turn(l, row + q * P, place - start);
                attend(row + q * P, keys, values, start, place + 1, P, float(l.scale), w.scratch.scores,
                       r.c + m * r.wide + q * P);
            }
        }
    }
    const Range mine = share(count, 1, w.thread, w.threads);
    for (int64_t m = mine.begin; l.mlp_dim && m < mine.end; ++m) {
        const float *value = r.a + m * r.wide + qkv, *gate = value + l.mlp_dim;
        float* to = r.c + m * r.wide + P * l.heads;
        for (int64_t i = 0; i < l.mlp_dim; i += kLanes) {
            const int some = int(std::min<int64_t>(kLanes, l.mlp_dim - i));
            store_some(to + i, load_some(value + i, some) * silu(load_some(gate + i, some)), some);
        }
    }
    w.team.wait();
    w.add_to_residual(l, w.prepare(l.out, r.c, r.wide));
}

// ---- gated MLP: in (values), gate, out ----------------------------------------------------------------------------

inline void run_mlp(const Worker& w, const Layer& l) {
    const Rows& r = w.rows;
    const Range mine = share(l.mlp_dim, kUnit, w.thread, w.threads);
    const Activations x = normed_rows(w, l);
    w.multiply_channels(l.in, x, mine, {r.a, r.wide, false});
    w.multiply_channels(l.gate, x, mine, {r.b, r.wide, false});
    for (int64_t m = 0; m < r.count(); ++m)
        for (int64_t c = mine.begin; c < mine.end; c += kLanes) {  // up to the end of a block: buffers are that wide
            float* value = r.a + m * r.wide + c;
            store(value, load(value) * silu(load(r.b + m * r.wide + c)));
        }
    w.prepare_part(l.out, r.a, r.wide, r.made_halves, {0, r.count()}, mine);
    w.team.wait();
    w.add_to_residual(l, w.prepared(l.out, r.a, r.wide, r.made_halves));
}

}  // namespace STATESCAN_LEVEL

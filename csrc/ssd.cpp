// Structured state-space duality: the scan of Mamba-2 in chunks, forward and backward.
//
// Within a chunk the scan is a masked quadratic form, between chunks a recurrence of states; all of it is small matrix
// products on scratch that fits the second-level cache. A chunk ends where a sequence, a segment between resets or
// `chunk` positions end, so that nothing before a reset, not even NaN, is multiplied into what comes after it.
//
// Decays between two positions are products of the decays of the steps between them, as in the recurrence. Nothing is
// divided and no cumulative sums are subtracted, here or in the gradient, so nothing cancels and nothing overflows.
#include "common.h"
#include "math.h"
#include "small_products.h"

namespace STATESCAN_LEVEL {
namespace {

// ---- rows ------------------------------------------------------------------------------------------------------

inline int left_of(int64_t width, int64_t c) { return int(std::min<int64_t>(kLanes, width - c)); }

template <typename T>
void read_rows(const T* in, int64_t rows, int64_t width, int64_t in_row, float* out, int64_t out_row) {
    for (int64_t r = 0; r < rows; ++r)
        for (int64_t c = 0; c < width; c += kLanes) store(out + r * out_row + c, load_some(in + r * in_row + c, left_of(width, c)));
}

// out_i = in_i weight_i, whole vectors
inline void scale_rows(const float* in, const float* weight, int64_t rows, int64_t width, float* out) {
    for (int64_t r = 0; r < rows; ++r)
        for (int64_t c = 0; c < width; c += kLanes) store(out + r * width + c, load(in + r * width + c) * weight[r]);
}

// out_rc = in_rc weight_c, whole vectors
inline void scale_columns(const float* in, const float* weight, int64_t rows, int64_t width, int64_t stride, float* out) {
    for (int64_t r = 0; r < rows; ++r)
        for (int64_t c = 0; c < width; c += kLanes) store(out + r * stride + c, load(in + r * stride + c) * load(weight + c));
}

inline vint lane_numbers() {
    vint lane;
    for (int i = 0; i < kLanes; ++i) lane[i] = i;
    return lane;
}

struct Sizes {
    int64_t rows, heads, head_dim, groups, state_dim, sequences, chunk;
    int64_t x_row, delta_row, b_row, c_row;  // strides of a position, in elements
    const int64_t* offsets;
    const uint8_t* resets;
    bool D_per_channel;

    int64_t padded_head() const { return round_up(head_dim); }
    int64_t padded_state() const { return round_up(state_dim); }
    int64_t padded_chunk() const { return round_up(chunk); }
    int64_t heads_per_group() const { return heads / groups; }

    // How many positions the chunk that begins at `row` has.
    int64_t chunk_at(int64_t row, int64_t end) const {
        int64_t size = 1;
        const int64_t most = std::min(chunk, end - row);
        while (size < most && !(resets && resets[row + size])) ++size;
        return size;
    }
    bool reset_at(int64_t row) const { return resets && resets[row]; }
};

// Steps and decays of one head in a chunk.
struct Steps {
    float *delta, *decay, *enter;  // a step's size and decay; the decay from before the chunk through a step

    void layout(Scratch& scratch, int64_t padded_chunk) {
        delta = scratch.take(padded_chunk);
        decay = scratch.take(padded_chunk);
        enter = scratch.take(padded_chunk);
    }
    void compute(const Sizes& s, const float* rows, float A, int64_t row, int64_t size, int64_t head) const {
        const int64_t padded = round_up(size);
        for (int64_t i = 0; i < size; ++i) delta[i] = rows[(row + i) * s.delta_row + head];
        for (int64_t i = size; i < padded; ++i) delta[i] = 0;
        for (int64_t i = 0; i < padded; i += kLanes) store(decay + i, exp(load(delta + i) * A));
        float product = 1;
        for (int64_t i = 0; i < size; ++i) enter[i] = product *= decay[i];
    }
    float whole(int64_t size) const { return enter[size - 1]; }
};

// Walks W(i, j) = product of the decays of steps j + 1 .. i, a block of kLanes columns at a time down the rows, and
// calls visit(i, first column, W's row, lanes' columns <= i).
template <typename Visit>
inline void walk_decays(const float* decay, int64_t size, float* leave, Visit visit) {
    const vint lane = lane_numbers();
    for (int64_t block = 0; block < size; block += kLanes) {
        vfloat w{};
        const int64_t square = std::min(block + kLanes, size);
        for (int64_t i = block; i < square; ++i) {
            const vint diagonal = lane == int32_t(i - block);
            w = diagonal ? splat(1.0f) : w * decay[i];
            visit(i, block, w);
        }
        for (int64_t i = square; i < size; ++i) {
            w *= decay[i];
            visit(i, block, w);
        }
        store(leave + block, w);  // from after j through the chunk's end
    }
}

// ---- forward ---------------------------------------------------------------------------------------------------

template <typename T>
struct Forward {
    const Sizes& s;
    const T *x, *B, *C;
    const float *delta, *A, *D, *initial;
    T* y;
    float* last;

    // `count` heads of one group, from `head` on, through one sequence. States lie as (N, P).
    bool run(int64_t sequence, int64_t head, int64_t count) const {
        const int64_t P = s.head_dim, N = s.state_dim, Pp = s.padded_head(), Np = s.padded_state(), Qp = s.padded_chunk();
        const int64_t group = head / s.heads_per_group(), begin = s.offsets[sequence], end = s.offsets[sequence + 1];
        Scratch scratch;
        float *states, *Bf, *Cf, *Bt, *scaled, *products, *weights, *xf, *leave;
        Steps steps;
        for (int pass = 0; pass < 2; ++pass) {
            states = scratch.take(count * N * Pp);
            Bf = scratch.take(Qp * Np), Cf = scratch.take(Qp * Np), Bt = scratch.take(N * Qp);
            products = scratch.take(Qp * Qp), weights = scratch.take(Qp * Qp), leave = scratch.take(Qp);
            xf = scratch.take(Qp * Pp), scaled = scratch.take(Qp * std::min(Np, Pp));
            steps.layout(scratch, Qp);
            if (!pass && !scratch.allocate()) return false;
        }
        std::memset(states, 0, size_t(count * N * Pp) * sizeof(float));
        if (initial)
            for (int64_t h = 0; h < count; ++h)
                transpose(initial + (sequence * s.heads + head + h) * P * N, P, N, N, states + h * N * Pp, Pp);
        for (int64_t row = begin, q; row < end; row += q) {
            q = s.chunk_at(row, end);
            const bool fresh = s.reset_at(row) || (row == begin && !initial);
            read_rows(B + row * s.b_row + group * N, q, N, s.b_row, Bf, Np);
            read_rows(C + row * s.c_row + group * N, q, N, s.c_row, Cf, Np);
            transpose(Bf, q, N, Np, Bt, Qp);
            multiply_lower_part({Cf, Np, 1, Bt, Qp, products, Qp}, q, N);
            for (int64_t h = 0; h < count; ++h) {
                float* state = states + h * N * Pp;
                const T* xs = x + row * s.x_row + (head + h) * P;
                Ahead ahead;
                if (h + 1 < count) {
                    ahead.add(xs + P, q, P, s.x_row);
                    ahead.add(y + (row * s.heads + head + h + 1) * P, q, P, s.heads * P);
                } else if (row + q < end) {
                    const int64_t next = std::min(q, end - row - q);
                    ahead.add(xs + q * s.x_row - h * P, next, P, s.x_row);
                    ahead.add(y + ((row + q) * s.heads + head) * P, next, P, s.heads * P);
                }
                steps.compute(s, delta, A[head + h], row, q, head + h);
                walk_decays(steps.decay, q, leave, [&](int64_t i, int64_t block, vfloat w) {
                    store(weights + i * Qp + block, w * load(steps.delta + block) * load(products + i * Qp + block));
                });
                read_rows(xs, q, P, s.x_row, xf, Pp);
                const auto entered = [&](auto& sum, int64_t i, int64_t c) STATESCAN_INLINE {
                    if (fresh) return;
                    accumulate<kFull>(sum, {Cf, Np, 1, state, Pp}, i, c, N);
                    for_each_sum(sum, i, c, [&](vfloat& value, int64_t r, int64_t) STATESCAN_INLINE { value *= steps.enter[r]; });
                };
                const auto given = [&](auto& sum, int64_t i, int64_t c) STATESCAN_INLINE { write(sum, i, c, xf, row, head + h); };
                multiply<kLower>({weights, Qp, 1, xf, Pp}, &ahead, q, Pp, q, entered, given);
                // Of B_j leave_j delta_j x_j, the narrower factor is scaled.
                for (int64_t j = 0; j < q; j += kLanes) store(leave + j, load(leave + j) * load(steps.delta + j));
                if (Np < Pp) scale_rows(Bf, leave, q, Np, scaled);
                else scale_rows(xf, leave, q, Pp, scaled);
                const Factors factors{Np < Pp ? scaled : Bf, 1, Np, Np < Pp ? xf : scaled, Pp};
                const float whole = steps.whole(q);
                multiply({factors, state, Pp, fresh ? nullptr : &whole, 0, &ahead}, N, Pp, q);
            }
        }
        for (int64_t h = 0; h < count; ++h)
            transpose(states + h * N * Pp, N, P, Pp, last + (sequence * s.heads + head + h) * P * N, N, false);
        return true;
    }

    // A tile of y at positions from i of a chunk and channels from c on.
    template <typename Tile>
    inline __attribute__((always_inline)) void write(Tile& sum, int64_t i, int64_t c, const float* xf, int64_t row,
                                                     int64_t head) const {
        const int64_t P = s.head_dim, Pp = s.padded_head();
        for_each_sum(sum, i, c, [&](vfloat value, int64_t r, int64_t p) STATESCAN_INLINE {
            const int n = left_of(P, p);
            if (D) value += load(xf + r * Pp + p) * (s.D_per_channel ? load_some(D + head * P + p, n) : splat(D[head]));
            store_some(y + ((row + r) * s.heads + head) * P + p, value, n);
        });
    }
};

template <typename T>
int forward(const Sizes& s, const void* x, const float* delta, const float* A, const void* B, const void* C, const float* D,
            const float* initial, void* y, float* last, int threads) {
    const Forward<T> body{s, static_cast<const T*>(x), static_cast<const T*>(B), static_cast<const T*>(C), delta, A, D,
                          initial, static_cast<T*>(y), last};
    // Heads of a group share C B^T; take as many together as leave every thread two tasks.
    const int64_t per_group = s.heads_per_group();
    int64_t block = std::max<int64_t>(1, s.sequences * s.heads / (2 * threads));
    block = std::min<int64_t>(std::min(block, per_group), 16);
    const int64_t blocks = (per_group + block - 1) / block;
    int failed = 0;
#pragma omp parallel for collapse(3) schedule(dynamic) num_threads(threads) if (threads > 1) reduction(| : failed)
    for (int64_t sequence = 0; sequence < s.sequences; ++sequence)
        for (int64_t group = 0; group < s.groups; ++group)
            for (int64_t b = 0; b < blocks; ++b)
                failed |= !body.run(sequence, group * per_group + b * block, std::min(block, per_group - b * block));
    return failed;
}

// ---- backward --------------------------------------------------------------------------------------------------

struct Chunk {
    int64_t row, size;
    int64_t state;  // which of the saved states it begins with, or -1: with zero
};

template <typename T>
struct Backward {
    static constexpr int64_t kHeads = 4;  // that are taken together

    const Sizes& s;
    const T *grad_y, *x, *B, *C;
    const float *grad_last, *delta, *A, *D, *initial;
    T* grad_x;
    float *grad_delta, *grad_A, *grad_D, *grad_initial;  // of A: a row a sequence; of D: likewise

    // Scratch of a task; states and their gradients lie as (N, P), B and C and their gradients in panels of (N, chunk).
    struct Space {
        Chunk* chunks;
        float *products, *grad_products;        // C B^T of every chunk, shared by the heads of a group, as are
        float *Bt, *Ct, *grad_Bt, *grad_Ct;     // these, a panel a chunk
        float *states, *flows;                  // before every chunk; gradients of those after a chunk; a head after another
        float *rows, *xf, *g, *xt, *gt;         // rows of a chunk; turned
        float *weights, *shares, *outer;        // see `run_chunk`
        float* wide;                            // gradients of B or C of a chunk, as they are written
        float *leave, *cuts, *left, *entered, *within;
        Steps steps;

        void layout(Scratch& scratch, const Sizes& s, int64_t length, int64_t chunks_, int64_t saved, int64_t heads) {
            const int64_t P = s.head_dim, N = s.state_dim, Pp = s.padded_head(), Np = s.padded_state(), Qp = s.padded_chunk();
            chunks = reinterpret_cast<Chunk*>(scratch.take(chunks_ * int64_t(sizeof(Chunk) / sizeof(float))));
            products = scratch.take(length * Qp), grad_products = scratch.take(length * Qp);
            Bt = scratch.take(chunks_ * N * Qp), Ct = scratch.take(chunks_ * N * Qp);
            grad_Bt = scratch.take(chunks_ * N * Qp), grad_Ct = scratch.take(chunks_ * N * Qp);
            states = scratch.take(saved * heads * N * Pp), flows = scratch.take(heads * N * Pp);
            rows = scratch.take(Qp * Np), wide = scratch.take(Qp * Np), xf = scratch.take(Qp * Pp), g = scratch.take(Qp * Pp);
            xt = scratch.take(P * Qp), gt = scratch.take(P * Qp);
            weights = scratch.take(Qp * Qp), shares = scratch.take(Qp * Qp), outer = scratch.take(Qp * Qp);
            leave = scratch.take(Qp), cuts = scratch.take(Qp), left = scratch.take(Qp), entered = scratch.take(Qp);
            within = scratch.take(Qp);
            steps.layout(scratch, Qp);
        }
    };

    // Heads [head, head + count) through one sequence; grad_B and grad_C (rows, groups, N) are this task's own sums.
    bool run(int64_t sequence, int64_t head, int64_t count, float* grad_B, float* grad_C) const {
        const int64_t begin = s.offsets[sequence], end = s.offsets[sequence + 1], per_group = s.heads_per_group();
        int64_t chunks = 0, saved = 0;
        for (int64_t row = begin; row < end; row += s.chunk_at(row, end), ++chunks) saved += !fresh(row, begin);
        Scratch scratch;
        Space space;
        const int64_t together = std::min(count, kHeads);
        space.layout(scratch, s, end - begin, chunks, saved, together);
        if (!scratch.allocate()) return false;
        space.layout(scratch, s, end - begin, chunks, saved, together);
        saved = 0;
        chunks = 0;
        for (int64_t row = begin; row < end; row += space.chunks[chunks++].size)
            space.chunks[chunks] = {row, s.chunk_at(row, end), fresh(row, begin) ? -1 : saved++};
        for (int64_t h = head, stop; h < head + count; h = stop) {
            const int64_t group = h / per_group;
            stop = std::min(head + count, (group + 1) * per_group);
            multiply_rows(space, begin, chunks, group);
            for (int64_t first = h; first < stop; first += kHeads)
                run_heads(space, sequence, first, std::min(kHeads, stop - first), chunks);
            spread_products(space, begin, chunks, group, grad_B, grad_C);
        }
        return true;
    }

    bool fresh(int64_t row, int64_t begin) const { return s.reset_at(row) || (row == begin && !initial); }

    void read_panel(const Space& a, const T* values, int64_t stride, const Chunk& chunk, int64_t group, float* panel) const {
        const int64_t N = s.state_dim, Np = s.padded_state();
        read_rows(values + chunk.row * stride + group * N, chunk.size, N, stride, a.rows, Np);
        transpose(a.rows, chunk.size, N, Np, panel, s.padded_chunk());
    }

    void multiply_rows(const Space& a, int64_t begin, int64_t chunks, int64_t group) const {
        const int64_t N = s.state_dim, Qp = s.padded_chunk();
        for (int64_t k = 0; k < chunks; ++k) {
            const Chunk& chunk = a.chunks[k];
            const int64_t panel = k * N * Qp, square = (chunk.row - begin) * Qp;
            read_panel(a, B, s.b_row, chunk, group, a.Bt + panel);
            read_panel(a, C, s.c_row, chunk, group, a.Ct + panel);
            multiply_lower_part({a.Ct + panel, 1, Qp, a.Bt + panel, Qp, a.products + square, Qp}, chunk.size, N);
            std::memset(a.grad_products + square, 0, size_t(chunk.size * Qp) * sizeof(float));
        }
        std::memset(a.grad_Bt, 0, size_t(chunks * N * Qp) * sizeof(float));
        std::memset(a.grad_Ct, 0, size_t(chunks * N * Qp) * sizeof(float));
    }

    // From the gradient of C B^T: dC_i += sum_{j <= i} grad_ij B_j, dB_j += sum_{i >= j} grad_ij C_i.
    void spread_products(const Space& a, int64_t begin, int64_t chunks, int64_t group, float* grad_B, float* grad_C) const {
        const int64_t N = s.state_dim, Np = s.padded_state(), Qp = s.padded_chunk();
        for (int64_t k = 0; k < chunks; ++k) {
            const Chunk& chunk = a.chunks[k];
            const int64_t q = chunk.size, panel = k * N * Qp;
            const float* grad = a.grad_products + (chunk.row - begin) * Qp;
            transpose(a.Bt + panel, N, q, Qp, a.rows, Np);
            transpose(a.grad_Ct + panel, N, q, Qp, a.wide, Np);
            multiply<kLower>({grad, Qp, 1, a.rows, Np, a.wide, Np, &kAll}, q, Np, q);
            write_rows(a, grad_C, chunk, group);
            transpose(a.Ct + panel, N, q, Qp, a.rows, Np);
            transpose(a.grad_Bt + panel, N, q, Qp, a.wide, Np);
            multiply<kUpper>({grad, 1, Qp, a.rows, Np, a.wide, Np, &kAll}, q, Np, q);
            write_rows(a, grad_B, chunk, group);
        }
    }

    void write_rows(const Space& a, float* sums, const Chunk& chunk, int64_t group) const {
        const int64_t N = s.state_dim, Np = s.padded_state();
        for (int64_t i = 0; i < chunk.size; ++i) {
            float* o = sums + ((chunk.row + i) * s.groups + group) * N;
            for (int64_t n = 0; n < N; n += kLanes) store_some(o + n, load(a.wide + i * Np + n), left_of(N, n));
        }
    }

    // Heads side by side, so that a row of theirs is more than a line or two on a page of its own.
    void run_heads(const Space& a, int64_t sequence, int64_t head, int64_t count, int64_t chunks) const {
        const int64_t P = s.head_dim, N = s.state_dim, Pp = s.padded_head();
        const int64_t at = (sequence * s.heads + head) * P * N;
        recompute_states(a, head, count, chunks, initial ? initial + at : nullptr);
        std::memset(a.flows, 0, size_t(count * N * Pp) * sizeof(float));
        if (grad_last)
            for (int64_t h = 0; h < count; ++h) transpose(grad_last + at + h * P * N, P, N, N, a.flows + h * N * Pp, Pp);
        double grad_rate[kHeads] = {};
        for (int64_t k = chunks - 1; k >= 0; --k)
            for (int64_t h = 0; h < count; ++h) grad_rate[h] += run_chunk(a, k, sequence, head, h, count);
        for (int64_t h = 0; h < count; ++h) {
            grad_A[sequence * s.heads + head + h] = float(grad_rate[h]);
            if (grad_initial) transpose(a.flows + h * N * Pp, N, P, Pp, grad_initial + at + h * P * N, N, false);
        }
    }

    // The states before every chunk that has one.
    void recompute_states(const Space& a, int64_t head, int64_t count, int64_t chunks, const float* start) const {
        const int64_t P = s.head_dim, N = s.state_dim, Pp = s.padded_head(), Qp = s.padded_chunk(), size = N * Pp;
        if (chunks && a.chunks[0].state == 0 && start)
            for (int64_t h = 0; h < count; ++h) transpose(start + h * P * N, P, N, N, a.states + h * size, Pp);
        for (int64_t k = 0; k + 1 < chunks; ++k) {
            const Chunk &chunk = a.chunks[k], &following = a.chunks[k + 1];
            if (following.state < 0) continue;
            for (int64_t h = 0; h < count; ++h) {
                float* next = a.states + (following.state * count + h) * size;
                const T* xs = x + chunk.row * s.x_row + (head + h) * P;
                Ahead ahead;
                if (h + 1 < count)
                    ahead.add(xs + P, chunk.size, P, s.x_row);
                else
                    ahead.add(xs + chunk.size * s.x_row - h * P, following.size, P, s.x_row);
                a.steps.compute(s, delta, A[head + h], chunk.row, chunk.size, head + h);
                walk_back(a, chunk.size);
                for (int64_t j = 0; j < chunk.size; j += kLanes) store(a.leave + j, load(a.leave + j) * load(a.steps.delta + j));
                read_rows(xs, chunk.size, P, s.x_row, a.xf, Pp);
                // Of B_j leave_j delta_j x_j, the narrower factor is scaled.
                const float *B_panel = a.Bt + k * N * Qp, *before = a.states + (chunk.state * count + h) * size;
                if (N < P) scale_columns(B_panel, a.leave, N, round_up(chunk.size), Qp, a.rows);
                else scale_rows(a.xf, a.leave, chunk.size, Pp, a.xf);
                const float whole = a.steps.whole(chunk.size);
                multiply({N < P ? a.rows : B_panel, Qp, 1, a.xf, Pp}, &ahead, N, Pp, chunk.size,
                         [&](auto& sum, int64_t n, int64_t c) STATESCAN_INLINE {
                             for_each_sum(sum, n, c, [&](vfloat value, int64_t r, int64_t p) STATESCAN_INLINE {
                                 if (chunk.state >= 0) value += load(before + r * Pp + p) * whole;
                                 store(next + r * Pp + p, value);
                             });
                         });
            }
        }
    }

    // leave_j: the decay from after j through the chunk's end.
    void walk_back(const Space& a, int64_t size) const {
        for (int64_t i = size; i < round_up(size); ++i) a.leave[i] = 0;
        float product = 1;
        for (int64_t i = size - 1; i >= 0; --i) {
            a.leave[i] = product;
            product *= a.steps.decay[i];
        }
    }

    // Head h of those together, one chunk: gives its share of the gradient of A and turns its flow into the gradient of
    // the state before the chunk.
    double run_chunk(const Space& a, int64_t number, int64_t sequence, int64_t first, int64_t h, int64_t count) const {
        const int64_t P = s.head_dim, N = s.state_dim, Pp = s.padded_head(), Qp = s.padded_chunk();
        const Chunk& chunk = a.chunks[number];
        const int64_t q = chunk.size, qp = round_up(q), panel = number * N * Qp, head = first + h;
        const float* state = chunk.state < 0 ? nullptr : a.states + (chunk.state * count + h) * N * Pp;
        float* flow = a.flows + h * N * Pp;
        const float* steps = a.steps.delta;
        Ahead ahead = soon(a, number, head, h + 1 < count, first);
        a.steps.compute(s, delta, A[head], chunk.row, q, head);
        read_rows(x + chunk.row * s.x_row + head * P, q, P, s.x_row, a.xf, Pp);
        read_rows(grad_y + (chunk.row * s.heads + head) * P, q, P, s.heads * P, a.g, Pp);

        // Within the chunk y_i = sum_j G_ij W_ij delta_j x_j, with G = C B^T and decays W: outer_ij = g_i . x_j,
        // weights = G W, shares = outer G W delta, the part of log W in the gradient.
        transpose(a.xf, q, P, Pp, a.xt, Qp);
        multiply_lower_part({a.g, Pp, 1, a.xt, Qp, a.outer, Qp, nullptr, 0, &ahead}, q, P);
        const float* products = a.products + (chunk.row - s.offsets[sequence]) * Qp;
        float* grad_products = a.grad_products + (chunk.row - s.offsets[sequence]) * Qp;
        vfloat within{};
        const vint lane = lane_numbers();
        walk_decays(a.steps.decay, q, a.leave, [&](int64_t i, int64_t block, vfloat w) {
            const int64_t at = i * Qp + block;
            const vfloat weight = w * load(products + at), given = load(a.outer + at), outer = given * load(steps + block);
            const vint known = lane <= int32_t(i - block);
            if (i == block) within = vfloat{};
            within += known ? given * weight : vfloat{};
            if (i == q - 1) store(a.within + block, within);
            store(a.weights + at, weight);
            store(a.shares + at, outer * weight);
            store(grad_products + at, load(grad_products + at) + outer * w);
        });
        sum_cuts(a, q);

        // What leaves through the state: v_j = B_j . flow, then du_j = sum_{i >= j} weights_ij g_i + leave_j v_j.
        const auto left = [&](auto& sum, int64_t j, int64_t c) STATESCAN_INLINE {
            accumulate<kFull>(sum, {a.Bt + panel, 1, Qp, flow, Pp}, j, c, N);
            for_each_row(sum, j, [&](auto& of_row, int64_t r) STATESCAN_INLINE {
                vfloat dot{};
                for_each_sum(of_row, r, c, [&](vfloat& value, int64_t, int64_t p) STATESCAN_INLINE {
                    value *= a.leave[r];
                    dot += value * load(a.xf + r * Pp + p);
                });
                a.left[r] = (c ? a.left[r] : 0.0f) + horizontal_sum(dot);
            });
        };
        const auto whole_du = [&](auto& sum, int64_t j, int64_t c) STATESCAN_INLINE { write_x(sum, j, c, a, chunk.row, head); };
        multiply<kUpper>({a.weights, 1, Qp, a.g, Pp}, &ahead, q, Pp, q, left, whole_du);
        if (D) sum_D(a, q, grad_D + (sequence * s.heads + head) * P);
        for (int64_t j = 0; j < qp; j += kLanes) store(a.leave + j, load(a.leave + j) * load(steps + j));
        multiply({flow, Pp, 1, a.xt, Qp}, &ahead, N, qp, P, [&](auto& sum, int64_t n, int64_t c) STATESCAN_INLINE {
            for_each_sum(sum, n, c, [&](vfloat value, int64_t r, int64_t j) STATESCAN_INLINE {
                float* out = a.grad_Bt + panel + r * Qp + j;
                store(out, load(out) + value * load(a.leave + j));
            });
        });

        // What enters through the state: y_i += enter_i C_i . state.
        float kept = 0;
        if (state) {
            const float *Ct = a.Ct + panel, whole = a.steps.whole(q);
            transpose(a.g, q, P, Pp, a.gt, Qp);
            std::memset(a.entered, 0, size_t(qp) * sizeof(float));
            multiply({state, Pp, 1, a.gt, Qp}, nullptr, N, qp, P, [&](auto& sum, int64_t n, int64_t c) STATESCAN_INLINE {
                ColumnSums sums(sum, c);
                for_each_sum(sum, n, c, [&](vfloat value, int64_t r, int64_t i) STATESCAN_INLINE {
                    float* out = a.grad_Ct + panel + r * Qp + i;
                    value *= load(a.steps.enter + i);
                    store(out, load(out) + value);
                    sums.at(i) += value * load(Ct + r * Qp + i);
                });
                sums.for_each([&](vfloat value, int64_t i) STATESCAN_INLINE { store(a.entered + i, load(a.entered + i) + value); });
            });
            float before = 0;
            for (int64_t i = q - 1; i >= 0; --i) a.cuts[i] += before += a.entered[i];
            // Of enter_i C_i g_i, the narrower factor is scaled.
            if (N < P) scale_columns(Ct, a.steps.enter, N, qp, Qp, a.rows);
            else scale_rows(a.g, a.steps.enter, q, Pp, a.g);
            vfloat dot{};
            multiply({N < P ? a.rows : Ct, Qp, 1, a.g, Pp}, nullptr, N, Pp, q, [&](auto& sum, int64_t n, int64_t c) STATESCAN_INLINE {
                ColumnSums sums(sum, c);
                for_each_sum(sum, n, c, [&](vfloat value, int64_t r, int64_t p) STATESCAN_INLINE {
                    const vfloat after = load(flow + r * Pp + p);
                    sums.at(p) += after * load(state + r * Pp + p);
                    store(flow + r * Pp + p, after * whole + value);
                });
                sums.for_each([&](vfloat value, int64_t) STATESCAN_INLINE { dot += value; });
            });
            kept = whole * horizontal_sum(dot);
        } else {
            std::memset(flow, 0, size_t(N * Pp) * sizeof(float));
        }

        // The gradient of a step's log decay counts all that passes through the step.
        double grad_rate = 0;
        float after = kept;
        for (int64_t k = 0; k < q; ++k) {
            const float cut = a.cuts[k] + after;
            after += a.left[k] * steps[k];
            grad_rate += double(cut) * steps[k];
            const float own = a.left[k] + a.within[k];  // du_k . x_k
            grad_delta[(chunk.row + k) * s.heads + head] = cut * A[head] + own;
        }
        return grad_rate;
    }

    // What `run_chunk` is to read next, of the next head or the chunk before, and writes now.
    Ahead soon(const Space& a, int64_t number, int64_t head, bool more, int64_t first) const {
        const int64_t P = s.head_dim, stride = s.heads * P;
        const Chunk& chunk = a.chunks[number];
        Ahead ahead;
        if (more || number) {
            const Chunk& next = more ? chunk : a.chunks[number - 1];
            const int64_t at = (more ? head + 1 : first) * P;
            ahead.add(x + next.row * s.x_row + at, next.size, P, s.x_row);
            ahead.add(grad_y + next.row * stride + at, next.size, P, stride);
        }
        ahead.add(grad_x + chunk.row * stride + head * P, chunk.size, P, stride);
        return ahead;
    }

    // cuts_k = sum of shares_ij over j < k <= i.
    void sum_cuts(const Space& a, int64_t q) const {
        const int64_t Qp = s.padded_chunk();
        const vint lane = lane_numbers();
        float* below = a.left;  // of column j: the sum of shares_ij over i >= k
        for (int64_t j = 0; j < round_up(q); ++j) below[j] = 0;
        for (int64_t k = q - 1; k >= 0; --k) {
            vfloat sum{};
            for (int64_t block = 0; block < k; block += kLanes) {
                const vint earlier = lane < int32_t(std::min<int64_t>(k - block, kLanes));
                const vfloat share = load(a.shares + k * Qp + block), column = load(below + block) + (earlier ? share : vfloat{});
                store(below + block, column);
                sum += earlier ? column : vfloat{};
            }
            a.cuts[k] = horizontal_sum(sum);
        }
    }

    // A tile of the gradient of x, from that of delta x, at positions from j of a chunk and channels from c on.
    template <typename Tile>
    inline __attribute__((always_inline)) void write_x(Tile& sum, int64_t j, int64_t c, const Space& a, int64_t row,
                                                       int64_t head) const {
        const int64_t P = s.head_dim, Pp = s.padded_head();
        for_each_sum(sum, j, c, [&](vfloat value, int64_t r, int64_t p) STATESCAN_INLINE {
            const int n = left_of(P, p);
            value *= a.steps.delta[r];
            if (D) value += load(a.g + r * Pp + p) * (s.D_per_channel ? load_some(D + head * P + p, n) : splat(D[head]));
            store_some(grad_x + ((row + r) * s.heads + head) * P + p, value, n);
        });
    }

    void sum_D(const Space& a, int64_t q, float* of_D) const {
        const int64_t P = s.head_dim, Pp = s.padded_head();
        for (int64_t c = 0; c < P; c += kLanes) {
            vfloat sum{};
            for (int64_t j = 0; j < q; ++j) sum += load(a.g + j * Pp + c) * load(a.xf + j * Pp + c);
            store_some(of_D + c, load_some(of_D + c, left_of(P, c)) + sum, left_of(P, c));
        }
    }
};

template <typename T>
int backward(const Sizes& s, const void* grad_y, const float* grad_last, const void* x, const float* delta, const float* A,
             const void* B, const void* C, const float* D, const float* initial, void* grad_x, float* grad_delta,
             float* grad_A, float* grad_B, float* grad_C, float* grad_D, float* grad_initial, int64_t parts, int threads) {
    const int64_t plane = s.rows * s.groups * s.state_dim;
    const Backward<T> body{s, static_cast<const T*>(grad_y), static_cast<const T*>(x), static_cast<const T*>(B), static_cast<const T*>(C),
                           grad_last, delta, A, D, initial, static_cast<T*>(grad_x), grad_delta, grad_A, grad_D, grad_initial};
    int failed = 0;
    // A task writes to its own place, so results do not depend on who runs it when.
#pragma omp parallel for collapse(2) schedule(dynamic) num_threads(threads) if (threads > 1) reduction(| : failed)
    for (int64_t sequence = 0; sequence < s.sequences; ++sequence) {
        for (int64_t part = 0; part < parts; ++part) {
            const int64_t head = s.heads * part / parts, count = s.heads * (part + 1) / parts - head;
            failed |= !body.run(sequence, head, count, grad_B + part * plane, grad_C + part * plane);
        }
    }
    return failed;
}

}  // namespace

#define STATESCAN_SIZES \
    const Sizes s { rows, heads, head_dim, groups, state_dim, sequences, chunk, x_row, delta_row, b_row, c_row, offsets, resets, bool(D_per_channel) }

// Both give 1 where there is no memory for scratch.
STATESCAN_EXPORT(int, ssd_forward)
(const void* x, const float* delta, const float* A, const void* B, const void* C, const float* D, const float* initial,
 const int64_t* offsets, const uint8_t* resets, void* y, float* last, int64_t rows, int64_t heads, int64_t head_dim,
 int64_t groups, int64_t state_dim, int64_t sequences, int64_t chunk, int64_t x_row, int64_t delta_row, int64_t b_row,
 int64_t c_row, int D_per_channel, int dtype, int threads) {
    STATESCAN_SIZES;
    switch (dtype) {
        case kFloat32: return forward<float>(s, x, delta, A, B, C, D, initial, y, last, threads);
        case kBFloat16: return forward<bfloat16>(s, x, delta, A, B, C, D, initial, y, last, threads);
        case kFloat16: return forward<float16>(s, x, delta, A, B, C, D, initial, y, last, threads);
    }
    return 2;
}

// grad_B and grad_C: (parts, rows, groups, N) zeros, to be summed by the caller over the parts among which heads are
// divided; grad_A: (sequences, heads) and grad_D: (sequences, heads, head_dim) zeros, to be summed over sequences.
STATESCAN_EXPORT(int, ssd_backward)
(const void* grad_y, const float* grad_last, const void* x, const float* delta, const float* A, const void* B, const void* C,
 const float* D, const float* initial, const int64_t* offsets, const uint8_t* resets, void* grad_x, float* grad_delta,
 float* grad_A, float* grad_B, float* grad_C, float* grad_D, float* grad_initial, int64_t rows, int64_t heads,
 int64_t head_dim, int64_t groups, int64_t state_dim, int64_t sequences, int64_t chunk, int64_t x_row, int64_t delta_row,
 int64_t b_row, int64_t c_row, int D_per_channel, int dtype, int threads, int64_t parts) {
    STATESCAN_SIZES;
#define STATESCAN_RUN(T)                                                                                              \
    return backward<T>(s, grad_y, grad_last, x, delta, A, B, C, D, initial, grad_x, grad_delta, grad_A, grad_B, grad_C, \
                       grad_D, grad_initial, parts, threads)
    switch (dtype) {
        case kFloat32: STATESCAN_RUN(float);
        case kBFloat16: STATESCAN_RUN(bfloat16);
        case kFloat16: STATESCAN_RUN(float16);
    }
#undef STATESCAN_RUN
    return 2;
}

}  // namespace STATESCAN_LEVEL

// What the selective scan's forward and backward share: real and complex lanes, tiles, the division of work.
//
// As many neighbouring channels as a register has lanes make a block, 64 positions a tile. One thread owns a run of blocks
// and walks time outside, blocks inside, so that a tile's rows of B and C are read once for all of them.
#pragma once

#include "math.h"

namespace STATESCAN_LEVEL {

constexpr int kTile = 64;             // positions a tile, and between saved states (CHECKPOINT_INTERVAL in Python)
constexpr int kStrip = 64 / kLanes;  // the most blocks a strip

// ---- real and complex numbers in lanes -----------------------------------------------------------------

struct complex {
    float re, im;
};
struct vcomplex {
    vfloat re, im;
};

inline vfloat broadcast(float s) { return splat(s); }
inline vcomplex broadcast(complex s) { return {splat(s.re), splat(s.im)}; }

inline vcomplex operator+(vcomplex a, vcomplex b) { return {a.re + b.re, a.im + b.im}; }
inline vcomplex operator*(vcomplex a, vcomplex b) { return {a.re * b.re - a.im * b.im, a.re * b.im + a.im * b.re}; }
inline vcomplex operator*(vcomplex a, vfloat s) { return {a.re * s, a.im * s}; }

inline vfloat conjugate(vfloat a) { return a; }
inline vcomplex conjugate(vcomplex a) { return {a.re, -a.im}; }

// a * conj(b); Re(a b); Re(a conj(b))
inline vfloat times_conjugate(vfloat a, vfloat b) { return a * b; }
inline vcomplex times_conjugate(vcomplex a, vcomplex b) {
    return {a.re * b.re + a.im * b.im, a.im * b.re - a.re * b.im};
}
inline vfloat real_product(vfloat a, vfloat b) { return a * b; }
inline vfloat real_product(vcomplex a, vcomplex b) { return a.re * b.re - a.im * b.im; }
inline vfloat real_product_conjugate(vfloat a, vfloat b) { return a * b; }
inline vfloat real_product_conjugate(vcomplex a, vcomplex b) { return a.re * b.re + a.im * b.im; }

template <typename V>
struct Lanes;
template <>
struct Lanes<vfloat> {
    typedef float Scalar;
    // Each state stands for itself; a complex one for a conjugate pair, hence y = 2 Re(sum C h).
    static constexpr float kPairs = 1.0f;
};
template <>
struct Lanes<vcomplex> {
    typedef complex Scalar;
    static constexpr float kPairs = 2.0f;
};

constexpr float kLn2 = 0.69314718055994531f, kTwoPi = 6.28318530717958648f;

// A is kept in units that suit its exponential: powers of two and, for the imaginary part, turns.
inline vfloat to_powers(vfloat A) { return A * kLog2E; }
inline vcomplex to_powers(vcomplex A) { return {A.re * kLog2E, A.im * (1.0f / kTwoPi)}; }

// exp(step * A)
inline vfloat decay(vfloat step, vfloat A) { return exp2(step * A); }
inline vcomplex decay(vfloat step, vcomplex A) {
    vfloat size = exp2(step * A.re), cosine, sine;
    cos_sin_turns(step * A.im, &cosine, &sine);
    return {size * cosine, size * sine};
}

// Re(g conj(A)) / ln 2, given A in those units: the gradient that the exponent's factor `step` receives.
inline vfloat step_slope(vfloat g, vfloat A) { return g * A; }
inline vfloat step_slope(vcomplex g, vcomplex A) { return g.re * A.re + (g.im * A.im) * (kTwoPi / kLn2); }

// By address: an index that is not known beforehand would rebuild the register each time.
inline void set_lane(vfloat& v, int lane, float s) { reinterpret_cast<float*>(&v)[lane] = s; }
inline void set_lane(vcomplex& v, int lane, complex s) { set_lane(v.re, lane, s.re), set_lane(v.im, lane, s.im); }
inline float get_lane(const vfloat& v, int lane) { return reinterpret_cast<const float*>(&v)[lane]; }
inline complex get_lane(const vcomplex& v, int lane) { return {get_lane(v.re, lane), get_lane(v.im, lane)}; }
inline float sum_lanes(vfloat v) { return horizontal_sum(v); }
inline complex sum_lanes(vcomplex v) { return {horizontal_sum(v.re), horizontal_sum(v.im)}; }
inline complex operator+(complex a, complex b) { return {a.re + b.re, a.im + b.im}; }

// ---- tiles of any element type -------------------------------------------------------------------------------

// A matrix of rows whose elements are contiguous and of type `type`.
struct Rows {
    const void* data;
    int64_t stride;
    int type;
    int64_t walk_stride = -1;  // from a walk's columns to the next one's; 0: all walks share them; -1: side by side
};

// A strip: neighbouring blocks over one tile of positions. Rows lie in different pages of memory, so a strip as wide
// as a few cache lines is read and written at a time; in between it is [block][position].
struct Strip {
    int64_t row, channel, own;  // own: the index of its first block among the thread's
    int rows, width, blocks;    // width in channels
    // Along a walk over a grid position t is row `base + cells[t]` in memory, or nowhere if cells[t] < 0: zeros are read
    // there and nothing is written. Without one (null) it is `row + t`.
    const int32_t* cells;
    int64_t base, walk, walk_channel;  // walk_channel: among those of its walk

    int64_t place(int t) const { return cells ? (cells[t] < 0 ? -1 : base + cells[t]) : row + t; }
    int64_t column(const Rows& m) const { return m.walk_stride < 0 ? channel : walk * m.walk_stride + walk_channel; }
};

// The cache lines of the strip to come, asked for one position at a time while this one is computed: all at once they
// would fill the processor's queue of open requests, and wait. `at` is the next strip, `k` the block within it.
struct Ahead {
    static constexpr int kMatrices = 8;
    const char* rows[kMatrices];
    const int32_t* cells[kMatrices];
    int64_t strides[kMatrices], limits[kMatrices];
    int count = 0;

    void add(const void* first, int64_t stride, int64_t limit, const int32_t* order = nullptr) {
        rows[count] = static_cast<const char*>(first);
        cells[count] = order;
        strides[count] = stride;
        limits[count++] = limit;
    }
    void add(Rows m, const Strip& at) {
        const int64_t size = m.type == kFloat32 ? 4 : 2, first = at.cells ? at.base : at.row;
        if (m.data)
            add(static_cast<const char*>(m.data) + (first * m.stride + at.column(m)) * size, m.stride * size, at.rows,
                at.cells);
    }
    void fetch(int t, int k) const {
        for (int i = 0; i < count; ++i) {
            if (t >= limits[i]) continue;
            const int64_t row = cells[i] ? std::max<int32_t>(0, cells[i][t]) : t;
            __builtin_prefetch(rows[i] + row * strides[i] + k * sizeof(vfloat), 0, 2);
        }
    }
};

template <typename T>
inline void load_strip_as(const T* p, int64_t stride, const Strip& at, vfloat* out) {
    const int full = at.width / kLanes, rest = at.width % kLanes;
    for (int r = 0; r < at.rows; ++r) {
        const int64_t place = at.place(r);
        if (place < 0) {
            for (int k = 0; k < at.blocks; ++k) out[k * kTile + r] = vfloat{};
            continue;
        }
        const T* from = p + place * stride;
        for (int k = 0; k < full; ++k) out[k * kTile + r] = load_as_float(from + k * kLanes);
        if (rest) out[full * kTile + r] = load_some(from + full * kLanes, rest);
    }
}
inline void load_strip(Rows m, const Strip& at, vfloat* out) {
    if (m.type == kFloat32) load_strip_as(static_cast<const float*>(m.data) + at.column(m), m.stride, at, out);
    if (m.type == kBFloat16) load_strip_as(static_cast<const bfloat16*>(m.data) + at.column(m), m.stride, at, out);
    if (m.type == kFloat16) load_strip_as(static_cast<const float16*>(m.data) + at.column(m), m.stride, at, out);
}

template <typename T>
inline void store_strip_as(T* p, int64_t stride, const Strip& at, const vfloat* in) {
    const int full = at.width / kLanes, rest = at.width % kLanes;
    for (int r = 0; r < at.rows; ++r) {
        const int64_t place = at.place(r);
        if (place < 0) continue;
        T* to = p + place * stride;
        for (int k = 0; k < full; ++k) store_from_float(to + k * kLanes, in[k * kTile + r]);
        if (rest) store_some(to + full * kLanes, in[full * kTile + r], rest);
    }
}
inline void store_strip(Rows m, const Strip& at, const vfloat* in) {
    if (m.type == kFloat32) store_strip_as(const_cast<float*>(static_cast<const float*>(m.data)) + at.column(m), m.stride, at, in);
    if (m.type == kBFloat16) store_strip_as(const_cast<bfloat16*>(static_cast<const bfloat16*>(m.data)) + at.column(m), m.stride, at, in);
    if (m.type == kFloat16) store_strip_as(const_cast<float16*>(static_cast<const float16*>(m.data)) + at.column(m), m.stride, at, in);
}

// One block's vectors at the positions of a tile.
struct View {
    float* first;
    int64_t stride;

    vfloat get(int t) const { return load(first + t * stride); }
    void set(int t, vfloat v) const { store(first + t * stride, v); }
};

// A strip's vectors where they lie in memory, if whole registers of floats lie there, or else in tiles.
struct StripView {
    float* first;
    int64_t stride, block;

    explicit StripView(vfloat* tiles) : first(reinterpret_cast<float*>(tiles)), stride(kLanes), block(kTile * kLanes) {}
    StripView(const Rows& m, const Strip& at, vfloat* tiles) : StripView(tiles) {
        if (m.type != kFloat32 || at.cells || at.width % kLanes) return;
        first = static_cast<float*>(const_cast<void*>(m.data)) + at.row * m.stride + at.channel;
        stride = m.stride, block = kLanes;
    }
    // The same, with the tiles filled.
    static StripView loaded(const Rows& m, const Strip& at, vfloat* tiles) {
        const StripView view(m, at, tiles);
        if (view.in(tiles)) load_strip(m, at, tiles);
        return view;
    }
    bool in(const vfloat* tiles) const { return first == reinterpret_cast<const float*>(tiles); }
    View operator[](int k) const { return {first + k * block, stride}; }
};

// `count` floats a row, packed: the rows of B or C of a tile.
template <typename T>
inline void load_weights_as(const T* p, int64_t stride, const Strip& at, int count, float* out) {
    for (int r = 0; r < at.rows; ++r, out += count) {
        const int64_t place = at.place(r);
        if (place < 0) {
            std::fill(out, out + count, 0.0f);
            continue;
        }
        const T* from = p + place * stride;
        int n = 0;
        for (; n + kLanes <= count; n += kLanes) store(out + n, load_as_float(from + n));
        for (; n < count; ++n) out[n] = to_float(from[n]);
    }
}
inline void load_weights(Rows m, const Strip& at, int64_t column, int count, float* out) {
    if (m.type == kFloat32) load_weights_as(static_cast<const float*>(m.data) + column, m.stride, at, count, out);
    if (m.type == kBFloat16) load_weights_as(static_cast<const bfloat16*>(m.data) + column, m.stride, at, count, out);
    if (m.type == kFloat16) load_weights_as(static_cast<const float16*>(m.data) + column, m.stride, at, count, out);
}

// ---- arguments and the division of work ------------------------------------------------------------------------

// B or C: a row a position for each of `groups` runs of channels, or (groups = 0) constant, (channels, states).
struct Weights {
    Rows rows;
    int64_t group_stride;
    int64_t groups;
};

struct Problem {
    Rows x, delta, z;
    const void* A;  // (channels, states) of Scalar
    Weights B, C;
    const float *D, *delta_bias;
    const void* initial_state;  // (sequences, channels, states) of Scalar
    const uint8_t* resets;      // (rows,)
    const int64_t* offsets;     // (sequences + 1,), or null: all sequences have `length` rows
    int64_t sequences, length, channels, states;
    bool softplus;
    // Walks over grids, (walks, length), or null: run w of channels follows walk w, and all runs read the same x.
    const int32_t* order = nullptr;
    int64_t cells = 0;  // of a grid
    // Windows of so many positions, which divide a tile, are scanned backward too: r_t = a_t (r_{t+1} + b_{t+1}), zero at
    // the last position of each, and y reads h + r. 0: none. Real states and B, C of every position only.
    int window = 0;

    // Rows of memory, and positions.
    int64_t stored_rows() const { return order ? sequences * cells : rows(); }
    int64_t begin(int64_t s) const { return offsets ? offsets[s] : s * length; }
    int64_t rows() const { return begin(sequences); }
    // Where the saved states of sequence s begin: see _states_shape in Python.
    int64_t checkpoint(int64_t s) const { return begin(s) / kTile + s; }
};

// Channel blocks: never across a group boundary of B or C.
struct Blocks {
    int64_t runs, run, per_run;  // runs of channels that share their rows of B and C; channels and blocks of a run

    explicit Blocks(const Problem& p) {
        const int64_t b = std::max<int64_t>(p.B.groups, 1), c = std::max<int64_t>(p.C.groups, 1);
        int64_t x = b, y = c;
        while (y) std::swap(x %= y, y);
        runs = b / x * c;
        run = p.channels / runs;
        per_run = (run + kLanes - 1) / kLanes;
    }
    int64_t count() const { return runs * per_run; }
    // The blocks of the strip that begins at `block`: within one run, and before `last`.
    int strip(int64_t block, int64_t last) const {
        return int(std::min({int64_t(kStrip), last - block, per_run - block % per_run}));
    }
    // Channels of `blocks` blocks of one run.
    int width(int64_t block, int blocks) const {
        return int(std::min<int64_t>(int64_t(blocks) * kLanes, run - block % per_run * kLanes));
    }
    int64_t channel(int64_t block) const { return block / per_run * run + block % per_run * kLanes; }
    int width(int64_t block) const { return width(block, 1); }
    int64_t group(const Weights& w, int64_t block) const { return w.groups ? block / per_run / (runs / w.groups) : 0; }
};

// Thread `thread` of `threads` has the pairs (block, sequence) from `first` to `last`, sequences running fastest:
// nearly all sequences of a run of blocks, so that ragged lengths are shared evenly.
struct Share {
    int64_t first, last, sequences;

    Share(const Problem& p, const Blocks& blocks, int thread, int threads) : sequences(p.sequences) {
        const int64_t all = blocks.count() * sequences;
        first = all * thread / threads, last = all * (thread + 1) / threads;
    }
    int64_t first_block() const { return first / sequences; }
    int64_t last_block() const { return (last + sequences - 1) / sequences; }
    int64_t first_block(int64_t s) const { return std::max<int64_t>(0, (first - s + sequences - 1) / sequences); }
    int64_t last_block(int64_t s) const { return std::max<int64_t>(0, (last - s + sequences - 1) / sequences); }
};

// Runs work(0) .. work(threads - 1), each once, whatever number of threads there really is.
template <typename F>
inline void parallel(int threads, F work) {
#ifdef _OPENMP
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static, 1)
#endif
    for (int thread = 0; thread < threads; ++thread) work(thread);
}

// Hands out pieces of one allocation, 64-byte aligned; with a null base it only measures.
struct Arena {
    char* base;
    size_t used = 0;

    explicit Arena(void* p) : base(reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(p) + 63) & ~uintptr_t(63))) {}
    template <typename T>
    T* take(int64_t count) {
        T* out = base ? reinterpret_cast<T*>(base + used) : nullptr;
        used += ((size_t(count) * sizeof(T) + 63) & ~size_t(63)) + 64;
        return out;
    }
};

}  // namespace STATESCAN_LEVEL

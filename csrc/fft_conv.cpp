// Convolutions with kernels as long as the sequence: y = (k * (gate x)) + D (gate x) and all gradients.
//
// Every lane of a register is a channel, so that one transform serves as many channels as there are lanes and a signal
// with channels last is read as it lies. A transform has as many points as the signal has positions, N of them: sequences
// are multiplied in the ring of polynomials modulo z^N + i, where what passes the end comes back times -i and what comes
// before the start times i. Sequences and kernels being real, the real part of the product is the convolution without any
// padding, and a kernel that reads the future lies in the imaginary part, from the end. (Crandall and Fagin 1994 call it a
// right-angle convolution.)
//
// N is a product of radices up to 64, and a transform a pass over the points for each of them: a column of so many points
// is gathered, transformed in two steps between registers and the first-level cache, and laid down as a column again,
// whose rows are then transforms by themselves. Rows are taken one after another down to the last radix, the leaf, so that
// all passes but the first run in the caches near the core. In the leaf the spectra meet, and from there it goes back up
// the same way: a row is touched once between the first pass of the transform and the last of its inverse.
#include "common.h"
#include "math.h"

#include <initializer_list>

namespace STATESCAN_LEVEL {
namespace {

constexpr int64_t kPoint = 2 * kLanes;  // floats in a point: real parts, then imaginary parts
constexpr int64_t kStrip = kLanes;      // positions next to each other that a signal is read by
constexpr int64_t kMostRadix = 64;

struct Point {
    vfloat re, im;
};
inline Point read(const float* p) { return {load(p), load(p + kLanes)}; }
inline void write(float* p, Point v) {
    store(p, v.re);
    store(p + kLanes, v.im);
}
inline Point operator+(Point a, Point b) { return {a.re + b.re, a.im + b.im}; }
inline Point operator-(Point a, Point b) { return {a.re - b.re, a.im - b.im}; }
inline Point operator*(Point a, float b) { return {a.re * b, a.im * b}; }
inline Point product(Point a, Point b) { return {a.re * b.re - a.im * b.im, a.re * b.im + a.im * b.re}; }
inline Point correlation(Point a, Point b) { return {a.re * b.re + a.im * b.im, a.im * b.re - a.re * b.im}; }
// By a root of unity there, by its conjugate back.
template <bool Back>
inline Point turn(Point a, const float* w) {
    if (Back) return {a.re * w[0] + a.im * w[1], a.im * w[0] - a.re * w[1]};
    return {a.re * w[0] - a.im * w[1], a.re * w[1] + a.im * w[0]};
}
// By -i there, by i back.
template <bool Back>
inline Point quarter(Point a) {
    if (Back) return {-a.im, a.re};
    return {a.im, -a.re};
}
// By exp(-pi i / 4) times the root of two there, by its conjugate back.
template <bool Back>
inline Point eighth(Point a) {
    if (Back) return {a.re - a.im, a.im + a.re};
    return {a.re + a.im, a.im - a.re};
}

// ---- transforms of a few points in registers, in natural order ------------------------------------------------

template <int Size, bool Back>
struct Few;
template <bool Back>
struct Few<1, Back> {
    static void run(Point*) {}
};
template <bool Back>
struct Few<2, Back> {
    static inline __attribute__((always_inline)) void run(Point* v) {
        const Point a = v[0], b = v[1];
        v[0] = a + b;
        v[1] = a - b;
    }
};
template <bool Back>
struct Few<3, Back> {
    static inline __attribute__((always_inline)) void run(Point* v) {
        constexpr float kSine = 0.86602540378443865f;  // of 60 degrees
        const Point s = v[1] + v[2], middle = v[0] - s * 0.5f, side = quarter<Back>(v[1] - v[2]) * kSine;
        v[0] = v[0] + s;
        v[1] = middle + side;
        v[2] = middle - side;
    }
};
template <bool Back>
struct Few<4, Back> {
    static inline __attribute__((always_inline)) void run(Point* v) {
        const Point s = v[0] + v[2], e = v[0] - v[2], t = v[1] + v[3], f = quarter<Back>(v[1] - v[3]);
        v[0] = s + t;
        v[1] = e + f;
        v[2] = s - t;
        v[3] = e - f;
    }
};
template <bool Back>
struct Few<6, Back> {  // by the remainders modulo 2 and 3 (Good and Thomas): no roots in between
    static inline __attribute__((always_inline)) void run(Point* v) {
        Point even[3] = {v[0], v[2], v[4]}, odd[3] = {v[3], v[5], v[1]};
        Few<3, Back>::run(even);
        Few<3, Back>::run(odd);
        for (int k = 0; k < 3; ++k) {
            v[4 * k % 6] = even[k] + odd[k];
            v[(4 * k + 3) % 6] = even[k] - odd[k];
        }
    }
};
template <bool Back>
struct Few<8, Back> {
    static inline __attribute__((always_inline)) void run(Point* v) {
        constexpr float kRoot = 0.70710678118654752f;  // of one half
        Point even[4] = {v[0], v[2], v[4], v[6]}, odd[4] = {v[1], v[3], v[5], v[7]};
        Few<4, Back>::run(even);
        Few<4, Back>::run(odd);
        odd[1] = eighth<Back>(odd[1]) * kRoot;
        odd[2] = quarter<Back>(odd[2]);
        odd[3] = eighth<Back>(quarter<Back>(odd[3])) * kRoot;
        for (int k = 0; k < 4; ++k) {
            v[k] = even[k] + odd[k];
            v[k + 4] = even[k] - odd[k];
        }
    }
};

// ---- passes ---------------------------------------------------------------------------------------------------

// Columns of a level: loose, in rows of positions, before a pass there and after one back; tight, in rows of frequencies,
// after and before. `inner` are the roots between the two steps of a pass, `outer` those that the frequencies of a column
// are turned by, pairs of floats in the order of their use.
struct Columns {
    float *loose, *tight;
    int64_t loose_row, tight_row, count;
    const float *inner, *outer;
};

// There: transforms of A points each B rows apart, then of B points. Back: the same the other way round.
template <int A, int B, bool Back>
void pass(const Columns& columns) {
    alignas(64) float scratch[A * B * kPoint];
    const int64_t loose_row = columns.loose_row, tight_row = columns.tight_row;
    for (int64_t j = 0; j < columns.count; ++j) {
        float *loose = columns.loose + j * kPoint, *tight = columns.tight + j * kPoint;
        const auto positions = [&] {
            for (int64_t b = 0; b < B; ++b) {
                float *from = scratch + b * kPoint, *to = loose + b * loose_row;
                const float* roots = columns.inner + 2 * A * b;
                Point v[A];
                for (int a = 0; a < A; ++a)
                    v[a] = Back ? turn<Back>(read(from + a * B * kPoint), roots + 2 * a) : read(to + a * B * loose_row);
                Few<A, Back>::run(v);
                for (int a = 0; a < A; ++a) {
                    if (Back) write(to + a * B * loose_row, v[a]);
                    else write(from + a * B * kPoint, turn<Back>(v[a], roots + 2 * a));
                }
            }
        };
        const auto frequencies = [&] {
            for (int64_t a = 0; a < A; ++a) {
                float *from = A == 1 ? loose : scratch + a * B * kPoint, *to = tight + a * tight_row;
                const int64_t step = A == 1 ? loose_row : kPoint;
                const float* roots = columns.outer + 2 * ((j * A + a) * B);
                Point v[B];
                for (int b = 0; b < B; ++b)
                    v[b] = Back ? turn<Back>(read(to + b * A * tight_row), roots + 2 * b) : read(from + b * step);
                Few<B, Back>::run(v);
                for (int b = 0; b < B; ++b) {
                    if (Back) write(from + b * step, v[b]);
                    else write(to + b * A * tight_row, turn<Back>(v[b], roots + 2 * b));
                }
            }
        };
        if (A > 1 && !Back) positions();
        frequencies();
        if (A > 1 && Back) positions();
    }
}

template <bool Back>
void pass(int64_t radix, const Columns& columns) {
    switch (radix) {
        case 2: return pass<1, 2, Back>(columns);
        case 3: return pass<1, 3, Back>(columns);
        case 4: return pass<1, 4, Back>(columns);
        case 6: return pass<1, 6, Back>(columns);
        case 8: return pass<1, 8, Back>(columns);
        case 12: return pass<3, 4, Back>(columns);
        case 16: return pass<4, 4, Back>(columns);
        case 24: return pass<3, 8, Back>(columns);
        case 32: return pass<4, 8, Back>(columns);
        case 48: return pass<6, 8, Back>(columns);
        case 64: return pass<8, 8, Back>(columns);
    }
}

// ---- leaves: transforms of Q Q neighbouring points, in place -----------------------------------------------------

template <int Q, bool Back>
inline void leaf_columns(float* x, const float* roots) {
    for (int b = 0; b < Q; ++b, roots += 2 * Q) {
        float* column = x + b * kPoint;
        Point v[Q];
        for (int a = 0; a < Q; ++a) {
            v[a] = read(column + a * Q * kPoint);
            if (Back) v[a] = turn<Back>(v[a], roots + 2 * a);
        }
        Few<Q, Back>::run(v);
        for (int a = 0; a < Q; ++a) write(column + a * Q * kPoint, Back ? v[a] : turn<Back>(v[a], roots + 2 * a));
    }
}

template <int Q, bool Back>
inline void leaf_rows(float* x) {
    for (int a = 0; a < Q; ++a, x += Q * kPoint) {
        Point v[Q];
        for (int b = 0; b < Q; ++b) v[b] = read(x + b * kPoint);
        Few<Q, Back>::run(v);
        for (int b = 0; b < Q; ++b) write(x + b * kPoint, v[b]);
    }
}

// The last step there, `change(place, point)` and the first step back, in registers.
template <int Q, typename Change>
inline void leaf_rows_through(float* x, Change change) {
    for (int64_t at = 0; at < Q * Q * kPoint; at += Q * kPoint) {
        Point v[Q];
        for (int b = 0; b < Q; ++b) v[b] = read(x + at + b * kPoint);
        Few<Q, false>::run(v);
        for (int b = 0; b < Q; ++b) v[b] = change(at + b * kPoint, v[b]);
        Few<Q, true>::run(v);
        for (int b = 0; b < Q; ++b) write(x + at + b * kPoint, v[b]);
    }
}

template <int Q>
void leaf_there(float* x, const float* roots) {
    leaf_columns<Q, false>(x, roots);
    leaf_rows<Q, false>(x);
}

template <int Q>
void leaf_back(float* x, const float* roots) {
    leaf_rows<Q, true>(x);
    leaf_columns<Q, true>(x, roots);
}

// x becomes its convolution with a kernel, whose spectrum is given.
template <int Q>
void leaf_convolve(float* x, const float* spectrum, const float* roots) {
    leaf_columns<Q, false>(x, roots);
    leaf_rows_through<Q>(x, [&](int64_t place, Point v) { return product(v, read(spectrum + place)); });
    leaf_columns<Q, true>(x, roots);
}

// A gradient becomes its correlation with a kernel; `lags` takes the spectrum of its correlation with the input, whose
// spectrum `u` is. `add`: on top of what is there. `lags` may be `u`.
template <int Q>
void leaf_correlate(float* grad, const float* u, const float* spectrum, float* lags, bool add, const float* roots) {
    leaf_columns<Q, false>(grad, roots);
    leaf_rows_through<Q>(grad, [&](int64_t place, Point v) {
        const Point sum = correlation(v, read(u + place));
        write(lags + place, add ? read(lags + place) + sum : sum);
        return correlation(v, read(spectrum + place));
    });
    leaf_columns<Q, true>(grad, roots);
}

// ---- a whole transform ---------------------------------------------------------------------------------------------

struct Level {
    int64_t radix, columns, row;  // row: floats from one row of frequencies to the next
    const float *inner, *outer;
};

struct Plan {
    static constexpr int kMostLevels = 8;
    Level levels[kMostLevels];
    int64_t count, leaf, points, size;  // levels, points of a leaf, points, floats with the gaps
    const float *leaf_roots, *tilt;

    // Rows lie an odd number of points apart: at a power of two, all of a column would share a few sets of the caches.
    Plan(const int64_t* radices, int64_t radix_count, const float* tables) : count(radix_count - 1), leaf(radices[count]) {
        int64_t extent = leaf;
        points = leaf;
        for (int64_t i = count - 1; i >= 0; --i) {
            levels[i].radix = radices[i];
            levels[i].columns = points;
            levels[i].row = (extent | 1) * kPoint;
            points *= radices[i];
            extent = radices[i] * (extent | 1);
        }
        size = extent * kPoint;
        for (int64_t i = 0; i < count; ++i) {
            levels[i].inner = tables;
            levels[i].outer = tables + 2 * levels[i].radix;
            tables += 2 * levels[i].radix * (1 + levels[i].columns);
        }
        leaf_roots = tables;
        tilt = tables + 2 * leaf;
    }
    // Where a column of a level lies in a row.
    int64_t place(int64_t level, int64_t column) const {
        int64_t at = 0;
        for (int64_t i = level + 1; i < count; ++i) {
            at += column / levels[i].columns * levels[i].row;
            column %= levels[i].columns;
        }
        return at + column * kPoint;
    }
    int64_t strip() const { return levels[0].radix * kStrip * kPoint; }
    int64_t workspace(int64_t kept) const { return kept * size + strip(); }
};

// What takes the points of one row of a strip.
struct Put {
    float* row;
    const float* tilt;
    void operator()(int64_t c, Point v) const { write(row + c * kPoint, turn<false>(v, tilt)); }
    void operator()(int64_t c, vfloat v) const { write(row + c * kPoint, Point{v * tilt[0], v * tilt[1]}); }
};

// The first pass there. `fetch(position, put)` is asked for a strip of neighbours and puts them one by one.
template <typename Fetch>
inline void transform(const Plan& plan, float* work, float* strip, Fetch fetch) {
    const Level& top = plan.levels[0];
    for (int64_t j = 0; j < top.columns; j += kStrip) {
        for (int64_t i = 0; i < top.radix; ++i)
            fetch(j + top.columns * i, Put{strip + i * kStrip * kPoint, plan.tilt + 2 * i});
        pass<false>(top.radix, {strip, work + plan.place(0, j), kStrip * kPoint, top.row, kStrip, top.inner,
                                top.outer + 2 * j * top.radix});
    }
}

// The last pass back. `give(position, get)` takes neighbours.
template <typename Give>
inline void transform_back(const Plan& plan, float* work, float* strip, Give give) {
    const Level& top = plan.levels[0];
    const float scale = 1.0f / float(plan.points);
    for (int64_t j = 0; j < top.columns; j += kStrip) {
        pass<true>(top.radix, {strip, work + plan.place(0, j), kStrip * kPoint, top.row, kStrip, top.inner,
                               top.outer + 2 * j * top.radix});
        for (int64_t i = 0; i < top.radix; ++i) {
            const float tilt[2] = {plan.tilt[2 * i] * scale, plan.tilt[2 * i + 1] * scale};
            const float* row = strip + i * kStrip * kPoint;
            give(j + top.columns * i, [&](int64_t c) { return turn<true>(read(row + c * kPoint), tilt); });
        }
    }
}

template <bool Back>
void inner_pass(const Plan& plan, int64_t level, float* x) {
    const Level& here = plan.levels[level];
    for (int64_t j = 0; j < here.columns; j += plan.leaf) {
        float* at = x + plan.place(level, j);
        pass<Back>(here.radix, {at, at, here.row, here.row, plan.leaf, here.inner, here.outer + 2 * j * here.radix});
    }
}

// Every row from the first pass's end: arrays `down` are transformed to their leaves, of which `leaf(offset)` is told, and
// arrays `up` back again. All arrays have their rows at the same offsets.
template <typename Leaf>
void rows(const Plan& plan, std::initializer_list<float*> down, std::initializer_list<float*> up, const Leaf& leaf,
          int64_t level = 0, int64_t offset = 0) {
    const Level& here = plan.levels[level];
    if (level)
        for (float* x : down) inner_pass<false>(plan, level, x + offset);
    for (int64_t i = 0; i < here.radix; ++i) {
        const int64_t row = offset + i * here.row;
        if (level + 1 < plan.count) rows(plan, down, up, leaf, level + 1, row);
        else leaf(row);
    }
    if (level)
        for (float* x : up) inner_pass<true>(plan, level, x + offset);
}

// ---- what is transformed -------------------------------------------------------------------------------------------

// Some channels of (length, channels), perhaps gated.
template <typename T>
struct Signal {
    const T* x;
    const T* gate;
    int64_t length, channels;
    int count;
    vfloat at(int64_t t) const {
        const vfloat v = load_some(x + t * channels, count);
        return gate ? v * load_some(gate + t * channels, count) : v;
    }
    void transform(const Plan& plan, float* work, float* strip) const {
        STATESCAN_LEVEL::transform(plan, work, strip, [&](int64_t t, Put put) {
            for (int64_t c = 0; c < kStrip; ++c) put(c, t + c < length ? at(t + c) : vfloat{});
        });
    }
};

// A square of lanes out of rows of taps (channels, taps), transposed in registers.
struct Square {
    vfloat values[kLanes];  // one for a tap, a channel in each lane
    void transpose() {
        for (int d = 1; d < kLanes; d *= 2) {
            vint low, high;  // squares of d are exchanged
            for (int i = 0; i < kLanes; ++i) {
                low[i] = i & d ? kLanes + i - d : i;
                high[i] = i & d ? kLanes + i : i + d;
            }
            for (int i = 0; i < kLanes; ++i) {
                if (i & d) continue;
                const vfloat a = values[i], b = values[i + d];
                values[i] = __builtin_shuffle(a, b, low);
                values[i + d] = __builtin_shuffle(a, b, high);
            }
        }
    }
    // Taps from `first` on; those from `taps` on are zero.
    Square(const float* rows, int64_t taps, int64_t first, int count) {
        const int width = int(std::max<int64_t>(0, std::min<int64_t>(kLanes, taps - first)));
        for (int c = 0; c < kLanes; ++c)
            values[c] = c < count && width ? load_some(rows + c * taps + first, width) : vfloat{};
        transpose();
    }
    explicit Square(const vfloat (&given)[kLanes]) {
        for (int i = 0; i < kLanes; ++i) values[i] = given[i];
    }
    void write(float* rows, int64_t taps, int64_t first, int count) {
        const int width = int(std::min<int64_t>(kLanes, taps - first));
        transpose();
        for (int c = 0; c < count && width > 0; ++c) store_some(rows + c * taps + first, values[c], width);
    }
};

// Both halves of a kernel: taps on the past, and taps on the future from one position ahead.
struct Taps {
    const float *past, *future;
    int64_t taps, ahead;
    int count;
    void transform(const Plan& plan, float* work, float* strip) const {
        STATESCAN_LEVEL::transform(plan, work, strip, [&](int64_t t, Put put) {
            const Square square(past, taps, t, count);
            if (!ahead) {
                for (int i = 0; i < kLanes; ++i) put(i, square.values[i]);
                return;
            }
            const Square reversed(future, ahead, plan.points - kLanes - t, count);  // position t has tap N - 1 - t
            for (int i = 0; i < kLanes; ++i) put(i, Point{square.values[i], reversed.values[kLanes - 1 - i]});
        });
    }
};

inline float* of_thread(float* workspace, int64_t floats) {
#ifdef _OPENMP
    return workspace + omp_get_thread_num() * floats;
#else
    return workspace;
#endif
}

template <int Q, typename T>
void forward(const T* x, const T* gate, const float* kernel, const float* future, const float* D, T* y,
             const Plan& plan, float* workspace, int64_t batch, int64_t length, int64_t channels, int64_t taps,
             int64_t ahead, int threads) {
    const int64_t blocks = (channels + kLanes - 1) / kLanes;
#pragma omp parallel for schedule(dynamic) num_threads(threads) if (threads > 1)
    for (int64_t block = 0; block < blocks; ++block) {
        float *spectrum = of_thread(workspace, plan.workspace(2)), *work = spectrum + plan.size, *strip = work + plan.size;
        const int64_t first = block * kLanes;
        const int count = int(std::min<int64_t>(kLanes, channels - first));
        const vfloat direct = D ? load_some(D + first, count) : vfloat{};
        Taps{kernel + first * taps, future + first * ahead, taps, ahead, count}.transform(plan, spectrum, strip);
        for (int64_t b = 0; b < batch; ++b) {
            const int64_t start = b * length * channels + first;
            const Signal<T> signal{x + start, gate ? gate + start : nullptr, length, channels, count};
            signal.transform(plan, work, strip);
            const auto leaf = [&](int64_t at) {
                if (b == 0) leaf_there<Q>(spectrum + at, plan.leaf_roots);
                leaf_convolve<Q>(work + at, spectrum + at, plan.leaf_roots);
            };
            if (b == 0) rows(plan, {spectrum, work}, {work}, leaf);
            else rows(plan, {work}, {work}, leaf);
            transform_back(plan, work, strip, [&](int64_t t, auto get) {
                for (int64_t c = 0; c < kStrip && t + c < length; ++c) {
                    vfloat v = get(c).re;
                    if (D) v += direct * signal.at(t + c);
                    store_some(y + start + (t + c) * channels, v, count);
                }
            });
        }
    }
}

template <int Q, typename T>
void backward(const T* grad, const T* x, const T* gate, const float* kernel, const float* future, const float* D,
              T* grad_x, T* grad_gate, float* grad_kernel, float* grad_future, float* grad_D, const Plan& plan,
              float* workspace, int64_t batch, int64_t length, int64_t channels, int64_t taps, int64_t ahead,
              int threads) {
    const int64_t blocks = (channels + kLanes - 1) / kLanes, kept = batch > 1 ? 4 : 3;
#pragma omp parallel for schedule(dynamic) num_threads(threads) if (threads > 1)
    for (int64_t block = 0; block < blocks; ++block) {
        float *spectrum = of_thread(workspace, plan.workspace(kept)), *given = spectrum + plan.size;
        float *work = given + plan.size, *strip = work + (kept - 2) * plan.size;
        float* lags = batch > 1 ? work + plan.size : work;
        const int64_t first = block * kLanes;
        const int count = int(std::min<int64_t>(kLanes, channels - first));
        const vfloat direct = D ? load_some(D + first, count) : vfloat{};
        Taps{kernel + first * taps, future + first * ahead, taps, ahead, count}.transform(plan, spectrum, strip);
        for (int64_t b = 0; b < batch; ++b) {
            const int64_t start = b * length * channels + first;
            const Signal<T> signal{x + start, gate ? gate + start : nullptr, length, channels, count};
            signal.transform(plan, work, strip);
            Signal<T>{grad + start, nullptr, length, channels, count}.transform(plan, given, strip);
            // Correlating with the kernel gives the input's gradient, correlating with the input the kernel's.
            const bool begins = b == 0, ends = b == batch - 1;
            const auto leaf = [&](int64_t at) {
                if (begins) leaf_there<Q>(spectrum + at, plan.leaf_roots);
                leaf_there<Q>(work + at, plan.leaf_roots);
                leaf_correlate<Q>(given + at, work + at, spectrum + at, lags + at, !begins, plan.leaf_roots);
                if (ends) leaf_back<Q>(lags + at, plan.leaf_roots);
            };
            if (begins && ends) rows(plan, {spectrum, work, given}, {given, lags}, leaf);
            else if (begins) rows(plan, {spectrum, work, given}, {given}, leaf);
            else if (ends) rows(plan, {work, given}, {given, lags}, leaf);
            else rows(plan, {work, given}, {given}, leaf);
            transform_back(plan, given, strip, [&](int64_t t, auto get) {
                for (int64_t c = 0; c < kStrip && t + c < length; ++c) {
                    const int64_t place = start + (t + c) * channels;
                    vfloat v = get(c).re;
                    if (D) v += direct * load_some(grad + place, count);
                    if (gate) {
                        store_some(grad_gate + place, v * load_some(x + place, count), count);
                        v *= load_some(gate + place, count);
                    }
                    store_some(grad_x + place, v, count);
                }
            });
        }
        transform_back(plan, lags, strip, [&](int64_t t, auto get) {
            vfloat past[kLanes], reversed[kLanes];
            for (int i = 0; i < kLanes; ++i) {
                const Point lag = get(i);
                past[i] = lag.re;
                reversed[kLanes - 1 - i] = lag.im;
            }
            if (t == 0 && D) store_some(grad_D + first, past[0], count);  // the lag of 0 is D's too
            if (t < taps) Square(past).write(grad_kernel + first * taps, taps, t, count);
            const int64_t tap = plan.points - kLanes - t;
            if (tap < ahead) Square(reversed).write(grad_future + first * ahead, ahead, tap, count);
        });
    }
}

template <typename Run>
int run_typed(int dtype, Run run) {
    if (dtype == kFloat32) run(float{});
    if (dtype == kBFloat16) run(bfloat16{});
    if (dtype == kFloat16) run(float16{});
    return 0;
}

}  // namespace

// Floats of workspace for a thread: `kept` arrays of points and the strip at hand.
STATESCAN_EXPORT(int, fft_conv_workspace)(const int64_t* radices, int64_t count, int64_t kept, int64_t* floats) {
    *floats = Plan(radices, count, nullptr).workspace(kept);
    return 0;
}

// x, gate, y: (batch, length, channels) of one type; kernel: (channels, taps); future: (channels, ahead); D: (channels,).
// gate and D may be null. The product N of the radices is not less than length, taps and ahead + 1; the last radix, the
// leaf, is 16 or 64. `tables` (kernels/cpu_fft_conv.py makes them) are pairs of floats, exp(-2 pi i times):
//   for every radix r but the last, of transforms of n points, r = A B as `pass` has it:
//     b a / r at [b][a];   j (f + s) / n at [j][a][b], f = a + A b and s = 1/4 for the first radix, else 0;
//   for the leaf, Q Q points: b a / (Q Q) at [b][a];   for position i of a column of the first radix r: i / (4 r).
// The workspace is that of two arrays for every thread.
STATESCAN_EXPORT(int, fft_conv_forward)
(const void* x, const void* gate, const float* kernel, const float* future, const float* D, void* y,
 const int64_t* radices, const float* tables, float* workspace, int64_t radix_count, int64_t batch, int64_t length,
 int64_t channels, int64_t taps, int64_t ahead, int dtype, int threads) {
    const Plan plan(radices, radix_count, tables);
    return run_typed(dtype, [&](auto type) {
        using T = decltype(type);
        const auto run = plan.leaf == 64 ? forward<8, T> : forward<4, T>;
        run(static_cast<const T*>(x), static_cast<const T*>(gate), kernel, future, D, static_cast<T*>(y), plan, workspace,
            batch, length, channels, taps, ahead, threads);
    });
}

// grad, grad_x and grad_gate are as x is, the other gradients as what they belong to. The workspace is that of three
// arrays for every thread, of four where the batch is larger than one.
STATESCAN_EXPORT(int, fft_conv_backward)
(const void* grad, const void* x, const void* gate, const float* kernel, const float* future, const float* D,
 void* grad_x, void* grad_gate, float* grad_kernel, float* grad_future, float* grad_D, const int64_t* radices,
 const float* tables, float* workspace, int64_t radix_count, int64_t batch, int64_t length, int64_t channels,
 int64_t taps, int64_t ahead, int dtype, int threads) {
    const Plan plan(radices, radix_count, tables);
    return run_typed(dtype, [&](auto type) {
        using T = decltype(type);
        const auto run = plan.leaf == 64 ? backward<8, T> : backward<4, T>;
        run(static_cast<const T*>(grad), static_cast<const T*>(x), static_cast<const T*>(gate), kernel, future, D,
            static_cast<T*>(grad_x), static_cast<T*>(grad_gate), grad_kernel, grad_future, grad_D, plan, workspace, batch,
            length, channels, taps, ahead, threads);
    });
}

}  // namespace STATESCAN_LEVEL

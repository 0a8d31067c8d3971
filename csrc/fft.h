// Fourier transforms of as many channels as a register has lanes.
//
// N is a product of radices up to 64, and a transform a pass over the points for each of them: a column of so many points
// is gathered, transformed in two steps between registers and the first-level cache, and laid down as a column again,
// whose rows are then transforms by themselves. Rows are taken one after another down to the last radix, the leaf, so that
// all passes but the first run in the caches near the core. Frequencies are in the same order for everyone at the leaf,
// whichever it is, and so need no reordering.
#pragma once

#include "common.h"
#include "math.h"

#include <initializer_list>
#include <type_traits>

namespace STATESCAN_LEVEL {
namespace {

constexpr int64_t kPoint = 2 * kLanes;  // floats in a point: real parts, then imaginary parts

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
// By the root between two steps: the first is one.
template <bool Back>
inline Point turn_inside(Point a, const float* roots, int at) {
    return at ? turn<Back>(a, roots + 2 * at) : a;
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
// are turned by, pairs of floats in the order of their use. Points are either complex, or real and to be turned by the
// root in `tilt` for their row: of what comes back, the real part is left.
struct Columns {
    float *loose, *tight;
    int64_t loose_row, loose_column, tight_row, count;
    const float *inner, *outer, *tilt;
};

template <bool Real, int Count>
inline __attribute__((always_inline)) void read_loose(Point* v, const float* from, int64_t step, const float* tilt,
                                                      int64_t tilt_step) {
    for (int i = 0; i < Count; ++i) {
        if (Real) {
            const vfloat value = load(from + i * step);
            v[i] = {value * tilt[i * tilt_step], value * tilt[i * tilt_step + 1]};
        } else {
            v[i] = read(from + i * step);
        }
    }
}

template <bool Real, int Count>
inline __attribute__((always_inline)) void write_loose(const Point* v, float* to, int64_t step, const float* tilt,
                                                       int64_t tilt_step) {
    for (int i = 0; i < Count; ++i) {
        if (Real) store(to + i * step, v[i].re * tilt[i * tilt_step] + v[i].im * tilt[i * tilt_step + 1]);
        else write(to + i * step, v[i]);
    }
}

// There: transforms of A points each B rows apart, then of B points. Back: the same the other way round. The next columns
// are asked for meanwhile: so many rows at once are beyond what the processor foresees.
template <int A, int B, bool Back, bool Real>
void pass(const Columns& columns) {
    alignas(64) float scratch[A * B * kPoint];
    const int64_t loose_row = columns.loose_row, tight_row = columns.tight_row;
    for (int64_t j = 0; j < columns.count; ++j) {
        float *loose = columns.loose + j * columns.loose_column, *tight = columns.tight + j * kPoint;
        const auto positions = [&] {
            for (int64_t b = 0; b < B; ++b) {
                float *inside = scratch + b * kPoint, *row = loose + b * loose_row;
                const float *roots = columns.inner + 2 * A * b, *tilt = columns.tilt + 2 * b;
                Point v[A];
                if (Back)
                    for (int a = 0; a < A; ++a) v[a] = turn_inside<true>(read(inside + a * B * kPoint), roots, a);
                else
                    read_loose<Real, A>(v, row, B * loose_row, tilt, 2 * B);
                Few<A, Back>::run(v);
                if (Back)
                    write_loose<Real, A>(v, row, B * loose_row, tilt, 2 * B);
                else
                    for (int a = 0; a < A; ++a) write(inside + a * B * kPoint, turn_inside<false>(v[a], roots, a));
            }
        };
        const auto frequencies = [&] {
            for (int64_t a = 0; a < A; ++a) {
                float *inside = scratch + a * B * kPoint, *row = tight + a * tight_row;
                const float* roots = columns.outer + 2 * ((j * A + a) * B);
                Point v[B];
                for (int b = 0; b < B; ++b) {
                    __builtin_prefetch(row + b * A * tight_row + 2 * kPoint, !Back, 3);
                    __builtin_prefetch(row + b * A * tight_row + 2 * kPoint + kLanes, !Back, 3);
                }
                if (Back)
                    for (int b = 0; b < B; ++b) v[b] = turn<true>(read(row + b * A * tight_row), roots + 2 * b);
                else if (A > 1)
                    for (int b = 0; b < B; ++b) v[b] = read(inside + b * kPoint);
                else
                    read_loose<Real, B>(v, loose, loose_row, columns.tilt, 2);
                Few<B, Back>::run(v);
                if (!Back)
                    for (int b = 0; b < B; ++b) write(row + b * A * tight_row, turn<false>(v[b], roots + 2 * b));
                else if (A > 1)
                    for (int b = 0; b < B; ++b) write(inside + b * kPoint, v[b]);
                else
                    write_loose<Real, B>(v, loose, loose_row, columns.tilt, 2);
            }
        };
        if (A > 1 && !Back) positions();
        frequencies();
        if (A > 1 && Back) positions();
    }
}

template <bool Back, bool Real>
void pass(int64_t radix, const Columns& columns) {
    switch (radix) {
        case 2: return pass<1, 2, Back, Real>(columns);
        case 4: return pass<1, 4, Back, Real>(columns);
        case 6: return pass<1, 6, Back, Real>(columns);
        case 8: return pass<1, 8, Back, Real>(columns);
        case 12: return pass<3, 4, Back, Real>(columns);
        case 16: return pass<4, 4, Back, Real>(columns);
        case 24: return pass<3, 8, Back, Real>(columns);
        case 32: return pass<4, 8, Back, Real>(columns);
        case 48: return pass<6, 8, Back, Real>(columns);
        case 64: return pass<8, 8, Back, Real>(columns);
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
            if (Back) v[a] = turn_inside<Back>(v[a], roots, a);
        }
        Few<Q, Back>::run(v);
        for (int a = 0; a < Q; ++a) write(column + a * Q * kPoint, Back ? v[a] : turn_inside<Back>(v[a], roots, a));
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
    const float *leaf_roots, *tilt, *tilt_back;

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
        tilt_back = tilt + 2 * radices[0];
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
    // The first pass takes a group of as many columns as a leaf has points, whose positions are laid out together so that
    // they stay in the second-level cache: from row to row of floats, and in all. Rows lie a register further apart than
    // they are long, for the same reason.
    int64_t time_row(int64_t floats) const { return leaf * floats + kLanes; }
    // The position at which the row after row i of the group at `column` begins.
    int64_t after(int64_t i, int64_t column) const {
        return i + 1 < levels[0].radix ? (i + 1) * levels[0].columns + column : column + leaf;
    }
    int64_t time_size(int64_t floats) const { return levels[0].radix * time_row(floats); }
    int64_t workspace(int64_t kept, bool both) const { return kept * size + time_size(both ? kPoint : kLanes); }
};

// The first pass there or the last back, of the group of columns from `column` on, between their positions and an array.
template <bool Back, bool Real>
inline void outer_pass(const Plan& plan, int64_t column, float* time, float* work) {
    const Level& top = plan.levels[0];
    constexpr int64_t floats = Real ? kLanes : kPoint;
    pass<Back, Real>(top.radix, {time, work + plan.place(0, column), plan.time_row(floats), floats, top.row, plan.leaf, top.inner,
                                 top.outer + 2 * column * top.radix, Back ? plan.tilt_back : plan.tilt});
}

template <bool Back>
void inner_pass(const Plan& plan, int64_t level, float* x) {
    const Level& here = plan.levels[level];
    for (int64_t j = 0; j < here.columns; j += plan.leaf) {
        float* at = x + plan.place(level, j);
        pass<Back, false>(here.radix, {at, at, here.row, kPoint, here.row, plan.leaf, here.inner,
                                       here.outer + 2 * j * here.radix, nullptr});
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

}  // namespace
}  // namespace STATESCAN_LEVEL

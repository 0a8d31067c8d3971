// Cauchy products of S4: out[r, h, j] = sum_n v[r, h, n] / (z[j] - w[h, n]) + conj(v[r, h, n]) / (z[j] - conj(w[h, n])),
// and their gradients in v and w, without the (states, nodes) matrix of quotients.
//
// A pole and its conjugate share one reciprocal: with q = 1 / ((z - w) (z - conj(w))) and s = (z - Re w) q, a summand is
// x s + y q for the real x = 2 Re v and y = -2 Im v Im w. A register holds neighbouring nodes.
#include <type_traits>

#include "common.h"
#include "math.h"

namespace STATESCAN_LEVEL {
namespace {

constexpr int kRows = 4;            // rows that share the quotients of a pole: their sums fit in registers
constexpr int64_t kPoles = 64;      // poles whose sums are kept together in the backward pass
constexpr int64_t kTile = 16 * 16;  // nodes that they are summed over at a time, from the cache

struct Quotients {
    vfloat s_re, s_im, q_re, q_im;
};

// The nodes of a kernel of length L stay below 4 L, so the squares stay in range.
inline Quotients quotients(vfloat z_re, vfloat z_im, float w_re, float w_im) {
    const vfloat a = z_re - w_re;
    const vfloat p_re = a * a - (z_im - w_im) * (z_im + w_im), p_im = 2.0f * a * z_im;
    const vfloat inverse = 1.0f / (p_re * p_re + p_im * p_im);
    const vfloat q_re = p_re * inverse, q_im = -p_im * inverse;
    return {a * q_re - z_im * q_im, a * q_im + z_im * q_re, q_re, q_im};
}

// v: (rows, heads, states) and w: (heads, states) are interleaved. Those of one head:
struct Poles {
    const float *v, *w;
    int64_t rows, heads, states, head;
    const float* pole(int64_t n) const { return w + 2 * (head * states + n); }
    int64_t at(int64_t r, int64_t n) const { return 2 * ((r * heads + head) * states + n); }
};

template <int Rows>
inline void sum(const Poles& poles, const float* z, float* out, int64_t first, int64_t padded, int64_t plane) {
    for (int64_t j = 0; j < padded; j += kLanes) {
        const vfloat z_re = load(z + j), z_im = load(z + padded + j);
        vfloat re[Rows] = {}, im[Rows] = {};
        for (int64_t n = 0; n < poles.states; ++n) {
            const float w_im = poles.pole(n)[1];
            const Quotients f = quotients(z_re, z_im, poles.pole(n)[0], w_im);
            for (int r = 0; r < Rows; ++r) {
                const float* value = poles.v + poles.at(first + r, n);
                const float x = 2 * value[0], y = -2 * w_im * value[1];
                re[r] += f.s_re * x + f.q_re * y;
                im[r] += f.s_im * x + f.q_im * y;
            }
        }
        for (int r = 0; r < Rows; ++r) {
            float* o = out + ((first + r) * poles.heads + poles.head) * padded + j;
            store(o, re[r]);
            store(o + plane, im[r]);
        }
    }
}

// With G the gradient of a node: x has the gradient sum Re conj(G) s, y has sum Re conj(G) q, and the pole, through
// F = conj(G) (x s + y q) summed over rows, 2 sum Re F s - x dy in its real part, -2 Im w sum Re F q - 2 Im v dy in the other.
template <int Rows>
inline void differentiate(const Poles& poles, const float* grad, const float* z, float* grad_v, double* grad_w,
                          int64_t from, int64_t count, int64_t first, int64_t padded, int64_t plane) {
    struct Sums {
        vfloat x[Rows], y[Rows], s, q;
    } sums[kPoles];
    for (int64_t n = 0; n < count; ++n) sums[n] = Sums{};
    const float* rows[Rows];
    for (int r = 0; r < Rows; ++r) rows[r] = grad + ((first + r) * poles.heads + poles.head) * padded;
    for (int64_t tile = 0; tile < padded; tile += kTile) {
        const int64_t end = std::min(tile + kTile, padded);
        for (int64_t n = 0; n < count; ++n) {
            const float w_re = poles.pole(from + n)[0], w_im = poles.pole(from + n)[1];
            float x[Rows], y[Rows];
            for (int r = 0; r < Rows; ++r) {
                const float* value = poles.v + poles.at(first + r, from + n);
                x[r] = 2 * value[0];
                y[r] = -2 * w_im * value[1];
            }
            Sums t = sums[n];
            for (int64_t j = tile; j < end; j += kLanes) {
                const Quotients f = quotients(load(z + j), load(z + padded + j), w_re, w_im);
                vfloat gx_re{}, gx_im{}, gy_re{}, gy_im{};  // of G, not of its conjugate
                for (int r = 0; r < Rows; ++r) {
                    const vfloat g_re = load(rows[r] + j), g_im = load(rows[r] + plane + j);
                    t.x[r] += g_re * f.s_re + g_im * f.s_im;
                    t.y[r] += g_re * f.q_re + g_im * f.q_im;
                    gx_re += g_re * x[r];
                    gx_im += g_im * x[r];
                    gy_re += g_re * y[r];
                    gy_im += g_im * y[r];
                }
                const vfloat f_re = gx_re * f.s_re + gx_im * f.s_im + gy_re * f.q_re + gy_im * f.q_im;
                const vfloat f_im = gx_re * f.s_im - gx_im * f.s_re + gy_re * f.q_im - gy_im * f.q_re;
                t.s += f_re * f.s_re - f_im * f.s_im;
                t.q += f_re * f.q_re - f_im * f.q_im;
            }
            sums[n] = t;
        }
    }
    for (int64_t n = 0; n < count; ++n) {
        const float w_im = poles.pole(from + n)[1];
        double re = 2.0 * horizontal_sum(sums[n].s), im = -2.0 * w_im * horizontal_sum(sums[n].q);
        for (int r = 0; r < Rows; ++r) {
            const int64_t at = poles.at(first + r, from + n);
            const float dy = horizontal_sum(sums[n].y[r]);
            grad_v[at] = 2 * horizontal_sum(sums[n].x[r]);
            grad_v[at + 1] = -2 * w_im * dy;
            re -= 2.0 * poles.v[at] * dy;
            im -= 2.0 * poles.v[at + 1] * dy;
        }
        grad_w[2 * n] += re;
        grad_w[2 * n + 1] += im;
    }
}

// `run` with the number of rows from `first` on, at most four, as a constant.
template <typename Run>
inline void with_rows(int64_t rows, int64_t first, Run run) {
    switch (std::min<int64_t>(kRows, rows - first)) {
        case 1: return run(std::integral_constant<int, 1>{});
        case 2: return run(std::integral_constant<int, 2>{});
        case 3: return run(std::integral_constant<int, 3>{});
        default: return run(std::integral_constant<int, 4>{});
    }
}

}  // namespace

// Complex arrays over nodes come as planes, real then imaginary, padded to a multiple of 16 nodes (z with a value that is
// no pole, gradients with zeros). z: (2, padded); out: (2, rows, heads, padded).
STATESCAN_EXPORT(int, cauchy_forward)
(const float* v, const float* z, const float* w, float* out, int64_t rows, int64_t heads, int64_t states,
 int64_t padded, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (int64_t h = 0; h < heads; ++h) {
        const Poles poles{v, w, rows, heads, states, h};
        for (int64_t first = 0; first < rows; first += kRows)
            with_rows(rows, first,
                      [&](auto count) { sum<count.value>(poles, z, out, first, padded, rows * heads * padded); });
    }
    return 0;
}

// grad: (2, rows, heads, padded).
STATESCAN_EXPORT(int, cauchy_backward)
(const float* grad, const float* v, const float* z, const float* w, float* grad_v, float* grad_w, int64_t rows,
 int64_t heads, int64_t states, int64_t padded, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (int64_t h = 0; h < heads; ++h) {
        const Poles poles{v, w, rows, heads, states, h};
        for (int64_t from = 0; from < states; from += kPoles) {
            const int64_t some = std::min(kPoles, states - from);
            double of_poles[2 * kPoles] = {};
            for (int64_t first = 0; first < rows; first += kRows)
                with_rows(rows, first, [&](auto count) {
                    differentiate<count.value>(poles, grad, z, grad_v, of_poles, from, some, first, padded,
                                               rows * heads * padded);
                });
            for (int64_t i = 0; i < 2 * some; ++i) grad_w[2 * (h * states + from) + i] = float(of_poles[i]);
        }
    }
    return 0;
}

}  // namespace STATESCAN_LEVEL

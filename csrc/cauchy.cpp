// Cauchy products of S4: out[r, h, j] = sum_n v[r, h, n] / (z[j] - w[h, n]) + conj(v[r, h, n]) / (z[j] - conj(w[h, n])),
// and their gradients in v and w, without the (states, nodes) matrix of quotients.
//
// Sixteen nodes a register; the states are walked inside, so that sums stay in registers.
#include "common.h"
#include "math.h"

namespace STATESCAN_LEVEL {
namespace {

struct Complex {
    vfloat re, im;
};

// 1 / (a + ib). The nodes of a kernel of length L stay below 4 L, so the squares stay in range.
inline Complex reciprocal(vfloat a, vfloat b) {
    const vfloat inverse = 1.0f / (a * a + b * b);
    return {a * inverse, -b * inverse};
}

}  // namespace

constexpr int64_t kRows = 4;  // rows that share the quotients of a pole: their sums fit in registers

// Complex arrays over nodes come as planes, real then imaginary, padded to a multiple of 16 nodes (z with a value that is
// no pole, gradients with zeros). v: (rows, heads, states) and w: (heads, states) are interleaved; z: (2, padded);
// out: (2, rows, heads, padded).
STATESCAN_EXPORT(int, cauchy_forward)
(const float* v, const float* z, const float* w, float* out, int64_t rows, int64_t heads, int64_t states,
 int64_t padded, int threads) {
    const int64_t plane = rows * heads * padded;
#pragma omp parallel for collapse(2) schedule(static) num_threads(threads) if (threads > 1)
    for (int64_t h = 0; h < heads; ++h) {
        for (int64_t j = 0; j < padded; j += kLanes) {
            const vfloat z_re = load(z + j), z_im = load(z + padded + j);
            for (int64_t first = 0; first < rows; first += kRows) {
                const int64_t count = std::min(kRows, rows - first);
                vfloat sum_re[kRows] = {}, sum_im[kRows] = {};
                for (int64_t n = 0; n < states; ++n) {
                    const float w_re = w[2 * (h * states + n)], w_im = w[2 * (h * states + n) + 1];
                    const Complex a = reciprocal(z_re - w_re, z_im - w_im), b = reciprocal(z_re - w_re, z_im + w_im);
                    // v a + conj(v) b = Re v (a + b) + i Im v (a - b)
                    const vfloat plus_re = a.re + b.re, plus_im = a.im + b.im;
                    const vfloat minus_re = a.re - b.re, minus_im = a.im - b.im;
                    for (int64_t r = 0; r < count; ++r) {
                        const float* value = v + 2 * (((first + r) * heads + h) * states + n);
                        sum_re[r] += plus_re * value[0] - minus_im * value[1];
                        sum_im[r] += plus_im * value[0] + minus_re * value[1];
                    }
                }
                for (int64_t r = 0; r < count; ++r) {
                    float* o = out + ((first + r) * heads + h) * padded + j;
                    store(o, sum_re[r]);
                    store(o + plane, sum_im[r]);
                }
            }
        }
    }
    return 0;
}

// grad: (2, rows, heads, padded). With a = 1/(z - w), b = 1/(z - conj w), G the gradient of a node:
// grad_v = sum_j G conj(a) + conj(G) b;  grad_w = sum_j sum_r conj(v) [G conj(a^2) + conj(G) b^2].
STATESCAN_EXPORT(int, cauchy_backward)
(const float* grad, const float* v, const float* z, const float* w, float* grad_v, float* grad_w, int64_t rows,
 int64_t heads, int64_t states, int64_t padded, int threads) {
    const int64_t plane = rows * heads * padded;
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (int64_t h = 0; h < heads; ++h) {
        for (int64_t n = 0; n < states; ++n) {
            const float w_re = w[2 * (h * states + n)], w_im = w[2 * (h * states + n) + 1];
            double gw_re = 0, gw_im = 0;
            for (int64_t first = 0; first < rows; first += kRows) {
                const int64_t count = std::min(kRows, rows - first);
                vfloat gv_re[kRows] = {}, gv_im[kRows] = {}, s_re{}, s_im{};
                for (int64_t j = 0; j < padded; j += kLanes) {
                    const vfloat z_re = load(z + j), z_im = load(z + padded + j);
                    const Complex a = reciprocal(z_re - w_re, z_im - w_im), b = reciprocal(z_re - w_re, z_im + w_im);
                    vfloat p_re{}, p_im{}, q_re{}, q_im{};  // sum_r conj(v) G and sum_r conj(v) conj(G)
                    for (int64_t r = 0; r < count; ++r) {
                        const int64_t row = (first + r) * heads + h;
                        const float v_re = v[2 * (row * states + n)], v_im = v[2 * (row * states + n) + 1];
                        const vfloat g_re = load(grad + row * padded + j), g_im = load(grad + plane + row * padded + j);
                        gv_re[r] += g_re * (a.re + b.re) + g_im * (a.im + b.im);
                        gv_im[r] += g_im * (a.re - b.re) - g_re * (a.im - b.im);
                        const vfloat rr = g_re * v_re, ii = g_im * v_im, ri = g_im * v_re, ir = g_re * v_im;
                        p_re += rr + ii;
                        p_im += ri - ir;
                        q_re += rr - ii;
                        q_im -= ri + ir;
                    }
                    const vfloat aa_re = a.re * a.re - a.im * a.im, aa_im = 2.0f * a.re * a.im;
                    const vfloat bb_re = b.re * b.re - b.im * b.im, bb_im = 2.0f * b.re * b.im;
                    s_re += (p_re * aa_re + p_im * aa_im) + (q_re * bb_re - q_im * bb_im);
                    s_im += (p_im * aa_re - p_re * aa_im) + (q_re * bb_im + q_im * bb_re);
                }
                for (int64_t r = 0; r < count; ++r) {
                    const int64_t at = 2 * (((first + r) * heads + h) * states + n);
                    grad_v[at] = horizontal_sum(gv_re[r]);
                    grad_v[at + 1] = horizontal_sum(gv_im[r]);
                }
                gw_re += horizontal_sum(s_re);
                gw_im += horizontal_sum(s_im);
            }
            grad_w[2 * (h * states + n)] = float(gw_re);
            grad_w[2 * (h * states + n) + 1] = float(gw_im);
        }
    }
    return 0;
}

}  // namespace STATESCAN_LEVEL

// Vandermonde products of S4D: kernel[r, h, l] = 2 Re sum_n weights[r, h, n] exp(l exponents[h, n]), and their
// gradients, without the (states, length) matrix of powers.
//
// A power series is walked in strands of sixteen neighbouring positions, four strands in flight, each multiplied by
// exp(64 exponent) to move on. Every `kBlock` positions it starts afresh from a power in double precision, so that
// rounding does not build up along a long kernel.
#include "common.h"
#include "math.h"

namespace STATESCAN_LEVEL {
namespace {

constexpr int kStrands = 4;
constexpr int kStride = kStrands * kLanes;
constexpr int64_t kBlock = 1024;

struct Powers {
    vfloat re[kStrands], im[kStrands];  // exp((start + 16 strand + lane) v)
    float step_re, step_im;             // exp(64 v)
};

// A complex number in double: the phase of a far position needs more digits than a float has.
struct Double {
    double re, im;
};
inline Double operator*(Double a, Double b) { return {a.re * b.re - a.im * b.im, a.re * b.im + a.im * b.re}; }

// Of a state: its first powers, and those that a step and a block multiply by.
struct Table {
    float re[kStride], im[kStride];  // exp(i v)
    float step_re, step_im;          // exp(64 v)
    Double block;                    // exp(kBlock v)
    Table(float v_re, float v_im) {
        const double size = std::exp(double(v_re));
        const Double one{size * std::cos(double(v_im)), size * std::sin(double(v_im))};
        Double power{1, 0};
        for (int i = 0; i < kStride; ++i) {
            re[i] = float(power.re);
            im[i] = float(power.im);
            power = power * one;
        }
        step_re = float(power.re);
        step_im = float(power.im);
        for (int64_t reached = kStride; reached < kBlock; reached *= 2) power = power * power;
        block = power;
    }
};

// The powers of a block, from exp(v) to the place where it starts, times whatever `first` holds beside that.
inline Powers start(const Table& table, Double first) {
    const float a = float(first.re), b = float(first.im);
    Powers p;
    for (int s = 0; s < kStrands; ++s) {
        const vfloat re = load(table.re + s * kLanes), im = load(table.im + s * kLanes);
        p.re[s] = re * a - im * b;
        p.im[s] = re * b + im * a;
    }
    p.step_re = table.step_re;
    p.step_im = table.step_im;
    return p;
}

inline void advance(Powers& p) {
    for (int s = 0; s < kStrands; ++s) {
        const vfloat re = p.re[s] * p.step_re - p.im[s] * p.step_im;
        p.im[s] = p.re[s] * p.step_im + p.im[s] * p.step_re;
        p.re[s] = re;
    }
}

}  // namespace

// weights: (rows, heads, states) complex; exponents: (heads, states) complex; kernel: (rows, heads, padded) float, where
// padded is length rounded up to a multiple of 64: the caller crops it.
STATESCAN_EXPORT(int, vandermonde_forward)
(const float* weights, const float* exponents, float* kernel, int64_t rows, int64_t heads, int64_t states,
 int64_t length, int64_t padded, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (int64_t h = 0; h < heads; ++h) {
        for (int64_t r = 0; r < rows; ++r) std::memset(kernel + (r * heads + h) * padded, 0, padded * sizeof(float));
        for (int64_t n = 0; n < states; ++n) {
            const float v_re = exponents[2 * (h * states + n)], v_im = exponents[2 * (h * states + n) + 1];
            const Table table(v_re, v_im);
            Double first{1, 0};
            for (int64_t block = 0; block < length; block += kBlock, first = first * table.block) {
                const int64_t end = std::min(block + kBlock, padded);
                for (int64_t r = 0; r < rows; ++r) {
                    const float* w = weights + 2 * ((r * heads + h) * states + n);
                    float* out = kernel + (r * heads + h) * padded;
                    Powers p = start(table, first * Double{2.0 * w[0], 2.0 * w[1]});  // the weight goes along with them
                    for (int64_t l = block; l < end; l += kStride) {
                        for (int s = 0; s < kStrands; ++s) {
                            float* o = out + l + s * kLanes;
                            store(o, load(o) + p.re[s]);
                        }
                        advance(p);
                    }
                }
            }
        }
    }
    return 0;
}

// grad: (rows, heads, padded) with zeros beyond the length. With S0 = sum_l g_l E_l and S1 = sum_l l g_l E_l:
// grad_weights = 2 conj(S0), grad_exponents = 2 sum_r conj(w S1).
STATESCAN_EXPORT(int, vandermonde_backward)
(const float* grad, const float* weights, const float* exponents, float* grad_weights, float* grad_exponents,
 int64_t rows, int64_t heads, int64_t states, int64_t length, int64_t padded, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (int64_t h = 0; h < heads; ++h) {
        vfloat offset[kStrands];  // position within the 64 of a step
        for (int s = 0; s < kStrands; ++s)
            for (int i = 0; i < kLanes; ++i) offset[s][i] = float(s * kLanes + i);
        for (int64_t n = 0; n < states; ++n) {
            const float v_re = exponents[2 * (h * states + n)], v_im = exponents[2 * (h * states + n) + 1];
            const Table table(v_re, v_im);
            double ge_re = 0, ge_im = 0;
            for (int64_t r = 0; r < rows; ++r) {
                const float* g = grad + (r * heads + h) * padded;
                double s0_re = 0, s0_im = 0, s1_re = 0, s1_im = 0;
                Double first{1, 0};
                for (int64_t block = 0; block < length; block += kBlock, first = first * table.block) {
                    const int64_t end = std::min(block + kBlock, padded);
                    Powers p = start(table, first);
                    // Of every strand the sum over steps, and the sum of that sum after each step: what the k-th of K
                    // steps brought is in it K - k times, so that no value has to be multiplied by its position.
                    vfloat sum_re[kStrands]{}, sum_im[kStrands]{}, sums_re[kStrands]{}, sums_im[kStrands]{};
                    for (int64_t l = block; l < end; l += kStride) {
#pragma GCC unroll 4
                        for (int s = 0; s < kStrands; ++s) {
                            const vfloat value = load(g + l + s * kLanes);
                            sum_re[s] += value * p.re[s];
                            sum_im[s] += value * p.im[s];
                            sums_re[s] += sum_re[s];
                            sums_im[s] += sum_im[s];
                        }
                        advance(p);
                    }
                    const float steps = float((end - block) / kStride);
                    vfloat a_re{}, a_im{}, b_re{}, b_im{};
                    for (int s = 0; s < kStrands; ++s) {
                        a_re += sum_re[s];
                        a_im += sum_im[s];
                        b_re += (sum_re[s] * steps - sums_re[s]) * float(kStride) + sum_re[s] * offset[s];
                        b_im += (sum_im[s] * steps - sums_im[s]) * float(kStride) + sum_im[s] * offset[s];
                    }
                    const double all_re = horizontal_sum(a_re), all_im = horizontal_sum(a_im);
                    s0_re += all_re;
                    s0_im += all_im;
                    s1_re += horizontal_sum(b_re) + double(block) * all_re;
                    s1_im += horizontal_sum(b_im) + double(block) * all_im;
                }
                const int64_t at = 2 * ((r * heads + h) * states + n);
                grad_weights[at] = float(2 * s0_re);
                grad_weights[at + 1] = float(-2 * s0_im);
                ge_re += weights[at] * s1_re - weights[at + 1] * s1_im;
                ge_im += weights[at] * s1_im + weights[at + 1] * s1_re;
            }
            grad_exponents[2 * (h * states + n)] = float(2 * ge_re);
            grad_exponents[2 * (h * states + n) + 1] = float(-2 * ge_im);
        }
    }
    return 0;
}

}  // namespace STATESCAN_LEVEL

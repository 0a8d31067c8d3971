// First-order diagonal recurrence h_t = a_t h_{t-1} + b_t over packed rows, real or complex, in either direction.
//
// Channels lie side by side and are independent: a task is a block of channels of one sequence, walked in time with the
// state in registers. Complex numbers are pairs of neighbouring floats.
#include "common.h"
#include "math.h"

namespace STATESCAN_LEVEL {
namespace {

// (re, im) pairs: swap their halves, spread either half.
inline vfloat swap_pairs(vfloat v) {
    vint order;
    for (int i = 0; i < kLanes; ++i) order[i] = i ^ 1;
    return __builtin_shuffle(v, order);
}
inline vfloat real_parts(vfloat v) {
    vint order;
    for (int i = 0; i < kLanes; ++i) order[i] = i & ~1;
    return __builtin_shuffle(v, order);
}
inline vfloat imaginary_parts(vfloat v) {
    vint order;
    for (int i = 0; i < kLanes; ++i) order[i] = i | 1;
    return __builtin_shuffle(v, order);
}
inline vfloat conjugate(vfloat v) {
    vfloat sign;
    for (int i = 0; i < kLanes; ++i) sign[i] = i % 2 ? -1.0f : 1.0f;
    return v * sign;
}

template <bool kComplex>
inline vfloat multiply(vfloat a, vfloat b) {
    if (!kComplex) return a * b;
    vfloat sign;
    for (int i = 0; i < kLanes; ++i) sign[i] = i % 2 ? 1.0f : -1.0f;
    return real_parts(a) * b + imaginary_parts(a) * swap_pairs(b) * sign;
}
template <bool kComplex>
inline vfloat conjugated(vfloat a) {
    return kComplex ? conjugate(a) : a;
}

struct Scan {
    int64_t width, sequences, a_stride;  // width in floats; a_stride 0: one a for all rows
    const int64_t* offsets;
    const uint8_t* resets;  // (rows) or null: the state is zeroed before that row
    bool reverse;
};

template <bool kComplex>
int forward(const Scan& s, const float* a, const float* b, const float* initial, float* h, float* last, int threads) {
#pragma omp parallel for collapse(2) schedule(static) num_threads(threads) if (threads > 1)
    for (int64_t sequence = 0; sequence < s.sequences; ++sequence) {
        for (int64_t c = 0; c < s.width; c += kLanes) {
            const int n = int(std::min<int64_t>(kLanes, s.width - c));
            const int64_t begin = s.offsets[sequence], length = s.offsets[sequence + 1] - begin;
            vfloat state = initial ? load_some(initial + sequence * s.width + c, n) : vfloat{};
            for (int64_t i = 0; i < length; ++i) {
                const int64_t row = begin + (s.reverse ? length - 1 - i : i);
                if (s.resets && s.resets[row]) state = vfloat{};
                state = multiply<kComplex>(load_some(a + row * s.a_stride + c, n), state) + load_some(b + row * s.width + c, n);
                store_some(h + row * s.width + c, state, n);
            }
            store_some(last + sequence * s.width + c, state, n);
        }
    }
    return 0;
}

// G_t = grad_t + conj(a_{t+1}) G_{t+1}; grad_a_t = G_t conj(h_{t-1}); grad_b_t = G_t. grad_a has a row a position, or, for
// a constant a, a row a sequence.
template <bool kComplex>
int backward(const Scan& s, const float* grad_h, const float* grad_last, const float* a, const float* h,
             const float* initial, float* grad_a, float* grad_b, float* grad_initial, int threads) {
#pragma omp parallel for collapse(2) schedule(static) num_threads(threads) if (threads > 1)
    for (int64_t sequence = 0; sequence < s.sequences; ++sequence) {
        for (int64_t c = 0; c < s.width; c += kLanes) {
            const int n = int(std::min<int64_t>(kLanes, s.width - c));
            const int64_t begin = s.offsets[sequence], length = s.offsets[sequence + 1] - begin;
            vfloat carried = grad_last ? load_some(grad_last + sequence * s.width + c, n) : vfloat{}, total{};
            for (int64_t i = length - 1; i >= 0; --i) {
                const int64_t row = begin + (s.reverse ? length - 1 - i : i), before = row + (s.reverse ? 1 : -1);
                const vfloat g = carried + (grad_h ? load_some(grad_h + row * s.width + c, n) : vfloat{});
                store_some(grad_b + row * s.width + c, g, n);
                const bool reset = s.resets && s.resets[row];
                vfloat past{};
                if (!reset) {
                    if (i > 0) past = load_some(h + before * s.width + c, n);
                    else if (initial) past = load_some(initial + sequence * s.width + c, n);
                }
                const vfloat mine = multiply<kComplex>(g, conjugated<kComplex>(past));
                if (s.a_stride) store_some(grad_a + row * s.width + c, mine, n);
                else total += mine;
                carried = reset ? vfloat{} : multiply<kComplex>(conjugated<kComplex>(load_some(a + row * s.a_stride + c, n)), g);
            }
            if (!s.a_stride) store_some(grad_a + sequence * s.width + c, total, n);
            if (grad_initial) store_some(grad_initial + sequence * s.width + c, carried, n);
        }
    }
    return 0;
}

}  // namespace

STATESCAN_EXPORT(int, linear_scan_forward)
(const float* a, const float* b, const float* initial, const int64_t* offsets, const uint8_t* resets, float* h, float* last,
 int64_t width, int64_t sequences, int64_t a_stride, int is_complex, int reverse, int threads) {
    const Scan s{width, sequences, a_stride, offsets, resets, bool(reverse)};
    return is_complex ? forward<true>(s, a, b, initial, h, last, threads) : forward<false>(s, a, b, initial, h, last, threads);
}

STATESCAN_EXPORT(int, linear_scan_backward)
(const float* grad_h, const float* grad_last, const float* a, const float* h, const float* initial, const int64_t* offsets,
 const uint8_t* resets, float* grad_a, float* grad_b, float* grad_initial, int64_t width, int64_t sequences,
 int64_t a_stride, int is_complex, int reverse, int threads) {
    const Scan s{width, sequences, a_stride, offsets, resets, bool(reverse)};
    return is_complex ? backward<true>(s, grad_h, grad_last, a, h, initial, grad_a, grad_b, grad_initial, threads)
                      : backward<false>(s, grad_h, grad_last, a, h, initial, grad_a, grad_b, grad_initial, threads);
}

}  // namespace STATESCAN_LEVEL

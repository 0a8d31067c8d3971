// RMSNorm over groups of channels, with an optional gate before or after it; forward and backward, a row at a time.
#include <vector>

#include "common.h"
#include "math.h"

namespace STATESCAN_LEVEL {
namespace {

template <typename T>
struct Rows {
    const T* x;
    int64_t x_stride;
    const T* gate;  // or null
    int64_t gate_stride;
    const float* weight;  // or null
    int64_t rows, channels, group;
    float eps;
    bool norm_first;  // norm(x) silu(gate) instead of norm(x silu(gate))
};

template <typename T>
int forward(const Rows<T>& a, T* y, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (int64_t row = 0; row < a.rows; ++row) {
        const T* x = a.x + row * a.x_stride;
        const T* gate = a.gate ? a.gate + row * a.gate_stride : nullptr;
        T* out = y + row * a.channels;
        for (int64_t begin = 0; begin < a.channels; begin += a.group) {
            vfloat squares{};
            for (int64_t c = 0; c < a.group; c += kLanes) {
                const int n = int(std::min<int64_t>(kLanes, a.group - c));
                vfloat h = load_some(x + begin + c, n);
                if (gate && !a.norm_first) h *= silu(load_some(gate + begin + c, n));
                squares += h * h;
            }
            const float r = 1.0f / std::sqrt(horizontal_sum(squares) / float(a.group) + a.eps);
            for (int64_t c = 0; c < a.group; c += kLanes) {
                const int n = int(std::min<int64_t>(kLanes, a.group - c));
                vfloat h = load_some(x + begin + c, n) * r;
                if (gate) h *= silu(load_some(gate + begin + c, n));
                if (a.weight) h *= load_some(a.weight + begin + c, n);
                store_some(out + begin + c, h, n);
            }
        }
    }
    return 0;
}

template <typename T>
int backward(const Rows<T>& a, const T* grad, T* grad_x, T* grad_gate, float* grad_weight, int threads) {
    std::memset(grad_weight, 0, sizeof(float) * a.channels);
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        std::vector<float> sums(a.channels + kLanes, 0);
#pragma omp for schedule(static)
        for (int64_t row = 0; row < a.rows; ++row) {
            const T* x = a.x + row * a.x_stride;
            const T* gate = a.gate ? a.gate + row * a.gate_stride : nullptr;
            for (int64_t begin = 0; begin < a.channels; begin += a.group) {
                // h is what is normalised, g the gradient of h r: sums of h^2 and of g h first
                vfloat squares{}, products{};
                for (int64_t c = 0; c < a.group; c += kLanes) {
                    const int n = int(std::min<int64_t>(kLanes, a.group - c));
                    vfloat h = load_some(x + begin + c, n), g = load_some(grad + row * a.channels + begin + c, n);
                    if (a.weight) g *= load_some(a.weight + begin + c, n);
                    if (gate) {
                        const vfloat s = silu(load_some(gate + begin + c, n));
                        if (a.norm_first) g *= s;
                        else h *= s;
                    }
                    squares += h * h;
                    products += g * h;
                }
                const float r = 1.0f / std::sqrt(horizontal_sum(squares) / float(a.group) + a.eps);
                const float pull = horizontal_sum(products) * r * r * r / float(a.group);
                for (int64_t c = 0; c < a.group; c += kLanes) {
                    const int n = int(std::min<int64_t>(kLanes, a.group - c));
                    const int64_t at = row * a.channels + begin + c;
                    const vfloat value = load_some(x + begin + c, n), given = load_some(grad + at, n);
                    const vfloat w = a.weight ? load_some(a.weight + begin + c, n) : splat(1.0f);
                    vfloat g = given * w, h = value, s = splat(1.0f), slope{};
                    if (gate) {
                        const vfloat z = load_some(gate + begin + c, n), sigma = sigmoid(z);
                        s = z * sigma;
                        slope = silu_slope(z, sigma);
                        if (a.norm_first) g *= s;
                        else h *= s;
                    }
                    const vfloat dh = g * r - h * pull;
                    store_some(grad_x + at, a.norm_first || !gate ? dh : dh * s, n);
                    if (gate) store_some(grad_gate + at, (a.norm_first ? given * w * h * r : dh * value) * slope, n);
                    float* sum = sums.data() + begin + c;
                    store_some(sum, load_some(sum, n) + given * h * r * (a.norm_first ? s : splat(1.0f)), n);
                }
            }
        }
#pragma omp critical
        for (int64_t c = 0; c < a.channels; ++c) grad_weight[c] += sums[c];
    }
    return 0;
}

}  // namespace

#define STATESCAN_ROWS(T)                                                                                          \
    Rows<T> {                                                                                                      \
        static_cast<const T*>(x), x_stride, static_cast<const T*>(gate), gate_stride, weight, rows, channels, group, \
            eps, bool(norm_first)                                                                                  \
    }

STATESCAN_EXPORT(int, gated_rms_norm_forward)
(const void* x, const void* gate, const float* weight, void* y, int64_t rows, int64_t channels, int64_t group,
 int64_t x_stride, int64_t gate_stride, float eps, int norm_first, int dtype, int threads) {
    switch (dtype) {
        case kFloat32: return forward<float>(STATESCAN_ROWS(float), static_cast<float*>(y), threads);
        case kBFloat16: return forward<bfloat16>(STATESCAN_ROWS(bfloat16), static_cast<bfloat16*>(y), threads);
        case kFloat16: return forward<float16>(STATESCAN_ROWS(float16), static_cast<float16*>(y), threads);
    }
    return 1;
}

STATESCAN_EXPORT(int, gated_rms_norm_backward)
(const void* grad, const void* x, const void* gate, const float* weight, void* grad_x, void* grad_gate,
 float* grad_weight, int64_t rows, int64_t channels, int64_t group, int64_t x_stride, int64_t gate_stride, float eps,
 int norm_first, int dtype, int threads) {
#define STATESCAN_RUN(T)                                                                                        \
    return backward<T>(STATESCAN_ROWS(T), static_cast<const T*>(grad), static_cast<T*>(grad_x),                 \
                       static_cast<T*>(grad_gate), grad_weight, threads)
    switch (dtype) {
        case kFloat32: STATESCAN_RUN(float);
        case kBFloat16: STATESCAN_RUN(bfloat16);
        case kFloat16: STATESCAN_RUN(float16);
    }
#undef STATESCAN_RUN
    return 1;
}

}  // namespace STATESCAN_LEVEL

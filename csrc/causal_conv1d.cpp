// Causal depthwise convolution along time, with an optional SiLU, over packed rows; forward and backward.
//
// Rows are positions, channels lie side by side. Position t of a sequence reads its last `width` inputs, but none before
// `first[t]` (the last reset), and inputs before the sequence come from its state. Walking rows in order with all channels
// of a row inside keeps the `width` rows that are read in the first-level cache.
#include <vector>

#include "common.h"
#include "math.h"

namespace STATESCAN_LEVEL {
namespace {

struct Shape {
    int64_t rows, channels, width, taps;  // taps: rows of a state, at least width - 1
    const int64_t* offsets;               // (sequences + 1)
    const int32_t* first;                 // (rows): earliest position within its sequence that a row may read; or null
    int64_t sequences;
};

// The sequence that owns a row.
inline int64_t owner(const Shape& s, int64_t row) {
    return std::upper_bound(s.offsets, s.offsets + s.sequences + 1, row) - s.offsets - 1;
}

template <typename T>
struct Inputs {
    const T* x;
    int64_t stride;
    const float* state;   // (sequences, taps, channels) or null
    const float* weight;  // (width, channels)
    const float* bias;    // (channels) or null
};

// The convolution before its activation, at channels [c, c + n).
template <typename T>
inline vfloat preactivation(const Shape& s, const Inputs<T>& in, int64_t row, int64_t position, int64_t sequence,
                            int64_t from, int64_t c, int n) {
    vfloat sum = in.bias ? load_some(in.bias + c, n) : vfloat{};
    for (int64_t k = 0; k < s.width; ++k) {  // k positions back
        const int64_t source = position - k;
        if (source < from) break;
        const float* w = in.weight + (s.width - 1 - k) * s.channels + c;
        vfloat value;
        if (source >= 0) {
            value = load_some(in.x + (row - k) * in.stride + c, n);
        } else {
            value = load_some(in.state + (sequence * s.taps + s.taps + source) * s.channels + c, n);
        }
        sum += load_some(w, n) * value;
    }
    return sum;
}

inline int64_t earliest(const Shape& s, int64_t row, bool has_state) {
    const int64_t from = s.first ? s.first[row] : -s.taps;
    return has_state ? from : std::max<int64_t>(from, 0);
}

inline void share(int64_t total, int parts, int part, int64_t& begin, int64_t& end) {
    begin = total * part / parts;
    end = total * (part + 1) / parts;
}

template <typename T>
int forward(const Shape& s, const Inputs<T>& in, T* y, bool silu_after, int threads) {
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
#ifdef _OPENMP
        const int part = omp_get_thread_num(), parts = omp_get_num_threads();
#else
        const int part = 0, parts = 1;
#endif
        int64_t begin, end;
        share(s.rows, parts, part, begin, end);
        int64_t sequence = begin < end ? owner(s, begin) : 0;
        for (int64_t row = begin; row < end; ++row) {
            while (row >= s.offsets[sequence + 1]) ++sequence;
            const int64_t position = row - s.offsets[sequence];
            const int64_t from = earliest(s, row, in.state != nullptr);
            for (int64_t c = 0; c < s.channels; c += kLanes) {
                const int n = int(std::min<int64_t>(kLanes, s.channels - c));
                vfloat value = preactivation(s, in, row, position, sequence, from, c, n);
                if (silu_after) value = silu(value);
                store_some(y + row * s.channels + c, value, n);
            }
        }
    }
    return 0;
}

// The gradient before the activation at one row.
template <typename T>
inline vfloat inner_gradient(const Shape& s, const Inputs<T>& in, const T* grad, bool silu_after, int64_t row,
                             int64_t position, int64_t sequence, int64_t from, int64_t c, int n) {
    const vfloat g = load_some(grad + row * s.channels + c, n);
    if (!silu_after) return g;
    const vfloat value = preactivation(s, in, row, position, sequence, from, c, n);
    return g * silu_slope(value, sigmoid(value));
}

template <typename T>
int backward(const Shape& s, const Inputs<T>& in, const T* grad, T* grad_x, float* grad_weight, float* grad_bias,
             float* grad_state, bool silu_after, int threads) {
    const int64_t padded = (s.channels + kLanes - 1) / kLanes * kLanes;
    std::memset(grad_weight, 0, sizeof(float) * s.width * s.channels);
    std::memset(grad_bias, 0, sizeof(float) * s.channels);
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
#ifdef _OPENMP
        const int part = omp_get_thread_num(), parts = omp_get_num_threads();
#else
        const int part = 0, parts = 1;
#endif
        int64_t begin, end;
        share(s.rows, parts, part, begin, end);
        std::vector<float> ring(s.width * padded);           // inner gradients of the last `width` rows
        std::vector<float> sums((s.width + 1) * padded, 0);  // of weights, then of the bias
        std::vector<int64_t> owners(s.width);
        int64_t sequence = begin < end ? owner(s, begin) : 0;
        // Row r's gradient needs the inner gradients of rows r .. r + width - 1: walk ahead of the row that is finished.
        const int64_t last = begin < end ? std::min(end + s.width - 1, s.rows) : begin;
        for (int64_t row = begin; row < end + s.width - 1 && begin < end; ++row) {
            if (row < last) {
                while (row >= s.offsets[sequence + 1]) ++sequence;
                const int64_t position = row - s.offsets[sequence];
                const int64_t from = earliest(s, row, in.state != nullptr);
                float* slot = ring.data() + (row % s.width) * padded;
                owners[row % s.width] = sequence;
                for (int64_t c = 0; c < s.channels; c += kLanes) {
                    const int n = int(std::min<int64_t>(kLanes, s.channels - c));
                    const vfloat g = inner_gradient(s, in, grad, silu_after, row, position, sequence, from, c, n);
                    store(slot + c, g);
                    if (row >= end) continue;  // its weights' share belongs to the next thread
                    for (int64_t k = 0; k < s.width; ++k) {
                        const int64_t source = position - k;
                        if (source < from) break;
                        const vfloat value =
                            source >= 0 ? load_some(in.x + (row - k) * in.stride + c, n)
                                        : load_some(in.state + (sequence * s.taps + s.taps + source) * s.channels + c, n);
                        float* sum = sums.data() + (s.width - 1 - k) * padded + c;
                        store(sum, load(sum) + g * value);
                    }
                    float* sum = sums.data() + s.width * padded + c;
                    store(sum, load(sum) + g);
                }
            }
            const int64_t done = row - (s.width - 1);
            if (done < begin || done >= end) continue;
            const int64_t mine = owners[done % s.width], start = s.offsets[mine];
            for (int64_t c = 0; c < s.channels; c += kLanes) {
                const int n = int(std::min<int64_t>(kLanes, s.channels - c));
                vfloat sum{};
                for (int64_t k = 0; k < s.width; ++k) {
                    const int64_t later = done + k;
                    if (later >= s.offsets[mine + 1]) break;
                    if (done - start < earliest(s, later, in.state != nullptr)) break;  // resets only grow
                    const float* w = in.weight + (s.width - 1 - k) * s.channels + c;
                    sum += load_some(w, n) * load(ring.data() + (later % s.width) * padded + c);
                }
                store_some(grad_x + done * s.channels + c, sum, n);
            }
        }
#pragma omp critical
        {
            for (int64_t c = 0; c < s.channels; ++c) {
                for (int64_t k = 0; k < s.width; ++k) grad_weight[k * s.channels + c] += sums[k * padded + c];
                grad_bias[c] += sums[s.width * padded + c];
            }
        }
    }
    if (!grad_state) return 0;
    std::memset(grad_state, 0, sizeof(float) * s.sequences * s.taps * s.channels);
    for (int64_t sequence = 0; sequence < s.sequences; ++sequence) {
        const int64_t start = s.offsets[sequence];
        const int64_t length = s.offsets[sequence + 1] - start;
        for (int64_t position = 0; position < std::min(length, s.width - 1); ++position) {
            const int64_t row = start + position, from = earliest(s, row, true);
            for (int64_t c = 0; c < s.channels; c += kLanes) {
                const int n = int(std::min<int64_t>(kLanes, s.channels - c));
                const vfloat g = inner_gradient(s, in, grad, silu_after, row, position, sequence, from, c, n);
                for (int64_t k = position + 1; k < s.width && position - k >= from; ++k) {
                    float* out = grad_state + (sequence * s.taps + s.taps + position - k) * s.channels + c;
                    const float* w = in.weight + (s.width - 1 - k) * s.channels + c;
                    store_some(out, load_some(out, n) + load_some(w, n) * g, n);
                }
            }
        }
    }
    return 0;
}

}  // namespace

STATESCAN_EXPORT(int, causal_conv1d_forward)
(const void* x, const float* state, const float* weight, const float* bias, const int64_t* offsets, const int32_t* first,
 void* y, int64_t rows, int64_t channels, int64_t width, int64_t taps, int64_t sequences, int64_t stride, int silu_after,
 int dtype, int threads) {
    const Shape s{rows, channels, width, taps, offsets, first, sequences};
    switch (dtype) {
        case kFloat32:
            return forward<float>(s, {static_cast<const float*>(x), stride, state, weight, bias}, static_cast<float*>(y), silu_after, threads);
        case kBFloat16:
            return forward<bfloat16>(s, {static_cast<const bfloat16*>(x), stride, state, weight, bias}, static_cast<bfloat16*>(y), silu_after, threads);
        case kFloat16:
            return forward<float16>(s, {static_cast<const float16*>(x), stride, state, weight, bias}, static_cast<float16*>(y), silu_after, threads);
    }
    return 1;
}

STATESCAN_EXPORT(int, causal_conv1d_backward)
(const void* grad, const void* x, const float* state, const float* weight, const float* bias, const int64_t* offsets,
 const int32_t* first, void* grad_x, float* grad_weight, float* grad_bias, float* grad_state, int64_t rows,
 int64_t channels, int64_t width, int64_t taps, int64_t sequences, int64_t stride, int silu_after, int dtype, int threads) {
    const Shape s{rows, channels, width, taps, offsets, first, sequences};
#define STATESCAN_RUN(T)                                                                                             \
    return backward<T>(s, {static_cast<const T*>(x), stride, state, weight, bias}, static_cast<const T*>(grad),      \
                       static_cast<T*>(grad_x), grad_weight, grad_bias, grad_state, silu_after, threads)
    switch (dtype) {
        case kFloat32: STATESCAN_RUN(float);
        case kBFloat16: STATESCAN_RUN(bfloat16);
        case kFloat16: STATESCAN_RUN(float16);
    }
#undef STATESCAN_RUN
    return 1;
}

}  // namespace STATESCAN_LEVEL

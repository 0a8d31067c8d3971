// Convolutions with kernels as long as the sequence: y = (k * (gate x)) + D (gate x) and all gradients.
//
// Every lane of a register is a channel, so that one transform serves as many channels as there are lanes and a signal
// with channels last is read as it lies. A transform has as many points as the signal has positions, N of them: sequences
// are multiplied in the ring of polynomials modulo z^N + i, where what passes the end comes back times -i and what comes
// before the start times i. Sequences and kernels being real, the real part of the product is the convolution without any
// padding, and a kernel that reads the future lies in the imaginary part, from the end. (Crandall and Fagin 1994 call it a
// right-angle convolution.)
//
// What comes from or goes to the caller is laid out in the order of time before and after the transforms (fft.h), since in
// his arrays neighbours are far apart, often by a power of two. In the transforms' leaves the spectra meet, and from there
// it goes back up the same way: a row is read and written once between the first pass of the transform and the last of its
// inverse. The direct path is part of the kernel: D is added to its first tap.
#include "fft.h"
#include "transpose.h"

namespace STATESCAN_LEVEL {
namespace {

constexpr int64_t kManyFloats = int64_t(8) << 20;  // that no cache keeps until someone reads them

// Stores that leave nothing in the caches, for results that do not fit them: else a line is read before it is written.
template <typename T>
inline void stream(T* p, vfloat v) {
    store_from_float(p, v);
}
template <typename T>
inline bool streams(const T*, int64_t, int64_t) {
    return false;
}
inline void finish_streams() {
#if defined(__AVX512F__)
    _mm_sfence();
#endif
}
#if defined(__AVX512F__)  // where a register is a line
template <>
inline void stream(float* p, vfloat v) {
    _mm512_stream_ps(p, (__m512)v);
}
template <>
inline bool streams(const float* y, int64_t rows, int64_t channels) {
    return channels % kLanes == 0 && reinterpret_cast<uintptr_t>(y) % 64 == 0 && rows * channels >= kManyFloats;
}
#endif
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
    void transform(const Plan& plan, float* work, float* time) const {
        const int64_t columns = plan.levels[0].columns;
        for (int64_t column = 0; column < columns; column += plan.leaf) {
            for (int64_t i = 0; i < plan.levels[0].radix; ++i) {
                float* row = time + i * plan.time_row(kLanes);
                const int64_t begin = i * columns + column;
                const int64_t known = std::max<int64_t>(0, std::min(plan.leaf, length - begin));
                for (int64_t c = 0; c < known; ++c) {
                    const int64_t soon = std::min(plan.after(i, column) + c, length - 1) * channels;
                    __builtin_prefetch(x + soon, 0, 2);
                    if (gate) __builtin_prefetch(gate + soon, 0, 2);
                    store(row + c * kLanes, at(begin + c));
                }
                std::fill(row + known * kLanes, row + plan.leaf * kLanes, 0.0f);
            }
            outer_pass<false, true>(plan, column, time, work);
        }
    }
};

// A square out of rows of taps (channels, taps): a register for a tap, a channel in each lane.
struct Square {
    vfloat values[kLanes];
    // Taps from `first` on; those from `taps` on are zero.
    void read(const float* rows, int64_t taps, int64_t first, int count) {
        if (count == kLanes && first + kLanes <= taps) {
            for (int c = 0; c < kLanes; ++c) values[c] = load(rows + c * taps + first);
        } else {
            const int width = int(std::max<int64_t>(0, std::min<int64_t>(kLanes, taps - first)));
            for (int c = 0; c < kLanes; ++c)
                values[c] = c < count && width ? load_some(rows + c * taps + first, width) : vfloat{};
        }
        transpose_square(values);
    }
    void write(float* rows, int64_t taps, int64_t first, int count) {
        const int width = int(std::min<int64_t>(kLanes, taps - first));
        transpose_square(values);
        for (int c = 0; c < count && width > 0; ++c) store_some(rows + c * taps + first, values[c], width);
    }
};

// Both halves of a kernel: taps on the past, `direct` more on the present, and taps on the future from one position ahead.
struct Taps {
    const float *past, *future;
    int64_t taps, ahead;
    int count;
    vfloat direct;
    void transform(const Plan& plan, float* work, float* time) const {
        const int64_t columns = plan.levels[0].columns, floats = ahead ? kPoint : kLanes;
        for (int64_t column = 0; column < columns; column += plan.leaf) {
            for (int64_t i = 0; i < plan.levels[0].radix; ++i) {
                float* to = time + i * plan.time_row(floats);
                const int64_t begin = i * columns + column;
                for (int64_t t = begin; t < begin + plan.leaf; t += kLanes, to += kLanes * floats) {
                    Square square, reversed;
                    const int64_t soon = std::min(plan.after(i, column) + t - begin, taps - 1);
                    for (int k = 0; k < count; ++k) __builtin_prefetch(past + k * taps + soon, 0, 2);
                    square.read(past, taps, t, count);
                    if (t == 0) square.values[0] += direct;
                    if (!ahead) {
                        for (int k = 0; k < kLanes; ++k) store(to + k * kLanes, square.values[k]);
                        continue;
                    }
                    // Position t has tap N - 1 - t of the future.
                    reversed.read(future, ahead, plan.points - kLanes - t, count);
                    for (int k = 0; k < kLanes; ++k)
                        write(to + k * kPoint,
                              turn<false>({square.values[k], reversed.values[kLanes - 1 - k]}, plan.tilt + 2 * i));
                }
            }
            if (ahead) outer_pass<false, false>(plan, column, time, work);
            else outer_pass<false, true>(plan, column, time, work);
        }
    }
    // The gradients of the taps, from what comes back from an array.
    void gradients(const Plan& plan, float* work, float* time, float* grad_past, float* grad_future,
                   float* grad_direct) const {
        const int64_t columns = plan.levels[0].columns, floats = ahead ? kPoint : kLanes;
        for (int64_t column = 0; column < columns; column += plan.leaf) {
            if (ahead) outer_pass<true, false>(plan, column, time, work);
            else outer_pass<true, true>(plan, column, time, work);
            for (int64_t i = 0; i < plan.levels[0].radix; ++i) {
                const float* from = time + i * plan.time_row(floats);
                const int64_t begin = i * columns + column;
                for (int64_t t = begin; t < begin + plan.leaf; t += kLanes, from += kLanes * floats) {
                    const int64_t tap = plan.points - kLanes - t;
                    Square square, reversed;
                    if (ahead) {
                        for (int k = 0; k < kLanes; ++k) {
                            const Point lag = turn<true>(read(from + k * kPoint), plan.tilt_back + 2 * i);
                            square.values[k] = lag.re;
                            reversed.values[kLanes - 1 - k] = lag.im;
                        }
                    } else {
                        for (int k = 0; k < kLanes; ++k) square.values[k] = load(from + k * kLanes);
                    }
                    if (t == 0 && grad_direct) store_some(grad_direct, square.values[0], count);
                    if (t < taps) square.write(grad_past, taps, t, count);
                    if (tap < ahead) reversed.write(grad_future, ahead, tap, count);
                }
            }
        }
    }
};

// The real part of what comes back from an array: `give(position, value)`.
template <typename Give>
inline void transform_back(const Plan& plan, float* work, float* time, int64_t length, const Give& give) {
    const int64_t columns = plan.levels[0].columns;
    for (int64_t column = 0; column < columns; column += plan.leaf) {
        outer_pass<true, true>(plan, column, time, work);
        for (int64_t begin = column, i = 0; begin < length; begin += columns, ++i) {
            const float* row = time + i * plan.time_row(kLanes);
            const int64_t known = std::min(plan.leaf, length - begin);
            for (int64_t c = 0; c < known; ++c) give(begin + c, load(row + c * kLanes));
        }
    }
}

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
    const bool past_caches = streams(y, batch * length, channels);
#pragma omp parallel for schedule(dynamic) num_threads(threads) if (threads > 1)
    for (int64_t block = 0; block < blocks; ++block) {
        float* spectrum = of_thread(workspace, plan.workspace(2, ahead));
        float *work = spectrum + plan.size, *time = work + plan.size;
        const int64_t first = block * kLanes;
        const int count = int(std::min<int64_t>(kLanes, channels - first));
        const vfloat direct = D ? load_some(D + first, count) : vfloat{};
        const Taps weights{kernel + first * taps, future + first * ahead, taps, ahead, count, direct};
        weights.transform(plan, spectrum, time);
        for (int64_t b = 0; b < batch; ++b) {
            const int64_t start = b * length * channels + first;
            const Signal<T> signal{x + start, gate ? gate + start : nullptr, length, channels, count};
            signal.transform(plan, work, time);
            const auto leaf = [&](int64_t at) {
                if (b == 0) leaf_there<Q>(spectrum + at, plan.leaf_roots);
                leaf_convolve<Q>(work + at, spectrum + at, plan.leaf_roots);
            };
            if (b == 0) rows(plan, {spectrum, work}, {work}, leaf);
            else rows(plan, {work}, {work}, leaf);
            transform_back(plan, work, time, length, [&](int64_t t, vfloat v) {
                T* to = y + start + t * channels;
                if (past_caches) stream(to, v);
                else store_some(to, v, count);
            });
        }
        finish_streams();
    }
}

template <int Q, typename T>
void backward(const T* grad, const T* x, const T* gate, const float* kernel, const float* future, const float* D,
              T* grad_x, T* grad_gate, float* grad_kernel, float* grad_future, float* grad_D, const Plan& plan,
              float* workspace, int64_t batch, int64_t length, int64_t channels, int64_t taps, int64_t ahead,
              int threads) {
    const int64_t blocks = (channels + kLanes - 1) / kLanes, kept = batch > 1 ? 4 : 3;
    const bool past_caches = streams(grad_x, batch * length, channels);
#pragma omp parallel for schedule(dynamic) num_threads(threads) if (threads > 1)
    for (int64_t block = 0; block < blocks; ++block) {
        float *spectrum = of_thread(workspace, plan.workspace(kept, ahead)), *given = spectrum + plan.size;
        float *work = given + plan.size, *time = work + (kept - 2) * plan.size;
        float* lags = batch > 1 ? work + plan.size : work;
        const int64_t first = block * kLanes;
        const int count = int(std::min<int64_t>(kLanes, channels - first));
        const vfloat direct = D ? load_some(D + first, count) : vfloat{};
        const Taps weights{kernel + first * taps, future + first * ahead, taps, ahead, count, direct};
        weights.transform(plan, spectrum, time);
        for (int64_t b = 0; b < batch; ++b) {
            const int64_t start = b * length * channels + first;
            const Signal<T> signal{x + start, gate ? gate + start : nullptr, length, channels, count};
            signal.transform(plan, work, time);
            Signal<T>{grad + start, nullptr, length, channels, count}.transform(plan, given, time);
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
            transform_back(plan, given, time, length, [&](int64_t t, vfloat v) {
                const int64_t place = start + t * channels;
                if (gate) {
                    store_some(grad_gate + place, v * load_some(x + place, count), count);
                    v *= load_some(gate + place, count);
                }
                if (past_caches) stream(grad_x + place, v);
                else store_some(grad_x + place, v, count);
            });
        }
        finish_streams();
        weights.gradients(plan, lags, time, grad_kernel + first * taps, grad_future + first * ahead,
                          D ? grad_D + first : nullptr);
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

// Floats of workspace for a thread: `kept` arrays of points, and positions in the order of time.
STATESCAN_EXPORT(int, fft_conv_workspace)
(const int64_t* radices, int64_t count, int64_t kept, int64_t ahead, int64_t* floats) {
    *floats = Plan(radices, count, nullptr).workspace(kept, ahead);
    return 0;
}

// x, gate, y: (batch, length, channels) of one type; kernel: (channels, taps); future: (channels, ahead); D: (channels,).
// gate and D may be null. The product N of the radices is not less than length, taps and ahead + 1; the last radix, the
// leaf, is 16 or 64. `tables` (kernels/cpu_fft_conv.py makes them) are pairs of floats, exp(-2 pi i times):
//   for every radix r but the last, of transforms of n points, r = A B as `pass` has it:
//     b a / r at [b][a];   j (f + s) / n at [j][a][b], f = a + A b and s = 1/4 for the first radix, else 0;
//   for the leaf, Q Q points: b a / (Q Q) at [b][a];
//   for row i of the first radix r: i / (4 r), then the same over N.
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

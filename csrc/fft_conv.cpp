// Convolutions with kernels as long as the sequence: y = (k * (gate x)) + D (gate x) and all gradients.
//
// Every lane of a register is a channel, so that one transform serves as many channels as there are lanes and a signal
// with channels last is read as it lies. A transform has as many points as the signal has positions, N of them: sequences
// are multiplied in the ring of polynomials modulo z^N + i, where what passes the end comes back times -i and what comes
// before the start times i. Sequences and kernels being real, the real part of the product is the convolution without any
// padding, and a kernel that reads the future lies in the imaginary part, from the end. (Crandall and Fagin 1994 call it a
// right-angle convolution.)
//
// A transform is a matrix of n1 x n2 points: columns first, then rows, each in the cache. Going there ends, and coming
// back begins, in the order that decimation leaves, so that nothing is ever reordered.
#include "common.h"
#include "math.h"

namespace STATESCAN_LEVEL {
namespace {

constexpr int64_t kPoint = 2 * kLanes;  // floats in a point: real parts, then imaginary parts
constexpr int64_t kColumns = 4;         // columns of a signal that are read together

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
inline Point times_i(Point a) { return {-a.im, a.re}; }
inline Point times_minus_i(Point a) { return {a.im, -a.re}; }
inline Point turn(Point a, const float* w) { return {a.re * w[0] - a.im * w[1], a.re * w[1] + a.im * w[0]}; }
inline Point turn_back(Point a, const float* w) { return {a.re * w[0] + a.im * w[1], a.im * w[0] - a.re * w[1]}; }
inline Point product(Point a, Point b) { return {a.re * b.re - a.im * b.im, a.re * b.im + a.im * b.re}; }
inline Point correlation(Point a, Point b) { return {a.re * b.re + a.im * b.im, a.im * b.re - a.re * b.im}; }

constexpr float kHalf = 0.5f, kSine = 0.86602540378443865f;  // of 60 degrees

// One stage of radix 4, there (decimation in frequency) or back (in time): blocks of `m` of the `n` points.
template <bool Back>
inline void four(float* x, int64_t n, int64_t m, const float* roots) {
    const int64_t q = m / 4, stride = n / m;
    for (int64_t k = 0; k < q; ++k) {
        const float *w1 = roots + 2 * k * stride, *w2 = roots + 4 * k * stride, *w3 = roots + 6 * k * stride;
        for (int64_t block = 0; block < n; block += m) {
            float *p0 = x + (block + k) * kPoint, *p1 = p0 + q * kPoint, *p2 = p1 + q * kPoint, *p3 = p2 + q * kPoint;
            Point a = read(p0), b = read(p1), c = read(p2), d = read(p3);
            if (Back) {
                if (k) {
                    b = turn_back(b, w1);
                    c = turn_back(c, w2);
                    d = turn_back(d, w3);
                }
                const Point s = a + c, e = a - c, t = b + d, f = times_i(b - d);
                write(p0, s + t);
                write(p1, e + f);
                write(p2, s - t);
                write(p3, e - f);
            } else {
                const Point s = a + c, e = a - c, t = b + d, f = times_minus_i(b - d);
                write(p0, s + t);
                a = e + f;
                b = s - t;
                c = e - f;
                if (k) {
                    a = turn(a, w1);
                    b = turn(b, w2);
                    c = turn(c, w3);
                }
                write(p1, a);
                write(p2, b);
                write(p3, c);
            }
        }
    }
}

inline void two(float* x, int64_t n) {
    for (int64_t block = 0; block < n; block += 2) {
        float* p = x + block * kPoint;
        const Point a = read(p), b = read(p + kPoint);
        write(p, a + b);
        write(p + kPoint, a - b);
    }
}

// The outermost stage of a transform of 3 x 2^a points.
template <bool Back>
inline void three(float* x, int64_t n, const float* roots) {
    const int64_t q = n / 3;
    for (int64_t k = 0; k < q; ++k) {
        float *p0 = x + k * kPoint, *p1 = p0 + q * kPoint, *p2 = p1 + q * kPoint;
        Point a = read(p0), b = read(p1), c = read(p2);
        if (Back) {
            b = turn_back(b, roots + 2 * k);
            c = turn_back(c, roots + 4 * k);
        }
        const Point s = b + c, e = b - c;
        const Point middle{a.re - kHalf * s.re, a.im - kHalf * s.im};
        Point side = times_minus_i(Point{e.re * kSine, e.im * kSine});
        if (Back) side = Point{-side.re, -side.im};
        b = middle + side;
        c = middle - side;
        if (!Back) {
            b = turn(b, roots + 2 * k);
            c = turn(c, roots + 4 * k);
        }
        write(p0, a + s);
        write(p1, b);
        write(p2, c);
    }
}

inline void transform(float* x, int64_t n, const float* roots) {
    int64_t m = n;
    if (n % 3 == 0) {
        three<false>(x, n, roots);
        m = n / 3;
    }
    for (; m >= 4; m /= 4) four<false>(x, n, m, roots);
    if (m == 2) two(x, n);
}

inline void transform_back(float* x, int64_t n, const float* roots) {
    const int64_t most = n % 3 ? n : n / 3;
    int64_t m = 1;
    while (4 * m <= most) m *= 4;
    int64_t first = 4;
    if (m != most) {  // twice a power of four
        two(x, n);
        first = 8;
    }
    for (int64_t size = first; size <= most; size *= 4) four<true>(x, n, size, roots);
    if (most != n) three<true>(x, n, roots);
}

// Sizes and tables of a transform; pairs of floats. `roots` are exp(-2 pi i k / n); `twist`, for row p and column j of
// the matrix, exp(-2 pi i j (f + 1/4) / N), f being the frequency that decimation leaves at p; `tilt` is
// exp(-pi i / 2 * i / n1) for row i of a signal.
struct Plan {
    int64_t n1, n2;
    const float *roots1, *roots2, *twist, *tilt;
    int64_t points() const { return n1 * n2; }
};

// Columns of a signal there. `fetch(position, columns, put)` is asked for neighbours.
template <int64_t Width, typename Fetch>
inline void columns(const Plan& plan, float* work, float* scratch, Fetch fetch) {
    for (int64_t j = 0; j < plan.n2; j += Width) {
        for (int64_t i = 0; i < plan.n1; ++i) {
            const float* tilt = plan.tilt + 2 * i;
            fetch(j + plan.n2 * i, [&](int64_t column, Point v) {
                write(scratch + (column * plan.n1 + i) * kPoint, turn(v, tilt));
            });
        }
        for (int64_t column = 0; column < Width; ++column)
            transform(scratch + column * plan.n1 * kPoint, plan.n1, plan.roots1);
        for (int64_t p = 0; p < plan.n1; ++p) {
            const int64_t place = p * plan.n2 + j;
            for (int64_t column = 0; column < Width; ++column)
                write(work + (place + column) * kPoint,
                      turn(read(scratch + (column * plan.n1 + p) * kPoint), plan.twist + 2 * (place + column)));
        }
    }
}

// Columns back; `give(position, get)` takes neighbours.
template <int64_t Width, typename Give>
inline void columns_back(const Plan& plan, const float* work, float* scratch, Give give) {
    const float scale = 1.0f / float(plan.points());
    for (int64_t j = 0; j < plan.n2; j += Width) {
        for (int64_t p = 0; p < plan.n1; ++p) {
            const int64_t place = p * plan.n2 + j;
            for (int64_t column = 0; column < Width; ++column)
                write(scratch + (column * plan.n1 + p) * kPoint,
                      turn_back(read(work + (place + column) * kPoint), plan.twist + 2 * (place + column)));
        }
        for (int64_t column = 0; column < Width; ++column)
            transform_back(scratch + column * plan.n1 * kPoint, plan.n1, plan.roots1);
        for (int64_t i = 0; i < plan.n1; ++i) {
            const float tilt[2] = {plan.tilt[2 * i] * scale, plan.tilt[2 * i + 1] * scale};
            give(j + plan.n2 * i, [&](int64_t column) {
                return turn_back(read(scratch + (column * plan.n1 + i) * kPoint), tilt);
            });
        }
    }
}

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
    void transform(const Plan& plan, float* work, float* scratch) const {
        columns<kColumns>(plan, work, scratch, [&](int64_t t, auto put) {
            for (int64_t c = 0; c < kColumns; ++c) put(c, Point{t + c < length ? at(t + c) : vfloat{}, vfloat{}});
        });
    }
};

// Rows of taps (channels, taps), transposed as they are read or written, a square of lanes at a time.
struct Square {
    float values[kLanes][kLanes];
    void read(const float* rows, int64_t stride, int64_t first, int64_t end, int count) {
        for (int c = 0; c < kLanes; ++c)
            for (int i = 0; i < kLanes; ++i)
                values[i][c] = c < count && first + i < end ? rows[c * stride + first + i] : 0.0f;
    }
    void write(float* rows, int64_t stride, int64_t first, int64_t end, int count) const {
        const int64_t width = std::min<int64_t>(kLanes, end - first);
        for (int c = 0; c < count; ++c)
            for (int64_t i = 0; i < width; ++i) rows[c * stride + first + i] = values[i][c];
    }
};

// Both halves of a kernel: taps on the past, and taps on the future from one position ahead.
struct Taps {
    const float *past, *future;
    int64_t taps, ahead;
    int count;
    void transform(const Plan& plan, float* work, float* scratch) const {
        const int64_t size = plan.points();
        columns<kLanes>(plan, work, scratch, [&](int64_t t, auto put) {
            Square past_square, future_square;
            past_square.read(past, taps, t, taps, count);
            if (ahead) {  // position t holds tap N - 1 - t of the future
                for (int64_t i = 0; i < kLanes; ++i) {
                    const int64_t tap = size - 1 - t - i;
                    for (int c = 0; c < kLanes; ++c)
                        future_square.values[i][c] = c < count && tap < ahead ? future[c * ahead + tap] : 0.0f;
                }
            }
            for (int64_t i = 0; i < kLanes; ++i)
                put(i, Point{load(past_square.values[i]), ahead ? load(future_square.values[i]) : vfloat{}});
        });
        for (int64_t p = 0; p < plan.n1; ++p)
            STATESCAN_LEVEL::transform(work + p * plan.n2 * kPoint, plan.n2, plan.roots2);
    }
};

inline int64_t scratch_size(const Plan& plan) { return std::max<int64_t>(kLanes, kColumns) * plan.n1 * kPoint; }

template <typename T>
void forward(const T* x, const T* gate, const float* kernel, const float* future, const float* D, T* y,
             const Plan& plan, float* workspace, int64_t batch, int64_t length, int64_t channels, int64_t taps,
             int64_t ahead, int threads) {
    const int64_t blocks = (channels + kLanes - 1) / kLanes, size = plan.points() * kPoint;
#pragma omp parallel for schedule(dynamic) num_threads(threads) if (threads > 1)
    for (int64_t block = 0; block < blocks; ++block) {
#ifdef _OPENMP
        float* spectrum = workspace + omp_get_thread_num() * (2 * size + scratch_size(plan));
#else
        float* spectrum = workspace;
#endif
        float *work = spectrum + size, *scratch = work + size;
        const int64_t first = block * kLanes;
        const int count = int(std::min<int64_t>(kLanes, channels - first));
        const vfloat direct = D ? load_some(D + first, count) : vfloat{};
        Taps{kernel + first * taps, future + first * ahead, taps, ahead, count}.transform(plan, spectrum, scratch);
        for (int64_t b = 0; b < batch; ++b) {
            const int64_t start = b * length * channels + first;
            const Signal<T> signal{x + start, gate ? gate + start : nullptr, length, channels, count};
            signal.transform(plan, work, scratch);
            for (int64_t p = 0; p < plan.n1; ++p) {
                float* row = work + p * plan.n2 * kPoint;
                const float* taps_row = spectrum + p * plan.n2 * kPoint;
                transform(row, plan.n2, plan.roots2);
                for (int64_t i = 0; i < plan.n2 * kPoint; i += kPoint)
                    write(row + i, product(read(row + i), read(taps_row + i)));
                transform_back(row, plan.n2, plan.roots2);
            }
            columns_back<kColumns>(plan, work, scratch, [&](int64_t t, auto get) {
                for (int64_t c = 0; c < kColumns && t + c < length; ++c) {
                    vfloat v = get(c).re;
                    if (D) v += direct * signal.at(t + c);
                    store_some(y + start + (t + c) * channels, v, count);
                }
            });
        }
    }
}

template <typename T>
void backward(const T* grad, const T* x, const T* gate, const float* kernel, const float* future, const float* D,
              T* grad_x, T* grad_gate, float* grad_kernel, float* grad_future, float* grad_D, const Plan& plan,
              float* workspace, int64_t batch, int64_t length, int64_t channels, int64_t taps, int64_t ahead,
              int threads) {
    const int64_t blocks = (channels + kLanes - 1) / kLanes, size = plan.points() * kPoint;
#pragma omp parallel for schedule(dynamic) num_threads(threads) if (threads > 1)
    for (int64_t block = 0; block < blocks; ++block) {
#ifdef _OPENMP
        float* spectrum = workspace + omp_get_thread_num() * (4 * size + scratch_size(plan));
#else
        float* spectrum = workspace;
#endif
        float *work = spectrum + size, *given = work + size, *lags = given + size, *scratch = lags + size;
        const int64_t first = block * kLanes;
        const int count = int(std::min<int64_t>(kLanes, channels - first));
        const vfloat direct = D ? load_some(D + first, count) : vfloat{};
        Taps{kernel + first * taps, future + first * ahead, taps, ahead, count}.transform(plan, spectrum, scratch);
        for (int64_t b = 0; b < batch; ++b) {
            const int64_t start = b * length * channels + first;
            const Signal<T> signal{x + start, gate ? gate + start : nullptr, length, channels, count};
            const Signal<T> above{grad + start, nullptr, length, channels, count};
            signal.transform(plan, work, scratch);
            above.transform(plan, given, scratch);
            // Correlating with the kernel gives the input's gradient, correlating with the input the kernel's.
            for (int64_t p = 0; p < plan.n1; ++p) {
                const int64_t from = p * plan.n2 * kPoint;
                float *u = work + from, *g = given + from, *lag = lags + from;
                transform(u, plan.n2, plan.roots2);
                transform(g, plan.n2, plan.roots2);
                for (int64_t i = 0; i < plan.n2 * kPoint; i += kPoint) {
                    const Point value = read(g + i);
                    const Point sum = correlation(value, read(u + i));
                    write(lag + i, b ? read(lag + i) + sum : sum);
                    write(g + i, correlation(value, read(spectrum + from + i)));
                }
                transform_back(g, plan.n2, plan.roots2);
            }
            columns_back<kColumns>(plan, given, scratch, [&](int64_t t, auto get) {
                for (int64_t c = 0; c < kColumns && t + c < length; ++c) {
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
        for (int64_t p = 0; p < plan.n1; ++p) transform_back(lags + p * plan.n2 * kPoint, plan.n2, plan.roots2);
        columns_back<kLanes>(plan, lags, scratch, [&](int64_t t, auto get) {
            Square square;
            for (int64_t i = 0; i < kLanes; ++i) store(square.values[i], get(i).re);
            if (t == 0 && D)
                for (int c = 0; c < count; ++c) grad_D[first + c] = square.values[0][c];  // the lag of 0 is D's too
            if (t < taps) square.write(grad_kernel + first * taps, taps, t, taps, count);
            for (int64_t i = 0; i < kLanes; ++i) {
                const int64_t tap = plan.points() - 1 - t - i;
                if (tap >= ahead) continue;
                const vfloat value = get(i).im;
                for (int c = 0; c < count; ++c) grad_future[(first + c) * ahead + tap] = value[c];
            }
        });
    }
}

}  // namespace

// Floats of workspace for a thread: `kept` arrays of points and the columns at hand.
STATESCAN_EXPORT(int, fft_conv_workspace)(int64_t n1, int64_t n2, int64_t kept, int64_t* floats) {
    const Plan plan{n1, n2, nullptr, nullptr, nullptr, nullptr};
    *floats = kept * plan.points() * kPoint + scratch_size(plan);
    return 0;
}

// x, gate, y: (batch, length, channels) of one type; kernel: (channels, taps); future: (channels, ahead); D: (channels,).
// gate and D may be null. N = n1 n2 is not less than length, taps and ahead + 1; n1 is 2^a or 3 2^a, n2 is 2^a, and a
// multiple of the lanes.
STATESCAN_EXPORT(int, fft_conv_forward)
(const void* x, const void* gate, const float* kernel, const float* future, const float* D, void* y,
 const float* roots1, const float* roots2, const float* twist, const float* tilt, float* workspace, int64_t batch,
 int64_t length, int64_t channels, int64_t taps, int64_t ahead, int64_t n1, int64_t n2, int dtype, int threads) {
    const Plan plan{n1, n2, roots1, roots2, twist, tilt};
    const auto run = [&](auto type) {
        using T = decltype(type);
        forward(static_cast<const T*>(x), static_cast<const T*>(gate), kernel, future, D, static_cast<T*>(y), plan,
                workspace, batch, length, channels, taps, ahead, threads);
    };
    if (dtype == kFloat32) run(float{});
    if (dtype == kBFloat16) run(bfloat16{});
    if (dtype == kFloat16) run(float16{});
    return 0;
}

// grad, grad_x and grad_gate are as x is, the other gradients as what they belong to.
STATESCAN_EXPORT(int, fft_conv_backward)
(const void* grad, const void* x, const void* gate, const float* kernel, const float* future, const float* D,
 void* grad_x, void* grad_gate, float* grad_kernel, float* grad_future, float* grad_D, const float* roots1,
 const float* roots2, const float* twist, const float* tilt, float* workspace, int64_t batch, int64_t length,
 int64_t channels, int64_t taps, int64_t ahead, int64_t n1, int64_t n2, int dtype, int threads) {
    const Plan plan{n1, n2, roots1, roots2, twist, tilt};
    const auto run = [&](auto type) {
        using T = decltype(type);
        backward(static_cast<const T*>(grad), static_cast<const T*>(x), static_cast<const T*>(gate), kernel, future, D,
                 static_cast<T*>(grad_x), static_cast<T*>(grad_gate), grad_kernel, grad_future, grad_D, plan, workspace,
                 batch, length, channels, taps, ahead, threads);
    };
    if (dtype == kFloat32) run(float{});
    if (dtype == kBFloat16) run(bfloat16{});
    if (dtype == kFloat16) run(float16{});
    return 0;
}

}  // namespace STATESCAN_LEVEL

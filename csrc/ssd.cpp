// Structured state-space duality: the scan of Mamba-2 in chunks, forward and backward.
//
// Within a chunk of q positions the scan is a masked quadratic form, between chunks a recurrence of states; all of it is
// small matrix products on scratch that fits the second-level cache. What is kept is float32; cumulative decays are double,
// and only differences of them, which are never positive, are exponentiated.
//
// The state of a head lies as (N, P): state columns outside, channels inside.
#include <vector>

#include "common.h"
#include "math.h"

namespace STATESCAN_LEVEL {
namespace {

#if defined(__AVX512F__)
constexpr int kTileRows = 6, kTileVectors = 4;
#else
constexpr int kTileRows = 3, kTileVectors = 2;
#endif

enum Shape { kFull, kLower, kUpper };  // of the left factor: all of it, k <= row, k >= row

// out(row, column) (+)= sum_k left(row, k) right(k, column); columns in whole vectors.
struct Product {
    const float* left;
    int64_t left_row, left_k;
    const float* right;
    int64_t right_k;
    float* out;
    int64_t out_row;
    bool accumulate;
};

template <int kRows, int kVectors>
inline void tile(const Product& p, int64_t row, int64_t column, int64_t k_begin, int64_t k_end) {
    vfloat sum[kRows][kVectors];
    for (int r = 0; r < kRows; ++r)
        for (int v = 0; v < kVectors; ++v)
            sum[r][v] = p.accumulate ? load(p.out + (row + r) * p.out_row + column + v * kLanes) : vfloat{};
    const float* left = p.left + row * p.left_row;
    for (int64_t k = k_begin; k < k_end; ++k) {
        vfloat right[kVectors];
        for (int v = 0; v < kVectors; ++v) right[v] = load(p.right + k * p.right_k + column + v * kLanes);
        for (int r = 0; r < kRows; ++r) {
            const float value = left[r * p.left_row + k * p.left_k];
            for (int v = 0; v < kVectors; ++v) sum[r][v] += value * right[v];
        }
    }
    for (int r = 0; r < kRows; ++r)
        for (int v = 0; v < kVectors; ++v) store(p.out + (row + r) * p.out_row + column + v * kLanes, sum[r][v]);
}

template <int kVectors>
inline void columns(const Product& p, int64_t rows, int64_t column, int64_t inner, Shape shape) {
    int64_t row = 0;
    for (; row + kTileRows <= rows; row += kTileRows) {
        const int64_t end = shape == kLower ? std::min(inner, row + kTileRows) : inner;
        tile<kTileRows, kVectors>(p, row, column, shape == kUpper ? row : 0, end);
    }
    for (; row < rows; ++row) {
        const int64_t end = shape == kLower ? std::min(inner, row + 1) : inner;
        tile<1, kVectors>(p, row, column, shape == kUpper ? row : 0, end);
    }
}

// The part of a triangular left factor that a tile reads beyond its triangle must hold zeros.
void multiply(const Product& p, int64_t rows, int64_t width, int64_t inner, Shape shape = kFull) {
    int64_t column = 0;
    for (; column + kTileVectors * kLanes <= width; column += kTileVectors * kLanes)
        columns<kTileVectors>(p, rows, column, inner, shape);
    for (; column + kLanes <= width; column += kLanes) columns<1>(p, rows, column, inner, shape);
}

void transpose(const float* in, int64_t rows, int64_t width, int64_t in_row, float* out, int64_t out_row) {
    for (int64_t r = 0; r < rows; ++r)
        for (int64_t c = 0; c < width; ++c) out[c * out_row + r] = in[r * in_row + c];
}

inline int64_t round_up(int64_t value) { return (value + kLanes - 1) / kLanes * kLanes; }

template <typename T>
void read_rows(const T* in, int64_t rows, int64_t width, int64_t in_row, float* out, int64_t out_row) {
    for (int64_t r = 0; r < rows; ++r) {
        for (int64_t c = 0; c < width; c += kLanes) {
            store(out + r * out_row + c, load_some(in + r * in_row + c, int(std::min<int64_t>(kLanes, width - c))));
        }
    }
}

struct Sizes {
    int64_t rows, heads, head_dim, groups, state_dim, sequences, chunk;
    int64_t x_row, delta_row, b_row, c_row;  // strides of a position, in elements
    const int64_t* offsets;
    const uint8_t* resets;
    int dtype, rates_dtype;
    bool D_per_channel;
};

inline float read(const void* p, int dtype, int64_t at) {
    if (dtype == kBFloat16) return to_float(static_cast<const bfloat16*>(p)[at]);
    if (dtype == kFloat16) return to_float(static_cast<const float16*>(p)[at]);
    return static_cast<const float*>(p)[at];
}

// Decays within a chunk of one head.
struct Decays {
    std::vector<double> total;         // cumulative log decay
    std::vector<float> delta, enter, leave;  // steps; from the chunk's start to i; from i to the chunk's end
    std::vector<int32_t> segment;      // how many resets lie at or before i
    float whole;                       // from start to end, zero if the state is reset within
    explicit Decays(int64_t q) : total(q), delta(q), enter(q), leave(q), segment(q), whole(0) {}

    void compute(const Sizes& s, const float* delta_rows, float A, int64_t row, int64_t q, int64_t head) {
        double sum = 0;
        int32_t resets = 0;
        for (int64_t i = 0; i < q; ++i) {
            delta[i] = delta_rows[(row + i) * s.delta_row + head];
            sum += double(delta[i]) * double(A);
            total[i] = sum;
            if (s.resets && s.resets[row + i]) ++resets;
            segment[i] = resets;
        }
        for (int64_t i = 0; i < q; ++i) {
            enter[i] = segment[i] == 0 ? float(std::exp(total[i])) : 0.0f;
            leave[i] = segment[i] == resets ? float(std::exp(sum - total[i])) : 0.0f;
        }
        whole = resets == 0 ? float(std::exp(sum)) : 0.0f;
    }

    // out(i, j) = exp(total_i - total_j) for j <= i of the same segment, else 0.
    void matrix(int64_t q, float* out, int64_t out_row) const {
        for (int64_t i = 0; i < q; ++i) {
            float* o = out + i * out_row;
            alignas(64) float exponent[kLanes];
            for (int64_t j0 = 0; j0 < out_row; j0 += kLanes) {
                for (int l = 0; l < kLanes; ++l) {
                    const int64_t j = j0 + l;
                    exponent[l] = j <= i && segment[j] == segment[i] ? float(total[i] - total[j]) : -INFINITY;
                }
                if (j0 > i) store(o + j0, vfloat{});
                else store(o + j0, exp_or_zero(load(exponent)));
            }
        }
    }

    static vfloat exp_or_zero(vfloat v) {
        const vfloat e = exp(v);
        return v == -INFINITY ? vfloat{} : e;
    }
};

template <typename T>
struct Forward {
    const Sizes& s;
    const T *x, *B, *C;
    const float *delta, *A, *D, *initial;
    T* y;
    float* last;

    // All heads [head, head + count) of one group through one sequence.
    void run(int64_t sequence, int64_t head, int64_t count) const {
        const int64_t P = s.head_dim, N = s.state_dim, Pp = round_up(P), Np = round_up(N), Q = s.chunk, Qp = round_up(Q);
        const int64_t group = head / (s.heads / s.groups);
        std::vector<float> states(count * N * Pp, 0), u(Q * Pp), out(Q * Pp), Bf(Q * Np), Cf(Q * Np), Bt(N * Qp, 0);
        std::vector<float> products(Q * Qp), mask(Q * Qp), scaled(Q * Np);
        Decays decay(Q);
        if (initial) {
            for (int64_t h = 0; h < count; ++h)
                transpose(initial + (sequence * s.heads + head + h) * P * N, P, N, N, states.data() + h * N * Pp, Pp);
        }
        for (int64_t row = s.offsets[sequence]; row < s.offsets[sequence + 1]; row += Q) {
            const int64_t q = std::min(Q, s.offsets[sequence + 1] - row);
            read_rows(B + row * s.b_row + group * N, q, N, s.b_row, Bf.data(), Np);
            read_rows(C + row * s.c_row + group * N, q, N, s.c_row, Cf.data(), Np);
            std::fill(Bt.begin(), Bt.end(), 0.0f);
            transpose(Bf.data(), q, N, Np, Bt.data(), Qp);
            multiply({Cf.data(), Np, 1, Bt.data(), Qp, products.data(), Qp, false}, q, Qp, N);
            for (int64_t h = 0; h < count; ++h) {
                float* state = states.data() + h * N * Pp;
                decay.compute(s, delta, A[head + h], row, q, head + h);
                decay.matrix(q, mask.data(), Qp);
                for (int64_t i = 0; i < q * Qp; i += kLanes) store(mask.data() + i, load(mask.data() + i) * load(products.data() + i));
                const T* xs = x + row * s.x_row + (head + h) * P;
                read_rows(xs, q, P, s.x_row, u.data(), Pp);
                for (int64_t j = 0; j < q; ++j)
                    for (int64_t c = 0; c < Pp; c += kLanes) store(u.data() + j * Pp + c, load(u.data() + j * Pp + c) * decay.delta[j]);
                for (int64_t i = 0; i < q; ++i)
                    for (int64_t n = 0; n < Np; n += kLanes) store(scaled.data() + i * Np + n, load(Cf.data() + i * Np + n) * decay.enter[i]);
                multiply({scaled.data(), Np, 1, state, Pp, out.data(), Pp, false}, q, Pp, N);
                multiply({mask.data(), Qp, 1, u.data(), Pp, out.data(), Pp, true}, q, Pp, q, kLower);
                for (int64_t i = 0; i < q; ++i) {
                    const T* xi = xs + i * s.x_row;
                    T* yi = y + ((row + i) * s.heads + head + h) * P;
                    for (int64_t c = 0; c < P; c += kLanes) {
                        const int n = int(std::min<int64_t>(kLanes, P - c));
                        vfloat value = load(out.data() + i * Pp + c);
                        if (D) value += load_some(xi + c, n) * (s.D_per_channel ? load_some(D + (head + h) * P + c, n) : splat(D[head + h]));
                        store_some(yi + c, value, n);
                    }
                }
                for (int64_t j = 0; j < q; ++j)
                    for (int64_t c = 0; c < Pp; c += kLanes) store(u.data() + j * Pp + c, load(u.data() + j * Pp + c) * decay.leave[j]);
                for (int64_t i = 0; i < N * Pp; i += kLanes) store(state + i, load(state + i) * decay.whole);
                multiply({Bf.data(), 1, Np, u.data(), Pp, state, Pp, true}, N, Pp, q);
            }
        }
        for (int64_t h = 0; h < count; ++h)
            transpose(states.data() + h * N * Pp, N, P, Pp, last + (sequence * s.heads + head + h) * P * N, N);
    }
};

template <typename T>
int forward(const Sizes& s, const void* x, const float* delta, const float* A, const void* B, const void* C, const float* D,
            const float* initial, void* y, float* last, int threads) {
    const Forward<T> body{s, static_cast<const T*>(x), static_cast<const T*>(B), static_cast<const T*>(C), delta, A, D,
                          initial, static_cast<T*>(y), last};
    // Heads of a group share C B^T; take as many together as leave every thread two tasks.
    const int64_t per_group = s.heads / s.groups;
    int64_t block = std::max<int64_t>(1, s.sequences * s.heads / (2 * threads));
    block = std::min<int64_t>(std::min(block, per_group), 16);
    const int64_t blocks = (per_group + block - 1) / block;
#pragma omp parallel for collapse(3) schedule(dynamic) num_threads(threads) if (threads > 1)
    for (int64_t sequence = 0; sequence < s.sequences; ++sequence)
        for (int64_t group = 0; group < s.groups; ++group)
            for (int64_t b = 0; b < blocks; ++b)
                body.run(sequence, group * per_group + b * block, std::min(block, per_group - b * block));
    return 0;
}

template <typename T>
struct Backward {
    const Sizes& s;
    const T *grad_y, *x, *B, *C;
    const float *grad_last, *delta, *A, *D, *initial;
    T* grad_x;
    float *grad_delta, *grad_A, *grad_D, *grad_initial;

    // One head through one sequence; grad_B and grad_C (rows, groups, N) are this thread's own sums.
    void run(int64_t sequence, int64_t head, float* grad_B, float* grad_C) const {
        const int64_t P = s.head_dim, N = s.state_dim, Pp = round_up(P), Np = round_up(N), Q = s.chunk, Qp = round_up(Q);
        const int64_t group = head / (s.heads / s.groups);
        const int64_t begin = s.offsets[sequence], length = s.offsets[sequence + 1] - begin, chunks = (length + Q - 1) / Q;
        std::vector<float> states((chunks + 1) * N * Pp, 0), flow(N * Pp, 0), x_rows(Q * Pp), u(Q * Pp), v(Q * Pp);
        std::vector<float> g(Q * Pp), du(Q * Pp), Bf(Q * Np), Cf(Q * Np), Bt(N * Qp, 0), ut(Pp * Qp, 0), flipped(Pp * Np, 0);
        std::vector<float> products(Q * Qp), mask(Q * Qp), dm(Q * Qp, 0), wide(Q * Np), off(Q * Pp);
        std::vector<double> dtotal(Q);
        Decays decay(Q);
        if (initial) transpose(initial + (sequence * s.heads + head) * P * N, P, N, N, states.data(), Pp);
        for (int64_t k = 0; k < chunks; ++k) {  // the states before every chunk
            const int64_t row = begin + k * Q, q = std::min(Q, begin + length - row);
            float *state = states.data() + k * N * Pp, *next = state + N * Pp;
            decay.compute(s, delta, A[head], row, q, head);
            read_rows(B + row * s.b_row + group * N, q, N, s.b_row, Bf.data(), Np);
            read_rows(x + row * s.x_row + head * P, q, P, s.x_row, u.data(), Pp);
            for (int64_t j = 0; j < q; ++j)
                for (int64_t c = 0; c < Pp; c += kLanes)
                    store(u.data() + j * Pp + c, load(u.data() + j * Pp + c) * (decay.delta[j] * decay.leave[j]));
            for (int64_t i = 0; i < N * Pp; i += kLanes) store(next + i, load(state + i) * decay.whole);
            multiply({Bf.data(), 1, Np, u.data(), Pp, next, Pp, true}, N, Pp, q);
        }
        if (grad_last) transpose(grad_last + (sequence * s.heads + head) * P * N, P, N, N, flow.data(), Pp);
        double dA = 0;
        for (int64_t k = chunks - 1; k >= 0; --k) {
            const int64_t row = begin + k * Q, q = std::min(Q, begin + length - row);
            const float* state = states.data() + k * N * Pp;
            decay.compute(s, delta, A[head], row, q, head);
            decay.matrix(q, mask.data(), Qp);
            read_rows(B + row * s.b_row + group * N, q, N, s.b_row, Bf.data(), Np);
            read_rows(C + row * s.c_row + group * N, q, N, s.c_row, Cf.data(), Np);
            read_rows(x + row * s.x_row + head * P, q, P, s.x_row, x_rows.data(), Pp);
            read_rows(grad_y + (row * s.heads + head) * P, q, P, s.heads * P, g.data(), Pp);
            for (int64_t j = 0; j < q; ++j)
                for (int64_t c = 0; c < Pp; c += kLanes) store(u.data() + j * Pp + c, load(x_rows.data() + j * Pp + c) * decay.delta[j]);
            std::fill(Bt.begin(), Bt.end(), 0.0f);
            transpose(Bf.data(), q, N, Np, Bt.data(), Qp);
            multiply({Cf.data(), Np, 1, Bt.data(), Qp, products.data(), Qp, false}, q, Qp, N);
            std::fill(ut.begin(), ut.end(), 0.0f);
            transpose(u.data(), q, P, Pp, ut.data(), Qp);
            multiply({g.data(), Pp, 1, ut.data(), Qp, dm.data(), Qp, false}, q, Qp, P);  // d(y_i)/d(M_ij): g_i . u_j
            std::fill(dtotal.begin(), dtotal.end(), 0.0);
            // M = products * mask. Its share of the decays, then dm <- gradient of products, products <- M.
            for (int64_t i = 0; i < q; ++i) {
                double sum = 0;
                for (int64_t j = 0; j <= i; ++j) {
                    const int64_t at = i * Qp + j;
                    const float M = products[at] * mask[at], share = dm[at] * M;
                    dm[at] *= mask[at];
                    products[at] = M;
                    sum += share;
                    dtotal[j] -= share;
                }
                dtotal[i] += sum;
                for (int64_t j = i + 1; j < Qp; ++j) dm[i * Qp + j] = products[i * Qp + j] = 0;
            }
            // du_j = sum_{i >= j} M_ij g_i + leave_j B_j . flow
            multiply({products.data(), 1, Qp, g.data(), Pp, du.data(), Pp, false}, q, Pp, q, kUpper);
            multiply({Bf.data(), Np, 1, flow.data(), Pp, v.data(), Pp, false}, q, Pp, N);
            double leaving = 0;
            for (int64_t j = 0; j < q; ++j) {
                vfloat dot{};
                for (int64_t c = 0; c < Pp; c += kLanes) {
                    const vfloat part = load(v.data() + j * Pp + c) * decay.leave[j];
                    store(du.data() + j * Pp + c, load(du.data() + j * Pp + c) + part);
                    dot += part * load(u.data() + j * Pp + c);
                }
                const double share = horizontal_sum(dot);
                dtotal[j] -= share;
                leaving += share;
            }
            // what the state before the chunk gave: y_i += enter_i C_i . state
            multiply({Cf.data(), Np, 1, state, Pp, off.data(), Pp, false}, q, Pp, N);
            for (int64_t i = 0; i < q; ++i) {
                vfloat dot{};
                for (int64_t c = 0; c < Pp; c += kLanes) dot += load(off.data() + i * Pp + c) * load(g.data() + i * Pp + c);
                dtotal[i] += double(horizontal_sum(dot)) * decay.enter[i];
            }
            vfloat kept{};
            for (int64_t i = 0; i < N * Pp; i += kLanes) kept += load(flow.data() + i) * load(state + i);
            dtotal[q - 1] += leaving + double(horizontal_sum(kept)) * decay.whole;
            // dC_i = enter_i state g_i + sum_j dm_ij B_j;  dB_j = leave_j flow u_j + sum_i dm_ij C_i
            add_rows(grad_C, row, group, q, state, g.data(), decay.enter.data(), {dm.data(), Qp, 1, Bf.data(), Np, nullptr, 0, true}, kLower, wide, flipped);
            add_rows(grad_B, row, group, q, flow.data(), u.data(), decay.leave.data(), {dm.data(), 1, Qp, Cf.data(), Np, nullptr, 0, true}, kUpper, wide, flipped);
            // the gradient of the state before the chunk
            for (int64_t i = 0; i < N * Pp; i += kLanes) store(flow.data() + i, load(flow.data() + i) * decay.whole);
            for (int64_t i = 0; i < q; ++i)
                for (int64_t c = 0; c < Pp; c += kLanes) store(v.data() + i * Pp + c, load(g.data() + i * Pp + c) * decay.enter[i]);
            multiply({Cf.data(), 1, Np, v.data(), Pp, flow.data(), Pp, true}, N, Pp, q);
            // log decays to steps, and the inputs
            double suffix = 0;
            for (int64_t j = q - 1; j >= 0; --j) {
                suffix += dtotal[j];
                vfloat dot{};
                for (int64_t c = 0; c < P; c += kLanes) {
                    const int n = int(std::min<int64_t>(kLanes, P - c));
                    const vfloat d = load(du.data() + j * Pp + c), gy = load(g.data() + j * Pp + c), value = load(x_rows.data() + j * Pp + c);
                    dot += d * value;
                    vfloat dx = d * decay.delta[j];
                    if (D) {
                        dx += gy * (s.D_per_channel ? load_some(D + head * P + c, n) : splat(D[head]));
                        float* o = grad_D + head * P + c;
                        store_some(o, load_some(o, n) + gy * value, n);
                    }
                    store_some(grad_x + ((row + j) * s.heads + head) * P + c, dx, n);
                }
                grad_delta[(row + j) * s.heads + head] = float(suffix * A[head] + horizontal_sum(dot));
                dA += suffix * decay.delta[j];
            }
        }
        grad_A[sequence * s.heads + head] = float(dA);
        if (grad_initial) transpose(flow.data(), N, P, Pp, grad_initial + (sequence * s.heads + head) * P * N, N);
    }

    // sums(row + i, group, :) += weight_i matrix rows_i + (left right)_i, for a matrix (N, Pp) and rows (q, Pp).
    void add_rows(float* sums, int64_t row, int64_t group, int64_t q, const float* matrix, const float* rows,
                  const float* weight, Product inner, Shape shape, std::vector<float>& wide, std::vector<float>& flipped) const {
        const int64_t P = s.head_dim, N = s.state_dim, Pp = round_up(P), Np = round_up(N);
        transpose(matrix, N, P, Pp, flipped.data(), Np);
        multiply({rows, Pp, 1, flipped.data(), Np, wide.data(), Np, false}, q, Np, P);
        for (int64_t i = 0; i < q; ++i)
            for (int64_t n = 0; n < Np; n += kLanes) store(wide.data() + i * Np + n, load(wide.data() + i * Np + n) * weight[i]);
        inner.out = wide.data();
        inner.out_row = Np;
        multiply(inner, q, Np, q, shape);
        for (int64_t i = 0; i < q; ++i) {
            float* o = sums + ((row + i) * s.groups + group) * N;
            for (int64_t n = 0; n < N; n += kLanes) {
                const int count = int(std::min<int64_t>(kLanes, N - n));
                store_some(o + n, load_some(o + n, count) + load(wide.data() + i * Np + n), count);
            }
        }
    }
};

template <typename T>
int backward(const Sizes& s, const void* grad_y, const float* grad_last, const void* x, const float* delta, const float* A,
             const void* B, const void* C, const float* D, const float* initial, void* grad_x, float* grad_delta,
             float* grad_A, float* grad_B, float* grad_C, float* grad_D, float* grad_initial, int threads) {
    const int64_t plane = s.rows * s.groups * s.state_dim;
    for (int64_t sequence = 0; sequence < s.sequences; ++sequence) {
        // grad_D of a head sums over sequences, so sequences go one after the other; heads are independent
#pragma omp parallel for schedule(dynamic) num_threads(threads) if (threads > 1)
        for (int64_t head = 0; head < s.heads; ++head) {
#ifdef _OPENMP
            const int64_t mine = omp_get_thread_num();
#else
            const int64_t mine = 0;
#endif
            const Backward<T> body{s, static_cast<const T*>(grad_y), static_cast<const T*>(x), static_cast<const T*>(B), static_cast<const T*>(C),
                                   grad_last, delta, A, D, initial, static_cast<T*>(grad_x), grad_delta, grad_A, grad_D, grad_initial};
            body.run(sequence, head, grad_B + mine * plane, grad_C + mine * plane);
        }
    }
    return 0;
}

}  // namespace

#define STATESCAN_SIZES \
    const Sizes s { rows, heads, head_dim, groups, state_dim, sequences, chunk, x_row, delta_row, b_row, c_row, offsets, resets, dtype, 0, bool(D_per_channel) }

STATESCAN_EXPORT(int, ssd_forward)
(const void* x, const float* delta, const float* A, const void* B, const void* C, const float* D, const float* initial,
 const int64_t* offsets, const uint8_t* resets, void* y, float* last, int64_t rows, int64_t heads, int64_t head_dim,
 int64_t groups, int64_t state_dim, int64_t sequences, int64_t chunk, int64_t x_row, int64_t delta_row, int64_t b_row,
 int64_t c_row, int D_per_channel, int dtype, int threads) {
    STATESCAN_SIZES;
    switch (dtype) {
        case kFloat32: return forward<float>(s, x, delta, A, B, C, D, initial, y, last, threads);
        case kBFloat16: return forward<bfloat16>(s, x, delta, A, B, C, D, initial, y, last, threads);
        case kFloat16: return forward<float16>(s, x, delta, A, B, C, D, initial, y, last, threads);
    }
    return 1;
}

// grad_B and grad_C: (threads, rows, groups, N) zeros, to be summed by the caller; grad_D: (heads, head_dim) zeros.
STATESCAN_EXPORT(int, ssd_backward)
(const void* grad_y, const float* grad_last, const void* x, const float* delta, const float* A, const void* B, const void* C,
 const float* D, const float* initial, const int64_t* offsets, const uint8_t* resets, void* grad_x, float* grad_delta,
 float* grad_A, float* grad_B, float* grad_C, float* grad_D, float* grad_initial, int64_t rows, int64_t heads,
 int64_t head_dim, int64_t groups, int64_t state_dim, int64_t sequences, int64_t chunk, int64_t x_row, int64_t delta_row,
 int64_t b_row, int64_t c_row, int D_per_channel, int dtype, int threads) {
    STATESCAN_SIZES;
#define STATESCAN_RUN(T)                                                                                              \
    return backward<T>(s, grad_y, grad_last, x, delta, A, B, C, D, initial, grad_x, grad_delta, grad_A, grad_B, grad_C, \
                       grad_D, grad_initial, threads)
    switch (dtype) {
        case kFloat32: STATESCAN_RUN(float);
        case kBFloat16: STATESCAN_RUN(bfloat16);
        case kFloat16: STATESCAN_RUN(float16);
    }
#undef STATESCAN_RUN
    return 1;
}

}  // namespace STATESCAN_LEVEL

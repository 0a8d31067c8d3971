// Small matrix products on scratch memory, for kernels whose work is many of them.
#pragma once

#include <cstdlib>

#include "common.h"

#if defined(__clang__) || __GNUC__ >= 12
#define STATESCAN_SHUFFLE(a, b, i, j, k, l) __builtin_shufflevector(a, b, i, j, k, l)
#else
#define STATESCAN_SHUFFLE(a, b, i, j, k, l) __builtin_shuffle(a, b, quarter_index{i, j, k, l})
typedef int32_t quarter_index __attribute__((vector_size(16)));
#endif

namespace STATESCAN_LEVEL {

// As many sums as the register file holds.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kTileRows = 6, kTileVectors = 4;
#elif defined(__AVX2__)
constexpr int kTileRows = 6, kTileVectors = 2;
#else
constexpr int kTileRows = 3, kTileVectors = 4;
#endif

enum Shape { kFull, kLower, kUpper };  // which k of the left factor count: all, k <= row, k >= row

// out(row, column) (+)= sum_k left(row, k) right(k, column)
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
inline void tile(const Product& p, int64_t row, int64_t column, int64_t k_begin, int64_t k_end, bool accumulate) {
    vfloat sum[kRows][kVectors];
    for (int r = 0; r < kRows; ++r)
        for (int v = 0; v < kVectors; ++v)
            sum[r][v] = accumulate ? load(p.out + (row + r) * p.out_row + column + v * kLanes) : vfloat{};
    const float *left = p.left + row * p.left_row, *right = p.right + column;
    for (int64_t k = k_begin; k < k_end; ++k) {
        vfloat r_k[kVectors];
        for (int v = 0; v < kVectors; ++v) r_k[v] = load(right + k * p.right_k + v * kLanes);
        for (int r = 0; r < kRows; ++r) {
            const float value = left[r * p.left_row + k * p.left_k];
            for (int v = 0; v < kVectors; ++v) sum[r][v] += value * r_k[v];
        }
    }
    for (int r = 0; r < kRows; ++r)
        for (int v = 0; v < kVectors; ++v) store(p.out + (row + r) * p.out_row + column + v * kLanes, sum[r][v]);
}

// Rows [row, row + kRows): the k that count for all of them together, the few others row by row. Elements of the left
// factor outside its triangle are not read: they may hold anything.
template <int kRows, int kVectors>
inline void tile_rows(const Product& p, int64_t row, int64_t column, int64_t inner, Shape shape) {
    if (shape == kFull) return tile<kRows, kVectors>(p, row, column, 0, inner, p.accumulate);
    const int64_t last = row + kRows - 1;
    const bool lower = shape == kLower;
    tile<kRows, kVectors>(p, row, column, lower ? 0 : last, lower ? row + 1 : inner, p.accumulate);
    for (int64_t r = row; r <= last; ++r) {
        const int64_t begin = lower ? row + 1 : r, end = lower ? r + 1 : last;
        if (begin < end) tile<1, kVectors>(p, r, column, begin, end, true);
    }
}

template <int kVectors>
inline void tile_columns(const Product& p, int64_t rows, int64_t column, int64_t inner, Shape shape) {
    int64_t row = 0;
    for (; row + kTileRows <= rows; row += kTileRows) tile_rows<kTileRows, kVectors>(p, row, column, inner, shape);
    if (kTileRows > 4 && row + 4 <= rows) tile_rows<4, kVectors>(p, row, column, inner, shape), row += 4;
    if (row + 2 <= rows) tile_rows<2, kVectors>(p, row, column, inner, shape), row += 2;
    if (row < rows) tile_rows<1, kVectors>(p, row, column, inner, shape);
}

// `width` is a multiple of kLanes. A triangular left factor has as many rows as k.
inline void multiply(const Product& p, int64_t rows, int64_t width, int64_t inner, Shape shape = kFull) {
    constexpr int64_t kStep = kTileVectors * kLanes;
    int64_t column = 0;
    for (; column + kStep <= width; column += kStep) tile_columns<kTileVectors>(p, rows, column, inner, shape);
    if (kTileVectors > 2 && column + 2 * kLanes <= width) tile_columns<2>(p, rows, column, inner, shape), column += 2 * kLanes;
    if (column < width) tile_columns<1>(p, rows, column, inner, shape);
}

inline void transpose(const float* in, int64_t rows, int64_t width, int64_t in_row, float* out, int64_t out_row) {
    typedef float four __attribute__((vector_size(16), aligned(4)));
    typedef float quarter __attribute__((vector_size(16)));
    int64_t r = 0;
    for (; r + 4 <= rows; r += 4) {
        int64_t c = 0;
        for (; c + 4 <= width; c += 4) {
            quarter q[4];
            for (int i = 0; i < 4; ++i) q[i] = *reinterpret_cast<const four*>(in + (r + i) * in_row + c);
            const quarter low01 = STATESCAN_SHUFFLE(q[0], q[1], 0, 4, 1, 5), high01 = STATESCAN_SHUFFLE(q[0], q[1], 2, 6, 3, 7);
            const quarter low23 = STATESCAN_SHUFFLE(q[2], q[3], 0, 4, 1, 5), high23 = STATESCAN_SHUFFLE(q[2], q[3], 2, 6, 3, 7);
            float* o = out + c * out_row + r;
            *reinterpret_cast<four*>(o) = STATESCAN_SHUFFLE(low01, low23, 0, 1, 4, 5);
            *reinterpret_cast<four*>(o + out_row) = STATESCAN_SHUFFLE(low01, low23, 2, 3, 6, 7);
            *reinterpret_cast<four*>(o + 2 * out_row) = STATESCAN_SHUFFLE(high01, high23, 0, 1, 4, 5);
            *reinterpret_cast<four*>(o + 3 * out_row) = STATESCAN_SHUFFLE(high01, high23, 2, 3, 6, 7);
        }
        for (; c < width; ++c)
            for (int i = 0; i < 4; ++i) out[c * out_row + r + i] = in[(r + i) * in_row + c];
    }
    for (; r < rows; ++r)
        for (int64_t c = 0; c < width; ++c) out[c * out_row + r] = in[r * in_row + c];
}

inline int64_t round_up(int64_t value) { return (value + kLanes - 1) / kLanes * kLanes; }

// Scratch of one task: pieces of one aligned allocation. The first pass only counts.
class Scratch {
  public:
    float* take(int64_t floats) {
        float* piece = memory_ ? memory_ + used_ : nullptr;
        used_ += round_up(floats);
        return piece;
    }
    bool allocate() {
        const size_t bytes = size_t(std::max<int64_t>(used_, 1)) * sizeof(float);
        memory_ = static_cast<float*>(std::aligned_alloc(64, (bytes + 63) / 64 * 64));
        used_ = 0;
        return memory_ != nullptr;
    }
    ~Scratch() { std::free(memory_); }

  private:
    float* memory_ = nullptr;
    int64_t used_ = 0;
};

}  // namespace STATESCAN_LEVEL

// Small matrix products on scratch memory, for kernels whose work is many of them.
#pragma once

#include <cstdlib>

#include "common.h"
#include "math.h"
#include "transpose.h"

namespace STATESCAN_LEVEL {

// As many sums as the register file holds.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kTileRows = 6, kTileVectors = 4;
#elif defined(__AVX2__)
constexpr int kTileRows = 6, kTileVectors = 2;
#else
constexpr int kTileRows = 3, kTileVectors = 4;
#endif

// Memory that is needed soon, fetched a few rows at a time while products run: rows of one head lie far apart, which no
// prefetcher of a processor foresees, and fetched all at once they would wait for each other.
class Ahead {
  public:
    template <typename T>
    void add(const T* first, int64_t rows, int64_t width, int64_t row) {
        if (count_ < kMost) block_[count_++] = {reinterpret_cast<const char*>(first), rows, width * int64_t(sizeof(T)), row * int64_t(sizeof(T))};
    }
    void fetch() {
        for (int left = kRowsATile; left && count_; --left) {
            Block& block = block_[count_ - 1];
            for (int64_t at = 0; at < block.bytes; at += 64) __builtin_prefetch(block.next + at, 0, 3);
            block.next += block.stride;
            if (!--block.rows) --count_;
        }
    }

  private:
    static constexpr int kMost = 4, kRowsATile = 6;
    struct Block {
        const char* next;
        int64_t rows, bytes, stride;
    } block_[kMost];
    int count_ = 0;
};

// Of a lambda that takes sums: they stay in registers only where it is inlined.
#define STATESCAN_INLINE __attribute__((always_inline))

enum Shape { kFull, kLower, kUpper };  // which k of the left factor count: all, k <= row, k >= row

// sum_k left(row, k) right(k, column)
struct Factors {
    const float* left;
    int64_t left_row, left_k;
    const float* right;
    int64_t right_k;
};

// out(row, column) = kept(row) out(row, column) + sum_k left(row, k) right(k, column)
struct Product {
    Factors factors;
    float* out;
    int64_t out_row;
    const float* kept = nullptr;  // null: nothing of what `out` held is read
    int64_t kept_row = 0;
    Ahead* ahead = nullptr;
};
constexpr float kAll = 1;  // to keep: a plain sum

// Of neighbouring rows and columns: what a tile holds in registers.
template <int kRows, int kVectors>
using Sums = vfloat[kRows][kVectors];

// One k for the rows [first, past): constants once inlined, so that the sums stay in registers.
template <int kRows, int kVectors>
inline __attribute__((always_inline)) void add_k(Sums<kRows, kVectors>& sum, const float* left, int64_t left_row, const float* right,
                                                 int first, int past) {
    vfloat right_k[kVectors];
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) right_k[v] = load(right + v * kLanes);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
        if (r < first || r >= past) continue;
        const float value = left[r * left_row];
#pragma GCC unroll 8
        for (int v = 0; v < kVectors; ++v) sum[r][v] += value * right_k[v];
    }
}

// Visits sums with their row and the first of their columns: visit(sum, row, column).
template <int kRows, int kVectors, typename Visit>
inline __attribute__((always_inline)) void for_each_sum(Sums<kRows, kVectors>& sum, int64_t row, int64_t column, Visit visit) {
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 8
        for (int v = 0; v < kVectors; ++v) visit(sum[r][v], row + r, column + v * kLanes);
}

// Visits the sums of a row: visit(sums of one row, row).
template <int kRows, int kVectors, typename Visit>
inline __attribute__((always_inline)) void for_each_row(Sums<kRows, kVectors>& sum, int64_t row, Visit visit) {
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) visit(reinterpret_cast<Sums<1, kVectors>&>(sum[r]), row + r);
}

// Sums over the rows of a tile, of whatever is added for its columns.
template <int kVectors>
class ColumnSums {
  public:
    template <int kRows>
    ColumnSums(const Sums<kRows, kVectors>&, int64_t column) : column_(column), sum_{} {}
    vfloat& at(int64_t column) { return sum_[(column - column_) / kLanes]; }
    template <typename Visit>
    inline __attribute__((always_inline)) void for_each(Visit visit) {
#pragma GCC unroll 8
        for (int v = 0; v < kVectors; ++v) visit(sum_[v], column_ + v * kLanes);
    }

  private:
    int64_t column_;
    vfloat sum_[kVectors];
};

// Adds the product to the sums. Elements of the left factor outside its triangle are not read: they may hold anything.
template <Shape kShape, int kRows, int kVectors>
inline __attribute__((always_inline)) void accumulate(Sums<kRows, kVectors>& sum, const Factors& p, int64_t row, int64_t column,
                                                      int64_t inner) {
    const float *left = p.left + row * p.left_row, *right = p.right + column;
    const int64_t left_row = p.left_row, left_k = p.left_k, right_k = p.right_k;
    int64_t k = 0, end = inner;
    if (kShape == kLower) end = row + 1;
    if (kShape == kUpper) {
        k = row;
#pragma GCC unroll 8
        for (int t = 0; t < kRows - 1; ++t, ++k)
            add_k<kRows, kVectors>(sum, left + k * left_k, left_row, right + k * right_k, 0, t + 1);
    }
    for (; k < end; ++k) add_k<kRows, kVectors>(sum, left + k * left_k, left_row, right + k * right_k, 0, kRows);
    if (kShape == kLower) {
#pragma GCC unroll 8
        for (int t = 1; t < kRows; ++t, ++k)
            add_k<kRows, kVectors>(sum, left + k * left_k, left_row, right + k * right_k, t, kRows);
    }
}

template <int kRows, int kVectors, Shape kShape, typename Start, typename Finish>
inline void tile(const Factors& factors, Ahead* ahead, int64_t row, int64_t column, int64_t inner, const Start& start,
                 const Finish& finish) {
    if (ahead) ahead->fetch();
    Sums<kRows, kVectors> sum;
    for_each_sum<kRows, kVectors>(sum, row, column, [](vfloat& value, int64_t, int64_t) { value = vfloat{}; });
    start(sum, row, column);
    accumulate<kShape, kRows, kVectors>(sum, factors, row, column, inner);
    finish(sum, row, column);
}

template <int kVectors, Shape kShape, typename Start, typename Finish>
inline void tile_columns(const Factors& factors, Ahead* ahead, int64_t rows, int64_t column, int64_t inner, const Start& start,
                         const Finish& finish) {
    int64_t row = 0;
    for (; row + kTileRows <= rows; row += kTileRows)
        tile<kTileRows, kVectors, kShape>(factors, ahead, row, column, inner, start, finish);
    if (kTileRows > 4 && row + 4 <= rows) tile<4, kVectors, kShape>(factors, ahead, row, column, inner, start, finish), row += 4;
    if (row + 2 <= rows) tile<2, kVectors, kShape>(factors, ahead, row, column, inner, start, finish), row += 2;
    if (row < rows) tile<1, kVectors, kShape>(factors, ahead, row, column, inner, start, finish);
}

// A product by tiles whose sums are in registers: `start(sum, row, column)` may add to them what comes before the product,
// `finish(sum, row, column)` takes them. `width` is a multiple of kLanes. A triangular left factor has as many rows as k.
template <Shape kShape = kFull, typename Start, typename Finish>
inline void multiply(const Factors& factors, Ahead* ahead, int64_t rows, int64_t width, int64_t inner, const Start& start,
                     const Finish& finish) {
    constexpr int64_t kStep = kTileVectors * kLanes;
    int64_t column = 0;
    for (; column + kStep <= width; column += kStep)
        tile_columns<kTileVectors, kShape>(factors, ahead, rows, column, inner, start, finish);
    if (kTileVectors > 2 && column + 2 * kLanes <= width)
        tile_columns<2, kShape>(factors, ahead, rows, column, inner, start, finish), column += 2 * kLanes;
    if (column < width) tile_columns<1, kShape>(factors, ahead, rows, column, inner, start, finish);
}

// The same from zero, without anything before.
template <Shape kShape = kFull, typename Finish>
inline void multiply(const Factors& factors, Ahead* ahead, int64_t rows, int64_t width, int64_t inner, const Finish& finish) {
    multiply<kShape>(factors, ahead, rows, width, inner, [](auto&, int64_t, int64_t) {}, finish);
}

template <Shape kShape = kFull>
inline void multiply(const Product& p, int64_t rows, int64_t width, int64_t inner) {
    multiply<kShape>(p.factors, p.ahead, rows, width, inner, [&](auto& sum, int64_t row, int64_t column) STATESCAN_INLINE {
        if (p.kept) {
            for_each_sum(sum, row, column, [&](vfloat value, int64_t r, int64_t c) STATESCAN_INLINE {
                float* out = p.out + r * p.out_row + c;
                store(out, load(out) * p.kept[r * p.kept_row] + value);
            });
        } else {
            for_each_sum(sum, row, column,
                         [&](vfloat value, int64_t r, int64_t c) STATESCAN_INLINE { store(p.out + r * p.out_row + c, value); });
        }
    });
}

// Only the columns up to the row, in whole vectors, of a product as wide as it is high.
inline void multiply_lower_part(Product p, int64_t rows, int64_t inner) {
    for (int64_t row = 0; row < rows; row += kLanes) {
        multiply(p, std::min<int64_t>(kLanes, rows - row), row + kLanes, inner);
        p.factors.left += kLanes * p.factors.left_row;
        p.out += kLanes * p.out_row;
    }
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

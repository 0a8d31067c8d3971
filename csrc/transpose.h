// Transposes of matrices, a square of as many rows and columns as a register has lanes at a time.
#pragma once

#include "common.h"
#include "math.h"

#if defined(__clang__) || __GNUC__ >= 12
#define STATESCAN_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define STATESCAN_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, vint{__VA_ARGS__})
#endif

namespace STATESCAN_LEVEL {

// The elements of two registers in turns: of their first halves, of their second halves.
#if defined(__AVX512F__)
inline vfloat interleave_low(vfloat a, vfloat b) {
    return STATESCAN_SHUFFLE(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
}
inline vfloat interleave_high(vfloat a, vfloat b) {
    return STATESCAN_SHUFFLE(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
}
#elif defined(__AVX2__)
inline vfloat interleave_low(vfloat a, vfloat b) { return STATESCAN_SHUFFLE(a, b, 0, 8, 1, 9, 2, 10, 3, 11); }
inline vfloat interleave_high(vfloat a, vfloat b) { return STATESCAN_SHUFFLE(a, b, 4, 12, 5, 13, 6, 14, 7, 15); }
#else
inline vfloat interleave_low(vfloat a, vfloat b) { return STATESCAN_SHUFFLE(a, b, 0, 4, 1, 5); }
inline vfloat interleave_high(vfloat a, vfloat b) { return STATESCAN_SHUFFLE(a, b, 2, 6, 3, 7); }
#endif

// Element j of line i becomes element i of line j. Each pass interleaves the lines of the first half with those of the
// second: after all bits of a line's number have gone round, they are those of its column.
inline __attribute__((always_inline)) void transpose_square(vfloat (&lines)[kLanes]) {
#pragma GCC unroll 4
    for (int pass = 1; pass < kLanes; pass *= 2) {
        vfloat mixed[kLanes];
#pragma GCC unroll 8
        for (int i = 0; i < kLanes / 2; ++i) {
            mixed[2 * i] = interleave_low(lines[i], lines[i + kLanes / 2]);
            mixed[2 * i + 1] = interleave_high(lines[i], lines[i + kLanes / 2]);
        }
#pragma GCC unroll 16
        for (int i = 0; i < kLanes; ++i) lines[i] = mixed[i];
    }
}

// out(column, row) = in(row, column); with `fill`, columns of `out` beyond `rows` become zero, up to a whole register.
inline void transpose(const float* in, int64_t rows, int64_t width, int64_t in_row, float* out, int64_t out_row, bool fill = true) {
    for (int64_t r = 0; r < rows; r += kLanes) {
        const int some_rows = int(std::min<int64_t>(kLanes, rows - r));
        for (int64_t c = 0; c < width; c += kLanes) {
            const int some = int(std::min<int64_t>(kLanes, width - c));
            vfloat lines[kLanes];
#pragma GCC unroll 16
            for (int i = 0; i < kLanes; ++i) lines[i] = i < some_rows ? load_some(in + (r + i) * in_row + c, some) : vfloat{};
            transpose_square(lines);
#pragma GCC unroll 16
            for (int i = 0; i < kLanes; ++i)
                if (i < some) store_some(out + (c + i) * out_row + r, lines[i], fill ? kLanes : some_rows);
        }
    }
}

}  // namespace STATESCAN_LEVEL

// One row of activations against packed blocks of weights: bound by memory.
#pragma once

#include "decode_plan.h"

#if defined(__AVX512F__)
#include <immintrin.h>
#define STATESCAN_VNNI __attribute__((target("avx512vnni")))
#define STATESCAN_BF16 __attribute__((target("avx512bf16,avx512vl")))
#endif

namespace STATESCAN_LEVEL {

typedef int32_t vint_unaligned __attribute__((vector_size(4 * kLanes), aligned(4)));
inline vint load_int(const void* p) { return *reinterpret_cast<const vint_unaligned*>(p); }
inline vfloat to_vfloat(vint v) { return __builtin_convertvector(v, vfloat); }

struct Block {  // a float for each of sixteen rows
    vfloat part[kPartsOfBlock];
};

inline int64_t depth_step(const Matrix& w) {
    return w.format == kWeightsInt4 ? w.group : w.format == kWeightsInt8 ? 4 : w.format == kWeightsBFloat16 ? 2 : 1;
}
inline int64_t block_bytes(const Matrix& w) {
    const int64_t columns = round_up(w.columns, depth_step(w));
    if (w.format == kWeightsInt4) return columns / w.group * (2 * kBlock + w.group * kBlock / 2);
    return columns * kBlock * (w.format == kWeightsFloat32 ? 4 : w.format == kWeightsBFloat16 ? 2 : 1);
}

// A thread's own memory for what it makes of activations and weights before it multiplies.
struct Scratch {
    float* row;                 // (widest): a normalised row
    int8_t *high, *low;         // (rows, widest): activations as 256 high + low, both signed bytes
    int32_t *high_sums, *low_sums;  // (rows, widest / 32): of each group of columns
    float* scales;              // (rows): of activations
    int64_t widest;

    Scratch of_row(int64_t m) const {  // for the split activations alone
        Scratch row = *this;
        row.high += m * widest;
        row.low += m * widest;
        row.high_sums += m * (widest / 32);
        row.low_sums += m * (widest / 32);
        return row;
    }
    uint16_t* half;             // (rows, ld_half): activations in bfloat16
    int64_t ld_half;
    float* panel;               // (kTileBlocks * 16, widest): weights in float32
    float* scores;              // attention
};

// Weights come from memory once, in one stream a thread (where they lie in large pages, nothing is faster), and are not
// asked for ahead of time: the processor's own prefetching into the second cache has more requests under way than a
// core's instructions can.

// ---- one row -------------------------------------------------------------------------------------------------

inline Block dot_float32(const uint8_t* block, const float* x, int64_t begin, int64_t end) {
    const float* w = reinterpret_cast<const float*>(block) + begin * kBlock;
    vfloat sums[4][kPartsOfBlock] = {};
    int64_t k = begin;
    for (; k + 4 <= end; k += 4, w += 4 * kBlock)
        for (int i = 0; i < 4; ++i)
            for (int p = 0; p < kPartsOfBlock; ++p) sums[i][p] += load(w + i * kBlock + p * kLanes) * x[k + i];
    for (; k < end; ++k, w += kBlock)
        for (int p = 0; p < kPartsOfBlock; ++p) sums[0][p] += load(w + p * kLanes) * x[k];
    Block out;
    for (int p = 0; p < kPartsOfBlock; ++p) out.part[p] = (sums[0][p] + sums[1][p]) + (sums[2][p] + sums[3][p]);
    return out;
}

// Two bfloat16 a lane: the first column in the low half.
inline vfloat low_half(vint pair) { return (vfloat)(pair << 16); }
inline vfloat high_half(vint pair) { return (vfloat)(pair & int32_t(0xffff0000u)); }

inline Block dot_bfloat16(const uint8_t* block, const float* x, int64_t begin, int64_t end) {
    const uint8_t* w = block + begin * kBlock * 2;
    vfloat sums[4][kPartsOfBlock] = {};
    int64_t k = begin;
    for (; k + 4 <= end; k += 4, w += 8 * kBlock)
        for (int i = 0; i < 2; ++i) {
            for (int p = 0; p < kPartsOfBlock; ++p) {
                const vint pair = load_int(w + i * 4 * kBlock + p * 4 * kLanes);
                sums[2 * i][p] += low_half(pair) * x[k + 2 * i];
                sums[2 * i + 1][p] += high_half(pair) * x[k + 2 * i + 1];
            }
        }
    for (; k < end; k += 2, w += 4 * kBlock)
        for (int p = 0; p < kPartsOfBlock; ++p) {
            const vint pair = load_int(w + p * 4 * kLanes);
            sums[0][p] += low_half(pair) * x[k];
            if (k + 1 < end) sums[1][p] += high_half(pair) * x[k + 1];
        }
    Block out;
    for (int p = 0; p < kPartsOfBlock; ++p) out.part[p] = (sums[0][p] + sums[1][p]) + (sums[2][p] + sums[3][p]);
    return out;
}

inline Block dot_int8(const uint8_t* block, const float* x, int64_t begin, int64_t end) {
    const uint8_t* w = block + begin * kBlock;
    vfloat sums[4][kPartsOfBlock] = {};
    for (int64_t k = begin; k < end; k += 4, w += 4 * kBlock)
        for (int p = 0; p < kPartsOfBlock; ++p) {
            const vint four = load_int(w + p * 4 * kLanes);
            for (int i = 0; i < 4; ++i)
                if (k + i < end) sums[i][p] += to_vfloat(((four >> (8 * i)) & 255) - 128) * x[k + i];
        }
    Block out;
    for (int p = 0; p < kPartsOfBlock; ++p) out.part[p] = (sums[0][p] + sums[1][p]) + (sums[2][p] + sums[3][p]);
    return out;
}

inline int nibble_shift(int column) { return 8 * (column & 3) + (column & 4); }

inline Block dot_int4(const uint8_t* block, const float* x, int64_t begin, int64_t end, int64_t group) {
    const int64_t bytes = 2 * kBlock + group * kBlock / 2;
    const uint8_t* w = block + begin / group * bytes;
    Block out = {};
    for (int64_t k = begin; k < end; k += group, w += bytes)
        for (int p = 0; p < kPartsOfBlock; ++p) {
            vfloat sums[2] = {};
            for (int64_t j = 0; j < group; j += 8) {
                const vint eight = load_int(w + 2 * kBlock + j * kBlock / 2 + p * 4 * kLanes);
                for (int i = 0; i < 8; ++i)
                    if (k + j + i < end) sums[i & 1] += to_vfloat(((eight >> nibble_shift(i)) & 15) - 8) * x[k + j + i];
            }
            const vfloat scale = load_as_float(reinterpret_cast<const bfloat16*>(w) + p * kLanes);
            out.part[p] += (sums[0] + sums[1]) * scale;
        }
    return out;
}

// x[begin, end) as scale * (256 high + low), with the sums of the bytes over each group of columns.
inline float split_activations(const float* x, int64_t begin, int64_t end, int64_t group, const Scratch& s) {
    vfloat largest{};
    int64_t k = begin;
    for (; k + kLanes <= end; k += kLanes) largest = maximum(largest, absolute(load(x + k)));
    float most = 0;
    for (int i = 0; i < kLanes; ++i) most = std::max(most, largest[i]);
    for (; k < end; ++k) most = std::max(most, std::fabs(x[k]));
    const float scale = most > 0 ? most / 32512.0f : 1.0f, inverse = 1.0f / scale;
    const int64_t stop = begin + round_up(end - begin, group);
    k = begin;
#if defined(__AVX512F__)
    for (; k + kLanes <= end; k += kLanes) {
        const vint whole = (vint)_mm512_maskz_cvtps_epi32(kAllLanes, (__m512)(load(x + k) * inverse));
        const vint high = (whole + 128) >> 8, low = whole - (high << 8);
        _mm_storeu_si128(reinterpret_cast<__m128i*>(s.high + k), _mm512_maskz_cvtepi32_epi8(kAllLanes, (__m512i)high));
        _mm_storeu_si128(reinterpret_cast<__m128i*>(s.low + k), _mm512_maskz_cvtepi32_epi8(kAllLanes, (__m512i)low));
    }
#endif
    for (; k < stop; ++k) {
        const int32_t whole = k < end ? int32_t(std::nearbyint(x[k] * inverse)) : 0;
        const int32_t high = (whole + 128) >> 8;
        s.high[k] = int8_t(high);
        s.low[k] = int8_t(whole - 256 * high);
    }
    for (int64_t g = begin; g < stop; g += group) {
        int32_t high_sum = 0, low_sum = 0;
        for (int64_t i = g; i < g + group; ++i) {
            high_sum += s.high[i];
            low_sum += s.low[i];
        }
        s.high_sums[g / group] = high_sum;
        s.low_sums[g / group] = low_sum;
    }
    return scale;
}

#if defined(STATESCAN_VNNI)
inline bool has_vnni() {
    static const bool has = __builtin_cpu_supports("avx512vnni");
    return has;
}
inline bool has_bf16() {
    static const bool has = __builtin_cpu_supports("avx512bf16");
    return has;
}

// In place: GCC 12 moves the sums of an intrinsic in and out of a register at each of these.
STATESCAN_VNNI inline void add_bytes(__m512i& sum, __m512i unsigned_bytes, __m512i signed_bytes) {
    asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(unsigned_bytes), "v"(signed_bytes));
}
STATESCAN_BF16 inline void add_pairs(__m512& sum, __m512i one, __m512i other) {
    asm("vdpbf16ps %2, %1, %0" : "+v"(sum) : "v"(one), "v"(other));
}

// Rounded to bfloat16, and zeros up to a whole register.
STATESCAN_BF16 inline void to_halves(const float* x, int64_t count, uint16_t* to) {
    for (int64_t k = 0; k < count; k += kLanes) {
        const vfloat some = load_some(x + k, int(std::min<int64_t>(kLanes, count - k)));
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + k), (__m256i)_mm512_cvtneps_pbh((__m512)some));
    }
}

STATESCAN_VNNI inline __m512i four_bytes(const int8_t* p) {
    int32_t bits;
    std::memcpy(&bits, p, 4);
    return _mm512_set1_epi32(bits);
}

STATESCAN_VNNI inline Block dot_int8_vnni(const uint8_t* block, const Scratch& s, int64_t begin, int64_t end,
                                          int32_t high_sum, int32_t low_sum, float scale) {
    __m512i high = _mm512_setzero_si512(), low = high, high2 = high, low2 = high;
    const uint8_t* w = block + begin * kBlock;
    int64_t k = begin;
    for (; k + 8 <= end; k += 8, w += 8 * kBlock) {
        const __m512i first = _mm512_loadu_si512(w), second = _mm512_loadu_si512(w + 64);
        add_bytes(high, first, four_bytes(s.high + k));
        add_bytes(low, first, four_bytes(s.low + k));
        add_bytes(high2, second, four_bytes(s.high + k + 4));
        add_bytes(low2, second, four_bytes(s.low + k + 4));
    }
    for (; k < end; k += 4, w += 4 * kBlock) {
        const __m512i weights = _mm512_loadu_si512(w);
        add_bytes(high, weights, four_bytes(s.high + k));
        add_bytes(low, weights, four_bytes(s.low + k));
    }
    const vfloat first = to_vfloat((vint)high + (vint)high2 - 128 * high_sum);
    const vfloat second = to_vfloat((vint)low + (vint)low2 - 128 * low_sum);
    return Block{{(first * 256.0f + second) * scale}};
}

STATESCAN_VNNI inline Block dot_int4_vnni(const uint8_t* block, const Scratch& s, int64_t begin, int64_t end,
                                          int64_t group, float scale) {
    const int64_t bytes = 2 * kBlock + group * kBlock / 2;
    const uint8_t* w = block + begin / group * bytes;
    const __m512i nibble = _mm512_set1_epi8(15);
    vfloat sum{};
    for (int64_t k = begin; k < end; k += group, w += bytes) {
        __m512i high = _mm512_setzero_si512(), low = high, high2 = high, low2 = high;
        for (int64_t j = 0; j < group; j += 8) {
            const __m512i eight = _mm512_loadu_si512(w + 2 * kBlock + j * kBlock / 2);
            const __m512i first = _mm512_and_si512(eight, nibble);
            const __m512i second = _mm512_and_si512(_mm512_maskz_srli_epi32(kAllLanes, eight, 4), nibble);
            add_bytes(high, first, four_bytes(s.high + k + j));
            add_bytes(low, first, four_bytes(s.low + k + j));
            add_bytes(high2, second, four_bytes(s.high + k + j + 4));
            add_bytes(low2, second, four_bytes(s.low + k + j + 4));
        }
        // At most 15 * 32640 * 64, so that everything stays whole until here.
        const int32_t offset = 8 * (256 * s.high_sums[k / group] + s.low_sums[k / group]);
        const vint whole = (((vint)high + (vint)high2) << 8) + (vint)low + (vint)low2 - offset;
        sum += to_vfloat(whole) * load_as_float(reinterpret_cast<const bfloat16*>(w));
    }
    return Block{{sum * scale}};
}
#else
inline void to_halves(const float*, int64_t, uint16_t*) {}
inline bool has_vnni() { return false; }
inline bool has_bf16() { return false; }
#endif

}  // namespace STATESCAN_LEVEL

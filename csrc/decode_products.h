// Products of packed matrices with one row of activations (bound by memory) or many (bound by arithmetic).
#pragma once

#include "decode_rows.h"

namespace STATESCAN_LEVEL {

// ---- many rows -----------------------------------------------------------------------------------------------

// Registers of a tile: blocks of sixteen outputs by rows of activations.
constexpr int kTileBlocks = kLanes == 16 ? 3 : 1;
constexpr int kTileRows = kLanes == 16 ? 8 : kLanes == 8 ? 6 : 2;

// The panel of weights that comes next. Arithmetic on this one leaves the memory idle: every tile asks for its part, at
// each step for as many lines as it reads itself.
struct Ahead {
    const uint8_t* due;
    int64_t advance;
    template <int lines>
    void fetch() {
        for (int i = 0; i < lines; ++i) __builtin_prefetch(due + i * kLine, 0, 2);
        due += advance;
    }
};

// A tile gives each of its sums, of row m of activations and block b, to `put`.
template <int NB, int MR, typename Put>
inline void tile_float32(const float* w, int64_t stride, const float* x, int64_t ldx, int64_t depth, Ahead ahead,
                         const Put& put) {
    vfloat sums[MR][NB][kPartsOfBlock] = {};
    // Few addresses, which the processor's own arithmetic takes from row to row.
    const float* upper = x + MR / 2 * ldx;
    for (int64_t k = 0; k < depth; ++k, w += kBlock, ++x, ++upper) {
        ahead.fetch<NB>();
        vfloat weights[NB][kPartsOfBlock];
        for (int b = 0; b < NB; ++b)
            for (int p = 0; p < kPartsOfBlock; ++p) weights[b][p] = load(w + b * stride + p * kLanes);
#pragma GCC unroll 8
        for (int m = 0; m < MR; ++m) {
            const float value = m < MR / 2 ? x[m * ldx] : upper[(m - MR / 2) * ldx];
            for (int b = 0; b < NB; ++b)
                for (int p = 0; p < kPartsOfBlock; ++p) sums[m][b][p] += weights[b][p] * value;
        }
    }
#pragma GCC unroll 8
    for (int m = 0; m < MR; ++m)
#pragma GCC unroll 8
        for (int b = 0; b < NB; ++b) {
            Block sum;
            for (int p = 0; p < kPartsOfBlock; ++p) sum.part[p] = sums[m][b][p];
            put(m, b, sum);
        }
}

#if defined(STATESCAN_BF16)
template <int NB, int MR, typename Put>
STATESCAN_BF16 inline void tile_bfloat16(const uint16_t* w, int64_t stride, const uint16_t* x, int64_t ldx,
                                         int64_t depth, Ahead ahead, const Put& put) {
    __m512 sums[MR][NB];
#pragma GCC unroll 8
    for (int m = 0; m < MR; ++m)
#pragma GCC unroll 8
        for (int b = 0; b < NB; ++b) sums[m][b] = _mm512_setzero_ps();
    for (int64_t k = 0; k < depth; k += 2, w += 2 * kBlock) {
        ahead.fetch<NB>();
        __m512i weights[NB];
#pragma GCC unroll 8
        for (int b = 0; b < NB; ++b) weights[b] = _mm512_loadu_si512(w + b * stride);
#pragma GCC unroll 8
        for (int m = 0; m < MR; ++m) {
            int32_t bits;
            std::memcpy(&bits, x + m * ldx + k, 4);
            const __m512i value = _mm512_set1_epi32(bits);
#pragma GCC unroll 8
            for (int b = 0; b < NB; ++b) add_pairs(sums[m][b], weights[b], value);
        }
    }
#pragma GCC unroll 8
    for (int m = 0; m < MR; ++m)
#pragma GCC unroll 8
        for (int b = 0; b < NB; ++b) put(m, b, Block{{(vfloat)sums[m][b]}});
}
#endif

#if defined(STATESCAN_VNNI)
template <int NB, int MR, typename Put>
STATESCAN_VNNI inline void tile_int8(const uint8_t* w, int64_t stride, const Scratch& s, int64_t m, Range depth,
                                     const Put& put) {
    __m512i high[MR][NB], low[MR][NB];
#pragma GCC unroll 8
    for (int i = 0; i < MR; ++i)
#pragma GCC unroll 8
        for (int b = 0; b < NB; ++b) high[i][b] = low[i][b] = _mm512_setzero_si512();
    const int8_t *h = s.high + m * s.widest, *l = s.low + m * s.widest;
    w += depth.begin * kBlock;
    for (int64_t k = depth.begin; k < depth.end; k += 4, w += 4 * kBlock) {
        __m512i weights[NB];
#pragma GCC unroll 8
        for (int b = 0; b < NB; ++b) weights[b] = _mm512_loadu_si512(w + b * stride);
#pragma GCC unroll 8
        for (int i = 0; i < MR; ++i) {
            const __m512i first = four_bytes(h + i * s.widest + k), second = four_bytes(l + i * s.widest + k);
#pragma GCC unroll 8
            for (int b = 0; b < NB; ++b) add_bytes(high[i][b], weights[b], first);
#pragma GCC unroll 8
            for (int b = 0; b < NB; ++b) add_bytes(low[i][b], weights[b], second);
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < MR; ++i) {
        const Scratch row = s.of_row(m + i);
        int32_t high_sum = 0, low_sum = 0;
        for (int64_t g = depth.begin / kUnit; g < (depth.end + kUnit - 1) / kUnit; ++g) {
            high_sum += row.high_sums[g];
            low_sum += row.low_sums[g];
        }
#pragma GCC unroll 8
        for (int b = 0; b < NB; ++b) {
            const vfloat first = to_vfloat((vint)high[i][b] - 128 * high_sum);
            const vfloat second = to_vfloat((vint)low[i][b] - 128 * low_sum);
            put(i, b, Block{{(first * 256.0f + second) * s.scales[m + i]}});
        }
    }
}

template <int NB, int MR, typename Put>
STATESCAN_VNNI inline void tile_int4(const uint8_t* w, int64_t stride, const Scratch& s, int64_t m, Range depth,
                                     int64_t group, const Put& put) {
    const int64_t bytes = 2 * kBlock + group * kBlock / 2;
    const __m512i nibble = _mm512_set1_epi8(15);
    vfloat sums[MR][NB] = {};
    const int8_t *h = s.high + m * s.widest, *l = s.low + m * s.widest;
    w += depth.begin / group * bytes;
    for (int64_t k = depth.begin; k < depth.end; k += group, w += bytes) {
        __m512i high[MR][NB], low[MR][NB];
#pragma GCC unroll 8
        for (int i = 0; i < MR; ++i)
#pragma GCC unroll 8
            for (int b = 0; b < NB; ++b) high[i][b] = low[i][b] = _mm512_setzero_si512();
        for (int64_t j = 0; j < group; j += 4) {
            __m512i weights[NB];
#pragma GCC unroll 8
            for (int b = 0; b < NB; ++b) {
                const __m512i eight = _mm512_loadu_si512(w + b * stride + 2 * kBlock + j / 8 * 4 * kBlock);
                weights[b] = _mm512_and_si512(_mm512_maskz_srli_epi32(kAllLanes, eight, j & 4), nibble);
            }
#pragma GCC unroll 8
            for (int i = 0; i < MR; ++i) {
                const __m512i first = four_bytes(h + i * s.widest + k + j), second = four_bytes(l + i * s.widest + k + j);
#pragma GCC unroll 8
                for (int b = 0; b < NB; ++b) add_bytes(high[i][b], weights[b], first);
#pragma GCC unroll 8
                for (int b = 0; b < NB; ++b) add_bytes(low[i][b], weights[b], second);
            }
        }
#pragma GCC unroll 8
        for (int b = 0; b < NB; ++b) {
            const vfloat scale = load_as_float(reinterpret_cast<const bfloat16*>(w + b * stride));
#pragma GCC unroll 8
            for (int i = 0; i < MR; ++i) {
                const int64_t at = (m + i) * (s.widest / 32) + k / group;
                const int32_t offset = 8 * (256 * s.high_sums[at] + s.low_sums[at]);
                sums[i][b] += to_vfloat(((vint)high[i][b] << 8) + (vint)low[i][b] - offset) * scale;
            }
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < MR; ++i)
#pragma GCC unroll 8
        for (int b = 0; b < NB; ++b) put(i, b, Block{{sums[i][b] * s.scales[m + i]}});
}
#endif

// The weights of one block in float32, [columns][16].
inline void unpack_block(const Matrix& w, int64_t block, int64_t begin, int64_t end, float* to) {
    const uint8_t* from = w.data + block * block_bytes(w);
    for (int64_t k = begin; k < end; ++k)
        for (int p = 0; p < kPartsOfBlock; ++p) {
            vfloat value;
            if (w.format == kWeightsBFloat16) {
                const vint pair = load_int(from + k / 2 * 4 * kBlock + p * 4 * kLanes);
                value = k & 1 ? high_half(pair) : low_half(pair);
            } else if (w.format == kWeightsInt8) {
                const vint four = load_int(from + k / 4 * 4 * kBlock + p * 4 * kLanes);
                value = to_vfloat(((four >> int(8 * (k & 3))) & 255) - 128) * load(w.scales + block * kBlock + p * kLanes);
            } else if (w.format == kWeightsInt4) {
                const uint8_t* group = from + k / w.group * (2 * kBlock + w.group * kBlock / 2);
                const int64_t j = k % w.group;
                const vint eight = load_int(group + 2 * kBlock + j / 8 * 4 * kBlock + p * 4 * kLanes);
                value = to_vfloat(((eight >> nibble_shift(int(j & 7))) & 15) - 8) *
                        load_as_float(reinterpret_cast<const bfloat16*>(group) + p * kLanes);
            } else {
                value = load(reinterpret_cast<const float*>(from) + k * kBlock + p * kLanes);
            }
            store(to + (k - begin) * kBlock + p * kLanes, value);
        }
}

// ---- products ------------------------------------------------------------------------------------------------

struct Target {
    float* y;
    int64_t ldy;
    bool add;  // to what is there
};

inline void put(const Matrix& w, int64_t block, bool first, const Block& value, const Target& to, int64_t m) {
    float* y = to.y + m * to.ldy + block * kBlock;
    for (int p = 0; p < kPartsOfBlock; ++p) {
        vfloat v = value.part[p];
        if (w.bias && first) v += load(w.bias + block * kBlock + p * kLanes);
        store(y + p * kLanes, to.add ? load(y + p * kLanes) + v : v);
    }
}

// Rows of activations, or a stretch of their columns, made ready for weights of a format.
struct Activations {
    const float* x;
    int64_t ldx, rows;
    Range depth;            // begins at a multiple of kUnit
    const uint16_t* halves;  // the same in bfloat16 from depth.begin on, or null
    int64_t ld_halves;
};

// Whether so many rows of activations meet a matrix as bfloat16.
inline bool takes_halves(const Matrix& w, int64_t rows, bool dot_bfloat16) {
    return dot_bfloat16 && w.format == kWeightsBFloat16 && rows > 1 && has_bf16();
}

inline Activations prepare(const Matrix& w, const float* x, int64_t ldx, int64_t rows, Range depth, const Scratch& s,
                           bool dot_bfloat16) {
    const bool halves = takes_halves(w, rows, dot_bfloat16);
    const Activations a{x, ldx, rows, depth, halves ? s.half : nullptr, s.ld_half};
    if ((w.format == kWeightsInt8 || w.format == kWeightsInt4) && has_vnni()) {
        const int64_t group = w.format == kWeightsInt4 ? w.group : kUnit;
        for (int64_t m = 0; m < rows; ++m)
            s.scales[m] = split_activations(x + m * ldx, depth.begin, depth.end, group, s.of_row(m));
    }
    if (halves)
        for (int64_t m = 0; m < rows; ++m)
            to_halves(x + m * ldx + depth.begin, depth.end - depth.begin, s.half + m * s.ld_half);
    return a;
}

inline void product_of_one(const Matrix& w, const Activations& a, Range blocks, const Target& to, const Scratch& s) {
    const float* x = a.x;
    const Range depth = a.depth;
    const int64_t bytes = block_bytes(w);
    const bool first = depth.begin == 0;
    [[maybe_unused]] const float scale = s.scales[0];
    int32_t high_sum = 0, low_sum = 0;
    if (w.format == kWeightsInt8 && has_vnni())
        for (int64_t g = depth.begin / kUnit; g < (depth.end + kUnit - 1) / kUnit; ++g) {
            high_sum += s.high_sums[g];
            low_sum += s.low_sums[g];
        }
    for (int64_t b = blocks.begin; b < blocks.end; ++b) {
        const uint8_t* block = w.data + b * bytes;
        Block out;
        if (w.format == kWeightsFloat32) {
            out = dot_float32(block, x, depth.begin, depth.end);
        } else if (w.format == kWeightsBFloat16) {
            out = dot_bfloat16(block, x, depth.begin, depth.end);
        } else if (w.format == kWeightsInt8) {
#if defined(STATESCAN_VNNI)
            if (has_vnni()) out = dot_int8_vnni(block, s, depth.begin, depth.end, high_sum, low_sum, scale);
            else
#endif
                out = dot_int8(block, x, depth.begin, depth.end);
            for (int p = 0; p < kPartsOfBlock; ++p) out.part[p] *= load(w.scales + b * kBlock + p * kLanes);
        } else {
#if defined(STATESCAN_VNNI)
            if (has_vnni()) out = dot_int4_vnni(block, s, depth.begin, depth.end, w.group, scale);
            else
#endif
                out = dot_int4(block, x, depth.begin, depth.end, w.group);
        }
        put(w, b, first, out, to, 0);
    }
}

// Calls `f` with the number of rows of a tile as a constant.
template <int MR, typename F>
inline void with_rows(int64_t rows, const F& f) {
    if constexpr (MR > 1) {
        if (rows < MR) return with_rows<MR - 1>(rows, f);
    }
    f(std::integral_constant<int, MR>());
}

// What follows the panel from block b on (at the end, itself), for the tile from row m on, of so many steps.
inline Ahead panel_ahead(const Matrix& w, int64_t b, int64_t blocks, int64_t last, int64_t steps, int64_t rows,
                         int64_t m) {
    const int64_t next = b + blocks < last ? b + blocks : b;
    const int64_t tiles = (rows + kTileRows - 1) / kTileRows, advance = blocks * kLine / tiles;
    return {w.data + next * block_bytes(w) + m / kTileRows * steps * advance, advance};
}

template <int NB>
inline void product_panel(const Matrix& w, int64_t b, int64_t last, const Activations& a, const Target& to,
                          const Scratch& s) {
    const int64_t steps = a.depth.end - a.depth.begin, begin = a.depth.begin * kBlock;
    const float* panel = reinterpret_cast<const float*>(w.data + b * block_bytes(w)) + begin;
    int64_t stride = w.columns * kBlock;
    if (w.format != kWeightsFloat32) {
        stride = steps * kBlock;
        for (int j = 0; j < NB; ++j) unpack_block(w, b + j, a.depth.begin, a.depth.end, s.panel + j * stride);
        panel = s.panel;
    }
    for (int64_t m = 0; m < a.rows;) {
        with_rows<kTileRows>(a.rows - m, [&](auto size) {
            constexpr int MR = decltype(size)::value;
            // What is unpacked first comes from memory then.
            const Ahead ahead = panel == s.panel ? Ahead{w.data, 0} : panel_ahead(w, b, NB, last, steps, a.rows, m);
            tile_float32<NB, MR>(panel, stride, a.x + m * a.ldx + a.depth.begin, a.ldx, steps, ahead,
                                 [&](int i, int j, const Block& sum) { put(w, b + j, a.depth.begin == 0, sum, to, m + i); });
            m += MR;
        });
    }
}

#if defined(STATESCAN_BF16)
template <int NB, int MR>
STATESCAN_BF16 inline void bfloat16_tiles(const Matrix& w, int64_t b, int64_t last, const Activations& a,
                                          int64_t m, const Target& to) {
    const int64_t stride = round_up(w.columns, 2) * kBlock, begin = a.depth.begin * kBlock;
    const int64_t depth = round_up(a.depth.end - a.depth.begin, 2);
    const uint16_t* panel = reinterpret_cast<const uint16_t*>(w.data) + b * stride + begin;
    const Ahead ahead = panel_ahead(w, b, NB, last, depth / 2, a.rows, m);
    tile_bfloat16<NB, MR>(panel, stride, a.halves + m * a.ld_halves, a.ld_halves, depth, ahead,
                          [&](int i, int j, const Block& sum) { put(w, b + j, a.depth.begin == 0, sum, to, m + i); });
}

template <int NB>
inline void product_panel_bfloat16(const Matrix& w, int64_t b, int64_t last, const Activations& a, const Target& to) {
    for (int64_t m = 0; m < a.rows;) {
        with_rows<kTileRows>(a.rows - m, [&](auto size) {
            bfloat16_tiles<NB, decltype(size)::value>(w, b, last, a, m, to);
            m += decltype(size)::value;
        });
    }
}
#endif

#if defined(STATESCAN_VNNI)
constexpr int kQuantisedRows = 4;

template <int NB, int MR>
STATESCAN_VNNI inline void quantised_tiles(const Matrix& w, int64_t b, const Scratch& s, int64_t m, Range depth,
                                           const Target& to) {
    const int64_t stride = block_bytes(w);
    const uint8_t* panel = w.data + b * stride;
    if (w.format == kWeightsInt4) {
        tile_int4<NB, MR>(panel, stride, s, m, depth, w.group,
                          [&](int i, int j, const Block& sum) { put(w, b + j, depth.begin == 0, sum, to, m + i); });
    } else {
        tile_int8<NB, MR>(panel, stride, s, m, depth, [&](int i, int j, Block sum) {
            sum.part[0] *= load(w.scales + (b + j) * kBlock);
            put(w, b + j, depth.begin == 0, sum, to, m + i);
        });
    }
}

template <int NB>
inline void product_panel_quantised(const Matrix& w, int64_t b, const Activations& a, const Target& to,
                                    const Scratch& s) {
    for (int64_t m = 0; m < a.rows;) {
        with_rows<kQuantisedRows>(a.rows - m, [&](auto size) {
            quantised_tiles<NB, decltype(size)::value>(w, b, s, m, a.depth, to);
            m += decltype(size)::value;
        });
    }
}
#endif

// A panel of so many blocks from number b on, of a product that ends before block `last`.
template <int NB>
inline void product_panel_of(const Matrix& w, int64_t b, int64_t last, const Activations& a, const Target& to,
                             const Scratch& s) {
#if defined(STATESCAN_VNNI)
    if ((w.format == kWeightsInt8 || w.format == kWeightsInt4) && has_vnni())
        return product_panel_quantised<NB>(w, b, a, to, s);
#endif
#if defined(STATESCAN_BF16)
    if (a.halves) return product_panel_bfloat16<NB>(w, b, last, a, to);
#endif
    product_panel<NB>(w, b, last, a, to, s);
}

// y[rows, blocks of sixteen] = x[rows, depth] W^T, written to or added to `to`.
inline void product(const Matrix& w, const Activations& a, Range blocks, const Target& to, const Scratch& s) {
    if (blocks.begin >= blocks.end) return;
    const int64_t depth = a.depth.end - a.depth.begin;
    if (depth <= 0) {
        for (int64_t m = 0; m < a.rows && !to.add; ++m)
            std::memset(to.y + m * to.ldy + blocks.begin * kBlock, 0, 4 * kBlock * (blocks.end - blocks.begin));
        return;
    }
    if (a.rows == 1) return product_of_one(w, a, blocks, to, s);
    // int4 keeps whole sums of every group in registers beside those of all: there is room for fewer blocks.
    const int64_t step = w.format == kWeightsInt4 && has_vnni() ? 2 : kTileBlocks;
    int64_t b = blocks.begin;
    for (; step == 3 && b + 3 <= blocks.end; b += 3) product_panel_of<kTileBlocks>(w, b, blocks.end, a, to, s);
    if constexpr (kTileBlocks == 3)
        for (; b + 2 <= blocks.end; b += 2) product_panel_of<2>(w, b, blocks.end, a, to, s);
    for (; b < blocks.end; ++b) product_panel_of<1>(w, b, blocks.end, a, to, s);
}

}  // namespace STATESCAN_LEVEL

// Products of packed matrices with one row of activations (bound by memory) or many (bound by arithmetic).
#pragma once

#include "decode_rows.h"

namespace STATESCAN_LEVEL {

// ---- many rows -----------------------------------------------------------------------------------------------

// Registers of a tile: blocks of sixteen outputs by rows of activations.
constexpr int kTileBlocks = kLanes == 16 ? 3 : 1;
constexpr int kTileRows = kLanes == 16 ? 8 : kLanes == 8 ? 6 : 2;

template <int NB, int MR>
inline void tile_float32(const float* w, int64_t stride, const float* x, int64_t ldx, int64_t depth, Block* out) {
    vfloat sums[MR][NB][kPartsOfBlock] = {};
    for (int64_t k = 0; k < depth; ++k, w += kBlock) {
        vfloat weights[NB][kPartsOfBlock];
        for (int b = 0; b < NB; ++b)
            for (int p = 0; p < kPartsOfBlock; ++p) weights[b][p] = load(w + b * stride + p * kLanes);
#pragma GCC unroll 8
        for (int m = 0; m < MR; ++m) {
            const float value = x[m * ldx + k];
            for (int b = 0; b < NB; ++b)
                for (int p = 0; p < kPartsOfBlock; ++p) sums[m][b][p] += weights[b][p] * value;
        }
    }
    for (int m = 0; m < MR; ++m)
        for (int b = 0; b < NB; ++b)
            for (int p = 0; p < kPartsOfBlock; ++p) out[m * NB + b].part[p] = sums[m][b][p];
}

#if defined(STATESCAN_BF16)
template <int NB, int MR>
STATESCAN_BF16 inline void tile_bfloat16(const uint16_t* w, int64_t stride, const uint16_t* x, int64_t ldx,
                                         int64_t depth, Block* out) {
    __m512 sums[MR][NB];
#pragma GCC unroll 8
    for (int m = 0; m < MR; ++m)
#pragma GCC unroll 8
        for (int b = 0; b < NB; ++b) sums[m][b] = _mm512_setzero_ps();
    for (int64_t k = 0; k < depth; k += 2, w += 2 * kBlock) {
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
        for (int b = 0; b < NB; ++b) out[m * NB + b].part[0] = (vfloat)sums[m][b];
}
#endif

#if defined(STATESCAN_VNNI)
template <int NB, int MR>
STATESCAN_VNNI inline void tile_int8(const uint8_t* w, int64_t stride, const Scratch& s, int64_t m, Range depth, Block* out) {
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
            out[i * NB + b].part[0] = (first * 256.0f + second) * s.scales[m + i];
        }
    }
}

template <int NB, int MR>
STATESCAN_VNNI inline void tile_int4(const uint8_t* w, int64_t stride, const Scratch& s, int64_t m, Range depth,
                                     int64_t group, Block* out) {
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
        for (int b = 0; b < NB; ++b) out[i * NB + b].part[0] = sums[i][b] * s.scales[m + i];
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

inline void product_of_one(const Matrix& w, const float* x, Range depth, Range blocks, const Target& to, const Scratch& s) {
    const int64_t bytes = block_bytes(w);
    const bool first = depth.begin == 0, quantised = w.format == kWeightsInt8 || w.format == kWeightsInt4;
    [[maybe_unused]] float scale = 1;
    const int64_t group = w.format == kWeightsInt4 ? w.group : kUnit;
    if (quantised && has_vnni()) scale = split_activations(x, depth.begin, depth.end, group, s);
    int32_t high_sum = 0, low_sum = 0;
    if (w.format == kWeightsInt8 && has_vnni())
        for (int64_t g = depth.begin / kUnit; g < (depth.end + kUnit - 1) / kUnit; ++g) {
            high_sum += s.high_sums[g];
            low_sum += s.low_sums[g];
        }
    int64_t b = blocks.begin;
    for (; (w.format == kWeightsFloat32 || w.format == kWeightsBFloat16) && b + 4 <= blocks.end; b += 4) {
        Block out[4];
        if (w.format == kWeightsFloat32) dot_float32_side_by_side<4>(w.data + b * bytes, bytes, x, depth.begin, depth.end, out);
        else dot_bfloat16_side_by_side<4>(w.data + b * bytes, bytes, x, depth.begin, depth.end, out);
        for (int i = 0; i < 4; ++i) put(w, b + i, first, out[i], to, 0);
    }
    for (; b < blocks.end; ++b) {
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

template <int NB, int MR>
inline void put_tile(const Matrix& w, int64_t b, bool first, const Block* out, const Target& to, int64_t m) {
    for (int i = 0; i < MR; ++i)
        for (int j = 0; j < NB; ++j) put(w, b + j, first, out[i * NB + j], to, m + i);
}

// Calls `f` with the number of rows of a tile as a constant.
template <int MR, typename F>
inline void with_rows(int64_t rows, const F& f) {
    if constexpr (MR > 1) {
        if (rows < MR) return with_rows<MR - 1>(rows, f);
    }
    f(std::integral_constant<int, MR>());
}

template <int NB>
inline void product_panel(const Matrix& w, int64_t b, const float* x, int64_t ldx, int64_t rows, Range depth,
                          const Target& to, const Scratch& s) {
    const float* panel = reinterpret_cast<const float*>(w.data + b * block_bytes(w)) + depth.begin * kBlock;
    int64_t stride = w.columns * kBlock;
    if (w.format != kWeightsFloat32) {
        stride = (depth.end - depth.begin) * kBlock;
        for (int j = 0; j < NB; ++j) unpack_block(w, b + j, depth.begin, depth.end, s.panel + j * stride);
        panel = s.panel;
    }
    for (int64_t m = 0; m < rows;) {
        with_rows<kTileRows>(rows - m, [&](auto size) {
            constexpr int MR = decltype(size)::value;
            Block out[NB * MR];
            tile_float32<NB, MR>(panel, stride, x + m * ldx + depth.begin, ldx, depth.end - depth.begin, out);
            put_tile<NB, MR>(w, b, depth.begin == 0, out, to, m);
            m += MR;
        });
    }
}

#if defined(STATESCAN_BF16)
template <int NB, int MR>
STATESCAN_BF16 inline void bfloat16_tiles(const Matrix& w, int64_t b, const uint16_t* x, int64_t ldx, int64_t m,
                                          Range depth, const Target& to) {
    const int64_t stride = round_up(w.columns, 2) * kBlock;
    const uint16_t* panel = reinterpret_cast<const uint16_t*>(w.data) + b * stride + depth.begin * kBlock;
    Block out[NB * MR];
    tile_bfloat16<NB, MR>(panel, stride, x + m * ldx, ldx, round_up(depth.end - depth.begin, 2), out);
    put_tile<NB, MR>(w, b, depth.begin == 0, out, to, m);
}

template <int NB>
inline void product_panel_bfloat16(const Matrix& w, int64_t b, const uint16_t* x, int64_t ldx, int64_t rows, Range depth,
                                   const Target& to) {
    for (int64_t m = 0; m < rows;) {
        with_rows<kTileRows>(rows - m, [&](auto size) {
            bfloat16_tiles<NB, decltype(size)::value>(w, b, x, ldx, m, depth, to);
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
    Block out[NB * MR];
    if (w.format == kWeightsInt4) {
        tile_int4<NB, MR>(panel, stride, s, m, depth, w.group, out);
    } else {
        tile_int8<NB, MR>(panel, stride, s, m, depth, out);
        for (int j = 0; j < NB; ++j)
            for (int i = 0; i < MR; ++i) out[i * NB + j].part[0] *= load(w.scales + (b + j) * kBlock);
    }
    put_tile<NB, MR>(w, b, depth.begin == 0, out, to, m);
}

template <int NB>
inline void product_panel_quantised(const Matrix& w, int64_t b, const Scratch& s, int64_t rows, Range depth,
                                    const Target& to) {
    for (int64_t m = 0; m < rows;) {
        with_rows<kQuantisedRows>(rows - m, [&](auto size) {
            quantised_tiles<NB, decltype(size)::value>(w, b, s, m, depth, to);
            m += decltype(size)::value;
        });
    }
}
#endif

// y[rows, blocks of sixteen] = x[rows, depth] W^T, written to or added to `to`. `depth` begins at a multiple of kUnit.
inline void product(const Matrix& w, const float* x, int64_t ldx, int64_t rows, Range depth, Range blocks,
                    const Target& to, const Scratch& s, bool dot_bfloat16) {
    if (blocks.begin >= blocks.end) return;
    if (depth.begin >= depth.end) {
        for (int64_t m = 0; m < rows && !to.add; ++m)
            std::memset(to.y + m * to.ldy + blocks.begin * kBlock, 0, 4 * kBlock * (blocks.end - blocks.begin));
        return;
    }
    if (rows == 1) return product_of_one(w, x, depth, blocks, to, s);
    int64_t b = blocks.begin;
#if defined(STATESCAN_VNNI)
    if ((w.format == kWeightsInt8 || w.format == kWeightsInt4) && has_vnni()) {
        const int64_t group = w.format == kWeightsInt4 ? w.group : kUnit;
        for (int64_t m = 0; m < rows; ++m)
            s.scales[m] = split_activations(x + m * ldx, depth.begin, depth.end, group, s.of_row(m));
        const int64_t step = w.format == kWeightsInt4 ? 2 : 3;  // the registers hold so many blocks
        for (; b + step <= blocks.end; b += step) {
            if (step == 2) product_panel_quantised<2>(w, b, s, rows, depth, to);
            else product_panel_quantised<3>(w, b, s, rows, depth, to);
        }
        for (; b < blocks.end; ++b) product_panel_quantised<1>(w, b, s, rows, depth, to);
        return;
    }
#endif
#if defined(STATESCAN_BF16)
    if (dot_bfloat16 && w.format == kWeightsBFloat16 && has_bf16()) {
        const int64_t width = round_up(depth.end - depth.begin, kLanes);
        for (int64_t m = 0; m < rows; ++m)
            for (int64_t k = 0; k < width; k += kLanes) {
                const int some = int(std::max<int64_t>(0, std::min<int64_t>(kLanes, depth.end - depth.begin - k)));
                store_from_float(reinterpret_cast<bfloat16*>(s.half) + m * width + k,
                                 load_some(x + m * ldx + depth.begin + k, some));
            }
        for (; b + kTileBlocks <= blocks.end; b += kTileBlocks)
            product_panel_bfloat16<kTileBlocks>(w, b, s.half, width, rows, depth, to);
        for (; b < blocks.end; ++b) product_panel_bfloat16<1>(w, b, s.half, width, rows, depth, to);
        return;
    }
#endif
    (void)dot_bfloat16;
    for (; b + kTileBlocks <= blocks.end; b += kTileBlocks) product_panel<kTileBlocks>(w, b, x, ldx, rows, depth, to, s);
    for (; b < blocks.end; ++b) product_panel<1>(w, b, x, ldx, rows, depth, to, s);
}

}  // namespace STATESCAN_LEVEL

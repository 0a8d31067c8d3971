// Elementary functions on a register of floats at once, and loads and stores of every element type.
//
// NaN stays NaN and infinities take their limits, at every instruction set; errors are a few units in the
// last place (tests/ops/test_selective_scan.py checks them through the operators).
#pragma once

#include "common.h"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace STATESCAN_LEVEL {

// ---- element types -------------------------------------------------------------------------------------------

template <typename T>
inline vfloat load_as_float(const T* p) {
    vfloat out;
    for (int i = 0; i < kLanes; ++i) out[i] = to_float(p[i]);
    return out;
}
template <typename T>
inline void store_from_float(T* p, vfloat v) {
    for (int i = 0; i < kLanes; ++i) p[i] = from_float<T>(v[i]);
}

template <>
inline vfloat load_as_float(const float* p) {
    return load(p);
}
template <>
inline void store_from_float(float* p, vfloat v) {
    store(p, v);
}

typedef uint32_t vuint __attribute__((vector_size(4 * kLanes)));
typedef uint16_t vushort __attribute__((vector_size(2 * kLanes)));
typedef uint16_t vushort_unaligned __attribute__((vector_size(2 * kLanes), aligned(2)));

template <>
inline vfloat load_as_float(const bfloat16* p) {
    vushort bits = *reinterpret_cast<const vushort_unaligned*>(p);
    return (vfloat)(__builtin_convertvector(bits, vuint) << 16);
}
template <>
inline void store_from_float(bfloat16* p, vfloat v) {
    vuint bits = (vuint)v;
    vuint rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;  // nearest even
    vuint quiet = (bits >> 16) | 0x40u;
    vuint out = (bits & 0x7fffffffu) > 0x7f800000u ? quiet : rounded;
    *reinterpret_cast<vushort_unaligned*>(p) = __builtin_convertvector(out, vushort);
}

#if defined(__AVX512F__)
constexpr __mmask16 kAllLanes = 0xffff;  // GCC 12 warns about the intrinsics that take no mask

template <>
inline vfloat load_as_float(const float16* p) {
    return (vfloat)_mm512_maskz_cvtph_ps(kAllLanes, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
template <>
inline void store_from_float(float16* p, vfloat v) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_maskz_cvtps_ph(kAllLanes, (__m512)v, _MM_FROUND_TO_NEAREST_INT));
}
#elif defined(__F16C__)
template <>
inline vfloat load_as_float(const float16* p) {
    return (vfloat)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
template <>
inline void store_from_float(float16* p, vfloat v) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT));
}
#endif

// The first `count` elements, for widths that are not a multiple of kLanes; the others are zero.
template <typename T>
inline vfloat load_some(const T* p, int count) {
    if (count >= kLanes) return load_as_float(p);
    vfloat out{};
    for (int i = 0; i < kLanes; ++i)
        if (i < count) out[i] = to_float(p[i]);
    return out;
}
template <typename T>
inline void store_some(T* p, vfloat v, int count) {
    if (count >= kLanes) return store_from_float(p, v);
    for (int i = 0; i < kLanes; ++i)
        if (i < count) p[i] = from_float<T>(v[i]);
}
#if defined(__AVX512F__)
template <>
inline vfloat load_some(const float* p, int count) {
    return (vfloat)_mm512_maskz_loadu_ps(__mmask16((1u << (count < kLanes ? count : kLanes)) - 1u), p);
}
template <>
inline void store_some(float* p, vfloat v, int count) {
    _mm512_mask_storeu_ps(p, __mmask16((1u << (count < kLanes ? count : kLanes)) - 1u), (__m512)v);
}
#endif

// ---- arithmetic ----------------------------------------------------------------------------------------------

// Where a comparison with NaN fails, the second operand is returned: pass the value that may be NaN second.
#if defined(__AVX512F__)
inline vfloat minimum(vfloat bound, vfloat v) { return (vfloat)_mm512_maskz_min_ps(kAllLanes, (__m512)bound, (__m512)v); }
inline vfloat maximum(vfloat bound, vfloat v) { return (vfloat)_mm512_maskz_max_ps(kAllLanes, (__m512)bound, (__m512)v); }
#elif defined(__AVX2__)
inline vfloat minimum(vfloat bound, vfloat v) { return (vfloat)_mm256_min_ps((__m256)bound, (__m256)v); }
inline vfloat maximum(vfloat bound, vfloat v) { return (vfloat)_mm256_max_ps((__m256)bound, (__m256)v); }
#else
inline vfloat minimum(vfloat bound, vfloat v) { return bound < v ? bound : v; }
inline vfloat maximum(vfloat bound, vfloat v) { return bound > v ? bound : v; }
#endif

inline vfloat absolute(vfloat v) { return (vfloat)((vint)v & 0x7fffffff); }

inline float horizontal_sum(vfloat v) {
    typedef float four __attribute__((vector_size(16)));
    four parts[kLanes / 4];
    std::memcpy(parts, &v, sizeof v);
    for (int step = kLanes / 8; step; step /= 2)
        for (int i = 0; i < step; ++i) parts[i] += parts[i + step];
    return (parts[0][0] + parts[0][1]) + (parts[0][2] + parts[0][3]);
}

// p * 2^n for whole n (with AVX-512, for the whole part of n), exact up to the final rounding, down through the subnormals and up to infinity.
inline vfloat scale_by_power_of_two(vfloat p, vfloat n) {
#if defined(__AVX512F__)
    return (vfloat)_mm512_maskz_scalef_ps(kAllLanes, (__m512)p, (__m512)n);
#else
    // In two steps, so that neither factor leaves the range of normal floats.
    vint whole = __builtin_convertvector(n, vint), half = whole >> 1;
    vfloat first = (vfloat)((half + 127) << 23), second = (vfloat)((whole - half + 127) << 23);
    return p * first * second;
#endif
}

// The nearest whole number, for |v| < 2^22.
inline vfloat nearest(vfloat v) {
#if defined(__AVX512F__)
    return (vfloat)_mm512_maskz_roundscale_ps(kAllLanes, (__m512)v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#elif defined(__AVX2__)
    return (vfloat)_mm256_round_ps((__m256)v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#else
    const vfloat magic = splat(12582912.0f);  // 1.5 * 2^23: the sum has no bits left for a fraction
    vfloat sum = v + magic;
    return sum - magic;
#endif
}

#if defined(__AVX512F__)
// 2^(i/16) for the last four bits i of v.
inline vfloat sixteenth_power(vint v) {
    const vfloat powers{1.0f,        1.04427378f, 1.09050773f, 1.13878863f, 1.18920712f, 1.24185781f,
                        1.29683955f, 1.35425555f, 1.41421356f, 1.47682615f, 1.54221083f, 1.61049033f,
                        1.68179283f, 1.75625216f, 1.83400809f, 1.91520656f};
    return (vfloat)_mm512_maskz_permutexvar_ps(kAllLanes, (__m512i)v, (__m512)powers);
}
constexpr float kToSixteenths = 786432.0f;  // 1.5 * 2^19: the last four bits of v + this are the sixteenths of v

inline vfloat nearest_sixteenth(vfloat v) {
    return (vfloat)_mm512_maskz_roundscale_ps(kAllLanes, (__m512)v, 0x40 | _MM_FROUND_TO_NEAREST_INT);
}
#endif

// 2^v, exactly 1 at 0 and unbiased around it: a scan multiplies thousands of these, and a bias would add up.
#if defined(__AVX512F__)
// v = whole + i/16 + f: 2^(i/16) from a table in one register, 2^f by a polynomial of degree 3 on [-1/32, 1/32].
// Two multiplications fewer than without the table, and those are what a scan waits for.
inline vfloat exp2(vfloat v) {
    vfloat table = sixteenth_power((vint)(v + kToSixteenths));
    vfloat reduced = nearest_sixteenth(v), f = v - reduced;
    vfloat p = f * 5.55054100e-2f + 2.40234280e-1f;
    p = p * f + 6.93147181e-1f;
    p = table + (table * f) * p;
    return scale_by_power_of_two(p, reduced);  // which takes the whole part
}
#else
inline vfloat exp2(vfloat v) {
    v = maximum(splat(-160.0f), minimum(splat(130.0f), v));
    vfloat n = nearest(v), f = v - n;
    vfloat p = splat(1.53533619e-4f);
    p = p * f + 1.33988744e-3f;
    p = p * f + 9.61843736e-3f;
    p = p * f + 5.55033247e-2f;
    p = p * f + 2.40226479e-1f;
    p = p * f + 6.93147203e-1f;
    p = p * f + 1.0f;
    return scale_by_power_of_two(p, n);
}
#endif

// cos and sin of 2 pi v, v in turns: whole turns and quarters come off exactly, polynomials on an eighth of a turn.
inline void cos_sin_turns(vfloat v, vfloat* cosine, vfloat* sine) {
    vfloat quarters = nearest(v * 4.0f), f = v - quarters * 0.25f, q = f * f;
    vfloat s = splat(-7.53935556e1f);
    s = s * q + 8.15923534e1f;
    s = s * q - 4.13416615e1f;
    s = s * q + 6.28318529e0f;
    s = s * f;
    vfloat c = splat(5.92292409e1f);
    c = c * q - 8.54432362e1f;
    c = c * q + 6.49393219e1f;
    c = c * q - 1.97392087e1f;
    c = c * q + 1.0f;
    vint quarter = __builtin_convertvector(quarters, vint);
    vint odd = -(quarter & 1);
    vfloat near = odd ? s : c, far = odd ? c : s;
    *cosine = (vfloat)((vint)near ^ (((quarter + 1) & 2) << 30));
    *sine = (vfloat)((vint)far ^ ((quarter & 2) << 30));
}

constexpr float kLog2E = 1.44269504088896341f;

// e^v, reduced by ln 2 in two parts: as exact at -80 as at 0.
inline vfloat exp(vfloat v) {
    v = maximum(splat(-110.0f), minimum(splat(90.0f), v));
#if defined(__AVX512F__)
    vfloat powers_of_two = v * kLog2E, n = nearest_sixteenth(powers_of_two);
    vfloat table = sixteenth_power((vint)(n + kToSixteenths));
#else
    vfloat n = nearest(v * kLog2E);
#endif
    vfloat f = (v - n * 0.693359375f) + n * 2.12194440e-4f;
#if defined(__AVX512F__)
    vfloat p = f * 1.66666667e-1f + 0.5f;
    p = p * f + 1.0f;
    p = table + (table * f) * p;
#else
    vfloat p = splat(1.98412698e-4f);
    p = p * f + 1.38888889e-3f;
    p = p * f + 8.33333333e-3f;
    p = p * f + 4.16666667e-2f;
    p = p * f + 1.66666667e-1f;
    p = p * f + 0.5f;
    p = p * f + 1.0f;
    p = p * f + 1.0f;
#endif
    return scale_by_power_of_two(p, n);
}

// 1 / (1 + e^-v)
inline vfloat sigmoid(vfloat v) { return 1.0f / (1.0f + exp(-v)); }

// v / (1 + e^-v)
inline vfloat silu(vfloat v) { return v / (1.0f + exp(-v)); }

// The derivative of silu, given s = sigmoid(v).
inline vfloat silu_slope(vfloat v, vfloat s) { return s * (1.0f + v * (1.0f - s)); }

// log(1 + e^v) = max(v, 0) + log1p(u), u = e^-|v| in (0, 1]; log1p(u) = 2 artanh(u / (2 + u)), which keeps the
// relative precision of small results.
inline vfloat softplus_from(vfloat v, vfloat u) {
    vfloat s = u / (2.0f + u), q = s * s;
    vfloat p = splat(1.40122460e-1f);
    p = p * q + 1.39995670e-1f;
    p = p * q + 2.00108500e-1f;
    p = p * q + 3.33332070e-1f;
    p = p * q + 1.0f;
    vfloat positive = v > 0.0f ? v : vfloat{};
    return positive + 2.0f * s * p;
}
inline vfloat softplus(vfloat v) { return softplus_from(v, exp(-absolute(v))); }

// softplus and its derivative, the sigmoid.
inline vfloat softplus(vfloat v, vfloat* slope) {
    vfloat u = exp(-absolute(v));
    *slope = (v > 0.0f ? splat(1.0f) : u) / (1.0f + u);
    return softplus_from(v, u);
}

}  // namespace STATESCAN_LEVEL

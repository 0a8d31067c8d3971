// What every CPU kernel file shares: names per instruction set, element types, threads.
//
// A kernel file is compiled once for each instruction set (CMakeLists.txt). Everything in it lives in
// namespace STATESCAN_LEVEL, and what Python calls is declared
//
//     STATESCAN_EXPORT(int, selective_scan_forward)(const void* x, ...)
//
// which makes the C symbol `statescan_selective_scan_forward_avx512` (or _avx2, _baseline).
// Kernels never allocate results, never throw, and take the number of threads as an argument.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#ifdef _OPENMP
#include <omp.h>
#endif

#ifndef STATESCAN_LEVEL
#define STATESCAN_LEVEL baseline
#endif

#define STATESCAN_JOIN_(a, b, c) a##b##_##c
#define STATESCAN_JOIN(a, b, c) STATESCAN_JOIN_(a, b, c)
#define STATESCAN_EXPORT(type, name) \
    extern "C" __attribute__((visibility("default"))) type STATESCAN_JOIN(statescan_, name, STATESCAN_LEVEL)

namespace STATESCAN_LEVEL {

// Element types as Python passes them (kernels/cpu.py, DTYPES).
enum DType : int { kFloat32 = 0, kBFloat16 = 1, kFloat16 = 2 };

struct bfloat16 {
    uint16_t bits;
};
#if defined(__FLT16_MAX__) && (defined(__F16C__) || defined(__aarch64__))
#define STATESCAN_NATIVE_HALF 1
#endif
struct float16 {
    uint16_t bits;
};

inline float to_float(float value) { return value; }
inline float to_float(bfloat16 value) {
    uint32_t bits = uint32_t(value.bits) << 16;
    float out;
    std::memcpy(&out, &bits, 4);
    return out;
}
inline float to_float(float16 value) {
    uint32_t sign = uint32_t(value.bits & 0x8000u) << 16, exponent = (value.bits >> 10) & 31u, mantissa = value.bits & 1023u;
    uint32_t bits;
    if (exponent == 31) {
        bits = sign | 0x7f800000u | (mantissa << 13);
    } else if (exponent) {
        bits = sign | ((exponent + 112) << 23) | (mantissa << 13);
    } else {  // zero and subnormals: mantissa * 2^-24, exact in float
        float magnitude = float(mantissa) * 5.9604644775390625e-8f;
        std::memcpy(&bits, &magnitude, 4);
        bits |= sign;
    }
    float out;
    std::memcpy(&out, &bits, 4);
    return out;
}

template <typename T>
inline T from_float(float value);
template <>
inline float from_float<float>(float value) {
    return value;
}
template <>
inline bfloat16 from_float<bfloat16>(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return bfloat16{uint16_t((bits >> 16) | 0x40u)};  // stays NaN
    return bfloat16{uint16_t((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};                  // nearest even
}
template <>
inline float16 from_float<float16>(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    uint32_t sign = (bits >> 16) & 0x8000u, magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u) return float16{uint16_t(sign | 0x7e00u)};   // NaN
    if (magnitude >= 0x477ff000u) return float16{uint16_t(sign | 0x7c00u)};  // overflows to infinity
    if (magnitude < 0x38800000u) {  // subnormal: add 0.5 so that the float adder rounds for us
        float shifted;
        std::memcpy(&shifted, &magnitude, 4);
        shifted += 0.5f;
        uint32_t out;
        std::memcpy(&out, &shifted, 4);
        return float16{uint16_t(sign | (out - 0x3f000000u))};
    }
    uint32_t odd = (magnitude >> 13) & 1u;
    return float16{uint16_t(sign | ((magnitude - 0x38000000u + 0xfffu + odd) >> 13))};
}

// As many floats as a register holds: 16 with AVX-512, 8 with AVX2, 4 elsewhere (SSE2, NEON). A wider type would be
// right everywhere, but GCC keeps what does not fit a register in memory, fifty times slower.
#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif
typedef float vfloat __attribute__((vector_size(4 * kLanes)));
typedef int32_t vint __attribute__((vector_size(4 * kLanes)));
typedef float vfloat_unaligned __attribute__((vector_size(4 * kLanes), aligned(4)));

inline vfloat splat(float value) { return value - vfloat{}; }  // x - 0 is x, which x + 0 is not: no arithmetic is left
inline vfloat load(const float* p) { return *reinterpret_cast<const vfloat_unaligned*>(p); }
inline void store(float* p, vfloat v) { *reinterpret_cast<vfloat_unaligned*>(p) = v; }

}  // namespace STATESCAN_LEVEL

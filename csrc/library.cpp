// What the library says about itself: its version of the calling contract and the instruction sets inside.
#include <cstring>

#define STATESCAN_API extern "C" __attribute__((visibility("default")))

#ifndef STATESCAN_LEVELS
#define STATESCAN_LEVELS "baseline"
#endif

STATESCAN_API int statescan_contract_version() { return 8; }

STATESCAN_API const char* statescan_levels() { return STATESCAN_LEVELS; }

// 1 if this processor runs the instruction set `level`.
STATESCAN_API int statescan_level_supported(const char* level) {
    if (!std::strcmp(level, "baseline")) return 1;
#if defined(__x86_64__)
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
    if (!std::strcmp(level, "avx2")) return avx2;
    if (!std::strcmp(level, "avx512"))
        return avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
               __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#endif
    return 0;
}

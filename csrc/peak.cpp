// What the vector units can do: the yardstick of benchmarks.
#include "common.h"
#include "math.h"

namespace STATESCAN_LEVEL {
namespace {

// Chains of multiply-adds, enough of them to fill the pipelines, on registers alone.
float chains(int64_t rounds) {
    constexpr int kChains = 12;
    vfloat sum[kChains];
    for (int c = 0; c < kChains; ++c) sum[c] = splat(float(c));
    vfloat factor = splat(0.999f), term = splat(0.001f);
    for (int64_t r = 0; r < rounds; ++r)
#pragma GCC unroll 12
        for (int c = 0; c < kChains; ++c) sum[c] = sum[c] * factor + term;
    vfloat all{};
    for (int c = 0; c < kChains; ++c) all += sum[c];
    return all[0];
}

}  // namespace
}  // namespace STATESCAN_LEVEL

// Performs 12 * kLanes * rounds multiply-adds on each thread; `lanes` receives kLanes, `sink` something that depends
// on them all.
STATESCAN_EXPORT(int, multiply_adds)(int64_t rounds, int64_t* lanes, float* sink, int threads) {
    using namespace STATESCAN_LEVEL;
    *lanes = kLanes;
    float total = 0;
#ifdef _OPENMP
#pragma omp parallel for num_threads(threads) if (threads > 1) reduction(+ : total) schedule(static, 1)
#endif
    for (int thread = 0; thread < threads; ++thread) total += chains(rounds);
    *sink = total;
    return 0;
}

// Reads every byte once with all threads and does nothing else: the least time that a pass over weights can take.
STATESCAN_EXPORT(int, read_memory)(const void* memory, int64_t bytes, void* sink, int threads) {
    using namespace STATESCAN_LEVEL;
    float total = 0;
#pragma omp parallel num_threads(threads) reduction(+ : total) if (threads > 1)
    {
        int thread = 0, count = 1;
#ifdef _OPENMP
        thread = omp_get_thread_num();
        count = omp_get_num_threads();
#endif
        // Four stretches side by side: where one comes to the end of a page, the others go on.
        const int64_t part = bytes / 4 / (4 * count) / kLanes * kLanes;
        const float* p = static_cast<const float*>(memory) + 4 * part * thread;
        vfloat sums[4] = {};
        for (int64_t i = 0; i < part; i += kLanes)
            for (int stretch = 0; stretch < 4; ++stretch) sums[stretch] += load(p + stretch * part + i);
        total += horizontal_sum((sums[0] + sums[1]) + (sums[2] + sums[3]));
    }
    *static_cast<float*>(sink) = total;
    return 0;
}

// What the vector units can do: the yardstick of benchmarks.
#include "common.h"

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

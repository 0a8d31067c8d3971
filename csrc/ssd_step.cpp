// One position of structured state-space duality: every state is read, advanced, weighed and written in one pass.
#include "common.h"
#include "math.h"

namespace STATESCAN_LEVEL {
namespace {

struct Step {
    const float *state, *x, *delta, *A, *B, *C, *D;
    float *y, *after;
    int64_t heads, head_dim, groups, state_dim;
    bool D_per_channel;

    // One channel: after = decay state + drive B; gives the sum of after C.
    float advance(const float* from, float* to, const float* B, const float* C, float decay, float drive) const {
        vfloat sum{};
        for (int64_t n = 0; n < state_dim; n += kLanes) {
            const int some = int(std::min<int64_t>(kLanes, state_dim - n));
            const vfloat s = load_some(from + n, some) * decay + load_some(B + n, some) * drive;
            store_some(to + n, s, some);
            sum += s * load_some(C + n, some);
        }
        return horizontal_sum(sum);
    }

    void head(int64_t batch, int64_t h) const {
        const int64_t at = batch * heads + h, group = (batch * groups + h / (heads / groups)) * state_dim;
        const float step = delta[at], decay = std::exp(step * A[h]);
        for (int64_t p = 0; p < head_dim; ++p) {
            const int64_t channel = at * head_dim + p, states = channel * state_dim;
            const float direct = D ? D[D_per_channel ? h * head_dim + p : h] * x[channel] : 0.0f;
            y[channel] = direct + advance(state + states, after + states, B + group, C + group, decay, step * x[channel]);
        }
    }
};

}  // namespace
}  // namespace STATESCAN_LEVEL

// state and after (batch, heads, head_dim, state_dim), x and y (batch, heads, head_dim), delta (batch, heads), A (heads,),
// B and C (batch, groups, state_dim), D (heads,) or (heads, head_dim) or null; all of float32 and contiguous.
STATESCAN_EXPORT(int, ssd_step)(const float* state, const float* x, const float* delta, const float* A, const float* B,
                                const float* C, const float* D, float* y, float* after, int64_t batch, int64_t heads,
                                int64_t head_dim, int64_t groups, int64_t state_dim, int D_per_channel, int threads) {
    using namespace STATESCAN_LEVEL;
    const Step step{state, x, delta, A, B, C, D, y, after, heads, head_dim, groups, state_dim, D_per_channel != 0};
#ifdef _OPENMP
#pragma omp parallel for collapse(2) num_threads(threads) if (threads > 1) schedule(static)
#endif
    for (int64_t b = 0; b < batch; ++b)
        for (int64_t h = 0; h < heads; ++h) step.head(b, h);
    return 0;
}

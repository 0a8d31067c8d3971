// Scans along every path of a token tree: a node continues from its parent, a root from the state before the tree.
// Nodes come after their parents. A head (Mamba-2) is one quadratic form over the nodes; a channel (Mamba) walks the
// nodes, with their states in scratch that stays in the first cache.
#include <cstdlib>

#include "common.h"
#include "math.h"

namespace STATESCAN_LEVEL {
namespace {

constexpr int64_t kMostNodes = 128;

inline float dot(const float* a, const float* b, int64_t count) {
    vfloat sum{};
    for (int64_t n = 0; n < count; n += kLanes) {
        const int some = int(std::min<int64_t>(kLanes, count - n));
        sum += load_some(a + n, some) * load_some(b + n, some);
    }
    return horizontal_sum(sum);
}

struct Heads {
    const float *x, *delta, *A, *B, *C, *D, *state;
    const int64_t* parents;
    float* y;
    int64_t nodes, heads, head_dim, groups, state_dim;
    bool D_per_channel, own_trees;

    // y_i = exp(a_i) C_i h0 + sum over the path of exp(a_i - a_j) (C_i B_j) delta_j x_j + D x_i, for one head.
    void head(int64_t batch, int64_t h) const {
        const int64_t* above = parents + (own_trees ? batch * nodes : 0);
        const int64_t group = h / (heads / groups);
        float total[kMostNodes];
        for (int64_t i = 0; i < nodes; ++i)
            total[i] = delta[(batch * nodes + i) * heads + h] * A[h] + (above[i] < 0 ? 0.0f : total[above[i]]);
        for (int64_t i = 0; i < nodes; ++i) {
            const int64_t row = batch * nodes + i;
            const float* u = x + (row * heads + h) * head_dim;
            const float* c = C + (row * groups + group) * state_dim;
            float* out = y + (row * heads + h) * head_dim;
            for (int64_t p = 0; p < head_dim; ++p) out[p] = D ? D[D_per_channel ? h * head_dim + p : h] * u[p] : 0.0f;
            float passed = 0.0f;  // the decay from j to i, summed on the way up: a difference of totals would lose digits
            for (int64_t j = i; j >= 0; j = above[j]) {
                const int64_t from = batch * nodes + j;
                const float* v = x + (from * heads + h) * head_dim;
                const float weight = std::exp(passed) * delta[from * heads + h] *
                                     dot(c, B + (from * groups + group) * state_dim, state_dim);
                passed += delta[from * heads + h] * A[h];
                for (int64_t p = 0; p < head_dim; p += kLanes) {
                    const int some = int(std::min<int64_t>(kLanes, head_dim - p));
                    store_some(out + p, load_some(out + p, some) + weight * load_some(v + p, some), some);
                }
            }
        }
        if (!state) return;
        for (int64_t i = 0; i < nodes; ++i) total[i] = std::exp(total[i]);
        const float* held = state + (batch * heads + h) * head_dim * state_dim;
        for (int64_t p = 0; p < head_dim; ++p)
            for (int64_t i = 0; i < nodes; ++i) {
                const int64_t row = batch * nodes + i;
                y[(row * heads + h) * head_dim + p] +=
                    total[i] * dot(C + (row * groups + group) * state_dim, held + p * state_dim, state_dim);
            }
    }
};

struct Channels {
    const float *x, *delta, *A, *B, *C, *D, *state;
    const int64_t* parents;
    float* y;
    int64_t nodes, channels, state_dim;
    bool own_trees;

    // scratch holds the states of all nodes, and those before the tree in its first row.
    void channel(int64_t batch, int64_t c, float* scratch) const {
        const int64_t* above = parents + (own_trees ? batch * nodes : 0);
        for (int64_t n = 0; n < state_dim; ++n)
            scratch[n] = state ? state[(batch * channels + c) * state_dim + n] : 0.0f;
        for (int64_t i = 0; i < nodes; ++i) {
            const int64_t row = batch * nodes + i, at = row * channels + c;
            const float step = delta[at], drive = step * x[at];
            const float* from = scratch + (above[i] + 1) * state_dim;
            float* to = scratch + (i + 1) * state_dim;
            vfloat sum{};
            for (int64_t n = 0; n < state_dim; n += kLanes) {
                const int some = int(std::min<int64_t>(kLanes, state_dim - n));
                const vfloat h = load_some(from + n, some) * exp(step * load_some(A + c * state_dim + n, some)) +
                                 drive * load_some(B + row * state_dim + n, some);
                store_some(to + n, h, some);
                sum += h * load_some(C + row * state_dim + n, some);
            }
            y[at] = horizontal_sum(sum) + (D ? D[c] * x[at] : 0.0f);
        }
    }
};

}  // namespace
}  // namespace STATESCAN_LEVEL

// x and y (batch, nodes, heads, head_dim), delta (batch, nodes, heads), A (heads,), B and C (batch, nodes, groups,
// state_dim), D (heads,) or (heads, head_dim) or null, state (batch, heads, head_dim, state_dim) or null, parents
// (nodes,) or (batch, nodes); floats are float32, all is contiguous. At most 128 nodes.
STATESCAN_EXPORT(int, tree_scan)(const float* x, const float* delta, const float* A, const float* B, const float* C,
                                 const float* D, const float* state, const int64_t* parents, float* y, int64_t batch,
                                 int64_t nodes, int64_t heads, int64_t head_dim, int64_t groups, int64_t state_dim,
                                 int D_per_channel, int own_trees, int threads) {
    using namespace STATESCAN_LEVEL;
    if (nodes > kMostNodes) return 1;
    const Heads work{x,     delta, A,        B,      C,         D,                  state,         parents, y,
                     nodes, heads, head_dim, groups, state_dim, D_per_channel != 0, own_trees != 0};
    (void)threads;
#ifdef _OPENMP
#pragma omp parallel for collapse(2) num_threads(threads) if (threads > 1) schedule(static)
#endif
    for (int64_t b = 0; b < batch; ++b)
        for (int64_t h = 0; h < heads; ++h) work.head(b, h);
    return 0;
}

// x, delta and y (batch, nodes, channels), A (channels, state_dim), B and C (batch, nodes, state_dim), D (channels,) or
// null, state (batch, channels, state_dim) or null, parents (nodes,) or (batch, nodes); all of it as above.
STATESCAN_EXPORT(int, selective_tree_scan)(const float* x, const float* delta, const float* A, const float* B,
                                           const float* C, const float* D, const float* state, const int64_t* parents,
                                           float* y, int64_t batch, int64_t nodes, int64_t channels, int64_t state_dim,
                                           int own_trees, int threads) {
    using namespace STATESCAN_LEVEL;
    const Channels work{x, delta, A, B, C, D, state, parents, y, nodes, channels, state_dim, own_trees != 0};
    (void)threads;
    const size_t bytes = sizeof(float) * size_t(nodes + 1) * size_t(state_dim);
    int failed = 0;
#ifdef _OPENMP
#pragma omp parallel num_threads(threads) if (threads > 1) reduction(| : failed)
#endif
    {
        float* scratch = static_cast<float*>(std::malloc(bytes));
        if (!scratch) failed = 1;
#ifdef _OPENMP
#pragma omp for collapse(2) schedule(static)
#endif
        for (int64_t b = 0; b < batch; ++b)
            for (int64_t c = 0; c < channels; ++c)
                if (scratch) work.channel(b, c, scratch);
        std::free(scratch);
    }
    return failed;
}

// The selective scan as Python calls it (src/statescan/kernels/cpu_selective_scan.py); forward and backward passes
// are in scan_forward.h and scan_backward.h.
#include "scan_backward.h"

namespace STATESCAN_LEVEL {
namespace {

// Bytes of one thread's workspace: for the most blocks that any thread owns.
template <typename V>
size_t workspace(const Problem& p, bool backward, int threads) {
    const Blocks blocks(p);
    int64_t most = 0;
    for (int thread = 0; thread < threads; ++thread) {
        const Share share(p, blocks, thread, threads);
        most = std::max(most, share.last_block() - share.first_block());
    }
    Arena arena(nullptr);
    if (backward)
        Backward<V>(p, most, arena);
    else
        Forward<V>(p, most, arena);
    return arena.used + 64;
}

template <typename V>
void forward(const Problem& p, void* y, void* last_state, void* saved, int threads, char* memory) {
    const size_t stride = workspace<V>(p, false, threads);
    parallel(threads, [&](int thread) {
        forward_share<V>(p, y, last_state, saved, thread, threads, memory + thread * stride);
    });
}

template <typename V>
void backward(const Problem& p, const Gradients& g, int threads, char* memory) {
    const size_t stride = workspace<V>(p, true, threads);
    parallel(threads, [&](int thread) { backward_share<V>(p, g, thread, threads, memory + thread * stride); });
    parallel(threads, [&](int thread) { reduce_share<V>(p, g, thread, threads, memory, stride); });
}

}  // namespace
}  // namespace STATESCAN_LEVEL

// Strides count elements; those of complex B and C count their floats.
#define PROBLEM_PARAMETERS                                                                                           \
    const void *x, const void *delta, const void *z, const void *A, const void *B, const void *C, const float *D,    \
        const float *delta_bias, const void *initial_state, const uint8_t *resets, const int64_t *offsets,           \
        int64_t x_stride, int64_t delta_stride, int64_t z_stride, int64_t B_stride, int64_t C_stride,                \
        int64_t B_group_stride, int64_t C_group_stride, int64_t B_groups, int64_t C_groups, int64_t sequences,       \
        int64_t length, int64_t channels, int64_t states, int x_type, int delta_type, int z_type, int B_type,        \
        int C_type, int softplus, int is_complex, int threads
#define PROBLEM                                                                                                      \
    Problem {                                                                                                        \
        {x, x_stride, x_type}, {delta, delta_stride, delta_type}, {z, z_stride, z_type}, A,                          \
            {{B, B_stride, B_type}, B_group_stride, B_groups}, {{C, C_stride, C_type}, C_group_stride, C_groups}, D, \
            delta_bias, initial_state, resets, offsets, sequences, length, channels, states, softplus != 0           \
    }

// Bytes / 1024 of the workspace that all threads together need.
STATESCAN_EXPORT(int, selective_scan_workspace)
(int64_t B_groups, int64_t C_groups, int64_t sequences, int64_t channels, int64_t states, int is_complex, int backward,
 int threads) {
    using namespace STATESCAN_LEVEL;
    Problem p{};
    p.B.groups = B_groups, p.C.groups = C_groups;
    p.sequences = sequences, p.channels = channels, p.states = states;
    const size_t stride = is_complex ? workspace<vcomplex>(p, backward, threads) : workspace<vfloat>(p, backward, threads);
    return int((stride * threads + 1023) / 1024);
}

STATESCAN_EXPORT(int, selective_scan_forward)
(PROBLEM_PARAMETERS, void* y, void* last_state, void* saved_states, void* memory) {
    using namespace STATESCAN_LEVEL;
    const Problem p = PROBLEM;
    (is_complex ? forward<vcomplex> : forward<vfloat>)(p, y, last_state, saved_states, threads,
                                                       static_cast<char*>(memory));
    return 0;
}

STATESCAN_EXPORT(int, selective_scan_backward)
(PROBLEM_PARAMETERS, const void* grad_y, int64_t grad_y_stride, const void* grad_last_state, const void* saved_states,
 void* grad_x, void* grad_delta, void* grad_A, void* grad_B, void* grad_C, float* grad_D, void* grad_z,
 float* grad_delta_bias, void* grad_initial_state, float* part_B, float* part_C, void* memory) {
    using namespace STATESCAN_LEVEL;
    const Problem p = PROBLEM;
    const Gradients g{{grad_y, grad_y_stride, x_type},
                      grad_last_state,
                      saved_states,
                      grad_x,
                      grad_delta,
                      grad_A,
                      grad_B,
                      grad_C,
                      grad_z,
                      grad_initial_state,
                      grad_D,
                      grad_delta_bias,
                      part_B,
                      part_C};
    (is_complex ? backward<vcomplex> : backward<vfloat>)(p, g, threads, static_cast<char*>(memory));
    return 0;
}

// Windows of so many positions are scanned backward too: `window` divides a tile.
STATESCAN_EXPORT(int, local_scan_forward)
(PROBLEM_PARAMETERS, int window, void* y, void* last_state, void* saved_states, void* memory) {
    using namespace STATESCAN_LEVEL;
    Problem p = PROBLEM;
    p.window = window;
    forward<vfloat>(p, y, last_state, saved_states, threads, static_cast<char*>(memory));
    return is_complex;
}

STATESCAN_EXPORT(int, local_scan_backward)
(PROBLEM_PARAMETERS, int window, const void* grad_y, int64_t grad_y_stride, const void* grad_last_state, const void* saved_states,
 void* grad_x, void* grad_delta, void* grad_A, void* grad_B, void* grad_C, float* grad_D, void* grad_z,
 float* grad_delta_bias, void* grad_initial_state, float* part_B, float* part_C, void* memory) {
    using namespace STATESCAN_LEVEL;
    Problem p = PROBLEM;
    p.window = window;
    const Gradients g{{grad_y, grad_y_stride, x_type},
                      grad_last_state,
                      saved_states,
                      grad_x,
                      grad_delta,
                      grad_A,
                      grad_B,
                      grad_C,
                      grad_z,
                      grad_initial_state,
                      grad_D,
                      grad_delta_bias,
                      part_B,
                      part_C};
    backward<vfloat>(p, g, threads, static_cast<char*>(memory));
    return is_complex;
}

// Scans along the walks of a route over grids: `length` positions a walk, `cells` rows a grid.
STATESCAN_EXPORT(int, route_scan_forward)
(PROBLEM_PARAMETERS, const int32_t* order, int64_t cells, int64_t delta_walk_stride, void* y, void* last_state, void* saved_states, void* memory) {
    using namespace STATESCAN_LEVEL;
    Problem p = PROBLEM;
    p.order = order, p.cells = cells;
    p.x.walk_stride = 0, p.delta.walk_stride = delta_walk_stride;
    forward<vfloat>(p, y, last_state, saved_states, threads, static_cast<char*>(memory));
    return is_complex;
}

STATESCAN_EXPORT(int, route_scan_backward)
(PROBLEM_PARAMETERS, const int32_t* order, int64_t cells, int64_t delta_walk_stride, const void* grad_y, int64_t grad_y_stride,
 const void* saved_states, void* grad_x, void* grad_delta, void* grad_A, void* grad_B, void* grad_C, float* grad_D,
 float* grad_delta_bias, float* part_B, float* part_C, void* memory) {
    using namespace STATESCAN_LEVEL;
    Problem p = PROBLEM;
    p.order = order, p.cells = cells;
    p.x.walk_stride = 0, p.delta.walk_stride = delta_walk_stride;
    const Gradients g{{grad_y, grad_y_stride, x_type},
                      nullptr,
                      saved_states,
                      grad_x,
                      grad_delta,
                      grad_A,
                      grad_B,
                      grad_C,
                      nullptr,
                      nullptr,
                      grad_D,
                      grad_delta_bias,
                      part_B,
                      part_C};
    backward<vfloat>(p, g, threads, static_cast<char*>(memory));
    return is_complex;
}

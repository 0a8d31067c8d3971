// Selective scans along the walks of a route, summed over the walks, the step sizes made on the way: inference alone.
//
// A strip of channels goes through all walks at once, so that neither the step sizes nor a walk's results are ever
// written to memory: what is read is the grid, the selected rows of each cell and the weights.
#include <vector>

#include "common.h"
#include "math.h"

namespace STATESCAN_LEVEL {
namespace {

struct Merged {
    const float* x;  // (batch x cells) rows
    int64_t x_stride;
    const float* selected;  // row and walk: [dt (rank), B (states), C (states)]
    int64_t selected_stride, walk_stride;
    const float* delta_weight;  // (walks, rank, width): `width` is whole registers of channels
    const float* A;             // (walks, states, width), times log2(e)
    const float* D;             // (walks, width)
    const float* delta_bias;    // (walks, width)
    const int32_t* order;       // (walks, length); -1: padding
    int64_t batch, cells, walks, length, channels, width, rank;
    float* y;  // (batch x cells, channels)
};

// Blocks of channels, and positions, whose step sizes are made together: as many sums as the registers hold.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kMergedBlocks = 4, kPositions = 4;
#else
constexpr int kMergedBlocks = 2, kPositions = 4;
#endif

template <int kStates, int kBlocks>
void scan_strip(const Merged& p, int64_t image, int64_t channel, int last_width, const float* nothing) {
    auto width = [&](int b) { return b + 1 < kBlocks ? kLanes : last_width; };
    const float* x = p.x + image * p.cells * p.x_stride + channel;
    float* y = p.y + image * p.cells * p.channels + channel;
    for (int64_t c = 0; c < p.cells; ++c)
        for (int b = 0; b < kBlocks; ++b) store_some(y + c * p.channels + b * kLanes, vfloat{}, width(b));
    for (int64_t k = 0; k < p.walks; ++k) {
        vfloat h[kBlocks][kStates]{}, A[kBlocks][kStates], D[kBlocks], bias[kBlocks];
        for (int b = 0; b < kBlocks; ++b) {
            const int64_t at = channel + b * kLanes;
            D[b] = load(p.D + k * p.width + at);
            bias[b] = load(p.delta_bias + k * p.width + at);
            for (int n = 0; n < kStates; ++n) A[b][n] = load(p.A + (k * kStates + n) * p.width + at);
        }
        for (int64_t first = 0; first < p.length; first += kPositions) {
            // Positions past the end are padding whose results go nowhere.
            int64_t cell[kPositions];
            const float* row[kPositions];
            for (int t = 0; t < kPositions; ++t) {
                cell[t] = first + t < p.length ? p.order[k * p.length + first + t] : -1;
                row[t] = cell[t] < 0 ? nothing : p.selected + (image * p.cells + cell[t]) * p.selected_stride + k * p.walk_stride;
            }
            vfloat step[kPositions][kBlocks];
#pragma GCC unroll 4
            for (int t = 0; t < kPositions; ++t)
#pragma GCC unroll 4
                for (int b = 0; b < kBlocks; ++b) step[t][b] = bias[b];
            const float* weights = p.delta_weight + k * p.rank * p.width + channel;
            for (int64_t r = 0; r < p.rank; ++r, weights += p.width) {
                vfloat weight[kBlocks];
#pragma GCC unroll 4
                for (int b = 0; b < kBlocks; ++b) weight[b] = load(weights + b * kLanes);
#pragma GCC unroll 4
                for (int t = 0; t < kPositions; ++t) {
                    const float value = row[t][r];
#pragma GCC unroll 4
                    for (int b = 0; b < kBlocks; ++b) step[t][b] += weight[b] * value;
                }
            }
#pragma GCC unroll 4
            for (int t = 0; t < kPositions; ++t)
#pragma GCC unroll 4
                for (int b = 0; b < kBlocks; ++b) step[t][b] = softplus(step[t][b]);
            for (int t = 0; t < kPositions && first + t < p.length; ++t) {
                const float *B = row[t] + p.rank, *C = B + kStates;
#pragma GCC unroll 4
                for (int b = 0; b < kBlocks; ++b) {
                    const vfloat value = cell[t] < 0 ? vfloat{} : load_some(x + cell[t] * p.x_stride + b * kLanes, width(b));
                    const vfloat u = step[t][b] * value;
                    vfloat sum = D[b] * value;
                    for (int n = 0; n < kStates; ++n) {
                        h[b][n] = exp2(step[t][b] * A[b][n]) * h[b][n] + B[n] * u;
                        sum += C[n] * h[b][n];
                    }
                    if (cell[t] < 0) continue;
                    float* to = y + cell[t] * p.channels + b * kLanes;
                    store_some(to, load_some(to, width(b)) + sum, width(b));
                }
            }
        }
    }
}

template <int kStates, int kBlocks = kMergedBlocks>
void scan_blocks(const Merged& p, int64_t image, int64_t channel, int64_t blocks, int last_width, const float* nothing) {
    if constexpr (kBlocks > 1) {
        if (blocks < kBlocks) return scan_blocks<kStates, kBlocks - 1>(p, image, channel, blocks, last_width, nothing);
    }
    scan_strip<kStates, kBlocks>(p, image, channel, last_width, nothing);
}

template <int kStates>
void scan(const Merged& p, int threads) {
    const int64_t blocks = (p.channels + kLanes - 1) / kLanes, total = p.batch * blocks;
    const std::vector<float> nothing(p.rank + 2 * kStates);
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (int thread = 0; thread < threads; ++thread) {
        const int64_t last = total * (thread + 1) / threads;
        for (int64_t at = total * thread / threads; at < last;) {
            const int64_t image = at / blocks, block = at % blocks;
            const int64_t some = std::min<int64_t>({kMergedBlocks, blocks - block, last - at});
            const int64_t channel = block * kLanes, end = std::min(p.channels, (block + some) * kLanes);
            scan_blocks<kStates>(p, image, channel, some, int(end - channel - (some - 1) * kLanes), nothing.data());
            at += some;
        }
    }
}

}  // namespace
}  // namespace STATESCAN_LEVEL

// 0, or 1 for a number of states that has no kernel.
STATESCAN_EXPORT(int, merged_scan_forward)
(const float* x, int64_t x_stride, const float* selected, int64_t selected_stride, int64_t walk_stride,
 const float* delta_weight, const float* A, const float* D, const float* delta_bias, const int32_t* order, int64_t batch,
 int64_t cells, int64_t walks, int64_t length, int64_t channels, int64_t width, int64_t rank, int64_t states, float* y,
 int threads) {
    using namespace STATESCAN_LEVEL;
    const Merged p{x,     x_stride, selected, selected_stride, walk_stride, delta_weight, A,    D, delta_bias,
                   order, batch,    cells,    walks,           length,      channels,     width, rank, y};
    if (states == 1) scan<1>(p, threads);
    else if (states == 2) scan<2>(p, threads);
    else if (states == 4) scan<4>(p, threads);
    else return 1;
    return 0;
}

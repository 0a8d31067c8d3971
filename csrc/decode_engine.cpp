// A whole language model in one call: tokens in, logits of the last positions out, states moved on in place.
#include <type_traits>

#include "decode_layers.h"

namespace STATESCAN_LEVEL {
namespace {

constexpr int64_t kOddLine = 16;  // floats in a cache line; kUnit is an even number of lines

// Sizes of the workspace, which Python allocates once, zeroed.
struct Sizes {
    int64_t rows, dim, wide, partial, widest, halves, scores;
    int threads;
};

Sizes measure(const Plan& plan, int64_t rows, int64_t scores, int threads) {
    Sizes z{rows, round_up(plan.dim, kUnit), kUnit, kBlock, round_up(plan.dim, kUnit), 0, scores, threads};
    for (int64_t i = 0; i < plan.depth; ++i) {
        const Layer& l = plan.layers[i];
        for (const Matrix* w : {&l.in, &l.gate, &l.select, &l.delta, &l.out}) {
            z.widest = std::max({z.widest, round_up(w->columns, kUnit)});
            z.wide = std::max({z.wide, round_up(w->columns, kUnit), round_up(w->rows, kUnit)});
        }
        if (l.kind == kMamba) {
            z.wide = std::max(z.wide, 2 * round_up(l.inner_dim, kUnit));
            z.partial = std::max(z.partial, round_up(l.select.rows, kBlock));
        }
    }
    z.widest = std::max(z.widest, z.partial);
    // Rows that lie a power of two apart would all fall into the same few places of the cache.
    z.dim += kOddLine;
    z.wide += kOddLine;
    z.halves = rows > 1 ? z.widest + 2 * kOddLine : 0;
    return z;
}

// Hands out pieces of one stretch of memory, each on a cache line of its own; with null, only counts.
struct Pieces {
    char* base;
    int64_t used = 0;
    template <typename T>
    T* take(int64_t count) {
        T* piece = base ? reinterpret_cast<T*>(base + used) : nullptr;
        used += round_up(count * int64_t(sizeof(T)), 64);
        return piece;
    }
};

Rows take_rows(Pieces& from, const Sizes& z) {
    Rows r{};
    r.dim_stride = z.dim;
    r.wide = z.wide;
    r.partial_width = z.partial;
    r.residual = from.take<float>(z.rows * z.dim);
    r.normed = from.take<float>(z.rows * z.dim);
    r.a = from.take<float>(z.rows * z.wide);
    r.b = from.take<float>(z.rows * z.wide);
    r.c = from.take<float>(z.rows * z.wide);
    r.partial = from.take<float>((z.threads + 1) * z.rows * z.partial);
    r.ld_halves = z.halves;
    r.normed_halves = from.take<uint16_t>(z.rows * z.halves);
    r.made_halves = from.take<uint16_t>(z.rows * z.halves);
    return r;
}

Scratch take_scratch(Pieces& from, const Sizes& z) {
    Scratch s{};
    s.row = from.take<float>(z.widest);
    s.widest = z.widest;
    s.high = from.take<int8_t>(z.rows * z.widest);
    s.low = from.take<int8_t>(z.rows * z.widest);
    s.high_sums = from.take<int32_t>(z.rows * (z.widest / 32));
    s.low_sums = from.take<int32_t>(z.rows * (z.widest / 32));
    s.scales = from.take<float>(z.rows);
    s.ld_half = z.halves;
    s.half = from.take<uint16_t>(z.rows * z.halves);
    s.panel = from.take<float>(z.rows > 1 ? kTileBlocks * kBlock * z.widest : 0);
    s.scores = from.take<float>(z.scores + kLanes);
    return s;
}

template <typename T>
void embed_row(const void* table, int64_t token, int64_t dim, float* to) {
    const T* from = static_cast<const T*>(table) + token * dim;
    for (int64_t i = 0; i < dim; ++i) to[i] = to_float(from[i]);
}

void embed(const Plan& plan, const Rows& r, const int64_t* tokens, Range mine) {
    for (int64_t m = mine.begin; m < mine.end; ++m) {
        float* to = r.residual + m * r.dim_stride;
        if (plan.embedding_type == kFloat32) embed_row<float>(plan.embedding, tokens[m], plan.dim, to);
        else if (plan.embedding_type == kBFloat16) embed_row<bfloat16>(plan.embedding, tokens[m], plan.dim, to);
        else embed_row<float16>(plan.embedding, tokens[m], plan.dim, to);
    }
}

// Norm and head for the last positions of every sequence.
void finish(const Worker& w, int64_t last, float* logits) {
    const Rows& r = w.rows;
    const int64_t wanted = r.sequences * last, stride = blocks_of(w.plan.head) * kBlock;
    float* features = wanted == 1 ? w.scratch.row : r.normed;
    const Range mine = wanted == 1 ? Range{0, 1} : share(wanted, 1, w.thread, w.threads);
    for (int64_t i = mine.begin; i < mine.end; ++i) {
        const int64_t m = (i / last + 1) * r.length - last + i % last;
        normalise(w.plan.norm, r.residual + m * r.dim_stride, features + i * r.dim_stride, w.plan.dim);
    }
    if (wanted > 1) w.team.wait();
    const Range blocks = share(blocks_of(w.plan.head), 1, w.thread, w.threads);
    const Activations x = prepare(w.plan.head, features, r.dim_stride, wanted, {0, w.plan.head.columns}, w.scratch,
                                  w.plan.dot_bfloat16 != 0);
    product(w.plan.head, x, blocks, {logits, stride, false}, w.scratch);
}

void work(const Worker& w, const LayerState* states, const int64_t* tokens, int64_t last, float* logits) {
    embed(w.plan, w.rows, tokens, share(w.rows.count(), 1, w.thread, w.threads));
    w.team.wait();
    for (int64_t i = 0; i < w.plan.depth; ++i) {
        const Layer& l = w.plan.layers[i];
        switch (l.kind) {
            case kMamba: run_mamba(w, l, states[i]); break;
            case kMamba2: run_mamba2(w, l, states[i]); break;
            case kAttention: run_attention(w, l, states[i]); break;
            default: run_mlp(w, l);
        }
    }
    if (last) finish(w, last, logits);
}

}  // namespace
}  // namespace STATESCAN_LEVEL

// Bytes of workspace for so many rows of activations, cached entries of attention and threads, written to `bytes`.
STATESCAN_EXPORT(int, decode_workspace)(const void* plan, int64_t rows, int64_t entries, int threads, int64_t* bytes) {
    using namespace STATESCAN_LEVEL;
    const Sizes z = measure(*static_cast<const Plan*>(plan), rows, entries, threads);
    Pieces pieces{nullptr};
    take_rows(pieces, z);
    for (int i = 0; i < threads; ++i) take_scratch(pieces, z);
    *bytes = pieces.used;
    return 0;
}

// tokens (sequences, length); `rows`, `entries` and `threads` as the workspace was made for. Logits (sequences, last,
// vocabulary rounded up to 16).
STATESCAN_EXPORT(int, decode_run)(const void* plan_, const void* states_, const int64_t* tokens, int64_t sequences,
                                  int64_t length, int64_t last, float* logits, void* workspace, int64_t rows,
                                  int64_t entries, int threads) {
    using namespace STATESCAN_LEVEL;
    const Plan& plan = *static_cast<const Plan*>(plan_);
    const LayerState* states = static_cast<const LayerState*>(states_);
    if (sequences * length > rows || last > length) return 1;
    const Sizes z = measure(plan, rows, entries, threads);
    Pieces pieces{static_cast<char*>(workspace)};
    Rows r = take_rows(pieces, z);
    r.sequences = sequences;
    r.length = length;
    const int64_t shared = pieces.used;
    int got = 1;
#ifdef _OPENMP
    // Fewer threads may come than were asked for; the team has to know before its first phase.
    alignas(64) char room[sizeof(Team)];
    Team* team = nullptr;
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
#pragma omp single
        {
            got = omp_get_num_threads();
            team = new (room) Team(got);
        }
        const int thread = omp_get_thread_num();
        Pieces own{static_cast<char*>(workspace), shared};
        Scratch scratch{};
        for (int i = 0; i <= thread; ++i) scratch = take_scratch(own, z);
        work(Worker{plan, r, scratch, *team, thread, got}, states, tokens, last, logits);
    }
#else
    Team team(got);
    Pieces own{static_cast<char*>(workspace), shared};
    work(Worker{plan, r, take_scratch(own, z), team, 0, got}, states, tokens, last, logits);
#endif
    return 0;
}

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

void run_layer(const Worker& w, const Layer& l, const LayerState& state) {
    switch (l.kind) {
        case kMamba: run_mamba(w, l, state); break;
        case kMamba2: run_mamba2(w, l, state); break;
        case kAttention: run_attention(w, l, state); break;
        default: run_mlp(w, l);
    }
}

// All threads at the same layer of the same rows.
void work(const Worker& w, const LayerState* states, const int64_t* tokens, int64_t last, float* logits) {
    embed(w.plan, w.rows, tokens, share(w.rows.count(), 1, w.thread, w.threads));
    w.team.wait();
    for (int64_t i = 0; i < w.plan.depth; ++i) run_layer(w, w.plan.layers[i], states[i]);
    if (last) finish(w, last, logits);
}

// What a thread has for itself to read pieces of a prompt with.
struct Reader {
    std::atomic<int64_t>* layers;  // how many it has behind it, of pieces 0, 1, 2, ... of the prompt, read by whomever
    Rows rows;
    Scratch scratch;
    int64_t bytes;
    Reader(char* base, const Sizes& z) {
        Pieces own{base};
        layers = own.take<std::atomic<int64_t>>(1);
        rows = take_rows(own, z);
        scratch = take_scratch(own, z);
        bytes = own.used;
    }
};

// A long prompt of one sequence: every thread takes the next piece of it through all layers by itself, always one layer
// behind the thread that has the piece before, which leaves it the state. They neither share a layer's rows, which stay
// in each core's cache, nor wait for each other while all are about as fast. All meet again for the last piece's logits.
void work_apart(const Plan& plan, const Sizes& z, char* workspace, Team& team, int thread, int threads,
                const LayerState* states, const int64_t* tokens, int64_t length, int64_t last, float* logits) {
    const int64_t bytes = Reader(nullptr, z).bytes, stride = blocks_of(plan.head) * kBlock;
    const int64_t pieces = (length + z.rows - 1) / z.rows;
    const auto reader = [&](int64_t piece) { return Reader(workspace + piece % threads * bytes, z); };
    Reader own = reader(thread);
    own.layers->store(0, std::memory_order_relaxed);
    own.rows.sequences = 1;
    team.wait();
    Team alone(1);
    const Worker w{plan, own.rows, own.scratch, alone, 0, 1};
    int64_t piece = thread;
    for (; piece < pieces; piece += threads) {
        const int64_t begin = piece * z.rows, end = std::min(begin + z.rows, length), behind = (piece - 1) * plan.depth;
        const std::atomic<int64_t>& before = *reader(piece + threads - 1).layers;
        own.rows.length = end - begin;
        embed(plan, own.rows, tokens + begin, {0, end - begin});
        for (int64_t i = 0; i < plan.depth; ++i) {
            if (piece) wait_until([&] { return before.load(std::memory_order_acquire) > behind + i; });
            LayerState state = states[i];
            state.cached += begin;
            run_layer(w, plan.layers[i], state);
            own.layers->store(piece * plan.depth + i + 1, std::memory_order_release);
        }
        const int64_t wanted = end - std::max(begin, length - last);
        if (end < length && wanted > 0) finish(w, wanted, logits + (end - wanted - (length - last)) * stride);
    }
    if (!last) return;
    team.wait();
    const int64_t left = length - (pieces - 1) * z.rows, wanted = std::min(left, last);
    Rows final = reader(pieces - 1).rows;
    final.sequences = 1;
    final.length = left;
    finish(Worker{plan, final, own.scratch, team, thread, threads}, wanted, logits + (last - wanted) * stride);
}

}  // namespace
}  // namespace STATESCAN_LEVEL

// Bytes of workspace for so many rows of activations, cached entries of attention and threads, written to `bytes`; with
// `apart`, for prompts of one sequence longer than that, in pieces of so many rows.
STATESCAN_EXPORT(int, decode_workspace)(const void* plan_, int64_t rows, int64_t entries, int threads, int apart,
                                        int64_t* bytes) {
    using namespace STATESCAN_LEVEL;
    const Plan& plan = *static_cast<const Plan*>(plan_);
    if (apart) {
        *bytes = threads * Reader(nullptr, measure(plan, rows, entries, 1)).bytes;
        return 0;
    }
    const Sizes z = measure(plan, rows, entries, threads);
    Pieces pieces{nullptr};
    take_rows(pieces, z);
    for (int i = 0; i < threads; ++i) take_scratch(pieces, z);
    *bytes = pieces.used;
    return 0;
}

// tokens (sequences, length); `rows`, `entries`, `threads` and `apart` as the workspace was made for. Logits (sequences,
// last, vocabulary rounded up to 16).
STATESCAN_EXPORT(int, decode_run)(const void* plan_, const void* states_, const int64_t* tokens, int64_t sequences,
                                  int64_t length, int64_t last, float* logits, void* workspace_, int64_t rows,
                                  int64_t entries, int threads, int apart) {
    using namespace STATESCAN_LEVEL;
    const Plan& plan = *static_cast<const Plan*>(plan_);
    const LayerState* states = static_cast<const LayerState*>(states_);
    char* workspace = static_cast<char*>(workspace_);
    if ((apart ? sequences > 1 : sequences * length > rows) || last > length) return 1;
    const Sizes z = measure(plan, rows, entries, apart ? 1 : threads);
    const auto work_of = [&](Team& team, int thread, int got) {
        if (apart) return work_apart(plan, z, workspace, team, thread, got, states, tokens, length, last, logits);
        Pieces pieces{workspace};
        Rows r = take_rows(pieces, z);
        r.sequences = sequences;
        r.length = length;
        Scratch scratch{};
        for (int i = 0; i <= thread; ++i) scratch = take_scratch(pieces, z);
        work(Worker{plan, r, scratch, team, thread, got}, states, tokens, last, logits);
    };
#ifdef _OPENMP
    // Fewer threads may come than were asked for; the team has to know before its first phase.
    alignas(64) char room[sizeof(Team)];
    Team* team = nullptr;
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
#pragma omp single
        team = new (room) Team(omp_get_num_threads());
        work_of(*team, omp_get_thread_num(), omp_get_num_threads());
    }
#else
    Team team(1);
    work_of(team, 0, 1);
#endif
    return 0;
}

// HSTU attention on the CPU, fused: scores, bias, mask, silu and both products tile by tile, nothing of size n x n.
//
//     s = alpha q k^T + bias,  a = silu(s) mask / N,  o = a v
//     dv = a^T do,  ds = (do v^T / N) silu'(s) mask,  dq = alpha ds k,  dk = alpha ds^T q
//
// All seven products multiply a left operand read in place by a packed right one (matrix.h); packing applies alpha and
// 1/N. The forward pass is in attention_forward.h. Threads share chunks of sequences out among them. Chunks do not depend on the number of threads, and each has
// gradient tables of its own, added up in order at the end: neither does the result.
#include <atomic>
#include <system_error>
#include <thread>
#include <vector>

#include "attention_forward.h"

namespace hstuflow {
namespace {

constexpr int64_t MOST_CHUNKS = 64;

// The part of 0..count that is number `part` of `num_parts`.
Range part_of(int64_t count, int64_t part, int64_t num_parts) {
    return {count * part / num_parts, count * (part + 1) / num_parts};
}

// Where the gradients go: q, k, v contiguous; a table that is null is not wanted.
struct Outputs {
    float *q, *k, *v, *position_weight, *time_weight;
};

int longest_of(const Problem& problem) {
    int64_t longest = 0;
    for (int64_t b = 0; b < problem.num_sequences; ++b)
        longest = std::max(longest, problem.offsets[b + 1] - problem.offsets[b]);
    return int(longest);
}

class Backward {
public:
    Backward(Arena& arena, const Problem& problem, const TimeBuckets& buckets, int longest)
        : problem_(problem),
          dim_(int(problem.dim_qk)),
          dim_v_(int(problem.dim_v)),
          width_(round_up(dim_, WIDTH)),
          width_v_(round_up(dim_v_, WIDTH)),
          mask_(arena, longest),
          bias_(arena, problem, buckets, longest) {
        heads_ = arena.take<Head>(problem.num_heads);
        const int panels = round_up(longest, PANEL);
        for (int64_t h = 0; h < problem.num_heads; ++h) {
            Head head{};
            head.panels_k = arena.take<float>(panels * dim_);
            head.panels_v = arena.take<float>(panels * dim_v_);
            head.q = arena.take<float>(longest * width_);
            head.k = arena.take<float>(longest * width_);
            head.grad = arena.take<float>(longest * width_v_);
            head.grad_q = arena.take<float>(TILE * width_);
            head.grad_k = arena.take<float>(longest * width_);
            head.grad_v = arena.take<float>(longest * width_v_);
            if (heads_) heads_[h] = head;
        }
        scores_ = arena.take<float>(TILE * TILE);
        grad_scores_ = arena.take<float>(TILE * TILE);
        grad_bias_ = arena.take<float>(TILE * TILE);
        diagonals_ = arena.take<float>(2 * TILE);
        time_sums_ = arena.take<float>(NUM_BUCKETS * WIDTH);
        if (time_sums_) std::fill(time_sums_, time_sums_ + NUM_BUCKETS * WIDTH, 0.0f);
    }

    void run(const HeadRows& grad, const Sequence& sequence, Range heads, const Outputs& outputs, double* grad_position,
             double* grad_time) {
        mask_.begin(problem_, sequence);
        bias_.begin(sequence);
        for (int64_t h = heads.first; h < heads.end; ++h) pack(grad, sequence, h);
        for (int row = 0; row < sequence.length; row += TILE) {
            const int rows = std::min(TILE, sequence.length - row);
            for (int64_t h = heads.first; h < heads.end; ++h)
                std::fill(heads_[h].grad_q, heads_[h].grad_q + rows * width_, 0.0f);
            mask_.for_each_tile(row, rows, [&](const Tile& tile) {
                const float* bias = problem_.has_bias() ? bias_.fill(tile) : nullptr;
                for (int64_t h = heads.first; h < heads.end; ++h) {
                    const Left q = left(problem_.q, sequence.start + tile.row, h);
                    const Left d_o = left(grad, sequence.start + tile.row, h);
                    add_tile(tile, row, q, d_o, heads_[h], bias, h == heads.first);
                }
                if (grad_position) bias_.add_position_gradient(tile, grad_bias_, grad_position, diagonals_);
                if (grad_time) {
                    bias_.add_time_gradient(tile, grad_bias_, time_sums_);
                    num_in_sums_ += tile.rows * tile.columns;
                    if (num_in_sums_ >= MOST_IN_SUMS) flush_time_gradient(grad_time);
                }
            });
            for (int64_t h = heads.first; h < heads.end; ++h)
                unpack(heads_[h].grad_q, rows, dim_, sequence.start + row, h, problem_.num_heads, outputs.q);
        }
        for (int64_t h = heads.first; h < heads.end; ++h) {
            unpack(heads_[h].grad_k, sequence.length, dim_, sequence.start, h, problem_.num_heads, outputs.k);
            unpack(heads_[h].grad_v, sequence.length, dim_v_, sequence.start, h, problem_.num_heads, outputs.v);
        }
    }

    // To be called at the end of a chunk.
    void flush_time_gradient(double* grad_time) {
        for (int bucket = 0; bucket < NUM_BUCKETS; ++bucket)
            for (int lane = 0; lane < WIDTH; ++lane) grad_time[bucket] += time_sums_[bucket * WIDTH + lane];
        std::fill(time_sums_, time_sums_ + NUM_BUCKETS * WIDTH, 0.0f);
        num_in_sums_ = 0;
    }

private:
    // Of one sequence, packed: right operands, and gradients that grow tile by tile (of q for one row of tiles).
    struct Head {
        float *panels_k, *panels_v, *q, *k, *grad, *grad_q, *grad_k, *grad_v;
    };

    // A single-precision sum takes at most this many terms, WIDTH of them side by side.
    static constexpr int MOST_IN_SUMS = 1 << 16;

    void pack(const HeadRows& grad, const Sequence& sequence, int64_t h) {
        const Head& head = heads_[h];
        const int length = sequence.length;
        const int64_t start = sequence.start;
        const float alpha = problem_.alpha, share = 1.0f / problem_.max_len;
        pack_panels(length, dim_, problem_.k.at(start, h), problem_.k.row_stride, alpha, head.panels_k);
        pack_panels(length, dim_v_, problem_.v.at(start, h), problem_.v.row_stride, share, head.panels_v);
        pack_rows(length, dim_, problem_.q.at(start, h), problem_.q.row_stride, alpha, head.q);
        pack_rows(length, dim_, problem_.k.at(start, h), problem_.k.row_stride, alpha, head.k);
        pack_rows(length, dim_v_, grad.at(start, h), grad.row_stride, share, head.grad);
        std::fill(head.grad_k, head.grad_k + length * width_, 0.0f);
        std::fill(head.grad_v, head.grad_v + length * width_v_, 0.0f);
    }

    void add_tile(const Tile& tile, int first_row, Left q, Left grad, const Head& head, const float* bias,
                  bool is_first) {
        const int row = tile.row, rows = tile.rows, column = tile.column, columns = tile.columns;
        const Right k{head.panels_k + column * dim_, PANEL}, v{head.panels_v + column * dim_v_, PANEL};
        multiply(rows, tile.width(), dim_, q, k, {scores_, TILE}, false);
        multiply(rows, tile.width(), dim_v_, grad, v, {grad_scores_, TILE}, false);
        for_each_vector(tile, mask_, [&](int at, IntVector visible) {
            Vector s = load(scores_ + at);
            if (bias) s += load(bias + at);
            const Vector sig = sigmoid(s);
            const Vector ds = visible ? load(grad_scores_ + at) * sig * (1.0f + s * (1.0f - sig)) : Vector{};
            store(scores_ + at, visible ? s * sig : Vector{});
            store(grad_scores_ + at, ds);
            if (bias) store(grad_bias_ + at, is_first ? ds : load(grad_bias_ + at) + ds);
        });
        const Left a = transposed(tile_of(scores_)), ds = tile_of(grad_scores_);
        float* grad_q = head.grad_q + (row - first_row) * width_;
        multiply(rows, width_, columns, ds, {head.k + column * width_, width_}, {grad_q, width_}, true);
        multiply(columns, width_, rows, transposed(ds), {head.q + row * width_, width_},
                 {head.grad_k + column * width_, width_}, true);
        multiply(columns, width_v_, rows, a, {head.grad + row * width_v_, width_v_},
                 {head.grad_v + column * width_v_, width_v_}, true);
    }

    const Problem& problem_;
    const int dim_, dim_v_, width_, width_v_;
    Mask mask_;
    Bias bias_;
    Head* heads_;
    float *scores_, *grad_scores_, *grad_bias_, *diagonals_, *time_sums_;
    int num_in_sums_ = 0;
};

// Calls work(thread) on as many threads as are useful, this one included.
template <class Work>
void on_threads(int64_t num_threads, Work work) {
    std::vector<std::thread> threads;
    try {
        for (int64_t t = 1; t < num_threads; ++t) threads.emplace_back(work, t);
    } catch (const std::system_error&) {
        // The machine gives no more threads: those that run take the work of the others, with the same result.
    }
    work(0);
    for (std::thread& thread : threads) thread.join();
}

// What a call is made of: tasks, shared out among threads, and the memory they need.
template <class Pass>
class Call {
public:
    Call(const Problem& problem, bool wants_tables, float* memory)
        : problem_(problem),
          longest_(longest_of(problem)),
          num_chunks_(std::min(problem.num_sequences, MOST_CHUNKS)),
          heads_apart_(problem.has_bias() ? 1 : problem.num_heads),
          num_threads_(std::max<int64_t>(1, std::min(problem.num_threads, num_chunks_ * heads_apart_))),
          arena_(memory),
          buckets_(arena_),
          table_size_(wants_tables ? NUM_BUCKETS + (problem.position_weight ? 2 * problem.max_len - 1 : 0) : 0),
          tables_(arena_.template take<double>(num_chunks_ * table_size_)) {
        Arena counted(nullptr);
        Pass pass(counted, problem, buckets_, longest_);
        pass_size_ = counted.used();
        pass_memory_ = arena_.template take<float>(num_threads_ * pass_size_);
        if (!memory) return;
        if (problem.time_weight) buckets_.build(problem.thresholds);
        std::fill(tables_, tables_ + num_chunks_ * table_size_, 0.0);
    }

    int64_t workspace() const { return arena_.used(); }

    // Calls visit(pass, sequences, heads, the chunk's tables) for every task.
    template <class Visit>
    void run(Visit visit) {
        std::atomic<int64_t> next{0};
        on_threads(num_threads_, [&](int64_t thread) {
            Arena arena(pass_memory_ + thread * pass_size_);
            Pass pass(arena, problem_, buckets_, longest_);
            for (int64_t task; (task = next++) < num_chunks_ * heads_apart_;) {
                const int64_t chunk = task / heads_apart_, part = task % heads_apart_;
                const Range sequences = part_of(problem_.num_sequences, chunk, num_chunks_);
                const Range heads = part_of(problem_.num_heads, part, heads_apart_);
                visit(pass, sequences, heads, tables_ + chunk * table_size_);
            }
        });
    }

    // Adds the chunks' tables up, those of positions and those of times.
    void sum_tables(float* position_weight, float* time_weight) const {
        for (int64_t i = 0; i < table_size_; ++i) {
            double total = 0;
            for (int64_t chunk = 0; chunk < num_chunks_; ++chunk) total += tables_[chunk * table_size_ + i];
            if (i < NUM_BUCKETS) {
                if (time_weight) time_weight[i] = float(total);
            } else if (position_weight) {
                position_weight[i - NUM_BUCKETS] = float(total);
            }
        }
    }

private:
    const Problem& problem_;
    const int longest_;
    const int64_t num_chunks_, heads_apart_, num_threads_;
    Arena arena_;
    TimeBuckets buckets_;
    const int64_t table_size_;
    double* tables_;
    int64_t pass_size_ = 0;
    float* pass_memory_ = nullptr;
};

}  // namespace
}  // namespace hstuflow

using namespace hstuflow;

extern "C" {

// How many floats of memory a call needs, -1 where the problem does not fit; the memory must start at a multiple of 64
// bytes.
int64_t hstu_attention_forward_workspace(const Problem* problem) {
    return problem->fits() ? Call<Forward>(*problem, false, nullptr).workspace() : -1;
}

int64_t hstu_attention_backward_workspace(const Problem* problem) {
    return problem->fits() ? Call<Backward>(*problem, true, nullptr).workspace() : -1;
}

// Writes all of `output`, contiguous (L, H, Dv).
void hstu_attention_forward(const Problem* problem, float* workspace, float* output) {
    Call<Forward> call(*problem, false, workspace);
    call.run([&](Forward& pass, Range sequences, Range heads, double*) {
        for (int64_t b = sequences.first; b < sequences.end; ++b) pass.run(Sequence(*problem, b), heads, output);
    });
}

// Writes all of `outputs`; `grad` is the gradient of the output.
void hstu_attention_backward(const Problem* problem, const HeadRows* grad, float* workspace, const Outputs* outputs) {
    Call<Backward> call(*problem, true, workspace);
    call.run([&](Backward& pass, Range sequences, Range heads, double* tables) {
        double* time = outputs->time_weight ? tables : nullptr;
        double* position = outputs->position_weight ? tables + NUM_BUCKETS : nullptr;
        for (int64_t b = sequences.first; b < sequences.end; ++b)
            pass.run(*grad, Sequence(*problem, b), heads, *outputs, position, time);
        if (time) pass.flush_time_gradient(time);
    });
    call.sum_tables(outputs->position_weight, outputs->time_weight);
}

}  // extern "C"

// HSTU over the new rows of one history, in one call: what a service computes, without a framework's overhead for each
// of the many small operations. Keys and values of the rows before are given, those of the new ones are written; of the
// last layer only the last row is wanted.
//
//     x = scale item_table[item] + position_table[place]
//     u, q = silu(layer_norm(x) W_uq);  v, k = silu(layer_norm(x) W_vk)       (a layer)
//     x += (u * layer_norm(attention(q, k, v))) W_o + b_o
//     y = x / max(|x|, least_length)
#include "attention_forward.h"
#include "rows.h"

namespace hstuflow {
namespace {

constexpr int PACKED = 16;  // packed matrices have rows of a multiple of it, hence of WIDTH: kernels/extend_cpu.py

// Weights are right operands (matrix.h). Rows of keys and values: (H, Dqk) and (H, Dv), one after another.
struct Layer {
    const float *uq, *vk;                        // (D, H Dv + H Dqk) each
    const float *output, *output_bias;           // (H Dv, D), (D,)
    const float *position_weight, *time_weight;  // (2N-1,) and (NUM_BUCKETS,), or null
    const float *past_keys, *past_values;        // n rows, not read where there are none
    float *keys, *values;                        // n + M rows: all are written; null where n = 0 and nobody wants them
};

// The fields of kernels/extend_cpu.py in the same order.
struct History {
    const Layer* layers;
    const float* item_table;      // (X, D)
    const float* position_table;  // (N, D)
    const int64_t* items;         // (M,)
    const int64_t* timestamps;    // (n + M,)
    const int64_t* asked_at;      // (M,): `next_timestamps` of the attention operator
    const int64_t* thresholds;    // (NUM_BUCKETS - 1,)
    int64_t num_layers, num_items, num_past, num_new, dim, num_heads, dim_qk, dim_v, max_len;
    float scale, eps, least_length;

    int64_t width_qk() const { return num_heads * dim_qk; }
    int64_t width_v() const { return num_heads * dim_v; }
    int64_t width() const { return width_v() + width_qk(); }
    int64_t length() const { return num_past + num_new; }
};

class Extend {
public:
    Extend(Arena& arena, const History& history)
        : history_(history),
          width_(round_up(int(history.width()), PACKED)),
          width_x_(round_up(int(history.dim), PACKED)),
          offsets_{0, history.length()},
          problem_(make_problem()),
          buckets_(arena),
          asked_at_(arena.take<int64_t>(history.length())),
          x_(arena.take<float>(history.num_new * width_x_)),
          normed_(arena.take<float>(history.num_new * width_x_)),
          vk_(arena.take<float>(history.num_new * width_)),
          uq_(arena.take<float>(history.length() * width_ + WIDTH)),
          attended_(arena.take<float>(history.length() * history.width_v() + WIDTH)),
          gated_(arena.take<float>(history.num_new * width_gated())),
          forward_(arena, problem_, buckets_, int(history.length())) {}

    Extend(const Extend&) = delete;  // forward_ refers to problem_

    bool fits() const {
        const auto is_known = [this](int64_t item) { return 0 <= item && item < history_.num_items; };
        return problem_.fits() && std::all_of(history_.items, history_.items + history_.num_new, is_known);
    }

    // Writes y of the last row, (D,).
    void run(float* output) {
        const int64_t num_new = history_.num_new;
        buckets_.build(history_.thresholds);
        std::copy_n(history_.asked_at, num_new, asked_at_ + history_.num_past);  // nobody looks at the rows before
        problem_.next_timestamps = asked_at_;
        for (int64_t i = 0; i < num_new; ++i) embed(i, x_ + i * width_x_);
        for (int64_t l = 0; l < history_.num_layers; ++l)
            run_layer(history_.layers[l], l + 1 < history_.num_layers ? 0 : num_new - 1);
        give_length_one(x_ + (num_new - 1) * width_x_, output);
    }

private:
    Problem make_problem() const {
        Problem problem{};
        problem.offsets = offsets_;
        problem.timestamps = history_.timestamps;
        problem.thresholds = history_.thresholds;
        problem.num_rows = history_.length();
        problem.num_sequences = 1;
        problem.num_heads = history_.num_heads;
        problem.dim_qk = history_.dim_qk;
        problem.dim_v = history_.dim_v;
        problem.max_len = history_.max_len;
        problem.num_threads = 1;
        problem.alpha = 1.0f;
        return problem;
    }

    int64_t width_gated() const { return padded(history_.width_v()); }

    void embed(int64_t i, float* x) const {
        const float* item = history_.item_table + history_.items[i] * history_.dim;
        const float* position = history_.position_table + (history_.num_past + i) * history_.dim;
        for (int64_t c = 0; c < history_.dim; ++c) x[c] = history_.scale * item[c] + position[c];
    }

    void give_length_one(const float* x, float* y) const {
        float squares = 0;
        for (int64_t c = 0; c < history_.dim; ++c) squares += x[c] * x[c];
        const float length = std::max(std::sqrt(squares), history_.least_length);
        for (int64_t c = 0; c < history_.dim; ++c) y[c] = x[c] / length;
    }

    // Of the new rows those from `first` on are wanted; the others give their keys and values.
    void run_layer(const Layer& layer, int64_t first) {
        const int64_t num_past = history_.num_past, num_new = history_.num_new;
        for (int64_t i = 0; i < num_new; ++i)
            normalize(x_ + i * width_x_, history_.dim, history_.eps, normed_ + i * width_x_);
        project(0, layer.vk, vk_);
        project(first, layer.uq, uq_ + (num_past + first) * width_);
        problem_.q = {uq_ + history_.width_v(), width_, history_.dim_qk};
        problem_.k = {vk_ + history_.width_v(), width_, history_.dim_qk};
        problem_.v = {vk_, width_, history_.dim_v};
        if (layer.keys) keep(layer);
        problem_.position_weight = layer.position_weight;
        problem_.time_weight = layer.time_weight;
        forward_.run(Sequence(problem_, 0), {0, history_.num_heads}, attended_, int(num_past + first));
        finish(layer, first);
    }

    // Projects the normalized rows from `first` on.
    void project(int64_t first, const float* weights, float* to) {
        const int rows = int(history_.num_new - first), dim = int(history_.dim);
        multiply(rows, int(width_), dim, {normed_ + first * width_x_, width_x_, 1}, {weights, width_}, {to, width_}, false);
        for (int64_t c = 0; c < rows * width_; c += WIDTH) {
            const Vector x = load(to + c);
            store(to + c, x * sigmoid(x));
        }
    }

    void keep(const Layer& layer) {
        problem_.k = {layer.keys, history_.width_qk(), history_.dim_qk};
        problem_.v = {layer.values, history_.width_v(), history_.dim_v};
        const int64_t num_past = history_.num_past, width_v = history_.width_v(), width_qk = history_.width_qk();
        copy(layer.past_values, num_past * width_v, layer.values);
        copy(layer.past_keys, num_past * width_qk, layer.keys);
        for (int64_t i = 0; i < history_.num_new; ++i) {
            copy(vk_ + i * width_, width_v, layer.values + (num_past + i) * width_v);
            copy(vk_ + i * width_ + width_v, width_qk, layer.keys + (num_past + i) * width_qk);
        }
    }

    // Adds what attention gave the rows from `first` on, normalized and gated.
    void finish(const Layer& layer, int64_t first) {
        const int64_t width_v = history_.width_v(), num_past = history_.num_past, dim = history_.dim;
        for (int64_t i = first; i < history_.num_new; ++i) {
            float* row = gated_ + i * width_gated();
            normalize(attended_ + (num_past + i) * width_v, width_v, history_.eps, row);
            const float* u = uq_ + (num_past + i) * width_;  // wide enough: q comes after it
            for (int64_t c = 0; c < width_v; c += WIDTH) store(row + c, load(row + c) * load(u + c));
        }
        const int rows = int(history_.num_new - first);
        float* x = x_ + first * width_x_;
        multiply(rows, int(width_x_), int(width_v), {gated_ + first * width_gated(), width_gated(), 1},
                 {layer.output, width_x_}, {x, width_x_}, true);
        for (int64_t i = 0; i < rows; ++i)
            for (int64_t c = 0; c < dim; ++c) x[i * width_x_ + c] += layer.output_bias[c];
    }

    const History& history_;
    const int64_t width_, width_x_;
    const int64_t offsets_[2];
    Problem problem_;
    TimeBuckets buckets_;
    int64_t* asked_at_;
    float *x_, *normed_, *vk_, *uq_, *attended_, *gated_;
    Forward forward_;
};

}  // namespace
}  // namespace hstuflow

using namespace hstuflow;

extern "C" {

// How many floats of memory a call needs, -1 where the history does not fit; they must start at a multiple of 64 bytes.
int64_t hstu_extend_workspace(const History* history) {
    Arena arena(nullptr);
    const Extend extend(arena, *history);
    return extend.fits() ? arena.used() : -1;
}

// Writes the last row's y, (D,), and the layers' keys and values.
void hstu_extend(const History* history, float* workspace, float* output) {
    Arena arena(workspace);
    Extend(arena, *history).run(output);
}

}  // extern "C"

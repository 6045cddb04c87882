// Softmax cross-entropy with each row's own sample of a table, and its gradients: kernels/sampled_softmax.py.
//
// Two passes. The rows one by one: gather, scores, loss, derivatives, gradient of the row, while the row's sample is
// in the nearest cache. Then the table: every thread owns a range of its rows and adds what all (row, sample) pairs
// bring to them, in the pairs' order, so that the sums do not depend on the number of threads.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <utility>
#include <vector>

#include "rows.h"
#include "vectors.h"

namespace {

using namespace hstuflow;

constexpr int MOST_VECTORS = 8;      // of a row held in registers at a time; wider rows take several goes
constexpr int ROWS_PER_THREAD = 32;  // with 128 samples each, and as many of the table: about 50 us

struct Problem {
    const float *y, *positives, *table;
    const int64_t *targets, *items;
    int64_t num_rows, num_samples, width;
    float scale, weight;
    float *losses, *derivatives, *grad_y, *grad_positives, *grad_table;  // the last four null where not wanted
};

// Lane l: the sum of the two halves of a pair of lanes, from a where bit STEP of l is 0, else from b.
template <size_t STEP, size_t... L>
Vector fold(Vector a, Vector b, std::index_sequence<L...>) {
    const Vector same{(L & STEP ? b : a)[L]...}, other{(L & STEP ? b : a)[L ^ STEP]...};
    return same + other;
}

// Lane l of the first vector becomes the sum of vector l.
template <size_t STEP = WIDTH / 2>
void sum_each(Vector* x) {
    for (size_t i = 0; i < STEP; ++i) x[i] = fold<STEP>(x[i], x[i + STEP], std::make_index_sequence<WIDTH>());
    if constexpr (STEP > 1) sum_each<STEP / 2>(x);
}

template <int N>
using Count = std::integral_constant<int, N>;

// Calls f(start, Count<N>) for pieces of N <= MOST_VECTORS vectors that cover a row.
template <int N = MOST_VECTORS, class F>
void for_pieces(int64_t width, const F& f, int64_t start = 0) {
    for (; width - start >= N * WIDTH; start += N * WIDTH) f(start, Count<N>());
    if constexpr (N > 1) {
        if (start < width) for_pieces<N - 1>(width, f, start);
    }
}

// scores[c] += <y, row of item c>, for a piece of N vectors; `scores` has room for whole vectors.
template <int N>
void add_scores(const float* y, const float* table, const int64_t* items, int64_t count, int64_t width, float* scores) {
    Vector part[N];
    for (int n = 0; n < N; ++n) part[n] = load(y + n * WIDTH);
    for (int64_t c = 0; c < count; c += WIDTH) {
        Vector products[WIDTH];
        for (int64_t l = 0; l < WIDTH; ++l) {
            const float* row = table + items[std::min(c + l, count - 1)] * width;
            products[l] = part[0] * load(row);
            for (int n = 1; n < N; ++n) products[l] += part[n] * load(row + n * WIDTH);
        }
        sum_each(products);
        store(scores + c, load(scores + c) + products[0]);
    }
}

// to = start * from + sum_c g[c] (row of item c), for a piece of N vectors.
template <int N>
void add_rows(const float* g, const float* table, const int64_t* items, int64_t count, int64_t width, float start,
              const float* from, float* to) {
    Vector even[N], odd[N];
    for (int n = 0; n < N; ++n) even[n] = start * load(from + n * WIDTH), odd[n] = Vector{};
    for (int64_t c = 0; c + 1 < count; c += 2) {
        const float *row = table + items[c] * width, *next = table + items[c + 1] * width;
        for (int n = 0; n < N; ++n) even[n] += g[c] * load(row + n * WIDTH);
        for (int n = 0; n < N; ++n) odd[n] += g[c + 1] * load(next + n * WIDTH);
    }
    if (count % 2) {
        for (int n = 0; n < N; ++n) even[n] += g[count - 1] * load(table + items[count - 1] * width + n * WIDTH);
    }
    for (int n = 0; n < N; ++n) store(to + n * WIDTH, even[n] + odd[n]);
}

// Scores become exp(score - highest) * weight, 0 for the row's own target and for the lanes after the last; their sum.
float exponentials(float* scores, const int64_t* items, int64_t target, int64_t count, float highest, float scale,
                   float weight) {
    Vector total{};
    for (int64_t c = 0; c < count; c += WIDTH) {
        store(scores + c, weight * exp(scale * load(scores + c) - highest));
        for (int64_t l = c; l < c + WIDTH; ++l) scores[l] = l < count && items[l] != target ? scores[l] : 0.0f;
        total += load(scores + c);
    }
    return sum(total);
}

void finish_row(const Problem& p, int64_t i, float* scores) {
    const int64_t *items = p.items + i * p.num_samples, count = p.num_samples;
    const float *y = p.y + i * p.width, *positive = p.positives + i * p.width;
    std::fill_n(scores, count + WIDTH, 0.0f);
    for_pieces(p.width, [&](int64_t d, auto n) {
        add_scores<n>(y + d, p.table + d, items, count, p.width, scores);
    });
    Vector products{};
    for (int64_t d = 0; d < p.width; d += WIDTH) products += load(y + d) * load(positive + d);
    const float own = p.scale * sum(products);
    const float highest = std::max(p.scale * *std::max_element(scores, scores + count), own);
    const float e = std::exp(own - highest);
    const float total = e + exponentials(scores, items, p.targets[i], count, highest, p.scale, p.weight);
    p.losses[i] = std::log(total) + highest - own;
    if (!p.derivatives) return;
    const float by_own = e / total - 1;
    float* g = p.derivatives + i * count;
    for (int64_t c = 0; c < count; ++c) g[c] = scores[c] / total;
    for_pieces(p.width, [&](int64_t d, auto n) {
        add_rows<n>(g, p.table + d, items, count, p.width, by_own, positive + d, p.grad_y + i * p.width + d);
    });
    for (int64_t d = 0; d < p.width; ++d) p.grad_positives[i * p.width + d] = by_own * y[d];
}

// Adds what the table's rows [first, last) get.
template <int N>
void scatter(const Problem& p, int64_t first, int64_t last, int64_t d) {
    for (int64_t i = 0, pair = 0; i < p.num_rows; ++i) {
        Vector y[N];
        for (int n = 0; n < N; ++n) y[n] = load(p.y + i * p.width + d + n * WIDTH);
        for (int64_t c = 0; c < p.num_samples; ++c, ++pair) {
            const int64_t item = p.items[pair];
            if (item < first || item >= last) continue;
            float* to = p.grad_table + item * p.width + d;
            const float g = p.derivatives[pair];
            for (int n = 0; n < N; ++n) store(to + n * WIDTH, load(to + n * WIDTH) + g * y[n]);
        }
    }
}

bool all_within(const int64_t* items, int64_t count, int64_t end) {
    bool within = true;
    for (int64_t i = 0; i < count; ++i) within &= static_cast<uint64_t>(items[i]) < static_cast<uint64_t>(end);
    return within;
}

}  // namespace

// Tensors are contiguous; `width` is a multiple of 16 (every WIDTH divides it), filled up with zeros; num_samples > 0;
// `grad_table` comes zeroed. `derivatives` (num_rows, num_samples) is working memory; null: losses only.
// Returns 1, or 0 where an item is no row of the table.
extern "C" int hstuflow_sampled_softmax(const float* y, const float* positives, const float* table,
                                        const int64_t* targets, const int64_t* items, int64_t num_rows,
                                        int64_t num_samples, int64_t table_rows, int64_t width, float scale,
                                        float weight, float* losses, float* derivatives, float* grad_y,
                                        float* grad_positives, float* grad_table, int64_t num_threads) {
    const Problem p{y,     positives, table,  targets,     items,  num_rows,       num_samples, width,
                    scale, weight,    losses, derivatives, grad_y, grad_positives, grad_table};
    std::atomic<bool> within{true};
    const auto finish_rows = [&](int64_t first, int64_t last) {
        std::vector<float> scores(num_samples + WIDTH);
        for (int64_t i = first; i < last && within; ++i) {
            if (all_within(items + i * num_samples, num_samples, table_rows)) {
                finish_row(p, i, scores.data());
            } else {
                within = false;
            }
        }
    };
    share_rows(num_rows, num_threads, finish_rows, ROWS_PER_THREAD);
    if (!within || !derivatives) return within;
    const auto finish_table = [&](int64_t first, int64_t last) {
        for_pieces(width, [&](int64_t d, auto n) { scatter<n>(p, first, last, d); });
    };
    share_rows(table_rows, num_threads, finish_table, ROWS_PER_THREAD);
    return 1;
}

// Work on the rows of a matrix, in buffers padded to whole vectors.
//
// 50 columns are 3 vectors and 2 floats. Handling those by themselves costs more than copying the row into a buffer and
// back, which stays in the first-level cache.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <system_error>
#include <thread>
#include <vector>

#include "vectors.h"

namespace hstuflow {

struct Rows {
    const float* data;
    int64_t stride;  // in floats

    const float* operator[](int64_t row) const { return data + row * stride; }
};

inline int64_t padded(int64_t width) { return (width + WIDTH - 1) / WIDTH * WIDTH; }

inline void copy(const float* from, int64_t width, float* to) { std::copy_n(from, width, to); }

// Copies a row into a buffer, with zeros after it.
inline void fill(std::vector<float>& buffer, const float* row, int64_t width) {
    copy(row, width, buffer.data());
    std::fill(buffer.begin() + width, buffer.end(), 0.0f);
}

// Layer norm without weights of one row to another, which may be the same, both padded; what `from` has behind its width
// does not matter, and `to` gets zeros there. Returns 1 / sqrt(variance + eps).
inline float normalize(const float* from, int64_t width, float eps, float* to) {
    const auto is_inside = [=](int64_t column) {
        IntVector lanes;
        for (int lane = 0; lane < WIDTH; ++lane) lanes[lane] = lane;
        return lanes < int(width - column);
    };
    Vector total{};
    for (int64_t c = 0; c < width; c += WIDTH) total += is_inside(c) ? load(from + c) : Vector{};
    const float mean = sum(total) / width;
    Vector squares{};
    for (int64_t c = 0; c < width; c += WIDTH) {
        const Vector centered = is_inside(c) ? load(from + c) - mean : Vector{};
        squares += centered * centered;
        store(to + c, centered);
    }
    const float rstd = 1.0f / std::sqrt(sum(squares) / width + eps);
    for (int64_t c = 0; c < width; c += WIDTH) store(to + c, load(to + c) * rstd);
    return rstd;
}

// Calls work(first, last) with ranges that make up all rows, on at most num_threads threads. A thread is started for
// at least rows_per_thread rows, which should be about 50 us of work: what starting one costs.
template <typename Work>
void share_rows(int64_t num_rows, int64_t num_threads, Work work, int64_t rows_per_thread = 1024) {
    const int64_t parts = std::max<int64_t>(1, std::min(num_threads, num_rows / rows_per_thread));
    std::vector<std::thread> threads;
    const auto cut = [=](int64_t part) { return num_rows * part / parts; };
    int64_t part = 1;
    try {
        for (; part < parts; ++part) threads.emplace_back(work, cut(part), cut(part + 1));
    } catch (const std::system_error&) {  // the machine gives no more threads: this one does the rest
        work(cut(part), num_rows);
    }
    work(0, cut(1));
    for (std::thread& thread : threads) thread.join();
}

}  // namespace hstuflow

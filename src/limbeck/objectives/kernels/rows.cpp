// The pointwise work over one chunk of logits: one row at a time, so that the student's and the teacher's
// row stay in the core's second-level cache through all passes, and the gradient is written over the
// student's row. Row passes: (1) maxima, (2) normalisers and entropies, (3) the divergence, (4) the
// gradient; forward KL does (3) and (4) in one.
//
// Plain C++ with GCC's vector types and OpenMP; no headers of torch, so it builds in seconds and is called
// through ctypes. What is computed, and what a probability of zero counts as, is said in divergences.py and
// rows.py; `Dense`, `Sparse` and `Term` below mirror the ctypes structures in cpu.py, `Blocks` the one in blocks.py.
#include <vector>

#include "blocks.h"
#include "dense.h"
#include "sparse.h"

namespace {

struct Scratch {
  std::vector<float> student_kept, teacher_kept, sum, student, teacher, student_blocks, teacher_blocks;
  Lists lists;

  explicit Scratch(const Chunk& chunk) {
    const size_t size = chunk.V + LANES;
    bool teacher_cap = false;
    for (int k = 0; k < chunk.terms; ++k) teacher_cap |= !chunk.term[k].is_sparse && chunk.term[k].dense.softcap > 0;
    student_blocks.resize(chunk.V / BLOCK + 1);
    teacher_blocks.resize(chunk.V / BLOCK + 1);
    student_kept.resize(size);
    teacher_kept.resize(size);
    if (chunk.terms > 1) sum.resize(size);
    if (chunk.softcap > 0) student.resize(size);
    if (teacher_cap) teacher.resize(size);
  }
};

template <class T> void cap_row(const T* row, int64_t V, float softcap, float* out) {
  each(0, V, [&](int64_t i, auto whole) {
    // tanh x = 1 - 2 / (1 + exp 2x), from the side where nothing overflows.
    vf x = load(row, i, V, whole) / softcap;
    vf size = select(x < 0.0f, -x, x);
    // Below 0.1 that is a difference of near equals; the series is exact to float there.
    vf e = exp_(-2.0f * size), small = size * (1.0f - size * size * (1.0f / 3 - size * size * (2.0f / 15)));
    vf tanh = select(size < 0.1f, small, (1.0f - e) / (1.0f + e));
    store(out, i, V, softcap * select(x < 0.0f, -tanh, tanh), whole);
  });
}

template <class S, class T>
void teacher_term(
    const Chunk& chunk, const Term& term, int64_t n, const S* s, Maxima of_s, Scratch& scratch, const Sink& sink) {
  const Exponentials kept{scratch.student_kept.data(), scratch.teacher_kept.data()};
  const T* t = static_cast<const T*>(term.dense.logits) + n * term.dense.stride;
  if (term.dense.softcap > 0) {
    cap_row(t, chunk.V, term.dense.softcap, scratch.teacher.data());
    const float* capped = scratch.teacher.data();
    dense_term(chunk, term, n, s, capped, of_s, scratch.teacher_blocks.data(), kept, sink);
  } else {
    dense_term(chunk, term, n, s, t, of_s, scratch.teacher_blocks.data(), kept, sink);
  }
}

template <class S> void terms_of_row(const Chunk& chunk, int64_t n, S* s, void* out, Scratch& scratch) {
  Sink sink{};
  sink.out = out;
  sink.sum = chunk.terms > 1 ? scratch.sum.data() : nullptr;
  sink.out_bf16 = chunk.gradient_bf16;
  sink.capped = chunk.softcap > 0 ? scratch.student.data() : nullptr;
  sink.softcap = chunk.softcap;
  Maxima of_s{0, scratch.student_blocks.data()};
  bool known = false;
  for (int k = 0; k < chunk.terms; ++k) {
    const Term& term = chunk.term[k];
    sink.first = k == 0;
    // Only a dense term may write the row: it has nothing to correct afterwards.
    sink.last = k + 1 == chunk.terms && !term.is_sparse;
    if (term.is_sparse) {
      sparse_term(chunk, term, n, s, scratch.lists, sink);
      continue;
    }
    if (!known) of_s.row = row_max(s, chunk.V, scratch.student_blocks.data());
    known = true;
    if (term.dense.is_bf16)
      teacher_term<S, bf16>(chunk, term, n, s, of_s, scratch, sink);
    else
      teacher_term<S, float>(chunk, term, n, s, of_s, scratch, sink);
  }
  if (chunk.gradient && sink.sum && !sink.last)
    each(0, chunk.V, [&](int64_t i, auto whole) { sink.write(i, chunk.V, load(sink.sum, i, chunk.V, whole), whole); });
}

template <class S> void row(const Chunk& chunk, int64_t n, Scratch& scratch) {
  S* s = static_cast<S*>(chunk.logits) + n * chunk.stride;
  if (chunk.softcap > 0) {
    cap_row(s, chunk.V, chunk.softcap, scratch.student.data());
    terms_of_row(chunk, n, scratch.student.data(), s, scratch);
  } else {
    terms_of_row(chunk, n, s, s, scratch);
  }
}

// Gradients of unlikely tokens are denormal, and a denormal costs a hundred cycles.
struct FlushDenormals {
#if defined(__SSE2__)
  unsigned before = _mm_getcsr();
  FlushDenormals() { _mm_setcsr(before | 0x8040); }
  ~FlushDenormals() { _mm_setcsr(before); }
#endif
};

}  // namespace

extern "C" void limbeck_rows(const Chunk* given) {
  const Chunk& chunk = *given;
#pragma omp parallel num_threads(chunk.threads)
  {
    FlushDenormals flush;
    Scratch scratch(chunk);
#pragma omp for schedule(dynamic, 1)
    for (int64_t n = 0; n < chunk.rows; ++n) {
      if (chunk.logits_bf16)
        row<bf16>(chunk, n, scratch);
      else
        row<float>(chunk, n, scratch);
    }
  }
}

extern "C" void limbeck_blocks(const Blocks* given) {
#pragma omp parallel num_threads(given->threads)
  {
    FlushDenormals flush;
#pragma omp for schedule(dynamic, 1)
    for (int64_t n = 0; n < given->rows; ++n) {
      if (given->is_bf16)
        blocks_of_row<bf16>(*given, n);
      else
        blocks_of_row<float>(*given, n);
    }
  }
}

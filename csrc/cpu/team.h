// The threads of a call.
#pragma once

#include <cfenv>
#include <cstdint>

#if defined(__linux__)
#define FASTRNN_LIBGOMP
// torch's threads on Linux are those of libgomp, and torch.set_num_threads sets how many. A
// compiler may have an OpenMP of its own, so no pragmas: these are the calls that GCC turns them
// into.
extern "C" {
void GOMP_parallel(void (*body)(void*), void* data, unsigned threads, unsigned flags);
void GOMP_barrier();
int omp_get_max_threads();
int omp_get_num_threads();
int omp_get_thread_num();
}
#endif

namespace fastrnn::cpu {

struct Team {
  int index;
  int size;
  void wait() const {
#if defined(FASTRNN_LIBGOMP)
    if (size > 1) GOMP_barrier();
#endif
  }
  // This member's share of n things.
  int64_t begin(int64_t n) const { return n * index / size; }
  int64_t end(int64_t n) const { return n * (index + 1) / size; }
};

// The pool keeps the size that torch set, and fewer threads may come.
inline int most_members(int threads) {
#if defined(FASTRNN_LIBGOMP)
  if (threads > 1) return omp_get_max_threads();
#endif
  (void)threads;
  return 1;
}

// The members compute in the caller's floating-point environment: torch.set_flush_denormal, say,
// applies to one thread.
template <typename F>
void in_parallel(int threads, const F& body) {
#if defined(FASTRNN_LIBGOMP)
  if (threads > 1) {
    struct Work {
      const F& body;
      std::fenv_t callers;

      static void run(void* work) noexcept {
        const Work& w = *static_cast<const Work*>(work);
        std::fenv_t own;
        std::fegetenv(&own);
        std::fesetenv(&w.callers);
        w.body(Team{omp_get_thread_num(), omp_get_num_threads()});
        std::fesetenv(&own);
      }
    };
    Work work{body, {}};
    std::fegetenv(&work.callers);
    GOMP_parallel(Work::run, &work, /*threads: all*/ 0, /*flags=*/0);
    return;
  }
#else
  (void)threads;
#endif
  body(Team{0, 1});
}

}  // namespace fastrnn::cpu

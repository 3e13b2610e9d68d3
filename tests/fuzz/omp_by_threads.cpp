// The OpenMP that the kernels use, by threads and a barrier of pthreads: ThreadSanitizer knows how
// these order memory. libgomp waits by system calls of its own, in which it sees no order. Linked
// into the extension by sanitize.py.
#include <pthread.h>

#include <thread>
#include <vector>

namespace {

constexpr int kTeam = 3;

struct Member {
  int index = 0, size = 1;
  pthread_barrier_t* barrier = nullptr;
};
thread_local Member member;

}  // namespace

#pragma GCC visibility push(hidden)
extern "C" {

int omp_get_max_threads() { return kTeam; }
int omp_get_num_threads() { return member.size; }
int omp_get_thread_num() { return member.index; }

void GOMP_barrier() { pthread_barrier_wait(member.barrier); }

void GOMP_parallel(void (*body)(void*), void* data, unsigned, unsigned) {
  pthread_barrier_t barrier;
  pthread_barrier_init(&barrier, nullptr, kTeam);
  const auto run = [&](int index) {
    member = {index, kTeam, &barrier};
    body(data);
    member = {};
  };
  std::vector<std::thread> others;
  for (int i = 1; i < kTeam; ++i) others.emplace_back(run, i);
  run(0);
  for (std::thread& other : others) other.join();
  pthread_barrier_destroy(&barrier);
}

}  // extern "C"
#pragma GCC visibility pop

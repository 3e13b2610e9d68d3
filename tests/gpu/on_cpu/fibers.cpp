// The fibers behind cuda_on_cpu.h. Compiled without ThreadSanitizer: what it is to know of the
// order of things is told to it here, by name.
#include <sys/mman.h>

#include <algorithm>
#include <cstdio>
#include <memory>
#include <random>
#include <string>
#include <unordered_map>
#include <vector>

#include "cuda_on_cpu.h"

extern "C" {  // of ThreadSanitizer, where the program is linked with it
[[gnu::weak]] void __tsan_acquire(void*);
[[gnu::weak]] void __tsan_release(void*);
[[gnu::weak]] void __tsan_write_range(void*, unsigned long);
[[gnu::weak]] void* __tsan_get_current_fiber();
[[gnu::weak]] void* __tsan_create_fiber(unsigned);
[[gnu::weak]] void __tsan_switch_to_fiber(void*, unsigned);
}

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

// Puts the registers that a call keeps on the stack, its pointer into *from, and goes on from `to`,
// left in the same way. (swapcontext would ask the system each time.)
extern "C" void fastrnn_switch(void** from, void* to);
#if defined(__x86_64__)
asm(R"(
.text
fastrnn_switch:
  push %rbp; push %rbx; push %r12; push %r13; push %r14; push %r15
  mov %rsp, (%rdi)
  mov %rsi, %rsp
  pop %r15; pop %r14; pop %r13; pop %r12; pop %rbx; pop %rbp
  ret
)");
#else
#error "cuda_on_cpu: fastrnn_switch is written for x86-64"
#endif

namespace fastrnn::cuda::fibers {
namespace {

constexpr unsigned kNoOrder = 1;  // a switch of fibers orders nothing
constexpr size_t kStack = 256 << 10;
constexpr int64_t kPatience = 50'000'000;
constexpr size_t kLate = 8;  // rounds of all fibers

void acquire(void* p) {
  if (__tsan_acquire) __tsan_acquire(p);
}
void release(void* p) {
  if (__tsan_release) __tsan_release(p);
}

// Without memcpy, which ThreadSanitizer sees.
void copy(void* to, const void* from, int bytes) {
  auto* target = static_cast<volatile unsigned char*>(to);
  for (int i = 0; i < bytes; ++i) target[i] = static_cast<const unsigned char*>(from)[i];
}

// Arrivals of alternate rounds are ordered apart, so that a round orders its own arrivals only.
struct Barrier {
  int arrived = 0;
  unsigned round = 0;
  char ordered[2];
  void* order(unsigned r) { return &ordered[r & 1]; }
};

struct SharedBarrierState {
  int count, pending, bytes;
  unsigned phase;
  char ordered[2];
  void check() {
    if (pending == 0 && bytes == 0) {
      ++phase;
      pending = count;
    }
  }
};

struct Warp {
  int arrived = 0;
  unsigned round = 0;
  unsigned char slots[32][kSlot];
};

struct Copy {
  void* to;
  const void* from;
  int bytes;
  bool valid;
};

struct Fiber {
  void* stack = nullptr;  // its pointer, while others run
  void* tsan = nullptr;
  uint3 thread, block;
  int rank;  // of the block among those that run
  bool done = false, may_give_up = false;
  const unsigned* waits_for = nullptr;  // to become other than...
  unsigned waits_from = 0;
  unsigned cluster_round = 0;
  std::vector<std::vector<Copy>> groups{1};
  size_t copied = 0;
};

struct Arrival {  // of a store_async, still under way
  void* to;
  unsigned char data[16];
  int bytes;
  void* barrier;
};

struct Machine {
  Launch how;
  const std::function<void()>* kernel;
  void* scheduler = nullptr;
  void* scheduler_tsan = nullptr;
  std::vector<Fiber> all;
  Fiber* current = nullptr;
  std::vector<unsigned char*> memory;
  std::vector<std::unordered_map<int, Barrier>> barriers;
  std::vector<std::vector<Warp>> warps;
  std::vector<Barrier> clusters;
  std::unordered_map<void*, SharedBarrierState> shared_barriers;
  std::vector<Arrival> under_way;
  std::mt19937 random{0};
  int64_t idle = 0;
  bool gave_up = false, hung = false;
};
Machine* machine = nullptr;

// While there is one, all that happens is the scheduler's doing: the fibers' own bookkeeping.
struct BehindTheScenes {
  BehindTheScenes() { to(machine->scheduler_tsan); }
  ~BehindTheScenes() { to(machine->current ? machine->current->tsan : nullptr); }
  static void to(void* fiber) {
    if (fiber) __tsan_switch_to_fiber(fiber, kNoOrder);
  }
};

[[noreturn]] void stop(const char* why) {
  std::fprintf(stderr, "cuda_on_cpu: %s (block %u, thread %u)\n", why, blockIdx.x, threadIdx.x);
  std::abort();
}

void to_scheduler() {
  Fiber& own = *machine->current;
  if (own.tsan) __tsan_switch_to_fiber(machine->scheduler_tsan, kNoOrder);
  fastrnn_switch(&own.stack, machine->scheduler);
}

void wait_until_changed(const unsigned* value, unsigned from) {
  Fiber& own = *machine->current;
  own.waits_for = value;
  own.waits_from = from;
  while (*value == from) to_scheduler();
  own.waits_for = nullptr;
}

void start() {
  acquire(&machine->all);
  (*machine->kernel)();
  release(machine);
  machine->current->done = true;
  to_scheduler();
}

// A stack on which start() begins; kept for the next launches.
void* new_stack(size_t index) {
  static std::vector<char*> kept;
  if (index == kept.size()) {
    void* p = mmap(nullptr, kStack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) stop("no memory for a stack");
    kept.push_back(static_cast<char*>(p));
  }
  void** top = reinterpret_cast<void**>(kept[index] + kStack) - 2;
  *top = reinterpret_cast<void*>(&start);
  return top - 6;  // the registers
}

// ThreadSanitizer's fibers are kept likewise: a new one takes a millisecond.
void* tsan_fiber(size_t index) {
  static std::vector<void*> kept;
  if (index == kept.size()) kept.push_back(__tsan_create_fiber(0));
  return kept[index];
}

void deliver(size_t index) {
  Arrival arrival = machine->under_way[index];
  machine->under_way[index] = machine->under_way.back();
  machine->under_way.pop_back();
  copy(arrival.to, arrival.data, arrival.bytes);
  auto& state = machine->shared_barriers.at(arrival.barrier);
  state.bytes -= arrival.bytes;
  state.check();
}

// Whether one of the threads, which all wait, does so for a barrier in shared memory.
bool give_up() {
  Machine& m = *machine;
  if (m.gave_up) return false;
  m.gave_up = std::any_of(m.all.begin(), m.all.end(),
                          [](const Fiber& f) { return !f.done && f.may_give_up; });
  return m.gave_up;
}

void run_together(dim3 grid, int first, int count) {
  Machine& m = *machine;
  const int threads = m.how.threads;
  m.all = std::vector<Fiber>(size_t(count) * threads);
  m.barriers.assign(count, {});
  m.warps.assign(count, std::vector<Warp>((threads + 31) / 32));
  m.clusters.assign(count / m.how.cluster, {});
  m.shared_barriers.clear();
  m.under_way.clear();
  const size_t bytes = (m.how.shared_bytes + 127) / 128 * 128 + 128;
  m.memory.clear();
  for (int r = 0; r < count; ++r) {
    m.memory.push_back(static_cast<unsigned char*>(std::aligned_alloc(128, bytes)));
    std::memset(m.memory.back(), 0xff, bytes);  // NaN
  }
  for (int i = 0; i < count * threads; ++i) {
    Fiber& f = m.all[i];
    const int b = first + i / threads;
    f.rank = i / threads;
    f.thread = {unsigned(i % threads), 0, 0};
    f.block = {b % grid.x, b / grid.x % grid.y, b / (grid.x * grid.y)};
    f.stack = new_stack(i);
    if (__tsan_create_fiber) f.tsan = tsan_fiber(i);
  }
  release(&m.all);
  std::vector<int> order(m.all.size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = int(i);
  std::shuffle(order.begin(), order.end(), m.random);
  const int late = count > 1 ? int(m.random() % count) : -1;  // a block that begins after others
  for (size_t left = m.all.size(), round = 0; left > 0; ++round) {
    bool ran = round < kLate;
    for (int i : order) {
      Fiber& f = m.all[i];
      if (f.rank == late && round < kLate) continue;
      const bool woken = m.gave_up && f.may_give_up;
      if (f.done || (f.waits_for && *f.waits_for == f.waits_from && !woken)) continue;
      ran = true;
      m.current = &f;
      threadIdx = f.thread;
      blockIdx = f.block;
      if (f.tsan) __tsan_switch_to_fiber(f.tsan, kNoOrder);
      fastrnn_switch(&m.scheduler, f.stack);
      if (f.done) --left;
    }
    if (!m.under_way.empty() && (!ran || m.random() % 4 == 0))
      for (int n = 1 + m.random() % 64; n > 0 && !m.under_way.empty(); --n)
        deliver(m.random() % m.under_way.size());
    else if (!ran && left > 0 && !give_up())
      stop("every thread waits");
    if (++m.idle > kPatience) stop("waits too long");
  }
  acquire(machine);
  if (!m.under_way.empty()) stop("a block ended before its store_async arrived");
  for (int r = 0; r < count; ++r) {
    for (size_t i = bytes - 128; i < bytes; ++i)
      if (m.memory[r][i] != 0xff) stop("written behind the end of shared memory");
    std::free(m.memory[r]);
  }
}

Barrier& barrier_of_block(int id) {
  const BehindTheScenes scene;
  return machine->barriers[machine->current->rank][id];
}

}  // namespace

cudaError_t run(const Launch& how, const std::function<void()>& kernel) {
  const int64_t blocks = int64_t{how.grid.x} * how.grid.y * how.grid.z;
  if (blocks == 0 || how.threads < 1 || how.threads > 1024 || how.grid.y > 65535 ||
      how.grid.x % how.cluster)
    return cudaErrorInvalidValue;
  if (device_state() != cudaSuccess) return device_state();
  planted.captured += planted.capturing;
  ++planted.launches;
  if (how.cluster > 1 && planted.of_launches != cudaSuccess) return planted.of_launches;
  planted.poisoned |= how.cluster > 1 && (planted.endless || planted.of_device != cudaSuccess);
  Machine own;
  machine = &own;
  own.how = how;
  own.kernel = &kernel;
  own.random.seed(static_cast<unsigned>(blocks * 1000 + how.threads));
  if (__tsan_get_current_fiber) own.scheduler_tsan = __tsan_get_current_fiber();
  blockDim = dim3(how.threads);
  gridDim = how.grid;
  const auto together = planted.together ? static_cast<int>(blocks) : how.cluster;
  for (int64_t first = 0; first < blocks; first += together) {
    own.gave_up = own.hung = false;
    run_together(how.grid, int(first), together);
  }
  machine = nullptr;
  return cudaSuccess;
}

void give_way() { to_scheduler(); }

int cluster_rank() { return machine->current->rank % machine->how.cluster; }

void* block_memory(int rank) {
  const int cluster = machine->how.cluster;
  return machine->memory[machine->current->rank / cluster * cluster + rank];
}

void block_barrier(int id, int threads) {
  Barrier& b = barrier_of_block(id);
  const unsigned round = b.round;
  release(b.order(round));
  if (++b.arrived == threads) {
    b.arrived = 0;
    ++b.round;
  } else {
    wait_until_changed(&b.round, round);
  }
  acquire(b.order(round));
}

void cluster_barrier(bool wait) {
  Fiber& own = *machine->current;
  Barrier& b = machine->clusters[own.rank / machine->how.cluster];
  if (!wait) {
    own.cluster_round = b.round;
    release(b.order(b.round));
    if (++b.arrived == machine->how.cluster * machine->how.threads) {
      b.arrived = 0;
      ++b.round;
    }
    return;
  }
  if (b.round == own.cluster_round) wait_until_changed(&b.round, own.cluster_round);
  acquire(b.order(own.cluster_round));
}

void collective(void* data, int bytes, void (*compute)(unsigned char (*)[kSlot], int),
                int argument) {
  const Fiber& own = *machine->current;
  Warp& w = machine->warps[own.rank][own.thread.x / 32];
  unsigned char* slot = w.slots[own.thread.x % 32];
  copy(slot, data, bytes);
  const unsigned round = w.round;
  if (++w.arrived == 32) {
    const BehindTheScenes scene;
    compute(w.slots, argument);
    w.arrived = 0;
    ++w.round;
  } else {
    wait_until_changed(&w.round, round);
  }
  copy(data, slot, bytes);
}

void init_barrier(void* barrier, int count) {
  const BehindTheScenes scene;
  machine->shared_barriers[barrier] = {count, count, 0, 0, {}};
}

void expect(void* barrier, int bytes) {
  auto& state = machine->shared_barriers.at(barrier);
  // Exchange n is phase n / 2 of the barrier n % 2 (cluster.cuh).
  const auto exchange = 2 * state.phase + reinterpret_cast<uintptr_t>(barrier) / 8 % 2;
  if (planted.hang > 0 && exchange == unsigned(planted.hang - 1) && !machine->hung) {
    machine->hung = true;
    bytes += 16;
  }
  state.bytes += bytes;
}

void arrive(void* barrier) {
  auto& state = machine->shared_barriers.at(barrier);
  release(&state.ordered[state.phase & 1]);
  if (--state.pending < 0) stop("more arrivals than a barrier's count");
  state.check();
}

bool wait_phase(void* barrier, int parity) {
  auto& state = machine->shared_barriers.at(barrier);
  Fiber& own = *machine->current;
  own.waits_for = &state.phase;
  own.may_give_up = true;
  while ((state.phase & 1) == unsigned(parity) && !machine->gave_up) {
    own.waits_from = state.phase;
    to_scheduler();
  }
  own.waits_for = nullptr;
  own.may_give_up = false;
  if ((state.phase & 1) == unsigned(parity)) return false;
  acquire(&state.ordered[parity]);
  return true;
}

void store_async(void* to, const void* from, int bytes, void* barrier) {
  auto found = machine->shared_barriers.find(barrier);
  if (found == machine->shared_barriers.end()) stop("store_async before its barrier is there");
  if (__tsan_write_range) __tsan_write_range(to, bytes);
  release(&found->second.ordered[found->second.phase & 1]);
  const BehindTheScenes scene;
  Arrival arrival{to, {}, bytes, barrier};
  copy(arrival.data, from, bytes);
  machine->under_way.push_back(arrival);
}

bool is_missing(std::string_view name, const Where& where) {
  if (!*planted.missing) return false;
  const std::string missing = planted.missing;
  const size_t in = missing.find(" in ");
  if (missing.substr(0, in) != name) return false;
  if (in != missing.npos) {
    const std::string called = "::" + missing.substr(in + 4) + "(";
    if (std::string_view(where.function_name()).find(called) == std::string_view::npos)
      return false;
  }
  return planted.missed = true;
}

bool comes_early() {
  const BehindTheScenes scene;
  ++planted.copies;
  return machine->random() % 2;
}

void copy_async(void* to, const void* from, int bytes, bool valid) {
  const BehindTheScenes scene;
  machine->current->groups.back().push_back({to, from, bytes, valid});
}

void commit_copies() {
  const BehindTheScenes scene;
  machine->current->groups.emplace_back();
}

int open_groups() { return int(machine->current->groups.size()) - 1; }

bool next_copy(void** to, const void** from, int* bytes, bool* valid) {
  const BehindTheScenes scene;
  Fiber& own = *machine->current;
  auto& group = own.groups.front();
  if (own.copied == group.size()) {
    own.groups.erase(own.groups.begin());
    own.copied = 0;
    return false;
  }
  const Copy& c = group[own.copied++];
  *to = c.to;
  *from = c.from;
  *bytes = c.bytes;
  *valid = c.valid;
  return true;
}

}  // namespace fastrnn::cuda::fibers

// A group of rows in the blocks of a thread-block cluster (sm_90 and later).
#pragma once

#include "cuda/math.cuh"

namespace fastrnn::cuda {

// Waits, but not forever. It gives up after about a second, soon if another wait of the kernel has,
// and at once for an exchange below 0; then it reports where, and calls in_vain. It looks at the
// clock only when it has to try again, and counts the periods that it sees: the kernel may have
// been preempted meanwhile.
template <typename F>
FASTRNN_DEVICE void wait(SharedBarrier* barrier, int parity, GaveUp* gave_up, int exchange,
                         const F& in_vain) {
  if (!try_wait(barrier, parity)) {
    constexpr int kPeriod = 20;        // 2^20 clocks are about 0.6 ms
    constexpr uint32_t kSeen = 0xfff,  // the last period, in the low bits; above, their count
        kOne = kSeen + 1, kPatience = 1700 * kOne;
    uint32_t periods = clocks() >> kPeriod;
    while (!try_wait(barrier, parity)) {
      const uint32_t now = clocks() >> kPeriod;
      if (now != (periods & kSeen)) periods = (periods & ~kSeen) + kOne + now;
      const bool others =
          exchange < 0 || (periods >= kOne && gave_up && load_volatile(&gave_up->yes));
      if (periods < kPatience && !others) continue;
      if (gave_up && !others)
        store_volatile(gave_up, {1, blockIdx.x, threadIdx.x, static_cast<uint32_t>(exchange)});
      in_vain();
      break;
    }
  }
}

// Slice is a Group of which each block has kHidden / kBlocks units, and each warp kWarpUnits of
// them from warp_unit() on. Every block keeps all of the state, twice.
//
// Tile plan: a warp puts its units of the next state into its own block's copy, and sends them from
//   there to the other blocks, 16 bytes at a time. A barrier in shared memory for each copy counts
//   the warps that have put, and the bytes that have come.
// Sync plan: exchange n (0: the first state) goes to copy n % 2 and is phase n / 2 of its barrier.
//   - All parts are there when a phase ends: it takes an arrival of each warp of the block, made
//     after its puts (warp_sync orders those of its lanes before lane 0's arrival), and the bytes
//     of the other blocks' warps, as many as these arrivals announce. Bytes may come before they
//     are announced: as an arrival is missing, the phase goes on.
//   - No part of exchange n + 2 overwrites what somebody still reads of exchange n: whoever sends
//     or puts it has received exchange n + 1, to which every warp of every block has given a part,
//     computed from all that it read of exchange n. For the same reason bytes of exchange n + 2
//     come only after exchange n's phase has ended, and a waiter never misses a phase. (PTX's
//     model does not order a thread's reads before its store_async. Where the data come of them,
//     that does. Of a row that has ended they do not; there the reads are issued before, and what
//     would overwrite them comes two hops later.)
//   - Own parts are read (to be sent) before they are put again, two exchanges later: the next
//     exchange's warp_sync stands between.
//   - Barriers are initialized before anybody sends: cluster_arrive in the constructor,
//     cluster_wait in load.
//   - No block ends before all that is sent to it has come: all of it belongs to exchanges that it
//     receives, the last included, and after a wait in vain a barrier of the cluster stands
//     between.
//   Only shared memory is exchanged; try_wait (device.cuh) says in which scope it acquires.
// Limits: clusters of at most 8 blocks, on devices with them; choose.cpp checks.
// Why: w_hh beyond one block's registers and shared memory, at one exchange a step: 350 clocks
// between 2 blocks, 500 to 1100 between 8, on an H200 (benchmarks/gpu/limits.cu).
template <typename Slice>
struct ClusterGroup : Slice {
  using Slice::kBlocks, Slice::kRows, Slice::kRowBytes, Slice::kStateBytes, Slice::kThreads;
  static constexpr int kWarpBytes = Slice::kWarpUnits * sizeof(typename Slice::Storage);
  static_assert(kBlocks > 1 && kRowBytes % 16 == 0 && kWarpBytes % 16 == 0);
  static_assert(Slice::kBarriersAt + 2 * sizeof(SharedBarrier) == Slice::kOwn.ring_at());

  static constexpr int kPerRow = kWarpBytes / 16, kPieces = kRows * kPerRow,
                       kToSend = (kBlocks - 1) * kPieces, kSends = (kToSend + 31) / 32;
  static_assert(32 % kPieces == 0, "a lane sends one piece, to one block or several");

  int received = 0;             // exchanges; fewer than none after a wait in vain
  bool lost = false;            // the same, which spares registers: this thread sends no more
  SharedAddress peers[kSends];  // where the shared memory begins to which this lane sends

  FASTRNN_DEVICE ClusterGroup() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
    fail();  // never chosen
#endif
    if (threadIdx.x == 0) {
      init_barrier(barrier(0), kThreads / 32);
      init_barrier(barrier(1), kThreads / 32);
      publish_barriers();
    }
    cluster_arrive();
#pragma unroll
    for (int i = 0; i < kSends; ++i) {
      const int n = i * 32 + static_cast<int>(threadIdx.x) % 32;
      const int to = (cluster_rank() + 1 + n / kPieces) % kBlocks;
      peers[i] = map_shared(shared_memory<unsigned char>(), to);
    }
  }

  FASTRNN_DEVICE static SharedBarrier* barrier(int copy) {
    unsigned char* own = shared_memory<unsigned char>() + Slice::kBarriersAt;
    return reinterpret_cast<SharedBarrier*>(own) + copy;
  }

  FASTRNN_DEVICE void load(const typename Slice::Storage* w, int64_t H, bool transposed) {
    Slice::load(w, H, transposed);
    cluster_wait();  // every block's barriers are there
  }

  FASTRNN_DEVICE void send(unsigned char* state, int copy) const {
    // Eight pieces are in different banks: of padded rows one below the other, else side by side.
    constexpr bool kDown = Slice::kOwn.on_tensor_cores();
    const int lane = threadIdx.x % 32, piece = lane % kPieces,
              row = kDown ? piece % kRows : piece / kPerRow,
              column = kDown ? piece / kRows : piece % kPerRow;
    warp_sync();  // the warp's puts are there
    if (lost) return;
    const unsigned char* from = state + this->warp_unit() * int(sizeof(typename Slice::Storage)) +
                                row * kRowBytes + column * 16;
    const uint4 x = load_shared(reinterpret_cast<const uint4*>(from));
    const auto at = static_cast<int>(from - shared_memory<unsigned char>());
#pragma unroll
    for (int i = 0; i < kSends; ++i) {
      if (kToSend % 32 != 0 && i * 32 + lane >= kToSend) break;
      store_async(peers[i] + at, x,
                  peers[i] + Slice::kBarriersAt + copy * int{sizeof(SharedBarrier)});
    }
    if (lane == 0) arrive_expecting(barrier(copy), kToSend * 16);
  }

  FASTRNN_DEVICE void receive(int copy, GaveUp* gave_up) {
    wait(barrier(copy), received >> 1 & 1, gave_up, received, [&] {
      lost = true;
      received = INT32_MIN;
      this->spoil();
    });
    ++received;
  }

  // No block's shared memory goes away while others may write to it.
  FASTRNN_DEVICE void leave() const { cluster_arrive(); }
  FASTRNN_DEVICE void left() const { cluster_wait(); }
};

}  // namespace fastrnn::cuda

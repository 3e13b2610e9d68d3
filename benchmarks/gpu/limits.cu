// What an sm_90 GPU takes for the pieces of a step: latencies and rates inside a block, the
// exchange of h inside a cluster (st.async, mbarrier), and launches.
// Prints a line of JSON for each; clocks are those of the multiprocessor, medians of kRuns runs.
// Every exchange checks what came. Wrong or missing data end the program with a message.
//
//   nvcc -std=c++20 -O3 -gencode=arch=compute_90a,code=sm_90a -Icsrc benchmarks/gpu/limits.cu
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "cuda/mma.cuh"

using namespace fastrnn::cuda;

namespace {

constexpr int kRuns = 9, kSteps = 512;
constexpr long long kPatience = 1LL << 31;  // clocks to wait for data: about a second

void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "limits: %s: %s\n", what, cudaGetErrorString(error));
  std::exit(1);
}

struct Result {
  long long clocks[1024];  // of each block
  unsigned wrong;          // words that came wrong
};
Result* result;  // on the GPU

template <typename... Parameters>
double median_clocks(const char* what, void (*kernel)(Result*, Parameters...), Launch how,
                     int count, Parameters... arguments) {
  std::vector<double> found;
  static Result host;
  if (how.cluster > 8) {
    check(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                               cudaFuncAttributeNonPortableClusterSizeAllowed, 1),
          what);
  }
  for (int run = 0; run <= kRuns; ++run) {  // the first warms up
    host = {};
    check(cudaMemcpy(result, &host, sizeof(Result), cudaMemcpyDefault), what);
    check(launch(kernel, how, result, arguments...), what);
    check(cudaDeviceSynchronize(), what);
    check(cudaMemcpy(&host, result, sizeof(Result), cudaMemcpyDefault), what);
    if (host.wrong != 0) {
      std::fprintf(stderr, "limits: %s: %u wrong words\n", what, host.wrong);
      std::exit(1);
    }
    const int blocks = how.grid.x;
    if (run > 0) found.push_back(*std::max_element(host.clocks, host.clocks + blocks));
  }
  std::nth_element(found.begin(), found.begin() + kRuns / 2, found.end());
  return found[kRuns / 2] / count;
}

// Waits for a phase, but not for ever.
__device__ void wait_a_while(SharedBarrier* barrier, int parity) {
  const long long start = clock64();
  while (!try_wait(barrier, parity)) {
    if (clock64() - start > kPatience) fail();
  }
}

// --- Inside a block

enum Chain { kFma, kSharedLoad, kLoadMatrices, kMmaHalf, kMmaTf32, kTanh, kShuffle, kBlockSync };
constexpr const char* kChainNames[] = {"FFMA",
                                       "ld.shared",
                                       "ldmatrix.x4",
                                       "mma.sync m16n8k16 fp16",
                                       "mma.sync m16n8k8 TF32",
                                       "ex2, rcp of tanh",
                                       "shfl, FADD",
                                       "__syncthreads"};

// A chain of operations, each of which needs the result of the one before.
template <Chain kChain>
__global__ void latency_kernel(Result* to, unsigned zero) {
  unsigned* shared = shared_memory<unsigned>();
  for (int i = threadIdx.x; i < 1024; i += blockDim.x) shared[i] = 0;
  block_sync();
  unsigned place = zero;
  float x = 1.0f + zero, c[4] = {x, x, x, x};
  uint32_t a[4] = {zero, zero, zero, zero}, b[2] = {zero, zero};
  const uint32_t start = clocks();  // in order with the asm statements, as clock64 is not
#pragma unroll 16
  for (int step = 0; step < kSteps; ++step) {
    if constexpr (kChain == kFma) x = fmaf(x, x, x);
    if constexpr (kChain == kSharedLoad) place = *(volatile unsigned*)(shared + place);
    if constexpr (kChain == kLoadMatrices) {
      load_matrices(a, shared + threadIdx.x % 32 * 4 + a[0]);
    }
    if constexpr (kChain == kMmaHalf) mma<Half>(c, a, b);
    if constexpr (kChain == kMmaTf32) mma<float>(c, a, b);
    if constexpr (kChain == kTanh) x = x * fast_reciprocal(1.0f + fast_exp2(x));
    if constexpr (kChain == kShuffle) x = shuffle_xor(x, 1) + 1.0f;
    if constexpr (kChain == kBlockSync) block_sync();
  }
  const uint32_t end = clocks();
  if (threadIdx.x == 0) to->clocks[blockIdx.x] = end - start;
  if (x + c[0] + place + a[0] == -1.0f) to->wrong = 1;  // keeps the chain
}

template <Chain kChain>
void latency(int threads) {
  const char* name = kChainNames[kChain];
  const double clocks =
      median_clocks(name, latency_kernel<kChain>, {1, threads, 4096, nullptr}, kSteps, 0u);
  std::printf("{\"what\": \"latency of %s\", \"threads\": %d, \"clocks\": %.1f}\n", name, threads,
              clocks);
}

// Independent multiply-adds: how many a multiprocessor does in a clock.
template <Chain kChain>
__global__ void rate_kernel(Result* to, unsigned zero) {
  constexpr int kIndependent = 8;
  float c[kIndependent][4] = {};
  uint32_t a[4] = {zero, zero, zero, zero}, b[2] = {zero, zero};
  float x = 1.0f + zero;
  block_sync();
  const long long start = clock64();
  for (int step = 0; step < kSteps; ++step) {
#pragma unroll
    for (int i = 0; i < kIndependent; ++i) {
      if constexpr (kChain == kMmaHalf) mma<Half>(c[i], a, b);
      if constexpr (kChain == kMmaTf32) mma<float>(c[i], a, b);
      if constexpr (kChain == kFma) {
#pragma unroll
        for (int j = 0; j < 4; ++j) c[i][j] = fmaf(c[i][j], x, x);
      }
    }
  }
  block_sync();
  const long long clocks = clock64() - start;
  if (threadIdx.x == 0) to->clocks[blockIdx.x] = clocks;
  float sum = 0;
  for (int i = 0; i < kIndependent; ++i) sum += c[i][0] + c[i][1] + c[i][2] + c[i][3];
  if (sum == -1.0f) to->wrong = 1;
}

template <Chain kChain>
void rate(int threads) {
  const char* name = kChainNames[kChain];
  const double clocks =
      median_clocks(name, rate_kernel<kChain>, {1, threads, 0, nullptr}, kSteps, 0u);
  const double of_a_warp = kChain == kFma ? 32 * 4 : 16 * 8 * (kChain == kMmaHalf ? 16 : 8);
  std::printf("{\"what\": \"rate of %s\", \"threads\": %d, \"multiply_adds_per_clock\": %.0f}\n",
              name, threads, of_a_warp * 8 * (threads / 32) / clocks);
}

// Loads of 16 bytes by warps that have four addresses each, of which `together` neighbouring lanes
// have the same. How many clocks of the multiprocessor a warp's load takes.
__global__ void broadcast_kernel(Result* to, int together) {
  constexpr int kIndependent = 8;
  unsigned* shared = shared_memory<unsigned>();
  for (int i = threadIdx.x; i < 1024; i += blockDim.x) shared[i] = 0;
  block_sync();
  unsigned x[kIndependent][4];
  const SharedAddress own = shared_address(shared + threadIdx.x / together % 4 * 4);
  const long long start = clock64();
  for (int step = 0; step < kSteps; ++step) {
#pragma unroll
    for (int i = 0; i < kIndependent; ++i) {
      asm volatile("ld.volatile.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                   : "=r"(x[i][0]), "=r"(x[i][1]), "=r"(x[i][2]), "=r"(x[i][3])
                   : "r"(own + i * 64));
    }
  }
  block_sync();
  const long long clocks = clock64() - start;
  if (threadIdx.x == 0) to->clocks[blockIdx.x] = clocks;
  for (int i = 0; i < kIndependent; ++i)
    if ((x[i][0] | x[i][1] | x[i][2] | x[i][3]) != 0) to->wrong = 1;
}

void broadcast(int together) {
  constexpr int kThreads = 256, kLoads = kSteps * 8 * (kThreads / 32);
  std::printf(
      "{\"what\": \"ld.shared.v4 of a warp at 4 addresses\", \"lanes together\": %d, "
      "\"clocks\": %.2f}\n",
      together,
      median_clocks("ld.shared.v4", broadcast_kernel, {1, kThreads, 4096, nullptr}, kLoads,
                    together));
}

// --- Inside a cluster

// Sixteen bytes go from the first block to the last and back: half of that is one hop.
__global__ void ping_kernel(Result* to, int blocks) {
  auto* barrier = shared_memory<SharedBarrier>();
  auto* box = reinterpret_cast<volatile uint4*>(shared_memory<unsigned char>() + 128);
  const int rank = cluster_rank(), peer = rank == 0 ? blocks - 1 : 0;
  const bool plays = threadIdx.x == 0 && (rank == 0 || rank == blocks - 1);
  if (threadIdx.x == 0) {
    init_barrier(barrier, 1);
    publish_barriers();
    arrive_expecting(barrier, 16);
  }
  cluster_sync();
  if (plays) {
    const SharedAddress there = map_shared(const_cast<uint4*>(box), peer),
                        bell = map_shared(barrier, peer);
    unsigned wrong = 0;
    const long long start = clock64();
    for (unsigned step = 0; step < kSteps; ++step) {
      if (rank == 0) store_async(there, make_uint4(step, 0, 0, 0), bell);
      wait_a_while(barrier, step & 1);
      arrive_expecting(barrier, 16);
      wrong += box->x != step;
      if (rank != 0) store_async(there, make_uint4(step, 0, 0, 0), bell);
    }
    to->clocks[blockIdx.x] = clock64() - start;
    if (wrong) atomicAdd(&to->wrong, wrong);
  }
  warp_sync();
  cluster_sync();
}

// The exchange of cluster.cuh and nothing else: at every step each warp writes `pieces` times 16
// bytes for its own block and sends them to the others of the cluster; two buffers, two barriers.
__global__ void exchange_kernel(Result* to, int blocks, int pieces) {
  constexpr int kMostSends = 4, kBuffer = 16 << 10;
  auto* barriers = shared_memory<SharedBarrier>();
  unsigned char* buffers = shared_memory<unsigned char>() + 128;
  const int warps = blockDim.x / 32, warp = threadIdx.x / 32, lane = threadIdx.x % 32,
            rank = cluster_rank(), to_send = (blocks - 1) * pieces;
  if (threadIdx.x == 0) {
    for (int i = 0; i < 2; ++i) init_barrier(barriers + i, warps);
    publish_barriers();
  }
  cluster_sync();
  SharedAddress peers[kMostSends];
#pragma unroll
  for (int i = 0; i < kMostSends; ++i)
    peers[i] = map_shared(barriers, (rank + 1 + (i * 32 + lane) / pieces) % blocks) -
               shared_address(barriers);
  unsigned wrong = 0;
  const long long start = clock64();
#pragma unroll 2
  for (unsigned step = 0; step < kSteps; ++step) {
    const int half = step & 1;
    unsigned char* buffer = buffers + half * kBuffer;
    unsigned char* own = buffer + ((rank * warps + warp) * pieces + lane % pieces) * 16;
    const uint4 x = make_uint4(step, step, step, step);
    if (lane < pieces) *reinterpret_cast<uint4*>(own) = x;
    warp_sync();
#pragma unroll
    for (int i = 0; i < kMostSends; ++i)
      if (i * 32 + lane < to_send)
        store_async(shared_address(own) + peers[i], x, shared_address(barriers + half) + peers[i]);
    if (lane == 0) arrive_expecting(barriers + half, to_send * 16);
    wait_a_while(barriers + half, step >> 1 & 1);
    const int other = ((rank + 1) % blocks * warps + warp) * pieces;
    wrong += *reinterpret_cast<volatile unsigned*>(buffer + other * 16) != step;
  }
  if (threadIdx.x == 0) to->clocks[blockIdx.x] = clock64() - start;
  if (wrong) atomicAdd(&to->wrong, wrong);
  warp_sync();
  cluster_sync();
}

__global__ void cluster_sync_kernel(Result* to) {
  cluster_sync();
  const long long start = clock64();
  for (int step = 0; step < kSteps; ++step) cluster_sync();
  if (threadIdx.x == 0) to->clocks[blockIdx.x] = clock64() - start;
}

int max_clusters(int blocks, int threads, int shared_bytes) {
  const void* kernel = reinterpret_cast<const void*>(exchange_kernel);
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes),
        "shared");
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1),
        "cluster of 16");
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim = {static_cast<unsigned>(blocks), 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(blocks);
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = shared_bytes;
  config.attrs = &attribute;
  config.numAttrs = 1;
  int clusters = 0;
  check(cudaOccupancyMaxActiveClusters(&clusters, kernel, &config),
        "cudaOccupancyMaxActiveClusters");
  return clusters;
}

void measure_clusters() {
  for (int blocks : {2, 4, 8, 16}) {
    const Launch one{static_cast<unsigned>(blocks), 32, 512, nullptr, blocks};
    std::printf("{\"what\": \"st.async hop\", \"blocks\": %d, \"clocks\": %.0f}\n", blocks,
                median_clocks("st.async hop", ping_kernel, one, 2 * kSteps, blocks));
    const Launch wide{static_cast<unsigned>(blocks), 256, 0, nullptr, blocks};
    std::printf(
        "{\"what\": \"cluster barrier\", \"blocks\": %d, \"threads\": 256, \"clocks\": %.0f}\n",
        blocks, median_clocks("cluster barrier", cluster_sync_kernel, wide, kSteps));
    for (int threads : {256, 512}) {
      for (int shared_bytes : {64 << 10, 200 << 10}) {
        std::printf(
            "{\"what\": \"clusters at a time\", \"blocks\": %d, \"threads\": %d, \"shared_bytes\": "
            "%d, "
            "\"clusters\": %d}\n",
            blocks, threads, shared_bytes, max_clusters(blocks, threads, shared_bytes));
      }
    }
    // Alone, and on the whole GPU at a time; a block's shared memory keeps others off its
    // multiprocessor.
    const int shared_bytes = 128 << 10, all = max_clusters(blocks, 256, shared_bytes);
    for (int clusters : {1, all}) {
      for (int threads : {128, 256}) {
        for (int pieces : {4, 16}) {
          if (clusters == 0 || blocks > 8) continue;  // a GPU too small; more than the kernels use
          const Launch how{static_cast<unsigned>(blocks * clusters), threads, shared_bytes, nullptr,
                           blocks};
          std::printf(
              "{\"what\": \"exchange\", \"blocks\": %d, \"clusters\": %d, \"warps\": %d, "
              "\"bytes of a warp\": %d, \"clocks\": %.0f}\n",
              blocks, clusters, threads / 32, pieces * 16,
              median_clocks("exchange", exchange_kernel, how, kSteps, blocks, pieces));
        }
      }
    }
  }
}

// --- Launches

__global__ void empty_kernel() {}

void measure_launches() {
  constexpr int kCount = 1000;
  cudaStream_t stream;
  cudaEvent_t start, end;
  check(cudaStreamCreate(&stream), "stream");
  check(cudaEventCreate(&start), "event");
  check(cudaEventCreate(&end), "event");
  cudaGraph_t graph;
  cudaGraphExec_t executable;
  check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal), "capture");
  for (int i = 0; i < kCount; ++i) empty_kernel<<<1, 32, 0, stream>>>();
  check(cudaStreamEndCapture(stream, &graph), "capture");
  check(cudaGraphInstantiate(&executable, graph, 0), "graph");
  for (bool captured : {false, true}) {
    std::vector<float> found(kRuns + 1);
    for (float& milliseconds : found) {
      check(cudaEventRecord(start, stream), "event");
      if (captured) check(cudaGraphLaunch(executable, stream), "graph");
      for (int i = 0; i < kCount && !captured; ++i) empty_kernel<<<1, 32, 0, stream>>>();
      check(cudaEventRecord(end, stream), "event");
      check(cudaEventSynchronize(end), "empty kernels");
      check(cudaEventElapsedTime(&milliseconds, start, end), "event");
    }
    std::sort(found.begin() + 1, found.end());
    std::printf("{\"what\": \"kernel after kernel\", \"captured\": %s, \"microseconds\": %.2f}\n",
                captured ? "true" : "false", found[1 + kRuns / 2] * 1e3 / kCount);
  }
}

}  // namespace

int main() {
  std::setvbuf(stdout, nullptr, _IOLBF, BUFSIZ);  // what was measured is seen, whatever follows
  cudaDeviceProp device;
  check(cudaGetDeviceProperties(&device, 0), "cudaGetDeviceProperties");
  check(cudaMalloc(&result, sizeof(Result)), "cudaMalloc");
  // First what decides between designs, should time run out.
  for (int together : {1, 2, 4, 8}) broadcast(together);
  if (device.major >= 9) measure_clusters();
  measure_launches();
  latency<kFma>(32);
  latency<kSharedLoad>(32);
  latency<kLoadMatrices>(32);
  latency<kMmaHalf>(32);
  latency<kMmaTf32>(32);
  latency<kTanh>(32);
  latency<kShuffle>(32);
  for (int threads : {32, 128, 256, 512, 1024}) latency<kBlockSync>(threads);
  for (int threads : {128, 256, 512}) {
    rate<kFma>(threads);
    rate<kMmaHalf>(threads);
    rate<kMmaTf32>(threads);
  }
  std::printf("{\"what\": \"complete\"}\n");
}

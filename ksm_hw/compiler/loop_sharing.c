// How a library's parallel loops are shared out among TVM's threads: in parts that a thread takes as it becomes free.
//
// TVM gives each thread one equal part and waits for the slowest, which another process or a slower core may have made
// late. The compiled loops call TVM's function through a pointer of this name, which TVM sets in every library that shows
// one when it loads it. Here the pointer is hidden, so it stays as it is, and all loops of the library call `Launch`, which
// has each of TVM's threads run `RunThread`. Every library carries this code: nothing is to be installed where it runs.
//
// A loop must have kUnits steps (tvm_passes/relax/loops/share_loops.py): of any other number TVM's parts of one size would
// not end where those of half the size begin. They are cut into equal regions, one for each thread, which keeps to its own
// as long as there is something left in it: what one loop left in a core's cache the next one finds there. A thread that
// is done helps in the regions of others. Parts of a region become shorter from two to two, each a quarter of what is left,
// down to single steps: the first are long, so that there are few, and the last short, so that all threads end at about
// the same time. A part changes no value: each step of a loop computes what it would alone.
//
// Compiled without any header, so that a cross compiler needs no C library.

typedef struct {
  void* sync_handle;
  int parts;
} Group;  // TVMParallelGroupEnv

// The body of a loop, that does one of so many equal parts. (With a barrier of TVM's in it, of which no schedule makes
// one, parts would wait for others that have not begun.)
typedef int (*Loop)(int part, Group* group, void* data);

extern int TVMBackendParallelLaunch(Loop loop, void* data, int threads);

enum { kUnits = UNITS, kRegions = 32 };

typedef struct {
  __attribute__((aligned(64))) unsigned taken;  // Parts so far, by all threads. In a cache line of its own.
} Region;

typedef struct {
  Loop loop;
  void* data;
  int failure;  // What a part returned that failed. TVM throws it, but does not where it has one thread.
  Region regions[kRegions];
} SharedLoop;

// Whether this thread is in a loop: one in it is its own, for TVM's threads are taken. Nothing unwinds past its end:
// compiled loops, and what they call, return that they failed, and TVM throws when all threads have returned.
static __thread int inside;

static int RunWhole(Loop loop, void* data, void* sync_handle) {
  Group alone = {sync_handle, 1};
  return loop(0, &alone, data);
}

// Takes parts of a region, whose number of units is a power of two, until none is left.
static int TakeParts(SharedLoop* shared, unsigned region, unsigned units, void* sync_handle) {
  for (;;) {
    const unsigned part = __atomic_fetch_add(&shared->regions[region].taken, 1, __ATOMIC_RELAXED);
    const unsigned left = part / 2 < 32 ? units >> part / 2 : 0;  // Units before this part and its twin.
    if (left < 2) return 0;
    const unsigned size = left < 4 ? 1 : left / 4;
    const unsigned first = region * units + units - left + part % 2 * size;
    Group parts = {sync_handle, kUnits / size};
    const int failure = shared->loop(first / size, &parts, shared->data);
    if (failure != 0) return failure;
  }
}

static int TakeRegions(SharedLoop* shared, unsigned thread, const Group* threads) {
  unsigned regions = 2;  // A power of two, as sizes of parts are.
  while ((int)regions < threads->parts && regions < kRegions) regions *= 2;
  for (unsigned next = 0; next < regions; ++next) {
    const int failure = TakeParts(shared, (thread + next) % regions, kUnits / regions, threads->sync_handle);
    if (failure != 0) return failure;
  }
  return 0;
}

static int RunThread(int thread, Group* threads, void* shared_loop) {
  SharedLoop* shared = shared_loop;
  inside = 1;
  const int failure = threads->parts == 1 ? RunWhole(shared->loop, shared->data, threads->sync_handle)
                                          : TakeRegions(shared, thread, threads);
  inside = 0;
  if (failure != 0) __atomic_store_n(&shared->failure, failure, __ATOMIC_RELAXED);
  return failure;
}

static int Launch(Loop loop, void* data, int threads) {
  if (inside) return RunWhole(loop, data, 0);
  SharedLoop shared = {loop, data, 0, {{0}}};
  const int failure = TVMBackendParallelLaunch(RunThread, &shared, threads);
  return failure != 0 ? failure : shared.failure;
}

__attribute__((visibility("hidden"))) int (*__TVMBackendParallelLaunch)(Loop, void*, int) = Launch;

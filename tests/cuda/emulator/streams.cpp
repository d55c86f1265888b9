// Streams and events of the emulated devices, and kernels in streams.
#include <chrono>
#include <functional>
#include <memory>
#include <utility>

#include "emulator/runtime.h"

namespace bertrt::cuda::emulator {

cudaError_t run_until(cudaStream_t stream, uint64_t position) {
  Runtime& r = runtime();
  while (stream->done < position && !stream->work.empty()) {
    const auto next = std::move(stream->work.front());
    stream->work.pop_front();
    ++stream->done;
    if (r.fault.empty()) next();
  }
  return r.fault.empty() ? cudaSuccess : cudaErrorLaunchFailure;
}

cudaError_t run_all() {
  Runtime& r = runtime();
  for (const cudaStream_t stream : r.streams) run_until(stream, stream->end());
  return r.fault.empty() ? cudaSuccess : cudaErrorLaunchFailure;
}

namespace {

// What the default stream comes after.
cudaError_t run_blocking() {
  Runtime& r = runtime();
  for (const cudaStream_t stream : r.streams) {
    if (stream->blocking) run_until(stream, stream->end());
  }
  return r.fault.empty() ? cudaSuccess : cudaErrorLaunchFailure;
}

}  // namespace

cudaError_t put(cudaStream_t stream, std::function<cudaError_t()> work) {
  Runtime& r = runtime();
  if (!stream) {
    if (breaks_capture()) return cudaErrorStreamCaptureUnsupported;
    const cudaError_t error = run_blocking();
    return error == cudaSuccess ? work() : error;
  }
  if (!r.streams.count(stream)) return cudaErrorInvalidResourceHandle;
  if (!r.fault.empty()) return cudaErrorLaunchFailure;
  if (stream->capture) {
    if (stream != capturing) return cudaErrorStreamCaptureUnsupported;  // another thread's
    if (stream->broken) return cudaErrorStreamCaptureInvalidated;
    stream->capture->work.push_back(std::move(work));
    return cudaSuccess;
  }
  stream->work.push_back(std::move(work));
  return cudaSuccess;
}

size_t graphs_alive() {
  const Lock lock;
  return runtime().execs.size();
}

cudaError_t enqueue(Launch launch, cudaStream_t stream) {
  Runtime& r = runtime();
  const Lock lock;
  if (launch.threads < 32 || launch.threads > kMaxThreads || launch.threads % 32 != 0 ||
      launch.shared_bytes > kMaxSharedBytes || launch.grid.x < 1 || launch.grid.y < 1 ||
      launch.grid.z < 1 || launch.grid.x > 0x7fffffff || launch.grid.y > 0xffff ||
      launch.grid.z > 0xffff) {
    return report(cudaErrorInvalidConfiguration);
  }
  if (launch.cluster < 1 || launch.cluster > kMaxCluster || launch.grid.x % launch.cluster != 0) {
    return report(cudaErrorInvalidClusterSize);
  }
  if (capturing && fails("launch in a capture") && capturing->capture->work.size() == 3) {
    return report(cudaErrorStreamCaptureUnsupported);
  }
  launch.device = current_device;
  if (stream && r.streams.count(stream) && stream->device != current_device) {
    return report(cudaErrorInvalidResourceHandle);
  }
  return report(put(stream, [launch = std::move(launch)] {
    try {
      run(launch);
    } catch (const Fault& fault) {
      runtime().fault = fault.what();
      return cudaErrorLaunchFailure;
    }
    return cudaSuccess;
  }));
}

}  // namespace bertrt::cuda::emulator

using namespace bertrt::cuda::emulator;

cudaError_t cudaDeviceSynchronize() {
  const Lock lock;
  if (breaks_capture()) return report(cudaErrorStreamCaptureUnsupported);
  return report(run_all());
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags) {
  const Lock lock;
  *stream = new CUstream_st;
  (*stream)->device = current_device;
  (*stream)->blocking = !(flags & cudaStreamNonBlocking);
  runtime().streams.insert(*stream);
  return cudaSuccess;
}
cudaError_t cudaStreamCreate(cudaStream_t* stream) { return cudaStreamCreateWithFlags(stream, 0); }

cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  const Lock lock;
  Runtime& r = runtime();
  if (!r.streams.count(stream)) return report(cudaErrorInvalidResourceHandle);
  const cudaError_t error = run_until(stream, stream->end());
  for (const cudaEvent_t event : r.events) {
    if (event->stream == stream) event->stream = nullptr;
  }
  r.streams.erase(stream);
  delete stream;
  return report(error);
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  const Lock lock;
  if (!stream) return report(run_blocking());
  if (!runtime().streams.count(stream)) return report(cudaErrorInvalidResourceHandle);
  if (stream->capture) {
    stream->broken = true;
    return report(cudaErrorStreamCaptureUnsupported);
  }
  return report(run_until(stream, stream->end()));
}

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode) {
  const Lock lock;
  Runtime& r = runtime();
  if (fails("cudaStreamBeginCapture")) return report(cudaErrorStreamCaptureUnsupported);
  // The one mode that is emulated.
  if (mode != cudaStreamCaptureModeThreadLocal) return report(cudaErrorInvalidValue);
  if (!stream || !r.streams.count(stream) || stream->capture || capturing) {
    return report(cudaErrorInvalidValue);
  }
  stream->capture = new CUgraph_st;
  stream->broken = false;
  r.graphs.insert(stream->capture);
  capturing = stream;
  return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  const Lock lock;
  Runtime& r = runtime();
  *graph = nullptr;
  if (!r.streams.count(stream) || capturing != stream) return report(cudaErrorInvalidValue);
  capturing = nullptr;
  CUgraph_st* const captured = std::exchange(stream->capture, nullptr);
  if (stream->broken || fails("cudaStreamEndCapture")) {
    r.graphs.erase(captured);
    delete captured;
    return report(cudaErrorStreamCaptureInvalidated);
  }
  *graph = captured;
  return cudaSuccess;
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  const Lock lock;
  if (!runtime().graphs.erase(graph)) return report(cudaErrorInvalidResourceHandle);
  delete graph;
  return cudaSuccess;
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t* exec, cudaGraph_t graph, unsigned long long) {
  const Lock lock;
  Runtime& r = runtime();
  *exec = nullptr;
  if (!r.graphs.count(graph)) return report(cudaErrorInvalidResourceHandle);
  if (fails("cudaGraphInstantiate")) return report(cudaErrorMemoryAllocation);
  *exec = new CUgraphExec_st{graph->work};
  r.execs.insert(*exec);
  return cudaSuccess;
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream) {
  const Lock lock;
  if (!runtime().execs.count(exec)) return report(cudaErrorInvalidResourceHandle);
  if (fails("cudaGraphLaunch")) return report(cudaErrorMemoryAllocation);
  return report(put(stream, [work = exec->work] {
    for (const auto& one : work) {
      if (runtime().fault.empty()) one();
    }
    return cudaSuccess;
  }));
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) {
  const Lock lock;
  if (!runtime().execs.erase(exec)) return report(cudaErrorInvalidResourceHandle);
  delete exec;
  return cudaSuccess;
}

cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
  const Lock lock;
  if (!runtime().events.count(event)) return report(cudaErrorInvalidResourceHandle);
  const cudaStream_t first = event->stream;
  const uint64_t position = event->position;
  if (!first) return cudaSuccess;
  return report(put(stream, [=] {
    // A stream that is gone had done all its work.
    return runtime().streams.count(first) ? run_until(first, position) : cudaSuccess;
  }));
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  const Lock lock;
  *event = new CUevent_st;
  runtime().events.insert(*event);
  return cudaSuccess;
}
cudaError_t cudaEventCreate(cudaEvent_t* event) { return cudaEventCreateWithFlags(event, 0); }

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  const Lock lock;
  if (!runtime().events.count(event)) return report(cudaErrorInvalidResourceHandle);
  event->time = std::make_shared<CUevent_st::Clock::time_point>();
  const cudaError_t error = put(stream, [time = event->time] {
    *time = CUevent_st::Clock::now();
    return cudaSuccess;
  });
  if (error != cudaSuccess) return report(error);
  event->stream = stream;
  event->position = stream ? stream->end() : 0;
  return cudaSuccess;
}

cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  const Lock lock;
  if (!runtime().events.count(event)) return report(cudaErrorInvalidResourceHandle);
  if (event->stream) return report(run_until(event->stream, event->position));
  return report(runtime().fault.empty() ? cudaSuccess : cudaErrorLaunchFailure);
}

cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t first, cudaEvent_t last) {
  const Lock lock;
  if (!runtime().events.count(first) || !runtime().events.count(last)) {
    return report(cudaErrorInvalidResourceHandle);
  }
  for (const cudaEvent_t event : {first, last}) {
    if (event->stream && event->stream->done < event->position) return cudaErrorNotReady;
  }
  *milliseconds = std::chrono::duration<float, std::milli>(*last->time - *first->time).count();
  return cudaSuccess;
}

cudaError_t cudaEventDestroy(cudaEvent_t event) {
  const Lock lock;
  if (!runtime().events.erase(event)) return report(cudaErrorInvalidResourceHandle);
  delete event;
  return cudaSuccess;
}

// The module _cuda_emulated: the CUDA kernels on the emulator, for tests. It is never installed.
#include <optional>
#include <vector>

#include <pybind11/stl.h>

#include "bindings/cuda.h"
#include "bindings/inputs.h"
#include "bindings/testing/cuda_kernels.h"
#include "bindings/testing/device_arrays.h"
#include "cuda/depth.h"
#include "cuda/hopper/attention_layout.h"
#include "cuda/tile_order.h"
#include "emulator/emulator.h"
#include "probes.h"

namespace py = pybind11;

namespace bertrt::bindings {
namespace {

FloatArray probe(const std::string& name, const FloatArray& x) {
  const DeviceArray in(x);
  const DeviceMatrix out(1, x.size(), cuda::Element::kFp32);
  cuda::probes::run(name, in.as<float>(), static_cast<float*>(out.rows().data), nullptr);
  return out.download().attr("ravel")();
}

// A probe that overlaps the kernel before it, or has weights to read.
FloatArray overlapping_probe(const std::string& name, const FloatArray& x, bool weights) {
  const DeviceArray in(x);
  const DeviceMatrix between(1, x.size(), cuda::Element::kFp32);
  const DeviceMatrix out(1, x.size(), cuda::Element::kFp32);
  cuda::probes::run_overlapping(name, in.as<float>(),
                                weights ? nullptr : static_cast<float*>(between.rows().data),
                                static_cast<float*>(out.rows().data));
  return out.download().attr("ravel")();
}

// A probe that reads what it must not: "host" memory, "freed" memory, or that of "another" device.
void misplaced_probe(const std::string& name, const FloatArray& x, const std::string& memory) {
  std::optional<DeviceArray> in(x);
  const float* data = memory == "host" ? x.data() : in->as<float>();
  const DeviceMatrix out(1, x.size(), cuda::Element::kFp32);
  if (memory == "freed") in.reset();
  if (memory == "another") cuda::use_device(1);
  cuda::probes::run(name, data, static_cast<float*>(out.rows().data), nullptr);
}

// Copies more to the device than there is memory.
void overlong_copy(const FloatArray& x) {
  const cuda::DeviceMemory memory(static_cast<size_t>(x.nbytes()) - 1);
  cuda::check(cudaMemcpy(memory.data(), x.data(), memory.bytes() + 1, cudaMemcpyHostToDevice),
              "a test's copy");
}

// Writes some bytes of memory, has the device copy all of it, and the host what it copied.
void copy_back(int64_t bytes, int64_t written) {
  const auto size = static_cast<size_t>(bytes);
  const cuda::DeviceMemory memory(size), copied(size);
  cuda::check(cudaMemset(memory.data(), 0, static_cast<size_t>(written)), "a test's memory");
  cuda::check(cudaMemcpy(copied.data(), memory.data(), size, cudaMemcpyDeviceToDevice),
              "a test's copy");
  std::vector<char> host(size);
  cuda::check(cudaMemcpy(host.data(), copied.data(), size, cudaMemcpyDeviceToHost),
              "a test's copy");
}

// A probe in a stream of its own: out as it is before anybody has waited, and after.
py::tuple probe_in_stream(const std::string& name, const FloatArray& x) {
  const DeviceArray in(x);
  const DeviceMatrix out(1, x.size(), cuda::Element::kFp32);
  const cuda::PinnedMemory pinned(static_cast<size_t>(x.nbytes()));
  const cuda::OwnedStream stream;
  cuda::probes::run(name, in.as<float>(), static_cast<float*>(out.rows().data), stream);
  cuda::check(cudaMemcpyAsync(pinned.data(), out.rows().data, pinned.bytes(),
                              cudaMemcpyDeviceToHost, stream),
              "a test's copy");
  const auto copy = [&] { return FloatArray(x.size(), static_cast<const float*>(pinned.data())); };
  // The default stream does not wait for this one.
  cuda::check(cudaStreamSynchronize(nullptr), "a test's wait");
  const FloatArray before = copy();
  stream.wait();
  return py::make_tuple(before, copy());
}

void start(int64_t blocks, int threads, size_t shared_bytes, unsigned cluster) {
  cuda::probes::start_empty(cluster, blocks, threads, shared_bytes, nullptr);
}

// x: 512 floats.
FloatArray cluster_probe(const std::string& name, const FloatArray& x) {
  const DeviceArray in(x);
  const DeviceMatrix out(1, x.size(), cuda::Element::kFp32);
  cuda::probes::run_cluster(name, in.as<float>(), static_cast<float*>(out.rows().data));
  return out.download().attr("ravel")();
}

FloatArray hopper_probe(void (*run)(const std::string&, const uint16_t*, float*),
                        const std::string& name, const py::array_t<uint16_t>& tile) {
  const DeviceArray in(tile);
  const DeviceMatrix out(1, 128, cuda::Element::kFp32);
  run(name, in.as<uint16_t>(), static_cast<float*>(out.rows().data));
  return out.download().attr("ravel")();
}

FloatArray product(const std::string& element, const py::array& a, const py::array& b,
                   const FloatArray& sums) {
  const DeviceArray on_a(a), on_b(b);
  const DeviceMatrix out(sums, cuda::Element::kFp32);
  cuda::probes::product(parse_element(element), on_a.as<uint16_t>(), on_b.as<uint16_t>(),
                        b.shape(0) == 16, static_cast<float*>(out.rows().data), nullptr);
  return out.download();
}

py::array narrow(const std::string& name, const FloatArray& x) {
  const cuda::Element element = parse_element(name);
  const DeviceArray in(x);
  const DeviceMatrix out(1, x.size(), element);
  cuda::probes::narrow(element, in.as<float>(), x.size(), static_cast<uint16_t*>(out.rows().data),
                       nullptr);
  return out.download();
}

py::array widen(const std::string& name, const py::array_t<uint16_t>& x) {
  const DeviceArray in(x);
  const DeviceMatrix out(1, x.size(), cuda::Element::kFp32);
  cuda::probes::widen(parse_element(name), in.as<uint16_t>(), x.size(),
                      static_cast<float*>(out.rows().data), nullptr);
  return out.download();
}

}  // namespace
}  // namespace bertrt::bindings

PYBIND11_MODULE(_cuda_emulated, module) {
  using namespace bertrt;
  module.doc() = "CUDA kernels on the emulator of tests/cuda/emulator.";
  bindings::translate_errors();
  bindings::bind_cuda_engine(module);
  bindings::bind_cuda_kernels(module);

  auto emulator = module.def_submodule("emulator");
  emulator.def(
      "reset",
      [](int devices, size_t memory_bytes, bool backwards, const std::string& fails, int capability,
         bool hopper, int multiprocessors) {
        cuda::emulator::reset(
            {devices, memory_bytes, backwards, fails, capability, hopper, multiprocessors});
      },
      py::arg("devices") = cuda::emulator::Settings().devices,
      py::arg("memory_bytes") = cuda::emulator::Settings().memory_bytes,
      py::arg("backwards") = false, py::arg("fails") = "",
      py::arg("capability") = cuda::emulator::Settings().capability, py::arg("hopper") = true,
      py::arg("multiprocessors") = cuda::emulator::Settings().multiprocessors);
  emulator.def("graphs_alive", &cuda::emulator::graphs_alive);
  emulator.def("bytes_in_use", &cuda::emulator::bytes_in_use, py::arg("device") = 0);

  auto depth = module.def_submodule("depth");
  depth.def("depth_parts", &cuda::depth_parts);
  depth.def("part_begin", &cuda::part_begin, py::arg("inputs"), py::arg("parts"), py::arg("part"),
            py::arg("step") = cuda::kPartStep);

  auto maps = module.def_submodule("hopper");
  namespace hopper = cuda::hopper;
  maps.def("swizzled", &hopper::swizzled);
  maps.def("descriptor", &hopper::descriptor);
  maps.def("sum_place", [](int thread, int i) {
    const auto place = hopper::sum_place(thread, i);
    return py::make_tuple(place.row, place.column);
  });
  maps.def("tile_place", [](int64_t tile, int64_t down, int64_t across) {
    const auto place = cuda::tile_place(tile, down, across);
    return py::make_tuple(place.down, place.across);
  });
  maps.def("wide_tiles", &hopper::wide_tiles);
  maps.def("shared_weights", &hopper::shared_weights);
  maps.def("parts_in_clusters", &hopper::parts_in_clusters);
  maps.def("head_swizzled", &hopper::head_swizzled);
  maps.def("head_descriptor", &hopper::head_descriptor);
  maps.def("left_place", [](int thread, int i, int half) {
    const auto place = hopper::left_place(thread, i, half);
    return py::make_tuple(place.row, place.column);
  });
  maps.def("items_of_text", [](int64_t heads, int64_t longest) {
    return hopper::items_of_text(hopper::items_of(heads, longest));
  });
  maps.def("item_place", [](int64_t heads, int64_t longest, unsigned item) {
    const auto place = hopper::item_place(hopper::items_of(heads, longest), item);
    return py::make_tuple(place.seq, place.head, place.first);
  });
  maps.def("item_of", &hopper::item_of);
  maps.def("share_of", [](int group, int left, int head, int heads) {
    const auto share = hopper::share_of(group, left, head, heads);
    return py::make_tuple(share.streams, share.stream, share.skipped, share.queries);
  });
  maps.def("ring_place", [](int64_t step, int stages) {
    const auto place = hopper::ring_place(step, stages);
    return py::make_tuple(place.stage, place.full, place.empty);
  });

  auto probes = module.def_submodule("probes");
  probes.def("names", &cuda::probes::names);
  probes.def("run", &bindings::probe, py::arg("name"), py::arg("x"));
  probes.def("hopper_names", &cuda::probes::hopper_names);
  const auto def_hopper = [&](const char* name, auto run) {
    probes.def(
        name,
        [run](const std::string& probe, const py::array_t<uint16_t>& tile) {
          return bindings::hopper_probe(run, probe, tile);
        },
        py::arg("name"), py::arg("tile"));
  };
  def_hopper("run_hopper", &cuda::probes::run_hopper);
  def_hopper("run_hopper_registers", &cuda::probes::run_hopper_registers);
  def_hopper("run_multicast", &cuda::probes::run_multicast);
  probes.def("multicast_names", &cuda::probes::multicast_names);
  probes.def("hopper_register_names", &cuda::probes::hopper_register_names);
  probes.def("run_overlapping", &bindings::overlapping_probe, py::arg("name"), py::arg("x"),
             py::arg("weights") = false);
  probes.def("run_misplaced", &bindings::misplaced_probe, py::arg("name"), py::arg("x"),
             py::arg("memory"));
  probes.def("copy_too_much", &bindings::overlong_copy, py::arg("x"));
  probes.def("copy_back", &bindings::copy_back, py::arg("bytes"), py::arg("written"));
  probes.def("run_in_stream", &bindings::probe_in_stream, py::arg("name"), py::arg("x"));
  probes.def("start", &bindings::start, py::arg("blocks"), py::arg("threads"),
             py::arg("shared_bytes"), py::arg("cluster") = 1);
  probes.def("cluster_names", &cuda::probes::cluster_names);
  probes.def("run_cluster", &bindings::cluster_probe, py::arg("name"), py::arg("x"));
  probes.def("product", &bindings::product, py::arg("element"), py::arg("a"), py::arg("b"),
             py::arg("sums"));
  probes.def("narrow", &bindings::narrow, py::arg("element"), py::arg("x"));
  probes.def("widen", &bindings::widen, py::arg("element"), py::arg("x"));
}

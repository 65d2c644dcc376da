// A GPU to torch that is none: tensors of the device type "cuda" whose memory is the computer's own, and whose
// operations are the CPU's.
//
// What stays true of a GPU is what programs trip over there: tensors of different devices do not mix, and while a graph
// is captured nothing may wait for the device. A captured graph computes again with the tensors that it was captured
// with, and with nothing else. Only the tests load this.

#include <ATen/ATen.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/library.h>

#include <map>
#include <mutex>
#include <set>
#include <string>
#include <vector>

namespace {

using torch::jit::Stack;
constexpr auto GPU = c10::DeviceType::CUDA;
constexpr c10::DeviceIndex DEVICES = 2;

thread_local c10::DeviceIndex current = 0;

struct Guard final : c10::impl::NoOpDeviceGuardImpl<GPU> {
  c10::Device getDevice() const override { return {GPU, current}; }
  c10::Device exchangeDevice(c10::Device device) const override {
    const auto before = getDevice();
    setDevice(device);
    return before;
  }
  void setDevice(c10::Device device) const override { uncheckedSetDevice(device); }
  void uncheckedSetDevice(c10::Device device) const noexcept override {
    if (device.has_index()) current = device.index();
  }
  c10::Stream getStream(c10::Device device) const noexcept override { return c10::Stream(c10::Stream::DEFAULT, device); }
  c10::DeviceIndex deviceCount() const noexcept override { return DEVICES; }
};

struct CUDAHooks final : at::CUDAHooksInterface {
  CUDAHooks(at::CUDAHooksArgs) {}
  void init() const override {}
  bool hasCUDA() const override { return true; }
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  c10::DeviceIndex deviceCount() const override { return DEVICES; }
  c10::DeviceIndex getCurrentDevice() const override { return current; }
  bool isPinnedPtr(const void*) const override { return false; }
  c10::Allocator* getPinnedMemoryAllocator() const override { return c10::GetAllocator(c10::kCPU); }
};

// Graphs

struct Step {
  c10::OperatorHandle op;
  Stack arguments;
  Stack results;
};

struct Graph {
  std::vector<Step> steps;
  std::vector<at::Tensor> alive;  // whose memory the steps work on
};

std::mutex graphs_lock;
std::map<int64_t, Graph> graphs;
thread_local Graph* capturing = nullptr;
thread_local c10::DeviceIndex captured = 0;  // only what runs on this device becomes part of the graph
std::atomic<int64_t> reads{0};  // how often the host waited for the device

// Tensors

at::Tensor on_host(const at::Tensor& tensor) {
  const auto& theirs = tensor.storage();
  c10::Storage storage(
      c10::Storage::use_byte_size_t(), theirs.nbytes(),
      at::DataPtr(const_cast<void*>(theirs.data()), c10::Device(c10::kCPU)), c10::GetAllocator(c10::kCPU), true);
  auto alias = at::detail::make_tensor<c10::TensorImpl>(
      std::move(storage), c10::DispatchKeySet(c10::DispatchKey::CPU), tensor.dtype());
  alias.unsafeGetTensorImpl()->set_sizes_and_strides(tensor.sizes(), tensor.strides(), tensor.storage_offset());
  return alias;
}

c10::Storage storage_on(const at::Tensor& host, c10::Device device) {
  auto* owner = new at::Tensor(host);
  at::DataPtr memory(
      const_cast<void*>(host.storage().data()), owner, [](void* held) { delete static_cast<at::Tensor*>(held); }, device);
  return {c10::Storage::use_byte_size_t(), host.storage().nbytes(), std::move(memory), nullptr, false};
}

at::Tensor tensor_on(c10::Storage storage, const at::Tensor& host) {
  auto made = at::detail::make_tensor<c10::TensorImpl>(
      std::move(storage), c10::DispatchKeySet(c10::DispatchKey::CUDA), host.dtype());
  made.unsafeGetTensorImpl()->set_sizes_and_strides(host.sizes(), host.strides(), host.storage_offset());
  return made;
}

at::Tensor view_of(const at::Tensor& theirs, const at::Tensor& host) {
  auto made = at::detail::make_tensor<c10::TensorImpl>(
      c10::TensorImpl::VIEW, c10::Storage(theirs.storage()), theirs.key_set(), host.dtype());
  made.unsafeGetTensorImpl()->set_sizes_and_strides(host.sizes(), host.strides(), host.storage_offset());
  return made;
}

struct Call {
  const std::string name;
  std::optional<c10::Device> device = std::nullopt;
  std::vector<std::pair<at::Tensor, at::Tensor>> known = {};  // of the device, as the host sees it
  bool mixes = false;                                         // host tensors with those of the device

  at::Tensor enter(const at::Tensor& tensor) {
    if (!tensor.defined()) return tensor;
    if (tensor.device().type() != GPU) {
      mixes |= tensor.dim() > 0;
      return tensor;
    }
    TORCH_CHECK(
        !device || *device == tensor.device() || name == "aten::copy_",
        "Expected all tensors to be on the same device, but found ", *device, " and ", tensor.device(), " in ", name);
    device = tensor.device();
    for (const auto& [theirs, host] : known)
      if (theirs.is_same(tensor)) return host;
    return known.emplace_back(tensor, on_host(tensor)).second;
  }

  c10::IValue enter(const c10::IValue& value) {
    if (value.isTensor()) return enter(value.toTensor());
    if (value.isDevice() && value.toDevice().type() == GPU) {
      device = c10::Device(GPU, value.toDevice().has_index() ? value.toDevice().index() : current);
      return c10::Device(c10::kCPU);
    }
    if (!value.isList()) return value;
    auto list = value.toList();
    c10::impl::GenericList entered(list.elementType());
    for (const c10::IValue& each : list) entered.push_back(enter(each));
    return entered;
  }

  at::Tensor leave(const at::Tensor& host) {
    if (!host.defined()) return host;
    for (const auto& [theirs, alias] : known) {
      if (!alias.is_same(host)) continue;
      if (alias.storage().data() != theirs.storage().data()) {  // made larger
        auto* storage = theirs.storage().unsafeGetStorageImpl();
        auto moved = storage_on(alias.alias(), *device);
        storage->set_nbytes(moved.nbytes());
        storage->set_data_ptr_noswap(std::move(moved.mutable_data_ptr()));
      }
      if (alias.sizes() != theirs.sizes() || alias.strides() != theirs.strides())
        theirs.unsafeGetTensorImpl()->set_sizes_and_strides(alias.sizes(), alias.strides(), alias.storage_offset());
      return theirs;
    }
    for (const auto& [theirs, alias] : known)
      if (host.storage().nbytes() && host.storage().data() == alias.storage().data())
        return view_of(theirs, host);
    return tensor_on(storage_on(host, *device), host);
  }

  c10::IValue leave(const c10::IValue& value) {
    if (value.isTensor()) return leave(value.toTensor());
    if (!value.isTensorList()) return value;
    c10::List<at::Tensor> left;
    for (const at::Tensor& each : value.toTensorList()) left.push_back(leave(each));
    return left;
  }
};

bool waits(const std::string& name, const Stack& arguments) {
  static const std::set<std::string> names = {
      "aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::equal", "aten::is_nonzero",
      "aten::_unique2", "aten::unique_dim", "aten::unique_consecutive", "aten::repeat_interleave"};
  if (names.count(name)) return true;
  if (name != "aten::index" && name != "aten::index_put_" && name != "aten::_index_put_impl_") return false;
  for (const c10::IValue& each : arguments[1].toList())  // where a mask is true has to be found out
    if (each.isTensor() && each.toTensor().defined() && each.toTensor().scalar_type() == at::kBool) return true;
  return false;
}

void run(const c10::OperatorHandle& op, Stack* stack) {
  static const std::set<std::string> mixing = {
      "aten::copy_", "aten::index", "aten::index_put_", "aten::_index_put_impl_", "aten::set_"};
  static const std::set<std::string> products = {
      "aten::mm", "aten::bmm", "aten::addmm", "aten::baddbmm", "aten::addbmm", "aten::mv", "aten::addmv", "aten::dot"};
  Call call{op.schema().name()};
  const auto count = op.schema().arguments().size();
  auto arguments = torch::jit::pop(*stack, count);
  const bool copies = call.name == "aten::copy_";
  bool host_waits = waits(call.name, arguments);
  if (copies) host_waits |= arguments[0].toTensor().device().type() != arguments[1].toTensor().device().type();
  Stack entered;
  for (const auto& each : arguments) entered.push_back(call.enter(each));
  TORCH_CHECK(
      !(call.mixes && !call.known.empty()) || mixing.count(call.name),
      "Expected all tensors to be on the same device, but found ", *call.device, " and cpu in ", call.name);
  if (products.count(call.name))
    for (const auto& each : entered)
      TORCH_CHECK(
          !each.isTensor() || !c10::isIntegralType(each.toTensor().scalar_type(), true), "\"addmm_cuda\" not implemented for '",
          each.toTensor().scalar_type(), "'");
  TORCH_CHECK(
      !(capturing && host_waits), "CUDA error: operation not permitted when stream is capturing (", call.name, ")");
  if (host_waits && !(copies && arguments[0].toTensor().device().type() == GPU)) ++reads;

  Stack work = entered;
  op.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::CPU), &work);
  if (capturing && call.device && call.device->index() == captured) {
    capturing->steps.push_back({op, entered, work});
    for (const auto& [theirs, alias] : call.known) capturing->alive.push_back(theirs);
  }
  for (const auto& each : work)
    stack->push_back(call.device && !(copies && arguments[0].toTensor().device().type() != GPU) ? call.leave(each) : each);
}

void copy_fresh(const c10::IValue& result, const c10::IValue& again, const Stack& arguments) {
  if (result.isTensorList()) {
    const auto before = result.toTensorVector(), after = again.toTensorVector();
    for (size_t i = 0; i < before.size(); ++i) copy_fresh(before[i], after[i], arguments);
    return;
  }
  if (!result.isTensor() || !result.toTensor().defined()) return;
  const auto& before = result.toTensor();
  const auto& after = again.toTensor();
  if (before.storage().data() != after.storage().data()) before.copy_(after);
}

void begin(int64_t graph) {
  const std::lock_guard<std::mutex> held(graphs_lock);
  capturing = &graphs[graph];
  captured = current;
}

void end() { capturing = nullptr; }

void replay(int64_t number) {
  Graph* graph;
  {
    const std::lock_guard<std::mutex> held(graphs_lock);
    graph = &graphs.at(number);
  }
  const at::AutoDispatchBelowADInplaceOrView guard;
  for (const auto& step : graph->steps) {
    Stack work = step.arguments;
    step.op.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::CPU), &work);
    for (size_t i = 0; i < work.size(); ++i) copy_fresh(step.results[i], work[i], step.arguments);
  }
}

void forget(int64_t graph) {
  const std::lock_guard<std::mutex> held(graphs_lock);
  graphs.erase(graph);
}

int64_t host_reads() { return reads; }
void set_device(int64_t device) { current = static_cast<c10::DeviceIndex>(device); }
int64_t get_device() { return current; }

}  // namespace

C10_REGISTER_GUARD_IMPL(CUDA, Guard)

namespace at {
REGISTER_CUDA_HOOKS(CUDAHooks)  // torch looks for this name
}

TORCH_LIBRARY_IMPL(_, CUDA, library) { library.fallback(torch::CppFunction::makeFromBoxedFunction<&run>()); }

TORCH_LIBRARY_IMPL(aten, CUDA, library) {
  // Those that torch itself would take apart, or send to libraries of a GPU.
  for (const auto* name : {"copy_", "convolution", "_unsafe_view"})
    library.impl(name, torch::CppFunction::makeFromBoxedFunction<&run>());
}

TORCH_LIBRARY(pretend_gpu, library) {
  library.def("begin(int graph) -> ()", &begin);
  library.def("end() -> ()", &end);
  library.def("replay(int graph) -> ()", &replay);
  library.def("forget(int graph) -> ()", &forget);
  library.def("host_reads() -> int", &host_reads);
  library.def("set_device(int device) -> ()", &set_device);
  library.def("get_device() -> int", &get_device);
}

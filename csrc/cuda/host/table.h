// Arrays on the device: those that the host writes and kernels read, and those that kernels write.
#pragma once

#include <ATen/ATen.h>

#include <vector>

namespace gradops {

// A copy on the device, made without waiting for it. Raises RuntimeError while a graph is captured: the graph would
// copy from host memory that is gone when it is replayed.
at::Tensor to_device(const void* bytes, size_t size, at::Device device);

// Zeros for kernels to write, which `memory` holds.
template <class T>
T* allocate(int64_t count, at::Device device, std::vector<at::Tensor>& memory) {
  memory.push_back(at::zeros({count * int64_t{sizeof(T)}}, at::TensorOptions(at::kByte).device(device)));
  return static_cast<T*>(memory.back().mutable_data_ptr());
}

// The device's copy of an array that changes rarely. A change is written to new memory, since kernels that are under
// way, and graphs, read the old.
template <class T>
class DeviceTable {
 public:
  const T* update(std::vector<T> values, at::Device device) {
    if (!memory_.defined() || values != values_) {
      if (in_graph_) kept_.push_back(memory_);
      memory_ = to_device(values.data(), values.size() * sizeof(T), device);
      values_ = std::move(values);
      in_graph_ = false;
    }
    return static_cast<const T*>(memory_.const_data_ptr());
  }

  // From now on a graph holds the address.
  void captured() { in_graph_ = memory_.defined(); }

 private:
  std::vector<T> values_;
  at::Tensor memory_;
  bool in_graph_ = false;
  std::vector<at::Tensor> kept_;
};

}  // namespace gradops

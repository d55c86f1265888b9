// A plan with its weights on a device: what engines of one model share.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "cuda/kernels.h"
#include "cuda/runtime.h"
#include "plan/plan.h"
#include "runtime/graph.h"

namespace bertrt::cuda {

struct Model : Graph {
  // A step, ready to run: all pointers are the device's.
  struct Node : Step {
    explicit Node(const Step& step) : Step(step) {}

    std::string kernel;
    Element element = Element::kFp32;  // of what it reads and makes
    Linear linear;
    LayerNorm norm;
    EmbeddingTables embedding;
    Attention attention;
    bool hopper = false;  // attention by hopper/attention.h
  };

  // Copies the weights to a device, matrices and tables as `element`; heads, vectors and biases in
  // fp32. Afterwards the weights' own memory is not read any more. Takes the kernels of
  // chosen_kernels(). Throws PlanError, DeviceError.
  Model(const plan::Plan& plan, Element element, int device_number)
      : Model(plan::validate(plan), element, {}, device_number) {}
  // Matrices of steps that state int8, or fp8, or of all but heads where none states a precision,
  // in 8 bits; all else is fp16.
  static Model in_8_bits(const plan::Plan& plan, EightBits bits, int device_number) {
    return Model(plan::validate(plan), Element::kFp16, bits, device_number);
  }

  // The step that makes an attention's queries, keys and values.
  const Node& qkv_of(const Step& attention) const {
    return nodes[values[attention.inputs[0]].made_by];
  }

  Device device;
  Element element;
  std::vector<Node> nodes;  // by step

 private:
  Model(const plan::CheckedPlan& checked, Element element, std::optional<EightBits> bits,
        int device_number);

  std::vector<DeviceMemory> weights_;
};

}  // namespace bertrt::cuda

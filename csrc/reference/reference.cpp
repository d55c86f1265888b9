#include "reference/reference.h"

#include <algorithm>
#include <cmath>
#include <vector>

namespace bertrt::reference {

float activate(Activation activation, float x) {
  const double v = x;
  switch (activation) {
    case Activation::kNone:
      return x;
    case Activation::kRelu:
      return std::max(x, 0.0f);
    case Activation::kGeluErf:
      return static_cast<float>(v * 0.5 * std::erfc(-v / std::sqrt(2.0)));
    case Activation::kGeluTanh: {
      const double u = std::sqrt(2.0 / std::acos(-1.0)) * (v + 0.044715 * v * v * v);
      return static_cast<float>(0.5 * v * (1.0 + std::tanh(u)));
    }
    case Activation::kTanh:
      return static_cast<float>(std::tanh(v));
  }
  return x;
}

void linear(const float* x, const float* weight, const float* bias, Activation activation,
            int64_t rows, int64_t inputs, int64_t outputs, float* out) {
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t o = 0; o < outputs; ++o) {
      double sum = bias ? bias[o] : 0.0;
      for (int64_t k = 0; k < inputs; ++k) {
        sum += static_cast<double>(x[r * inputs + k]) * weight[o * inputs + k];
      }
      out[r * outputs + o] = activate(activation, static_cast<float>(sum));
    }
  }
}

void layer_norm(const float* x, const float* residual, const float* gamma, const float* beta,
                double eps, int64_t rows, int64_t hidden, float* out) {
  std::vector<double> row(static_cast<size_t>(hidden));
  for (int64_t r = 0; r < rows; ++r) {
    for (size_t i = 0; i < row.size(); ++i) {
      row[i] = x[r * hidden + static_cast<int64_t>(i)];
      if (residual) row[i] += residual[r * hidden + static_cast<int64_t>(i)];
    }
    double mean = 0.0;
    for (const double v : row) mean += v;
    mean /= static_cast<double>(hidden);
    double variance = 0.0;
    for (const double v : row) variance += (v - mean) * (v - mean);
    variance /= static_cast<double>(hidden);
    const double scale = 1.0 / std::sqrt(variance + eps);
    for (int64_t i = 0; i < hidden; ++i) {
      const double deviation = row[static_cast<size_t>(i)] - mean;
      out[r * hidden + i] = static_cast<float>(deviation * scale * gamma[i] + beta[i]);
    }
  }
}

void attention(const float* qkv, int64_t tokens, int64_t heads, int64_t head_dim, double scale,
               const float* bias, int64_t reach, float* out) {
  const int64_t hidden = heads * head_dim;
  std::vector<double> weights(static_cast<size_t>(tokens));
  for (int64_t head = 0; head < heads; ++head) {
    for (int64_t i = 0; i < tokens; ++i) {
      const float* query = qkv + i * 3 * hidden + head * head_dim;
      double largest = -HUGE_VAL;
      for (int64_t j = 0; j < tokens; ++j) {
        const float* key = qkv + j * 3 * hidden + hidden + head * head_dim;
        double score = 0.0;
        for (int64_t d = 0; d < head_dim; ++d) score += static_cast<double>(query[d]) * key[d];
        score *= scale;
        if (bias) score += bias[head * (2 * reach - 1) + reach - 1 + j - i];
        weights[static_cast<size_t>(j)] = score;
        largest = std::max(largest, score);
      }
      double sum = 0.0;
      for (double& weight : weights) {
        weight = std::exp(weight - largest);
        sum += weight;
      }
      for (int64_t d = 0; d < head_dim; ++d) {
        double value = 0.0;
        for (int64_t j = 0; j < tokens; ++j) {
          value += weights[static_cast<size_t>(j)] *
                   qkv[j * 3 * hidden + 2 * hidden + head * head_dim + d];
        }
        out[i * hidden + head * head_dim + d] = static_cast<float>(value / sum);
      }
    }
  }
}

}  // namespace bertrt::reference

#include "checks.h"
#include "device.h"

namespace mmvae {

// x [B, ...], params [..., B, ...] (categorical: [..., B, ..., V]) whose last `event_dims` dimensions of x are the
// event. scale: one number [1], or expanded to x's shape (then shared by the samples), or of params' shape; else
// scale_value.
struct LikelihoodArgs {
  LikelihoodArgs(const Check& check, const Tensor& x, const Tensor& params, const OptTensor& scale, int64_t family,
                 int64_t event_dims, const OptTensor& mask)
      : family(static_cast<Family>(family)),
        dtype(params.scalar_type()),
        x(dense(x)),
        params(dense(params)),
        mask(dense(mask)) {
    check.floating("params", params);
    if (family < 0 || family > 3) check.fail("family is ", family, ", expected 0 to 3");
    const bool categorical = this->family == Family::categorical;
    const ScalarType wanted = categorical ? ScalarType::Long : arithmetic(dtype);
    if (x.scalar_type() != wanted || !Check::together(x, params))
      check.fail("x is ", Check::dtype(x), ", expected ", categorical ? "torch.int64" : "the type of arithmetic",
                 " on the device of params");
    if (event_dims < 0 || x.dim() < 1 || event_dims > x.dim() - 1)
      check.fail("event_dims is ", event_dims, ", expected 0 to ", x.dim() - 1, " for x ", Check::shape(x));
    Shape lead = shape_of(params);
    if (categorical) {
      if (lead.empty()) check.fail("params has no dimensions, expected logits [..., B, ..., classes]");
      classes = lead.back();
      lead.pop_back();
    }
    const int64_t extra = static_cast<int64_t>(lead.size()) - x.dim();
    bool fits = extra >= 0;
    for (int64_t i = 0; fits && i < x.dim(); ++i) fits = lead[extra + i] == x.size(i);
    if (!fits) check.fail("params has shape ", Check::shape(params), ", which does not end like x ", Check::shape(x));
    for (int64_t i = 0; i < extra; ++i) samples *= lead[i];
    for (int64_t i = 0; i < x.dim(); ++i) (i < x.dim() - event_dims ? rows : event) *= x.size(i);
    elements = shape_of(x);
    out_shape.assign(lead.begin(), lead.end() - event_dims);
    if (mask.has_value()) {
      check.shaped("mask", mask, {x.size(0)}, ScalarType::Bool, params);
      rows_per_mask = x.size(0) == 0 ? 1 : std::max<int64_t>(1, rows / x.size(0));
    }
    if (scale.has_value()) take_scale(check, *scale);
  }

  template <class S>
  LogLikelihood<S> as(double scale_value, Arithmetic<S>* out, Arithmetic<S>* log_p) const {
    using A = Arithmetic<S>;
    LogLikelihood<S> a{};
    a.family = family;
    a.rows = rows;
    a.samples = samples;
    a.event = event;
    a.classes = classes;
    if (family == Family::categorical) {
      a.classes_of = data<int64_t>(x);
    } else {
      a.x = data<A>(x);
    }
    a.params = data<S>(params);
    a.scale = scale.has_value() ? data<A>(*scale) : nullptr;
    a.scale_value = scale_value;
    a.scale_sample_stride = sample_stride;
    a.scale_row_stride = row_stride;
    a.scale_step = step;
    a.mask = data<bool>(mask);
    a.rows_per_mask = rows_per_mask;
    a.out = out;
    a.log_p = log_p;
    return a;
  }

  int64_t work() const { return event * classes * samples; }

  Family family;
  ScalarType dtype;
  Tensor x, params;
  OptTensor mask, scale;
  Shape elements, out_shape;
  int64_t rows = 1, samples = 1, event = 1, classes = 1, rows_per_mask = 1;
  int64_t sample_stride = 0, row_stride = 0, step = 0;

 private:
  void take_scale(const Check& check, const Tensor& t) {
    if (t.scalar_type() != arithmetic(dtype) || !Check::together(t, params))
      check.fail("scale is ", Check::dtype(t), ", expected the type of arithmetic on the device of params");
    if (t.numel() == 1 && t.dim() <= 1) {
      scale = t;
      return;
    }
    const Shape shape = shape_of(t);
    step = 1;
    if (shape == elements) {  // an expanded scale of the event alone has rows 0 apart
      int64_t inner = 1;
      bool dense_event = true, broadcast = true;
      for (int64_t i = t.dim() - 1; i >= 0; --i) {
        if (inner < event) {
          dense_event = dense_event && (t.size(i) == 1 || t.stride(i) == inner);
          inner *= t.size(i);
        } else {
          broadcast = broadcast && (t.size(i) == 1 || t.stride(i) == 0);
        }
      }
      if (dense_event && broadcast && inner == event) {
        scale = t;
      } else {
        scale = dense(t);
        row_stride = event;
      }
    } else if (shape == shape_of(params)) {
      scale = dense(t);
      row_stride = event;
      sample_stride = rows * event;
    } else {
      check.fail("scale has shape ", Check::shape(t), ", expected [1], x's or params'");
    }
  }
};

// The sum of all elements, as a tensor of the given shape of one number. On the CPU in an order of its own: torch's
// depends on how many threads there are.
static Tensor sum_of(const Tensor& t, const Shape& shape) {
  if (!kReadable) {
    const std::vector<int64_t> all{0};
    return torch::stable::sum(t, torch::headeronly::IntHeaderOnlyArrayRef(all), !shape.empty());
  }
  Tensor out = empty(shape, t.scalar_type(), t);
  const auto add_up = [&](auto zero) {
    using A = decltype(zero);
    constexpr int lanes = 8;
    const A* x = data<A>(t);
    double sums[lanes] = {}, total = 0;
    const int64_t n = t.numel(), whole = n - n % lanes;
    for (int64_t i = 0; i < whole; i += lanes)
      for (int j = 0; j < lanes; ++j) sums[j] += x[i + j];
    for (int64_t i = whole; i < n; ++i) total += x[i];
    for (int j = 0; j < lanes; ++j) total += sums[j];
    *data<A>(out) = static_cast<A>(total);
  };
  t.scalar_type() == ScalarType::Double ? add_up(double{}) : add_up(float{});
  return out;
}

// Where this cannot be read, the kernels make it NaN.
static void check_classes(const Check& check, const LikelihoodArgs& a) {
  const int64_t* x = data<int64_t>(a.x);
  const bool* mask = data<bool>(a.mask);
  for (int64_t r = 0; r < a.rows; ++r) {
    if (mask != nullptr && !mask[r / a.rows_per_mask]) continue;
    for (int64_t i = r * a.event; i < (r + 1) * a.event; ++i)
      if (x[i] < 0 || x[i] >= a.classes)
        check.fail("x holds ", x[i], ", expected class indices from 0 to ", a.classes - 1, " for params ",
                   Check::shape(a.params));
  }
}

// Also returns what each element of a categorical event adds [K, rows, event], which the backward reads (else no
// elements).
static std::tuple<Tensor, Tensor> log_likelihood(const Tensor& x, const Tensor& params, const OptTensor& scale,
                                                 double scale_value, int64_t family, int64_t event_dims,
                                                 const OptTensor& mask) {
  const Check check("log_likelihood");
  const LikelihoodArgs a(check, x, params, scale, family, event_dims, mask);
  const bool categorical = a.family == Family::categorical;
  if (kReadable && categorical) check_classes(check, a);
  Tensor out = empty(a.out_shape, arithmetic(a.dtype), params);
  const Shape per_element{a.samples, a.rows, a.event};
  Tensor log_p = empty(categorical ? per_element : Shape{0}, arithmetic(a.dtype), params);
  for_type(a.dtype, [&](auto zero) {
    using S = decltype(zero);
    using A = Arithmetic<S>;
    run(&Table<S>::log_likelihood, a.as<S>(scale_value, data<A>(out), data<A>(log_p)), a.rows, a.work(), params);
  });
  return {out, log_p};
}

// Gradients of params, and with `scale_grad` of scale in the shape it came in (else no elements).
static std::tuple<Tensor, Tensor> log_likelihood_backward(const Tensor& grad, const Tensor& x, const Tensor& params,
                                                          const OptTensor& scale, double scale_value, int64_t family,
                                                          int64_t event_dims, const OptTensor& mask,
                                                          const Tensor& log_p, bool params_grad, bool scale_grad) {
  const Check check("log_likelihood_backward");
  const LikelihoodArgs a(check, x, params, scale, family, event_dims, mask);
  const ScalarType real = arithmetic(a.dtype);
  check.shaped("grad", grad, a.out_shape, real, params);
  const bool categorical = a.family == Family::categorical;
  check.shaped("log_p", log_p, categorical ? Shape{a.samples, a.rows, a.event} : Shape{0}, real, params);
  if (kReadable && categorical) check_classes(check, a);
  const bool of_scale = scale_grad && scale.has_value();
  const bool one_number = of_scale && a.step == 0;
  const Tensor g = dense(grad), of_elements = dense(log_p);
  Tensor grad_params = empty(params_grad ? shape_of(params) : Shape{0}, a.dtype, params);
  Tensor grad_scale = empty(one_number ? Shape{a.samples * a.rows}
                            : of_scale ? shape_of(*scale)
                                       : Shape{0},
                            real, params);
  for_type(a.dtype, [&](auto zero) {
    using S = decltype(zero);
    using A = Arithmetic<S>;
    LogLikelihoodBackward<S> args{a.as<S>(scale_value, nullptr, const_cast<A*>(data<A>(of_elements))), data<A>(g),
                                  params_grad ? data<S>(grad_params) : nullptr,
                                  of_scale ? data<A>(grad_scale) : nullptr};
    run(&Table<S>::log_likelihood_backward, args, a.rows, a.work(), params);
  });
  if (one_number) grad_scale = sum_of(grad_scale, shape_of(*scale));
  return {grad_params, grad_scale};
}

STABLE_TORCH_LIBRARY_IMPL(mmvae_fast, MMVAE_DISPATCH_KEY, m) {
  m.impl("log_likelihood", TORCH_BOX(&log_likelihood));
  m.impl("log_likelihood_backward", TORCH_BOX(&log_likelihood_backward));
}

}  // namespace mmvae

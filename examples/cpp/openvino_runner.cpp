// Runs a bundle's model.onnx with OpenVINO's C++ API, or the model.blob of an openvino engine.
//
//     openvino_runner my-bundle 2 5 6 7

#include <openvino/openvino.hpp>

#include "common.hpp"

namespace {

using example::Output;

ov::CompiledModel load(std::filesystem::path const& folder) {
    ov::Core core;
    if (std::filesystem::exists(folder / "model.blob")) {
        std::istringstream blob(example::read_verified(folder, "model.blob"));
        return core.import_model(blob, "CPU");
    }
    example::read_verified(folder, "model.onnx");  // read again by its name, because the weights lie beside it
    auto const model = core.read_model((folder / "model.onnx").string());
    // Left alone, the CPU plugin computes in bfloat16 on processors that have it.
    ov::element::Type const type = model->output(0).get_element_type();
    ov::element::Type const precision = type == ov::element::bf16 ? type : ov::element::Type(ov::element::f32);
    return core.compile_model(model, "CPU", ov::hint::inference_precision(precision));
}

std::vector<float> floats_of(ov::Tensor const& tensor) {
    std::size_t const count = tensor.get_size();
    switch (ov::element::Type_t(tensor.get_element_type())) {
        case ov::element::Type_t::f32: {
            auto const* values = tensor.data<float>();
            return {values, values + count};
        }
        case ov::element::Type_t::f16: return example::widened(tensor.data(), count, example::from_float16);
        case ov::element::Type_t::bf16: return example::widened(tensor.data(), count, example::from_bfloat16);
        default: throw example::Problem(example::kBadInput, "the output is of no floating-point type");
    }
}

Output run(example::Arguments const& arguments, example::Tokens const& tokens) {
    ov::CompiledModel model = load(arguments.folder);
    ov::InferRequest request = model.create_infer_request();
    ov::Shape const shape{static_cast<std::size_t>(tokens.batch), static_cast<std::size_t>(tokens.sequence)};
    auto const fill = [&](char const* name, std::vector<std::int64_t> const& values) {
        ov::Tensor tensor(ov::element::i64, shape);
        std::copy(values.begin(), values.end(), tensor.data<std::int64_t>());
        request.set_tensor(name, tensor);
    };
    fill("input_ids", tokens.ids);
    fill("attention_mask", tokens.mask);
    request.infer();
    ov::Tensor const output = request.get_output_tensor(0);
    ov::Shape const sizes = output.get_shape();
    return {model.output(0).get_any_name(), {sizes.begin(), sizes.end()}, floats_of(output)};
}

}  // namespace

int main(int argc, char** argv) { return example::guarded(argc, argv, run); }

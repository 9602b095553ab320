// Runs a bundle's model.onnx, or that of an onnxruntime engine, with ONNX Runtime's C++ API.
//
//     onnxruntime_runner my-bundle 2 5 6 7

#include <onnxruntime_cxx_api.h>

#include <array>

#include "common.hpp"

namespace {

using example::Output;

std::vector<float> floats_of(Ort::Value const& value) {
    auto const info = value.GetTensorTypeAndShapeInfo();
    std::size_t const count = info.GetElementCount();
    void const* data = value.GetTensorRawData();
    switch (info.GetElementType()) {
        case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT: {
            auto const* values = static_cast<float const*>(data);
            return {values, values + count};
        }
        case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16: return example::widened(data, count, example::from_float16);
        case ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16: return example::widened(data, count, example::from_bfloat16);
        default: throw example::Problem(example::kBadInput, "the output is of no floating-point type");
    }
}

Output run(example::Arguments const& arguments, example::Tokens const& tokens) {
    // The session reads the file by its name, because the weights lie beside it.
    example::read_verified(arguments.folder, "model.onnx");
    if (std::filesystem::exists(arguments.folder / "weights.bin"))
        example::read_verified(arguments.folder, "weights.bin");
    Ort::Env environment(ORT_LOGGING_LEVEL_ERROR, "onnxruntime_runner");
    std::filesystem::path const model = arguments.folder / "model.onnx";
    Ort::Session session(environment, model.c_str(), Ort::SessionOptions{});

    std::array<std::int64_t, 2> const shape{tokens.batch, tokens.sequence};
    Ort::MemoryInfo const memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
    auto const tensor = [&](std::vector<std::int64_t> const& values) {  // ONNX Runtime does not write to its inputs
        return Ort::Value::CreateTensor<std::int64_t>(
            memory, const_cast<std::int64_t*>(values.data()), values.size(), shape.data(), shape.size());
    };
    std::array<Ort::Value, 2> const inputs{tensor(tokens.ids), tensor(tokens.mask)};
    Ort::AllocatorWithDefaultOptions allocator;
    auto const name = session.GetOutputNameAllocated(0, allocator);
    std::array<char const*, 2> const input_names{"input_ids", "attention_mask"};
    char const* const output_name = name.get();
    auto const outputs = session.Run(Ort::RunOptions{}, input_names.data(), inputs.data(), 2, &output_name, 1);
    return {output_name, outputs[0].GetTensorTypeAndShapeInfo().GetShape(), floats_of(outputs[0])};
}

}  // namespace

int main(int argc, char** argv) { return example::guarded(argc, argv, run); }

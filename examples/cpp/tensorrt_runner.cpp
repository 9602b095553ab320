// Runs a plan with TensorRT, or with TensorRT-RTX if FUNNEL_USE_RTX is defined, and the CUDA runtime.
//
//     tensorrt_runner my-bundle/engines/NAME 2 5 6 7

#include <NvInfer.h>
#include <cuda_runtime_api.h>

#include <memory>
#include <optional>
#include <utility>

#include "common.hpp"

namespace {

using example::Output;
using example::Problem;

class Logger final : public nvinfer1::ILogger {
    void log(Severity severity, char const* message) noexcept override {
        if (severity <= Severity::kWARNING) std::cerr << message << '\n';
    }
};

void check(cudaError_t error) {
    if (error != cudaSuccess) throw std::runtime_error(std::string("CUDA: ") + cudaGetErrorString(error));
}

void check(bool done, char const* what) {
    if (!done) throw std::runtime_error(std::string(what) + " failed: see the messages above");
}

struct DeviceDelete {
    void operator()(void* address) const { cudaFree(address); }
};
using DeviceMemory = std::unique_ptr<void, DeviceDelete>;

struct StreamDelete {
    void operator()(cudaStream_t stream) const { cudaStreamDestroy(stream); }
};
using Stream = std::unique_ptr<std::remove_pointer_t<cudaStream_t>, StreamDelete>;

DeviceMemory device_memory(std::size_t size) {
    void* address = nullptr;
    check(cudaMalloc(&address, size));
    return DeviceMemory(address);
}

void require_device() {
    int count = 0;
    cudaError_t const error = cudaGetDeviceCount(&count);
    if (error != cudaSuccess || count == 0)
        throw Problem(example::kNotHere, std::string("no NVIDIA driver or GPU here: ") + cudaGetErrorString(error) +
                                             "; a plan can be read only where it can run");
}

// The profile that takes the shape, and of several the one tuned for the nearest length. Profiles of an engine stand in
// the order of its manifest.
std::int32_t choose_profile(nvinfer1::ICudaEngine const& engine, example::Tokens const& tokens) {
    using Selector = nvinfer1::OptProfileSelector;
    std::optional<std::pair<std::int64_t, std::int32_t>> best;  // distance, profile
    for (std::int32_t profile = 0; profile < engine.getNbOptimizationProfiles(); ++profile) {
        auto const low = engine.getProfileShape("input_ids", profile, Selector::kMIN);
        auto const tuned = engine.getProfileShape("input_ids", profile, Selector::kOPT);
        auto const high = engine.getProfileShape("input_ids", profile, Selector::kMAX);
        bool const fits = low.nbDims == 2 && low.d[0] <= tokens.batch && tokens.batch <= high.d[0] &&
                          low.d[1] <= tokens.sequence && tokens.sequence <= high.d[1];
        std::int64_t const distance = std::abs(static_cast<std::int64_t>(tuned.d[1]) - tokens.sequence);
        if (fits && (!best || distance < best->first)) best = {distance, profile};
    }
    if (!best)
        throw Problem(example::kBadInput, "no optimization profile takes batch " + std::to_string(tokens.batch) +
                                              ", sequence " + std::to_string(tokens.sequence));
    return best->second;
}

// The plan's bytes are hashed and deserialized in one piece: no other program can change them in between.
std::unique_ptr<nvinfer1::ICudaEngine> deserialize(nvinfer1::IRuntime& runtime, std::string const& plan, bool host_code) {
    runtime.setEngineHostCodeAllowed(host_code);
    std::unique_ptr<nvinfer1::ICudaEngine> engine(runtime.deserializeCudaEngine(plan.data(), plan.size()));
    if (!engine)
        throw Problem(example::kBadInput, std::string("this runtime cannot read the plan") +
                                              (host_code ? "" : "; a version-compatible plan needs --allow-host-code"));
    if (engine->getStreamableWeightsSize() > 0)  // to be set before there is a context
        check(engine->setWeightStreamingBudgetV2(engine->getWeightStreamingAutomaticBudget()), "weight streaming");
    return engine;
}

#ifdef FUNNEL_USE_RTX
// Kernels are compiled on the GPU they run on; this keeps them in runtime.cache beside the plan for the next start.
class Context {
public:
    Context(nvinfer1::ICudaEngine& engine, std::filesystem::path file)
        : file_(std::move(file)), config_(engine.createRuntimeConfig()), cache_(config_->createRuntimeCache()) {
        if (std::filesystem::exists(file_)) {
            std::string const earlier = example::read_file(file_);
            if (!cache_->deserialize(earlier.data(), earlier.size()))
                std::cerr << file_.string() << " is of another GPU, driver or version: compiling anew\n";
        }
        check(config_->setRuntimeCache(*cache_), "the runtime cache");
        context_.reset(engine.createExecutionContext(config_.get()));
    }

    void save() const {
        std::unique_ptr<nvinfer1::IHostMemory> const content(cache_->serialize());
        if (!content) return;
        std::ofstream stream(file_, std::ios::binary);
        stream.write(static_cast<char const*>(content->data()), static_cast<std::streamsize>(content->size()));
    }

    nvinfer1::IExecutionContext* get() const { return context_.get(); }

private:
    std::filesystem::path file_;
    std::unique_ptr<nvinfer1::IRuntimeConfig> config_;
    std::unique_ptr<nvinfer1::IRuntimeCache> cache_;
    std::unique_ptr<nvinfer1::IExecutionContext> context_;
};
#else
class Context {
public:
    Context(nvinfer1::ICudaEngine& engine, std::filesystem::path const&) : context_(engine.createExecutionContext()) {}
    void save() const {}
    nvinfer1::IExecutionContext* get() const { return context_.get(); }

private:
    std::unique_ptr<nvinfer1::IExecutionContext> context_;
};
#endif

std::string output_name(nvinfer1::ICudaEngine const& engine) {
    for (std::int32_t i = 0; i < engine.getNbIOTensors(); ++i) {
        char const* name = engine.getIOTensorName(i);
        if (engine.getTensorIOMode(name) == nvinfer1::TensorIOMode::kOUTPUT) return name;
    }
    throw Problem(example::kBadInput, "the plan has no output");
}

std::vector<float> floats_of(std::vector<char> const& bytes, std::size_t count, nvinfer1::DataType type) {
    if (type == nvinfer1::DataType::kHALF) return example::widened(bytes.data(), count, example::from_float16);
    if (type == nvinfer1::DataType::kBF16) return example::widened(bytes.data(), count, example::from_bfloat16);
    std::vector<float> values(count);
    std::memcpy(values.data(), bytes.data(), bytes.size());
    return values;
}

// Puts one input where the context finds it.
DeviceMemory bind_input(nvinfer1::IExecutionContext& context, char const* name, std::vector<std::int64_t> const& values,
                        nvinfer1::Dims const& shape, cudaStream_t stream) {
    std::size_t const size = values.size() * sizeof(std::int64_t);
    DeviceMemory memory = device_memory(size);
    check(cudaMemcpyAsync(memory.get(), values.data(), size, cudaMemcpyHostToDevice, stream));
    check(context.setInputShape(name, shape) && context.setTensorAddress(name, memory.get()), name);
    return memory;
}

Output infer(nvinfer1::ICudaEngine const& engine, nvinfer1::IExecutionContext& context, example::Tokens const& tokens) {
    cudaStream_t created = nullptr;
    check(cudaStreamCreate(&created));
    Stream const stream(created);
    check(context.setOptimizationProfileAsync(choose_profile(engine, tokens), stream.get()), "the profile");
    nvinfer1::Dims shape{};
    shape.nbDims = 2, shape.d[0] = tokens.batch, shape.d[1] = tokens.sequence;
    auto const ids = bind_input(context, "input_ids", tokens.ids, shape, stream.get());
    auto const mask = bind_input(context, "attention_mask", tokens.mask, shape, stream.get());

    Output output{output_name(engine), {}, {}};
    nvinfer1::Dims const dims = context.getTensorShape(output.name.c_str());
    output.shape.assign(dims.d, dims.d + dims.nbDims);
    std::size_t count = 1;
    for (std::int64_t size : output.shape) count *= static_cast<std::size_t>(size);
    nvinfer1::DataType const type = engine.getTensorDataType(output.name.c_str());
    std::vector<char> bytes(count * (type == nvinfer1::DataType::kFLOAT ? 4 : 2));
    auto const result = device_memory(bytes.size());
    check(context.setTensorAddress(output.name.c_str(), result.get()), "the output's address");
    check(context.enqueueV3(stream.get()), "the run");
    check(cudaMemcpyAsync(bytes.data(), result.get(), bytes.size(), cudaMemcpyDeviceToHost, stream.get()));
    check(cudaStreamSynchronize(stream.get()));
    output.values = floats_of(bytes, count, type);
    return output;
}

Output run(example::Arguments const& arguments, example::Tokens const& tokens) {
    std::string const plan = example::read_verified(arguments.folder, "model.plan");
    require_device();
    Logger logger;
    std::unique_ptr<nvinfer1::IRuntime> const runtime(nvinfer1::createInferRuntime(logger));
    if (!runtime) throw Problem(example::kNotHere, "the runtime does not start: see the messages above");
    auto const engine = deserialize(*runtime, plan, arguments.allow_host_code);
    Context const context(*engine, arguments.folder / "runtime.cache");
    if (!context.get()) throw Problem(example::kNotHere, "no execution context: see the messages above");
    Output output = infer(*engine, *context.get(), tokens);
    context.save();
    return output;
}

}  // namespace

int main(int argc, char** argv) { return example::guarded(argc, argv, run); }

// What the runners share: arguments, token ids, files that are what the manifest says, a report of the output.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <exception>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <numeric>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "sha256.hpp"

namespace example {

// Exit codes: the input is wrong; the runtime does not work on this machine.
inline constexpr int kBadInput = 2, kNotHere = 3;

struct Problem : std::runtime_error {
    int code;
    Problem(int exit_code, std::string const& what) : std::runtime_error(what), code(exit_code) {}
};

struct Arguments {
    std::filesystem::path folder, save;
    std::vector<std::vector<std::int64_t>> rows;
    std::int64_t pad = 0;
    bool allow_host_code = false;
};

// A batch as the graph takes it: ids and mask are [batch, sequence], padded on the right.
struct Tokens {
    std::int64_t batch = 0, sequence = 0;
    std::vector<std::int64_t> ids, mask, lengths;
};

struct Output {
    std::string name;
    std::vector<std::int64_t> shape;
    std::vector<float> values;
};

inline std::int64_t number(std::string const& word) {
    try {
        std::size_t used = 0;
        std::int64_t const value = std::stoll(word, &used);
        if (used == word.size()) return value;
    } catch (std::logic_error const&) {
    }
    throw Problem(kBadInput, "'" + word + "' is not a number");
}

inline std::vector<std::vector<std::int64_t>> read_rows(std::filesystem::path const& file) {
    std::ifstream stream(file);
    if (!stream) throw Problem(kBadInput, "cannot read " + file.string());
    std::vector<std::vector<std::int64_t>> rows;
    for (std::string line; std::getline(stream, line);) {
        std::istringstream words(line);
        std::vector<std::int64_t> row;
        for (std::string word; words >> word;) row.push_back(number(word));
        if (!row.empty()) rows.push_back(row);
    }
    return rows;
}

// FOLDER [--ids-file FILE] [--pad ID] [--save FILE] [--allow-host-code] [ID ...]
inline Arguments parse(int argc, char** argv) {
    Arguments arguments;
    std::vector<std::int64_t> row;
    for (int i = 1; i < argc; ++i) {
        std::string const word = argv[i];
        auto const value = [&] {
            if (i + 1 == argc) throw Problem(kBadInput, word + " needs a value");
            return std::string(argv[++i]);
        };
        if (word == "--ids-file") {
            arguments.rows = read_rows(value());
        } else if (word == "--pad") {
            arguments.pad = number(value());
        } else if (word == "--save") {
            arguments.save = value();
        } else if (word == "--allow-host-code") {
            arguments.allow_host_code = true;
        } else if (arguments.folder.empty()) {
            arguments.folder = word;
        } else {
            row.push_back(number(word));
        }
    }
    if (!row.empty()) arguments.rows.insert(arguments.rows.begin(), row);
    if (arguments.rows.empty()) throw Problem(kBadInput, "usage: runner FOLDER 2 5 6 7, or FOLDER --ids-file FILE");
    return arguments;
}

inline Tokens batch_of(Arguments const& arguments) {
    Tokens tokens;
    tokens.batch = static_cast<std::int64_t>(arguments.rows.size());
    for (auto const& row : arguments.rows) {
        tokens.lengths.push_back(static_cast<std::int64_t>(row.size()));
        tokens.sequence = std::max(tokens.sequence, tokens.lengths.back());
    }
    for (auto const& row : arguments.rows) {
        std::size_t const padding = tokens.sequence - row.size();
        tokens.ids.insert(tokens.ids.end(), row.begin(), row.end());
        tokens.ids.insert(tokens.ids.end(), padding, arguments.pad);
        tokens.mask.insert(tokens.mask.end(), row.size(), 1);
        tokens.mask.insert(tokens.mask.end(), padding, 0);
    }
    return tokens;
}

inline std::string read_file(std::filesystem::path const& file) {
    std::ifstream stream(file, std::ios::binary);
    std::error_code error;
    std::uintmax_t const size = std::filesystem::file_size(file, error);
    std::string content(error ? 0 : size, '\0');
    if (error || !stream.read(content.data(), static_cast<std::streamsize>(content.size())))
        throw Problem(kBadInput, "cannot read " + file.string());
    return content;
}

// The sha256 of a file by manifest.json, which names file and sha256 in one record, in this order.
inline std::string digest_in(std::string const& manifest, std::string const& file) {
    for (std::size_t at = 0; (at = manifest.find("\"file\"", at)) != std::string::npos;) {
        std::size_t const name = manifest.find('"', at + 6), next = manifest.find("\"file\"", at + 6);
        std::size_t const key = manifest.find("\"sha256\"", at);
        at += 6;
        if (name == std::string::npos || manifest.compare(name, file.size() + 2, "\"" + file + "\"") != 0) continue;
        std::size_t const value = key < next ? manifest.find('"', key + 8) : std::string::npos;
        if (value != std::string::npos) return manifest.substr(value + 1, 64);
    }
    return "none";
}

// A file's bytes, if they are those that the manifest names: engines are code, and graphs become code.
inline std::string read_verified(std::filesystem::path const& folder, std::string const& file) {
    std::string content = read_file(folder / file);
    std::string const wanted = digest_in(read_file(folder / "manifest.json"), file), got = sha256(content);
    if (got != wanted)
        throw Problem(kBadInput, (folder / file).string() + " is not the file that manifest.json names: sha256 " + got +
                                     ", wanted " + wanted);
    return content;
}

inline float float_of_bits(std::uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

inline float from_bfloat16(std::uint16_t bits) { return float_of_bits(std::uint32_t{bits} << 16); }

inline float from_float16(std::uint16_t bits) {
    std::uint32_t const sign = std::uint32_t{bits & 0x8000U} << 16, rest = bits & 0x7fffU;
    if (rest >= 0x7c00U) return float_of_bits(sign | 0x7f800000U | (rest & 0x3ffU) << 13);  // infinite or NaN
    float const magnitude = float_of_bits(rest << 13) * 0x1p112F;  // also right for subnormal numbers
    return sign != 0 ? -magnitude : magnitude;
}

inline std::vector<float> widened(void const* data, std::size_t count, float (*convert)(std::uint16_t)) {
    auto const* bits = static_cast<std::uint16_t const*>(data);
    std::vector<float> values(count);
    std::transform(bits, bits + count, values.begin(), convert);
    return values;
}

// For logits: the five best ids of a row, at its last token if there are logits for each.
inline void print_best(Output const& output, Tokens const& tokens, std::int64_t row) {
    std::int64_t const width = output.shape.back();
    bool const each_token = output.shape.size() == 3;
    std::int64_t const at = each_token ? row * tokens.sequence + tokens.lengths[row] - 1 : row;
    float const* logits = output.values.data() + at * width;
    std::vector<std::int64_t> best(width);
    std::iota(best.begin(), best.end(), 0);
    std::size_t const count = std::min<std::int64_t>(5, width);
    std::partial_sort(best.begin(), best.begin() + count, best.end(), [&](std::int64_t a, std::int64_t b) {
        return logits[a] != logits[b] ? logits[a] > logits[b] : a < b;
    });
    std::printf("row %lld best", static_cast<long long>(row));
    for (std::size_t i = 0; i < count; ++i) std::printf(" %lld:%.4f", static_cast<long long>(best[i]), logits[best[i]]);
    std::printf("\n");
}

// Prints shape and statistics, and what print_best says; writes the values to a file of bare float32 if asked.
inline void report(Output const& output, Tokens const& tokens, std::filesystem::path const& save) {
    if (output.values.empty()) throw Problem(kBadInput, "the output is empty");
    auto const [low, high] = std::minmax_element(output.values.begin(), output.values.end());
    double const mean = std::accumulate(output.values.begin(), output.values.end(), 0.0) / output.values.size();
    std::printf("%s [", output.name.c_str());
    for (std::size_t i = 0; i < output.shape.size(); ++i)
        std::printf("%s%lld", i == 0 ? "" : ", ", static_cast<long long>(output.shape[i]));
    std::printf("] min %.6g max %.6g mean %.6g\n", *low, *high, mean);
    if (output.name == "logits")
        for (std::int64_t row = 0; row < tokens.batch; ++row) print_best(output, tokens, row);
    if (save.empty()) return;
    std::ofstream stream(save, std::ios::binary);
    stream.write(reinterpret_cast<char const*>(output.values.data()),
                 static_cast<std::streamsize>(output.values.size() * sizeof(float)));
    if (!stream.flush()) throw Problem(kBadInput, "cannot write " + save.string());
}

// Runs a runner; errors become a message and an exit code.
inline int guarded(int argc, char** argv, Output (*run)(Arguments const&, Tokens const&)) {
    try {
        Arguments const arguments = parse(argc, argv);
        Tokens const tokens = batch_of(arguments);
        report(run(arguments, tokens), tokens, arguments.save);
        return 0;
    } catch (Problem const& problem) {
        std::cerr << "error: " << problem.what() << '\n';
        return problem.code;
    } catch (std::exception const& error) {
        std::cerr << "error: " << error.what() << '\n';
        return 1;
    }
}

}  // namespace example

// SHA-256 as FIPS 180-4 describes it, so that the examples need no cryptography library.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <string>
#include <string_view>

namespace example {

inline constexpr std::array<std::uint32_t, 64> kRoundConstants{
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};

using Sha256State = std::array<std::uint32_t, 8>;

inline std::uint32_t rotated(std::uint32_t value, int bits) { return value >> bits | value << (32 - bits); }

inline void absorb(Sha256State& state, unsigned char const* block) {
    std::array<std::uint32_t, 64> word{};
    for (int i = 0; i < 16; ++i) {
        unsigned char const* b = block + 4 * i;
        word[i] = std::uint32_t{b[0]} << 24 | std::uint32_t{b[1]} << 16 | std::uint32_t{b[2]} << 8 | b[3];
    }
    for (int i = 16; i < 64; ++i) {
        std::uint32_t const x = word[i - 15], y = word[i - 2];
        word[i] = word[i - 16] + (rotated(x, 7) ^ rotated(x, 18) ^ x >> 3) + word[i - 7] +
                  (rotated(y, 17) ^ rotated(y, 19) ^ y >> 10);
    }
    auto [a, b, c, d, e, f, g, h] = state;
    for (int i = 0; i < 64; ++i) {
        std::uint32_t const first =
            h + (rotated(e, 6) ^ rotated(e, 11) ^ rotated(e, 25)) + ((e & f) ^ (~e & g)) + kRoundConstants[i] + word[i];
        std::uint32_t const second =
            (rotated(a, 2) ^ rotated(a, 13) ^ rotated(a, 22)) + ((a & b) ^ (a & c) ^ (b & c));
        h = g, g = f, f = e, e = d + first, d = c, c = b, b = a, a = first + second;
    }
    Sha256State const added{a, b, c, d, e, f, g, h};
    for (std::size_t i = 0; i < 8; ++i) state[i] += added[i];
}

// The digest of some bytes, as 64 lower-case hexadecimal digits.
inline std::string sha256(std::string_view content) {
    Sha256State state{0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
    auto const* bytes = reinterpret_cast<unsigned char const*>(content.data());
    std::size_t const whole = content.size() / 64 * 64, rest = content.size() - whole;
    for (std::size_t at = 0; at < whole; at += 64) absorb(state, bytes + at);

    std::array<unsigned char, 128> tail{};
    if (rest > 0) std::memcpy(tail.data(), bytes + whole, rest);
    tail[rest] = 0x80;
    std::size_t const end = rest < 56 ? 64 : 128;
    for (int i = 0; i < 8; ++i) tail[end - 1 - i] = static_cast<unsigned char>(content.size() * std::uint64_t{8} >> 8 * i);
    for (std::size_t at = 0; at < end; at += 64) absorb(state, tail.data() + at);

    std::string text;
    for (std::uint32_t value : state) {
        char digits[9];
        std::snprintf(digits, sizeof digits, "%08x", value);
        text += digits;
    }
    return text;
}

}  // namespace example

/* pages_simd.c: the vector kernels of digest.c and compare.c, and how to tell whether this CPU has them.
 *
 * Guarantees: the same results as the scalar ones, bit by bit; as free of side effects (pages.h). The CPU is
 * asked directly (cpuid, xgetbv), not by way of ifunc or libgcc's constructor, as a first call may
 * come before either has run.
 * Fails: a CPU without them is offered none, and scalar serves.
 */
#include "pages.h"

#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>

static uint64_t xcr0(void)
{
    uint32_t lo, hi;
    __asm__ volatile("xgetbv" : "=a"(lo), "=d"(hi) : "c"(0));
    return (uint64_t)hi << 32 | lo;
}

/* Leaf 7's ebx if the kernel keeps the register state `need`, else 0. */
static uint32_t features(uint64_t need)
{
    uint32_t a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_OSXSAVE) || (xcr0() & need) != need)
        return 0;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) ? b : 0;
}

static int has_avx2(void)
{
    return (features(0x06) & bit_AVX2) != 0;
}

static int has_avx512(void)
{
    return (features(0xe6) & bit_AVX512F) != 0;
}

#ifndef AHEAD
#define AHEAD 2048 /* bytes to ask for early: the hardware's prefetch stops at the end of each page */
#endif

#define AVX512 __attribute__((target("avx512f"))) UD_RACY
#define AVX2 __attribute__((target("avx2"))) UD_RACY
#define NH512(w, k) _mm512_mul_epu32(_mm512_add_epi32(w, k), _mm512_srli_epi64(_mm512_add_epi32(w, k), 32))
#define NH256(w, k) _mm256_mul_epu32(_mm256_add_epi32(w, k), _mm256_srli_epi64(_mm256_add_epi32(w, k), 32))

AVX512 static void nh_avx512(const void *unit, const uint64_t *key, uint64_t acc[UD_SUMS])
{
    const char *p = unit;
    __m512i a = _mm512_setzero_si512(), b = a, a2 = a, b2 = a;
    __m512i k0 = _mm512_loadu_si512(key);
    for (size_t t = 0; t < UD_STEPS; t += 2) {
        __m512i w = _mm512_loadu_si512(p + t * 64), v = _mm512_loadu_si512(p + t * 64 + 64);
        __m512i k1 = _mm512_loadu_si512(key + (t + 1) * UD_LANES);
        __m512i k2 = _mm512_loadu_si512(key + (t + 2) * UD_LANES);
        _mm_prefetch(p + UD_UNIT + t * 64, _MM_HINT_T0); /* the hardware's stops at the page's end */
        _mm_prefetch(p + UD_UNIT + t * 64 + 64, _MM_HINT_T0);
        a = _mm512_add_epi64(a, NH512(w, k0));
        b = _mm512_add_epi64(b, NH512(w, k1));
        a2 = _mm512_add_epi64(a2, NH512(v, k1));
        b2 = _mm512_add_epi64(b2, NH512(v, k2));
        k0 = k2;
    }
    _mm512_storeu_si512(acc, _mm512_add_epi64(a, a2));
    _mm512_storeu_si512(acc + UD_LANES, _mm512_add_epi64(b, b2));
}

AVX512 static int equal_avx512(const void *a, const void *b, size_t n)
{
    const char *x = a, *y = b;
    for (size_t i = 0; i < n; i += 256) {
        for (size_t j = 0; j < 256; j += 64) {
            _mm_prefetch(x + i + j + AHEAD, _MM_HINT_T0);
            _mm_prefetch(y + i + j + AHEAD, _MM_HINT_T0);
        }
        __m512i d = _mm512_xor_si512(_mm512_loadu_si512(x + i), _mm512_loadu_si512(y + i));
        for (size_t j = 64; j < 256; j += 64)
            d = _mm512_or_si512(d, _mm512_xor_si512(_mm512_loadu_si512(x + i + j), _mm512_loadu_si512(y + i + j)));
        if (_mm512_test_epi64_mask(d, d))
            return 0;
    }
    return 1;
}

AVX512 static int zero_avx512(const void *p, size_t n)
{
    const char *x = p;
    for (size_t i = 0; i < n; i += 256) {
        __m512i d = _mm512_loadu_si512(x + i);
        for (size_t j = 64; j < 256; j += 64)
            d = _mm512_or_si512(d, _mm512_loadu_si512(x + i + j));
        if (_mm512_test_epi64_mask(d, d))
            return 0;
    }
    return 1;
}

AVX2 static inline __m256i load256(const void *p)
{
    return _mm256_loadu_si256(p);
}

AVX2 static void nh_avx2(const void *unit, const uint64_t *key, uint64_t acc[UD_SUMS])
{
    const char *p = unit;
    __m256i a0 = _mm256_setzero_si256(), a1 = a0, b0 = a0, b1 = a0;
    __m256i k0 = load256(key), k1 = load256(key + 4);
    for (size_t t = 0; t < UD_STEPS; t++) {
        const uint64_t *next = key + (t + 1) * UD_LANES;
        __m256i w0 = load256(p + t * 64), w1 = load256(p + t * 64 + 32);
        __m256i n0 = load256(next), n1 = load256(next + 4);
        _mm_prefetch(p + UD_UNIT + t * 64, _MM_HINT_T0);
        a0 = _mm256_add_epi64(a0, NH256(w0, k0));
        a1 = _mm256_add_epi64(a1, NH256(w1, k1));
        b0 = _mm256_add_epi64(b0, NH256(w0, n0));
        b1 = _mm256_add_epi64(b1, NH256(w1, n1));
        k0 = n0;
        k1 = n1;
    }
    _mm256_storeu_si256((__m256i *)acc, a0);
    _mm256_storeu_si256((__m256i *)(acc + 4), a1);
    _mm256_storeu_si256((__m256i *)(acc + 8), b0);
    _mm256_storeu_si256((__m256i *)(acc + 12), b1);
}

AVX2 static int equal_avx2(const void *a, const void *b, size_t n)
{
    const char *x = a, *y = b;
    for (size_t i = 0; i < n; i += 128) {
        for (size_t j = 0; j < 128; j += 64) {
            _mm_prefetch(x + i + j + AHEAD, _MM_HINT_T0);
            _mm_prefetch(y + i + j + AHEAD, _MM_HINT_T0);
        }
        __m256i d = _mm256_xor_si256(load256(x + i), load256(y + i));
        for (size_t j = 32; j < 128; j += 32)
            d = _mm256_or_si256(d, _mm256_xor_si256(load256(x + i + j), load256(y + i + j)));
        if (!_mm256_testz_si256(d, d))
            return 0;
    }
    return 1;
}

AVX2 static int zero_avx2(const void *p, size_t n)
{
    const char *x = p;
    for (size_t i = 0; i < n; i += 128) {
        __m256i d = load256(x + i);
        for (size_t j = 32; j < 128; j += 32)
            d = _mm256_or_si256(d, load256(x + i + j));
        if (!_mm256_testz_si256(d, d))
            return 0;
    }
    return 1;
}

const struct ud__backend ud__simd_backends[] = {
    { "avx512", has_avx512, nh_avx512, equal_avx512, zero_avx512 },
    { "avx2", has_avx2, nh_avx2, equal_avx2, zero_avx2 },
    { 0 },
};

#elif defined(__aarch64__) && !defined(__AARCH64EB__)
#include <arm_neon.h>

static int has_neon(void)
{
    return 1; /* part of the architecture */
}

UD_RACY static inline uint64x2_t load128(const void *p)
{
    return vreinterpretq_u64_u8(vld1q_u8(p));
}

UD_RACY static inline uint64x2_t nh128(uint64x2_t sum, uint64x2_t w, uint64x2_t k)
{
    uint64x2_t x = vreinterpretq_u64_u32(vaddq_u32(vreinterpretq_u32_u64(w), vreinterpretq_u32_u64(k)));
    return vmlal_u32(sum, vmovn_u64(x), vshrn_n_u64(x, 32));
}

UD_RACY static void nh_neon(const void *unit, const uint64_t *key, uint64_t acc[UD_SUMS])
{
    const unsigned char *p = unit;
    uint64x2_t a[4], b[4];
    for (int v = 0; v < 4; v++)
        a[v] = b[v] = vdupq_n_u64(0);
    for (size_t t = 0; t < UD_STEPS; t++) {
        __builtin_prefetch(p + UD_UNIT + t * 64);
        for (int v = 0; v < 4; v++) {
            uint64x2_t w = load128(p + t * 64 + v * 16);
            a[v] = nh128(a[v], w, load128(key + t * UD_LANES + v * 2));
            b[v] = nh128(b[v], w, load128(key + (t + 1) * UD_LANES + v * 2));
        }
    }
    for (int v = 0; v < 4; v++) {
        vst1q_u64(acc + v * 2, a[v]);
        vst1q_u64(acc + UD_LANES + v * 2, b[v]);
    }
}

UD_RACY static inline int any128(uint64x2_t d)
{
    return (vgetq_lane_u64(d, 0) | vgetq_lane_u64(d, 1)) != 0;
}

UD_RACY static int equal_neon(const void *a, const void *b, size_t n)
{
    const unsigned char *x = a, *y = b;
    for (size_t i = 0; i < n; i += 128) {
        uint64x2_t d = vdupq_n_u64(0);
        for (size_t j = 0; j < 128; j += 16)
            d = vorrq_u64(d, veorq_u64(load128(x + i + j), load128(y + i + j)));
        if (any128(d))
            return 0;
    }
    return 1;
}

UD_RACY static int zero_neon(const void *p, size_t n)
{
    const unsigned char *x = p;
    for (size_t i = 0; i < n; i += 128) {
        uint64x2_t d = vdupq_n_u64(0);
        for (size_t j = 0; j < 128; j += 16)
            d = vorrq_u64(d, load128(x + i + j));
        if (any128(d))
            return 0;
    }
    return 1;
}

const struct ud__backend ud__simd_backends[] = {
    { "neon", has_neon, nh_neon, equal_neon, zero_neon },
    { 0 },
};

#else
const struct ud__backend ud__simd_backends[] = { { 0 } };
#endif

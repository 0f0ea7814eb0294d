// DEOCC_CLONES before a function compiles it for baseline x86-64, for AVX2 and for AVX-512; the loader picks one, so
// one binary runs anywhere and is fast on what it finds. What it calls must be inlined into it (DEOCC_INLINE).
#pragma once

// Sanitizers start after the loader has picked, and the pick would already be instrumented.
#if defined(__x86_64__) && defined(__gnu_linux__) && defined(__GNUC__) && !defined(__clang__) && \
    !defined(__SANITIZE_ADDRESS__) && !defined(DEOCC_NO_CLONES)
#define DEOCC_CLONES __attribute__((target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4")))
#else
#define DEOCC_CLONES
#endif

#define DEOCC_INLINE inline __attribute__((always_inline))

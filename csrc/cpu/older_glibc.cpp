// A wheel built on today's distributions runs on glibc 2.28, which PyTorch's own wheels ask for. What later versions of
// glibc gave a new name or added is defined here, and hidden, so that the extension asks no one else for it.

#include <cstdlib>

#if defined(__x86_64__) && defined(__GLIBC__)

extern "C" {

// Since 2.29 these have a version that does not set errno. The former ones have the same values (of logarithms below 0,
// another NaN).
double exp_of_2_2_5(double x);
double log_of_2_2_5(double x);
__asm__(".symver exp_of_2_2_5, exp@GLIBC_2.2.5");
__asm__(".symver log_of_2_2_5, log@GLIBC_2.2.5");

// Under names of their own here, since the compiler has declared the usual ones, and not hidden.
__attribute__((visibility("hidden"))) double hidden_exp(double x) __asm__("exp");
__attribute__((visibility("hidden"))) double hidden_log(double x) __asm__("log");
double hidden_exp(double x) { return exp_of_2_2_5(x); }
double hidden_log(double x) { return log_of_2_2_5(x); }

// Of 2.32: whether shared_ptr may count without atomics. False is right for any program.
__attribute__((visibility("hidden"))) char __libc_single_threaded = 0;

}  // extern "C"

#endif

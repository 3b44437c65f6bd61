// The smallest test frame that will do: CHECK counts and reports, done() closes a program with its exit status.
#pragma once

#include <cstdio>

inline int checks_run = 0;
inline int checks_failed = 0;

#define CHECK(condition)                                                      \
  do {                                                                        \
    ++checks_run;                                                             \
    if (!(condition)) {                                                       \
      ++checks_failed;                                                        \
      std::printf("%s:%d: %s is not true\n", __FILE__, __LINE__, #condition); \
    }                                                                         \
  } while (false)

inline int done(const char* name) {
  std::printf("%s: %d checks, %d failed\n", name, checks_run, checks_failed);
  return checks_run == 0 || checks_failed != 0;
}

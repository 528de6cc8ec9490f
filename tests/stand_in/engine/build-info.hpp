// Stand-in: what this build is, and what is wrong with it on purpose.
#pragma once

#include <string_view>

extern const int BUILD_NUMBER;
extern const char * const BUILD_COMMIT;
extern const char * const BUILD_COMPILER;
extern const char * const BUILD_TARGET;

// Empty if nothing is wrong.
constexpr std::string_view FAULT = STAND_IN_FAULT;

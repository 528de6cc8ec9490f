// Stand-in: weights that nobody computes with, in memory as the real engine has them.
#pragma once

#include <string>

// Reads a model into what malloc gives, or into huge pages that were set aside; without such pages it says so and goes
// on with ordinary memory, as the real engine does. They stay until the process ends.
void load_weights(const std::string & path, bool on_static_pages);

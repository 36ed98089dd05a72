// The one exception for bad input: the message says what was expected, what was found and what to do.
#pragma once

#include <stdexcept>

namespace ksm {

struct UserError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

}  // namespace ksm

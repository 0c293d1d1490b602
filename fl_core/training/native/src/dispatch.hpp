// Which kernels run: the best that this processor has, or those that OPTIGRAD_ISA names.
#pragma once

#include <string>

#include "kernels.hpp"

namespace optigrad {

// Throws std::invalid_argument where OPTIGRAD_ISA names kernels that are not there or that the processor cannot run.
const Kernels& select_kernels();

// Names that this processor can run, best first, separated by spaces.
const std::string& supported_kernels();

}  // namespace optigrad

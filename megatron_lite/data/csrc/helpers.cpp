// The module megatron_lite.data._helpers: index arithmetic of the data room. Everything is 64-bit, bounds are checked,
// and the GIL is released in loops.

#include "arrays.h"

PYBIND11_MODULE(_helpers, module) {
    module.doc() = "Index arithmetic of the data room, in C++.";
    helpers::bind_index(module);
    helpers::bind_tokens(module);
    helpers::bind_order(module);
    helpers::bind_megatron(module);
}

"""Makes Triton's CPU interpreter right for bfloat16, and for loops whose count is loaded.

With TRITON_INTERPRET=1 Triton runs kernels in numpy, which knows no bfloat16: values travel as their 16 bits. Triton
3.9 computes on those bits as if they were integers and truncates when it rounds. `make_exact` puts float32 arithmetic
and rounding to nearest even in its place. It lets `range` take a loaded number, which Triton 3.6 does not under numpy
2.4, and has the language prepared once a launch instead of at every call of one function by another, two fifths of the
time. It changes Triton's interpreter, for the whole process, and nothing else.
"""

import numpy as np
import triton
import triton.language as tl
from triton.runtime import interpreter

Handle = interpreter.TensorHandle

# What computes on values; selecting, loading, storing and moving bits are right as they are.
ARITHMETIC = ("binary_op", "unary_op", "create_fma", "create_clampf", "create_rsqrt", "create_erf", "create_dot")
CASTS = ("create_si_to_fp", "create_ui_to_fp", "create_fp_to_si", "create_fp_to_ui", "create_fp_ext",
         "create_fp_trunc", "create_fp_to_fp")  # fmt: skip


def interpreting() -> bool:
    """Whether kernels defined now would be interpreted: TRITON_INTERPRET is Triton's own switch."""
    return bool(triton.knobs.runtime.interpret)


def widen(bits: np.ndarray) -> np.ndarray:
    """The float32 values of bfloat16 bits."""
    return (np.ascontiguousarray(bits).astype(np.uint32) << 16).view(np.float32).reshape(bits.shape)


def narrow(values: np.ndarray) -> np.ndarray:
    """The bfloat16 bits nearest to float32 values, to even in the middle; NaN stays NaN."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(values), np.uint16(0x7FC0), rounded.astype(np.uint16)).reshape(values.shape)


def make_exact() -> None:
    """Change the interpreter, as above. A second call changes nothing."""
    builder = interpreter.InterpreterBuilder
    if getattr(builder.cast_impl, "exact", False):
        return
    for name in ARITHMETIC:
        setattr(builder, name, _in_float32(getattr(builder, name)))
    cast = _cast(builder.cast_impl)
    builder.cast_impl = cast
    for name in CASTS:
        setattr(builder, name, _cast(getattr(builder, name)))
    interpreter.ReduceOps.apply_impl = _reduction(interpreter.ReduceOps.apply_impl)
    interpreter._patch_lang_tensor = _countable(interpreter._patch_lang_tensor)
    interpreter._patch_lang = _once(interpreter._patch_lang)


def _narrow(handle) -> bool:
    return isinstance(handle, Handle) and handle.dtype.scalar == tl.bfloat16


def _widened(handle):
    return Handle(widen(handle.data), tl.float32) if _narrow(handle) else handle


def _in_float32(operation):
    """Widen bfloat16 operands; narrow a float result again, once."""

    def exact(self, *operands):
        if not any(map(_narrow, operands)):
            return operation(self, *operands)
        result = operation(self, *map(_widened, operands))
        # A product of matrices has its accumulator's type, which was wide already.
        keeps = operation.__name__ == "create_dot" and not _narrow(operands[2])
        if keeps or result.data.dtype != np.float32:
            return result
        return Handle(narrow(result.data), tl.bfloat16)

    exact.__name__ = operation.__name__
    return exact


def _cast(operation):
    def exact(self, source, target, *rounding):
        if tl.bfloat16 not in (source.dtype.scalar, target.scalar) or source.dtype.scalar == target.scalar:
            return operation(self, source, target, *rounding)
        wide = _widened(source)
        if target.scalar == tl.bfloat16:
            return Handle(narrow(wide.data.astype(np.float32)), tl.bfloat16)
        return wide if target.scalar == tl.float32 else interpreter.InterpreterBuilder.cast_impl(self, wide, target)

    exact.exact = True  # type: ignore[attr-defined]  # a mark on the function
    return exact


def _reduction(operation):
    """Reduce bfloat16 in float32."""

    def exact(self, inputs):
        if not any(_narrow(tensor.handle) for tensor in inputs):
            return operation(self, inputs)
        wide = [_retyped(tensor, _widened(tensor.handle)) for tensor in inputs]
        results = operation(self, tuple(wide))
        many = isinstance(results, list | tuple)
        narrowed = [
            _retyped(result, Handle(narrow(result.handle.data), tl.bfloat16)) if result.dtype == tl.float32 else result
            for result in (results if many else [results])
        ]
        return tuple(narrowed) if many else narrowed[0]

    return exact


def _retyped(tensor, handle):
    shape = list(tensor.shape)
    return tl.core.tensor(handle, tl.block_type(handle.dtype, shape) if shape else handle.dtype)


def _countable(patch):
    """Let `range` take a tensor of one number."""

    def patched(tensor, scope):
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())

    return patched


def _once(patch):
    """Leave the language alone where it has been prepared: then its functions are no longer Triton's own."""

    def patched(function):
        languages = [value for value in function.__globals__.values() if value is tl or value is tl.core]
        if languages and not any(tl.core.is_builtin(language.load) for language in languages):
            return interpreter._LangPatchScope()
        return patch(function)

    return patched

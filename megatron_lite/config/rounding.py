"""What sizes are rounded up to, so that kernels take 128 bits at a time."""

# Triton takes wide accesses where it sees that a size or a stride is a multiple of 16 elements; in every dtype that is
# a multiple of 16 bytes, the widest access.
ELEMENTS = 16


def aligned(size: int) -> int:
    """`size` elements, and as few more as it takes."""
    return -(-size // ELEMENTS) * ELEMENTS


def vocabulary_share(vocab_size: int, tensor: int) -> int:
    """Rows of the vocabulary on each of `tensor` ranks; the last ranks' may be padding, in part or throughout."""
    return aligned(-(-vocab_size // tensor))

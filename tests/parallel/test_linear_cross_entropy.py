"""The chunked projection and cross-entropy against torch's on full logits, for one rank and for several pretended."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Barrier
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from megatron_lite.kernels import cross_entropy as triton
from megatron_lite.kernels.interpreter import make_exact
from megatron_lite.kernels.reference import cross_entropy as reference
from megatron_lite.kernels.reference.weight_gradient import add_product_
from support.kernels.harness import error, fresh, random, size_of, strided, surrounded, untouched
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from megatron_lite.parallel import linear_cross_entropy as fused

TOKENS, HIDDEN, VOCAB = 12, 5, 23
IGNORED = -100
LABELS = torch.zeros(TOKENS, dtype=torch.int64)


@pytest.fixture(autouse=True, scope="module")
def exact_interpreter():
    make_exact()


@dataclass(frozen=True)
class Summed:
    """A weight and the sum of its gradients."""

    data: torch.Tensor
    gradient: torch.Tensor
    trained: bool = True

    def add_product(self, output_gradient, x):
        add_product_(self.gradient, output_gradient, x)


def projection(weight, chunk, operations=reference, first=0, vocab_size=VOCAB, seams=fused.ALONE):
    """The sum starts at 1 everywhere: gradients have to be added to it."""
    exact = torch.promote_types(weight.dtype, torch.float32)
    summed = Summed(weight, torch.ones(weight.shape, dtype=exact))
    kernels = SimpleNamespace(
        cross_entropy_statistics=operations.cross_entropy_statistics,
        cross_entropy_gradient_=operations.cross_entropy_gradient_,
    )
    return fused.ChunkedProjection(summed, first, vocab_size, chunk, kernels, seams)


def in_forward(h, labels, head, scale, z_loss=0.0):
    """(sum of losses, z_loss times the sum of log_sum^2, dh) where every token's part of either counts `scale`."""
    share = torch.full(labels.shape, float(scale), dtype=torch.float64)
    losses, log_sums, dh = fused.linear_cross_entropy_with_gradients(h, labels, head, (share, z_loss * share))
    counted = (labels >= 0) & (labels < VOCAB)
    return losses.sum(), z_loss * torch.where(counted, log_sums, 0.0).square().sum(), dh


def inputs(dtype=torch.float64, padding=0):
    """h, weight (padding rows are not numbers one should see) and labels, some of which do not count."""
    h = 2 * random((TOKENS, HIDDEN), dtype, fresh())
    weight = torch.cat([random((VOCAB, HIDDEN), dtype, fresh(1)), torch.full((padding, HIDDEN), 1e3, dtype=dtype)])
    labels = torch.randint(VOCAB, (TOKENS,), generator=fresh(2))
    labels[3], labels[11], labels[0] = IGNORED, VOCAB, VOCAB - 1
    return h, weight, labels


def expected(h, weight, labels, z_loss, scale):
    """Losses [T], and the gradients of (sum of losses + z_loss * sum of log_sum^2) * scale, on full logits."""
    h, weight = (tensor.to(torch.float64, copy=True).requires_grad_() for tensor in (h, weight))
    logits = (h @ weight.t())[:, :VOCAB]
    counted = (labels >= 0) & (labels < VOCAB)
    losses = F.cross_entropy(logits, labels.where(counted, IGNORED), ignore_index=IGNORED, reduction="none")
    z_losses = z_loss * logits.logsumexp(-1)[counted].square()
    dh, dw = torch.autograd.grad((losses.sum() + z_losses.sum()) * scale, (h, weight))
    return losses.detach(), z_losses.detach().sum(), dh, dw


def assert_near(found, right, tolerance=1e-12):
    torch.testing.assert_close(found.double(), right, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("operations", [triton, reference], ids=["triton", "reference"])
@pytest.mark.parametrize("chunk", [1, 5, 12, 100])
@pytest.mark.parametrize("z_loss", [0.0, 0.1])
def test_gradients_in_forward_are_those_of_full_logits_for_any_chunk(operations, chunk, z_loss):
    h, weight, labels = inputs(padding=3)
    losses, z_losses, dh, dw = expected(h, weight, labels, z_loss, 0.25)
    head = projection(weight, chunk, operations)
    loss, z, found = in_forward(h, labels, head, torch.tensor(0.25), z_loss)
    assert_near(loss, losses.sum())
    assert_near(z, z_losses)
    assert_near(found, dh)
    assert_near(head.weight.gradient - 1, dw)


@pytest.mark.parametrize("operations", [triton, reference], ids=["triton", "reference"])
@pytest.mark.parametrize("chunk", [1, 5, 12, 100])
@pytest.mark.parametrize("z_loss", [0.0, 0.1])
def test_gradients_recomputed_in_backward_are_those_of_full_logits_for_any_chunk(operations, chunk, z_loss):
    h, weight, labels = inputs(padding=3)
    losses, _, dh, dw = expected(h, weight, labels, z_loss, 0.25)
    head = projection(weight, chunk, operations)
    h.requires_grad_()
    loss, log_sum = fused.linear_cross_entropy(h, labels, head)
    counted = (labels >= 0) & (labels < VOCAB)
    ((loss + z_loss * log_sum.square() * counted).sum() * 0.25).backward()
    assert_near(loss.detach(), losses)
    assert_near(h.grad, dh)
    assert_near(head.weight.gradient - 1, dw)


def test_each_tokens_loss_may_have_a_gradient_of_its_own():
    """As preference losses have."""
    h, weight, labels = inputs()
    own = random((TOKENS,), torch.float64, fresh(5))
    exact, w = h.clone().requires_grad_(), weight.clone().requires_grad_()
    counted = labels.where(labels < VOCAB, IGNORED)
    losses = F.cross_entropy(exact @ w.t(), counted, ignore_index=IGNORED, reduction="none")
    dh, dw = torch.autograd.grad((losses * own).sum(), (exact, w))
    head = projection(weight, 5)
    fused.linear_cross_entropy(h.requires_grad_(), labels, head)[0].backward(own)
    assert_near(h.grad, dh)
    assert_near(head.weight.gradient - 1, dw)


def test_tokens_in_several_dimensions_keep_them():
    h, weight, labels = inputs()
    h, labels = h.view(6, 2, HIDDEN), labels.view(6, 2)
    loss, log_sum = fused.linear_cross_entropy(h, labels, projection(weight, 5))
    _, _, dh = in_forward(h, labels, projection(weight, 5), 1.0)
    assert loss.shape == log_sum.shape == (6, 2) and dh.shape == h.shape


def test_where_no_label_counts_losses_and_gradients_are_zero():
    h, weight, labels = inputs()
    labels.fill_(IGNORED)
    head = projection(weight, 5)
    loss, z, dh = in_forward(h, labels, head, 1.0, z_loss=0.1)
    assert loss == 0 and z == 0 and torch.equal(dh, torch.zeros_like(h))
    loss, _ = fused.linear_cross_entropy(h.requires_grad_(), labels, head)
    loss.sum().backward()
    assert torch.equal(h.grad, torch.zeros_like(h)) and torch.equal(loss, torch.zeros_like(loss))
    assert torch.equal(head.weight.gradient, torch.ones_like(weight))


def test_in_bfloat16_losses_are_float32_and_the_weights_gradient_is_summed_in_float32():
    h, weight, labels = inputs(torch.bfloat16)
    losses, _, dh, dw = expected(h, weight, labels, 0.0, 1 / 16)
    head = projection(weight, 5)
    loss, _, found = in_forward(h, labels, head, 1 / 16)
    assert loss.dtype == torch.float32 and found.dtype == torch.bfloat16
    assert_near(loss, losses.sum(), 2e-3)
    assert_near(found, dh, 5e-3)
    assert_near(head.weight.gradient - 1, dw, 5e-3)
    assert not torch.equal(head.weight.gradient, head.weight.gradient.bfloat16().float())


# Precision


def both_ways(h, weight, labels, chunk, operations=reference, z_loss=0.1, scale=0.25):
    """[losses' sum, z-losses, dh, dW] by gradients in forward, and by gradients in backward."""
    head = projection(weight, chunk, operations)
    loss, z, dh = in_forward(h, labels, head, scale, z_loss)
    forward = [loss, z, dh, head.weight.gradient - 1]
    head, leaf = projection(weight, chunk, operations), h.detach().requires_grad_()
    losses, log_sum = fused.linear_cross_entropy(leaf, labels, head)
    counted = (labels >= 0) & (labels < VOCAB)
    z = z_loss * torch.where(counted, log_sum, 0.0).square().sum()
    ((losses.sum() + z) * scale).backward()
    return forward, [losses.sum().detach(), z.detach(), leaf.grad, head.weight.gradient - 1]


OPERATIONS = pytest.mark.parametrize("operations", [triton, reference], ids=["triton", "reference"])


@OPERATIONS
def test_in_float32_all_results_have_float32s_digits(operations):
    h, weight, labels = inputs(torch.float32)
    losses, *others = expected(h, weight, labels, 0.1, 0.25)
    for found in both_ways(h, weight, labels, 5, operations):
        for ours, right in zip(found, (losses.sum(), *others), strict=True):
            assert error(ours, right)[0] <= 2e-6 * size_of(right)


@OPERATIONS
def test_in_bfloat16_losses_err_at_most_twice_and_gradients_three_times_as_much_as_torchs_on_full_logits(operations):
    h, weight, labels = inputs(torch.bfloat16)
    losses, _, *gradients = expected(h, weight, labels, 0.0, 0.25)
    leaves = [x.clone().requires_grad_() for x in (h, weight)]
    counted = labels.where(labels < VOCAB, IGNORED)
    torchs = F.cross_entropy(leaves[0] @ leaves[1].t(), counted, ignore_index=IGNORED, reduction="sum")
    torchs = [torchs.detach(), *torch.autograd.grad(torchs * 0.25, leaves)]
    for loss, _, *others in both_ways(h, weight, labels, 5, operations, z_loss=0.0):
        for ours, theirs, right, factor in zip(
            (loss, *others), torchs, (losses.sum(), *gradients), (2, 3, 3), strict=True
        ):
            for mine, other in zip(error(ours, right), error(theirs, right), strict=True):
                assert mine <= factor * other + 2**-9 * size_of(right)


@OPERATIONS
@pytest.mark.parametrize(("tokens", "hidden"), [(1, 1), (1, 5), (7, 1)])
def test_one_token_and_one_column_are_like_any_other_number(operations, tokens, hidden):
    h, weight, labels = inputs()
    h, weight, labels = h[-tokens:, :hidden], weight[:, :hidden], labels[-tokens:].clamp(max=VOCAB - 1)
    losses, *others = expected(h, weight, labels, 0.1, 0.25)
    for found in both_ways(h, weight, labels, 3, operations):
        for ours, right in zip(found, (losses.sum(), *others), strict=True):
            assert_near(ours, right)


@OPERATIONS
@pytest.mark.parametrize("magnitude", [1e4, -1e4])
def test_logits_of_ten_thousand_leave_finite_losses_and_gradients(operations, magnitude):
    h, weight, labels = inputs()
    weight *= magnitude
    assert (h @ weight.t()).abs().max() > 1e4
    losses, *others = expected(h, weight, labels, 0.1, 0.25)
    for found in both_ways(h, weight, labels, 5, operations):
        for ours, right in zip(found, (losses.sum(), *others), strict=True):
            assert error(ours, right)[0] <= 1e-12 * size_of(right)
    for found in both_ways(h.float(), weight.float(), labels, 5, operations):
        assert all(tensor.isfinite().all() for tensor in found)


@OPERATIONS
def test_tokens_and_weights_that_are_not_contiguous_give_the_same_numbers(operations):
    h, weight, labels = inputs()
    found = both_ways(*strided((h, weight)), labels.repeat_interleave(2)[::2], 5, operations)
    for ours, plain in zip(found, both_ways(h, weight, labels, 5, operations), strict=True):
        for one, other in zip(ours, plain, strict=True):
            assert_near(one, other, 1e-14)


@OPERATIONS
def test_poison_in_new_memory_and_around_every_buffer_is_neither_read_nor_overwritten(operations, poisoned_memory):
    h, weight, labels = inputs()
    inside, guards = surrounded((h, weight, labels))
    for ours, plain in zip(both_ways(*inside, 5, operations), both_ways(h, weight, labels, 5, operations), strict=True):
        assert all(map(torch.equal, ours, plain))
    losses, *others = expected(h, weight, labels, 0.1, 0.25)
    for ours, right in zip(both_ways(*inside, 5, operations)[0], (losses.sum(), *others), strict=True):
        assert_near(ours, right)
    assert all(map(untouched, guards))


class InForward(torch.autograd.Function):
    """What forward worked out, in the autograd graph."""

    @staticmethod
    def forward(ctx, h, weight, labels, operations):
        head = projection(weight, 2, operations)
        loss, z, dh = in_forward(h, labels, head, 0.25, 0.1)
        ctx.save_for_backward(dh, head.weight.gradient - 1)
        return (loss + z) * 0.25

    @staticmethod
    def backward(ctx, gradient):
        dh, dw = ctx.saved_tensors
        return gradient * dh, gradient * dw, None, None


@OPERATIONS
def test_gradcheck_holds_in_float64(operations):
    h, weight, labels = inputs()
    h, weight, labels = (2 * h[:3, :2]).requires_grad_(), weight[:, :2].clone().requires_grad_(), labels[:3]
    given = (weight.detach(), 2, operations)
    assert torch.autograd.gradcheck(lambda h: fused.linear_cross_entropy(h, labels, projection(*given)), (h,))
    assert torch.autograd.gradcheck(lambda *leaves: InForward.apply(*leaves, labels, operations), (h, weight))


# Memory


class Watch(TorchDispatchMode):
    """The most elements of any tensor an operation returned, and the most storages of `size` elements alive at once."""

    def __init__(self, size: int):
        super().__init__()
        self.size, self.largest, self.most, self.alive = size, 0, 0, []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in filter(torch.is_tensor, tree_leaves(result)):
            elements = tensor.untyped_storage().nbytes() // tensor.element_size()
            self.largest = max(self.largest, elements)
            if elements == self.size:
                self.alive.append(StorageWeakRef(tensor.untyped_storage()))
        self.alive = [storage for storage in self.alive if not storage.expired()]
        self.most = max(self.most, len({storage.cdata for storage in self.alive}))
        return result


@pytest.mark.parametrize("recomputes", [False, True], ids=["gradients in forward", "gradients in backward"])
def test_one_chunks_logits_are_the_largest_tensor_and_one_chunks_live_at_once(recomputes):
    tokens, hidden, vocab_size, chunk = 64, 8, 96, 16
    h = random((tokens, hidden), torch.float32, fresh())
    labels = torch.randint(vocab_size, (tokens,), generator=fresh(1))
    head = projection(random((vocab_size, hidden), torch.float32, fresh(2)), chunk, vocab_size=vocab_size)
    with Watch(chunk * vocab_size) as watch:
        if recomputes:
            fused.linear_cross_entropy(h.requires_grad_(), labels, head)[0].sum().backward()
        else:
            in_forward(h, labels, head, 1.0)
    assert watch.largest == chunk * vocab_size and watch.most == 1


# Several ranks


class Meeting:
    """Collectives of ranks that are threads: everybody puts a tensor down, then everybody reads."""

    def __init__(self, size: int):
        self.size, self.barrier, self.down = size, Barrier(size), [None] * size

    def exchange(self, rank: int, tensor: torch.Tensor) -> list[torch.Tensor]:
        self.down[rank] = tensor.clone()
        self.barrier.wait(timeout=60)
        everybodys = list(self.down)
        self.barrier.wait(timeout=60)
        return everybodys

    def seams(self, rank: int) -> fused.Seams:
        def gather(tensor):
            return fused.Here(torch.cat(self.exchange(rank, tensor)))

        def scatter(tensor):
            return fused.Here(sum(self.exchange(rank, tensor)).chunk(self.size)[rank])

        return fused.Seams(gather, gather, scatter)


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("chunk", [1, 2, 100])
@pytest.mark.parametrize("recomputes", [False, True], ids=["gradients in forward", "gradients in backward"])
def test_ranks_with_parts_of_tokens_and_vocabulary_together_are_one(ranks, chunk, recomputes):
    """A rank holds T / ranks tokens and 8 or 16 rows of 32, 9 of which are padding; with 4 ranks one has nothing else.

    A chunk of 2 does not divide 3 tokens.
    """
    h, weight, labels = inputs(padding=9)
    losses, z_losses, dh, dw = expected(h, weight, labels, 0.1, 0.25)
    counted = (labels >= 0) & (labels < VOCAB)
    rows = weight.shape[0] // ranks
    meeting = Meeting(ranks)

    def work(rank):
        part = h.chunk(ranks)[rank].clone()
        mine = weight.chunk(ranks)[rank]
        head = projection(mine, chunk, first=rank * rows, seams=meeting.seams(rank))
        if not recomputes:
            loss, z, part_dh = in_forward(part, labels, head, 0.25, 0.1)
            return loss, z, part_dh, head.weight.gradient - 1
        loss, log_sum = fused.linear_cross_entropy(part.requires_grad_(), labels, head)
        z = 0.1 * torch.where(counted, log_sum, 0.0).square().sum()
        ((loss.sum() + z) * 0.25).backward()
        return loss.detach().sum(), z.detach(), part.grad, head.weight.gradient - 1

    with ThreadPoolExecutor(ranks) as pool:
        results = list(pool.map(work, range(ranks)))
    for loss, z, _, _ in results:
        assert_near(loss, losses.sum())
        assert_near(z, z_losses)
    assert_near(torch.cat([part for _, _, part, _ in results]), dh)
    assert_near(torch.cat([rows for _, _, _, rows in results]), dw)


def test_the_next_chunk_is_asked_for_before_a_chunk_is_worked_on_and_the_last_waited_for_after():
    events = []

    @dataclass(frozen=True)
    class Noted:
        name: str
        result: torch.Tensor

        def wait(self):
            events.append(f"{self.name} done")
            return self.result

    def seam(name):
        def start(tensor):
            events.append(name)
            return Noted(name, tensor)

        return start

    h, weight, labels = inputs()
    seams = fused.Seams(seam("gather"), fused.Here, seam("scatter"))
    in_forward(h, labels, projection(weight, 4, seams=seams), 1.0)
    one = ["gather done", "gather", "scatter"]
    assert events == [
        "gather", *one, "gather done", "gather", "scatter", "scatter done",
        "gather done", "scatter", "scatter done", "scatter done",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": LABELS[:11]}, "labels is torch.int64 of 11 tokens, must be int64 of 12 tokens for each"),
        ({"labels": LABELS.int()}, "labels is torch.int32 of 12 tokens, must be int64"),
        ({"labels": LABELS.to("meta")}, "labels is on meta, must be on cpu"),
        ({"h": torch.ones(12, 4)}, r"weight has shape \[23, 5\], must be \[23, 4\]"),
        ({"h": torch.ones(12, 5, dtype=torch.int64)}, "h is torch.int64, must be torch.bfloat16 or"),
        ({"h": torch.ones(12, 5).to("meta")}, "weight is on cpu, must be on meta"),
        ({"weight": torch.ones(23, 5).bfloat16()}, "weight is torch.bfloat16, must be torch.float32"),
        ({"weight": torch.ones(5)}, r"weight has shape \[5\], must be \[5, 5\]"),
        ({"chunk": 0}, "chunk is 0, must be at least 1"),
    ],
)
def test_what_does_not_fit_together_is_named(change, message):
    given = {"h": torch.ones(12, 5), "weight": torch.ones(23, 5), "labels": LABELS, "chunk": 4} | change
    head = projection(given["weight"], given["chunk"])
    with pytest.raises(ValueError, match=f"^linear_cross_entropy: {message}"):
        fused.linear_cross_entropy(given["h"], given["labels"], head)
    with pytest.raises(ValueError, match=f"^linear_cross_entropy: {message}"):
        in_forward(given["h"], given["labels"], head, 1.0)

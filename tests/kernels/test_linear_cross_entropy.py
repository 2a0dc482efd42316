"""The chunked projection and cross-entropy against torch's on full logits, for one rank and for several pretended."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Barrier
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from megatron_lite.kernels import cross_entropy as triton
from megatron_lite.kernels import linear_cross_entropy as fused
from megatron_lite.kernels.reference import cross_entropy as reference
from megatron_lite.kernels.reference.weight_gradient import add_product_
from support.kernels.harness import fresh, random
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

TOKENS, HIDDEN, VOCAB = 12, 5, 23
IGNORED = -100


@dataclass(frozen=True)
class Summed:
    """A weight and the sum of its gradients."""

    data: torch.Tensor
    gradient: torch.Tensor

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
    return fused.Projection(summed, first, vocab_size, chunk, kernels, seams)


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
    loss, z, found = fused.linear_cross_entropy_with_gradients(h, labels, head, torch.tensor(0.25), z_loss)
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
    _, _, dh = fused.linear_cross_entropy_with_gradients(h, labels, projection(weight, 5), 1.0)
    assert loss.shape == log_sum.shape == (6, 2) and dh.shape == h.shape


def test_where_no_label_counts_losses_and_gradients_are_zero():
    h, weight, labels = inputs()
    labels.fill_(IGNORED)
    head = projection(weight, 5)
    loss, z, dh = fused.linear_cross_entropy_with_gradients(h, labels, head, 1.0, z_loss=0.1)
    assert loss == 0 and z == 0 and torch.equal(dh, torch.zeros_like(h))
    loss, _ = fused.linear_cross_entropy(h.requires_grad_(), labels, head)
    loss.sum().backward()
    assert torch.equal(h.grad, torch.zeros_like(h)) and torch.equal(loss, torch.zeros_like(loss))
    assert torch.equal(head.weight.gradient, torch.ones_like(weight))


def test_in_bfloat16_losses_are_float32_and_the_weights_gradient_is_summed_in_float32():
    h, weight, labels = inputs(torch.bfloat16)
    losses, _, dh, dw = expected(h, weight, labels, 0.0, 1 / 16)
    head = projection(weight, 5)
    loss, _, found = fused.linear_cross_entropy_with_gradients(h, labels, head, 1 / 16)
    assert loss.dtype == torch.float32 and found.dtype == torch.bfloat16
    assert_near(loss, losses.sum(), 2e-3)
    assert_near(found, dh, 5e-3)
    assert_near(head.weight.gradient - 1, dw, 5e-3)
    assert not torch.equal(head.weight.gradient, head.weight.gradient.bfloat16().float())


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
            fused.linear_cross_entropy_with_gradients(h, labels, head, 1.0)
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
            loss, z, part_dh = fused.linear_cross_entropy_with_gradients(part, labels, head, 0.25, 0.1)
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
    fused.linear_cross_entropy_with_gradients(h, labels, projection(weight, 4, seams=seams), 1.0)
    one = ["gather done", "gather", "scatter"]
    assert events == [
        "gather", *one, "gather done", "gather", "scatter", "scatter done",
        "gather done", "scatter", "scatter done", "scatter done",
    ]  # fmt: skip


def test_labels_that_do_not_divide_among_ranks_are_named():
    h, weight, labels = inputs()
    with pytest.raises(ValueError, match=r"labels is torch.int64 of 11 tokens, must be int64 of 12 tokens for each"):
        fused.linear_cross_entropy(h, labels[:11], projection(weight, 4))
    with pytest.raises(ValueError, match=r"labels is torch.int32 of 12 tokens"):
        fused.linear_cross_entropy(h, labels.int(), projection(weight, 4))

"""What the ends of documents change: a document in a packed sample is read as if it stood alone."""

import pytest
import torch
from support.layouts import Layout, build_trainer

from megatron_lite.config import Config
from megatron_lite.training.boundaries import Boundaries, document_numbers, microbatches_of, positions_in
from megatron_lite.training.step import Trainer

END = 3
TOKENS = torch.tensor([[5, 6, END, END, 7, 8, 9], [END, 1, 2, 4, 5, 6, END]])


def test_an_end_belongs_to_the_document_that_it_ends():
    assert document_numbers(TOKENS, END).tolist() == [[0, 0, 0, 1, 2, 2, 2], [0, 1, 1, 1, 1, 1, 1]]


def test_positions_count_from_the_first_token_of_each_document():
    assert positions_in(document_numbers(TOKENS, END)).tolist() == [[0, 1, 2, 0, 0, 1, 2], [0, 0, 1, 2, 3, 4, 5]]


def test_the_label_of_an_end_does_not_count_where_it_is_skipped():
    labels = torch.arange(14).view(2, 7)
    assert Boundaries(END, True, True, False).counted(TOKENS, labels) is labels
    skipped = Boundaries(END, False, False, True).counted(TOKENS, labels).tolist()
    assert skipped == [[0, 1, -1, -1, 4, 5, 6], [-1, 8, 9, 10, 11, 12, -1]]


DOCUMENTS = [[11, 12, 13, 14, END], [20, 21, 22, 23, 24, 25, 26, END], [30, 31, 32, 33]]  # 17 tokens, one sample


def make(**data: bool) -> Trainer:
    """The small model of the layout tests on one process, in float64; the same weights every time."""
    layout = Layout()
    tree = layout.config(global_batch_size=1).model_dump(mode="json")
    config = Config.model_validate(tree | {"data": tree["data"] | data})
    return build_trainer(layout, config=config)


def total_loss(trainer: Trainer, tokens: list[int]) -> tuple[float, int]:
    """Summed loss and counted labels of a sample that begins with `tokens`."""
    row = torch.full((1, 17), -1)
    row[0, : len(tokens)] = torch.tensor(tokens)
    result = trainer.evaluate(microbatches_of(row, trainer.config, END))
    return (result.loss * result.count).item(), int(result.count.item())


def packed(**data: bool) -> tuple[float, int]:
    return total_loss(make(**data), [token for document in DOCUMENTS for token in document])


def test_with_the_mask_packed_documents_have_the_losses_of_documents_alone():
    alone = [total_loss(make(), document) for document in DOCUMENTS]
    loss, count = packed(document_mask=True, reset_positions=True, eod_mask_loss=True)
    assert count == sum(counted for _, counted in alone) == 4 + 7 + 3
    assert loss == pytest.approx(sum(loss for loss, _ in alone), rel=1e-12)


def test_under_the_mask_positions_that_begin_anew_change_rounding_alone():
    fixed, anew = (packed(document_mask=True, reset_positions=reset) for reset in (False, True))
    assert anew == (pytest.approx(fixed[0], rel=1e-12), 16)


def test_without_the_mask_attention_sees_where_positions_begin():
    fixed, anew = packed(), packed(reset_positions=True)
    assert abs(anew[0] - fixed[0]) > 1e-3 * abs(fixed[0])
    # The first document comes first either way.
    first = total_loss(make(), DOCUMENTS[0])[0]
    assert total_loss(make(reset_positions=True), DOCUMENTS[0])[0] == first


def test_the_first_token_of_the_next_document_counts_unless_it_is_skipped():
    counts = [packed(document_mask=True, eod_mask_loss=skip)[1] for skip in (False, True)]
    assert counts == [16, 14]


def test_without_an_end_of_documents_nothing_changes():
    assert Boundaries.of(make(document_mask=True).config.data, None) is None
    assert Boundaries.of(make().config.data, END) is None

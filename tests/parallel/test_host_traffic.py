"""The host only gives orders in a step: what is counted as waiting for the device, and with which kernels nothing is.

tests/parallel/test_layouts.py counts for every layout.
"""

import pytest
import torch
from support.host_traffic import HostTraffic, traffic_of
from support.layouts import Layout

from megatron_lite.model.transformer import Block


def to_host(x):
    with pytest.raises(NotImplementedError, match="no data"):  # having been seen
        x.cpu()


WAITS = {
    "a copy to the device": (lambda x: torch.arange(4).to(x.device), "_to_copy between cpu and meta"),
    "a copy from the device": (to_host, "_to_copy between cpu and meta"),
    "a copy into what is there": (lambda x: x.copy_(torch.ones(4)), "copy_ between cpu and meta"),
    "an index on the host": (lambda x: x[torch.arange(2)], "index between cpu and meta"),
    "a number": (lambda x: x[0].item(), "_local_scalar_dense"),
    "a condition": (lambda x: bool(x.sum() > 0), "_local_scalar_dense"),
    "a comparison": (lambda x: torch.equal(x, x), "equal"),
}
SIZED = {
    "a mask as an index": (lambda x: x[x > 0], "index"),
    "a mask that is written through": (lambda x: x.index_put((x > 0,), torch.zeros_like(x[:1])), "index_put"),
    "places": (lambda x: x.nonzero(), "nonzero"),
    "a selection": (lambda x: x.masked_select(x > 0), "masked_select"),
}


@pytest.mark.parametrize(("act", "expected"), WAITS.values(), ids=WAITS)
def test_what_waits_for_the_device_is_counted(act, expected):
    with HostTraffic() as traffic:
        act(torch.empty(4, device="meta"))
    assert traffic.found == [expected]


@pytest.mark.parametrize(("act", "expected"), SIZED.values(), ids=SIZED)
def test_a_size_that_the_data_decides_is_counted(act, expected):
    """On ordinary tensors: meta tensors have no size for such a result."""
    with HostTraffic() as traffic:
        act(torch.arange(4))
    assert expected in traffic.found


def test_numbers_given_to_kernels_are_not_counted():
    x = torch.empty(4, device="meta")
    with HostTraffic() as traffic:
        (x * 2.5).fill_(3)
        torch.where(x > 0, x, 1.0)
        x.new_full((), 7.0)
        x[torch.arange(2, device="meta")] = x[1:3]
    assert traffic.found == []


def test_a_read_in_a_block_is_found_where_it_stands(monkeypatch):
    rotate = Block._rotate

    def reads(block, qkv, metadata):
        metadata.angles.positions.max().item()
        return rotate(block, qkv, metadata)

    monkeypatch.setattr(Block, "_rotate", reads)
    found = traffic_of(Layout(), rank=0)
    assert len(found) == 2 * 4  # microbatches, blocks
    assert {line.split(":")[0] for line in found} == {"_local_scalar_dense at model/transformer.py"}


def test_documents_cost_no_copy_with_pytorchs_own_operations():
    assert traffic_of(Layout(context=2, documents=True, resets=True), rank=1, backend="torch") == []

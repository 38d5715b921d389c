import torch

from yayan.model.buffers import MOST_FREE, Buffers

CPU = torch.device("cpu")


def test_what_was_given_is_taken_again_if_it_is_not_much_too_large() -> None:
    buffers = Buffers()
    large, small = torch.empty(10, 30), torch.empty(200)
    buffers.give(large)
    buffers.give(small)
    assert buffers.take(150, torch.float32, CPU).data_ptr() == small.data_ptr(), "the smallest that fits"
    assert buffers.take(150, torch.float32, CPU).data_ptr() == large.data_ptr()
    assert buffers.free == []
    buffers.give(large)
    for elements, dtype in ((149, torch.float32), (301, torch.float32), (300, torch.bfloat16)):
        new = buffers.take(elements, dtype, CPU)
        assert len(new) == elements
        assert new.dtype == dtype
        assert new.data_ptr() != large.data_ptr()


def test_few_are_kept() -> None:
    buffers = Buffers()
    for elements in range(1, 20):
        buffers.give(torch.empty(elements))
    assert [len(flat) for flat in buffers.free] == list(range(20 - MOST_FREE, 20))

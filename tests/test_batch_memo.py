"""BatchMemo: made once for the same tensors, anew for any others."""

import threading

import torch

from kernels.batch_memo import BatchMemo


class Counting:
    """A memo of how often something was made."""

    def __init__(self):
        self.memo, self.made = BatchMemo(), 0

    def get(self, *tensors, values=()):
        def make():
            self.made += 1
            return self.made

        return self.memo.get(tensors, values, make)


def test_the_same_tensors_and_values_are_made_once():
    counting, offsets = Counting(), torch.tensor([0, 3])
    assert [counting.get(offsets, None, values=(2,)) for _ in range(3)] == [1, 1, 1]


def test_an_equal_tensor_another_value_or_a_missing_tensor_is_another_batch():
    counting, offsets = Counting(), torch.tensor([0, 3])
    assert counting.get(offsets, values=(2,)) == 1
    assert counting.get(offsets.clone(), values=(2,)) == 2
    assert counting.get(offsets, values=(3,)) == 3
    assert counting.get(None, values=(3,)) == 4
    assert counting.get(offsets, None, values=(3,)) == 5


def test_a_tensor_changed_in_place_is_another_batch():
    counting, offsets = Counting(), torch.tensor([0, 3])
    counting.get(offsets)
    offsets[1] = 2
    assert counting.get(offsets) == 2


def test_a_tensor_that_took_the_place_of_a_freed_one_is_another_batch():
    counting = Counting()
    for expected in range(1, 50):
        assert counting.get(torch.tensor([0, expected])) == expected


def test_inference_tensors_count_no_changes_so_nothing_is_remembered():
    counting = Counting()
    with torch.inference_mode():
        offsets = torch.tensor([0, 3])
        counting.get(offsets)
        offsets[1] = 2
        assert counting.get(offsets) == 2


def test_threads_with_different_batches_get_their_own():
    memo, wrong = BatchMemo(), []

    def work(mine):
        tensor = torch.tensor([mine])
        wrong.extend(1 for _ in range(2_000) if memo.get((tensor,), (), lambda: mine) != mine)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong

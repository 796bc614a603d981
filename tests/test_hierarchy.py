import pytest
import torch

from hlip_core.hierarchy import Hierarchy, Run

# Two studies: the first with two scans of 2 slabs, the second with one scan of 3; one slab is empty.
COUNTS = torch.tensor([2, 1, 2, 2, 3, 0, 1])


def tree(num_prefix: int = 1) -> Hierarchy:
    return Hierarchy(COUNTS, slabs=[2, 2, 3], scans=[2, 1], num_prefix=num_prefix, device=torch.device("cpu"))


def tokens(hierarchy: Hierarchy, level: str) -> torch.Tensor:
    """Patch tokens 0, 1, 2, ...; the prefix tokens of group g are 100 + g, 200 + g."""
    groups = hierarchy[level]
    x = torch.empty(groups.num_rows, 1)
    x[groups.patch_rows, 0] = torch.arange(int(COUNTS.sum()), dtype=torch.float32)
    group = torch.arange(len(groups)).repeat_interleave(groups.num_prefix)
    which = torch.arange(groups.num_prefix).repeat(len(groups))
    x[groups.prefix_rows, 0] = (100 * (which + 1) + group).float()
    return x


def test_groups_lie_one_after_the_other_with_the_class_token_first():
    first, second = [100, 0, 1, 101, 2, 102, 3, 4, 103, 5, 6], [104, 7, 8, 9, 105, 106, 10]
    assert tokens(tree(), "slice").flatten().tolist() == first + second
    assert tokens(tree(), "study").flatten().tolist() == [100, 0, 1, 2, 3, 4, 5, 6, 101, 7, 8, 9, 10]


def test_going_up_averages_class_tokens_and_joins_patches():
    hierarchy = tree()
    scans = hierarchy.regroup(tokens(hierarchy, "slice"), "slice", "scan")
    assert scans.flatten().tolist() == [100.5, 0, 1, 2, 102.5, 3, 4, 5, 6, 105, 7, 8, 9, 10]
    study = hierarchy.regroup(tokens(hierarchy, "slice"), "slice", "study")
    assert study.flatten().tolist() == [101.5, 0, 1, 2, 3, 4, 5, 6, 105, 7, 8, 9, 10]


def test_going_down_copies_class_tokens():
    hierarchy = tree()
    slices = hierarchy.regroup(tokens(hierarchy, "study"), "study", "slice")
    assert slices.flatten().tolist() == [100, 0, 1, 100, 2, 100, 3, 4, 100, 5, 6, 101, 7, 8, 9, 101, 101, 10]


@pytest.mark.parametrize("up", ["scan", "study"])
def test_going_down_and_up_again_changes_nothing(up):
    hierarchy = tree(num_prefix=2)
    x = tokens(hierarchy, up)
    assert torch.equal(hierarchy.regroup(hierarchy.regroup(x, up, "slice"), "slice", up), x)


def test_registers_go_with_the_class_token():
    hierarchy = tree(num_prefix=2)
    scans = hierarchy.regroup(tokens(hierarchy, "slice"), "slice", "scan")
    assert scans.flatten().tolist() == [100.5, 200.5, 0, 1, 2, 102.5, 202.5, 3, 4, 5, 6, 105, 205, 7, 8, 9, 10]


def test_neighbours_of_one_length_share_an_attention_call():
    assert tree()["scan"].runs == (Run(0, 1, 4), Run(4, 2, 5))
    assert [run.length for run in tree()["slice"].runs] == [3, 2, 3, 4, 1, 2]


def test_pooling_averages_over_the_groups_of_each_study():
    prefix = torch.tensor([[1.0], [2], [3], [6], [7], [8], [9]])
    assert tree().pool(prefix, "slice").flatten().tolist() == [3, 8]

"""What is contrasted: regions before augmentation, labels of cells, bounded draws, and a memory of each group."""

from __future__ import annotations

import math

import pytest
import torch

from training.contrast_samples import (
    average_groups,
    draw_from_groups,
    find_regions,
    label_cells,
    see_cells,
    take_cells,
)
from training.key_memory import KeyMemory
from training.losses.group_contrast import NO_GROUP


def test_cells_are_taken_in_rows() -> None:
    maps = torch.randn(2, 3, 4, 5)
    cells = take_cells(maps)
    assert all(torch.equal(cells[n, y * 5 + x], maps[n, :, y, x]) for n, y, x in [(0, 0, 3), (1, 3, 2)])


@pytest.mark.parametrize(("size", "cells"), [((64, 96), (8, 12)), ((70, 101), (9, 13))])
def test_a_cells_region_is_where_its_middle_lay_in_the_picture(
    size: tuple[int, int], cells: tuple[int, int]
) -> None:
    grid, turned = (3, 4), math.radians(25)
    cosine, sine = math.cos(turned) / 80, math.sin(turned) / 80
    origins = torch.tensor([[[-cosine, sine, 0.9], [sine, cosine, 0.1]], [[1 / 96, 0, 0], [0, 1 / 64, 0.3]]])
    found = find_regions(origins, size, cells, grid)
    for n in range(2):
        for place in range(cells[0] * cells[1]):
            row, column = divmod(place, cells[1])
            x = (column + 0.5) * size[1] / cells[1] - 0.5
            y = (row + 0.5) * size[0] / cells[0] - 0.5
            across = float(origins[n, 0] @ torch.tensor([x, y, 1.0]))
            down = float(origins[n, 1] @ torch.tensor([x, y, 1.0]))
            inside = 0 <= across < 1 and 0 <= down < 1
            expected = math.floor(down * 3) * 4 + math.floor(across * 4) if inside else NO_GROUP
            assert found[n, place] == expected
    assert (found == NO_GROUP).any() and len(found.unique()) > 6


def test_labels_are_those_of_the_middle_or_of_the_mean_where_they_are_sure() -> None:
    probabilities = torch.zeros(1, 2, 4, 4)
    probabilities[:, 1, 2, 2:] = 1.0  # most of the right lower cell's middle row, but not of the cell
    probabilities[:, 1, 2, 2] = 0.7
    probabilities[:, 0] = 1 - probabilities[:, 1]
    cells = (2, 2)
    centre = label_cells(probabilities[:, :, 1:, 1:], (1, 1), "centre", 0.6)
    assert centre.tolist() == [[1]]
    mean = probabilities[0, :, 2:, 2:].mean(dim=(1, 2))  # 0.575 and 0.425
    for confidence in (0.5, 0.6):
        found = label_cells(probabilities, cells, "mean", confidence)[0]
        assert found.tolist() == [0, 0, 0, 0 if float(mean[0]) >= confidence else NO_GROUP]


def test_a_pixel_without_a_class_has_none_and_absent_classes_are_no_error() -> None:
    probabilities = torch.zeros(1, 3, 2, 2)
    probabilities[0, 2, 0, 0] = 0.4
    assert label_cells(probabilities, (2, 2), "centre", 0.0).tolist() == [[2, -1, -1, -1]]


def test_a_cell_is_visible_by_its_middle_or_by_half_of_it() -> None:
    visible = torch.ones(1, 3, 6, dtype=torch.bool)
    visible[0, 1, 1] = False  # the middle of the left cell
    visible[0, :2, 3:] = False
    visible[0, 1, 4] = True  # the middle of the right one, of which four of nine pixels are left
    assert see_cells(visible, (1, 2), "centre").tolist() == [[False, True]]
    assert see_cells(visible, (1, 2), "mean").tolist() == [[True, False]]


def test_a_regions_vector_is_the_mean_of_its_cells() -> None:
    vectors, groups = torch.randn(2, 4, 3), torch.tensor([[0, 2, 2, NO_GROUP], [1, 1, 1, 0]])
    samples = average_groups(vectors, groups, 3)
    for n in range(2):
        for group in range(3):
            place = n * 3 + group
            cells = [vectors[n, p] for p in range(4) if groups[n, p] == group]
            assert samples.groups_v[place] == (group if cells else NO_GROUP)
            if cells:
                torch.testing.assert_close(samples.vectors_vc[place], sum(cells) / len(cells))


def test_drawn_cells_are_of_their_group_different_balanced_and_repeat_with_the_seed() -> None:
    groups = torch.zeros(2, 500, dtype=torch.int64)
    groups[0, :3], groups[1, 5:200] = 1, NO_GROUP
    numbered = torch.arange(1000.0).view(2, 500, 1)
    torch.manual_seed(7)
    drawn = draw_from_groups(numbered, groups, 3, 20)
    assert drawn.groups_v.tolist() == [0] * 20 + [1] * 3 + [NO_GROUP] * 37
    cells = drawn.vectors_vc.flatten().long()
    kept = drawn.groups_v != NO_GROUP
    assert torch.equal(groups.flatten()[cells[kept]], drawn.groups_v[kept])
    assert len(cells[kept].unique()) == 23
    torch.manual_seed(7)
    assert torch.equal(draw_from_groups(numbered, groups, 3, 20).vectors_vc, drawn.vectors_vc)
    assert not torch.equal(draw_from_groups(numbered, groups, 3, 20).vectors_vc, drawn.vectors_vc)


def test_fewer_cells_than_are_asked_for_are_all_taken() -> None:
    drawn = draw_from_groups(torch.randn(1, 4, 2), torch.tensor([[0, 1, 0, 0]]), 2, 64)
    assert [int((drawn.groups_v == group).sum()) for group in (0, 1)] == [3, 1]


def test_the_memory_keeps_the_newest_of_each_group() -> None:
    memory, kept = KeyMemory(3, 4, 1), {0: [], 1: [], 2: []}
    generator = torch.Generator().manual_seed(0)
    for start in range(0, 60, 6):
        groups = torch.randint(-1, 2, (6,), generator=generator)
        values = torch.arange(start, start + 6.0)
        memory.store(values[:, None], groups)
        for value, group in zip(values.tolist(), groups.tolist(), strict=True):
            if group >= 0:
                kept[group].append(value)
        keys, key_groups = memory.recall()
        assert keys.shape == (12, 1)
        for group, stored in kept.items():
            assert sorted(keys[key_groups == group, 0].tolist()) == stored[-4:]
    assert (
        memory.stored_g.tolist() == [len(kept[0]), len(kept[1]), 0] and min(map(len, (kept[0], kept[1]))) > 8
    )


def test_more_keys_than_fit_leave_the_newest_and_a_memory_of_nothing_takes_them_too() -> None:
    memory = KeyMemory(1, 3, 1)
    memory.store(torch.arange(10.0)[:, None], torch.zeros(10, dtype=torch.int64))
    assert sorted(memory.recall()[0].flatten().tolist()) == [7, 8, 9]
    nothing = KeyMemory(2, 0, 5)
    nothing.store(torch.randn(4, 5), torch.tensor([0, 1, 1, NO_GROUP]))
    keys, groups = nothing.recall()
    assert keys.shape == (0, 5) and len(groups) == 0


def test_what_was_recalled_does_not_change_and_the_state_holds_everything() -> None:
    memory, copy = KeyMemory(2, 3, 2), KeyMemory(2, 3, 2)
    memory.store(torch.ones(2, 2), torch.tensor([0, 1]))
    before, _ = memory.recall()
    memory.store(torch.full((6, 2), 5.0), torch.tensor([0, 1] * 3))
    assert before.max() == 1
    copy.load_state_dict(memory.state_dict())
    for one, other in zip(memory.recall(), copy.recall(), strict=True):
        assert torch.equal(one, other)

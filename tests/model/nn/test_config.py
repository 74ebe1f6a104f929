from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from msmlp.model.errors import ConfigError
from msmlp.model.nn.config import PRESETS, CascadeConfig, StageConfig, override, parse_assignments, preset

STAGE = {"width": 8, "depth": 1, "token_hidden": 4, "channel_hidden": 16}


def cascade(image_size: int, *patches: int, **fields: object) -> CascadeConfig:
    stages = [{"patch": patch, **STAGE} for patch in patches]
    return override(PRESETS["tiny"], {"image_size": image_size, "stages": stages, **fields})


@pytest.mark.parametrize(
    ("name", "depth", "patches"),
    [("paper-s", 8, (16, 8, 4)), ("paper-b", 12, (16, 8, 4)), ("mixer-s", 8, (4,)), ("mixer-b", 12, (4,))],
)
def test_the_papers_presets(name: str, depth: int, patches: tuple[int, ...]) -> None:
    stages = tuple(
        StageConfig(patch=patch, width=512, depth=depth, token_hidden=256, channel_hidden=2048) for patch in patches
    )
    assert preset(name) == CascadeConfig(image_size=32, classes=10, reuse="all", reuse_norm=True, stages=stages)


def test_an_unknown_preset_lists_those_there_are() -> None:
    with pytest.raises(ConfigError, match=r"'huge'.*paper-s.*paper-b.*mixer-s.*mixer-b.*tiny"):
        preset("huge")


def test_an_overlap_widens_the_window_by_both_sides_and_stays_within_a_patch() -> None:
    stage = preset("tiny").stages[0]
    assert (stage.overlap, stage.window) == (0, 16)
    changed = override(preset("tiny"), {"stages.0.overlap": 16}).stages[0]
    assert changed.window == 48
    with pytest.raises(ConfigError, match="overlap 17 is larger than the patch, 16"):
        override(preset("tiny"), {"stages.0.overlap": 17})


def test_tokens_of_every_stage() -> None:
    config = preset("paper-s")
    assert [config.grid(k) for k in range(3)] == [2, 4, 8]
    assert [config.tokens(k) for k in range(3)] == [4, 16, 64]


@pytest.mark.parametrize(
    ("reuse", "expected"),
    [
        ("none", [[False, False], [False, False]]),
        ("first", [[False, False], [True, False]]),
        ("all", [[False, False], [True, True]]),
    ],
)
def test_which_blocks_reuse(reuse: str, expected: list[list[bool]]) -> None:
    config = cascade(32, 16, 8, reuse=reuse)
    assert [[config.reuses(k, block) for block in range(2)] for k in range(2)] == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stages.1.patch": 5}, "stage 2: patch 5 does not divide image_size 32"),
        ({"stages.0.patch": 4}, "patch sizes must not grow"),
        ({"image_size": 0}, "image_size: "),
        ({"classes": 1}, "classes: "),
        ({"reuse": "some"}, "reuse: expected one of none, first, all"),
        ({"stages.2.depth": 0}, "stages.2.depth: "),
        ({"stages.2.depth": 10**12}, "stages.2.depth: "),
        ({"stages.0.width": 10**400}, "stages.0.width: "),
        ({"stages.0.width": "wide"}, "stages.0.width: "),
        ({"stages": []}, "stages: "),
        ({"depth": 3}, "unknown field 'depth'"),
        ({"stages.3.depth": 3}, "unknown field 'stages.3.depth'"),
        ({"stages.first.depth": 3}, "unknown field 'stages.first.depth'"),
        ({"stages.0.layers": 3}, "unknown field 'stages.0.layers'"),
        ({"image_size.0": 3}, "unknown field 'image_size.0'"),
    ],
)
def test_a_cascade_that_cannot_be_built_is_refused_in_one_line(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as refused:
        override(preset("tiny"), changes)
    assert "\n" not in str(refused.value)


def test_override_changes_only_what_it_names() -> None:
    before = preset("tiny")
    after = override(before, {"stages.1.width": 48, "image_size": 64, "reuse": "first", "reuse_norm": False})
    assert (after.stages[1].width, after.image_size, after.reuse, after.reuse_norm) == (48, 64, "first", False)
    undone = {"stages.1.width": 32, "image_size": 32, "reuse": "all", "reuse_norm": True}
    assert override(after, undone) == before == PRESETS["tiny"]


def test_whole_lists_can_be_assigned() -> None:
    changed = override(preset("tiny"), {"stages": [{"patch": 8, **STAGE}]})
    assert [stage.patch for stage in changed.stages] == [8]


def test_assignments_are_json_where_they_parse_else_text() -> None:
    texts = ["lr=0.1", "epochs=3", "augment=none", "clip_norm=null", "reuse_norm=false", "name=a=b", "mean=[1, 2]"]
    assert parse_assignments(texts) == {
        "lr": 0.1,
        "epochs": 3,
        "augment": "none",
        "clip_norm": None,
        "reuse_norm": False,
        "name": "a=b",
        "mean": [1, 2],
    }


@pytest.mark.parametrize("text", ["lr", "", "=3"])
def test_an_assignment_without_key_or_equals_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--set: expected key=value, got"):
        parse_assignments([text])


@given(st.integers(1, 24), st.lists(st.integers(1, 24), min_size=1, max_size=4))
def test_a_cascade_is_accepted_exactly_when_its_patches_divide_and_do_not_grow(size: int, patches: list[int]) -> None:
    fits = all(size % p == 0 for p in patches) and all(a >= b for a, b in pairwise(patches))
    try:
        config = cascade(size, *patches)
    except ConfigError:
        assert not fits
    else:
        assert fits
        assert [config.tokens(k) * p * p for k, p in enumerate(patches)] == [size * size] * len(patches)

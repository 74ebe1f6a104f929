"""What training holds out: which images, and that nothing but pixels, class and seed decides it."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from msmlp.model.data import Dataset, Split
from msmlp.model.data.dataset import audit_mask, image_identity, split_digest, validation_mask
from msmlp.model.errors import DataError


def split(values: list[int], labels: list[int]) -> Split:
    """One 2x2 picture a value; equal values are equal pictures."""
    pixels = np.array(values, dtype=np.uint8).reshape(-1, 1, 1, 1) * np.ones((1, 2, 2, 3), dtype=np.uint8)
    return Split(pixels, np.array(labels, dtype=np.int64), np.stack([image_identity(image) for image in pixels]))


def dataset(train: Split, val: Split | None = None, audit: Split | None = None) -> Dataset:
    names = tuple(f"class-{label}" for label in range(int(train.labels.max()) + 1))
    return Dataset(names, train, val, None, "image folder made-up", audit)


def many(images: int, classes: int = 2) -> Split:
    """Different pictures, as many of each class."""
    pixels = np.random.default_rng(0).integers(0, 256, (images, 2, 2, 3), dtype=np.uint8)
    labels = np.arange(images, dtype=np.int64) % classes
    return Split(pixels, labels, np.stack([image_identity(image) for image in pixels]))


def identities(part: Split | None) -> set[bytes]:
    assert part is not None
    return {identity.tobytes() for identity in part.identities}


def held_values(images: Split, seed: int, fraction: float = 0.1) -> set[int]:
    return set(images.pixels[validation_mask(images, seed, fraction), 0, 0, 0].tolist())


UNEVEN = split(list(range(140)), [0] * 100 + [1] * 30 + [2] * 8 + [3] * 2)


def test_a_fraction_of_every_class_rounded_and_at_least_one() -> None:
    held = validation_mask(UNEVEN, seed=0, fraction=0.1)
    assert np.bincount(UNEVEN.labels[held]).tolist() == [10, 3, 1, 1]
    half = validation_mask(UNEVEN, seed=0, fraction=0.5)
    assert np.bincount(UNEVEN.labels[half]).tolist() == [50, 15, 4, 1]


def test_training_and_validation_share_no_image_and_lose_none() -> None:
    parts = dataset(UNEVEN).partition(seed=3)
    values = [part.pixels[:, 0, 0, 0].tolist() for part in (parts.training, parts.validation)]
    assert sorted(values[0] + values[1]) == list(range(140))
    assert len(parts.validation) == 15


@given(st.permutations(list(range(140))), st.integers(0, 9))
def test_the_order_on_disk_changes_nothing(order: list[int], seed: int) -> None:
    shuffled = UNEVEN.take(np.array(order))
    assert held_values(shuffled, seed) == held_values(UNEVEN, seed)
    assert split_digest(shuffled) == split_digest(UNEVEN)


def test_another_seed_holds_out_others() -> None:
    sets = [held_values(UNEVEN, seed) for seed in range(5)]
    assert len({frozenset(s) for s in sets}) == 5


def test_seeds_do_not_run_into_the_pixels() -> None:
    """Seeds 1 and 11 must not be prefixes of one another's hash."""
    assert held_values(UNEVEN, 1, 0.5) != held_values(UNEVEN, 11, 0.5)


def test_a_class_is_split_whatever_the_others_hold() -> None:
    alone = split(list(range(100)), [0] * 100)
    assert held_values(alone, 0) == {value for value in held_values(UNEVEN, 0) if value < 100}


@given(st.integers(0, 200))
def test_twins_stay_together(seed: int) -> None:
    twins = split([value // 3 for value in range(60)], [0] * 60)
    held = validation_mask(twins, seed, 0.2)
    values = twins.pixels[:, 0, 0, 0]
    assert not set(values[held].tolist()) & set(values[~held].tolist())
    assert 12 <= held.sum() <= 14


def test_a_folders_own_validation_images_are_used_as_they_are() -> None:
    own = split([7, 9], [0, 1])
    train = split([1, 2, 3], [0, 1, 1])
    parts = dataset(train, own).partition(seed=0)
    assert parts.training is train
    assert parts.validation is own


@pytest.mark.parametrize(
    ("values", "labels"),
    [([1, 2, 3], [0, 0, 1]), ([1, 2, 3, 3, 3], [0, 0, 1, 1, 1])],
    ids=["one image", "one image, three times"],
)
def test_a_class_that_validation_would_empty_is_refused_by_name(values: list[int], labels: list[int]) -> None:
    with pytest.raises(DataError, match=r"made-up.*class-1"):
        dataset(split(values, labels)).partition(seed=0)


# --- the audit set -----------------------------------------------------------------------------------------------


def test_a_tenth_of_every_class_is_held_out_for_the_audit_too() -> None:
    parts = dataset(many(1000)).partition(seed=0)
    sets = [identities(part) for part in (parts.training, parts.validation, parts.audit)]
    assert [len(each) for each in sets] == [800, 100, 100]
    assert len(set.union(*sets)) == 1000
    assert parts.audit is not None
    assert np.bincount(parts.audit.labels).tolist() == [50, 50]
    assert parts.no_audit is None
    assert parts.digests == (split_digest(parts.validation), split_digest(parts.audit))


def test_the_audit_set_leaves_the_validation_set_as_it_was_without_one() -> None:
    images = many(1000)
    assert identities(dataset(images).partition(seed=0).validation) == identities(
        images.take(validation_mask(images, 0, 0.1))
    )


@given(st.randoms(use_true_random=False), st.integers(0, 9))
def test_the_order_on_disk_does_not_change_the_audit_set(random: Any, seed: int) -> None:
    images, order = many(1000), list(range(1000))
    random.shuffle(order)
    ours, theirs = (dataset(each).partition(seed).audit for each in (images, images.take(np.array(order))))
    assert identities(ours) == identities(theirs)


def test_another_seed_audits_others() -> None:
    sets = [frozenset(identities(dataset(many(1000)).partition(seed).audit)) for seed in range(4)]
    assert len(set(sets)) == 4


def test_few_images_are_not_worth_an_audit_set() -> None:
    parts = dataset(many(980)).partition(seed=0)
    assert parts.audit is None
    assert parts.no_audit == "the data has 980 images; about 1000 are needed"
    assert (len(parts.training), len(parts.validation)) == (882, 98)
    assert parts.digests[1] is None


def test_a_small_class_keeps_its_training_images() -> None:
    """Six images twice each: one is held out for validation, and the audit would take all the others."""
    twins = split([value // 2 for value in range(12)], [0] * 12)
    taken = twins.pixels[:, 0, 0, 0] == 3
    assert audit_mask(twins, 0, 0.1, taken).sum() == 2
    assert audit_mask(twins, 0, 0.9, taken).sum() == 0
    assert audit_mask(split([1, 2], [0, 0]), 0, 0.1, np.array([True, False])).sum() == 0


@given(st.integers(0, 200))
def test_twins_are_never_audited_and_trained_on(seed: int) -> None:
    twins = split([value // 3 for value in range(120)], [0] * 120)
    taken = validation_mask(twins, seed, 0.1)
    audited = audit_mask(twins, seed, 0.1, taken)
    values = twins.pixels[:, 0, 0, 0]
    assert not set(values[audited].tolist()) & set(values[~audited].tolist())
    assert not (audited & taken).any()


def test_a_data_set_with_its_own_val_is_trained_on_whole_unless_it_has_an_audit_of_its_own() -> None:
    train, val, audit = many(1000), split([7, 9], [0, 1]), split([8, 6], [0, 1])
    parts = dataset(train, val).partition(seed=0)
    assert parts.training is train
    assert parts.audit is None
    assert parts.no_audit == "the data has its own val/ and no audit/"
    assert dataset(train, val, audit).partition(seed=0).audit is audit
    drawn = dataset(train, None, audit).partition(seed=0)
    assert drawn.audit is audit
    assert (len(drawn.training), drawn.no_audit) == (900, None)


def test_the_digest_names_images_and_labels() -> None:
    digests = {
        split_digest(split(values, labels))
        for values, labels in [([1, 2], [0, 1]), ([1, 3], [0, 1]), ([1, 2], [1, 0]), ([1, 2, 2], [0, 1, 1]), ([1], [0])]
    }
    assert len(digests) == 5


def test_limited_takes_the_first_of_every_class() -> None:
    limited = split([10, 11, 12, 13, 14, 15], [0, 1, 0, 0, 1, 2]).limited(2)
    assert limited.pixels[:, 0, 0, 0].tolist() == [10, 11, 12, 14, 15]
    assert limited.labels.tolist() == [0, 1, 0, 1, 2]


def test_take_keeps_pixels_labels_and_identities_together() -> None:
    images = split([5, 6, 7], [0, 1, 2])
    taken = images.take(np.array([2, 0]))
    assert taken.labels.tolist() == [2, 0]
    assert np.array_equal(taken.identities, np.stack([image_identity(image) for image in taken.pixels]))

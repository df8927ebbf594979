"""The digest of an index, and the policy for bad pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fgtrain.data import BadImage, Index, Sample
from fgtrain.data.imagefolder import ImageFolder
from fgtrain.dataindex import index_digest, usable
from fgtrain.errors import UserError
from tests.picture_files import write_picture

SAMPLES = st.lists(st.builds(Sample, st.text(max_size=4), st.integers(0, 3)), max_size=4).map(tuple)
INDEXES = st.builds(Index, st.lists(st.text(max_size=4), max_size=4).map(tuple), SAMPLES, SAMPLES)


@settings(deadline=None)
@given(INDEXES, INDEXES)
def test_digests_are_equal_exactly_when_the_indexes_are(one: Index, other: Index) -> None:
    assert (index_digest(one) == index_digest(other)) == (one == other)


def test_the_digest_is_the_same_on_every_machine() -> None:
    index = Index(("鹭",), (Sample("train/鹭/1.jpg", 0),), (Sample("val/鹭/1.jpg", 0),))
    assert index_digest(index) == "7566d1aa4be7dd9e7c82dc451d99bfdd870ae883f00a25749394d473c2053a11"


def damaged(root: Path, policy: Literal["fail", "skip"], bad: int) -> ImageFolder:
    """Make ten training and ten held-out pictures; the first few training pictures are empty."""
    for i in range(10):
        write_picture(root / f"train/a/{i}.jpg")
        write_picture(root / f"val/a/{i}.jpg")
    for i in range(bad):
        (root / f"train/a/{i}.jpg").write_bytes(b"")
    return ImageFolder(root=str(root), on_bad_image=policy)


def test_fail_names_the_first_few_the_total_and_the_fix(tmp_path: Path) -> None:
    data = damaged(tmp_path, "fail", 5)
    with pytest.raises(UserError) as caught:
        usable(data, data.index())
    assert str(caught.value) == (
        f"data.root={tmp_path}: 5 of 20 pictures cannot be used: train/a/0.jpg (empty), "
        "train/a/1.jpg (empty), train/a/2.jpg (empty) and 2 more; "
        "mend them, or leave them out with `--set data.on_bad_image=skip`"
    )


def test_skip_drops_them_and_says_which(tmp_path: Path) -> None:
    data = damaged(tmp_path, "skip", 2)
    (tmp_path / "val/a/9.jpg").write_bytes(b"<html>")
    index = data.index()
    kept, dropped = usable(data, index)
    assert [one.name for one in dropped] == ["train/a/0.jpg", "train/a/1.jpg", "val/a/9.jpg"]
    assert dropped[0] == BadImage("train/a/0.jpg", "empty")
    assert kept == Index(index.classes, index.train[2:], index.val[:9])


@pytest.mark.parametrize("policy", ("fail", "skip"))
def test_a_sound_set_is_returned_as_it_is(tmp_path: Path, policy: Literal["fail", "skip"]) -> None:
    data = damaged(tmp_path, policy, 0)
    assert usable(data, data.index()) == (data.index(), [])


def test_skipping_a_whole_split_is_refused(tmp_path: Path) -> None:
    data = damaged(tmp_path, "skip", 10)
    with pytest.raises(UserError, match="no usable picture in the train split; train/a/0.jpg"):
        usable(data, data.index())

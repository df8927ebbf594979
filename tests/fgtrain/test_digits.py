"""Handwritten digits from scikit-learn's own file."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from fgtrain.data import BadImage, Sample
from fgtrain.data.digits import Digits
from fgtrain.dataindex import index_digest, usable
from fgtrain.errors import Corrupt


def test_every_digit_is_in_one_split_with_scikit_learns_label() -> None:
    index = Digits().index()
    both = sorted(index.train + index.val)
    assert [sample.label for sample in both] == load_digits().target.tolist()
    assert len({sample.name for sample in both}) == 1797


def test_a_fifth_of_each_class_is_held_out() -> None:
    index = Digits().index()
    held_out, all_ = Counter(s.label for s in index.val), Counter(s.label for s in index.train + index.val)
    assert all(abs(held_out[label] - all_[label] / 5) <= 0.5 for label in range(10))


def test_the_split_never_changes() -> None:
    assert index_digest(Digits().index()).startswith("5947366382d8b066")


def test_pixels_are_scikit_learns_on_the_full_scale() -> None:
    data, reference = Digits(), load_digits().images
    for sample in data.index().val[::30]:
        pixels = data.read(sample)
        assert (pixels.shape, pixels.dtype) == ((8, 8, 3), np.uint8)
        assert (pixels == pixels[:, :, :1]).all()
        exact = reference[int(sample.name)] * 255 / 16
        assert np.abs(pixels[:, :, 0] - exact).max() <= 0.5
    assert max(data.read(sample).max() for sample in data.index().val) == 255


def test_all_digits_are_usable_and_strangers_are_not() -> None:
    data = Digits()
    assert usable(data, data.index())[1] == []
    strangers = [Sample(name, 0) for name in ("1797", "x", "1", "-001")]
    assert data.inspect(strangers) == [BadImage(sample.name, "missing") for sample in strangers]
    with pytest.raises(Corrupt, match="'1797'"):
        data.read(strangers[0])


def test_without_scikit_learn_the_extra_is_named() -> None:
    # -S leaves site-packages out; msgspec alone is given back, through a folder that holds nothing else.
    code = (
        "import sys, importlib.machinery as m\n"
        "spec = m.PathFinder.find_spec('msgspec', [sys.argv[1]])\n"
        "import importlib.util as u; mod = u.module_from_spec(spec); sys.modules['msgspec'] = mod\n"
        "spec.loader.exec_module(mod)\n"
        "from fgtrain.data.digits import Digits\n"
        "from fgtrain.errors import UserError\n"
        "try: Digits().index()\n"
        "except UserError as error: print(error)\n"
    )
    import msgspec

    site = str(Path(msgspec.__file__).parents[1])
    ran = subprocess.run(
        [sys.executable, "-S", "-c", code, site],
        capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2], env={}, timeout=240,
    )  # fmt: skip
    assert "fglaunch[train]" in ran.stdout

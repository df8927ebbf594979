"""What a trainer asks of an index: its digest, and the part of it that can be used."""

from __future__ import annotations

import hashlib

import msgspec

from fgtrain.data import BadImage, Data, Index, Sample
from fgtrain.errors import UserError

_SHOWN = 3  # bad pictures named in a message; the rest are counted


def index_digest(index: Index) -> str:
    """Hex SHA-256 over classes and samples in their order: equal digests mean the same data set and split."""
    return hashlib.sha256(msgspec.json.encode(index)).hexdigest()


def usable(data: Data, index: Index) -> tuple[Index, list[BadImage]]:
    """Inspect every picture and apply `data.on_bad_image`; return what is left and what was dropped.

    Classes keep their labels even when all their pictures were dropped.

    Raises:
        UserError: a picture is bad and the policy is "fail", or a split is left with no picture.
    """
    bad_train, bad_val = data.inspect(index.train), data.inspect(index.val)
    bad = bad_train + bad_val
    if bad and data.on_bad_image == "fail":
        raise UserError(_complaint(data, bad, len(index.train) + len(index.val)))
    kept = Index(index.classes, _without(index.train, bad_train), _without(index.val, bad_val))
    for split, samples in (("train", kept.train), ("val", kept.val)):
        if not samples:
            raise UserError(f"{_title(data)}: no usable picture in the {split} split; {_listing(bad)}")
    return kept, bad


def _without(samples: tuple[Sample, ...], bad: list[BadImage]) -> tuple[Sample, ...]:
    """Drop the samples whose names are bad."""
    names = {one.name for one in bad}
    return tuple(sample for sample in samples if sample.name not in names) if names else samples


def _complaint(data: Data, bad: list[BadImage], total: int) -> str:
    """Word the message of the "fail" policy."""
    return (
        f"{_title(data)}: {len(bad)} of {total} pictures cannot be used: {_listing(bad)}; "
        "mend them, or leave them out with `--set data.on_bad_image=skip`"
    )


def _listing(bad: list[BadImage]) -> str:
    """Name the first few."""
    rest = len(bad) - _SHOWN
    named = ", ".join(f"{one.name} ({one.reason})" for one in bad[:_SHOWN])
    return f"{named} and {rest} more" if rest > 0 else named


def _title(data: Data) -> str:
    """Name the data set by its root if it has one."""
    return f"data.root={root}" if (root := getattr(data, "root", "")) else f"data ({type(data).__name__})"

"""The cache of prepared pictures: decoded and scaled once, then read from mapped memory.

It never changes what training sees: a cached picture has the bits that decoding it anew would give, and where the cache
lacks one, that is what happens. Pictures are found by the contents of their files and by how they are prepared, so data
sets, runs and recipes share what they have in common.

    <place>/sources/<id>.json    what is known of a data set's files: size, time, digest, width and height
    <place>/pixels/<name>        a shard: many prepared pictures, one after the other (`fgtrain.cache.shards`)
    <place>/pixels/lock          held by whoever builds
"""

from __future__ import annotations

import os
from pathlib import Path


def cache_place() -> Path:
    """Return this machine's folder for what can be made again: $FGLAUNCH_CACHE, or fglaunch in the user's cache."""
    if chosen := os.environ.get("FGLAUNCH_CACHE"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fglaunch"

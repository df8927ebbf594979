"""What the S3 client alone can do with the same bytes in the same pieces: the limit for commit and restore."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import torch
import torch.distributed as dist

from fgtrain.manifest import Manifest, chunk_key
from fgtrain.place import Place
from fgtrain.runstore import RunStore

PUT_STREAMS, GET_STREAMS = 4, 8  # of each rank: as many as ours uses


def client() -> Any:
    """Return a plain boto3 client."""
    import boto3  # type: ignore[import-untyped]
    from botocore.config import Config

    config = Config(max_pool_connections=16, s3={"addressing_style": "path"})
    return boto3.client("s3", endpoint_url=os.environ["AWS_ENDPOINT_URL"], config=config)


def _newest(runs: RunStore) -> Manifest:
    return runs.manifest(runs.manifest_names()[-1])


def _mine(runs: RunStore, place: Place, bytes_wanted: int | None = None) -> list[tuple[str, int]]:
    """Return this rank's half of the newest snapshot's chunks as (digest, bytes)."""
    manifest = _newest(runs)
    chunks = sorted((d, b) for d, b in manifest.chunks().items())
    if bytes_wanted is not None:
        kept, total = [], 0
        for d, b in chunks:
            if total + b <= bytes_wanted:
                kept.append((d, b))
                total += b
        chunks = kept
    return chunks[place.rank :: place.size]


def _all(calls: Sequence[Callable[[], Any]], streams: int) -> float:
    dist.barrier()
    started = time.perf_counter()
    with ThreadPoolExecutor(streams) as pool:
        list(pool.map(lambda call: call(), calls))
    took = torch.tensor([time.perf_counter() - started], dtype=torch.float64)
    dist.all_reduce(took, dist.ReduceOp.MAX)
    return took.item()


def put_s(settings: Any, runs: RunStore, place: Place, turn: int) -> float:
    """Put as many bytes as a snapshot uploads, under other keys; returns seconds on the slowest rank."""
    s3 = client()
    chunks = _mine(runs, place, _newest(runs).bytes_new)
    bodies = [(d, os.urandom(b)) for d, b in chunks]
    prefix = f"{settings.prefix}/raw{turn}"
    put = s3.put_object
    calls = [partial(put, Bucket=settings.bucket, Key=f"{prefix}/{d}", Body=b) for d, b in bodies]
    return _all(calls, PUT_STREAMS)


def get_s(runs: RunStore, place: Place) -> float:
    """Get a snapshot's chunks, each once; returns seconds on the slowest rank."""
    s3 = client()
    bucket, _, prefix = runs.store.url.removeprefix("s3://").partition("/")
    keys = [f"{prefix.rstrip('/')}/{chunk_key(d)}".lstrip("/") for d, _ in _mine(runs, place)]
    calls = [partial(_get, s3, bucket, key) for key in keys]
    return _all(calls, GET_STREAMS)


def _get(s3: Any, bucket: str, key: str) -> bytes:
    body: bytes = s3.get_object(Bucket=bucket, Key=key)["Body"].read()
    return body

"""Layout, shares and tensors as bytes: properties that hold for any state and world."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fgtrain.errors import Corrupt
from fgtrain.manifest import TensorSpan, cover
from fgtrain.snapshot import interval, staged
from fgtrain.snapshot.interval import Costs
from fgtrain.snapshot.layout import Layout, chunk_bytes_for, flat_bytes, memory_order, split, tensor_at
from fgtrain.snapshot.staging import pieces

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.int8, torch.uint8, torch.bool]
sizes = st.lists(st.integers(0, 1000), max_size=40)
shapes = st.lists(st.integers(0, 5), max_size=4).map(tuple)


@st.composite
def tensors(draw: st.DrawFn) -> torch.Tensor:
    """Any dtype and shape, laid out in any order of its dimensions, perhaps with gaps."""
    shape = draw(shapes)
    seed = draw(st.integers(0, 2**16))
    values = torch.randint(0, 100, shape, generator=torch.Generator().manual_seed(seed)).to(
        draw(st.sampled_from(DTYPES))
    )
    order = draw(st.permutations(range(values.dim())))
    laid = values.permute(order).contiguous().permute([order.index(d) for d in range(values.dim())])
    if values.dim() and draw(st.booleans()):
        laid = torch.stack([laid, laid], dim=-1)[..., 0]  # every second element
    assert torch.equal(laid, values)
    return laid


states = st.dictionaries(
    st.sampled_from(["frozen", "model", "optim", "ema"]),
    st.dictionaries(st.text("abc", min_size=1, max_size=4), tensors(), min_size=1, max_size=5),
    max_size=4,
).map(lambda s: {g: {f"{g}/{n}": t for n, t in some.items()} for g, some in s.items()})


@given(tensors())
def test_tensor_survives_as_flat_bytes(t: torch.Tensor) -> None:
    span = TensorSpan(str(t.dtype).removeprefix("torch."), tuple(t.shape), "g", 64, t.nbytes, memory_order(t))
    flat = flat_bytes(t)
    assert flat.numel() == t.nbytes
    buffer = torch.cat([torch.full((64,), 7, dtype=torch.uint8), flat])
    back = tensor_at(buffer, span)
    assert back.dtype == t.dtype
    assert torch.equal(back, t)


@given(tensors())
def test_dense_tensor_is_viewed_and_not_copied(t: torch.Tensor) -> None:
    dense = t.is_contiguous() or bool(memory_order(t))
    if dense and t.numel():
        assert flat_bytes(t).data_ptr() == t.data_ptr()
        back = tensor_at(flat_bytes(t), TensorSpan(str(t.dtype)[6:], tuple(t.shape), "g", 0, t.nbytes, memory_order(t)))
        assert back.permute(memory_order(t) or tuple(range(t.dim()))).is_contiguous()


def test_channels_last_keeps_its_order() -> None:
    t = torch.arange(120.0).reshape(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)
    assert memory_order(t) == (0, 2, 3, 1)
    back = tensor_at(flat_bytes(t), TensorSpan("float32", (2, 3, 4, 5), "g", 0, t.nbytes, memory_order(t)))
    assert back.stride() == t.stride()
    assert torch.equal(back, t)


@example([1, 0], 1)
@given(sizes, st.integers(1, 9))
def test_split_gives_every_piece_to_one_rank(pieces: list[int], world: int) -> None:
    got = [i for rank in range(world) for i in split(pieces, rank, world)]
    assert got == list(range(len(pieces)))


@given(sizes, st.integers(1, 9))
def test_split_is_even_to_within_the_largest_piece(pieces: list[int], world: int) -> None:
    shares = [sum(pieces[i] for i in split(pieces, rank, world)) for rank in range(world)]
    assert max(shares) <= sum(pieces) / world + max(pieces, default=0)


@given(st.integers(0, 2**45))
def test_chunk_is_a_power_of_two_within_its_limits(bytes_: int) -> None:
    chunk = chunk_bytes_for(bytes_)
    assert chunk & (chunk - 1) == 0
    assert 256 << 10 <= chunk <= 32 << 20
    if 256 << 10 < chunk < 32 << 20:
        assert math.ceil(bytes_ / chunk) <= 65
        assert math.ceil(bytes_ / chunk) >= 32


@given(st.integers(0, 2**40), st.integers(0, 2**40))
def test_larger_state_never_has_smaller_chunks(a: int, b: int) -> None:
    assert chunk_bytes_for(min(a, b)) <= chunk_bytes_for(max(a, b))


@settings(deadline=None)
@given(states, st.integers(1, 6), st.sampled_from([64, 128, 256]))
def test_shares_of_any_world_hold_every_byte_once(
    state: dict[str, dict[str, torch.Tensor]], world: int, chunk: int
) -> None:
    layout = Layout(state, chunk_bytes=chunk)
    whole = {g: torch.zeros(b, dtype=torch.uint8) for g, b in layout.group_bytes.items()}
    parts: dict[str, list[dict[int, str]]] = {g: [] for g in state}
    for rank in range(world):
        for group, (start, stop) in layout.share(rank, world).items():
            assert start % chunk == 0
            target = whole[group][start:stop]
            for piece in pieces(layout, state, group, start, stop, target):
                piece.target.copy_(piece.source)
            parts[group].append({n: "x" for n in range(start // chunk, -(-stop // chunk))})
    for group, bytes_ in layout.group_bytes.items():
        assert len(cover(-(-bytes_ // chunk), parts[group])) == -(-bytes_ // chunk)
    for group, some in state.items():
        for name, t in some.items():
            back = tensor_at(whole[group], layout.spans[name])
            assert torch.equal(back, t)
            assert back.dtype == t.dtype


@given(states)
def test_layout_fits_what_it_was_made_for_and_nothing_longer(state: dict[str, dict[str, torch.Tensor]]) -> None:
    layout = Layout(state)
    assert layout.fits(state)
    assert not layout.fits(state | {"late": {"late/x": torch.zeros(1)}})
    for group, some in state.items():
        name = next(iter(some))
        grown = state | {group: some | {name: torch.zeros(some[name].nbytes + 1, dtype=torch.uint8)}}
        assert not layout.fits(grown)


# -- staged headers -----------------------------------------------------------------------------------------------

text = st.text(max_size=20)
headers = st.builds(
    staged.Header,
    run=text,
    attempt=st.integers(0, 99999),
    step=st.integers(0, 2**40),
    rank=st.integers(0, 999),
    world=st.integers(1, 999),
    base=st.none() | text,
    determinism=text,
    chunk_bytes=st.integers(1, 2**25),
    group_bytes=st.dictionaries(text, st.integers(0, 2**45), max_size=3),
    spans=st.dictionaries(text, st.builds(TensorSpan, text, shapes, text, st.integers(0), st.integers(0)), max_size=3),
    values=st.dictionaries(text, st.none() | st.booleans() | text | st.floats(allow_nan=False, allow_infinity=False)),
    stretches=st.lists(st.builds(staged.Stretch, text, st.integers(0), st.integers(0), text, st.integers(0))).map(
        tuple
    ),
    lines=st.dictionaries(text, st.lists(st.tuples(st.integers(0, 2**40), text), max_size=3), max_size=3),
    crc32=st.dictionaries(text, st.integers(0, 2**32 - 1), max_size=3),
)


@settings(deadline=None, max_examples=50)
@given(header=headers, cut=st.integers(1, 10_000), at=st.integers(0, 10_000), bit=st.integers(0, 7))
def test_header_is_read_back_or_not_at_all(
    tmp_path_factory: pytest.TempPathFactory, header: staged.Header, cut: int, at: int, bit: int
) -> None:
    folder = tmp_path_factory.mktemp("slots")
    staged.write_header(folder, "slot0", header)
    assert staged.read_header(folder, "slot0") == header
    assert [h for _, h in staged.headers(folder)] == [header]
    file = folder / "slot0.json"
    whole = file.read_bytes()
    at %= len(whole)
    for damaged in (whole[: -min(cut, len(whole))], whole[:at] + bytes([whole[at] ^ 1 << bit]) + whole[at + 1 :]):
        file.write_bytes(damaged)
        with pytest.raises(Corrupt):
            staged.read_header(folder, "slot0")
    staged.remove_header(folder, "slot0")
    assert list(staged.headers(folder)) == []


# -- intervals ----------------------------------------------------------------------------------------------------

seconds = st.floats(0, 1e5)
costs = st.builds(Costs, stall=seconds, latency=seconds, drag=st.floats(0, 1), slots=st.integers(1, 8))


@given(costs, st.floats(1, 1e7))
def test_interval_is_never_shorter_than_what_slots_allow_or_young_says(c: Costs, mtbf: float) -> None:
    period = interval.interval_s(c, mtbf)
    assert period >= c.latency / c.slots
    assert period >= math.sqrt(2 * (c.stall + c.drag * c.latency) * mtbf) * (1 - 1e-12)
    assert interval.interval_s(c, mtbf * 4) >= period


@given(costs, st.floats(1, 1e7))
def test_youngs_interval_loses_least(c: Costs, mtbf: float) -> None:
    overhead = c.stall + c.drag * c.latency
    period = math.sqrt(2 * overhead * mtbf)
    if period < 1e-3:
        return

    def lost(t: float) -> float:
        return overhead / t + t / (2 * mtbf)

    assert lost(period) <= min(lost(period * 0.9), lost(period * 1.1)) * (1 + 1e-9)


@given(st.floats(0, 1e8), st.integers(0, 1000))
def test_failures_shorten_the_mean_time_between_them(running: float, failures: int) -> None:
    mtbf = interval.mtbf_s(running, failures)
    assert 0 < interval.mtbf_s(running, failures + 1) < mtbf
    assert interval.mtbf_s(running + 1, failures) > mtbf or running > 1e7


@pytest.mark.parametrize(("worlds", "failures"), [([], 0), ([2], 0), ([2, 2], 1), ([2, 1, 2], 1), ([2, 3, 3, 1], 2)])
def test_attempts_follow_failures_unless_somebody_joined(worlds: list[int], failures: int) -> None:
    assert interval.failures(worlds) == failures


@given(st.floats(1e-6, 1e3), st.floats(1e-6, 1e3), st.floats(1, 1e7), st.floats(1e-3, 1))
def test_copies_into_memory_take_no_more_than_their_share_and_are_no_rarer_than_loses_least(
    copy: float, step: float, mtbf: float, share: float
) -> None:
    every = interval.memory_steps(copy, step, mtbf, share)
    assert every >= 1
    assert copy <= share * step * every * (1 + 1e-9)
    before = step * (every - 1) * (1 - 1e-9)
    assert every == 1 or copy > share * before or 2 * copy * mtbf > before**2


def test_copies_into_memory_lose_least() -> None:
    def lost(every: int) -> float:
        return 0.1 / (every * 0.5) + every * 0.5 / 2 / 400  # copying, and half a period for each failure

    every = interval.memory_steps(0.1, 0.5, 400.0)
    assert lost(every) <= min(lost(every - 2), lost(every + 2))
    assert interval.memory_steps(0.1, 0.5, 400.0 / 3) < every


def test_copies_into_memory_are_seconds_apart_however_seldom_runs_fail() -> None:
    assert interval.memory_steps(0.1, 0.5, 1e7) == interval.MEMORY_S / 0.5


def test_unmeasured_costs_mean_every_ten_steps() -> None:
    assert interval.memory_steps(0.0, 1.0, 3600.0) == interval.memory_steps(1.0, 0.0, 3600.0) == 10

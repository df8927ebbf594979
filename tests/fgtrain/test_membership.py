"""Rounds: who meets, who waits, who steps in; and silence, told by one clock alone."""

from __future__ import annotations

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from fgtrain.membership import Meeting, Member, Seats, Silence, close, come, complete, growth, lose, moved

A, B, C, D = (Member(name, f"node{i}") for i, name in enumerate("abcd"))


def met(seats: Seats, *members: Member) -> Meeting:
    """Return the meeting after these have come, and as many as fit have met."""
    meeting = Meeting()
    for member in members:
        meeting = come(meeting, member, seats)
    return complete(meeting, seats, quiet=True)


def ids(members: tuple[Member, ...]) -> list[str]:
    return [m.id for m in members]


def test_fixed_number_meets_when_all_are_there() -> None:
    seats = Seats(2, 2)
    alone = come(Meeting(), B, seats)
    assert not complete(alone, seats, quiet=True).complete
    both = complete(come(alone, A, seats), seats, quiet=False)
    assert both.complete
    assert [(m.id, m.rank) for m in both.members] == [("a", 0), ("b", 1)]


def test_nodes_are_ranked_by_number_not_by_spelling() -> None:
    seats = Seats(2, 2)
    assert ids(met(seats, Member("x", "node10"), Member("y", "node2")).members) == ["y", "x"]


def test_first_round_waits_for_more_until_it_is_quiet() -> None:
    seats = Seats(1, 3)
    meeting = come(come(Meeting(), A, seats), B, seats)
    assert not complete(meeting, seats, quiet=False).complete
    assert complete(meeting, seats, quiet=True).complete
    assert complete(come(meeting, C, seats), seats, quiet=False).complete


def test_asking_again_changes_nothing() -> None:
    seats = Seats(1, 2)
    forming = come(Meeting(), A, seats)
    assert come(forming, A, seats) == forming
    full = come(met(seats, A, B), C, seats)
    assert come(full, C, seats) == full


def test_member_that_begins_again_is_joined_by_the_others_and_the_round_is_complete_without_delay() -> None:
    seats = Seats(1, 3)
    broken = come(met(seats, A, B), B, seats)
    assert (broken.round, broken.complete, ids(broken.members), ids(broken.expected)) == (1, False, ["b"], ["a"])
    assert not broken.gentle
    assert not complete(broken, seats, quiet=True).complete
    again = complete(come(broken, A, seats), seats, quiet=False)
    assert again.complete
    assert ids(again.members) == ["a", "b"]


def test_workers_that_left_in_agreement_are_not_killed() -> None:
    seats = Seats(2, 2)
    assert come(met(seats, A, B), B, seats, left=True).gentle
    assert not come(met(seats, A, B), B, seats).gentle


def test_lost_member_is_not_waited_for() -> None:
    seats = Seats(1, 2)
    broken = lose(met(seats, A, B), ["b"], "node1 silent", seats, 3.1)
    assert (broken.round, broken.why, broken.silent_s) == (1, "node1 silent", 3.1)
    assert ids(complete(come(broken, A, seats), seats, quiet=False).members) == ["a"]


def test_meeting_goes_on_in_another_store_without_a_last_call() -> None:
    seats = Seats(1, 3)
    before = come(met(seats, A, B, C), D, seats)
    after = moved(before, "the store is gone", ["node2"])
    assert (after.round, after.complete, after.why) == (1, False, "the store is gone")
    assert (ids(after.expected), after.members, after.waiting) == (["a", "b"], (), ())
    one = come(after, B, seats)
    assert not complete(one, seats, quiet=False).complete, "who was there is waited for"
    both = complete(come(one, A, seats), seats, quiet=False)
    assert [(m.id, m.rank) for m in both.members] == [("a", 0), ("b", 1)]


def test_forming_round_that_loses_its_store_expects_those_of_the_round_before() -> None:
    seats = Seats(1, 3)
    forming = come(lose(met(seats, A, B, C), ["c"], "node2 silent", seats), B, seats)
    after = moved(forming, "the store is gone")
    assert (after.round, after.why, sorted(ids(after.expected))) == (1, "node2 silent", ["a", "b"])
    assert moved(close(forming), "the store is gone") == close(forming)


def test_too_few_wait_for_more() -> None:
    seats = Seats(2, 3)
    broken = come(lose(met(seats, A, B), ["b"], "lost", seats), A, seats)
    assert not complete(broken, seats, quiet=True).complete
    assert complete(come(broken, C, seats), seats, quiet=False).complete


def test_newcomer_is_let_in_gently() -> None:
    seats = Seats(1, 2)
    meeting = come(met(seats, A), B, seats)
    assert meeting.complete
    assert growth(meeting, seats) == 1
    broken = come(meeting, A, seats)
    assert broken.gentle
    assert ids(complete(broken, seats, quiet=False).members) == ["a", "b"]


def test_spare_waits_unheard_and_steps_in_for_a_lost_node_only() -> None:
    seats = Seats(2, 2)
    meeting = come(met(seats, A, B), C, seats)
    assert (meeting.complete, growth(meeting, seats), ids(meeting.waiting)) == (True, 0, ["c"])
    failed = come(meeting, B, seats)
    assert ids(failed.waiting) == ["c"]
    assert ids(complete(come(failed, A, seats), seats, quiet=False).members) == ["a", "b"]
    lost = come(lose(meeting, ["b"], "lost", seats), A, seats)
    assert ids(complete(lost, seats, quiet=False).members) == ["a", "c"]


def test_spares_step_in_by_order_of_arrival() -> None:
    seats = Seats(1, 1)
    meeting = met(seats, A)
    for spare in (D, C):
        meeting = come(meeting, spare, seats)
    assert ids(lose(meeting, ["a"], "lost", seats).members) == ["d"]


def test_new_agent_of_a_node_takes_the_place_of_the_old() -> None:
    seats = Seats(2, 2)
    newer = Member("b2", B.node)
    broken = come(met(seats, A, B), newer, seats)
    assert (broken.round, ids(broken.expected), ids(broken.members)) == (1, ["a"], ["b2"])
    assert ids(complete(come(broken, A, seats), seats, quiet=False).members) == ["a", "b2"]


def test_lost_spare_disturbs_nobody() -> None:
    seats = Seats(1, 1)
    meeting = come(met(seats, A), B, seats)
    after = lose(meeting, ["b"], "lost", seats)
    assert (after.complete, after.round, after.waiting) == (True, 0, ())


def test_closed_meeting_stays_as_it_is() -> None:
    seats = Seats(1, 2)
    closed = close(met(seats, A))
    assert come(closed, B, seats) == closed
    assert lose(closed, ["a"], "lost", seats) == closed


steps = st.lists(
    st.tuples(st.sampled_from(["come", "lose", "complete"]), st.sampled_from("abcdef")), min_size=1, max_size=40
)


@given(steps, st.integers(1, 3), st.integers(0, 2))
def test_whatever_happens_nobody_sits_twice_and_no_round_is_too_large(
    moves: list[tuple[str, str]], least: int, more: int
) -> None:
    seats, meeting = Seats(least, least + more), Meeting()
    for move, name in moves:
        before = meeting
        if move == "come":
            meeting = come(meeting, Member(name, f"node-{name}"), seats)
            assert name in ids(meeting.everyone())
        elif move == "lose":
            meeting = lose(meeting, [name], "lost", seats)
            assert name not in ids(meeting.everyone())
        else:
            meeting = complete(meeting, seats, quiet=True)
        assert len(set(ids(meeting.everyone()))) == len(meeting.everyone())
        assert len(meeting.members) + len(meeting.expected) <= seats.most
        assert meeting.round >= before.round
        if meeting.complete:
            assert seats.least <= len(meeting.members)
            assert [m.rank for m in meeting.members] == list(range(len(meeting.members)))
            assert not meeting.expected
        if before.complete and meeting != before and ids(before.members) != ids(meeting.members):
            assert meeting.round > before.round, "a round never changes its members"
        assert msgspec.json.decode(msgspec.json.encode(meeting), type=Meeting) == meeting


def test_silence_is_counted_from_the_last_beat() -> None:
    silence = Silence(limit_s=3.0, cap_s=1.0)
    assert silence.look({"a": 1, "b": 1}, 0.0) == {}
    for now in (1.0, 2.0):
        assert silence.look({"a": 1, "b": int(now) + 1}, now) == {}
    assert silence.look({"a": 1, "b": 4}, 3.0) == {"a": 3.0}
    assert silence.look({"a": 2, "b": 5}, 4.0) == {}


def test_own_stall_is_no_silence_of_others() -> None:
    silence = Silence(limit_s=3.0, cap_s=1.0)
    silence.look({"a": 1}, 0.0)
    assert silence.look({"a": 1}, 100.0) == {}


def test_newcomer_has_time_to_beat() -> None:
    silence = Silence(limit_s=1.0, cap_s=1.0)
    silence.look({"a": 1}, 0.0)
    assert silence.look({"a": 2, "b": 1}, 5.0) == {}

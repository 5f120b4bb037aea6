"""Tests of fastdiff.serving.policy."""

from hypothesis import given
from hypothesis import strategies as st

from fastdiff.serving.policy import deal, deal_to_both


class Wants:
    """Wants so many slots, in pieces of at most so many."""

    def __init__(self, wanted, piece=4, cost=1):
        self.wanted, self.piece, self.cost, self.got = wanted, piece, cost, 0

    def claim(self, slots):
        taken = min(self.piece, self.wanted, slots // self.cost)
        self.wanted -= taken
        self.got += taken * self.cost
        return taken * self.cost


def test_slots_go_round_in_turns():
    large, small, other = Wants(100), Wants(1), Wants(6)
    assert deal([large, small, other], 16) == 16
    assert (large.got, small.got, other.got) == (9, 1, 6)


def test_the_first_go_first_where_there_are_few_slots():
    first, second, third = Wants(3), Wants(3), Wants(3)
    assert deal([first, second, third], 5) == 5
    assert (first.got, second.got, third.got) == (3, 2, 0)


def test_a_slot_that_one_has_no_use_for_goes_to_the_next():
    guided, plain = Wants(9, cost=2), Wants(9)
    assert deal([guided, plain], 7) == 7
    assert (guided.got, plain.got) == (6, 1)


def test_large_ones_in_front_leave_half_to_small_ones():
    large, small = [Wants(100) for _ in range(6)], [Wants(1), Wants(2), Wants(2)]
    assert deal_to_both(large, small, [*large, *small], 16) == 16
    assert [claimant.got for claimant in small] == [1, 2, 2]
    assert sum(claimant.got for claimant in large) == 11


def test_small_ones_in_front_leave_half_to_large_ones():
    large, small = [Wants(100)], [Wants(4) for _ in range(9)]
    assert deal_to_both(large, small, [*small, *large], 16) == 16
    assert (large[0].got, sum(claimant.got for claimant in small)) == (8, 8)


def test_alone_either_has_all():
    small = [Wants(4) for _ in range(3)]
    assert deal_to_both([], small, small, 10) == 10
    assert [claimant.got for claimant in small] == [4, 4, 2]


@given(st.lists(st.integers(0, 40), max_size=12), st.integers(0, 40))
def test_no_slot_is_left_while_somebody_wants_it(wishes, slots):
    claimants = [Wants(wish) for wish in wishes]
    assert deal(claimants, slots) == min(slots, sum(wishes)) == sum(claimant.got for claimant in claimants)
    served = [claimant.got for claimant in claimants]
    for place, claimant in enumerate(claimants):
        # Nobody got more than a piece more than somebody else whose wish is open.
        if claimant.wanted:
            assert all(other <= served[place] + 4 for other in served)

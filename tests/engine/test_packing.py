"""A plan computes everything once, within its limit, and never nothing."""

from hypothesis import given
from hypothesis import strategies as st

from casestudy.engine.packing import Budget, fill, pack

PROMPTS = st.lists(
    st.integers(1, 60).flatmap(lambda end: st.tuples(st.just(end), st.integers(0, end - 1))),
    max_size=30,
)


@given(prompts=PROMPTS, most=st.integers(1, 200), useful=st.floats(0.1, 1))
def test_packed_batches_hold_each_prompt_once_and_fit(
    prompts: list[tuple[int, int]], most: int, useful: float
) -> None:
    ends, starts = [end for end, _ in prompts], [start for _, start in prompts]
    batches = pack(ends, starts, fits=lambda n, _, width: n * width <= most, useful=useful)
    assert sorted(b for batch in batches for b in batch) == list(range(len(prompts)))
    for batch in batches:
        assert [ends[b] for b in batch] == sorted(ends[b] for b in batch)
        computed = len(batch) * (ends[batch[-1]] - min(starts[b] for b in batch))
        own = sum(ends[b] - starts[b] for b in batch)
        assert len(batch) == 1 or (computed <= most and own >= useful * computed)


@given(prompts=PROMPTS, parts=st.integers(1, 6))
def test_work_is_divided_into_parts_of_about_equal_weight(
    prompts: list[tuple[int, int]], parts: int
) -> None:
    ends, starts = [end for end, _ in prompts], [start for _, start in prompts]
    work = [end - start for end, start in prompts]
    batches = pack(ends, starts, fits=lambda *_: True, useful=0.0, parts=parts)
    assert sorted(b for batch in batches for b in batch) == list(range(len(prompts)))
    assert len(batches) <= min(parts, len(prompts))
    share = sum(work) / parts
    for batch in batches:
        assert sum(work[b] for b in batch) <= share + max(work[b] for b in batch)


@given(
    costs=st.lists(st.integers(0, 50), max_size=30), limit=st.integers(1, 80), even=st.booleans()
)
def test_filled_batches_keep_the_order_and_the_limit(
    costs: list[int], limit: int, even: bool
) -> None:
    batches = fill(costs, limit, even=even)
    assert [i for batch in batches for i in batch] == list(range(len(costs)))
    for batch in batches:
        assert len(batch) == 1 or sum(costs[i] for i in batch) <= limit


def test_a_budget_checks_no_more_than_it_may() -> None:
    assert Budget(check=8).checking(2) == Budget(check=2)
    assert Budget(check=1, seed=3).checking(2) == Budget(check=1, seed=3)

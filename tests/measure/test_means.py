"""A token's mean is taken over tokens like it, and what is like it does not hang on its pair."""

from __future__ import annotations

from casestudy.behaviour.roles import CHANGED, LAST, PAIR_ROLES
from casestudy.measure.means import token_classes
from casestudy.model.tokens import Tokens

PROMPTS = Tokens.of([[5, 1, 2, 3], [5, 4, 3]])
STOPS = ({"stop": (3,)}, {"stop": (2,)})


def test_tokens_of_one_role_share_a_class_and_others_that_of_their_position() -> None:
    wanted, known, n_classes = token_classes(PROMPTS, STOPS, PROMPTS, STOPS)
    assert wanted.tolist() == known.tolist() == [[1, 2, 3, 0], [1, 2, 0, -1]]
    assert n_classes == 4


def test_the_roles_that_any_pair_has_make_no_class() -> None:
    paired = tuple(
        {LAST: (n - 1,), CHANGED: (1,)} | row for n, row in zip((4, 3), STOPS, strict=True)
    )
    assert set(paired[0]) >= PAIR_ROLES
    plain = token_classes(PROMPTS, STOPS, PROMPTS, STOPS)
    with_pairs = token_classes(PROMPTS, paired, PROMPTS, paired)
    assert with_pairs[0].equal(plain[0])
    assert with_pairs[1].equal(plain[1])
    assert with_pairs[2] == plain[2]

"""Which tokens of a prompt are its final full stop, its first word, …?

Results by position can only be averaged over prompts of one length; results by role can be averaged
over any. A role is a pattern on the prompt's text; its tokens are those that share a character with
a match, so that neither subwords nor stops inside a longer token get in the way. Cost: one
tokenisation and a few searches per prompt.

Conventions: a full stop is a single "." that no letter or digit follows (3.50 and U.S.A. hold none
but the last), and no part of an ellipsis; "Mr." ends in one, since only a reader knows better. The
final full stop ends the prompt, but for closing quotes, brackets and spaces. A word of several
tokens is represented by its first token where it opens something (its capital is there) and by its
last before a stop (which has read all of it).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from casestudy.behaviour.prompts import Behaviour, Prompt, Role
from casestudy.errors import BehaviourError, PromptError
from casestudy.model.tokens import Tokenizer

BOS = "BOS"
"""The role of the prepended beginning-of-text token; it has no text, and is found by its id."""

LAST = "last token"
"""The role of the token after which the model predicts."""

CHANGED = "changed tokens"
"""The role of the tokens in which a clean prompt differs from its corrupted partner."""

PAIR_ROLES = frozenset({LAST, CHANGED})
"""What every pair of prompts has, whatever its text says."""

_STOP = r"(?<![.…])\.(?![.…\p{L}\p{Nd}])"
_CLOSING = r"[\p{Pe}\p{Pf}\"'’\s]*\Z"
_WORD = r"[\p{L}\p{M}\p{N}]+(?:['’\-][\p{L}\p{M}\p{N}]+)*"

STANDARD_ROLES: tuple[Role, ...] = (
    Role("first word", _WORD, which="first", take="first"),
    Role(
        "sentence starts",
        rf"(?:\A|[.!?…][\p{{Pe}}\p{{Pf}}\"'’]*\s)\P{{L}}*?(?P<role>{_WORD})",
        take="first",
    ),
    Role("earlier full stops", rf"{_STOP}(?!{_CLOSING})"),
    Role(
        "last word before the stop",
        rf"(?P<role>{_WORD})[^\p{{L}}\p{{N}}.]*{_STOP}{_CLOSING}",
        which="last",
        take="last",
    ),
    Role("final full stop", rf"{_STOP}(?={_CLOSING})", which="last"),
)
"""Found in every prompt that has them, after BOS; in reading order."""


def role_names(behaviour: Behaviour) -> tuple[str, ...]:
    """Every role a behaviour's prompts may have: BOS, the standard ones, its own, its prompts'."""
    standard = (role.name for role in STANDARD_ROLES)
    return tuple(dict.fromkeys([BOS, *standard, *behaviour.own_roles]))


def roles_of(
    tokenizer: Tokenizer,
    prompt: Prompt,
    tokens: Sequence[int],
    roles: Iterable[Role] = (),
) -> Mapping[str, tuple[int, ...]]:
    """Where a prompt's roles are.

    Args:
        tokenizer: which made the tokens.
        prompt: its text is searched; the positions it brings itself replace what would be found.
        tokens: its ids as the model reads them, BOS included where it is prepended.
        roles: to find besides the standard ones; one of the same name replaces a standard one.

    Returns: token indices by role; a role that the prompt does not have is not there.
    Raises: BehaviourError where `tokens` are not this prompt's, or a given index is out of range.
    """
    ids, offsets = _with_offsets(tokenizer, prompt.text)
    shift = len(tokens) - len(ids)
    if shift not in (0, 1) or list(tokens[shift:]) != ids:
        raise BehaviourError(
            f"the tokens that came are not those of {prompt.text[:60]!r}",
            allowed="the prompt's own tokens, with or without BOS",
        )
    found: dict[str, tuple[int, ...]] = {}
    if tokens[0] == tokenizer.bos_id:
        found[BOS] = (0,)
    for role in {r.name: r for r in (*STANDARD_ROLES, *roles)}.values():
        spans = [_tokens_in(offsets, span) for span in role.spans(prompt.text)]
        cut = {"all": slice(None), "first": slice(0, 1), "last": slice(-1, None)}[role.take]
        places = sorted({i + shift for span in spans for i in span[cut]})
        if places:
            found[role.name] = tuple(places)
    return {**found, **_given(prompt, len(tokens))}


def with_pair_roles(
    found: Mapping[str, tuple[int, ...]], tokens: Sequence[int], partner: Sequence[int] | None
) -> dict[str, tuple[int, ...]]:
    """A prompt's roles, with the two that any pair of prompts has: `LAST` and `CHANGED`.

    Args:
        found: by `roles_of`; a role of the same name that the prompt brings itself stays.
        tokens: the prompt's ids, BOS included where it is prepended.
        partner: those of its corrupted (or clean) partner; None where it has none.
    """
    places = () if partner is None else changed_places(tokens, partner)
    own = {LAST: (len(tokens) - 1,)} | ({CHANGED: places} if places else {})
    return own | dict(found)


def changed_places(tokens: Sequence[int], partner: Sequence[int]) -> tuple[int, ...]:
    """Where a prompt's tokens differ from its partner's.

    Position by position where both have as many; otherwise what is left between the tokens that
    they share at the start and at the end.
    """
    n, m = len(tokens), len(partner)
    if n == m:
        pairs = enumerate(zip(tokens, partner, strict=True))
        return tuple(i for i, (a, b) in pairs if a != b)
    shortest = min(n, m)
    start = next((i for i in range(shortest) if tokens[i] != partner[i]), shortest)
    most = shortest - start
    end = next((i for i in range(most) if tokens[n - 1 - i] != partner[m - 1 - i]), most)
    return tuple(range(start, n - end))


def _given(prompt: Prompt, n: int) -> dict[str, tuple[int, ...]]:
    """The positions a prompt brings itself, counted from the start."""
    given = {}
    for name, places in prompt.roles.items():
        for place in places:
            if not -n <= place < n:
                raise BehaviourError(
                    f"role {name!r} of {prompt.text[:60]!r} is at token {place}",
                    allowed=f"0 to {n - 1}, or -{n} to -1 from the end",
                )
        if places:
            given[name] = tuple(sorted({place % n for place in places}))
    return given


def check_roles(tokenizer: Tokenizer, behaviour: Behaviour) -> None:
    """See that every role the behaviour defines occurs in at least one of its prompts, and that
    the positions its prompts bring are theirs. Prompts that cannot be run are left alone.

    Standard roles may be absent: they are not asked for, only found.

    Raises: BehaviourError naming a role that no prompt has, or a position out of range.
    """
    missing = {role.name: role for role in behaviour.roles}
    for prompt in behaviour.prompts:
        if not missing and not prompt.roles:
            continue
        try:
            ids = tokenizer.tokenize(prompt.text).rows()[0]
        except PromptError:
            continue
        for name in roles_of(tokenizer, prompt, ids, missing.values()):
            missing.pop(name, None)
    for name, role in missing.items():
        raise BehaviourError(
            f"role {name!r} is found in no prompt of {behaviour.name!r}",
            allowed="a role that at least one prompt has",
            hint=f"Its pattern is {role.pattern!r}; it is searched for in the text, without BOS",
        )


def _with_offsets(tokenizer: Tokenizer, text: str) -> tuple[list[int], list[tuple[int, int]]]:
    """A text's ids, and where in it each token's characters are, as (start, end)."""
    encoding = tokenizer.encode(text)
    return list(encoding.ids), list(encoding.offsets)


def _tokens_in(offsets: Sequence[tuple[int, int]], span: tuple[int, int]) -> list[int]:
    """The tokens that share a character with a span."""
    start, end = span
    return [i for i, (a, b) in enumerate(offsets) if a < end and start < b]

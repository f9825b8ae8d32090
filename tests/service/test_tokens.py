"""Tokens: what a line says, what a file may not hold, and that a token's text is kept and told nowhere."""

from __future__ import annotations

from datetime import date, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as some

from service.access.scopes import Scope
from service.access.tokens import (
    MAX_TOKENS,
    Limits,
    Token,
    find_token,
    hash_secret,
    make_secret,
    parse_tokens,
)
from service.errors import InvalidRequestError

DIGEST = hash_secret("a")
positive = some.one_of(some.none(), some.integers(1, 10**11))
tokens = some.builds(
    Token,
    name=some.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True),
    scopes=some.frozensets(some.sampled_from(Scope), min_size=1),
    digest=some.binary(min_size=32, max_size=32).map(bytes.hex),
    expires_on=some.one_of(some.none(), some.dates()),
    limits=some.builds(
        Limits,
        requests_per_s=some.one_of(some.none(), some.sampled_from([0.1, 1.0, 2.5, 30.0])),
        streams=positive,
        bytes_per_s=positive,
        max_bytes=positive,
    ),
)


@given(some.lists(tokens, unique_by=(lambda token: token.name, lambda token: token.digest), max_size=5))
def test_a_line_says_everything_about_its_token(kept: list[Token]) -> None:
    text = "# ours\n\n" + "".join(f"  {token.line()}\n" for token in kept)
    assert parse_tokens(text, "tokens") == tuple(kept)


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("OR-3 push", "has 2 words"),
        (f"OR/3 push sha256:{DIGEST}", "name"),
        (f"OR-3 pull sha256:{DIGEST}", "scope"),
        (f"OR-3 push, sha256:{DIGEST}", "scope"),
        (f"OR-3 push {DIGEST}", "no hash"),
        (f"OR-3 push sha256:{DIGEST[1:]}", "no hash"),
        (f"OR-3 push sha256:{DIGEST} expires=soon", "expiry"),
        (f"OR-3 push sha256:{DIGEST} streams=0", "streams"),
        (f"OR-3 push sha256:{DIGEST} streams=1.5", "not whole"),
        (f"OR-3 push sha256:{DIGEST} requests_per_s=nan", "requests_per_s"),
        (f"OR-3 push sha256:{DIGEST} streams=1 streams=2", "twice"),
        (f"OR-3 push sha256:{DIGEST} colour=red", "not known"),
    ],
)
def test_a_wrong_line_is_named_by_its_number(line: str, why: str) -> None:
    with pytest.raises(InvalidRequestError, match=rf"Line 2 of tokens .*{why}"):
        parse_tokens(f"# comment\n{line}\n", "tokens")


def test_a_token_that_was_put_into_the_file_by_mistake_is_not_told() -> None:
    secret = make_secret()
    for line in (secret, f"OR-3 push {secret}", f"{secret} push x", f"OR-3 {secret} x", f"a b c {secret}=1"):
        with pytest.raises(InvalidRequestError) as caught:
            parse_tokens(line, "tokens")
        assert secret not in str(caught.value)


def test_names_and_hashes_come_once_and_there_are_not_too_many() -> None:
    one = Token("a", frozenset({Scope.PUSH}), DIGEST).line()
    with pytest.raises(InvalidRequestError, match="same name"):
        parse_tokens(f"{one}\n{one}", "tokens")
    with pytest.raises(InvalidRequestError, match="same hash"):
        parse_tokens(f"{one}\nb{one[1:]}", "tokens")
    many = [
        Token(f"n{n}", frozenset({Scope.PUSH}), hash_secret(str(n))).line() for n in range(MAX_TOKENS + 1)
    ]
    assert len(parse_tokens("\n".join(many[:-1]), "tokens")) == MAX_TOKENS
    with pytest.raises(InvalidRequestError, match="the most"):
        parse_tokens("\n".join(many), "tokens")


def test_a_token_is_found_by_its_whole_text_only() -> None:
    secrets = [make_secret() for _ in range(5)]
    assert len(set(secrets)) == 5
    known = [Token(str(n), frozenset({Scope.VIEW}), hash_secret(secret)) for n, secret in enumerate(secrets)]
    assert [find_token(known, secret) for secret in secrets] == known
    for wrong in ("", secrets[0][:-1], secrets[0] + "a", secrets[0].upper(), known[0].digest, "surgseg_"):
        assert find_token(known, wrong) is None


def test_the_last_day_still_counts() -> None:
    day = date(2027, 1, 31)
    token = Token("a", frozenset({Scope.PUSH}), DIGEST, day)
    assert token.is_valid(day)
    assert not token.is_valid(day + timedelta(days=1))

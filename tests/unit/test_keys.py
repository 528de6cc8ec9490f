"""Keys in files: what passes, and what is refused in a line that says where and why."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moehost import keys
from moehost.keys import KeysError, UserKey

LONG, OTHER = "0123456789abcdef", "sk-proj_ABC.def~ghi+jkl/mno=="
WHERE = "services[0].api_keys_file: ~/keys"


def mistakes(call: str, text: str) -> list[str]:
    with pytest.raises(KeysError) as caught:
        if call == "service":
            keys.service_keys(text, WHERE)
        else:
            keys.user_keys(text, "gateway.user_keys_file", "~/users")
    return caught.value.lines


class TestServiceKeys:
    @pytest.mark.parametrize(
        "text", [f"{LONG}\n", LONG, f"# my keys\n\n  {LONG}  \r\n# {OTHER}\n", f"{LONG}\n{LONG}\n", f"\t{LONG}\n\n\n"]
    )
    def test_an_engine_gets_nothing_but_keys(self, text: str) -> None:
        assert keys.service_keys(text, WHERE) == f"{LONG}\n"

    def test_several_in_order(self) -> None:
        assert keys.service_keys(f"{OTHER}\n#\n{LONG}", WHERE) == f"{OTHER}\n{LONG}\n"

    @pytest.mark.parametrize("text", ["", "\n\n", "# nothing yet\n", "  # nothing\n"])
    def test_a_file_without_a_key(self, text: str) -> None:
        assert mistakes("service", text) == [
            f"{WHERE}: has no key in it; write one per line, e.g. of `openssl rand -hex 32`"
        ]

    @pytest.mark.parametrize(
        ("key", "why"),
        [
            ("0123456789abcde", "has 15 characters; a key needs 16 at least, e.g. of `openssl rand -hex 32`"),
            (f"{LONG} # mine", "has blanks in it; write one key per line"),
            (f"{LONG}\u00a0", "has 16 characters"),
            (f'{LONG}"', "has other characters than letters, digits and -._~+/=, which no bearer token may have"),
            (f"{LONG}ä", "has other characters than"),
        ],
    )
    def test_a_line_that_is_none(self, key: str, why: str) -> None:
        if key.strip() == LONG:  # a blank is stripped, whatever kind it is
            assert keys.service_keys(key, WHERE) == f"{LONG}\n"
            return
        (line,) = mistakes("service", f"# keys\n{key}\n")
        assert line.startswith(f"{WHERE}: line 2 {why}")
        assert key not in line

    @given(st.text())
    def test_whatever_passes_is_keys_line_by_line(self, text: str) -> None:
        try:
            found = keys.service_keys(text, WHERE)
        except KeysError as error:
            assert error.lines
        else:
            assert all(keys.doubt(line) is None for line in found.splitlines())
            assert found.endswith("\n")


class TestUserKeys:
    def test_an_owners_file(self) -> None:
        text = f"# mine\nalice {LONG}\n\nbob-laptop   {OTHER}\n"
        assert keys.user_keys(text, "", "") == f"alice {LONG} -\nbob-laptop {OTHER} -\n"

    def test_one_without_users_is_one_without_users(self) -> None:
        assert keys.user_keys("# nobody\n", "", "") == ""

    @pytest.mark.parametrize(
        ("line", "why"),
        [
            ("alice", "is no `NAME KEY`"),
            (f"Alice {LONG}", "names 'Alice': use lower-case letters, digits and ._-, at most 39"),
            (f"-a {LONG}", "names '-a': use"),
            (f"{'a' * 40} {LONG}", f"names '{'a' * 40}': use"),
            ("alice short", "has 5 characters"),
            (f"alice {LONG} {LONG}", "has blanks in it"),
            (f"first {OTHER}", "names 'first' a second time"),
            (f"alice {'f' * 16}", "has the key of another user"),
        ],
    )
    def test_a_line_that_is_none(self, line: str, why: str) -> None:
        (said,) = mistakes("user", f"first {'f' * 16}\n{line}\n")
        assert said.startswith(f"gateway.user_keys_file: ~/users:2 {why}")
        assert LONG not in said

    def test_all_at_once(self) -> None:
        assert len(mistakes("user", "a\nb\nc\n")) == 3


class TestNames:
    there = [UserKey("alice", "-", "0" * 12), UserKey("bob", "-", "1" * 12)]

    def test_what_a_node_lists(self) -> None:
        text = "alice 2026-11-29T18:00:00Z aaaaaaaaaaaa\n\ncut off\nbob - bbbbbbbbbbbb\n"
        assert keys.listed(text) == [
            UserKey("alice", "2026-11-29T18:00:00Z", "aaaaaaaaaaaa"),
            UserKey("bob", "-", "bbbbbbbbbbbb"),
        ]

    @pytest.mark.parametrize("name", ["a", "0", "a.b_c-d", "a" * 39])
    def test_good_ones(self, name: str) -> None:
        assert keys.why_not_added(name, self.there) is None

    @pytest.mark.parametrize("name", ["", "A", ".a", "-a", "a b", "a/b", "a" * 40, "a\n", "ä", "$(a)"])
    def test_bad_ones(self, name: str) -> None:
        assert str(keys.why_not_added(name, [])).startswith(f"{name!r}: use lower-case letters")

    def test_one_that_is_taken(self) -> None:
        assert keys.why_not_added("bob", self.there) == (
            "'bob' has a key; to change it, add another name, hand that key out, then revoke 'bob'"
        )

    def test_revoking(self) -> None:
        assert keys.why_not_revoked("bob", self.there) is None
        assert keys.why_not_revoked("bo", self.there) == "'bo' has no key; these have: alice, bob"
        assert keys.why_not_revoked("bo", []) == "'bo' has no key; these have: nobody"


def test_a_new_key_is_256_random_bits() -> None:
    made = {keys.new_key() for _ in range(100)}
    assert len(made) == 100
    assert all(len(each) == 43 and keys.doubt(each) is None for each in made)

"""Who may do what, by the configured keys and the credentials of a request alone."""

import hashlib

import pytest

from gateway.api.http.auth import OPENS, Authenticator, Key, Role, sha256
from gateway.domain.errors import Forbidden, Unauthenticated


def key(name: str, secret: str, role: Role) -> Key:
    return Key(name, hashlib.sha256(secret.encode()).digest(), role)


KEYS = (key("chat", "sk-chat", Role.INFERENCE), key("ops", "sk-ops", Role.ADMIN))
JOIN_TOKEN = "join-me"


@pytest.fixture
def with_keys() -> Authenticator:
    return Authenticator(KEYS, allow_anonymous=False, join_token_sha256=sha256(JOIN_TOKEN))


@pytest.mark.parametrize(
    ("authorization", "needed", "name"),
    [
        ("Bearer sk-chat", Role.INFERENCE, "chat"),
        ("bearer  sk-chat ", Role.INFERENCE, "chat"),
        ("Bearer sk-ops", Role.INFERENCE, "ops"),
        ("Bearer sk-ops", Role.ADMIN, "ops"),
        (None, Role.PUBLIC, "anonymous"),
    ],
)
def test_a_key_opens_what_its_role_covers(
    with_keys: Authenticator, authorization: str | None, needed: Role, name: str
) -> None:
    assert with_keys.authorize(authorization, needed).name == name


@pytest.mark.parametrize("needed", [Role.INFERENCE, Role.ADMIN])
@pytest.mark.parametrize(
    "authorization",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        "Bearer sk-cha",
        "Bearer sk-chat sk-ops",
        "Bearer SK-OPS",
        "Basic sk-ops",
        "sk-ops",
        "Bearer \xff",
        "Bearer " + hashlib.sha256(b"sk-ops").hexdigest(),
        f"Bearer {JOIN_TOKEN}",
    ],
)
def test_no_key_and_a_wrong_key_open_nothing(with_keys: Authenticator, authorization: str | None, needed: Role) -> None:
    with pytest.raises(Unauthenticated) as caught:
        with_keys.authorize(authorization, needed)
    assert "sk-" not in caught.value.message


def test_a_role_that_is_too_low_is_distinguished_from_a_wrong_key(with_keys: Authenticator) -> None:
    with pytest.raises(Forbidden, match=r"'chat'.*'admin'"):
        with_keys.authorize("Bearer sk-chat", Role.ADMIN)


def test_a_wrong_key_is_refused_also_where_none_is_needed_for_inference() -> None:
    authenticator = Authenticator(KEYS, allow_anonymous=True)
    assert authenticator.authorize(None, Role.INFERENCE).name == "anonymous"
    with pytest.raises(Unauthenticated):
        authenticator.authorize("Bearer guess", Role.INFERENCE)


@pytest.mark.parametrize("authorization", [None, "Bearer none"])
def test_without_keys_whoever_reaches_the_loopback_is_the_administrator(authorization: str | None) -> None:
    authenticator = Authenticator((), allow_anonymous=False)
    assert authenticator.trusts_this_machine
    assert authenticator.authorize(authorization, Role.ADMIN).name == "local"


@pytest.mark.parametrize("keys", [(), KEYS])
def test_anonymous_callers_never_administer(keys: tuple[Key, ...]) -> None:
    authenticator = Authenticator(keys, allow_anonymous=True)
    assert not authenticator.trusts_this_machine
    with pytest.raises(Forbidden):
        authenticator.authorize(None, Role.ADMIN)


def test_the_digest_of_a_key_is_in_no_repr() -> None:
    assert "sha256" not in repr(KEYS[0])


# The join token (A11)


def test_a11_the_join_token_opens_joining(with_keys: Authenticator) -> None:
    assert with_keys.authorize(f"bearer {JOIN_TOKEN} ", Role.JOIN).name == "worker"


@pytest.mark.parametrize(
    "authorization",
    [None, "", "Bearer", "Bearer ", "Bearer join-m", JOIN_TOKEN, "Basic join-me", "Bearer sk-ops", "Bearer sk-chat"],
)
def test_a11_nothing_else_opens_joining_no_admin_key_either(
    with_keys: Authenticator, authorization: str | None
) -> None:
    with pytest.raises(Unauthenticated) as caught:
        with_keys.authorize(authorization, Role.JOIN)
    assert caught.value.code == "invalid_join_token"
    assert "sk-" not in caught.value.message


@pytest.mark.parametrize("keys", [(), KEYS])
@pytest.mark.parametrize("anonymous", [False, True])
@pytest.mark.parametrize("authorization", [None, "Bearer ", "Bearer None", "Bearer sk-ops"])
def test_a11_without_a_join_token_nobody_joins(
    keys: tuple[Key, ...], authorization: str | None, *, anonymous: bool
) -> None:
    with pytest.raises(Forbidden, match=r"auth\.join_token") as caught:
        Authenticator(keys, allow_anonymous=anonymous).authorize(authorization, Role.JOIN)
    assert caught.value.code == "join_disabled"


def test_a11_whoever_is_trusted_on_this_machine_needs_the_join_token_too() -> None:
    authenticator = Authenticator((), allow_anonymous=False, join_token_sha256=sha256(JOIN_TOKEN))
    with pytest.raises(Unauthenticated):
        authenticator.authorize(None, Role.JOIN)


def test_a11_each_role_opens_itself_and_joining_opens_nothing_else() -> None:
    assert all(role in opened for role, opened in OPENS.items())
    assert OPENS[Role.JOIN] == {Role.JOIN}
    assert [role for role, opened in OPENS.items() if Role.JOIN in opened] == [Role.JOIN]

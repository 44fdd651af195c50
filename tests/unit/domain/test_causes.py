"""What an exception comes from, and the words for it."""

import ssl

from gateway.domain.causes import cause_words, leaves


def caused_by(error: BaseException, cause: BaseException) -> BaseException:
    error.__cause__ = cause
    return error


def untrusted() -> ssl.SSLCertVerificationError:
    error = ssl.SSLCertVerificationError("certificate verify failed")
    error.verify_message = "self-signed certificate"
    return error


def test_the_leaves_of_nested_groups_are_found() -> None:
    one, two, three = ValueError("1"), ValueError("2"), ValueError("3")
    group = ExceptionGroup("all", [one, ExceptionGroup("some", [two, three])])
    assert list(leaves(group)) == [one, two, three]
    assert list(leaves(one)) == [one]


def test_the_first_cause_that_has_words_is_quoted() -> None:
    assert cause_words(caused_by(OSError("refused"), OSError("deeper"))) == "refused"
    assert cause_words(caused_by(OSError(), OSError("deeper"))) == "deeper"
    assert cause_words(OSError()) == "OSError"


def test_a_certificate_that_is_not_trusted_comes_first() -> None:
    error = caused_by(OSError("connection failed"), untrusted())
    assert cause_words(error) == "its certificate is not to be trusted: self-signed certificate"
    assert cause_words(error, trust_hint="; see x").endswith("self-signed certificate; see x")

"""Tests of lstm_jax.errors."""

from lstm_jax.errors import UserError


def test_a_message_is_one_line() -> None:
    """Whatever the names and the libraries that it quotes hold."""
    message = str(UserError("a\nb.txt, line 3: not JSON\r\n(this\x0b or\u2028that)"))
    assert message == "a b.txt, line 3: not JSON (this  or that)"
    assert str(UserError("as  it is")) == "as  it is"


def test_the_middle_of_a_long_message_is_left_out() -> None:
    message = str(UserError(f"no column {'x' * 10**6!r}: name another"))
    assert len(message) < 2100
    assert message.startswith("no column 'xxx")
    assert " ... " in message
    assert message.endswith("xxx': name another")

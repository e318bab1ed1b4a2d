"""What the program of a cluster's router makes of errors."""

import pytest

from tidegate.errors import TidegateError
from tidegate.router.cluster.__main__ import expected_of
from tidegate.router.cluster.settings import ClusterSettings


def test_errors_within_groups_are_told_one_by_one():
    one, other = TidegateError("one"), TidegateError("other")
    group = BaseExceptionGroup("", [ExceptionGroup("", [one]), other])
    assert expected_of(group) == (one, other)


def test_a_fault_of_the_program_is_no_error_to_go_on_from():
    with pytest.raises(ExceptionGroup) as raised:
        expected_of(ExceptionGroup("", [TidegateError("one"), KeyError("a fault")]))
    assert [type(each) for each in raised.value.exceptions] == [KeyError]


def test_namespaces_and_cookies_are_lists_and_empty_at_first():
    read = ClusterSettings.from_command_line([])
    assert (read.sticky_namespaces, read.user_cookies) == ([], [])
    read = ClusterSettings.from_command_line(
        ["--sticky-namespaces", "models,istio-ingress", "--user-cookies=session"]
    )
    assert read.sticky_namespaces == ["models", "istio-ingress"]
    assert read.user_cookies == ["session"]


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("--sticky-namespaces=models,*", "'*' is not the name of a namespace; write one like"),
        ("--sticky-namespaces=Models", "'Models' is not the name of a namespace"),
        ("--user-cookies=a=b", "'a=b' is not the name of a cookie; write one like session"),
    ],
)
def test_a_wrong_namespace_or_cookie_is_refused_with_a_fix(option, words, capsys):
    with pytest.raises(SystemExit):
        ClusterSettings.from_command_line([option])
    told = capsys.readouterr().err
    assert words in told
    assert option.partition("=")[0].strip("-").replace("-", "_") in told.replace("-", "_")

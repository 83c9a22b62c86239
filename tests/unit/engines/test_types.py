from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines.errors import BadRequest
from engines.types import Endpoint, EngineHealth, EngineState, VersionName

aliases = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}(/step)?", fullmatch=True)


@given(alias=aliases, number=st.integers(0, 999_999_999))
def test_version_names_survive_text(alias: str, number: int) -> None:
    version = VersionName(alias, number)
    assert VersionName.parse(str(version)) == version


@pytest.mark.parametrize(
    "text",
    [
        "",
        "vqa",
        "vqa@",
        "@1",
        "vqa@-1",
        "vqa@01",
        "vqa@1.0",
        "vqa@1 ",
        "a b@1",
        "../x@1",
        "vqa@1\n",
        "v@" + "9" * 10,
        "a/b@1",
        "a/step/step@1",
        "/step@1",
        "../step@1",
        "a//step@1",
        "a/step",
        "a/step@",
        "a%2Fstep@1",
        "a/Step@1",
    ],
)
def test_other_text_is_no_version(text: str) -> None:
    with pytest.raises(BadRequest, match="expected alias@N"):
        VersionName.parse(text)


@given(text=st.text(max_size=40))
def test_parse_accepts_only_what_it_prints(text: str) -> None:
    with contextlib.suppress(BadRequest):
        assert str(VersionName.parse(text)) == text


@pytest.mark.parametrize(
    ("text", "job"), [("grpo.1/step@4", "grpo"), ("a.b.12/step@1", "a.b"), ("x/step@1", "x"), ("grpo.1@4", None)]
)
def test_a_step_says_whose_it_is(text: str, job: str | None) -> None:
    assert VersionName.parse(text).job == job


def test_number_zero_is_the_base() -> None:
    assert VersionName("small", 0).is_base
    assert not VersionName("small", 1).is_base


def test_endpoint_never_shows_its_token() -> None:
    endpoint = Endpoint("http://127.0.0.1:1", "secret")
    assert "secret" not in repr(endpoint)
    assert "secret" not in f"{endpoint}"


def test_only_ready_is_ready() -> None:
    assert [state for state in EngineState if EngineHealth(state).is_ready] == [EngineState.READY]

from __future__ import annotations

import pytest

from vlm_grpo.redact import is_secret_name, redact, redact_command, redact_text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("http://me:pa55@host:8000/v1", "http://[hidden]@host:8000/v1"),
        ("http://me:pa@ss@host/v1 is gone", "http://[hidden]@host/v1 is gone"),
        ("https://host/v1?key=abc&model=m", "https://host/v1?key=[hidden]&model=m"),
        ("'https://host/v1?m=1&api_key=abc'", "'https://host/v1?m=1&api_key=[hidden]'"),
        (
            "https://host/a.png?X-Amz-Signature=ab&X-Amz-Date=1&X-Amz-Security-Token=q",
            "https://host/a.png?X-Amz-Signature=[hidden]&X-Amz-Date=1&X-Amz-Security-Token=[hidden]",
        ),
        ("Authorization: Bearer abcdefgh1234", "Authorization: Bearer [hidden]"),
        ("unknown flag --hub_token hf_x1", "unknown flag --hub_token [hidden]"),
        ("--hub_token has no effect", "--hub_token has no effect"),
        ("token hf_ABCDEFGHIJKLMNOPQRST was refused", "token [hidden] was refused"),
        ("nothing here: a@b.c, C:/x?y=1, 3:4", "nothing here: a@b.c, C:/x?y=1, 3:4"),
    ],
)
def test_secrets_in_text_are_hidden(text: str, expected: str):
    assert redact_text(text) == expected
    assert redact_text(expected) == expected  # a second time changes nothing


@pytest.mark.parametrize(
    "name",
    ["hub_token", "push_to_hub_token", "token", "api_key", "judge_api_key", "password", "hf_token"],
)
def test_names_of_secrets(name: str):
    assert is_secret_name(name)


@pytest.mark.parametrize(
    "name",
    [
        "max_tokens",
        "pad_token",
        "eos_token",
        "image_token_id",
        "judge_api_key_variable",
        "token_type_ids",
        "answer_key",
    ],
)
def test_names_that_only_look_like_secrets(name: str):
    assert not is_secret_name(name)


def test_nested_values_keep_their_shape():
    value = {"training": {"hub_token": "x", "api_key": None, "url": "http://a:b@c"}, "argv": ["http://a:b@c", 3]}
    assert redact(value) == {
        "training": {"hub_token": "[hidden]", "api_key": None, "url": "http://[hidden]@c"},
        "argv": ["http://[hidden]@c", 3],
    }
    assert value["training"]["hub_token"] == "x"


def test_commands():
    words = ["--hub_token", "x", "--judge_base_url=http://a:b@c/v1", "--api_key=z", "--hub_token", "--bf16", "true"]
    expected = ["--hub_token", "[hidden]", "--judge_base_url=http://[hidden]@c/v1", "--api_key=[hidden]"]
    assert redact_command(words) == [*expected, "--hub_token", "--bf16", "true"]

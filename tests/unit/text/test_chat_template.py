"""A conversation is rendered as ``transformers`` renders it; a template from outside cannot do harm."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from enginehouse_engine.text.chat_template import ChatTemplate, ChatTemplateError
from enginehouse_engine.text.tokenizer import byte_tokenizer, load

CHATML = (
    "{% for message in messages %}\n    {%- if message.role == 'system' and not loop.first %}{% continue %}{% endif %}\n"
    "    {{- '<|im_start|>' + message.role + '\\n' + message.content | trim + '<|im_end|>\\n' }}\n{% endfor %}\n"
    "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
LLAMA = (
    "{{ bos_token }}{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% else %}{% generation %}{{ ' ' + m['content'] + eos_token }}{% endgeneration %}{% endif %}{% endfor %}"
)
JSON = (
    "{%- set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{{ m | tojson }}{{ ns.n }}{% endfor %}"
    "{{ {'a': [1, 'é<']} | tojson(indent=2) }}{% if tools is not none %}tools{% endif %}{{ strftime_now('%%') }}"
)
CHATS: list[list[dict[str, Any]]] = [
    [{"role": "user", "content": "hi"}],
    [{"role": "user", "content": " a\n"}, {"role": "assistant", "content": "<b>"}, {"role": "user", "content": "é'\""}],
]


@pytest.fixture(scope="session")
def reference() -> Any:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=byte_tokenizer().backend, bos_token="<s>", eos_token="</s>")


@pytest.mark.parametrize("chat", CHATS)
@pytest.mark.parametrize("source", [CHATML, LLAMA, JSON])
def test_a_chat_is_rendered_as_transformers_does(reference: Any, source: str, chat: list[dict[str, Any]]) -> None:
    expected = reference.apply_chat_template(chat, chat_template=source, tokenize=False, add_generation_prompt=True)
    assert ChatTemplate(source, special_tokens={"bos_token": "<s>", "eos_token": "</s>"}).render(chat) == expected


@pytest.mark.parametrize("chat", CHATS)
def test_smollm2s_own_template_is_rendered_as_transformers_does(reference: Any, smollm2: Path, chat: list[dict[str, Any]]) -> None:
    tokenizer = load(str(smollm2))
    assert tokenizer.chat_template is not None
    ours = ChatTemplate(tokenizer.chat_template, special_tokens=tokenizer.special_tokens).render(chat)
    assert ours == reference.apply_chat_template(
        chat, chat_template=tokenizer.chat_template, tokenize=False, add_generation_prompt=True
    )
    assert ours.startswith("<|im_start|>system\nYou are a helpful AI assistant named SmolLM")


def test_the_templates_own_refusal_reaches_the_caller() -> None:
    with pytest.raises(ChatTemplateError, match="roles must alternate"):
        ChatTemplate(LLAMA, special_tokens={}).render([{"role": "system", "content": "x"}])


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update(role='x') }}",
        "{{ raise_exception.__globals__['json'] }}",
        "{{ 'a' + 1 }}",
        "{{ 1 / 0 }}",
        "{{ messages[9].content.x }}",
        "{% for m in messages recursive %}{{ loop(messages) }}{% endfor %}",
        "{{ range(1000000000) | list }}",
        "{{ 'a' * 4611686018427387904 }}",
    ],
)
def test_a_template_that_misbehaves_is_refused(source: str) -> None:
    with pytest.raises(ChatTemplateError):
        ChatTemplate(source, special_tokens={}).render([{"role": "user", "content": "x"}])


@pytest.mark.parametrize(
    "source",
    [
        "{% for %}",
        "{% break %}",
        "{% for m in messages %}" * 25 + "{% endfor %}" * 25,
        "{{ " + "-" * 5000 + "1 }}",
        "{{ " + "9" * 5000 + " }}",
    ],
    ids=["no template", "no loop", "too many loops", "too deep", "too long"],
)
def test_a_template_that_is_no_template_is_refused_when_it_is_loaded(source: str) -> None:
    with pytest.raises(ChatTemplateError, match="does not compile"):
        ChatTemplate(source, special_tokens={})

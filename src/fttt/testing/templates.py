"""Chat templates for tiny models, small ones of the structure of published ones.

``chatml`` knows no thought. ``qwen3`` has the argument ``enable_thinking``, shows a thought after
the last question only and takes it from ``reasoning_content`` or out of the content.
``deepseek-r1`` opens the thought in the header of an answer. ``harmony`` is that of gpt-oss: a
channel for the thought, another for the answer, and the argument ``reasoning_effort``.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["TEMPLATES", "TinyTemplate"]

_BAR = "\uff5c"
"""The full-width bar in DeepSeek's tokens."""


@dataclass(frozen=True, slots=True)
class TinyTemplate:
    """A template, the tokens that it needs beside those of ``chatml``, and the one that ends."""

    source: str
    tokens: tuple[str, ...] = ()
    end: str = "<|im_end|>"


TEMPLATES = {
    "chatml": TinyTemplate(
        "{% for message in messages %}"
        "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
        "{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    ),
    "qwen3": TinyTemplate(
        "{%- set ns = namespace(last=0) %}"
        "{%- for m in messages %}{%- if m.role == 'user' %}{%- set ns.last = loop.index0 %}"
        "{%- endif %}{%- endfor %}"
        "{%- for m in messages %}"
        "{%- if m.role != 'assistant' %}"
        "{{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}"
        "{%- else %}"
        "{%- set content = m.content %}{%- set thought = '' %}"
        "{%- if m.reasoning_content is string %}{%- set thought = m.reasoning_content %}"
        "{%- elif '</think>' in content %}"
        "{%- set thought = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1]"
        ".lstrip('\\n') %}"
        "{%- set content = content.split('</think>')[-1].lstrip('\\n') %}{%- endif %}"
        "{{- '<|im_start|>assistant\\n' }}"
        "{%- if loop.index0 > ns.last and (loop.last or thought) %}"
        "{{- '<think>\\n' + thought.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') }}"
        "{%- else %}{{- content }}{%- endif %}"
        "{{- '<|im_end|>\\n' }}"
        "{%- endif %}{%- endfor %}"
        "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}"
        "{%- if enable_thinking is defined and enable_thinking is false %}"
        "{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}{%- endif %}",
        ("<think>", "</think>"),
    ),
    "deepseek-r1": TinyTemplate(
        "{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}"
        "{% endif %}{% for m in messages %}"
        "{% if m['role'] == 'system' %}{{ m['content'] }}{% endif %}{% endfor %}"
        "{% for m in messages %}"
        "{% if m['role'] == 'user' %}{{ '<|User|>' + m['content'] }}{% endif %}"
        "{% if m['role'] == 'assistant' %}{% set content = m['content'] %}"
        "{% if '</think>' in content %}{% set content = content.split('</think>')[-1] %}{% endif %}"
        "{{ '<|Assistant|>' + content + '<|end▁of▁sentence|>' }}{% endif %}"
        "{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|Assistant|><think>\\n' }}{% endif %}".replace(
            "|", _BAR
        ),
        (
            "<think>",
            "</think>",
            f"<{_BAR}User{_BAR}>",
            f"<{_BAR}Assistant{_BAR}>",
            f"<{_BAR}end▁of▁sentence{_BAR}>",
        ),
        f"<{_BAR}end▁of▁sentence{_BAR}>",
    ),
    "harmony": TinyTemplate(
        "{%- if reasoning_effort is not defined %}{%- set reasoning_effort = 'medium' %}"
        "{%- endif %}"
        "{{- '<|start|>system<|message|>Reasoning: ' + reasoning_effort + '<|end|>' }}"
        "{%- for m in messages %}"
        "{%- if m.role == 'assistant' %}"
        "{%- if '<|channel|>' in m.content %}"
        "{{- raise_exception('Pass the analysis in the field thinking.') }}{%- endif %}"
        "{%- if loop.last and not add_generation_prompt %}"
        "{%- if 'thinking' in m %}"
        "{{- '<|start|>assistant<|channel|>analysis<|message|>' + m.thinking + '<|end|>' }}"
        "{%- endif %}"
        "{{- '<|start|>assistant<|channel|>final<|message|>' + m.content + '<|return|>' }}"
        "{%- else %}"
        "{{- '<|start|>assistant<|channel|>final<|message|>' + m.content + '<|end|>' }}"
        "{%- endif %}"
        "{%- else %}{{- '<|start|>' + m.role + '<|message|>' + m.content + '<|end|>' }}"
        "{%- endif %}{%- endfor %}"
        "{%- if add_generation_prompt %}{{- '<|start|>assistant' }}{%- endif %}",
        ("<|start|>", "<|message|>", "<|channel|>", "<|end|>", "<|return|>"),
        "<|return|>",
    ),
}

"""How the toys' conversations are written down, whatever their family."""

from __future__ import annotations

# Qwen's turns, without the newline after <|im_end|>: trained on, it comes back as the first token of answers.
_TEMPLATE = """\
{%- for message in messages -%}
{{- '<|im_start|>' + message['role'] + '\\n' -}}
{%- if message['content'] is string -%}
{{- message['content'] -}}
{%- elif message['content'] -%}
{%- for part in message['content'] -%}
{%- if part['type'] in ['image', 'image_url', 'input_image'] or 'image' in part or 'image_url' in part -%}
{{- 'PICTURE' -}}
{%- elif part['type'] == 'video' or 'video' in part -%}
{{- 'FILM' -}}
{%- elif 'text' in part -%}
{{- part['text'] -}}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{{- '<|im_end|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant\\n' -}}
{%- endif -%}
"""


def chat_template(picture: str, video: str) -> str:
    """In Jinja; `picture` and `video` are what stands for one, as a Jinja string has it."""
    return _TEMPLATE.replace("PICTURE", picture).replace("FILM", video)

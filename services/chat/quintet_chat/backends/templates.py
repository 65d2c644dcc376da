"""Chat templates that do not take conversations in OpenAI's form, made to do so."""

from __future__ import annotations

_AS_GLM4_HAS_THEM = """\
{%- set all = namespace(items=[]) %}
{%- if tools %}{% set all.items = [{'role': 'system', 'tools': tools, 'content': ''}] %}{% endif %}
{%- for message in messages %}
    {%- set said = namespace(pictures='', texts=[]) %}
    {%- if message['content'] is string %}
        {%- set said.texts = [message['content']] %}
    {%- elif message['content'] %}
        {%- for part in message['content'] %}
            {%- if part['type'] == 'text' %}
                {%- set said.texts = said.texts + [part['text']] %}
            {%- else %}
                {%- set said.pictures = said.pictures + '<|begin_of_image|><|endoftext|><|end_of_image|>' %}
            {%- endif %}
        {%- endfor %}
    {%- endif %}
    {%- set content = said.pictures + said.texts | join('\\n') %}
    {%- if message['role'] == 'tool' %}
        {%- set all.items = all.items + [{'role': 'observation', 'content': content}] %}
    {%- elif message['tool_calls'] %}
        {%- if content %}
            {%- set all.items = all.items + [{'role': message['role'], 'content': content}] %}
        {%- endif %}
        {%- for call in message['tool_calls'] %}
            {%- set function = call['function'] %}
            {%- set given = function['arguments'] %}
            {%- set text = given if given is string else given | tojson %}
            {%- set item = {'role': message['role'], 'metadata': function['name'], 'content': text} %}
            {%- set all.items = all.items + [item] %}
        {%- endfor %}
    {%- else %}
        {%- set all.items = all.items + [dict(message, content=content)] %}
    {%- endif %}
{%- endfor %}
{%- set messages = all.items %}
"""
"""GLM-4 has tools in a message of their own, a call's name in ``metadata``, and results under a role of their own.

A picture is three marks before the text of its message, of which the middle one becomes the picture.
"""


def in_openai_form(template: str) -> str:
    """The template, with what it needs before it, if it is one of those."""
    if "item['metadata']" in template:
        return _AS_GLM4_HAS_THEM + template
    return template

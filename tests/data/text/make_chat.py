#!/usr/bin/env python3
"""Writes chat.json: what Jinja2, set up as Hugging Face sets it up for chat templates, makes of conversations.

    pip install jinja2
    python make_chat.py
"""
import json
import pathlib

import jinja2
import jinja2.ext
from jinja2.sandbox import ImmutableSandboxedEnvironment

HERE = pathlib.Path(__file__).parent


def raise_exception(message):
    raise jinja2.exceptions.TemplateError(message)


def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


class Generation(jinja2.ext.Extension):
    """The tag that marks what the assistant said, for training."""
    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("same"), [], [], body).set_lineno(line)

    def same(self, caller):
        return caller()


environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols, Generation])
environment.filters["tojson"] = tojson
environment.globals["raise_exception"] = raise_exception

TALK = [
    {"role": "system", "content": "Be <brief> & 'clear'."},
    {"role": "user", "content": "  Hi \"there\" 😀\n"},
    {"role": "assistant", "content": "Hello.</think> Yes?\n\n"},
    {"role": "user", "content": "{{ messages }} {% raw %}\t\\"},
]
CONVERSATIONS = {"whole": TALK, "without system": TALK[1:], "one": TALK[1:2], "none": [], "twice user": TALK[1:2] * 2}

TEMPLATES = {
    "chatml": """{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system
You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>
' }}{% endif %}{{'<|im_start|>' + message['role'] + '
' + message['content'] + '<|im_end|>' + '
'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant
' }}{% endif %}
""",
    "headers": """{%- set loop_messages = messages -%}
{%- for message in loop_messages -%}
    {%- set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' -%}
    {%- if loop.index0 == 0 -%}
        {%- set content = bos_token + content -%}
    {%- endif -%}
    {{- content -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' -}}
{%- endif -%}
""",
    "instructions": """{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
    {%- endif %}
    {%- if message["role"] == "user" %}
        {%- if loop.last and system_message is defined %}
            {{- "[INST] " + system_message + "\\n\\n" + message["content"] + "[/INST]" }}
        {%- else %}
            {{- "[INST] " + message["content"] + "[/INST]" }}
        {%- endif %}
    {%- elif message["role"] == "assistant" %}
        {{- " " + message["content"]|trim + eos_token}}
    {%- else %}
        {{- raise_exception("Only user and assistant roles are supported!") }}
    {%- endif %}
{%- endfor %}
""",
    "turns": """{{ bos_token }}{% if messages and messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}{% for message in messages %}{% if (message['role'] == 'assistant') %}{% set role = 'model' %}{% else %}{% set role = message['role'] %}{% endif %}{{ '<start_of_turn>' + role + '
' + message['content'] | trim + '<end_of_turn>
' }}{% endfor %}{% if add_generation_prompt %}{{'<start_of_turn>model
'}}{% endif %}""",
    "thinking": """{%- set ns = namespace(last=-1, found=false) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if message.role == "user" and not ns.found %}
        {%- set ns.last = index %}
        {%- set ns.found = true %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.content is string %}
        {%- set content = message.content %}
    {%- else %}
        {%- set content = '' %}
    {%- endif %}
    {%- if message.role == 'assistant' and '</think>' in content %}
        {%- set content = content.split('</think>')[-1].lstrip('\n') %}
    {%- endif %}
    {{- message.role ~ ':' ~ content.strip() ~ (' <- last' if loop.index0 == ns.last else '') ~ '\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- 'assistant:' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\n\n</think>\n\n' }}
    {%- endif %}
{%- endif %}
""",
    "json": """{{ messages | tojson }}
{{ messages | tojson(indent=2) }}
{{ messages | tojson(indent=0) }}
{{ {"b": [1, 2.5, true, none, [], {}], "a": {"x": "\\u00e9\\x07\\x7f"}} | tojson }}
{{ {"b": [1, 2.5, true, none, [], {}], "a": {"x": -3}} | tojson(indent=4, sort_keys=true) }}
{{ "é😀</script>&'" | tojson(ensure_ascii=True) }} {{ tools | tojson }}
""",
    "training": """{% for message in messages %}
    {%- if message.role == 'assistant' %}
        {%- generation %}
{{ message.content }}
        {% endgeneration -%}
    {% else %}{% generation %}{{ message.role }}{% endgeneration %}
    {% endif %}
{% endfor %}
generation %} {{ '{%' }} generation
""",
    "loops": """{% for message in messages %}
    {% if message.role == 'system' %}{% continue %}{% endif %}
    {% if loop.index > 3 %}{% break %}{% endif %}
  {{ loop.index }}/{{ loop.length }} {{ message.role | upper }} {{ loop.previtem.role }}|{{ loop.nextitem.role }}
{% else %}
nobody
{% endfor %}
{% for i in range(3) %}{{ i }}{{ "," if not loop.last }}{% endfor %}

""",
    "macros": """{% macro turn(role, text, end='<end>') %}
[{{ role }}] {{ text | replace('\n', ' ') | trim }}{{ end }}
{% endmacro %}
{# a comment #}
{% for message in messages if message.role != 'system' %}
{{ turn(message.role, message.content) }}{{ turn(message['role'], message.get('content', ''), end='') }}
{% endfor %}
""",
    "python": """{{ none }} {{ true }} {{ false }} {{ 1 / 2 }} {{ 7 // 2 }} {{ 2 ** 3 }} {{ missing }}{{ "x" if missing else "y" }}
{{ tools is none }} {{ documents is defined }} {{ messages is iterable }} {{ messages | length }}
{{ 'A-b'.lower() }} {{ 'abc'[1:] }} {{ 'abc'[-1] }} {{ ' x '.strip() }}. {{ 'a,b'.split(',') | join('+') }} {{ 'ab'.startswith('a') }}
{{ {'k': 1}.items() | list | length }} {{ messages | map(attribute='role') | join(',') }} {{ messages | selectattr('role', 'equalto', 'user') | list | length }}
{%- for key, value in {'one': 1, 'two': 2}.items() %} {{ key }}={{ value }}{% endfor %}
""",
    "refusing": "{{ raise_exception('This template refuses: ' + messages|length|string) }}",
    "undefined attribute": "{{ missing.attribute }}",
    "undefined in json": "{{ missing | tojson }}",
}

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "The weather of <some> days & nights",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}, "days": {"type": "integer", "default": 1}},
                "required": ["city"],
            },
        },
    },
    {"type": "function", "function": {"name": "now", "parameters": {}}},
]
CALLS = [
    {"role": "user", "content": "Umbrella?"},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {"id": "a1", "function": {"name": "weather", "arguments": {"days": 3, "city": "Århus", "exact": 1.5e-7}}},
            {"id": "a2", "function": {"name": "now", "arguments": "{\"zone\": \"UTC\"}"}},
        ],
    },
    {"role": "tool", "name": "weather", "content": "{\"rain\": [0.25, 1.0, 1e22, 12345678901234567890]}"},
    {"role": "tool", "name": "now", "content": {"year": 2024, "exact": True, "zone": None, "offset": -0.0}},
]
PARTS = [
    {"role": "user", "content": [{"type": "text", "text": "What is "}, {"type": "image", "image": "x.png"}, {"type": "text", "text": "?"}]},
    {"role": "assistant", "content": "A dög", "reasoning_content": "It barks."},
]
MORE_TEMPLATES = {
    "tools": """{%- if tools %}
<tools>
{%- for tool in tools %}
{{ tool | tojson }}
{%- endfor %}
</tools>
{%- endif %}
{%- for message in messages %}
{{ message.role }}{% if message.name %} {{ message.name }}{% endif %}: {% if message.content is string %}{{ message.content }}{% elif message.content is mapping %}{{ message.content | tojson }}{% endif %}
{%- for call in message.tool_calls or [] %}

<call {{ call.id }}>{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments if call.function.arguments is string else call.function.arguments | tojson }}}</call>
{%- endfor %}
{%- endfor %}
""",
    "parts": """{% for message in messages %}[{{ message.role }}]
{% if message.content is string %}{{ message.content }}{% else %}{% for part in message.content or [] %}{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}
{% if message.reasoning_content is defined and keep_thoughts %}<think>{{ message.reasoning_content }}</think>{% endif %}

{% endfor %}""",
    "switches": """{% if enable_thinking is defined and enable_thinking is false %}<think></think>{% endif %}
{% for document in documents or [] %}{{ loop.index }} {{ document.title | default('untitled') }}: {{ document['text'] | upper }}
{% endfor %}
{{ bos_token }}{{ add_generation_prompt }} {{ date_string }} {{ level }} {{ (ratio or 1) * 2 }} {{ names | default([]) | join(', ') }} {{ names | default([]) | length }}
{{ variables }}""",
}
VARIABLES = {
    "calls": {"messages": CALLS, "tools": TOOLS},
    "calls without tools": {"messages": CALLS},
    "parts": {"messages": PARTS, "keep_thoughts": True},
    "parts without thoughts": {"messages": PARTS, "keep_thoughts": False},
    "tools and plain messages": {"tools": TOOLS},
    "documents": {"documents": [{"title": "a<b", "text": "straße"}, {"text": "x"}], "enable_thinking": False, "level": 3},
    "other tokens": {"bos_token": "<other>", "add_generation_prompt": True, "date_string": "26 Jul 2024", "documents": [],
                     "names": ["z", "a"], "ratio": 0.35, "enable_thinking": True},
}


def case_of(name, source, messages, add_generation_prompt, variables):
    case = {"name": name, "template": source, "messages": messages, "add_generation_prompt": add_generation_prompt}
    if variables is not None:
        case["variables"] = variables
    defaults = {"messages": messages, "tools": None, "documents": None, "bos_token": "<s>", "eos_token": "</s>",
                "add_generation_prompt": add_generation_prompt}
    try:
        case["text"] = environment.from_string(source).render(**defaults | (variables or {}))
    except (jinja2.exceptions.UndefinedError, TypeError):
        case["error"] = ""
    except jinja2.exceptions.TemplateError as error:
        case["error"] = str(error)
    return case


cases = []
for name, source in TEMPLATES.items():
    for conversation, messages in CONVERSATIONS.items():
        for add_generation_prompt in (False, True):
            name_of_case = f"{name}, {conversation}, {add_generation_prompt}"
            cases.append(case_of(name_of_case, source, messages, add_generation_prompt, None))
for name, source in MORE_TEMPLATES.items():
    for variables_name, variables in VARIABLES.items():
        messages = [] if "messages" in variables else TALK
        cases.append(case_of(f"{name}, {variables_name}", source, messages, False, variables))
(HERE / "chat.json").write_text("[\n" + ",\n".join(json.dumps(case) for case in cases) + "\n]\n")

"""Checks chat templates against `jinja2`, set up as `apply_chat_template` of `transformers` sets it up.

    chat.py --lgeval target/release/lgeval --templates models/vocabs/templates tests/data/text/templates --model a.gguf

renders conversations, some of them with tools, with the templates of many models: those that tools/vocabs.sh gets, some
in the manner of models that have none there, and that of a GGUF file. Every text must be the same to the byte. What a
template refuses must be refused with its message and its line, and what fails in Python must fail. Then come expressions,
and formats of `strftime_now`. expressions.py also lists what is known to differ.
"""

import argparse
import json
import sys
from datetime import datetime, timezone
from pathlib import Path

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from expressions import DIFFERENT, EXPRESSIONS, MISSING, STATEMENTS
from lgeval import render
from tokens import metadata

TOKENS = {
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "sep_token": "[SEP]",
    "pad_token": "<pad>",
    "cls_token": "[CLS]",
    "mask_token": "<mask>",
}
SECONDS = 1_721_296_984  # a day in July
# Templates for tools, which Python cannot render without any: it does not iterate over none. Here that is as no tools.
NEEDS_TOOLS = {
    "CohereForAI-c4ai-command-r-plus-tool_use.jinja",
    "NousResearch-Hermes-2-Pro-Llama-3-8B-tool_use.jinja",
    "NousResearch-Hermes-3-Llama-3.1-8B-tool_use.jinja",
}
# With `safe`, Python escapes what is joined to it for HTML.
ESCAPES_TOOLS = {"meetkai-functionary-medium-v3.1.jinja"}
# What expressions and statements see.
PIECES_SEE = {
    "messages": [
        {"role": "user", "content": "Hello!\n"},
        {"role": "assistant", "content": " Hi é"},
        {"role": "user", "content": "Bye"},
    ],
    "add_generation_prompt": True,
}


class Generation(Extension):
    """`{% generation %}` marks what the assistant said; its text is a block's as any other."""

    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("text"), [], [], body).set_lineno(line)

    def text(self, caller):
        return caller()


class Refusal(jinja2.TemplateError):
    """What `raise_exception` raises."""


def environment(seconds: int) -> ImmutableSandboxedEnvironment:
    """Jinja as in `transformers.utils.chat_template_utils`, at a time of UTC."""

    def raise_exception(message):
        raise Refusal(message)

    def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    def strftime_now(format):
        return datetime.fromtimestamp(seconds, timezone.utc).replace(tzinfo=None).strftime(format)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = strftime_now
    return environment


def conversations() -> list[dict]:
    """What people say, and what they should not."""
    turns = [("user", "Hello!"), ("assistant", "Hi. How are you?"), ("user", "Fine.\n\nAnd you?")]
    long = [(role, f"{role} {i}") for i in range(4) for role in ("user", "assistant")]
    hard = "  Grüße, 世界 👩‍👩‍👧 \u2028 \u00a0e\u0301\t\"quoted\" 'single' \\ & <b> {{ x }} {% if %} {# #}\r\n end \n"
    special = "<s>[INST] <|im_end|></s><|eot_id|><unk> <think>no</think> [/INST]<end_of_turn>"
    chats = [
        [],
        turns[:1],
        turns[:2],
        turns,
        long,
        [("system", "Be brief."), *turns],
        [("system", "  \n Be brief.\n "), *long],
        [("system", "Be brief.")],
        [("system", ""), turns[0]],
        [("system", "One."), ("system", "Two."), turns[0]],
        [*turns, ("system", "Now be brief."), ("user", "Well?")],
        [("user", "One."), ("user", "Two.")],
        [turns[0], ("assistant", "One."), ("assistant", "Two.")],
        [("assistant", "I begin."), *turns],
        [("user", "")],
        [("user", ""), ("assistant", ""), ("user", "")],
        [("user", hard), ("assistant", hard), ("user", hard)],
        [("system", hard), ("user", special), ("assistant", special), ("user", special)],
        [turns[0], ("assistant", "<think>\nLet me see.\n</think>\n\nHi."), ("user", "Again?")],
        [turns[0], ("assistant", "</think>Hi."), ("user", "/think or /no_think")],
        [turns[0], ("assistant", "I look it up."), ("tool", '{"answer": 42}'), ("assistant", "42.")],
        [("system", "reasoning: high /no_think"), turns[0], ("tool", "a"), ("tool", "b"), ("user", "c")],
        [("developer", "Be kind."), *turns],
        [("narrator", "It was a dark night."), ("user", "Go on.")],
        [("User", "Hello."), ("", "nobody")],
    ]
    return [
        {"messages": [{"role": role, "content": content} for role, content in chat], "add_generation_prompt": prompt}
        for chat in chats
        for prompt in (False, True)
    ]


def conversations_with_tools() -> list[dict]:
    """Calls and answers of tools, content in parts, documents, and switches that templates ask for."""
    city = {"type": "string", "description": "Where"}
    days = {"type": "integer", "default": 1, "enum": [1, 2.5, -3]}
    parameters = {"type": "object", "properties": {"city": city, "days": days}, "required": ["city"]}
    functions = [
        {"name": "weather", "description": "The <weather> & \"more\"", "parameters": parameters},
        {"name": "now", "description": "The time", "parameters": {"type": "object", "properties": {}}},
    ]
    tools = [{"type": "function", "function": function} for function in functions]

    def calls(content, *numbers):
        arguments = [{"city": "Århus", "days": 3, "exact": [1.5, None, True]}, {}]
        called = [{"name": functions[i]["name"], "arguments": arguments[i]} for i in numbers]
        ids = [{"id": f"call{i:05}", "type": "function", "function": function} for i, function in enumerate(called)]
        return {"role": "assistant", "content": content, "tool_calls": ids}

    ask = {"role": "user", "content": "Umbrella?"}
    brief = {"role": "system", "content": "Be brief."}
    rain = {"role": "tool", "tool_call_id": "call00000", "name": "weather", "content": '{"rain": 0.25}'}
    noon = {"role": "tool", "tool_call_id": "call00001", "name": "now", "content": "12:00"}
    yes = {"role": "assistant", "content": "Yes."}
    thought = {"role": "assistant", "content": "It rains.", "reasoning_content": "Clouds."}
    parts = {"role": "user", "content": [{"type": "text", "text": "What is "}, {"type": "text", "text": "this?"}]}
    chats = [
        {"messages": [ask], "tools": tools},
        {"messages": [brief, ask], "tools": tools[:1]},
        {"messages": [ask, calls(None, 0), rain, yes, ask], "tools": tools},
        {"messages": [ask, calls("", 0), rain], "tools": tools},
        {"messages": [ask, calls("Wait.", 0, 1), rain, noon], "tools": tools},
        {"messages": [ask, thought, ask]},
        {"messages": [parts]},
        {"messages": [ask], "documents": [{"title": "Rain", "text": "A", "content": "B"}], "tools": []},
        {"messages": [ask], "enable_thinking": False},
        {"messages": [ask], "enable_thinking": True},
        {"messages": [ask], "reasoning_effort": "high"},
    ]
    return [chat | {"add_generation_prompt": prompt} for chat in chats for prompt in (False, True)]


def line_of(error: Exception) -> int:
    """The line of the template where an error was raised."""
    line, traceback = 0, error.__traceback__
    while traceback:
        if traceback.tb_frame.f_code.co_filename == "<template>":
            line = traceback.tb_lineno
        traceback = traceback.tb_next
    return line


def matches(answer: dict, template: jinja2.Template, chat: dict, tools: list | None) -> tuple[bool, str]:
    """Whether ours is right, and what is. With tools, what fails in Python by a type may do here what was meant."""
    text, error = answer.get("text"), answer.get("error", "")
    try:
        expected = template.render({"tools": tools, "documents": None} | chat | TOKENS)
    except Refusal as refusal:
        expected = f"chat template, line {line_of(refusal)}: {refusal}"
        return error == expected, expected
    except Exception as failure:
        return text is None or ("tools" in chat and isinstance(failure, TypeError)), f"line {line_of(failure)}: {failure!r}"
    return text == expected, repr(expected)


def check(sources: dict[str, str], chats: list[dict], options: argparse.Namespace) -> list[str]:
    """Compares, and returns the names of the templates that differ."""
    answers = render(options.lgeval, list(sources.values()), chats, TOKENS, SECONDS)
    names = []
    for (name, source), of_template in zip(sources.items(), answers, strict=True):
        tools = [] if name in NEEDS_TOOLS else None
        try:
            template = environment(SECONDS).from_string(source)
        except jinja2.TemplateSyntaxError as error:
            differences = [(error, answer) for answer in of_template if "error" not in answer]
        else:
            pairs = [(answer, *matches(answer, template, chat, tools)) for chat, answer in zip(chats, of_template)]
            differences = [(expected, answer) for answer, right, expected in pairs if not right]
        if differences:
            names.append(name)
            expected, answer = differences[0]
            print(f"{name}: {len(differences)} of {len(chats)} differ\n  {expected}\n  ours: {answer}")
    return names


def check_dates(options: argparse.Namespace) -> list[str]:
    """Compares every format of `strftime_now` around new years, where weeks are hard, and at odd times."""
    formats = [f"%{letter}" for letter in "aAbBcCdDeFgGhHIjklmMnpPrRStTuUVwWxXyYzZ%"]
    formats += [f"%-{letter}" for letter in "degHIjklmMSUVWy"]
    formats += ["", "%d %b %Y", "%B %d, %Y", "%Y-%m-%d", "Today: %A, %-d. %B %Y, %H:%M", "100%% of %Y", "日 %d"]
    chats = [{"messages": [{"role": "user", "content": format}]} for format in formats]
    source = "{{ strftime_now(messages[0].content) }}"
    days = [datetime(year, 1, 1, tzinfo=timezone.utc).timestamp() for year in range(1996, 2029)]
    times = [int(day) + 86_400 * i + 11_111 * i for day in days for i in (-3, -1, 0, 2, 4)]
    times += [0, 951_782_399, 951_782_400, 4_107_542_400, 253_402_300_799]
    wrong = []
    for seconds in times:
        [answers] = render(options.lgeval, [source], chats, {}, seconds)
        template = environment(seconds).from_string(source)
        for format, answer, chat in zip(formats, answers, chats, strict=True):
            text = template.render(**chat)
            if answer != {"text": text}:
                wrong.append(f"{seconds} {format!r}: {answer}, not {text!r}")
    print(*wrong[:5], sep="\n", end="\n" if wrong else "")
    return wrong


def main():
    parser = argparse.ArgumentParser(description="chat templates against jinja2")
    parser.add_argument("--lgeval", required=True, type=Path, help="the program to test")
    parser.add_argument("--templates", required=True, type=Path, nargs="+", help="folders of .jinja files")
    parser.add_argument("--model", required=True, type=Path, help="a GGUF file with a template")
    options = parser.parse_args()

    sources = {}
    for folder in options.templates:
        files = sorted(folder.glob("*.jinja"))
        if not files:
            sys.exit(f"{folder} has no templates")
        sources |= {file.name: file.read_text(encoding="utf-8") for file in files}
    sources["line ends of Windows"] = sources["chatml.jinja"].replace("\n", "\r\n")
    sources[options.model.name] = metadata(options.model)["tokenizer.chat_template"]
    chats = conversations()
    print(f"{len(sources)} templates, {len(chats)} conversations")
    wrong = check(sources, chats, options)
    chats = conversations_with_tools()
    print(f"{len(chats)} conversations with tools and switches")
    wrong += check({name: sources[name] for name in sources if name not in ESCAPES_TOOLS}, chats, options)

    pieces = [f"{{{{ {expression} }}}}" for expression in EXPRESSIONS] + STATEMENTS
    print(f"{len(pieces)} expressions and statements")
    wrong += check({piece: piece for piece in pieces}, [PIECES_SEE], options)
    missing = [f"{{{{ {expression} }}}}" for expression in MISSING]
    answers = render(options.lgeval, missing, [PIECES_SEE], TOKENS, SECONDS)
    wrong += [f"{piece}: {answer}" for piece, [answer] in zip(missing, answers) if "error" not in answer]

    print("What is known to differ:")
    differing = check({piece: piece for piece in DIFFERENT}, [PIECES_SEE], options)
    wrong += [f"{piece!r}, which differs no longer," for piece in DIFFERENT if piece not in differing]

    wrong += check_dates(options)
    if wrong:
        sys.exit(f"{len(wrong)} differ, the first is {wrong[0]}")


if __name__ == "__main__":
    main()

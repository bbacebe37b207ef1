"""Calls are read in the forms of known models, with words around them and without; what is none is no call."""

from __future__ import annotations

import json

import pytest

from aurify.tools.calls import Call, read_call, read_calls, read_message_calls, read_tool_calls

BAR, BLANK = "\uff5c", "\u2581"  # of DeepSeek's marks
ADD = {"name": "add", "arguments": {"a": 1, "b": 2}}
JSON = json.dumps(ADD)
XML = "<function=add><parameter=a>1</parameter><parameter=b>2</parameter></function>"
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "add",
            "parameters": {
                "type": "object",
                "properties": {
                    "a": {"type": "integer"},
                    "b": {"type": "number"},
                    "zip": {"type": ["string", "null"]},
                    "note": {"anyOf": [{"type": "string"}, {"type": "null"}]},
                },
            },
        },
    }
]


def deepseek(name):
    return f"<{BAR}tool{BLANK}{name.replace(' ', BLANK)}{BAR}>"


FORMS = {
    "Qwen, Hermes": f"<tool_call>\n{JSON}\n</tool_call>",
    "a list between the tags": f"<tool_call>[{JSON}]</tool_call>",
    "a list of tags": f"<tool_calls>\n<tool_call>{JSON}</tool_call>\n</tool_calls>",
    "cut at the closing tag": f"<tool_call>\n{JSON}",
    "Qwen3-Coder, Nemotron": """<tool_call>
<function=add>
<parameter=a>
1
</parameter>
<parameter=b>
2
</parameter>
</function>
</tool_call>""",
    "Qwen3-Coder without the outer tag": XML,
    "Seed-OSS": f"<seed:tool_call>{XML}</seed:tool_call>",
    "Llama 3.1, custom": '<function=add>{"a": 1, "b": 2}</function>',
    "MiniMax": '<minimax:tool_call>\n<invoke name="add">\n<parameter name="a">1</parameter>\n<parameter name="b">2'
    "</parameter>\n</invoke>\n</minimax:tool_call>",
    "invoke": '<function_calls>\n<invoke name="add">\n<parameter name="a">1</parameter>\n<parameter name="b">2'
    "</parameter>\n</invoke>\n</function_calls>",
    "Muse": '<atem:function_calls>\n<atem:invoke name="add">\n<atem:parameter name="a">1</atem:parameter>\n'
    '<atem:parameter name="b">2</atem:parameter>\n</atem:invoke>\n</atem:function_calls>',
    "GLM": "<tool_call>add\n<arg_key>a</arg_key>\n<arg_value>1</arg_value>\n<arg_key>b</arg_key>\n<arg_value>2"
    "</arg_value>\n</tool_call>",
    "Gemma 4": "<|tool_call>call:add{a:1,b:2}<tool_call|>",
    "Mistral": f"[TOOL_CALLS][{JSON}]",
    "Mistral, newer": '[TOOL_CALLS]add[ARGS]{"a": 1, "b": 2}',
    "Mistral, with an id": '[TOOL_CALLS]add[CALL_ID]x1y2z3a4b[ARGS]{"a": 1, "b": 2}',
    "Llama 3.1": '<|python_tag|>{"name": "add", "parameters": {"a": 1, "b": 2}}<|eom_id|>',
    "Llama 3.1, built in": "<|python_tag|>add.call(a=1, b=2)",
    "Llama 3.1, as a template has it": '<|python_tag|>add.call({"a": 1, "b": 2})',
    "Llama 3.2": '{"name": "add", "parameters": {"a": 1, "b": 2}}',
    "Llama 4, ToolACE, BFCL": "[add(a=1, b=2)]",
    "Python without a list": "add(a=1, b=2)",
    "Python in the schema's order": "add(1, b=2)",
    "Gemma 3": "```tool_code\nadd(a=1, b=2)\n```",
    "LFM2": "<|tool_call_start|>[add(a=1, b=2)]<|tool_call_end|>",
    "Phi-4-mini, Granite": f"<|tool_call|>[{JSON}]<|/tool_call|>",
    "Nemotron, older": f"<TOOLCALL>[{JSON}]</TOOLCALL>",
    "Command A": '<|START_ACTION|>[{"tool_call_id": "0", "tool_name": "add", "parameters": {"a": 1, "b": 2}}]'
    "<|END_ACTION|>",
    "Command R": 'Action: ```json\n[{"tool_name": "add", "parameters": {"a": 1, "b": 2}}]\n```',
    "DeepSeek V3": f"{deepseek('calls begin')}{deepseek('call begin')}function{deepseek('sep')}add\n```json\n"
    f'{{"a": 1, "b": 2}}\n```{deepseek("call end")}{deepseek("calls end")}',
    "DeepSeek V3.1": f"{deepseek('calls begin')}{deepseek('call begin')}add{deepseek('sep')}"
    f'{{"a": 1, "b": 2}}{deepseek("call end")}{deepseek("calls end")}',
    "Kimi": "<|tool_calls_section_begin|><|tool_call_begin|>functions.add:0<|tool_call_argument_begin|>"
    '{"a": 1, "b": 2}<|tool_call_end|><|tool_calls_section_end|>',
    "gpt-oss": "<|channel|>analysis<|message|>Sum.<|end|><|start|>assistant<|channel|>commentary to=functions.add "
    '<|constrain|>json<|message|>{"a": 1, "b": 2}<|call|>',
    "gpt-oss, as a template has it": "<|start|>assistant to=functions.add<|channel|>commentary json<|message|>"
    '{"a": 1, "b": 2}',
    "Glaive": """<functioncall> {"name": "add", "arguments": '{"a": 1, "b": 2}'} <|endoftext|>""",
    "plain JSON": JSON,
    "a list of JSON": f"[{JSON}]",
    "fenced": f"```json\n{JSON}\n```",
    "fenced, words around": f"I add them.\n```json\n{JSON}\n```\nDone.",
    "words around": f"I add them: {JSON} Done.",
    "OpenAI's message": json.dumps({"tool_calls": [{"type": "function", "function": ADD}]}),
    "arguments as text": json.dumps({"name": "add", "arguments": '{"a": 1, "b": 2}'}),
    "arguments as text, twice": json.dumps({"name": "add", "arguments": json.dumps('{"a": 1, "b": 2}')}),
    "the name as function": json.dumps({"function": "add", "arguments": {"a": 1, "b": 2}}),
    "Anthropic": json.dumps({"type": "tool_use", "id": "x", "name": "add", "input": {"a": 1, "b": 2}}),
    "after a thought": f"<think>Or <tool_call>{JSON}</tool_call>?</think>\n<tool_call>{JSON}</tool_call>",
}


@pytest.mark.parametrize("text", FORMS.values(), ids=FORMS)
def test_the_forms_of_models(text):
    assert read_calls(text, TOOLS) == [Call("add", {"a": 1, "b": 2})]


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("<tool_call>{c}</tool_call>\n<tool_call>{c}</tool_call>", 2),
        ("Two:<tool_call>{c}\n{c}</tool_call>", 2),
        ("<|python_tag|>{c}; {c}", 2),
        ("[TOOL_CALLS][{c}, {c}]", 2),
        ("First {c}, then {c}.", 2),
        ("```json\n[{c}, {c}]\n```", 2),
        ("[add(a=1), add()]", 2),
        ("<function=add></function><function=add><parameter=a>1</parameter></function>", 2),
        ("[TOOL_CALLS]add[ARGS]{{}}[TOOL_CALLS]add[ARGS]{{}}", 2),
    ],
)
def test_several_calls(text, names):
    assert [call.name for call in read_calls(text.replace("{c}", JSON).replace("{{}}", "{}"))] == ["add"] * names


@pytest.mark.parametrize(
    "text",
    [
        "",
        "The sum is 3.",
        "It is warm in Rome. {sic}",
        'I met {"name": "Bob"} and ["name", "arguments"].',
        "print(x)",
        "f(*a)",
        "a + b",
        "[1, 2]",
        "[]",
        "42",
        '"add"',
        f"<think>I could write <tool_call>{JSON}</tool_call></think>The sum is 3.",
        f"<think>I write <tool_call>{JSON}</tool_call>",
        "Use `def add(a, b)`.",
        "[" * 5000,
        "f(" * 2000,
        '{"name": "add", "arguments": {"a": 1',
    ],
)
def test_what_is_no_call(text):
    assert read_calls(text, TOOLS) == []


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("<tool_call>{broken</tool_call>", "the call '{broken' cannot be read; expected {\"name\": ..., "),
        ("<tool_call>", "cannot be read"),
        ("<tool_call>oops", "'oops' cannot be read"),
        ('<tool_call>{"city": "Rome"}</tool_call>', "has no name"),
        (
            '<tool_call>{"name": "add", "arguments": [1, 2]}</tool_call>',
            "the arguments of 'add' are [1, 2]",
        ),
        ('<tool_call>{"name": "add", "arguments": "a=1"}</tool_call>', "expected a JSON object"),
        ("<|python_tag|>import os", "cannot be read"),
        ("<tool_call>" + "[" * 100_000, "cannot be read"),
        ('<tool_call>{"name": "put", "arguments": {"body": "a\nb"}}</tool_call>', "cannot be read"),  # no JSON
    ],
)
def test_a_call_that_cannot_be_read_says_why(text, problem):
    [call] = read_calls(text)
    assert problem in call.problem
    [message_call] = read_tool_calls(text)
    assert message_call["problem"] == call.problem and message_call["function"]["arguments"] == {}


def test_forms_without_types_take_them_from_the_schema():
    """XML and GLM write every value as it is: a postcode stays a text where the schema says so."""
    parts = "".join(f"<parameter={key}>{value}</parameter>" for key, value in (("zip", "00501"), ("note", 7), ("a", 7)))
    xml = f"<function=add>{parts}</function>"
    assert read_calls(xml, TOOLS) == [Call("add", {"zip": "00501", "note": "7", "a": 7})]
    assert read_calls("<function=add><parameter=zip>null</parameter></function>", TOOLS)[0].arguments == {"zip": None}
    assert read_calls("<function=f><parameter=a>True</parameter><parameter=b>[1, 2]</parameter></function>") == [
        Call("f", {"a": True, "b": [1, 2]})
    ]
    assert read_calls("<function=f><parameter=a>\n  two\nlines\n</parameter></function>") == [
        Call("f", {"a": "  two\nlines"})
    ]
    assert read_calls("<tool_call>add</tool_call>", TOOLS) == [Call("add", {})]


def test_values_of_python_and_gemma():
    text = "[get.weather(city='Rome', days=-1, on=True, off=false, none=null, pair=(1, 2), deep={'a': [None]})]"
    arguments = {
        "city": "Rome",
        "days": -1,
        "on": True,
        "off": False,
        "none": None,
        "pair": [1, 2],
        "deep": {"a": [None]},
    }
    assert read_calls(text) == [Call("get.weather", arguments)]
    assert read_calls("f(a={1, 2})") == read_calls("f(a=b'1')") == read_calls("f(a=g())") == []
    text = '<|tool_call>call:f{city:<|"|>New "York": {a:1}<|"|>,tags:[<|"|>x<|"|>],deep:{on:true}}<tool_call|>'
    assert read_calls(text) == [Call("f", {"city": 'New "York": {a:1}', "tags": ["x"], "deep": {"on": True}})]


def test_calls_of_messages():
    declared = [{"id": "a", "type": "function", "function": {"name": "add", "arguments": '{"a": 1, "b": 2}'}}]
    assert read_message_calls({"content": "", "tool_calls": declared}) == [Call("add", {"a": 1, "b": 2})]
    assert read_message_calls({"content": JSON}) == [Call("add", {"a": 1, "b": 2})]
    assert read_message_calls({"content": None}) == []
    function = {"name": "add", "arguments": {"a": 1, "b": 2}}
    assert read_tool_calls(f"<tool_call>{JSON}</tool_call>") == [
        {"id": "call00000", "type": "function", "function": function}
    ]


def test_empty_arguments():
    for arguments in ({}, None, "", " ", "{}"):
        assert read_call({"name": "now", "arguments": arguments}) == Call("now", {})
    assert read_call({"name": "now"}) == Call("now", {})
    assert read_call(None).problem and read_call({"name": 3}).problem and read_call([]).problem

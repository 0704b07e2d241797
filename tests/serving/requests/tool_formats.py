"""How models write tool calls, by the names of SGLang's parsers (--tool-call-parser)."""

import json
from collections.abc import Callable, Sequence

Call = tuple[str, dict]


def _json(arguments: dict) -> str:
    return json.dumps(arguments, ensure_ascii=False)


def _plain(value) -> str:
    return value if isinstance(value, str) else _json(value)


def _wrapped(begin: str, end: str, separator: str = "\n", key: str = "arguments"):
    """A JSON object a call, each between two markers."""

    def write(calls: Sequence[Call]) -> str:
        objects = (_json({"name": name, key: arguments}) for name, arguments in calls)
        return separator.join(f"{begin}{one}{end}" for one in objects)

    return write


def _array(begin: str, end: str, separator: str = ", ", **keys: str):
    """One JSON array of all calls."""

    def write(calls: Sequence[Call]) -> str:
        named = ({keys.get("name", "name"): n, keys.get("key", "arguments"): a} for n, a in calls)
        return begin + separator.join(map(_json, named)) + end

    return write


def _each(begin: str, call: Callable[[str, dict, int], str], end: str, separator: str = "\n"):
    """Every call by `call(name, arguments, index)`, all between two markers."""

    def write(calls: Sequence[Call]) -> str:
        return begin + separator.join(call(n, a, i) for i, (n, a) in enumerate(calls)) + end

    return write


def _tags(call: str, argument: str, end: str):
    """XML: `call` is a format of {name} and {index}, `argument` of {key}, {value} and its type."""

    def write(name: str, arguments: dict, index: int) -> str:
        parts = (
            argument.format(
                key=key,
                value=_plain(value),
                is_string="true" if isinstance(value, str) else "false",
                type="string" if isinstance(value, str) else "number",
            )
            for key, value in arguments.items()
        )
        return call.format(name=name, index=index) + "".join(parts) + end

    return write


def _pythonic(calls: Sequence[Call]) -> str:
    def written(name: str, arguments: dict) -> str:
        return f"{name}({', '.join(f'{key}={value!r}' for key, value in arguments.items())})"

    return "[" + ", ".join(written(*call) for call in calls) + "]"


def _gemma(name: str, arguments: dict, index: int) -> str:
    values = (
        f'{key}:<|"|>{value}<|"|>' if isinstance(value, str) else f"{key}:{value}"
        for key, value in arguments.items()
    )
    return f"<|tool_call>call:{name}{{{','.join(values)}}}<tool_call|>"


def _dsml(block: str, space: str = ""):
    return _each(
        f"<｜DSML｜{block}>\n",
        _tags(
            f'<｜DSML｜{space}invoke name="{{name}}">\n',
            f'<｜DSML｜{space}parameter name="{{key}}" string="{{is_string}}">{{value}}'
            f"</｜DSML｜{space}parameter>\n",
            f"</｜DSML｜{space}invoke>",
        ),
        f"\n</｜DSML｜{block}>",
    )


_HERMES = _wrapped("<tool_call>\n", "\n</tool_call>")
_PAIR = "<arg_key>{key}</arg_key>\n<arg_value>{value}</arg_value>\n"
_GLM45 = _each("", _tags("<tool_call>{name}\n", _PAIR, "</tool_call>"), "")
_CODER = _each(
    "",
    _tags(
        "<tool_call>\n<function={name}>\n",
        "<parameter={key}>\n{value}\n</parameter>\n",
        "</function>\n</tool_call>",
    ),
    "",
)
_XML_INVOKE = _tags(
    '<invoke name="{name}">\n', '<parameter name="{key}">{value}</parameter>\n', "</invoke>"
)

FORMATS: dict[str, Callable[[Sequence[Call]], str]] = {
    "apertus2509": lambda calls: (
        "<|tools_prefix|>[" + ", ".join(_json({n: a}) for n, a in calls) + "]<|tools_suffix|>"
    ),
    "beam": _each(
        "<|channel|>analysis<|message|>hm<|end|><|start|>assistant",
        _tags(
            " to={name}<|channel|>analysis <|constrain|>xml<|message|>",
            '<rfl:parameter name="{key}">\n{value}\n</rfl:parameter>',
            "<|end|><|start|>assistant",
        ),
        "<|channel|>final<|message|>",
        "",
    ),
    "cohere_command4": _array(
        "<|START_ACTION|>[\n    ",
        "\n]<|END_ACTION|>",
        ",\n    ",
        name="tool_name",
        key="parameters",
    ),
    "deepseekv3": _each(
        "<｜tool▁calls▁begin｜>",
        lambda n, a, i: (
            f"<｜tool▁call▁begin｜>function<｜tool▁sep｜>{n}\n```json\n{_json(a)}\n```<｜tool▁call▁end｜>"
        ),
        "<｜tool▁calls▁end｜>",
    ),
    "deepseekv31": _each(
        "<｜tool▁calls▁begin｜>",
        lambda n, a, i: f"<｜tool▁call▁begin｜>{n}<｜tool▁sep｜>{_json(a)}<｜tool▁call▁end｜>",
        "<｜tool▁calls▁end｜>",
        "",
    ),
    "deepseekv32": _dsml("function_calls"),
    "deepseekv4": _dsml("tool_calls"),
    "deepseekv41": _dsml(" calls", " "),
    "dots": _each("<dots_function_call>\n", _XML_INVOKE, "\n</dots_function_call>"),
    "gemma4": _each("", _gemma, "", ""),
    "gigachat3": _array("<|function_call|>", "", ""),
    "gigachat35": _each(
        "<｜GCML｜tool_calls>\n",
        _tags(
            '<｜GCML｜invoke name="{name}">\n',
            '<｜GCML｜parameter name="{key}" string="{is_string}">{value}</｜GCML｜parameter>\n',
            "</｜GCML｜invoke>",
        ),
        "\n</｜GCML｜tool_calls>",
    ),
    "glm": _GLM45,
    "glm45": _GLM45,
    "glm47": _each(
        "",
        _tags(
            "<tool_call>{name}",
            "<arg_key>{key}</arg_key><arg_value>{value}</arg_value>",
            "</tool_call>",
        ),
        "",
        "",
    ),
    "gpt-oss": _each(
        "",
        lambda n, a, i: (
            f"<|start|>assistant<|channel|>commentary to=functions.{n}"
            f"<|constrain|>json<|message|>{_json(a)}<|call|>"
        ),
        "",
        "",
    ),
    "hermes": _HERMES,
    "hunyuan": _each(
        "<tool_calls>\n",
        _tags("<tool_call>{name}<tool_sep>\n", _PAIR, "</tool_call>"),
        "\n</tool_calls>",
    ),
    "inkling": _each(
        "",
        lambda n, a, i: (
            f"<|message_model|>{n}<|content_invoke_tool_json|>"
            f"{_json({'name': n, 'args': a})}<|end_message|>"
        ),
        "",
        "",
    ),
    "interns1": _wrapped("<|action_start|> <|plugin|>\n", "<|action_end|>", "", "parameters"),
    "iquest_q1": _each(
        "",
        _tags(
            "<iquest_tool_call>{name}",
            "<arg_key>{key}</arg_key><arg_value>{value}</arg_value>",
            "</iquest_tool_call>",
        ),
        "",
    ),
    "k2_horizon": _each(
        "<ifm|tool_calls>\n",
        _tags(
            "<ifm|tool_call>{name}\n",
            "<ifm|arg_key>{key}</ifm|arg_key>\n<ifm|arg_value>{value}</ifm|arg_value>\n",
            "</ifm|tool_call>",
        ),
        "\n</ifm|tool_calls>",
    ),
    "kimi_k2": _each(
        "<|tool_calls_section_begin|>",
        lambda n, a, i: (
            f"<|tool_call_begin|>functions.{n}:{i}<|tool_call_argument_begin|>{_json(a)}"
            "<|tool_call_end|>"
        ),
        "<|tool_calls_section_end|>",
        "",
    ),
    "kimi_k3": _each(
        "<|open|>tools<|sep|>",
        _tags(
            '<|open|>call tool="{name}" index="{index}"<|sep|>',
            '<|open|>argument key="{key}" type="{type}"<|sep|>{value}<|close|>argument<|sep|>',
            "<|close|>call<|sep|>",
        ),
        "<|close|>tools<|sep|>",
        "",
    ),
    "lfm2": lambda calls: f"<|tool_call_start|>{_pythonic(calls)}<|tool_call_end|>",
    "ling3": _GLM45,
    "llama3": _wrapped("<|python_tag|>", "", ";"),
    "mimo": _each(
        "",
        _tags(
            "<tool_call>\n<function={name}>\n",
            "<parameter={key}>{value}</parameter>\n",
            "</function>\n</tool_call>",
        ),
        "",
    ),
    "minicpm5": _each(
        "",
        _tags('<function name="{name}">', '<param name="{key}">{value}</param>', "</function>"),
        "",
    ),
    "minimax-m2": _each("<minimax:tool_call>\n", _XML_INVOKE, "\n</minimax:tool_call>"),
    "minimax-m3": _each(
        "]<]minimax[>[<tool_call>\n",
        _tags(
            ']<]minimax[>[<invoke name="{name}">\n',
            "]<]minimax[>[<{key}>{value}]<]minimax[>[</{key}>\n",
            "]<]minimax[>[</invoke>",
        ),
        "\n]<]minimax[>[</tool_call>",
    ),
    "mistral": _array("[TOOL_CALLS] [", "]"),
    "muse": _each(
        "<|eom|>",
        lambda n, a, i: (
            f"<|start|>assistant to={n}<|message|><atem:function_calls>\n"
            + _tags(
                '<atem:invoke name="{name}">\n',
                '<atem:parameter name="{key}">{value}</atem:parameter>\n',
                "</atem:invoke>",
            )(n, a, i)
            + "\n</atem:function_calls><|eom|>"
        ),
        "",
        "",
    ),
    "nanbeige": _CODER,
    "poolside_v1": _GLM45,
    "pythonic": _pythonic,
    "qwen": _HERMES,
    "qwen25": _HERMES,
    "qwen3_coder": _CODER,
    "spark25": _each(
        "",
        _tags(
            "<tool_call>{name}\n",
            "<arg_key>{key}</arg_key><arg_value>{value}</arg_value>\n",
            "</tool_call>",
        ),
        "",
    ),
    "step3": _each(
        "<｜tool_calls_begin｜>\n",
        lambda n, a, i: (
            "<｜tool_call_begin｜>function<｜tool_sep｜>"
            + _tags(
                '<steptml:invoke name="{name}">\n',
                '<steptml:parameter name="{key}">{value}</steptml:parameter>\n',
                "</steptml:invoke>",
            )(n, a, i)
            + "<｜tool_call_end｜>"
        ),
        "\n<｜tool_calls_end｜>",
    ),
    "step3p5": _CODER,
    "trinity": _HERMES,
}

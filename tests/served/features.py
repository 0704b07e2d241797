"""Sampling parameters that change what comes next: penalties, biases, grammars."""

import json

PENALTIES = (
    {"frequency_penalty": 0.3},
    {"presence_penalty": 1.5},
    {"repetition_penalty": 1.15},
    {"frequency_penalty": -0.4, "presence_penalty": 0.2},
    {"logit_bias": {"1503": 4.0, "1508": -3.5}},
    {"frequency_penalty": 0.7, "logit_bias": {"1510": 5.0}},
    {},
)

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 99},
        "tags": {"type": "array", "items": {"enum": ["a", "bb", "ccc"]}, "maxItems": 3},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}
PATTERN = r"(\d{3}-){2}\d{4}( or [a-z]{2,5})?"
EBNF = 'root ::= item ("," item)* "."\nitem ::= "yes" | "no" | [0-9]+'
GRAMMARS = (
    {"json_schema": json.dumps(SCHEMA)},
    {"regex": PATTERN},
    {"ebnf": EBNF},
    {},
)

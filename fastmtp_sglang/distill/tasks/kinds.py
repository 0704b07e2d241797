"""The kinds of tasks: each makes the user turns of one conversation from random numbers."""

import textwrap
from collections.abc import Callable
from random import Random

from fastmtp_sglang.distill.tasks.material import Function, Material
from fastmtp_sglang.distill.tasks.numbers import number_task

Turns = list[str]


def _pick(random: Random, *choices: str) -> str:
    return random.choice(choices)


def _below(random: Random, task: str, text: str) -> str:
    """Put a task before or after its text, as people do either."""
    if random.random() < 0.5:
        return f"{task}\n\n{text}"
    return f"{text}\n\n{task}"


def _summarize(random: Random, material: Material) -> Turns:
    task = _pick(
        random,
        "Summarize:",
        "Summarize the following text.",
        "Summarize the text in two sentences.",
        "What are the main points of this text?",
        "Give me a short summary of this.",
        "TL;DR of the following, please.",
        "Write a headline and one paragraph that sums up this text.",
    )
    text = " ".join(material.passage(random).text for _ in range(random.randint(1, 2)))
    return [f"{task} {text}" if task == "Summarize:" else _below(random, task, text)]


def _answer(random: Random, material: Material) -> Turns:
    passage = material.passage(random)
    term = random.choice(passage.terms())
    question = _pick(
        random,
        f"What does the text say about {term}?",
        f"According to the passage, what is {term}?",
        f"Why is {term} mentioned here?",
        f"How does {term} work, by this text?",
        f"When should one use {term}?",
        f"What is the purpose of {term}?",
    )
    frame = _pick(
        random,
        "Use the passage to answer the question.",
        "Answer from the context alone.",
        "Read this and answer.",
        "",
    )
    return [f"{frame}\n\n{_below(random, question, passage.text)}".strip()]


def _retrieval(random: Random, material: Material) -> Turns:
    passages = [material.passage(random) for _ in range(random.randint(2, 3))]
    term = random.choice(random.choice(passages).terms())
    text = "\n\n".join(
        f"Document {number}: {passage.text}" for number, passage in enumerate(passages, 1)
    )
    question = _pick(
        random,
        f"Which document speaks of {term}, and what does it say?",
        f"What is {term}?",
        f"Tell me about {term}.",
        f"What do the documents have to say about {term}?",
    )
    return [_below(random, question, text)]


def _rewrite(random: Random, material: Material) -> Turns:
    task = _pick(
        random,
        "Rewrite this in simpler words.",
        "Rewrite the text so that a ten-year-old understands it.",
        "Make this text more formal.",
        "Turn the following text into an email to a colleague.",
        "Paraphrase this paragraph.",
        "Rewrite this as a list of steps.",
        "Shorten the following text by half.",
        "Correct the grammar of this text and improve its style.",
        "Write this as a dialogue between two friends.",
    )
    return [_below(random, task, material.passage(random).text)]


def _extract(random: Random, material: Material) -> Turns:
    passage = material.passage(random)
    task = _pick(
        random,
        "List the key points of this text as bullets.",
        "Extract all names from the text.",
        "List the technical terms in this text and explain each in one sentence.",
        "Write three quiz questions about this text, with answers.",
        "Give this text a title and five tags.",
        "What questions does this text leave open?",
        "Is the tone of this text positive, negative or neutral? Explain why.",
        f"Make a table of the facts in this text about {random.choice(passage.terms())}.",
    )
    return [_below(random, task, passage.text)]


def _compare(random: Random, material: Material) -> Turns:
    one, other = (random.choice(material.passage(random).terms()) for _ in range(2))
    return [
        _pick(
            random,
            f"What is the difference between {one} and {other}?",
            f"Compare {one} with {other}.",
            f"Which is better, {one} or {other}, and why?",
            f"What do {one} and {other} have in common?",
            f"What are the advantages and disadvantages of {one} over {other}?",
        )
    ]


def _define(random: Random, material: Material) -> Turns:
    term = random.choice(material.passage(random).terms())
    return [
        _pick(
            random,
            f"What is {term}?",
            f"Who or what is {term}?",
            f"Explain {term} to a beginner.",
            f"What does {term} mean?",
            f"Give me an example of {term}.",
            f"Where does the word {term} come from?",
            f"Write a short article about {term}.",
            f"Write a story in which {term} plays a part.",
            f"List five facts about {term}.",
            f"How do I get started with {term}?",
        )
    ]


def _continue(random: Random, material: Material) -> Turns:
    words = material.passage(random).text.split()
    opening = " ".join(words[: random.randint(12, 40)])
    task = _pick(
        random,
        "Continue this text.",
        "Write the next paragraph.",
        "How might this go on?",
        "Finish the following text.",
    )
    return [f"{task}\n\n{opening}"]


def _fenced(source: str) -> str:
    return f"```python\n{source}\n```"


def _explain_code(random: Random, material: Material) -> Turns:
    function = material.function(random)
    task = _pick(
        random,
        "What does this function do?",
        "Explain this code line by line.",
        "Write a docstring for this function.",
        f"What are the arguments of `{function.name}`, and what does it return?",
        "Add comments to this code.",
        "Which errors can this function raise?",
        "How could this code be made simpler?",
    )
    return [_below(random, task, _fenced(function.source))]


def _complete_code(random: Random, material: Material) -> Turns:
    function = material.function(random)
    lines = function.body.splitlines()
    kept = lines[: random.randint(0, max(1, len(lines) // 2))]
    purpose = f'    """{function.purpose}"""'
    start = "\n".join([function.signature, *textwrap.wrap(purpose, 100), *kept])
    task = _pick(random, "Complete this function.", "Finish the code below.", "Fill in the rest.")
    return [_below(random, task, _fenced(start))]


def _write_code(random: Random, material: Material) -> Turns:
    function = material.function(random)
    name = function.name
    task = _pick(
        random,
        f"Write a Python function `{name}` for this: {function.purpose}",
        f"Write a Python program that does the following: {function.purpose}",
        f"Implement this:\n{_fenced(function.signature)}\n{function.purpose}",
        f"Write a function named {name} with a docstring, and show how it is used. "
        f"{function.purpose}",
    )
    return [task]


def _repair_code(random: Random, material: Material) -> Turns:
    function = material.function(random)
    task = _pick(
        random,
        "Find the bug in this function and fix it.",
        "This code does not work. What is wrong?",
        f"The tests of `{function.name}` fail. Repair it.",
        "Correct the following code.",
    )
    return [_below(random, task, _fenced(_broken(random, function)))]


def _broken(random: Random, function: Function) -> str:
    """Return the source with one fault: a line lost, an operator turned or a name misspelt."""
    swaps = [("==", "!="), ("<", ">="), ("+", "-"), (" not ", " "), ("True", "False"), ("0", "1")]
    lines = function.body.splitlines()
    places = [(n, pair) for n, line in enumerate(lines) for pair in swaps if pair[0] in line]
    if places and random.random() < 0.7:
        number, (old, new) = random.choice(places)
        lines[number] = lines[number].replace(old, new, 1)
    elif len(lines) > 2:
        del lines[random.randrange(len(lines) - 1)]
    else:
        lines[-1] = lines[-1].rstrip(")")
    return "\n".join([function.signature, *lines])


def _test_code(random: Random, material: Material) -> Turns:
    function = material.function(random)
    task = _pick(
        random,
        "Write unit tests with pytest for this function.",
        f"Give three examples of calls of `{function.name}` with their results.",
        "Translate this Python function to JavaScript.",
        "Add type hints to this function.",
        "Rewrite this function as a class.",
    )
    return [_below(random, task, _fenced(function.source))]


def _numbers(random: Random, material: Material) -> Turns:
    return [number_task(random)]


def _follow_up(random: Random, material: Material) -> Turns:
    turns = KINDS[random.choice(_OPENINGS)](random, material)
    for _ in range(random.randint(1, 2)):
        turns.append(
            _pick(
                random,
                "Can you say that more briefly?",
                "Give me an example.",
                "Why?",
                "Now write it as a poem.",
                "Explain that in more detail.",
                "Are you sure? Check it again.",
                "What would be a good next step?",
                "Rewrite your answer for a child.",
                "Put that into a table.",
                "Translate your answer into Spanish.",
                "Thanks! What else should I know?",
                "Rewrite your answer as a list.",
                "What is the strongest objection to this?",
            )
        )
    return turns


_OPENINGS = ("answer", "define", "compare", "explain_code", "numbers", "continue", "rewrite")
KINDS: dict[str, Callable[[Random, Material], Turns]] = {
    "summarize": _summarize,
    "answer": _answer,
    "retrieval": _retrieval,
    "rewrite": _rewrite,
    "extract": _extract,
    "compare": _compare,
    "define": _define,
    "continue": _continue,
    "explain_code": _explain_code,
    "complete_code": _complete_code,
    "write_code": _write_code,
    "repair_code": _repair_code,
    "test_code": _test_code,
    "numbers": _numbers,
    "follow_up": _follow_up,
}

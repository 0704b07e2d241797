"""Prompts of the equality tests: plain and chat, English, code, Chinese, tiny and long."""

_ENGLISH = (
    "The capital of France is",
    "Once upon a time, in a village by the sea,",
    "Water boils at 100 degrees because",
    "List three reasons to learn a second language.\n1.",
    "The quick brown fox",
    "Dear Sir or Madam,\n\nI am writing to",
    "Two plus two is four. Three plus three is",
    "In 1969, the first humans",
    "Q: What is photosynthesis?\nA:",
    "She opened the door and saw",
)
_CODE = (
    "def fibonacci(n):\n    ",
    "#include <stdio.h>\n\nint main(void) {\n",
    "SELECT name, COUNT(*) FROM users",
    "class Stack:\n    def __init__(self):\n",
    '{"name": "Ada", "born": 1815, "langs": [',
    "for i in range(10):\n    print(",
)
_CHINESE = (
    "中国的首都是",
    "从前有一座山，山里有一座庙，",
    "请用一句话解释什么是人工智能：",
    "春天来了，花开了，",
)
_TINY = ("a", " ", "\n", "1", "?")
_CHAT = (
    "Explain gravity to a child.",
    "Write a haiku about rain.",
    "What is 17 * 23?",
    "用中文介绍一下长城。",
    "Write a Python function that reverses a string.",
    "Name a fruit.",
)


def _chat(text: str) -> str:
    return f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"


def long_prompt(words: int = 1100) -> str:
    """About 1,500 tokens of text that does not repeat."""
    names = ("river", "stone", "winter", "garden", "engine", "letter", "mountain", "coffee")
    verbs = ("finds", "keeps", "paints", "forgets", "carries", "follows", "builds")
    sentences = [
        f"On day {day} the {names[day % 8]} {verbs[day % 7]} the {names[(day * 3 + 1) % 8]}."
        for day in range(words // 8)
    ]
    return " ".join(sentences) + "\nIn short, the story says that"


def requests() -> list[tuple[str, int]]:
    """64 prompts with their `max_new_tokens`, 1 to 200."""
    texts = [*_ENGLISH, *_CODE, *_CHINESE, *_TINY, *map(_chat, _CHAT)]
    lengths = (1, 2, 3, 4, 5, 8, 16, 24, 32, 48)
    cases = [(text, lengths[i % len(lengths)]) for i, text in enumerate(texts)]
    cases += [(text, lengths[(i + 5) % len(lengths)]) for i, text in enumerate(texts)]
    cases += [(long_prompt(), 24), (_chat(_CHAT[0]), 200)]
    assert len(cases) == 64
    return cases

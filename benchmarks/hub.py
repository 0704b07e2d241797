"""The seven tasks of the paper through `datasets`, for machines with a network.

Where the paper used Spec-Bench (QA, RAG, summarization), its published file is read; C-Eval takes
the first questions of several subjects. The figures of the paper come from its own selection, so
compare configurations with each other, not with its table.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from fastmtp_benchmarks.task import Conversation, Task
from fastmtp_sglang.errors import FastMTPError

_SPEC_BENCH = (
    "https://raw.githubusercontent.com/hemingkx/Spec-Bench/main/data/spec_bench/question.jsonl"
)
_LIVECODEBENCH = "hf://datasets/livecodebench/code_generation_lite/test6.jsonl"
# As many as the paper's evaluation files hold of most tasks.
_ROWS = 80
_CODE = (
    "You are an expert Python programmer. You will be given a question (problem specification) and "
    "will generate a correct Python program that matches the specification and passes all tests."
)
_C_EVAL_SUBJECTS = {
    "accountant": "注册会计师",
    "computer_network": "计算机网络",
    "high_school_physics": "高中物理",
    "law": "法学",
    "modern_chinese_history": "近代史纲要",
    "operating_system": "操作系统",
    "chinese_language_and_literature": "中国语言文学",
    "urban_and_rural_planner": "注册城乡规划师",
}

_Row = Mapping[str, Any]


@dataclass(frozen=True)
class _Source:
    """`datasets.load_dataset` arguments, which rows to take, and what to ask."""

    arguments: dict[str, Any]
    turns: Callable[[_Row], list[str]]
    wanted: Callable[[_Row], bool] = lambda row: True
    system: str | None = None


def _spec_bench(category: str) -> _Source:
    return _Source(
        {"path": "json", "data_files": _SPEC_BENCH, "split": "train"},
        lambda row: list(row["turns"]),
        lambda row: row["category"] == category,
    )


def _c_eval(config: str, subject: str) -> _Source:
    def question(row: _Row) -> list[str]:
        choices = "\n".join(f"{letter}. {row[letter]}" for letter in "ABCD")
        intro = f"以下是中国关于{subject}考试的单项选择题，请选出其中的正确答案。"  # noqa: RUF001
        return [f"{intro}\n{row['question']}\n{choices}\n"]

    return _Source({"path": "ceval/ceval-exam", "name": config, "split": "val"}, question)


_TASKS: dict[str, list[_Source]] = {
    "mt_bench": [
        _Source(
            {"path": "HuggingFaceH4/mt_bench_prompts", "split": "train"},
            lambda row: list(row["prompt"]),
        )
    ],
    "livecodebench": [
        _Source(
            {"path": "json", "data_files": _LIVECODEBENCH, "split": "train"},
            lambda row: [row["question_content"]],
            system=_CODE,
        )
    ],
    "math_500": [
        _Source(
            {"path": "HuggingFaceH4/MATH-500", "split": "test"},
            lambda row: [
                f"{row['problem']}\nPlease reason step by step, and put your final answer within "
                "\\boxed{}."
            ],
        )
    ],
    "rag": [_spec_bench("rag")],
    "qa": [_spec_bench("qa")],
    "summarization": [_spec_bench("summarization")],
    "c_eval": [_c_eval(config, subject) for config, subject in _C_EVAL_SUBJECTS.items()],
}


def hub_task(name: str) -> Task:
    """Download a task by its name.

    Raises FastMTPError for an unknown name, without `datasets`, or when the download fails.
    """
    if name not in _TASKS:
        raise FastMTPError(f"--task hub:{name}: unknown; there are {', '.join(_TASKS)}")
    try:
        import datasets
    except ImportError as error:
        raise FastMTPError(
            f"--task hub:{name}: needs the package datasets; run "
            "`pip install 'fastmtp-sglang[bench]'`, or give a local .jsonl file"
        ) from error
    sources = _TASKS[name]
    conversations: list[Conversation] = []
    for source in sources:
        try:
            rows = datasets.load_dataset(**source.arguments, streaming=True)
            taken = list(itertools.islice(_asked(rows, source), _ROWS // len(sources)))
        except Exception as error:  # datasets raises its own, fsspec's, pyarrow's and the hub's
            raise FastMTPError(
                f"--task hub:{name}: datasets cannot load {source.arguments} "
                f"({type(error).__name__}: {str(error).strip()[:200]}); give a local .jsonl file"
            ) from error
        start = len(conversations)
        conversations += [
            Conversation(f"{name}/{number}", tuple(turns), source.system)
            for number, turns in enumerate(taken, start)
        ]
    if not conversations:
        raise FastMTPError(f"--task hub:{name}: the data set has no such rows any more")
    return Task(name, tuple(conversations))


def _asked(rows: Iterable[_Row], source: _Source) -> Iterator[list[str]]:
    return (source.turns(row) for row in rows if source.wanted(row))

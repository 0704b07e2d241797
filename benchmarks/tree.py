"""Acceptance length by shape of the draft tree, predicted without a server.

    python -m fastmtp_benchmarks.tree PROMPTS.jsonl --shapes 3x1,3x4x12,3x8x16

With --vocabulary drafts come from one of its lists, and with --own-tokens from what the request has
said besides: what a smaller list loses, and what that gives back.
A shape is K x top-k x rows. The target answers each prompt greedily, once; then the head is applied
to its hidden states, in plain torch, wherever a verification would begin, for every shape. Branches
attend as SGLang's draft cache has them: to the prompt and the answer so far, and to what lies in
their own row of the cache, which for a branch that changed its row are not its own tokens.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from fastmtp_benchmarks.environment import save
from fastmtp_benchmarks.tasks import load_tasks
from fastmtp_sglang.contract.tree_shape import parse_shapes
from fastmtp_sglang.errors import FastMTPError
from fastmtp_sglang.models.prompting import prompt_ids

if TYPE_CHECKING:
    from torch import Tensor

    from fastmtp_sglang.head.module import FastMTPHead

# Places of an answer whose trees are drafted together: bounds the attention mask.
_TOGETHER = 64


class Answer(NamedTuple):
    """What the target said.

    Attributes:
        ids: int64 [T], prompt and answer.
        hidden_states: [T, D], the target's, after its final norm.
        prompt_length: tokens before the answer.
    """

    ids: Tensor
    hidden_states: Tensor
    prompt_length: int


@dataclass(frozen=True)
class Drafts:
    """All that was drafted from P places with one K and top-k.

    Attributes:
        scores: [P, num_drafts], probability of the path to each draft.
        right: bool [P, num_drafts], whether that path is the target's.
        first_of_step: where each step's drafts begin, K + 1 numbers.
    """

    scores: Tensor
    right: Tensor
    first_of_step: tuple[int, ...]

    def accepted(self, num_rows: int) -> Tensor:
        """How many drafts are accepted at each place if `num_rows` are verified, int64 [P]."""
        import torch

        chosen = self.scores.topk(num_rows - 1, dim=1).indices
        verified = torch.zeros_like(self.right).scatter_(1, chosen, True)
        kept = verified & self.right
        borders = zip(self.first_of_step, self.first_of_step[1:], strict=False)
        return sum(kept[:, first:last].any(1).long() for first, last in borders)


def draft_trees(
    head: FastMTPHead,
    answer: Answer,
    embed_tokens: Any,
    lm_head: Tensor,
    list_ids: Tensor | None,
    num_steps: int,
    top_k: int,
    own_tokens: int = 0,
) -> Drafts:
    """Draft wherever a verification of this answer could begin.

    Args:
        head: the head.
        answer: T tokens, of which the P = T - 1 - prompt_length after the first one are predicted.
        embed_tokens: the target's embedding.
        lm_head: [V, D], the target's.
        list_ids: int64 ids to draft from, or None for all.
        num_steps: K.
        top_k: branches.
        own_tokens: how many tokens of the request itself that the list lacks are drafted from too.

    Returns:
        Drafts of place p, which begins when token prompt_length + p has been decided.
    """
    import torch
    from transformers.cache_utils import DynamicCache

    ids = answer.ids
    rows = lm_head if list_ids is None else lm_head[list_ids]
    # The head's state at t predicts token t + 2.
    length = len(ids) - 1
    cache = DynamicCache(config=head.block_config)
    positions = torch.arange(length)
    states = head(
        answer.hidden_states[None, :-1],
        embed_tokens(ids[None, 1:]),
        positions[None],
        past_key_values=cache,
    )[0]

    def best(hidden_states: Tensor, own: Tensor | None) -> tuple[Tensor, Tensor]:
        """Of rows that fall to the places whose own tokens [P, n] are given, as many to each."""
        logits = hidden_states @ rows.T
        if list_ids is None or own is None:
            shares, index = logits.softmax(-1).topk(top_k)
            return shares, index if list_ids is None else list_ids[index]
        by_place = hidden_states.view(len(own), -1, hidden_states.shape[1])
        own_logits = by_place @ lm_head[own.clamp(min=0)].mT
        own_logits = own_logits.masked_fill((own < 0).unsqueeze(1), -torch.inf).flatten(0, 1)
        shares, index = torch.cat((logits, own_logits), 1).softmax(-1).topk(top_k)
        own_index = (index - len(list_ids)).clamp(min=0)
        drafted = own.repeat_interleave(by_place.shape[1], 0).gather(1, own_index)
        listed = list_ids[index.clamp(max=len(list_ids) - 1)]
        return shares, torch.where(index < len(list_ids), listed, drafted)

    parts = []
    for start in range(answer.prompt_length - 1, length - 1, _TOGETHER):
        places = torch.arange(start, min(start + _TOGETHER, length - 1))
        own = None
        if list_ids is not None and own_tokens:
            own = torch.stack([_own(ids[: p + 2], list_ids, own_tokens) for p in places.tolist()])
        shares, tokens = best(states[places], own)
        right = tokens == _target(ids, places, 0)
        scores, on_path, beam_states = shares, right, states[places].repeat_interleave(top_k, 0)
        all_scores, all_right = [scores], [right]
        beam_tokens = tokens
        for step in range(1, num_steps):
            output = head(
                beam_states[None],
                embed_tokens(beam_tokens.flatten()[None]),
                (places + step).repeat_interleave(top_k)[None],
                attention_mask=_mask(places, length, top_k, step),
                past_key_values=cache,
            )[0]
            shares, tokens = (t.view(len(places), top_k, top_k) for t in best(output, own))
            children = scores.unsqueeze(2) * shares
            target = _target(ids, places, step).unsqueeze(2)
            right = on_path.unsqueeze(2) & (tokens == target)
            all_scores.append(children.flatten(1))
            all_right.append(right.flatten(1))
            scores, kept = children.flatten(1).topk(top_k)
            beam_tokens = tokens.flatten(1).gather(1, kept)
            on_path = right.flatten(1).gather(1, kept)
            parents = kept // top_k + torch.arange(len(places)).unsqueeze(1) * top_k
            beam_states = output[parents.flatten()]
        if num_steps > 1:
            cache.crop(-len(places) * top_k * (num_steps - 1))
        parts.append((torch.cat(all_scores, 1), torch.cat(all_right, 1)))
    first = (0, *(top_k + step * top_k**2 for step in range(num_steps)))
    return Drafts(torch.cat([s for s, _ in parts]), torch.cat([r for _, r in parts]), first)


def _own(said: Tensor, list_ids: Tensor, number: int) -> Tensor:
    """The newest `number` distinct tokens of a text that a list lacks, int64, -1 for none."""
    import torch

    lacking = said[~torch.isin(said, list_ids)].flip(0).tolist()
    newest = list(dict.fromkeys(lacking))[:number]
    return torch.tensor(newest + [-1] * (number - len(newest)))


def _target(ids: Tensor, places: Tensor, step: int) -> Tensor:
    """What the target says where step `step` (0-based) drafts, -1 behind the end; [P, 1]."""
    index = places + 2 + step
    return ids[index.clamp(max=len(ids) - 1)].where(index < len(ids), -1).unsqueeze(1)


def _mask(places: Tensor, length: int, top_k: int, step: int) -> Tensor:
    """Which keys the rows of a step see: bool [1, 1, P * top_k, length + step * P * top_k]."""
    import torch

    rows = len(places) * top_k
    past = (torch.arange(length) <= places.unsqueeze(1)).repeat_interleave(top_k, 0)
    own = torch.eye(rows, dtype=torch.bool)
    return torch.cat((past, *[own] * step), 1)[None, None]


def verifications(accepted: Sequence[int]) -> tuple[int, int]:
    """Walk through one answer: how many verifications it takes, and drafts that they accept."""
    place = steps = drafts = 0
    while place < len(accepted):
        steps += 1
        drafts += accepted[place]
        place += accepted[place] + 1
    return steps, drafts


def main(
    task: Annotated[list[str], typer.Argument(help="Prompts, as --task of `fastmtp bench run`.")],
    shapes: Annotated[str, typer.Option(help="K x top-k x rows, comma-separated.")] = "3x1,3x8x16",
    model: Annotated[str, typer.Option(help="Model directory, or built-in model.")] = "smollm2",
    head: Annotated[str | None, typer.Option(help="Head directory.")] = None,
    vocabulary: Annotated[Path | None, typer.Option(help="Draft vocabulary file.")] = None,
    language: Annotated[str, typer.Option(help="Its list to draft from.")] = "en",
    own_tokens: Annotated[
        int | None, typer.Option(help="Own tokens of a request to draft from; else the file's.")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Prompts per task.")] = None,
    tokens: Annotated[int, typer.Option(help="New tokens per prompt, at most.")] = 128,
    output: Annotated[Path | None, typer.Option(help="JSON file to write.")] = None,
) -> None:
    """Predict the acceptance length of each shape; first turns only."""
    import torch

    from fastmtp_sglang.head.module import FastMTPHead
    from fastmtp_sglang.models import catalog

    asked = parse_shapes("--shapes", shapes)
    if own_tokens and vocabulary is None:
        raise FastMTPError(
            f"--own-tokens {own_tokens}: without --vocabulary all tokens are drafted from already. "
            "Give the vocabulary whose list lacks some, or leave it out."
        )
    prompts = [c for t in load_tasks(task, limit) for c in t.conversations]
    path, ours = catalog.directory("--model", model), catalog.find(model)
    if head is None:
        if ours is None:
            raise FastMTPError("--head is missing: give the directory of a head for this model")
        head = str(ours.draft_head().path)
    drafting = FastMTPHead.from_pretrained(head).float().eval()
    counted = {shape: [0, 0] for shape in asked}
    with torch.inference_mode():
        target = _Target(path)
        listed, own = None, own_tokens or 0
        if vocabulary is not None:
            listed, kept = _list(vocabulary, language, target.vocab_size)
            own = kept if own_tokens is None else own_tokens
        for prompt in prompts:
            answer = target.answer(prompt.system, prompt.turns[0], tokens)
            if len(answer.ids) < answer.prompt_length + 2:
                continue
            for depth, top_k in {(shape.num_steps, shape.top_k) for shape in asked}:
                drafts = draft_trees(
                    *(drafting, answer, target.embed_tokens, target.lm_head),
                    *(listed, depth, top_k, own),
                )
                for shape in asked:
                    if (shape.num_steps, shape.top_k) == (depth, top_k):
                        steps, right = verifications(drafts.accepted(shape.num_rows).tolist())
                        counted[shape][0] += steps
                        counted[shape][1] += right
    rows = [
        {"shape": str(shape), "verifications": steps, "acceptance_length": 1 + drafts / steps}
        for shape, (steps, drafts) in counted.items()
    ]
    for row in rows:
        print(json.dumps(row), flush=True)
    if output is not None:
        save({"prompts": len(prompts), "rows": rows}, output, shlex.join(sys.argv))


class _Target:
    """A model of transformers that answers greedily and shows its hidden states."""

    def __init__(self, path: Path) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self._tokenizer = AutoTokenizer.from_pretrained(path)
        self._model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
        self.embed_tokens = self._model.get_input_embeddings()
        self.lm_head = self._model.get_output_embeddings().weight
        self.vocab_size = self._model.config.get_text_config().vocab_size

    def answer(self, system: str | None, question: str, tokens: int) -> Answer:
        """Answer one question."""
        import torch

        turns = [{"role": "user", "content": question}]
        if system is not None:
            turns.insert(0, {"role": "system", "content": system})
        prompt = torch.tensor([prompt_ids(self._tokenizer, turns)])
        ids = self._model.generate(
            prompt, do_sample=False, temperature=None, top_p=None, top_k=None, max_new_tokens=tokens
        )
        hidden = self._model(ids, output_hidden_states=True, logits_to_keep=1).hidden_states[-1]
        return Answer(ids[0], hidden[0], prompt.shape[1])


def _list(path: Path, language: str, vocab_size: int) -> tuple[Tensor, int]:
    """The ids of a list, and how many own tokens its file asks for."""
    from fastmtp_sglang.vocabulary.draft_vocabulary import DraftVocabulary

    loaded = DraftVocabulary.load(path, vocab_size=vocab_size, tokenizer_fingerprint=None)
    if language not in loaded.ids:
        raise FastMTPError(
            f"--language {language}: {path} has lists for {', '.join(loaded.ids)}. Name one."
        )
    return loaded.ids[language], loaded.own_tokens


if __name__ == "__main__":
    typer.run(main)

"""A head is trained over the rows that it will draft from: the list of each text's language.

Serving scores a request's drafts over its own list, so that nothing outside of it competes. Over
all lists joined a label of a multilingual target costs twice as many products or more (seven lists
of 16,384 ids of Gemma 3 270M are 30,422 rows, where 900,000 tokens were counted), for the sake of
tokens that are never weighed against each other.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from fastmtp_sglang.training.loss import OutputLayer
from fastmtp_sglang.training.packing import Document
from fastmtp_sglang.vocabulary.draft_vocabulary import DraftVocabulary
from fastmtp_sglang.vocabulary.languages import languages_of_text


@dataclass(frozen=True)
class OwnLists:
    """Output layers, one for each list of a draft vocabulary and one for all of them joined.

    The last one is for text that no list is for, which serving drafts from the full vocabulary.

    Attributes:
        layers: of each list, in the order of the vocabulary's languages, then of all.
        table: int64 [languages that are detected + 1], the layer of each; the last: undecided.
        token_scripts: int8 [V].
        contained: bool [layers, V], whether a layer scores a token; on the CPU.
    """

    layers: tuple[OutputLayer, ...]
    table: torch.Tensor
    token_scripts: torch.Tensor
    contained: torch.Tensor

    @classmethod
    def of(cls, weight: torch.Tensor, vocabulary: DraftVocabulary) -> OwnLists:
        """Rows of an output layer [V, D] by the lists of a vocabulary."""
        lists = [*vocabulary.ids.values(), all_ids(vocabulary)]
        layers = tuple(OutputLayer.restricted(weight, ids.to(weight.device)) for ids in lists)
        every_id = torch.arange(len(weight), device=weight.device)
        contained = torch.stack([layer.to_local(every_id).cpu() >= 0 for layer in layers])
        table = vocabulary.routing_table()
        table = torch.where(table < 0, len(layers) - 1, table)
        return cls(layers, table, vocabulary.token_scripts, contained)

    @property
    def device(self) -> torch.device:
        """Where the rows are."""
        return self.layers[0].device

    def __str__(self) -> str:
        sizes = ", ".join(f"{len(layer.weight):,}" for layer in self.layers[:-1])
        return f"{len(self.layers) - 1} lists of {sizes} ids"

    def with_lists(self, document: Document) -> Document:
        """Say for each token which list it is drafted from, as the router decides it."""
        languages = languages_of_text(self.token_scripts, document.input_ids)
        return replace(document, lists=self.table[languages])

    def to_train(self, document: Document) -> Document:
        """Also, do not count what its list cannot score."""
        document = self.with_lists(document)
        scored = self.contained[document.lists, document.input_ids]
        return replace(document, counted=document.counted & scored)

    def parts(self, batch: dict[str, torch.Tensor]) -> Iterator[tuple[OutputLayer, torch.Tensor]]:
        """Each list that a packed batch has labels of, and which they are: int64 [L']."""
        lists = batch["label_lists"]
        # Without any label still one, which gives every parameter a gradient of zero.
        for index in lists.unique().tolist() or [0]:
            yield self.layers[index], (lists == index).nonzero().squeeze(1)

    def argmax(self, states: torch.Tensor, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Token ids int64 [N] that score highest on each anchor's list, for states [N, D]."""
        lists = batch["anchor_lists"]
        best = torch.empty_like(lists)
        for index in lists.unique().tolist():
            here = lists == index
            best[here] = self.layers[index].argmax(states[here], batch)
        return best


def all_ids(vocabulary: DraftVocabulary) -> torch.Tensor:
    """The ids of all lists, int64, sorted."""
    return torch.cat(list(vocabulary.ids.values())).unique()

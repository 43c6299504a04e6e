"""Networks with the interfaces of other libraries, small and made here."""

from collections import OrderedDict
from dataclasses import dataclass

import torch
from torch import nn

WORDS, LENGTH = 50, 9


class ModelOutput(OrderedDict):
    """As that of transformers: an ordered dictionary with attributes."""

    def __getattr__(self, name):
        return self[name]


class Encoder(nn.Module):
    """Reads tokens with a mask, as a model of transformers does."""

    def __init__(self, outputs="hidden", classes=5):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.embed = nn.Embedding(WORDS, 16)
            self.one, self.two = nn.Linear(16, 32), nn.Linear(32, 16)
            if outputs != "hidden":
                self.head = nn.Linear(16, classes)
        self.outputs = outputs

    def forward(self, input_ids, attention_mask=None, labels=None):
        assert labels is None
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        hidden = self.embed(input_ids)
        hidden = hidden + self.two(torch.relu(self.one(hidden)))
        weight = attention_mask[..., None].to(hidden.dtype)
        pooled = (hidden * weight).sum(1) / weight.sum(1)
        if self.outputs == "hidden":
            return ModelOutput(last_hidden_state=hidden, pooler_output=pooled)
        logits = self.head(pooled)
        if self.outputs == "logits":
            return ModelOutput(loss=None, logits=logits, hidden_states=(hidden,))
        if self.outputs == "tokens":
            return {"logits": self.head(hidden)}
        if self.outputs == "tuple":
            return hidden, (pooled, logits)
        if self.outputs == "dataclass":
            return Outputs(logits, hidden)
        return logits


@dataclass
class Outputs:
    logits: torch.Tensor
    hidden: torch.Tensor


@dataclass
class Pair:
    left: torch.Tensor
    right: torch.Tensor


class TwoInputs(nn.Module):
    """Takes two tensors, as arguments or as one dataclass."""

    def __init__(self, whole=False):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.a, self.b = nn.Linear(8, 8), nn.Linear(6, 8)
            self.head = nn.Linear(8, 4)
        self.whole = whole

    def forward(self, left, right=None):
        if self.whole:
            left, right = left.left, left.right
        return self.head(torch.tanh(self.a(left) + self.b(right)))


def sentences(count, length=LENGTH, seed=0):
    """Token ids and masks, padded with zeros to one length."""
    rng = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, WORDS, (count, length), generator=rng)
    sizes = torch.randint(2, length + 1, (count,), generator=rng)
    mask = (torch.arange(length)[None] < sizes[:, None]).long()
    return {"input_ids": ids * mask, "attention_mask": mask}

"""SGLang's logits processor as a draft head takes it over, without a server around it."""

import torch
from sglang.srt.layers.logits_processor import LogitsProcessor


def processor(**fields) -> LogitsProcessor:
    """One of a model with this `logit_scale` and `softcap`, on a single rank."""
    made = LogitsProcessor.__new__(LogitsProcessor)
    torch.nn.Module.__init__(made)
    made.logit_scale = fields.get("logit_scale")
    made.final_logit_softcapping = fields.get("softcap")
    made.do_tensor_parallel_all_gather = False
    return made

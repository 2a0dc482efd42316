"""What a batch of pairs brings beside tokens and labels, float64 each. Documents of a row alternate: 2k is the chosen
answer with its prompt, 2k + 1 the rejected one; padding at a row's end is a document of its own, after all pairs.
"""

import torch

from megatron_lite.model.sequences import Column

PAIRED = Column("paired", "document", torch.float64)  # 1 for both documents of a pair, 0 where there is none
# By length: a search for padding would find an end of turn that has the same token.
LAST = Column("last", "token", torch.float64)  # 1 at the last token of each document of a pair, else 0
MARGIN = Column("margin", "document", torch.float64)  # by how much the chosen is better, at both; 0 unless a row says
REFERENCE = Column("reference", "document", torch.float64)  # the reference's log p, summed over counted labels

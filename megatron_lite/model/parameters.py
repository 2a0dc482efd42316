"""The parameter specification: every weight of the model, its Hugging Face name, and each tensor rank's part of it.

    weight       local shape                      packs                             split
    embed        [V / tp, H]                      embed_tokens                      rows
    qkv          [(heads + 2 kv) / tp * D, H]     q, k, v by key-value head         rows
    o            [H, heads / tp * D]              o_proj                            columns
    gate_up      [2 F / tp, H]                    gate rows, then up rows           rows
    down         [H, F / tp]                      down_proj                         columns
    norms        [H]                                                                replicated
    q, k_norm    [D]                              with model.qk_norm                replicated, used inside regions
    lm_head      [V / tp, H]                      lm_head, or embed_tokens if tied  rows
    score        [1, H]                           score, of a scalar head           replicated
    q_proj.lora_A   [r, H]                        so also k, v, gate, up            replicated
    q_proj.lora_B   [heads / tp * D, r]           likewise                          rows
    o_proj.lora_A   [r, heads / tp * D]           so also down, of F / tp columns   columns
    o_proj.lora_B   [H, r]                        likewise                          replicated

V is padded to a multiple of 16 tp; padded rows belong to no logical parameter. Initial deviations: `initializer_range`,
and for o and down that divided by sqrt(2 * layers), as in GPT-2 (Radford et al. 2019, section 2.3). Norms begin at one.
An adapter's B begins at zero (Hu et al. 2021, arXiv 2106.09685, section 4.1), its A with deviation 1 / sqrt(3 columns),
that of the uniform numbers below 1 / sqrt(columns) which PEFT begins with. A scalar head begins with
1 / (columns + 1), as OpenRLHF's: scores are small before they mean anything.
"""

from dataclasses import dataclass
from math import sqrt

from megatron_lite.config import LoraConfig, ModelConfig
from megatron_lite.config.rounding import vocabulary_share
from megatron_lite.parallel.layout import Local, Logical, Packed

LEAVING = ("o_proj", "down_proj")  # whose products leave a tensor-parallel region; those of the others enter one


def is_adapter(name: str) -> bool:
    """Whether a parameter is one of an adapter's."""
    return ".lora_" in name


@dataclass(frozen=True)
class Specification:
    """The weights of the model as tensor rank `rank` of `tensor` holds them."""

    model: ModelConfig
    deviation: float  # train.initializer_range
    tensor: int
    rank: int
    lora: LoraConfig | None = None

    def parameters(self) -> dict[str, Logical]:
        """Every parameter of the model by its name, in order."""
        layers = range(self.model.num_hidden_layers)
        blocks = [self.block(layer) + self.adapter(layer) for layer in layers]
        units = [self.embedding(), *blocks, self.head(beside_embedding=False)]
        packs = (packed for unit in units for local in unit for packed in local.packs)
        return {packed.logical.name: packed.logical for packed in packs}

    def embedding(self) -> list[Local]:
        return [self._vocabulary("embed", self._embed_tokens)]

    def head(self, beside_embedding: bool) -> list[Local]:
        """The head's own weights. A tied head uses the embedding's on its stage, elsewhere a copy it does not own."""
        norm = self._norm("norm", "model.norm.weight")
        if self.model.head == "scalar":
            columns = self.model.hidden_size
            score = Logical("score.weight", (1, columns), 1 / (columns + 1), True)
            return [self._whole("score", score), norm]
        if not self.model.tie_word_embeddings:
            size = (self.model.vocab_size, self.model.hidden_size)
            return [self._vocabulary("lm_head", Logical("lm_head.weight", size, self.deviation, True)), norm]
        if beside_embedding:
            return [norm]
        return [self._vocabulary("embed", self._embed_tokens, owner=False), norm]

    def block(self, layer: int) -> list[Local]:
        prefix, matrices = f"model.layers.{layer}", self._matrices(layer)
        head_norms = [
            self._norm(n, f"{prefix}.self_attn.{n}.weight", self.model.head_dim, inside=True)
            for n in (("q_norm", "k_norm") if self.model.qk_norm else ())
        ]
        return [
            self._packed_qkv(*(matrices[f"{n}_proj"] for n in "qkv")),
            self._columns("o", matrices["o_proj"]),
            self._packed_rows("gate_up", [matrices[f"{n}_proj"] for n in ("gate", "up")]),
            self._columns("down", matrices["down_proj"]),
            self._norm("attention_norm", f"{prefix}.input_layernorm.weight"),
            self._norm("mlp_norm", f"{prefix}.post_attention_layernorm.weight"),
            *head_norms,
        ]

    def adapter(self, layer: int) -> list[Local]:
        """A and B of each target of `lora` in a block."""
        found: list[Local] = []
        if self.lora is None:
            return found
        for target in self.lora.targets:
            logical, rank = self._matrices(layer)[target], self.lora.rank
            (rows, columns), prefix = logical.shape, logical.name.removesuffix("weight")
            a = Logical(f"{prefix}lora_A.weight", (rank, columns), 1 / sqrt(3 * columns), True)
            b = Logical(f"{prefix}lora_B.weight", (rows, rank), 0.0, True)
            names = f"{target}.lora_A", f"{target}.lora_B"
            if target in LEAVING:
                found += [self._columns(names[0], a), self._whole(names[1], b)]
            else:
                found += [self._whole(names[0], a), self._packed_rows(names[1], [b])]
        return found

    def _matrices(self, layer: int) -> dict[str, Logical]:
        """Of a block, by Hugging Face's names."""
        model = self.model
        hidden, ffn, heads = model.hidden_size, model.intermediate_size, model.num_attention_heads * model.head_dim
        keys = model.num_key_value_heads * model.head_dim
        residual = self.deviation / sqrt(2 * model.num_hidden_layers)

        def matrix(name: str, rows: int, columns: int, deviation: float = self.deviation) -> Logical:
            return Logical(f"model.layers.{layer}.{name}.weight", (rows, columns), deviation, True)

        return {
            "q_proj": matrix("self_attn.q_proj", heads, hidden),
            "k_proj": matrix("self_attn.k_proj", keys, hidden),
            "v_proj": matrix("self_attn.v_proj", keys, hidden),
            "o_proj": matrix("self_attn.o_proj", hidden, heads, residual),
            "gate_proj": matrix("mlp.gate_proj", ffn, hidden),
            "up_proj": matrix("mlp.up_proj", ffn, hidden),
            "down_proj": matrix("mlp.down_proj", hidden, ffn, residual),
        }

    @property
    def _embed_tokens(self) -> Logical:
        size = (self.model.vocab_size, self.model.hidden_size)
        return Logical("model.embed_tokens.weight", size, self.deviation, True)

    def _packed_qkv(self, q: Logical, k: Logical, v: Logical) -> Local:
        """For each local key-value head its query heads, the key head, the value head."""
        groups = self.model.num_key_value_heads // self.tensor
        packs, row = [], 0
        for group in range(self.rank * groups, (self.rank + 1) * groups):
            for logical in (q, k, v):
                rows = logical.shape[0] // self.model.num_key_value_heads
                packs.append(Packed(logical, row, rows, (group * rows, 0)))
                row += rows
        return Local("qkv", (row, q.shape[1]), tuple(packs))

    def _packed_rows(self, name: str, logicals: list[Logical]) -> Local:
        """This rank's rows of each logical parameter, one parameter after the other."""
        packs, row = [], 0
        for logical in logicals:
            rows = logical.shape[0] // self.tensor
            packs.append(Packed(logical, row, rows, (self.rank * rows, 0)))
            row += rows
        return Local(name, (row, logicals[0].shape[1]), tuple(packs))

    def _columns(self, name: str, logical: Logical) -> Local:
        rows, columns = logical.shape[0], logical.shape[1] // self.tensor
        return Local(name, (rows, columns), (Packed(logical, 0, rows, (0, self.rank * columns)),))

    def _whole(self, name: str, logical: Logical) -> Local:
        return Local(name, logical.shape, (Packed(logical, 0, logical.shape[0], (0, 0)),), replicated=True)

    def _vocabulary(self, name: str, logical: Logical, owner: bool = True) -> Local:
        rows = vocabulary_share(logical.shape[0], self.tensor)
        first = self.rank * rows
        real = min(max(logical.shape[0] - first, 0), rows)
        # A rank of padding alone keeps an empty one, so that the weight still knows its logical parameter.
        return Local(name, (rows, logical.shape[1]), (Packed(logical, 0, real, (first, 0)),), owner=owner)

    def _norm(self, name: str, logical_name: str, size: int | None = None, inside: bool = False) -> Local:
        size = size or self.model.hidden_size
        logical = Logical(logical_name, (size,), None, False)
        return Local(name, logical.shape, (Packed(logical, 0, size, (0,)),), replicated=True, inside=inside)

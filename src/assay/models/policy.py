"""The policy: a causal language model that scores and is sampled from; the reference is one that never changes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import Parameter
from transformers import PreTrainedModel

from assay.algorithms.logprobs import token_logprobs
from assay.data.pack import TokenBatch
from assay.data.render import Renderer
from assay.errors import ModelError
from assay.models.backbone import Backbone
from assay.models.config import LoraConfig, Template
from assay.models.load import Tokenizer, context_length, fit_vocabulary, load_causal, load_tokenizer, saving
from assay.models.locate import locate, weights_hash


@dataclass(frozen=True, slots=True)
class ResponseLogprobs:
    """Per response token, [B, R], R the most labels of any row; right-padded with zeros."""

    logprobs_BR: Tensor
    entropy_BR: Tensor | None
    mask_BR: Tensor


class Policy:
    """p(token | what is before it), from one backbone with one adapter or none."""

    def __init__(
        self, backbone: Backbone, tokenizer: Tokenizer, *, adapter: str | None = None, source: str = ""
    ) -> None:
        self.backbone = backbone
        self.tokenizer = tokenizer
        self.adapter = adapter
        self.source = source
        """Folder of the model that the adapter stands on."""

    @property
    def model(self) -> PreTrainedModel:
        return self.backbone.model

    @property
    def pad_id(self) -> int:
        return self.tokenizer.pad_token_id

    @property
    def context(self) -> int:
        """The longest row, prompt and response together, that the model has positions for."""
        return context_length(self.model)

    @property
    def identity(self) -> str:
        """What decides the probabilities of the model that the adapter stands on: equal where they are, to the bit."""
        folder, backbone = Path(self.source), self.backbone
        facts = (weights_hash(folder), (folder / "config.json").read_text(encoding="utf-8"), len(self.tokenizer))
        return repr((*facts, torch.device(backbone.device).type, self.model.dtype, backbone.computes_in))

    @property
    def head(self) -> tuple[Tensor, Tensor | None]:
        """Weight [V, D] and bias [V] of the language-model head."""
        layer = self.model.get_output_embeddings()
        return layer.weight, getattr(layer, "bias", None)  # pyright: ignore[reportOptionalMemberAccess]

    def renderer(self, template: Template, max_length: int) -> Renderer:
        """How dialogues become its tokens; no row is longer than the model has positions for."""
        return Renderer(self.tokenizer, template=template, max_length=min(max_length, self.context))

    def logprobs(
        self, batch: TokenBatch, *, temperature: float = 1.0, entropy: bool = False, alike: bool = False
    ) -> ResponseLogprobs:
        """log p of every label under softmax(logits / temperature), and the entropy there if asked for.

        `alike`: the loss will be their sum, be it times a number, for which the head does less (`token_logprobs`).

        The head runs at label positions only, in fp32. Shapes: [B, T] batch → [B, R].
        """
        labels = batch.labels
        hidden_ND = self.backbone.states(batch, labels.before_N, self.adapter)
        weight, bias = self.head
        logprobs_N, entropy_N = token_logprobs(
            hidden_ND, weight, labels.ids_N, bias=bias, temperature=temperature, with_entropy=entropy, alike=alike
        )
        spread = None if entropy_N is None else labels.spread(entropy_N)
        return ResponseLogprobs(labels.spread(logprobs_N), spread, labels.mask_BR)

    def parameters_trained(self) -> dict[str, Parameter]:
        """What an optimizer changes, by name: the adapter's weights, or all of them."""
        if self.adapter:
            return self.backbone.adapters.parameters(self.adapter)
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    def train(self) -> None:
        self.model.train()

    def eval(self) -> None:
        self.model.eval()

    def save(self, folder: Path) -> None:
        """A plain transformers folder with the adapter merged in, the tokenizer, and the adapter itself in adapter/."""
        adapters = self.backbone.adapters
        with saving(folder):
            self.model.save_pretrained(folder, state_dict=adapters.merged(self.adapter))
            self.tokenizer.padding_side = "left"  # transformers goes on from the last column of a batch
            self.tokenizer.init_kwargs["padding_side"] = "left"  # what is no key here is not saved
            self.tokenizer.save_pretrained(folder)
            if self.adapter:
                adapters.save(self.adapter, folder / "adapter", base=self.source)


def load_policy(
    path: str | Path,
    *,
    lora: LoraConfig | None = None,
    trainable: bool = True,
    device: str = "cpu",
    gradient_checkpointing: bool = False,
    seed: int = 0,
) -> Policy:
    """A policy from a model folder, a hub id, `package:NAME` or `embedded`.

    With `lora`, a new adapter is what trains; without, all weights do; with `trainable=False`, nothing.
    """
    folder = locate(path)
    tokenizer = load_tokenizer(folder)
    model = load_causal(folder, device=device, trained=trainable and lora is None)
    fit_vocabulary(model, tokenizer)
    backbone = Backbone(model, device=device, gradient_checkpointing=gradient_checkpointing)
    check_head(backbone)
    if not trainable:
        backbone.freeze()
    if lora is None or not trainable:
        return Policy(backbone, tokenizer, source=str(folder))
    backbone.adapters.add("policy", lora, seed=seed, dropout=True)
    return Policy(backbone, tokenizer, adapter="policy", source=str(folder))


@torch.no_grad()
def check_head(backbone: Backbone) -> None:
    """Make sure that logits are hidden·Wᵀ + b: some architectures cap or scale them after the head."""
    model = backbone.model
    ids = torch.arange(2, device=backbone.device)[None]
    told = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "use_cache": False}
    with backbone.autocast():
        expected = model(**told).logits.float()
        hidden = backbone.trunk(**told).last_hidden_state.float()
    layer = model.get_output_embeddings()
    bias = getattr(layer, "bias", None)
    logits = hidden @ layer.weight.float().T + (0 if bias is None else bias.float())  # pyright: ignore
    if not expected.isfinite().all():
        return  # nothing can be held against such weights but that they are what they are
    if not torch.allclose(logits, expected, rtol=0.05, atol=0.05 * float(expected.std())):
        raise ModelError(
            f"{model.config.model_type} changes its logits after the head (a cap or a scale), which is not supported",
            hint="use a model whose logits are a linear function of its last hidden state",
        )

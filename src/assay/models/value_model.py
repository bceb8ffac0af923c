"""The value model: what total reward is still to come, at every token of a response."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import Parameter

from assay.data.pack import TokenBatch
from assay.models.backbone import Backbone, drop_dropout
from assay.models.heads import ValueHead
from assay.models.load import fit_vocabulary, load_classifier, load_tokenizer, saving
from assay.models.locate import locate

HEAD = "value_head.safetensors"


class ValueModel:
    """V(state before token t) for every response token t, from one backbone with one adapter or none."""

    def __init__(self, backbone: Backbone, head: ValueHead, *, adapter: str | None = None, source: str = "") -> None:
        self.backbone = backbone
        self.head = head.to(backbone.device)
        self.adapter = adapter
        self.source = source
        """Folder of the model that the adapter stands on."""

    def values(self, batch: TokenBatch) -> Tensor:
        """[B, R], fp32, aligned with `Policy.logprobs`; zero where no response token is."""
        labels = batch.labels
        return labels.spread(self.head(self.backbone.states(batch, labels.before_N, self.adapter)))

    def rescale(self, gain: float, bias: float) -> None:
        """V ← gain·V + bias."""
        self.head.rescale(gain, bias)

    def parameters_trained(self) -> dict[str, Parameter]:
        """What an optimizer changes, by name: the adapter's weights or the trunk's, and the head's."""
        if self.adapter:
            trunk = self.backbone.adapters.parameters(self.adapter)
        else:
            trunk = {f"value.{name}": p for name, p in self.backbone.trunk.named_parameters()}
        return trunk | {f"value_head.{name}": p for name, p in self.head.named_parameters()}

    def save(self, folder: Path) -> None:
        """The head, and either adapter/ or the whole trunk; `load_value_model` reads it."""
        head = {name: p.detach().cpu().clone() for name, p in self.head.named_parameters()}
        with saving(folder):
            if self.adapter:
                self.backbone.adapters.save(self.adapter, folder / "adapter", base=self.source)
            else:
                self.backbone.model.save_pretrained(folder)
            save_file(head, folder / HEAD, metadata={"format": "pt"})


def load_value_model(path: str | Path, *, base: str | Path | None = None, device: str = "cpu") -> ValueModel:
    """A saved value model; one that is an adapter needs the model it stands on as `base`."""
    folder = Path(path)
    source = locate(base) if base is not None else folder
    model, _ = load_classifier(source, device=device, trained=base is None, seed=0)
    if base is not None:
        fit_vocabulary(model, load_tokenizer(source))
    drop_dropout(model)
    backbone = Backbone(model, device=device)
    adapter = None
    if base is not None:
        adapter = "value"
        backbone.adapters.load(adapter, folder / "adapter")
    head = ValueHead(model.config.hidden_size)
    head.load_state_dict(load_file(folder / HEAD))
    return ValueModel(backbone, head, adapter=adapter, source=str(source))

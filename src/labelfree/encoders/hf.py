"""BERT-like networks of Hugging Face Transformers, as encoders: their weights go back to the library unchanged."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from labelfree.data.batch import Batch
from labelfree.encoders.base import Encoder, Features, Hide, check_weights, mean_of
from labelfree.encoders.trunk import Dropout, by_windows
from labelfree.errors import LabelfreeError, Refusal, nearest
from labelfree.modalities.base import Modality
from labelfree.modalities.text.tokens import SPECIAL, Vocabulary
from labelfree.needs import Need

#: Smaller siblings of BERT (Turc et al. 2019, "Well-Read Students Learn Better", table 1).
PRESETS: Mapping[str, Mapping[str, Any]] = {
    name: {
        "model_type": "bert",
        "num_hidden_layers": layers,
        "hidden_size": width,
        "num_attention_heads": width // 64,
        "intermediate_size": 4 * width,
    }
    for name, layers, width in (
        ("bert-tiny", 2, 128),
        ("bert-mini", 4, 256),
        ("bert-small", 4, 512),
        ("bert-medium", 8, 512),
    )
}
#: Kinds of network that never see the future.
CAUSAL = frozenset({"gpt2", "gpt_neo", "gpt_neox", "opt", "llama", "mistral", "qwen2", "qwen3"})
#: Names under which configurations keep rates of dropout that is drawn by torch, not by us.
ATTENTION_DROPOUT = ("attention_probs_dropout_prob", "attention_dropout", "attn_pdrop")


def library() -> Any:
    """The `transformers` package. Raises LabelfreeError where it is not installed."""
    try:
        import transformers
    except ImportError:
        raise LabelfreeError(
            "Encoders 'hf:…' need the package 'transformers', which is not installed.",
            "Install it: pip install transformers.",
        ) from None
    return transformers


class Source:
    """Where the randomness of the forward pass in progress is found."""

    drop: Dropout | None = None


class DrawnDropout(nn.Module):
    """Stands where the library has a dropout, and takes its randomness from the samples."""

    p = 0.0  # what the library's attention reads, and hands to torch's generator

    def __init__(self, source: Source, place: str, rate: float) -> None:
        super().__init__()
        self._source, self._place, self._rate = source, place, rate

    def forward(self, x: Tensor) -> Tensor:
        drop = self._source.drop
        if drop is None or not self.training or self._rate == 0 or x.ndim != 3:
            return x
        return Dropout(drop.draw, self._rate, drop.rows, drop.name)(self._place, x)


class HF(Encoder):
    """`hf:bert`, `hf:bert-mini`, `hf:roberta`, … built anew, or `hf:/path/to/folder` with its weights. Never a network
    access.

    `pooled` is the mean of the valid tokens. Texts longer than `window` tokens are read window by window. The library's
    pooler, where a network has one, is kept but not used and not trained.

    Args:
        model: a network of transformers, without a head.
        mask: id that stands for a hidden token; None where the vocabulary of the network has none.
        window: tokens that attend to one another.
    """

    name = "hf"
    modalities = frozenset({"text"})
    hides: tuple[Hide, ...] = ("replace",)

    def __init__(self, model: Any, mask: int | None, window: int) -> None:
        super().__init__()
        self.model: Any = model
        self.mask_id, self.window = mask, window
        self.dim = int(model.config.hidden_size)
        self.can = frozenset({Need.TOKENS})
        self.can |= {Need.MASK} if mask is not None else set()
        self.can |= {Need.CAUSAL} if model.config.model_type in CAUSAL else set()
        self.spec = "hf:" + json.dumps({**json.loads(model.config.to_json_string()), "window": window})
        self._random = Source()
        for place, parent in list(model.named_modules()):
            for key, child in parent.named_children():
                if isinstance(child, nn.Dropout):
                    setattr(parent, key, DrawnDropout(self._random, f"{place}.{key}", child.p))
        pooler = getattr(model, "pooler", None)
        if pooler is not None:
            pooler.requires_grad_(False)

    @classmethod
    def build(cls, variant: str, modality: Modality, causal: bool = False) -> Encoder:
        lib, words = library(), modality.vocabulary
        length = int(modality.settings.length)
        folder = Path(variant).expanduser() if _is_folder(variant) else None
        given = _config_of(folder) if folder else _named(variant)
        kind, window = str(given["model_type"]), given.pop("window", None)
        if causal and kind not in CAUSAL:
            raise Refusal(f"'hf:{variant}' cannot be kept from seeing the future.", "Use transformer:nano or hf:gpt2.")
        with _quiet():
            if folder and _weights(folder):
                _check_vocabulary(folder, int(given.get("vocab_size", words.size)), modality)
                calm = _no_attention_dropout(kind)
                model = lib.AutoModel.from_pretrained(folder, local_files_only=True, dtype=torch.float32, **calm)
                window = window or _reach(model.config, length)
            else:
                config = _config(given, words) if window is None else lib.AutoConfig.for_model(**given)
                model = lib.AutoModel.from_config(config)
                window = window or min(length, _reach(config, length))
        return cls(model, words.mask if words.mask < model.config.vocab_size else None, window)

    @classmethod
    def variants(cls) -> list[str]:
        return [*PRESETS, "bert", "distilbert", "roberta", "electra", "gpt2"]

    @classmethod
    def options(cls, variant: str) -> Mapping[str, Any]:
        """A folder's own tokenizer."""
        folder = Path(variant).expanduser()
        has = _is_folder(variant) and (folder / "tokenizer.json").exists()
        return {"tokenizer": str(folder / "tokenizer.json")} if has else {}

    @classmethod
    def lasting(cls, variant: str) -> str:
        folder = Path(variant).expanduser()
        return str(folder.resolve()) if _is_folder(variant) and folder.is_dir() else variant

    def forward(self, batch: Batch, mask: Tensor | None = None, kept: Tensor | None = None) -> Features:
        ids = batch.data
        valid = None
        if batch.lengths is not None:
            valid = torch.arange(ids.shape[1], device=ids.device) < batch.lengths[:, None]
        if mask is not None and self.mask_id is not None:
            ids = ids.masked_fill(mask, self.mask_id)
        # ids that our vocabulary adds (padding, where a network knows none) are never attended to
        ids = ids.masked_fill(ids >= self.model.config.vocab_size, 0)
        drop = Dropout(batch.draw, 0.0, name="hf") if self.training and batch.draw is not None else None

        def run(ids: Tensor, valid: Tensor | None, rows: Tensor | None) -> Tensor:
            self._random.drop = None if drop is None else Dropout(drop.draw, 0.0, rows, drop.name)
            seen = None if valid is None else (valid | ~valid.any(dim=1, keepdim=True)).long()
            found: Tensor = self.model(input_ids=ids, attention_mask=seen).last_hidden_state
            self._random.drop = None
            return found

        tokens = by_windows(run, ids, valid, self.window, self.training and ids.is_cuda)
        local = self.model.get_input_embeddings()(ids)
        return Features(mean_of(tokens, valid), tokens, valid, local)

    def token_table(self) -> nn.Parameter | None:
        weight: nn.Parameter = self.model.get_input_embeddings().weight
        return weight

    def layers(self) -> list[list[nn.Parameter]]:
        stacks = [module for module in self.model.modules() if isinstance(module, nn.ModuleList)]
        blocks = [list(block.parameters()) for block in max(stacks, key=len)]
        inside = {id(p) for block in blocks for p in block}
        names = dict(self.model.named_parameters())
        rest = [(name, p) for name, p in names.items() if id(p) not in inside]
        first = [p for name, p in rest if "embed" in name or name.startswith(("wte", "wpe"))]
        last = [p for _, p in rest if all(p is not other for other in first)]
        return [group for group in (first, *blocks, last) if group]

    def library_state(self) -> dict[str, Any]:
        return dict(self.model.state_dict())

    def load_library_state(self, state: dict[str, Any], where: str = "the file") -> None:
        own, prefix = self.model.state_dict(), self.model.base_model_prefix + "."
        given = {name.removeprefix(prefix): value for name, value in state.items()}
        found = {name: given[name] for name in own if name in given}
        wanted = {name: value for name, value in own.items() if name in found or not name.startswith("pooler.")}
        check_weights(wanted, found, where, "Use the tokenizer and the size that they were made with.")
        self.model.load_state_dict({**own, **found})


def _is_folder(variant: str) -> bool:
    return not variant.startswith("{") and ("/" in variant or "\\" in variant or Path(variant).is_dir())


def _weights(folder: Path) -> bool:
    return any(folder.glob("*.safetensors")) or any(folder.glob("pytorch_model*.bin"))


def _config_of(folder: Path) -> dict[str, Any]:
    file = folder / "config.json"
    if not file.is_file():
        raise LabelfreeError(f"There is no config.json in '{folder}'.", "Save the model there with save_pretrained().")
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        return {**config, "model_type": config["model_type"]}
    except (ValueError, KeyError, TypeError) as error:
        raise LabelfreeError(f"'{file}' is no configuration of a model: {error!r}.", "Save it anew.") from None


def _named(variant: str) -> dict[str, Any]:
    """The configuration that a name stands for; a configuration itself (as runs keep it) begins with a brace."""
    if variant.startswith("{"):
        return dict(json.loads(variant))
    if variant in PRESETS:
        return dict(PRESETS[variant])
    known = library().models.auto.configuration_auto.CONFIG_MAPPING_NAMES
    if variant not in known:
        raise LabelfreeError(
            f"transformers has no kind of network '{variant}'.",
            nearest(variant, [*HF.variants(), *known]) or f"There are {', '.join(HF.variants())}, or a local folder.",
        )
    return {"model_type": variant}


def _no_attention_dropout(kind: str) -> dict[str, float]:
    """Attention is not dropped: the library draws it from torch's generator, which no run could repeat."""
    default = library().AutoConfig.for_model(kind)
    return {key: 0.0 for key in ATTENTION_DROPOUT if hasattr(default, key)}


def _config(given: Mapping[str, Any], words: Any) -> Any:
    """A configuration for a network built anew, with the size and special tokens of the modality's vocabulary."""
    kind = str(given["model_type"])
    special = {"pad_token_id": words.pad, "bos_token_id": words.cls, "eos_token_id": words.sep}
    config = library().AutoConfig.for_model(
        **{**given, **special, "vocab_size": words.size, **_no_attention_dropout(kind)}
    )
    if getattr(config, "is_encoder_decoder", False) or not hasattr(config, "hidden_size"):
        raise LabelfreeError(f"'{kind}' is no encoder of text like BERT.", "Use hf:bert, hf:roberta or hf:distilbert.")
    return config


def _reach(config: Any, otherwise: int) -> int:
    """Tokens that a network has positions for."""
    reach = int(getattr(config, "max_position_embeddings", otherwise))
    # RoBERTa counts positions from after its padding id
    after_padding = config.model_type in ("roberta", "xlm-roberta", "camembert")
    return reach - 1 - int(config.pad_token_id or 0) if after_padding else reach


def _check_vocabulary(folder: Path, known: int, modality: Modality) -> None:
    """Raises Refusal where ids would mean something else than the network of `known` tokens has learnt."""
    words, spare = modality.vocabulary, len(SPECIAL)
    if (folder / "tokenizer.json").exists():
        fits = Vocabulary.read(folder).state() == words.state()
        remedy = f"Set tokenizer={folder / 'tokenizer.json'}."
    else:
        fits = modality.settings.tokenizer is not None and words.size - spare <= known
        remedy = "Put its tokenizer.json into the folder, or name one with tokenizer=…."
    if not fits:
        raise Refusal(
            f"The network in '{folder}' was trained with a vocabulary of {known} tokens, and the data is read with "
            f"another, of {words.size}.",
            remedy,
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """The library reports progress and heads that were left out; nobody here asked."""
    logging = library().utils.logging
    before, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(before)
        if bar:
            logging.enable_progress_bar()

"""Networks of timm, as encoders: their weights go back to timm unchanged."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from labelfree.data.batch import Batch
from labelfree.encoders.base import Encoder, Features, Over, check_weights, normalised
from labelfree.encoders.block import initialise, sinusoids
from labelfree.encoders.transformer import SIZES
from labelfree.errors import LabelfreeError, Refusal, nearest
from labelfree.losses.masked import take
from labelfree.losses.precision import full_precision
from labelfree.modalities.base import Modality, PictureForm
from labelfree.modalities.image.views import resampling
from labelfree.needs import Need

#: Pictures up to this side get the small-image stem.
SMALL = 64
WORTH_LISTING = ["resnet10t", "resnet18", "resnet34", "resnet50", "regnety_004", "convnext_atto", "convnext_nano"]
WORTH_LISTING += ["efficientnet_b0", "mobilenetv3_small_100", "vit_tiny_patch16_224", "vit_small_patch16_224"]


def library() -> Any:
    """timm. It brings torchvision and torch's compiler along, which take as long as all else that a command imports."""
    import timm

    return timm


def small_stem(network: Any, size: int, stride: int = 0) -> Any:
    """Change a timm network, in place, so that pictures of at most 64 px are not shrunk before they are looked at.

    ResNets: the first convolution becomes 3×3 (of `stride`, or 1 up to 48 px, else 2) and the max-pool goes, as is
    usual on CIFAR; a deep stem keeps its convolutions, with that stride. Other families: the first convolution, where
    it strides and overlaps, gets stride 1. Larger sizes: nothing changes.

    To use a run's weights in timm: `small_stem(timm.create_model(name, num_classes=0, in_chans=C), size, stride)` and
    then `load_state_dict(encoder.library_state())`.
    """
    if size > SMALL:
        return network
    stride = stride or (1 if size <= 48 else 2)
    first = getattr(network, "conv1", None)
    if isinstance(first, nn.Conv2d) and isinstance(getattr(network, "maxpool", None), nn.Module):
        network.conv1 = nn.Conv2d(first.in_channels, first.out_channels, 3, stride, 1, bias=first.bias is not None)
        nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
        network.maxpool = nn.Identity()
    elif isinstance(first, nn.Sequential) and isinstance(getattr(network, "maxpool", None), nn.Module):
        entry: Any = first[0]
        entry.stride = (stride, stride)
        network.maxpool = nn.Identity()
    else:
        stem: Any = next((m for m in network.modules() if isinstance(m, nn.Conv2d)), None)
        if stem is not None and stem.stride > (1, 1) and stem.kernel_size > stem.stride:
            stem.stride = (1, 1)
    return network


class Timm(Encoder):
    """`timm:NAME`: any network of timm's, for pictures and for what can be looked at as pictures.

    Where a sample is several pictures, its tokens are those of all of them, and its pooled feature is their weighted
    mean.

    Convolution nets give a token per place of their last map and the mean as pooled feature, in channels-last memory.
    Vision transformers give a token per patch (class and register tokens left out) and the mean of these, or the class
    token where the data asks for it (`PictureForm.class_token`); they can hide tokens and be causal.

    Args:
        network: a timm model without its classifier.
        modality: gives the pictures; where its tokens are their patches, a vision transformer can hide them.
        causal: tokens see only themselves and those before them.
    """

    name = "timm"
    needs = frozenset({Need.PICTURES})

    def __init__(self, network: Any, modality: Modality, causal: bool = False) -> None:
        super().__init__()
        self.network: Any = network
        self.causal = causal
        self._pictures = modality.pictures
        self.dim = int(network.num_features)
        # Elsewhere the places of a picture are not the tokens that the data is masked, ordered and cropped by.
        self.can = frozenset({Need.TOKENS} if modality.patched else ())
        form = modality.picture_form()
        self.sees_order = form.count == 1
        self._plain_vit = isinstance(network, library().models.VisionTransformer)
        self._class_token = form.class_token
        if self._class_token:
            self._check_class_token()
        grid = getattr(getattr(network, "patch_embed", None), "grid_size", None)
        if self._plain_vit and modality.patched and grid == (form.height // form.patch, form.width // form.patch):
            self.can |= {Need.MASK} | ({Need.CAUSAL} if causal else set())
            self.hides = ("drop", "replace")
            self.mask_token = nn.Parameter(torch.zeros(1, 1, self.dim))
            nn.init.normal_(self.mask_token, std=0.02)
        if not self._plain_vit:
            self.network.to(memory_format=torch.channels_last)

    def _check_class_token(self) -> None:
        remedy = "Set class_token=False, or use transformer:… or timm:vit_…."
        if not self._plain_vit or self.network.cls_token is None:
            raise Refusal("This network has no class token.", remedy)
        if self.causal:
            raise Refusal("The class token of a causal transformer would see no patch.", remedy)

    @classmethod
    def build(cls, variant: str, modality: Modality, causal: bool = False) -> Encoder:
        timm = library()
        if not timm.is_model(variant):
            raise LabelfreeError(
                f"timm {timm.__version__} has no network '{variant}'.",
                nearest(variant, timm.list_models()) or "`timm.list_models()` names them all.",
            )
        form = modality.picture_form()
        create = partial(timm.create_model, variant, pretrained=False, num_classes=0, in_chans=form.channels)
        vit = timm.models.is_model_in_modules(variant, ("vision_transformer", "deit"))
        if vit and (modality.patched or not causal):
            sizes: dict[str, Any] = {
                "img_size": (form.height, form.width),
                "patch_size": form.patch,
                "dynamic_img_size": True,
            }
            return cls(create(**sizes), modality, causal)
        if causal:
            raise Refusal(
                f"'timm:{variant}' cannot be kept from seeing the future.", "Use transformer:tiny or timm:vit_…."
            )
        return cls(_create(create, form), modality)

    @classmethod
    def transformer(cls, size: str, modality: Modality, causal: bool) -> Encoder:
        """timm's Vision Transformer of one of our sizes. It starts as the shared transformer does, so that it sees from
        the first step where a patch lies: positions are sinusoids (learnt from there; those of MAE and I-JEPA stay).
        """
        shape, form = SIZES[size], modality.picture_form()
        network = library().models.VisionTransformer(
            img_size=(form.height, form.width),
            patch_size=form.patch,
            dynamic_img_size=True,
            in_chans=form.channels,
            num_classes=0,
            embed_dim=shape.dim,
            depth=shape.depth,
            num_heads=shape.heads,
            class_token=form.class_token,
            global_pool="token" if form.class_token else "avg",
            fc_norm=False,
        )
        network.blocks.apply(initialise)
        with torch.no_grad():
            places = sinusoids(network.patch_embed.grid_size, shape.dim, network.pos_embed.device)
            network.pos_embed.zero_()[:, network.num_prefix_tokens :] = places
        return cls(network, modality, causal)

    @classmethod
    def variants(cls) -> list[str]:
        return list(WORTH_LISTING)

    def forward(self, batch: Batch, mask: Tensor | None = None, kept: Tensor | None = None) -> Features:
        pictures, weights = self._pictures(batch)
        flat = pictures.flatten(0, 1)
        if weights is None:
            found = self._transform(flat, mask, kept) if self._plain_vit else self._convolve(flat)
            return found if pictures.shape[1] == 1 else _joined(found, len(batch), None)
        # Pictures that a sample does not have would cost time, and enter the statistics of batch normalisation.
        kept = weights.flatten().nonzero().squeeze(1)
        some = self._transform(flat[kept]) if self._plain_vit else self._convolve(flat[kept])
        assert some.tokens is not None
        pooled, tokens = (
            x.new_zeros(len(flat), *x.shape[1:]).index_copy(0, kept, x) for x in (some.pooled, some.tokens)
        )
        return _joined(Features(pooled, tokens), len(batch), weights)

    def _convolve(self, data: Tensor) -> Features:
        out = self.network.forward_features(data.contiguous(memory_format=torch.channels_last))
        if out.ndim == 4:
            nchw = out if out.shape[1] == self.dim else out.permute(0, 3, 1, 2)
            return Features(nchw.mean(dim=(2, 3)), nchw.flatten(2).transpose(1, 2))
        tokens = out[:, getattr(self.network, "num_prefix_tokens", 0) :]
        return Features(tokens.mean(dim=1), tokens)

    def deep(self, batch: Batch, layers: int, over: Over = "features") -> Tensor:
        if not self._plain_vit or self._pictures(batch)[0].shape[1] > 1:
            return super().deep(batch, layers, over)
        found: list[Tensor] = []
        first = self.network.num_prefix_tokens
        watch = [
            block.register_forward_hook(lambda _, __, out: found.append(normalised(out[:, first:], over)))
            for block in self.network.blocks[-layers:]
        ]
        self.forward(batch)  # all rows at once: in parts, blocks would answer for each part
        for hook in watch:
            hook.remove()
        return torch.stack(found).mean(dim=0)

    def _transform(self, data: Tensor, mask: Tensor | None = None, kept: Tensor | None = None) -> Features:
        network = self.network
        x = network.patch_embed(data)
        size = x.shape[1:3]
        x = local = x.flatten(1, 2)
        if mask is not None:
            x = torch.where(mask[..., None], self.mask_token.to(x.dtype), x)
        x = self._placed(x.unflatten(1, size))
        prefix = network.num_prefix_tokens
        if kept is not None:
            x = torch.cat([x[:, :prefix], take(x[:, prefix:], kept)], dim=1)
        x = network.norm_pre(x)
        learning_in_half = data.is_cpu and torch.is_grad_enabled() and torch.is_autocast_enabled("cpu")
        for block in network.blocks:
            if hasattr(block, "attn"):
                block.attn.fused_attn = not learning_in_half  # its backward pass is slow there, see `encoders.block`
            x = block(x, is_causal=True) if self.causal else block(x)
        x = network.norm(x)
        tokens = x[:, prefix:]
        pooled = x[:, 0] if self._class_token else tokens.mean(dim=1)
        return Features(network.fc_norm(pooled), tokens, local=local)

    def _placed(self, x: Tensor) -> Tensor:
        """What `patch_embed` gives, (B, h, w, D) → (B, prefix + h·w, D) with positions, interpolated where pictures are
        of another size (local crops).
        """
        network, grid, size = self.network, self.network.patch_embed.grid_size, x.shape[1:3]
        if not network.dynamic_img_size or network.pos_embed is None or size == grid:
            return network._pos_embed(x)
        first = 0 if network.no_embed_class else network.num_prefix_tokens
        x = x.flatten(1, 2) + interpolated(network.pos_embed[:, first:], grid, size)
        prefix = [token.expand(len(x), -1, -1) for token in (network.cls_token, network.reg_token) if token is not None]
        if prefix:
            front = torch.cat(prefix, dim=1)
            x = torch.cat([front + network.pos_embed[:, :first] if first else front, x], dim=1)
        return network.pos_drop(x)

    def layers(self) -> list[list[nn.Parameter]]:
        if not hasattr(self.network, "group_matcher"):
            return [list(self.parameters())]
        place = library().models.group_parameters(self.network, self.network.group_matcher(coarse=False), reverse=True)
        groups: dict[int, list[nn.Parameter]] = {}
        for name, parameter in self.network.named_parameters():
            groups.setdefault(place[name], []).append(parameter)
        if self.hides:
            groups[min(groups)].append(self.mask_token)
        return [groups[key] for key in sorted(groups)]

    def library_state(self) -> dict[str, Any]:
        """timm's own names and shapes, for `timm.create_model(..., num_classes=0)`; see `small_stem` up to 64 px."""
        return {name: value.contiguous() for name, value in self.network.state_dict().items()}

    def load_library_state(self, state: dict[str, Any], where: str = "the file") -> None:
        classifier = getattr(self.network, "pretrained_cfg", {}).get("classifier") or "fc"
        heads = (classifier,) if isinstance(classifier, str) else tuple(classifier)
        given = {k: v for k, v in state.items() if not k.startswith(tuple(f"{head}." for head in heads))}
        remedy = "Set the size, patch and channels that they were trained with (above 64 px ResNets have timm's stem)."
        check_weights(self.network.state_dict(), given, where, remedy)
        self.network.load_state_dict(given)


@full_precision
def interpolated(positions: Tensor, grid: Sequence[int], size: Sequence[int]) -> Tensor:
    """(1, N, D) positions of a grid → (1, h·w, D) of one of another size, equal to timm's `resample_abs_pos_embed`.

    By matrix products, since on a GPU the gradient of torch's own interpolation differs from run to run.
    """
    start, stop = positions.new_zeros(1), positions.new_ones(1)
    rows, columns = (resampling(start, stop, old, new)[0] for old, new in zip(grid, size, strict=True))
    return torch.einsum("hr,wc,brcd->bhwd", rows, columns, positions.unflatten(1, grid)).flatten(1, 2)


def _joined(of: Features, samples: int, weights: Tensor | None) -> Features:
    """Features of B·K pictures → of B samples: the weighted mean, and the tokens of all pictures that count."""
    assert of.tokens is not None
    pooled, tokens = (x.unflatten(0, (samples, -1)) for x in (of.pooled, of.tokens))
    valid, (places, dim) = None, tokens.shape[2:]
    if weights is None:
        pooled = pooled.mean(dim=1)
    else:
        share = (weights / weights.sum(dim=1, keepdim=True)).to(pooled.dtype)
        pooled = (pooled * share[..., None]).sum(dim=1)
        valid = (weights > 0).repeat_interleave(places, dim=1)
    return Features(pooled, tokens.reshape(samples, -1, dim), valid)


def _create(create: Any, form: PictureForm) -> Any:
    """A network that is no plain ViT, told the picture's size where it asks for it, with the small-image stem."""
    size = min(form.height, form.width)
    small = size <= SMALL
    whole = size if form.height == form.width else (form.height, form.width)
    tries: list[dict[str, Any]] = [{"img_size": whole}, {"patch_size": 1 if size <= 32 else 2} if small else {}, {}]
    for arguments in tries:
        try:
            network = create(**arguments)
        except (TypeError, AssertionError):
            continue
        return small_stem(network, size, form.stem) if hasattr(network, "conv1") or not arguments else network
    raise LabelfreeError(f"timm cannot make this network for pictures of {size} px.", "Choose another size or network.")

"""timm's networks as encoders: what they return, how they hide tokens, and that their weights go back to timm."""

from __future__ import annotations

import numpy as np
import pytest
import timm
import torch

from labelfree import registry
from labelfree.data.batch import Batch
from labelfree.encoders.timm import Timm, small_stem
from labelfree.errors import LabelfreeError, Refusal
from labelfree.losses.masked import visible_positions
from labelfree.modalities.image import Image, ImageSettings
from labelfree.needs import Need


def modality(size: int = 32, channels: int = 3, patch: int | str = "auto") -> Image:
    return Image(ImageSettings(size=size, channels=channels, patch=patch))


def batch(size: int = 32, channels: int = 3, count: int = 2) -> Batch:
    data = torch.randn(count, channels, size, size, generator=torch.Generator().manual_seed(0))
    return Batch(data, torch.arange(count))


def build(name: str, kind: Image, causal: bool = False) -> Timm:
    torch.manual_seed(0)
    encoder = registry.build_encoder(f"timm:{name}", kind, causal)
    assert isinstance(encoder, Timm)
    return encoder.eval()


@pytest.mark.parametrize(
    ("name", "places"),
    [("resnet10t", 16), ("test_resnet", 16), ("test_efficientnet", None), ("test_convnext", None), ("test_vit", 64)],
)
def test_networks_of_every_family_give_tokens_and_their_mean(name: str, places: int | None) -> None:
    encoder = build(name, modality(channels=5))
    features = encoder(batch(channels=5))
    assert features.pooled.shape == (2, encoder.dim)
    assert features.tokens is not None
    assert features.tokens.shape[::2] == (2, encoder.dim)
    assert features.tokens.shape[1] == places or (places is None and features.tokens.shape[1] >= 4)
    torch.testing.assert_close(features.tokens.mean(dim=1), features.pooled, atol=1e-5, rtol=1e-4)
    named = {id(parameter) for parameter in encoder.parameters()}
    layers = encoder.layers()
    assert {id(parameter) for layer in layers for parameter in layer} == named
    assert len(layers) > 2


@pytest.mark.parametrize(("size", "shrunk_by"), [(32, 8), (64, 16), (96, 32)])
def test_small_pictures_get_the_small_stem(size: int, shrunk_by: int) -> None:
    encoder = build("resnet18", modality(size))
    tokens = encoder(batch(size, count=1)).tokens
    assert tokens is not None
    assert tokens.shape[1] == (size // shrunk_by) ** 2
    assert encoder.network.conv1.kernel_size == ((3, 3) if size <= 64 else (7, 7))


@pytest.mark.parametrize(("name", "shrunk_by"), [("resnet18", 16), ("resnet10t", 16)])
def test_the_stem_can_be_told_to_stride(name: str, shrunk_by: int) -> None:
    tokens = build(name, Image(ImageSettings(size=32, stem=2)))(batch(32, count=1)).tokens
    assert tokens is not None
    assert tokens.shape[1] == (32 // shrunk_by) ** 2


@pytest.mark.parametrize(("name", "size"), [("resnet18", 32), ("test_resnet", 32), ("resnet18", 96)])
def test_convolution_weights_go_back_to_timm(name: str, size: int) -> None:
    encoder = build(name, modality(size))
    theirs = small_stem(timm.create_model(name, num_classes=0), size).eval()
    theirs.load_state_dict(encoder.library_state())
    torch.testing.assert_close(theirs(batch(size).data), encoder(batch(size)).pooled, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["transformer:pico", "timm:deit_tiny_patch16_224"])
def test_a_class_token_is_what_the_picture_is_read_off(name: str) -> None:
    kind = Image(ImageSettings(size=32, channels=3, patch=8, class_token=True))
    torch.manual_seed(0)
    encoder = registry.build_encoder(name, kind).eval()
    assert isinstance(encoder, Timm)
    mask = torch.arange(16).expand(2, -1) % 2 == 0
    whole, replaced, dropped = (
        encoder(batch(), *hidden) for hidden in ((), (mask,), (None, visible_positions(mask, 8)))
    )
    theirs = encoder.network.forward_features(batch().data)
    torch.testing.assert_close(whole.pooled, theirs[:, 0])
    torch.testing.assert_close(whole.tokens, theirs[:, 1:])
    assert [found.tokens.shape[1] for found in (replaced, dropped)] == [16, 8]
    assert not torch.allclose(whole.pooled, whole.tokens.mean(dim=1), atol=1e-3)
    # small crops have fewer patches, and the same class token
    assert encoder(batch(16)).pooled.shape == whole.pooled.shape
    fresh = registry.build_encoder(name, kind).eval()
    fresh.load_library_state(encoder.library_state())
    torch.testing.assert_close(fresh(batch()).pooled, whole.pooled)


@pytest.mark.parametrize(("name", "causal"), [("timm:resnet10t", False), ("transformer:pico", True)])
def test_a_class_token_that_cannot_be_is_refused(name: str, causal: bool) -> None:
    kind = Image(ImageSettings(size=32, channels=3, class_token=True))
    with pytest.raises(Refusal, match="class token"):
        registry.build_encoder(name, kind, causal)


@pytest.mark.parametrize("method", ["dino-vit", "ibot-vit", "dinov2"])
def test_recipes_whose_papers_have_a_class_token_ask_for_it(method: str) -> None:
    _, recipe = registry.method(method)
    assert recipe is not None
    assert recipe.options["class_token"] is True


def test_vision_transformers_hide_tokens_only_where_theirs_are_the_patches() -> None:
    deit = build("deit_tiny_patch16_224", modality(32, patch=8))
    mask = torch.arange(16).expand(2, -1) % 2 == 0
    assert Need.MASK in deit.can
    tokens = deit(batch(), kept=visible_positions(mask, 8)).tokens
    assert tokens is not None
    assert tokens.shape[1] == 8
    hybrid = build("vit_tiny_r_s16_p8_224", modality(32, patch=8))
    assert hybrid.can == {Need.TOKENS}
    assert hybrid.hides == ()
    assert hybrid(batch()).pooled.shape == (2, hybrid.dim)


def test_transformer_weights_go_back_to_timm_and_come_from_it() -> None:
    encoder = build("test_vit", modality(32, patch=4))
    theirs = timm.create_model("test_vit", num_classes=0, img_size=32, patch_size=4).eval()
    theirs.load_state_dict(encoder.library_state())
    tokens = theirs.forward_features(batch().data)[:, theirs.num_prefix_tokens :]
    torch.testing.assert_close(tokens, encoder(batch()).tokens)
    with_classifier = timm.create_model("test_vit", num_classes=7, img_size=32, patch_size=4)
    encoder.load_library_state(with_classifier.state_dict())
    torch.testing.assert_close(encoder.network.pos_embed, with_classifier.pos_embed)


def test_weights_that_do_not_fit_are_named() -> None:
    large = timm.create_model("resnet18", num_classes=0)
    with pytest.raises(LabelfreeError, match=r"conv1.weight is \(64, 3, 7, 7\), expected \(64, 3, 3, 3\)"):
        build("resnet18", modality(32)).load_library_state(large.state_dict())
    with pytest.raises(LabelfreeError, match="missing"):
        build("resnet18", modality(96)).load_library_state({})


def test_transformers_of_our_sizes_hide_tokens() -> None:
    kind = modality(16, patch=4)
    torch.manual_seed(0)
    encoder = registry.build_encoder("nano", kind).eval()
    assert Need.MASK in encoder.can
    views = batch(16, count=3)
    mask = torch.zeros(3, 16, dtype=torch.bool)
    for row in range(3):
        mask[row, torch.arange(12) + row] = True
    kept = visible_positions(mask, 12)
    dropped, replaced = encoder(views, kept=kept), encoder(views, mask)
    assert dropped.tokens.shape == (3, 4, 128)
    assert replaced.tokens.shape == (3, 16, 128)
    hidden = mask.view(3, 1, 4, 4).repeat_interleave(4, 2).repeat_interleave(4, 3)
    changed = views.with_(data=torch.where(hidden, 9.0, views.data))
    torch.testing.assert_close(encoder(changed, kept=kept).pooled, dropped.pooled)
    torch.testing.assert_close(encoder(changed, mask).tokens, replaced.tokens)
    nothing = torch.zeros(3, 16, dtype=torch.bool)
    torch.testing.assert_close(encoder(views, nothing).tokens, encoder(views).tokens)


@pytest.mark.parametrize("spec", ["nano", "timm:test_vit"])
def test_a_causal_transformer_does_not_see_the_future(spec: str) -> None:
    kind = modality(16, patch=4)
    torch.manual_seed(0)
    encoder = registry.build_encoder(spec, kind, causal=True).eval()
    assert Need.CAUSAL in encoder.can
    assert Need.CAUSAL not in registry.build_encoder(spec, kind).can
    views = batch(16)
    changed = views.data.clone()
    changed[:, :, 8:12, 4:8] += 1  # patch 9 of 16
    before, after = encoder(views).tokens, encoder(views.with_(data=changed)).tokens
    torch.testing.assert_close(before[:, :9], after[:, :9])
    assert (before[:, 9:] - after[:, 9:]).abs().amax(dim=(0, 2)).min() > 1e-4


def test_convolutions_cannot_hide_tokens_or_be_causal() -> None:
    encoder = build("test_resnet", modality())
    assert encoder.can == {Need.TOKENS}
    assert encoder.hides == ()
    with pytest.raises(Refusal, match="cannot be kept from seeing the future"):
        registry.build_encoder("timm:test_resnet", modality(), causal=True)


def test_features_do_not_depend_on_the_rest_of_the_batch() -> None:
    for name in ("test_resnet", "test_vit"):
        encoder = build(name, modality())
        views = batch(count=4)
        whole, part = encoder(views).pooled, encoder(views[1:2]).pooled
        torch.testing.assert_close(whole[1:2], part, atol=1e-5, rtol=1e-4)


def test_unknown_names_are_corrected() -> None:
    with pytest.raises(LabelfreeError, match="Did you mean 'resnet18'"):
        registry.build_encoder("timm:resnet_18", modality())
    assert set(Timm.variants()) <= set(timm.list_models())


def test_encoders_are_for_pictures() -> None:
    series = registry.modalities()["series"]
    with pytest.raises(Refusal, match="for audio, image"):
        registry.build_encoder("timm:resnet18", series())


def test_building_again_from_a_seed_gives_the_same_weights() -> None:
    first, second = build("test_resnet", modality()), build("test_resnet", modality())
    for name, value in first.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), second.state_dict()[name].numpy())


@pytest.mark.parametrize("options", [{}, {"reg_tokens": 2, "no_embed_class": True}, {"class_token": False}])
@pytest.mark.parametrize("size", [(3, 5), (6, 6), (9, 4), (4, 9)])
def test_positions_of_other_sizes_are_those_of_timm(options: dict[str, int], size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    pool = "avg" if "class_token" in options else "token"
    network = timm.models.VisionTransformer(
        24, 4, embed_dim=8, depth=1, num_heads=1, num_classes=0, dynamic_img_size=True, global_pool=pool, **options
    )
    torch.nn.init.normal_(network.pos_embed)
    x = torch.randn(2, *size, 8)
    found = []
    for place in (Timm(network, modality(24, patch=4))._placed, network._pos_embed):
        y = place(x)
        found.append((y, *torch.autograd.grad(y.square().sum(), network.pos_embed)))
    torch.testing.assert_close(*found, atol=1e-5, rtol=1e-5)


def test_a_new_transformer_sees_where_patches_lie_and_goes_back_to_timm() -> None:
    kind = modality(size=16, patch=4)
    torch.manual_seed(0)
    encoder = registry.build_encoder("transformer:nano", kind).eval()
    assert isinstance(encoder, Timm)
    view = batch(16, count=32)
    moved = view.with_(data=view.data.roll(8, dims=3))  # every patch lies two places to the right
    here, there = encoder(view).pooled.detach(), encoder(moved).pooled.detach()
    assert float((there - here).square().mean() / here.var(dim=0).mean()) > 0.02
    shape = {"img_size": 16, "patch_size": 4, "num_classes": 0, "class_token": False, "global_pool": "avg"}
    plain = timm.models.VisionTransformer(**shape, embed_dim=128, depth=4, num_heads=4, fc_norm=False).eval()
    plain.load_state_dict(encoder.library_state())
    torch.testing.assert_close(plain(view.data), encoder(view).pooled)


@pytest.mark.parametrize("causal", [False, True])
def test_learning_in_half_precision_on_a_cpu_does_without_fused_attention(causal: bool) -> None:
    encoder, view = registry.build_encoder("transformer:pico", modality(size=16, patch=4), causal).eval(), batch(16)
    with torch.no_grad():
        exact = encoder(view).tokens
    with torch.autocast("cpu", torch.bfloat16):
        learning = encoder(view).tokens
        assert not any(block.attn.fused_attn for block in encoder.network.blocks)
        with torch.no_grad():
            using = encoder(view).tokens
        assert all(block.attn.fused_attn for block in encoder.network.blocks)
    torch.testing.assert_close(learning, exact, rtol=0.05, atol=0.05)
    torch.testing.assert_close(using, exact, rtol=0.05, atol=0.05)

"""The networks of the census: for each, what builds it and makes inputs for it.

A library is called by the name of its distribution, and imported by what needs it. Networks are
small ones of their families; ``torch.get_default_dtype()`` is what their weights and inputs have.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

# A batch of n examples: a tuple of positional or a dict of keyword arguments.
Inputs = Callable[[int], "tuple[Any, ...] | dict[str, Any]"]


@dataclass
class Case:
    model: nn.Module
    inputs: Inputs
    batch: int = 8
    float32: bool = False  # runs in float64 as well, but computes in float32 inside


NETWORKS: dict[tuple[str, str], Callable[[], Case]] = {}


def network(library: str, name: str) -> Callable[[Callable[[], Case]], Callable[[], Case]]:
    """Decorates a function that builds a network."""

    def register(build: Callable[[], Case]) -> Callable[[], Case]:
        assert (library, name) not in NETWORKS
        NETWORKS[library, name] = build
        return build

    return register


def networks(library: str, names: str, build: Callable[..., Case], *args: Any, **kw: Any) -> None:
    """The same for several, named in one string, that ``build(name, ...)`` builds."""
    for name in names.split():
        network(library, name)(partial(build, name, *args, **kw))


def noise(*shape: int) -> Inputs:
    return lambda n: (torch.randn(n, *shape),)


def image(size: int = 64) -> Inputs:
    return noise(3, size, size)


# --- timm --------------------------------------------------------------------------------------


def timm(name: str, size: int = 64, **kwargs: Any) -> Case:
    create = import_module("timm").create_model
    try:  # those with windows or tokens want to know it
        model = create(name, num_classes=10, img_size=size, **kwargs)
    except TypeError:
        model = create(name, num_classes=10, **kwargs)
    return Case(model, image(size))


networks(
    "timm",
    """
    botnet26t_256 coatnet_nano_rw_224 coatnet_bn_0_rw_224 convmixer_768_32 cpubone_nano
    cs3darknet_s cs3darknet_focus_s cspdarknet53 cspnext_tiny cspresnet50 darknetaa53 densenet121
    densenetblur121d dla34 dla46_c dla60_res2net dpn48b ecaresnet26t eca_resnext26ts
    efficientformerv2_s0 efficientnet_b0 efficientnet_cc_b0_4e efficientnet_lite0 efficientvim_m1
    efficientvit_b0 efficientvit_m0 ese_vovnet19b_dw fasternet_t0 fastvit_mci0
    fastvit_t8 fbnetc_100 fbnetv3_b gcresnext26ts gernet_s ghostnet_050 ghostnetv2_100
    ghostnetv3_050 hardcorenas_a hgnet_tiny hgnetv2_b0 hrnet_w18_small iformer_t inception_next_atto
    lambda_resnet26rpt_256 lambda_resnet26t lcnet_050 lcnetv2_small legacy_seresnet18
    legacy_xception levit_128s levit_conv_128s lowformer_b0 maxvit_rmlp_nano_rw_256
    mixnet_s mobilenetv1_100 mobilenetv2_050 mobilenetv3_small_050 mobilenetv4_conv_small_035
    mobilenetv4_hybrid_medium mobileone_s0 mobilevit_xxs mobilevitv2_050 nextvit_small
    regnetx_002 regnety_002 regnetz_005 regnetz_b16 repghostnet_050 repvgg_a0 repvit_m0_9
    res2next50 resnest14d resnet10t resnet18 resnet18d resnet26t resnet50_clip resnetaa34d
    resnetblur18 resnetrs50 resnetv2_34d resnext26ts resnext50_32x4d rexnet_100 sedarknet21
    selecsls42b semnasnet_075 seresnet33ts seresnext26d_32x4d shvit_s1 skresnet18 spnasnet_100
    starnet_s1 swiftformer_xs test_byobnet test_efficientnet test_resnet tf_efficientnet_lite0
    tf_efficientnetv2_b0 tf_mobilenetv3_small_minimal_100 tiny_vit_5m_224 tinynet_e tresnet_m
    vgg11_bn visformer_tiny vit_small_resnet26d_224 volo_d1_224 vovnet39a xception41
    xcit_nano_12_p16_224
    """,
    timm,
)
networks("timm", "inception_resnet_v2 inception_v3 inception_v4", timm, 96)
networks("timm", "lamhalobotnet50ts_256", timm, 128)
networks("timm", "efficientformer_l1", timm, 224)
networks("timm", "bat_resnext26ts halonet26t", timm, 256)
network("timm", "resnet18, features_only (list out)")(partial(timm, "resnet18", features_only=True))
network("timm", "hrnet_w18_small, features_only")(
    partial(timm, "hrnet_w18_small", features_only=True)
)


@network("timm", "efficientvit_l1")
def _() -> Case:
    case = timm("efficientvit_l1")
    case.float32 = True  # its attention casts to it
    return case


@network("timm", "mobilenetv3_small_050, gradient checkpointing")
def _() -> Case:
    case = timm("mobilenetv3_small_050")
    case.model.set_grad_checkpointing()
    return case


# --- torchvision -------------------------------------------------------------------------------


def torchvision(name: str, where: str = "models", size: int = 64, **kwargs: Any) -> Case:
    build = getattr(import_module(f"torchvision.{where}"), name)
    return Case(build(weights=None, **kwargs), image(size))


networks(
    "torchvision",
    """
    densenet121 efficientnet_b0 efficientnet_v2_s mnasnet0_5 mobilenet_v2 mobilenet_v3_small
    regnet_y_400mf resnet18 resnext50_32x4d shufflenet_v2_x0_5 vgg11_bn wide_resnet50_2
    """,
    torchvision,
)
networks("torchvision", "googlenet", torchvision, size=96, init_weights=False)
networks("torchvision", "inception_v3", torchvision, size=96, init_weights=False)
networks("torchvision", "maxvit_t", torchvision, size=224)
networks(
    "torchvision",
    "deeplabv3_mobilenet_v3_large fcn_resnet50 lraspp_mobilenet_v3_large",
    torchvision,
    "models.segmentation",
    weights_backbone=None,
)


@network("torchvision", "fcn_resnet50, auxiliary head")
def _() -> Case:
    return torchvision("fcn_resnet50", "models.segmentation", weights_backbone=None, aux_loss=True)


def video(name: str) -> Case:
    case = torchvision(name, "models.video")
    case.inputs = noise(3, 4, 32, 32)
    return case


networks("torchvision", "mc3_18 r2plus1d_18 r3d_18", video)


@network("torchvision", "raft_large (optical flow)")
def _() -> Case:
    case = torchvision("raft_large", "models.optical_flow")
    frames = image(128)
    case.inputs = lambda n: (*frames(n), *frames(n), 2)
    case.batch = 2
    return case


def detector(name: str, size: int = 64) -> Case:
    """A whole detector: a list of images in, a list of dicts out."""
    case = torchvision(name, "models.detection", size, weights_backbone=None)
    case.inputs = lambda n: (list(torch.rand(n, 3, size, size)),)
    case.batch = 2
    return case


networks(
    "torchvision",
    """
    fasterrcnn_mobilenet_v3_large_320_fpn fcos_resnet50_fpn keypointrcnn_resnet50_fpn
    retinanet_resnet50_fpn ssdlite320_mobilenet_v3_large
    """,
    detector,
)


class RawHeads(nn.Module):
    """A detector without the choice of boxes that makes the number of its outputs vary."""

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        self.backbone, self.head = detector.backbone, detector.head

    def forward(self, x: Tensor) -> Any:
        return self.head(list(self.backbone(x).values()))


def raw_heads(name: str, size: int) -> Case:
    return Case(RawHeads(detector(name).model), image(size), batch=4)


network("torchvision", "fcos_resnet50_fpn, raw heads")(partial(raw_heads, "fcos_resnet50_fpn", 128))
network("torchvision", "retinanet_resnet50_fpn_v2, raw heads")(
    partial(raw_heads, "retinanet_resnet50_fpn_v2", 128)
)
network("torchvision", "ssdlite320_mobilenet_v3_large, raw heads")(
    partial(raw_heads, "ssdlite320_mobilenet_v3_large", 320)
)


# --- What wraps a network, here torchvision's ResNet-18 ----------------------------------------


def wrapped(wrap: Callable[[nn.Module], nn.Module], **kwargs: Any) -> Case:
    case = torchvision("resnet18")
    return Case(wrap(case.model.eval()), case.inputs, **kwargs)


@network("torch", "nn.DataParallel of resnet18")
def _() -> Case:
    return wrapped(nn.DataParallel)


@network("torch", "nn.SyncBatchNorm in resnet18")
def _() -> Case:
    return wrapped(nn.SyncBatchNorm.convert_sync_batchnorm)


@network("torch", "channels_last resnet18")
def _() -> Case:
    case = wrapped(lambda model: model.to(memory_format=torch.channels_last))
    plain = case.inputs
    case.inputs = lambda n: (plain(n)[0].to(memory_format=torch.channels_last),)
    return case


@network("torch", "fx feature extractor of resnet18 (dict out)")
def _() -> Case:
    extract = import_module("torchvision.models.feature_extraction").create_feature_extractor
    return wrapped(lambda model: extract(model, ["layer1", "layer3", "fc"]))


@network("torch", "spectral_norm on each convolution of resnet18")
def _() -> Case:
    def wrap(model: nn.Module) -> nn.Module:
        for module in list(model.modules()):
            if isinstance(module, nn.Conv2d):
                nn.utils.parametrizations.spectral_norm(module)
        return model

    return wrapped(wrap)


@network("torch", "gradient checkpointing in resnet18")
def _() -> Case:
    class Checkpointed(nn.Module):
        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self.model = model

        def forward(self, x: Tensor) -> Any:
            return torch.utils.checkpoint.checkpoint(self.model, x, use_reentrant=False)

    return wrapped(Checkpointed)


@network("torch", "torch.compile of resnet18, eager backend")
def _() -> Case:
    return wrapped(lambda model: torch.compile(model, backend="eager"))


@network("torch", "torch.jit.script of resnet18")
def _() -> Case:
    return wrapped(torch.jit.script)


@network("torch", "torch.jit.trace of resnet18")
def _() -> Case:
    return wrapped(lambda model: torch.jit.trace(model, image()(2)))


@network("torch", "torch.export of resnet18, its module()")
def _() -> Case:
    axes = ({0: torch.export.Dim.DYNAMIC},)

    class Exported(nn.Module):  # what module() returns forbids eval()
        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self.graph = torch.export.export(model, image()(8), dynamic_shapes=axes).module()
            self.graph.eval = self.graph.train = lambda *_: self.graph

        def forward(self, x: Tensor) -> Any:
            return self.graph(x)

    return wrapped(Exported)


@network("torch", "prepare_qat of resnet18, observers and fake quantization off")
def _() -> Case:
    q = torch.ao.quantization

    def wrap(model: nn.Module) -> nn.Module:
        model.train().qconfig = q.get_default_qat_qconfig("x86")
        return q.prepare_qat(model).apply(q.disable_observer).apply(q.disable_fake_quant).eval()

    return wrapped(wrap)


# --- transformers ------------------------------------------------------------------------------


def transformers(name: str, inputs: Inputs, batch: int = 8, **config: Any) -> Case:
    """A network of that class, with a configuration of its own kind."""
    library = import_module("transformers")
    for key, value in config.items():
        if key.endswith("_config") and isinstance(value, tuple):
            kind, settings = value
            config[key] = getattr(library, kind)(**settings)
    cls = getattr(library, name)
    return Case(cls(cls.config_class(**config)), inputs, batch)


def hf(title: str, name: str, inputs: Inputs, **config: Any) -> None:
    network("transformers", title)(partial(transformers, name, inputs, **config))


def pixels(size: int = 64) -> Inputs:
    return lambda n: {"pixel_values": torch.randn(n, 3, size, size)}


# fmt: off
SMALL = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]}
TINY_RESNET = ("ResNetConfig", SMALL | {"embedding_size": 8, "layer_type": "basic",
    "out_features": ["stage1", "stage2", "stage3", "stage4"]})
TINY_VIT = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4,
    "intermediate_size": 64}
hf("ResNet", "ResNetForImageClassification", pixels(), embedding_size=8, **SMALL)
hf("ResNet, all hidden states", "ResNetForImageClassification", lambda n: pixels()(n) |
   {"output_hidden_states": True}, embedding_size=8, **SMALL)
hf("RegNet", "RegNetForImageClassification", pixels(), embedding_size=8, groups_width=8, **SMALL)
hf("EfficientNet", "EfficientNetForImageClassification", pixels(), width_coefficient=0.25,
   hidden_dim=320)
hf("MobileNetV1", "MobileNetV1ForImageClassification", pixels(), depth_multiplier=0.25)
hf("MobileNetV2", "MobileNetV2ForImageClassification", pixels(), depth_multiplier=0.25)
hf("MobileNetV2, segmentation", "MobileNetV2ForSemanticSegmentation", pixels(),
   depth_multiplier=0.25)
MOBILEVIT = {"hidden_sizes": [16, 24, 32], "neck_hidden_sizes": [8, 8, 16, 16, 24, 24, 32]}
hf("MobileViT", "MobileViTForImageClassification", pixels(), image_size=64, **MOBILEVIT)
hf("MobileViT, segmentation", "MobileViTForSemanticSegmentation", pixels(), **MOBILEVIT)
hf("MobileViTV2", "MobileViTV2ForImageClassification", pixels(), width_multiplier=0.25)
hf("HGNetV2", "HGNetV2ForImageClassification", pixels())
hf("PPLCNet", "PPLCNetForImageClassification", pixels())
hf("TextNet", "TextNetForImageClassification", pixels())
hf("SwiftFormer", "SwiftFormerForImageClassification", pixels(), embed_dims=[8, 16, 24, 32],
   depths=[1, 1, 1, 1])
LEVIT = {"image_size": 64, "hidden_sizes": [32, 48, 64], "num_attention_heads": [2, 3, 4],
    "depths": [1, 1, 1], "key_dim": [8, 8, 8]}
hf("LeViT", "LevitForImageClassification", pixels(), **LEVIT)
hf("LeViT with teacher", "LevitForImageClassificationWithTeacher", pixels(), **LEVIT)
hf("CvT", "CvtForImageClassification", pixels(), embed_dim=[8, 16, 32], num_heads=[1, 2, 4],
   depth=[1, 2, 3])
hf("Segformer, segmentation", "SegformerForSemanticSegmentation", pixels(), hidden_sizes=[8, 16,
   24, 32], depths=[1, 1, 1, 1], num_attention_heads=[1, 2, 3, 4], decoder_hidden_size=32)
hf("BEiT with UperNet's head", "BeitForSemanticSegmentation", pixels(), image_size=64,
   patch_size=16, out_indices=[1, 2, 3, 4], use_relative_position_bias=True, **TINY_VIT)
hf("Data2VecVision, segmentation", "Data2VecVisionForSemanticSegmentation", pixels(),
   image_size=64, patch_size=16, out_indices=[1, 2, 3, 4], **TINY_VIT)
hf("DPT, segmentation", "DPTForSemanticSegmentation", pixels(), image_size=64, patch_size=16,
   use_batch_norm_in_fusion_residual=True, neck_hidden_sizes=[8, 16, 24, 32],
   fusion_hidden_size=16, backbone_out_indices=[0, 1, 2, 3], is_hybrid=False, **TINY_VIT)
hf("GLPN, depth", "GLPNForDepthEstimation", pixels(), hidden_sizes=[8, 16, 24, 32], depths=[1, 1,
   1, 1], num_attention_heads=[1, 2, 3, 4], decoder_hidden_size=8)
hf("UperNet on ResNet", "UperNetForSemanticSegmentation", pixels(), backbone_config=TINY_RESNET,
   hidden_size=16, auxiliary_in_channels=24, auxiliary_channels=16)
hf("VitMatte", "VitMatteForImageMatting", lambda n: {"pixel_values": torch.randn(n, 4, 64, 64)},
   hidden_size=32, convstream_hidden_sizes=[8, 16, 24], fusion_hidden_sizes=[32, 16, 8, 8],
   backbone_config=("VitDetConfig", {"num_channels": 4, "image_size": 64, "hidden_size": 32,
   "num_hidden_layers": 2, "num_attention_heads": 4, "out_features": ["stage2"],
   "residual_block_indices": [1]}))
hf("VitPose", "VitPoseForPoseEstimation", pixels(), use_simple_decoder=False,
   backbone_config=("VitPoseBackboneConfig", {"image_size": [64, 64], "patch_size": [16, 16],
   "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "out_features":
   ["stage2"]}))
DETR = {"backbone_config": TINY_RESNET, "d_model": 32, "encoder_layers": 1, "decoder_layers": 2,
    "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32, "num_queries": 10}
RTDETR = DETR | {"encoder_hidden_dim": 32, "encoder_in_channels": [16, 24, 32],
    "decoder_in_channels": [32, 32, 32], "feat_strides": [8, 16, 32], "anchor_image_size": None,
    "freeze_backbone_batch_norms": False}
# fmt: on
RTDETR["backbone_config"] = (
    "RTDetrResNetConfig",
    TINY_RESNET[1] | {"out_features": ["stage2", "stage3", "stage4"]},
)
# fmt: off
hf("RT-DETR", "RTDetrForObjectDetection", pixels(), **RTDETR)
hf("RT-DETRv2", "RTDetrV2ForObjectDetection", pixels(), **RTDETR)
hf("D-FINE", "DFineForObjectDetection", pixels(), **RTDETR)
hf("UVDoc", "UVDocModel", pixels(128), backbone_config=("UVDocBackboneConfig", {"out_features":
   [f"stage{i}" for i in range(1, 7)]}))
hf("EfficientLoFTR (keypoint matching)", "EfficientLoFTRForKeypointMatching",
   lambda n: {"pixel_values": torch.rand(n, 2, 1, 64, 64)}, batch=2)
hf("SuperGlue", "SuperGlueForKeypointMatching", lambda n: {"pixel_values": torch.rand(n, 2, 1, 64,
   64)}, batch=2)
hf("GroupViT's projections", "GroupViTModel", lambda n: {"pixel_values": torch.randn(n, 3, 64,
   64), "input_ids": torch.randint(99, (n, 7))}, vision_config=("GroupViTVisionConfig",
   {"image_size": 64, "hidden_size": 32, "depths": [1, 1, 1], "num_group_tokens": [8, 4, 0],
   "num_output_groups": [8, 4, 0], "num_attention_heads": 4}), text_config=("GroupViTTextConfig",
   {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "vocab_size": 100,
   "intermediate_size": 32}), projection_dim=16, projection_intermediate_dim=32)
hf("Perceiver, convolutional images", "PerceiverForImageClassificationConvProcessing",
   lambda n: {"inputs": torch.randn(n, 3, 32, 32)}, num_latents=8, d_latents=16, num_blocks=1,
   num_self_attends_per_block=1, num_self_attention_heads=1, num_cross_attention_heads=1,
   d_model=322)
# fmt: on


def waves(n: int) -> dict[str, Any]:
    return {"input_values": torch.randn(n, 4000)}


# fmt: off
SPEECH = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 32, "conv_dim": [16, 16, 16], "conv_stride": [5, 4, 4], "conv_kernel":
    [10, 8, 4], "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 2}
hf("Wav2Vec2Conformer", "Wav2Vec2ConformerForSequenceClassification", waves, **SPEECH)
hf("HuBERT, batch norm before the positions", "HubertForSequenceClassification", waves,
   conv_pos_batch_norm=True, **SPEECH)
hf("CLAP, audio", "ClapAudioModel", lambda n: {"input_features": torch.randn(n, 1, 64, 64),
   "is_longer": torch.zeros(n, 1, dtype=torch.bool)}, spec_size=64, num_mel_bins=64,
   hidden_size=32, depths=[1, 1], num_attention_heads=[2, 4], patch_embeds_hidden_size=16,
   patch_stride=[4, 4], window_size=4, enable_fusion=False, batch=4)
hf("Parakeet (FastConformer)", "ParakeetEncoder", lambda n: {"input_features": torch.randn(n, 64,
   80)}, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=32,
   subsampling_conv_channels=8)
hf("SeamlessM4T, speech encoder", "SeamlessM4TForSpeechToText", lambda n: {"input_features":
   torch.randn(n, 16, 160), "decoder_input_ids": torch.randint(5, 99, (n, 6)), "use_cache":
   False}, hidden_size=32, vocab_size=100, speech_encoder_layers=1,
   speech_encoder_attention_heads=4, speech_encoder_intermediate_size=32, encoder_layers=1,
   decoder_layers=1, encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=32,
   decoder_ffn_dim=32, adaptor_layers=1)
hf("FastSpeech2Conformer", "FastSpeech2ConformerModel", lambda n: {"input_ids": torch.randint(1,
   70, (n, 6)), "return_dict": True}, hidden_size=16, num_mel_bins=8, encoder_layers=1,
   decoder_layers=1, batch=2)
# fmt: on


@network("transformers", "SpeechT5ForTextToSpeech, dropout of the prenet off")
def _() -> Case:
    case = transformers(
        "SpeechT5ForTextToSpeech",
        lambda n: {
            "input_ids": torch.randint(3, 70, (n, 6)),
            "decoder_input_values": torch.randn(n, 8, 80),
            "speaker_embeddings": torch.randn(n, 512),
            "use_cache": False,
        },
        hidden_size=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16,
    )  # fmt: skip
    case.model.speecht5.decoder.prenet._consistent_dropout = lambda x, p: x
    return case


# fmt: off
PATCHES = {"context_length": 32, "patch_length": 8, "patch_stride": 8, "num_input_channels": 3,
    "d_model": 8, "norm_type": "batchnorm", "prediction_length": 4}
# fmt: on


def past(n: int) -> dict[str, Any]:
    return {"past_values": torch.randn(n, 32, 3)}


# fmt: off
hf("PatchTST", "PatchTSTForPrediction", past, ffn_dim=16, num_attention_heads=2,
   num_hidden_layers=2, **PATCHES)
hf("PatchTSMixer", "PatchTSMixerForPrediction", past, num_layers=2, norm_mlp="BatchNorm", **PATCHES)
hf("Informer, its distilling convolution", "InformerModel", lambda n: {"past_values":
   torch.randn(n, 27), "past_time_features": torch.randn(n, 27, 1), "past_observed_mask":
   torch.ones(n, 27), "future_values": torch.randn(n, 4), "future_time_features": torch.randn(n,
   4, 1), "use_cache": False}, prediction_length=4, context_length=20, lags_sequence=[1, 2, 7],
   num_time_features=1, d_model=16, encoder_layers=2, decoder_layers=1, encoder_attention_heads=2,
   decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16)
# fmt: on


# --- monai -------------------------------------------------------------------------------------


def monai(name: str, inputs: Inputs, batch: int = 8, **kwargs: Any) -> Case:
    return Case(getattr(import_module("monai.networks.nets"), name)(**kwargs), inputs, batch)


def add_monai(title: str, name: str, inputs: Inputs, **kwargs: Any) -> None:
    network("monai", title)(partial(monai, name, inputs, **kwargs))


GRAY = noise(1, 32, 32)
CUBE = noise(1, 16, 16, 16)
FLAT = {"spatial_dims": 2, "in_channels": 1, "out_channels": 2}
SOLID = FLAT | {"spatial_dims": 3}
STEPS = {"channels": (4, 8, 16), "strides": (2, 2)}
# fmt: off
add_monai("AttentionUnet", "AttentionUnet", GRAY, **FLAT, **STEPS)
add_monai("BasicUNet", "BasicUNet", GRAY, **FLAT, features=(4, 4, 8, 8, 16, 4), norm="batch")
add_monai("BasicUNetPlusPlus", "BasicUNetPlusPlus", GRAY, **FLAT, features=(4, 4, 8, 8, 16, 4),
   norm="batch")
add_monai("DenseNet121", "DenseNet121", noise(1, 64, 64), **FLAT)
add_monai("DenseNet121, 3d", "DenseNet121", noise(1, 32, 32, 32), **SOLID, batch=4)
add_monai("Discriminator", "Discriminator", GRAY, in_shape=(1, 32, 32), channels=(4, 8),
   strides=(2, 2), norm="batch")
add_monai("PatchDiscriminator", "PatchDiscriminator", GRAY, spatial_dims=2, channels=4,
   in_channels=1)
add_monai("DynUNet", "DynUNet", GRAY, **FLAT, kernel_size=[3, 3, 3], strides=[1, 2, 2],
   upsample_kernel_size=[2, 2], filters=[4, 8, 16], norm_name="batch")
add_monai("DynUNet, deep supervision", "DynUNet", GRAY, **FLAT, kernel_size=[3, 3, 3, 3],
   strides=[1, 2, 2, 2], upsample_kernel_size=[2, 2, 2], filters=[4, 8, 16, 16],
   norm_name="batch", deep_supervision=True)
add_monai("EfficientNetBN b0", "EfficientNetBN", image(), model_name="efficientnet-b0",
   pretrained=False)
add_monai("FlexibleUNet on EfficientNet", "FlexibleUNet", image(), in_channels=3, out_channels=2,
   backbone="efficientnet-b0")
add_monai("HighResNet", "HighResNet", CUBE, spatial_dims=3, batch=4)
add_monai("HoVerNet (dict out)", "HoVerNet", image(256), batch=1, out_classes=3)
add_monai("MILModel, attention (bags)", "MILModel", noise(3, 3, 64, 64), num_classes=2,
   pretrained=False, backbone="resnet18", mil_mode="att", batch=4)
add_monai("MILModel, transformer (bags)", "MILModel", noise(3, 3, 64, 64), num_classes=2,
   pretrained=False, backbone="resnet18", mil_mode="att_trans", batch=4)
add_monai("RegUNet", "RegUNet", GRAY, spatial_dims=2, in_channels=1, num_channel_initial=4, depth=2)
add_monai("ResNet-10, 3d", "resnet10", CUBE, spatial_dims=3, n_input_channels=1, batch=4)
add_monai("SEResNet50, 3d", "SEResNet50", noise(1, 32, 32, 32), spatial_dims=3, in_channels=1,
   batch=4)
add_monai("SegResNet", "SegResNet", GRAY, **FLAT, norm="batch")
add_monai("SegResNetVAE", "SegResNetVAE", GRAY, **FLAT, norm="batch", input_image_size=(32, 32))
add_monai("SegResNetDS2", "SegResNetDS2", GRAY, **FLAT, init_filters=8)
add_monai("SwinUNETR", "SwinUNETR", noise(1, 64, 64), **FLAT, feature_size=12, norm_name="batch")
add_monai("UNETR", "UNETR", GRAY, **FLAT, img_size=32, feature_size=4, hidden_size=32, mlp_dim=64,
   num_heads=4, norm_name="batch")
add_monai("UNet", "UNet", GRAY, **FLAT, **STEPS, norm="batch", num_res_units=2)
add_monai("UNet, 3d", "UNet", CUBE, **SOLID, **STEPS, norm="batch")
add_monai("VNet", "VNet", GRAY, **FLAT)
add_monai("AutoEncoder", "AutoEncoder", GRAY, **FLAT, channels=(4, 8, 16), strides=(2, 2, 2),
   norm="batch")
# fmt: on


# --- segmentation_models_pytorch ---------------------------------------------------------------


def smp(title: str, name: str, encoder: str, size: int = 64, **kwargs: Any) -> None:
    @network("segmentation_models_pytorch", title)
    def _() -> Case:
        library = import_module("segmentation_models_pytorch")
        model = getattr(library, name)(encoder, encoder_weights=None, classes=2, **kwargs)
        return Case(model, image(size))


smp("Unet on ResNet-18", "Unet", "resnet18")
smp("Unet with a classification head", "Unet", "resnet18", aux_params={"classes": 3})
smp("Unet with scSE attention", "Unet", "resnet18", decoder_attention_type="scse")
smp("UnetPlusPlus on MobileNetV3", "UnetPlusPlus", "timm-mobilenetv3_small_minimal_100")
smp("DeepLabV3 on ResNet-18", "DeepLabV3", "resnet18")
smp("DeepLabV3Plus on MobileNetV2", "DeepLabV3Plus", "mobilenet_v2")
smp("FPN on MobileNetV2", "FPN", "mobilenet_v2")
smp("Linknet on EfficientNet-b0", "Linknet", "timm-efficientnet-b0")
smp("MAnet on ResNet-18", "MAnet", "resnet18")
smp("PAN on ResNet-18", "PAN", "resnet18", 128)
smp("PSPNet on ResNet-18", "PSPNet", "resnet18")
smp("Segformer on MiT-b0", "Segformer", "mit_b0")
smp("UPerNet on ResNet-18", "UPerNet", "resnet18")
smp("Unet on RegNet (timm)", "Unet", "tu-regnetx_002")
smp("Unet on Xception", "Unet", "xception")
smp("Unet on DPN-68", "Unet", "dpn68")


# --- torch_geometric ---------------------------------------------------------------------------


def graphs(features: int = 8, edge_features: int = 0) -> Callable[[int], tuple[Tensor, ...]]:
    """Nodes, edges and the graph of each node: n graphs of ten nodes."""

    def draw(n: int) -> tuple[Tensor, ...]:
        inside = torch.randint(10, (2, 30 * n))
        edges = inside + 10 * torch.arange(n).repeat_interleave(30)
        x = torch.randn(10 * n, features)
        more = (torch.randn(30 * n, edge_features),) if edge_features else ()
        return (x, edges, *more, torch.arange(n).repeat_interleave(10))

    return draw


def nodes(n: int) -> tuple[Any, ...]:
    return graphs()(n)[:2]


def gnn(name: str, **kwargs: Any) -> Case:
    models = import_module("torch_geometric.nn.models")
    return Case(getattr(models, name)(8, 16, 3, out_channels=4, norm="BatchNorm", **kwargs), nodes)


networks("torch_geometric", "GCN GraphSAGE GIN GAT EdgeCNN", gnn)
network("torch_geometric", "GraphSAGE, jumping knowledge")(partial(gnn, "GraphSAGE", jk="cat"))
network("torch_geometric", "GIN, jumping knowledge by LSTM")(partial(gnn, "GIN", jk="lstm"))
network("torch_geometric", "GATv2")(partial(gnn, "GAT", v2=True, heads=2))
network("torch_geometric", "PNA")(
    lambda: gnn("PNA", aggregators=["mean", "max"], scalers=["identity"], deg=torch.ones(4).long())
)


def pooled(title: str, pool: str, *arguments: Any) -> None:
    """Two convolutions with batch norm, and a pooling to one vector a graph."""

    @network("torch_geometric", title)
    def _() -> Case:
        g = import_module("torch_geometric.nn")
        layers: list[Any] = []
        for wide in (8, 16):
            mlp = nn.Sequential(nn.Linear(wide, 16), nn.BatchNorm1d(16), nn.ReLU())
            layers += [(g.GINConv(mlp), "x, edges -> x"), (g.BatchNorm(16), "x -> x"), nn.ReLU()]
        made = [a() if callable(a) else a for a in arguments]
        layers += [(getattr(g, pool)(*made), "x, batch -> x"), nn.LazyLinear(4)]
        model = g.Sequential("x, edges, batch", layers)
        model(*graphs()(2))
        return Case(model, graphs())


pooled("GIN with mean pooling", "MeanAggregation")
pooled("GIN with maximum pooling", "MaxAggregation")
pooled("GIN with attentional pooling", "AttentionalAggregation", partial(nn.Linear, 16, 1))
pooled("GIN with Set2Set", "Set2Set", 16, 2)
pooled("GIN with sort pooling", "SortAggregation", 4)


def layered(title: str, signature: str, inputs: Inputs, *layers: Callable[[Any], Any]) -> None:
    @network("torch_geometric", title)
    def _() -> Case:
        g = import_module("torch_geometric.nn")
        return Case(g.Sequential(signature, [layer(g) for layer in layers]), inputs)


layered(
    "CGConv",
    "x, edges, attributes, batch",
    graphs(edge_features=3),
    lambda g: (g.CGConv(8, 3, batch_norm=True), "x, edges, attributes -> x"),
    lambda g: (g.CGConv(8, 3, batch_norm=True), "x, edges, attributes -> x"),
    lambda g: (g.global_add_pool, "x, batch -> x"),
)
layered(
    "GENConv (DeeperGCN)",
    "x, edges",
    nodes,
    lambda g: (g.GENConv(8, 8, norm="batch"), "x, edges -> x"),
    lambda g: (
        g.DeepGCNLayer(g.GENConv(8, 8, norm="batch"), g.BatchNorm(8), nn.ReLU()),
        "x, edges -> x",
    ),
)
layered(
    "GPSConv",
    "x, edges, batch",
    graphs(),
    lambda g: (g.GPSConv(8, g.GCNConv(8, 8), heads=2), "x, edges, batch -> x"),
    lambda g: (g.GPSConv(8, g.GCNConv(8, 8), heads=2), "x, edges, batch -> x"),
)
layered(
    "GCN with SAGPooling",
    "x, edges, batch",
    graphs(),
    lambda g: (g.GCNConv(8, 16), "x, edges -> x"),
    lambda g: (g.BatchNorm(16), "x -> x"),
    lambda g: (g.SAGPooling(16, 0.5), "x, edges, None, batch -> x, edges, _, batch, _, _"),
    lambda g: (g.global_mean_pool, "x, batch -> x"),
)
layered(
    "GCN with TopKPooling",
    "x, edges, batch",
    graphs(),
    lambda g: (g.GCNConv(8, 16), "x, edges -> x"),
    lambda g: (g.BatchNorm(16), "x -> x"),
    lambda g: (g.TopKPooling(16, 0.5), "x, edges, None, batch -> x, edges, _, batch, _, _"),
    lambda g: (g.global_mean_pool, "x, batch -> x"),
)
layered(
    "DiffGroupNorm",
    "x, edges",
    nodes,
    lambda g: (g.GCNConv(8, 16), "x, edges -> x"),
    lambda g: (g.DiffGroupNorm(16, 4), "x -> x"),
    lambda g: (g.GCNConv(16, 4), "x, edges -> x"),
)
layered(
    "MLP on pooled sets",
    "x, batch",
    lambda n: (graphs()(n)[0], graphs()(n)[2]),
    lambda g: (g.MLP([8, 16, 16]), "x -> x"),
    lambda g: (g.global_add_pool, "x, batch -> x"),
    lambda g: (g.MLP([16, 16, 4]), "x -> x"),
)
layered(
    "PointNet++'s PointNetConv",
    "x, position, edges",
    lambda n: (graphs()(n)[0], torch.randn(10 * n, 3), graphs()(n)[1]),
    lambda g: (g.PointNetConv(g.MLP([11, 16, 16])), "x, position, edges -> x"),
    lambda g: (g.PointNetConv(g.MLP([19, 16, 4])), "x, position, edges -> x"),
)
layered(
    "Dense GCN, as in DiffPool",
    "x, adjacency",
    lambda n: (torch.randn(n, 6, 8), torch.rand(n, 6, 6).round()),
    lambda g: (g.DenseGCNConv(8, 6), "x, adjacency -> x"),
    lambda g: (nn.BatchNorm1d(6), "x -> x"),
    lambda g: (g.DenseGCNConv(6, 4), "x, adjacency -> x"),
)


@network("torch_geometric", "SGFormer")
def _() -> Case:
    return Case(import_module("torch_geometric.nn.models").SGFormer(8, 16, 4), graphs())


@network("torch_geometric", "Polynormer")
def _() -> Case:
    return Case(import_module("torch_geometric.nn.models").Polynormer(8, 16, 4), graphs())


@network("torch_geometric", "PMLP")
def _() -> Case:
    return Case(import_module("torch_geometric.nn.models").PMLP(8, 16, 4, 3, norm=True), nodes)


@network("torch_geometric", "LINKX")
def _() -> Case:
    models = import_module("torch_geometric.nn.models")
    return Case(models.LINKX(80, 8, 16, 4, num_layers=2, num_edge_layers=2), lambda _: nodes(8))


class OfData(nn.Module):
    """A graph network that takes a whole Data object, as its users often write it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, data: Any) -> Any:
        return self.model(data.x, data.edge_index)


@network("torch_geometric", "GIN on a Batch object")
def _() -> Case:
    data = import_module("torch_geometric.data")

    def inputs(n: int) -> tuple[Any]:
        one = graphs()
        many = [one(1) for _ in range(n)]
        return (data.Batch.from_data_list([data.Data(x=x, edge_index=e) for x, e, _ in many]),)

    return Case(OfData(gnn("GIN").model), inputs)


# --- braindecode -------------------------------------------------------------------------------


def braindecode(
    name: str, channels: int = 8, times: int = 512, rate: int = 128, **kwargs: Any
) -> Case:
    """Of electroencephalograms; each class takes another part of what describes a signal."""
    cls = getattr(import_module("braindecode.models"), name)
    model = cls(n_chans=channels, n_outputs=4, n_times=times, sfreq=rate, **kwargs)
    return Case(model, noise(channels, times))


networks(
    "braindecode",
    """
    ATCNet AttentionBaseNet BrainModule ContraWR CTNet Deep4Net EEGConformer
    EEGInceptionERP EEGInceptionMI EEGITNet EEGNet EEGNeX EEGSimpleConv EEGTCNet FBCNet
    FBLightConvNet FBMSNet IFNet MSVTNet SCCNet ShallowFBCSPNet SincShallowNet
    SPARCNet SSTDPN TCFormer TIDNet TSception
    """,
    braindecode,
)
networks("braindecode", "DeepSleepNet USleep", braindecode, 2, 3000, 100)
networks("braindecode", "HybridNet", braindecode, 8, 1000)
networks("braindecode", "AttnSleep", braindecode, 1, 3000, 100)


# --- tsai --------------------------------------------------------------------------------------


def tsai(name: str, **kwargs: Any) -> Case:
    module = import_module("tsai.models.all")
    cls = getattr(module, name)
    takes = cls.__init__.__code__.co_varnames if isinstance(cls, type) else ()
    length = {"seq_len": 48} if "seq_len" in takes else {}
    return Case(cls(3, 5, **length, **kwargs), noise(3, 48))


networks(
    "tsai",
    """
    ConvTranPlus FCN FCNPlus GRU_FCN InceptionTime InceptionTimePlus LSTM_FCN LSTM_FCNPlus
    OmniScaleCNN RNN_FCN RNN_FCNPlus ResCNN ResNet ResNetPlus TST TSTPlus XCM XCMPlus XceptionTime
    XceptionTimePlus mWDN xresnet1d18 xresnet1d18_deep
    """,
    tsai,
)
network("tsai", "PatchTST")(partial(tsai, "PatchTST", pred_dim=4))
network("tsai", "MLP with batch norm")(partial(tsai, "MLP", use_bn=True))


# --- pytorchcv ---------------------------------------------------------------------------------


def pytorchcv(name: str, size: int = 224, batch: int = 8, **kwargs: Any) -> Case:
    model = import_module("pytorchcv.model_provider").get_model(name, **kwargs)
    return Case(model, image(size), batch)


networks(
    "pytorchcv",
    """
    airnet50_1x64d_r2 bagnet9 bam_resnet18 cbam_resnet18 channelnet condensenet74_c4_g4 diaresnet10
    dicenet_wd5 drnc26 espnetv2_wd2 fdmobilenet_wd4 fishnet99 ibn_resnet50 igcv3_wd4
    isqrtcovresnet18 menet108_8x1_g3 mnasnet_b1 nasnet_4a1056 peleenet preresnet10 proxylessnas_cpu
    scnet50 shufflenet_g3_wd4 spnasnet sqnxt23_w1 vovnet27s xdensenet121_2
    """,
    pytorchcv,
    batch=2,
)
networks(
    "pytorchcv",
    """
    fractalnet_cifar10 pyramidnet110_a48_cifar10 resdropresnet20_cifar10 rir_cifar10
    ror3_56_cifar10 shakeshakeresnet20_2x16d_cifar10 wrn16_10_cifar10
    """,
    pytorchcv,
    32,
)
networks("pytorchcv", "irevnet301 octresnet10_ad2 revnet38", pytorchcv, batch=2)
networks(
    "pytorchcv",
    "bisenet_resnet18_celebamaskhq cgnet_cityscapes fastscnn_cityscapes lednet_cityscapes",
    pytorchcv,
    batch=2,
    in_size=(224, 224),
)
networks("pytorchcv", "centernet_resnet18_voc lwopenpose2d_mobilenet_cmupan_coco", pytorchcv, 128)
networks(
    "pytorchcv",
    "alphapose_fastseresnet101b_coco simplepose_resnet18_coco",
    pytorchcv,
    128,
    batch=2,
)


# --- ultralytics -------------------------------------------------------------------------------


def ultralytics(name: str) -> Case:
    tasks = import_module("ultralytics.nn.tasks")
    kind, _, task = name.partition("-")
    classes = {"cls": "Classification", "seg": "Segmentation", "pose": "Pose", "obb": "OBB"}
    prefix = "RTDETRDetection" if kind == "rtdetr" else classes.get(task, "Detection")
    model = getattr(tasks, f"{prefix}Model")(f"{name}.yaml", verbose=False)
    return Case(model, image())


networks(
    "ultralytics",
    """
    rtdetr-l yolo11n yolo11n-cls yolo11n-obb yolo11n-pose yolo11n-seg yolo12n yolo26n yolov10n
    yolov3-tiny yolov5n yolov6n yolov8n yolov8n-seg yolov9t
    """,
    ultralytics,
)


# --- Tables ------------------------------------------------------------------------------------


def torch_frame(name: str, **kwargs: Any) -> Case:
    """A network of pytorch-frame on features that are encoded already."""
    data = import_module("torch_frame.datasets").FakeDataset(64, with_nan=False)
    data.materialize()
    frame = import_module("torch_frame.nn.models")
    model = getattr(frame, name)(
        out_channels=3,
        col_stats=data.col_stats,
        col_names_dict=data.tensor_frame.col_names_dict,
        **kwargs,
    )
    return Case(model, lambda n: (data.tensor_frame[torch.randint(64, (n,))],))


BATCH_NORM = {"channels": 8, "num_layers": 3, "normalization": "batch_norm"}
TABNET = {"num_layers": 2, "split_feat_channels": 4, "split_attn_channels": 4, "gamma": 1.2}
network("pytorch-frame", "MLP (TensorFrame in)")(partial(torch_frame, "MLP", **BATCH_NORM))
network("pytorch-frame", "ResNet (TensorFrame in)")(partial(torch_frame, "ResNet", **BATCH_NORM))
network("pytorch-frame", "TabNet (TensorFrame in)")(partial(torch_frame, "TabNet", **TABNET))


def tabnet(batch: int, **kwargs: Any) -> Case:
    cls = import_module("pytorch_tabnet.tab_network").TabNet
    model = cls(10, 3, group_attention_matrix=torch.eye(10), **kwargs)
    return Case(model, noise(10), batch)


network("pytorch-tabnet", "TabNet")(partial(tabnet, 8))
network("pytorch-tabnet", "TabNet, two ghost batches")(partial(tabnet, 200))
network("pytorch-tabnet", "TabNet, five ghost batches")(partial(tabnet, 40, virtual_batch_size=8))
network("pytorch-tabnet", "TabNet, entmax")(partial(tabnet, 8, mask_type="entmax"))


@network("torchtuples", "MLPVanilla (pycox)")
def _() -> Case:
    return Case(import_module("torchtuples.practical").MLPVanilla(10, [16, 16], 3), noise(10))


@network("torchtuples", "MixedInputMLP (pycox)")
def _() -> Case:
    cls = import_module("torchtuples.practical").MixedInputMLP
    model = cls(10, [4, 5], [2, 3], [16, 16], 3)
    return Case(model, lambda n: (torch.randn(n, 10), torch.randint(4, (n, 2))))


@network("rtdl", "ResNet")
def _() -> Case:
    make = import_module("rtdl").ResNet.make_baseline
    model = make(d_in=10, n_blocks=2, d_main=16, d_hidden=32, dropout_first=0.1,
                 dropout_second=0.1, d_out=3)  # fmt: skip
    return Case(model, noise(10))


@network("rtdl_revisiting_models", "ResNet")
def _() -> Case:
    cls = import_module("rtdl_revisiting_models").ResNet
    model = cls(d_in=10, d_out=3, n_blocks=2, d_block=16, d_hidden=None, d_hidden_multiplier=2.0,
                dropout1=0.1, dropout2=0.1)  # fmt: skip
    return Case(model, noise(10))


# --- Speech and sound --------------------------------------------------------------------------


def speechbrain(title: str, module: str, name: str, inputs: Inputs, **kwargs: Any) -> None:
    @network("speechbrain", title)
    def _() -> Case:
        return Case(
            getattr(import_module(f"speechbrain.lobes.models.{module}"), name)(**kwargs), inputs
        )


SPECTRA = noise(50, 40)
# fmt: off
speechbrain("CRDNN", "CRDNN", "CRDNN", SPECTRA, input_shape=[None, None, 40], cnn_channels=[8, 8],
   rnn_layers=1, rnn_neurons=16, dnn_neurons=16)
speechbrain("ECAPA_TDNN", "ECAPA_TDNN", "ECAPA_TDNN", SPECTRA, input_size=40, channels=[16, 16,
   16, 16, 48], attention_channels=8, se_channels=8, lin_neurons=16)
speechbrain("Xvector", "Xvector", "Xvector", SPECTRA, in_channels=40, tdnn_channels=[16, 16, 16,
   16, 48], lin_neurons=16)
speechbrain("Cnn14", "Cnn14", "Cnn14", noise(64, 64), mel_bins=64, emb_dim=64)
speechbrain("ResNet", "ResNet", "ResNet", noise(50, 80))
speechbrain("ContextNet", "ContextNet", "ContextNet", SPECTRA, input_shape=[None, None, 40],
   out_channels=16, conv_channels=[16, 16], strides=[1, 2], num_blocks=2, num_layers=2,
   inner_dim=8)
# fmt: on


@network("speechbrain", "Xvector, the pooling's noise off")
def _() -> Case:
    case = NETWORKS["speechbrain", "Xvector"]()
    for module in case.model.modules():
        if hasattr(module, "_get_gauss_noise"):
            module._get_gauss_noise = lambda shape, device="cpu": torch.zeros(shape)
    return case


@network("torchaudio", "Conformer")
def _() -> Case:
    model = import_module("torchaudio.models").Conformer(16, 4, 32, 2, 7)
    return Case(model, lambda n: (torch.randn(n, 20, 16), torch.full((n,), 20)))


@network("torchaudio", "WaveRNN")
def _() -> Case:
    model = import_module("torchaudio.models").WaveRNN(
        [2, 2, 3], 16, 12, n_res_block=2, n_rnn=16, n_fc=16, n_freq=8, n_hidden=8, n_output=8
    )
    return Case(model, lambda n: (torch.randn(n, 1, 36), torch.randn(n, 1, 8, 7)))


def tacotron2() -> Case:
    model = import_module("torchaudio.models").Tacotron2(
        n_mels=8, symbol_embedding_dim=16, encoder_embedding_dim=16, decoder_rnn_dim=16,
        attention_rnn_dim=16, attention_hidden_dim=16, prenet_dim=16, postnet_embedding_dim=16,
    )  # fmt: skip
    return Case(
        model,
        lambda n: (
            *(torch.randint(148, (n, 12)), torch.full((n,), 12)),
            *(torch.randn(n, 8, 10), torch.full((n,), 10)),
        ),
    )


network("torchaudio", "Tacotron2")(tacotron2)


@network("torchaudio", "Tacotron2, dropout of the prenet off")
def _() -> Case:
    case = tacotron2()
    functional = import_module("torchaudio.models.tacotron2").F
    dropout = functional.dropout
    functional.dropout = lambda x, p=0.5, training=True, inplace=False: dropout(
        x, p, training and case.model.training, inplace
    )
    return case


@network("torchcrepe", "Crepe, tiny")
def _() -> Case:
    return Case(import_module("torchcrepe").Crepe("tiny"), noise(1024))


@network("openunmix", "OpenUnmix")
def _() -> Case:
    cls = import_module("openunmix.model").OpenUnmix
    return Case(cls(nb_bins=20, nb_channels=2, hidden_size=16, nb_layers=1), noise(2, 20, 12))


# --- Faces, keypoints, pictures and words ------------------------------------------------------


@network("facenet-pytorch", "InceptionResnetV1")
def _() -> Case:
    return Case(import_module("facenet_pytorch").InceptionResnetV1(), image(128), batch=4)


def patches(name: str) -> Case:
    return Case(getattr(import_module("kornia.feature"), name)(pretrained=False), noise(1, 32, 32))


networks("kornia", "HardNet HyNet SOSNet", patches)


@network("kornia", "LoFTR (dict in)")
def _() -> Case:
    model = import_module("kornia.feature").LoFTR(pretrained=None)
    return Case(
        model,
        lambda n: ({"image0": torch.rand(n, 1, 64, 64), "image1": torch.rand(n, 1, 64, 64)},),
        batch=2,
    )


@network("kornia", "DexiNed")
def _() -> Case:
    return Case(import_module("kornia.models.dexined").DexiNed(pretrained=False), image())


@network("kornia", "XFeat's network")
def _() -> Case:
    return Case(import_module("kornia.feature.xfeat").XFeatModel(), noise(1, 64, 64))


@network("open_clip_torch", "RN50, images")
def _() -> Case:
    model = import_module("open_clip").create_model("RN50", force_image_size=64)
    return Case(model.visual, image())


@network("open_clip_torch", "RN50, images and words")
def _() -> Case:
    model = import_module("open_clip").create_model("RN50", force_image_size=64)
    return Case(model, lambda n: (torch.randn(n, 3, 64, 64), torch.randint(1, 9999, (n, 77))))

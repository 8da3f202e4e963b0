"""Tiny random models of the classes that edit pairs are made with, saved to disk as the real ones are published."""

from pathlib import Path

import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanVACEPipeline, WanVACETransformer3DModel
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertTokenizerFast,
    GroundingDinoConfig,
    GroundingDinoForObjectDetection,
    GroundingDinoProcessor,
    PreTrainedTokenizerFast,
    Sam2HieraDetConfig,
    Sam2VideoConfig,
    Sam2VideoModel,
    Sam2VisionConfig,
    SwinConfig,
    UMT5Config,
    UMT5EncoderModel,
)
from transformers.models.grounding_dino.image_processing_pil_grounding_dino import GroundingDinoImageProcessorPil

WORDS = ("a", "red", "green", "ball", "car", "street", "wall", "on", "the", "grey", "empty", ".", ",")
SAM_SIZE = 128  # pixels of the square that the tiny SAM 2 looks at
SAM_WIDTH = 128  # twice what its memories have, which is 64 in the code


def save_tiny_grounding_dino(folder: Path, seed: int = 0) -> Path:
    """Grounding DINO with a Swin backbone and a BERT of two layers each, and its processor."""
    torch.manual_seed(seed)
    vocabulary = {word: number for number, word in enumerate(("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS))}
    backbone = SwinConfig(
        embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=4, out_indices=[2, 3, 4]
    )
    text = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=256,
    )
    config = GroundingDinoConfig(
        backbone_config=backbone,
        text_config=text,
        num_queries=6,
        d_model=32,
        encoder_layers=1,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
    )
    GroundingDinoForObjectDetection(config).save_pretrained(folder)
    tokenizer = BertTokenizerFast(vocab=vocabulary)
    processor = GroundingDinoImageProcessorPil(size={"shortest_edge": 64, "longest_edge": 96})
    GroundingDinoProcessor(processor, tokenizer).save_pretrained(folder)
    return folder


def save_tiny_sam2(folder: Path, seed: int = 0) -> Path:
    """SAM 2 video with a Hiera of four blocks on pictures of SAM_SIZE."""
    torch.manual_seed(seed)
    hiera = Sam2HieraDetConfig(
        hidden_size=8,
        image_size=[SAM_SIZE, SAM_SIZE],
        blocks_per_stage=[1, 1, 2, 1],
        embed_dim_per_stage=[8, 16, 32, 64],
        num_attention_heads_per_stage=[1, 1, 2, 2],
        window_size_per_stage=[8, 4, 4, 4],
        global_attention_blocks=[3],
    )
    vision = Sam2VisionConfig(
        backbone_config=hiera,
        backbone_channel_list=[64, 32, 16, 8],
        backbone_feature_sizes=[[SAM_SIZE // 4] * 2, [SAM_SIZE // 8] * 2, [SAM_SIZE // 16] * 2],
        fpn_hidden_size=SAM_WIDTH,
    )
    config = Sam2VideoConfig(
        vision_config=vision,
        prompt_encoder_config={"hidden_size": SAM_WIDTH, "image_size": SAM_SIZE},
        mask_decoder_config={
            "hidden_size": SAM_WIDTH,
            "mlp_dim": 32,
            "num_attention_heads": 2,
            "iou_head_hidden_dim": 32,
        },
        image_size=SAM_SIZE,
        memory_attention_hidden_size=SAM_WIDTH,
        memory_attention_num_layers=1,
        memory_attention_feed_forward_hidden_size=32,
        memory_attention_rope_feat_sizes=[SAM_SIZE // 16] * 2,
        memory_encoder_hidden_size=SAM_WIDTH,
        mask_downsampler_embed_dim=SAM_WIDTH,
        memory_fuser_embed_dim=SAM_WIDTH,
        memory_fuser_intermediate_dim=32,
    )
    model = Sam2VideoModel(config)
    # Whatever the box, there is something in it: random weights see nothing anywhere.
    torch.nn.init.constant_(model.mask_decoder.pred_obj_score_head.proj_out.bias, 20.0)
    model.save_pretrained(folder)
    return folder


def save_tiny_vace(folder: Path, seed: int = 0) -> Path:
    """A VACE pipeline: transformer of two layers, Wan codec, UMT5 encoder, tokenizer and scheduler."""
    torch.manual_seed(seed)
    vae = AutoencoderKLWan(
        base_dim=4, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True]
    )
    transformer = WanVACETransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=12,
        text_dim=16,
        freq_dim=32,
        ffn_dim=32,
        num_layers=2,
        cross_attn_norm=True,
        qk_norm="rms_norm_across_heads",
        vace_layers=[0],
        vace_in_channels=96,
    )
    text = UMT5Config(vocab_size=len(WORDS) + 3, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    pipeline = WanVACEPipeline(
        tokenizer=tiny_t5_tokenizer(),
        text_encoder=UMT5EncoderModel(text),
        vae=vae,
        scheduler=UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0),
        transformer=transformer,
    )
    pipeline.save_pretrained(folder)
    return folder


def tiny_t5_tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {word: number for number, word in enumerate(("<pad>", "</s>", "<unk>", *WORDS))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=512
    )

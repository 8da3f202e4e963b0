"""Wan 2.1 and 2.2, of Alibaba's Wan team."""

from icve.models.family import Base, Family

_HERE = "icve.models.wan"
_LICENCE = "Apache License 2.0: copies carry the licence; changes are stated."

FAMILY = Family(
    name="wan",
    transformer=f"{_HERE}.transformer.WanInContextTransformer3DModel",
    codecs=(f"{_HERE}.codec.WanCodec",),
    text_encoders=(f"{_HERE}.text.WanTextEncoder",),
    weights=f"{_HERE}.weights",
    adapters=f"{_HERE}.adapter_names",
    open_base=f"{_HERE}.base.open_base",
    convert_codec=f"{_HERE}.base.convert_codec",
    tiny={"wan": f"{_HERE}.tiny.write_tiny", "wan2.2": f"{_HERE}.tiny.write_tiny_22"},
    exports=("wan",),
    blocks={"num_layers": "blocks"},
    # Every projection of self-attention, cross-attention and MLP in the blocks.
    lora_targets=r"blocks\.\d+\.(attn[12]\.(to_[qkv]|to_out\.0)|ffn\.net\.(0\.proj|2))",
    sampling={"num_frames": 81, "height": 480, "width": 832, "shift": 5.0, "guidance_scale": 5.0},
    bases=(
        Base("Wan", "https://github.com/Wan-Video/Wan2.1/blob/main/LICENSE.txt", _LICENCE),
        Base("UMT5-XXL", "https://huggingface.co/google/umt5-xxl", _LICENCE),
    ),
    advice=(
        "put Wan's text-to-video weights there, in the layout of their diffusers repository (transformer, vae, "
        "text_encoder, tokenizer) or as Wan publishes them"
    ),
)

"""HunyuanVideo and ICVE, the editor made of it."""

from icve.models.family import Base, Family

_HERE = "icve.models.hunyuan_video"

FAMILY = Family(
    name="hunyuan_video",
    transformer=f"{_HERE}.transformer.HunyuanVideoInContextTransformer3DModel",
    codecs=(f"{_HERE}.codec.HunyuanVideoCodec",),
    text_encoders=(f"{_HERE}.text.HunyuanTextEncoder",),
    weights=f"{_HERE}.weights",
    adapters=f"{_HERE}.adapter_names",
    open_base=f"{_HERE}.base.open_base",
    convert_codec=f"{_HERE}.base.convert_codec",
    tiny={"hunyuan_video": f"{_HERE}.tiny.write_tiny"},
    exports=("icve",),
    blocks={"num_layers": "transformer_blocks", "num_single_layers": "single_transformer_blocks"},
    # Every projection of attention and MLP in the blocks; not modulation, embeddings, refiner and output.
    lora_targets=(
        r"(single_)?transformer_blocks\.\d+\.(attn\.(to_[qkv]|to_out\.0|add_[qkv]_proj|to_add_out)"
        r"|ff(_context)?\.net\.(0\.proj|2)|proj_mlp|proj_out)"
    ),
    sampling={"num_frames": 77, "height": 480, "width": 768},
    bases=(
        Base(
            "HunyuanVideo",
            "https://github.com/Tencent-Hunyuan/HunyuanVideo/blob/main/LICENSE.txt",
            "Tencent Hunyuan Community License: not in the European Union, the United Kingdom and South Korea; more "
            "than 100 million monthly users need a licence of their own; its models and outputs must not improve other "
            "models; copies carry the licence, its notice and a note of changes.",
        ),
        Base(
            "LLaVA-LLaMA-3-8B",
            "https://github.com/meta-llama/llama3/blob/main/LICENSE",
            "Meta Llama 3 Community License: more than 700 million monthly users need a licence of their own; copies "
            "carry the licence and its notice; say 'Built with Meta Llama 3', and begin the names of models made with "
            "it with 'Llama 3'.",
        ),
        Base("CLIP ViT-L/14", "https://github.com/openai/CLIP/blob/main/LICENSE", "MIT License."),
    ),
    aliases=("hunyuan",),
    advice=(
        "put HunyuanVideo's text-to-video weights there, in the layout of their diffusers repository (transformer, "
        "vae, text_encoder, tokenizer, text_encoder_2, tokenizer_2)"
    ),
)

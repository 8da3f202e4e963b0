import pytest

from icve.models.hunyuan_video.base_folders import resolve_base


def folders(root, *names):
    for name in names:
        (root / name).mkdir(parents=True)


def test_diffusers_repository(tmp_path):
    folders(tmp_path, "transformer", "vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "scheduler")
    base = resolve_base(tmp_path)
    assert (base.transformer, base.vae) == (tmp_path / "transformer", tmp_path / "vae")
    assert (base.llama, base.clip) == (tmp_path / "text_encoder", tmp_path / "text_encoder_2")
    assert (base.llama_tokenizer, base.clip_tokenizer) == (tmp_path / "tokenizer", tmp_path / "tokenizer_2")


@pytest.mark.parametrize("given", ["", "ckpts"])
def test_tencents_tree(tmp_path, given):
    tree = tmp_path / "ckpts"
    inner = tree / "hunyuan-video-t2v-720p"
    folders(inner, "transformers", "vae")
    folders(tree, "text_encoder", "text_encoder_2")
    base = resolve_base(tmp_path / given)
    assert (base.transformer, base.vae) == (inner / "transformers", inner / "vae")
    assert (base.llama, base.clip) == (tree / "text_encoder", tree / "text_encoder_2")
    assert (base.llama_tokenizer, base.clip_tokenizer) == (base.llama, base.clip)


def test_only_the_needed_parts_must_be_there(tmp_path):
    folders(tmp_path, "vae", "text_encoder")
    with pytest.raises(FileNotFoundError, match="lacks 'transformer', the text-to-video transformer"):
        resolve_base(tmp_path)
    with pytest.raises(FileNotFoundError, match="lacks 'text_encoder_2', the CLIP-L text model"):
        resolve_base(tmp_path, parts=("vae", "llama", "clip"))
    base = resolve_base(tmp_path, parts=("vae", "llama"))
    assert (base.transformer, base.clip, base.clip_tokenizer) == (None, None, None)


def test_what_is_no_base_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"There is no folder .* download HunyuanVideo"):
        resolve_base(tmp_path / "absent")
    with pytest.raises(FileNotFoundError, match="is no HunyuanVideo folder"):
        resolve_base(tmp_path)
    folders(tmp_path, "hunyuan-video-t2v-720p/vae")
    with pytest.raises(FileNotFoundError, match="lacks 'hunyuan-video-t2v-720p/transformers'"):
        resolve_base(tmp_path)
    with pytest.raises(ValueError, match="no part 'audio'"):
        resolve_base(tmp_path, parts=("audio",))

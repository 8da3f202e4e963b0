import os

import pytest
import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from transformers import CLIPTextConfig, CLIPTextModel

from icve.data.cache.encoder_identity import describe_encoder, difference
from icve.data.identity import FileIdentity, file_digest, files_digest
from icve.models.weightless.dct import DCTCodec


def test_a_file_is_known_by_its_content(tmp_path):
    file = tmp_path / "a.mp4"
    file.write_bytes(b"one")
    identity = FileIdentity.of(tmp_path, "a.mp4")
    assert identity.difference(tmp_path, "a.mp4") is None
    os.utime(file, (1, 1))
    assert identity.difference(tmp_path, "a.mp4") is None
    (tmp_path / "b.mp4").write_bytes(b"one")
    assert identity.difference(tmp_path, "b.mp4") is None
    file.write_bytes(b"two")
    assert "its content has changed" in identity.difference(tmp_path, "a.mp4")
    file.write_bytes(b"longer")
    assert "its content has changed" in identity.difference(tmp_path, "a.mp4")
    file.unlink()
    assert identity.difference(tmp_path, "a.mp4") is None
    assert "it names c.mp4 now" in identity.difference(tmp_path, "c.mp4")


def test_a_file_that_was_not_touched_is_not_read(tmp_path, monkeypatch):
    (tmp_path / "a.mp4").write_bytes(b"one")
    identity = FileIdentity.of(tmp_path, "a.mp4")
    monkeypatch.setattr("icve.data.identity.file_digest", lambda file: pytest.fail("the file was read"))
    assert identity.difference(tmp_path, "a.mp4") is None


@pytest.mark.parametrize("size", [0, 10, 1 << 20, (1 << 20) + 1, 5 << 20])
def test_digests_tell_sizes_and_both_ends_apart(tmp_path, size):
    file, content = tmp_path / "a", bytearray(size)
    file.write_bytes(content)
    digests = {file_digest(file)}
    for place in {0, size - 1} if size else ():
        content[place] = 1
        file.write_bytes(content)
        digests.add(file_digest(file))
    file.write_bytes(content + b"\0")
    digests.add(file_digest(file))
    assert len(digests) == (4 if size > 1 else 2)


def test_digests_of_several_files_know_their_names(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_bytes(b"1")
    two.write_bytes(b"2")
    straight = files_digest([one, two])
    assert files_digest([two, one]) == straight
    one.write_bytes(b"2")
    two.write_bytes(b"1")
    assert files_digest([one, two]) != straight


class Weighted(ModelMixin, ConfigMixin):
    """An encoder with weights, a model of transformers inside, and paths in its configuration."""

    @register_to_config
    def __init__(self, pretrained: str, layers: int = 1):
        super().__init__()
        config = CLIPTextConfig(hidden_size=8, intermediate_size=8, num_attention_heads=1, num_hidden_layers=layers,
                                vocab_size=20, max_position_embeddings=8)  # fmt: skip
        self.clip = CLIPTextModel(config)


@pytest.fixture
def make(tmp_path):
    def make(folder="here", seed=0, **options):
        (tmp_path / folder).mkdir(exist_ok=True)
        torch.manual_seed(seed)
        return Weighted(str(tmp_path / folder), **options)

    return make


def why(one, two):
    return difference(describe_encoder(one), describe_encoder(two), "text encoder")


def test_the_same_encoder_elsewhere_is_the_same(make):
    assert why(make(), make()) is None
    assert why(make(), make("there")) is None
    assert why(DCTCodec(), DCTCodec()) is None


def test_other_weights_settings_and_classes_are_told(make):
    assert why(make(), make(seed=1)) == "its text encoder had other weights"
    one, two = make(), make()
    with torch.no_grad():
        two.clip.get_parameter(next(name for name, _ in two.clip.named_parameters())).view(-1)[-1] += 1e-3
    assert why(one, two) == "its text encoder had other weights"
    assert why(make(), make().half()) == "its text encoder had other weights"
    assert "layers of its text encoder is 1 and the configuration's is 2" in why(make(), make(layers=2))
    assert "is icve.models.weightless.dct.DCTCodec and the configuration's is" in why(DCTCodec(), make())
    two = make()
    two.clip.config.layer_norm_eps = 0.5
    assert "clip.layer_norm_eps of its text encoder" in why(make(), two)


class Late(DCTCodec):
    """Says itself which weights it would load."""

    weights = "aa"

    def weights_digest(self):
        return self.weights

    def state_dict(self, *args, **kwargs):
        raise AssertionError("the weights were loaded")


def test_an_encoder_that_loads_late_is_not_made_to_load():
    one, two = Late(), Late()
    assert why(one, two) is None
    two.weights = "bb"
    assert why(one, two) == "its text encoder had other weights"
    assert "scales of its" in why(one, Late(scales=[2.0] * 16))

import io
import json

import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.plugins.image.images_plugin import ImagesPlugin
from werkzeug.test import Client
from werkzeug.wrappers import Response

from icve.training.callbacks.ema import EMA
from icve.training.callbacks.gif import encode_gif
from icve.training.callbacks.previews import EditPreviews, psnr, side_by_side
from icve.training.objectives.in_context import InContext
from tests.training.conftest import SIZE, TinyPairs, as_loader, cached_texts


def gif_frames(data):
    image = Image.open(io.BytesIO(data))
    frames = []
    for number in range(image.n_frames):
        image.seek(number)
        frames.append(np.asarray(image.convert("RGB")))
    return np.stack(frames), image


def test_a_gif_holds_every_frame_at_its_rate():
    colours = [(220, 30, 30), (30, 220, 30), (30, 30, 220)]
    clip = np.stack([np.full((8, 12, 3), colour, dtype=np.uint8) for colour in colours])
    frames, image = gif_frames(encode_gif(clip, fps=8.0))
    assert frames.shape == clip.shape
    assert np.abs(frames.astype(int) - clip).max() < 8
    assert image.info["loop"] == 0  # for ever
    assert image.info["duration"] == 120  # hundredths of a second are all a GIF knows
    assert gif_frames(encode_gif(clip, fps=500.0))[1].info["duration"] == 20  # browsers slow down anything faster


def test_equal_frames_keep_their_time():
    clip = np.zeros((4, 8, 8, 3), dtype=np.uint8)
    data = encode_gif(clip, fps=10.0)
    image = Image.open(io.BytesIO(data))
    shown = 0
    for number in range(image.n_frames):
        image.seek(number)
        shown += image.info["duration"]
    assert shown == 400


@pytest.mark.parametrize("shape", [(0, 8, 8, 3), (8, 8, 3), (2, 8, 8, 1)])
def test_other_shapes_are_refused(shape):
    with pytest.raises(ValueError, match=r"uint8 frames \(F, H, W, 3\)"):
        encode_gif(np.zeros(shape, dtype=np.uint8), 8.0)


def test_side_by_side_in_order_with_dividers():
    videos = [torch.full((3, 2, 64, 64), value, dtype=torch.uint8) for value in (10, 20, 30)]
    frames = side_by_side(videos, least_height=100)
    assert frames.shape == (2, 128, 3 * 128 + 2 * 4, 3)
    assert frames[0, 0, [0, 127, 128, 132, 259, 264], 0].tolist() == [10, 10, 255, 20, 20, 30]


def test_psnr_of_equal_and_of_opposite_videos():
    black, white = (torch.full((3, 2, 4, 4), value, dtype=torch.uint8) for value in (0, 255))
    assert psnr(black, white) == pytest.approx(0.0, abs=1e-5)
    assert psnr(black, black) == pytest.approx(60.0)
    assert psnr(black, black + 16) == pytest.approx(20 * np.log10(255 / 16), abs=1e-4)


def served_by_tensorboard(folder):
    """{tag: (mime type, bytes)} of the newest images, as TensorBoard's own plugin answers a browser."""
    multiplexer = EventMultiplexer().AddRunsFromDirectory(str(folder))
    multiplexer.Reload()
    provider = MultiplexerDataProvider(multiplexer, str(folder))
    apps = ImagesPlugin(TBContext(data_provider=provider)).get_plugin_apps()
    images = {}

    def get(route, **query):
        return Client(apps[route], Response).get("/", query_string=query)

    for run, tags in json.loads(get("/tags").data).items():
        for tag in tags:
            newest = json.loads(get("/images", run=run, tag=tag, sample=0).data)[-1]
            answer = get("/individualImage", blob_key=newest["query"].split("blob_key=")[1])
            images[tag] = (answer.mimetype, answer.data)
    return images


def test_tensorboard_shows_moving_pictures(make_module, make_trainer, make_data, tmp_path):
    callbacks = [EMA(decay=0.9), EditPreviews(count=2, steps=2)]
    logger = TensorBoardLogger(tmp_path, name="", version="tensorboard")
    data = make_data(validation=1)
    module = make_module()
    trainer = make_trainer(2, callbacks, logger=logger, val_check_interval=1, precision="bf16-mixed")
    trainer.fit(module, datamodule=data)
    for role in ("target", "source"):  # noise of 8 bits against edits that know nothing yet
        assert 5 < float(trainer.callback_metrics[f"val/preview_psnr_{role}"]) < 15
    images = served_by_tensorboard(tmp_path)
    assert len(images) == 2
    sample = data.batch(-1)
    for number, (mime_type, gif) in enumerate(images.values()):
        assert mime_type == "image/gif"
        frames, _ = gif_frames(gif)
        assert frames.shape == (5, 128, 3 * 128 + 8, 3)
        scale = 128 // SIZE
        for name, left in (("source", 0), ("target", 2 * 132)):
            shown = frames[:, scale // 2 :: scale, left + scale // 2 : left + 128 : scale].astype(float)
            truth = sample[name][number].permute(1, 2, 3, 0).numpy()
            assert np.abs(shown - truth).mean() < 25  # 256 colours for a clip of noise


def test_latents_are_shown_as_the_codec_decodes_them(make_module, make_trainer, make_data, tmp_path):
    data, module = make_data(validation=1), make_module()
    batch = data.batch(-1)
    pixels = {role: batch[role] for role in ("source", "target")}
    latents = {role: module.codec.encode(video.float() / 127.5 - 1) for role, video in pixels.items()}
    batch = cached_texts(module, batch) | latents
    module.text_encoder.encode = None  # not needed
    data.train_dataloader = data.val_dataloader = lambda: as_loader([batch])
    logger = TensorBoardLogger(tmp_path, name="", version="tensorboard")
    make_trainer(1, [EditPreviews(count=2, steps=2, guidance_scale=2.0)], logger=logger, val_check_interval=1).fit(
        module, datamodule=data
    )
    images = served_by_tensorboard(tmp_path)
    assert len(images) == 2
    for number, (_, gif) in enumerate(images.values()):
        frames, _ = gif_frames(gif)
        for name, left in (("source", 0), ("target", 2 * 132)):
            shown = frames[:, 4::8, left + 4 : left + 128 : 8].astype(float)
            truth = module.pipeline().decode_latents(latents[name][[number]], "uint8")[0].permute(1, 2, 3, 0).numpy()
            assert np.abs(shown - truth).mean() < 25
            # close to what was decoded, not to the noise that was encoded
            assert np.abs(shown - pixels[name][number].permute(1, 2, 3, 0).numpy()).mean() > 40


class Copies(InContext):
    """An objective whose editor returns the source."""

    def edit(self, pipeline, source, instructions, **settings):
        assert settings["num_inference_steps"] == 3
        return source


class Plain(TinyPairs):
    def batch(self, number):
        batch = super().batch(number)
        return batch | {"source": torch.full_like(batch["source"], 60), "target": torch.full_like(batch["target"], 200)}


def test_the_objective_says_how_previews_are_edited(make_module, make_trainer, tmp_path):
    trainer = make_trainer(1, [EditPreviews(1, steps=3)], logger=TensorBoardLogger(tmp_path), val_check_interval=1)
    trainer.fit(make_module(objective=Copies()), datamodule=Plain(validation=1))
    assert trainer.callback_metrics["val/preview_psnr_source"] > 40
    assert trainer.callback_metrics["val/preview_psnr_target"] < 10


def test_without_tensorboard_there_is_nothing_to_show(make_module, make_trainer, make_data):
    trainer = make_trainer(1, [EditPreviews(steps=1)], val_check_interval=1)
    trainer.fit(make_module(), datamodule=make_data(validation=1))

"""EditPipeline: scheduler parity, guidance, batching, precision, and its folder."""

import json
import shutil

import numpy as np
import pytest
import torch
from diffusers import FirstBlockCacheConfig, FlowMatchEulerDiscreteScheduler, MagCacheConfig
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.cache_utils import CacheMixin
from diffusers.models.modeling_utils import ModelMixin
from safetensors.torch import load_file

from icve.data.media.video import write_video
from icve.editing.pipeline import DEFAULTS, EditPipeline, draw_noise
from icve.flow import sampling_sigmas, shift_sigma
from icve.models.hunyuan_video.transformer import HunyuanVideoInContextTransformer3DModel
from icve.models.weightless.dct import DCTCodec
from icve.models.weightless.hashed import HashedTextEncoder
from tests.tiny import tiny_editor


class OracleTransformer(ModelMixin, ConfigMixin, CacheMixin):
    """Knows the one clean target of every instruction: source + a shift that only the pooled text decides.

    Predicts the exact velocity (x_t - x0)/sigma or noise (x_t - (1 - sigma) x0)/sigma, and records its calls.
    """

    @register_to_config
    def __init__(self, prediction: str = "velocity", guidance_embeds: bool = False):
        super().__init__()
        self.anchor = torch.nn.Parameter(torch.zeros(1))
        self.calls: list[dict] = []

    arguments = HunyuanVideoInContextTransformer3DModel.arguments
    named = HunyuanVideoInContextTransformer3DModel.named

    def forward(self, hidden_states, source_hidden_states, timestep, pooled_projections, **others):
        self.calls.append({"timestep": timestep, "batch": len(hidden_states), "dtype": hidden_states.dtype, **others})
        shift = pooled_projections.sum(1).reshape(-1, 1, 1, 1, 1)
        x0 = source_hidden_states + shift
        sigma = (timestep / 1000).reshape(-1, 1, 1, 1, 1)
        if self.config.prediction == "epsilon":
            return (hidden_states - (1 - sigma) * x0) / sigma
        return (hidden_states - x0) / sigma


def quiet(pipeline: EditPipeline) -> EditPipeline:
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def oracle_pipeline(prediction: str = "velocity", guidance_embeds: bool = False, **defaults) -> EditPipeline:
    transformer = OracleTransformer(prediction, guidance_embeds)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=7.0)
    return quiet(EditPipeline(DCTCodec(), HashedTextEncoder(), scheduler, transformer, prediction, defaults))


@pytest.fixture(scope="module")
def pipeline() -> EditPipeline:
    return tiny_editor(steps=3, guidance_scale=2.0)


def video(batch: int = 2) -> torch.Tensor:
    return torch.rand(batch, 3, 5, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


INSTRUCTIONS = ["make it red", "remove the very large blue circle on the left"]


@pytest.mark.parametrize("steps", [10, 50])
def test_scheduler_matches_the_release(shared_data, steps):
    golden = load_file(shared_data / "golden" / "golden_scheduler.safetensors")
    scheduler = FlowMatchEulerDiscreteScheduler(shift=7.0)
    scheduler.set_timesteps(sigmas=sampling_sigmas(steps, 7.0))
    torch.testing.assert_close(scheduler.sigmas, golden[f"sigmas_{steps}"], atol=2e-7, rtol=0)
    torch.testing.assert_close(scheduler.timesteps, golden[f"timesteps_{steps}"], atol=2e-4, rtol=0)

    sample, output = golden["sample"].clone(), golden["model_output"].clone()
    for name, index in (("step0", 0), ("mid", steps // 2)):
        scheduler.set_timesteps(sigmas=sampling_sigmas(steps, 7.0))
        stepped = scheduler.step(output, scheduler.timesteps[index], sample, return_dict=False)[0]
        torch.testing.assert_close(stepped, golden[f"euler_{name}_{steps}"], atol=1e-6, rtol=0)
    scheduler.set_timesteps(sigmas=sampling_sigmas(steps, 7.0))
    latents = sample
    for timestep in scheduler.timesteps:
        latents = scheduler.step(output, timestep, latents, return_dict=False)[0]
    torch.testing.assert_close(latents, golden[f"euler_all_constant_v_{steps}"], atol=2e-6, rtol=0)


@pytest.mark.parametrize("prediction", ["velocity", "epsilon"])
@pytest.mark.parametrize(("steps", "solver"), [(1, "euler"), (7, "euler"), (1, "unipc"), (7, "unipc")])
def test_sampling_reaches_the_model_s_target(prediction, steps, solver):
    pipeline = oracle_pipeline(prediction)
    source = pipeline.encode_video(video())
    shift = pipeline.text_encoder.encode(INSTRUCTIONS).extras["pooled"].sum(1).reshape(-1, 1, 1, 1, 1)
    edited = pipeline(video(), INSTRUCTIONS, steps, guidance_scale=1.0, output_type="latent", solver=solver).video
    torch.testing.assert_close(edited, source + shift, atol=2e-3, rtol=1e-3)


def test_guidance_extrapolates_from_the_negative_branch():
    pipeline = oracle_pipeline()
    source = pipeline.encode_video(video())
    shifts = pipeline.text_encoder.encode(["ugly", *INSTRUCTIONS]).extras["pooled"].sum(1)
    guided = shifts[0] + 3.0 * (shifts[1:] - shifts[0])
    edited = pipeline(video(), INSTRUCTIONS, 4, guidance_scale=3.0, negative_prompt="ugly", output_type="latent").video
    torch.testing.assert_close(edited, source + guided.reshape(-1, 1, 1, 1, 1), atol=5e-3, rtol=1e-3)
    assert {call["batch"] for call in pipeline.transformer.calls} == {4}


def test_no_negative_branch_without_guidance():
    pipeline = oracle_pipeline(steps=3)
    pipeline(video(), INSTRUCTIONS, guidance_scale=1.0)
    assert [call["batch"] for call in pipeline.transformer.calls] == [2, 2, 2]
    assert pipeline.transformer.calls[0]["guidance"] is None


def test_guidance_may_end_at_a_noise_level():
    """Texts of different lengths share the guided steps; below the level the instructed branch runs alone."""
    pipeline = oracle_pipeline()
    pipeline(video(), INSTRUCTIONS, 4, guidance_scale=3.0, shift=1.0, guidance_until=0.5, negative_prompt="a b c d e f")
    assert [call["batch"] for call in pipeline.transformer.calls] == [4, 4, 2, 2]  # sigma 1, 0.75 | 0.5, 0.25
    with pytest.raises(ValueError, match="guidance_until"):
        pipeline(video(), INSTRUCTIONS, 4, guidance_until=1.0)


def test_embedded_guidance_only_for_models_that_have_it():
    pipeline = oracle_pipeline(guidance_embeds=True)
    pipeline(video(), INSTRUCTIONS, 1, guidance_scale=1.0, embedded_guidance_scale=1.5)
    assert pipeline.transformer.calls[0]["guidance"].tolist() == [1500.0, 1500.0]


def test_defaults_rule_what_the_call_leaves_open():
    pipeline = oracle_pipeline(steps=2, shift=3.0, guidance_scale=1.0)
    pipeline(video(), INSTRUCTIONS)
    times = [round(call["timestep"][0].item(), 3) for call in pipeline.transformer.calls]
    assert times == [1000.0, 750.0]  # 3*0.5 / (1 + 2*0.5)
    pipeline.transformer.calls.clear()
    pipeline(video(), INSTRUCTIONS, num_inference_steps=1, shift=7.0, guidance_scale=2.0)
    assert [(call["timestep"][0].item(), call["batch"]) for call in pipeline.transformer.calls] == [(1000.0, 4)]


def test_the_solver_is_the_call_s_or_the_editor_s(tmp_path):
    editor = tiny_editor(steps=4, solver="unipc")
    editor.save_pretrained(tmp_path)

    def edit(pipeline, videos=2, **options):
        given = {"generator": generators(*range(videos)), "output_type": "latent"}
        return pipeline(video()[:videos], INSTRUCTIONS[:videos], **given, **options).video

    unipc, euler = edit(editor), edit(editor, solver="euler")
    assert torch.equal(edit(quiet(EditPipeline.from_pretrained(tmp_path))), unipc)
    assert torch.equal(edit(tiny_editor(steps=4)), euler)
    assert (unipc - euler).abs().max() > 1e-3
    torch.testing.assert_close(edit(editor, videos=1), unipc[:1], atol=1e-5, rtol=1e-4)
    with pytest.raises(ValueError, match="The solver is 'euler' or 'unipc', not 'heun'"):
        edit(editor, solver="heun")


def test_unknown_or_impossible_defaults_are_refused():
    with pytest.raises(ValueError, match=r"'step'.*'steps'"):
        oracle_pipeline(step=3)
    with pytest.raises(ValueError, match="4k\\+1"):
        oracle_pipeline(num_frames=8)
    with pytest.raises(ValueError, match="prediction"):
        oracle_pipeline("x0")


def test_an_item_does_not_depend_on_its_batch(pipeline):
    together = pipeline(video(), INSTRUCTIONS, generator=generators(3, 4)).video
    for index in range(2):
        alone = pipeline(video()[index : index + 1], INSTRUCTIONS[index], generator=generators(3 + index)).video
        torch.testing.assert_close(together[index], alone[0], atol=1e-5, rtol=0)


def test_seed_instruction_and_source_all_matter(pipeline):
    edited = pipeline(video(1), "make it red", generator=generators(0)).video
    assert torch.equal(edited, pipeline(video(1), "make it red", generator=generators(0)).video)
    for other in (
        pipeline(video(1), "make it red", generator=generators(1)).video,
        pipeline(video(1), "make it blue", generator=generators(0)).video,
        pipeline(-video(1), "make it red", generator=generators(0)).video,
    ):
        assert (edited - other).abs().max() > 1e-3


def test_pixels_in_and_out(pipeline):
    pixels = ((video() + 1) * 127.5).round().to(torch.uint8)
    edited = pipeline(pixels, "make it red", generator=generators(0, 1), output_type="uint8").video
    assert edited.dtype == torch.uint8
    assert edited.shape == pixels.shape
    same = pipeline(pixels.float() / 127.5 - 1, "make it red", generator=generators(0, 1)).video
    assert same.abs().max() <= 1
    torch.testing.assert_close(edited.float() / 127.5 - 1, same, atol=0.5 / 127.5 + 1e-4, rtol=0)


def test_half_precision_model_keeps_float32_latents(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path)
    half = quiet(EditPipeline.from_pretrained(tmp_path, dtype=torch.bfloat16))
    assert half.transformer.dtype == torch.bfloat16
    edited = half(video(), INSTRUCTIONS, generator=generators(3, 4), output_type="latent").video
    exact = pipeline(video(), INSTRUCTIONS, generator=generators(3, 4), output_type="latent").video
    assert edited.dtype == torch.float32
    assert (edited - exact).abs().max() > 0
    assert (edited - exact).square().mean() < 0.01 * exact.square().mean()


def test_single_generator_is_drawn_item_after_item():
    shape = (3, 2, 1, 4, 4)
    (one,), (other,) = generators(7), generators(7)
    expected = torch.stack([torch.randn(shape[1:], generator=other) for _ in range(3)])
    assert torch.equal(draw_noise(shape, one), expected)


def test_numbers_that_disagree_are_refused(pipeline):
    with pytest.raises(ValueError, match="2 videos and 1 instructions"):
        pipeline(video(), ["make it red"])
    with pytest.raises(ValueError, match="2 videos and 1 generators"):
        pipeline(video(), "make it red", generator=generators(0))
    with pytest.raises(ValueError, match="shape"):
        pipeline(video()[0, 0], "make it red")
    with pytest.raises(ValueError, match="output_type"):
        pipeline(video(), "make it red", output_type="pil")
    with pytest.raises(ValueError, match="at least 1 step"):
        pipeline(video(), "make it red", num_inference_steps=0)


def test_the_shift_follows_the_size_where_training_s_did():
    """At 16 times the tokens of which the shift is told, four times the shift; what a call asks for stays as asked."""
    pipeline = oracle_pipeline(steps=2, guidance_scale=1.0, shift=2.0, shift_tokens=2)
    for source, shift in ((video(1)[..., :16, :16], 2.0), (video(1).repeat(1, 1, 1, 2, 2), 8.0)):
        for options, used in (({}, shift), ({"shift": 3.0}, 3.0)):
            pipeline.transformer.calls.clear()
            pipeline(source, "make it red", **options)
            levels = [float(call["timestep"][0]) / 1000 for call in pipeline.transformer.calls]
            assert levels == pytest.approx([1.0, shift_sigma(0.5, used)])


def test_folder_round_trip(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["codec"] == ["icve.models.weightless.dct", "DCTCodec"]
    assert index["text_encoder"] == ["icve.models.weightless.hashed", "HashedTextEncoder"]
    assert index["transformer"] == ["icve.models.hunyuan_video.transformer", "HunyuanVideoInContextTransformer3DModel"]
    assert index["defaults"]["steps"] == 3
    loaded = quiet(EditPipeline.from_pretrained(tmp_path))
    assert loaded.default("shift") == 5.0
    assert loaded.default("negative_prompt") == DEFAULTS["negative_prompt"]
    assert "blurred" in DEFAULTS["negative_prompt"]
    edited = [each(video(), INSTRUCTIONS, generator=generators(3, 4)).video for each in (pipeline, loaded)]
    assert torch.equal(*edited)


def test_pickled_weights_are_never_read(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path)
    weights = tmp_path / "transformer" / "diffusion_pytorch_model.safetensors"
    torch.save(load_file(weights), weights.with_suffix(".bin"))
    weights.unlink()
    with pytest.raises(OSError, match="safetensors"):
        EditPipeline.from_pretrained(tmp_path, use_safetensors=False)


def test_code_in_the_folder_is_never_run(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    index["codec"] = ["evil", "DCTCodec"]
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    shutil.copy(tmp_path / "codec" / "config.json", tmp_path / "codec" / "kept.json")
    (tmp_path / "codec" / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises((ValueError, OSError)):
        EditPipeline.from_pretrained(tmp_path, trust_remote_code=True)
    assert not (tmp_path / "ran").exists()


MAG_RATIOS = [1.0] * 6


@pytest.mark.parametrize("guidance_until", [0.0, 0.5])
@pytest.mark.parametrize(
    ("make_config", "off", "high"),
    [
        (lambda threshold: FirstBlockCacheConfig(threshold=threshold), 0.0, 1e6),
        # MagCache skips where the accumulated error is at most its threshold: ratios of 1 have none.
        (
            lambda threshold: MagCacheConfig(
                threshold=threshold, num_inference_steps=6, mag_ratios=MAG_RATIOS, retention_ratio=0.2
            ),
            -1.0,
            1e6,
        ),
    ],
)
def test_step_caches_work_and_remember_nothing_of_the_last_edit(make_config, off, high, guidance_until):
    pipeline = tiny_editor(steps=6, guidance_scale=2.0, guidance_until=guidance_until)
    computed = []
    last = pipeline.transformer.single_transformer_blocks[-1]
    last.proj_out.register_forward_hook(lambda *_: computed.append(1))

    def edit(batch: int = 2):
        computed.clear()
        return pipeline(video(batch), "make it red", generator=generators(*range(batch))).video, len(computed)

    plain, calls = edit()
    assert calls == 6
    pipeline.transformer.enable_cache(make_config(off))
    result, calls = edit()
    assert calls == 6
    torch.testing.assert_close(result, plain, atol=1e-6, rtol=0)
    pipeline.transformer.disable_cache()
    pipeline.transformer.enable_cache(make_config(high))
    first, calls = edit()
    assert calls < 6
    assert (first - plain).abs().max() > 0
    edit(batch=1)
    assert torch.equal(edit()[0], first)
    pipeline.transformer.disable_cache()
    assert torch.equal(edit()[0], plain)


def test_a_callback_sees_every_step_and_may_replace_the_latents(pipeline):
    steps = []

    def look(editor, step, timestep, values):
        steps.append((step, float(timestep)))
        assert values["latents"].shape == (2, 16, 2, 4, 4)
        return {}

    plain = pipeline(video(), "make it red", generator=generators(0, 1)).video
    assert torch.equal(
        pipeline(video(), "make it red", generator=generators(0, 1), callback_on_step_end=look).video, plain
    )
    assert [step for step, _ in steps] == [0, 1, 2]
    assert steps[0][1] == 1000.0
    zeroed = pipeline(
        video(),
        "make it red",
        generator=generators(0, 1),
        callback_on_step_end=lambda *_: {"latents": torch.zeros(2, 16, 2, 4, 4)},
    ).video
    assert torch.equal(zeroed, pipeline.decode_latents(torch.zeros(2, 16, 2, 4, 4)))


def test_every_form_of_a_video_gives_the_same_edit(pipeline, tmp_path):
    clip = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
    tensor = torch.from_numpy(clip).permute(3, 0, 1, 2)

    def edit(source):
        return pipeline(source, "make it red", generator=torch.Generator().manual_seed(0)).video

    expected = edit(tensor[None])
    for form in (tensor, clip, clip[None], [clip], [tensor]):
        assert torch.equal(edit(form), expected)
    torch.testing.assert_close(edit([clip, clip])[:1], expected, atol=1e-5, rtol=0)
    write_video(tmp_path / "a.mp4", clip, 8, crf=0)
    from_file = edit(tmp_path / "a.mp4")
    assert torch.equal(from_file, edit(str(tmp_path / "a.mp4")))
    assert from_file.shape == expected.shape
    assert (from_file - expected).abs().mean() < 0.2


def test_any_number_of_frames_comes_back(pipeline, tmp_path):
    clip = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    assert pipeline(clip, "make it red").video.shape == (1, 3, 3, 32, 32)
    write_video(tmp_path / "a.mp4", np.zeros((12, 64, 64, 3), np.uint8), 8)
    assert pipeline(tmp_path / "a.mp4", "make it red").video.shape == (1, 3, 5, 32, 32)  # the model's frames and size


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (torch.zeros(5, 32, 32), "shape"),
        (np.zeros((5, 32, 32, 3), np.float32), "uint8"),
        (torch.zeros(3, 5, 30, 32), "multiples of 16"),
        ([torch.zeros(3, 5, 32, 32), torch.zeros(3, 9, 32, 32)], "one shape"),
        ([], "one shape"),
        (7, "not iterable|shape"),
        ("absent.mp4", "absent.mp4: it cannot be opened"),
    ],
)
def test_what_is_no_video_is_refused(pipeline, source, message):
    with pytest.raises((ValueError, TypeError), match=message):
        pipeline(source, "make it red")


def test_group_offloading_changes_nothing():
    pipeline = tiny_editor()
    plain = pipeline(video(), "make it red", generator=generators(0, 1)).video
    device = torch.device("cpu")
    pipeline.transformer.enable_group_offload(device, device, offload_type="block_level", num_blocks_per_group=1)
    assert torch.equal(pipeline(video(), "make it red", generator=generators(0, 1)).video, plain)


def test_model_offloading_of_an_editor_whose_codec_and_text_encoder_have_no_weights_changes_nothing():
    pipeline = tiny_editor()
    plain = pipeline(video(), "make it red", generator=generators(0, 1)).video
    pipeline.enable_model_cpu_offload(device="cpu")
    for _ in range(2):  # the hooks are put on again after every edit
        assert torch.equal(pipeline(video(), "make it red", generator=generators(0, 1)).video, plain)
    assert pipeline.transformer._hf_hook is not None


def test_model_offloading_moves_the_parts_for_every_call(pipeline):
    """Offload hooks sit on `forward`; codec and text encoder are called by `encode` and `decode`."""
    moved = []

    class Hook:
        def pre_forward(self, module):
            moved.append(type(module).__name__)

    pipeline.codec._hf_hook = pipeline.text_encoder._hf_hook = Hook()
    try:
        pipeline(video(), "make it red")
    finally:
        del pipeline.codec._hf_hook, pipeline.text_encoder._hf_hook
    assert moved[0] == moved[-1] == "DCTCodec"
    assert "HashedTextEncoder" in moved

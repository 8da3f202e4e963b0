"""Training on real codec and text classes: what is frozen is read, used, and nowhere in what a run writes."""

from functools import partial

import pytest
import torch
import yaml
from safetensors import safe_open

from icve.cli.main import main
from icve.editing.pipeline import EditPipeline
from icve.models.hunyuan_video.codec import HunyuanVideoCodec
from icve.models.hunyuan_video.text import HunyuanTextEncoder
from icve.training.callbacks.checkpoints import Checkpoints
from icve.training.callbacks.ema import EMA
from icve.training.checkpoints.checkpoint_io import CheckpointFolders
from icve.training.module import InContextEditingModule, Sampling
from icve.training.objectives.in_context import InContext
from tests.tiny_hunyuan import POOLED_DIM, TEXT_DIM, save_tiny_hunyuan
from tests.training.conftest import SIZE, tiny_transformer


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return {name: str(path) for name, path in save_tiny_hunyuan(tmp_path_factory.mktemp("base")).items()}


@pytest.fixture
def module(base):
    return InContextEditingModule(
        tiny_transformer(text_embed_dim=TEXT_DIM, pooled_projection_dim=POOLED_DIM),
        {
            "codec": HunyuanVideoCodec(base["vae"]),
            "text_encoder": HunyuanTextEncoder(base["llama"], base["clip"]),
        },
        InContext(pixel_weight=1.0),
        stage="tiny",
        optimizer=partial(torch.optim.AdamW, lr=1e-3),
        sampling=Sampling(2, 1.0, 1.0, num_frames=5, height=SIZE, width=SIZE),
    )


def tensor_names(folder) -> set[str]:
    """Names of every tensor in the safetensors of a folder."""
    names = set()
    for file in folder.rglob("*.safetensors"):
        with safe_open(file, framework="pt") as content:
            names |= set(content.keys())
    return names


def test_nothing_frozen_is_in_a_checkpoint_or_an_optimizer(module, make_trainer, make_data, tmp_path):
    trainer = make_trainer(2, [EMA(), Checkpoints(every_n_steps=2)])
    trainer.fit(module, datamodule=make_data(validation=1))
    frozen = [*module.codec.parameters(), *module.text_encoder.parameters()]
    assert len(frozen) > 100
    own = set(module.transformer.state_dict())

    assert set(module.state_dict()) == {f"transformer.{name}" for name in own}
    assert {id(p) for p in module.parameters()}.isdisjoint(map(id, frozen))
    optimised = [p for group in trainer.optimizers[0].param_groups for p in group["params"]]
    assert {id(p) for p in optimised} == {id(p) for p in module.transformer.parameters()}

    folder = tmp_path / "checkpoints" / "last"
    checkpoint = CheckpointFolders().load_checkpoint(folder)
    assert set(checkpoint["state_dict"]) == {f"transformer.{name}" for name in own}
    assert len(checkpoint["optimizer_states"][0]["state"]) == len(optimised)
    names, tensors = [], []
    for path, tensor in flatten(checkpoint):
        names.append(path)
        tensors.append(tensor)
    assert not [name for name in names if any(part in name for part in ("vae", "language_model", "pooled_model"))]
    # Weights, EMA and two moments each (and the optimizer's step counters): there is no room for anything frozen.
    size = sum(p.numel() for p in module.transformer.parameters())
    assert sum(tensor.numel() for tensor in tensors) <= 4 * size + 2 * len(optimised)
    assert tensor_names(folder / "transformer") == own
    assert sorted(file.name for file in (folder / "codec").iterdir()) == ["config.json"]
    assert sorted(file.name for file in (folder / "text_encoder").iterdir()) == ["config.json"]


def flatten(value, path=""):
    """(path, tensor) of every tensor in nested dictionaries and lists."""
    if isinstance(value, torch.Tensor):
        yield path, value
    elif isinstance(value, dict | list | tuple):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from flatten(item, f"{path}/{key}")


def test_what_a_run_writes_is_an_editor(module, make_trainer, make_data, tmp_path):
    make_trainer(1, [Checkpoints(every_n_steps=1)]).fit(module, datamodule=make_data())
    editor = EditPipeline.from_pretrained(tmp_path / "checkpoints" / "last")
    editor.set_progress_bar_config(disable=True)
    edited = editor(make_data().batch(0)["source"], "remove it", generator=torch.Generator().manual_seed(0)).video
    assert edited.shape == (2, 3, 5, SIZE, SIZE)
    assert torch.isfinite(edited).all()


def test_cached_latents_never_read_the_codec(module, make_trainer, make_data):
    module.objective.pixel_weight = 0.0

    class Cached(type(make_data())):
        def batch(self, number):
            latents = torch.randn(2, 16, 2, 2, 2, generator=torch.Generator().manual_seed(number))
            return super().batch(number) | {"source": latents, "target": latents}

    make_trainer(1).fit(module, datamodule=Cached())
    assert not list(module.codec.parameters())
    assert list(module.text_encoder.parameters())


def configure(tiny_yaml, base) -> None:
    config = yaml.safe_load(tiny_yaml.read_text())
    config["model"]["transformer"]["init_args"] |= {"text_embed_dim": TEXT_DIM, "pooled_projection_dim": POOLED_DIM}
    codec = {
        "class_path": "icve.models.hunyuan_video.codec.HunyuanVideoCodec",
        "init_args": {"pretrained": base["vae"]},
    }
    text = {"class_path": "icve.models.hunyuan_video.text.HunyuanTextEncoder"}
    text["init_args"] = {"llama": base["llama"], "clip": base["clip"], "dtype": "bfloat16"}
    config["model"]["frozen"] = {"codec": codec, "text_encoder": text}
    tiny_yaml.write_text(yaml.safe_dump(config))


def test_built_from_yaml(tiny_yaml, tmp_path, base):
    configure(tiny_yaml, base)
    assert main(["fit", "-c", str(tiny_yaml), "--trainer.max_steps", "1"]) == 0
    editor = EditPipeline.from_pretrained(tmp_path / "run" / "checkpoints" / "last")
    assert editor.text_encoder.config.dtype == "bfloat16"
    assert editor.codec.config.pretrained == base["vae"]


@pytest.mark.parametrize("name", ["vae", "llama", "clip"])
def test_a_missing_folder_is_one_sentence(tiny_yaml, tmp_path, base, name, capsys):
    configure(tiny_yaml, base | {name: str(tmp_path / "absent")})
    assert main(["fit", "-c", str(tiny_yaml)]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()[-1:]
    assert "absent, which does not exist: put HunyuanVideo's" in line


def partition(rank: int, base: dict[str, str], store: str, kind: str) -> None:
    """Shard a module as ZeRO or FSDP2 does, in a process of its own; fails where something frozen is touched."""
    import torch.distributed

    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=1)
    codec, text_encoder = HunyuanVideoCodec(base["vae"]), HunyuanTextEncoder(base["llama"], base["clip"])
    transformer = tiny_transformer(text_embed_dim=TEXT_DIM, pooled_projection_dim=POOLED_DIM)
    adamw = partial(torch.optim.AdamW, lr=1e-3)
    parts = {"codec": codec, "text_encoder": text_encoder}
    module = InContextEditingModule(transformer, parts, InContext(), stage="tiny", optimizer=adamw)
    codec.load()
    text_encoder.load()
    frozen = [*codec.parameters(), *text_encoder.parameters()]
    own = dict(module.named_parameters())
    assert {name.split(".")[0] for name in own} == {"transformer"}
    if kind == "fsdp":
        from torch.distributed.fsdp import fully_shard
        from torch.distributed.tensor import DTensor

        mesh = torch.distributed.init_device_mesh("cpu", (1,))
        fully_shard(module, mesh=mesh)
        assert all(isinstance(p, DTensor) for p in module.parameters())
        assert not any(isinstance(p, DTensor) for p in frozen)
    else:
        from icve.training.distributed.zero import deepspeed

        config = {
            "train_micro_batch_size_per_gpu": 1,
            "zero_optimization": {"stage": 3},
            "zero_allow_untested_optimizer": True,
        }
        # The same module that Lightning's strategy hands over.
        engine, *_ = deepspeed.initialize(model=module, optimizer=adamw(module.parameters()), config=config)
        partitioned = {p.ds_id for group in engine.optimizer.fp16_groups for p in group}
        assert partitioned == {p.ds_id for p in own.values()}
        assert not any(hasattr(p, "ds_id") for p in frozen)
    torch.distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.timeout(240)
@pytest.mark.parametrize("kind", ["fsdp", "zero"])
def test_nothing_frozen_is_in_a_partition(base, tmp_path, kind, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "0")
    torch.multiprocessing.spawn(partition, args=(base, str(tmp_path / "store"), kind), nprocs=1)

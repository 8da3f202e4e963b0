"""Editing on the simulated accelerator: the CPU's results, and how often a step waits for the device."""

import copy

import pytest
import torch

from tests.accelerator.device import table, waits, watch
from tests.tiny import tiny_editor, tiny_wan_editor

VIDEO = torch.rand(2, 3, 5, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
TEXTS = ["make the red circle blue", "remove it"]  # of different lengths: padding has to be masked


@pytest.fixture(params=["HunyuanVideo", "Wan 2.2"])
def make_editor(request, tiny_wan):
    return tiny_editor if request.param == "HunyuanVideo" else lambda: tiny_wan_editor(tiny_wan[1])


def edit(editor, **options):
    generators = [torch.Generator().manual_seed(n) for n in range(2)]
    options = {"num_inference_steps": 3, "guidance_scale": 3.0, **options}
    return editor(VIDEO, TEXTS, generator=generators, **options).video


@pytest.mark.parametrize("options", [{"guidance_scale": 1.0}, {}, {"guidance_until": 0.8}], ids=str)
def test_an_edit_is_the_cpus(device, make_editor, options):
    ours = edit(make_editor().to(device), **options)
    assert ours.device == device
    torch.testing.assert_close(ours.cpu(), edit(make_editor(), **options), rtol=0, atol=1e-4)


@pytest.mark.parametrize("options", [{"guidance_scale": 1.0}, {}, {"guidance_until": 0.8}], ids=str)
def test_a_sampling_step_never_waits(device, make_editor, options):
    """Neither guided nor plain: an edit of more steps waits as often as one of few."""
    editor, seen = make_editor().to(device), []
    edit(editor, **options)  # a part's weights are read where it is first used
    for steps in (3, 6):
        with watch() as one:
            edit(editor, num_inference_steps=steps, **options)
        seen.append(waits(one.events))
    assert len(seen[1]) == len(seen[0]), table(seen[1])


def test_a_whole_edit_waits_for_its_source_only(device, make_editor):
    editor = make_editor().to(device)
    edit(editor)
    with watch() as seen:
        edit(editor)
    assert [event.place.split(" ")[1] for event in waits(seen.events)] == ["encode_video"], table(seen.waits())


@pytest.mark.parametrize("way", ["model", "sequential", "group"])
def test_an_offloaded_editor_edits_as_before(device, make_editor, way):
    editor = make_editor()
    expected = edit(copy.deepcopy(editor))
    if way == "group":
        editor.codec.to(device), editor.text_encoder.to(device)
        editor.transformer.enable_group_offload(device, offload_type="leaf_level")
    else:
        getattr(editor, f"enable_{way}_cpu_offload")(device=device)
    torch.testing.assert_close(edit(editor).cpu(), expected, rtol=0, atol=1e-4)
    assert {p.device.type for p in editor.transformer.parameters()} <= {"cpu", "meta"}

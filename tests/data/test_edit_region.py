import torch

from icve.data.edit_region import region_from_latents, region_from_mask, region_weight, shown_mask


def test_a_latent_is_touched_when_one_of_its_pixels_is():
    mask = torch.zeros(2, 1, 9, 32, 16, dtype=torch.bool)
    mask[0, 0, 0, 31, 0] = True  # frame 0 alone makes latent frame 0
    mask[0, 0, 4, 8, 15] = True  # frames 1..4 make latent frame 1
    mask[1, 0, 5, 0, 0] = True  # frames 5..8 make latent frame 2
    region = region_from_mask(mask, (3, 4, 2))
    assert region.shape == (2, 1, 3, 4, 2)
    assert region.nonzero().tolist() == [[0, 0, 0, 3, 0], [0, 0, 1, 1, 1], [1, 0, 2, 0, 0]]


def test_a_single_latent_frame():
    mask = torch.zeros(1, 1, 1, 16, 16, dtype=torch.bool)
    mask[..., 0, 0] = True
    assert region_from_mask(mask, (1, 2, 2)).flatten().tolist() == [True, False, False, False]


def test_latents_that_differ_on_average_over_channels():
    source = torch.zeros(1, 16, 2, 3, 3)
    target = source.clone()
    target[0, :, 1, 2, 0] = -0.2
    target[0, 0, 0, 0, 0] = 1.0  # 1/16 on average
    region = region_from_latents(source, target, 0.1)
    assert region.nonzero().tolist() == [[0, 0, 1, 2, 0]]
    assert region_weight(region, 4.0).unique().tolist() == [1.0, 4.0]


def test_a_mask_says_of_every_token_whether_it_may_change_and_a_whole_one_says_nothing():
    region = torch.ones(3, 1, 1, 1, 2, dtype=torch.bool)
    region[0, ..., 0] = region[1] = False
    assert shown_mask(region).flatten(1).tolist() == [[-1, 1], [-1, -1], [0, 0]]

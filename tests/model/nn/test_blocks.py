import pytest
import torch

from msmlp.model.nn.blocks import Reuse, nearest_index, nearest_upsample


def test_every_token_is_copied_to_the_square_it_covers() -> None:
    assert nearest_index(2, 4).tolist() == [0, 0, 1, 1, 0, 0, 1, 1, 2, 2, 3, 3, 2, 2, 3, 3]


def test_grids_that_do_not_divide_take_the_nearest_token() -> None:
    # Row by row: of three, the four take 0, 0, 1, 2.
    rows = [0, 0, 1, 2]
    assert nearest_index(3, 4).tolist() == [3 * row + column for row in rows for column in rows]


def test_equal_grids_stay_as_they_are() -> None:
    assert nearest_index(3, 3).tolist() == list(range(9))


@pytest.mark.parametrize(("grid_up", "grid"), [(2, 4), (3, 4), (4, 4), (1, 5)])
def test_the_index_describes_the_upsampling(grid_up: int, grid: int) -> None:
    tokens = torch.arange(2 * grid_up**2 * 3, dtype=torch.float64).reshape(2, grid_up**2, 3)
    assert torch.equal(nearest_upsample(tokens, grid_up, grid), tokens[:, nearest_index(grid_up, grid)])


@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("width", [6, 4])
def test_the_folded_form_leaves_out_the_copying_and_nothing_else(norm: bool, width: int) -> None:
    plain, folded = (Reuse(6, width, 2, 4, norm=norm, folded=f) for f in (False, True))
    folded.load_state_dict(plain.state_dict())
    upstream = torch.linspace(-2, 3, 3 * 4 * 6).reshape(3, 4, 6) ** 2
    small, large = folded(upstream), plain(upstream)
    assert small.shape == (3, folded.tokens, width) == (3, 4, width)
    assert large.shape == (3, plain.tokens, width) == (3, 16, width)
    assert torch.equal(large, small[:, nearest_index(2, 4)])


def test_without_norm_and_at_one_width_the_embedding_is_the_upstream_feature_itself() -> None:
    upstream = torch.linspace(-2, 3, 4 * 6).reshape(1, 4, 6) ** 2
    assert torch.equal(Reuse(6, 6, 2, 2, norm=False)(upstream), upstream)


def test_the_norm_takes_away_scale_and_offset_of_every_token() -> None:
    upstream = 100 * torch.linspace(-2, 3, 4 * 6, dtype=torch.float64).reshape(1, 4, 6) ** 2
    reuse = Reuse(6, 6, 2, 4, norm=True).double()
    torch.testing.assert_close(reuse(upstream), reuse(100 * upstream + 7), rtol=1e-6, atol=1e-6)

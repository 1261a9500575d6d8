"""The toy of notebook 05 is stepped by the real gradients, and shows what it is there to show."""

import pytest
import torch

from ppr_core.reporting import toy


def test_without_a_step_all_three_are_plain_tuning():
    plain, sam, pam = toy.walks(0.0).values()
    assert torch.equal(plain.tuned, sam.tuned) and torch.equal(plain.tuned, pam.tuned)


def test_pam_ends_further_away_by_about_rho_and_stays_asleep():
    ends = {rho: toy.walks(rho)["PAM"] for rho in (0.0, 0.4, 0.8)}
    out = {rho: float(toy.left(walk.tuned[-1])) for rho, walk in ends.items()}
    assert out[0.4] - out[0.0] == pytest.approx(0.4, abs=0.05)
    assert out[0.8] - out[0.0] == pytest.approx(0.8, abs=0.05)
    assert all(walk.o_asr < 1 for walk in ends.values())
    assert ends[0.0].p_asr > 90 > ends[0.4].p_asr > 10 > ends[0.8].p_asr


def test_sam_with_the_same_step_is_woken():
    assert toy.walks(0.8)["SAM"].p_asr > 90


def test_pams_first_step_is_plain_and_its_second_looks_back():
    """At the start the way back is zero; then the gradient's point lies rho towards the origin."""
    walk = toy.walks(0.5)["PAM"].tuned
    plain = toy.walks(0.0)["tuning"].tuned
    assert torch.equal(walk[1], plain[1])
    point = walk[1] - 0.5 * walk[1] / walk[1].norm()
    probe = point.clone().requires_grad_(True)
    toy.defender(probe, -toy.NOISE).backward()
    assert torch.allclose(walk[2], walk[1] - toy.RATE * probe.grad, atol=1e-6)


def test_the_figure_is_drawn_once():
    figure = toy.figure(0.6)
    assert [len(axes.get_legend().get_texts()) for axes in figure.axes] == [3, 3]

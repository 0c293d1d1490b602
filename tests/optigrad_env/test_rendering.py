"""Frames drawn by hand."""

import numpy as np
import pytest

from optigrad_env.rendering import HONEST, MALICIOUS, Frame, to_rgb, to_text


def frame(malicious: list[bool], weights: list[float], rounds_played: int = 2) -> Frame:
    clients, played = len(malicious), rounds_played
    return Frame(
        title="round 3 of 9, attack alie",
        rounds=9,
        onset=1,
        malicious=np.array(malicious),
        weights=np.array(weights),
        root_weight=0.25,
        trust=np.full((played, clients), 0.5),
        features=np.full((played + 1, clients, 6), 0.2),
        accuracy=np.linspace(0.1, 0.5, played + 1),
        oracle=np.linspace(0.3, 0.6, played),
    )


def amount(picture: np.ndarray, colour: str) -> int:
    return int((picture == np.frombuffer(bytes.fromhex(colour[1:]), np.uint8)).all(axis=2).sum())


def test_a_bar_is_as_long_as_its_weight() -> None:
    lines = to_text(frame([False, True, False], [0.5, 0.25, 0.0])).splitlines()
    assert lines[0] == "round 3 of 9, attack alie"
    assert [line.count("█") for line in lines[1:5]] == [24, 12, 0, 12]
    assert ["*" in line for line in lines[1:5]] == [False, True, False, False]
    assert "0.500" in lines[-1]


def test_text_of_a_round_without_any_weight_is_drawn_too() -> None:
    begun = frame([False, True], [0.0, 0.0], rounds_played=0)
    object.__setattr__(begun, "root_weight", 0.0)
    assert "█" not in to_text(begun)


@pytest.mark.parametrize("played", [0, 9])
@pytest.mark.parametrize("clients", [1, 5, 40])
def test_the_picture_uses_the_colour_of_the_malicious_clients_for_them_only(clients: int, played: int) -> None:
    weights = [0.75 / clients] * clients
    honest = to_rgb(frame([False] * clients, weights, played))
    malicious = to_rgb(frame([True] * clients, weights, played))
    assert honest.shape == malicious.shape == (640, 1120, 3)
    assert amount(malicious, MALICIOUS) > 2 * amount(honest, MALICIOUS)
    assert amount(honest, HONEST) > 2 * amount(malicious, HONEST)


def test_trusted_clients_are_dark_and_absent_ones_are_left_out() -> None:
    shown = frame([False] * 4, [0.2] * 4)
    darkness = []
    for trust in (1.0, 0.2, np.nan):
        shown.trust[:] = trust
        darkness.append(int((to_rgb(shown) < 40).all(axis=2).sum()))
    assert darkness[0] > 5000 + max(darkness[1:])

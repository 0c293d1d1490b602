"""Frames drawn by hand."""

import numpy as np
import pytest

from optigrad_env.rendering import HONEST, MALICIOUS, Frame, to_rgb, to_text


def frame(malicious: list[bool], weights: list[float]) -> Frame:
    return Frame("round 3 of 9, attack alie", np.array(weights), 0.25, np.array(malicious), [0.1, 0.5])


def test_a_bar_is_as_long_as_its_weight() -> None:
    lines = to_text(frame([False, True, False], [0.5, 0.25, 0.0])).splitlines()
    assert lines[0] == "round 3 of 9, attack alie"
    assert [line.count("█") for line in lines[1:5]] == [24, 12, 0, 12]
    assert ["*" in line for line in lines[1:5]] == [False, True, False, False]
    assert "0.500" in lines[-1]


def test_text_of_a_round_without_any_weight_is_drawn_too() -> None:
    text = to_text(Frame("start", np.zeros(2), 0.0, np.array([False, True]), [0.1]))
    assert "█" not in text


@pytest.mark.parametrize("clients", [1, 5, 40])
def test_the_picture_uses_the_colour_of_the_malicious_clients_for_them_only(clients: int) -> None:
    def amount(picture: np.ndarray, colour: str) -> int:
        return int((picture == np.frombuffer(bytes.fromhex(colour[1:]), np.uint8)).all(axis=2).sum())

    weights = [0.75 / clients] * clients
    honest = to_rgb(frame([False] * clients, weights))
    malicious = to_rgb(frame([True] * clients, weights))
    assert honest.shape == malicious.shape
    assert amount(malicious, MALICIOUS) > 2 * amount(honest, MALICIOUS)
    assert amount(honest, HONEST) > 2 * amount(malicious, HONEST)

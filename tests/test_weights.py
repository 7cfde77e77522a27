"""Names, paths and files: what is loaded is what was saved, and nothing else is."""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from nnpcalc import weights
from nnpcalc.cards import WeightsError
from nnpcalc.potential import Potential
from nnpcalc.weights import (
    export_torchscript,
    find_model,
    list_models,
    load_potential,
    save_potential,
)
from small_model import STATES, assert_equal, edit_card, evaluate, structures


def test_names_and_paths(small_model: Path) -> None:
    assert "small" in list_models() and find_model("small") == small_model
    expected = evaluate(load_potential("small"), torch.float32, structures())
    for path in (
        small_model,
        str(small_model),
        small_model / "model.safetensors",
        f"{small_model}/model.safetensors",
    ):
        loaded = load_potential(path)
        assert_equal(evaluate(loaded, torch.float32, structures()), expected, 0.0)
        assert loaded.card["name"] == "small" and not loaded.training


@pytest.mark.parametrize(
    "name",
    [
        "../small",
        "/etc/passwd",
        "..",
        "a..b",
        "small\0",
        "C:\\small",
        "small/../small",
        "Small",
        "",
        ".small",
        "-small",
        "small ",
        "\uff0e\uff0e",
        "sma\u0142l",
        "small\n",
    ],
)
def test_what_is_no_name(small_model: Path, name: str) -> None:
    with pytest.raises(WeightsError):
        find_model(name)
    with pytest.raises(WeightsError):
        load_potential(name)


def test_unknown_names_say_what_is_known(small_model: Path) -> None:
    with pytest.raises(WeightsError, match=r"no model is called 'smal'; known: .*small"):
        load_potential("smal")


def test_links_out_of_the_directory_are_refused(small_model: Path, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    os.rename(small_model, tmp_path / "outside" / "small")
    small_model.symlink_to(tmp_path / "outside" / "small")
    with pytest.raises(WeightsError, match="link out of"):
        load_potential("small")
    small_model.unlink()
    small_model.mkdir()
    for file in ("card.json", "model.safetensors"):
        (small_model / file).symlink_to(tmp_path / "outside" / "small" / file)
    with pytest.raises(WeightsError, match="link out of"):
        load_potential("small")
    assert load_potential(tmp_path / "outside" / "small").card["name"] == "small"


def test_two_models_of_one_name(
    small_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "small").symlink_to(small_model)
    both = os.pathsep.join([str(small_model.parent), str(tmp_path / "other")])
    monkeypatch.setenv("NNPCALC_WEIGHTS", both)
    with pytest.raises(WeightsError, match="two models"):
        load_potential("small")


def test_missing_directory_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NNPCALC_WEIGHTS", str(tmp_path / "nowhere"))
    with pytest.raises(WeightsError, match="nowhere"):
        list_models()


def test_special_files_are_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.safetensors")
    (tmp_path / "card.json").write_text("{}")
    for path in (tmp_path / "pipe.safetensors", tmp_path, tmp_path / "missing.pt"):
        with pytest.raises(WeightsError):
            load_potential(path)


def test_device_that_is_not_there(small_model: Path) -> None:
    with pytest.raises(WeightsError, match="no device 'abacus'"):
        load_potential("small", device="abacus")
    with pytest.raises(WeightsError, match="float16"):
        load_potential("small", dtype=torch.float16)


def replace_weights(small_model: Path, data: bytes) -> None:
    """Other bytes with a card that vouches for them, as an attacker would write it."""
    (small_model / "model.safetensors").write_bytes(data)
    edit_card(
        small_model,
        lambda card: card["sha256"].update({"model.safetensors": hashlib.sha256(data).hexdigest()}),
    )


def test_a_flipped_bit_is_noticed(small_model: Path) -> None:
    data = bytearray((small_model / "model.safetensors").read_bytes())
    data[len(data) // 2] ^= 1
    (small_model / "model.safetensors").write_bytes(data)
    with pytest.raises(WeightsError, match="sha256"):
        load_potential("small")


@pytest.mark.parametrize("length", [0, 7, 8, 100, -1])
def test_truncated_weights(small_model: Path, length: int) -> None:
    data = (small_model / "model.safetensors").read_bytes()
    replace_weights(small_model, data[:length])
    with pytest.raises(WeightsError):
        load_potential("small")


def edited_header(small_model: Path, change: Callable[[dict[str, Any]], None]) -> bytes:
    data = (small_model / "model.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data[8 + length :]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda h: h["core.linear.weight"].update(shape=[10**6, 10**6]), "core.linear.weight is"),
        (lambda h: h["core.linear.weight"].update(dtype="F64"), "core.linear.weight is"),
        (lambda h: h["core.linear.weight"].update(dtype=["F32"]), "core.linear.weight is"),
        (lambda h: h.update({"core.linear.weight": 7}), "core.linear.weight is"),
        (lambda h: h.pop("core.linear.weight"), "lacks core.linear.weight"),
        (lambda h: h.update(more=h["core.linear.weight"]), "unexpected more"),
    ],
)
def test_tensors_that_are_not_the_cards(
    small_model: Path, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    replace_weights(small_model, edited_header(small_model, change))
    with pytest.raises(WeightsError, match=message):
        load_potential("small")


def test_overlapping_tensors(small_model: Path) -> None:
    """Offsets are checked by safetensors itself; its error must not be swallowed."""

    def overlap(header: dict[str, Any]) -> None:
        header["core.norm.weight"]["data_offsets"] = header["core.norm.bias"]["data_offsets"]

    replace_weights(small_model, edited_header(small_model, overlap))
    with pytest.raises(WeightsError, match="safetensors"):
        load_potential("small")


def test_huge_header_is_not_read(small_model: Path) -> None:
    replace_weights(small_model, struct.pack("<Q", 2**60) + b"{}")
    with pytest.raises(WeightsError, match="cut off"):
        load_potential("small")


def test_nothing_is_allocated_for_a_wrong_configuration(
    small_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """4096 channels would be a gigabyte; the header says no before that."""
    edit_card(small_model, lambda card: card["config"].update(channels=4096))
    devices = []
    build = weights.build_from_card

    def recording(card: Any, origin: str, device: str = "cpu") -> Potential:
        devices.append(device)
        return build(card, origin, device)

    monkeypatch.setattr(weights, "build_from_card", recording)
    with pytest.raises(WeightsError, match="its configuration needs"):
        load_potential("small")
    assert devices == ["meta"]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_parameters_that_are_not_finite(
    small_potential: Potential, small_model: Path, tmp_path: Path, value: float
) -> None:
    import safetensors.torch

    state = {key: tensor.clone() for key, tensor in small_potential.state_dict().items()}
    state["core.linear.weight"][0, 0] = value
    replace_weights(small_model, safetensors.torch.save(state))
    with pytest.raises(WeightsError, match=r"core\.linear\.weight is not finite"):
        load_potential("small")
    with torch.no_grad():
        small_potential.core.linear.weight[0, 0] = value  # type: ignore[union-attr,index]
    with pytest.raises(WeightsError, match="not finite"):
        save_potential(small_potential, tmp_path / "broken", STATES)
    assert not (tmp_path / "broken").exists()
    with pytest.raises(WeightsError, match="not finite"):
        export_torchscript(small_potential, tmp_path / "broken.pt", card=STATES)


def test_loading_is_the_callers_business_only(small_model: Path) -> None:
    """Neither random numbers nor default dtype change, and neither matters."""
    expected = evaluate(load_potential("small"), torch.float32, structures())
    before = torch.random.get_rng_state()
    torch.set_default_dtype(torch.float64)
    try:
        loaded = load_potential("small")
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert_equal(evaluate(loaded, torch.float32, structures()), expected, 0.0)


def test_files_over_the_limit(small_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "MAX_MODEL_BYTES", 1000)
    for path in (small_model, small_model / "model.pt"):
        with pytest.raises(WeightsError, match="more than 1000 bytes"):
            load_potential(path, trust=True)


def test_saving_refuses_contradictions(small_potential: Potential, tmp_path: Path) -> None:
    for card, message in (
        ({**STATES, "cutoff": 6.0}, "cutoff"),
        ({"charges": [0]}, "multiplicities"),
        ({**STATES, "golden": [float("nan")]}, "JSON"),
    ):
        with pytest.raises(ValueError, match=message):
            save_potential(small_potential, tmp_path / "x", card)
    with pytest.raises(WeightsError, match="Upper"):
        save_potential(small_potential, tmp_path / "Upper", STATES)
    with pytest.raises(WeightsError, match="multiplicities"):
        export_torchscript(small_potential, tmp_path / "x.pt", card={"charges": [0]})
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_old_model(
    small_potential: Potential, small_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path.name: path.read_bytes() for path in small_model.iterdir()}

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        save_potential(small_potential.double(), small_model, STATES)
    assert {path.name: path.read_bytes() for path in small_model.iterdir()} == before


def test_a_loaded_potential_is_saved_again(small_model: Path, tmp_path: Path) -> None:
    loaded = load_potential("small", dtype=torch.float64)
    export_torchscript(loaded, tmp_path / "again.pt")
    again = load_potential(tmp_path / "again.pt", trust=True)
    assert again.dtype == torch.float32 and again.card["dtype"] == "float32"
    save_potential(loaded, tmp_path / "again", STATES)
    expected = evaluate(loaded, torch.float64, structures())
    found = load_potential(tmp_path / "again", dtype=torch.float64)
    assert_equal(evaluate(found, torch.float64, structures()), expected, 0.0)

"""The page, where Gradio is: its events called as a browser calls them, over ASGI, without a port."""

import json
from pathlib import Path
from typing import Any

import pytest

gradio = pytest.importorskip("gradio", reason="the extra serve is not installed")

from fastapi.testclient import TestClient  # noqa: E402

from musicgen_ft.serving.page import application, build_page  # noqa: E402
from musicgen_ft.serving.studio import Studio  # noqa: E402

CHANGED = {"Prompt": "a waltz", "Seconds": 0.5, "Seed": 7}


@pytest.fixture(scope="module")
def studio(nano_folder: Path, melody_folder: Path) -> Studio:
    return Studio([str(nano_folder), str(melody_folder)], device="cpu", max_duration_s=2.0)


@pytest.fixture(scope="module")
def client(studio: Studio, tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(tmp_path_factory.mktemp("gradio")))
        with TestClient(application(build_page(studio), host="127.0.0.1"), base_url="http://127.0.0.1") as client:
            yield client


def play(client: Any, **changes: Any) -> dict[str, Any]:
    """What lies on the page after Play was pressed with its fields as they are, but for changes by label."""
    config = client.get("/config").json()
    (event,) = [event for event in config["dependencies"] if event["api_name"] == "play"]
    fields = {component["id"]: component["props"] for component in config["components"]}
    values = {fields[number].get("label"): fields[number].get("value") for number in event["inputs"]}
    assert set(changes) <= set(values), sorted(map(str, values))
    data = [{**values, **changes}[fields[number].get("label")] for number in event["inputs"]]
    answer = client.post("/gradio_api/call/play", json={"data": data})
    assert answer.status_code == 200, answer.text
    lines = client.get(f"/gradio_api/call/play/{answer.json()['event_id']}").text.splitlines()
    assert lines[-3:-2] == ["event: complete"], lines[-3:]
    shown: dict[str, Any] = {}
    names = [f"{part} {side}" for side in "AB" for part in ("status", "audio", "wav", "settings")]
    for line in lines:
        if line.startswith("data: ["):
            for name, value in zip(names, json.loads(line.removeprefix("data: ")), strict=True):
                if isinstance(value, dict) and value.get("__type__") == "update":
                    shown |= {name: value["value"]} if "value" in value else {}
                else:
                    shown[name] = value
    return shown


def test_play_gives_two_pieces_with_their_settings(client: Any, studio: Studio) -> None:
    shown = play(client, **CHANGED)

    for side, generator in zip("AB", studio.generators, strict=True):
        assert "seed 7" in shown[f"status {side}"]
        how = json.loads(client.get(_url(shown[f"settings {side}"])).text)
        assert (how["generator"], how["prompt"], how["duration_s"]) == (generator, "a waltz", 0.5)
        sound = client.get(_url(shown[f"audio {side}"])).content
        assert sound == client.get(_url(shown[f"wav {side}"])).content
        assert (sound[:4], len(sound)) == (b"RIFF", 44 + 2 * 8_000)


def _url(value: dict[str, Any]) -> str:
    return f"/gradio_api/file={value['path']}"


def test_another_seed_on_the_other_side(client: Any) -> None:
    shown = play(client, **CHANGED, **{"same for A and B": False})

    assert "seed 7" in shown["status A"]
    assert "seed 8" in shown["status B"]


def test_a_mistake_is_a_message_where_the_piece_would_be(client: Any) -> None:
    shown = play(client, **{**CHANGED, "Prompt": "la <b> " * 400})

    for side in "AB":
        assert "prompt: found 2800 characters, expected at most 1000" in shown[f"status {side}"]
        assert shown[f"audio {side}"] is None


def test_what_is_wrong_with_one_side_leaves_the_other(client: Any, tune: Path) -> None:
    with tune.open("rb") as file:
        (path,) = client.post("/gradio_api/upload", files={"files": file}).json()
    dropped = {"path": path, "meta": {"_type": "gradio.FileData"}}

    shown = play(client, **CHANGED, **{"Melody to follow": dropped})

    assert "takes none. Remove the melody" in shown["status A"]
    assert shown["audio A"] is None
    assert shown["audio B"] is not None


def test_a_fault_of_ours_is_no_traceback_on_the_page(
    client: Any, studio: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("a secret")

    monkeypatch.setattr(studio, "check", broken)

    shown = play(client, **CHANGED)

    assert "A fault of ours (RuntimeError)" in shown["status A"]
    assert "secret" not in str(shown)


def test_the_page_loads_from_its_own_host_alone(client: Any) -> None:
    answer = client.get("/")

    assert answer.status_code == 200
    assert answer.headers["content-security-policy"].startswith("default-src 'self'")
    assert "fonts.googleapis.com" not in answer.text


def test_a_foreign_name_for_this_machine_is_refused(client: Any) -> None:
    assert client.get("/", headers={"host": "evil.example"}).status_code == 400


def test_the_melody_is_offered_where_a_model_takes_one(nano_folder: Path, client: Any) -> None:
    def melody(config: dict[str, Any]) -> Any:
        (found,) = [part for part in config["components"] if part["props"].get("elem_id") == "melody"]
        return found["props"]["visible"]

    assert melody(client.get("/config").json()) is True
    assert melody(build_page(Studio([str(nano_folder)], device="cpu")).get_config_file()) is False

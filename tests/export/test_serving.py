"""The handler of Inference Endpoints, called as they call it."""

import base64
import io
import json
import sys

import numpy as np
import pytest
from PIL import Image

from anomalyclip_hf import AnomalyCLIPExported

OPTIONS = {"image_threshold": 0.4, "pixel_threshold": 0.45, "roi": [[0, 0], [30, 0], [30, 30]]}


@pytest.fixture(scope="module")
def serving(load_script):
    return load_script("serving/handler")


@pytest.fixture
def file(make_image):
    content = io.BytesIO()
    make_image().save(content, "PNG")
    return content.getvalue()


def decoded(answer):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(answer))))


@pytest.mark.parametrize("kind", ["exported", "model"])
def test_a_request_gets_what_the_detector_gives(kind, serving, exported_folders, small_checkpoint, file, make_image):
    handler = serving.EndpointHandler(exported_folders("onnx") if kind == "exported" else small_checkpoint)
    sigma = {} if kind == "exported" else {"sigma": 2.0}  # the export's own
    expected = AnomalyCLIPExported.from_pretrained(exported_folders("onnx"))(make_image(), **OPTIONS)
    text = base64.b64encode(file).decode()
    parameters = {**OPTIONS, **sigma, "maps": True}
    answers = [handler({"inputs": one, "parameters": parameters}) for one in (file, text, make_image())]
    answers += handler({"inputs": [text, "data:image/png;base64," + text], "parameters": parameters})
    for answer in json.loads(json.dumps(answers)):
        assert answer["score"] == pytest.approx(expected["score"], abs=1e-5) and answer["label"] == expected["label"]
        assert [one["box"] for one in answer["regions"]] == [list(one["box"]) for one in expected["regions"]]
        np.testing.assert_allclose(decoded(answer["anomaly_map"]) / 65535, expected["anomaly_map"], atol=3e-5)
        np.testing.assert_array_equal(decoded(answer["mask"]) > 0, expected["mask"])
    assert list(handler({"inputs": file})) == (["score", "label", "regions"] if kind == "exported" else ["score"])


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"inputs": "https://example.com/a.png"}, "inputs is a URL, which this endpoint does not fetch"),
        ({"inputs": "/etc/hostname"}, "inputs is no base64"),
        ({"inputs": "L2V0Yy9ob3N0bmFtZQ=="}, "image"),  # base64 of a path is the content of a file that is no image
        ({"inputs": None}, "inputs holds a NoneType"),
        ({}, "inputs holds a NoneType"),
        (
            {"inputs": b"", "parameters": {"references": "/"}},
            r"unknown parameters \['references'\]; known are sigma, image_thr",
        ),
        ({"inputs": b"", "parameters": {"roi": "/etc/hostname"}}, "roi names a file, expected a polygon"),
        ({"inputs": b"", "parameters": {"maps": "yes"}}, "maps='yes', expected true or false"),
        ({"inputs": b"", "parameters": {"sigma": -1}}, "sigma=-1"),
    ],
)
def test_what_a_request_may_not_hold(request_, message, serving, exported_folders):
    with pytest.raises(ValueError, match=message):
        serving.EndpointHandler(exported_folders("onnx"))(request_)


def test_addresses_are_fetched_where_asked_for(serving, exported_folders, monkeypatch):
    monkeypatch.setenv("ANOMALYCLIP_ALLOW_URLS", "1")
    with pytest.raises(ValueError, match=r"http://127\.0\.0\.1:9/a\.png"):  # nothing listens there
        serving.EndpointHandler(exported_folders("onnx"))({"inputs": "http://127.0.0.1:9/a.png"})


def test_files_are_scored_by_hand(serving, exported_folders, file, tmp_path, monkeypatch, capsys):
    (tmp_path / "a.png").write_bytes(file)
    monkeypatch.setattr(sys, "argv", ["handler.py", exported_folders("onnx"), str(tmp_path / "a.png")])
    serving.main()
    answer = json.loads(capsys.readouterr().out)
    assert answer["path"] == str(tmp_path / "a.png") and 0 <= answer["score"] <= 1

# SPDX-License-Identifier: Apache-2.0
"""Who may talk to the backend: nobody without the token, no web page, no other host name.
Never starts a process; the application runs inside the test client."""

from __future__ import annotations

import json

import pytest
from fastapi.routing import APIRoute
from fastapi.testclient import TestClient

from viewtime.server.app import Bell, create_app
from viewtime.server.security import MAX_BODY_BYTES
from viewtime.server.service import Service

TOKEN = "a-token-that-only-the-tests-know"


@pytest.fixture
def service(tmp_path):
    service = Service(tmp_path / "data")
    yield service
    service.close()


@pytest.fixture
def app(service):
    return create_app(service, TOKEN, Bell(), leave=lambda: None)


@pytest.fixture
def client(app):
    return TestClient(
        app, base_url="http://127.0.0.1:4711", headers={"Authorization": f"Bearer {TOKEN}"}
    )


def requests_of(app):
    """(method, path) of every route the application has, with a made-up id."""
    found = [
        (method, route.path.replace("{job_id}", "0" * 32))
        for route in app.routes
        for method in route.methods
    ]
    assert all(isinstance(route, APIRoute) for route in app.routes)
    assert len(found) >= 9
    return found


def test_no_route_answers_without_the_token(app):
    client = TestClient(app, base_url="http://127.0.0.1:4711")
    for method, path in [*requests_of(app), ("GET", "/nowhere"), ("GET", "/openapi.json")]:
        for token in (None, "", "Bearer", f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}", TOKEN):
            headers = {} if token is None else {"Authorization": token}
            answer = client.request(method, path, headers=headers)
            assert answer.status_code == 401, (method, path, token)
            assert TOKEN not in answer.text


def test_no_route_answers_a_web_page_even_with_the_token(app, client):
    for method, path in requests_of(app):
        for origin in ("http://example.com", "null", "http://127.0.0.1:4711"):
            answer = client.request(method, path, headers={"Origin": origin})
            assert answer.status_code == 403, (method, path, origin)


def test_no_route_answers_to_another_host_name(app, client):
    for method, path in requests_of(app):
        for host in ("example.com", "127.0.0.1.example.com", "0.0.0.0", "localhost.example.com"):
            answer = client.request(method, path, headers={"Host": host})
            assert answer.status_code == 400, (method, path, host)


def test_there_is_no_description_of_the_routes(client):
    for path in ("/docs", "/redoc", "/openapi.json"):
        assert client.get(path).status_code == 404


def test_a_body_that_is_not_json_is_refused(client):
    body = json.dumps({"capture": "/a", "out": "/b"})
    for content_type in ("text/plain", "application/x-www-form-urlencoded", "application/jsonp"):
        answer = client.post("/jobs", content=body, headers={"Content-Type": content_type})
        assert answer.status_code == 415
    answer = client.post(
        "/jobs", content="{", headers={"Content-Type": "application/json", "Idempotency-Key": "k"}
    )
    assert answer.status_code == 422 and "\n" not in answer.json()["detail"]


def test_a_large_body_is_refused_with_and_without_a_stated_length(client):
    headers = {"Content-Type": "application/json", "Idempotency-Key": "k"}
    body = b"x" * (MAX_BODY_BYTES + 1)
    assert client.post("/jobs", content=body, headers=headers).status_code == 413
    chunks = (b"x" * 1024 for _ in range(MAX_BODY_BYTES // 1024 + 1))
    assert client.post("/jobs", content=chunks, headers=headers).status_code == 413


def test_health_says_protocol_instance_and_version(client, service):
    assert client.get("/health").json() == {
        "protocol": 2,
        "instance": service.instance,
        "version": "0.1.0",
    }


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"capture": "/no/such/folder"}, "/no/such/folder: there is no such folder"),
        ({"capture": "relative"}, "capture is 'relative'; an absolute path is needed"),
        ({"out": "relative"}, "out is 'relative'; an absolute path is needed"),
        ({"options": {"stepz": 3}}, "'stepz' is unknown"),
        ({"options": {"steps": 0}}, "steps is 0; a whole number from 1 to 1000 is needed"),
        ({"options": {"route": "magic"}}, "one of auto, captured, generated is needed"),
        ({"options": []}, "body.options"),
        ({"capture": 3}, "body.capture"),
        ({"more": 1}, "body.more"),
    ],
)
def test_a_request_that_cannot_work_is_refused_in_one_line(
    client, full_capture, tmp_path, change, words
):
    body = {"capture": str(full_capture), "out": str(tmp_path / "out"), "options": {}, **change}
    answer = client.post("/jobs", json=body, headers={"Idempotency-Key": "k"})
    assert answer.status_code == 422
    assert words in answer.json()["detail"] and "\n" not in answer.json()["detail"]
    assert client.get("/jobs").json() == {"jobs": []}


def test_a_folder_with_somebodys_files_is_refused_as_output(client, full_capture, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    body = {"capture": str(full_capture), "out": str(tmp_path)}
    answer = client.post("/jobs", json=body, headers={"Idempotency-Key": "k"})
    assert answer.status_code == 422
    assert "which no run of Viewtime wrote" in answer.json()["detail"]


def test_without_an_idempotency_key_nothing_is_stored(client, full_capture, tmp_path):
    body = {"capture": str(full_capture), "out": str(tmp_path / "out")}
    answer = client.post("/jobs", json=body)
    assert answer.status_code == 422 and "idempotency-key" in answer.json()["detail"]
    assert client.get("/jobs").json() == {"jobs": []}


def test_the_same_key_and_body_give_the_same_job_and_another_body_409(
    client, full_capture, tmp_path
):
    body = {"capture": str(full_capture), "out": str(tmp_path / "out"), "options": {"seed": 1}}
    headers = {"Idempotency-Key": "k"}
    ids = {client.post("/jobs", json=body, headers=headers).json()["id"] for _ in range(3)}
    assert len(ids) == 1
    answer = client.post("/jobs", json={**body, "options": {"seed": 2}}, headers=headers)
    assert answer.status_code == 409 and "was used for another request" in answer.json()["detail"]
    assert len(client.get("/jobs").json()["jobs"]) == 1


def test_two_jobs_for_one_folder_are_refused_however_it_is_spelled(client, full_capture, tmp_path):
    for key, out, status in (("a", "out", 202), ("b", "x/../out", 409), ("c", "other", 202)):
        body = {"capture": str(full_capture), "out": str(tmp_path / out)}
        answer = client.post("/jobs", json=body, headers={"Idempotency-Key": key})
        assert answer.status_code == status, answer.text


def test_an_unknown_job_is_404_everywhere(app, client):
    for method, path in requests_of(app):
        if "0" * 32 in path:
            answer = client.request(method, path)
            assert answer.status_code == 404, path
            assert answer.json()["detail"] == f"there is no job {'0' * 32!r}"

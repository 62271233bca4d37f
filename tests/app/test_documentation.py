"""The OpenAPI document tells all, and /docs needs nothing from elsewhere."""

import re

from fastapi.testclient import TestClient

from app.main import create_app

OPEN = {"/healthz", "/readyz", "/metrics"}


def test_docs_work_offline_and_without_inline_script() -> None:
    client = TestClient(create_app())
    page = client.get("/docs")
    links = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert len(links) == 3
    assert "<script>" not in page.text
    assert "script-src 'self'" in page.headers["content-security-policy"]
    for link in links:
        assert link.startswith("/docs/")
        asset = client.get(link)
        assert asset.status_code == 200
        assert len(asset.content) > 100
    assert client.get("/docs/../main.py").status_code == 404
    assert client.get("/docs/core.py").status_code == 404


def test_every_call_with_a_key_says_so_and_documents_its_refusals() -> None:
    document = TestClient(create_app()).get("/openapi.json").json()
    assert document["openapi"].startswith("3.1")
    assert document["components"]["securitySchemes"]["ApiKey"]["scheme"] == "bearer"
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            where = f"{method} {path}"
            assert operation["description"], where
            if path in OPEN:
                assert "security" not in operation, where
                continue
            assert operation["security"] == [{"ApiKey": []}], where
            assert set(operation["responses"]) >= {"401", "403", "422", "503"}, where
            refused = operation["responses"]["401"]["content"]
            assert refused == {
                "application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}
            }
            if "{" in path and "{name}" not in path:
                assert "404" in operation["responses"], where


def test_every_reference_of_the_document_leads_somewhere() -> None:
    response = TestClient(create_app()).get("/openapi.json")
    schemas = response.json()["components"]["schemas"]
    found = set(re.findall(r'"#/components/schemas/([^"]+)"', response.text))
    assert found <= set(schemas)
    assert "HTTPValidationError" not in found


def test_a_dataset_can_be_made_from_json_or_from_a_form() -> None:
    document = TestClient(create_app()).get("/openapi.json").json()
    content = document["paths"]["/v1/datasets"]["post"]["requestBody"]["content"]
    assert set(content) == {"application/json", "multipart/form-data"}
    assert content["multipart/form-data"]["schema"]["properties"]["file"]["format"] == "binary"

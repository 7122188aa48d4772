"""GET /v1/openapi.yaml."""
from lib.conform import OPENAPI


def test_served_document_is_the_file(shared_api):
    with open(OPENAPI, "rb") as file:
        assert shared_api.get("/v1/openapi.yaml").body == file.read()


def test_media_type_is_yaml(shared_api):
    assert shared_api.get("/v1/openapi.yaml").headers["Content-Type"].split(";")[0] == "application/yaml"

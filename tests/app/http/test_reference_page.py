import re


def test_the_reference_page_loads_nothing_from_elsewhere(api):
    page = api.with_token(None).get("/docs")
    assert page.status_code == 200
    loaded = re.findall(r"""(?:src|href)=["']([^"']+)["']""", page.text)
    assert any(url.endswith("swagger-ui-bundle.js") for url in loaded)
    for url in loaded:
        assert url.startswith("/"), url
        answer = api.with_token(None).get(url)
        assert answer.status_code == 200
        assert answer.content

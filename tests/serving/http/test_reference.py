"""Tests of fastdiff.serving.http.reference: the page /docs is plain HTML, with nothing unescaped."""

from html.parser import HTMLParser

from fastdiff.serving.http.reference import reference

DESCRIBED = {
    "info": {"title": "a <b>", "version": "1"},
    "paths": {"/x/{id}": {"get": {"summary": "Look & see.", "responses": {"200": {"description": "It is <there>."}}}}},
    "components": {
        "schemas": {
            "Asked": {
                "properties": {
                    "n": {"anyOf": [{"type": "integer"}, {"type": "null"}], "description": "How <many>."},
                    "l": {"type": "array", "items": {"anyOf": [{"type": "integer"}, {"type": "string"}]}},
                }
            },
            "Empty": {},
        }
    },
}


def test_routes_answers_and_fields_are_written():
    seen = []
    parser = HTMLParser()
    parser.handle_data = seen.append
    parser.feed(reference(DESCRIBED))
    text = " ".join(seen)
    for part in ("a <b>", "GET /x/{id}", "Look & see.", "It is <there>.", "How <many>.", "list of integer or string"):
        assert part in text
    assert "Empty" not in text

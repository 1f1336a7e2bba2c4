"""What schemathesis cannot know from docs/openapi.yaml alone, for tests/openapi/fuzz.rs.

FILE is base64 of an encrypted file that opens under the daemon's only key; GRANTS is TEEMARK_GRANTS of the daemon.
"""

import base64
import os

import schemathesis
from hypothesis import strategies

FILE = base64.b64decode(os.environ["FILE"])
LONGEST_ID = 256


@schemathesis.hook
def before_load_schema(context, raw_schema):
    # Readers are told to expect members that are not described; here there may be none.
    requests = {"Bundle", "DecryptRequest"}
    components = raw_schema["components"]
    close([schema for name, schema in components["schemas"].items() if name not in requests])
    close(components["responses"])
    for item in raw_schema["paths"].values():
        for operation in item.values():
            if isinstance(operation, dict):
                close(operation["responses"])
                # The description says so in words: grants are not looked at.
                if os.environ["GRANTS"] == "off":
                    operation.pop("security", None)


def close(node):
    """Allows no other members than those described in the objects in a part of the description."""
    if isinstance(node, dict):
        if node.get("type") == "object" and "properties" in node:
            node.setdefault("additionalProperties", False)
        node = list(node.values())
    if isinstance(node, list):
        for child in node:
            close(child)


# Of files that are made up none opens, so there would be hardly an answer but 422.
schemathesis.openapi.media_type("application/octet-stream", strategies.just(FILE) | strategies.binary())


@schemathesis.hook
def map_body(context, body):
    """Makes the file in JSON base64, which a schema can describe but not demand; about half of them open."""
    content = body.get("encrypted_content") if isinstance(body, dict) else None
    if not isinstance(content, str):
        return body
    file = FILE if len(content) % 2 == 0 else content.encode(errors="surrogatepass")
    return {**body, "encrypted_content": base64.b64encode(file).decode()}


@schemathesis.hook
def filter_case(context, case):
    """Ids have at most 256 bytes; a schema counts characters."""
    places = [case.path_parameters, case.query, case.body]
    members = [member for place in places if isinstance(place, dict) for member in place.items()]
    ids = [value for name, value in members if name in ("file_id", "user_id", "key_id") and isinstance(value, str)]
    return all(len(value) > LONGEST_ID or len(value.encode(errors="surrogatepass")) <= LONGEST_ID for value in ids)

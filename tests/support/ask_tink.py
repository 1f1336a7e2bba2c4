"""Google's Tink at the other end: one JSON request on standard input, one JSON answer on standard output.

{"do": "seal", "template": "AES256_GCM" or "AES256_GCM_RAW", "plain": base64, "aad": base64}
    -> {"id": Tink's key id, "key": base64 of the raw key, "file": base64}
{"do": "open", "prefix": "TINK" or "RAW", "id": number, "key": base64, "file": base64, "aad": base64}
    -> {"plain": base64} or {"refused": Tink's message}
"""

import base64
import json
import sys

import tink
from tink import aead, json_proto_keyset_format, secret_key_access
from tink.proto import aes_gcm_pb2

TYPE = "type.googleapis.com/google.crypto.tink.AesGcmKey"


def b64(data):
    return base64.b64encode(data).decode()


def seal(template, plain, aad):
    handle = tink.new_keyset_handle(getattr(aead.aead_key_templates, template))
    keyset = json.loads(json_proto_keyset_format.serialize(handle, secret_key_access.TOKEN))
    (key,) = keyset["key"]
    raw = aes_gcm_pb2.AesGcmKey.FromString(base64.b64decode(key["keyData"]["value"])).key_value
    return {"id": key["keyId"], "key": b64(raw), "file": b64(handle.primitive(aead.Aead).encrypt(plain, aad))}


def open_file(prefix, key_id, key, file, aad):
    data = aes_gcm_pb2.AesGcmKey(key_value=key).SerializeToString()
    key = {"typeUrl": TYPE, "value": b64(data), "keyMaterialType": "SYMMETRIC"}
    entry = {"keyData": key, "status": "ENABLED", "keyId": key_id, "outputPrefixType": prefix}
    keyset = json.dumps({"primaryKeyId": key_id, "key": [entry]})
    handle = json_proto_keyset_format.parse(keyset, secret_key_access.TOKEN)
    try:
        return {"plain": b64(handle.primitive(aead.Aead).decrypt(file, aad))}
    except tink.TinkError as refused:
        return {"refused": str(refused)}


def main():
    request = json.load(sys.stdin)
    aead.register()
    field = {name: base64.b64decode(request[name]) for name in ("plain", "aad", "key", "file") if name in request}
    if request["do"] == "seal":
        answer = seal(request["template"], field["plain"], field["aad"])
    else:
        answer = open_file(request["prefix"], request["id"], field["key"], field["file"], field["aad"])
    print(json.dumps(answer))


if __name__ == "__main__":
    main()

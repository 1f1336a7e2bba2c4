"""Holds formats/vectors against Python's cryptography: prints what does not agree, and nothing else."""
import base64
import hashlib
import hmac
import json
import pathlib
import struct
import sys

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

folder = pathlib.Path(sys.argv[1])
keys, attestation, bundle, bundle_v2, files, grant, request, answer, statement, attested, log = (
    json.loads((folder / f"{name}.json").read_text())
    for name in (
        "keys attestation sealed_bundle sealed_bundle_v2 files grant request sealed_answer statement attested_answer log"
    ).split()
)


def unhex(text):
    return bytes.fromhex(text)


def check(what, ours, theirs):
    if ours != theirs:
        print(what, "differs")


def verify(what, key, message, signature):
    try:
        Ed25519PublicKey.from_public_bytes(unhex(key)).verify(unhex(signature), message)
    except Exception:
        print(what, "does not verify")


def extract(suite, salt, label, ikm):
    return hmac.digest(salt or bytes(32), b"HPKE-v1" + suite + label + ikm, "sha256")


def expand(suite, prk, label, info, length):
    info = struct.pack(">H", length) + b"HPKE-v1" + suite + label + info
    return hmac.digest(prk, info + b"\x01", "sha256")[:length]


def hpke(told, recipient):
    """RFC 9180, 4.1 and 5.1, from the recipient's side."""
    private = X25519PrivateKey.from_private_bytes(unhex(recipient["private"]))
    enc = unhex(told["enc"])
    dh = private.exchange(X25519PublicKey.from_public_bytes(enc))
    kem, suite = b"KEM\x00\x20", b"HPKE\x00\x20\x00\x01\x00\x02"
    context = enc + unhex(recipient["public"])
    shared = expand(kem, extract(kem, b"", b"eae_prk", dh), b"shared_secret", context, 32)
    context = b"\x00" + extract(suite, b"", b"psk_id_hash", b"")
    context += extract(suite, b"", b"info_hash", told["info"].encode())
    secret = extract(suite, shared, b"secret", b"")
    key = expand(suite, secret, b"key", context, 32)
    nonce = expand(suite, secret, b"base_nonce", context, 12)
    for name, value in (("dh", dh), ("shared_secret", shared), ("key", key), ("base_nonce", nonce)):
        check(f"hpke.{name}", value.hex(), told[name])
    return AESGCM(key), nonce


def number(nonce, n):
    return (int.from_bytes(nonce, "big") ^ n).to_bytes(12, "big")


# The sealed bundle.
aead, nonce = hpke(bundle["hpke"], keys["sealing (X25519)"])
opened = aead.decrypt(nonce, unhex(bundle["ciphertext"]), unhex(bundle["associated_data"]))
check("bundle", opened.decode(), bundle["bundle"])
check("associated_data", bundle["boot_nonce"] + struct.pack(">Q", bundle["counter"]).hex(), bundle["associated_data"])
signed = b"teemark sealed bundle v1" + unhex(bundle["associated_data"] + bundle["hpke"]["enc"] + bundle["ciphertext"])
check("signed", signed.hex(), bundle["signed"])
verify("bundle", keys["operator (Ed25519)"]["public"], signed, bundle["signature"])
check("bundle_sha256", hashlib.sha256(unhex(bundle["ciphertext"])).hexdigest(), bundle["bundle_sha256"])


# The state, and the sealed bundle of version 2.
def keyed(pairs):
    """The canonical form of keys: each id and what identifies the key, behind a byte with its length."""
    return b"".join(bytes([len(part)]) + part for pair in sorted(pairs) for part in pair)


def item(pairs):
    ids = sorted(id.decode() for id, _ in pairs)
    return {"count": len(ids), "ids": ids, "sha256": hashlib.sha256(keyed(pairs)).hexdigest()}


def file_key(id, value):
    bound = isinstance(value, dict)
    raw = base64.b64decode(value["key"] if bound else value)
    return id.encode(), hashlib.sha256(bytes([bound]) + raw).digest()


canonical = lambda value: json.dumps(value, sort_keys=True, separators=(",", ":"))
items = json.loads(bundle["bundle"])
url = items["ECS_WATERMARK_ENDPOINT"]
part = lambda text: base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
state = canonical({"items": {
    "ECS_WATERMARK_ENDPOINT": {"sha256": hashlib.sha256(url.encode()).hexdigest(), "url": url},
    "FILE_KEYS": item([file_key(*pair) for pair in items["FILE_KEYS"].items()]),
    "GRANT_KEYS": item([(key["kid"].encode(), part(key["x"])) for key in items["GRANT_KEYS"]["keys"]]),
}})
check("state", state, attestation["state"])
state_sha256 = hashlib.sha256(state.encode()).hexdigest()
check("state_sha256", state_sha256, json.loads(attestation["user_data"])["state_sha256"])

v2 = bundle_v2
aead, nonce = hpke(v2["hpke"], keys["sealing (X25519)"])
opened = aead.decrypt(nonce, unhex(v2["ciphertext"]), unhex(v2["associated_data"]))
check("bundle v2", opened.decode(), v2["bundle"])
items = json.loads(opened)
manifest = {"complete_at": hashlib.sha256(b"a state").hexdigest(), "from": state_sha256, "items": {
    "FILE_KEYS_ADD": item([file_key(*pair) for pair in items["FILE_KEYS_ADD"].items()]),
    "FILE_KEYS_REMOVE": item([(id.encode(), b"") for id in items["FILE_KEYS_REMOVE"]]),
}}
check("manifest", canonical(manifest), v2["manifest"])
described = [{"length": len(part), "sha256": hashlib.sha256(part).hexdigest()}
             for part in (v2["manifest"].encode(), unhex(v2["ciphertext"]))]
signed = b"teemark sealed bundle v2" + unhex(v2["boot_nonce"]) + struct.pack(">Q", v2["counter"]) + unhex(v2["hpke"]["enc"])
for one in described:
    signed += struct.pack(">Q", one["length"]) + unhex(one["sha256"])
check("signed v2", signed.hex(), v2["signed"])
line = json.loads(v2["line"])["sealed_bundle_v2"]
check("line", [line["manifest"], line["ciphertext"]], described)
told = {one["key"]: base64.b64decode(one["signature"]).hex() for one in line["signatures"]}
check("signatures", told, {keys[name]["public_base64"]: signature for name, signature in v2["signatures"].items()})
for name, signature in v2["signatures"].items():
    verify(f"{name}'s signature", keys[name]["public"], signed, signature)
check("sealed bundle v2", v2["sealed_bundle"], (v2["line"] + v2["manifest"]).encode().hex() + v2["ciphertext"])

# Files.
for name, prefix in (("raw", 0), ("tink", 5), ("raw, bound to the file id", 0)):
    it = files[name]
    file, iv = unhex(it["file"])[prefix:], unhex(it["iv"])
    check(f"{name}: iv", file[:12], iv)
    plain = AESGCM(unhex(files["key"])).decrypt(iv, file[12:], unhex(it["associated_data"]))
    check(f"{name}: plaintext", plain.hex(), it["plaintext"])
check("prefix", files["tink"]["file"][:10], struct.pack(">BI", 1, int(files["key_id"])).hex())

# The grant.
header, claims, signature = grant["token"].split(".")
check("header", part(header).decode(), grant["header"])
check("claims", part(claims).decode(), grant["claims"])
verify("grant", keys["grants (Ed25519)"]["public"], f"{header}.{claims}".encode(), part(signature).hex())
check("content", json.loads(grant["claims"])["content_sha256"], hashlib.sha256(unhex(request["raw"]["body"])).hexdigest())

# Answers.
aead, nonce = hpke(answer["hpke"], keys["reply (X25519)"])
file_id, user_id = answer["file_id"].encode(), answer["user_id"].encode()
associated = lambda last: bytes([last]) + struct.pack(">H", len(file_id)) + file_id + user_id
check("associated data", associated(1).hex(), answer["associated_data"]["last"])
for name in ("small", "empty"):
    sealed = unhex(answer[name]["sealed"])
    check(f"{name}: file", aead.decrypt(nonce, sealed[32:], associated(1)).hex(), answer[name]["file"])
large = bytes(i % 251 for i in range(answer["large"]["length"]))
sealed = unhex(answer["hpke"]["enc"])
sealed += aead.encrypt(nonce, large[:65536], associated(0)) + aead.encrypt(number(nonce, 1), large[65536:], associated(1))
check("large", hashlib.sha256(sealed).hexdigest(), answer["large"]["sealed_sha256"])

# What is signed of them, in BCS.
text = lambda data: bytes([len(data)]) + data
for name, it in statement.items():
    if name != "identity":
        bcs = struct.pack("<BQ", it["sealed"], it["timestamp_ms"])
        bcs += text(hashlib.sha256(unhex(it["given"])).digest()) + text(unhex(it["content_sha256"]))
        bcs += text(it["file_id"].encode()) + text(it["user_id"].encode()) + bytes([it["watermarked"]])
        check(f"{name}: bcs", bcs.hex(), it["bcs"])
        verify(name, statement["identity"], bcs, it["signature"])

# A document in front of what is signed.
headers, body = attested["raw"]["headers"], unhex(attested["raw"]["body"])
length = int(headers["Teemark-Attestation-Length"])
check("document", body[:length].hex(), attested["document"])
check("given", body[length:].hex(), statement["sealed"]["given"])
verify("attested", headers["Teemark-Identity"], unhex(statement["sealed"]["bcs"]), base64.b64decode(headers["Teemark-Signature"]).hex())
told = json.loads(attested["json"]["body"])
check("attestation", told["attestation"], attested["document"])
check("sealed_data", base64.b64decode(told["sealed_data"]).hex(), body[length:].hex())

# The log.
hello, *lines = log["stream"].splitlines()
check("hello", hello, f"teemark-log 1 {log['boot_nonce']}")
aead, nonce = hpke(log["hpke"], keys["log (X25519)"])
before, number_before = bytes(32), 0
for line in lines:
    n, digest, rest = line.split(" ", 2)
    kind, body = rest.split(" ", 1)
    check("number", int(n), number_before + 1)
    check(f"record {n}", hashlib.sha256(before + f"{n} {rest}".encode()).hexdigest(), digest)
    if kind == "key":
        it = json.loads(body)["keys"][0]
        check("enc", base64.b64decode(it["enc"]).hex(), log["hpke"]["enc"])
        segment = aead.decrypt(nonce, base64.b64decode(it["sealed"]), struct.pack(">Q", int(n)))
        check("segment_key", segment.hex(), log["segment_key"])
    elif kind == "sealed":
        opened = AESGCM(segment).decrypt(bytes(4) + struct.pack(">Q", int(n)), base64.b64decode(body), b"")
        check("record", opened.decode(), log["record"])
    elif kind == "checkpoint":
        it = json.loads(body)
        signed = b"teemark log checkpoint v1" + unhex(it["boot_nonce"]) + struct.pack(">Q", it["number"])
        signed += unhex(it["hash"]) + struct.pack(">Q", it["time_ms"])
        check("checkpoint", (it["number"], it["hash"]), (number_before, before.hex()))
        check("checkpoint_signed", signed.hex(), log["checkpoint_signed"])
        verify("checkpoint", keys["identity (Ed25519)"]["public"], signed, base64.b64decode(it["signature"]).hex())
    before, number_before = unhex(digest), int(n)
word, n, digest, signature = log["acknowledgement"].split()
signed = b"teemark log ack v1" + unhex(log["boot_nonce"]) + struct.pack(">Q", int(n)) + unhex(digest)
check("acknowledgement", (word, int(n), digest, signed.hex()), ("ack", number_before, before.hex(), log["acknowledgement_signed"]))
verify("acknowledgement", keys["collector (Ed25519)"]["public"], signed, base64.b64decode(signature).hex())

# The document's fields.
told = json.loads(attestation["user_data"])
check("sealing key", base64.b64decode(told["sealing_key"]).hex(), keys["sealing (X25519)"]["public"])
check("allow list", told["allow_list_sha256"], hashlib.sha256(attestation["allow_list"].encode()).hexdigest())

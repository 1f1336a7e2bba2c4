"""PyJWT as an issuer: a JSON list of {"alg": "EdDSA" or "ES256", "claims": object} on standard input.

-> {"jwks": set of the public keys, "tokens": [a token for each]}
"""

import json
import sys

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from jwt.algorithms import ECAlgorithm, OKPAlgorithm

keys = {"EdDSA": ed25519.Ed25519PrivateKey.generate(), "ES256": ec.generate_private_key(ec.SECP256R1())}
forms = {"EdDSA": OKPAlgorithm, "ES256": ECAlgorithm}
jwks = [json.loads(forms[alg].to_jwk(key.public_key())) | {"kid": "pyjwt-" + alg} for alg, key in keys.items()]
tokens = [
    jwt.encode(ask["claims"], keys[ask["alg"]], algorithm=ask["alg"], headers={"kid": "pyjwt-" + ask["alg"]})
    for ask in json.load(sys.stdin)
]
json.dump({"jwks": {"keys": jwks}, "tokens": tokens}, sys.stdout)

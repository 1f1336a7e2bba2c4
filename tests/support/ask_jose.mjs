// The package jose as an issuer: a JSON list of {"alg": "EdDSA" or "ES256", "claims": object} on standard input.
//
// -> {"jwks": set of the public keys, "tokens": [a token for each]}

import { readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { pathToFileURL } from 'node:url';

// The package lies where this is run, not beside this file.
const { SignJWT, exportJWK, generateKeyPair } = await import(
  pathToFileURL(createRequire(pathToFileURL(`${process.cwd()}/`)).resolve('jose'))
);

const keys = {};
const jwks = [];
for (const alg of ['EdDSA', 'ES256']) {
  const { publicKey, privateKey } = await generateKeyPair(alg, { crv: alg === 'EdDSA' ? 'Ed25519' : undefined });
  keys[alg] = privateKey;
  jwks.push({ ...(await exportJWK(publicKey)), kid: `jose-${alg}`, alg, use: 'sig' });
}
const tokens = [];
for (const { alg, claims } of JSON.parse(readFileSync(0))) {
  tokens.push(await new SignJWT(claims).setProtectedHeader({ alg, kid: `jose-${alg}`, typ: 'JWT' }).sign(keys[alg]));
}
console.log(JSON.stringify({ jwks: { keys: jwks }, tokens }));

// Asks an enclave for a marked file, from a page, and checks what comes back as docs/FORMATS.md says: the nonce and the
// times of the attestation document, and the signature of the answer. What a page needs a library for it does not check: the
// document's own signature, its certificates up to AWS' root, and the PCRs. So it tells which key signed, and takes on trust
// that the key is an enclave's.
"use strict";

const teemark = (() => {
  const OLDEST = 10_000; // milliseconds by which an answer may be signed before its document

  class Refused extends Error {
    constructor(status, code, message, retryAfter) {
      super(`${status} ${code}: ${message}`);
      Object.assign(this, { status, code, retryAfter });
    }
  }

  const hex = bytes => Array.from(bytes, byte => byte.toString(16).padStart(2, "0")).join("");
  const unhex = text => Uint8Array.from(text.match(/../g) ?? [], pair => parseInt(pair, 16));
  const utf8 = text => new TextEncoder().encode(text);
  const sha256 = async bytes => new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
  const fromBase64 = text => Uint8Array.from(atob(text), char => char.charCodeAt(0));
  const toBase64 = bytes => {
    let text = "";
    for (let i = 0; i < bytes.length; i += 0x8000) text += String.fromCharCode(...bytes.subarray(i, i + 0x8000));
    return btoa(text);
  };

  // The part of CBOR (RFC 8949) that attestation documents are written in.
  const cbor = bytes => {
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    let at = 0;
    const number = info => {
      if (info < 24) return info;
      const size = 1 << (info - 24);
      if (info > 27) throw new Error("the document is not CBOR of a known length");
      at += size;
      const value = size === 8 ? Number(view.getBigUint64(at - 8)) : view[`getUint${8 * size}`](at - size);
      return value;
    };
    const next = () => {
      const first = view.getUint8(at++);
      const [major, info] = [first >> 5, first & 31];
      if (major === 7 && info === 22) return null;
      const n = number(info);
      switch (major) {
        case 0: return n;
        case 1: return -1 - n;
        case 2: return bytes.subarray(at, at += n);
        case 3: return new TextDecoder("utf-8", { fatal: true }).decode(bytes.subarray(at, at += n));
        case 4: return Array.from({ length: n }, next);
        case 5: return new Map(Array.from({ length: n }, () => [next(), next()]));
        default: throw new Error("the document has CBOR that no attestation document has");
      }
    };
    return next();
  };

  // What a document says: the identity key, its time in milliseconds since 1970, its nonce.
  const read = document => {
    const [, , payload] = cbor(document);
    const members = cbor(payload);
    return { key: members.get("public_key"), time: members.get("timestamp"), nonce: members.get("nonce") };
  };

  const same = (a, b) => a !== null && a.length === b.length && a.every((byte, i) => byte === b[i]);

  const refuse = async response => {
    const { error, code } = await response.json();
    throw new Refused(response.status, code, error, response.headers.get("Retry-After"));
  };

  // The bytes that the enclave signs: BCS, docs/FORMATS.md, "Signatures".
  const statement = async ({ sealed, timestamp, given, content, fileId, userId, watermarked }) => {
    const time = new Uint8Array(8);
    new DataView(time.buffer).setBigUint64(0, BigInt(timestamp), true);
    const parts = [[sealed ? 1 : 0], time];
    for (const part of [await sha256(given), await sha256(content), utf8(fileId), utf8(userId)]) {
      const length = [];
      let n = part.length;
      for (; n >= 0x80; n >>= 7) length.push((n & 0x7f) | 0x80);
      parts.push([...length, n], part);
    }
    parts.push([watermarked ? 1 : 0]);
    return new Uint8Array(parts.flatMap(part => Array.from(part)));
  };

  // Checks an answer against the document that came with it, and gives the file and who signed it.
  const check = async (asked, answer) => {
    const { key, time, nonce } = read(answer.document);
    if (!same(nonce, asked.nonce)) throw new Error("the attestation document is for another nonce");
    if (answer.timestamp < time - OLDEST) throw new Error("the answer is older than its attestation document");
    const signed = await statement({ ...asked, ...answer });
    const identity = await crypto.subtle.importKey("raw", key, "Ed25519", false, ["verify"]);
    if (!await crypto.subtle.verify("Ed25519", identity, answer.signature, signed)) {
      throw new Error("the answer is not signed by the attested enclave");
    }
    return { file: answer.given, identity: hex(key), watermarked: answer.watermarked };
  };

  const fresh = () => crypto.getRandomValues(new Uint8Array(32));

  return {
    Refused,
    unhex,
    fromBase64,

    // The attestation document for a nonce of our own.
    async attest(endpoint) {
      const nonce = fresh();
      const response = await fetch(`${endpoint}/get_attestation?nonce=${hex(nonce)}`);
      if (!response.ok) await refuse(response);
      const document = read(unhex((await response.json()).attestation));
      if (!same(document.nonce, nonce)) throw new Error("the attestation document is for another nonce");
      return hex(document.key);
    },

    // The raw route: the bodies are the files themselves.
    async decryptRaw({ endpoint, content, fileId, userId, grant }) {
      const nonce = fresh();
      const response = await fetch(`${endpoint}/files/${encodeURIComponent(fileId)}/decrypt?` + new URLSearchParams({ user_id: userId }), {
        method: "POST",
        headers: {
          Authorization: `Bearer ${grant}`, "Content-Type": "application/octet-stream", "Teemark-Attest": hex(nonce),
        },
        body: content,
      });
      if (!response.ok) await refuse(response);
      const field = name => {
        const value = response.headers.get(name);
        if (value === null) throw new Error(`the answer has no ${name}, or the page may not read it`);
        return value;
      };
      const [body, length] = [new Uint8Array(await response.arrayBuffer()), Number(field("Teemark-Attestation-Length"))];
      return check({ content, fileId, userId, nonce }, {
        document: body.subarray(0, length),
        given: body.subarray(length),
        sealed: field("Teemark-Sealed") === "true",
        watermarked: field("Teemark-Watermarked") === "true",
        timestamp: Number(field("Teemark-Timestamp")),
        signature: fromBase64(field("Teemark-Signature")),
      });
    },

    // The JSON route.
    async decryptJson({ endpoint, content, fileId, userId, grant }) {
      const nonce = fresh();
      const response = await fetch(`${endpoint}/files/decrypt`, {
        method: "POST",
        headers: { Authorization: `Bearer ${grant}`, "Content-Type": "application/json" },
        body: JSON.stringify({
          file_id: fileId, user_id: userId, encrypted_content: toBase64(content), attest_nonce: hex(nonce),
        }),
      });
      if (!response.ok) await refuse(response);
      const answer = await response.json();
      return check({ content, fileId, userId, nonce }, {
        document: unhex(answer.attestation),
        given: fromBase64(answer.decrypted_data ?? answer.sealed_data),
        sealed: "sealed_data" in answer,
        watermarked: answer.watermarked,
        timestamp: answer.timestamp_ms,
        signature: fromBase64(answer.signature),
      });
    },
  };
})();

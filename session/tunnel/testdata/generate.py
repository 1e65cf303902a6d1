#!/usr/bin/env python3
"""Writes vectors.json: the tunnel's wire format, made without omegatun's code.

Needs the "cryptography" package. The layout is that of the package comment of tunnel.go; nothing here is random.
"""
import hashlib, hmac, json, pathlib, struct
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

INITIATOR_TX = bytes(range(0, 32))   # split key, initiator to responder
RESPONDER_TX = bytes(range(32, 64))  # split key, responder to initiator
HASH = bytes(range(64, 128))
INDEX = {"initiator": 0x01020304, "responder": 0xA1A2A3A4}  # receiver indexes
CHACHA, AES = 1, 2
KEM_SEED = bytes(range(128, 192))


def uint(n):
    if n <= 0xFC:
        return bytes([n])
    if n <= 0xFFFF:
        return b"\xfd" + struct.pack("<H", n)
    if n <= 0xFFFFFFFF:
        return b"\xfe" + struct.pack("<I", n)
    return b"\xff" + struct.pack("<Q", n)


def offer(index, suites, features):
    body = struct.pack("<IB", index, suites) + uint(features)
    return b"omtn" + uint(1) + uint(len(body)) + body


def epoch_key(split):
    return hashlib.blake2b(b"omegatun tunnel 1" + HASH, key=split, digest_size=32).digest()


KEY = {"initiator": epoch_key(INITIATOR_TX), "responder": epoch_key(RESPONDER_TX)}


def datagram(suite, sender, counter, plaintext):
    receiver = "responder" if sender == "initiator" else "initiator"
    header = struct.pack("<BBHIQ", 0xBE, 1, 0, INDEX[receiver], counter)
    if suite == CHACHA:
        aead, nonce = ChaCha20Poly1305(KEY[sender]), bytes(4) + struct.pack("<Q", counter)
    else:
        aead, nonce = AESGCM(KEY[sender]), bytes(4) + struct.pack(">Q", counter)
    return header + aead.encrypt(nonce, plaintext, header)


def control(kind, body=b""):
    return bytes([1, kind]) + body


def public(private):
    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def rekey(number, index, private, kem):
    return uint(number) + struct.pack("<I", index) + public(private) + uint(len(kem)) + kem


def hkdf(salt, secret, info, size):
    prk, out, block = hmac.digest(salt, secret, "sha256"), b"", b""
    for i in range(1, size // 32 + 1):
        block = hmac.digest(prk, block + info + bytes([i]), "sha256")
        out += block
    return out


def chained(chain, number, ek, ciphertext, kem_secret):
    """The epoch that follows from a chain secret, with fixed private keys."""
    ask, reply = bytes([0x40 + number]) * 32, bytes([0x60 + number]) * 32
    request = rekey(number, 0x11110000 + number, ask, ek)
    answer = rekey(number, 0x22220000 + number, reply, ciphertext)
    x25519 = X25519PrivateKey.from_private_bytes(ask).exchange(
        X25519PrivateKey.from_private_bytes(reply).public_key())
    info = b"omegatun epoch 1" + hashlib.sha256(request + answer).digest()
    out = hkdf(chain, x25519 + kem_secret, info, 96)
    return out[:32], {
        "number": number, "private": ask.hex(), "postQuantum": bool(ek), "request": request.hex(), "answer": answer.hex(),
        "chain": out[:32].hex(), "initiatorKey": out[32:64].hex(), "responderKey": out[64:].hex(),
    }


def rekeys():
    """One epoch without ML-KEM and one with it. Ciphertexts are random: that of the file is used again."""
    chain = hashlib.blake2b(b"omegatun chain 1" + RESPONDER_TX + HASH, key=INITIATOR_TX, digest_size=32).digest()
    first = {"chain": chain.hex()}
    chain, second = chained(chain, 1, b"", b"", b"")
    kem = MLKEM768PrivateKey.from_seed_bytes(KEM_SEED)
    try:
        ciphertext = bytes.fromhex(json.loads(path.read_text())["rekeys"][2]["answer"])[-1088:]
    except (FileNotFoundError, KeyError):
        _, ciphertext = kem.public_key().encapsulate()
    secret = kem.decapsulate(ciphertext)
    _, third = chained(chain, 2, kem.public_key().public_bytes_raw(), ciphertext, secret)
    return [first, second, third]


path = pathlib.Path(__file__).with_name("vectors.json")
ip4 = bytes.fromhex("4500001c000000004011") + bytes(18)
ip6 = bytes.fromhex("60000000000811ff") + bytes(40)
ping = control(2, struct.pack("<QQ", 0xF0F1F2F3F4F5F6F7, 0x0102030405060708))
plaintexts = [b"", b"\x01\x01", ping, ip4, ip6, b"\x02\x00" + ip4, bytes(i % 251 for i in range(1420))]
counters = [0, 1, 63, 64, 255, 8128, 2**31, 2**32 - 1]

out = {
    "initiatorTx": INITIATOR_TX.hex(),
    "responderTx": RESPONDER_TX.hex(),
    "hash": HASH.hex(),
    "initiatorIndex": INDEX["initiator"],
    "responderIndex": INDEX["responder"],
    "initiatorKey": KEY["initiator"].hex(),
    "responderKey": KEY["responder"].hex(),
    "offers": [
        {"index": i, "suites": s, "features": f, "wire": offer(i, s, f).hex()}
        for i, s, f in [(0, 1, 0), (INDEX["initiator"], 3, 0), (0xFFFFFFFF, 3, 3), (1, 1, 0xFD), (1, 3, 2**53 - 1)]
    ],
    "datagrams": [
        {"suite": suite, "from": sender, "counter": c, "plaintext": p.hex(), "wire": datagram(suite, sender, c, p).hex()}
        for suite in (CHACHA, AES)
        for sender in ("initiator", "responder")
        for c, p in list(zip(counters, plaintexts + [ping])) + ([(2**60 - 1, ping)] if suite == CHACHA else [])
    ],
    "controls": [
        {"note": "keepalive", "wire": control(1).hex()},
        {"note": "ping", "wire": ping.hex()},
        {"note": "pong, no address", "wire": control(3, struct.pack("<QQB", 5, 6, 0)).hex()},
        {"note": "pong, ipv4", "wire": control(3, struct.pack("<QQB4BH", 5, 6, 4, 192, 168, 1, 10, 49737)).hex()},
        {"note": "pong, ipv6",
         "wire": control(3, struct.pack("<QQB", 5, 6, 6) + bytes.fromhex("20010db8" + "00" * 11 + "01")
                         + struct.pack("<H", 49737)).hex()},
        {"note": "path probe", "wire": control(4, struct.pack("<QQ", 7, 8)).hex()},
        {"note": "mtu probe", "wire": control(5, struct.pack("<QH", 9, 100) + bytes(56)).hex()},
        {"note": "mtu reply", "wire": control(6, struct.pack("<QH", 9, 100)).hex()},
        {"note": "close", "wire": control(7, struct.pack("<H", 2)).hex()},
        {"note": "retire", "wire": control(8).hex()},
        {"note": "unknown kind", "wire": control(200).hex()},
    ],
    "kemSeed": KEM_SEED.hex(),
    "rekeys": rekeys(),
}
path.write_text(json.dumps(out, indent=1) + "\n")

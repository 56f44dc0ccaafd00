"""Ways to damage a file: any file, text, and containers whose checksums and lengths are made to fit again."""

from __future__ import annotations

import io
import json
import re
import struct
import zipfile
import zlib
from collections.abc import Callable

from numpy.random import Generator

Mutation = Callable[[bytes, Generator], bytes]

# Mutations of any file


def span(content: bytes, random: Generator) -> tuple[int, int]:
    """A random part of the content, mostly short."""
    start = int(random.integers(len(content) + 1))
    return start, min(len(content), start + int(2 ** random.uniform(0, 8)))


def flip_bits(content: bytes, random: Generator) -> bytes:
    changed = bytearray(content)
    for place in random.integers(len(content), size=random.integers(1, 9)) if content else ():
        changed[place] ^= 1 << int(random.integers(8))
    return bytes(changed)


def truncate(content: bytes, random: Generator) -> bytes:
    return content[: random.integers(len(content) + 1)]


def extend(content: bytes, random: Generator) -> bytes:
    return content + random.bytes(int(random.integers(1, 300)))


def remove(content: bytes, random: Generator) -> bytes:
    start, end = span(content, random)
    return content[:start] + content[end:]


def duplicate(content: bytes, random: Generator) -> bytes:
    start, end = span(content, random)
    return content[:end] + content[start:]


def overwrite(content: bytes, random: Generator) -> bytes:
    start, end = span(content, random)
    filling = (bytes(end - start), b"\xff" * (end - start), random.bytes(end - start))
    return content[:start] + filling[random.integers(3)] + content[end:]


def swap(content: bytes, random: Generator) -> bytes:
    first, second, third = sorted(random.integers(len(content) + 1, size=3))
    return content[:first] + content[second:third] + content[first:second] + content[third:]


def forge_number(content: bytes, random: Generator) -> bytes:
    """A number where a size may be, in either byte order."""
    value = (0, 1, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1, 2**63, 2**64 - 1)[random.integers(10)]
    size = 4 if value < 2**32 and random.random() < 0.5 else 8
    place = int(random.integers(len(content) + 1))
    return content[:place] + value.to_bytes(size, ("little", "big")[random.integers(2)]) + content[place + size :]


BYTES = (flip_bits, truncate, extend, remove, duplicate, overwrite, swap, forge_number)

# Mutations of text

HOSTILE_WORDS = (
    *("nan", "-inf", "1e400", "1e308", "-1", "0", "-0.0", "1e-320", "99999999999999999999", "9" * 5000, "1_0", "0x10"),
    *("../..", "/etc/passwd", "~", "\0", "٣", "１２", "²", "\ufeff", "\u2028", "\x1b[2J", "\r", "\n", "\\", "'", '"'),
    *("[" * 3000, "{" * 40, "- " * 200, "*a", "&a x", "!!int 0x1", "!!timestamp x", "!!python/name:os.system", "<<: x"),
    *("null", "true", "[]", "{}", "x" * 100_000, "a b c", ": ", "#", "\udcff", "---", "..."),
)


def replace_word(content: bytes, random: Generator, pattern: str = r"[^\s:,\[\]{}=]+") -> bytes:
    text = content.decode("utf-8", "surrogateescape")
    words = list(re.finditer(pattern, text))
    word = HOSTILE_WORDS[random.integers(len(HOSTILE_WORDS))]
    if not words:
        return word.encode("utf-8", "surrogateescape")
    chosen = words[random.integers(len(words))]
    return (text[: chosen.start()] + word + text[chosen.end() :]).encode("utf-8", "surrogateescape")


def replace_number(content: bytes, random: Generator) -> bytes:
    return replace_word(content, random, r"[-+]?[0-9]+(\.[0-9]*)?(e[-+]?[0-9]+)?")


def shuffle_lines(content: bytes, random: Generator) -> bytes:
    lines = content.splitlines(keepends=True)
    return b"".join(lines[index] for index in random.integers(len(lines), size=len(lines))) if lines else b"\n"


TEXT = (*BYTES, replace_word, replace_word, replace_number, replace_number, replace_number, shuffle_lines)

# Mutations of containers

HOSTILE_VALUES = (
    *(None, True, 0, -1, 1.5, 2**31, 2**63, 10**30, 1e308, float("nan"), float("inf"), 10**9, 10**4),
    *("", "../../etc/passwd", "\0", "no", "٣", "\ud800", "a\nb", "x" * 10_000),
    *([], {}, [0] * 10_000, [[]], {"a": {}}, [10**6, 10**6], {"0": [1, 2]}),
)


def replace_value(content: bytes, random: Generator) -> bytes:
    """JSON with a value somewhere in it replaced, renamed or removed."""
    value = json.loads(content)
    root = {"": value}
    holder, key = root, ""
    while isinstance(holder[key], (dict, list)) and holder[key] and random.random() < 0.8:
        holder = holder[key]
        keys = list(holder) if isinstance(holder, dict) else range(len(holder))
        key = keys[random.integers(len(keys))]
    choice = random.random()
    if choice < 0.1 and isinstance(holder, dict):
        holder["é\n" + "../" * 30] = holder.pop(key)
    elif choice < 0.2:
        del holder[key]
    elif choice < 0.25:
        return json.dumps(value).replace("1", "[" * 50_000, 1).encode()
    else:
        holder[key] = HOSTILE_VALUES[random.integers(len(HOSTILE_VALUES))]
    return json.dumps(root.get("")).encode()


def replace_header(content: bytes, random: Generator) -> bytes:
    """A safetensors file with a value of its header replaced."""
    length = int.from_bytes(content[:8], "little")
    header = replace_value(content[8 : 8 + length], random)
    return len(header).to_bytes(8, "little") + header + content[8 + length :]


def chunks_of(content: bytes) -> list[tuple[bytes, bytes]]:
    """Names and data of the chunks of a PNG."""
    chunks, place = [], 8
    while place < len(content):
        (length,) = struct.unpack(">I", content[place : place + 4])
        chunks.append((content[place + 4 : place + 8], content[place + 8 : place + 8 + length]))
        place += 12 + length
    return chunks


def png_of(chunks: list[tuple[bytes, bytes]]) -> bytes:
    """A PNG of these chunks, with right lengths and checksums."""
    parts = [
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


BOMB = zlib.compress(bytes(1 << 24), 9)
EXTRA_CHUNKS = (
    *((b"zTXt", b"key\0\0" + BOMB), (b"iCCP", b"key\0\0" + BOMB), (b"iTXt", b"key\0\1\0\0\0" + BOMB)),
    *(
        (b"tRNS", b"\0"),
        (b"PLTE", b"\0" * 5),
        (b"acTL", b"\xff" * 8),
        (b"fcTL", b"\xff" * 26),
        (b"eXIf", b"II*\0\xff\xff"),
    ),
    *((b"pHYs", b"\0"), (b"gAMA", b""), (b"IEND", b""), (b"IDAT", BOMB), (b"IHDR", bytes(13)), (b"cHRM", b"\0")),
)


def change_chunk(content: bytes, random: Generator) -> bytes:
    """A PNG with a chunk damaged, added, dropped or repeated, or another header, all with right checksums."""
    chunks = chunks_of(content)
    place = int(random.integers(len(chunks)))
    choice = random.integers(5)
    if choice == 0:
        chunks[place] = (chunks[place][0], BYTES[random.integers(len(BYTES))](chunks[place][1], random))
    elif choice == 1:
        chunks.insert(place + 1, EXTRA_CHUNKS[random.integers(len(EXTRA_CHUNKS))])
    elif choice == 2:
        del chunks[place]
    elif choice == 3:
        chunks.insert(place, chunks[place])
    else:
        header = list(struct.unpack(">IIBBBBB", chunks[0][1]))
        limits = (2**32, 2**32, 33, 9, 3, 3, 3)
        field = int(random.integers(7))
        header[field] = int(random.integers(limits[field]))
        chunks[0] = (b"IHDR", struct.pack(">IIBBBBB", *header))
    return png_of(chunks)


def repack(content: bytes, random: Generator) -> bytes:
    """A zip archive with a damaged or missing member, compressed or not."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = [(each.filename, archive.read(each)) for each in archive.infolist()]
    place = int(random.integers(len(members)))
    name, data = members[place]
    members[place] = (name, BYTES[random.integers(len(BYTES))](data, random))
    if random.random() < 0.2:
        del members[place]
    packed = io.BytesIO()
    method = zipfile.ZIP_DEFLATED if random.random() < 0.2 else zipfile.ZIP_STORED
    with zipfile.ZipFile(packed, "w", method) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return packed.getvalue()


def forge_directory(content: bytes, random: Generator) -> bytes:
    """A zip archive with a damaged entry in its directory."""
    place = content.index(b"PK\1\2")
    return content[:place] + forge_number(content[place:], random)

"""Pictures in: every form they come in, and everything that must not get through."""

from __future__ import annotations

import base64
import contextlib
import io
import ipaddress
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from PIL import Image
from quintet_common import addresses, fetch, media
from quintet_common.addresses import AddressRefused, is_public, resolve
from quintet_common.errors import ApiError
from quintet_common.media import Picture, picture_from_bytes, picture_from_url

PARAM = "messages[0].content[1].image_url"


def encoded(form: str = "PNG", mode: str = "RGB", size: tuple[int, int] = (8, 4), **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size, 1 if mode == "P" else None).save(buffer, form, **options)
    return buffer.getvalue()


def data_url(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


async def refused(url: str, **options: bool) -> ApiError:
    with pytest.raises(ApiError) as caught:
        await picture_from_url(url, PARAM, **options)
    assert (caught.value.status, caught.value.param) == (400, PARAM)
    return caught.value


class Site(BaseHTTPRequestHandler):
    """A site with pictures and traps."""

    def do_GET(self) -> None:
        path, _, rest = self.path.partition("?")
        answers: dict[str, tuple[int, dict[str, str], bytes]] = {
            "/ok.png": (200, {"content-type": "image/png"}, encoded()),
            "/text": (200, {"content-type": "text/html"}, b"<html>"),
            "/missing": (404, {"content-type": "text/plain"}, b"secret"),
            "/moved": (302, {"location": "/ok.png"}, b""),
            "/inside": (302, {"location": "http://169.254.169.254/latest/meta-data"}, b""),
            "/file": (302, {"location": "file:///etc/passwd"}, b""),
            "/loop": (302, {"location": "/loop"}, b""),
            "/big": (200, {"content-type": "image/png"}, b"x" * 2_000_000),
            "/host": (200, {"content-type": "image/png", "x-host": self.headers["host"]}, encoded()),
        }
        if path == "/slow":
            time.sleep(1.5)
        status, headers, body = answers.get(path, answers["/ok.png"])
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        with contextlib.suppress(BrokenPipeError):
            self.wfile.write(body)
        self.server.seen.append((self.headers["host"], rest))  # type: ignore[attr-defined]

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def site() -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Site)
    server.seen = []  # type: ignore[attr-defined]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(addresses.ALLOW_PRIVATE, "1")


def url_of(site: ThreadingHTTPServer, path: str, host: str = "127.0.0.1") -> str:
    return f"http://{host}:{site.server_port}{path}"


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
async def test_every_format_is_read(form: str) -> None:
    picture = await picture_from_url(data_url(encoded(form)), PARAM)
    assert (picture.width, picture.height) == (8, 4)
    assert picture.format == ("jpeg" if form == "JPEG" else "png")
    assert Image.open(io.BytesIO(picture.data)).size == (8, 4)


async def test_plain_pictures_are_passed_on_as_they_came() -> None:
    for form in ("PNG", "JPEG"):
        data = encoded(form)
        assert (await picture_from_bytes(data, PARAM)).data == data


async def test_transparency_is_kept() -> None:
    for form, mode in (("PNG", "RGBA"), ("WEBP", "RGBA"), ("PNG", "LA")):
        picture = await picture_from_bytes(encoded(form, mode), PARAM)
        assert Image.open(io.BytesIO(picture.data)).mode == "RGBA"


async def test_a_turned_photograph_is_set_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = await picture_from_bytes(encoded("JPEG", exif=exif), PARAM)
    assert (picture.width, picture.height) == (4, 8)
    assert Image.open(io.BytesIO(picture.data)).getexif().get(0x0112, 1) == 1


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("exif", [b"Exif\0\0garbage", b"Exif\0\0MM\0*", b"Exif\0\0" + bytes(20)])
async def test_broken_exif_costs_no_picture(form: str, exif: bytes) -> None:
    picture = await picture_from_bytes(encoded(form, exif=exif), PARAM)
    assert (picture.width, picture.height) == (8, 4)
    if form != "JPEG":  # whose broken data Pillow drops by itself
        assert not Image.open(io.BytesIO(picture.data)).getexif()


async def test_of_an_animation_the_first_picture_counts() -> None:
    frames = [Image.new("RGB", (8, 4), color) for color in ("red", "blue")]
    buffer = io.BytesIO()
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    picture = await picture_from_bytes(buffer.getvalue(), PARAM)
    image = Image.open(io.BytesIO(picture.data))
    assert image.convert("RGB").getpixel((0, 0)) == (255, 0, 0)
    assert getattr(image, "n_frames", 1) == 1


async def test_sixteen_bits_are_scaled_not_clipped() -> None:
    buffer = io.BytesIO()
    Image.new("I;16", (2, 2), 0x8000).save(buffer, "PNG")
    picture = await picture_from_bytes(buffer.getvalue(), PARAM)
    assert Image.open(io.BytesIO(picture.data)).convert("L").getpixel((0, 0)) == 128


@pytest.mark.parametrize("kind", ["image/png", "IMAGE/PNG", "application/octet-stream", "image/png;name=a.png", ""])
async def test_data_urls_of_every_spelling(kind: str) -> None:
    assert (await picture_from_url(data_url(encoded(), kind), PARAM)).width == 8


async def test_base64_with_breaks_without_padding_or_url_safe() -> None:
    data = encoded(size=(9, 9), mode="RGBA")
    text = base64.b64encode(data).decode()
    for spelled in (text.rstrip("="), "\n".join([text[:20], text[20:]]), base64.urlsafe_b64encode(data).decode()):
        assert (await picture_from_url(f"data:image/png;base64,{spelled}", PARAM)).width == 9


async def test_zlai_may_read_this_machine_while_only_this_machine_reads_us(
    site: ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = url_of(site, "/ok.png")
    await refused(url, zlai=True)
    monkeypatch.setenv(addresses.LOCAL, "1")
    assert (await picture_from_url(url, PARAM, zlai=True)).width == 8
    await refused(url)
    await refused("http://10.0.0.1/ok.png", zlai=True)
    assert len(site.seen) == 1  # type: ignore[attr-defined]


async def test_bare_base64_only_where_it_is_allowed() -> None:
    text = base64.b64encode(encoded()).decode()
    assert (await picture_from_url(text, PARAM, zlai=True)).width == 8
    assert "expected an http" in (await refused(text)).message


@pytest.mark.parametrize(
    "url",
    [
        "",
        "hello",
        "ftp://example.com/a.png",
        "file:///etc/passwd",
        "data:image/png,rawtext",
        "data:image/png;base64,@@@@",
        "data:text/html;base64,PGh0bWw+",
        "data:image/png;base64,",
        "http://",
        "http://[::1",
        "http://example.com:99999/",
        "https://user@/x",
    ],
)
async def test_what_is_no_picture_url_is_refused(url: str) -> None:
    await refused(url)
    await refused(url, zlai=True)


async def test_damaged_and_foreign_files_are_refused() -> None:
    tiff = encoded("TIFF")
    for data in (
        b"",
        b"GIF89a",
        b"not a picture",
        encoded()[:-30],
        encoded("JPEG", size=(64, 64))[:-200],
        tiff,
        b"<svg/>",
    ):
        await refused(data_url(data))


def png_of_size(width: int, height: int) -> bytes:
    """A few hundred bytes that claim to be a picture of any size."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    body = zlib.compress(bytes(100_000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(100_000, 100_000), (8_000, 8_000), (30_000, 10)])
async def test_a_decompression_bomb_is_refused_before_it_is_decoded(size: tuple[int, int]) -> None:
    started = time.process_time()
    error = await refused(data_url(png_of_size(*size)))
    assert error.code == "picture_too_large"
    assert "at most 50 million pixels" in error.message
    assert time.process_time() - started < 0.5


async def test_a_file_over_the_limit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(media, "MAX_BYTES", 100)
    data = encoded(size=(64, 64)) + bytes(200)
    assert (await refused(data_url(data))).code == "file_too_large"
    with pytest.raises(ApiError, match="larger"):
        await picture_from_bytes(data, PARAM)


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "10.1.2.3",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "0.0.0.0",
        "224.0.0.1",
        "255.255.255.255",
        "::1",
        "::",
        "fe80::1",
        "fd00::1",
        "ff02::1",
        "::ffff:127.0.0.1",
        "::ffff:10.0.0.1",
        "64:ff9b::7f00:1",
        "2002:7f00:1::",
    ],
)
def test_private_addresses_are_not_public(address: str) -> None:
    assert not is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"])
def test_public_addresses_are_public(address: str) -> None:
    assert is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.1", "2130706433", "0x7f000001", "[::1]", "0.0.0.0"])
async def test_the_loopback_is_refused_however_it_is_written(site: ThreadingHTTPServer, host: str) -> None:
    error = await refused(url_of(site, "/ok.png", host))
    assert error.code in ("url_not_allowed", "invalid_url")
    assert site.seen == []  # type: ignore[attr-defined]


async def test_a_name_with_one_private_address_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    import asyncio

    async def both(*_: Any, **__: Any) -> list[Any]:
        return [(0, 0, 0, "", ("8.8.8.8", 80)), (0, 0, 0, "", ("127.0.0.1", 80))]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", both)
    with pytest.raises(AddressRefused):
        await resolve("example.com", 80)


@pytest.mark.usefixtures("allowed")
async def test_the_operator_can_allow_private_addresses(site: ThreadingHTTPServer) -> None:
    assert await picture_from_url(url_of(site, "/ok.png"), PARAM) == Picture(encoded(), 8, 4, "png")
    assert (await picture_from_url(url_of(site, "/moved"), PARAM)).width == 8


@pytest.mark.usefixtures("allowed")
async def test_the_connection_goes_to_the_address_that_was_checked(
    site: ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The name of this URL does not exist: only the pinned address can have been used."""

    async def pinned(host: str, _: int, **__: bool) -> str:
        assert host == "pictures.invalid"
        return "127.0.0.1"

    monkeypatch.setattr(fetch, "resolve", pinned)
    await picture_from_url(url_of(site, "/ok.png?a=b", "pictures.invalid"), PARAM)
    assert site.seen == [(f"pictures.invalid:{site.server_port}", "a=b")]  # type: ignore[attr-defined]


async def test_a_redirect_into_the_private_network_is_refused(
    site: ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = fetch.resolve

    async def first_is_fine(host: str, port: int, **__: bool) -> str:
        return "127.0.0.1" if host == "pictures.invalid" else await real(host, port)

    monkeypatch.setattr(fetch, "resolve", first_is_fine)
    assert (await refused(url_of(site, "/inside", "pictures.invalid"))).code == "url_not_allowed"
    await refused(url_of(site, "/file", "pictures.invalid"))


@pytest.mark.usefixtures("allowed")
@pytest.mark.parametrize(
    ("path", "words"), [("/text", "text/html"), ("/missing", "status 404"), ("/loop", "redirects more than")]
)
async def test_what_a_site_answers_wrongly_is_said(site: ThreadingHTTPServer, path: str, words: str) -> None:
    error = await refused(url_of(site, path))
    assert words in error.message
    assert "secret" not in error.message


@pytest.mark.usefixtures("allowed")
async def test_a_large_file_is_not_read_to_its_end(site: ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(media, "MAX_BYTES", 1 << 20)
    assert (await refused(url_of(site, "/big"))).code == "file_too_large"


@pytest.mark.usefixtures("allowed")
async def test_a_slow_site_is_given_up(site: ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "SECONDS", 0.3)
    assert "did not answer" in (await refused(url_of(site, "/slow"))).message


@pytest.mark.usefixtures("allowed")
async def test_a_closed_port_is_a_clear_error() -> None:
    assert "could not be fetched" in (await refused("http://127.0.0.1:9/a.png")).message


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc and needs glibc")
@pytest.mark.parametrize("mode", ["P", "RGB"])
@pytest.mark.parametrize("damaged", [False, True])
def test_large_pictures_leave_no_memory_behind(mode: str, damaged: bool) -> None:
    script = """
import asyncio, io, re, sys
from pathlib import Path
from PIL import Image
from quintet_common.media import picture_from_bytes

def resident():
    return int(re.search(r"VmRSS:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) >> 10

file = io.BytesIO()
Image.new(sys.argv[1], (6000, 6000)).save(file, "PNG", compress_level=1)
data = file.getvalue()[: -int(sys.argv[2])]

async def main():
    before = resident()
    for _ in range(2):
        await asyncio.gather(*(picture_from_bytes(data, "image") for _ in range(2)), return_exceptions=True)
    print(resident() - before)

asyncio.run(main())
"""
    command = [sys.executable, "-c", script, mode, "20000" if damaged else "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 60

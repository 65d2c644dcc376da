"""A stand-in for the espeak-ng program where only its library is there: ``LIBRARY DATA -v VOICE -s RATE|--ipa``.

Reads UTF-8 text from standard input and writes a WAV stream to standard output, as ``espeak-ng --stdin --stdout`` does;
with ``--ipa`` the phonemes instead, a clause per line, each with the text that it was made of behind a tab. It is run
by its path, as a process of its own, and imports nothing but the standard library: espeak-ng is GPL-3, and nothing else
of the project may share a process with it. The calls are those of ``espeak-ng/speak_lib.h``.
"""

import ctypes
import os
import struct
import sys

SYNCHRONOUS, UTF8, RATE, END_PAUSE, IPA = 2, 1, 1, 0x1000, 0x02


class Voice(ctypes.Structure):
    """``espeak_VOICE``, by which a voice is chosen for a language that is none's name."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("languages", ctypes.c_char_p),
        ("identifier", ctypes.c_char_p),
        ("gender", ctypes.c_ubyte),
        ("age", ctypes.c_ubyte),
        ("variant", ctypes.c_ubyte),
        ("reserved", ctypes.c_ubyte),
        ("score", ctypes.c_int),
        ("spare", ctypes.c_void_p),
    )


def speak(espeak: ctypes.CDLL, rate: int, words_per_minute: int) -> int:
    out = sys.stdout.buffer
    out.write(b"RIFF\xff\xff\xff\xffWAVEfmt " + struct.pack("<IHHIIHH", 16, 1, 1, rate, rate * 2, 2, 16))
    out.write(b"data\xff\xff\xff\xff")

    def on_sound(samples: int, count: int, _events: int) -> int:
        if samples and count:
            out.write(ctypes.string_at(samples, count * 2))
        return 0

    callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p)(on_sound)
    espeak.espeak_SetSynthCallback(callback)
    espeak.espeak_SetParameter(RATE, words_per_minute, 0)
    text = sys.stdin.buffer.read() + b"\0"
    failed = espeak.espeak_Synth(text, ctypes.c_size_t(len(text)), 0, 0, 0, UTF8 | END_PAUSE, None, None)
    espeak.espeak_Synchronize()
    out.flush()
    return int(failed != 0)


def spell(espeak: ctypes.CDLL) -> int:
    espeak.espeak_TextToPhonemes.restype = ctypes.c_char_p
    text = ctypes.create_string_buffer(sys.stdin.buffer.read())
    begin = ctypes.addressof(text)
    at, last = ctypes.c_void_p(begin), 0
    while at.value:
        phonemes = espeak.espeak_TextToPhonemes(ctypes.byref(at), UTF8, IPA) or b""
        end = at.value - begin if at.value else len(text.value)
        clause = text.raw[last:end].replace(b"\n", b" ").replace(b"\t", b" ")
        sys.stdout.buffer.write(phonemes.replace(b"\n", b" ") + b"\t" + clause + b"\n")
        last = end
    sys.stdout.buffer.flush()
    return 0


def main(library: str, data: str, voice: str, *task: str) -> int:
    espeak = ctypes.CDLL(library)
    # The library's own buffer for the path is short, so it is told a short one.
    os.chdir(data)
    rate = espeak.espeak_Initialize(SYNCHRONOUS, 0, b".", 0)
    # Or else the second in which it began decides on the noise of its voice.
    if hasattr(espeak, "espeak_ng_SetRandSeed"):
        espeak.espeak_ng_SetRandSeed(ctypes.c_long(1))
    wanted = Voice(languages=voice.encode())
    known = rate > 0 and espeak.espeak_SetVoiceByName(voice.encode()) == 0
    if not known and (rate <= 0 or espeak.espeak_SetVoiceByProperties(ctypes.byref(wanted)) != 0):
        return 1
    return spell(espeak) if task == ("--ipa",) else speak(espeak, rate, int(task[1]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], *sys.argv[4:]))

"""Spoken digits: log-mel pictures of what espeak-ng says, and the small set made of it.

    python colab/examples/_spoken.py        # speaks them anew and writes spoken.npz beside this file

espeak-ng is a speech synthesizer (Debian: apt-get install espeak-ng). The set has five accents and
eleven voices, each digit once at a speed and a pitch of its own.
"""

import io
import subprocess
import wave
from pathlib import Path

import numpy as np

FILE = Path(__file__).with_name("spoken.npz")
ACCENTS = ("en-us", "en-gb", "en-gb-scotland", "en-gb-x-rp", "en-029")
VOICES = ("m1", "m2", "m4", "m6", "m7", "f1", "f2", "f4", "f5", "m3", "f3")
UNSEEN = 2  # voices, the last ones, that are not trained on
WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
RATE, WINDOW, HOP, BANDS, FRAMES = 8000, 256, 128, 24, 40  # 40 frames are 0.64 s


def log_mel(sound):
    """The loudness in dB of 24 bands over time, [frames, bands], the loudest at 0."""
    loud = np.flatnonzero(np.abs(sound) > 0.02 * np.abs(sound).max())
    sound = sound[loud[0] : loud[-1] + 1]
    length = (FRAMES - 1) * HOP + WINDOW
    sound = np.pad(sound[:length], (0, max(0, length - len(sound))))
    frames = np.lib.stride_tricks.sliding_window_view(sound, WINDOW)[::HOP] * np.hanning(WINDOW)
    power = np.abs(np.fft.rfft(frames)) ** 2
    # Bands are triangles, equally wide on the mel scale, on which ears hear equal steps.
    top = 2595 * np.log10(1 + RATE / 2 / 700)
    edges = 700 * (10 ** (np.linspace(0, top, BANDS + 2) / 2595) - 1)
    bins = np.fft.rfftfreq(WINDOW, 1 / RATE)[:, None]
    rise = (bins - edges[:-2]) / np.diff(edges)[:-1]
    fall = (edges[2:] - bins) / np.diff(edges)[1:]
    energy = power @ np.maximum(0, np.minimum(rise, fall))
    return np.maximum(10 * np.log10(energy / energy.max() + 1e-9), -60)


def said(word, voice, speed, pitch):
    """What espeak-ng says, at 8 kHz."""
    command = ["espeak-ng", "-v", voice, "-s", str(speed), "-p", str(pitch), "--stdout", word]
    raw = subprocess.run(command, capture_output=True, check=True).stdout
    with wave.open(io.BytesIO(raw)) as file:
        rate, sound = file.getframerate(), file.readframes(file.getnframes())
    sound = np.frombuffer(sound, np.int16).astype(float)
    spectrum = np.fft.rfft(sound)  # to 8 kHz: what is above 4 kHz is left out
    count = len(sound) * RATE // rate
    return np.fft.irfft(spectrum[: count // 2 + 1], count)


def record():
    """All of them: pictures in bytes [n, frames, bands], digits [n], and numbers of voices [n]."""
    random = np.random.default_rng(0)
    rows = []
    for accent in ACCENTS:
        for number, voice in enumerate(VOICES):
            for digit, word in enumerate(WORDS):
                speed, pitch = random.integers(130, 200), random.integers(20, 80)
                sound = said(word, f"{accent}+{voice}", speed, pitch)
                # Steps of 2 dB: finer ones are not heard, and take twice the bytes.
                rows.append((np.uint8(log_mel(sound) / 2 + 30), digit, number))
    pictures, digits, voices = zip(*rows, strict=True)
    return {"x": np.stack(pictures), "y": np.uint8(digits), "voice": np.uint8(voices)}


if __name__ == "__main__":
    np.savez_compressed(FILE, **record())
    print(f"{FILE.name}: {FILE.stat().st_size:,} bytes")
